"""A tuned language model beside its base: the same texts judged, the same prompts answered."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from tunekit.data.examples import Source
from tunekit.evaluation.generated import (
    Asked,
    Generate,
    as_base,
    questions,
    sample_scores,
    samples,
)
from tunekit.models.forward import holding
from tunekit.models.generation import Generator
from tunekit.models.model import Model
from tunekit.tasks.language_modelling import LanguageModelling

SCORES = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match")


def writer(generator: Generator, task: LanguageModelling) -> Generate:
    """Returns what lets the model answer prompts, always with its likeliest token."""
    tokenizer = generator.model.backbone.text_tokenizer()

    def generate(prompts: Sequence[Sequence[int]]) -> list[str]:
        answers = generator.generate(
            prompts, max_new_tokens=task.max_new_tokens, stop_ids=tokenizer.stop_ids
        )
        return [tokenizer.decode(answer).strip() for answer in answers]

    return generate


def beside_base(
    model: Model,
    task: LanguageModelling,
    source: Source,
    base_values: Mapping[str, jax.Array],
    judged: Callable[[], dict[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the tuned model's scores with the base's metrics under "base", and the answers.

    Args:
        model: tuned.
        task: says what a prompt is, and how many are answered.
        source: of prompts and references.
        base_values: what variables of the network held before they were trained.
        judged: the metrics of the model as it is at that moment.
    """
    with as_base(model, base_values):
        base = judged()
    longest = model.backbone.max_length_tokens
    rows = samples(
        model,
        source,
        task.samples,
        task=task,
        generate=writer(Generator(model), task),
        base_values=base_values,
        longest=None if longest is None else longest - task.max_new_tokens,
    )
    if not rows:
        return {"base": base}, []
    scores = sample_scores(rows)
    tuned = {name: scores["tuned"][name] for name in SCORES}
    tuned["generated"] = len(rows)
    base |= {name: scores["base"][name] for name in SCORES}
    return {**tuned, "base": base, "signatures": scores["tuned"]["signatures"]}, rows


@dataclass(eq=False)
class Watched:
    """A few held-out prompts, answered anew whenever training looks at itself."""

    model: Model
    task: LanguageModelling
    source: Source
    count: int = 2

    @cached_property
    def _asked(self) -> list[Asked]:
        longest = self.model.backbone.max_length_tokens
        room = None if longest is None else longest - self.task.max_new_tokens
        return questions(self.task, self.source, self.model, self.count, longest=room)

    @cached_property
    def _write(self) -> Generate:
        return writer(Generator(self.model), self.task)

    @cached_property
    def _base(self) -> list[str]:
        # While training lasts, the model's own variables are what they were before.
        with as_base(self.model):
            return self._write([each.question.ids for each in self._asked])

    def lines(self, values: Mapping[str, jax.Array]) -> list[str]:
        """Returns each prompt with the answers of base and of the model with `values`."""
        base = self._base
        with holding(self.model.variables(), values):
            now = self._write([each.question.ids for each in self._asked])
        asked = [each.question.text for each in self._asked]
        rows = [map(_short, row) for row in zip(asked, base, now, strict=True)]
        return ["  {}\n    base: {}\n    now:  {}".format(*row) for row in rows]


def _short(text: str) -> str:
    return textwrap.shorten(text, 88, placeholder=" …")
