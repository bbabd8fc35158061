"""Depth groups of twenty-nine families, against what their papers call stem, blocks and top."""

from typing import Any

import jax
import keras
import pytest

from tests.unit.models.backbone_families import FAMILIES, Tagger, tagger
from tunekit.methods.intercept import Call, Wrap, intercept
from tunekit.models.depth import Group, block_ends
from tunekit.models.graph import leaves
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.names import layer_names

# KerasHub's own, of a mask that its attention drops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Layer .* was passed an input with a mask:UserWarning",
    "ignore:.*Layer 'attn':UserWarning",
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> tuple[str, Tagger, tuple[Group, ...]]:
    model = tagger(request.param)
    return request.param, model, model.groups()


def test_groups_are_those_of_the_paper_and_hold_every_weight_once(family):
    name, model, groups = family
    written = FAMILIES[name]
    parts = {"stem": written.stem, "top": written.top, "heads/label": ("heads/label/",)}
    parts |= {f"blocks[{i}]": block for i, block in enumerate(written.blocks)}
    expected = {part: _beginning_with(begins, model) for part, begins in parts.items()}
    assert {group.name: set(group.weights) for group in groups} == {
        part: names for part, names in expected.items() if names
    }


def test_every_variable_is_in_one_group(family):
    _, model, groups = family
    assert sorted(name for group in groups for name in group.variables) == sorted(model.variables())


def test_groups_stand_in_the_order_in_which_their_layers_run(family):
    _, model, groups = family
    ends = block_ends(model.keras.get_layer("backbone"))
    order = _completed(model.keras, ends)
    spans = [_span(group, model, order) for group in groups]
    assert all(last < first for (_, last), (first, _) in zip(spans, spans[1:], strict=False))

    # What goes on from a block is there once the block has run, and before the next one does.
    blocks = [i for i, group in enumerate(groups) if group.kind == "block"]
    assert len(ends) == len(blocks)
    for end, block in zip(ends, blocks, strict=True):
        assert spans[block][1] <= order[end] < spans[block + 1][0]


@pytest.mark.parametrize("name", ["t5", "llama3", "qwen2"])
def test_tied_embeddings_are_one_weight_of_the_stem(name):
    stem = tagger(name).groups()[0]
    assert stem.weights == ("backbone/token_embedding/embeddings",)


@pytest.mark.parametrize("name", ["Bert", "Llama"])
def test_a_transformer_of_one_layer_has_one_block(name):
    heads = {"num_heads": 2} if name == "Bert" else {"num_query_heads": 2, "num_key_value_heads": 1}
    sizes = {"vocabulary_size": 11, "num_layers": 1, "hidden_dim": 8, "intermediate_dim": 16}
    with without_values():
        model = Tagger(getattr(keras_hub().models, f"{name}Backbone")(**sizes, **heads))
    groups = model.groups()
    assert [group.kind for group in groups] == ["stem", "block", "top", "head"]
    assert groups[1].layers == ("backbone/transformer_layer_0",)


def _beginning_with(beginnings: tuple[str, ...], model: Tagger) -> set[str]:
    names = model.weight_names()
    whole = tuple(b if b.startswith("heads/") else f"backbone/{b}" for b in beginnings)
    return {name for name in names if whole and name.startswith(whole)}


def _span(group: Group, model: Tagger, order: dict[keras.Operation, int]) -> tuple[int, int]:
    """When the first and the last of the group's layers with weights had run."""
    layers = layer_names(model.keras)
    inside = [leaf for name in group.layers for leaf in leaves(layers[name])]
    places = [order[leaf] for leaf in inside if leaf in order]
    return min(places), max(places)


def _completed(model: keras.Model, ends: tuple[keras.Operation, ...]) -> dict[keras.Operation, int]:
    """The place of each operation in the order of running; the pass is traced, not computed."""
    done: list[keras.Operation] = []

    def noted(operation: keras.Operation) -> Wrap:
        def wrap(call: Call) -> Call:
            def noting_call(*args: Any, **kwargs: Any) -> Any:
                outputs = call(*args, **kwargs)
                done.append(operation)
                return outputs

            return noting_call

        return wrap

    def run(inputs: Any) -> Any:
        values = ([v.value for v in vs] for vs in _variables(model))
        return model.stateless_call(*values, inputs, training=False)[0]

    inputs = keras.tree.map_structure(
        lambda x: jax.ShapeDtypeStruct(_shape(x), x.dtype), model.input
    )
    watched: Any = {op: noted(op) for op in (*layer_names(model).values(), *ends)}
    with intercept(watched):
        jax.eval_shape(run, inputs)
    return {operation: done.index(operation) for operation in dict.fromkeys(done)}


def _shape(tensor: keras.KerasTensor) -> tuple[int, ...]:
    """One example; six tokens where the length is free."""
    return (1, *(6 if side is None else side for side in tensor.shape[1:]))


def _variables(model: keras.Model) -> tuple[list[Any], list[Any]]:
    return model.trainable_variables, model.non_trainable_variables
