from __future__ import annotations

import io

from rich.console import Console

from tunekit.report.samples import print_samples, samples_markdown, samples_table

ROW = {
    "prompt": "What is [bold]?",
    "reference": "A | pipe\nand a line",
    "base": "<b>no</b> *star*",
    "tuned": "yes",
}


def printed(thing) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(thing)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_answers_stand_side_by_side_and_brackets_are_no_markup() -> None:
    text = printed(samples_table([ROW]))
    assert [name in text for name in ("prompt", "reference", "base", "tuned")] == [True] * 4
    (line,) = (line for line in text.splitlines() if "What is [bold]?" in line)
    assert line.index("A | pipe") < line.index("<b>no</b> *star*") < line.index("yes")


def test_nothing_is_printed_of_no_samples() -> None:
    console = Console(file=io.StringIO())
    print_samples([], console)
    assert console.file.getvalue() == ""  # pyright: ignore[reportAttributeAccessIssue]
    print_samples([ROW], console)
    assert "tuned" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_cells_of_markdown_hold_what_was_written() -> None:
    head, rule, row = samples_markdown([ROW]).splitlines()
    assert (head, rule) == ("| prompt | reference | base | tuned |", "| --- | --- | --- | --- |")
    assert row == (
        r"| What is \[bold\]? | A \| pipe<br>and a line | &lt;b>no&lt;/b> \*star\* | yes |"
    )
