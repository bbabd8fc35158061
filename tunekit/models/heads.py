"""Heads: features in, one logit per label out. Always float32, seeded by (seed, name).

A head is a small functional model named after what it predicts: pooling, then layers up to the
one called ``logits``, whose kernel [D, C] has one column per label.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import keras
from keras import ops

from tunekit.errors import ModelError, did_you_mean
from tunekit.models.backbone import Features
from tunekit.models.spec import HeadSpec

_SMALLEST = 1e-6
"""GeM raises to a power, so features are clipped from below at this."""
_LOWEST = -1e9
"""Stands for padding where a maximum or a softmax is taken; finite, for a row of padding alone."""


def build_head(
    spec: HeadSpec,
    *,
    features: Features,
    dim: int,
    labels: tuple[str, ...],
    name: str,
    seed: int,
    prefix_tokens: int = 0,
) -> keras.Model:
    """Returns a built head that takes features and gives logits [B, C], all in float32.

    Of a text it takes {"features", "padding_mask"}, the mask int32 [B, T] with 0 for padding, and
    with pooling "none" gives the logits of each token [B, T, C].

    Args:
        spec: kind, pooling and regularisation.
        features: what they are: map [B, H, W, D], tokens [B, T, D] or vector [B, D] of an image;
            hidden states [B, T, D] of an encoder or a decoder of texts.
        dim: width D of the features.
        labels: names of the C labels.
        name: what the head predicts; with `seed` it fixes the initial values.
        seed: any integer; the global random state is neither read nor moved.
        prefix_tokens: tokens before the patch tokens, the class token first.

    Raises:
        ModelError: the pooling does not fit the features, or there are no labels.

    Example:
        >>> head = build_head(
        ...     HeadSpec(), features="map", dim=8, labels=("cat", "dog"), name="label", seed=0
        ... )
        >>> head.output_shape
        (None, 2)
    """
    if not labels:
        raise ModelError(f"the head {name!r} needs at least one label, got none.")
    _check_name(name)
    rank = {"map": 3, "vector": 1}.get(features, 2)
    x = inputs = keras.Input((None,) * (rank - 1) + (dim,), dtype="float32", name="features")
    mask = {}
    if features in ("encoder_states", "decoder_states"):
        mask = {"padding_mask": keras.Input((None,), dtype="int32", name="padding_mask")}
        inputs = {"features": x, **mask}
    if features != "vector":
        kind = pooling_kind(spec.pooling, features, prefix_tokens)
        if kind != "none":
            pooling = Pooling(kind, prefix_tokens=prefix_tokens, dtype="float32", name="pooling")
            x = pooling(x, **mask)

    def dropout(layer_name: str, x: Any) -> Any:
        if not spec.dropout:
            return x
        seeded = _seed(seed, f"{name}/{layer_name}")
        return keras.layers.Dropout(spec.dropout, seed=seeded, dtype="float32", name=layer_name)(x)

    for i, width in enumerate(spec.widths):
        he_normal: Any = keras.initializers.HeNormal(seed=_seed(seed, f"{name}/hidden_{i}"))
        x = keras.layers.Dense(
            width,
            spec.activation,
            kernel_initializer=he_normal,
            dtype="float32",
            name=f"hidden_{i}",
        )(x)
        x = dropout(f"dropout_{i}", x)
    if spec.kind != "mlp":
        x = dropout("dropout", x)
    return keras.Model(inputs, _logits(spec, len(labels), name, seed)(x), name=name)


@keras.saving.register_keras_serializable(package="tunekit")
class Pooling(keras.layers.Layer):
    """One vector [B, D] from a map [B, H, W, D] or tokens [B, T, D], padding left out.

    - "avg", "max": over positions.
    - "gem": generalised mean ``(mean(x^p))^(1/p)`` with a learned p, over x clipped to 1e-6 from
      below (Radenović, Tolias and Chum, 2018, https://arxiv.org/abs/1711.02512, equation 3). One
      p is shared by all channels.
    - "token": the first token. "token+avg": it, followed by the mean of the patch tokens [B, 2D].
    - "last": the last token that is no padding.
    - "attention": a mean weighted by ``softmax(x . query / sqrt(D))`` with a learned query, which
      starts at zero, as the plain mean.

    Everything but "token" and "last" leaves the prefix tokens out.
    """

    def __init__(self, kind: str = "avg", prefix_tokens: int = 0, **kwargs: Any) -> None:
        """Pools by `kind`; the first `prefix_tokens` tokens are not positions."""
        super().__init__(**kwargs)
        self.kind = kind
        self.prefix_tokens = prefix_tokens

    def build(self, input_shape: Any) -> None:
        """Makes p, or the query [D]."""
        if self.kind == "gem":
            self.p = self.add_weight(name="p", shape=(), initializer=keras.initializers.Constant(3))
        if self.kind == "attention":
            self.query = self.add_weight(
                name="query", shape=(input_shape[-1],), initializer="zeros"
            )
        super().build(input_shape)

    def call(self, x: Any, padding_mask: Any = None) -> Any:
        """Returns [B, D], or [B, 2D] for "token+avg"; a mask [B, T] is 0 where there is padding."""
        if self.kind == "token":
            return x[:, 0]
        if self.kind == "last":
            last: Any = ops.argmax(ops.arange(x.shape[1]) * padding_mask, axis=1)
            chosen: Any = ops.take_along_axis(x, last[:, None, None], axis=1)
            return chosen[:, 0]
        dim: int = x.shape[-1]
        # [B, H, W, D] and [B, T, D] alike become positions [B, P, D].
        positions: Any = ops.reshape(x, (-1, math.prod(x.shape[1:-1]), dim))
        positions = positions[:, self.prefix_tokens :]
        real: Any = None
        if padding_mask is not None:
            real = ops.cast(padding_mask[:, self.prefix_tokens :, None], positions.dtype)
        match self.kind:
            case "token+avg":
                return ops.concatenate([x[:, 0], _mean(positions, real)], -1)
            case "max":
                return ops.max(_without_padding(positions, real), axis=1)
            case "gem":
                powers = ops.power(ops.maximum(positions, _SMALLEST), self.p)
                return ops.power(_mean(powers, real), 1 / self.p)
            case "attention":
                scores: Any = ops.matmul(positions, self.query[:, None]) / dim**0.5
                weights: Any = ops.softmax(_without_padding(scores, real), axis=1)
                return ops.sum(positions * weights, axis=1)
            case _:
                return _mean(positions, real)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Returns (B, D), or (B, 2D) for "token+avg"."""
        dim = input_shape[-1]
        return input_shape[0], 2 * dim if self.kind == "token+avg" else dim

    def get_config(self) -> dict[str, Any]:
        """Returns what `__init__` takes."""
        return {**super().get_config(), "kind": self.kind, "prefix_tokens": self.prefix_tokens}


@keras.saving.register_keras_serializable(package="tunekit")
class CosineLogits(keras.layers.Layer):
    """``scale * cos(x, prototype)`` for one prototype per label, with a learned scale.

    Gidaris and Komodakis, 2018 (https://arxiv.org/abs/1804.09458), equation 3. The prototypes are
    the columns of `kernel` [D, C]; their lengths do not matter.
    """

    def __init__(
        self, units: int, scale: float = 10.0, kernel_initializer: Any = None, **kwargs: Any
    ) -> None:
        """Gives `units` logits, at first between -`scale` and `scale`."""
        super().__init__(**kwargs)
        self.units = units
        self.initial_scale = scale
        self.kernel_initializer = keras.initializers.get(kernel_initializer or "random_normal")

    def build(self, input_shape: Any) -> None:
        """Makes the prototypes [D, C] and the scale."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.units),
            initializer=self.kernel_initializer,
        )
        self.scale = self.add_weight(
            name="scale", shape=(), initializer=keras.initializers.Constant(self.initial_scale)
        )
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        """Returns logits [B, C] for features [B, D]."""
        cosine = ops.matmul(ops.normalize(x, axis=-1), ops.normalize(self.kernel, axis=0))
        return self.scale * cosine

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Returns (B, C)."""
        return *input_shape[:-1], self.units

    def get_config(self) -> dict[str, Any]:
        """Returns what `__init__` takes."""
        return {
            **super().get_config(),
            "units": self.units,
            "scale": self.initial_scale,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _mean(x: Any, real: Any) -> Any:
    """The mean over positions [B, P, D] of those that are 1 in [B, P, 1]; `None` is all."""
    if real is None:
        return ops.mean(x, axis=1)
    total: Any = ops.sum(x * real, axis=1)
    return total / ops.maximum(ops.sum(real, axis=1), 1)


def _without_padding(x: Any, real: Any) -> Any:
    return x if real is None else ops.where(real > 0, x, _LOWEST)


def pooling_kind(pooling: str, features: Features, prefix_tokens: int) -> str:
    """Returns the pooling that "auto" is on such features; any other as it is, checked.

    Raises:
        ModelError: the features do not have what the pooling takes.
    """
    if pooling == "auto":
        has_class_token = features == "encoder_states" or features == "tokens" and prefix_tokens
        return "last" if features == "decoder_states" else "token" if has_class_token else "avg"
    if pooling == "last" and not features.endswith("_states"):
        raise ModelError(
            "pooling='last' is for texts, which end somewhere, and this backbone takes images; "
            "use pooling='avg'."
        )
    if pooling == "none" and not features.endswith("_states"):
        raise ModelError(
            "pooling='none' gives logits for each token of a text, and this backbone takes images; "
            "use pooling='avg'."
        )
    if pooling.startswith("token") and features == "decoder_states":
        raise ModelError(
            f"pooling={pooling!r} takes the first token, which in a decoder sees nothing of the "
            "text; use pooling='last' or 'avg'."
        )
    needs_prefix = pooling.startswith("token") and features != "encoder_states"
    if needs_prefix and not (features == "tokens" and prefix_tokens):
        has = "a map of positions" if features == "map" else "patch tokens only"
        raise ModelError(
            f"pooling={pooling!r} needs a class token, and this backbone gives {has}; "
            "use pooling='avg'."
        )
    return pooling


def _logits(spec: HeadSpec, count: int, name: str, seed: int) -> keras.layers.Layer:
    if spec.kind == "cosine":
        initializer = keras.initializers.RandomNormal(seed=_seed(seed, f"{name}/logits"))
        return CosineLogits(count, kernel_initializer=initializer, dtype="float32", name="logits")
    # Small, so that the first predictions are near uniform and the first gradients gentle.
    small: Any = keras.initializers.TruncatedNormal(stddev=0.02, seed=_seed(seed, f"{name}/logits"))
    return keras.layers.Dense(
        count, use_bias=spec.bias, kernel_initializer=small, dtype="float32", name="logits"
    )


def _seed(seed: int, name: str) -> int:
    """A seed of its own for every variable, the same in every process."""
    return zlib.crc32(f"{seed}/{name}".encode()) % 2**31


def _check_name(name: str) -> None:
    if not name.isidentifier():
        raise ModelError(f"a head's name is a word such as 'label', got {name!r}.")


def head_spec(head: HeadSpec | str | None) -> HeadSpec:
    """Returns the head that a kind names, or a spec itself, checked; `None` is the default one.

    Raises:
        ModelError: there is no such kind, or its options do not fit together.
    """
    kinds = ("linear", "mlp", "cosine")
    if isinstance(head, str) and head not in kinds:
        raise ModelError(
            f"head={head!r} is no kind of head ({', '.join(kinds)}).{did_you_mean(head, kinds)}"
        )
    spec = HeadSpec(kind=cast(Any, head)) if isinstance(head, str) else head or HeadSpec()
    if issues := spec.issues():
        raise ModelError("; ".join(f"head.{path}: {message}" for path, message in issues))
    return replace(spec, hidden=tuple(spec.hidden))


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the labels, all of them strings and none twice.

    Raises:
        ModelError: they are not.
    """
    if isinstance(labels, str):
        raise ModelError(f"labels is a list of names, got the string {labels!r}; use [{labels!r}].")
    names = tuple(labels)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ModelError(f"labels are strings, got {wrong[0]!r}; use str(...) of each.")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ModelError(f"the label {twice[0]!r} is given twice; each label needs its own name.")
    return names
