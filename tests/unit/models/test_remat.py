"""Less is kept for the backward pass; losses, gradients and statistics are the same."""

from __future__ import annotations

from contextlib import ExitStack

import jax
import jax.export
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from tunekit.errors import ModelError
from tunekit.methods.attach import attach
from tunekit.methods.intercept import intercept
from tunekit.methods.part import Places
from tunekit.methods.spec import LoRA
from tunekit.models.forward import Forward
from tunekit.models.layer_roles import layer_roles
from tunekit.models.remat import rematerialised
from tunekit.names import layer_names
from tunekit.platforms import tracing_for

RNG = np.random.default_rng(0)


def resnet() -> tuple[keras.Model, object]:
    import keras_hub

    body = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2], stackwise_num_strides=[1, 2], block_type="basic_block",
        image_shape=(16, 16, 3),
    )  # fmt: skip
    return body, RNG.normal(size=(4, 16, 16, 3)).astype(np.float32)


def vit() -> tuple[keras.Model, object]:
    import keras_hub

    body = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=4, num_layers=3, num_heads=2, hidden_dim=16,
        mlp_dim=32, dropout_rate=0.3,
    )  # fmt: skip
    return body, RNG.normal(size=(4, 16, 16, 3)).astype(np.float32)


def llama() -> tuple[keras.Model, object]:
    import keras_hub

    body = keras_hub.models.LlamaBackbone(
        vocabulary_size=20, num_layers=3, num_query_heads=4, num_key_value_heads=2, hidden_dim=16,
        intermediate_dim=32, dropout=0.3,
    )  # fmt: skip
    return body, {"token_ids": RNG.integers(1, 20, (4, 8)), "padding_mask": np.ones((4, 8), int)}


def program(forward: Forward, body: keras.Model, inputs: object, mode: str):
    """The loss, its gradients and the updates of one training pass."""
    weights = forward.names("weight")
    wraps = rematerialised(body, mode)

    def loss(trained, rest):
        with ExitStack() as stack:
            # As `Forward` itself installs it: inside its scope, round all it intercepts.
            stack.enter_context(intercept({body: _late(wraps, body)}))
            outputs, updates = forward(
                {**rest, **trained}, inputs, training=True, trainable=weights
            )
        leaves = [jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(outputs)]
        return sum(leaves), updates

    def run(values):
        trained = {name: values[name] for name in weights}
        rest = {name: value for name, value in values.items() if name not in trained}
        return jax.value_and_grad(loss, has_aux=True)(trained, rest)

    return jax.jit(run)


def _late(wraps: dict, body: keras.Model):
    """Installs the interceptions when `body` runs, round those of the forward pass."""
    inside = {layer: wrap for layer, wrap in wraps.items() if layer is not body}

    def wrap(call):
        own = wraps.get(body, lambda call: call)

        def late(*args, **kwargs):
            with intercept(inside):
                return own(call)(*args, **kwargs)

        return late

    return wrap


def assert_same(ours, theirs) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(1.0, float(np.abs(right).max()))
        np.testing.assert_allclose(left / scale, right / scale, atol=2e-5)


@pytest.mark.parametrize("mode", ["blocks", "full"])
@pytest.mark.parametrize("build", [resnet, vit, llama])
def test_losses_gradients_and_updates_are_those_without(build, mode):
    body, inputs = build()
    forward = Forward.of(body)
    values = forward.values()
    seeds = forward.names("seed")
    assert_same(
        program(forward, body, inputs, mode)(values), program(forward, body, inputs, "none")(values)
    )
    (_, updates), _ = program(forward, body, inputs, mode)(values)
    moved = [name for name in updates if not np.array_equal(updates[name], values[name])]
    assert set(seeds) <= set(moved)  # dropout draws
    assert any("moving_mean" in name for name in moved) == (build is resnet)


@pytest.mark.parametrize("build", [resnet, vit, llama])
def test_on_an_accelerator_every_block_is_a_checkpoint_of_jax(build, monkeypatch):
    body, inputs = build()
    forward = Forward.of(body)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    counts = {}
    for mode in ("none", "blocks", "full"):
        traced = jax.make_jaxpr(program(forward, body, inputs, mode))(forward.values())
        counts[mode] = str(traced).count("remat2[")
    assert counts["none"] == 0
    assert counts["blocks"] >= (4 if build is resnet else 3)
    assert counts["full"] > counts["blocks"]


def test_the_gradients_of_an_adapter_inside_a_block_are_those_without():
    body, inputs = llama()
    roles = layer_roles(body)
    targets = tuple(name for name, role in roles.items() if role in ("query", "mlp_down"))
    adapter = attach(LoRA(targets="query", rank=2), Places(layer_names(body), targets, roles, ()))
    forward = Forward.of(body, adapters={"adapters/a": adapter})
    values = {
        name: value + 0.1 * jax.random.normal(jax.random.key(len(name)), value.shape)
        if "lora_" in name
        else value
        for name, value in forward.values().items()
    }
    ours, theirs = (program(forward, body, inputs, mode)(values) for mode in ("blocks", "none"))
    assert_same(ours, theirs)
    assert all(np.abs(g).max() > 0 for name, g in ours[1].items() if "lora_" in name)


def test_what_is_kept_between_passes_takes_less_memory():
    import keras_hub

    body = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=2, num_layers=8, num_heads=2, hidden_dim=32, mlp_dim=128
    )
    images = RNG.normal(size=(8, 32, 32, 3)).astype(np.float32)
    forward = Forward.of(body)
    temp = {}
    for mode in ("none", "blocks"):
        compiled = program(forward, body, images, mode).lower(forward.values()).compile()
        temp[mode] = compiled.memory_analysis().temp_size_in_bytes
    assert temp["blocks"] < 0.6 * temp["none"]


def test_an_error_inside_a_block_leaves_the_graph_as_it_was():
    body, _ = resnet()
    with (
        keras.StatelessScope(),
        intercept(rematerialised(body, "blocks")),
        pytest.raises(ValueError),
    ):
        body(np.zeros((2, 16, 16, 5), np.float32))
    assert "_run_through_graph" not in vars(body)
    assert "call" not in vars(body)


def lowered_for_tpu(mode: str) -> str:
    """The gradient of a vision transformer's training pass as it would run on a TPU."""
    body, inputs = vit()
    forward = Forward.of(body)
    with tracing_for("tpu"):
        run = program(forward, body, inputs, mode)
        exported = jax.export.export(run, platforms=["tpu"])(forward.values())
    return exported.mlir_module()


def test_on_a_tpu_products_with_weights_are_kept_and_those_of_attention_are_not():
    count = {
        mode: lowered_for_tpu(mode).count("dot_general") for mode in ("none", "dots", "blocks")
    }
    # Of each of 3 blocks: query, key, value, output and two of the MLP once more, or none of them;
    # attention's two in both.
    assert count["none"] < count["dots"] < count["blocks"]
    assert count["blocks"] - count["dots"] >= 3 * 4


def test_on_a_tpu_what_lies_between_blocks_waits_in_the_hosts_memory():
    text = lowered_for_tpu("offload")
    assert text.count("pinned_host") >= 3
    assert "pinned_host" not in lowered_for_tpu("blocks")


@pytest.mark.parametrize("mode", ["dots", "offload"])
def test_what_a_cpu_cannot_do_is_refused_where_it_is_asked_to(mode):
    body, inputs = vit()
    forward = Forward.of(body)
    with pytest.raises(ModelError, match=f"runtime.remat: '{mode}' is of no use on a CPU"):
        jax.eval_shape(program(forward, body, inputs, mode), forward.values())
