"""Prints what each program that was compiled ahead of time needs, as one table at the end."""

from __future__ import annotations

from typing import Any

COLUMNS = ("program", "machine", "peak GiB", "GFLOP a step", "messages MB", "compiled in s")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "program"
    ]
    if not rows:
        return
    table = [COLUMNS, *sorted(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    terminalreporter.write_sep(
        "=", "programs of one device, compiled for machines that are not here"
    )
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line(line.rstrip())
