"""Folders on disks that are full, and on file systems that lack something."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from icechunk import LocalStorage, Repository, StorageError
from icechunk.storage import staging
from tests import histories
from tests.faults.operations import (
    CONFIG,
    HISTORY,
    OPERATIONS,
    START,
    check_whole,
    commit,
    finish,
    lay_out,
    messages,
    newest,
    prepared,
)

STRIDE = 1 if os.environ.get("ICECHUNK_EVERY_CALL") else 7


# -- no room -----------------------------------------------------------------------------
class FullDisk:
    """Lets a write find no room, and all that follow, after half of its bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.is_full = False
        self._write_all = staging._write_all
        monkeypatch.setattr(staging, "_write_all", self._write)

    def _write(self, fd: int, data: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.is_full = True
                self._write_all(fd, memoryview(data).cast("B")[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
        self._write_all(fd, data)

    def make_room(self) -> None:
        self.left = None


@pytest.mark.parametrize(("name", "spec_version"), OPERATIONS)
def test_a_disk_that_is_full_at_each_write(
    name: str, spec_version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    nth = 1 + zlib.crc32(f"{name} {spec_version}".encode()) % STRIDE
    while True:
        disk.is_full = False
        storage = LocalStorage(tmp_path / str(nth))
        made = prepared(name, spec_version, storage, LocalStorage(storage.path))
        disk.left = nth
        error = finish(made, disk.make_room)
        check_whole(storage, made)
        # nothing is left of what was not written to its end
        assert list(storage._objects("", lambda name: "#" in name and len(name) > 22)) == []
        if not disk.is_full:
            break
        assert "No space left on device; garbage_collect can make room" in str(error)
        nth += STRIDE


#: On a file system of so many bytes: write until nothing goes, make room, and go on.
FULL = """
import os, sys
from pathlib import Path
from icechunk import LocalStorage, StorageError
from tests.faults.operations import *

root = Path(sys.argv[1])
storage = LocalStorage(root / "repository")
lay_out(storage, 2)
repository = Repository.open(storage, CONFIG)
(root / "filler").write_bytes(b"x" * 200_000)
told = dict(START)
for number in range(10_000):
    session = repository.writable_session("main")
    try:
        write(session, {number % 6: number})
        session.commit("more")
    except StorageError as error:
        assert "No space left on device" in str(error), error
        break
    told[number % 6] = number
assert newest(storage) == told
(root / "filler").unlink()
try:
    write(session, {number % 6: number})
    session.commit("at last")
except Exception:
    # what was written in part is not committed
    commit(repository, {number % 6: number})
assert newest(storage) == {**told, number % 6: number}
repository.verify(deep=True).raise_if_damaged()
print("committed", number)
"""


def _unshared(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script where it may mount; skip the test where nobody may."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs namespaces")
def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    mounting = 'mount -t tmpfs -o size=700k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    done = _unshared(mounting, str(tmp_path), sys.executable, FULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("committed ")


#: On a file system without a single free byte: collect what fills it.
COLLECT = """
import os, shutil, sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from icechunk import LocalStorage, Repository, StorageError
from tests import histories
from tests.reachability import collectable, needed

def collect(root, kind, incremental):
    storage = LocalStorage(root / "repository")
    repository = histories.create(storage)
    later = datetime.now(UTC) + timedelta(hours=1)
    for number in range(4):
        histories.commit(repository, {0: b"native %d" % number})
    repository.garbage_collect(later, incremental=incremental)
    if kind == "never committed":
        session = repository.writable_session("main")
        histories.write(session, {number: b"native" * 1000 for number in range(6)})
    elif kind == "versions":
        tip = repository.lookup_branch("main")
        repository.create_branch("b", tip)
        histories.commit(repository, {2: b"something of a branch" * 1000}, "b")
        repository.delete_branch("b")
    expected = histories.newest(storage)
    with open(root / "filler", "wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    status = os.statvfs(root)
    assert status.f_bavail == 0
    try:
        done = repository.garbage_collect(later, incremental=incremental)
    except StorageError as error:
        print("refused:", error)
    else:
        print("freed", done.chunks_deleted, done.snapshots_deleted)
        assert set(collectable(storage)) == needed(storage)
    assert histories.newest(storage) == expected
    Repository.open(storage).verify(deep=True).raise_if_damaged()

root = Path(sys.argv[1])
for case in sys.argv[2:]:
    kind, how = case.split(", ")
    collect(root, kind, how == "incremental")
    for path in root.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs namespaces")
def test_garbage_on_a_disk_without_room(tmp_path: Path) -> None:
    said = {
        "never committed, whole": "freed 6 0",
        "never committed, incremental": "freed 6 0",
        "versions, whole": "freed 1 1",
        "versions, incremental": "freed 1 1",
        "nothing, whole": "refused: cannot write repo",
        # the record of the last collection makes room
        "nothing, incremental": "freed 0 0",
    }
    mounting = (
        'mount -t tmpfs -o size=400k tmpfs "$1" && place=$1 python=$2 program=$3 && shift 3 && '
        'exec "$python" -c "$program" "$place" "$@"'
    )
    done = _unshared(mounting, str(tmp_path), sys.executable, COLLECT, *said)
    assert done.returncode == 0, done.stderr
    for line, (case, words) in zip(done.stdout.splitlines(), said.items(), strict=True):
        assert line.startswith(words), case


@pytest.mark.parametrize("named", [False, True])
def test_what_makes_room_comes_back(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs that made room in vain, or of a version that got a name meanwhile, are put back."""
    storage = LocalStorage(tmp_path)
    repository = histories.create(storage)
    repository.create_branch("b", repository.lookup_branch("main"))
    dropped = histories.commit(repository, {2: b"8 bytes!"}, "b")
    repository.delete_branch("b")
    before = {meta.key for meta in storage.list("transactions/")}
    write_all, delete, gone = staging._write_all, LocalStorage.delete, []

    def full(fd: int, data: Any) -> None:
        if "/repo#" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(fd, data)

    def deleting(self: LocalStorage, keys: Any) -> None:
        keys = list(keys)
        delete(self, keys)
        if f"transactions/{dropped}" in keys and not gone:
            gone.append(dropped)
            if named:
                monkeypatch.setattr(staging, "_write_all", write_all)
                Repository.open(storage).create_branch("named", dropped)

    monkeypatch.setattr(staging, "_write_all", full)
    monkeypatch.setattr(LocalStorage, "delete", deleting)
    later = datetime.now(UTC) + timedelta(hours=1)
    if named:
        assert repository.garbage_collect(later).snapshots_deleted == 0
    else:
        with pytest.raises(StorageError, match="cannot write repo"):
            repository.garbage_collect(later)
    assert gone
    assert {meta.key for meta in storage.list("transactions/")} == before
    Repository.open(storage).verify(deep=True).raise_if_damaged()


# -- what some file systems do not have ------------------------------------------------------
def test_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    storage = LocalStorage(tmp_path)
    lay_out(storage, 2)
    repository = Repository.open(storage, CONFIG)
    commit(repository, {5: 5})
    assert newest(storage) == {**START, 5: 5}
    assert messages(storage) == ["{5: 5}", *HISTORY]


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    """Nothing is replaced without a lock: of two who do it at a time one would be lost."""
    storage = LocalStorage(tmp_path)
    lay_out(storage, 2)

    def flock(fd: int, operation: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    repository = Repository.open(storage, CONFIG)
    with pytest.raises(StorageError, match="file locks"):
        commit(repository, {5: 5})
    assert newest(storage) == START
    assert messages(storage) == HISTORY


# -- a clock that runs backwards ---------------------------------------------------------
@pytest.mark.parametrize("spec_version", [1, 2])
def test_a_clock_that_runs_backwards(
    spec_version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit is made an hour before the one that it follows."""
    storage = LocalStorage(tmp_path)
    lay_out(storage, spec_version)
    real, back = time.time_ns, 0
    monkeypatch.setattr(time, "time_ns", lambda: real() - back)
    expected = dict(START)
    for number in range(5):
        # one that knows the state, and one that has never seen it
        back += 60 * 10**9
        repository = Repository.open(storage, CONFIG)
        commit(repository, {number: number})
        expected[number] = number
        assert newest(storage) == expected
    history = [f"{{{number}: {number}}}" for number in range(4, -1, -1)]
    assert messages(storage) == [*history, *HISTORY]
    repository = Repository.open(storage, CONFIG)
    middle = next(e for e in repository.ancestry(branch="main") if e.message == history[2])
    # what is newer by its time lies further back
    repository.expire_snapshots(middle.written_at)
    repository.garbage_collect(middle.written_at)
    assert newest(storage) == expected
    assert newest(storage, "dev") == START
    repository.verify(deep=True).raise_if_damaged()
    commit(repository, {5: 5})
    assert newest(storage) == {**expected, 5: 5}
