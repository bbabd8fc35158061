"""Texts that share a row equal texts that each have their own: the same loss, the same gradients.

So do micro-batches of unequal numbers of tokens and one batch of all.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import text_folders
from tests.unit.methods import texts
from tunekit.data.packing import Packing
from tunekit.data.sequences import SequenceBatches
from tunekit.errors import ModelError
from tunekit.methods.intercept import intercept
from tunekit.methods.spec import LoRA, PrefixTuning, PromptTuning
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.models.loading import load_model
from tunekit.models.remat import rematerialised
from tunekit.models.sequence_inputs import check_packable
from tunekit.models.trainable import put
from tunekit.names import layer_names
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.training.optimizers import initial_states
from tunekit.training.step import Carried, Step

LENGTHS = (7, 3, 5, 1, 8, 4, 2, 6)
ROW = 12
"""Four rows of twelve tokens hold the eight texts; without packing there are eight rows."""


class Texts:
    """Texts of several lengths; of the first two tokens of each there is no loss."""

    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, index):
        ids = np.random.default_rng(index).integers(4, 99, LENGTHS[index] + 1).astype(np.int32)
        return {"id": f"text {index}", "ids": ids}


def encode(example, rng):
    ids = example["ids"]
    weights = (np.arange(len(ids) - 1) >= 2).astype(np.float32)
    return {"token_ids": ids[:-1], "targets": ids[1:], "loss_weights": weights}


def batch(packing=None):
    size = len(LENGTHS) if packing is None else 4
    batches = SequenceBatches(
        Texts(), encode, batch_size=size, seed=0, shuffle=False, buckets=(8,), pad_id=1,
        packing=packing, workers=0,
    )  # fmt: skip
    (only,) = batches.epoch(0)
    return {name: jnp.asarray(x) for name, x in only.items()}


class Likelihood:
    """What a task of language modelling gives the step."""

    def augment_batch(self, key, batch):
        return batch

    def inputs(self, batch):
        return {name: x for name, x in batch.items() if name not in ("weight", "index")}

    def loss(self, outputs, batch):
        weights = batch["loss_weights"]
        return jnp.sum(outputs * weights), jnp.sum(weights)


@pytest.fixture
def model_of(tmp_path):
    return lambda name: load_model(text_folders.write(name, tmp_path))


# Most of the time of these tests is the compiler's.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def gradients(forward, batch, prefix="", wraps=None):
    """Summed loss and its gradients by name, in training mode."""
    values, task = forward.values(), Likelihood()
    trained = {n: values[n] for n in forward.names("weight") if n.startswith(prefix)}

    def loss(trained, values, batch):
        with intercept(wraps or {}):
            outputs, _ = forward(
                {**values, **trained}, task.inputs(batch), training=True, trainable=()
            )
        return task.loss(outputs, batch)[0]

    value, found = jit(jax.value_and_grad(loss))(trained, values, batch)
    return np.asarray(value), {name: np.asarray(x) for name, x in found.items()}


def assert_equal(packed, single, tolerance=2e-5):
    """Up to the rounding of float32 sums in another order."""
    np.testing.assert_allclose(packed[0], single[0], rtol=tolerance)
    largest = max(np.abs(gradient).max() for gradient in single[1].values())
    assert largest > 0 and packed[1].keys() == single[1].keys()
    for name, gradient in single[1].items():
        scale = max(np.abs(gradient).max(), 1e-2 * largest)
        np.testing.assert_allclose(
            packed[1][name] / scale, gradient / scale, atol=tolerance, err_msg=name
        )


def test_rows_share_texts_and_hold_them_all():
    packed, single = batch(Packing(ROW)), batch()
    assert packed["token_ids"].shape == (4, ROW) and int(packed["documents"].max()) > 2
    assert packed["padding_mask"].sum() == single["padding_mask"].sum() == sum(LENGTHS)
    assert packed["loss_weights"].sum() == single["loss_weights"].sum()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma", "gpt2", "bert-masked-lm"])
def test_packed_equals_unpacked(name, model_of):
    forward = model_of(name).forward()
    assert_equal(gradients(forward, batch(Packing(ROW))), gradients(forward, batch()))


def test_packed_equals_unpacked_under_a_lora_of_all_linears(model_of):
    model = model_of("qwen2")
    put(LoRA(rank=2, targets="linear"), model, seed=1)
    forward = model.forward()
    rng = np.random.default_rng(5)
    for name, variable in forward.variables.items():
        if name.endswith("lora_b"):  # which begins with zeros, and A then has no gradient
            variable.assign(rng.normal(scale=0.1, size=variable.shape))
    packed = gradients(forward, batch(Packing(ROW)), "adapters/")
    assert_equal(packed, gradients(forward, batch(), "adapters/"))


def test_packed_equals_unpacked_where_blocks_are_computed_anew(model_of):
    model = model_of("mistral")
    forward = model.forward()
    wraps = rematerialised(model.keras.get_layer("backbone"), "blocks")
    again = gradients(replace(forward, remat=wraps), batch(Packing(ROW)))
    assert_equal(again, gradients(forward, batch(Packing(ROW))))


def test_text_in_a_packed_row_sees_itself_alone(model_of):
    """Exactly: what stands in other texts of its row changes no bit of its losses."""
    forward, columns = model_of("qwen2").forward(), batch(Packing(ROW))
    first = columns["documents"] == 1
    changed = {**columns, "token_ids": jnp.where(first, columns["token_ids"], 50)}
    losses = jit(lambda batch: forward(forward.values(), batch, training=False)[0])
    one, other = (losses(Likelihood().inputs(each)) for each in (columns, changed))
    np.testing.assert_array_equal(one[first], other[first])
    assert one[first].any() and (one != other).any()


@pytest.mark.parametrize("method", [PromptTuning(length=2), PrefixTuning(length=2)])
def test_learned_positions_and_packing_exclude_each_other(method, model_of):
    model = model_of("llama")
    put(method, model)
    forward = model.forward()
    with pytest.raises(ModelError, match=r"batch.packing: .* 2 learned positions .* LoRA"):
        jax.eval_shape(
            lambda batch: forward(forward.values(), batch, training=True),
            Likelihood().inputs(batch(Packing(ROW))),
        )


@pytest.mark.parametrize("name", sorted(texts.NETWORKS))
def test_networks_of_kerashub_that_can_be_packed(name):
    check_packable(layer_names(texts.NETWORKS[name]()))


@pytest.mark.parametrize(
    ("family", "options", "layer"),
    [
        ("Bloom", {"num_heads": 2}, "BloomDecoder"),
        ("FNet", {}, "FNetEncoder"),
    ],
)
def test_networks_that_cannot_be_packed_are_named(family, options, layer):
    with without_values():
        body = getattr(keras_hub().models, f"{family}Backbone")(
            vocabulary_size=13, num_layers=1, hidden_dim=8, intermediate_dim=12, **options
        )
    with pytest.raises(ModelError, match=rf"a {layer}, cannot .* Set batch.packing: false"):
        check_packable(layer_names(body))


def test_micro_batches_of_unequal_token_counts_equal_one_batch(model_of):
    forward, columns = model_of("mistral").forward(), batch()
    counts = columns["loss_weights"].reshape(4, -1).sum(1)
    assert len({*counts.tolist()}) > 1, "or the test would pass by chance"
    values, optimizer = forward.values(), OptimizerSpec(name="sgd", momentum=0.0, weight_decay=0.0)
    trainable = {name: values.pop(name) for name in forward.names("weight")}

    def after(accumulate):
        step = Step(forward, Likelihood(), optimizer, frozenset(trainable), {}, accumulate)
        states = initial_states(optimizer, trainable)
        carried, measured = jit(step)(
            Carried(trainable, {}, states, {}), values, {}, columns,
            jnp.ones(len(trainable)), jax.random.key(0),
        )  # fmt: skip
        # At a rate of 1 the step is the gradient of the mean over tokens.
        moved = {n: np.asarray(trainable[n] - x) for n, x in carried.trainable.items()}
        return np.asarray(measured.loss), moved

    whole = after(1)
    assert_equal(after(4), whole, tolerance=1e-4)  # of a difference of weights, which rounds
    total, _ = gradients(forward, columns)
    np.testing.assert_allclose(whole[0], total / counts.sum(), rtol=1e-5)
