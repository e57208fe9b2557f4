"""Objects as files of a folder, safe between threads, processes and killed processes.

Every write first goes to a staging file in the same directory, which then takes its name in
one step: `os.link` for an object that must not exist, `os.replace` otherwise. Whoever
compares before replacing holds a lock beside the object in the meantime.

Data put under a condition are forced to disk before they take their name, with everything
that was put before them. Other objects wait for that: nothing refers to them yet, and a
file system handles many at once much faster than one by one.

Staging and lock files are called ``<name>#<digits>``, which other clients of the format
leave out of their listings too; no object can have such a name.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from icechunk.base.texts import labelled
from icechunk.config import StorageConcurrencySettings, StorageRetriesSettings, StorageSettings
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
    check_whole,
    resolve_range,
    same_version,
)
from icechunk.storage.folder import Folder, folder_of, folders_above, read_at
from icechunk.storage.locks import exclusive, open_lock, queue_at
from icechunk.storage.mounts import warn_of_missing_locks
from icechunk.storage.pace import Pace
from icechunk.storage.staging import Staged, file_etag
from icechunk.storage.to_disk import ToDisk

_STAGING: Final = re.compile(r"#[0-9]+\Z")
#: The names that `Staged` makes.
_OURS: Final = re.compile(r"#[0-9]{20}\Z")
#: Staging names have many more digits, so a staging file is never taken for a lock.
_LOCK_SUFFIX: Final = "#0"
_QUEUE_SUFFIX: Final = "#1"

#: Deeper folders hold no object of ours.
_MAX_DEPTH: Final = 200

#: At most this many bytes are read or written without a thread.
_SMALL: Final = 1 << 17
#: As long as one takes less than this, in seconds: with threads, each takes about as long.
_QUICK_READ: Final = 0.0004
_QUICK_WRITE: Final = 0.0008

#: Errors of `os.link` on file systems without hard links.
_NO_LINKS: Final = {
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EMLINK,
    errno.ENOSYS,
    errno.EXDEV,
}
#: A link in the place of a file is not followed, where the system can do that.
_LINK_ITSELF: Final[dict[str, Any]] = (
    {"follow_symlinks": False} if os.link in os.supports_follow_symlinks else {}
)
#: Errors of opening a file if there is none of that name, or if it is a folder.
_MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalStorage(Storage):
    """Objects as files below a folder.

    Nothing is created before the first write. Symbolic links are followed as long as they
    stay inside the folder. They are left out of listings, and so are pipes, sockets
    and devices.

    Parameters
    ----------
    path : str or path-like
        The folder. A relative one is taken from the current directory, now.

    Examples
    --------
    >>> repo = icechunk.Repository.create(icechunk.LocalStorage("weather"))
    """

    checks_conditions = True
    queues_writers = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        if not text or "\0" in text:
            raise InvalidInputError(f"{text!r} is not the path of a folder", ErrorKind.BAD_PREFIX)
        self._folder = Folder(os.path.abspath(text))
        self._to_disk = ToDisk(self._folder, self.url)
        self._reads, self._writes = Pace(_QUICK_READ), Pace(_QUICK_WRITE)
        self._is_checked = False

    @property
    def path(self) -> str:
        """The folder, as an absolute path."""
        return self._folder.root

    @property
    def url(self) -> str:
        """The folder as a ``file://`` URL."""
        return Path(self._folder.root).as_uri()

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
        fd = self._open(key)
        try:
            # one open file is one version, whatever happens to its name in the meantime
            status = os.fstat(fd)
            etag, modified = file_etag(status), _modified(status)
            check_version(
                key, etag, modified, if_match=if_match, if_unmodified_since=if_unmodified_since
            )
            return GetResult(self._read(key, fd, byte_range, status.st_size), etag, modified)
        finally:
            os.close(fd)

    def _open(self, key: str) -> int:
        try:
            return self._folder.open_file(self._checked(key))
        except _MISSING:
            missing = ObjectNotFoundError(f"{key}: there is no such object in {self.url}")
        except OSError as error:
            raise self._failure("read", key, error) from error
        raise missing

    def _read(self, key: str, fd: int, byte_range: ByteRange | None, size: int) -> BytesLike:
        """Return the requested bytes of an open file. A sparse file may claim any size."""
        start, stop = resolve_range(byte_range, size)
        if byte_range is None:
            check_whole(key, size, self.url)
        try:
            data = read_at(fd, start, stop)
            if len(data) == stop - start:
                return data
            # the system returns two gigabytes at a time
            pieces = [data]
            while data and (start := start + len(data)) < stop:
                data = read_at(fd, start, stop)
                pieces.append(data)
            return b"".join(pieces)
        except MemoryError:
            reason = f"{stop - start} bytes are more than the memory holds"
        except OSError as error:
            raise self._failure("read", key, error) from error
        raise StorageError(f"cannot read {key} in {self.url}: {reason}")

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
        return self._get_if(
            key, lambda status: etag is None or not same_version(file_etag(status), etag)
        )

    def get_at_once(self, key: str) -> GetResult | None:
        """Fetch a small object if that is quick; see `Storage.get_at_once`."""
        if not self._reads.is_quick():
            return None
        with self._reads.measured():
            return self._get_if(key, lambda status: status.st_size <= _SMALL)

    def _get_if(self, key: str, wanted: Callable[[os.stat_result], bool]) -> GetResult | None:
        fd = self._open(key)
        try:
            status = os.fstat(fd)
            if not wanted(status):
                return None
            data = self._read(key, fd, None, status.st_size)
            return GetResult(data, file_etag(status), _modified(status))
        finally:
            os.close(fd)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield the objects of a folder; see `Storage.list`."""
        check_folder(prefix)
        if prefix:
            self._checked(prefix[:-1])
        return self._objects(prefix, _is_object)

    def _objects(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[ObjectMeta]:
        """Yield the files below a folder whose names are wanted."""
        try:
            with self._folder.listed(prefix) as folder:
                yield from self._walk(prefix, folder, wanted)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._failure("list", prefix or self._folder.root, error) from error

    def _walk(
        self, prefix: str, folder: int | str, wanted: Callable[[str], bool]
    ) -> Iterator[ObjectMeta]:
        if prefix.count("/") > _MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, f"folders nest deeper than {_MAX_DEPTH}")
        with os.scandir(folder) as entries:
            # a folder counts as its name with the slash: then walking in this order
            # yields whole keys in order
            found = sorted(
                (entry.name + "/" * entry.is_dir(follow_symlinks=False), entry)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                or (entry.is_file(follow_symlinks=False) and wanted(entry.name))
            )
        for name, entry in found:
            try:
                if name.endswith("/"):
                    with self._folder.inner(folder, entry.name) as inner:
                        yield from self._walk(prefix + name, inner, wanted)
                    continue
                # not from the entry, which may have been found by a path
                at = None if isinstance(folder, str) else folder
                named = entry.path if at is None else entry.name
                status = os.stat(named, dir_fd=at, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue  # deleted since
            yield ObjectMeta(prefix + name, status.st_size, file_etag(status), _modified(status))

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
        self._checked(key)
        try:
            # what does not exist cannot match, so no folder is created for it
            with self._folder.place(key, create=if_match is None) as (folder, name):
                if if_match is not None:
                    return self._update(key, folder, name, data, if_match)
                if if_absent:
                    return self._create(key, folder, name, data)
                with Staged(folder, name, data) as staged:
                    staged.replace()
        except _MISSING as error:
            if if_match is None:
                raise self._failure("write", key, error) from error
            raise _changed(key, if_match) from None
        except OSError as error:
            raise self._failure("write", key, error) from error
        self._to_disk.add(key)
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
            # otherwise it is this caller's turn to force everything to disk
            and not self._to_disk.is_nearly_full
            and self._writes.is_quick()
        ):
            with self._writes.measured():
                return self.put(key, data)
        return await super().put_async(key, data, if_absent=if_absent, if_match=if_match)

    def sync(self) -> None:
        """Force to disk what was put without a condition.

        Raises
        ------
        StorageError
            If that fails, now or ever before: objects may be lost.
        """
        self._to_disk.sync()

    def copy(self, source: str, target: str, *, if_match: str | None = None) -> None:
        """Give an object a second name; see `Storage.copy`.

        Files are never changed in place, so both names keep their content.
        """
        self._checked(target)
        fd = self._open(source)
        try:
            status = os.fstat(fd)
            etag = file_etag(status)
            linked = self._link(source, target, status, if_match)
        except OSError as error:
            raise self._failure("copy", source, error) from error
        finally:
            os.close(fd)
        if linked:
            self._to_disk.add_name(source, etag, target)
        else:
            super().copy(source, target, if_match=if_match)

    def _link(self, source: str, target: str, opened: os.stat_result, if_match: str | None) -> bool:
        """Give an open file another name; return False if that is impossible."""
        with (
            self._folder.place(source) as (folder, name),
            self._folder.place(target, create=True) as (to_folder, to_name),
        ):
            try:
                os.link(name, to_name, src_dir_fd=folder, dst_dir_fd=to_folder, **_LINK_ITSELF)
            except OSError as error:
                if error.errno in {*_NO_LINKS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}:
                    return False
                raise
            status = os.stat(to_name, dir_fd=to_folder, follow_symlinks=False)
            same = os.path.samestat(status, opened)
            if same and (if_match is None or same_version(file_etag(status), if_match)):
                return True
            # replaced in the meantime, or not the version that was asked for
            os.unlink(to_name, dir_fd=to_folder)
            return False

    def _create(self, key: str, folder: int | None, name: str, data: BytesLike) -> str:
        exists = PreconditionFailedError(f"{key}: the object exists already in {self.url}")
        with Staged(folder, name, data) as staged:
            self._to_disk.sync(staged.force)
            try:
                os.link(staged.name, name, src_dir_fd=folder, dst_dir_fd=folder)
            except FileExistsError:
                raise exists from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with exclusive(open_lock(name + _LOCK_SUFFIX, dir_fd=folder)):
                    if _exists(folder, name):
                        raise exists from None
                    staged.replace()
            self._to_disk.published(key, staged.etag, list(folders_above(key)))
            return staged.etag

    def _update(
        self, key: str, folder: int | None, name: str, data: BytesLike, if_match: str
    ) -> str:
        # before anything is written
        current = _status(key, folder, name, if_match)
        if not self._is_checked:
            self._is_checked = True
            warn_of_missing_locks(self._folder.root)
        with Staged(folder, name, data, after=current) as staged:
            # all at the same time, and not while others wait for the lock
            self._to_disk.sync(staged.force)
            with exclusive(open_lock(name + _LOCK_SUFFIX, dir_fd=folder)):
                _status(key, folder, name, if_match)
                staged.replace()
                # the new version must not be lost in a crash once somebody was told of it
                self._to_disk.published(key, staged.etag, [folder_of(key)])
                return staged.etag

    def delete_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        """Delete what killed writers left behind; see `Storage.delete_leftovers`."""
        freed = 0
        for meta in self._objects("", _is_leftover):
            if meta.last_modified < before:
                freed += meta.size
                if not dry_run:
                    self._delete(meta.key)
        return freed

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; see `Storage.delete`."""
        for key in keys:
            self._delete(self._checked(key))

    def _delete(self, key: str) -> None:
        try:
            with self._folder.place(key) as (folder, name):
                os.unlink(name, dir_fd=folder)
        except _MISSING:
            pass
        except OSError as error:
            raise self._failure("delete", key, error) from error

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Wait in the queue of writers that replace an object; see `Storage.turn`."""
        with (
            self._folder.place(key) as (folder, name),
            queue_at(name + _QUEUE_SUFFIX, dir_fd=folder),
        ):
            yield

    # -- the storage itself --------------------------------------------------------
    def __repr__(self) -> str:
        return labelled("icechunk.Storage", {"type": "local filesystem", "path": self.path})

    def default_settings(self) -> StorageSettings:
        """Return the settings used when the configuration has none: no request is retried."""
        return StorageSettings(
            concurrency=StorageConcurrencySettings(5, 4096),
            retries=StorageRetriesSettings(1, 0, 0),
        )

    def with_settings(self, settings: StorageSettings) -> LocalStorage:
        """Return the storage itself: a folder has no such settings."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStorage, (self._folder.root,)

    def _checked(self, key: str) -> str:
        if _STAGING.search(check_key(key)):
            raise InvalidInputError(
                f"{key!r} is not a valid key in a folder: names that end with '#' and digits are "
                "reserved for files that are being written"
            )
        return key

    def _failure(self, operation: str, key: str, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        if error.errno == errno.ELOOP:
            reason = "a symbolic link is in the way"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += "; garbage_collect can make room, of what no branch or tag leads to"
        return StorageError(f"cannot {operation} {key} in {self.url}: {reason}", ErrorKind.IO)


def _is_object(name: str) -> bool:
    return not _STAGING.search(name)


def _is_leftover(name: str) -> bool:
    # locks stay, and files of other clients are theirs
    return _OURS.search(name) is not None


def _exists(folder: int | None, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _status(key: str, folder: int | None, name: str, if_match: str) -> os.stat_result:
    """Return the status of a file that must still be of a version."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        raise _changed(key, if_match) from None
    if not same_version(file_etag(status), if_match):
        raise _changed(key, if_match)
    return status


def _changed(key: str, if_match: str | None) -> PreconditionFailedError:
    return PreconditionFailedError(f"{key}: not replaced, its version is no longer {if_match}")


def _is_small(byte_range: ByteRange | None) -> bool:
    start, end = byte_range or (None, None)
    return start is not None and end is not None and end - start <= _SMALL


def _modified(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)
