"""The README, done: every Python block and every command, in order, and what it shows compared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.assets import chatterbot, smollm2
from tests.real.pages import FENCE, ROOT, SESSION, Example, difference, environment, examples

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

EXAMPLES = tuple(examples(TEXT))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[Example, str]:
    """What every example printed, done in one folder, the commands by the installed package."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "smollm2.gguf").symlink_to(smollm2())
    (folder / "chat").symlink_to(chatterbot())
    scripts = Path(sys.executable).parent
    if not (scripts / "tunekit").exists():
        pytest.fail("the command tunekit is missing: pip install -e '.[demo,test]'")
    reader = environment()
    reader["PATH"] = f"{scripts}{os.pathsep}{reader['PATH']}"
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=folder,
        env=reader,
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
            env=reader,
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
