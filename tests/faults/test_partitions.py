"""Networks that fall apart, in a network of the test's own.

A process in a namespace of its own has an S3 server behind a line that is cut, for a while or for
good, and a name that cannot be resolved for a while. Each operation ends with an error that
names what it could not reach, within the limits, and works when the line is back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "partition_script.py"
CLUSTER = Path(__file__).parent / "partition_cluster.py"


def _can_unshare() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "-rnm", "sh", "-c", "ip link add name here type veth peer name there"],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


needs_namespaces = pytest.mark.skipif(
    not _can_unshare(), reason="needs network namespaces and iproute2"
)


def _run(*command: str) -> None:
    done = subprocess.run(
        ["unshare", "-rnm", sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_namespaces
@pytest.mark.parametrize("what", ["cut", "name", "workers"])
def test_the_line_is_cut(what: str, tmp_path: Path) -> None:
    _run(str(SCRIPT), what, str(tmp_path))


@needs_namespaces
def test_the_line_within_a_cluster_is_cut(tmp_path: Path) -> None:
    _run(str(CLUSTER), str(tmp_path))
