"""What a recipe says of a run: what it writes while it lasts, and what it keeps."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from tunekit.durations import Duration

Monitor = Literal[
    "auto",
    "loss",
    "accuracy",
    "f1",
    "f1_macro",
    "f1_micro",
    "mean_average_precision",
    "exact_match",
    "perplexity",
    "pearson",
    "spearman",
    "recall_at_1",
]
LOWER_IS_BETTER = ("loss", "perplexity", "expected_calibration_error")
"""The metrics of which less is better."""

MeshWord = Literal["auto", "one", "data", "fsdp", "tensor"]
AxisSize = Annotated[int, Ge(1)]

_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class MeshSpec:
    """How many devices share the work in each way; together they are all devices of the run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    data: AxisSize | None = None
    """Groups of devices with a whole copy of the model and a share of each batch; null: what the
    others leave."""
    fsdp: AxisSize = 1
    """Devices that share weights and optimizer states, and a share of each batch each."""
    tensor: AxisSize = 1
    """Devices that share each layer's product, by attention heads and widths of the MLP."""


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
    monitor: Monitor = "auto"
    """Validation metric that says which weights are best; auto: the task's own, such as
    accuracy."""
    restore_best: bool = True
    """Ends with the weights of the best evaluation, not with the last."""
    remat: Literal["none", "blocks", "full", "dots", "offload"] = "none"
    """What of the forward pass is computed anew for the backward pass, to save memory: nothing;
    each block, from its inputs; also the whole backbone, from its own; each block but its products
    with weights; each block, from inputs that wait in the host's memory (both not on a CPU)."""
    mesh: MeshWord | MeshSpec = "auto"
    """How several devices share the work: one way for all of them, or a number for each of data,
    fsdp and tensor; one: the first device alone; auto: copies where the model fits, else shares."""
    sharding: dict[str, tuple[str | None, ...]] = field(default_factory=dict, hash=False)
    """From patterns of variables' names to the mesh axis of each dimension, or null; the first that
    matches counts, and what none matches is shared as its layer says."""
    progress: Literal["auto", "rich", "plain", "none"] = "auto"
    """A progress bar, plain lines or silence; auto: a bar on a terminal, else lines."""
    profile: bool = False
    """Whether to measure what the time goes to, and to write a trace of some steps into the folder
    profile/ of `out`."""
    profile_steps: str | None = None
    """Steps of the trace, counted from 0: "10:13" are 10, 11 and 12; null: three of the first."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) for each value that no run can have."""
        found: list[tuple[str, str]] = []
        if self.resume and self.out is None:
            message = "there is no folder to resume from; set runtime.out to the earlier run's."
            found.append(("resume", message))
        if self.profile_steps is not None:
            try:
                traced_steps(self.profile_steps)
            except ValueError as error:
                found.append(("profile_steps", str(error)))
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


def traced_steps(text: str) -> range:
    """Returns the steps that "A:B" means, counted from 0, the last of them B - 1.

    Raises:
        ValueError: it is something else.

    Example:
        >>> traced_steps("10:13")
        range(10, 13)
    """
    found = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(
            f"expected steps as FIRST:END, such as '10:13', which are 10, 11 and 12; got {text!r}"
        )
    return range(int(found[1]), int(found[2]))
