"""Every method on one task: what trains, the memory it takes, its seconds, its accuracy.

    python -m benchmarks.methods [--seeds 1] [--only lora ia3] [--write]

Run at the root of the repository. Runs the recipes of ``recipes/vision/adapters``, and the head
alone and everything for scale, on a pretrained ViT-S/14 (DINOv2's body) and scikit-learn's 8x8
digits, drawn at 56 pixels: 192 images train, 500 others are judged, no image is flipped. Each run
has a process of its own. Times are the processor's, summed over cores, which other programs
disturb least; a step's is the median over epochs. ``--write``
puts the table into docs/methods.md and a line into each recipe. Needs the test extras; the weights
come as the tests' do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGES, TESTED, EPOCHS, BATCH, SIZE_PX = 192, 500, 8, 16, 56
ROOT = Path(__file__).parents[1]
RECIPES, PAGE = ROOT / "recipes" / "vision" / "adapters", ROOT / "docs" / "methods.md"
MARKS = "<!-- measured:begin -->\n", "<!-- measured:end -->\n"
SCALE = {
    "head": ["method=head", "plan.0.learning_rate=1e-2"],
    "full": ["method=full", "plan.0.learning_rate=1e-4", "plan.0.multipliers={head: 10}"],
}
"""What the methods are compared with: the recipe of LoRA, so changed."""


def main() -> None:
    """Prints the table; or, in a process of its own, the measurements of one run."""
    names = [*SCALE, *sorted(path.stem for path in RECIPES.glob("*.yaml"))]
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seeds", type=int, default=1, help="runs of each method")
    options.add_argument("--only", nargs="+", choices=names, default=names, metavar="METHOD")
    options.add_argument("--write", action="store_true", help="into docs and recipes")
    options.add_argument("--run", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.run:
        print(json.dumps(measured(given.run[0], int(given.run[1]))))
        return
    found = {}
    for name in given.only:
        found[name] = [_apart(name, seed) for seed in range(given.seeds)]
        print(row(name, found[name]), flush=True)
    if given.write:
        write(found)


def _apart(name: str, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.methods", "--run", name, str(seed)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, seed: int) -> dict[str, Any]:
    """Returns what one run in this process took and reached."""
    import resource
    import time

    from tests.reference.folders import folder
    from tunekit.models.loading import load_model
    from tunekit.recipe import Recipe
    from tunekit.session import session
    from tunekit.training.progress import SilentReporter

    clock = [time.process_time()]

    class Clock(SilentReporter):
        def row(self, row: Mapping[str, Any]) -> None:
            clock.append(time.process_time())

    overrides = [
        *SCALE.get(name, []),
        f"seed={seed}",
        f"backbone.name={folder('hf_dinov2_small')}",
        f"backbone.image_size={SIZE_PX}",
        "augment.horizontal_flip=false",
        f"batch.size={BATCH}",
        f"plan.0.epochs={EPOCHS}",
        "data.validation_fraction=0",
        "runtime.progress=none",
    ]
    recipe = Recipe.load(f"vision/adapters/{'lora' if name in SCALE else name}", overrides)
    with session(recipe, data=_digits()) as ready:
        before = ready.feeder.forward.values()
        trained = ready.trainer(reporter=Clock()).fit()
        result = ready.result(trained, before, seconds=time.process_time())
    seconds, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    epochs = [after - start for start, after in itertools.pairwise(clock)]
    memory = result.report["memory"]
    # Of the network as it is loaded: packed kernels have other sizes.
    network = load_model(recipe.backbone.name, image_size=SIZE_PX).keras.count_params()
    return {
        "share": result.report["parameters"]["trained"] / network,
        "accuracy": result.metrics["accuracy"],
        "step_seconds": statistics.median(epochs[1:]) * BATCH / IMAGES,  # The first compiles.
        "seconds": seconds,
        "held_bytes": memory["frozen"] + memory["trained"] + memory["optimizer"],
        "activation_bytes": memory["activations"],
        "peak_bytes": peak if sys.platform == "darwin" else 1024 * peak,
    }


def _digits() -> dict[str, tuple[Any, list[str]]]:
    """Training and test images, of whichever writers came first and later."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.repeat((digits.images * 15.9375).astype(np.uint8)[..., None], 3, axis=-1)
    labels = [str(each) for each in digits.target]
    parts = {"train": slice(IMAGES), "test": slice(len(labels) - TESTED, None)}
    return {name: (pixels[part], labels[part]) for name, part in parts.items()}


HEADER = """\
| method | trains | accuracy | a step | the run | weights, moments | activations | process |
|---|---:|---:|---:|---:|---:|---:|---:|
"""


def row(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table's row of a method, the means of its runs."""
    mean = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
    cells = [
        name,
        f"{mean['share']:.2%}",
        f"{mean['accuracy']:.3f}",
        f"{1e3 * mean['step_seconds']:.0f} ms",
        f"{mean['seconds']:.0f} s",
        f"{mean['held_bytes'] / 1e6:.0f} MB",
        f"{mean['activation_bytes'] / 1e6:.0f} MB",
        f"{mean['peak_bytes'] / 1e9:.2f} GB",
    ]
    return f"| {' | '.join(cells)} |"


def write(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Puts the table into the page, and what each recipe reached into its third line."""
    seeds = len(next(iter(found.values())))
    table = HEADER + "".join(f"{row(name, runs)}\n" for name, runs in found.items())
    about = (
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{seeds} seed{'s' * (seeds > 1)}.\n"
    )
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(before + MARKS[0] + table + about + MARKS[1] + after, encoding="utf-8")
    for name in found.keys() - SCALE:
        runs = found[name]
        accuracy = statistics.fmean(run["accuracy"] for run in runs)
        line = f"# result: {accuracy:.3f} on digits by ViT-S/14, {runs[0]['share']:.2%} training"
        path = RECIPES / f"{name}.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"^# result: .*$", line, text, count=1, flags=re.M), "utf-8")


if __name__ == "__main__":
    main()
