"""What a recipe says of training: the optimizer, and what a run writes while it lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from tunekit.durations import Duration

Decay = Annotated[float, Ge(0), Lt(1)]
_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class OptimizerSpec:
    """How gradients become steps; the learning rate belongs to the phases of the plan."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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


@dataclass(frozen=True)
class RuntimeSpec:
    """Where a run writes, how often it looks at itself, and what it keeps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    out: str | None = None
    """Folder of the result and its checkpoints; null writes nothing."""
    resume: bool = False
    """Goes on from the last checkpoint in the folder `out`, where there is one."""
    checkpoint_every: str | None = "1 epoch"
    """Time between checkpoints ("1 epoch", "500 steps"); null writes none."""
    keep_checkpoints: Annotated[int, Ge(1)] = 2
    """Checkpoints kept, the newest ones; the best is kept besides."""
    monitor: Literal["loss", "accuracy"] = "accuracy"
    """Validation metric that says which weights are best."""
    restore_best: bool = True
    """Ends with the weights of the best evaluation, not with the last."""
    progress: Literal["auto", "rich", "plain", "none"] = "auto"
    """A progress bar, plain lines or silence; auto: a bar on a terminal, else lines."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) for each value that no run can have."""
        found: list[tuple[str, str]] = []
        if self.resume and self.out is None:
            message = "there is no folder to resume from; set runtime.out to the earlier run's."
            found.append(("resume", message))
        if self.checkpoint_every is not None:
            found.extend(("checkpoint_every", message) for message in self._checkpoint_issues())
        return found

    def _checkpoint_issues(self) -> list[str]:
        text = self.checkpoint_every or ""
        try:
            duration = Duration.parse(text)
        except ValueError as error:
            return [str(error)]
        return [] if duration.amount else [f"expected a duration above 0, got {text!r}"]
