"""The call: what may be handed to it, what comes back, and what it refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.contract.families import fixed, images, plain_cnn
from tunekit import HeadSpec, Phase, Recipe, RuntimeSpec, finetune, load_model, run
from tunekit.errors import CheckpointError, DataError, ModelError, RecipeError, SelectionError
from tunekit.session import Session

QUICK = {"batch_size": 8, "progress": "none", "epochs": 1}


def network() -> keras.Model:
    return fixed(plain_cnn())


def test_a_keras_model_is_copied_and_stays_as_it_was():
    given = network()
    before = [np.array(v.value) for v in given.variables]
    result = finetune(given, images(), learning_rate=0.1, **QUICK)
    assert result.model.labels == ("blue", "green", "red")
    for value, variable in zip(before, given.variables, strict=True):
        np.testing.assert_array_equal(value, variable.value)
    assert given.output_shape == (None, 8, 8, 16)


def test_metrics_history_and_report_say_what_happened():
    result = finetune(network(), images(), **{**QUICK, "epochs": 2})
    assert set(result.metrics) >= {"accuracy", "loss", "confusion_matrix"}
    assert [row["epoch"] for row in result.history] == [1, 2]
    best = max(row["val_accuracy"] for row in result.history)
    assert result.metrics["accuracy"] == best
    assert result.report["compiles"] == 1
    assert result.report["data"]["validation"]["examples"] == 3


def test_the_final_metrics_are_those_of_the_test_split_where_there_is_one():
    pixels, labels = images(24)
    data = {
        "train": (pixels[:12], labels[:12]),
        "validation": (pixels[12:18], labels[12:18]),
        "test": (pixels[18:], labels[18:]),
    }
    result = finetune(network(), data, **QUICK)
    assert result.metrics == result.evaluate(data["test"])
    assert result.metrics != result.evaluate(data["validation"])


def test_validation_data_is_given_beside_the_training_data():
    pixels, labels = images(24)
    result = finetune(
        network(), (pixels[:12], labels[:12]), validation=(pixels[12:], labels[12:]), **QUICK
    )
    assert result.report["data"]["validation"]["examples"] == 12
    assert result.report["data"]["train"]["examples"] == 12


def test_a_model_given_is_trained_itself_and_goes_on_with_its_head():
    model = load_model(network())
    first = finetune(model, images(), **{**QUICK, "epochs": 3, "learning_rate": 0.03})
    assert first.model is model
    again = finetune(model, images(), **{**QUICK, "learning_rate": 0.001})
    assert again.history[0]["loss"] < first.history[0]["loss"]


def test_labels_that_old_and_new_head_share_keep_their_row():
    model = load_model(network(), labels=["red", "cat", "blue"])
    kernel = np.array(model.variables()["heads/label/logits/kernel"].value)
    plan = [Phase(train="stem", steps=1, learning_rate=1e-3)]
    finetune(model, images(), plan=plan, batch_size=8, progress="none")
    after = np.array(model.variables()["heads/label/logits/kernel"].value)
    np.testing.assert_array_equal(after[:, 2], kernel[:, 0])  # red
    np.testing.assert_array_equal(after[:, 0], kernel[:, 2])  # blue


def test_another_kind_of_head_is_put_on_a_model_that_has_one():
    model = load_model(network(), labels=["red", "green", "blue"])
    finetune(model, images(), head=HeadSpec(kind="mlp", hidden=(6,)), **QUICK)
    assert model.head_spec.hidden == (6,)


def test_a_folder_of_the_run_is_complete(tmp_path):
    finetune(network(), images(), out=tmp_path / "out", **QUICK)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"model.safetensors", "recipe.yaml", "history.csv", "checkpoints"}


def test_the_checkpoints_of_an_unfinished_run_are_not_thrown_away(tmp_path):
    keywords = {**QUICK, "out": tmp_path / "out"}
    finetune(network(), images(), **keywords)
    finetune(network(), images(), **keywords)  # A finished one may be done again.
    (tmp_path / "out" / "model.json").unlink()
    with pytest.raises(CheckpointError, match="a run that has not ended.*resume=True"):
        finetune(network(), images(), **keywords)
    assert any((tmp_path / "out" / "checkpoints").iterdir())


def test_early_stopping_without_validation_data_is_refused():
    message = r"plan\[0\]\.early_stopping: needs validation data"
    with pytest.raises(RecipeError, match=message):
        finetune(network(), images(), validation=0.0, early_stopping=1, **QUICK)


def test_a_recipe_that_leaves_out_model_and_data_says_both():
    recipe = finetune(network(), images(), **QUICK).recipe
    with pytest.raises(RecipeError) as caught:
        run(recipe)
    assert [issue.path for issue in caught.value.issues] == ["backbone.name", "data.path"]


def test_the_first_blocks_alone_are_the_backbone_of_a_loaded_model():
    keywords = {**QUICK, "image_size": 32, "blocks": 2, "train": "head"}
    result = finetune("efficientnet_lite0", images(), **keywords)
    assert sum(group.kind == "block" for group in result.model.groups()) == 2
    assert result.recipe.backbone.blocks == 2


def test_the_blocks_of_a_model_given_cannot_be_left_out():
    model = load_model(network())
    with pytest.raises(ModelError, match="blocks: 1 of a model that is already made"):
        finetune(model, images(), blocks=1, **QUICK)


def test_the_image_size_of_a_model_given_cannot_be_changed():
    model = load_model(network())
    with pytest.raises(ModelError, match=r"expected \(32, 32\).*got \(64, 64\).*load_model"):
        finetune(model, images(), image_size=64, **QUICK)


def test_the_precision_of_a_model_given_cannot_be_changed():
    model = load_model(network())
    with pytest.raises(ModelError, match="expected 'float32'.*got 'bfloat16'"):
        finetune(model, images(), precision="bfloat16", **QUICK)


def test_a_selector_that_matches_nothing_names_its_phase_and_leaves_the_head():
    model = load_model(network(), labels=["cat", "dog"])
    with pytest.raises(SelectionError, match=r"plan\[0\]\.train: 'head/\.\*'.*'heads/\.\*'"):
        finetune(model, images(), train="head/.*", **QUICK)
    assert model.labels == ("cat", "dog")


def test_bad_data_is_said_before_anything_is_built():
    pixels, labels = images()
    with pytest.raises(DataError, match="18 images.*17 labels|images.*labels"):
        finetune(network(), (pixels, labels[:-1]), **QUICK)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_half_precision_trains_with_float32_heads_and_moments(dtype):
    result = finetune(
        network(), images(), precision=dtype, **{**QUICK, "epochs": 6, "learning_rate": 0.02}
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.model.variables()["heads/label/logits/kernel"].dtype == "float32"


def test_a_recipe_in_python_runs_like_the_call():
    recipe = Recipe(plan=(Phase(epochs=1),), runtime=RuntimeSpec(progress="none"))
    result = run(recipe, model=network(), data=images())
    assert isinstance(result.model.keras, keras.Model)


def test_a_folder_that_cannot_take_the_result_is_refused_before_training(tmp_path):
    model = load_model(network(), labels=["cat", "dog"])
    (tmp_path / "mine.txt").write_text("not a save")
    with pytest.raises(ModelError, match="mine.txt.*Name a new or empty folder"):
        finetune(model, images(), out=tmp_path, **QUICK)
    assert model.labels == ("cat", "dog")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_error_after_training_leaves_the_model_trained_with_its_new_head(monkeypatch):
    model = load_model(network(), labels=["cat", "dog"])
    pixels, names = images(24)
    data = {"train": (pixels[:18], names[:18]), "test": (pixels[18:], names[18:])}
    monkeypatch.setattr(Session, "result", lambda self, *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finetune(model, data, validation=0.0, **QUICK)
    assert model.labels == ("blue", "green", "red")
    assert np.isfinite(model.logits(pixels)).all()
