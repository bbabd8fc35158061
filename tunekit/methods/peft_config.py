"""adapter_config.json as PEFT 0.21 writes and reads it, and what each of its fields means here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit.errors import ModelError, did_you_mean
from tunekit.methods.peft_names import Module
from tunekit.methods.spec import IA3, LoRA, VeRA

Config = Mapping[str, Any]
PeftSpec = LoRA | VeRA | IA3

# What is read, for each kind of adapter and for all.
_READ = {
    "LORA": {
        *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern"),
        *("bias", "use_rslora", "use_dora", "init_lora_weights", "ensure_weight_tying"),
    },
    "IA3": {"feedforward_modules"},
    "VERA": {"r", "vera_dropout", "d_initial", "projection_prng_key", "save_projection", "bias"},
}
_READ_OF_ALL = {
    *("peft_type", "target_modules", "exclude_modules", "modules_to_save"),
    *("layers_to_transform", "layers_pattern", "base_model_name_or_path", "task_type"),
}
# What changes nothing once an adapter is trained. `fan_in_fan_out` is how the base keeps its
# weights; the adapter's own are kept one way.
_WITHOUT_EFFECT = {
    *("auto_mapping", "revision", "inference_mode", "peft_version", "runtime_config"),
    *("fan_in_fan_out", "megatron_core", "init_weights", "init_ia3_weights"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    "qalora_group_size",
}
# What makes of the adapter something else than its tensors say.
_REFUSED = {
    "megatron_config": "its tensors are cut up for Megatron's parallel layers",
    "trainable_token_indices": "it also trains single rows of the embedding",
    "alora_invocation_tokens": "it acts only after certain tokens (aLoRA)",
    "use_qalora": "its inputs are averaged in groups (QA-LoRA)",
    "monteclora_config": "its factors are drawn at random at every call (MonteCLoRA)",
    "layer_replication": "it makes a deeper model of the base",
    "lora_bias": "its factor B has a bias",
    "target_parameters": "it sits on bare parameters (experts), not on modules",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA)",
    "arrow_config": "it routes between several adapters (Arrow)",
    "kasa_config": "it has singular values of its own (KaSA), and cuts some of the base's",
}
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva")


def check_config(config: Config, place: str) -> None:
    """Passes where tunekit can do exactly what the adapter does.

    Args:
        config: what adapter_config.json holds.
        place: the file, for the message.

    Raises:
        ModelError: a field asks for something else; every such field is named.
    """
    kind = config.get("peft_type")
    if kind not in _READ:
        raise ModelError(
            f"{place}: peft_type is {kind!r}; tunekit reads {', '.join(_READ)}."
            f"{did_you_mean(str(kind), _READ)}"
        )
    known = _READ[kind] | _READ_OF_ALL | _WITHOUT_EFFECT
    wrong = []
    for name, value in config.items():
        if name in known or not value:
            continue
        why = _REFUSED.get(name, "tunekit does not know this field; PEFT 0.21 does not write it")
        wrong.append(f"{name}={value!r}: {why}.")
    init = config.get("init_lora_weights", True)
    if kind == "LORA" and init not in _PLAIN_INITS:
        wrong.append(
            f"init_lora_weights={init!r}: the adapter fits a base that this initialisation "
            "changed. Save it in PEFT with path_initial_model_for_weight_conversion, which makes "
            "an adapter of the original base."
        )
    bias = config.get("bias", "none")
    if bias not in ("none", "all", "lora_only") or (kind == "VERA" and bias != "none"):
        wrong.append(f"bias={bias!r}: expected 'none'.")
    if kind == "VERA" and not config.get("save_projection", True):
        wrong.append(
            "save_projection=False: the file lacks the frozen factors, which only torch's "
            "generator can draw again. Save it with save_projection=True."
        )
    if wrong:
        raise ModelError(f"{place} asks for what tunekit does not do:\n  " + "\n  ".join(wrong))


def is_named(names: str | Sequence[str] | None, module: Module) -> bool:
    """Whether `names`, a pattern or a list of names' ends as PEFT has them, mean the module."""
    if not names:
        return False
    if isinstance(names, str):
        return any(re.fullmatch(names, path) for path in module.spellings)
    return any(
        path == name or path.endswith(f".{name}") for path in module.spellings for name in names
    )


def is_target(config: Config, module: Module) -> bool:
    """Whether the config says that the adapter sits on the module."""
    if is_named(config.get("exclude_modules"), module):
        return False
    if not is_named(config.get("target_modules"), module):
        return False
    wanted = config.get("layers_to_transform")
    if wanted is None:
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = (re.match(rf".*\.{pattern}\.(\d+)\.", module.path) for pattern in patterns)
    numbers = {int(match[1]) for match in found if match}
    return bool(numbers & set([wanted] if isinstance(wanted, int) else wanted))


def by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """Returns the value of the first pattern that the module's name ends with, as in PEFT."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


@dataclass(frozen=True)
class Sizes:
    """Rank and alpha of one place: a layer here, or a module there."""

    rank: int
    alpha: float


def lora_spec(config: Config, layers: Mapping[str, Sizes]) -> LoRA:
    """Returns the spec of a LoRA on these layers.

    Args:
        config: what adapter_config.json holds.
        layers: rank and alpha of each layer, by structural name.
    """
    rank, alpha, ranks, alphas = _common(layers)
    return LoRA(
        rank=rank,
        alpha=float(alpha),
        dropout=float(config.get("lora_dropout", 0.0)),
        targets=tuple(map(re.escape, layers)),
        bias=config.get("bias", "none"),
        rslora=bool(config.get("use_rslora", False)),
        dora=bool(config.get("use_dora", False)),
        rank_pattern={re.escape(name): value for name, value in ranks.items()},
        alpha_pattern={re.escape(name): float(value) for name, value in alphas.items()},
    )


def lora_config(spec: LoRA, modules: Mapping[str, Sizes]) -> dict[str, Any]:
    """Returns the fields of a LoraConfig, less those of every kind of adapter.

    Args:
        spec: of the adapter.
        modules: rank and alpha of each module, by its path.
    """
    rank, alpha, ranks, alphas = _common(modules)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": spec.dropout,
        "bias": spec.bias,
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        "init_lora_weights": True,
        "rank_pattern": ranks,
        "alpha_pattern": {path: _plain(value) for path, value in alphas.items()},
    }


def ia3_spec(layers: Sequence[str]) -> IA3:
    """Returns the spec of IA3 on these layers."""
    return IA3(targets=tuple(map(re.escape, layers)))


def vera_spec(config: Config, layers: Sequence[str]) -> VeRA:
    """Returns the spec of VeRA on these layers."""
    return VeRA(
        rank=config.get("r", 256),
        d_initial=float(config.get("d_initial", 0.1)),
        dropout=float(config.get("vera_dropout", 0.0)),
        projection_seed=config.get("projection_prng_key") or 0,
        targets=tuple(map(re.escape, layers)),
    )


def vera_config(spec: VeRA) -> dict[str, Any]:
    """Returns the fields of a VeraConfig, less those of every kind of adapter."""
    return {
        "peft_type": "VERA",
        "r": spec.rank,
        "d_initial": spec.d_initial,
        "vera_dropout": spec.dropout,
        "projection_prng_key": spec.projection_seed,
        "save_projection": True,
        "bias": "none",
    }


def short_names(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the shortest names that mean the wanted modules and none of the other known ones.

    Args:
        wanted: paths.
        known: paths of all the modules that the base is known to have.
    """
    # Heads and poolers have modules of these names too, and not all of them are known here.
    ambiguous = {"dense", "convolution"}
    names = set()
    for path in wanted:
        leaf = path.rsplit(".", 1)[-1]
        of_leaf = {other for other in known if other.rsplit(".", 1)[-1] == leaf}
        names.add(leaf if leaf not in ambiguous and of_leaf <= set(wanted) else path)
    return sorted(names)


def _common(sizes: Mapping[str, Sizes]) -> tuple[int, float, dict[str, int], dict[str, float]]:
    """The commonest rank and alpha, and those of the places that have another."""
    rank = Counter(size.rank for size in sizes.values()).most_common(1)[0][0]
    alpha = Counter(size.alpha for size in sizes.values()).most_common(1)[0][0]
    ranks = {name: size.rank for name, size in sizes.items() if size.rank != rank}
    alphas = {name: size.alpha for name, size in sizes.items() if size.alpha != alpha}
    return rank, alpha, ranks, alphas


def _plain(value: float) -> int | float:
    """A whole number as an int: vLLM's and llama.cpp's readers expect one."""
    return int(value) if float(value).is_integer() else float(value)
