"""Write an archive into a session: move old chunks, and put new ones beside them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import zarr

from icechunk import InvalidInputError, Session
from icechunk.base.rectilinear import rectilinear_chunks
from icechunk.kerchunk.placing import clear_chunks, move_chunks, place_tables
from icechunk.kerchunk.tables import IN_PLACE, ChunkTable, StringHeap
from icechunk.repository.archive_tables import FIELD, Named
from icechunk_dask.archives.bundles import Payload
from icechunk_dask.archives.columns import heap_of, joined_heaps
from icechunk_dask.archives.combine import Template, recode
from icechunk_dask.archives.cutting import clip, is_clipped, with_chunks_of, without_last
from icechunk_dask.archives.fitting import Fitted
from icechunk_dask.archives.grids import Edges, is_short, regular, with_edges
from icechunk_dask.archives.group import ArchiveGroup
from icechunk_dask.archives.native import selection, write_together
from icechunk_dask.archives.parts import Axis, Part, Scan, group_of
from icechunk_dask.archives.record import Files, Record
from icechunk_dask.archives.report import VariableReport
from icechunk_dask.archives.sources import location_of

__all__ = ["Writing"]

#: Arrays of values up to this many bytes are rewritten as a whole.
_WHOLE: Final = 1 << 28
#: Blocks of values are written together, up to this many bytes and this many blocks.
_FLUSHED: Final = 1 << 26
_MANY: Final = 1024


@dataclass
class _Array:
    """One array of the archive while it is being written."""

    name: str
    path: str
    template: Template
    axes: dict[int, Axis]
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    report: VariableReport
    old_edges: dict[int, Edges]
    edges: dict[int, Edges]
    seen: set[tuple[int, ...]] = field(default_factory=set)
    small: list[tuple[tuple[int, ...], npt.NDArray[Any]]] = field(default_factory=list)
    later: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def chunk_of(self, place: Sequence[int]) -> tuple[int, ...]:
        """Return the chunk that begins at a position, or the next one."""
        return tuple(
            int(np.searchsorted(self.edges[i], at)) if i in self.edges else -(-at // size)
            for i, (at, size) in enumerate(zip(place, self.template.chunks, strict=True))
        )


class Writing:
    """Writes what was fitted.

    Parameters
    ----------
    session : Session
        Writable.
    archive : ArchiveGroup
        As it was before.
    fitted : Fitted
    scans : mapping of str to Scan
        By URL.
    read : callable
        Returns the values of a variable of a part, as the file stores them.
    base : callable
        Returns a session that reads the archive as it was.
    """

    def __init__(
        self,
        session: Session,
        archive: ArchiveGroup,
        fitted: Fitted,
        scans: Mapping[str, Scan],
        read: Callable[[Part, str], npt.NDArray[Any]],
        base: Callable[[], Session],
    ) -> None:
        self._session = session
        self._archive = archive
        self._fitted = fitted
        self._scans = scans
        self._read = read
        self._base = base
        self._old = {axis: blocks.starts() for axis, blocks in archive.record.blocks.items()}
        self._new = fitted.placement.starts()
        self._is_new = archive.is_empty
        self.referred: set[str] = set()

    def write(self) -> dict[str, VariableReport]:
        """Write everything; return what became of each variable."""
        fitted = self._fitted
        if self._is_new and fitted.parts:
            self._make_groups(fitted.parts[0])
        arrays = [self._array(name, template) for name, template in fitted.templates.items()]
        for array in arrays:
            self._prepare(array)
        # what was packed together is unpacked once, for all arrays
        for bundle, same in groupby(range(len(fitted.parts)), lambda i: fitted.parts[i].bundle):
            batch = list(same)
            payloads = [fitted.parts[i].payload() for i in batch]
            modified = self._modified(batch)
            for array in arrays:
                self._place(array, batch, payloads, modified)
            bundle.drop()
        for array in arrays:
            self._write_values(array)
        self._finish(arrays)
        return {array.name: array.report for array in arrays}

    # -- nodes -------------------------------------------------------------------------
    def _make_groups(self, part: Part) -> None:
        session, root = self._session, self._archive.root
        node = session.tree.get(root)
        if node is not None and node.is_array:
            raise InvalidInputError(f"{root!r} is an array; name another group")
        parents = [root[:i] for i, c in enumerate(root) if c == "/" and i]
        for path in ["/", *parents]:
            if session.tree.get(path) is None:
                session.set_metadata_document(path, _group_document({}))
        for within, attributes in sorted(part.schema.groups.items()):
            path = f"{root.rstrip('/')}/{within}".rstrip("/") or "/"
            session.set_metadata_document(path, _group_document(attributes))

    def _array(self, name: str, template: Template) -> _Array:
        group = group_of(name)
        axes = {
            i: (group, dim)
            for i, dim in enumerate(template.dimensions)
            if (group, dim) in self._new
        }
        old, new = list(template.shape), list(template.shape)
        for i, axis in axes.items():
            old[i] = int(self._old[axis][-1]) if axis in self._old else 0
            new[i] = int(self._new[axis][-1])
        path = f"{self._archive.root.rstrip('/')}/{name}"
        report = VariableReport(template.by_value)
        edges = self._fitted.edges.get(name, {})
        for i in edges:
            sizes = np.unique(np.diff(edges[i]))
            report.chunk_lengths[template.dimensions[i]] = (
                f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
            )
        before = {i: template.edges.get(i, regular(old[i], template.chunks[i])) for i in edges}
        return _Array(name, path, template, axes, tuple(old), tuple(new), report, before, edges)

    def _resize(self, array: _Array, shape: tuple[int, ...], field: Any = None) -> None:
        document = {**array.template.document, "shape": list(shape)}
        document = with_edges(document, array.edges)
        if field is not None:
            document[FIELD] = field
        self._session.set_metadata_document(array.path, json.dumps(document).encode())

    def _opened(self, session: Session, array: _Array, mode: Literal["r", "r+"] = "r+") -> Any:
        with rectilinear_chunks():
            return zarr.open_array(session.store, path=array.path.strip("/"), mode=mode)

    # -- what is there already -------------------------------------------------------------
    def _prepare(self, array: _Array) -> None:
        """Make room: resize an array, and move its chunks."""
        if self._is_new:
            self._resize(array, array.new_shape)
            return
        if not array.axes:
            return
        moves = [axis for axis in array.axes.values() if self._moves(axis)]
        if array.new_shape != array.old_shape or moves:
            # while chunks move, there must be room for the old places too
            self._make_room(array)
        if moves:
            self._move(array)
        if moves or array.edges:
            self._resize(array, array.new_shape)
        if self._fitted.taken_out:
            self._clear(array)

    def _make_room(self, array: _Array) -> None:
        edges = array.edges
        shape = tuple(map(max, array.old_shape, array.new_shape))
        # as many chunks as before or after, whichever is more
        array.edges = {}
        for i, old in array.old_edges.items():
            most = max(edges[i], old, key=len)
            array.edges[i] = np.append(most, most[-1] + shape[i] + 1)
        self._resize(array, shape)
        array.edges = edges

    def _moves(self, axis: Axis) -> bool:
        """Whether old blocks have moved, or are gone."""
        moved = self._fitted.placement.moved[axis]
        return not np.array_equal(moved, np.arange(len(moved)))

    def _clear(self, array: _Array) -> None:
        """Remove what only the removed files had in blocks that they shared with others."""
        kept = self._fitted.kept
        axes = list(array.axes.values())
        none = np.full(len(kept.part_file), -1)
        columns = [kept.places.get(axis, none).tolist() for axis in axes]
        shared = set(zip(*columns, strict=True))
        boxes, filled = [], []
        for places in self._fitted.taken_out:
            own = tuple(places.get(axis, -1) for axis in axes)
            to = [
                int(self._fitted.placement.moved[axis][index]) if index >= 0 else -1
                for axis, index in zip(axes, own, strict=True)
            ]
            if own in shared or min(to) < 0:
                continue
            ends = [(0, length) for length in array.new_shape]
            for (i, axis), index in zip(array.axes.items(), to, strict=True):
                ends[i] = int(self._new[axis][index]), int(self._new[axis][index + 1])
            if array.edges:
                # blocks begin and end with chunks
                first = array.chunk_of([low for low, _ in ends])
                last = array.chunk_of([high for _, high in ends])
                boxes.append(list(zip(first, last, strict=True)))
                continue
            pairs = list(zip(ends, array.template.chunks, array.new_shape, strict=True))
            if any(low % size or (high % size and high != n) for (low, high), size, n in pairs):
                filled.append(tuple(slice(low, high) for low, high in ends))
            else:
                boxes.append([(low // size, -(-high // size)) for (low, high), size, _ in pairs])
        clear_chunks(self._session, array.path, boxes)
        for region in filled:
            opened = self._opened(self._session, array)
            opened[region] = opened.fill_value

    def _move(self, array: _Array) -> None:
        chunks = array.template.chunks
        targets = {
            i: self._targets_in(array, i) if i in array.edges else self._targets(axis, chunks[i])
            for i, axis in array.axes.items()
        }
        aligned = {i: target for i, target in targets.items() if target is not None}
        if len(aligned) == len(targets):
            move_chunks(self._session, array.path, aligned)
            return
        if not array.template.by_value:
            raise InvalidInputError(
                f"{array.name}: files of the archive would have to move by other than whole "
                f"chunks of {chunks}; virtualize all of the files into another group"
            )
        base = self._opened(self._base(), array, "r")
        opened = self._opened(self._session, array)
        blocks = self._kept_blocks(array)
        nowhere = {
            i: np.full(-(-n // c), -1, np.int64)
            for i, (n, c) in enumerate(zip(array.old_shape, chunks, strict=True))
        }
        move_chunks(self._session, array.path, nowhere)
        if math.prod(array.old_shape) * opened.dtype.itemsize <= _WHOLE:
            before = np.asarray(base[...])
            after = np.full(array.new_shape, opened.fill_value, before.dtype)
            for old, new, shape in blocks:
                after[selection(new, shape)] = before[selection(old, shape)]
            opened[tuple(slice(0, n) for n in array.new_shape)] = after
            return
        for old, new, shape in blocks:
            opened[selection(new, shape)] = base[selection(old, shape)]

    def _targets(self, axis: Axis, size: int) -> npt.NDArray[np.int64] | None:
        """Return where chunks go along an axis; None if they do not align with blocks."""
        old, new = self._old[axis], self._new[axis]
        moved = self._fitted.placement.moved[axis]
        length, grown = int(old[-1]), int(new[-1])
        target = np.full(-(-length // size), -1, np.int64)
        # blocks at the beginning that stay in place need no boundaries between them
        stays = moved == np.arange(len(moved))
        count = len(stays) if stays.all() else int(stays.argmin())
        rest = int(old[count])
        target[: rest // size] = np.arange(rest // size)
        if rest % size:
            if rest != length or rest != grown:
                return None
            target[rest // size] = rest // size
        for index in range(count, len(moved)):
            to = int(moved[index])
            if to < 0:
                continue
            start, end, there = int(old[index]), int(old[index + 1]), int(new[to])
            last = end == length and there + end - start == grown
            if start % size or there % size or (end % size and not last):
                return None
            number = -(-(end - start) // size)
            target[start // size : start // size + number] = np.arange(number) + there // size
        return target

    def _targets_in(self, array: _Array, i: int) -> npt.NDArray[np.int64]:
        """Return where chunks of several lengths go along an axis."""
        axis, edges, grown = array.axes[i], array.old_edges[i], array.edges[i]
        old, new = self._old[axis], self._new[axis]
        target = np.full(len(edges) - 1, -1, np.int64)
        for index, to in enumerate(self._fitted.placement.moved[axis].tolist()):
            if to >= 0:
                # if two blocks share a chunk, the first one decides
                first, last = np.searchsorted(edges, old[index : index + 2]).tolist()
                begin = int(np.searchsorted(grown, int(new[to])))
                target[first:last] = begin + np.arange(last - first)
        return target

    def _write_cut(self, array: _Array) -> None:
        """Write the values of the old last chunks, if they reached beyond the files."""
        base = None
        for i in (i for i in array.edges if (array.name, i) in self._fitted.cut):
            base = base or self._opened(self._base(), array, "r")
            opened = self._opened(self._session, array)
            begin, end = int(array.old_edges[i][-2]), array.old_shape[i]
            for old, new, shape in self._kept_blocks(array):
                if old[i] + shape[i] < end:
                    continue
                # the chunk may begin in an earlier block, whose place is still before it
                low, high, size = list(old), list(new), list(shape)
                low[i], high[i], size[i] = begin, new[i] + begin - old[i], end - begin
                first = array.chunk_of(high)
                last = array.chunk_of([at + n for at, n in zip(high, size, strict=True)])
                # the old chunk is longer
                clear_chunks(self._session, array.path, [list(zip(first, last, strict=True))])
                block = base[selection(low, size)]
                opened[selection(high, size)] = block
                array.report.count_values(block, "its chunk ended beyond its file")

    def _kept_blocks(
        self, array: _Array
    ) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Return where each kept block was, where it is now, and its shape."""
        choices: list[list[tuple[int, int, int]]] = []
        for i, length in enumerate(array.old_shape):
            axis = array.axes.get(i)
            if axis is None:
                choices.append([(0, 0, length)])
                continue
            old, new = self._old[axis], self._new[axis]
            choices.append(
                [
                    (int(old[index]), int(new[to]), int(old[index + 1] - old[index]))
                    for index, to in enumerate(self._fitted.placement.moved[axis].tolist())
                    if to >= 0
                ]
            )
        return [
            tuple(zip(*choice, strict=True))  # type: ignore[misc]
            for choice in product(*choices)
        ]

    # -- what is new -------------------------------------------------------------------
    def _place(
        self,
        array: _Array,
        batch: list[int],
        payloads: list[Payload],
        modified: Callable[[ChunkTable], npt.NDArray[np.uint32]],
    ) -> None:
        fitted = self._fitted
        tables, starts = [], []
        for i, payload in zip(batch, payloads, strict=True):
            part, places = fitted.parts[i], fitted.placement.of(i)
            start = self._start(array, places)
            if start is None or array.name not in part.schema.variables:
                continue
            if not array.axes or self._is_shared(array, places):
                array.seen.add(start)
            variable = part.schema.variables[array.name]
            if not array.axes:
                payload = part.common_payload()
            values = payload.values.get(array.name)
            if (i, array.name) in fitted.cured:
                array.later.append((i, start))
                continue
            last = fitted.short.get((i, array.name))
            if last is not None and last.short == "own":
                array.later.append((i, start))
            if values is not None:
                block = self._recoded(array, part, values)
                array.small.append((start, block))
                array.report.count_values(block, variable.by_value)
            else:
                table = self._fitting(array, i, payload.tables[array.name])
                tables.append(table)
                starts.append(array.chunk_of(start))
                if (table.location != IN_PLACE).any():
                    self.referred.add(part.url)
        size = sum(block.nbytes for _, block in array.small)
        if size > _FLUSHED or len(array.small) > _MANY:
            write_together(self._opened(self._session, array), array.small)
            array.small.clear()
        times = [modified(table) for table in tables]
        virtual, inline = place_tables(self._session, array.path, tables, starts, times)
        array.report.virtual += virtual
        array.report.inline += inline

    def _fitting(self, array: _Array, i: int, table: ChunkTable) -> ChunkTable:
        """Return where the chunks of a part lie on the archive's grid."""
        part, chunks = self._fitted.parts[i], array.template.chunks
        variable = part.schema.variables[array.name]
        shape = part.shape(array.name)
        if not array.edges:
            if chunks and variable.chunks[0] != chunks[0]:
                fitting = with_chunks_of(table, variable.chunks[0], chunks[0], shape[0])
                assert fitting is not None, "it was looked at before"
                return fitting
            return table
        for axis in self._short(array, i):
            if is_clipped(variable, axis):
                table = clip(table, variable.chunks[0], shape[0])
            else:
                table = without_last(table, axis, shape[axis] // variable.chunks[axis])
        return table

    def _short(self, array: _Array, i: int) -> Iterator[int]:
        """Yield the axes along which the last chunk of a part reaches beyond it."""
        part, places = self._fitted.parts[i], self._fitted.placement.of(i)
        chunks = part.schema.variables[array.name].chunks
        for axis, edges in array.edges.items():
            start = int(self._new[array.axes[axis]][places[array.axes[axis]]])
            if is_short(edges, start, part.shape(array.name)[axis], chunks[axis]):
                yield axis

    def _modified(self, batch: list[int]) -> Callable[[ChunkTable], npt.NDArray[np.uint32]]:
        """Return a function that tells when the file of each row of a table was modified."""
        known: dict[str, int] = {}
        for i in batch:
            scan = self._scans[self._fitted.parts[i].url]
            for location, _ in scan.others:
                self._session.virtual.validate(location)
            known.update(scan.others)
            known[location_of(scan.url)] = scan.version.last_modified
        times: dict[int, tuple[StringHeap, npt.NDArray[np.uint32]]] = {}

        def modified(table: ChunkTable) -> npt.NDArray[np.uint32]:
            heap = table.locations
            if id(heap) not in times:
                # rows with inline data may have no location
                found = [*(known.get(location, 0) for location in heap), 0]
                times[id(heap)] = heap, np.asarray(found, np.uint32)
            return times[id(heap)][1][table.location]

        return modified

    def _write_values(self, array: _Array) -> None:
        """Write values, after the chunks that refer to files are in place."""
        self._write_cut(array)
        if not array.small and not array.later:
            return
        opened = self._opened(self._session, array)
        if array.small:
            write_together(opened, array.small)
        for i, start in array.later:
            part, mismatch = self._fitted.parts[i], self._fitted.cured.get((i, array.name))
            values = self._read(part, array.name)
            if mismatch is None:
                # only the last chunks: the others refer to the file
                mismatch = self._fitted.short[i, array.name]
                sizes = part.schema.variables[array.name].chunks
                skipped = [
                    tuple(n // size * size if a == axis else 0 for a, (n, size) in pairs)
                    for axis in self._short(array, i)
                    for pairs in [list(enumerate(zip(values.shape, sizes, strict=True)))]
                ]
            else:
                skipped = [(0,) * values.ndim]
            for first in skipped:
                block = self._recoded(array, part, values[tuple(slice(n, None) for n in first)])
                at = tuple(map(sum, zip(start, first, strict=True)))
                opened[selection(at, block.shape)] = block
                array.report.count_values(block, mismatch.problem)

    def _start(self, array: _Array, places: Mapping[Axis, int]) -> tuple[int, ...] | None:
        """Return where a part begins in an array; None if it has nothing to write there."""
        if not array.axes:
            # stored once, from the first file
            return None if array.seen or not self._is_new else (0,) * len(array.new_shape)
        start = [0] * len(array.new_shape)
        for i, axis in array.axes.items():
            if axis not in places:
                return None
            start[i] = int(self._new[axis][places[axis]])
        found = tuple(start)
        return None if found in array.seen or self._is_there(array, places) else found

    def _is_shared(self, array: _Array, places: Mapping[Axis, int]) -> bool:
        """Whether several files share a part of an array."""
        group = group_of(array.name)
        return len(set(array.axes.values())) < len([axis for axis in places if axis[0] == group])

    def _is_there(self, array: _Array, places: Mapping[Axis, int]) -> bool:
        """Whether an earlier call has written what several files have in common."""
        return self._is_shared(array, places) and all(
            bool((self._fitted.placement.moved[axis] == places[axis]).any())
            for axis in set(array.axes.values())
        )

    def _recoded(self, array: _Array, part: Part, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            return recode(values, part.schema.variables[array.name], array.template)
        except ValueError as exc:
            raise InvalidInputError(f"{part.url}: {array.name}: {exc}") from None

    # -- the record --------------------------------------------------------------------
    def _finish(self, arrays: list[_Array]) -> None:
        """Write the table of the files, and name it in an array."""
        self.record = self._record()
        table = self.record.save(self._session)
        named = False
        for array in sorted(arrays, key=lambda array: (not array.axes, array.name)):
            node = self._session.tree.require(array.path)
            if not named:
                self._resize(array, array.new_shape, Named(table, array.name).field())
                named = True
            elif FIELD.encode() in node.user_data:
                self._resize(array, array.new_shape)

    def _record(self) -> Record:
        fitted = self._fitted
        kept, placement = fitted.kept, fitted.placement
        files = Files.of(
            [location_of(url) for url in placement.files],
            [self._scans[url].version for url in placement.files],
            [url not in self.referred for url in placement.files],
        )
        own = [placement.files[part.url] for part in fitted.parts]
        numbers = [part.number for part in fitted.parts]
        found = Record(
            kept.files.followed_by(files),
            np.append(kept.part_file, np.asarray(own, np.int64)),
            np.append(kept.part_number, np.asarray(numbers, np.int64)),
            blocks=placement.blocks,
        )
        none = np.full(len(kept.part_file), -1)
        for axis in found.blocks:
            # index -1 means no block, and stays -1
            moved = np.append(placement.moved[axis], -1)
            old = moved[kept.places.get(axis, none)]
            found.places[axis] = np.append(old, placement.places[axis])
        found.templates = {
            name: {
                "meaning": template.meaning,
                "by_value": template.by_value,
                "digest": template.digest.hex(),
            }
            for name, template in fitted.templates.items()
        }
        return found

    def locations(self) -> StringHeap:
        """Return the files that chunks of the archive refer to."""
        kept = self._fitted.kept.files
        before = kept.locations.take(np.flatnonzero(~kept.by_value))
        return joined_heaps(before, heap_of([*map(location_of, self.referred)]))

    def sizes(self) -> dict[str, int]:
        """Return the lengths of the dimensions; the outermost group that has one decides."""
        found: dict[str, int] = {}
        for name, template in sorted(
            self._fitted.templates.items(), key=lambda item: item[0].count("/")
        ):
            array = self._array(name, template)
            for dim, length in zip(template.dimensions, array.new_shape, strict=True):
                found.setdefault(dim, length)
        return found

    def order(self) -> dict[str, str]:
        """Return what sorts the files along each dimension."""
        found: dict[str, str] = {}
        for (_, dim), blocks in self._fitted.placement.blocks.items():
            found.setdefault(dim, blocks.order)
        return found

    def counts(self, reports: Mapping[str, VariableReport]) -> dict[str, int]:
        """Return how many chunks of each kind were added."""
        found: Counter[str] = Counter()
        for report in reports.values():
            found.update({"virtual": report.virtual, "inline": report.inline})
        return dict(found)


def _group_document(attributes: Mapping[str, Any]) -> bytes:
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    return json.dumps(document).encode()
