import json
from typing import Any

import pytest

from tests.unit.methods.peft_networks import FOLDER
from tunekit.errors import ModelError
from tunekit.methods.peft_config import (
    Sizes,
    by_pattern,
    check_config,
    is_target,
    lora_config,
    lora_spec,
    short_names,
)
from tunekit.methods.peft_names import Module
from tunekit.methods.spec import LoRA

FIELDS: dict[str, dict[str, Any]] = json.loads((FOLDER / "fields.json").read_text())
REFUSED = {
    "megatron_config": {"hidden": 1},
    "trainable_token_indices": [1, 2],
    "alora_invocation_tokens": [5],
    "use_qalora": True,
    "monteclora_config": {"num_samples": 2},
    "layer_replication": [[0, 2]],
    "lora_bias": True,
    "target_parameters": ["experts.gate_up_proj"],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 0.1},
}


def module(path: str) -> Module:
    return Module(path, frozenset([path, path.removeprefix("model.")]), ("layer",), in_block=True)


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_that_peft_writes_is_known(kind: str) -> None:
    # Truthy values: a field that no set lists is an error as soon as it says anything.
    said = {name: value or "something" for name, value in FIELDS[kind].items()}
    said |= {n: v for n, v in {"bias": "none", "init_lora_weights": True}.items() if n in said}
    plain = {**said, "peft_type": kind}
    asked = {name: value for name, value in plain.items() if name not in REFUSED}
    check_config(asked, "here")


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_changes_what_the_tensors_mean_is_refused_by_name(name: str) -> None:
    assert name in FIELDS["LORA"]
    with pytest.raises(ModelError, match=rf"folder asks for what .*\n  {name}="):
        check_config({**FIELDS["LORA"], name: REFUSED[name]}, "folder")


def test_a_field_of_a_later_peft_is_refused_once_it_says_something() -> None:
    check_config({"peft_type": "LORA", "use_new": False}, "here")
    with pytest.raises(ModelError, match="use_new=True: tunekit does not know this field"):
        check_config({"peft_type": "LORA", "use_new": True}, "here")


def test_every_refused_field_is_named_at_once() -> None:
    with pytest.raises(ModelError) as error:
        check_config({"peft_type": "LORA", **REFUSED}, "here")
    assert all(f"{name}=" in str(error.value) for name in REFUSED)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq"])
def test_an_adapter_of_a_base_that_was_changed_is_refused(init: str) -> None:
    with pytest.raises(ModelError, match="path_initial_model_for_weight_conversion"):
        check_config({"peft_type": "LORA", "init_lora_weights": init}, "here")


def test_other_kinds_of_adapter_are_refused_with_near_matches() -> None:
    with pytest.raises(ModelError, match=r"peft_type is 'ADALORA'.*Did you mean 'LORA'"):
        check_config({"peft_type": "ADALORA"}, "here")


def test_vera_without_its_projections_is_refused() -> None:
    with pytest.raises(ModelError, match="lacks the frozen factors"):
        check_config({"peft_type": "VERA", "save_projection": False}, "here")
    with pytest.raises(ModelError, match="bias='vera_only': expected 'none'"):
        check_config({"peft_type": "VERA", "bias": "vera_only"}, "here")


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"target_modules": ["q_proj"]}, True),
        ({"target_modules": ["proj"]}, False),
        ({"target_modules": ["self_attn.q_proj", "x"]}, True),
        ({"target_modules": r".*layers\.1\..*"}, True),
        ({"target_modules": r"layers\.1"}, False),
        ({"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]}, False),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1}, True),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}, False),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "h"}, False),
        (
            {
                "target_modules": ["q_proj"],
                "layers_to_transform": [1],
                "layers_pattern": ["layers"],
            },
            True,
        ),
        ({"target_modules": None}, False),
    ],
)
def test_targets_are_read_as_peft_reads_them(config: dict[str, Any], wanted: bool) -> None:
    assert is_target(config, module("model.layers.1.self_attn.q_proj")) is wanted


def test_the_first_pattern_that_a_name_ends_with_gives_its_rank() -> None:
    patterns = {"v_proj": 1, r"layers\.\d.self_attn.q_proj": 2, "q_proj": 3}
    assert by_pattern(patterns, "model.layers.1.self_attn.q_proj", 8) == 2
    assert by_pattern(patterns, "model.layers.11.self_attn.q_proj", 8) == 3
    assert by_pattern(patterns, "model.layers.1.self_attn.o_proj", 8) == 8
    assert by_pattern({"proj": 1}, "model.q_proj", 8) == 8


def test_the_commonest_rank_is_the_ranks_and_the_others_are_patterns() -> None:
    sizes = {"a.b": Sizes(4, 8.0), "a.c": Sizes(4, 6.5), "a.d": Sizes(2, 8.0)}
    config = lora_config(LoRA(dropout=0.1, rslora=True), sizes)
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 8, {"a.d": 2})
    assert config["alpha_pattern"] == {"a.c": 6.5}
    assert isinstance(config["lora_alpha"], int)
    spec = lora_spec(config, sizes)
    assert (spec.rank, spec.alpha, spec.rslora, spec.dropout) == (4, 8.0, True, 0.1)
    assert dict(spec.rank_pattern) == {r"a\.d": 2}


def test_targets_are_written_by_the_shortest_name_that_means_no_other_module() -> None:
    known = [f"m.{i}.{name}" for i in (0, 1) for name in ("q_proj", "v_proj", "out.dense")]
    assert short_names(["m.0.q_proj", "m.1.q_proj", "m.0.v_proj"], known) == [
        "m.0.v_proj",
        "q_proj",
    ]
    assert short_names(["m.0.out.dense", "m.1.out.dense"], known) == [
        "m.0.out.dense",
        "m.1.out.dense",
    ]
