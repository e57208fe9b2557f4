"""Where the files of an archive go: the blocks along each dimension, old and new.

A dimension of a group is a sequence of blocks. A file is one block of each of its dimensions;
where files are combined along several dimensions, many files share a block. Blocks are sorted
by their coordinate, or by the location of their file where the coordinate says nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk import InvalidInputError
from icechunk_dask.archives.combine import Mismatch
from icechunk_dask.archives.extents import Extent, Extents
from icechunk_dask.archives.parts import Axis, Part
from icechunk_dask.archives.record import Blocks, Record
from icechunk_dask.archives.sources import location_of

__all__ = ["ORDERS", "Placement", "other_kinds", "place"]

ORDERS = ("auto", "coordinate", "url")


@dataclass
class Placement:
    """Where everything goes.

    Attributes
    ----------
    blocks : dict of Axis to Blocks
        The blocks of the archive afterwards.
    moved : dict of Axis to int64[n]
        For each earlier block, which block it becomes; -1 if it is gone.
    places : dict of Axis to int64[m]
        The block of each new part, -1 if it has none.
    files : dict of str to int
        Numbers of the files of new parts, by URL; they follow those that are kept.
    """

    blocks: dict[Axis, Blocks] = field(default_factory=dict)
    moved: dict[Axis, npt.NDArray[np.int64]] = field(default_factory=dict)
    places: dict[Axis, npt.NDArray[np.int64]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def starts(self) -> dict[Axis, npt.NDArray[np.int64]]:
        """Return where each block begins, and where the last one ends."""
        return {axis: blocks.starts() for axis, blocks in self.blocks.items()}

    def of(self, part: int) -> dict[Axis, int]:
        """Return the blocks of a new part."""
        found = {axis: int(column[part]) for axis, column in self.places.items()}
        return {axis: place for axis, place in found.items() if place >= 0}


def other_kinds(
    parts: Sequence[Part], dims: Sequence[str], blocks: Mapping[Axis, Blocks]
) -> list[Mismatch]:
    """Return the parts whose coordinates cannot be compared with those of the others."""
    first: dict[Axis, str] = {}
    for axis, known in blocks.items():
        extent = known.extents[0] if len(known) else None
        if extent is not None:
            first[axis] = extent.kind
    found = []
    for part in parts:
        for axis, extent in part.extents.items():
            kind = first.setdefault(axis, extent.kind)
            if extent.kind != kind and axis[1] in dims:
                problem = f"has {extent.kind}, the others {kind}"
                found.append(Mismatch(part.url, axis[1], problem, False))
    return found


def place(
    parts: Sequence[Part],
    dims: Sequence[str],
    record: Record,
    order: str = "auto",
    expanded: Collection[str] = (),
) -> Placement:
    """Find a place for new parts beside those of an archive.

    Parameters
    ----------
    parts : sequence of Part
        New parts.
    dims : sequence of str
        Along which files are combined.
    record : Record
        What is in the archive, without what is removed.
    order : {"auto", "coordinate", "url"}
        How to sort the blocks of a new archive.
    expanded : collection of str
        Dimensions made from scalars of the files.

    Raises
    ------
    InvalidInputError
        If blocks overlap, or have no coordinate to sort them by.
    """
    found = Placement()
    for part in parts:
        found.files.setdefault(part.url, len(record.files) + len(found.files))
    axes = dict.fromkeys((*record.blocks, *(axis for part in parts for axis in part.lengths)))
    used = {dim for _, dim in axes}
    # outer groups come first: others may follow their order
    for axis in sorted(axes, key=lambda axis: (dims.index(axis[1]), axis[0].count("/"), axis)):
        along = _Along(found, axis, parts, record, unique=len(used) == 1)
        along.place(order, is_scalar=axis[1] in expanded)
    if len(used) > 1:
        # with one dimension no two parts share a place
        _check_places(found, parts, record)
    return found


class _Along:
    """Places parts along one dimension of one group."""

    def __init__(
        self,
        found: Placement,
        axis: Axis,
        parts: Sequence[Part],
        record: Record,
        *,
        unique: bool,
    ) -> None:
        self._found = found
        self._axis = axis
        self._parts = parts
        self._record = record
        self._unique = unique
        known = record.blocks.get(axis, Blocks())
        # blocks without a part are dropped
        alive = np.zeros(len(known), np.bool_)
        places = record.places.get(axis, np.empty(0, np.int64))
        alive[places[places >= 0]] = True
        self._count = len(known)
        self._old = np.flatnonzero(alive)
        self._known = known.take(self._old)
        self._members = [i for i, part in enumerate(parts) if part.lengths.get(axis)]

    def place(self, order: str, *, is_scalar: bool) -> None:
        """Determine the order of the blocks."""
        members = self._members
        extents: list[Extent | None] = [self._parts[i].extents.get(self._axis) for i in members]
        guide = _guide(self._found, self._axis)
        if not self._count:
            # numbers may restart in each file, but a scalar says where its file belongs
            order = _chosen_order(extents, order, unique=self._unique and not is_scalar)
            if order == "url" and guide is not None:
                # this group gives no order, but another one does
                theirs = [self._parts[i].extents.get(guide) for i in members]
                if None not in theirs:
                    extents, order = theirs, "coordinate"
        else:
            order = self._known.order
            if guide is not None:
                extents = [
                    extent or self._parts[i].extents.get(guide)
                    for i, extent in zip(members, extents, strict=True)
                ]
        if order == "coordinate":
            for i, extent in zip(members, extents, strict=True):
                if extent is None:
                    raise InvalidInputError(
                        f"{self._parts[i].url} has no coordinate {self._axis[1]!r} to sort files "
                        f"by{_of(self._axis)}; pass order='url' for a new archive that is sorted "
                        "by the names of its files"
                    )
        blocks = self._all(order, extents)
        self._arrange(blocks, self._keys(blocks))

    def _all(self, order: str, extents: Sequence[Extent | None]) -> Blocks:
        """Return the known blocks, followed by one for each new part."""
        known, members = self._known, self._members
        lengths = [self._parts[i].lengths[self._axis] for i in members]
        files = [self._found.files[self._parts[i].url] for i in members]
        return Blocks(
            order,
            np.append(known.lengths, np.asarray(lengths, np.int64)),
            known.extents.followed_by(Extents.of(extents)),
            np.append(known.files, np.asarray(files, np.int64)),
        )

    def _keys(self, blocks: Blocks) -> npt.NDArray[Any]:
        """Return the sort keys of blocks."""
        if blocks.order == "coordinate":
            return blocks.extents.low
        # UTF-8 bytes sort in the order of their characters
        names = [name.encode() for name in self._record.files.locations.take(self._known.files)]
        for i in self._members:
            part = self._parts[i]
            name = location_of(part.url)
            names.append((name if part.number == 0 else f"{name}#{part.number:06}").encode())
        return np.asarray(names, np.bytes_)

    def _arrange(self, blocks: Blocks, keys: npt.NDArray[Any]) -> None:
        found, axis, extents = self._found, self._axis, blocks.extents
        rows = _sorted(keys, falling=blocks.order == "coordinate" and bool(extents.falling.any()))
        keys, ordered = keys[rows], extents.take(rows)
        same = np.zeros(len(rows), np.bool_)
        same[1:] = (
            (keys[1:] == keys[:-1])
            & (ordered.kind[1:] == ordered.kind[:-1])
            & (ordered.digest[1:] == ordered.digest[:-1])
            & (ordered.high[1:] == ordered.high[:-1])
        )
        # of equal blocks, the first stays; it is the one that was there before
        if self._unique and same.any():
            second = int(same.argmax())
            first, new = sorted((int(rows[second - 1]), int(rows[second])))
            ways = (
                "take one of them out, with icechunk_dask.remove_files if it is in the archive, or "
                "pass order='url' for a new archive that is sorted by the names of its files"
            )
            names = [self._names(row) for row in (new, first)]
            if all(names) and not names[0] & names[1]:
                ways = (
                    f"they have different variables ({min(names[0])!r}, {min(names[1])!r}); put "
                    "the files of each into a group of its own, with a call for each group=..., "
                    "and join what is opened with xarray.merge"
                )
            raise InvalidInputError(
                f"{self._url(blocks, new)} and {self._url(blocks, first)} have the same "
                f"{axis[1]!r}{_of(axis)}: {ways}"
            )
        number = np.cumsum(~same) - 1
        kept = rows[~same]
        if blocks.order == "coordinate":
            self._check_overlaps(blocks, kept)
        where = np.empty(len(rows), np.int64)
        where[rows] = number
        found.blocks[axis] = blocks.take(kept)
        found.moved[axis] = np.full(self._count, -1, np.int64)
        found.moved[axis][self._old] = where[: len(self._old)]
        found.places[axis] = np.full(len(self._parts), -1, np.int64)
        found.places[axis][self._members] = where[len(self._old) :]

    def _check_overlaps(self, blocks: Blocks, rows: npt.NDArray[np.int64]) -> None:
        axis = self._axis
        low, high = blocks.extents.low[rows], blocks.extents.high[rows]
        after = low[1:] >= low[:-1]
        apart = np.where(after, low[1:] > high[:-1], low[:-1] > high[1:])
        for i in np.flatnonzero(~apart.astype(np.bool_)).tolist():
            other, new = sorted((int(rows[i]), int(rows[i + 1])))
            raise InvalidInputError(
                f"{self._url(blocks, new)}: its {axis[1]!r}{_of(axis)}, "
                f"{_shown(blocks.extents[new])}, overlaps that of {self._url(blocks, other)}, "
                f"{_shown(blocks.extents[other])}; files may not overlap"
            )

    def _names(self, row: int) -> set[str]:
        """Return the data variables of a new block that are combined along the dimension."""
        number = row - len(self._old)
        if number < 0:
            return set()
        variables = self._parts[self._members[number]].schema.variables
        dim = self._axis[1]
        return {
            name
            for name, variable in variables.items()
            if dim in variable.dimensions and not variable.by_value
        }

    def _url(self, blocks: Blocks, row: int) -> str:
        """Return the name of a block in messages."""
        number = row - len(self._old)
        if number >= 0:
            return self._parts[self._members[number]].url
        return self._record.files.locations[int(blocks.files[row])]


def _sorted(keys: npt.NDArray[Any], *, falling: bool) -> npt.NDArray[np.int64]:
    """Return the sort order of keys; equal keys keep their order."""
    if falling:
        return (len(keys) - 1 - np.argsort(keys[::-1], kind="stable"))[::-1]
    return np.argsort(keys, kind="stable")


def _of(axis: Axis) -> str:
    return f" in the group {axis[0]!r}" if axis[0] else ""


def _chosen_order(extents: Sequence[Extent | None], order: str, *, unique: bool) -> str:
    """Return how new blocks are sorted."""
    if order != "auto":
        return order
    if None in extents:
        return "coordinate" if any(extents) else "url"
    digests = {extent.digest for extent in extents if extent is not None}
    return "url" if unique and len(digests) == 1 and len(extents) > 1 else "coordinate"


def _guide(found: Placement, axis: Axis) -> Axis | None:
    """Return the same dimension of another group that is sorted by its coordinate."""
    for other, blocks in found.blocks.items():
        if other[1] == axis[1] and blocks.order == "coordinate" and len(blocks):
            return other
    return None


def _shown(extent: Extent | None) -> str:
    if extent is None:
        return "unknown"
    ends = [extent.low, extent.high]
    if extent.kind == "times of the calendar 'standard'":
        start = datetime(1970, 1, 1, tzinfo=UTC)
        try:
            times = [start + timedelta(microseconds=end) for end in ends]
        except OverflowError:
            times = []
        ends = [time.strftime("%Y-%m-%d %H:%M:%S") for time in times] or ends
    return f"{ends[0]} to {ends[1]}"


def _check_places(found: Placement, parts: Sequence[Part], record: Record) -> None:
    """Check that no two parts have different values of a variable at one place."""
    taken: dict[tuple[Any, ...], tuple[str, bytes]] = {}
    for i, part in enumerate(parts):
        places = found.of(i)
        digests = dict(part.digests)
        for name, variable in part.schema.variables.items():
            group = name.rpartition("/")[0]
            own = [places.get((group, dim)) for dim in variable.dimensions]
            if all(index is None for index in own):
                continue
            value = part.url, digests.get(name, b"")
            url, known = taken.setdefault((name, *own), value)
            if url != part.url and (not known or known != value[1]):
                raise InvalidInputError(
                    f"{part.url} and {url} have different values of {name!r} at the same place"
                )
    if not len(record.part_file):
        return
    there: dict[tuple[int, ...], str] = {}
    axes = list(record.places)
    # index -1 means no place, and stays -1
    columns = [np.append(found.moved[axis], -1)[record.places[axis]].tolist() for axis in axes]
    for file, *place_of in zip(record.part_file.tolist(), *columns, strict=True):
        there[tuple(place_of)] = record.files.locations[file]
    for i, part in enumerate(parts):
        places = found.of(i)
        other = there.get(tuple(places.get(axis, -1) for axis in axes))
        if other is not None and places:
            raise InvalidInputError(
                f"{part.url} has the same place as {other}, which is in the archive"
            )
