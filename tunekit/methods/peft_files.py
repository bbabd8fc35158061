"""The two files of a PEFT adapter: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tunekit.errors import ModelError
from tunekit.folder import read_tensors

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before the name of a module, in the name of a tensor."""


@dataclass(frozen=True, eq=False)
class PeftFiles:
    """What the files hold, as PEFT has it: weights [out, in], modules' names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    """By name: "base_model.model.bert.encoder.layer.0.output.dense.lora_A.weight"."""
    place: str = "the adapter"
    """Where they were read, for messages."""


def read_peft(folder: Path) -> PeftFiles:
    """Returns what is in a folder that PEFT, or `write_peft`, wrote; tensors as float32.

    Raises:
        ModelError: a file is missing or damaged.
    """
    config_path, path = folder / CONFIG, folder / TENSORS
    for wanted in (config_path, path):
        if not wanted.is_file():
            raise ModelError(_missing(folder, wanted.name))
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config_path} is no valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{config_path} holds a {type(config).__name__}, expected a JSON object.")
    tensors = {name: t.astype(np.float32) for name, t in read_tensors(path).items()}
    return PeftFiles(config, tensors, str(folder))


def write_peft(folder: Path, files: PeftFiles) -> None:
    """The folder, which exists, holds the two files, read back and found the same bit for bit.

    Raises:
        ModelError: they read back as something else.
    """
    text = json.dumps(dict(files.config), indent=2, sort_keys=True, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    # safetensors copies raw memory, so a strided array would be written scrambled.
    tensors = {n: np.array(t, np.float32, order="C") for n, t in sorted(files.tensors.items())}
    safetensors.numpy.save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    back = read_peft(folder)
    changed = sorted(back.tensors.keys() ^ tensors.keys()) + [
        name
        for name in back.tensors.keys() & tensors.keys()
        if back.tensors[name].tobytes() != tensors[name].tobytes()
    ]
    if changed or json.loads(text) != back.config:
        raise ModelError(
            f"{folder} reads back with other values than it was written with "
            f"({', '.join(changed[:10]) or CONFIG}); the disk may be full or failing."
        )


def _missing(folder: Path, name: str) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder; expected one with {CONFIG} and {TENSORS}, as PEFT writes."
    found = sorted(entry.name for entry in folder.iterdir())
    if name == TENSORS and "adapter_model.bin" in found:
        return (
            f"{folder} keeps its tensors in adapter_model.bin, a pickle, which can run any code "
            f"and is not read. Load and save it in PEFT: it then writes {TENSORS}."
        )
    return f"{folder} lacks {name}; it holds {', '.join(found[:5]) or 'nothing'}."
