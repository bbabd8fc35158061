"""Tokens that follow prompts, one after another, by the model as it is at that moment.

A batch gives what its prompts give alone. Programs are compiled for a few sizes of batch and of
cache, and the weights are their arguments, so training on compiles nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.errors import ModelError
from tunekit.models.forward import Values
from tunekit.models.inference import slots
from tunekit.models.sampling import Greedy, Sampler
from tunekit.models.token_graph import check_token_ids
from tunekit.models.writing import SEGMENT, Programs

if TYPE_CHECKING:
    from tunekit.models.model import Model


class Generator:
    """What a model writes after prompts, with the adapters that are active then.

    Example:
        >>> generator = Generator(model)
        >>> generator.generate([[1, 2, 3], [4]], max_new_tokens=5)
    """

    def __init__(self, model: Model) -> None:
        """Compiles nothing yet; what is compiled later stays with the model's graph.

        Raises:
            ModelError: the model is no causal language model.
        """
        self.model = model
        self._present()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampler: Sampler | None = None,
        stop_ids: Collection[int] = (),
        seed: int = 0,
        batch_size: int = 16,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """Returns the tokens that follow each prompt, without the one that ended it.

        Args:
            prompts: token ids of each.
            max_new_tokens: how many may follow.
            sampler: how a token is chosen; `None` takes the likeliest.
            stop_ids: tokens that end a text.
            seed: of what is drawn; a row's draws depend on it and on the row's place in `prompts`.
            batch_size: prompts at a time, at most; those of like length together.
            on_token: is told the row and each of its tokens, soon after it is chosen.

        Raises:
            ModelError: a prompt is empty, has ids outside of the vocabulary, or has with
                `max_new_tokens` more tokens than the model was made for.
        """
        rows: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        options = {"max_new_tokens": max_new_tokens, "sampler": sampler, "stop_ids": stop_ids}
        self._check(prompts, max_new_tokens, range(len(prompts)))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [prompts[row] for row in places]
            every = SEGMENT if on_token is None else 4
            for pieces in self.stream(batch, **options, seed=seed, places=places, every=every):
                for row, tokens in zip(places, pieces, strict=True):
                    rows[row] += tokens
                    if on_token is not None:
                        for token in tokens:
                            on_token(row, token)
        return rows

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampler: Sampler | None = None,
        stop_ids: Collection[int] = (),
        seed: int = 0,
        places: Sequence[int] | None = None,
        every: int = 4,
    ) -> Iterator[list[list[int]]]:
        """Returns an iterator over the next tokens of each prompt of a batch, until all have ended.

        Args:
            prompts: token ids of each.
            max_new_tokens: how many may follow.
            sampler: how a token is chosen; `None` takes the likeliest.
            stop_ids: tokens that end a text; they are not yielded.
            seed: of what is drawn.
            places: of each prompt, by which rows draw differently; `None` numbers them.
            every: tokens of a row at a time, at most 32.

        Raises:
            ModelError: as of `generate`.
        """
        places = range(len(prompts)) if places is None else places
        self._check(prompts, max_new_tokens, places)
        if not prompts or max_new_tokens < 1:
            return iter(())
        programs, values = self._present()
        batch = programs.batch(prompts, max_new_tokens)
        given = batch.controls(sampler or Greedy(), stop_ids, seed, places)
        return programs.pieces(values, batch, given, max_new_tokens, min(every, SEGMENT))

    def compiled(self) -> int:
        """Returns the number of passes over the network compiled so far."""
        return sum(programs.compiled() for programs in self.model._inference.writers.values())

    def _present(self) -> tuple[Programs, Values]:
        """The programs for the model as it is now, and its values."""
        self._check_writes()
        model, inference = self.model, self.model._inference
        adapters = [adapter for adapter, _ in model.adapters.acting]
        key = tuple(adapter.parts for adapter in adapters)
        if key not in inference.writers:
            inference.writers[key] = Programs(inference.forward(adapters), model.backbone)
        return inference.writers[key], inference.values() | slots(model.adapters.acting)

    def _check_writes(self) -> None:
        model = self.model
        if model.backbone.language_head is None or model.backbone.features != "decoder_states":
            raise ModelError(
                f"the model on '{model.backbone.source}' is no causal language model, so it writes "
                "no text: load one, such as a Llama, Mistral, Qwen2, Gemma or GPT-2."
            )
        if model.labels:
            raise ModelError(
                f"the model on '{model.backbone.source}' has a head for the labels "
                f"{', '.join(model.labels[:3])}{'…' * (len(model.labels) > 3)} in the place of its "
                "language head, so it writes no text; load it anew without labels."
            )

    def _check(self, prompts: Sequence[Any], new: int, places: Sequence[int]) -> None:
        backbone = self.model.backbone
        if new < 0:
            raise ModelError(f"max_new_tokens: expected a number from 0 on, got {new}.")
        for place, prompt in zip(places, prompts, strict=True):
            if not len(prompt):
                raise ModelError(f"prompt {place} is empty: there is no token to go on from.")
            if backbone.vocabulary is not None:
                check_token_ids(np.asarray(prompt), backbone.vocabulary)
            longest = backbone.max_length_tokens
            if longest is not None and len(prompt) + new > longest:
                room = longest - len(prompt)
                do = f"ask for at most {room}, or shorten it" if room > 0 else "shorten it"
                raise ModelError(
                    f"prompt {place} has {len(prompt)} tokens, and with {new} new ones they are "
                    f"more than the {longest} that the model was made for: {do}."
                )
