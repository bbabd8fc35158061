"""The optimizer, as a recipe says it: for the whole run, or for one phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

Decay = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class OptimizerSpec:
    """How gradients become steps; the learning rate belongs to the phases of the plan."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
    }

    name: Literal["adamw", "adam", "sgd", "lion", "muon"] = "adamw"
    """The update rule."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Decoupled decay of kernels; biases, norms and other vectors have none."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moments (adamw, adam, lion, muon)."""
    epsilon: Annotated[float, Gt(0)] = 1e-8
    """Added to the root of the second moment (adamw, adam)."""
    momentum: Decay = 0.9
    """Nesterov momentum of sgd."""
    clip_norm: Annotated[float, Gt(0)] | None = None
    """Largest global norm of the gradients; null does not clip."""
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    """Decay of the moving average of the weights that the result takes; null takes the last."""
