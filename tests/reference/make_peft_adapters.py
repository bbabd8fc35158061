"""Writes tests/reference/peft: tiny models, adapters that PEFT trained on them, and the answers.

Run from the repository, in an environment of its own:

    pip install torch transformers peft safetensors numpy
    PYTHONHASHSEED=0 python -m tests.reference.make_peft_adapters
    python -m tests.reference.make_peft_adapters check ADAPTER [ANSWERS.npz]

PEFT writes sets of names in the order of their hashes, which the variable fixes. The second form
loads a folder written by tunekit into PEFT, on the model it names, and prints what PEFT answers
(and how far ANSWERS, by the same names, are from it). PEFT warns of a tensor it has no place for
and goes on; here that is an error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from peft import IA3Config, LoraConfig, VeraConfig

OUT = Path(__file__).parent / "peft"
VOCABULARY = 64
STEPS = 6
_WIDTHS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "initializer_range": 0.3,
}
_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 32}
_ENCODER = {**_WIDTHS, **_TEXT, "num_labels": 3}
_DECODER = {**_WIDTHS, **_TEXT, "num_key_value_heads": 2, "tie_word_embeddings": False}
_IMAGE = {**_WIDTHS, "image_size": 32, "patch_size": 8, "num_labels": 3}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**_DECODER, "rms_norm_eps": 1e-5}),
    "mistral": ("MistralForCausalLM", {**_DECODER, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {**_DECODER, "tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", {**_DECODER, "tie_word_embeddings": True, "head_dim": 4}),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            **{"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24, "n_positions": 32},
            **{"vocab_size": VOCABULARY, "initializer_range": 0.3},
            **{"bos_token_id": 1, "eos_token_id": 1},
        },
    ),
    "bert": ("BertForSequenceClassification", _ENCODER),
    "roberta": ("RobertaForSequenceClassification", _ENCODER),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {
            **{"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "num_labels": 3},
            **{**_TEXT, "initializer_range": 0.3},
        },
    ),
    "vit": ("ViTForImageClassification", _IMAGE),
    "dinov2": ("Dinov2ForImageClassification", {**_IMAGE, "mlp_ratio": 2}),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 1], "num_labels": 3},
    ),
}

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_BERT = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]
_IMAGES = {"modules_to_save": ["classifier"]}
_CAUSAL = {"task_type": "CAUSAL_LM"}
_LABELS = {"task_type": "SEQ_CLS"}

ADAPTERS: dict[str, peft.PeftConfig] = {
    "llama-lora": LoraConfig(r=4, lora_alpha=8, target_modules=_LINEAR, **_CAUSAL),
    "llama-rslora": LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"], **_CAUSAL
    ),
    "llama-dora": LoraConfig(
        r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"]
    ),
    "llama-patterns": LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["q_proj", "k_proj", "down_proj"],
        layers_to_transform=[1],
        rank_pattern={"q_proj": 3},
        alpha_pattern={r"layers.\d.self_attn.k_proj": 1},
        **_CAUSAL,
    ),
    "llama-embedding": LoraConfig(
        r=2, lora_alpha=4, target_modules=["embed_tokens", "lm_head"], **_CAUSAL
    ),
    "llama-ia3": IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "llama-vera": VeraConfig(r=4, target_modules=["q_proj", "v_proj"], **_CAUSAL),
    "mistral-lora": LoraConfig(r=2, lora_alpha=4, target_modules=_LINEAR, **_CAUSAL),
    "qwen2-lora": LoraConfig(
        r=2, lora_alpha=4, target_modules=_LINEAR, bias="lora_only", **_CAUSAL
    ),
    "gemma-lora": LoraConfig(r=2, lora_alpha=4, target_modules=_LINEAR, **_CAUSAL),
    "gpt2-lora": LoraConfig(
        r=2, lora_alpha=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
    ),
    "gpt2-dora": LoraConfig(
        **{"r": 2, "lora_alpha": 4, "use_dora": True, "bias": "lora_only"},
        **{"target_modules": ["c_attn"], "fan_in_fan_out": True},
    ),
    "gpt2-ia3": IA3Config(
        target_modules=["c_attn", "mlp.c_proj"],
        feedforward_modules=["mlp.c_proj"],
        fan_in_fan_out=True,
    ),
    "bert-lora": LoraConfig(r=4, lora_alpha=8, target_modules=_BERT, bias="lora_only", **_LABELS),
    "bert-rslora": LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["query", "value"], **_LABELS
    ),
    "bert-dora": LoraConfig(
        r=4, lora_alpha=8, use_dora=True, target_modules=_BERT, bias="lora_only", **_LABELS
    ),
    "bert-biases": LoraConfig(r=2, lora_alpha=4, target_modules=["query"], bias="all", **_LABELS),
    "bert-ia3": IA3Config(
        target_modules=r".*(key|value|\d\.output\.dense)",
        feedforward_modules=r".*\d\.output\.dense",
        **_LABELS,
    ),
    # What PEFT does by default: "output.dense" is also the end of "attention.output.dense".
    "bert-ia3-default": IA3Config(**_LABELS),
    "roberta-lora": LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], **_LABELS),
    "distilbert-lora": LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_lin", "v_lin", "out_lin", "lin1", "lin2"], **_LABELS
    ),
    "vit-lora": LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1", "fc2"], **_IMAGES
    ),
    "vit-rslora": LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"], **_IMAGES
    ),
    "vit-dora": LoraConfig(
        **{"r": 4, "lora_alpha": 8, "use_dora": True, "bias": "lora_only"},
        **{"target_modules": ["q_proj", "v_proj", "o_proj"], **_IMAGES},
    ),
    "dinov2-lora": LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "o_proj", "fc1", "fc2"], **_IMAGES
    ),
    "resnet-lora": LoraConfig(
        r=2, lora_alpha=4, target_modules=["convolution"], modules_to_save=["classifier.1"]
    ),
    "resnet-dora": LoraConfig(
        **{"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["convolution"]},
        modules_to_save=["classifier.1"],
    ),
}


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Three examples: token ids of which one row is padded at its end, or pixels."""
    random = np.random.default_rng(7)
    if kind in ("vit", "dinov2", "resnet"):
        pixels = random.normal(size=(3, 3, 32, 32)).astype("f4")
        return {"pixel_values": torch.from_numpy(pixels)}
    ids = random.integers(4, VOCABULARY, size=(3, 9))
    mask = np.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 1, 0
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def base(kind: str, folder: Path) -> torch.nn.Module:
    """The model in `folder`, in float32."""
    return getattr(transformers, MODELS[kind][0]).from_pretrained(folder, dtype=torch.float32)


def make_base(kind: str) -> None:
    """Writes a model with weights that matter: no zero bias, no norm that is the identity."""
    architecture, options = MODELS[kind]
    torch.manual_seed(0)
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**options))
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.ndim == 1 and value.is_floating_point() and "inv_freq" not in name:
            value.data += 0.2 * torch.randn_like(value).abs_()
    model.save_pretrained(kind)
    (Path(kind) / "generation_config.json").unlink(missing_ok=True)
    if "pixel_values" in inputs(kind):
        size = {"height": 32, "width": 32}
        processor = {"image_processor_type": "ViTImageProcessor", "size": size}
        (Path(kind) / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def train(kind: str, config: peft.PeftConfig) -> torch.nn.Module:
    """The model with an adapter after a few steps of Adam towards random labels."""
    torch.manual_seed(1)
    model = peft.get_peft_model(base(kind, Path(kind)), config)
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(wanted, lr=0.03)
    batch = inputs(kind)
    for _ in range(STEPS):
        logits = model(**batch).logits
        labels = torch.randint(logits.shape[-1], logits.shape[:-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def answers(model: torch.nn.Module, kind: str) -> dict[str, np.ndarray]:
    """The logits, and what the body of a classifier gives: hidden states, or a feature map."""
    whole = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    with torch.no_grad():
        found = {"logits": model.eval()(**inputs(kind)).logits.numpy()}
        if "Classification" in MODELS[kind][0]:
            body = getattr(whole, whole.base_model_prefix)
            found["hidden"] = body(**inputs(kind)).last_hidden_state.numpy()
    return found


def fields_of_peft() -> dict[str, Mapping[str, Any]]:
    """Every field that PEFT writes in adapter_config.json, with its default."""
    kinds = {"LORA": LoraConfig, "IA3": IA3Config, "VERA": VeraConfig}
    fields = {name: kind().to_dict() for name, kind in kinds.items()}
    return json.loads(json.dumps(fields, default=list))


def make() -> None:
    """Writes everything anew, but what tunekit wrote (train_for_peft.py)."""
    OUT.mkdir(exist_ok=True)
    for entry in OUT.iterdir():
        if entry.is_dir() and entry.name != "written":
            shutil.rmtree(entry)
    os.chdir(OUT)  # PEFT writes the path of the base as it was given
    expected: dict[str, np.ndarray] = {}
    for kind in MODELS:
        make_base(kind)
        expected |= {f"{kind}/{k}": v for k, v in answers(base(kind, Path(kind)), kind).items()}
        expected |= {f"inputs/{kind}/{k}": v.numpy() for k, v in inputs(kind).items()}
    for name, config in ADAPTERS.items():
        kind = name.split("-")[0]
        model = train(kind, dataclasses.replace(config))
        model.save_pretrained(name)
        (Path(name) / "README.md").unlink(missing_ok=True)
        expected |= {f"{name}/{k}": v for k, v in answers(model, kind).items()}
        moved = np.abs(expected[f"{name}/logits"] - expected[f"{kind}/logits"]).max()
        print(f"{name:20} moved the logits by {moved:.3f}")
        assert moved > 0.05, "an adapter that changes nothing proves nothing"
    np.savez_compressed("expected.npz", **expected)
    Path("fields.json").write_text(json.dumps(fields_of_peft(), indent=1, sort_keys=True) + "\n")


def check(folder: Path, theirs: Path | None) -> None:
    """Prints what PEFT answers with the adapter in `folder`."""
    config = json.loads((folder / "adapter_config.json").read_text())
    kind = config["base_model_name_or_path"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*adapter keys.*")
        model = peft.PeftModel.from_pretrained(base(kind, OUT / kind), folder)
    found = answers(model, kind)
    for name, value in found.items():
        print(name, value.shape, value.ravel()[:6])
    if theirs:
        for name, value in np.load(theirs).items():
            print(f"{name}: differs by at most {np.abs(value - found[name]).max():.2e}")
    np.savez_compressed(folder / "peft_answers.npz", **found)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    if sys.argv[1:2] == ["check"]:
        check(Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3:] else None)
    else:
        make()
