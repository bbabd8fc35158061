"""The one place that overrides a layer's call: for the length of a block, the layer untouched.

An instance attribute ``call`` shadows the class's method, as ``flax.linen.intercept_methods``
does; Keras 3.15 looks ``self.call`` up at every call. The model's structure, configuration and
weights stay as they are, so what is intercepted needs no undoing beyond the block's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

Call = Callable[..., Any]
Wrap = Callable[[Call], Call]


@contextmanager
def intercept(wraps: Mapping[keras.Layer, Wrap]) -> Iterator[None]:
    """Within the block each layer's ``call`` is ``wrap(call)``; an inner block wraps an outer one.

    Args:
        wraps: from a layer to what takes its present call and returns the one to use.
    """
    shadowed: list[tuple[keras.Layer, Call | None]] = []
    try:
        for layer, wrap in wraps.items():
            before = vars(layer).get("call")
            # Keras tracks what is set on a layer; a call is not to be tracked.
            object.__setattr__(layer, "call", wrap(layer.call))
            shadowed.append((layer, before))
        yield
    finally:
        for layer, before in reversed(shadowed):
            if before is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", before)


def in_inference_mode(call: Call) -> Call:
    """Returns `call` with ``training=False``, whatever the caller says."""

    def inference_call(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": False})

    return inference_call


def ignoring_trainable_flag(layer: keras.Layer, call: Call) -> Call:
    """Returns `call` with ``layer.trainable`` true: BatchNorm obeys that flag and not its mode.

    Sets the private ``_trainable`` behind the property, as of Keras 3.15; the property itself
    would pass the flag on to the layer's variables.
    """

    def trainable_call(*args: Any, **kwargs: Any) -> Any:
        flag = layer._trainable
        object.__setattr__(layer, "_trainable", True)
        try:
            return call(*args, **kwargs)
        finally:
            object.__setattr__(layer, "_trainable", flag)

    return trainable_call
