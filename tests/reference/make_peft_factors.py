"""Writes peft_factors.npz: what PEFT begins LoRAs with, and what it makes of several.

Run from the repository, in an environment of its own:

    pip install torch transformers peft
    python -m tests.reference.make_peft_factors
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

TARGET = Path(__file__).parent / "peft_factors.npz"
WEIGHTS = [0.7, -0.4]
DENSITY = 0.4
LAYERS = ("first", "second")
PAIRS = {
    # Adapters' ranks, and what PEFT calls each combination of the two.
    "equal": ((2, 2), {"linear": "linear", "cat": "cat", "svd": "svd", "ties": "ties_svd"}),
    "unequal": ((2, 3), {"cat": "cat", "svd": "svd"}),
}


class Two(torch.nn.Module):
    """Two linear layers of other sizes."""

    def __init__(self) -> None:
        """Draws them."""
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(6, 5, bias=False)
        self.second = torch.nn.Linear(5, 7, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns one after the other."""
        return self.second(self.first(x))


def starts() -> dict[str, np.ndarray]:
    """Returns the factors and the residual of each init that is made of the weights."""
    found = {}
    for name in LAYERS:
        found[f"weight/{name}"] = getattr(Two(), name).weight.detach().numpy().T
    for init in ("pissa", "olora"):
        config = LoraConfig(r=3, lora_alpha=6, init_lora_weights=init, target_modules=list(LAYERS))
        model = get_peft_model(Two(), config).base_model.model
        for name in LAYERS:
            layer = getattr(model, name)
            arrays = {
                "a": layer.lora_A["default"].weight,
                "b": layer.lora_B["default"].weight,
                "residual": layer.base_layer.weight,
            }
            for key, array in arrays.items():
                found[f"{init}/{name}/{key}"] = array.detach().numpy().T
    return found


def combinations() -> dict[str, np.ndarray]:
    """Returns the adapters of each pair, and the deltas of what PEFT makes of them."""
    found = {}
    for pair, (ranks, kinds) in PAIRS.items():
        model = get_peft_model(Two(), _config(ranks[0], 4, LAYERS), adapter_name="0")
        model.add_adapter("1", _config(ranks[1], 3, LAYERS[1:]))  # the first layer has one alone
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        for kind, theirs in kinds.items():
            model.add_weighted_adapter(["0", "1"], WEIGHTS, kind, theirs, density=DENSITY)
        for name in LAYERS:
            layer = getattr(model.base_model.model, name)
            for adapter in [one for one in ("0", "1") if one in layer.lora_A]:
                found[f"{pair}/{adapter}/{name}/a"] = _array(layer.lora_A[adapter].weight)
                found[f"{pair}/{adapter}/{name}/b"] = _array(layer.lora_B[adapter].weight)
                found[f"{pair}/{adapter}/{name}/scaling"] = np.array(layer.scaling[adapter])
            for kind in kinds:
                found[f"{pair}/{kind}/{name}"] = _array(layer.get_delta_weight(kind))
    return found


def _config(rank: int, alpha: int, layers: tuple[str, ...]) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers))


def _array(parameter: torch.Tensor) -> np.ndarray:
    """Returns a torch weight [out, in] as we hold it, [in, out]."""
    return parameter.detach().numpy().T.copy()


def main() -> None:
    """Writes the arrays."""
    np.savez_compressed(TARGET, **starts(), **combinations())  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
