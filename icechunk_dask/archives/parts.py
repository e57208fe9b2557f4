"""What the pipeline keeps of a file: little, because there may be a hundred thousand files.

What files of one kind have in common, such as documents and attributes, is a `Schema` that
they share. References and values of many files are packed together as columns until they are
written, so the client has no object for each.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from icechunk.kerchunk.metadata import Documented
from icechunk_dask.archives.bundles import Bundle, Payload, unpacked
from icechunk_dask.archives.extents import Extent
from icechunk_dask.archives.sources import UNKNOWN, Version

__all__ = ["Axis", "Part", "Scan", "Schema", "SchemaTable", "Variable", "group_of"]

#: A dimension of a group: ``("", "time")`` is that of the root.
Axis: TypeAlias = tuple[str, str]


def group_of(name: str) -> str:
    """Return the path of the group of a variable; empty for the root."""
    return name.rpartition("/")[0]


@dataclass(frozen=True)
class Variable(Documented):
    """One variable, as files of one kind have it.

    Attributes
    ----------
    dimensions : tuple of str
    document : dict
        Its ``zarr.json``. The shape is 0 along the dimensions along which files are combined.
    meaning : dict
        Its attributes that say what the stored numbers mean; bounds have the
        units of their variable.
    by_value : str
        Why its values are written rather than referred to; empty if they are referred to.
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
    unmet : frozenset of (str, str)
        Arguments, and names in them that these files have not.
    """

    variables: dict[str, Variable]
    groups: dict[str, dict[str, Any]]
    unmet: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Part:
    """A block of the combined dataset: a file, or the messages of one place in a GRIB file.

    Attributes
    ----------
    url : str
        As the caller gave it.
    schema : Schema
    lengths : dict of Axis to int
        Of the dimensions along which files are combined.
    axes : tuple of Axis
        Those of `lengths` that have a coordinate.
    ends : tuple of Extent
        Of these coordinates.
    digests : tuple of (str, bytes)
        Of the values of variables that lack some of the combined dimensions; several
        files must agree about them.
    bundle : Bundle
        The bundle with the `Payload` of variables that have one of the combined dimensions.
    common : bytes
        The packed payload of the other variables, which is the same in many files.
    row : int
        The number of its own payload in the bundle.
    number : int
        Its number among the parts of its file.
    """

    url: str
    schema: Schema
    lengths: dict[Axis, int]
    axes: tuple[Axis, ...]
    ends: tuple[Extent, ...]
    digests: tuple[tuple[str, bytes], ...]
    bundle: Bundle
    common: bytes
    row: int = 0
    number: int = 0

    @property
    def extents(self) -> dict[Axis, Extent]:
        """Return the extents of coordinates."""
        return dict(zip(self.axes, self.ends, strict=True))

    def payload(self) -> Payload:
        """Return tables and values of variables with one of the combined dimensions."""
        return self.bundle.payloads()[self.row]

    def common_payload(self) -> Payload:
        """Return tables and values of the other variables."""
        return unpacked([self.common])[0]

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
        As the caller gave it.
    parts : tuple of Part
    version : Version
        The version of the file, which was the same before and after reading.
    others : tuple of (str, int)
        Locations of other files that it refers to, and when they were modified, in seconds
        since the epoch, 0 if unknown.
    copied : tuple of (str, int, str)
        Variables whose values are copied although nobody asked for it, their bytes, and why.
    failure : str
        Why there is nothing else; empty if there is something.
    """

    url: str
    parts: tuple[Part, ...] = ()
    version: Version = UNKNOWN
    others: tuple[tuple[str, int], ...] = ()
    copied: tuple[tuple[str, int, str], ...] = ()
    failure: str = ""


@dataclass
class SchemaTable:
    """Keeps one object for what many scans have in common."""

    _known: dict[Any, Any] = field(default_factory=dict)

    def share(self, scans: Iterable[Scan], urls: Iterable[str]) -> list[Scan]:
        """Return scans that share equal objects with earlier ones and with each other.

        Parameters
        ----------
        scans : iterable of Scan
        urls : iterable of str
            Of these scans, which share them with the caller.
        """
        # what was pickled together is one object already
        schemas: dict[int, Schema] = {}
        found = []
        for scan, url in zip(scans, urls, strict=True):
            parts = []
            for part in scan.parts:
                schema = schemas.get(id(part.schema))
                if schema is None:
                    schema = self._same(pickle.dumps(part.schema), part.schema)
                    schemas[id(part.schema)] = schema
                lengths = self._same(("lengths", *part.lengths.items()), part.lengths)
                parts.append(
                    replace(
                        part,
                        url=url,
                        schema=schema,
                        lengths=lengths,
                        axes=self._same(part.axes, part.axes),
                        digests=self._same(part.digests, part.digests),
                        common=self._same(part.common, part.common),
                    )
                )
            copied = self._same(scan.copied, scan.copied)
            failure = sys.intern(scan.failure)
            found.append(Scan(url, tuple(parts), scan.version, scan.others, copied, failure))
        return found

    def _same(self, key: Any, value: Any) -> Any:
        return self._known.setdefault(key, value)


def digests_of(part: Part) -> Mapping[str, bytes]:
    """Return the digests of a part, by variable."""
    return dict(part.digests)
