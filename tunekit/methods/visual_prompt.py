"""Visual prompts: learned tokens among the patches of a vision transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.dummy_positions import in_front, unmergeable
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.linear import linear_form
from tunekit.methods.part import Layers, Leaf, Placed, Places, Values
from tunekit.methods.spec import VisualPrompt


@dataclass(frozen=True)
class VisualPromptPart:
    """P learned tokens at one block: ``[x_0, P, E]`` (Jia et al. 2022, arXiv 2203.12119, eq. 4-6).

    They stand between the class and register tokens and the patches. Deep prompts have other tokens
    before every block; what the block before made of its own is dropped. Behind the last block they
    are taken out, so what follows sees the tokens that it knows. Fresh ones act too: they take a
    share of the attention.
    """

    name: str
    """The block."""
    length: int
    """Tokens P."""
    width: int
    before: int
    """Tokens that stand before them."""
    learned: bool
    """Whether tokens of this block's own go in."""
    opens: bool
    """Whether there are none yet."""
    closes: bool
    """Whether they are taken out behind this block."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The block."""
        return (self.name,)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tokens, where the block has its own."""
        return (Leaf("prompt", (self.length, self.width)),) if self.learned else ()

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interception of the block."""
        del training

        def wrap(call: Call) -> Call:
            def prompted(*args: Any, **kwargs: Any) -> Any:
                if not args:  # DeiT's encoder names what it gives.
                    name = next(iter(kwargs))
                    return prompted(kwargs[name], **{k: v for k, v in kwargs.items() if k != name})
                tokens = args[0]
                if self.learned:
                    tokens = self._inserted(tokens, values["prompt"], per_example)
                if "num_prefix_tokens" in kwargs:  # DINOv3 turns all tokens behind these.
                    count = kwargs["num_prefix_tokens"] + self.length
                    kwargs = {**kwargs, "num_prefix_tokens": count}
                outputs = call(tokens, *args[1:], **kwargs)
                return self._taken_out(outputs) if self.closes else outputs

            return prompted

        return {layers[self.name]: wrap}

    def _inserted(self, tokens: Any, prompt: Any, per_example: bool) -> Any:
        if tokens.ndim != 3:
            raise ModelError(
                f"visual prompts are impossible at '{self.name}': it takes {tokens.ndim} axes "
                "where tokens [B, T, D] have three. Use LoRA."
            )
        after = self.before if self.opens else self.before + self.length
        rest = in_front(prompt, tokens[:, after:], per_example=per_example)
        return jnp.concatenate([tokens[:, : self.before], rest], axis=1)

    def _taken_out(self, outputs: Any) -> Any:
        if isinstance(outputs, tuple):  # DeiT's come with attention scores.
            return self._taken_out(outputs[0]), *outputs[1:]
        after = self.before + self.length
        return jnp.concatenate([outputs[:, : self.before], outputs[:, after:]], axis=1)

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Has nothing to return.

        Raises:
            ModelError: always; it is more tokens, not other weights.
        """
        raise unmergeable(f"the visual prompt at '{self.name}'", f"{self.length} more tokens")


def place(spec: VisualPrompt, places: Places, rng: np.random.Generator) -> list[Placed]:
    """Returns the prompts of the blocks of a vision transformer.

    Raises:
        ModelError: the network is none, or its blocks hold more than attention over all tokens.
    """
    blocks = _blocks(places)
    width = _width(blocks[0], places)
    bound = _bound(places, width)
    placed = []
    for index, name in enumerate(blocks):
        part = VisualPromptPart(
            name,
            spec.length,
            width,
            before=places.prefix_tokens,
            learned=spec.deep or index == 0,
            opens=index == 0,
            closes=index == len(blocks) - 1,
        )
        first = {
            leaf.name: rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
            for leaf in part.leaves
        }
        placed.append(Placed(part, first))
    return placed


def _blocks(places: Places) -> list[str]:
    """The one layer of each block.

    Raises:
        ModelError: a block is no layer of attention over all tokens.
    """
    why = None
    inside = [[n for n in places.roles if n.startswith(f"{b[0]}/")] for b in places.blocks if b]
    if places.takes == "tokens":
        why = "it takes text, for which PromptTuning is"
    elif not {"query", "qkv"} & set(places.roles.values()):
        why = "it has no attention, so more tokens would have nobody to see them"
    elif any(len(block) != 1 for block in places.blocks) or not all(inside):
        why = "its blocks are several layers each, with no one row of tokens from first to last"
    elif any(places.roles[name] == "convolution" for names in inside for name in names):
        why = "its blocks hold convolutions, which need the patches on their grid"
    if why is None:
        return [block[0] for block in places.blocks]
    raise ModelError(f"visual prompts are impossible on this network: {why}. Or use LoRA.")


def _width(block: str, places: Places) -> int:
    """Numbers in a token: what the first layer of the attention takes."""
    name = next(
        name
        for name, role in places.roles.items()
        if role in ("query", "qkv") and name.startswith(f"{block}/")
    )
    return linear_form(name, places.layers[name]).in_features


def _bound(places: Places, width: int) -> float:
    """Of the uniform distribution that the tokens are drawn from, as those of the authors' code."""
    patches = (name for name, role in places.roles.items() if role == "convolution")
    name = next(patches, None)
    patch = width if name is None else linear_form(name, places.layers[name]).in_features
    return math.sqrt(6 / (patch + width))
