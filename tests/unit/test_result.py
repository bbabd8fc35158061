from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import yaml
from PIL import Image
from sklearn.metrics import accuracy_score

from tunekit.errors import DataError, ModelError
from tunekit.models import tokenizer_files
from tunekit.models.backbone import Backbone
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.recipe import Recipe
from tunekit.result import FILES, Result, load
from tunekit.tasks.image_classification import ImageClassification

NAMES = ("cat", "dog", "emu")
ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), np.uint8)
LABELS = np.arange(10) % 3
HISTORY = [
    {"epoch": 1, "phase": 0, "step": 5, "loss": np.float32(0.5), "learning_rate": 1e-3},
    {"epoch": 2, "phase": 0, "step": 10, "loss": float("nan"), "val_accuracy": 0.25},
]


def tiny_body(dtype="float32", extra=()):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3), name="images")
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", dtype=dtype, name="stem")(inputs)
    x = keras.layers.BatchNormalization(dtype=dtype, name="norm")(x)
    for layer in extra:
        x = layer(x)
    return keras.Model(inputs, x, name="tiny")


def tiny_result(body=None, *, multi_label=False, head="linear", recipe=None):
    preprocessing = ImagePreprocessing(
        (16, 16), "squash", scale=(0.01, 0.02, 0.03), offset=(-1.0, -1.1, -0.9)
    )
    backbone = Backbone(body or tiny_body(), preprocessing, "map", "plain", "tiny")
    model = Model(backbone, NAMES, head, seed=3, multi_label=multi_label)
    task = ImageClassification(NAMES, multi_label=multi_label, class_weights=(1.0, 2.0, 1.0))
    recipe = recipe or {"seed": 0, "data": {"path": "photos", "label_column": "kind"}}
    return Result(model, recipe, HISTORY, {"accuracy": 0.25}, {"seconds": 1.5}, task)


@pytest.fixture(scope="module")
def result():
    return tiny_result()


@pytest.fixture
def out(result, tmp_path):
    return result.save(tmp_path / "out")


# evaluate and predict


def test_evaluation_is_of_the_models_own_logits(result):
    metrics = result.evaluate((IMAGES, [NAMES[i] for i in LABELS]))
    predicted = result.model.logits(IMAGES).argmax(1)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(LABELS, predicted))
    assert metrics["examples"] == 10


def test_evaluation_goes_by_label_name_and_some_may_be_absent(result):
    metrics = result.evaluate((IMAGES[:4], ["emu", "cat", "emu", "cat"]))
    assert metrics["absent_labels"] == ["dog"]
    assert [sum(row) for row in metrics["confusion_matrix"]] == [2, 0, 2]


def test_evaluation_on_an_unknown_label_names_the_near_one(result):
    with pytest.raises(DataError, match="'dogs'. Did you mean 'dog'"):
        result.evaluate((IMAGES[:2], ["cat", "dogs"]))


def test_several_labels_an_image_do_not_suit_a_model_that_gives_one(result):
    with pytest.raises(DataError, match="several labels an image"):
        result.evaluate((IMAGES[:2], [["cat", "dog"], ["emu"]]))


def test_a_table_is_read_by_the_columns_of_the_recipe(result, tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    (tmp_path / "test.csv").write_text("image,kind\na.png,cat\n")
    assert result.evaluate(tmp_path / "test.csv")["per_class"]["cat"]["support"] == 1


def test_multi_label_evaluation_and_prediction():
    result = tiny_result(multi_label=True)
    metrics = result.evaluate((IMAGES[:3], [["cat", "dog"], ["emu"], []]))
    assert {"mean_average_precision", "f1_micro"} <= set(metrics)
    everything = result.predict(IMAGES[:1], threshold=0.0)[0]
    assert set(everything.labels) == set(NAMES)


def test_predictions_are_the_models_probabilities_in_the_order_given(result):
    predictions = result.predict(list(IMAGES))
    p = np.stack([[each.probabilities[name] for name in NAMES] for each in predictions])
    assert p == pytest.approx(result.task.probabilities(result.model.logits(IMAGES)), rel=1e-5)
    assert [each.id for each in predictions[:2]] == ["images[0]", "images[1]"]


def test_one_image_gives_a_list_of_one(result, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(IMAGES[0]).save(path)
    answers = [result.predict(one) for one in (path, str(path), IMAGES[0], Image.open(path))]
    assert [len(each) for each in answers] == [1] * 4
    assert len({each[0].probability for each in answers}) == 1
    assert answers[0][0].id == str(path)


def test_a_folder_gives_its_images_in_order_of_path(result, tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGES[0]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    names = [Path(each.id).name for each in result.predict(tmp_path)]
    assert names == ["a.JPG", "b.png", "c.png"]


def test_an_unreadable_image_is_named(result, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no png")
    with pytest.raises(DataError, match=r"broken\.png: cannot be read as an image"):
        result.predict(tmp_path / "broken.png")


def test_a_missing_image_is_named(result):
    with pytest.raises(DataError, match=r"do not exist: gone\.png"):
        result.predict("gone.png")


def test_a_folder_without_images_is_an_error(result, tmp_path):
    with pytest.raises(DataError, match="no image in this folder"):
        result.predict(tmp_path)


def test_predictions_follow_a_replaced_head():
    result = tiny_result()
    before = result.predict(IMAGES[0])[0]
    result.model.replace_head(NAMES, keep=False, seed=9)
    after = result.predict(IMAGES[0])[0]
    assert before.probabilities != after.probabilities


# save and load


def test_a_loaded_result_is_the_saved_one(result, out):
    again = load(out)
    assert np.array_equal(again.model.logits(IMAGES), result.model.logits(IMAGES))
    assert again.predict(IMAGES) == result.predict(IMAGES)
    assert again.task == result.task
    assert again.recipe == result.recipe
    assert again.metrics == result.metrics
    assert again.report == result.report
    assert again.model.preprocessing == result.model.preprocessing
    assert again.model.head_spec == result.model.head_spec
    assert repr(again) == "Result('tiny', 3 labels, accuracy 0.250)"


def test_the_recipe_of_a_run_is_saved_as_it_writes_itself(tmp_path):
    recipe = Recipe.from_keywords(data="photos", epochs=1)
    out = tiny_result(recipe=recipe).save(tmp_path / "out")
    assert Recipe.load(out / "recipe.yaml") == recipe
    assert load(out).recipe == yaml.safe_load(recipe.to_yaml())
    assert load(out).evaluate((IMAGES[:2], ["cat", "dog"]))["examples"] == 2


def test_the_folder_holds_what_it_promises(result, out):
    assert {path.name for path in out.iterdir()} == set(FILES) - set(tokenizer_files.FILES)
    assert json.loads((out / "labels.json").read_text()) == list(NAMES)
    assert yaml.safe_load((out / "recipe.yaml").read_text()) == result.recipe
    tensors = safetensors.numpy.load_file(out / "model.safetensors")
    assert set(tensors) == set(result.model.variables())
    assert "heads/label/logits/kernel" in tensors


def test_whoever_may_read_the_folder_may_read_every_file_in_it(out):
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1


def test_history_is_strict_json_and_a_table_of_every_column(out):
    history = json.loads((out / "history.json").read_text())
    assert [row["loss"] for row in history] == [0.5, None]
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "phase", "step", "loss", "learning_rate", "val_accuracy"]
    assert (rows[0]["val_accuracy"], rows[1]["val_accuracy"]) == ("", "0.25")


def test_a_saved_result_can_be_saved_again_over_itself(result, out):
    again = load(out)
    again.save(out)
    assert load(out).predict(IMAGES[0]) == result.predict(IMAGES[0])
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_bfloat16"])
def test_half_precision_weights_keep_their_type_and_values(dtype, tmp_path):
    result = tiny_result(tiny_body(dtype))
    again = load(result.save(tmp_path / "out"))
    types = {name: variable.dtype for name, variable in again.model.variables().items()}
    assert types["backbone/stem/kernel"] == ("float32" if "mixed" in dtype else dtype)
    assert types["heads/label/logits/kernel"] == "float32"
    assert again.predict(IMAGES) == result.predict(IMAGES)


@pytest.mark.parametrize("head", ["mlp", "cosine"])
def test_every_kind_of_head_comes_back(head, tmp_path):
    result = tiny_result(head=head)
    again = load(result.save(tmp_path / "out"))
    assert again.model.head_spec.kind == head
    assert again.predict(IMAGES[0]) == result.predict(IMAGES[0])


def test_strided_values_are_written_in_order(tmp_path):
    result = tiny_result()
    kernel = result.model.variables()["heads/label/logits/kernel"]
    kernel.assign(np.arange(12, dtype=np.float32).reshape(3, 4).T)
    tensors = safetensors.numpy.load_file(result.save(tmp_path / "out") / "model.safetensors")
    assert np.array_equal(tensors["heads/label/logits/kernel"], np.asarray(kernel.value))


def test_what_else_lies_in_a_runs_folder_stays(result, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoints" / "7").mkdir(parents=True)
    result.save(out)
    (out / "curves.png").write_bytes(b"png")
    result.save(out)
    others = {"checkpoints", "curves.png"}
    assert {path.name for path in out.iterdir()} == (
        set(FILES) - set(tokenizer_files.FILES)
    ) | others
    assert (out / "checkpoints" / "7").is_dir()


def test_a_folder_of_other_things_is_not_written_to(result, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ModelError, match=r"holds other files \(thesis.tex\) and no earlier save"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_folder_to_save_in(result, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        result.save(tmp_path / "out")


def test_a_failing_save_leaves_the_earlier_one_whole(out):
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    spoilt = tiny_result(tiny_body(extra=[keras.layers.Lambda(lambda x: x * 2, name="twice")]))
    with pytest.raises(ModelError):
        spoilt.save(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_lambda_layer_is_refused_by_name(tmp_path):
    spoilt = tiny_result(tiny_body(extra=[keras.layers.Lambda(lambda x: x * 2, name="twice")]))
    with pytest.raises(ModelError, match="cannot be saved: layer 'twice' is a Lambda"):
        spoilt.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Unregistered(keras.layers.Layer):
    def call(self, x):
        return x


@keras.saving.register_keras_serializable(package="test")
class Scale(keras.layers.Layer):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor


def test_a_layer_class_that_keras_does_not_know_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="class 'Unregistered' is unknown to Keras. Decorate it"):
        tiny_result(tiny_body(extra=[Unregistered()])).save(tmp_path / "out")


def test_a_model_that_its_configuration_does_not_describe_is_refused(tmp_path):
    scale = Scale(1.0)
    result = tiny_result(tiny_body(extra=[scale]))
    result.save(tmp_path / "whole")
    scale.factor = 2.0
    with pytest.raises(ModelError, match="computes something else: a layer was changed"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


FRESH = """
import sys, json, numpy as np, tunekit
result = tunekit.load(sys.argv[1])
images = np.load(sys.argv[2])
print(json.dumps([each.to_json() for each in result.predict(images)]))
result.save("again")
assert "tensorflow" not in sys.modules
"""


def keras_hub_body():
    from tunekit.models.hub import keras_hub

    keras.utils.set_random_seed(0)
    return keras_hub().models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )


def test_a_keras_hub_backbone_loads_in_a_fresh_process_with_equal_predictions(tmp_path):
    result = tiny_result(keras_hub_body())
    out = result.save(tmp_path / "out")
    np.save(tmp_path / "images.npy", IMAGES)
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, str(out), str(tmp_path / "images.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert fresh.returncode == 0, fresh.stderr
    assert json.loads(fresh.stdout) == [each.to_json() for each in result.predict(IMAGES)]


# damage


def edit_weights(out, edit):
    path = out / "model.safetensors"
    tensors = dict(safetensors.numpy.load_file(path))
    edit(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_a_missing_tensor_is_named_with_the_stranger_beside_it(out):
    edit_weights(out, lambda t: t.update({"backbone/steem/bias": t.pop("backbone/stem/bias")}))
    message = (
        "missing: backbone/stem/bias. Did you mean 'backbone/steem/bias'?\n"
        "  not in the model: backbone/steem/bias"
    )
    with pytest.raises(ModelError) as caught:
        load(out)
    assert message in str(caught.value)


def test_a_tensor_of_another_shape_or_type_is_named(out):
    def edit(tensors):
        tensors["heads/label/logits/bias"] = np.zeros(4, np.float32)
        tensors["backbone/stem/bias"] = tensors["backbone/stem/bias"].astype(np.float16)

    edit_weights(out, edit)
    with pytest.raises(ModelError, match=r"logits/bias: expected shape \(3,\), got \(4,\)"):
        load(out)
    with pytest.raises(ModelError, match="stem/bias: expected float32, got float16"):
        load(out)


def test_a_truncated_weights_file_is_said_to_be_damaged(out):
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        load(out)


@pytest.mark.parametrize("name", ["model.json", "history.json"])
def test_a_damaged_record_is_named(out, name):
    (out / name).write_text('{"half": ')
    with pytest.raises(ModelError, match=f"{name} is damaged"):
        load(out)


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json", "recipe.yaml"])
def test_a_missing_file_is_named(out, name):
    (out / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        load(out)


def test_other_folders_are_told_from_saves(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load(tmp_path / "gone")
    with pytest.raises(ModelError, match="it has no model.json"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ModelError, match="a run that has not ended"):
        load(tmp_path)
    (tmp_path / "model.json").write_text('{"class_name": "Functional"}')
    with pytest.raises(ModelError, match="was not written by Result.save"):
        load(tmp_path)


def edit_json(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_a_save_of_a_newer_format_says_to_upgrade(out):
    edit_json(out / "model.json", lambda d: d.update(format=99))
    with pytest.raises(ModelError, match="upgrade tunekit"):
        load(out)


def test_other_versions_are_warned_of(out):
    edit_json(out / "model.json", lambda d: d["versions"].update(keras="2.1.0"))
    with pytest.warns(UserWarning, match=r"saved with keras 2\.1\.0 \(here 3\."):
        load(out)


def test_plot_writes_a_png(result, tmp_path):
    assert result.plot(tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
