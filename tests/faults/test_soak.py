"""A few seconds of what `make soak` does for ten minutes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("on", ["folder", "s3"])
def test_nothing_is_lost(on: str) -> None:
    command = [sys.executable, "-m", "tests.faults.soak", "--on", on]
    # a process of its own: this one has made requests, and cannot be forked
    done = subprocess.run(
        [*command, "--writers", "4", "--seconds", "6"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 lost" in done.stdout
