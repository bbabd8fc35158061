"""What a run gives back: a model that evaluates, predicts, saves itself and draws its run."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from tunekit import image_answers, saved, text_answers
from tunekit.compilation_cache import keep_programs
from tunekit.data.spec import BatchSpec, DataSpec
from tunekit.errors import ExportError, ModelError, did_you_mean
from tunekit.export.peft import export_peft
from tunekit.folder import plain, read_json, read_text, replacing, table, write_json
from tunekit.generate import generate
from tunekit.methods.merge_forecast import MergeForecast
from tunekit.models import tokenizer_files
from tunekit.models.merging import forecast_and_merge
from tunekit.models.model import Model
from tunekit.models.tokenizing import Tokenizer
from tunekit.report.plots import plot_result
from tunekit.report.run import versions
from tunekit.tasks import registry
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.registry import Task

MODEL_FILE, WEIGHTS_FILE, RECIPE_FILE = "model.json", "model.safetensors", "recipe.yaml"
RECORDS = ("history", "metrics", "report")
FILES = (
    MODEL_FILE,
    WEIGHTS_FILE,
    RECIPE_FILE,
    "labels.json",
    "history.csv",
    *(f"{name}.json" for name in RECORDS),
    *tokenizer_files.FILES,
)
RUN_FOLDER = "checkpoints"
"""Marks the folder of a run that has not saved its result yet."""
MARKS = (MODEL_FILE, RUN_FOLDER)
"""A folder with one of these in it is tunekit's to write to."""
FORMAT = 3
"""Raised when an older tunekit could not read what this one writes."""
EXPORTS = {"peft": export_peft}
"""What writes each format."""
_KEPT = ("label_separator", "on_unreadable")


@dataclass(eq=False, repr=False)
class Result:
    """A fine-tuned model and the record of its run.

    ```python
    result = finetune("efficientnet_lite0", "photos/")
    result.save("out/")
    print(tunekit.load("out/").predict("a.jpg")[0])
    ```
    """

    model: Model
    recipe: Any
    """The Recipe of the run; after `load` the same tree as dicts and lists."""
    history: list[dict[str, Any]]
    """One row an epoch: epoch, phase, step, loss, val_loss, val_accuracy, learning_rate…"""
    metrics: dict[str, Any]
    """Of the final model on the test split, or on the validation split where there is none."""
    report: dict[str, Any]
    """Versions, device, data, parameters, seconds."""
    task: Task

    def __repr__(self) -> str:
        """Returns where the backbone came from, the labels and the accuracy."""
        accuracy = self.metrics.get("accuracy")
        measured = "" if accuracy is None else f", accuracy {accuracy:.3f}"
        return f"Result({self.model.backbone.source!r}, {len(self.model.labels)} labels{measured})"

    def evaluate(self, data: Any) -> dict[str, Any]:
        """Returns the metrics of the model on labelled images.

        Args:
            data: a path as in training but not divided in splits, (images, labels), or a Source.
                Labels go by name; some of the model's may be absent.

        Raises:
            DataError: the data cannot be read, or has labels that the model does not know.
        """
        columns = _data_spec(self.recipe)
        if isinstance(self.task, ImageClassification):
            return image_answers.evaluate(self.model, self.task, data, columns)
        return text_answers.evaluate(self.model, self.task, data, columns, _batch_spec(self.recipe))

    def predict(self, items: Any, **options: Any) -> list[Any]:
        """Returns one prediction an item, in the order given.

        Args:
            items: path of an image or of a folder of images (those below it in order of path), PIL
                image, array [H, W, 3] with pixels 0..255; a list of these; or an array
                [N, H, W, 3]. Of a model of texts: a text, or what else its task is of (a pair, a
                list of words, a question and its context); a list of these; or a .txt file.
            **options: of the task, such as `threshold`: several labels each, the least probability
                of a label that is given.

        Raises:
            DataError: an image is missing or cannot be read, or an item is not of the task.
        """
        if isinstance(self.task, ImageClassification):
            return image_answers.predict(self.model, self.task, items, **options)
        batch = _batch_spec(self.recipe)
        return text_answers.predict(self.model, self.task, items, batch, **options)

    def generate(self, prompts: Any, **options: Any) -> Any:
        """Returns what a language model writes on; see `tunekit.generate.generate`.

        Args:
            prompts: a text, a list of texts, or a dialogue as a list of messages.
            **options: max_new_tokens, temperature, top_k, top_p, stream, seed…

        Raises:
            ModelError: it is no causal language model, or has no tokenizer.
        """
        task = self.task if isinstance(self.task, LanguageModelling) else None
        return generate(self.model, prompts, task=task, **options)

    def plot(self, path: str | Path | None = None) -> Path:
        """Writes curves and confusion matrix as a PNG; returns its path.

        Args:
            path: of the picture; `None` is ``result.png`` in the current folder.
        """
        return plot_result(self.history, self.metrics, path or "result.png")

    def merge(self, items: Any = None, *, least_agreement: float = 0.95) -> MergeForecast | None:
        """Puts the active adapters into the network's own values: saved, it needs none.

        Args:
            items: images or texts, as for `predict`; needed where the backbone is quantised.
            least_agreement: share of their predictions that must stay the same there.

        Returns:
            How far predictions moved where the backbone is quantised; `None` where they did not.

        Raises:
            ModelError: a method cannot be merged, nothing is active, or too many predictions would
                change. Nothing has changed then.
        """
        if self.model.backbone.takes == "images":
            items = None if items is None else image_answers.with_folders_opened(items)
        return forecast_and_merge(self.model, items, least_agreement=least_agreement)

    def export(
        self, folder: str | Path, format: str = "peft", *, adapter: str | None = None
    ) -> Path:
        """Writes the model, or what was put on it, for other software; returns the folder.

        Args:
            folder: new, empty, or of an earlier export; it appears whole or not at all.
            format: "peft", the files of Hugging Face PEFT: the adapter, its head and the recipe.
            adapter: name of the adapter; `None` is the one that is active.

        Raises:
            ExportError: there is no such format, or the model has no form in it.
        """
        if format not in EXPORTS:
            raise ExportError(
                f"expected {' or '.join(map(repr, EXPORTS))} as format, got {format!r}."
                f"{did_you_mean(format, EXPORTS)}"
            )
        recipe = self.recipe
        tree = plain(recipe) if isinstance(recipe, Mapping) else recipe.model_dump(mode="json")
        return EXPORTS[format](self.model, Path(folder), adapter=adapter, recipe=tree)

    def save(self, folder: str | Path) -> Path:
        """Writes the result to a folder that `load` reads without the preset, a hub or the data.

        The folder appears whole, read back and compared, or not at all: on a failure an earlier
        save there stays. Other files in it, such as checkpoints, stay in any case.

        Raises:
            ModelError: a layer cannot be saved, or the folder holds other things than a save.
        """
        folder = Path(folder).expanduser().resolve()
        with replacing(folder, FILES, marks=MARKS) as new:
            description = {
                "format": FORMAT,
                "versions": versions(),
                **saved.described(self.model),
                "task": registry.to_json(self.task),
            }
            write_json(new / MODEL_FILE, description)
            saved.write_weights(new / WEIGHTS_FILE, self.model)
            if (tokenizer := self.model.backbone.tokenizer) is not None:
                for name, text in tokenizer.files.items():
                    (new / name).write_text(text, encoding="utf-8")
            # safetensors makes files that only their owner may read.
            shutil.copymode(new / MODEL_FILE, new / WEIGHTS_FILE)
            (new / RECIPE_FILE).write_text(_yaml(self.recipe), encoding="utf-8")
            write_json(new / "labels.json", self.model.labels)
            for name in RECORDS:
                write_json(new / f"{name}.json", getattr(self, name))
            (new / "history.csv").write_text(table(self.history), encoding="utf-8")
            try:
                saved.check_same(self.model, load(new).model)
            except ModelError as error:
                raise ModelError(f"this model cannot be saved: {error}") from error
        return folder


def load(folder: str | Path) -> Result:
    """Returns the result that `Result.save` wrote.

    Raises:
        ModelError: the folder holds no save, a damaged one, or one of a newer tunekit.

    Warns:
        UserWarning: it was saved by other versions of Keras, KerasHub or tunekit.
    """
    folder = Path(folder).expanduser()
    _check_save(folder)
    keep_programs()
    description = read_json(folder / MODEL_FILE)
    _check_format(folder, description)
    _warn_of_other_versions(folder, description["versions"])
    model = saved.rebuilt(description)
    saved.read_weights(folder / WEIGHTS_FILE, model)
    if model.backbone.takes == "tokens":
        model.backbone = replace(model.backbone, tokenizer=Tokenizer.from_folder(folder))
    task = registry.from_json(description["task"])
    history, metrics, report = (read_json(folder / f"{name}.json") for name in RECORDS)
    return Result(
        model,
        yaml.safe_load(read_text(folder / RECIPE_FILE)),
        history,
        metrics,
        report,
        task,
    )


def _check_save(folder: Path) -> None:
    if (folder / MODEL_FILE).is_file():
        return
    if not folder.is_dir():
        raise ModelError(f"no such folder: {folder}")
    if (folder / RUN_FOLDER).is_dir():
        raise ModelError(
            f"{folder} holds the checkpoints of a run that has not ended; finish it with "
            "runtime.resume=true (tunekit run --resume)"
        )
    raise ModelError(f"{folder} is not a folder that Result.save wrote: it has no {MODEL_FILE}")


def _check_format(folder: Path, description: Any) -> None:
    form = description.get("format") if isinstance(description, dict) else None
    if not isinstance(form, int):
        raise ModelError(f"{folder / MODEL_FILE} was not written by Result.save")
    if form > FORMAT:
        raise ModelError(
            f"{folder} was saved by tunekit {description['versions']['tunekit']}, in a format that "
            f"{versions()['tunekit']}, which is installed, cannot read; upgrade tunekit"
        )


def _warn_of_other_versions(folder: Path, theirs: Mapping[str, str]) -> None:
    ours = versions()
    changed = [
        f"{name} {theirs[name]} (here {ours[name]})"
        for name in ("tunekit", "keras", "keras_hub")
        if name in theirs and _minor(theirs[name]) != _minor(ours[name])
    ]
    if changed:
        warnings.warn(
            f"{folder} was saved with {', '.join(changed)}; if it predicts otherwise than before, "
            "install those",
            stacklevel=3,
        )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _data_spec(recipe: Any) -> DataSpec:
    """The columns of the run's data; everything else about it was for training."""
    data = recipe.get("data", {}) if isinstance(recipe, Mapping) else asdict(recipe.data)
    kept = [name for name in data if name.endswith("_column")] + [*_KEPT]
    return DataSpec(**{name: data[name] for name in kept if name in data})


def _batch_spec(recipe: Any) -> BatchSpec:
    """How the run's texts became batches."""
    batch = recipe.get("batch", {}) if isinstance(recipe, Mapping) else asdict(recipe.batch)
    known = {field.name for field in fields(BatchSpec)}
    return BatchSpec(**{name: value for name, value in batch.items() if name in known})


def _yaml(recipe: Any) -> str:
    if isinstance(recipe, Mapping):
        return yaml.safe_dump(dict(recipe), sort_keys=False)
    return recipe.to_yaml()
