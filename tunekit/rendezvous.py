"""How the processes of a run find together: process 0 listens, the others connect.

JAX' own service ends the process from C++ where it cannot listen or is not reached (jaxlib 0.10);
this comes before it, so that a mistake is an error that says what to do.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunekit.errors import DistributedError
from tunekit.peers import Line, Peers
from tunekit.place import Place

_HELLO_SECONDS = 10.0
"""For the first line of a connection; whoever says nothing is none of ours."""


def join(place: Place, wait_seconds: float) -> tuple[Peers, dict[str, Any]]:
    """Returns the processes of the run, all there, and what process 0 tells them.

    Process 0 tells of "port", a free one on its machine.

    Args:
        place: of this process.
        wait_seconds: for the others.

    Raises:
        DistributedError: process 0 cannot listen or be reached, a process does not come, or they
            disagree about how many they are.
    """
    until = time.monotonic() + wait_seconds
    lines, told = _listen(place, until) if place.index == 0 else _connect(place, until)
    peers = Peers(place, lines)
    peers.watch()
    return peers, told


def _listen(place: Place, until: float) -> tuple[dict[int, Line], dict[str, Any]]:
    lines: dict[int, Line] = {}
    with _listener(place) as listener, _closed_on_error(lines):
        while len(lines) < place.count - 1:
            listener.settimeout(max(until - time.monotonic(), 0.01))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = [i for i in range(1, place.count) if i not in lines]
                raise DistributedError(
                    f"waited at {place} for {place.count} processes, and "
                    f"{', '.join(map(str, missing))} did not come. Start each with the same "
                    f"--coordinator {place} --processes {place.count} and its own --process."
                ) from None
            line = _hello(connection)
            if line is None:
                continue
            if wrong := _unwelcome(place, line.who, lines):
                for each in (line, *lines.values()):
                    each.send({"refused": wrong})
                line.close()
                raise DistributedError(wrong)
            lines[line.who["index"]] = line
    told = {"port": free_port(place.host), "host": socket.gethostname(), "pid": os.getpid()}
    for line in lines.values():
        line.send(told)
    return lines, told


@contextmanager
def _closed_on_error(lines: dict[int, Line]) -> Iterator[None]:
    """Closes the lines there are where the block fails."""
    try:
        yield
    except BaseException:
        for line in lines.values():
            line.close()
        raise


def _connect(place: Place, until: float) -> tuple[dict[int, Line], dict[str, Any]]:
    unreachable = (
        f"process {place.index} cannot reach process 0 at {place}: {{}}. Start process 0 there, "
        "with the same --coordinator; that address must be of its machine, and open to this one."
    )
    while True:
        left = until - time.monotonic()
        try:
            connection = socket.create_connection((place.host, place.port), max(left, 0.1))
            break
        except OSError as error:
            if left <= 0 or isinstance(error, socket.gaierror):
                raise DistributedError(unreachable.format(error)) from None
            time.sleep(0.2)
    connection.settimeout(max(until - time.monotonic(), 1.0))
    line = Line(connection)
    me = {"index": place.index, "host": socket.gethostname(), "pid": os.getpid()}
    line.send({**me, "count": place.count})
    told = line.read() or {"refused": unreachable.format("it does not answer as ours does")}
    if "refused" in told:
        line.close()
        raise DistributedError(told["refused"])
    connection.settimeout(None)
    line.who = {"index": 0, "host": told["host"], "pid": told["pid"]}
    return {0: line}, told


def _listener(place: Place) -> socket.socket:
    try:
        try:
            return socket.create_server((place.host, place.port), backlog=place.count)
        except OSError:
            # The name may be that of a service or of a translated address, none of this machine's.
            if _is_taken(place):
                raise
            return socket.create_server(("", place.port), backlog=place.count)
    except OSError as error:
        raise DistributedError(
            f"process 0 cannot listen at {place}: {error.strerror or error}. Give --coordinator an "
            "address of this machine with a free port, in every process."
        ) from None


def _is_taken(place: Place) -> bool:
    try:
        socket.create_connection((place.host, place.port), 1.0).close()
    except OSError:
        return False
    return True


def _hello(connection: socket.socket) -> Line | None:
    """The line to a process that has said who it is; `None` where something else connected."""
    connection.settimeout(_HELLO_SECONDS)
    line = Line(connection)
    said = line.read()
    if not isinstance(said, dict) or not {"index", "count", "host", "pid"} <= said.keys():
        line.close()
        return None
    connection.settimeout(None)
    line.who = said
    return line


def _unwelcome(place: Place, who: dict[str, Any], lines: dict[int, Line]) -> str:
    """Why a process cannot be of this run; "" where it can."""
    index = who["index"]
    if who["count"] != place.count:
        return (
            f"process 0 expects {place.count} processes and process {index} expects "
            f"{who['count']}; give all of them the same --processes."
        )
    if index in lines or index == 0:
        return f"two processes came as --process {index}; give each its own, from 0 on."
    return ""


def free_port(host: str) -> int:
    """Returns a port of this machine that nothing listens at."""
    for name in (host, ""):
        try:
            with socket.create_server((name, 0)) as server:
                return server.getsockname()[1]
        except OSError:
            continue
    raise DistributedError(f"this machine has no free port at {host}")
