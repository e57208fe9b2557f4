"""What is in an archive, file by file: a compact table beside the repository's objects.

The ``zarr.json`` of one of the archive's arrays names the object, in a field that readers may
ignore. So the table belongs to the same commit as the chunks on every branch and tag, and
expiring snapshots does not touch the tables that the newest ones name. A table is never
changed; each commit that changes the archive writes a new one.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk import InvalidInputError, ObjectNotFoundError, Session
from icechunk.base.texts import counted
from icechunk.errors import FormatError
from icechunk.kerchunk.tables import StringHeap
from icechunk.repository.archive_tables import named_table, table_key
from icechunk_dask.archives.columns import (
    Columns,
    decode,
    encode,
    heap_of,
    joined_heaps,
    rows_in,
)
from icechunk_dask.archives.extents import Extent, Extents
from icechunk_dask.archives.parts import Axis
from icechunk_dask.archives.sources import Version

__all__ = ["Blocks", "Files", "Record"]

_VERSION: Final = 2
_NONE: Final = heap_of([])
#: Maximum number of holes of a group that are named.
_SHOWN: Final = 10


def _no_numbers() -> npt.NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Files:
    """The files of an archive, as columns.

    Attributes
    ----------
    locations : StringHeap
        As in references, without duplicates.
    sizes, modified : int64[n]
        Of their versions. An unknown value never counts as changed.
    etags : StringHeap
        Of their versions; empty if there is none.
    by_value : bool[n]
        Whether no chunk refers to them.
    touched : int64[n]
    digests : uint32[n]
        Of their versions, too.
    """

    locations: StringHeap = _NONE
    sizes: npt.NDArray[np.int64] = field(default_factory=_no_numbers)
    modified: npt.NDArray[np.int64] = field(default_factory=_no_numbers)
    etags: StringHeap = _NONE
    by_value: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    touched: npt.NDArray[np.int64] = field(default_factory=_no_numbers)
    digests: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))

    @classmethod
    def of(
        cls, locations: Sequence[str], versions: Sequence[Version], by_value: Iterable[bool]
    ) -> Files:
        """Return files as columns."""
        return cls(
            heap_of(locations),
            np.asarray([version.size for version in versions], np.int64),
            np.asarray([version.modified for version in versions], np.int64),
            heap_of([version.etag for version in versions]),
            np.asarray(list(by_value), np.bool_),
            np.asarray([version.touched for version in versions], np.int64),
            np.asarray([version.digest for version in versions], np.uint32),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def version(self, row: int) -> Version:
        """Return the version of a file."""
        return Version(
            int(self.sizes[row]),
            int(self.modified[row]),
            self.etags[row],
            int(self.touched[row]),
            int(self.digests[row]),
        )

    def rows(self, locations: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the numbers of files by their locations, -1 for unknown ones."""
        return rows_in(self.locations, locations)

    def take(self, rows: npt.NDArray[Any]) -> Files:
        """Return some of the files."""
        return Files(
            self.locations.take(rows),
            self.sizes[rows],
            self.modified[rows],
            self.etags.take(rows),
            self.by_value[rows],
            self.touched[rows],
            self.digests[rows],
        )

    def followed_by(self, other: Files) -> Files:
        """Return these files, followed by others."""
        return Files(
            joined_heaps(self.locations, other.locations),
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.modified, other.modified]),
            joined_heaps(self.etags, other.etags),
            np.concatenate([self.by_value, other.by_value]),
            np.concatenate([self.touched, other.touched]),
            np.concatenate([self.digests, other.digests]),
        )


@dataclass(frozen=True)
class Blocks:
    """What lies along one dimension of a group, block after block, as columns.

    Attributes
    ----------
    order : {"coordinate", "url"}
        What sorts the blocks.
    lengths : int64[n]
    extents : Extents
    files : int64[n]
        The number of a file of each block.
    """

    order: str = "url"
    lengths: npt.NDArray[np.int64] = field(default_factory=_no_numbers)
    extents: Extents = field(default_factory=lambda: Extents.of([]))
    files: npt.NDArray[np.int64] = field(default_factory=_no_numbers)

    def __len__(self) -> int:
        return len(self.lengths)

    def starts(self) -> npt.NDArray[np.int64]:
        """Return where each block begins, and where the last one ends."""
        return np.append(0, np.cumsum(self.lengths))

    def take(self, rows: npt.NDArray[Any]) -> Blocks:
        """Return some of the blocks, in any order."""
        return Blocks(self.order, self.lengths[rows], self.extents.take(rows), self.files[rows])


@dataclass
class Record:
    """What is in an archive.

    Attributes
    ----------
    files : Files
    part_file, part_number : int64[m]
        For each part, the number of its file, and its number within that file.
    places : dict of Axis to int64[m]
        The block of each part, -1 if it has none.
    blocks : dict of Axis to Blocks
    templates : dict of str to dict
        For each variable, by path within the group, what its document does not say: its
        ``meaning``, the ``digest`` of its values, and why it is stored ``by_value``.
    """

    files: Files = field(default_factory=Files)
    part_file: npt.NDArray[np.int64] = field(default_factory=_no_numbers)
    part_number: npt.NDArray[np.int64] = field(default_factory=_no_numbers)
    places: dict[Axis, npt.NDArray[np.int64]] = field(default_factory=dict)
    blocks: dict[Axis, Blocks] = field(default_factory=dict)
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)

    # -- stored ------------------------------------------------------------------------
    @classmethod
    def find(cls, session: Session, root: str) -> Record | None:
        """Return the table of a group, None if there is none; groups below may have their own."""
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
        """Write a table, and return its name."""
        name = secrets.token_hex(12)
        session.storage.put(table_key(name), self.encode())
        return name

    def encode(self) -> bytes:
        """Return the table as bytes."""
        files = self.files
        columns: Columns = {
            "locations": files.locations,
            "sizes": files.sizes,
            "modified": files.modified,
            "etags": files.etags,
            "by_value": files.by_value,
            # mostly equal to the modification time, and 0 if unknown
            "touched": np.where(files.touched > 0, files.touched - files.modified, _UNTOLD),
            "digests": files.digests,
            "part_file": self.part_file,
            "part_number": self.part_number,
        }
        axes = []
        for number, (axis, blocks) in enumerate(self.blocks.items()):
            extents = blocks.extents
            axes.append(
                {
                    "group": axis[0],
                    "dimension": axis[1],
                    "order": blocks.order,
                    "kinds": extents.kinds,
                }
            )
            for name, column in (
                ("places", self.places[axis]),
                ("lengths", blocks.lengths),
                ("files", blocks.files),
                ("kind", extents.kind.astype(np.int64)),
                ("low", extents.low),
                # a block often ends one step after it begins
                *_high(extents),
                ("falling", extents.falling),
                ("digest", extents.digest),
            ):
                columns[f"{number}.{name}"] = column
        document = {"version": _VERSION, "axes": axes, "templates": self.templates}
        return encode(document, columns)

    @classmethod
    def decode(cls, data: bytes, name: str) -> Record:
        """Read a table from bytes.

        Raises
        ------
        FormatError
            If the bytes are not a table, or are of a later version.
        """
        try:
            document, columns = decode(data)
            if document["version"] == 1:
                record = _first_version(document)
                record._check()
                return record
            if document["version"] != _VERSION:
                raise FormatError(
                    f"{name}: a newer version of this library wrote the table of the archive; "
                    f"it is of version {document['version']}, and {_VERSION} is known"
                )
            found: Any = columns
            files = Files(*(found[key] for key in _FILES), *_told(found))
            record = cls(files, found["part_file"], found["part_number"])
            for number, each in enumerate(document["axes"]):
                axis = each["group"], each["dimension"]
                own = {key: found[f"{number}.{key}"] for key in _BLOCKS}
                high = found.get(f"{number}.high")
                extents = Extents(
                    tuple(each["kinds"]),
                    own["kind"].astype(np.int16),
                    own["low"],
                    own["low"] + found[f"{number}.width"] if high is None else high,
                    own["falling"],
                    own["digest"],
                )
                record.places[axis] = own["places"]
                record.blocks[axis] = Blocks(each["order"], own["lengths"], extents, own["files"])
            record.templates = document["templates"]
            record._check()
        except FormatError:
            raise
        except (*_WRONG, InvalidInputError) as exc:
            raise FormatError(f"{name}: the table of the archive is damaged: {exc}") from exc
        return record

    def _check(self) -> None:
        """Check that columns fit together: anybody may have written the repository."""
        files, count, parts = self.files, len(self.files.locations), len(self.part_file)
        _numbers(files.sizes, count, -_MOST, _MOST)
        _numbers(files.modified, count, -_MOST, _MOST)
        _column(files.by_value, np.bool_, count)
        _numbers(files.touched, count, -_MOST, _MOST)
        _column(files.digests, np.uint32, count)
        _numbers(self.part_file, parts, 0, count)
        _numbers(self.part_number, parts, 0, _MOST)
        if len(files.etags) != count:
            raise ValueError("its columns do not fit together")
        for axis, places in self.places.items():
            blocks, extents = self.blocks[axis], self.blocks[axis].extents
            number = len(blocks.lengths)
            _texts(*axis, blocks.order, *extents.kinds)
            _numbers(places, parts, -1, number)
            _numbers(blocks.lengths, number, 0, _MOST)
            if float(blocks.lengths.sum(dtype=np.float64)) >= _MOST:
                raise ValueError("its files are too long")
            _numbers(blocks.files, number, 0, count)
            _numbers(extents.kind, number, -1, len(extents.kinds))
            _column(extents.falling, np.bool_, number)
            _column(extents.digest, np.uint32, number)
            for column in (extents.low, extents.high):
                if len(column) != number or column.dtype not in _ENDS:
                    raise ValueError("its columns do not fit together")
        if not isinstance(self.templates, dict):
            raise ValueError("it has something else in place of what variables are like")
        for template in self.templates.values():
            bytes.fromhex(template["digest"])
            _texts(template["by_value"], template["digest"])

    # -- looked at ---------------------------------------------------------------------
    def check(self, name: str, axis: Axis, length: int) -> None:
        """Check that an array is as long as the files of the table say.

        Raises
        ------
        InvalidInputError
            If something else has written the array.
        """
        blocks = self.blocks.get(axis)
        known = length if blocks is None else int(blocks.lengths.sum())
        if length != known:
            raise InvalidInputError(
                f"the variable {name!r} has {counted(length, 'step')} along {axis[1]!r}, and "
                f"the files of "
                f"the archive have {known}: something else has written to it, and files cannot "
                "be added any more"
            )

    def without(self, locations: Sequence[str]) -> Record:
        """Return the table without some files; blocks stay."""
        rows = self.files.rows(locations)
        gone = np.zeros(len(self.files), np.bool_)
        gone[rows[rows >= 0]] = True
        if not gone.any():
            return self
        number = np.cumsum(~gone) - 1
        kept = ~gone[self.part_file]
        places = {axis: column[kept] for axis, column in self.places.items()}
        part_file = number[self.part_file[kept]]
        blocks = {}
        for axis, known in self.blocks.items():
            # a block that several files share now names one that stays
            files = np.where(gone[known.files], 0, number[known.files])
            lost = gone[known.files][places[axis]] & (places[axis] >= 0)
            files[places[axis][lost]] = part_file[lost]
            blocks[axis] = replace(known, files=files)
        return Record(
            self.files.take(np.flatnonzero(~gone)),
            part_file,
            self.part_number[kept],
            places,
            blocks,
            self.templates,
        )

    def are_apart(self, locations: Sequence[str]) -> bool:
        """Whether some files share no place with the others."""
        chosen = np.isin(self.part_file, self.files.rows(locations))
        columns = np.stack([*self.places.values(), np.full(len(chosen), -1)], axis=1)
        # without steps there is no place
        placed = (columns >= 0).any(axis=1)
        some = set(map(tuple, columns[placed & chosen].tolist()))
        return some.isdisjoint(map(tuple, columns[placed & ~chosen].tolist()))

    def holes(self) -> tuple[str, ...]:
        """Describe the places without a file in groups with several dimensions."""
        found: list[str] = []
        for group in dict.fromkeys(group for group, _ in self.blocks):
            axes = [axis for axis in self.blocks if axis[0] == group]
            counts = [len(self.blocks[axis]) for axis in axes]
            columns = np.stack([self.places[axis] for axis in axes])
            filled = columns[:, (columns >= 0).all(axis=0)]
            if len(axes) < 2 or not filled.size:
                continue
            whole = math.prod(counts)
            there = np.unique(np.ravel_multi_index(tuple(filled), tuple(counts)))
            missing = whole - len(there)
            ends = pairwise([-1, *there.tolist(), whole])
            # there may be many more of them than files
            some = islice(chain.from_iterable(range(a + 1, b) for a, b in ends), _SHOWN)
            starts = [self.blocks[axis].starts() for axis in axes]
            inside = f"{group}: " if group else ""
            for place in some:
                bounds = []
                for (_, dim), start, i in zip(
                    axes, starts, np.unravel_index(place, counts), strict=True
                ):
                    first, last = int(start[i]), int(start[i + 1]) - 1
                    bounds.append(f"{dim} {first}" + (f" to {last}" if last > first else ""))
                found.append(inside + ", ".join(bounds))
            if missing > _SHOWN:
                found.append(f"{inside}{missing - _SHOWN} more")
        return tuple(found)

    def parts_of(self, locations: Sequence[str]) -> list[dict[Axis, int]]:
        """Return the blocks of the parts of some files."""
        rows = np.flatnonzero(np.isin(self.part_file, self.files.rows(locations))).tolist()
        return [
            {axis: int(column[i]) for axis, column in self.places.items() if column[i] >= 0}
            for i in rows
        ]


_FILES: Final = ("locations", "sizes", "modified", "etags", "by_value")
_BLOCKS: Final = ("places", "lengths", "files", "kind", "low", "falling", "digest")


def _told(found: dict[str, Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the columns of files that the first tables lack."""
    sizes, modified = found["sizes"], found["modified"]
    after = found.get("touched")
    yield (
        np.zeros(len(sizes), np.int64)
        if after is None
        else np.where(after == _UNTOLD, 0, modified + after)
    )
    yield found.get("digests", np.zeros(len(sizes), np.uint32))


def _high(extents: Extents) -> list[tuple[str, npt.NDArray[Any]]]:
    """Return the upper ends, as differences from the lower ones if that is exact."""
    if extents.low.dtype == np.int64 == extents.high.dtype:
        return [("width", extents.high - extents.low)]
    return [("high", extents.high)]


_WRONG: Final = (ValueError, LookupError, TypeError, AttributeError)
#: No array is longer, and no file larger.
_MOST: Final = 1 << 62
#: In place of the time between a file's last contents and its last touch, if unknown.
_UNTOLD: Final = -1
_ENDS: Final = (np.dtype(np.int64), np.dtype(np.float64), np.dtype(object))


def _column(column: Any, dtype: Any, count: int) -> None:
    if column.dtype != dtype or column.shape != (count,):
        raise ValueError("its columns do not fit together")


def _numbers(column: Any, count: int, low: int, end: int) -> None:
    """Check that a column has so many numbers, all in [low, end)."""
    if column.dtype.kind != "i" or column.shape != (count,):
        raise ValueError("its columns do not fit together")
    if count and not low <= int(column.min()) <= int(column.max()) < end:
        raise ValueError("a column has a number that is out of its range")


def _texts(*values: Any) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("it has something else in place of a text")


# -- tables of the first version, which were JSON --------------------------------------------
def _first_version(found: dict[str, Any]) -> Record:
    versions = [
        Version(_integer(size), _integer(modified), etag)
        for size, modified, etag in zip(
            found["sizes"], found["modified"], found["etags"], strict=True
        )
    ]
    _texts(*found["locations"], *found["etags"])
    files = Files.of(found["locations"], versions, map(bool, found["by_value"]))
    record = Record(files, _integers(found["part_file"]), _integers(found["part_number"]))
    _numbers(record.part_file, len(record.part_file), 0, len(files.locations))
    for each in found["axes"]:
        axis = each["group"], each["dimension"]
        places = record.places[axis] = _integers(each["places"])
        lengths = _integers(each["lengths"])
        _numbers(places, len(record.part_file), -1, len(lengths))
        _texts(*each["names"])
        rows = files.rows(each["names"])
        if len(rows) != len(lengths):
            raise ValueError("its columns do not fit together")
        # a file that named a block may have been taken out
        for row, block in zip(record.part_file.tolist(), places.tolist(), strict=True):
            if block >= 0 and rows[block] < 0:
                rows[block] = row
        record.blocks[axis] = Blocks(
            each["order"],
            lengths,
            Extents.of(_extents(each["extents"], len(lengths))),
            np.maximum(rows, 0),
        )
    record.templates = found["templates"]
    return record


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _MOST:
        raise ValueError(f"a column holds {value!r} in place of a number")
    return value


def _integers(values: Any) -> npt.NDArray[np.int64]:
    return np.asarray([*map(_integer, values)], np.int64)


def _extents(columns: Any, count: int) -> list[Extent | None]:
    if isinstance(columns, int):
        return [None] * count
    kinds = columns["kinds"]
    names = ("kind", "low", "high", "falling", "digest")
    found: list[Extent | None] = []
    for kind, low, high, falling, digest in zip(*(columns[n] for n in names), strict=True):
        if _integer(kind) < 0:
            found.append(None)
            continue
        for end in (low, high):
            if isinstance(end, bool) or not isinstance(end, int | float | str):
                raise ValueError("an end is no number and no text")
        found.append(Extent(kinds[kind], low, high, bool(falling), int(digest[:8], 16)))
    return found
