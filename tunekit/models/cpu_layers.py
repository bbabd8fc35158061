"""Every layer form that XLA compiles well for a CPU, for the length of a trace.

The layers keep their weights and meaning, and on an accelerator nothing of this is used. What each
form saves is measured by ``benchmarks/cpu_convolution.py`` and ``benchmarks/cpu_transformer.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras

from tunekit.methods.intercept import Wrap
from tunekit.models.cpu_attention import cpu_attentions
from tunekit.models.cpu_batch_norm import cpu_batch_norms
from tunekit.models.cpu_convolution import cpu_convolutions
from tunekit.models.cpu_gradients import cpu_gradients


def cpu_layers(layers: Iterable[keras.Layer]) -> dict[keras.Layer, Wrap]:
    """Returns an interception for each layer that has a faster form on a CPU."""
    layers = tuple(layers)
    convolutions = cpu_convolutions(layers) | cpu_batch_norms(layers)
    return convolutions | cpu_attentions(layers) | cpu_gradients(layers)
