"""Data are looked at before a training: numbers, tokens, and what stands out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.unit.tasks.small_language import tokenizer
from tunekit.asked import open_task
from tunekit.cli import main
from tunekit.data.spec import BatchSpec, DataSpec
from tunekit.errors import DataError, ModelError, RecipeError
from tunekit.inspection import (
    Inspection,
    brief,
    inspect,
    preflight_lines,
)
from tunekit.models import tokenizer_files
from tunekit.models.spec import BackboneSpec
from tunekit.models.tokenizing import Tokenizer
from tunekit.recipe import Recipe

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "a b c d good bad film the plot was who wrote it she he . ##s".split()
CHAT = [
    {"prompt": "who are you", "response": "a cat"},
    {"prompt": "what is it", "response": "a very long answer, " * 20},
    {"prompt": "is it so", "response": "it is"},
]
REVIEWS = [
    {"text": "good film ☃", "label": "good"},
    {"text": "bad plot", "label": "bad"},
    {"text": "the film was good . " * 20, "label": "good"},
    {"text": "she wrote it", "label": "bad"},
]


def written(folder: Path, files: dict[str, Any], **config: Any) -> Path:
    """A model's folder without weights."""
    folder.mkdir()
    for name, content in {**files, "config.json": config}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    content = tokenizer_files.word_pieces([*SPECIAL, *WORDS], lowercase=True)
    files = {"tokenizer.json": content}
    return written(tmp_path / "bert", files, model_type="bert", max_position_embeddings=32)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    files = dict(tokenizer().files)
    return written(tmp_path / "llama", files, model_type="llama", max_position_embeddings=128)


def test_the_tokens_of_the_answers_are_shown_as_trained_on(llama):
    found = inspect(llama, CHAT, validation=0, max_length=80, tokens=3)
    assert found.task == "sft"
    page = str(found)
    assert "⟦a cat<|im_end|>⟧↵" in page
    assert "<|im_start|>user↵\n    is it so<|im_end|>↵" in page
    assert "80 tokens, as many as fit" in page


def test_colours_stand_for_the_brackets_on_a_terminal(llama):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=90)
    console.print(inspect(llama, CHAT, validation=0, tokens=1))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "⟦" not in shown
    assert "\x1b[1;32ma cat" in shown or "\x1b[1;32mit is" in shown


def test_texts_that_are_cut_and_answers_that_are_lost_stand_out(llama):
    found = inspect(llama, CHAT, validation=0, max_length=20)
    assert found.lengths is not None and found.learned is not None
    assert found.lengths.cut_texts == 1 and found.learned.silent == 3
    assert any("the model takes at most 128" in line for line in found.advice)
    assert any(
        "texts without a token in the loss after cutting: 3" in line for line in found.advice
    )


def test_labels_lengths_and_unknown_words_of_a_classifier_are_counted(bert):
    found = inspect(bert, REVIEWS, validation=0)
    assert dict(found.splits[0].labels) == {"bad": 2, "good": 2}
    assert found.lengths is not None and found.unknown is not None and found.learned is None
    assert (found.lengths.max_length, found.lengths.longest) == (32, 102)
    assert found.unknown.words == (("☃", 1),)
    page = str(found)
    assert "good       2   " in page and "'☃' 1" in page
    assert "max_length 32 cuts 25 % of the texts" in page


def test_what_ends_a_training_is_counted_here(bert):
    train = [*REVIEWS, {"text": "", "label": "bad"}, {"text": "bad plot", "label": "good"}]
    data = {"train": train, "test": REVIEWS[3:]}
    with pytest.raises(DataError, match="empty text"):
        open_task(Recipe.from_keywords(model=bert, data=data, validation=0), data)
    found = inspect(bert, data, validation=0)
    assert found.copies is not None
    assert (found.copies.across, found.copies.conflicts) == ((("train", "test", 1),), 1)
    assert "rows of train that cannot be read: 1. Training stops there" in found.advice[0]
    expected = "texts in both train and test: 1, texts with two labels: 1. Training stops"
    assert expected in found.advice[1]
    page = str(found)
    assert "data.train[4]: empty text in 'text'" in page
    assert "two labels: data.train[1] = data.train[5]" in page


def test_nothing_is_said_to_end_a_training_that_it_does_not_end(bert):
    train = [*REVIEWS, {"text": "", "label": "bad"}]
    recipe = Recipe(
        plan=({"epochs": 1},),
        backbone=BackboneSpec(name=str(bert)),
        data=DataSpec(on_unreadable="skip", on_duplicate="warn", validation_fraction=0),
    )
    found = inspect(recipe, {"train": train, "test": REVIEWS[3:]})
    assert not any("Training stops" in line for line in found.advice)
    assert "texts in both train and test: 1" in found.advice


def test_near_duplicates_of_two_splits_stand_out(bert):
    story = "the film was good and the plot was bad and she wrote it well enough for me"
    data = {"train": [*REVIEWS, {"text": story, "label": "good"}], "test": REVIEWS[:0]}
    data["test"] = [{"text": f"{story}!", "label": "good"}]
    found = inspect(bert, data, validation=0)
    assert found.near is not None and found.near.between("train", "test") == 1
    advice = "texts of test that are nearly the same as one of train: 1. Metrics on test flatter"
    assert any(advice in line for line in found.advice)
    assert "near, 100 %: data.train[4] (train) ~ data.test[0] (test)" in str(found)


def test_rare_labels_and_unknown_words_stand_out(bert):
    rows = [{"text": f"film ☃ {'a b c d '[: i % 8]} {i}", "label": "x"} for i in range(24)]
    rows += [{"text": "she wrote", "label": "y"}, {"text": "he wrote", "label": "y"}]
    advice = "\n".join(inspect(bert, rows, validation=0).advice)
    assert "the commonest label has 24 examples, the rarest 2" in advice
    assert "of the tokens are unknown to the model" in advice


QUESTION = {
    "question": "who wrote it",
    "context": "she wrote it . he was bad . the plot was good . " * 4,
    "answers": {"text": ["he"], "answer_start": [15]},
}
EVERY_TASK: dict[str, tuple[list[Any], str]] = {
    "text_classification": (REVIEWS, "label: good"),
    "text_regression": ([{"text": "good film", "label": 2.5}, {"text": "a", "label": 1}], "2.5"),
    "token_classification": (
        [{"words": ["she", "wrote", "films"], "tags": ["PER", "O", "O"]}],
        "[CLS] ⟦she wrote",
    ),
    "span_qa": ([QUESTION], "⟦he⟧"),
    "embedding": (
        [{"sentence1": "good film", "sentence2": "the film was good"}] * 2,
        "⇄ [CLS] the film was good [SEP]",
    ),
    "masked_lm": (["the film was good . " * 20], "[MASK]"),
}


@pytest.mark.parametrize("task", EVERY_TASK)
def test_every_task_of_an_encoder_is_inspected(bert, task):
    rows, shown = EVERY_TASK[task]
    given = dict.fromkeys(["validation"], 0)
    found = inspect(bert, rows, task=task, tokens=4, **given)
    assert found.task == task and len(found.views) >= 1
    assert shown in str(found).replace("\n    ", " ")
    assert len(brief(found)) <= 6
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_texts_drawn_by_label_are_inspected_as_they_are(bert):
    found = inspect(bert, REVIEWS, task="embedding", label="label", validation=0, tokens=1)
    assert found.lengths is not None and found.lengths.texts == len(REVIEWS)


def test_long_texts_that_become_pieces_are_not_cut(bert):
    found = inspect(bert, ["the film was good . " * 20], task="masked_lm", validation=0)
    assert found.lengths is not None
    assert found.lengths.texts > 1 and found.lengths.cut_texts == 0


def test_a_piece_without_the_answer_says_so(bert):
    found = inspect(bert, [QUESTION], task="span_qa", validation=0, max_length=24, tokens=9)
    first, *_, last = found.views
    assert first.note == "answer: he, 24 tokens, as many as fit"
    assert "answer: he, which is not in this piece" in last.note


def test_plain_text_is_trained_on_as_a_whole(llama):
    found = inspect(llama, ["who are you", "a cat"], task="causal_lm", validation=0, tokens=2)
    assert "    a ⟦cat<|endoftext|>⟧" in str(found)


def test_a_run_is_told_of_its_data_in_six_lines_at_most(bert):
    data = {"train": [*REVIEWS, REVIEWS[0]], "test": REVIEWS[3:]}
    recipe = Recipe(
        plan=({"epochs": 1},), data=DataSpec(on_duplicate="ignore", validation_fraction=0)
    )
    splits, task = open_task(recipe, data)
    reader = Tokenizer.from_folder(bert)
    assert reader is not None
    assert preflight_lines(task, splits, reader, 32) == [
        "rows: train 5, test 1",
        "labels: good 60 %, bad 40 %",
        "tokens: median 5, longest 102; max_length 32 cuts 20 % of the texts, 58 % of the tokens",
        "outside the vocabulary: 1.8 % of the tokens: '☃'",
        "repeated in train: 1, texts in both train and test: 1",
    ]


def test_a_length_that_nearly_all_texts_fit_in_is_named_where_the_model_allows_it(bert):
    rows = [{"text": "a " * (i % 20 + 1) + "bcd"[i % 3], "label": "ab"[i % 2]} for i in range(40)]
    (advice,) = inspect(bert, rows, validation=0, max_length=8).advice
    assert advice == "75 % of the texts are cut: 95 % of all would fit in batch.max_length: 22"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label, side in (("cat", 8), ("dog", 12)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (side, side + i, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def test_images_have_their_labels_and_sizes(photos):
    found = inspect("efficientnet_lite0", photos, validation=0)
    assert found.sizes == {"smallest": "8 x 8", "median": "12 x 12", "largest": "14 x 12"}
    assert dict(found.splits[0].labels) == {"cat": 3, "dog": 3}
    assert "largest 14 x 12" in str(found) and "nothing stands out" in str(found)


@pytest.fixture
def recipe_file(bert: Path, tmp_path: Path) -> Path:
    rows = "\n".join(json.dumps(row) for row in REVIEWS)
    (tmp_path / "reviews.jsonl").write_text(rows, encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    data = f"data: {{path: '{tmp_path / 'reviews.jsonl'}', validation_fraction: 0}}"
    path.write_text(f"backbone: {{name: '{bert}'}}\n{data}\nplan: [{{epochs: 1}}]\n")
    return path


def test_the_command_prints_a_page_or_json(recipe_file, capsys):
    assert main(["inspect", str(recipe_file), "batch.max_length=16", "--tokens", "1"]) == 0
    page = capsys.readouterr().out
    assert "max_length 16 cuts" in page and "reviews.jsonl:" in page and "\x1b" not in page
    assert main(["inspect", str(recipe_file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lengths"]["max_length"] == 32 and told["splits"][0]["rows"] == 4


def test_a_negative_number_of_examples_is_refused(recipe_file):
    with pytest.raises(DataError, match="tokens: expected a number of examples, 0 or more, got -1"):
        inspect(Recipe.load(recipe_file), tokens=-1)


def test_keywords_beside_a_recipe_are_refused():
    recipe = Recipe(plan=({"epochs": 1},))
    with pytest.raises(RecipeError, match="max_length: a recipe says it already"):
        inspect(recipe, ["a"], max_length=8)


def test_a_recipe_without_data_says_so():
    with pytest.raises(RecipeError, match="data.path: expected the path of the training data"):
        inspect(Recipe(plan=({"epochs": 1},)))


def test_a_model_of_images_cannot_read_texts():
    with pytest.raises(ModelError, match="takes images, and the data are texts"):
        inspect("efficientnet_lite0", REVIEWS, validation=0)


def test_more_tokens_than_the_model_has_positions_are_refused(bert):
    with pytest.raises(ModelError, match="batch.max_length: expected at most 32"):
        inspect(bert, REVIEWS, validation=0, max_length=64)


def test_data_of_which_nothing_is_left_say_of_each_row_why(bert):
    with pytest.raises(DataError, match=r"data\[0\]: empty text in 'text'"):
        inspect(bert, [{"text": "", "label": "a"}, {"text": " ", "label": "b"}], validation=0)


def test_a_recipe_may_say_how_long_texts_are(bert):
    recipe = Recipe(
        plan=({"epochs": 1},),
        backbone=BackboneSpec(name=str(bert)),
        data=DataSpec(validation_fraction=0),
        batch=BatchSpec(max_length=16),
    )
    found = inspect(recipe, REVIEWS)
    assert isinstance(found, Inspection) and found.data == "data in memory"
    assert found.lengths is not None and found.lengths.max_length == 16
