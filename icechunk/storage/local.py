"""Objects as files of a folder, safe between threads, processes and killed processes.

Every write goes to a staging file in the same directory first and then takes its name in
one step: `os.link` for an object that must not exist, `os.replace` otherwise. Whoever
compares before replacing holds a lock beside the object meanwhile.

What is put under a condition is forced to disk before it takes its name, after everything
that was put before it. Other objects wait for that: nothing refers to them yet, and the
file system takes many at once much faster than one by one.

Staging and lock files are called ``<name>#<digits>``, which other clients of the format
leave out of their listings too; no object can have such a name.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from icechunk.config.repository_config import StorageSettings
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.storage.base import (
    ByteRange,
    BytesLike,
    GetResult,
    ObjectMeta,
    Storage,
    check_folder,
    check_key,
    check_version,
    resolve_range,
    same_version,
)
from icechunk.storage.locks import exclusive
from icechunk.storage.pace import Pace
from icechunk.storage.queueing import queue_at

_STAGING: Final = re.compile(r"#[0-9]+\Z")
#: Staging names have many more digits, so no staging file is ever taken for a lock.
_LOCK_SUFFIX: Final = "#0"
_QUEUE_SUFFIX: Final = "#1"

#: As many files are forced to disk at a time, so that a commit never waits for long.
_MAX_WAITING: Final = 4096
_SYNC_THREADS: Final = 8

#: What may be read and written without a thread has at most so many bytes.
_SMALL: Final = 1 << 17
#: As long as one takes less, in seconds: with threads many of them take about that each.
_QUICK_READ: Final = 0.0004
_QUICK_WRITE: Final = 0.0008

#: What `os.link` says on file systems without hard links.
_NO_LINKS: Final = {
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EMLINK,
    errno.ENOSYS,
    errno.EXDEV,
}
#: What opening a file says when there is none of that name, or when it is a folder.
_MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalStorage(Storage):
    """Objects as files below a folder.

    Nothing is created before the first write. Symbolic links are followed as long as
    they stay inside of the folder, and are left out of listings.

    Parameters
    ----------
    path : str or path-like
        The folder. A relative one is taken from the current directory, now.
    """

    checks_conditions = True
    queues_writers = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        if not text or "\0" in text:
            raise InvalidInputError(f"{text!r} is no path of a folder", ErrorKind.BAD_PREFIX)
        self._root = os.path.abspath(text)
        self._lock = threading.Lock()
        self._reads, self._writes = Pace(_QUICK_READ), Pace(_QUICK_WRITE)
        # files that are not forced to disk yet
        self._waiting: list[str] = []
        # said again and again: after a failure the system forgets what it could not write,
        # and claims success when asked once more
        self._lost: StorageError | None = None

    @property
    def path(self) -> str:
        """The folder, as an absolute path."""
        return self._root

    @property
    def url(self) -> str:
        """The folder as a ``file://`` URL."""
        return Path(self._root).as_uri()

    # -- reading -----------------------------------------------------------------
    def get(
        self,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        if_match: str | None = None,
        if_unmodified_since: datetime | None = None,
    ) -> GetResult:
        """Fetch an object or a range of it; see `Storage.get`."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                # one open file is one version, whatever happens to its name meanwhile
                status = os.fstat(file.fileno())
                etag, modified = _etag(status), _modified(status)
                check_version(
                    key,
                    etag,
                    modified,
                    if_match=if_match,
                    if_unmodified_since=if_unmodified_since,
                )
                start, stop = resolve_range(byte_range, status.st_size)
                file.seek(start)
                return GetResult(file.read(stop - start), etag, modified)
        except _MISSING:
            missing = ObjectNotFoundError(f"{key}: there is no such object in {self.url}")
        except OSError as error:
            raise self._failure("read", key, error) from error
        raise missing

    async def get_async(
        self,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        if_match: str | None = None,
        if_unmodified_since: datetime | None = None,
    ) -> GetResult:
        """Fetch as `get` does; a small range without a thread, as long as that is quick."""
        read: dict[str, Any] = {
            "byte_range": byte_range,
            "if_match": if_match,
            "if_unmodified_since": if_unmodified_since,
        }
        if _is_small(byte_range) and self._reads.is_quick():
            with self._reads.measured():
                return self.get(key, **read)
        return await super().get_async(key, **read)

    def get_if_changed(self, key: str, etag: str | None) -> GetResult | None:
        """Fetch an object unless its version is still `etag`, without reading it then."""
        if etag is not None:
            with suppress(OSError):
                if same_version(_etag(os.stat(self._path(key))), etag):
                    return None
        return self.get(key)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield the objects of a folder; see `Storage.list`."""
        check_folder(prefix)
        if prefix:
            self._path(prefix[:-1])
        return self._walk(prefix)

    def _walk(self, prefix: str) -> Iterator[ObjectMeta]:
        try:
            with os.scandir(os.path.join(self._root, prefix)) as entries:
                # a folder counts as its name with the slash: then walking in this order
                # yields whole keys in order
                found = sorted(
                    (entry.name + "/" * entry.is_dir(follow_symlinks=False), entry)
                    for entry in entries
                    if not entry.is_symlink()
                    # a folder may have such a name, for instance of a branch
                    and (entry.is_dir() or not _STAGING.search(entry.name))
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._failure("list", prefix or self._root, error) from error
        for name, entry in found:
            if name.endswith("/"):
                yield from self._walk(prefix + name)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since
            yield ObjectMeta(prefix + name, status.st_size, _etag(status), _modified(status))

    # -- writing -----------------------------------------------------------------
    def put(
        self,
        key: str,
        data: BytesLike,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Write an object whole; see `Storage.put`."""
        path = self._path(key)
        try:
            if if_match is not None:
                return self._update(key, path, data, if_match)
            if if_absent:
                return self._create(key, path, data)
            with _Staged(path, data, durable=False) as staged:
                os.replace(staged.path, path)
        except OSError as error:
            raise self._failure("write", key, error) from error
        self._wait_for_sync(path)
        return staged.etag

    async def put_async(
        self,
        key: str,
        data: BytesLike,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str | None:
        """Write as `put` does; a small object without a thread, as long as that is quick."""
        if (
            memoryview(data).nbytes <= _SMALL
            and not if_absent
            and if_match is None
            # else it is this one's turn to force all to disk
            and len(self._waiting) < _MAX_WAITING - 1
            and self._writes.is_quick()
        ):
            with self._writes.measured():
                return self.put(key, data)
        return await super().put_async(key, data, if_absent=if_absent, if_match=if_match)

    def _wait_for_sync(self, path: str) -> None:
        with self._lock:
            self._waiting.append(path)
            full = len(self._waiting) >= _MAX_WAITING
        if full:
            self.sync()

    def sync(self) -> None:
        """Force to disk what was put without a condition.

        Raises
        ------
        StorageError
            If that fails, now or ever before: objects may be lost.
        """
        with self._lock:
            # held meanwhile: nobody publishes what another thread is still forcing to disk
            if self._waiting and self._lost is None:
                self._lost = self._sync_all(self._waiting)
                # not before: an interrupt must leave them to the next call
                self._waiting.clear()
            if self._lost is not None:
                raise self._lost

    def _sync_all(self, paths: Sequence[str]) -> StorageError | None:
        folders = {self._root} | {os.path.dirname(path) for path in paths}
        # in parallel, because file systems then write several in one go
        with ThreadPoolExecutor(min(len(paths), _SYNC_THREADS)) as pool:
            failures = [*pool.map(_try_sync, paths), *map(_try_sync, folders)]
        for error in failures:
            if error is not None:
                return StorageError(
                    f"objects written to {self.url} may be lost, because they could not be "
                    f"forced to disk: {error.strerror or error}; write them again in a new "
                    "process",
                    ErrorKind.IO,
                )
        return None

    def copy(self, source: str, target: str, *, if_match: str | None = None) -> None:
        """Give an object a second name; see `Storage.copy`.

        Files are never changed in place, so both names keep what they stand for.
        """
        path, copied = self._path(source), self._path(target)
        try:
            os.makedirs(os.path.dirname(copied), exist_ok=True)
            os.link(path, copied)
        except OSError as error:
            # no such object, no links here, or the target exists: the plain way has the
            # right error for each
            if error.errno not in {*_NO_LINKS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}:
                raise self._failure("copy", source, error) from error
            super().copy(source, target, if_match=if_match)
            return
        if if_match is not None and not same_version(_etag(os.stat(copied)), if_match):
            os.unlink(copied)
            raise PreconditionFailedError(f"{source}: its version is no longer {if_match}")
        self._wait_for_sync(copied)

    def _create(self, key: str, path: str, data: BytesLike) -> str:
        exists = PreconditionFailedError(f"{key}: the object exists already in {self.url}")
        with _Staged(path, data) as staged:
            self.sync()
            try:
                os.link(staged.path, path)
            except FileExistsError:
                raise exists from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with exclusive(path + _LOCK_SUFFIX):
                    if os.path.lexists(path):
                        raise exists from None
                    os.replace(staged.path, path)
            # a name is lost as well if the folder that holds it is
            while len(path) > len(self._root):
                path = os.path.dirname(path)
                _sync(path)
            return staged.etag

    def _update(self, key: str, path: str, data: BytesLike, if_match: str) -> str:
        changed = PreconditionFailedError(
            f"{key}: not replaced, its version is no longer {if_match}"
        )
        # before anything is written: what does not exist cannot match
        if not os.path.exists(path):
            raise changed
        self.sync()
        with exclusive(path + _LOCK_SUFFIX):
            try:
                current = os.stat(path)
            except FileNotFoundError:
                raise changed from None
            if not same_version(_etag(current), if_match):
                raise changed
            with _Staged(path, data, after=current) as staged:
                os.replace(staged.path, path)
            # the new version must not be lost in a crash once somebody was told of it
            _sync(os.path.dirname(path))
            return staged.etag

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; see `Storage.delete`."""
        for key in keys:
            try:
                os.unlink(self._path(key))
            except _MISSING:
                continue
            except OSError as error:
                raise self._failure("delete", key, error) from error

    def turn(self, key: str) -> AbstractContextManager[None]:
        """Return a place in the queue of those who replace an object; see `Storage.turn`."""
        return queue_at(self._path(key) + _QUEUE_SUFFIX)

    # -- the storage itself --------------------------------------------------------
    def with_settings(self, settings: StorageSettings) -> LocalStorage:
        """Return itself: a folder has nothing to set."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStorage, (self._root,)

    def _path(self, key: str) -> str:
        """Return the file of an object, after checking that it is inside of the folder."""
        if _STAGING.search(check_key(key)):
            raise InvalidInputError(
                f"{key!r} is no key of a folder: names that end with '#' and digits are "
                "those of files that are being written"
            )
        path = self._root
        linked = False
        for segment in key.split("/"):
            path = os.path.join(path, segment)
            linked = linked or os.path.islink(path)
        # only links can lead out, and resolving whole paths takes its time
        if linked:
            root = os.path.realpath(self._root)
            if os.path.commonpath([root, os.path.realpath(path)]) != root:
                raise InvalidInputError(
                    f"{key!r} leads out of {self.url} through a symbolic link",
                    ErrorKind.BAD_KEY_PREFIX,
                )
        return path

    def _failure(self, operation: str, key: str, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(f"cannot {operation} {key} in {self.url}: {reason}", ErrorKind.IO)


class _Staged:
    """A complete copy of new data beside its future place, removed when not needed.

    Parameters
    ----------
    path : str
        The future place. Its directory is created if need be.
    data : bytes-like
    durable : bool, default True
        Whether to force it to disk.
    after : os.stat_result, optional
        Be newer than this file, by the clock that etags use: a clock that stands still
        and an inode used again would make the etags of two versions equal.
    """

    def __init__(
        self,
        path: str,
        data: BytesLike,
        *,
        durable: bool = True,
        after: os.stat_result | None = None,
    ) -> None:
        # random bits, because pids repeat in containers and on machines that share a folder
        self.path = f"{path}#{1 << 64 | secrets.randbits(64)}"
        self._data = data
        self._durable = durable
        self._after = after
        self.etag = ""

    def __enter__(self) -> _Staged:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            fd = os.open(self.path, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            fd = os.open(self.path, flags, 0o666)
        try:
            with open(fd, "wb") as file:
                file.write(self._data)
                file.flush()
                if self._after is not None:
                    self._make_newer(self._after)
                if self._durable:
                    os.fsync(fd)
                self.etag = _etag(os.fstat(fd))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make_newer(self, other: os.stat_result) -> None:
        status = os.stat(self.path)
        newer = other.st_mtime_ns + 1000
        if status.st_mtime_ns < newer:
            os.utime(self.path, ns=(status.st_atime_ns, newer))

    def __exit__(self, *_: object) -> None:
        # gone if it was renamed to its place
        with suppress(FileNotFoundError):
            os.unlink(self.path)


def _is_small(byte_range: ByteRange | None) -> bool:
    start, end = byte_range or (None, None)
    return start is not None and end is not None and end - start <= _SMALL


def _etag(status: os.stat_result) -> str:
    # Checksums of virtual chunks that other clients recorded use this form, with
    # microseconds; replaced files have another inode, or a later time.
    return f'"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"'


def _modified(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)


def _sync(path: str) -> None:
    """Force a file or folder to disk, whoever wrote it."""
    if os.name == "nt":
        if os.path.isdir(path):
            return  # folders cannot be opened there
        flags = os.O_RDWR  # and files that are only read not be synced
    else:
        flags = os.O_RDONLY
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _try_sync(path: str) -> OSError | None:
    try:
        _sync(path)
    except FileNotFoundError:
        pass  # deleted since
    except OSError as error:
        return error
    return None
