"""Trains small networks on eight virtual devices in every way to share them; prints JSON lines.

A process of its own: the number of devices is settled when JAX starts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np

import tunekit
from tests.contract.families import images
from tests.contract.text_families import LENGTH, llama, write_rows
from tunekit.models import hub
from tunekit.recipe import Recipe
from tunekit.session import session
from tunekit.training.spec import MeshSpec

FAMILIES = ("vit", "llama")
MESHES: dict[str, Any] = {
    "data": "data",
    "fsdp": "fsdp",
    "tensor": MeshSpec(data=None, tensor=4),
    "data_fsdp": MeshSpec(data=2, fsdp=4),
    "all": MeshSpec(data=2, fsdp=2, tensor=2),
    "micro": MeshSpec(data=2, fsdp=4),
}
RUNS = {"full": tuple(MESHES), "lora": ("data", "fsdp", "all")}
"""The meshes that each method is trained on; "micro" in micro-batches, one device in one."""
EXAMPLES, BATCH = 20, 16
"""Two batches a pass, the second with four rows that count."""


def vit() -> keras.Model:
    """Two transformer layers of four heads, wide enough to be shared by eight devices."""
    return hub.keras_hub().models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=16,
        num_layers=2,
        num_heads=4,
        hidden_dim=128,
        mlp_dim=256,
    )


def wide_llama(folder: Path) -> Path:
    """Writes a Llama of two blocks with eight heads, four of keys and values; no weights."""
    llama(folder)
    path = folder / "config.json"
    wide = {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "vocab_size": 256,
        "tie_word_embeddings": False,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | wide))
    return folder


def recipe(family: str, method: str, folder: Path, mesh: Any, **changes: Any) -> Recipe:
    """Two passes, evaluated, over an odd number of examples."""
    keywords: dict[str, Any] = {
        "method": "full" if method == "full" else tunekit.LoRA(rank=8, targets="linear"),
        "epochs": 2,
        "learning_rate": 1e-3,
        "batch_size": BATCH,
        "progress": "none",
        "seed": 1,
        **changes,
    }
    if family == "llama":
        keywords |= {
            "model": str(folder / "llama"),
            "data": str(folder / "sft.jsonl"),
            "task": tunekit.LanguageModellingSpec(name="sft", samples=0),
            "max_length": LENGTH,
        }
    made = Recipe.from_keywords(**keywords)
    runtime = replace(made.runtime, mesh=mesh, restore_best=False)
    backbone = replace(made.backbone, pretrained=family != "llama")
    return made.model_copy(update={"runtime": runtime, "backbone": backbone})


def trained(family: str, method: str, folder: Path, mesh: Any, **changes: Any) -> dict[str, Any]:
    """Losses, values and bytes of a run."""
    given: dict[str, Any] = {}
    if family == "vit":
        keras.utils.set_random_seed(0)
        given = {"model": vit(), "data": images(EXAMPLES + 4)}
    asked = recipe(family, method, folder, mesh, **given, **changes)
    with session(asked, **given) as ready:
        outcome = ready.train()
        forward = ready.feeder.forward
        names = [n for n in forward.variables if forward.roles[n] != "seed"]
        values = {n: np.asarray(forward.variables[n].value, np.float32) for n in names}
        layout = ready.layout
    return {
        "losses": [row["loss"] for row in outcome.history],
        "val_losses": [row["val_loss"] for row in outcome.history],
        "values": values,
        "memory": outcome.phases[0]["memory"],
        "mesh": str(layout.sizes) if layout else "one device",
    }


def main(folder: Path) -> None:
    """Prints, of each run, how far it is from the same on one device."""
    assert len(jax.devices()) == 8, jax.devices()
    wide_llama(folder / "llama")
    write_rows("sft", folder, EXAMPLES + 4).rename(folder / "sft.jsonl")
    for family in FAMILIES:
        for method, meshes in RUNS.items():
            alone = trained(family, method, folder, "one")
            for name in meshes:
                changes = {"accumulate": 2} if name == "micro" else {}
                shared = trained(family, method, folder, MESHES[name], **changes)
                report(f"{family} {method} {name}", shared, alone)


def report(name: str, shared: dict[str, Any], alone: dict[str, Any]) -> None:
    """Prints one comparison."""
    apart = {n: float(np.max(np.abs(v - alone["values"][n]))) for n, v in shared["values"].items()}
    found = {
        "name": name,
        "mesh": shared["mesh"],
        "losses": [alone["losses"], shared["losses"]],
        "val_losses": [alone["val_losses"], shared["val_losses"]],
        "values_apart": max(apart.values()),
        "memory": [alone["memory"], shared["memory"]],
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
