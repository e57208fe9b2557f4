"""What is in an archive, file by file: a compact table beside the repository's objects.

The ``zarr.json`` of one of the archive's arrays names the object, in a field that readers need
not understand. So the table is of the same commit as the chunks, whatever branch or tag one
looks at, and expiring snapshots does not touch what the newest ones name. A table is never
changed; each commit that changes the archive writes another one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk import InvalidInputError, ObjectNotFoundError, Session
from icechunk.errors import FormatError
from icechunk.repository.archive_tables import named_table, table_key
from icechunk.repository.stored_json import packed, unpacked
from icechunk_dask.archives.extents import Extent
from icechunk_dask.archives.parts import Axis
from icechunk_dask.archives.sources import Version

__all__ = ["Blocks", "Files", "Record"]

_VERSION: Final = 1
#: No array is as long, and no file as large.
_MOST: Final = 1 << 62


@dataclass
class Files:
    """The files of an archive, as columns.

    Attributes
    ----------
    locations : list of str
        As references have them.
    versions : list of Version
        What nobody knows is never taken for changed.
    by_value : list of bool
        Whether no chunk refers to them.
    """

    locations: list[str] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    by_value: list[bool] = field(default_factory=list)


@dataclass
class Blocks:
    """What lies one after the other along one dimension of a group.

    Attributes
    ----------
    order : {"coordinate", "url"}
        What blocks are sorted by.
    lengths : list of int
    extents : list of Extent or None
    names : list of str
        Location of a file of each block.
    """

    order: str = "url"
    lengths: list[int] = field(default_factory=list)
    extents: list[Extent | None] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def starts(self) -> npt.NDArray[np.int64]:
        """Return where each block begins, and at last where they end."""
        found = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=found[1:])
        return found


@dataclass
class Record:
    """What is in an archive.

    Attributes
    ----------
    files : Files
    part_file, part_number : list of int
        Of each part, which of the files it is of, and which of its parts.
    places : dict of Axis to list of int
        Of each part its block, -1 if it has none.
    blocks : dict of Axis to Blocks
    templates : dict of str to dict
        Of each variable, by path within the group, what its document does not tell: its
        ``meaning``, the ``digest`` of its values, and why it is stored ``by_value``.
    """

    files: Files = field(default_factory=Files)
    part_file: list[int] = field(default_factory=list)
    part_number: list[int] = field(default_factory=list)
    places: dict[Axis, list[int]] = field(default_factory=dict)
    blocks: dict[Axis, Blocks] = field(default_factory=dict)
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)

    # -- stored ------------------------------------------------------------------------
    @classmethod
    def find(cls, session: Session, root: str) -> Record | None:
        """Return the table of a group, None if it has none; groups below may have their own."""
        for node in session.tree.within(root):
            named = None if node.array is None else named_table(node.user_data)
            if named is None:
                continue
            if named.array is not None:
                if named.root(node.path) == root:
                    return cls.load(session, named.table)
                continue
            record = cls.load(session, named.table)
            if node.path.removeprefix(root).strip("/") in record.templates:
                return record
        return None

    @staticmethod
    def roots(session: Session, root: str) -> set[str]:
        """Return the groups below a group that are archives of their own."""
        found = set()
        for node in session.tree.within(root):
            named = None if node.array is None else named_table(node.user_data)
            own = None if named is None else named.root(node.path)
            if own is not None and own != root:
                found.add(own)
        return found

    @classmethod
    def load(cls, session: Session, name: str) -> Record:
        """Read a table.

        Raises
        ------
        ObjectNotFoundError, FormatError
            If it is missing or damaged.
        """
        key = table_key(name)
        try:
            data = bytes(session.storage.get(key).data)
        except ObjectNotFoundError as exc:
            raise ObjectNotFoundError(
                f"the table of the files of the archive is missing: {key} in {session.storage_url}"
            ) from exc
        return cls.decode(data, key)

    def save(self, session: Session) -> str:
        """Write a table; return its name."""
        name = secrets.token_hex(12)
        session.storage.put(table_key(name), self.encode())
        return name

    def encode(self) -> bytes:
        """Return the table as bytes."""
        versions = self.files.versions
        document = {
            "version": _VERSION,
            "locations": self.files.locations,
            "sizes": [version.size for version in versions],
            "modified": [version.modified for version in versions],
            "etags": [version.etag for version in versions],
            "by_value": [int(each) for each in self.files.by_value],
            "part_file": self.part_file,
            "part_number": self.part_number,
            "axes": [
                {
                    "group": axis[0],
                    "dimension": axis[1],
                    "places": self.places[axis],
                    "order": blocks.order,
                    "lengths": blocks.lengths,
                    "names": blocks.names,
                    "extents": _columns(blocks.extents),
                }
                for axis, blocks in self.blocks.items()
            ],
            "templates": self.templates,
        }
        return packed(document)

    @classmethod
    def decode(cls, data: bytes, name: str) -> Record:
        """Read a table from bytes.

        Raises
        ------
        FormatError
            If they are none, or of a version of the future.
        """
        try:
            found = unpacked(data)
            if found["version"] != _VERSION:
                raise FormatError(
                    f"{name}: a newer version of this library wrote the table of the archive; "
                    f"it is of version {found['version']}, and {_VERSION} is known"
                )
            versions = [
                Version(size, modified, etag)
                for size, modified, etag in zip(
                    found["sizes"], found["modified"], found["etags"], strict=True
                )
            ]
            files = Files(found["locations"], versions, list(map(bool, found["by_value"])))
            record = cls(files, found["part_file"], found["part_number"])
            for each in found["axes"]:
                axis = each["group"], each["dimension"]
                record.places[axis] = each["places"]
                record.blocks[axis] = Blocks(
                    each["order"], each["lengths"], _extents(each), each["names"]
                )
            record.templates = found["templates"]
            record._check_columns()
        except (ValueError, KeyError, TypeError, IndexError) as exc:
            if isinstance(exc, FormatError):
                raise
            raise FormatError(f"{name}: the table of the archive is damaged: {exc}") from exc
        return record

    def _check_columns(self) -> None:
        """Check that columns fit together: whoever wrote the repository wrote them."""
        count, parts = len(self.files.locations), len(self.part_file)
        _check(self.files.locations, str, count)
        _check([version.size for version in self.files.versions], int, count, -_MOST, _MOST)
        _check([version.modified for version in self.files.versions], int, count, -_MOST, _MOST)
        _check([version.etag for version in self.files.versions], str, count)
        if len(self.files.by_value) != count:
            raise ValueError("its columns do not fit together")
        _check(self.part_file, int, parts, 0, count)
        _check(self.part_number, int, parts, 0)
        for axis, places in self.places.items():
            blocks = self.blocks[axis]
            number = len(blocks.lengths)
            _check(list(axis), str, 2)
            _check(places, int, parts, -1, number)
            _check(blocks.lengths, int, number, 0, _MOST)
            _check([sum(blocks.lengths)], int, 1, 0, _MOST)
            _check(blocks.names, str, number)
            if len(blocks.extents) != number:
                raise ValueError("its columns do not fit together")
        _check([self.templates], dict, 1)
        for template in self.templates.values():
            bytes.fromhex(template["digest"])
            _check([template["by_value"], template["digest"]], str, 2)

    # -- looked at ---------------------------------------------------------------------
    def check(self, name: str, axis: Axis, length: int) -> None:
        """Check that an array is as long as the files of the table.

        Raises
        ------
        InvalidInputError
            If somebody else has written it.
        """
        blocks = self.blocks.get(axis)
        known = length if blocks is None else sum(blocks.lengths)
        if length != known:
            raise InvalidInputError(
                f"the variable {name!r} has {length} steps along {axis[1]!r}, and the files of "
                f"the archive have {known}: something else has written to it, and files cannot "
                "be added any more"
            )

    def without(self, locations: set[str]) -> Record:
        """Return the table without some files; blocks stay as they are."""
        gone = [location in locations for location in self.files.locations]
        number = np.cumsum(np.logical_not(gone)) - 1
        kept = [i for i, file in enumerate(self.part_file) if not gone[file]]
        stay = [i for i, drop in enumerate(gone) if not drop]
        files = Files(
            [self.files.locations[i] for i in stay],
            [self.files.versions[i] for i in stay],
            [self.files.by_value[i] for i in stay],
        )
        return Record(
            files,
            [int(number[self.part_file[i]]) for i in kept],
            [self.part_number[i] for i in kept],
            {axis: [column[i] for i in kept] for axis, column in self.places.items()},
            self.blocks,
            self.templates,
        )

    def are_apart(self, locations: set[str]) -> bool:
        """Whether some files can be told from the others by their places."""
        placed: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
        columns = list(self.places.values())
        for row, file in enumerate(self.part_file):
            chosen = self.files.locations[file] in locations
            placed[chosen].add(tuple(column[row] for column in columns))
        # what has no steps has no place
        shared = placed[True] & placed[False]
        return not any(max(place, default=-1) >= 0 for place in shared)

    def parts_of(self, locations: set[str]) -> list[dict[Axis, int]]:
        """Return the blocks of the parts of some files."""
        rows = [i for i, f in enumerate(self.part_file) if self.files.locations[f] in locations]
        return [
            {axis: column[i] for axis, column in self.places.items() if column[i] >= 0}
            for i in rows
        ]


def _columns(extents: Sequence[Extent | None]) -> dict[str, Any] | int:
    """Return extents as columns; only how many if none is known."""
    known = [extent for extent in extents if extent is not None]
    if not known:
        return len(extents)
    kinds = sorted({extent.kind for extent in known})
    return {
        "kinds": kinds,
        "kind": [-1 if e is None else kinds.index(e.kind) for e in extents],
        "low": [None if e is None else e.low for e in extents],
        "high": [None if e is None else e.high for e in extents],
        "falling": [int(e is not None and e.falling) for e in extents],
        "digest": ["" if e is None else e.digest for e in extents],
    }


def _extents(axis: Any) -> list[Extent | None]:
    columns, count = axis["extents"], len(axis["lengths"])
    if isinstance(columns, int):
        return [None] * count
    kinds = columns["kinds"]
    names = ("kind", "low", "high", "falling", "digest")
    return [
        None if kind < 0 else Extent(kinds[kind], low, high, bool(falling), digest)
        for kind, low, high, falling, digest in zip(*(columns[n] for n in names), strict=True)
    ]


def _check(column: Any, kind: type, count: int, low: int | None = None, end: float = inf) -> None:
    """Check a column of a table: its length, what it holds, and that numbers are in [low, end).

    Raises
    ------
    ValueError
    """
    if not isinstance(column, list) or len(column) != count:
        raise ValueError("its columns do not fit together")
    for value in column:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"a column holds a {type(value).__name__}")
        if low is not None and not low <= value < end:  # type: ignore[operator]
            raise ValueError(f"{value} is out of its range")
