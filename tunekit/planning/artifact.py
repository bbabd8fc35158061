"""A folder of lowered steps: written by ``tunekit compile``, read back anywhere.

``manifest.json`` says what each file is and holds its sha256; ``recipe.yaml`` is the recipe with
every field spelt out; each phase has its program as ``jax.export`` serialises it and, to be read,
as StableHLO text.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import export

from tunekit import __version__
from tunekit.errors import ExportError, did_you_mean
from tunekit.folder import replacing
from tunekit.planning.compiled import target_sizes
from tunekit.planning.exporting import ExportedPhase, exported_phases
from tunekit.planning.hardware import Target
from tunekit.planning.shapes import planned
from tunekit.recipe import Recipe

MANIFEST, RECIPE = "manifest.json", "recipe.yaml"


@dataclass(frozen=True, eq=False)
class Artifact:
    """The lowered steps of a run."""

    manifest: Mapping[str, Any]
    """What ``manifest.json`` says."""
    phases: tuple[ExportedPhase, ...]

    def step(self, phase: int, values: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns the results by name of one step of a phase, run on this machine.

        Args:
            phase: by number from 0.
            values: the arguments by name, as the manifest lists them.

        Raises:
            ExportError: an argument is missing, unknown or of another shape, or the step was not
                lowered for a machine like this one.
        """
        lowered = self.phases[phase]
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if here not in (lowered_for := lowered.exported.platforms):
            raise ExportError(
                f"the step is lowered for {' and '.join(lowered_for)}, and this machine's devices "
                f"are {here}; compile the recipe for platforms that include it."
            )
        expected = {each["name"]: each for each in lowered.arguments}
        for name in values:
            if name not in expected:
                raise ExportError(
                    f"the step has no argument {name!r}.{did_you_mean(name, expected)}"
                )
        for name, each in expected.items():
            if name not in values:
                raise ExportError(
                    f"the step needs the argument {name!r}: {each['dtype']} {each['shape']}."
                )
            if list(values[name].shape) != each["shape"]:
                raise ExportError(
                    f"argument {name!r}: expected the shape {each['shape']}, got "
                    f"{list(values[name].shape)}."
                )
        flat = lowered.exported.call(*(values[name] for name in expected))
        return dict(zip(lowered.results, flat, strict=True))


def write_artifact(
    recipe: Recipe,
    target: Target,
    out: str | Path,
    *,
    examples: int | None = None,
    labels: int | Sequence[str] | None = None,
    platforms: Sequence[str] | None = None,
) -> Artifact:
    """Writes the lowered steps of every phase of a recipe into a folder, and returns them.

    Args:
        recipe: its ``runtime.mesh`` says how the devices share the work.
        target: the machine that the steps are for.
        out: the folder; an earlier artifact in it is replaced.
        examples: of the training data; `None` as in ``tunekit.planning.shapes.planned``.
        labels: of the task, or how many.
        platforms: of ``jax.export`` that the steps can be called on; `None` is the target's.

    Raises:
        ModelError: the folder holds other files.
        RecipeError: the mesh is not of these devices, or a batch does not divide.
    """
    run = planned(recipe, examples=examples, labels=labels)
    phases = exported_phases(run, target, platforms=platforms)
    sizes = target_sizes(run, target)
    manifest: dict[str, Any] = {
        "format": 1,
        "versions": {"tunekit": __version__, **_versions("jax", "keras", "keras-hub")},
        "target": {"name": target.name, "chip": target.chip.label, "devices": target.count},
        "mesh": {"data": sizes.data, "fsdp": sizes.fsdp, "tensor": sizes.tensor},
        "notes": [*run.notes, *_told_of(target)],
        "phases": [],
        "sha256": {},
    }
    names = [f"phase-{number + 1}" for number in range(len(phases))]
    ours = {MANIFEST, RECIPE, *(f"{n}.{end}" for n in names for end in ("jax", "stablehlo.txt"))}
    with replacing(Path(out), ours, {MANIFEST}) as folder:
        files = {RECIPE: recipe.to_yaml().encode()}
        for name, phase in zip(names, phases, strict=True):
            files[f"{name}.jax"] = bytes(phase.exported.serialize())
            files[f"{name}.stablehlo.txt"] = phase.exported.mlir_module().encode()
            manifest["phases"].append(
                {
                    "label": phase.label,
                    "program": f"{name}.jax",
                    "text": f"{name}.stablehlo.txt",
                    "platforms": list(phase.exported.platforms),
                    "arguments": list(phase.arguments),
                    "results": list(phase.results),
                }
            )
        for name, content in files.items():
            (folder / name).write_bytes(content)
            manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
        text = json.dumps(manifest, indent=1) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return Artifact(manifest, tuple(phases))


def _told_of(target: Target) -> list[str]:
    """What sets the programs in files apart from those that a run there has."""
    if target.kind != "gpu" or target.count == 1:
        return []
    return ["attention is plain: how cuDNN's is divided over several cards is nothing for a file."]


def load_artifact(folder: str | Path) -> Artifact:
    """Returns the lowered steps that `write_artifact` wrote.

    Raises:
        ExportError: the folder has no manifest, or a file is missing or not as it was written.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ExportError(
            f"{folder} holds no {MANIFEST}: it is no folder that tunekit compile wrote."
        )
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name, digest in manifest["sha256"].items():
        found = folder / name
        if not found.is_file():
            raise ExportError(f"{found} is missing; compile the recipe again.")
        if hashlib.sha256(found.read_bytes()).hexdigest() != digest:
            raise ExportError(f"{found} is not as it was written; compile the recipe again.")
    phases = tuple(
        ExportedPhase(
            phase["label"],
            export.deserialize(bytearray((folder / phase["program"]).read_bytes())),
            tuple(phase["arguments"]),
            tuple(phase["results"]),
        )
        for phase in manifest["phases"]
    )
    return Artifact(manifest, phases)


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
