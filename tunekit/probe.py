"""Where to cut: linear probes and gradients at every depth, and the plan they suggest."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit import recipe_text
from tunekit.asked import in_memory
from tunekit.data.pipeline import Batches
from tunekit.data.source import Source, Splits, open_data
from tunekit.errors import DataError
from tunekit.evaluation.depth_features import DepthFeatures
from tunekit.evaluation.drafted_plan import Depth, Evidence, drafted_plan
from tunekit.evaluation.gradient_noise import GradientNoise, gradient_noise
from tunekit.evaluation.linear_probe import LinearProbe, fit_probes
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.spec import Dtype
from tunekit.plans.phase import Phase
from tunekit.ready_model import check_given
from tunekit.recipe import Recipe
from tunekit.report.probe_plot import plot_probe
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.spec import labels_of_images

GRADIENT_BATCHES = 8


@dataclass(frozen=True, eq=False)
class Probe:
    """What is to be had from a model at each depth, and a plan to begin with.

    Example:
        >>> found = tunekit.probe("efficientnet_lite0", "photos/")
        >>> print(found)
        >>> result = tunekit.run(found.recipe)
    """

    evidence: Evidence
    """What was measured: accuracy, its standard error and the gradient's clarity by depth."""
    recipe: Recipe
    """The drafted plan, ready to run where model and data are named by it."""
    reasons: tuple[str, ...]
    """Why this plan."""

    def table(self) -> str:
        """Returns the depths as a table; noise scale: batch size where signal equals noise."""
        rows = [("depth", "parameters", "accuracy", "gradient SNR", "noise scale", "|g| / |w|")]
        for depth in self.evidence.depths:
            scale = self.evidence.noise_scale(depth)
            rows.append(
                (
                    depth.name,
                    f"{depth.parameters:,}",
                    f"{depth.accuracy:.3f} ± {depth.standard_error:.3f}",
                    f"{depth.snr:.3f}",
                    f"{scale:,.0f}" if np.isfinite(scale) else "-",
                    f"{depth.relative_gradient:.4f}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        """Returns the table, the plan and its reasons."""
        return f"{self.table()}\n\n{self.to_yaml()}"

    def to_yaml(self) -> str:
        """Returns the recipe of the drafted plan, its reasons as comments above it."""
        whole = self.recipe.model_dump(mode="json")
        tree = self.recipe.model_dump(mode="json", exclude_defaults=True)
        # What a reader looks for first is said even where it is the default.
        tree = {"backbone": {"name": whole["backbone"]["name"]}, "data": {}} | tree
        tree["backbone"] = {"name": whole["backbone"]["name"]} | tree["backbone"]
        tree["data"] = {"path": whole["data"]["path"]} | tree["data"]
        for said, phase in zip(tree["plan"], whole["plan"], strict=True):
            said["learning_rate"] = phase["learning_rate"]
        comments = [
            textwrap.fill(
                reason[0].upper() + reason[1:],
                width=98,
                initial_indent="# - ",
                subsequent_indent="#   ",
                break_on_hyphens=False,
            )
            for reason in self.reasons
        ]
        title = "# Drafted by tunekit probe; a place to begin, not a verdict."
        return "\n".join([title, *comments, recipe_text.dump(tree)])

    def plot(self, path: str | Path) -> Path:
        """Writes accuracy and gradient by depth as a PNG; returns its path."""
        return plot_probe(self.to_json(), path)

    def to_json(self) -> dict[str, Any]:
        """Returns what was measured, as plain values."""
        return asdict(self.evidence) | {"reasons": list(self.reasons)}

    def save(self, folder: str | Path) -> Path:
        """Writes plan.yaml, probe.png and probe.json into `folder`, which is made; returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.yaml").write_text(self.to_yaml(), encoding="utf-8")
        (folder / "probe.json").write_text(json.dumps(self.to_json(), indent=2), encoding="utf-8")
        self.plot(folder / "probe.png")
        return folder


def probe(
    model: str | Path | Model | keras.Model,
    data: Any,
    *,
    labels: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    precision: Dtype = "float32",
    validation: Any = None,
    batch_size: int | None = None,
    max_examples: int | None = 5000,
    seed: int = 0,
) -> Probe:
    """Returns linear probes and gradients of `model` at every depth, and a plan drafted from them.

    One pass over the data gives every depth's features, pooled at once. The gradients are those of
    the loss of validation examples under the linear probe of the last depth, in inference mode:
    the place from which training goes on once the head is fitted. The model given is not changed.

    Args:
        model: bundled name, preset, folder, keras.applications name, `Model` or `keras.Model`.
        data: a path, (images, labels), or a dict of those by split name.
        labels: order of the label names.
        image_size: side, or (height, width), in pixels.
        precision: of weights and computations.
        validation: a path, (images, labels), or the fraction of the training data set aside.
        batch_size: examples at a time, and per gradient.
        max_examples: of each split, drawn by seed and stratified; `None` reads all.
        seed: of the split and the order.

    Raises:
        DataError: everything that is wrong with the data; no validation examples; several labels
            an image.
        ModelError: the model cannot be loaded.
        RecipeError: every mistake in the keywords, at once.

    Example:
        >>> tunekit.probe("efficientnet_lite0", "photos/").save("probe")
    """
    keywords = {name: value for name, value in locals().items() if name != "max_examples"}
    if max_examples is not None and max_examples < 1:
        raise DataError(f"max_examples: expected at least 1, or None for all, got {max_examples}.")
    # The plan is what is asked for; until it is known, one that is valid stands in its place.
    recipe = Recipe.from_keywords(**keywords, plan=Phase(epochs=1))
    spec = replace(recipe.data, max_examples=max_examples)
    splits = open_data(in_memory(data, validation), spec, seed=recipe.seed)
    evidence = _Probing(recipe, _loaded(recipe, model), splits).evidence()
    phases, reasons = drafted_plan(evidence)
    return Probe(evidence, recipe.model_copy(update={"plan": phases}), reasons)


def _loaded(recipe: Recipe, model: str | Path | Model | keras.Model) -> Model:
    if isinstance(model, Model):
        check_given(recipe, model)
        return model
    size, dtype = recipe.backbone.image_size, recipe.backbone.dtype
    return load_model(model, image_size=size, dtype=dtype, seed=recipe.seed)


class _Probing:
    """The measurements, on one model and one division of the data."""

    def __init__(self, recipe: Recipe, model: Model, splits: Splits) -> None:
        """Checks that the data can be probed; nothing is measured yet."""
        spec = labels_of_images(recipe.task, "a probe")
        self._task = ImageClassification.bind(spec, splits.train)
        self._train, self._validation = splits.train, _judging(splits, self._task)
        self._groups = [group for group in model.groups() if group.kind != "head"]
        self._read = DepthFeatures.of(model)
        self._values = self._read.forward.values()
        self._encode = self._task.encoder(model.preprocessing)
        self._size, self._seed = recipe.batch.size, recipe.seed

    def evidence(self) -> Evidence:
        """Returns all that a plan is drafted from."""
        train, labels = self._features(self._train)
        validation, truth = self._features(self._validation)
        classes = len(self._task.label_names)
        probes = fit_probes(train, labels, validation, truth, classes=classes, seed=self._seed)
        last = list(train)[-1]
        noise = self._gradients(last, probes[last])
        depths = (
            Depth(
                name=group.name,
                parameters=group.parameters,
                width=train[group.name].shape[1],
                accuracy=probes[group.name].accuracy,
                standard_error=probes[group.name].standard_error,
                snr=noise[group.name].snr,
                relative_gradient=noise[group.name].relative_norm,
            )
            for group in self._groups
            if group.name in train
        )
        majority = float(np.bincount(truth).max() / len(truth))
        return Evidence(tuple(depths), majority, len(labels), len(truth), self._size)

    def _features(self, source: Source) -> tuple[dict[str, np.ndarray], np.ndarray]:
        batches = self._batches(source, self._size, shuffle=False)
        return self._read.collect(self._values, batches.epoch(0))

    def _gradients(self, last: str, probe: LinearProbe) -> dict[str, GradientNoise]:
        """Signal and noise by depth group, on examples that the probe was not fitted to.

        On those it was fitted to, wide features leave no error and so no gradient.
        """
        names = {name for group in self._groups for name in group.weights}
        weights = {name: value for name, value in self._values.items() if name in names}

        def loss(weights: Mapping[str, jax.Array], batch: Any) -> jax.Array:
            features = self._read({**self._values, **weights}, batch["image"])[last]
            log_p = jax.nn.log_softmax(features @ probe.kernel + probe.bias)
            return -jnp.take_along_axis(log_p, batch["label"][:, None], axis=1).mean()

        count = min(GRADIENT_BATCHES, len(self._validation))
        size = min(self._size, len(self._validation) // count)
        batches = self._batches(self._validation, size, shuffle=True).epoch(0)
        columns = ({name: each[name] for name in ("image", "label")} for each in batches)
        groups = {group.name: group.weights for group in self._groups}
        found = gradient_noise(jax.grad(loss), weights, islice(columns, count), groups)
        # Noise falls with the batch size: that of a training batch is what is asked for.
        return {
            name: replace(noise, snr=noise.snr * self._size / size) for name, noise in found.items()
        }

    def _batches(self, source: Source, size: int, *, shuffle: bool) -> Batches:
        return Batches(source, self._encode, batch_size=size, seed=self._seed, shuffle=shuffle)


def _judging(splits: Splits, task: ImageClassification) -> Source:
    """The validation examples of data that can be probed."""
    if task.multi_label:
        raise DataError(
            "data: a linear probe expects one label an image, and these have several. Probe one "
            "label at a time, or choose a plan by hand."
        )
    count = 0 if splits.validation is None else len(splits.validation)
    if splits.validation is None or count < 2:
        raise DataError(
            f"validation: expected at least 2 examples to judge the probes on, got {count}. Give "
            "validation=, a path or a greater fraction."
        )
    return splits.validation
