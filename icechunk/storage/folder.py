"""Files below a folder, found in such a way that nobody can redirect the path out of it.

A path that was checked may lead elsewhere by the time it is used: whoever may write in a
folder can replace a directory on the way by a symbolic link. So each directory is opened
relative to the one before it, without following links, and every operation is relative to
the directory that was opened last. Links are read and followed here, as long as
they stay inside.

Windows has no way to open a file in an open directory; links are looked for by name there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from icechunk.base.windows import name_problem
from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["HAS_OPEN_FOLDERS", "Folder", "folder_of", "folders_above", "read_at"]

#: Whether files can be opened relative to an open directory.
HAS_OPEN_FOLDERS: Final = {os.open, os.stat, os.unlink, os.mkdir} <= os.supports_dir_fd

_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_CLOSED: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
#: To pass through a directory; where the system can, without permission to list it.
_THROUGH: Final = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | _CLOSED
_LIST: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CLOSED
#: Not to wait for the other end of a pipe.
_READ: Final = (
    os.O_RDONLY
    | _NO_FOLLOW
    | _CLOSED
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)
#: As many as the system itself follows.
_MAX_LINKS: Final = 40
#: The errors of opening a link with `O_NOFOLLOW`, as a file and as a directory.
_MAYBE_LINK: Final = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


class Folder:
    """A folder, and the way to the files below it.

    Names of files are keys: relative, with ``/`` between segments, without ``.`` and ``..``.
    Where a method gives a directory and a name, these are for ``dir_fd`` of the functions of
    `os`; the directory is None on Windows, and the name a whole path.

    Parameters
    ----------
    root : str
        An absolute path. Links on the way to it are followed.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    # -- files ---------------------------------------------------------------------
    def open_file(self, key: str) -> int:
        """Open a regular file for reading.

        Returns
        -------
        int
            A file descriptor, for the caller to close.

        Raises
        ------
        OSError
            If there is none; with `errno.EISDIR` or `errno.EINVAL` for a directory, or for
            a device, pipe or socket.
        InvalidInputError
            If a link leads out of the folder.
        """
        fd = self._open_directly(key) if HAS_OPEN_FOLDERS else None
        if fd is None:
            with self.place(key) as (folder, name):
                fd = os.open(name, _READ, dir_fd=folder)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
                why = os.strerror(code) if stat.S_ISDIR(mode) else "it is not a regular file"
                raise OSError(code, why)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_directly(self, key: str) -> int | None:
        """Open a file without looking for links, or return None if something may be one."""
        *folders, name = key.split("/")
        folder = self._enter(folders, False)
        if folder is None:
            return None
        try:
            return os.open(name, _READ, dir_fd=folder)
        except OSError as error:
            if error.errno in _MAYBE_LINK:
                return None
            raise
        finally:
            os.close(folder)

    @contextmanager
    def place(self, key: str, *, create: bool = False) -> Iterator[tuple[int | None, str]]:
        """Open the directory of a file. The file itself is not a link.

        Parameters
        ----------
        key : str
        create : bool, default False
            Make directories that are missing.

        Raises
        ------
        OSError
            If a directory is missing, or is something else.
        InvalidInputError
            If a link leads out of the folder.
        """
        if not HAS_OPEN_FOLDERS:
            yield None, self._checked(key, create)
            return
        *folders, name = key.split("/")
        folder = self._enter(folders, create)
        if folder is not None and self._is_link(folder, name):
            os.close(folder)
            folder = None
        if folder is None:
            found = self._follow(key, create)
            folder, name = found if found is not None else self._around(key, create)
        try:
            yield folder, name
        finally:
            os.close(folder)

    @contextmanager
    def listed(self, prefix: str) -> Iterator[int | str]:
        """Open a directory for `os.scandir`; `prefix` is empty or ends with ``/``."""
        if not HAS_OPEN_FOLDERS:
            yield self._checked(prefix[:-1], False) if prefix else self.root
            return
        if not prefix:
            fd = os.open(self.root, _LIST)
        else:
            with self.place(prefix[:-1]) as (folder, name):
                fd = os.open(name, _LIST | _NO_FOLLOW, dir_fd=folder)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def inner(self, folder: int | str, name: str) -> Iterator[int | str]:
        """Open a directory in one that `listed` or this gave."""
        if isinstance(folder, str):
            yield os.path.join(folder, name)
            return
        fd = os.open(name, _LIST | _NO_FOLLOW, dir_fd=folder)
        try:
            yield fd
        finally:
            os.close(fd)

    # -- the way there ----------------------------------------------------------------
    def _enter(self, names: list[str], create: bool) -> int | None:
        """Open directories, one inside the other, or return None if one may be a link."""
        try:
            folder = os.open(self.root, _THROUGH)
        except FileNotFoundError:
            if not create:
                raise
            os.makedirs(self.root, exist_ok=True)
            folder = os.open(self.root, _THROUGH)
        for name in names:
            try:
                inner = self._step(folder, name, create)
            except OSError as error:
                if error.errno in _MAYBE_LINK:
                    return None
                raise
            finally:
                os.close(folder)
            folder = inner
        return folder

    def _step(self, folder: int, name: str, create: bool) -> int:
        try:
            return os.open(name, _THROUGH | _NO_FOLLOW, dir_fd=folder)
        except FileNotFoundError:
            if not create:
                raise
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
        return os.open(name, _THROUGH | _NO_FOLLOW, dir_fd=folder)

    def _is_link(self, folder: int, name: str) -> bool:
        try:
            return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        except OSError:
            return False  # whoever uses it will report what is wrong

    def _follow(self, key: str, create: bool) -> tuple[int, str] | None:
        """Return directory and name of a file, through links, or None if one leads out."""
        way = [os.open(self.root, _THROUGH)]
        ahead = deque(key.split("/"))
        links = 0
        try:
            while True:
                name = ahead.popleft()
                if name == "..":
                    os.close(way.pop())
                    if not way:
                        return None
                elif name not in ("", "."):
                    target = self._target(way[-1], name)
                    if target is not None:
                        links += 1
                        if links > _MAX_LINKS:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                        if os.path.isabs(target):
                            return None
                        ahead.extendleft(reversed(target.split("/")))
                    elif not ahead:
                        return way.pop(), name
                    else:
                        way.append(self._step(way[-1], name, create))
                if not ahead:
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        finally:
            for fd in way:
                os.close(fd)

    def _target(self, folder: int, name: str) -> str | None:
        try:
            return os.readlink(name, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise

    def _around(self, key: str, create: bool) -> tuple[int, str]:
        """Return directory and name of a file, through links that lead out and in again.

        The system says where they end. That may have changed already, so the path is walked
        from the root, without following any link.
        """
        root = os.path.realpath(self.root)
        real = os.path.realpath(os.path.join(root, *key.split("/")))
        if os.path.commonpath([root, real]) != root or real == root:
            raise self._leads_out(key)
        *folders, name = os.path.relpath(real, root).split(os.sep)
        folder = self._enter(folders, create)
        if folder is None:
            raise self._leads_out(key)
        return folder, name

    def _leads_out(self, key: str) -> InvalidInputError:
        return InvalidInputError(
            f"{key!r} leads out of {self.root} through a symbolic link", ErrorKind.BAD_KEY_PREFIX
        )

    # -- by name, on Windows -------------------------------------------------------
    def _checked(self, key: str, create: bool) -> str:
        names = key.split("/")
        for name in names:
            problem = name_problem(name)
            if problem is not None:
                raise InvalidInputError(
                    f"{key!r} is no key in a folder on Windows: {name!r} {problem}",
                    ErrorKind.BAD_KEY_PREFIX,
                )
        path = os.path.join(self.root, *names)
        root = os.path.realpath(self.root)
        if os.path.commonpath([root, os.path.realpath(path)]) != root:
            raise self._leads_out(key)
        if create:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return path


def read_at(fd: int, start: int, stop: int) -> bytes:
    """Read bytes of an open file: fewer if it ends earlier, or if the system chooses."""
    if hasattr(os, "pread"):
        return os.pread(fd, stop - start, start)
    os.lseek(fd, start, os.SEEK_SET)
    return os.read(fd, stop - start)


def folder_of(key: str) -> str:
    """Return the folder that holds a key, without a final ``/``."""
    return key.rpartition("/")[0]


def folders_above(key: str) -> Iterator[str]:
    """Yield the folder that holds a key, the one that holds that, and so on to the first."""
    while key:
        key = folder_of(key)
        yield key
