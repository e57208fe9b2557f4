"""Commits while the interpreter ends, when no thread can be started any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from icechunk import Repository

SCRIPT = """
import atexit, sys, threading
import zarr
from icechunk import Repository, RepositoryConfig

config = RepositoryConfig(inline_chunk_threshold_bytes=0)
repo = Repository.create(sys.argv[1], config)
sessions = {}
for name in ("main", "late"):
    if name != "main":
        repo.create_branch(name, repo.lookup_branch("main"))
    session = sessions[name] = repo.writable_session(name)
    for array in "ab":
        zarr.create_array(session.store, name=array, shape=(9,), chunks=(1,), dtype="i4")[:] = 7

def commit_late():
    threading.main_thread().join()
    sessions["late"].commit("late")

atexit.register(lambda: sessions["main"].commit("at exit"))
threading.Thread(target=commit_late).start()
"""


def test_commits_while_the_interpreter_ends(tmp_path: Path) -> None:
    place = str(tmp_path / "repo")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, place],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    repo = Repository.open(place)
    for branch, message in (("main", "at exit"), ("late", "late")):
        assert next(iter(repo.ancestry(branch=branch))).message == message
    assert repo.verify(deep=True).ok
