"""What a run on texts refuses: each mistake one message, which says what to do instead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.contract.families import fixed, plain_cnn
from tests.contract.text_families import LENGTH, LLAMA_TOKENS, bert, llama, rows, write_rows
from tunekit import BatchSpec, HeadSpec, LanguageModellingSpec, Phase, Recipe, finetune, load_model
from tunekit.errors import DataError, ModelError, RecipeError
from tunekit.methods.spec import PrefixTuning, PromptTuning
from tunekit.models.hub import keras_hub
from tunekit.session import session

QUICK: dict[str, Any] = {"batch_size": 4, "epochs": 1, "progress": "none", "validation": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny BERT and a tiny Llama, "bert" and "llama"."""
    folder = tmp_path_factory.mktemp("models")
    bert(folder / "bert")
    llama(folder / "llama")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(4):
        file = folder / ("cat", "dog")[index % 2] / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 50 * index, np.uint8)).save(file)
    return folder


def written(file: Path, given: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    return file


def test_images_are_no_data_for_a_model_of_texts(folder, photos):
    with pytest.raises(ModelError, match=r"takes tokens, and the data are images: choose a model"):
        finetune(folder / "bert", photos, **QUICK)
    with pytest.raises(DataError, match=r"data.path: .* holds no file of .*\.jsonl"):
        finetune(folder / "bert", photos, task="text_classification", **QUICK)


@pytest.mark.parametrize("task", ["classification", "sft", "embedding"])
def test_texts_are_no_data_for_a_model_of_images(task, tmp_path):
    with pytest.raises(ModelError, match=r"takes images, and the data are texts: choose a model"):
        finetune(fixed(plain_cnn()), write_rows(task, tmp_path), **QUICK)


def test_tags_are_no_data_for_a_model_of_images(tmp_path):
    with pytest.raises(ModelError, match="each token of a text, and this backbone takes images"):
        finetune(fixed(plain_cnn()), write_rows("tokens", tmp_path), **QUICK)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("causal_lm", {"task": "text_classification"}, "data.label_column: .* no column for the l"),
        ("classification", {"label": "stars"}, "no column 'stars'. Its columns: text, label"),
        ("classification", {"task": "token_classification"}, "data.text_column: .* for the words"),
        ("classification", {"task": "span_qa"}, "data.text_column: .* for the question"),
        ("classification", {"task": "text_regression"}, "jsonl:1: expected a number in 'label'"),
        ("causal_lm", {"task": "embedding"}, "no two columns of texts .* name both"),
        ("classification", {"task": "image_classification"}, r"data.path: expected a folder"),
    ],
)
def test_data_that_do_not_fit_the_task_are_named(data, options, message, folder, tmp_path):
    with pytest.raises(DataError, match=message):
        finetune(folder / "bert", write_rows(data, tmp_path), **QUICK, **options)


def test_numbers_are_no_labels(folder, tmp_path):
    texts = [{"text": row["text"], "label": i / 3} for i, row in enumerate(rows("causal_lm"))]
    data = written(tmp_path / "numbers.jsonl", texts)
    with pytest.raises(DataError, match=r"numbers.jsonl:2: expected a label's name or whole numb"):
        finetune(folder / "bert", data, task="text_classification", **QUICK)


@pytest.mark.parametrize("task", ["sft", "causal_lm"])
def test_an_encoder_does_not_learn_to_write(task, folder, tmp_path):
    data = write_rows(task, tmp_path)
    for model in (folder / "bert", load_model(folder / "bert")):
        with pytest.raises(ModelError, match=rf"task {task}: .* is an encoder, .* masked_lm"):
            finetune(model, data, task=task, **QUICK)


def test_a_decoder_does_not_find_hidden_words(folder, tmp_path):
    data = write_rows("masked_lm", tmp_path)
    for model in (folder / "llama", load_model(folder / "llama")):
        with pytest.raises(ModelError, match=r"is no encoder of texts, .* use task: causal_lm"):
            finetune(model, data, task="masked_lm", **QUICK)


def test_a_model_without_its_tokenizer_is_refused(tmp_path):
    (bert(tmp_path / "bert") / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"without a tokenizer .* expected a tokenizer.json"):
        finetune(tmp_path / "bert", write_rows("classification", tmp_path), **QUICK)


def test_a_model_without_chat_template_needs_a_format(tmp_path):
    told = {name: token for name, token in LLAMA_TOKENS.items() if name != "chat_template"}
    (llama(tmp_path / "llama") / "tokenizer_config.json").write_text(json.dumps(told))
    with pytest.raises(RecipeError, match=r"task.template: .* no chat template.* Give a format"):
        finetune(tmp_path / "llama", write_rows("sft", tmp_path), **QUICK)


def test_texts_may_not_be_longer_than_the_model_s_positions(folder, tmp_path):
    data = write_rows("classification", tmp_path)
    with pytest.raises(ModelError, match=rf"batch.max_length: expected at most {LENGTH}.* got 64"):
        finetune(folder / "bert", data, max_length=64, **QUICK)


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        ("classification", "text_classification", "'label' has one value for each text"),
        ("regression", "text_regression", "'target' has one value for each text"),
        ("span_qa", "span_qa", "has one value for each text"),
        ("embedding", "embedding", "there are several sequences for each text"),
    ],
)
def test_texts_with_one_label_each_do_not_share_rows(data, task, message, folder, tmp_path):
    data = write_rows(data, tmp_path)
    with pytest.raises(DataError, match=rf"batch.packing: .*{message}.* set it to false"):
        finetune(folder / "bert", data, task=task, packing=True, max_length=LENGTH, **QUICK)


@pytest.mark.parametrize("method", [PromptTuning(length=2), PrefixTuning(length=2)])
def test_texts_with_learned_positions_do_not_share_rows(method, folder, tmp_path):
    data = write_rows("sft", tmp_path)
    with pytest.raises(RecipeError, match=r"packing: .* 2 learned positions .* set it to false"):
        finetune(folder / "llama", data, method=method, packing=True, **QUICK)


def test_poolings_that_are_not_of_the_task_are_refused(folder, tmp_path):
    tags, labels = (write_rows(task, tmp_path) for task in ("tokens", "classification"))
    with pytest.raises(ModelError, match="head.pooling: 'avg' gives one vector a text"):
        finetune(folder / "bert", tags, head=HeadSpec(pooling="avg"), **QUICK)
    with pytest.raises(ModelError, match="head.pooling: 'none' gives logits for each token"):
        finetune(folder / "bert", labels, head=HeadSpec(pooling="none"), **QUICK)


@pytest.mark.parametrize(("name", "task"), [("llama", "sft"), ("bert", "embedding")])
def test_a_head_alone_trains_only_where_the_task_has_one(name, task, folder, tmp_path):
    with pytest.raises(RecipeError, match=r"method: 'head' .* none of its own; choose lora"):
        finetune(folder / name, write_rows(task, tmp_path), method="head", **QUICK)


def test_packed_kernels_do_not_train(folder, tmp_path):
    with pytest.raises(RecipeError, match="kernels packed as nf4 cannot train, and method 'full'"):
        finetune(folder / "llama", write_rows("sft", tmp_path), quantize="nf4", **QUICK)


def test_a_model_with_labels_of_its_own_is_no_language_model(folder, tmp_path):
    model = load_model(folder / "llama", labels=("good", "bad"))
    with pytest.raises(ModelError, match=r"has a head for the labels good, bad.* Load it anew"):
        finetune(model, write_rows("sft", tmp_path), **QUICK)
    assert model.labels == ("good", "bad")


def test_a_model_that_cannot_answer_is_refused_before_it_trains(folder, tmp_path):
    models, sizes = keras_hub().models, {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 12}
    llama = load_model(folder / "llama").backbone
    body = models.BloomBackbone(vocabulary_size=llama.vocabulary, num_heads=2, **sizes)
    model = load_model(models.BloomCausalLM(body))
    model.backbone = replace(model.backbone, tokenizer=llama.tokenizer)
    before = [np.array(variable.value) for variable in model.variables().values()]
    data, given = write_rows("causal_lm", tmp_path), {**QUICK, "validation": 0.25}
    with pytest.raises(ModelError, match="BloomAttention.* set task.samples: 0"):
        finetune(model, data, task="causal_lm", max_length=LENGTH, **given)
    after = [np.array(variable.value) for variable in model.variables().values()]
    assert all(map(np.array_equal, before, after))
    quiet = LanguageModellingSpec(name="causal_lm", samples=0)
    result = finetune(model, data, task=quiet, max_length=LENGTH, **given)
    assert np.isfinite(result.metrics["loss"])


def test_texts_leave_room_for_the_positions_that_a_prompt_learns(folder, tmp_path):
    """By default they are as long as the network's positions allow."""
    long = [{"text": "good " * 60 + "fish", "label": label} for label in "abab"]
    long = [{**row, "text": f"{row['text']} {number}"} for number, row in enumerate(long)]
    result = finetune(
        folder / "bert",
        written(tmp_path / "long.jsonl", long),
        task="text_classification",
        method=PromptTuning(length=4),
        **QUICK,
    )
    assert result.predict("good " * 60)[0].label in "ab"


def test_a_phase_has_the_longest_text_that_its_own_batch_says(folder, tmp_path):
    recipe = Recipe.from_keywords(
        model=str(folder / "bert"),
        data=str(write_rows("classification", tmp_path)),
        plan=[Phase(epochs=1, batch=BatchSpec(size=2, max_length=8)), Phase(epochs=1)],
        **QUICK | {"epochs": None},
        max_length=LENGTH,
    )
    with session(recipe) as ready:
        lengths = [ready.feeder.feed(each).columns["token_ids"].shape[1] for each in ready.phases]
    assert lengths == [8, LENGTH]


def test_rows_of_several_texts_are_told_of_before_the_first_step(folder, tmp_path, capsys):
    finetune(
        folder / "llama",
        write_rows("causal_lm", tmp_path, 20),
        task=LanguageModellingSpec(name="causal_lm", samples=0),
        packing=True,
        max_length=LENGTH,
        **QUICK | {"progress": "plain"},
    )
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("packed: ")]
    assert len(told) == 1 and "packed: 20 texts in " in told[0] and told[0].endswith("% full")
