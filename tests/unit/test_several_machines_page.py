"""The page of several machines and its templates: every command line is one of ours."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunekit.cli import _parsers
from tunekit.place import ADDRESS, COUNT, INDEX

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "several_machines.md"


def parsed(words: list[str]) -> argparse.Namespace:
    """Options of a command line; one that is not ours ends the test."""
    assert words[0] == "tunekit"
    return _parsers()[1][words[1]].parse_intermixed_args(words[2:])


def command_lines(text: str) -> list[list[str]]:
    joined = re.sub(r"\\\n", " ", text)
    found = re.findall(r"^(?:srun .*?)?(tunekit .*)$", joined, re.MULTILINE)
    return [shlex.split(line) for line in found]


def test_command_lines_of_the_page_are_ours() -> None:
    found = [parsed(words) for words in command_lines(PAGE.read_text())]
    assert len(found) == 4
    assert [each.launcher for each in found] == [None, None, "ray", "kinetic"]
    assert [each.process for each in found[:2]] == [0, 1]
    assert len({each.coordinator for each in found[:2]}) == 1


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE.read_text()):
        assert (DOCS / target).is_file(), target


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load((DOCS / "templates" / "jobset.yaml").read_text())


def test_the_jobset_starts_a_process_a_pod_and_tells_each_its_place(job: dict[str, Any]) -> None:
    (workers,) = job["spec"]["replicatedJobs"]
    spec = workers["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {each["name"]: each for each in container["env"]}
    assert variables.keys() == {ADDRESS, COUNT, INDEX}
    assert int(variables[COUNT]["value"]) == spec["completions"] == spec["parallelism"]
    # Names of pods: <jobset>-<replicated job>-<job>-<pod>, in a subdomain named as the jobset.
    name, _, port = variables[ADDRESS]["value"].rpartition(":")
    jobset = job["metadata"]["name"]
    assert name == f"{jobset}-{workers['name']}-0-0.{jobset}" and port.isdigit()
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0


def test_the_jobset_runs_a_command_of_ours_that_resumes_in_a_shared_folder(
    job: dict[str, Any],
) -> None:
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parsed([*container["command"], *container["args"]])
    assert options.resume and options.overrides == ["data.path=/shared/chats.jsonl"]
    (mount,) = container["volumeMounts"]
    assert options.out.startswith(f"{mount['mountPath']}/")
    assert mount["name"] in {volume["name"] for volume in pod["volumes"]}


def test_the_batch_script_of_slurm_runs_a_command_of_ours_that_resumes() -> None:
    text = (DOCS / "templates" / "slurm.sbatch").read_text()
    (words,) = command_lines(text)
    options = parsed(words)
    assert options.resume and options.recipe == "llm/sft_lora"
    asked = dict(re.findall(r"^#SBATCH --(\S+?)=(\S+)$", text, re.MULTILINE))
    # JAX gives each process of a machine one GPU.
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
