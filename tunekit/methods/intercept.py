"""The one place that overrides a layer's call: for the length of a block, or for good.

An instance attribute ``call`` shadows the class's method, as ``flax.linen.intercept_methods``
does; Keras 3.15 looks ``self.call`` up at every call, or ``self.quantized_call`` where Keras itself
has quantised the layer. The model's structure, configuration and weights stay as they are, so what
is intercepted needs no undoing beyond the block's end.
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
    shadowed: list[tuple[keras.Layer, str, Call | None]] = []
    try:
        for layer, wrap in wraps.items():
            # An operation that is no layer, such as Add, has no such mode.
            packed = getattr(layer, "quantization_mode", None) is not None
            name = "quantized_call" if packed else "call"
            before = vars(layer).get(name)
            # Keras tracks what is set on a layer; a call is not to be tracked.
            object.__setattr__(layer, name, wrap(getattr(layer, name)))
            shadowed.append((layer, name, before))
        yield
    finally:
        for layer, name, before in reversed(shadowed):
            if before is None:
                object.__delattr__(layer, name)
            else:
                object.__setattr__(layer, name, before)


def replace_call(layer: keras.Layer, call: Call) -> None:
    """The layer's ``call`` is `call` from now on, and what `intercept` finds and wraps."""
    object.__setattr__(layer, "call", call)


def in_inference_mode(call: Call) -> Call:
    """Returns `call` with ``training=False``, whatever the caller says."""

    def inference_call(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": False})

    return inference_call


def with_attributes(layer: keras.Layer, call: Call, **attributes: Any) -> Call:
    """Returns `call` during which `layer` has these attributes.

    They are set behind Keras' setters, which would pass a flag on to variables, or track values.
    """

    def changed_call(*args: Any, **kwargs: Any) -> Any:
        before = {name: layer.__dict__[name] for name in attributes}
        layer.__dict__.update(attributes)
        try:
            return call(*args, **kwargs)
        finally:
            layer.__dict__.update(before)

    return changed_call
