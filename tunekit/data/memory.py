"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


def available_memory(machine: Path = _MACHINE, container: Path = _CONTAINER) -> int:
    """Returns the bytes that are free: on the machine, and within its container's limit.

    Args:
        machine: Linux' account of the machine's memory.
        container: folder of the control group (version 2).
    """
    free = [_machine_free(machine)]
    limit = container / "memory.max"
    # A group without a limit says "max"; the root group has no such file.
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        used = int((container / "memory.current").read_text())
        # Pages of files that were read count as used, and go when they are needed.
        cached = _field(container / "memory.stat", "inactive_file")
        free.append(max(int(text) - used + cached, 0))
    return min(free)


def _machine_free(machine: Path) -> int:
    if machine.exists():
        return _field(machine, "MemAvailable:") * 1024
    # macOS tells the whole alone; half of it is a careful guess.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _field(path: Path, name: str) -> int:
    rows = (line.split() for line in path.read_text().splitlines())
    return next((int(row[1]) for row in rows if row and row[0] == name), 0)
