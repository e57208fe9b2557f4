"""Every example by its real command line, each step in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
import zarr

from icechunk import Repository
from tests.programs import Programs

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(tmp_path: Path, programs: Programs) -> Any:
    """Return what runs a command in the folder of the examples, and gives its output."""
    # `python` is that of the tests
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REPOSITORY": str(tmp_path / "repository"),
    }

    def run(*command: str, **more: str) -> str:
        if command[0] == "python":
            ended = programs.run(*command[1:], cwd=EXAMPLES, env={**environment, **more})
            assert ended.returncode == 0, ended.output
            return ended.output
        done = subprocess.run(
            command,
            cwd=EXAMPLES,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def check(tmp_path: Path) -> None:
    repository = Repository.open(tmp_path / "repository")
    array: Any = zarr.open_array(
        repository.readonly_session("main").store, path="temperature", mode="r"
    )
    assert array[:].tolist() == [[row + 1.0] * 10 for row in range(4)]
    # the first, the array, and one for all parts
    assert len(list(repository.ancestry(branch="main"))) == 3
    assert repository.jobs.open("january").status().state == "finished"


def shown(output: str) -> None:
    """The page of jobs shows this output."""
    page = (ROOT / "docs" / "pages" / "howto" / "jobs.md").read_text()
    assert f"```\n{output.strip()}\n```" in page


def test_kubernetes(run: Any, tmp_path: Path) -> None:
    described = yaml.safe_load((EXAMPLES / "kubernetes_job.yaml").read_text())["spec"]
    (container,) = described["template"]["spec"]["containers"]
    run("python", "kubernetes_job.py", "create")
    # pods may run twice
    for index in [*range(described["completions"]), 1]:
        run(*container["command"], JOB_COMPLETION_INDEX=str(index))
    assert "finished, 4 parts" in run("python", "kubernetes_job.py", "finish")
    check(tmp_path)


def test_slurm(run: Any, tmp_path: Path) -> None:
    run("python", "slurm_array.py", "create")
    run("python", "slurm_array.py", "create")

    def task(number: int) -> str:
        numbers = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "3"}
        output: str = run("bash", "slurm_array.sh", **numbers)
        return output

    shown(task(0))
    assert "done            2" in run("python", "slurm_array.py", "status")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(task, [1, 2]))
    check(tmp_path)


def test_github(run: Any, tmp_path: Path) -> None:
    workflow = yaml.safe_load((EXAMPLES / "github_matrix.yml").read_text())["jobs"]
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step][-1]
        for name, job in workflow.items()
    }
    output = tmp_path / "output"
    run("bash", "-c", commands["create"], GITHUB_OUTPUT=str(output))
    name, _, keys = output.read_text().strip().partition("=")
    assert name == "keys"
    for key in json.loads(keys):
        run("bash", "-c", commands["part"].replace("${{ matrix.key }}", key))
    assert "finished" in run("bash", "-c", commands["finish"])
    check(tmp_path)


def test_lambda(run: Any, tmp_path: Path) -> None:
    def call(event: Any) -> Any:
        return json.loads(run("python", "lambda_handler.py", json.dumps(event)))

    messages = call({"create": True})["messages"]
    assert messages == [{"key": f"2001-01-0{day}"} for day in (1, 2, 3, 4)]
    answers = [call(message) for message in [*messages[:2], messages[0], *messages[2:]]]
    shown(json.dumps(answers[0]))
    assert [answer["ran"] for answer in answers] == [True, True, False, True, True]
    assert [answer["done"] for answer in answers] == [1, 2, 2, 3, 4]
    assert [answer["snapshot"] is None for answer in answers] == [True] * 4 + [False]
    check(tmp_path)
    # once more for a message that was done
    assert call(messages[3])["snapshot"] == answers[-1]["snapshot"]


@pytest.mark.parametrize("pool", ["processes", "loky", "parsl", "lithops", "ray"])
def test_pools(run: Any, tmp_path: Path, pool: str) -> None:
    """Those of other libraries where they are installed."""
    if pool != "processes":
        pytest.importorskip(pool)
    words = ("python", "pools.py", pool)
    assert "8 days written, 0 were there" in run(*words)
    assert "0 days written, 8 were there" in run(*words)
    store = Repository.open(tmp_path / "repository").readonly_session("main").store
    array: Any = zarr.open_array(store, path="temperature", mode="r")
    assert array[:].tolist() == [[day + 1.0] * 10 for day in range(8)]
