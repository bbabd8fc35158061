"""The processes of one run, joined by sockets: values exchanged, and a death noticed at once.

JAX has a service of its own for both, but it ends a process from C++: with a stack dump where it
should say who is gone, before Python has a say (jaxlib 0.10). Here process 0 listens, the others
connect, and the kernel closes a connection the moment that a process dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tunekit.errors import DistributedError
from tunekit.place import Place

LOST = 75
"""Exit code where another process is gone: the run can be tried again (EX_TEMPFAIL)."""
_SILENCE_SECONDS = 30
"""Until a machine that answers nothing, not even the kernel's questions, counts as gone."""
_ECHO_SECONDS = 10.0
"""Within which another's end is noticed, where this process fails because of it."""


@dataclass(eq=False)
class Line:
    """A connection that carries a JSON value a line."""

    socket: socket.socket
    who: dict[str, Any] = field(default_factory=dict)
    """Index, host and pid of the process at the other end."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Lets the kernel find out that the other machine is gone."""
        self._file = self.socket.makefile("r", encoding="utf-8")
        _ask_when_silent(self.socket)

    def send(self, message: Any) -> None:
        """Sends `message`; nothing where the connection is closed, which its reader notices."""
        data = (json.dumps(message) + "\n").encode()
        with self._lock:
            try:
                self.socket.sendall(data)
            except OSError:
                return

    def read(self) -> Any:
        """Returns the next message; `None` at the end of the connection."""
        try:
            text = self._file.readline()
            return json.loads(text) if text.endswith("\n") else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Ends the connection, also where a thread waits for its next message."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self.socket.close()


@dataclass(eq=False)
class Peers:
    """This process among the others of a run; process 0 has a line to each, they one to it."""

    place: Place
    lines: dict[int, Line]
    """By the index of the process at the other end."""
    advice: Callable[[], str] = lambda: "Start all processes again."
    """What to do when a process is gone."""
    _answers: queue.Queue[Any] = field(default_factory=queue.Queue)
    _asked: int = 0
    _collected: dict[int, dict[int, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _leaving: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Begins to read every line, in threads that end with the process."""
        _hold_aborts()
        for index, line in self.lines.items():
            name = f"peer {index}"
            threading.Thread(target=self._read, args=(index, line), name=name, daemon=True).start()

    def gathered(self, value: Any, what: str) -> list[Any]:
        """Returns what every process gave here, by its index; waits for all of them.

        Args:
            value: JSON.
            what: the same in all processes, which call this in the same order.

        Raises:
            DistributedError: another process is elsewhere in its work.
        """
        self._asked += 1
        message = {"kind": "give", "turn": self._asked, "value": [what, value]}
        if self.place.index == 0:
            self._collect(0, message)
        else:
            self.lines[0].send(message)
        given = self._answers.get()
        if any(name != what for name, _ in given):
            places = ", ".join(f"process {i}: {name}" for i, (name, _) in enumerate(given))
            raise DistributedError(f"the processes are not at the same point of the run: {places}")
        return [value for _, value in given]

    def leave(self, code: int, message: str) -> None:
        """Tells the others that this process ends by a mistake; they end with the same code."""
        self._leaving.set()
        said = {"kind": "failed", "process": self.place.index, "code": code, "message": message}
        for line in self.lines.values():
            line.send(said)

    def wait_for_end(self) -> None:
        """Waits for the end of this process that another's brings, as long as one may take."""
        threading.Event().wait(_ECHO_SECONDS)

    def part(self) -> None:
        """Ends the connections; every process calls this, and waits for the others."""
        self.gathered(None, "the end")
        self._leaving.set()
        for line in self.lines.values():
            line.send({"kind": "bye"})
            line.close()

    def _read(self, index: int, line: Line) -> None:
        while (message := line.read()) is not None:
            kind = message["kind"]
            if kind == "give":
                self._collect(index, message)
            elif kind == "given":
                self._answers.put(message["values"])
            elif kind == "bye":
                return
            elif kind == "failed":
                self._tell_others(index, message)
                self._end(message["code"], f"process {message['process']}: {message['message']}")
            elif kind == "lost":
                self._end(LOST, message["text"])
        self._lost(line)

    def _collect(self, index: int, message: dict[str, Any]) -> None:
        with self._lock:
            given = self._collected.setdefault(message["turn"], {})
            given[index] = message["value"]
            if len(given) < self.place.count:
                return
            del self._collected[message["turn"]]
        values = [given[i] for i in range(self.place.count)]
        for line in self.lines.values():
            line.send({"kind": "given", "values": values})
        self._answers.put(values)

    def _lost(self, line: Line) -> None:
        if self._leaving.is_set():
            return
        who = line.who
        text = (
            f"process {who['index']} of {self.place.count} (pid {who['pid']} on {who['host']}) is "
            "gone: it ended, or its machine did, without a word"
        )
        self._tell_others(who["index"], {"kind": "lost", "text": text})
        self._end(LOST, text)

    def _tell_others(self, index: int, message: dict[str, Any]) -> None:
        for other, line in self.lines.items():
            if other != index:
                line.send(message)

    def _end(self, code: int, text: str) -> NoReturn:
        """Ends this process: its main thread may wait in C++ for a process that is no more."""
        if self._leaving.is_set():
            # This process is ending for a reason of its own, and says it.
            threading.Event().wait()
        self._leaving.set()
        advice = f" {self.advice()}" if code == LOST else ""
        exit_with(code, f"tunekit: {text.rstrip('.')}.{advice}")


def exit_with(code: int, text: str = "") -> NoReturn:
    """Ends the process at once, having printed `text`: nothing waits for other processes."""
    try:
        if text:
            print(text, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _hold_aborts() -> None:
    """From here on an abort waits some seconds, in which this process says why it ends.

    JAX aborts from C++ as soon as its own connection to process 0 ends, at the same moment as ours.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    # It gets the number of the signal, 6: as seconds that is time enough. And it is safe there.
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _ask_when_silent(connection: socket.socket) -> None:
    """Sets the kernel's own questions and limits, which need no Python thread to be awake."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": _SILENCE_SECONDS // 3,
        "TCP_KEEPINTVL": _SILENCE_SECONDS // 6,
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": _SILENCE_SECONDS * 1000,
        "TCP_NODELAY": 1,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # What is there differs between systems.
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
