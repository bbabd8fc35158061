"""What a page shows, done as a reader would do it, and compared with what is printed."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

NUMBER = r"-?\d+\.\d+"
SPEED = re.compile(r" *\d+ examples/s +[\d.]+ s$")

# One namespace for all blocks, as for a reader who types them into one session.
SESSION = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            exec(compile(json.loads(line), "README.md", "exec"), names)
        except BaseException:
            traceback.print_exc()
    print(json.dumps(printed.getvalue()), flush=True)
"""


@dataclass(frozen=True)
class Example:
    """Something to type, and what the README says it prints."""

    line: int
    kind: str
    typed: str
    shown: str

    def __str__(self) -> str:
        return f"line {self.line}"


def examples(text: str) -> Iterator[Example]:
    """Yields the Python blocks, with the text block after each, and the commands, in order."""
    fences = list(FENCE.finditer(text))
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        kind, body = fence[1], fence[2]
        line = text.count("\n", 0, fence.start()) + 1
        if kind == "python":
            follows = after is not None and after[1] == "text" and after.start() == fence.end() + 1
            yield Example(line, kind, body, after[2] if after and follows else "")
        if kind == "console":
            for prompt in re.finditer(r"^\$ (.*(?:\\\n.*)*)\n((?:(?!\$ ).*\n)*)", body, re.M):
                yield Example(line, kind, prompt[1], prompt[2])


def difference(shown: str, printed: str) -> str:
    """Returns what differs, or nothing.

    A shown ``...`` stands for the rest of a line, and on a line of its own for any lines. Spacing
    and speed may differ; decimals, which are measurements, by a tenth or 0.05.
    """
    expected, got = shown.splitlines(), printed.splitlines()
    if "..." in expected:
        before = expected.index("...")
        after = len(expected) - before - 1
        got = [*got[:before], "...", *got[max(len(got) - after, before) :]]
    if len(expected) != len(got):
        return f"{len(expected)} lines are shown, {len(got)} printed:\n{printed}"
    pairs = zip(expected, got, strict=True)
    wrong = [f"shown:   {one}\nprinted: {other}" for one, other in pairs if not _alike(one, other)]
    return "\n".join(wrong)


def _alike(shown: str, printed: str) -> bool:
    shown, printed = (" ".join(SPEED.sub("", line).split()) for line in (shown, printed))
    texts, numbers = re.split(NUMBER, shown), re.findall(NUMBER, shown)
    pattern = f"({NUMBER})".join(re.escape(text).replace(r"\.\.\.", ".*") for text in texts)
    match = re.fullmatch(pattern, printed)
    return match is not None and all(
        math.isclose(float(one), float(other), rel_tol=0.1, abs_tol=0.05)
        for one, other in zip(numbers, match.groups(), strict=True)
    )


def environment() -> dict[str, str]:
    """That of a reader: the package chooses the backend itself."""
    return {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}


def one_session(blocks: Sequence[Example], folder: Path) -> dict[Example, str]:
    """Returns what each Python block printed, done in order in one session in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        input="".join(f"{json.dumps(block.typed)}\n" for block in blocks),
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(zip(blocks, map(json.loads, done.stdout.splitlines()), strict=True))
