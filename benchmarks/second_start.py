"""What a second start of the same recipe costs beside the first, which compiles everything.

    python benchmarks/second_start.py [full|lora] [--starts N]

Each start is a process of its own, and a folder of programs that is empty at first: the time until
the first optimizer step is done, from the start of the process, of the run and of training, and
the processor time by then. ``full`` is recipe vision/full on the textile images of
conformal-clip-data at 96 pixels; ``lora`` is llm/sft_lora on SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

KINDS = ("full", "lora")
_STARTED = "SECOND_START_BEGAN"


def main() -> None:
    """Prints a line for each start, and what the last takes of the first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", nargs="?", choices=KINDS, default="full")
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        start(args.kind)
        return
    rows = []
    with tempfile.TemporaryDirectory() as home:
        print(f"{'':8}{'process':>10}{'run':>10}{'training':>10}{'processor':>11}   seconds")
        for number in range(args.starts):
            rows.append(in_process(args.kind, Path(home)))
            print(f"start {number + 1:<2}" + "".join(f"{x:10.1f}" for x in rows[-1].values()))
    shares = [last / first for first, last in zip(rows[0].values(), rows[-1].values(), strict=True)]
    print(f"{'share':8}" + "".join(f"{share:10.2f}" for share in shares))


def in_process(kind: str, home: Path) -> dict[str, float]:
    """Returns the seconds of one start."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(home), _STARTED: repr(time.time())}
    command = [sys.executable, "-m", "benchmarks.second_start", kind, "--child"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def start(kind: str) -> None:
    """Runs the recipe until its first step is done, and prints the seconds until then as JSON."""
    import tunekit  # noqa: F401  first: it makes JAX the backend of Keras
    from tunekit.session import session
    from tunekit.training.progress import SilentReporter

    process = float(os.environ[_STARTED])
    run = time.time()

    class Done(Exception):
        """The first step is done."""

    class FirstStep(SilentReporter):
        """Ends training when the first step is done."""

        def step(self, *, loss: float, learning_rate: float, examples: int) -> None:
            now = time.time()
            seconds = {"process": now - process, "run": now - run, "training": now - training}
            print(json.dumps({**seconds, "processor": time.process_time()}), flush=True)
            raise Done

    # What is left for the next start is written while the process ends.
    with suppress(Done), session(recipe_of(kind)) as ready:
        training = time.time()
        ready.trainer(reporter=FirstStep()).fit()


def recipe_of(kind: str):
    """Returns the recipe, of data that are there."""
    from tunekit.recipe import Recipe

    if kind == "full":
        found = importlib.util.find_spec("conformal_clip_data")
        assert found is not None and found.origin is not None, "pip install 'tunekit[demo]'"
        images = Path(found.origin).parent / "data" / "textile_images" / "simulated"
        sizes = ["data.max_examples=600", "backbone.image_size=96"]
        return Recipe.load("vision/full", [f"data.path={images}", *sizes])
    from examples.fetched import chatterbot, smollm2

    named = [f"data.path={chatterbot()}", f"backbone.name={smollm2()}", "data.max_examples=64"]
    return Recipe.load("llm/sft_lora", named)


if __name__ == "__main__":
    main()
