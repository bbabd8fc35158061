"""`tunekit.probe` from model and data to table, plan and picture."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import tunekit
from tunekit.cli import main
from tunekit.data.source import open_data
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError, ModelError, RecipeError
from tunekit.recipe import Recipe

SIDE_PX = 16
LABELS = ("blue", "green", "red")


def images(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Noise, one channel bright: the label."""
    rng = np.random.default_rng(seed)
    channel = np.arange(count) % 3
    pixels = rng.integers(0, 150, (count, SIDE_PX, SIDE_PX, 3))
    pixels[np.arange(count), :, :, channel] += 60
    return pixels.astype(np.uint8), [("red", "green", "blue")[c] for c in channel]


def network(*, blind: bool = False) -> keras.Model:
    """A stem and two residual blocks; `blind`: its last layer sees a single channel of them."""
    layers = keras.layers
    rng = np.random.default_rng(0)
    inputs = keras.Input((SIDE_PX, SIDE_PX, 3))
    x = layers.Rescaling(1 / 255, name="scale")(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="conv")(x)
    for i in range(2):
        y = layers.Conv2D(6, 3, padding="same", name=f"block{i}_conv")(x)
        y = layers.BatchNormalization(name=f"block{i}_norm")(y)
        x = layers.Add(name=f"block{i}_add")([x, layers.ReLU(name=f"block{i}_relu")(y)])
    x = layers.Conv2D(4, 1, name="last")(x)
    model = keras.Model(inputs, x)
    for variable in model.trainable_variables:
        if variable.name == "kernel":
            variable.assign(rng.normal(size=variable.shape) * 0.4)
    if blind:
        kernel = np.zeros((1, 1, 6, 4))
        kernel[0, 0, 0] = 1
        model.get_layer("last").kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def found():
    return tunekit.probe(network(), images(90), batch_size=8)


def test_every_depth_has_its_accuracy_and_gradient_in_order(found):
    names = [depth.name for depth in found.evidence.depths]
    assert names == ["stem", "blocks[0]", "blocks[1]", "top"]
    assert [depth.parameters for depth in found.evidence.depths] == [168, 342, 342, 28]
    assert [depth.width for depth in found.evidence.depths] == [6, 6, 6, 4]
    assert max(depth.accuracy for depth in found.evidence.depths) > 0.9
    assert all(depth.snr >= 0 and depth.standard_error >= 0 for depth in found.evidence.depths)


def test_examples_are_those_that_finetune_would_hold_out(found):
    splits = open_data(images(90), DataSpec(), seed=0)
    assert splits.validation is not None
    counted = (found.evidence.train_examples, found.evidence.validation_examples)
    assert counted == (len(splits.train), len(splits.validation)) == (72, 18)
    assert (found.evidence.batch_size, found.evidence.majority) == (8, pytest.approx(1 / 3))


def test_the_table_shows_each_depth_with_its_standard_error(found):
    header, *rows = found.table().splitlines()
    assert header.split()[:3] == ["depth", "parameters", "accuracy"]
    for row, depth in zip(rows, found.evidence.depths, strict=True):
        assert row.startswith(depth.name)
        assert f"{depth.accuracy:.3f} ± {depth.standard_error:.3f}" in row


def test_a_blind_last_layer_trains_and_what_is_before_it_rests():
    found = tunekit.probe(network(blind=True), images(90), batch_size=8)
    by_name = {depth.name: depth for depth in found.evidence.depths}
    assert by_name["blocks[1]"].accuracy > by_name["top"].accuracy + by_name["top"].standard_error
    assert [phase.train for phase in found.recipe.plan] == [("head",), ("head", "top")]
    assert "What comes after blocks[1] has specialised" in " ".join(found.reasons)


def test_the_plan_is_yaml_that_reads_back_with_its_reasons_as_comments(found, tmp_path):
    text = found.to_yaml()
    comments = " ".join(
        line.lstrip("# -") for line in text.splitlines() if line.startswith("#")
    ).lower()
    assert all(reason.lower() in " ".join(comments.split()) for reason in found.reasons)
    (tmp_path / "plan.yaml").write_text(text)
    assert Recipe.load(tmp_path / "plan.yaml") == found.recipe
    assert "learning_rate: 0.001" in text and "name: in memory" in text


def test_the_drafted_plan_runs(found):
    short = found.recipe.model_copy(
        update={"plan": tuple(tunekit.Phase(train=p.train, steps=1) for p in found.recipe.plan)}
    )
    result = tunekit.run(short, model=network(), data=images(90))
    assert result.model.labels == LABELS


def test_a_model_given_is_not_changed():
    model = tunekit.load_model(network(), labels=["x", "y"])
    before = {name: np.array(v.value) for name, v in model.variables().items()}
    tunekit.probe(model, images(30), batch_size=8)
    assert model.labels == ("x", "y")
    after = model.variables()
    assert all(np.array_equal(value, after[name].value) for name, value in before.items())


def test_saving_writes_plan_picture_and_numbers(found, tmp_path):
    out = found.save(tmp_path / "new" / "probe")
    assert sorted(path.name for path in out.iterdir()) == ["plan.yaml", "probe.json", "probe.png"]
    numbers = json.loads((out / "probe.json").read_text())
    assert numbers["depths"][1]["accuracy"] == found.evidence.depths[1].accuracy
    assert numbers["reasons"] == list(found.reasons)


def test_no_more_examples_are_read_than_asked_for():
    found = tunekit.probe(network(), images(90), max_examples=30, batch_size=8)
    assert (found.evidence.train_examples, found.evidence.validation_examples) == (24, 6)
    assert found.recipe.data.max_examples is None


def test_mistakes_are_refused_with_the_next_move():
    data = images(30)
    with pytest.raises(DataError, match=r"max_examples: expected at least 1.*got 0"):
        tunekit.probe(network(), data, max_examples=0)
    with pytest.raises(DataError, match="expected at least 2 examples .*got 0"):
        tunekit.probe(network(), data, validation=0.0)
    several = [["red", "blue"] if i % 2 else ["green"] for i in range(30)]
    with pytest.raises(DataError, match="expects one label an image, and these have several"):
        tunekit.probe(network(), (data[0], several))
    with pytest.raises(RecipeError, match="batch_size"):
        tunekit.probe(network(), data, batch_size=0)
    with pytest.raises(ModelError, match="image_size: expected"):
        tunekit.probe(tunekit.load_model(network()), data, image_size=64)


def test_the_command_needs_a_model_and_data(capsys):
    with pytest.raises(SystemExit):
        main(["probe", "efficientnet_lite0"])
    assert "data" in capsys.readouterr().err
