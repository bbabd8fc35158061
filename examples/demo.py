"""Does transfer learning pay? One network, one data set, one budget of epochs, several answers.

    python examples/demo.py [FOLDER]

Trains the bundled EfficientNet-Lite0 on 2,000 images of simulated textile (a nominal weave, a
local fault, a global one) and prints what each way of training reaches on 400 images that none of
them saw. Takes a few minutes on two cores; FOLDER (``demo_out``) gets the plots and the best model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tunekit  # first: it makes JAX the backend of Keras

# isort: split
import conformal_clip_data
import keras
from keras import layers, ops
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

SIZE_PX, EPOCHS = 96, 3
NATIVE_PX = 250
"""Side of the images as they are: at any other size the small local faults blur away."""


@dataclass(frozen=True)
class Way:
    """One way to train, and what it is called in the table."""

    name: str
    run: Callable[[Any], tunekit.Result]


def network(train: str | list[str], **keywords: Any) -> Callable[[Any], tunekit.Result]:
    """Returns a run of the bundled network in which `train` trains."""
    keywords = {"image_size": SIZE_PX, "epochs": EPOCHS, **keywords}
    return lambda data: tunekit.finetune("efficientnet_lite0", data, train=train, **keywords)


def from_scratch(data: Any) -> tunekit.Result:
    """The same network from fresh weights: what pretraining is measured by."""
    model = tunekit.load_model("efficientnet_lite0", image_size=SIZE_PX, pretrained=False)
    return tunekit.finetune(model, data, train="all", epochs=EPOCHS, learning_rate=1e-3)


def first_layer(data: Any) -> tunekit.Result:
    """A head on the statistics of the first layer's filters, over images at their own size.

    Any functional keras.Model is a backbone: this one ends where the bundled network begins.
    """
    body = tunekit.load_model("efficientnet_lite0", image_size=NATIVE_PX).backbone
    stem = keras.Model(body.keras.inputs[0], body.keras.get_layer("stem_activation").output)
    pixels = keras.Input((NATIVE_PX, NATIVE_PX, 3))
    scale, offset = body.preprocessing.scale, body.preprocessing.offset
    maps = stem(layers.Rescaling(scale, offset)(pixels))
    statistics = [of(maps, axis=(1, 2)) for of in (ops.mean, ops.std, ops.min, ops.max)]
    features = layers.BatchNormalization(momentum=0.9, name="standardised")(
        layers.Concatenate()(statistics)
    )
    train = ["head", "backbone/standardised/.*"]
    model = keras.Model(pixels, features)
    return tunekit.finetune(model, data, train=train, epochs=2 * EPOCHS, learning_rate=2e-2)


WAYS = (
    Way("head only", network("head")),
    Way("last 2 blocks", network(["head", "last 2"], learning_rate=1e-3)),
    Way("full", network("all", learning_rate=1e-3)),
    Way("from scratch", from_scratch),
    Way("layer 1, 250 px", first_layer),
)


def main() -> None:
    """Runs every way, prints the table, and writes the plots and the best model."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_out")
    folder.mkdir(parents=True, exist_ok=True)
    data, console = splits(), Console()
    counts = ", ".join(f"{len(files)} {name}" for name, (files, _) in data.items())
    console.print(f"textile inspection, 3 classes: {counts} images", highlight=False)
    results: dict[str, tuple[tunekit.Result, float]] = {}
    for way in WAYS:
        console.print(f"\n[bold]{way.name}[/bold]")
        since = time.perf_counter()
        results[way.name] = way.run(data), time.perf_counter() - since
    console.print()
    console.print(table(results))
    best = max(results, key=lambda name: results[name][0].metrics["accuracy"])
    results[best][0].save(folder / "best")
    results[best][0].plot(folder / "best.png")
    draw(results, folder / "comparison.png")
    console.print(
        f"comparison  {folder}/comparison.png\n"
        f"the best    {best}: curves {folder}/best.png, model {folder}/best\n"
        f"try it      tunekit predict {folder}/best IMAGE...",
        highlight=False,
        soft_wrap=True,
    )


def splits() -> dict[str, tuple[list[Path], list[str]]]:
    """The 2,000 images in three fixed splits of equal class shares: 60, 20 and 20 in a hundred."""
    root = Path(conformal_clip_data.__path__[0]) / "data" / "textile_images" / "simulated"
    files = {name: sorted((root / name).iterdir()) for name in ("global", "local", "nominal")}
    parts = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}
    return {
        split: (
            [path for paths in files.values() for i, path in enumerate(paths) if i % 5 in fifths],
            [name for name, paths in files.items() for i in range(len(paths)) if i % 5 in fifths],
        )
        for split, fifths in parts.items()
    }


def table(results: dict[str, tuple[tunekit.Result, float]]) -> Table:
    """Accuracy on the test split, F1 of the hardest class, what trained, and the seconds."""
    shown = Table(title="400 held-out images (0.50 by always saying nominal)")
    shown.add_column("trained")
    for name in ("accuracy", "F1 local fault", "parameters", "epochs", "seconds"):
        shown.add_column(name, justify="right")
    for name, (result, seconds) in results.items():
        shown.add_row(
            name,
            f"{result.metrics['accuracy']:.3f}",
            f"{result.metrics['per_class']['local']['f1']:.2f}",
            f"{result.report['parameters']['trained']:,}",
            str(len(result.history)),
            f"{seconds:.0f}",
        )
    return shown


def draw(results: dict[str, tuple[tunekit.Result, float]], path: Path) -> None:
    """Draws the accuracy of every way as a bar, with what it cost."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    names = list(results)[::-1]
    accuracies = [results[name][0].metrics["accuracy"] for name in names]
    bars = axes.barh(names, accuracies, color="#5b8db8", height=0.62)
    notes = [f"{results[n][0].metrics['accuracy']:.3f} in {results[n][1]:.0f} s" for n in names]
    axes.bar_label(bars, notes, padding=5)
    axes.axvline(0.5, color="0.35", linestyle=":", linewidth=1)
    axes.annotate("always nominal", (0.5, 1), xycoords=("data", "axes fraction"), ha="center",
                  va="bottom", color="0.35")  # fmt: skip
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="held-out accuracy", xlim=(0, 1.2), xticks=[0, 0.25, 0.5, 0.75, 1])
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
