"""Tensors of a torch checkpoint (safetensors), put into Keras layers; every one must be used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import load_file

from tunekit.errors import ModelError, did_you_mean

# Counters of torch's BatchNorm, which nothing computes with.
_BOOKKEEPING = r".*\.num_batches_tracked"


class TorchWeights:
    """The tensors of a model folder by name, and which of them have been taken."""

    def __init__(self, folder: Path, *, prefix: str = "") -> None:
        """The tensors of `folder` are read.

        Args:
            folder: holds ``model.safetensors``, or its shards and their index.
            prefix: left out of the names given to the methods, where the file has it
                (``"resnet."`` when the folder holds a classifier around the body).
        """
        self._folder = folder
        self._tensors = _read(folder)
        self._prefix = prefix if any(n.startswith(prefix) for n in self._tensors) else ""
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name, with the prefix or without."""
        return self._prefix + name in self._tensors or name in self._tensors

    def take(self, name: str) -> np.ndarray:
        """Returns the tensor as float32.

        Raises:
            ModelError: the folder holds no such tensor.
        """
        key = self._prefix + name if self._prefix + name in self._tensors else name
        if key not in self._tensors:
            near = did_you_mean(self._prefix + name, self._tensors)
            raise ModelError(f"{self._folder} holds no tensor '{self._prefix + name}'.{near}")
        self._taken.add(key)
        return self._tensors[key].astype(np.float32)

    def conv(self, layer: Any, name: str) -> None:
        """A convolution: [out, in, h, w] becomes [h, w, in, out]."""
        self._assign(layer.kernel, f"{name}.weight", lambda x: x.transpose(2, 3, 1, 0))
        self._bias(layer, name)

    def depthwise(self, layer: Any, name: str) -> None:
        """A depthwise convolution: [channels, 1, h, w] becomes [h, w, channels, 1]."""
        self._assign(layer.kernel, f"{name}.weight", lambda x: x.transpose(2, 3, 0, 1))
        self._bias(layer, name)

    def dense(self, layer: Any, name: str) -> None:
        """A linear layer: [out, in] becomes [in, out], heads unfolded where the layer has them."""
        self.unfold(layer.kernel, self.take(f"{name}.weight").T, name)
        if layer.bias is not None:
            self.unfold(layer.bias, self.take(f"{name}.bias"), name)

    def embedding(self, layer: Any, name: str) -> None:
        """A table of embeddings."""
        self._assign(layer.embeddings, f"{name}.weight")

    def scale(self, layer: Any, name: str) -> None:
        """Scale of a normalisation that has no shift."""
        self._assign(layer.scale, f"{name}.weight")

    def layer_norm(self, layer: Any, name: str) -> None:
        """Scale and shift of a layer normalisation."""
        self._assign(layer.gamma, f"{name}.weight")
        self._assign(layer.beta, f"{name}.bias")

    def batch_norm(self, layer: Any, name: str) -> None:
        """Scale, shift and running statistics of a batch normalisation."""
        self.layer_norm(layer, name)
        self._assign(layer.moving_mean, f"{name}.running_mean")
        self._assign(layer.moving_variance, f"{name}.running_var")

    def head(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns kernel [D, C] and bias [C] of the linear classifier `name`, if there is one."""
        if f"{name}.weight" not in self:
            return None
        weight = self.take(f"{name}.weight")
        weight = weight.reshape(weight.shape[:2])  # some classifiers are 1x1 convolutions
        has_bias = f"{name}.bias" in self
        return weight.T, self.take(f"{name}.bias") if has_bias else np.zeros(len(weight), "f4")

    def finish(self, model: keras.Model, missing: list[str], *, ignored: str = "") -> None:
        """Passes if every tensor was used and every variable of `model` was given its value.

        Args:
            model: what was filled.
            missing: paths of its variables that still hold placeholders.
            ignored: pattern of tensors known to have no part in the features.

        Raises:
            ModelError: the checkpoint is of another architecture than the one built.
        """
        known = re.compile(f"{_BOOKKEEPING}|(?:{re.escape(self._prefix)})?(?:{ignored})")
        unused = [n for n in self._tensors if n not in self._taken and not known.fullmatch(n)]
        if unused or missing:
            raise ModelError(
                f"the weights in {self._folder} belong to another architecture than {model.name}: "
                f"{len(unused)} tensors have no place ({', '.join(unused[:4])}), "
                f"{len(missing)} variables no tensor ({', '.join(missing[:4])})."
            )

    def assign(self, variable: keras.Variable, value: np.ndarray, name: str) -> None:
        """Gives `variable` the `value` that came from the tensor `name`.

        Raises:
            ModelError: their shapes differ.
        """
        if tuple(variable.shape) != value.shape:
            raise ModelError(
                f"tensor '{name}' in {self._folder} has shape {value.shape} after conversion; "
                f"the architecture in its config.json wants {tuple(variable.shape)}."
            )
        variable.assign(value)

    def unfold(self, variable: keras.Variable, value: np.ndarray, name: str) -> None:
        """As `assign`, with heads and their width as axes of their own where `variable` has them.

        Raises:
            ModelError: their sizes differ.
        """
        fits = value.size == math.prod(variable.shape)
        self.assign(variable, value.reshape(variable.shape) if fits else value, name)

    def _assign(
        self,
        variable: keras.Variable,
        name: str,
        convert: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    ) -> None:
        self.assign(variable, convert(self.take(name)), name)

    def _bias(self, layer: Any, name: str) -> None:
        if layer.bias is not None:
            self._assign(layer.bias, f"{name}.bias")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in `path`; empty if there is no such file.

    Raises:
        ModelError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, expected a JSON object.")
    return value


def _read(folder: Path) -> dict[str, np.ndarray]:
    index = read_json(folder / "model.safetensors.index.json")
    files = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    lacking = [name for name in files if not (folder / name).is_file()]
    if lacking:
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise ModelError(
            f"{folder} lacks {lacking[0]} (it holds {found}). Weights are read from safetensors "
            "files; convert .bin or .pth checkpoints first."
        )
    return {name: array for file in files for name, array in load_file(folder / file).items()}
