"""EVA's streamed directions against scikit-learn's, and the capture of layers' inputs."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import keras
import numpy as np
import pytest
from sklearn.decomposition import PCA, IncrementalPCA

from tunekit.errors import ModelError
from tunekit.methods.eva import allocated_ranks, captured_inputs, eva_factors

WIDTH = 6
NEVER = 1.1
"""A tau that no cosine reaches: every batch is taken."""


def rows(count: int, *variances: float, seed: int = 0) -> np.ndarray:
    """Draws rows off the origin with these variances along rotated axes, and little elsewhere."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(9).standard_normal((WIDTH, WIDTH)))[0]
    spread = np.full(WIDTH, 1e-2)
    spread[: len(variances)] = np.sqrt(variances)
    return (3 + rng.standard_normal((count, WIDTH)) * spread @ axes).astype(np.float32)


def batches(data: np.ndarray, *sizes: int) -> list[dict[str, np.ndarray]]:
    return [{"q": part} for part in np.split(data, np.cumsum(sizes)[:-1])]


def same_directions(a: np.ndarray, expected: np.ndarray, atol: float = 1e-6) -> None:
    """Compares columns with rows, whatever their signs."""
    np.testing.assert_allclose(np.abs(a.T @ expected.T), np.eye(len(expected)), atol=atol)


def dense_layer() -> keras.layers.Dense:
    layer = keras.layers.Dense(3)
    layer.build((None, WIDTH))
    return layer


def test_one_batch_gives_its_principal_directions():
    data = rows(50, 5, 2, 1)

    a = eva_factors([{"q": data}], rank=3)["q"]

    assert a.shape == (WIDTH, 3) and a.dtype == np.float32
    same_directions(a, PCA(3).fit(data).components_)


def test_directions_of_a_stream_are_those_of_incremental_pca():
    data, sizes = rows(90, 5, 4, 3, 2), (20, 30, 40)
    reference = IncrementalPCA(3)
    for batch in batches(data, *sizes):
        reference.partial_fit(batch["q"])

    a = eva_factors(batches(data, *sizes), rank=3, tau=NEVER)["q"]

    same_directions(a, reference.components_)
    assert np.abs(np.abs(a.T @ PCA(3).fit(data).components_.T) - np.eye(3)).max() > 1e-4


def test_a_stream_of_few_directions_gives_those_of_all_rows_at_once():
    """Where no direction is dropped along the way, the batches do not matter."""
    data = rows(60, 5, 2)

    a = eva_factors(batches(data, 1, 0, 4, 55), rank=WIDTH, tau=NEVER)["q"]

    same_directions(a[:, :2], PCA(2).fit(data).components_)


@pytest.mark.parametrize("turn", range(6))
def test_no_more_batches_are_taken_once_the_directions_have_settled(turn):
    """However the axes lie: the signs of singular vectors change with them from batch to batch."""
    taken = []
    axes = np.linalg.qr(np.random.default_rng(turn).standard_normal((WIDTH, WIDTH)))[0]

    def stream() -> Iterator[dict[str, np.ndarray]]:
        for seed in range(10):
            taken.append(seed)
            yield {"q": rows(2000, 9, 4, 1, seed=seed) @ axes}

    eva_factors(stream(), rank=2)

    assert taken == [0, 1]


def test_batches_are_taken_while_the_directions_turn():
    turned = rows(50, 9, 1)
    stream = [{"q": turned}, {"q": 20 * turned[:, ::-1]}, {"q": 20 * turned[:, ::-1]}]

    a = eva_factors(stream, rank=1)["q"]

    same_directions(a, eva_factors(stream, rank=1, tau=NEVER)["q"].T)
    assert np.abs(a.T @ eva_factors(stream[:1], rank=1)["q"]).max() < 0.99


def test_ranks_go_where_a_direction_explains_most_of_its_layer_s_variance():
    """Of all its batches together, and whatever the layers' scales."""
    narrow, wide = rows(100, 9) - 3, rows(100, 3, 3, 3, 3, 3) / 1000
    inputs = [{"narrow": scale * narrow, "wide": wide} for scale in (1000, 1)]

    even = eva_factors(inputs, rank=2, tau=NEVER)
    moved = eva_factors(inputs, rank=2, rho=2.0, tau=NEVER)

    assert {name: a.shape[1] for name, a in even.items()} == {"narrow": 2, "wide": 2}
    assert {name: a.shape[1] for name, a in moved.items()} == {"narrow": 1, "wide": 3}


def test_the_budget_takes_the_largest_shares_and_the_earlier_layer_of_equals():
    shares = {"a": np.array([0.5, 0.1]), "b": np.array([0.5, 0.3]), "c": np.array([0.05])}

    assert allocated_ranks(shares, 2) == {"a": 1, "b": 1, "c": 0}
    assert allocated_ranks(shares, 1) == {"a": 1, "b": 0, "c": 0}
    assert allocated_ranks(shares, 9) == {"a": 2, "b": 2, "c": 1}


def test_a_layer_gets_no_more_directions_than_its_inputs_have():
    constant, one = np.ones((8, WIDTH)), np.outer(np.arange(8), np.ones(WIDTH))

    made = eva_factors([{"constant": constant, "one": one}], rank=3)

    assert made["constant"].shape == (WIDTH, 0)
    same_directions(made["one"], np.full((1, WIDTH), WIDTH**-0.5))


def test_no_batch_is_an_error():
    with pytest.raises(ModelError, match="'eva' .* came to no batch"):
        eva_factors([], rank=2)


def test_inputs_that_are_not_finite_are_an_error_that_names_the_layer():
    with pytest.raises(ModelError, match="block/q: .* fed NaN or infinity"):
        eva_factors([{"block/q": np.full((4, WIDTH), np.nan)}], rank=2)


def test_captured_rows_are_what_the_kernel_multiplies():
    """Layers of each kind: the rows times the kernel's matrix are the layer's outputs."""
    layers = {
        "dense": keras.layers.Dense(3, use_bias=False),
        "heads_in": keras.layers.EinsumDense("abcd,cde->abe", (5, 3)),
        "conv": keras.layers.Conv2D(3, 2, strides=2, padding="same", use_bias=False),
    }
    shapes = {"dense": (2, 5, 4), "heads_in": (2, 5, 3, 4), "conv": (2, 5, 5, 4)}
    inputs = {name: np.random.default_rng(0).standard_normal(s) for name, s in shapes.items()}
    for name, layer in layers.items():
        layer.build(shapes[name])

    with captured_inputs(layers) as captured:
        outputs = {name: layers[name](x.astype("float32")) for name, x in inputs.items()}

    for name, layer in layers.items():
        matrix = np.asarray(layer.kernel).reshape(-1, 3)
        expected = np.asarray(outputs[name]).reshape(-1, 3)
        np.testing.assert_allclose(captured[name] @ matrix, expected, atol=1e-5)


def test_a_layer_called_twice_is_captured_twice_and_left_as_it_was():
    layer = dense_layer()
    first, second = rows(4, 1), rows(3, 1, seed=1)

    with captured_inputs({"q": layer}) as captured:
        outputs = layer(first)
        layer(second)

    np.testing.assert_array_equal(captured["q"], np.concatenate([first, second]))
    np.testing.assert_array_equal(outputs, layer(first))
    assert captured["q"].shape == (7, WIDTH)


def test_captured_rows_leave_a_compiled_function():
    layer = dense_layer()

    @jax.jit
    def inputs_of(x: jax.Array) -> dict[str, jax.Array]:
        with captured_inputs({"q": layer}) as captured:
            layer(2 * x)
        return dict(captured)

    data = rows(4, 1)
    np.testing.assert_array_equal(inputs_of(data)["q"], 2 * data)


def test_masked_tokens_are_not_captured():
    layer = dense_layer()
    data = rows(12, 1).reshape(2, 6, WIDTH)
    mask = np.arange(6)[None] < np.array([[2], [5]])

    @jax.jit
    def inputs_of(x: jax.Array, mask: jax.Array) -> jax.Array:
        with captured_inputs({"q": layer}, mask, most_rows=7) as captured:
            layer(x)
        return captured["q"]

    np.testing.assert_array_equal(inputs_of(data, mask), data[mask])


def test_a_mask_of_tokens_leaves_rows_of_examples_alone():
    layer = dense_layer()
    data = rows(2, 1)

    with captured_inputs({"pooler": layer}, np.zeros((2, 6), bool)) as captured:
        layer(data)

    np.testing.assert_array_equal(captured["pooler"], data)


def test_many_rows_are_thinned_evenly():
    layer = dense_layer()
    data = rows(101, 1)

    with captured_inputs({"q": layer}, most_rows=5) as captured:
        layer(data)

    np.testing.assert_array_equal(captured["q"], data[::25])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.Embedding(7, 4), (None, 3)),
        (keras.layers.Conv2D(4, 2, groups=2), (None, 5, 5, 4)),
    ],
)
def test_layers_without_one_matrix_for_their_inputs_are_an_error(layer, shape):
    layer.build(shape)
    kind = type(layer).__name__
    with pytest.raises(ModelError, match=f"'x' is a {kind} .*'eva' is impossible.*'!x'"):
        with captured_inputs({"x": layer}):
            pass
