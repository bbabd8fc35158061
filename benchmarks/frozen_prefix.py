"""What computing the frozen part once saves: whole runs with the cache and without, in turn.

    python benchmarks/frozen_prefix.py [--images 750] [--epochs 10] [--size 224]

Fine-tunes a pretrained ViT-S/14 (DINOv2's body, 12 blocks) on the textile images and prints the
seconds of each run, loading and compilation included, their ratio, and the ratio that arithmetic
allows where a backward pass costs two forwards: ((12 - k) + 3 k E) / ((12 + 2 k) E) for k blocks
and E epochs. Needs the development extras; the weights come as the tests' do.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import tunekit  # first: it makes JAX the backend of Keras

# isort: split
import conformal_clip_data

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference.folders import folder

BLOCKS = 12
PLANS = {"head": 0, "head, last 1": 1, "head, last 2": 2}
ASKED = (1 / 8, 1 / 3, 1 / 2)
"""The largest ratio that the project allows itself."""


def main() -> None:
    """Prints seconds and ratios of each plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=750, help="a fifth of them validates")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    arguments = parser.parse_args()
    print(f"{arguments.images} images, {arguments.size} px, {arguments.epochs} epochs, batch 16")
    print(f"{'trains':14}{'without':>10}{'with':>10}{'ratio':>8}{'asked':>8}{'limit':>8}  losses")
    for (train, blocks), asked in zip(PLANS.items(), ASKED, strict=True):
        without, plain = _run(train, "off", arguments)
        cached, once = _run(train, "ram", arguments)
        limit = _limit(blocks, arguments.epochs)
        ratio = cached / without
        print(
            f"{train:14}{without:8.1f} s{cached:8.1f} s{ratio:8.3f}{asked:8.3f}{limit:8.3f}"
            f"  {plain:.5f} {once:.5f}",
            flush=True,
        )


def _run(train: str, cache: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the whole run, and its last training loss."""
    since = time.perf_counter()
    spec = tunekit.Recipe.from_keywords(
        model=folder("hf_dinov2_small"),
        data=_textile(),
        train=train,
        epochs=arguments.epochs,
        batch_size=16,
        image_size=arguments.size,
        cache=cache,
        progress="none",
    )
    data = spec.model_dump(mode="json")["data"] | {"max_examples": arguments.images}
    recipe = spec.model_copy(update={"data": tunekit.DataSpec(**data)})
    history = tunekit.run(recipe).history
    return time.perf_counter() - since, history[-1]["loss"]


def _limit(blocks: int, epochs: int) -> float:
    return (BLOCKS - blocks + 3 * blocks * epochs) / ((BLOCKS + 2 * blocks) * epochs)


def _textile() -> Path:
    package = Path(conformal_clip_data.__file__).parent
    return package / "data" / "textile_images" / "simulated"


if __name__ == "__main__":
    main()
