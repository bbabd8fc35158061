import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.reference import train_for_peft
from tests.unit.methods import peft_networks as nets
from tunekit.errors import ModelError
from tunekit.methods.peft_export import Origin, to_peft
from tunekit.methods.peft_files import PeftFiles, read_peft, write_peft
from tunekit.methods.peft_import import to_leaves
from tunekit.methods.spec import LoRA, VeRA

# BERT without its pooler has no place for the pooler's bias; see the test of bias="all".
ADAPTERS = sorted(p.name for p in nets.FOLDER.iterdir() if "-" in p.name)
READABLE = [name for name in ADAPTERS if name != "bert-ia3-default"]


def files_of(name: str, **changes: Any) -> PeftFiles:
    files = read_peft(nets.FOLDER / name)
    return dataclasses.replace(files, config={**files.config, **changes})


def imported(files: PeftFiles, kind: str):
    return to_leaves(files, kind, nets.places(kind))


def with_tensors(name: str, change: Mapping[str, np.ndarray | None]) -> PeftFiles:
    files = files_of(name)
    tensors: dict[str, Any] = {**files.tensors, **change}
    return dataclasses.replace(files, tensors={n: t for n, t in tensors.items() if t is not None})


@pytest.mark.parametrize("name", READABLE)
def test_an_adapter_trained_by_peft_gives_here_what_it_gives_there(name: str) -> None:
    kind = name.split("-")[0]
    found = imported(files_of(name), kind)
    got = nets.adapted(kind, found.spec, found.leaves)
    wanted, base = nets.answered(name), nets.answered(kind)
    assert np.abs(wanted - base).max() > 0.05
    np.testing.assert_allclose(
        nets.unpadded(kind, got), nets.unpadded(kind, wanted), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize("name", READABLE)
def test_what_peft_wrote_is_written_back_bit_for_bit(name: str) -> None:
    kind = name.split("-")[0]
    files = files_of(name)
    found = imported(files, kind)
    head = {key: value for key, value in found.head.items() if "pooler" not in key}
    places = nets.places(kind)
    back = to_peft(found.spec, found.leaves, kind, places, head=head, origin=Origin(kind))
    theirs = {
        key: value
        for key, value in files.tensors.items()
        if not any(x in key for x in (".base_layer.weight", ".modules_to_save.", "original_module"))
        and "pooler" not in key
    }
    assert set(back.tensors) == set(theirs)
    for key, tensor in theirs.items():
        # A bias goes through its difference from the base's.
        np.testing.assert_allclose(
            back.tensors[key], tensor, rtol=0, atol=1e-6 if key.endswith("bias") else 0
        )
    same = (
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "bias",
        "base_model_name_or_path",
    )
    assert [back.config.get(key) for key in same] == [files.config.get(key) for key in same]


@pytest.mark.parametrize("name", sorted(p.name for p in nets.WRITTEN.iterdir()))
def test_an_adapter_trained_here_gives_in_peft_what_it_gives_here(name: str) -> None:
    kind = name.split("-")[0]
    found = imported(read_peft(nets.WRITTEN / name), kind)
    got = nets.adapted(kind, found.spec, found.leaves)
    with np.load(nets.WRITTEN / name / "peft_answers.npz") as answers:
        wanted = nets.features(kind, answers)
    np.testing.assert_allclose(
        nets.unpadded(kind, got), nets.unpadded(kind, wanted), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize("name", ["llama-lora", "llama-pissa", "vit-dora", "gpt2-lora"])
def test_training_here_writes_the_files_that_peft_answered_for(name: str) -> None:
    """The other half of the proof above: the folders are what tunekit's own training wrote."""
    kind = name.split("-")[0]
    written = read_peft(nets.WRITTEN / name)
    files = train_for_peft.files_of(name)
    assert dict(files.config) == written.config
    assert set(files.tensors) == set(written.tensors)
    for key, tensor in files.tensors.items():
        # A sign of the gradient may turn where it is zero to rounding.
        close = np.isclose(tensor, written.tensors[key], rtol=0, atol=1e-3)
        assert close.mean() > 0.98, key
    found = imported(files, kind)
    np.testing.assert_allclose(
        nets.adapted(kind, found.spec, found.leaves),
        nets.adapted(kind, train_for_peft.spec_of(name), train_for_peft.trained(name)),
        rtol=0,
        atol=5e-5,
    )


def test_files_read_back_as_they_were_written(tmp_path: Path) -> None:
    files = files_of("bert-dora")
    write_peft(tmp_path, files)
    assert read_peft(tmp_path).config == files.config
    assert {p.name for p in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_strided_tensor_is_written_whole(tmp_path: Path) -> None:
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_peft(tmp_path, PeftFiles({"peft_type": "LORA"}, {"x": tensor}))
    np.testing.assert_array_equal(read_peft(tmp_path).tensors["x"], tensor)


def test_half_precision_tensors_are_read_as_float32(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    tensors = {"x": np.ones((2, 2), np.float16)}
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert read_peft(tmp_path).tensors["x"].dtype == np.float32


def test_a_vision_adapter_of_transformers_4_reads_the_same() -> None:
    files = files_of("vit-lora")
    older = {
        ".layers.": ".encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.v_proj": "attention.attention.value",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    tensors = {}
    for key, tensor in files.tensors.items():
        for new, old in older.items():
            key = key.replace(new, old)
        tensors[key] = tensor
    targets = r".*(query|value|intermediate\.dense|\d\.output\.dense)"
    renamed = PeftFiles({**files.config, "target_modules": targets}, tensors)
    assert set(tensors) & set(files.tensors) == {
        f"base_model.model.classifier.{x}" for x in ("weight", "bias")
    }
    new, old = imported(files, "vit"), imported(renamed, "vit")
    assert set(new.leaves) == set(old.leaves)
    assert all(np.array_equal(new.leaves[name], old.leaves[name]) for name in new.leaves)


def test_tensors_of_a_body_alone_have_no_prefix() -> None:
    files = files_of("bert-rslora")
    tensors = {key.replace("model.bert.", "model."): t for key, t in files.tensors.items()}
    found = imported(dataclasses.replace(files, tensors=tensors), "bert")
    assert set(found.leaves) == set(imported(files, "bert").leaves)


def test_three_projections_adapted_apart_are_one_module_in_peft_and_compute_the_same() -> None:
    found = imported(files_of("gpt2-dora"), "gpt2")
    random = np.random.default_rng(3)
    leaves = {
        name: value + 0.1 * random.normal(size=value.shape).astype("f4")
        for name, value in found.leaves.items()
        if "/key/" not in name
    }
    layers = [n for n in found.spec.targets if not n.endswith("key")]
    spec = dataclasses.replace(found.spec, targets=tuple(layers))
    places = nets.places("gpt2")
    files = to_peft(spec, leaves, "gpt2", places)
    key = "base_model.model.transformer.h.0.attn.c_attn"
    assert files.tensors[f"{key}.lora_A.weight"].shape == (4, 16)
    assert files.tensors[f"{key}.lora_B.weight"].shape == (48, 4)
    again = to_leaves(files, "gpt2", places)
    np.testing.assert_allclose(
        nets.adapted("gpt2", again.spec, again.leaves),
        nets.adapted("gpt2", spec, leaves),
        rtol=0,
        atol=2e-5,
    )


def test_a_start_that_does_not_count_is_more_rank_in_peft() -> None:
    layer = "backbone/transformer_layer_0/self_attention/query"
    random = np.random.default_rng(0)
    a, b, a0, b0 = (random.normal(size=s).astype("f4") for s in ((16, 2), (2, 16)) * 2)
    leaves = {"lora_a": a, "lora_b": b, "start_a": a0, "start_b": b0, "scaling": np.float32(2)}
    spec = LoRA(rank=2, alpha=4, init="pissa", targets=(layer,))
    files = to_peft(
        spec, {f"{layer}/{n}": v for n, v in leaves.items()}, "llama", nets.places("llama")
    )
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    delta = files.tensors[f"{key}.lora_B.weight"] @ files.tensors[f"{key}.lora_A.weight"]
    np.testing.assert_allclose(delta.T, a @ b - a0 @ b0, atol=1e-5)
    assert (files.config["r"], files.config["lora_alpha"]) == (4, 8)
    assert files.config["init_lora_weights"] is True


def test_a_strength_that_was_changed_is_in_the_alpha_that_peft_reads() -> None:
    found = imported(files_of("llama-rslora"), "llama")
    doubled = {n: v * 2 if n.endswith("scaling") else v for n, v in found.leaves.items()}
    assert to_peft(found.spec, doubled, "llama", nets.places("llama")).config["lora_alpha"] == 16


@pytest.mark.parametrize("rslora", [False, True])
def test_any_strength_comes_back_bit_for_bit(rslora: bool) -> None:
    layer = "backbone/transformer_layer_0/self_attention/query"
    for strength in (5 / 3, 0.1, 0.123456789, 1.9999999):
        leaves = {"lora_a": np.ones((16, 3)), "lora_b": np.ones((3, 16))}
        leaves["scaling"] = np.float32(strength)  # type: ignore[assignment]
        spec = LoRA(rank=3, rslora=rslora, targets=(layer,))
        named = {f"{layer}/{name}": value for name, value in leaves.items()}
        back = imported(to_peft(spec, named, "llama", nets.places("llama")), "llama")
        assert back.leaves[f"{layer}/scaling"] == np.float32(strength)


def test_a_file_of_another_base_names_what_has_no_place() -> None:
    with pytest.raises(ModelError, match="trained on llama, does not fit this 'bert'") as error:
        imported(files_of("llama-rslora"), "bert")
    assert str(error.value).count("not in the model: base_model.model.model.layers") == 8


def test_no_more_than_ten_mistakes_are_listed() -> None:
    with pytest.raises(ModelError, match="and 18 more"):
        imported(files_of("llama-lora"), "bert")


def test_missing_and_misshapen_and_unexpected_tensors_are_named_at_once() -> None:
    q, v = (f"base_model.model.model.layers.0.self_attn.{x}_proj" for x in "qv")
    bad = {
        f"{q}.lora_B.weight": None,
        f"{v}.lora_A.weight": np.zeros((4, 99), np.float32),
        f"{v}.lora_magnitude_vector": np.zeros(8, np.float32),
    }
    with pytest.raises(ModelError) as error:
        imported(with_tensors("llama-rslora", bad), "llama")
    assert "missing: model.layers.0.self_attn.q_proj.lora_B.weight [16, 4]" in str(error.value)
    assert "v_proj.lora_A.weight: expected shape [4, 16], got [4, 99]" in str(error.value)
    assert "unexpected: model.layers.0.self_attn.v_proj.lora_magnitude" in str(error.value)


def test_a_target_without_tensors_is_missing() -> None:
    gone = [key for key in files_of("llama-patterns").tensors if "k_proj" in key]
    files = with_tensors("llama-patterns", dict.fromkeys(gone))
    with pytest.raises(ModelError, match="all tensors of model.layers.1.self_attn.k_proj"):
        imported(files, "llama")


def test_a_rank_other_than_the_config_says_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"lora_A.weight: expected shape \[8, 16\], got \[4, 16\]"):
        imported(files_of("llama-rslora", r=8), "llama")


def test_an_embedding_of_another_size_or_with_other_values_is_not_this_bases() -> None:
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    longer = with_tensors("llama-embedding", {key: np.zeros((70, 16), np.float32)})
    with pytest.raises(ModelError, match="vocabulary was resized"):
        imported(longer, "llama")
    other = with_tensors("llama-embedding", {key: np.zeros((64, 16), np.float32)})
    with pytest.raises(ModelError, match="other values than this base's own"):
        imported(other, "llama")


def tied_embedding() -> PeftFiles:
    files = files_of("llama-embedding", target_modules=["embed_tokens"])
    tensors = {n: t for n, t in files.tensors.items() if ".lora_embedding_" in n}
    return dataclasses.replace(files, tensors=tensors)


def test_an_embedding_that_the_language_head_shares_cannot_be_adapted_for_one_use_alone() -> None:
    with pytest.raises(ModelError, match="PEFT adapts the embedding alone"):
        imported(tied_embedding(), "qwen2")
    found = imported(tied_embedding(), "llama")
    with pytest.raises(ModelError, match="is also the language head"):
        to_peft(found.spec, found.leaves, "qwen2", nets.places("qwen2"))


def test_ia3_on_inputs_of_an_attentions_output_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"layer\.0\.attention\.output\.dense is scaled at its"):
        imported(files_of("bert-ia3-default"), "bert")


def test_vera_on_gpt2s_fused_projection_is_refused_both_ways() -> None:
    c_attn = "base_model.model.transformer.h.0.attn.c_attn"
    config = {**files_of("llama-vera").config, "target_modules": ["c_attn"]}
    tensors = {f"{c_attn}.vera_lambda_b": np.zeros(48), f"{c_attn}.vera_lambda_d": np.zeros(4)}
    with pytest.raises(ModelError, match="shared factors cannot be divided"):
        imported(PeftFiles(config, tensors), "gpt2")
    layer = "backbone/transformer_layer_0/self_attention/query"
    leaves = {
        **{f"shared/{layer}/lambda_b": np.zeros(16), f"shared/{layer}/lambda_d": np.zeros(4)},
        **{"shared/vera_a": np.zeros((16, 4)), "shared/vera_b": np.zeros((4, 16))},
        "shared/scaling": np.ones(()),
    }
    with pytest.raises(ModelError, match="VeRA's shared factors are not those of the whole"):
        to_peft(VeRA(rank=4, targets=(layer,)), leaves, "gpt2", nets.places("gpt2"))


def test_layers_that_peft_has_no_names_for_are_named() -> None:
    leaves = {"backbone/segment/lora_a": np.zeros((2, 2))}
    with pytest.raises(ModelError, match="no names for these layers of a 'bert':\n  backbone/segm"):
        to_peft(LoRA(), leaves, "bert", nets.places("bert"))


def test_a_head_that_the_family_has_not_is_an_error() -> None:
    found = imported(files_of("bert-rslora"), "bert")
    with pytest.raises(
        ModelError, match=r"expected tensors of classifier as the head, got \['scor"
    ):
        to_peft(
            found.spec, found.leaves, "bert", nets.places("bert"), head={"score.weight": np.ones(2)}
        )


def test_missing_pickled_and_damaged_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no folder"):
        read_peft(tmp_path / "none")
    with pytest.raises(ModelError, match="lacks adapter_config.json; it holds nothing"):
        read_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    (tmp_path / "adapter_model.bin").write_text("pickle")
    with pytest.raises(ModelError, match="adapter_model.bin, a pickle"):
        read_peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="holds a list, expected a JSON object"):
        read_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="is no valid JSON"):
        read_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError, match="is damaged"):
        read_peft(tmp_path)
