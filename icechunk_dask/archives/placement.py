"""Where the files of an archive go: the blocks along each dimension, old and new.

A dimension of a group is a sequence of blocks. A file is one block of each of its dimensions;
where files are combined along several dimensions, many files share a block. Blocks are sorted
by their coordinate, or by the location of their file where the coordinate says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk import InvalidInputError
from icechunk_dask.archives.combine import Mismatch
from icechunk_dask.archives.extents import Extent
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
        Those of the archive afterwards.
    moved : dict of Axis to int64[n]
        Of each block that was there before, which block it becomes; -1 if it is gone.
    places : list of dict of Axis to int
        Of each new part its blocks.
    """

    blocks: dict[Axis, Blocks] = field(default_factory=dict)
    moved: dict[Axis, npt.NDArray[np.int64]] = field(default_factory=dict)
    places: list[dict[Axis, int]] = field(default_factory=list)

    def starts(self) -> dict[Axis, npt.NDArray[np.int64]]:
        """Return where blocks begin, and at last where they end."""
        return {axis: blocks.starts() for axis, blocks in self.blocks.items()}


@dataclass(slots=True, eq=False)
class _Item:
    """A block before it has its place."""

    key: Any
    length: int
    extent: Extent | None
    name: str
    url: str
    old: int = -1


def other_kinds(
    parts: Sequence[Part], dims: Sequence[str], blocks: Mapping[Axis, Blocks]
) -> list[Mismatch]:
    """Return the parts whose coordinates cannot be compared with those of the others."""
    first: dict[Axis, str] = {}
    for axis, known in blocks.items():
        first.update((axis, e.kind) for e in known.extents[:1] if e is not None)
    found = []
    for part in parts:
        for axis, extent in part.extents.items():
            kind = first.setdefault(axis, extent.kind)
            if extent.kind != kind and axis[1] in dims:
                problem = f"has {extent.kind}, the others {kind}"
                found.append(Mismatch(part.url, axis[1], problem, False))
    return found


def place(
    parts: Sequence[Part], dims: Sequence[str], record: Record, order: str = "auto"
) -> Placement:
    """Find a place for new parts beside those that are in an archive.

    Parameters
    ----------
    parts : sequence of Part
        New ones.
    dims : sequence of str
        Along which files are combined.
    record : Record
        What is in the archive, without what is taken out.
    order : {"auto", "coordinate", "url"}
        What blocks of a new archive are sorted by.

    Raises
    ------
    InvalidInputError
        If blocks overlap, or have no coordinate to sort them by.
    """
    found = Placement(places=[{} for _ in parts])
    used = {dim for part in parts for _, dim in part.lengths} | {dim for _, dim in record.blocks}
    axes = list(record.blocks)
    for part in parts:
        axes.extend(axis for axis in part.lengths if axis not in axes)
    # the groups outside come first: others may follow their order
    for axis in sorted(axes, key=lambda axis: (dims.index(axis[1]), axis[0].count("/"), axis)):
        _place_along(found, axis, parts, record, order, unique=len(used) == 1)
    _check_places(found, parts, record)
    return found


def _place_along(
    found: Placement,
    axis: Axis,
    parts: Sequence[Part],
    record: Record,
    order: str,
    *,
    unique: bool,
) -> None:
    known = record.blocks.get(axis, Blocks())
    # blocks without a part go
    alive = set(record.places.get(axis, ())) - {-1}
    members = [i for i, part in enumerate(parts) if part.lengths.get(axis)]
    extents = {i: parts[i].extents.get(axis) for i in members}
    if not known.lengths:
        order = _chosen_order(list(extents.values()), order, unique=unique)
        if order == "url" and (guide := _guide(found, axis)) is not None:
            # this group says nothing, and another one does
            theirs = {i: parts[i].extents.get(guide) for i in members}
            if None not in theirs.values():
                extents, order = theirs, "coordinate"
    else:
        order = known.order
        guide = _guide(found, axis)
        for i in members:
            if extents[i] is None and guide is not None:
                extents[i] = parts[i].extents.get(guide)
    items = [
        _Item(_key(order, extent, name), length, extent, name, name, i)
        for i, (length, extent, name) in enumerate(
            zip(known.lengths, known.extents, known.names, strict=True)
        )
        if i in alive
    ]
    place_of = {(item.extent and item.extent.digest, item.key): item for item in items}
    new: dict[int, _Item] = {}
    for i in members:
        part, extent = parts[i], extents[i]
        if order == "coordinate" and extent is None:
            raise InvalidInputError(
                f"{part.url} has no coordinate {axis[1]!r} to sort files by{_of(axis)}; pass "
                "order='url' for a new archive that is sorted by the names of its files"
            )
        name = location_of(part.url)
        key = _key(order, extent, name if part.number == 0 else f"{name}#{part.number:06}")
        item = _Item(key, part.lengths[axis], extent, name, part.url)
        same = place_of.get((extent and extent.digest, key))
        if same is None:
            place_of[extent and extent.digest, key] = item
            items.append(item)
        elif unique:
            raise InvalidInputError(
                f"{part.url} and {same.url} have the same {axis[1]!r}{_of(axis)}: take one of "
                "them out, with icechunk_dask.remove_files if it is in the archive, or pass "
                "order='url' for a new archive that is sorted by the names of its files"
            )
        new[i] = same or item
    falling = any(item.extent is not None and item.extent.falling for item in items)
    items.sort(key=lambda item: item.key, reverse=falling and order == "coordinate")
    if order == "coordinate":
        _check_overlaps(items, axis)
    where = {id(item): n for n, item in enumerate(items)}
    found.blocks[axis] = Blocks(
        order,
        [item.length for item in items],
        [item.extent for item in items],
        [item.name for item in items],
    )
    moved = np.full(len(known.lengths), -1, np.int64)
    for item in items:
        if item.old >= 0:
            moved[item.old] = where[id(item)]
    found.moved[axis] = moved
    for i, item in new.items():
        found.places[i][axis] = where[id(item)]


def _of(axis: Axis) -> str:
    return f" in the group {axis[0]!r}" if axis[0] else ""


def _key(order: str, extent: Extent | None, name: str) -> Any:
    return extent.low if order == "coordinate" and extent is not None else name


def _chosen_order(extents: Sequence[Extent | None], order: str, *, unique: bool) -> str:
    """Return what new blocks are sorted by."""
    if order != "auto":
        return order
    if None in extents:
        return "coordinate" if any(extents) else "url"
    digests = {extent.digest for extent in extents if extent is not None}
    return "url" if unique and len(digests) == 1 and len(extents) > 1 else "coordinate"


def _guide(found: Placement, axis: Axis) -> Axis | None:
    """Return the same dimension of another group, which is sorted by its coordinate."""
    for other, blocks in found.blocks.items():
        if other[1] == axis[1] and blocks.order == "coordinate" and blocks.lengths:
            return other
    return None


def _check_overlaps(items: Sequence[_Item], axis: Axis) -> None:
    for before, after in pairwise(items):
        if before.extent is None or after.extent is None:
            continue
        low, high = sorted((before.extent, after.extent), key=lambda extent: extent.low)
        if high.low > low.high:
            continue
        new, other = (after, before) if after.old < 0 else (before, after)
        raise InvalidInputError(
            f"{new.url}: its {axis[1]!r}{_of(axis)}, {_shown(new.extent)}, overlaps that of "
            f"{other.url}, {_shown(other.extent)}; files may not overlap"
        )


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
    """Check that no two parts give a variable at one place different values."""
    taken: dict[tuple[Any, ...], tuple[str, bytes]] = {}
    for part, places in zip(parts, found.places, strict=True):
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
    if len({dim for _, dim in found.blocks}) < 2 or not record.part_file:
        return
    # with one dimension blocks differ already
    there: dict[tuple[int, ...], str] = {}
    axes = list(record.places)
    for row, file in enumerate(record.part_file):
        place_of = tuple(
            int(found.moved[axis][record.places[axis][row]])
            if record.places[axis][row] >= 0
            else -1
            for axis in axes
        )
        there[place_of] = record.files.locations[file]
    for part, places in zip(parts, found.places, strict=True):
        other = there.get(tuple(places.get(axis, -1) for axis in axes))
        if other is not None and places:
            raise InvalidInputError(
                f"{part.url} has the same place as {other}, which is in the archive"
            )
