"""Checkpoints of a run, by Orbax: the newest few and the best, each enough to go on exactly.

A checkpoint is written to a temporary folder and renamed by Orbax, so that a run killed while
writing leaves the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tunekit.errors import CheckpointError
from tunekit.models.forward import Forward
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.resolve import ResolvedPhase
from tunekit.training.layout import Layout
from tunekit.training.loss_scale import first_scale, needs_scaling
from tunekit.training.optimizers import initial_states
from tunekit.training.state import Progress, State, moving_statistics
from tunekit.training.step import Carried, Values


class Checkpoints:
    """The checkpoints in one folder, of one run."""

    def __init__(self, folder: Path, *, identity: Mapping[str, Any], keep: int) -> None:
        """Opens the checkpoints in `folder`, which is made if absent.

        Args:
            folder: where they are.
            identity: what must be equal for a run to go on from them: JSON values by the name that
                an error gives them.
            keep: number of newest checkpoints kept. The best one is kept besides.
        """
        self._identity = json.loads(json.dumps(identity))
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,  # Without it the scores below are not written.
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(
                    [
                        ocp.checkpoint_managers.LatestN(keep),
                        ocp.checkpoint_managers.BestN(get_metric_fn=_score, n=1),
                    ]
                ),
                # The step donates the arrays that a background write would still be reading.
                enable_async_checkpointing=False,
            ),
        )

    def clear(self) -> None:
        """Leaves no checkpoint of an earlier run in the folder."""
        for step in self._manager.all_steps():
            self._manager.delete(step)

    def save(self, state: State) -> None:
        """Writes `state`, which must be whole, as the checkpoint of its step."""
        arrays = {
            "moved": state.moved(),
            "optimizer": state.carried.optimizer,
            "ema": state.carried.ema,
            "loss_scale": state.carried.loss_scale,
            "best": state.best or {},
            "phase_best": state.phase_best or {},
        }
        host = {
            "progress": state.progress.to_json(),
            "identity": self._identity,
            "best_names": sorted(state.best or {}),
            "phase_best_names": sorted(state.phase_best or {}),
        }
        self._manager.save(
            state.progress.step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave({k: v for k, v in arrays.items() if v}),
                host=ocp.args.JsonSave(host),
            ),
            metrics={"score": state.progress.score},
            force=True,
        )

    def restore(
        self,
        forward: Forward,
        phases: Sequence[ResolvedPhase],
        optimizers: Sequence[OptimizerSpec],
        layout: Layout | None = None,
    ) -> State | None:
        """Returns the state of the newest checkpoint, or `None` where there is none.

        Args:
            forward: the model's forward pass.
            phases: of the plan.
            optimizers: one a phase.
            layout: where its arrays are to lie, wherever they lay; `None` is one device.

        Raises:
            CheckpointError: the checkpoint belongs to another run; the message says what differs.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        host = self._restored(step, host=ocp.args.JsonRestore())["host"]
        self._check(host["identity"])
        progress = Progress(**host["progress"])
        optimizer = optimizers[progress.phase]
        values = forward.values()
        moved = {name: values[name] for name in progress.moved}
        trainable = {
            name: jax.ShapeDtypeStruct(values[name].shape, "float32")
            for name in forward.variables
            if name in phases[progress.phase].trainable
        }
        current = {name: trainable.get(name, value) for name, value in moved.items()}
        template = {
            "moved": current,
            "optimizer": jax.eval_shape(lambda: initial_states(optimizer, _zeros(trainable))),
            "ema": trainable if optimizer.ema is not None else {},
            "best": {name: moved[name] for name in host["best_names"]},
            "phase_best": {name: current[name] for name in host["phase_best_names"]},
            "loss_scale": jax.eval_shape(first_scale) if needs_scaling(forward) else {},
        }
        template = _on_one_device(template) if layout is None else layout.templates(template)
        template = {key: tree for key, tree in template.items() if tree}
        arrays = self._restored(step, arrays=ocp.args.StandardRestore(template))["arrays"]
        mutable = moving_statistics(forward, phases[progress.phase])
        return _state(arrays, trainable, mutable, forward, progress)

    def close(self) -> None:
        """Ends Orbax' threads."""
        self._manager.close()

    def _restored(self, step: int, **what: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**what))

    def _check(self, identity: Mapping[str, Any]) -> None:
        differences = [
            f"{name} was {identity.get(name)!r} and is {value!r}"
            for name, value in self._identity.items()
            if identity.get(name) != value
        ]
        if differences:
            raise CheckpointError(
                f"the checkpoints in {self._folder} belong to another run: "
                f"{'; '.join(differences)}. Resume with the same recipe and data, or choose "
                "another runtime.out."
            )


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _on_one_device(template: Any) -> Any:
    """The shapes of arrays that are read whole here, whatever they were shared by when written."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), template
    )


def _zeros(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Values:
    return {name: jax.numpy.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}


def _state(
    arrays: Mapping[str, Any],
    trainable: Mapping[str, Any],
    mutable: Sequence[str],
    forward: Forward,
    progress: Progress,
) -> State:
    moved = arrays["moved"]
    carried = Carried(
        trainable={name: moved[name] for name in trainable},
        mutable={name: moved[name] for name in mutable},
        optimizer=arrays.get("optimizer", {}),
        ema=arrays.get("ema", {}),
        loss_scale=arrays.get("loss_scale", {}),
    )
    taken = {*trainable, *mutable}
    values = {**forward.values(), **moved}
    frozen = {name: value for name, value in values.items() if name not in taken}
    return State(carried, frozen, arrays.get("best"), progress, arrays.get("phase_best"))
