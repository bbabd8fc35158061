"""What data are for is told from them; a task that is named decides how they are read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.families import images
from tests.contract.text_families import rows, write_rows
from tunekit import Recipe
from tunekit.asked import asked, kind_of, open_task
from tunekit.errors import RecipeError
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.spec import EmbeddingSpec, named_task


def recipe(**keywords: Any) -> Recipe:
    return Recipe.from_keywords(model="bert/", **keywords)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("classification", "text_classification"),
        ("multi_label", "text_classification"),
        ("pairs", "text_classification"),
        ("tokens", "token_classification"),
        ("span_qa", "span_qa"),
        ("embedding", "embedding"),
        ("causal_lm", "causal_lm"),
        ("sft", "sft"),
    ],
)
def test_columns_say_what_data_are_for(data, name, tmp_path):
    said = recipe()
    assert asked(said, write_rows(data, tmp_path)).name == name
    assert asked(said, rows(data)).name == name
    splits, task = open_task(recipe(data=str(tmp_path / f"{data}.jsonl"), validation=0.25))
    assert splits.validation is not None and len(splits.train) + len(splits.validation) == 8
    assert splits.train.kind == task.kind  # pyright: ignore
    assert asked(said, splits).name == name


def test_pictures_with_labels_are_for_image_classification():
    _, task = open_task(recipe(), images())
    assert isinstance(task, ImageClassification)
    assert asked(recipe(), images()).name == "image_classification"


def test_a_named_task_decides_how_rows_are_read():
    texts = [{"text": f"text {i}", "score": i / 4, "label": "a"} for i in range(4)]
    _, task = open_task(recipe(task="text_regression", label="score", validation=0.0), texts)
    assert task.kind == "number"  # pyright: ignore
    _, task = open_task(recipe(task="masked_lm", validation=0.0), texts)
    assert task.kind == "plain"  # pyright: ignore


@pytest.mark.parametrize(
    ("contrast", "data", "kind"),
    [
        ("auto", "classification", "labelled"),
        ("auto", "embedding", "pairs"),
        ("labels", "classification", "labelled"),
        ("multiple_negatives", "embedding", "pairs"),
    ],
)
def test_an_embedding_is_of_pairs_or_of_labelled_texts(contrast, data, kind):
    spec = EmbeddingSpec(contrast=contrast)
    assert kind_of(spec, rows(data), recipe(task=spec)) == kind


def test_options_of_labels_are_kept_where_the_data_have_labels():
    spec = asked(recipe(label_smoothing=0.1), rows("classification"))
    assert (spec.name, spec.label_smoothing) == ("text_classification", 0.1)  # pyright: ignore


@pytest.mark.parametrize("data", ["sft", "tokens"])
def test_options_of_labels_are_no_options_of_other_tasks(data):
    name = asked(recipe(), rows(data)).name
    with pytest.raises(RecipeError, match=rf"task: .* the data are for '{name}'. Say name: {name}"):
        asked(recipe(label_smoothing=0.1), rows(data))


def test_every_task_of_texts_knows_its_examples():
    for name in ("text_classification", "sft", "causal_lm", "masked_lm", "span_qa"):
        spec = named_task(name)
        assert kind_of(spec, [], recipe(task=spec)) == {
            "text_classification": "labelled",
            "sft": "dialogue",
            "span_qa": "answers",
        }.get(name, "plain")
