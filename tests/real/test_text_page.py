"""docs/text.md, done: every Python block in one session, in order, on tiny networks."""

from __future__ import annotations

import re

import pytest

from tests.contract.text_families import bert, llama, rows, write_rows
from tests.real.pages import ROOT, Example, difference, examples, one_session
from tunekit.shipped import shipped_recipes

PAGE = ROOT / "docs" / "text.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = tuple(examples(TEXT))
FILES = {"reviews": "classification", "words": "tokens", "squad": "span_qa", "chat": "sft"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[Example, str]:
    """What every block printed, in one session in a folder with networks and files beside it."""
    here = tmp_path_factory.mktemp("reader")
    bert(here / "minilm")
    llama(here / "smollm2")
    for name, task in FILES.items():
        write_rows(task, here, 20).rename(here / f"{name}.jsonl")
    texts = [row["text"] for row in rows("masked_lm", 20)]
    (here / "notes.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return one_session(EXAMPLES, here)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_what_the_page_of_texts_shows_is_what_is_printed(
    example: Example, printed: dict[Example, str]
) -> None:
    wrong = difference(example.shown, printed[example])
    assert not wrong, f"docs/text.md line {example.line}: {example.typed}\n{wrong}"


def test_the_page_of_texts_has_examples() -> None:
    assert len(EXAMPLES) >= 8


def test_every_recipe_of_texts_is_on_the_page() -> None:
    named = set(
        re.findall(r"\b(?:classify|sft)_\w+|\bner\b|\bqa\b|embed_fewshot|domain_adapt", TEXT)
    )
    shipped = {
        name.partition("/")[2] for name in shipped_recipes() if not name.startswith("vision")
    }
    assert shipped and shipped <= named
