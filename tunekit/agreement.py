"""What several processes have in common before they work as one: equal values, one folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.distributed import gathered, is_first, process_count, together
from tunekit.errors import DistributedError


def check_agreed(what: Mapping[str, Any]) -> None:
    """Passes where every process has the same here.

    Args:
        what: JSON values by the name that an error gives them; mappings within are looked into.

    Raises:
        DistributedError: they differ; says in what.
    """
    if process_count() == 1:
        return
    flat = dict(_flat("", json.loads(json.dumps(what, default=str))))
    digests = {name: hashlib.sha256(json.dumps(v).encode()).hexdigest() for name, v in flat.items()}
    shown = {name: json.dumps(value)[:120] for name, value in flat.items()}
    everyone = gathered([digests, shown], "the recipe and the data")
    differences = []
    for index, (theirs, texts) in enumerate(everyone):
        first, first_texts = everyone[0]
        for name in sorted(first.keys() | theirs.keys()):
            if first.get(name) != theirs.get(name):
                ours, other = first_texts.get(name, "absent"), texts.get(name, "absent")
                differences.append(f"{name} is {ours} in process 0 and {other} in process {index}")
    if differences:
        more = f", and {len(differences) - 5} more" if differences[5:] else ""
        raise DistributedError(
            f"the processes are not of one run: {'; '.join(differences[:5])}{more}. Give all of "
            "them the same recipe, overrides and data."
        )


def check_shared(folder: Path) -> None:
    """Passes where `folder` is the same one in every process; made if absent.

    Raises:
        DistributedError: a process does not find there what process 0 wrote.
    """
    if process_count() == 1:
        return
    token = folder / ".tunekit-shared"
    word = gathered(os.urandom(8).hex(), "a word")[0]
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text(word)
    together("a word written")
    found = token.is_file() and token.read_text() == word
    finders = gathered(found, "a word read")
    if is_first():
        token.unlink(missing_ok=True)
    without = [str(index) for index, finds in enumerate(finders) if not finds]
    if without:
        raise DistributedError(
            f"runtime.out: {folder} is not one folder for all processes: what process 0 writes "
            f"there, process {', '.join(without)} does not find. Name one on a file system that "
            "all share."
        )


def _flat(prefix: str, value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        yield prefix, value
        return
    for key, item in value.items():
        yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
