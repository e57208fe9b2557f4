"""What a parser of VirtualiZarr reads through: the files that it may read, in bounded ranges."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit

from icechunk import InvalidInputError
from icechunk.base.methods import async_twin
from icechunk_dask.archives.sources import Source, Sources, location_of

__all__ = ["ParserStore", "roots"]

#: The greatest size of a file that a parser may ask for as a whole.
_MOST_WHOLE: Final = 1 << 30


def roots(own: str, prefixes: Sequence[str]) -> list[str]:
    """Return the schemes and hosts, or buckets, where a parser may find files.

    Parameters
    ----------
    own : str
        The URL of its file.
    prefixes : sequence of str
        The prefixes below which other files may be.
    """
    parts = [urlsplit(url) for url in (own, *prefixes)]
    return list(dict.fromkeys(f"{each.scheme}://{each.netloc}" for each in parts))


@dataclass(frozen=True)
class _Whole:
    """A whole file, in the form in which the clients that parsers know return it."""

    meta: dict[str, Any]
    _data: bytes

    def buffer(self) -> bytes:
        """Return the bytes."""
        return self._data

    async def buffer_async(self) -> bytes:
        """Return the bytes."""
        return self._data


class ParserStore:
    """The files at one host, in one bucket or of this machine, for a parser to ask for.

    It returns the parser's own file, and the files that may be read because that one names them.

    Parameters
    ----------
    sources : Sources
    own : Source
        The file that the parser is for.
    root : str
        One of `roots`.
    stack : ExitStack
        Closes the files.
    """

    def __init__(self, sources: Sources, own: Source, root: str, stack: ExitStack) -> None:
        self._sources, self._own, self._root, self._stack = sources, own, root, stack
        self._location = location_of(own.url)
        self._files: dict[str, tuple[BinaryIO, int]] = {}
        self._lock = threading.RLock()

    def _file(self, path: str) -> tuple[BinaryIO, int]:
        url = f"{self._root}/{path.lstrip('/')}"
        if self._root.startswith("file:"):
            url = "/" + unquote(path).lstrip("/")
        location = location_of(url)
        if location not in self._files:
            source = self._own
            if location != self._location:
                self._sources.check_allowed(location)
                source = self._sources.open(url)
            file = self._stack.enter_context(source.opened())
            self._files[location] = file, file.seek(0, 2)
        return self._files[location]

    # -- the methods of obspec -------------------------------------------------------------
    def head(self, path: str) -> dict[str, Any]:
        """Return what is known of a file."""
        with self._lock:
            _, size = self._file(path)
        return {"path": path, "size": size, "last_modified": None, "e_tag": None, "version": None}

    def get(self, path: str, *, options: Any = None) -> _Whole:
        """Return a whole file.

        Raises
        ------
        InvalidInputError
            If it is too large, or must not be read.
        """
        if options:
            raise InvalidInputError("a parser reads whole files and ranges, without conditions")
        meta = self.head(path)
        if meta["size"] > _MOST_WHOLE:
            raise InvalidInputError(
                f"it has {meta['size']} bytes, and a parser reads {_MOST_WHOLE} at most at once"
            )
        return _Whole(meta, self.get_range(path, start=0, end=meta["size"]))

    def get_range(
        self, path: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> bytes:
        """Return the bytes of a range.

        Raises
        ------
        InvalidInputError
            If the file must not be read.
        """
        with self._lock:
            file, size = self._file(path)
            stop = start + (length or 0) if end is None else end
            file.seek(start)
            return file.read(max(min(stop, size) - start, 0))

    def get_ranges(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[bytes]:
        """Return the bytes of ranges."""
        stops = ends or [a + n for a, n in zip(starts, lengths or (), strict=True)]
        pairs = zip(starts, stops, strict=True)
        return [self.get_range(path, start=start, end=end) for start, end in pairs]

    head_async = async_twin(head)
    get_async = async_twin(get)
    get_range_async = async_twin(get_range)
    get_ranges_async = async_twin(get_ranges)

    def list(self, *args: Any, **options: Any) -> Any:
        """Refuse to list.

        Raises
        ------
        InvalidInputError
        """
        raise InvalidInputError(
            "a parser may read single files, and no folders: there is no listing for it"
        )

    list_async = list
    list_with_delimiter = list
    list_with_delimiter_async = list
