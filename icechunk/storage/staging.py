"""New files, which are complete before they take their names."""

from __future__ import annotations

import itertools
import os
import secrets
from contextlib import suppress
from typing import Final

from icechunk.storage.base import BytesLike

__all__ = ["Staged", "file_etag"]

_WRITE: Final = (
    os.O_WRONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
)
_CREATE: Final = _WRITE | os.O_CREAT | os.O_EXCL


class Staged:
    """A complete copy of new data beside its future place, removed if it is not needed.

    Parameters
    ----------
    folder : int or None
        The open directory of the future place, for ``dir_fd``.
    name : str
        The future place in it.
    data : bytes-like
    after : os.stat_result, optional
        Be newer than this file, by the clock that etags use: if a clock stands still and an
        inode is reused, two versions would have the same etag.
    """

    def __init__(
        self,
        folder: int | None,
        name: str,
        data: BytesLike,
        *,
        after: os.stat_result | None = None,
    ) -> None:
        self.name = f"{name}#{_Names.new()}"
        self._folder = folder
        self._place = name
        self._data = data
        self._after = after
        self._replaced = False
        self.etag = ""

    def __enter__(self) -> Staged:
        fd = os.open(self.name, _CREATE, 0o666, dir_fd=self._folder)
        try:
            try:
                _write_all(fd, self._data)
                if self._after is not None:
                    self._make_newer(fd, self._after)
                self.etag = file_etag(os.fstat(fd))
            finally:
                os.close(fd)
        except BaseException:
            self.__exit__()
            raise
        return self

    def force(self) -> None:
        """Force the file to disk."""
        # for writing, as Windows demands
        fd = os.open(self.name, _WRITE, dir_fd=self._folder)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def replace(self) -> None:
        """Give the file its place, replacing whatever is there."""
        os.replace(self.name, self._place, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._replaced = True

    def _make_newer(self, fd: int, other: os.stat_result) -> None:
        status = os.fstat(fd)
        newer = other.st_mtime_ns + 1000
        if status.st_mtime_ns < newer:
            # Windows can set the times of files only by name
            times = (status.st_atime_ns, newer)
            os.utime(fd if os.utime in os.supports_fd else self.name, ns=times)

    def __exit__(self, *_: object) -> None:
        if not self._replaced:
            with suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=self._folder)


class _Names:
    """Numbers for staging files that nobody else uses.

    Random, because pids repeat in containers and on machines that share a folder.
    """

    _numbers = itertools.count(1 << 64 | secrets.randbits(63))

    @classmethod
    def new(cls) -> int:
        return next(cls._numbers)

    @classmethod
    def renew(cls) -> None:
        """Start again elsewhere: a forked process has the numbers of its parent."""
        cls._numbers = itertools.count(1 << 64 | secrets.randbits(63))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Names.renew)


def file_etag(status: os.stat_result) -> str:
    """Return the version of a file."""
    # Checksums of virtual chunks that other clients recorded use this form, with
    # microseconds; replaced files have another inode, or a later time.
    return f'"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"'


def _write_all(fd: int, data: BytesLike) -> None:
    rest = memoryview(data).cast("B")
    while len(rest):
        rest = rest[os.write(fd, rest) :]
