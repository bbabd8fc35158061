"""What a model writes, against references and beside what its base writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from tunekit.data.examples import Source
from tunekit.errors import DataError
from tunekit.models.forward import holding
from tunekit.models.model import Model
from tunekit.tasks.language_modelling import LanguageModelling, Question

Generate = Callable[[Sequence[Sequence[int]]], list[str]]
"""From prompts, as token ids, to what the model writes after each."""
ROUGE = ("rouge1", "rouge2", "rougeL")
# Runs of letters and digits; of scripts without spaces, each sign.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


def compare(references: Sequence[str | Sequence[str]], candidates: Sequence[str]) -> dict[str, Any]:
    """Returns bleu and chrf (0 to 100), rouge1, rouge2, rougeL and exact_match (0 to 1).

    BLEU and chrF are of the corpus, by sacrebleu; ROUGE is the mean F1, by rouge-score, whose words
    are those of any script, where rouge-score by itself knows unaccented Latin letters alone. Of
    several references, the nearest counts in each. "signatures" says how each was computed.

    Args:
        references: for each candidate one text, or several.
        candidates: what the model wrote.

    Raises:
        DataError: there are none, or not as many of both.
    """
    if len(references) != len(candidates) or not candidates:
        raise DataError(
            "expected references for each of one or more candidates, got "
            f"{len(references)} for {len(candidates)}"
        )
    several = [[each] if isinstance(each, str) else list(each) for each in references]
    if not all(several):
        place = several.index([])
        raise DataError(f"references[{place}]: expected one reference or more, got none")
    exact = [
        text.strip() in {reference.strip() for reference in texts}
        for text, texts in zip(candidates, several, strict=True)
    ]
    corpus, signatures = _corpus_scores(several, candidates)
    scores = {**corpus, **_rouge(several, candidates), "exact_match": float(np.mean(exact))}
    signatures["rouge"] = f"f1|stem:no|words:unicode|version:{version('rouge-score')}"
    signatures["exact_match"] = "case:mixed|space:stripped"
    return {**scores, "signatures": signatures}


def _corpus_scores(
    references: Sequence[Sequence[str]], candidates: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    # Imported where used: they are a tenth of a second that no other command needs.
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # One stream for each first, second… reference; None where an example has fewer.
    most = max(map(len, references))
    streams: Any = [
        [texts[place] if place < len(texts) else None for texts in references]
        for place in range(most)
    ]
    scores, signatures = {}, {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        scores[name] = float(metric.corpus_score(list(candidates), streams).score)
        signatures[name] = str(metric.get_signature())
    return scores, signatures


class _Words:
    """Lower-case words, as rouge-score asks a tokenizer for them."""

    def tokenize(self, text: str) -> list[str]:
        return _WORDS.findall(text.lower())


def _rouge(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, tokenizer=_Words())
    found = [
        scorer.score_multi(texts, candidate)
        for texts, candidate in zip(references, candidates, strict=True)
    ]
    return {name: float(np.mean([each[name].fmeasure for each in found])) for name in ROUGE}


@dataclass(frozen=True)
class Asked:
    """A prompt, with every answer that the data gives to it."""

    question: Question
    references: tuple[str, ...]


def questions(
    task: LanguageModelling,
    source: Source,
    model: Model,
    count: int,
    *,
    longest: int | None = None,
) -> list[Asked]:
    """Returns `count` different prompts at most, spread evenly over the source.

    Args:
        task: which says where a prompt ends.
        source: the examples; equal prompts become one with several references.
        model: whose tokenizer is used.
        count: how many.
        longest: in tokens; longer prompts are passed over.

    Raises:
        ModelError: the model has no tokenizer.
    """
    tokenizer = model.backbone.text_tokenizer()
    found: dict[tuple[int, ...], list[Question]] = {}
    for index in range(len(source)):
        question = task.question(source[index], tokenizer)
        if longest is None or len(question.ids) <= longest:
            found.setdefault(question.ids, []).append(question)
    same = list(found.values())
    chosen = np.unique(np.linspace(0, len(same) - 1, min(count, len(same))).round().astype(int))
    return [
        Asked(same[i][0], tuple(dict.fromkeys(each.reference for each in same[i])))
        for i in (chosen if same else [])
    ]


def samples(
    model: Model,
    source: Source,
    count: int,
    *,
    task: LanguageModelling,
    generate: Generate,
    base_values: Mapping[str, jax.Array] | None = None,
    longest: int | None = None,
) -> list[dict[str, Any]]:
    """Returns prompts answered by the model before and after, one dict each.

    Keys: "prompt", "reference", "references" (all of equal prompts), "base", "tuned".

    Args:
        model: tuned; its base is what it is without adapters, or with `base_values`.
        source: where prompts and references are from.
        count: how many prompts at most.
        task: which says where a prompt ends.
        generate: lets `model` write, as it is at that moment.
        base_values: what variables held before all of the model was trained, by structural name.
        longest: prompt in tokens.

    Raises:
        ModelError: the model has no tokenizer.
    """
    asked = questions(task, source, model, count, longest=longest)
    if not asked:
        return []
    prompts = [each.question.ids for each in asked]
    tuned = generate(prompts)
    with as_base(model, base_values):
        base = generate(prompts)
    return [
        {
            "prompt": each.question.text,
            "reference": each.references[0],
            "references": list(each.references),
            "base": before,
            "tuned": after,
        }
        for each, before, after in zip(asked, base, tuned, strict=True)
    ]


def sample_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the scores of `compare` of what the base wrote and of what the tuned model did."""
    references = [row["references"] for row in rows]
    return {side: compare(references, [row[side] for row in rows]) for side in ("base", "tuned")}


@contextmanager
def as_base(model: Model, values: Mapping[str, jax.Array] | None = None) -> Iterator[None]:
    """Within the block the model is its base: no adapter acts, and variables hold `values`."""
    adapters = model.adapters_disabled() if model.adapters.active else nullcontext()
    with adapters, holding(model.variables(), values or {}):
        yield
