"""What the pipeline keeps of a file: little, because there may be a hundred thousand.

What files of one kind have in common, such as documents and attributes, is a `Schema` that
they share. Tables and values are packed until they are written.
"""

from __future__ import annotations

import pickle
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from icechunk.kerchunk.metadata import Documented
from icechunk.kerchunk.tables import ChunkTable
from icechunk_dask.archives.extents import Extent
from icechunk_dask.archives.sources import UNKNOWN, Version

__all__ = ["Axis", "Part", "Payload", "Scan", "Schema", "SchemaTable", "Variable", "group_of"]

#: A dimension of a group: ``("", "time")`` is that of the root.
Axis: TypeAlias = tuple[str, str]


def group_of(name: str) -> str:
    """Return the path of the group that a variable is in; of the root it is empty."""
    return name.rpartition("/")[0]


@dataclass(frozen=True)
class Variable(Documented):
    """One variable, as files of one kind have it.

    Attributes
    ----------
    dimensions : tuple of str
    document : dict
        Its ``zarr.json``. Along dimensions along which files are combined its shape is 0.
    meaning : dict
        Those of its attributes that say what the stored numbers mean; bounds have the
        units of what they bound.
    by_value : str
        Why its values are written rather than referred to; empty if they are not.
    counted : bool
        Whether these values count as copies that nobody asked for.
    """

    dimensions: tuple[str, ...]
    document: dict[str, Any]
    meaning: dict[str, Any]
    by_value: str = ""
    counted: bool = False


@dataclass(frozen=True)
class Schema:
    """What files of one kind have in common.

    Attributes
    ----------
    variables : dict of str to Variable
        By path within the file.
    groups : dict of str to dict
        Attributes, by path; the root is ``""``.
    """

    variables: dict[str, Variable]
    groups: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Payload:
    """What of a part is of use only when it is written.

    Attributes
    ----------
    tables : dict of str to ChunkTable
        Of variables that are referred to.
    values : dict of str to array
        Of the others, as they are stored.
    """

    tables: dict[str, ChunkTable]
    values: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """A block of the combined dataset: a file, or the messages of a GRIB file of one place.

    Attributes
    ----------
    url : str
        As it was given.
    schema : Schema
    lengths : dict of Axis to int
        Of the dimensions along which files are combined.
    extents : dict of Axis to Extent
        Of their coordinates, where there are some.
    digests : tuple of (str, bytes)
        Of the values of variables without all of the combined dimensions, which several
        files have to agree about.
    packed : bytes
        The `Payload` of variables with one of the combined dimensions.
    common : bytes
        That of the others, which is the same in many files.
    number : int
        Which of the parts of its file it is.
    """

    url: str
    schema: Schema
    lengths: dict[Axis, int]
    extents: dict[Axis, Extent]
    digests: tuple[tuple[str, bytes], ...]
    packed: bytes
    common: bytes
    number: int = 0

    @staticmethod
    def pack(payload: Payload) -> bytes:
        """Return a payload as bytes."""
        return zlib.compress(pickle.dumps(payload, pickle.HIGHEST_PROTOCOL), 1)

    def payload(self, *, common: bool = False) -> Payload:
        """Return tables and values, which workers of this very call have packed."""
        found = pickle.loads(zlib.decompress(self.common if common else self.packed))
        assert isinstance(found, Payload)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a variable has in this part."""
        variable = self.schema.variables[name]
        group = group_of(name)
        return tuple(
            self.lengths.get((group, dim), size)
            for dim, size in zip(variable.dimensions, variable.shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Scan:
    """What became of one URL.

    Attributes
    ----------
    url : str
        As it was given.
    parts : tuple of Part
    version : Version
        Of the file, which was the same before and after it was read.
    others : tuple of (str, int)
        Locations of other files that it refers to, and when they were modified: seconds
        since the epoch, 0 if unknown.
    copied : tuple of (str, int, str)
        Variables whose values are copied without anybody's wish, their bytes, and why.
    failure : str
        Why there is nothing else; empty if there is.
    """

    url: str
    parts: tuple[Part, ...] = ()
    version: Version = UNKNOWN
    others: tuple[tuple[str, int], ...] = ()
    copied: tuple[tuple[str, int, str], ...] = ()
    failure: str = ""


@dataclass
class SchemaTable:
    """Keeps one object of what many scans have in common."""

    _known: dict[Any, Any] = field(default_factory=dict)

    def share(self, scan: Scan) -> Scan:
        """Return a scan that shares with others what is equal."""
        parts = tuple(
            Part(
                part.url,
                self._same(pickle.dumps(part.schema), part.schema),
                self._same(("lengths", *part.lengths.items()), part.lengths),
                part.extents,
                self._same(part.digests, part.digests),
                part.packed,
                self._same(part.common, part.common),
                part.number,
            )
            for part in scan.parts
        )
        copied = self._same(scan.copied, scan.copied)
        failure = sys.intern(scan.failure)
        return Scan(scan.url, parts, scan.version, scan.others, copied, failure)

    def _same(self, key: Any, value: Any) -> Any:
        return self._known.setdefault(key, value)


def digests_of(part: Part) -> Mapping[str, bytes]:
    """Return the digests of a part by variable."""
    return dict(part.digests)
