"""Sixteen heads trained at once on a cached frozen prefix, beside one run of one of them.

    python benchmarks/sweep.py [--images 500] [--epochs 10]

Seconds of `tunekit.run` for one recipe and of `tunekit.sweep` over 4 learning rates and 4 seeds of
it, loading, the frozen pass and compilation included in both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import tunekit  # first: it makes JAX the backend of Keras

# isort: split
import conformal_clip_data

RATES, SEEDS = [3e-4, 1e-3, 3e-3, 1e-2], range(4)


def main() -> None:
    """Prints seconds, the ratio and the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500, help="a fifth of them validates")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    recipe = _recipe(arguments.images, arguments.epochs)
    single, one = _timed(lambda: tunekit.run(recipe))
    many, swept = _timed(
        lambda: tunekit.sweep(recipe, {"learning_rate": RATES, "seed": list(SEEDS)})
    )
    print(f"{arguments.images} images, 224 px, {arguments.epochs} epochs, a linear head")
    print(f"one run {single:.1f} s, 16 members {many:.1f} s: {many / single:.2f} times one run")
    print(f"accuracy of the one {one.metrics['accuracy']:.3f}")
    print(swept.table())


def _timed(call: Any) -> tuple[float, Any]:
    since = time.perf_counter()
    value = call()
    return time.perf_counter() - since, value


def _recipe(images: int, epochs: int) -> tunekit.Recipe:
    package = Path(conformal_clip_data.__file__).parent
    recipe = tunekit.Recipe.from_keywords(
        model="efficientnet_lite0",
        data=package / "data" / "textile_images" / "simulated",
        train="head",
        epochs=epochs,
        learning_rate=1e-3,
        cache="ram",
        progress="none",
    )
    data = recipe.model_dump(mode="json")["data"] | {"max_examples": images}
    return recipe.model_copy(update={"data": tunekit.DataSpec(**data)})


if __name__ == "__main__":
    main()
