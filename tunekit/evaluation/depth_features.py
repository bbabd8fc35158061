"""What a model makes of an image at each depth, pooled to one vector a depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.models.forward import Forward, Values
from tunekit.models.model import Model
from tunekit.models.taps import Tap, captured, taps


@dataclass(frozen=True, eq=False)
class DepthFeatures:
    """A model as a function to the pooled output of each depth group of its backbone.

    A map [B, H, W, D] is pooled by its mean, as the linear heads do; so are tokens [B, T, D],
    where a class token stands beside the mean of the patches, [B, 2 D]. The standard deviation
    over a map adds nothing after the first blocks (measured on textile images), and is left out.

    Example:
        >>> read = DepthFeatures.of(load_model("efficientnet_lite0"))
        >>> read(read.forward.values(), np.zeros((1, 224, 224, 3), "uint8"))["blocks[0]"].shape
        (1, 16)
    """

    forward: Forward
    depths: tuple[str, ...]
    """Names of the depth groups, from the input on."""
    taps: tuple[Tap, ...]
    prefix_tokens: int
    """Class and register tokens before the patches."""
    tokens: int | None
    """Number of tokens that the backbone ends with, those included; None where it has none."""

    @classmethod
    def of(cls, model: Model) -> DepthFeatures:
        """Returns the features of `model`, whatever head it has."""
        groups = model.groups()
        depths = tuple(group.name for group in groups if group.kind != "head")
        backbone = model.backbone
        return cls(
            Forward.of(model.keras, [group.variables for group in groups]),
            depths,
            tuple(tap for tap in taps(model.keras) if tap.group in depths),
            backbone.prefix_tokens,
            int(backbone.keras.output_shape[1]) if backbone.features == "tokens" else None,
        )

    def __call__(self, values: Mapping[str, jax.Array], pixels: Any) -> dict[str, jax.Array]:
        """Returns float32 features [B, D] by depth, in inference mode; D differs.

        Args:
            values: one array for every variable of the model.
            pixels: [B, H, W, 3], 0..255.
        """
        group_of = {tap.name: tap.group for tap in self.taps}
        outputs = captured(self.forward, self.taps, values, jnp.asarray(pixels, jnp.float32))
        # In the order of running: the last of a group is what the group hands on.
        last = {group_of[name]: output for name, output in outputs.items() if output.ndim > 1}
        return {depth: self._pooled(last[depth]) for depth in self.depths if depth in last}

    def _pooled(self, features: jax.Array) -> jax.Array:
        features = features.astype(jnp.float32)
        if self.prefix_tokens and features.ndim == 3 and features.shape[1] == self.tokens:
            patches = features[:, self.prefix_tokens :].mean(axis=1)
            return jnp.concatenate([features[:, 0], patches], axis=1)
        return features.mean(axis=tuple(range(1, features.ndim - 1)))

    def collect(
        self, values: Values, batches: Iterable[Mapping[str, Any]]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns features [N, D] by depth and labels [N] of all batches, padding dropped.

        Args:
            values: one array for every variable of the model.
            batches: "image" [B, H, W, 3], "label" [B] and "weight" [B], 0 on padding.
        """
        program = jax.jit(self.__call__)
        rows: dict[str, list[np.ndarray]] = {}
        labels = []
        for batch in batches:
            real = np.asarray(batch["weight"]) > 0
            for depth, features in program(values, batch["image"]).items():
                rows.setdefault(depth, []).append(np.asarray(features)[real])
            labels.append(np.asarray(batch["label"])[real])
        return {depth: np.concatenate(parts) for depth, parts in rows.items()}, np.concatenate(
            labels
        )
