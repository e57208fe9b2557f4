"""A folder, and what processes, crashes and full disks do to it.

Scripts that are to be killed, or to lose their rights, run in processes of their own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from icechunk.errors import (
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.storage import (
    LocalStorage,
    Storage,
    local_filesystem_storage,
    storage_from_url,
    to_disk,
)
from icechunk.storage.locks import exclusive, open_lock
from icechunk.testing.storage import StorageTests, contents

pytestmark = pytest.mark.usefixtures("forced")

#: Long enough for a loaded machine; nothing waits for it unless something hangs.
PATIENCE = 60


class TestLocalStorage(StorageTests):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return LocalStorage(tmp_path / "not yet" / "there")


class TestWithoutHardLinks(StorageTests):
    """As on FAT, and on many network file systems."""

    large = 1024**2

    @pytest.fixture
    def storage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
        def link(*_: object, **__: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "no links here")

        monkeypatch.setattr(os, "link", link)
        return LocalStorage(tmp_path)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def files(storage: LocalStorage) -> list[str]:
    """Every file of the folder, temporary ones included."""
    root = Path(storage.path)
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@contextmanager
def script(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script; it is killed if it is still there at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=-1, stdout=-1, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_script(code: str, *arguments: str) -> str:
    with script(code, *arguments) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return output


# -- the folder ----------------------------------------------------------------------
def test_reading_creates_nothing(storage: LocalStorage) -> None:
    assert list(storage.list()) == []
    assert list(storage.list("a/")) == []
    storage.delete(["a", "b/c"])
    with pytest.raises(ObjectNotFoundError):
        storage.get("a")
    with pytest.raises(ObjectNotFoundError):
        storage.get_if_changed("a", '"x"')
    with pytest.raises(PreconditionFailedError):
        storage.put("a", b"x", if_match='"x"')
    assert not os.path.exists(storage.path)


def test_writes_leave_nothing_but_objects_and_locks(storage: LocalStorage) -> None:
    etag = storage.put("a", b"x", if_absent=True)
    storage.put("b/c", b"y")
    assert files(storage) == ["a", "b/c"]
    storage.put("a", b"z", if_match=etag)
    with pytest.raises(PreconditionFailedError):
        storage.put("a", b"x", if_absent=True)
    assert files(storage) == ["a", "a#0", "b/c"]
    assert [m.key for m in storage.list()] == ["a", "b/c"]


def test_files_of_other_writers_are_not_listed(storage: LocalStorage) -> None:
    storage.put("d/a", b"x")
    for name in ("a#1", "a#0", "b#12345678901234567890"):
        Path(storage.path, "d", name).write_bytes(b"half")
        for call in (storage.get, lambda key: storage.put(key, b"")):
            with pytest.raises(InvalidInputError, match="#"):
                call(f"d/{name}")
    assert contents(storage) == {"d/a": b"x"}


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = local_filesystem_storage("here")
    monkeypatch.chdir("/")
    storage.put("a", b"x")
    assert (tmp_path / "here" / "a").read_bytes() == b"x"
    assert pickle.loads(pickle.dumps(storage)).path == str(tmp_path / "here")


@pytest.mark.parametrize("name", ["plain", "with space", "pér#cent%20", "?query"])
def test_the_url_of_a_folder_names_the_folder(tmp_path: Path, name: str) -> None:
    storage = LocalStorage(tmp_path / name)
    assert storage_from_url(storage.url).url == storage.url
    storage_from_url(storage.url).put("a", b"x")
    assert (tmp_path / name / "a").read_bytes() == b"x"
    assert bytes(storage_from_url(tmp_path / name).get("a").data) == b"x"


def test_the_permissions_of_new_files_follow_the_umask(storage: LocalStorage) -> None:
    old = os.umask(0o027)
    try:
        storage.put("a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(os.path.join(storage.path, "a")).st_mode) == 0o640


# -- symbolic links ------------------------------------------------------------------
def test_links_that_lead_out_are_refused(storage: LocalStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    storage.put("inside/a", b"x")
    root = Path(storage.path)
    (root / "file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    (root / "relative").symlink_to("../outside")
    (root / "twice").symlink_to("folder")
    for key in ("file", "folder/secret", "relative/secret", "twice/secret"):
        for call in (
            lambda key=key: storage.get(key),
            lambda key=key: storage.get_if_changed(key, '"x"'),
            lambda key=key: storage.put(key, b"overwritten"),
            lambda key=key: storage.delete([key]),
            lambda key=key: storage.copy(key, "b"),
            lambda key=key: list(storage.list(key + "/")),
        ):
            with pytest.raises(InvalidInputError, match="symbolic link"):
                call()
    assert (outside / "secret").read_bytes() == b"secret"
    assert [m.key for m in storage.list()] == ["inside/a"]


def test_links_inside_of_the_folder_are_followed(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a/b", b"x")
    (Path(storage.path) / "link").symlink_to("a")
    assert bytes(storage.get("link/b").data) == b"x"
    (tmp_path / "alias").symlink_to(storage.path)
    assert contents(LocalStorage(tmp_path / "alias")) == {"a/b": b"x"}


# -- etags ---------------------------------------------------------------------------
def test_no_etag_comes_back_when_the_clock_does(storage: LocalStorage) -> None:
    # sizes are equal and inodes are used again, so it is all up to the time: it must grow
    # from version to version, even if the clock goes back to before the last one
    path = os.path.join(storage.path, "a")
    storage.put("a", b"0")
    future = 2 * 10**18
    os.utime(path, ns=(future, future))
    etag = storage.get("a").etag
    for i in range(5):
        before = os.stat(path).st_mtime_ns
        etag = storage.put("a", b"%d" % i, if_match=etag)
        assert os.stat(path).st_mtime_ns // 1000 > before // 1000
        assert etag == storage.get("a").etag


# -- processes -----------------------------------------------------------------------
COUNT = """
import sys
from icechunk.errors import PreconditionFailedError
from icechunk.storage import LocalStorage

storage = LocalStorage(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    while True:
        current = storage.get("counter")
        try:
            storage.put("counter", b"%d" % (int(current.data) + 1), if_match=current.etag)
            break
        except PreconditionFailedError:
            pass
try:
    storage.put("first", sys.argv[3].encode(), if_absent=True)
    print("won")
except PreconditionFailedError:
    print("lost")
"""


WRITERS = 3


def test_processes_lose_no_update_and_create_once(storage: LocalStorage) -> None:
    storage.put("counter", b"0")
    rounds = 15
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, storage.path, str(rounds), str(i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(WRITERS)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert bytes(storage.get("counter").data) == b"%d" % (WRITERS * rounds)
    assert sorted(outputs) == ["lost\n"] * (WRITERS - 1) + ["won\n"]
    assert bytes(storage.get("first").data) == b"%d" % outputs.index("won\n")


#: Writes, and stops for ever after the data are written and before they have their name.
STOP_INSIDE_A_WRITE = """
import os, sys
from icechunk.storage import LocalStorage

def stop(*_, **__):
    print("inside", flush=True)
    sys.stdin.readline()

storage = LocalStorage(sys.argv[1])
condition = {"if_absent": True} if sys.argv[2] == "create" else {}
if sys.argv[2] in ("update", "locked"):
    condition["if_match"] = storage.get("a").etag
os.replace = stop
if sys.argv[2] != "locked":
    os.fsync = stop
storage.put("a", b"new" * 100_000, **condition)
"""


@pytest.mark.parametrize("how", ["create", "replace", "update"])
def test_a_writer_killed_inside_a_write(storage: LocalStorage, how: str) -> None:
    before = {} if how == "create" else {"a": b"old"}
    for key, data in before.items():
        storage.put(key, data)
    with script(STOP_INSIDE_A_WRITE, storage.path, how) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        assert contents(storage) == before
        process.kill()
        process.wait()
    # the half file is there, and nobody minds
    assert any("#" in name for name in files(storage))
    assert contents(storage) == before
    if how == "create":
        storage.put("a", b"next", if_absent=True)
    else:
        storage.put("a", b"next", if_match=storage.get("a").etag)
    assert contents(storage) == {"a": b"next"}


def test_a_lock_is_held_against_processes_and_freed_when_its_holder_is_killed(
    storage: LocalStorage,
) -> None:
    etag = storage.put("a", b"old")
    outcome: list[str] = []
    with script(STOP_INSIDE_A_WRITE, storage.path, "locked") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        waiting = threading.Thread(
            target=lambda: outcome.append(storage.put("a", b"next", if_match=etag))
        )
        waiting.start()
        # a short while in which it must not get the lock; it could wait for ever
        waiting.join(0.2)
        assert waiting.is_alive()
        assert contents(storage) == {"a": b"old"}
        process.kill()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
    assert outcome == [storage.get("a").etag]
    assert contents(storage) == {"a": b"next"}


def test_a_lock_excludes_threads(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    entered = threading.Event()

    def enter() -> None:
        with exclusive(open_lock(path)):
            entered.set()

    with exclusive(open_lock(path)):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(PATIENCE)
    thread.join()


# -- failures ------------------------------------------------------------------------
#: A limit for file sizes makes a write fail half way, as a full disk does.
FULL_DISK = """
import resource, sys
from icechunk.errors import StorageError
from icechunk.storage import LocalStorage

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
storage = LocalStorage(sys.argv[1])
etag = storage.get("a").etag
for arguments in ({}, {"if_absent": True}, {"if_match": etag}):
    key = "new/b" if "if_absent" in arguments else "a"
    try:
        storage.put(key, bytes(200_000), **arguments)
    except StorageError as error:
        print(type(error).__name__, error.kind, error)
storage.put("small", b"x")
"""


def test_a_full_disk_leaves_no_part(storage: LocalStorage) -> None:
    storage.put("a", b"old")
    output = run_script(FULL_DISK, storage.path).splitlines()
    assert len(output) == 3
    for line, key in zip(output, ("a", "new/b", "a"), strict=True):
        assert line.startswith(f"StorageError io cannot write {key} in {storage.url}: ")
        assert line.endswith(os.strerror(errno.EFBIG))
    assert contents(storage) == {"a": b"old", "small": b"x"}
    assert files(storage) == ["a", "small"]


@pytest.mark.parametrize("how", ["fsync", "replace"])
def test_an_interrupted_write_leaves_no_part(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    storage.put("a", b"old")
    monkeypatch.setattr(os, how, interrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.put("a", b"new", if_match=storage.get("a").etag)
    # but the lock, if it came so far
    assert [name for name in files(storage) if name != "a#0"] == ["a"]
    assert contents(storage) == {"a": b"old"}


@pytest.fixture
def synced(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Return what is forced to disk: names, and whether readers saw "published" by then."""
    found: list[tuple[str, bool]] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        opened = os.fstat(fd)
        names = [storage.path, *(os.path.join(storage.path, name) for name in files(storage))]
        for _ in range(2):
            names += [os.path.dirname(name) for name in names]
        names = [name for name in names if name.startswith(storage.path)]
        # a copy is the same file under another name
        name = max(name for name in names if os.path.samestat(os.stat(name), opened))
        name = os.path.relpath(name, storage.path).split("#")[0]
        found.append((name, contents(storage).get("published") == b"new"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    return found


@pytest.mark.parametrize("how", ["if_absent", "if_match", "sync"])
def test_what_is_published_was_forced_to_disk_after_what_it_refers_to(
    storage: LocalStorage, synced: list[tuple[str, bool]], how: str
) -> None:
    etag = storage.put("published", b"old") if how == "if_match" else None
    for name in "abc":
        storage.put(f"data/{name}", name.encode())
    assert synced == []
    before = {(name, False) for name in ("data/a", "data/b", "data/c", "data", ".")}
    if how == "sync":
        storage.sync()
        assert before == set(synced)
    else:
        storage.put("published", b"new", if_match=etag, if_absent=etag is None)
        assert {*before, ("published", False), (".", True)} == set(synced)
    synced.clear()
    storage.sync()
    assert synced == []


def test_nobody_has_to_wait_while_data_are_forced_to_disk(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = storage.put("published", b"old", if_absent=True)
    free: list[bool] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            lock = open_lock(os.path.join(storage.path, "published#0"))
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(True)
            os.close(lock)
        fsync(fd)

    storage.put("data", b"x")
    monkeypatch.setattr(os, "fsync", note)
    storage.put("published", b"new", if_match=etag)
    assert free == [True, True]


#: A forked process commits with threads of its own, after its parent had some.
FORKED = """
import os, sys
from icechunk.storage import LocalStorage

storage = LocalStorage(sys.argv[1])
storage.put("first", b"x", if_absent=True)
for i in range(3):
    storage.put(f"data/{i}", b"x")
if os.fork() == 0:
    storage.put("forked", b"x", if_absent=True)
    os._exit(0)
os.wait()
storage.put("last", b"x", if_absent=True)
"""


def test_a_forked_process_forces_to_disk(storage: LocalStorage) -> None:
    run_script(FORKED, storage.path)
    assert {"forked", "last"} < set(contents(storage))


def test_the_threads_that_force_to_disk_stay(storage: LocalStorage) -> None:
    def commit(name: str) -> set[int | None]:
        storage.put(f"data/{name}", b"x")
        storage.put(name, b"x", if_absent=True)
        return {thread.ident for thread in threading.enumerate()}

    first = commit("a")
    assert all(first <= commit(name) for name in "bcd")


def test_the_folders_of_a_new_object_are_forced_to_disk(
    storage: LocalStorage, synced: list[tuple[str, bool]]
) -> None:
    """A name is lost if the folder that holds it is."""
    storage.put("refs/branch.x/ref.json", b"{}", if_absent=True)
    assert {name for name, _ in synced[-3:]} == {"refs/branch.x", "refs", "."}


def test_a_copy_is_forced_to_disk_too(
    storage: LocalStorage, synced: list[tuple[str, bool]]
) -> None:
    storage.put("a", b"x")
    storage.sync()
    synced.clear()
    storage.copy("a", "backups/a")
    storage.sync()
    assert ("backups", False) in synced


def test_a_commit_forces_each_thing_to_disk_once(
    storage: LocalStorage, synced: list[tuple[str, bool]]
) -> None:
    """As commits do: two objects, a copy of what is published, and what replaces it."""
    etag = storage.put("published", b"0", if_absent=True)
    for number in range(3):
        synced.clear()
        storage.put(f"data/{number}", b"x")
        storage.put(f"logs/{number}", b"x")
        storage.copy("published", f"old/{number}", if_match=etag)
        etag = storage.put("published", b"%d" % number, if_match=etag)
        once = [f"data/{number}", f"logs/{number}", "data", "logs", "old", "published", "."]
        # the names of new folders are lost with the folder that they are in
        assert sorted(name for name, _ in synced) == sorted(once + ["."] * (number == 0))


def test_a_copy_of_what_others_wrote_is_forced_to_disk_whole(
    storage: LocalStorage, synced: list[tuple[str, bool]]
) -> None:
    etag = storage.put("published", b"old", if_absent=True)
    os.utime(os.path.join(storage.path, "published"))  # as of another client
    synced.clear()
    storage.copy("published", "z/backup")
    storage.sync()
    assert {name for name, _ in synced} == {"z/backup", "z", "."}
    assert storage.get("published").etag != etag


def test_a_write_makes_no_needless_calls(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is opened as for each request; then one file is made and takes its name."""
    storage.put("data/first", b"x")
    calls: list[str] = []

    def counted(name: str) -> Any:
        function = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            return function(*arguments, **named)

        return call

    names = "open write fstat stat lstat close replace rename link unlink mkdir urandom utime"
    for name in names.split():
        monkeypatch.setattr(os, name, counted(name))
    storage.put("data/second", b"x")
    monkeypatch.undo()
    # root, folder, file; the place may be a link
    assert sorted(calls) == sorted(["open", "close"] * 3 + ["stat", "write", "fstat", "replace"])


def test_an_interrupted_sync_is_made_up_for(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, synced: list[tuple[str, bool]]
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    storage.put("data", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            storage.sync()
    storage.sync()
    assert ("data", False) in synced


def broken_disk(_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_data_are_lost_even_if_what_is_published_fails_too(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("data", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken_disk)
        with pytest.raises(StorageError):
            storage.put("ref", b"1", if_absent=True)
    # the system would now say that all is well
    with pytest.raises(StorageError, match="may be lost"):
        storage.put("ref", b"1", if_absent=True)
    assert [meta.key for meta in storage.list()] == ["data"]


def test_nothing_is_published_after_data_were_lost(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("data", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken_disk)
        with pytest.raises(StorageError, match="may be lost"):
            storage.sync()
    # the system would now say that all is well
    with pytest.raises(StorageError, match="may be lost"):
        storage.put("published", b"new", if_absent=True)
    assert "published" not in contents(storage)


def test_waiting_for_the_disk_is_bounded(
    storage: LocalStorage, synced: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_disk, "_MAX_WAITING", 10)
    for i in range(10):
        assert synced == []
        storage.put(f"data/{i}", b"%d" % i)
    assert {(f"data/{i}", False) for i in range(10)} < set(synced)


def test_a_copy_outlives_what_it_was_made_of(storage: LocalStorage) -> None:
    etag = storage.put("a", b"old")
    storage.copy("a", "b", if_match=etag)
    storage.put("a", b"new", if_match=etag)
    assert contents(storage) == {"a": b"new", "b": b"old"}
    with pytest.raises(PreconditionFailedError):
        storage.copy("a", "c", if_match=etag)
    assert contents(storage) == {"a": b"new", "b": b"old"}


#: The superuser may do everything, so it becomes somebody else.
WITHOUT_RIGHTS = """
import os, sys
from icechunk.errors import StorageError
from icechunk.storage import LocalStorage

storage = LocalStorage(sys.argv[1])
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
calls = {
    "write": lambda: storage.put("a", b"new"),
    "create": lambda: storage.put("c", b"new", if_absent=True),
    "update": lambda: storage.put("a", b"new", if_match=storage.get("a").etag),
    "delete": lambda: storage.delete(["a"]),
    "folder": lambda: storage.put("new/c", b"new"),
    "read": lambda: storage.get("closed"),
    "list": lambda: list(storage.list("hidden/")),
}
for name, call in calls.items():
    try:
        call()
    except StorageError as error:
        print(type(error).__name__, error)
"""


def test_missing_rights_are_named() -> None:
    # pytest's own folders are closed to everybody else
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        storage = LocalStorage(os.path.join(folder, "store"))
        storage.put("a", b"old")
        storage.put("closed", b"old")
        storage.put("hidden/b", b"old")
        os.chmod(os.path.join(storage.path, "closed"), 0o000)
        os.chmod(os.path.join(storage.path, "hidden"), 0o000)
        os.chmod(storage.path, 0o555)
        try:
            output = run_script(WITHOUT_RIGHTS, storage.path).splitlines()
        finally:
            for name in ("", "closed", "hidden"):
                os.chmod(os.path.join(storage.path, name), 0o700)
        wanted = ["write a", "write c", "write a", "delete a", "write new/c", "read closed"]
        assert output == [
            f"StorageError cannot {what} in {storage.url}: {os.strerror(errno.EACCES)}"
            for what in [*wanted, "list hidden/"]
        ]
        assert bytes(storage.get("a").data) == b"old"


def test_a_file_in_the_way(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a", b"x")
    with pytest.raises(StorageError, match="cannot write a/b in file://"):
        storage.put("a/b", b"y")
    storage.put("folder/c", b"x")
    with pytest.raises(StorageError, match="cannot write folder in file://"):
        storage.put("folder", b"y")
    assert contents(storage) == {"a": b"x", "folder/c": b"x"}
    (tmp_path / "file").write_bytes(b"")
    blocked = LocalStorage(tmp_path / "file")
    assert list(blocked.list()) == []
    with pytest.raises(ObjectNotFoundError):
        blocked.get("a")
    with pytest.raises(StorageError, match="cannot write a in file://"):
        blocked.put("a", b"")


@pytest.mark.parametrize("path", ["", "nul\0"])
def test_bad_paths(path: str) -> None:
    with pytest.raises(InvalidInputError, match="path"):
        LocalStorage(path)
