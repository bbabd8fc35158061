"""The README, done: every Python block and every command, in order, and what it shows compared."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.assets import chatterbot, smollm2

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
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


EXAMPLES = tuple(examples(TEXT))


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


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[Example, str]:
    """What every example printed, done in one folder, the commands by the installed package."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "smollm2.gguf").symlink_to(smollm2())
    (folder / "chat").symlink_to(chatterbot())
    scripts = Path(sys.executable).parent
    if not (scripts / "tunekit").exists():
        pytest.fail("the command tunekit is missing: pip install -e '.[demo,test]'")
    # As a reader's: the package chooses the backend itself.
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(example: Example) -> str:
        if example.kind == "python":
            assert session.stdin is not None and session.stdout is not None
            print(json.dumps(example.typed), file=session.stdin, flush=True)
            return json.loads(session.stdout.readline())
        return subprocess.run(
            example.typed,
            shell=True,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout

    with session:
        done = {example: run(example) for example in EXAMPLES}
        session.communicate()
    return done


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_what_the_readme_shows_is_what_is_printed(
    example: Example, printed: dict[Example, str]
) -> None:
    wrong = difference(example.shown, printed[example])
    assert not wrong, f"README.md line {example.line}: {example.typed}\n{wrong}"


def test_the_readme_has_examples_of_both_kinds() -> None:
    kinds = [example.kind for example in EXAMPLES]
    assert kinds.count("python") >= 4 and kinds.count("console") >= 7
    assert {fence[1] for fence in FENCE.finditer(TEXT)} == {"sh", "console", "python", "text"}


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        ("saved in out", "saved in runs"),
        ("accuracy 0.74", "accuracy 0.64"),
        ("one\n...\nlast", "one\ntwo\nthree"),
        ("one", "one\ntwo"),
        ("", "Traceback"),
    ],
)
def test_a_difference_is_seen(shown: str, came: str) -> None:
    assert difference(shown, came)


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        ("accuracy  0.74", "accuracy 0.7401"),
        ("epoch 1  loss 0.7697  186 examples/s  8.6 s", "epoch 1  loss 0.77  9 examples/s  90.1 s"),
        ("one\n...\nlast", "one\ntwo\nthree\nlast"),
        ("recipe  measured ...", "recipe  measured nothing yet"),
    ],
)
def test_measurements_and_what_is_left_out_may_differ(shown: str, came: str) -> None:
    assert difference(shown, came) == ""


def test_every_target_and_extra_that_the_readme_names_exists() -> None:
    shell = "".join(fence[2] for fence in FENCE.finditer(TEXT) if fence[1] == "sh")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", shell, re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"pip install .*\[(\w+)\]", shell)
    assert extras and set(extras) <= set(project["optional-dependencies"])


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)


def test_the_demos_table_has_its_place() -> None:
    before, between, after = re.split(r"<!-- demo:(?:begin|end) -->", TEXT)
    assert TEXT.index("<!-- demo:begin -->") < TEXT.index("<!-- demo:end -->")
    assert "make demo" in before.rpartition("\n## ")[2]
