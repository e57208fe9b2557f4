"""A folder in which somebody else may write while it is used."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import (
    LocalStorage,
    Repository,
    RepositoryConfig,
    VirtualChunkContainer,
    local_filesystem_store,
)
from icechunk.errors import IcechunkError, InvalidInputError, ObjectNotFoundError, StorageError
from icechunk.storage import base
from icechunk.testing.storage import contents

ROUNDS = 1500
_EXCHANGE = 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step."""
    names = (os.fsencode(one), os.fsencode(other))
    if _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Swap two names again and again meanwhile."""
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            exchange(one, other)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def tolerant(call: Callable[[], Any]) -> Any:
    """Call; what is refused, or missing, is as it should be."""
    try:
        return call()
    except IcechunkError:
        return None


@pytest.fixture
def places(tmp_path: Path) -> tuple[LocalStorage, Path, Path, Path]:
    """Return a storage, a folder in it, a link that can take its place, and what is outside."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for place in (root / "d", outside):
        place.mkdir(parents=True)
    (root / "d" / "inside").write_bytes(b"inside")
    (root / "leak").symlink_to(outside)
    return LocalStorage(root), root / "d", root / "leak", outside


def test_reads_stay_inside_while_a_folder_is_swapped(places: Any) -> None:
    storage, folder, link, outside = places
    (folder / "f").write_bytes(b"inside")
    (outside / "f").write_bytes(b"secret")
    seen, listed = set(), set()
    with swapping(folder, link):
        for _ in range(ROUNDS):
            found = tolerant(lambda: bytes(storage.get("d/f").data))
            seen.add(found)
            changed = tolerant(lambda: storage.get_if_changed("d/f", '"x"'))
            seen.add(changed and bytes(changed.data))
        (outside / "only outside").write_bytes(b"")
        for _ in range(ROUNDS // 5):
            listed |= {meta.key for meta in tolerant(lambda: list(storage.list("d/"))) or ()}
            listed |= {meta.key for meta in tolerant(lambda: list(storage.list())) or ()}
    assert seen <= {None, b"inside"}
    assert b"inside" in seen
    assert not any("outside" in key for key in listed)


@pytest.mark.parametrize("how", ["put", "create", "update", "copy"])
def test_writes_stay_inside_while_a_folder_is_swapped(places: Any, how: str) -> None:
    storage, folder, link, outside = places
    storage.put("source", b"x")
    etag = None
    if how == "update":
        etag = storage.put("d/f", b"old")
    with swapping(folder, link):
        for i in range(ROUNDS if how == "put" else ROUNDS // 5):
            if how == "put":
                tolerant(lambda: storage.put("d/f", b"x"))
            elif how == "create":
                tolerant(lambda i=i: storage.put(f"d/f{i}", b"x", if_absent=True))
            elif how == "copy":
                tolerant(lambda i=i: storage.copy("source", f"d/f{i}"))
            else:
                etag = tolerant(lambda e=etag: storage.put("d/f", b"x", if_match=e)) or etag
    assert list(outside.iterdir()) == []


def test_deletes_stay_inside_while_a_folder_is_swapped(places: Any) -> None:
    storage, folder, link, outside = places
    for i in range(ROUNDS):
        (outside / str(i)).write_bytes(b"")
        (outside / f"{i}#{1 << 64}").write_bytes(b"")
    later = datetime.now(UTC) + timedelta(days=1)
    with swapping(folder, link):
        for i in range(ROUNDS):
            tolerant(lambda i=i: storage.delete([f"d/{i}"]))
            if i % 50 == 0:
                tolerant(lambda: storage.delete_leftovers(later))
    assert len(list(outside.iterdir())) == 2 * ROUNDS


# -- links that are there all the time -----------------------------------------------------
@pytest.mark.parametrize("target", ["outside file", "dangling"])
def test_a_lock_is_no_way_out(tmp_path: Path, target: str) -> None:
    storage = LocalStorage(tmp_path / "root")
    etag = storage.put("repo", b"x")
    outside = tmp_path / "outside"
    if target != "dangling":
        outside.write_bytes(b"old")
    (tmp_path / "root" / "repo#0").symlink_to(outside)
    with pytest.raises(StorageError, match="symbolic link"):
        storage.put("repo", b"y", if_match=etag)
    assert outside.exists() == (target != "dangling")
    assert bytes(storage.get("repo").data) == b"x"


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("d", "in"),
        ("./d/", "in"),
        ("d/../d", "in"),
        ("{root}/d", "in"),
        ("../root/d", "in"),
        ("..", "out"),
        ("/", "out"),
        ("d/../../outside", "out"),
        ("{root}/../outside", "out"),
        ("{root}-evil", "out"),
        ("loop", "loop"),
    ],
)
def test_where_links_lead(tmp_path: Path, link: str, leads: str) -> None:
    root = tmp_path / "root"
    for folder in ("root/d", "outside", "root-evil"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "f").write_bytes(folder.encode())
    (root / "loop").symlink_to(link.format(root=root))
    storage = LocalStorage(root)
    calls: list[Callable[[], Any]] = [
        lambda: storage.get("loop/f"),
        lambda: storage.get_if_changed("loop/f", None),
        lambda: storage.put("loop/f", b"root/d"),
        lambda: storage.copy("loop/f", "copy"),
        lambda: storage.delete(["loop/f"]),
    ]
    for call in calls:
        if leads == "in":
            call()
        else:
            error = InvalidInputError if leads == "out" else StorageError
            with pytest.raises(error, match="symbolic link"):
                call()
    assert (tmp_path / "outside" / "f").read_bytes() == b"outside"
    assert (tmp_path / "root-evil" / "f").read_bytes() == b"root-evil"
    assert (root / "d" / "f").exists() == (leads != "in")


def test_open_files_do_not_add_up(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "root")
    storage.put("a/b", b"x")
    (tmp_path / "root" / "in").symlink_to("a")
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "root" / "pipe")

    def work() -> None:
        etag = storage.put("a/c", b"x")
        storage.put("a/c", b"y", if_match=etag)
        storage.get("in/b")
        storage.copy("a/b", "a/d")
        list(storage.list())
        next(storage.list())
        for call in (
            lambda: storage.get("out/x"),
            lambda: storage.get("pipe"),
            lambda: storage.get("a"),
            lambda: storage.get("missing/x"),
            lambda: storage.put("a/b", b"", if_absent=True),
            lambda: storage.put("a/b", b"", if_match='"x"'),
        ):
            tolerant(call)
        storage.delete(["a/c", "a/d", "missing/x"])
        storage.sync()

    work()
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        work()
    assert len(os.listdir("/proc/self/fd")) == len(before)


# -- what only looks like a file -------------------------------------------------------------
def special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                server.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    try:
        special(tmp_path / "repo", kind)
    except PermissionError:
        assert os.geteuid() != 0
        return
    storage = LocalStorage(tmp_path)
    for call in (
        lambda: storage.get("repo"),
        lambda: storage.get("repo", byte_range=(0, 10)),
        lambda: storage.get_if_changed("repo", None),
        lambda: Repository.open(tmp_path),
        lambda: storage.copy("repo", "b"),
    ):
        with pytest.raises(StorageError, match="cannot"):
            call()
    assert list(storage.list()) == []


@pytest.mark.parametrize("kind", ["pipe", "sparse", "folder"])
def test_virtual_chunks_of_what_is_no_file(tmp_path: Path, kind: str) -> None:
    files = tmp_path / "files"
    files.mkdir()
    if kind == "folder":
        (files / "f").mkdir()
    elif kind == "pipe":
        special(files / "f", kind)
    else:
        with open(files / "f", "wb") as file:
            file.truncate(1 << 40)
    prefix = files.as_uri() + "/"
    config = RepositoryConfig()
    config.set_virtual_chunk_container(
        VirtualChunkContainer(prefix, local_filesystem_store(str(files)))
    )
    repository = Repository.create(tmp_path / "repo", config, {prefix: None})
    with repository.transaction("main", message="bait") as store:
        zarr.create_array(store, name="a", shape=4, chunks=4, dtype="u1", compressors=None)
        length = 1 << 40 if kind == "sparse" else 4
        store.set_virtual_ref("a/c/0", prefix + "f", offset=0, length=length)
    store = repository.readonly_session("main").store
    with limited_memory(), pytest.raises(IcechunkError, match="virtual chunk"):
        zarr.open_array(store, path="a", mode="r")[:]


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let this process have two gigabytes more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_file_of_any_size_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "repo", "wb") as file:
        file.truncate(200 << 30)
    read = 0
    pread = os.pread

    def counted(fd: int, size: int, start: int) -> bytes:
        nonlocal read
        read += size
        return pread(fd, size, start)

    monkeypatch.setattr(os, "pread", counted)
    for call in (
        lambda: Repository.open(tmp_path),
        lambda: LocalStorage(tmp_path).get_if_changed("repo", None),
        lambda: LocalStorage(tmp_path).copy("repo", "d/copy", if_match='"x"'),
    ):
        with pytest.raises(StorageError):
            call()
    assert read == 0
    monkeypatch.setattr(base, "MAX_WHOLE", 3)
    (tmp_path / "small").write_bytes(b"abcd")
    with pytest.raises(StorageError, match="4 bytes"):
        LocalStorage(tmp_path).get("small")
    assert bytes(LocalStorage(tmp_path).get("small", byte_range=(0, 4)).data) == b"abcd"


def test_folders_without_an_end(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    try:
        with pytest.raises(StorageError, match="deep"):
            list(LocalStorage(tmp_path).list())
    finally:
        # the removers of the library recurse
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


# -- what killed writers leave ---------------------------------------------------------------
def test_leftovers_of_writers_are_collected(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="x") as store:
        zarr.create_array(store, name="a", shape=4, chunks=4, dtype="i4")[:] = 1
    kept = contents(LocalStorage(tmp_path))
    old = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    number = 1 << 64
    left = {f"chunks/X#{number}": old, f"repo#{number}": old, f"chunks/Y#{number}": None}
    left |= {"chunks/Z#7": old}  # of another client
    for name, when in left.items():
        (tmp_path / name).write_bytes(b"half" * 100)
        if when is not None:
            os.utime(tmp_path / name, (when, when))
    (tmp_path / "repo#0").touch()
    os.utime(tmp_path / "repo#0", (old, old))
    (tmp_path / "chunks" / "link#5").symlink_to("/etc/passwd")
    cutoff = datetime.now(UTC) - timedelta(days=1)
    tried = repository.garbage_collect(cutoff, dry_run=True)
    assert (tmp_path / f"repo#{number}").exists()
    summary = repository.garbage_collect(cutoff)
    assert tried.bytes_deleted == summary.bytes_deleted == 800
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*#*")}
    # locks stay, and what may still be written, and what is no file
    assert names == {"repo#0", f"chunks/Y#{number}", "chunks/Z#7", "chunks/link#5"}
    found = contents(LocalStorage(tmp_path))
    assert all(found[key] == data for key, data in kept.items() if key != "repo")


def test_forked_writers_have_names_of_their_own(tmp_path: Path) -> None:
    code = """
import os, sys
from icechunk.storage.staging import Staged
first = Staged(None, "x", b"").name
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, Staged(None, "x", b"").name.encode())
    os._exit(0)
os.wait()
print(os.read(read, 100).decode() != Staged(None, "x", b"").name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_errors_of_links_name_the_key(tmp_path: Path) -> None:
    (tmp_path / "f").symlink_to("/etc/hostname")
    with pytest.raises(InvalidInputError, match="'f' leads out of"):
        LocalStorage(tmp_path).get("f")
    (tmp_path / "g").symlink_to("missing")
    with pytest.raises(ObjectNotFoundError):
        LocalStorage(tmp_path).get("g")
