"""What an import checks of chunks in files, as far as it may read them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote

from icechunk.errors import ErrorKind, IcechunkError, InvalidInputError
from icechunk.kerchunk.guard import check_sizes, check_values, pipeline_of
from icechunk.kerchunk.metadata import ArrayMetadata
from icechunk.kerchunk.tables import ChunkTable, refuse
from icechunk.session.session import Session

__all__ = ["ImportChecks"]

#: How many files of this machine are asked for their size, at most.
_MEASURED: Final = 10_000


class ImportChecks:
    """Checks tables of references before a session changes.

    Parameters
    ----------
    session : Session
        Chunks are read only where it may read them.
    verify : {"sample", "all", "none"}

    Attributes
    ----------
    unread : dict of str to str
        Paths within the references of the arrays of which no chunk could be read, and why.
    """

    def __init__(self, session: Session, verify: str) -> None:
        self._session = session
        self._verify = verify
        self.unread: dict[str, str] = {}
        #: Why a chunk of this pipeline could not be read; empty if one was.
        self._seen: dict[str, str] = {}
        self._sizes: dict[str, int] = {}

    def check(self, metadata: ArrayMetadata, table: ChunkTable, key: Callable[[int], str]) -> None:
        """Check the references of an array.

        Parameters
        ----------
        metadata : ArrayMetadata
        table : ChunkTable
            Whose lengths are known.
        key : callable
            Returns the key of a row, for errors.

        Raises
        ------
        InvalidInputError
            If a chunk cannot be right; the message names its key.
        """
        if self._verify == "none":
            return
        self._measure(table.locations)
        for row, problem in check_sizes(metadata.document, table, self._sizes):
            refuse(key(row), f"the chunk {problem}")
        pipeline = pipeline_of(metadata.document)
        if self._verify == "all" or pipeline not in self._seen:
            self._seen[pipeline] = self._decode(metadata, table)
        if self._seen[pipeline] and (table.location >= 0).any():
            self.unread[metadata.keys.path] = self._seen[pipeline]

    def _measure(self, locations: Iterable[str]) -> None:
        """Ask for the sizes of files of this machine."""
        for location in locations:
            if len(self._sizes) >= _MEASURED:
                return
            if location in self._sizes or not location.startswith("file://"):
                continue
            try:
                self._sizes[location] = os.stat(unquote(location.removeprefix("file://"))).st_size
            except (OSError, ValueError):
                # files may come later than the references to them
                continue

    def _decode(self, metadata: ArrayMetadata, table: ChunkTable) -> str:
        """Decode chunks; return why one cannot be read, which is no error."""

        def fetch(row: int) -> bytes:
            where = int(table.location[row])
            if where < 0:
                return table.payloads[int((table.location[:row] < 0).sum())]
            offset, length = int(table.offset[row]), int(table.length[row])
            try:
                data = self._session.virtual.fetch(table.locations[where], offset, length)
            except IcechunkError as exc:
                raise _UnreadError(str(exc)) from exc
            return bytes(data)

        try:
            for coordinate, problem in check_values(
                metadata.document, table, fetch, None, every=self._verify == "all"
            ):
                raise InvalidInputError(
                    f"reference {metadata.keys.path!r}: chunk {coordinate} {problem}; pass "
                    "verify='none' to import it all the same",
                    ErrorKind.INVALID_VIRTUAL_REF,
                )
        except _UnreadError as unread:
            # whoever may not read the files, or not yet, may still refer to them
            return str(unread)
        return ""


class _UnreadError(Exception):
    """A chunk could not be read."""
