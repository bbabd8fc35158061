"""How variables are shared by a mesh, family by family, and by rules of the user's own."""

from __future__ import annotations

import pytest
from jax.sharding import PartitionSpec as P

from tests.contract.families import resnet
from tests.contract.sharded_runs import vit, wide_llama
from tunekit import load_model
from tunekit.errors import RecipeError
from tunekit.methods.spec import LoRA
from tunekit.models.model import Model
from tunekit.models.sharding import layout_specs

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
BLOCK = "backbone/transformer_layer_0"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = wide_llama(tmp_path_factory.mktemp("llama"))
    model = load_model(folder, pretrained=False)
    return model.add_adapter("lora", LoRA(rank=8, targets="linear"))


@pytest.fixture(scope="module")
def image_model() -> Model:
    return load_model(vit(), labels=["cat", "dog"])


def test_attention_and_mlp_are_shared_by_heads_and_widths(llama: Model) -> None:
    specs = layout_specs(llama, {**ONE, "tensor": 4})
    own = {n.removeprefix(f"{BLOCK}/"): spec for n, spec in specs.items() if BLOCK in n}
    # [D, heads, width]: queries by heads; the way back [heads, width, D] by the same.
    assert own["self_attention/query/kernel"] == P(None, "tensor", None)
    assert own["self_attention/key/kernel"] == P(None, "tensor", None)
    assert own["self_attention/attention_output/kernel"] == P("tensor", None, None)
    assert own["feedforward_gate_dense/kernel"] == P(None, "tensor")
    assert own["feedforward_output_dense/kernel"] == P("tensor", None)
    assert specs["backbone/token_embedding/embeddings"] == P("tensor", None)
    assert specs["heads/lm_head/kernel"] == P(None, "tensor")


def test_heads_that_do_not_divide_stay_whole(llama: Model) -> None:
    specs = layout_specs(llama, {**ONE, "tensor": 8})
    # Four heads of keys and values, eight of queries.
    assert specs[f"{BLOCK}/self_attention/key/kernel"] == P(None, None, None)
    assert specs[f"{BLOCK}/self_attention/query/kernel"] == P(None, "tensor", None)


def test_an_adapter_lies_as_the_sides_of_its_kernel(llama: Model) -> None:
    specs = layout_specs(llama, {**ONE, "tensor": 4})
    prefix = f"adapters/lora/{BLOCK}"
    assert specs[f"{prefix}/self_attention/query/lora_a"] == P(None, None)
    assert specs[f"{prefix}/self_attention/query/lora_b"] == P(None, "tensor")
    assert specs[f"{prefix}/feedforward_output_dense/lora_a"] == P("tensor", None)
    assert specs[f"{prefix}/feedforward_output_dense/lora_b"] == P(None, None)


def test_fsdp_shares_the_longest_dimension_that_is_free(llama: Model) -> None:
    specs = layout_specs(llama, {"data": 1, "fsdp": 2, "tensor": 2})
    assert specs[f"{BLOCK}/feedforward_gate_dense/kernel"] == P("fsdp", "tensor")
    assert specs[f"{BLOCK}/feedforward_output_dense/kernel"] == P("tensor", "fsdp")
    alone = layout_specs(llama, {**ONE, "fsdp": 8})
    assert alone[f"{BLOCK}/feedforward_gate_dense/kernel"] == P(None, "fsdp")
    # A norm's scale is too small to be worth gathering.
    assert alone["backbone/final_norm/scale"] == P(None)


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_networks_without_attention_are_shared_too(axis: str) -> None:
    model = load_model(resnet(), labels=["cat", "dog"])
    specs = layout_specs(model, {**ONE, axis: 4})
    kernels = [name for name in specs if name.endswith("conv/kernel")]
    # The first convolution, of three channels in, is too small to be worth gathering.
    assert sum(axis in specs[name] for name in kernels) >= len(kernels) - 1


def test_data_parallel_shares_nothing(image_model: Model) -> None:
    assert not any(any(s) for s in layout_specs(image_model, {**ONE, "data": 8}).values())


def test_rules_of_the_users_own_come_first(image_model: Model) -> None:
    own = {".*/position_embedding/embeddings": (None, "fsdp")}
    specs = layout_specs(image_model, {**ONE, "fsdp": 4}, own)
    (name,) = [n for n in specs if n.endswith("position_embedding/embeddings")]
    assert specs[name] == P(None, "fsdp")
    assert specs["backbone/vit_encoder/transformer_block_1/mlp/dense/kernel"] == P(None, "fsdp")


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"head/.*": (None,)}, r"'head/\.\*' matches no variable.*Did you mean 'heads/"),
        ({".*logits/kernel": ("model", None)}, r"expected data, fsdp, tensor or null.*model"),
        ({".*logits/kernel": ("fsdp",)}, r"logits/kernel' \[128, 2\]: expected .* 2 dimensions"),
        ({".*logits/kernel": (None, "fsdp")}, r"2 does not divide by the 4 devices along 'fsdp'"),
    ],
)
def test_rules_that_do_not_fit_are_refused(image_model: Model, own, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        layout_specs(image_model, {**ONE, "fsdp": 4}, own)
