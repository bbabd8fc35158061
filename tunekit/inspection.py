"""The data of a recipe before it is trained on: counts, lengths, copies, and which tokens count."""

from __future__ import annotations

import argparse
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.asked import asked, in_memory, open_task
from tunekit.data.examples import Splits, scan_source
from tunekit.data.near_duplicates import NearDuplicates
from tunekit.data.preflight import label_counts
from tunekit.data.spec import DataSpec
from tunekit.data.text_preflight import (
    ANY_LENGTH,
    Copies,
    Learned,
    Lengths,
    Numbers,
    SplitFacts,
    Unknown,
    copies,
    drawn,
    near_copies,
    numbers,
    read_lengths,
    split_facts,
    tag_counts,
    texts_of,
    unknown_words,
)
from tunekit.errors import DataError, Issue, RecipeError
from tunekit.models.model import Model
from tunekit.models.text_reader import TextReader, read_text_reader
from tunekit.models.tokenizing import Tokenizer
from tunekit.recipe import Recipe
from tunekit.report.inspection_text import render, share
from tunekit.report.token_view import View, token_view
from tunekit.tasks.embedding import EmbeddingTask
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.text_task import TextTask
from tunekit.text_answers import longest_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

MOST_READ, MOST_READ_BRIEFLY = 5_000, 2_000
"""Texts that are tokenized; of more, so many are drawn."""
_MOST_IMAGES = 500
_WIDTH = 100


@dataclass(frozen=True)
class Inspection:
    """What is to be known of data before a model is trained on them.

    Example:
        >>> print(tunekit.inspect("SmolLM2.gguf", "chat.jsonl", method="lora", tokens=2))
    """

    model: str
    task: str
    data: str
    splits: tuple[SplitFacts, ...]
    label_title: str = "labels"
    numbers: Numbers | None = None
    lengths: Lengths | None = None
    """Of the training texts, where they are texts, as what follows is."""
    learned: Learned | None = None
    unknown: Unknown | None = None
    copies: Copies | None = None
    near: NearDuplicates | None = None
    sizes: dict[str, str] | None = None
    """Of images: the smallest, the median and the largest."""
    views: tuple[View, ...] = ()
    advice: tuple[str, ...] = ()
    """What to look at, and what to do about it."""
    notes: tuple[str, ...] = ()
    """What was told when the data were opened."""

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values; what does not apply is left out."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return json.loads(json.dumps(found))

    def __str__(self) -> str:
        """Returns the page that a terminal shows, without colours."""
        from rich.console import Console

        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        console.print(self)
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yields the page's parts, in colours where the console has them."""
        yield from render(self.to_json(), coloured=console.color_system is not None)


def inspect(
    recipe: Recipe | Model | str | Path, data: Any = None, *, tokens: int = 0, **keywords: Any
) -> Inspection:
    """Returns what is to be known of the data that `recipe` would train on; nothing is trained.

    Rows that cannot be read, copies and clashes of labels, which end a training, are counted here.

    Args:
        recipe: a recipe; or a model, `data` and `keywords` being as for `finetune`.
        data: in place of the path that the recipe names.
        tokens: training examples to show as tokens.
        keywords: of `finetune`.

    Raises:
        RecipeError: every mistake in the keywords; or the recipe names no data.
        DataError: nothing is left of the data to be inspected, or `tokens` is negative.
        ModelError: the model's tokenizer cannot be read.
    """
    if tokens < 0:
        raise DataError(f"tokens: expected a number of examples, 0 or more, got {tokens}.")
    model = recipe if isinstance(recipe, Model) else None
    if not isinstance(recipe, Recipe):
        said = Recipe.from_keywords(model=recipe, data=data, **keywords)
        data = in_memory(data, keywords.get("validation"))
        recipe = said
    elif keywords:
        message = "a recipe says it already; give a model in its place, or change the recipe."
        raise RecipeError([Issue(name, message) for name in keywords])
    if data is None and recipe.data.path is None:
        message = "expected the path of the training data, got none; name one, or pass data=."
        raise RecipeError([Issue("data.path", message)])
    splits, task, notes = _opened(recipe, data)
    named = {
        "model": recipe.backbone.name if model is None else model.backbone.source,
        "task": asked(recipe, recipe.data.path if data is None else data).name,
        "data": recipe.data.path or "data in memory",
        "notes": notes,
    }
    if isinstance(task, ImageClassification):
        return _of_images(splits, recipe.data, named)
    name, spec = named["model"], recipe.backbone
    reader = read_text_reader(name, spec) if model is None else TextReader.of(model.backbone)
    max_length = longest_of(recipe.batch, reader.max_length_tokens, name)
    found = _of_texts(splits, task, reader.tokenizer, max_length, most=MOST_READ, tokens=tokens)
    near = near_copies(splits)
    found = replace(found, near=near, **named)
    advice = [*_advice(found, recipe.data), *_cut_told(found, reader.max_length_tokens)]
    return replace(found, advice=tuple(advice))


def preflight_lines(
    task: TextTask, splits: Splits, tokenizer: Tokenizer, max_length: int
) -> list[str]:
    """Returns what is to be known before the first step in at most six lines.

    Args:
        task: bound to the data.
        splits: of texts.
        tokenizer: the model's.
        max_length: in tokens.
    """
    most = MOST_READ_BRIEFLY
    return brief(_of_texts(splits, task, tokenizer, max_length, most=most))


def brief(found: Inspection) -> list[str]:
    """Returns an inspection of texts in at most six lines."""
    rows = ", ".join(f"{split.name} {split.rows:,}" for split in found.splits)
    skipped = sum(split.skipped for split in found.splits)
    lines = [f"rows: {rows}" + (f"; {skipped:,} skipped" if skipped else "")]
    labels = sorted(found.splits[0].labels, key=lambda pair: -pair[1])
    total = sum(count for _, count in labels)
    if total:
        shown = [f"{name} {share(count / total)}" for name, count in labels[:6]]
        more = [f"{len(labels) - 6} more"] if len(labels) > 6 else []
        lines.append(f"{found.label_title}: {', '.join([*shown, *more])}")
    if one := found.lengths:
        lines.append(
            f"tokens: median {one.median:,}, longest {one.longest:,}; max_length "
            f"{one.max_length:,} cuts {share(one.cut_texts)} of the texts, "
            f"{share(one.cut_tokens)} of the tokens"
        )
    if learned := found.learned:
        silent = f"; texts without any: {learned.silent:,}" if learned.silent else ""
        lines.append(f"in the loss: {share(learned.tokens)} of the tokens{silent}")
    if found.unknown and found.unknown.words:
        words = " ".join(repr(word) for word, _ in found.unknown.words[:5])
        lines.append(
            f"outside the vocabulary: {share(found.unknown.tokens)} of the tokens: {words}"
        )
    if told := _copies_told(found):
        lines.append(told)
    return lines


def _opened(recipe: Recipe, data: Any) -> tuple[Splits, Any, tuple[str, ...]]:
    """Splits and task, whatever is wrong with some of the rows, and what was told of them."""
    lenient = replace(recipe.data, on_duplicate="ignore", on_unreadable="skip")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            splits, task = open_task(recipe.model_copy(update={"data": lenient}), data)
    except DataError:
        open_task(recipe, data)  # Says of every row why it is not there.
        raise
    told = [str(each.message) for each in caught if each.category is UserWarning]
    return splits, task, tuple(text for text in told if "skipped" not in text)


def _of_texts(
    splits: Splits, task: Any, tokenizer: Tokenizer, max_length: int, *, most: int, tokens: int = 0
) -> Inspection:
    """All that does not take comparing texts with each other."""
    train: Any = splits.train
    places = drawn(train, most)
    some = train.select(places)
    source = some
    if not isinstance(task, EmbeddingTask):  # Its pairs are drawn from few labelled texts.
        source = task.prepared(some, tokenizer, max_length, training=True, seed=0)
    whole, cut = (task.encoder(tokenizer, length) for length in (ANY_LENGTH, max_length))
    total = len(source) if len(some) == len(train) else len(train)
    lengths, learned = read_lengths(source, whole, cut, max_length, total)
    texts = [text for place in range(len(some)) for text in texts_of(some[place])]
    facts, title = split_facts(splits), "labels"
    if train.kind == "tagged":
        title = f"tags of the words of {len(some):,} training texts"
        facts = (replace(facts[0], labels=tag_counts(some)), *facts[1:])
    shown = drawn(source, tokens) if tokens else ()
    return Inspection(
        model="",
        task="",
        data="",
        splits=facts,
        label_title=title,
        numbers=numbers(train),
        lengths=lengths,
        learned=learned,
        unknown=unknown_words(
            texts, lambda some: tokenizer.encode_many(some, special=False), tokenizer.unk_id
        ),
        copies=copies(splits),
        views=tuple(token_view(task, source[int(i)], tokenizer, max_length) for i in shown),
    )


def _of_images(splits: Splits, spec: DataSpec, named: Mapping[str, Any]) -> Inspection:
    facts, sizes = [], []
    for name, source in splits.items():
        digests = [scan.digest for _, scan in scan_source(source)]
        repeated = len(digests) - len(set(digests))
        counts = tuple(zip(source.label_names, label_counts(source).tolist(), strict=True))
        facts.append(SplitFacts(name, len(source), 0, (), repeated, counts))
    for place in drawn(splits.train, _MOST_IMAGES):
        picture = splits.train[int(place)]["image"]
        is_array = isinstance(picture, np.ndarray)
        sizes.append(picture.shape[1::-1] if is_array else picture.size)
    sizes.sort(key=lambda size: size[0] * size[1])
    marks = {"smallest": sizes[0], "median": sizes[len(sizes) // 2], "largest": sizes[-1]}
    shown = {name: f"{width} x {height}" for name, (width, height) in marks.items()}
    found = Inspection(splits=tuple(facts), sizes=shown, **named)
    return replace(found, advice=tuple(_advice(found, spec)))


def _advice(found: Inspection, spec: DataSpec) -> Iterator[str]:
    """What stands out, and what to do about it."""
    for split in found.splits:
        if split.skipped and spec.on_unreadable == "error":
            yield (
                f"rows of {split.name} that cannot be read: {split.skipped:,}. Training stops "
                "there: mend them, or set data.on_unreadable: skip"
            )
    if found.copies and (told := _clashes_told(found.copies)):
        if spec.on_duplicate == "error":
            told += ". Training stops there: remove them, or set data.on_duplicate: warn"
        yield told
    if found.near:
        for one, two, count in found.near.counts:
            if one != two:
                yield (
                    f"texts of {two} that are nearly the same as one of {one}: {count:,}. Metrics "
                    f"on {two} flatter the model"
                )
    labels = [count for _, count in found.splits[0].labels]
    if labels and found.label_title == "labels" and max(labels) > 10 * max(min(labels), 1):
        yield (
            f"the commonest label has {max(labels):,} examples, the rarest {min(labels):,}: look "
            "at f1_macro; task.class_weights: balanced makes up for it"
        )
    if found.learned and found.learned.silent:
        names = ", ".join(found.learned.silent_names)
        yield f"texts without a token in the loss after cutting: {found.learned.silent:,} ({names})"
    if found.unknown and found.unknown.tokens > 0.01:
        yield (
            f"{share(found.unknown.tokens)} of the tokens are unknown to the model: choose one of "
            "the texts' language and characters"
        )


def _cut_told(found: Inspection, longest: int | None) -> Iterator[str]:
    lengths = found.lengths
    if lengths is None or lengths.cut_texts < 0.05:
        return
    remedy = f"95 % of all would fit in batch.max_length: {lengths.p95}"
    if longest is not None and lengths.p95 > longest:
        remedy = f"the model takes at most {longest} tokens; split the texts, or choose another"
    yield f"{share(lengths.cut_texts)} of the texts are cut: {remedy}"


def _clashes_told(found: Copies) -> str:
    told = [f"texts in both {one} and {two}: {n:,}" for one, two, n in found.across]
    told += [f"texts with two labels: {found.conflicts:,}"] if found.conflicts else []
    return ", ".join(told)


def _copies_told(found: Inspection) -> str:
    repeated = [f"repeated in {s.name}: {s.copies:,}" for s in found.splits if s.copies]
    clashes = _clashes_told(found.copies) if found.copies else ""
    return ", ".join(filter(None, [*repeated, clashes]))


def command(args: argparse.Namespace) -> None:
    """Runs `tunekit inspect recipe.yaml [PATH=VALUE…] [--tokens N] [--json]`."""
    from rich.console import Console

    found = inspect(Recipe.load(args.recipe, args.overrides), tokens=args.tokens)
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
        return
    console = Console(highlight=False)
    console.print(found) if console.is_terminal else print(found)
