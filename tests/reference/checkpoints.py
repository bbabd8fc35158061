"""Tensors out of ONNX files and torch's first file format, with NumPy alone."""

from __future__ import annotations

import collections
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class OnnxNode:
    """One operation of an ONNX graph."""

    op_type: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def onnx_graph(path: Path) -> tuple[list[OnnxNode], dict[str, np.ndarray]]:
    """Returns the nodes and the float32 initializers of an ONNX file.

    Field numbers are those of onnx.proto: ModelProto.graph 7; GraphProto.node 1, initializer 5;
    NodeProto.input 1, output 2, name 3, op_type 4; TensorProto.dims 1, data_type 2, name 8,
    raw_data 9.
    """
    (graph,) = (value for number, value in _fields(memoryview(path.read_bytes())) if number == 7)
    nodes, tensors = [], {}
    for number, value in _fields(graph):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, array = _tensor(value)
            if array is not None:
                tensors[name] = array
    return nodes, tensors


def _node(data: memoryview) -> OnnxNode:
    node = OnnxNode()
    for number, value in _fields(data):
        if number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(bytes(value).decode())
        elif number in (3, 4):
            setattr(node, "name" if number == 3 else "op_type", bytes(value).decode())
    return node


def _tensor(data: memoryview) -> tuple[str, np.ndarray | None]:
    dims: list[int] = []
    name, raw, kind = "", None, 0
    for number, value in _fields(data):
        if number == 1:
            packed = isinstance(value, memoryview)
            dims += [v for v, _ in _varints(value)] if packed else [value]
        elif number == 2:
            kind = value
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = value
    if kind != 1 or raw is None:  # 1 is float32
        return name, None
    return name, np.frombuffer(raw, "<f4").reshape(dims)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message; nested messages stay bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            width = {1: 8, 5: 4}[wire]
            value, at = data[at : at + width], at + width
        yield tag >> 3, value


def _varints(data: memoryview) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value, at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the state dict in a ``.pth`` file as torch wrote it before version 1.6.

    Three headers, the pickled dict whose tensors point at numbered storages, the list of those
    numbers, and the storages: an int64 length, then the values.
    """
    storages: dict[str, np.ndarray] = {}

    class Reader(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            _, kind, key, _, _, _ = pid
            return key, kind

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("collections", "OrderedDict"):
                return collections.OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
            if module == "torch" and name in _DTYPES:
                return _DTYPES[name]
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a state dict")

    with path.open("rb") as file:
        for _ in range(3):
            Reader(file).load()
        state = Reader(file).load()
        for key in Reader(file).load():
            count = int(np.fromfile(file, "<i8", 1)[0])
            kind = next(s[0][1] for s in state.values() if s[0][0] == key)
            storages[key] = np.fromfile(file, kind, count)
    tensors = {}
    for name, ((key, kind), offset, size, stride) in state.items():
        flat = storages[key][offset:]
        strides = tuple(s * np.dtype(kind).itemsize for s in stride)
        tensors[name] = np.lib.stride_tricks.as_strided(flat, size, strides).copy()
    return tensors


_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
