"""Losses by chunks of the tokens that count: those of whole logits, and nothing of the rest."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import text_folders
from tunekit.methods.spec import LoRA
from tunekit.models import language_loss
from tunekit.models.language_loss import chunk_tokens, token_losses
from tunekit.models.loading import load_model
from tunekit.models.trainable import put

B, T, D, V = 3, 7, 8, 99
IDS = np.random.default_rng(0).integers(1, V, (B, T)).astype(np.int32)
TARGETS = np.random.default_rng(1).integers(1, V, (B, T)).astype(np.int32)
MASK = (np.arange(T) < np.array([[7], [5], [3]])).astype(np.int32)
WEIGHTS = (MASK * [[0, 0, 1, 1, 1, 1, 1]] * [[1], [0.5], [1]]).astype(np.float32)
"""Prompts of two tokens, then responses; the second text counts half; 5 + 3 + 1 of 21 tokens."""


def columns(**changes):
    inputs = {"token_ids": IDS, "padding_mask": MASK, "targets": TARGETS, "loss_weights": WEIGHTS}
    return {**inputs, **changes}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """From a name of `text_folders` to the model of it, with its language head."""

    @functools.cache
    def load(name, **options):
        folder = text_folders.write(name, tmp_path_factory.mktemp(name))
        return load_model(folder, **options)

    return load


@pytest.fixture(scope="module")
def forward_of(model_of):
    """From such a name to the one pass of that model, whose programs are compiled once."""
    return functools.cache(lambda name, **options: model_of(name, **options).forward())


@pytest.fixture
def small_chunks(monkeypatch):
    """Four tokens a chunk: three chunks with tokens that count, three without."""
    monkeypatch.setattr(language_loss, "CPU_LOGIT_BYTES", 4 * 4 * V)
    assert chunk_tokens(B * T, V) == 4


def whole(forward):
    """The loss by logits, as the equations have it."""

    def loss(trained, values, inputs):
        graph = {name: inputs[name] for name in ("token_ids", "padding_mask")}
        logits, _ = forward({**values, **trained}, graph, training=False)
        log_p = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_p, inputs["targets"][..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * inputs["loss_weights"])

    return loss


def chunked(forward):
    """The loss as a task of language modelling has it."""

    def loss(trained, values, inputs):
        losses, _ = forward({**values, **trained}, inputs, training=False)
        return jnp.sum(losses * inputs["loss_weights"])

    return loss


@functools.cache
def _program(kind, forward):
    # Most of the time of these tests is the compiler's.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(kind(forward)), compiler_options=options)


def evaluated(kind, forward, *inputs, prefix=""):
    """Loss and gradients by name, for each of the inputs."""
    values = forward.values()
    trained = {n: values[n] for n in forward.names("weight") if n.startswith(prefix)}
    program = _program(kind, forward)
    every = [program(trained, values, each) for each in inputs]
    found = [(np.asarray(x), {n: np.asarray(g) for n, g in more.items()}) for x, more in every]
    return found if len(found) > 1 else found[0]


def assert_close(one, other, tolerance):
    assert one[1].keys() == other[1].keys()
    np.testing.assert_allclose(one[0], other[0], rtol=tolerance)
    largest = max(np.abs(gradient).max() for gradient in other[1].values())
    for name, gradient in other[1].items():
        # A bias of keys has no gradient but rounding: softmax takes no notice of it.
        scale = max(np.abs(gradient).max(), 1e-2 * largest)
        np.testing.assert_allclose(
            one[1][name] / scale, gradient / scale, atol=tolerance, err_msg=name
        )


def assert_equal(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    for name, gradient in other[1].items():
        np.testing.assert_array_equal(one[1][name], gradient, err_msg=name)


@pytest.mark.parametrize("chunk", [1, 4, 5, 21, 30])
def test_losses_and_gradients_of_a_kernel_are_those_of_softmax(chunk):
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    kernel = rng.normal(size=(D, V)).astype(np.float32)

    targets, weights = jnp.asarray(TARGETS), jnp.asarray(WEIGHTS)

    def loss(hidden, kernel):
        losses = token_losses(lambda x: x @ kernel, hidden, targets, weights, chunk)
        return jnp.sum(losses * WEIGHTS), losses

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, losses), (to_hidden, to_kernel) = gradient(hidden, kernel)
    # In float64: p = softmax(h K); the loss is -log p[target], its gradient p - onehot.
    logits = np.asarray(hidden, np.float64) @ kernel
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, TARGETS[..., None], -1))[..., 0]
    np.testing.assert_allclose(losses, np.where(WEIGHTS, expected, 0), rtol=1e-5)
    change = (p - np.eye(V)[TARGETS]) * WEIGHTS[..., None]
    np.testing.assert_allclose(to_hidden, change @ kernel.T, atol=2e-5)
    np.testing.assert_allclose(to_kernel, np.einsum("btd,btv->dv", hidden, change), atol=2e-5)
    assert not np.asarray(to_hidden)[WEIGHTS == 0].any()


def test_chunks_without_tokens_that_count_are_passed_over():
    seen = []

    def head(rows):
        jax.debug.callback(lambda x: seen.append(x), rows[0, 0, 0])
        return rows

    def losses(weights):
        seen.clear()
        targets, hidden = jnp.asarray(TARGETS), jnp.ones((B, T, V))
        found = token_losses(head, hidden, targets, jnp.asarray(weights), 4)
        jax.block_until_ready(found)
        jax.effects_barrier()
        return found

    assert losses(WEIGHTS).shape == (B, T) and len(seen) == 3
    assert not losses(0 * WEIGHTS).any() and not seen
    losses(WEIGHTS + 1)
    assert len(seen) == 6


def test_chunks_are_equal_and_within_the_memory(monkeypatch):
    monkeypatch.setattr(language_loss, "CPU_LOGIT_BYTES", 1000 * 4)
    assert chunk_tokens(tokens=100, vocabulary=100) == 10
    assert chunk_tokens(tokens=21, vocabulary=100) == 7, "not 10, 10 and a rest of 1"
    assert chunk_tokens(tokens=3, vocabulary=100) == 3
    assert chunk_tokens(tokens=3, vocabulary=5000) == 1


# A head of its own; and that of a masked language model, on an embedding that trains as well.
@pytest.mark.parametrize("name", ["mistral", "bert-masked-lm"])
def test_chunks_equal_whole_logits_with_every_gradient(name, forward_of, small_chunks):
    forward = forward_of(name)
    parts = evaluated(chunked, forward, columns())
    expected = evaluated(whole, forward, columns())
    # Float32 sums over tokens in another order.
    assert_close(parts, expected, 2e-5)
    assert all(np.abs(expected[1][n]).any() for n in expected[1] if "token_embedding" in n)


def test_chunks_equal_whole_logits_with_an_adapter_on_the_head(model_of, small_chunks):
    model = model_of("llama-untied")
    put(LoRA(rank=2, targets=("heads/lm_head", "query")), model, seed=1)
    forward = model.forward()
    rng = np.random.default_rng(5)
    for each, variable in forward.variables.items():
        if each.endswith("lora_b"):  # which begins with zeros, and A then has no gradient
            variable.assign(rng.normal(size=variable.shape))
    expected = evaluated(whole, forward, columns(), prefix="adapters/")
    assert_close(evaluated(chunked, forward, columns(), prefix="adapters/"), expected, 2e-5)
    assert any("heads/lm_head" in name for name in expected[1])
    assert all(gradient.any() for gradient in expected[1].values())


def test_chunks_equal_whole_logits_in_bfloat16(forward_of, small_chunks):
    forward = forward_of("llama", dtype="bfloat16")
    parts = evaluated(chunked, forward, columns())
    # 8 bits of mantissa: 2^-8 of the largest, in sums over chunks that are rounded each.
    assert_close(
        (parts[0], {n: x.astype(np.float32) for n, x in parts[1].items()}),
        evaluated(whole, forward, columns()),
        2**-6,
    )


def test_targets_without_weight_have_exactly_no_influence(forward_of, small_chunks):
    forward = forward_of("mistral")
    others = np.where(WEIGHTS > 0, TARGETS, (TARGETS + 17) % V)
    ignored = np.where(WEIGHTS > 0, TARGETS, -100)
    inputs = columns(), columns(targets=others), columns(targets=ignored)
    expected, *same = evaluated(chunked, forward, *inputs)
    for each in same:
        assert_equal(each, expected)


@pytest.mark.parametrize("name", ["mistral", "bert-masked-lm"])
def test_what_stands_in_padding_has_exactly_no_influence(name, forward_of, small_chunks):
    forward = forward_of(name)
    others = np.where(MASK > 0, IDS, (IDS + 17) % V)
    expected, same = evaluated(chunked, forward, columns(), columns(token_ids=others))
    assert_equal(same, expected)
    # Of embeddings, only the rows of tokens that are no padding have a gradient.
    (table,) = (x for n, x in expected[1].items() if n.endswith("token_embedding/embeddings"))
    if name == "mistral":  # whose head is not tied
        assert {*np.flatnonzero(table.any(1))} <= {*IDS[MASK > 0]}


def test_no_array_of_a_training_step_holds_all_logits(forward_of, small_chunks):
    forward = forward_of("mistral")
    values = forward.values()

    def shapes(kind):
        jaxpr = jax.make_jaxpr(jax.value_and_grad(kind(forward)))(values, values, columns())
        return {shape for shape in _shapes(jaxpr.jaxpr) if shape[-1:] == (V,)}

    assert (B, T, V) in shapes(whole)
    # A chunk's logits; and the head's kernel, which is 32 by V.
    assert {math.prod(shape) for shape in shapes(chunked)} <= {V, 4 * V, 32 * V}


def _shapes(jaxpr):
    """Of every array in a program, those of its loops and branches included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if inner := getattr(parameter, "jaxpr", parameter if hasattr(parameter, "eqns") else 0):
                yield from _shapes(inner)
