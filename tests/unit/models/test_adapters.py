"""Adapters of a living model: added, switched, stacked, scaled, combined, merged, kept in files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy

from tests.contract import families
from tunekit import finetune
from tunekit.errors import ModelError, SelectionError
from tunekit.methods.spec import LoRA, Plain, VeRA
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.trainable import resolve_trainable

IMAGES = families.images(4)[0]


def broken_after(monkeypatch: pytest.MonkeyPatch, writes: int, error: BaseException) -> None:
    """The next variable but so many that is assigned to raises, once."""
    left = [writes]
    assign = keras.Variable.assign

    def breaks(self, value):
        left[0] -= 1
        if left[0] == -1:
            raise error
        return assign(self, value)

    monkeypatch.setattr(keras.Variable, "assign", breaks)


def every_value(model: Model) -> dict[str, np.ndarray]:
    return {name: np.array(v.value) for name, v in model.variables().items()}


def assert_same(before: dict[str, np.ndarray], model: Model) -> None:
    now = every_value(model)
    assert now.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(now[name], value, err_msg=name)


def drawn(model: Model, name: str, seed: int) -> None:
    """Gives what trains of an adapter random values, as training would."""
    rng = np.random.default_rng(seed)
    for leaf, variable in model.adapters[name].adapter.variables.items():
        if model.adapters[name].adapter.roles[leaf] == "weight":
            variable.assign(variable + 0.2 * rng.normal(size=variable.shape))


@pytest.fixture(scope="module")
def made() -> Model:
    keras.utils.set_random_seed(0)
    return load_model(families.vit(), labels=families.LABELS)


@pytest.fixture
def model(made: Model) -> Iterator[Model]:
    """A ViT with two LoRAs of one shape, "a" and "b", the second active."""
    for seed, name in enumerate(("a", "b")):
        made.add_adapter(name, "lora", seed=seed)
        drawn(made, name, seed)
    yield made
    if made.adapters.merged:
        made.unmerge()
    for name in list(made.adapters.entries):
        made.remove_adapter(name)


def network_alone(model: Model) -> np.ndarray:
    with model.adapters_disabled():
        return model.logits(IMAGES)


def test_the_last_added_acts_alone_and_a_switch_back_is_exact(model):
    of_b = model.logits(IMAGES)
    of_a = model.set_adapter("a").logits(IMAGES)
    assert np.abs(of_a - of_b).max() > 1e-3
    np.testing.assert_array_equal(model.set_adapter("b").logits(IMAGES), of_b)


def test_disabled_within_a_block_only_and_after_an_error_too(model):
    acting = model.adapters.active
    with pytest.raises(RuntimeError), model.adapters_disabled():
        assert model.adapters.active == ()
        raise RuntimeError
    assert model.adapters.active == acting


def test_no_adapter_named_is_the_network_alone(model):
    np.testing.assert_array_equal(model.set_adapter([]).logits(IMAGES), network_alone(model))


def test_a_weight_scales_the_effect_without_another_program(model):
    model.set_adapter("a")
    model.logits(IMAGES)
    programs = model._inference.compiled()
    halved = model.set_adapter({"a": 0.5}).logits(IMAGES)
    adapter = model.adapters["a"].adapter
    whole = {name: np.array(v.value) for name, v in adapter.variables.items() if "lora_b" in name}
    for name, value in whole.items():
        adapter.variables[name].assign(value / 2)
    by_hand = model.set_adapter("a").logits(IMAGES)
    assert model._inference.compiled() == programs
    np.testing.assert_allclose(halved, by_hand, rtol=1e-5, atol=1e-6)


def test_two_stacked_are_their_concatenation_and_their_merge(model):
    stacked = model.set_adapter(["a", "b"]).logits(IMAGES)
    merged = model.merge().logits(IMAGES)
    model.unmerge()
    model.combine_adapters({"a": 1, "b": 1}, "both", "cat")
    # Sums of products in another order.
    np.testing.assert_allclose(model.logits(IMAGES), stacked, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(merged, stacked, rtol=1e-4, atol=1e-5)
    ranks = {part.rank for part in model.adapters["both"].adapter.parts}
    assert ranks == {16}


def test_a_combination_of_full_rank_by_svd_is_exact(model):
    model.combine_adapters({"a": 2.0, "b": -1.0}, "mix", "svd", rank=16)
    by_svd = model.logits(IMAGES)
    stacked = model.set_adapter({"a": 2.0, "b": -1.0}).logits(IMAGES)
    np.testing.assert_allclose(by_svd, stacked, rtol=1e-4, atol=1e-5)


def test_unmerge_gives_back_every_bit(model):
    before = {name: np.array(v.value) for name, v in model.variables().items()}
    apart = model.logits(IMAGES)
    np.testing.assert_allclose(model.merge().logits(IMAGES), apart, rtol=1e-4, atol=1e-5)
    model.unmerge()
    for name, variable in model.variables().items():
        np.testing.assert_array_equal(variable, before[name])
    np.testing.assert_array_equal(model.logits(IMAGES), apart)


def test_each_example_of_a_batch_has_its_own_adapter(model):
    of = {name: model.set_adapter(name).logits(IMAGES) for name in ("a", "b")}
    of[None] = network_alone(model)
    names = ["a", None, "b", "a"]
    mixed = model.logits(IMAGES, adapters=names)
    expected = np.stack([of[name][row] for row, name in enumerate(names)])
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)


def test_heads_go_with_their_adapters(made):
    rng = np.random.default_rng(0)
    made.add_adapter("cats", "ia3")
    kernel = made.variables()["heads/label/logits/kernel"]
    of_cats = rng.normal(size=kernel.shape).astype("float32")
    kernel.assign(of_cats)
    made.add_adapter("dogs", "ia3")
    made.replace_head(["husky", "pug"])
    assert made.set_adapter("cats").labels == families.LABELS
    np.testing.assert_array_equal(made.variables()["heads/label/logits/kernel"], of_cats)
    assert made.set_adapter("dogs").labels == ("husky", "pug")
    with pytest.raises(ModelError, match="'cats' has a head for other labels than the model's"):
        made.logits(IMAGES, adapters=["cats", "dogs", "dogs", "cats"])
    made.set_adapter("cats")
    for name in ("cats", "dogs"):
        made.remove_adapter(name)


def test_mixed_heads_of_the_same_labels_are_each_their_own(model):
    kernel = model.variables()["heads/label/logits/kernel"]
    before = np.array(kernel.value)
    kernel.assign(before * 2)  # The head of "b", which is active.
    of_b = model.logits(IMAGES)
    model.set_adapter("a")
    kernel = model.variables()["heads/label/logits/kernel"]
    kernel.assign(before)
    of_a = model.logits(IMAGES)
    mixed = model.logits(IMAGES, adapters=["b", "a", "b", "a"])
    expected = np.stack([of_b[0], of_a[1], of_b[2], of_a[3]])
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)


def test_an_error_half_way_into_a_merge_or_out_of_it_changes_nothing(model, monkeypatch):
    apart, before = model.logits(IMAGES), every_value(model)
    with monkeypatch.context() as patched:
        broken_after(patched, 2, OSError("no memory"))
        with pytest.raises(OSError, match="no memory"):
            model.merge()
    assert (model.adapters.active, model.adapters.merged) == ((("b", 1.0),), ())
    assert_same(before, model)
    merged = every_value(model.merge())
    with monkeypatch.context() as patched:
        broken_after(patched, 2, OSError("no memory"))
        with pytest.raises(OSError, match="no memory"):
            model.unmerge()
    assert model.adapters.merged == (("b", 1.0),)
    assert_same(merged, model)
    np.testing.assert_array_equal(model.unmerge().logits(IMAGES), apart)


def test_interrupted_a_merge_or_unmerge_is_first_done_whole(model, monkeypatch):
    before = every_value(model)
    merged = every_value(model.merge())
    model.unmerge()
    for action, expected in ((model.merge, merged), (model.unmerge, before)):
        with monkeypatch.context() as patched:
            broken_after(patched, 2, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                action()
        assert_same(expected, model)
    assert (model.adapters.active, model.adapters.merged) == ((("b", 1.0),), ())


@pytest.mark.parametrize("labels", [families.LABELS, ("husky", "pug")])
def test_a_head_that_cannot_be_put_leaves_the_model_the_one_it_has(model, monkeypatch, labels):
    model.add_adapter("c", "ia3").replace_head(labels)
    model.set_adapter("b")
    own, before = (model.labels, model.adapters), every_value(model)
    broken_after(monkeypatch, 1, OSError("no memory"))
    with pytest.raises(OSError, match="no memory"):
        model.set_adapter("c")
    assert (model.labels, model.adapters) == own
    assert_same(before, model)


def test_interrupted_a_switch_puts_the_whole_head_of_its_adapter(model, monkeypatch):
    model.set_adapter("a").replace_head(families.LABELS, keep=False, seed=5)
    of_a = every_value(model)
    model.set_adapter("b").replace_head(families.LABELS, keep=False, seed=6)
    broken_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        model.set_adapter("a")
    assert model.adapters.active == (("a", 1.0),)
    assert_same(of_a, model)


def test_a_head_that_does_not_fit_its_labels_is_refused_and_nothing_changes(model, tmp_path):
    model.add_adapter("c", "pfeiffer")
    file = model.save_adapter(tmp_path / "c") / "tunekit.safetensors"
    tensors = dict(safetensors.numpy.load_file(file))
    tensors["heads/label/logits/bias"] = np.zeros(7, np.float32)
    tensors["heads/label/logit/kernel"] = tensors.pop("heads/label/logits/kernel")
    safetensors.numpy.save_file(tensors, file)
    adapters, before = model.adapters, every_value(model)
    with pytest.raises(ModelError, match="head does not fit its labels") as caught:
        model.load_adapter(tmp_path / "c", "d")
    assert "missing: heads/label/logits/kernel. Did you mean" in str(caught.value)
    assert "logits/bias: expected shape (3,), got (7,)" in str(caught.value)
    assert model.adapters is adapters
    assert_same(before, model)


def test_adapters_of_one_head_share_it_in_a_mixed_batch(model, monkeypatch):
    stacked = []
    run = type(model._inference).each_its_own

    def watched(self, *args):
        stacked.append(args[4])
        return run(self, *args)

    monkeypatch.setattr(type(model._inference), "each_its_own", watched)
    model.logits(IMAGES, adapters=["a", None, "b", "a"])
    model.set_adapter("a").replace_head(families.LABELS, keep=False, seed=5)
    model.logits(IMAGES, adapters=["a", None, "b", "a"])
    assert [len(heads) for heads in stacked] == [0, 2]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda m: m.add_adapter("a", "lora"), "has an adapter 'a' already; choose another name"),
        (lambda m: m.add_adapter("x/y", "lora"), "expected a name without '/'"),
        (lambda m: m.add_adapter("c", "lorra"), "'lorra' is no method .* Did you mean 'lora'"),
        (lambda m: m.add_adapter("c", "full"), "expected an adapter such as LoRA"),
        (lambda m: m.add_adapter("c", LoRA(rank_spread=2)), "rank_spread: ranks are spread by"),
        (lambda m: m.add_adapter("c", LoRA(rank_pattern={"keyy": 2})), "'keyy' matches no adapted"),
        (lambda m: m.add_adapter("c", "eva"), "begins with directions of the data"),
        (lambda m: m.add_adapter("c", LoRA(init="loftq")), "begins with what quantisation takes"),
        (lambda m: m.set_adapter("bb"), "no adapter 'bb'; it has 'a', 'b'. Did you mean 'b'"),
        (lambda m: m.set_adapter(["a", "a"]), "'a' is named twice"),
        (lambda m: m.set_adapter({"a": "much"}), "expected a number as weight, got 'much'"),
        (lambda m: m.remove_adapter("z"), "no adapter 'z'"),
        (
            lambda m: m.logits(IMAGES, adapters=["a"]),
            "expected a name for each of 4 examples, got 1",
        ),
        (lambda m: m.logits(IMAGES, adapters=[None] * 4), "all are None"),
        (lambda m: m.unmerge(), "nothing is merged"),
        (lambda m: m.set_adapter([]).merge(), "no adapter is active"),
        (lambda m: m.set_adapter(["a", "b"]).save_adapter("x"), "name the adapter to save: 2 are"),
        (lambda m: m.load_adapter("/nowhere/at/all"), "is no folder"),
        (lambda m: m.merge().set_adapter("a"), "'b' is merged into the network; unmerge"),
        (lambda m: m.merge().add_adapter("c", "lora"), "'b' is merged into the network; unmerge"),
        (lambda m: m.merge().remove_adapter("b"), "'b' is merged into the network; unmerge"),
        (lambda m: m.merge().merge(), "'b' is merged into the network; unmerge"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(model, action, message):
    before = {name: np.array(v.value) for name, v in model.variables().items()}
    with pytest.raises(ModelError, match=message):
        action(model)
    if model.adapters.merged:
        model.unmerge()
    assert list(model.adapters.entries) == ["a", "b"]
    for name, variable in model.variables().items():
        np.testing.assert_array_equal(variable, before[name])


def test_targets_that_name_no_layer_are_an_error_with_a_hint(made):
    with pytest.raises(SelectionError, match="'qery' names no layer .* Did you mean 'query'"):
        made.add_adapter("c", LoRA(targets="qery"))
    assert not made.adapters.entries


def test_combining_what_is_no_plain_lora_is_refused(model):
    model.add_adapter("c", "dora")
    with pytest.raises(ModelError, match="adapter 'c' is no plain LoRA"):
        model.combine_adapters(["a", "c"], "d")


@pytest.mark.parametrize("spec", ["dora", "visual_prompt"])
def test_a_weight_that_means_nothing_is_refused(model, spec):
    model.add_adapter("c", spec)
    with pytest.raises(ModelError, match=f"of method '{spec}' acts whole or not at all"):
        model.set_adapter({"c": 0.5})
    assert model.adapters.active == (("c", 1.0),)


def test_adapters_of_other_shapes_do_not_share_a_batch(model):
    model.add_adapter("c", LoRA(rank=2))
    with pytest.raises(ModelError, match="'a' and 'c' differ in method, rank or layers"):
        model.logits(IMAGES, adapters=["a", "c", "a", "c"])


def test_a_bottleneck_neither_merges_nor_harms_the_network(made):
    made.add_adapter("c", "pfeiffer")
    before = {name: np.array(v.value) for name, v in made.variables().items()}
    with pytest.raises(ModelError, match="cannot be merged|no form|Keep the adapter"):
        made.merge()
    for name, variable in made.variables().items():
        np.testing.assert_array_equal(variable, before[name])
    made.remove_adapter("c")


def test_what_adapters_add_belongs_to_the_blocks_that_they_sit_on(model):
    groups = {group.name: group for group in model.groups()}
    own = [name for name in groups["blocks[1]"].weights if name.startswith("adapters/b/")]
    assert len(own) == 4
    assert all("transformer_block_2" in name for name in own)
    assert resolve_trainable("last 1", model, LoRA()) == frozenset(own)
    assert resolve_trainable("all", model, Plain("norm")).isdisjoint(own)


def test_what_vera_adds_belongs_to_the_layers_of_its_targets(made, tmp_path):
    made.add_adapter("c", VeRA(rank=4, targets="query"))
    own = {
        group.name: [n for n in group.weights if n.startswith("adapters/")]
        for group in made.groups()
    }
    (part,) = made.adapters["c"].adapter.parts
    assert len(part.layers) == 2 and all(layer.endswith("query") for layer in part.layers)
    for block, layer in zip(("blocks[0]", "blocks[1]"), part.layers, strict=True):
        expected = [f"adapters/c/shared/{layer}/lambda_{x}" for x in "db"]
        assert own.pop(block) == expected
    assert not any(own.values())
    assert made.groups()[0].variables[-3:] == tuple(
        f"adapters/c/shared/{leaf}" for leaf in ("vera_a", "vera_b", "scaling")
    )
    made.remove_adapter("c")


def test_a_selection_that_the_method_cannot_train_is_told(model):
    with pytest.raises(SelectionError, match="method 'lora' trains none of them"):
        resolve_trainable("stem", model, LoRA())


def test_a_folder_of_another_network_is_refused_and_nothing_changes(model, tmp_path):
    model.save_adapter(tmp_path / "b")
    keras.utils.set_random_seed(1)
    other = load_model(families.vit(), labels=families.LABELS)
    with pytest.raises(ModelError, match="the weights of this model, .* are others: they differ"):
        other.load_adapter(tmp_path / "b")
    assert not other.adapters.entries
    other.load_adapter(tmp_path / "b", "c", check_base=False)
    assert other.adapters.active == (("c", 1.0),)


@pytest.mark.parametrize("spec", ["lora", "pfeiffer"])
def test_a_damaged_folder_names_what_is_wrong(made, tmp_path, spec):
    made.add_adapter("c", spec)
    folder = made.save_adapter(tmp_path / "c")
    file = "adapter_model.safetensors" if spec == "lora" else "tunekit.safetensors"
    tensors = safetensors.numpy.load_file(folder / file)
    dropped = next(name for name in tensors if "heads" not in name and "classifier" not in name)
    kept = {name: value for name, value in tensors.items() if name != dropped}
    safetensors.numpy.save_file(kept, folder / file)
    made.remove_adapter("c")
    with pytest.raises(ModelError, match="missing"):
        made.load_adapter(folder)
    assert not made.adapters.entries
    (folder / file).unlink()
    with pytest.raises(ModelError, match="lacks|missing"):
        made.load_adapter(folder)


def test_a_failed_save_leaves_the_earlier_one(model, tmp_path, monkeypatch):
    folder = model.save_adapter(tmp_path / "b")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    drawn(model, "b", 7)

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        model.save_adapter(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_folder_of_other_things_is_not_written_to(model, tmp_path):
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(ModelError, match="holds other files"):
        model.save_adapter(tmp_path)


def test_a_folder_keeps_the_recipe_and_the_labels(model, tmp_path):
    folder = model.save_adapter(tmp_path / "b", recipe={"seed": 3})
    own = json.loads((Path(folder) / "tunekit.json").read_text())
    assert own["recipe"] == {"seed": 3}
    assert own["head"]["labels"] == list(families.LABELS)
    assert own["spec"]["name"] == "lora"


def test_an_adapter_read_back_goes_on_training_what_it_was(model, tmp_path):
    of_b = model.logits(IMAGES)
    model.save_adapter(tmp_path / "kept")
    model.load_adapter(tmp_path / "kept")
    assert model.adapters["kept"].adapter.spec == model.adapters["b"].adapter.spec
    assert model.adapters["kept"].adapter.parts == model.adapters["b"].adapter.parts
    np.testing.assert_array_equal(model.logits(IMAGES), of_b)


def test_tuning_again_with_another_method_leaves_the_first_its_head(made):
    rng = np.random.default_rng(0)
    options = {"epochs": 1, "batch_size": 4, "validation": 0.0, "progress": "none", "cache": "off"}
    finetune(made, families.images(8), method="ia3", **options)
    of_ia3, labels = made.logits(IMAGES), made.labels
    others = (families.images(8)[0], [("cat", "dog")[i] for i in rng.permutation([0, 1] * 4)])
    finetune(made, others, method=LoRA(rank=2), **options)
    assert made.labels == ("cat", "dog")
    assert made.adapters.active == (("lora", 1.0),)
    made.set_adapter("ia3")
    assert made.labels == labels
    np.testing.assert_array_equal(made.logits(IMAGES), of_ia3)
