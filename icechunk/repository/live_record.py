"""What a collection records for the next one: what was needed, and how often.

The record is an object of this library, beside those of the format. If it is missing, damaged or
out of date, the collection reads everything.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.errors import ObjectNotFoundError, PreconditionFailedError, StorageError
from icechunk.format.ids import OBJECT_ID_SIZE
from icechunk.repository.reachable import Column
from icechunk.storage.base import Storage

__all__ = ["RECORD_KEY", "LiveRecord", "StaleRecordError", "counted"]

_log = logging.getLogger(__name__)

RECORD_KEY: Final = "collections/live"
_VERSION: Final = b"icechunk live objects 2\n"
#: Numbers of snapshots, manifests and chunks, and bytes per count of a chunk.
_SIZES: Final = struct.Struct("<QQQQ")
_DIGEST: Final = 32

Counts = npt.NDArray[Any]


class StaleRecordError(Exception):
    """The record of an earlier collection is out of date."""


def counted(parts: Iterable[Column]) -> tuple[Column, npt.NDArray[np.int64]]:
    """Return the distinct values of some columns, sorted, and how often each occurs."""
    values = np.concatenate([np.empty(0, np.uint64), *parts])
    values.sort()
    starts = np.flatnonzero(np.concatenate([np.ones(1, np.bool_), values[1:] != values[:-1]]))
    if not len(values):
        return values, np.empty(0, np.int64)
    return values[starts], np.diff(np.append(starts, len(values)))


@dataclass
class LiveRecord:
    """What was needed when a collection ran.

    Attributes
    ----------
    snapshots : set of bytes
    manifests : dict of bytes to int
        By id: how many of the snapshots list the manifest.
    prefixes : uint64[n]
        First eight bytes of the ids of chunks, sorted and distinct.
    counts : unsigned[n]
        How many references of the manifests lead to each chunk.
    etag : str or None
        The version of the stored record.
    """

    snapshots: set[bytes] = field(default_factory=set)
    manifests: dict[bytes, int] = field(default_factory=dict)
    prefixes: Column = field(default_factory=lambda: np.empty(0, np.uint64))
    counts: Counts = field(default_factory=lambda: np.empty(0, np.uint8))
    etag: str | None = None

    # -- stored ----------------------------------------------------------------------------
    @classmethod
    def load(cls, storage: Storage) -> LiveRecord:
        """Return the stored record, or an empty one if it is missing or damaged."""
        try:
            stored = storage.get(RECORD_KEY)
        except ObjectNotFoundError:
            return cls()
        empty = cls(etag=stored.etag)
        data = memoryview(stored.data).cast("B")
        at = len(_VERSION) + _DIGEST
        body = data[at:]
        if bytes(data[:at]) != _VERSION + _digest(body):
            return empty
        snapshots, manifests, chunks, width = _SIZES.unpack_from(body)
        columns = _Columns(body[_SIZES.size :])
        ids = columns.take(np.uint8, snapshots * OBJECT_ID_SIZE).reshape(-1, OBJECT_ID_SIZE)
        listed = columns.take(np.uint8, manifests * OBJECT_ID_SIZE).reshape(-1, OBJECT_ID_SIZE)
        times = columns.take(np.int64, manifests)
        return cls(
            {row.tobytes() for row in ids},
            dict(zip((row.tobytes() for row in listed), times.tolist(), strict=True)),
            columns.take(np.uint64, chunks),
            columns.take(np.dtype(f"<u{width}"), chunks),
            stored.etag,
        )

    def save(self, storage: Storage) -> None:
        """Store the record, unless somebody else has stored another one meanwhile.

        The record is optional: if this fails, the next collection reads everything.
        """
        sizes = len(self.snapshots), len(self.manifests), len(self.prefixes)
        parts: list[Any] = [
            _SIZES.pack(*sizes, self.counts.dtype.itemsize),
            b"".join(self.snapshots),
            b"".join(self.manifests),
            np.array([*self.manifests.values()], "<i8").tobytes(),
            self.prefixes.data,
            self.counts.data,
        ]
        digest = _digest(*parts)
        data = b"".join([_VERSION, digest, *parts])
        try:
            storage.put(RECORD_KEY, data, if_match=self.etag, if_absent=self.etag is None)
        except PreconditionFailedError:
            # the record of a concurrent run; any record is checked when it is used
            storage.delete([RECORD_KEY])
        except StorageError as error:
            _log.warning("the next collection reads everything, for want of a record: %s", error)

    # -- changed ---------------------------------------------------------------------------
    def changed(
        self,
        snapshots: set[bytes],
        manifests: Mapping[bytes, int],
        added: Iterable[Column],
        gone: Iterable[Column],
    ) -> LiveRecord:
        """Return the record of what is needed now.

        Only the few changed ids are sorted and searched for.

        Parameters
        ----------
        snapshots : set of bytes
        manifests : mapping
            Those of all that are needed.
        added, gone : iterable of uint64[n]
            Of new references, and of removed ones; in any order, repeated if
            several lead to one chunk.

        Raises
        ------
        StaleRecordError
            If more references were removed than the record has.
        """
        more, times = counted(added)
        less, lost = counted(gone)
        prefixes, counts = self.prefixes, self.counts
        place = np.searchsorted(prefixes, more)
        known = _found(prefixes, place, more)
        times[known] += counts[place[known]].astype(np.int64)
        width = np.min_scalar_type(int(times.max(initial=0)))
        counts = counts.astype(np.promote_types(counts.dtype, width))
        counts[place[known]] = times[known]
        if not known.all():
            prefixes = np.insert(prefixes, place[~known], more[~known])
            counts = np.insert(counts, place[~known], times[~known])
        place = np.searchsorted(prefixes, less)
        if not _found(prefixes, place, less).all():
            raise StaleRecordError
        rest = counts[place].astype(np.int64) - lost
        if (rest < 0).any():
            raise StaleRecordError
        counts[place] = rest
        if not rest.all():
            unneeded = place[rest == 0]
            prefixes, counts = np.delete(prefixes, unneeded), np.delete(counts, unneeded)
        return LiveRecord(set(snapshots), dict(manifests), prefixes, counts, self.etag)

    def needs(self, prefixes: Column) -> npt.NDArray[np.bool_]:
        """Return which of these chunks are needed."""
        return _found(self.prefixes, np.searchsorted(self.prefixes, prefixes), prefixes)


def _found(column: Column, place: npt.NDArray[np.intp], values: Column) -> npt.NDArray[np.bool_]:
    """Return which values a sorted column has at the given places."""
    found = np.zeros(len(values), np.bool_)
    inside = place < len(column)
    found[inside] = column[place[inside]] == values[inside]
    return found


def _digest(*parts: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for part in parts:
        digest.update(part)
    return digest.digest()


class _Columns:
    """Columns stored one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
        found = np.frombuffer(self._data, dtype, count, self._at)
        self._at += found.nbytes
        # searches are several times as slow if numbers are not aligned
        return found if found.flags.aligned else found.copy()
