"""Processes that find together, or say why not; run as threads where JAX is not needed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.processes import codes, free_address, said, started
from tunekit.agreement import check_agreed
from tunekit.distributed import gathered, initialise, is_first, process_count
from tunekit.errors import DistributedError
from tunekit.peers import Peers
from tunekit.place import Place, found_place
from tunekit.rendezvous import join

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster, whatever this machine is."""
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Results of calls that wait for each other, errors among them."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except DistributedError as error:
            return str(error)

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(outcome, calls))


def places(count: int) -> list[Place]:
    port = int(free_address().rpartition(":")[2])
    return [Place(HOST, port, index, count) for index in range(count)]


def joined(count: int) -> list[Peers]:
    found = at_once(*(lambda place=place: join(place, 20) for place in places(count)))
    return [peers for peers, _ in found]


def test_three_processes_exchange_values_in_the_order_of_their_indices() -> None:
    everyone = joined(3)

    def exchanged(peers: Peers) -> list[Any]:
        return [peers.gathered([peers.place.index, turn], "x") for turn in range(20)]

    expected = [[[index, turn] for index in range(3)] for turn in range(20)]
    assert at_once(*(partial(exchanged, peers) for peers in everyone)) == [expected] * 3
    at_once(*(peers.part for peers in everyone))


def test_processes_that_are_at_different_points_are_told_so() -> None:
    one, other = joined(2)
    found = at_once(lambda: one.gathered(1, "length"), lambda: other.gathered(1, "memory"))
    assert found == ["the processes are not at the same point of the run: "
                     "process 0: length, process 1: memory"] * 2  # fmt: skip
    at_once(one.part, other.part)


def test_all_processes_are_told_the_same_free_port() -> None:
    found = at_once(*(lambda place=place: join(place, 20) for place in places(3)))
    ports = {told["port"] for _, told in found}
    assert len(ports) == 1
    at_once(*(peers.part for peers, _ in found))


def test_a_process_that_does_not_come_is_named() -> None:
    first, second, _ = places(3)
    told = at_once(lambda: join(first, 1.5), lambda: join(second, 1.5))
    assert "for 3 processes, and 2 did not come" in told[0]
    assert "process 1 cannot reach process 0" in told[1]


def test_a_coordinator_that_is_not_there_is_an_error_that_names_it() -> None:
    _, second = places(2)
    with pytest.raises(DistributedError, match=rf"process 1 cannot reach process 0 at {second}"):
        join(second, 0.5)


def test_an_address_of_no_machine_is_an_error() -> None:
    with pytest.raises(DistributedError, match="cannot reach process 0 at nowhere.invalid:1234"):
        join(Place("nowhere.invalid", 1234, 1, 2), 0.5)


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server((HOST, 0)) as taken:
        place = Place(HOST, taken.getsockname()[1], 0, 2)
        with pytest.raises(DistributedError, match="cannot listen at .* an address of this mach"):
            join(place, 5)


def test_two_processes_of_one_index_are_refused_in_all() -> None:
    first, second, _ = places(3)
    told = at_once(*(lambda place=place: join(place, 20) for place in (first, second, second)))
    assert told == ["two processes came as --process 1; give each its own, from 0 on."] * 3


def test_processes_that_count_differently_are_refused() -> None:
    first, second = places(2)
    other = Place(HOST, second.port, 1, 3)
    told = at_once(lambda: join(first, 20), lambda: join(other, 20))
    assert told == ["process 0 expects 2 processes and process 1 expects 3; give all of them the "
                    "same --processes."] * 2  # fmt: skip


def test_whoever_else_connects_is_passed_over() -> None:
    first, second = places(2)

    def knock() -> None:
        for _ in range(200):
            try:
                with socket.create_connection((HOST, first.port), 1) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    stranger.recv(1)
                return
            except ConnectionRefusedError:
                threading.Event().wait(0.02)

    def come() -> Any:
        knock()
        return join(second, 20)

    found = at_once(lambda: join(first, 20), come)
    assert [peers.place.index for peers, _ in found] == [0, 1]
    at_once(*(peers.part for peers, _ in found))


def test_a_process_that_is_alone_asks_nobody() -> None:
    initialise()
    assert is_first() and process_count() == 1
    assert gathered({"a": 1}, "x") == [{"a": 1}]
    check_agreed({"a": object()})
    initialise("127.0.0.1:1", 1, 0)
    assert process_count() == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"coordinator": "a:1"}, "no --processes and no --process"),
        ({"processes": 2, "process": 0}, "no --coordinator"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "expected HOST:PORT, got 'host'"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "expected 0 to 1 of 2 processes"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: Any, told: str) -> None:
    with pytest.raises(DistributedError, match=told):
        initialise(**given)


def test_environment_variables_stand_in_for_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "[::1]:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "8")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    options: Any = {"coordinator": None, "processes": None, "process": 5}
    assert found_place(options) == (Place("::1", 1234, 5, 8), None)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "many")
    with pytest.raises(DistributedError, match="--processes: expected a whole number, got 'many'"):
        found_place(options)


def test_what_slurm_says_of_a_step_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[003,007]", "SLURM_NTASKS": "2"}
    for name, value in {**said, "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    place, devices = found_place({"coordinator": None, "processes": None, "process": None})
    assert place is not None and (place.host, place.index, place.count) == ("node003", 1, 2)
    assert devices == [0]


def test_a_pod_that_is_of_no_indexed_job_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    asked = {"coordinator": None, "processes": None, "process": None}
    assert found_place(asked) == (None, None)
    # Of such a job, JAX asks for the package that finds the others.
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with pytest.warns(UserWarning, match="jax\\[k8s\\]"):
        found_place(asked)


def test_jax_that_has_its_devices_cannot_be_joined() -> None:
    import jax

    jax.devices()
    with pytest.raises(DistributedError, match="JAX has its devices already"):
        initialise(free_address(), 2, 0, wait_seconds=0.1)


SCRIPT = """
import os, sys
from pathlib import Path
from tunekit.agreement import check_agreed, check_shared
from tunekit.distributed import initialise
from tunekit.errors import DistributedError
place, task = sys.argv[1:3]
address, count, index = place.split(",")
os.chdir(sys.argv[3])
initialise(address, int(count), int(index), wait_seconds=60)
try:
    if task == "shared":
        check_shared(Path("out"))
    if task == "agreed":
        check_agreed({"plan": {"rate": 0.1 + int(index)}, "seed": 0})
except DistributedError as error:
    print(error)
"""


def two(tmp_path: Path, task: str, *, apart: bool) -> list[str]:
    """What two processes say of a task, in one folder or each in its own."""
    script, address = tmp_path / "script.py", free_address()
    script.write_text(SCRIPT)
    folders = [tmp_path / ("other" if apart and index else "own") for index in range(2)]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    lines = [[str(script), f"{address},2,{i}", task, str(folders[i])] for i in range(2)]
    with started(lines, tmp_path / "logs") as processes:
        assert codes(processes, 120) == [0, 0], [said(tmp_path / "logs", i) for i in range(2)]
    return [said(tmp_path / "logs", index) for index in range(2)]


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path: Path) -> None:
    for text in two(tmp_path, "shared", apart=True):
        assert (
            "out is not one folder for all processes: what process 0 writes there, process 1"
            in (text)
        )
    for text in two(tmp_path, "shared", apart=False):
        assert "not one folder" not in text
    assert list((tmp_path / "own" / "out").iterdir()) == []


def test_what_differs_between_processes_is_named(tmp_path: Path) -> None:
    for text in two(tmp_path, "agreed", apart=False):
        assert "plan.rate is 0.1 in process 0 and 1.1 in process 1. Give all of them the" in text
