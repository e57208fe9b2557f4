"""Fitting files to an archive, and writing what fits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from icechunk import InvalidInputError, Session
from icechunk.kerchunk.placing import place_tables
from icechunk_dask.archives.combine import (
    Mismatch,
    Placed,
    Template,
    compare,
    misaligned,
    other_kinds,
    place,
    recode,
)
from icechunk_dask.archives.group import ArchiveGroup
from icechunk_dask.archives.scan import Part, Scan, Scanner, Variable

__all__ = ["Fitting"]


class Fitting:
    """Fits files to an archive, and writes them."""

    def __init__(
        self,
        archive: ArchiveGroup,
        dims: tuple[str, ...],
        on_mismatch: str,
        scanner: Scanner,
        scans: Mapping[str, Scan],
    ) -> None:
        self._archive = archive
        self._dims = dims
        self._on_mismatch = on_mismatch
        self._scanner = scanner
        self._scans = scans
        self._left_out: dict[str, list[Mismatch]] = {}
        # what is written by value, because it does not fit
        self._by_value: dict[tuple[int, str], Mismatch] = {}
        self.templates = dict(archive.templates)
        self.placed: list[Placed] = []
        self.order: dict[str, str] = {}
        self.referred: set[str] = set()

    def fit(self, parts: list[Part]) -> None:
        """Find a place for each part.

        Raises
        ------
        InvalidInputError
            If parts contradict each other, and that is an error.
        """
        several = len(parts) > 1 or (parts and self.templates)
        if several and not any(part.length(dim) for part in parts for dim in self._dims):
            raise InvalidInputError(
                f"no variable of {parts[0].url} has one of the dimensions {self._dims}; say "
                "along which of its dimensions to combine files with concat_dims"
            )
        while parts:
            archive = self._archive
            other = list(other_kinds(parts, self._dims, archive.coordinates))
            if other:
                if self._on_mismatch != "skip":
                    raise _contradiction(other, self._on_mismatch)
                parts = self._leave_out(parts, other)
                continue
            placed, self.order = place(parts, self._dims, archive.lengths, archive.coordinates)
            if not archive.templates:
                first = min(placed, key=lambda p: [p.start.get(dim, 0) for dim in self._dims])
                self.templates = {
                    name: Template.of(variable) for name, variable in first.part.variables.items()
                }
            wrong = [
                mismatch
                for each in placed
                for mismatch in (
                    *compare(self.templates, each.part, self._dims),
                    *misaligned(self.templates, each, self._dims),
                )
            ]
            bad = {
                mismatch.url
                for mismatch in wrong
                if self._on_mismatch != "materialize" or not mismatch.curable
            }
            if not bad:
                self.placed = placed
                self._cure(wrong)
                return
            if self._on_mismatch != "skip":
                raise _contradiction([m for m in wrong if m.url in bad], self._on_mismatch)
            # others may fit where these are not: those that differ go before those that
            # only lie behind them
            different = {m.url for m in wrong if "begins at" not in m.problem}
            drop = different or {next(m.url for m in wrong)}
            parts = self._leave_out(parts, [m for m in wrong if m.url in drop])

    def _leave_out(self, parts: Sequence[Part], wrong: Sequence[Mismatch]) -> list[Part]:
        for mismatch in wrong:
            self._left_out.setdefault(mismatch.url, []).append(mismatch)
        return [part for part in parts if part.url not in self._left_out]

    def _cure(self, wrong: Sequence[Mismatch]) -> None:
        by_url: dict[tuple[str, str], Mismatch] = {(m.url, m.variable): m for m in wrong}
        for i, each in enumerate(self.placed):
            for name in each.part.variables:
                mismatch = by_url.get((each.part.url, name))
                if mismatch is not None:
                    self._by_value[i, name] = mismatch

    # -- the report --------------------------------------------------------------------
    def skipped(self) -> dict[str, tuple[str, ...]]:
        """Return why files were left out."""
        return {
            url: tuple(f"{m.variable}: {m.problem}" for m in found)
            for url, found in sorted(self._left_out.items())
        }

    def cured(self) -> dict[str, tuple[str, ...]]:
        """Return what of files was written by value, and why."""
        found: dict[str, list[str]] = {}
        for mismatch in self._by_value.values():
            problem = f"{mismatch.variable}: {mismatch.problem}"
            found.setdefault(mismatch.url, []).append(problem)
        return {url: tuple(problems) for url, problems in sorted(found.items())}

    def files(self) -> tuple[str, ...]:
        """Return the files that have a place."""
        return tuple(dict.fromkeys(each.part.url for each in self.placed))

    def sizes(self) -> dict[str, int]:
        """Return the lengths of the dimensions."""
        found: dict[str, int] = {}
        for template in self.templates.values():
            found.update(zip(template.dimensions, self._shape(template), strict=True))
        return found

    def _shape(self, template: Template) -> tuple[int, ...]:
        return tuple(
            self._length(dim, n) for dim, n in zip(template.dimensions, template.shape, strict=True)
        )

    def _length(self, dim: str, one: int) -> int:
        if dim not in self._dims:
            return one
        ends = [p.start[dim] + p.part.length(dim) for p in self.placed if dim in p.start]
        return max([self._archive.lengths.get(dim, 0), *ends])

    # -- writing -----------------------------------------------------------------------
    def write(self, session: Session, root: str) -> dict[str, int]:
        """Write all of it into a session; return how many chunks are virtual."""
        first = self.placed[0].part
        if not self._archive.templates:
            self._make_groups(session, root, first)
        virtual = 0
        for name, template in self.templates.items():
            path = f"{root.rstrip('/')}/{name}"
            combined = bool(set(self._dims) & set(template.dimensions))
            if not combined and self._archive.templates:
                continue
            shape = self._shape(template)
            if not self._archive.templates or shape != template.shape:
                document = {**template.document, "shape": list(shape)}
                session.set_metadata_document(path, json.dumps(document).encode())
            virtual += self._write_array(session, path, name, template, combined)
        return {"virtual": virtual}

    def _make_groups(self, session: Session, root: str, part: Part) -> None:
        node = session.tree.get(root)
        if node is not None and node.is_array:
            raise InvalidInputError(f"{root!r} is an array; name another group")
        parents = [root[:i] for i, c in enumerate(root) if c == "/" and i]
        for path in ["/", *parents]:
            if session.tree.get(path) is None:
                session.set_metadata_document(path, _group_document({}))
        for within, attributes in sorted(part.groups.items()):
            path = f"{root.rstrip('/')}/{within}".rstrip("/") or "/"
            session.set_metadata_document(path, _group_document(attributes))

    def _write_array(
        self, session: Session, path: str, name: str, template: Template, combined: bool
    ) -> int:
        tables, starts, modified = [], [], []
        seen: set[tuple[int, ...]] = set()
        values: list[tuple[tuple[int, ...], npt.NDArray[Any]]] = []
        later: list[tuple[tuple[int, ...], npt.NDArray[Any]]] = []
        for i, each in enumerate(self.placed if combined else self.placed[:1]):
            variable = each.part.variables[name]
            start = each.start_of(template.dimensions)
            if start in seen or self._is_there(variable, each):
                continue
            if combined:
                seen.add(start)
            if (i, name) in self._by_value:
                try:
                    raw = variable.values
                    raw = self._scanner.read(each.part, name) if raw is None else raw
                    later.append((start, recode(raw, variable, template)))
                except ValueError as exc:
                    raise InvalidInputError(f"{each.part.url}: {name}: {exc}") from None
            elif variable.values is not None:
                values.append((start, recode(variable.values, variable, template)))
            elif variable.table is not None:
                tables.append(variable.table)
                starts.append(tuple(a // c for a, c in zip(start, template.chunks, strict=True)))
                modified.append(self._scans[each.part.url].last_modified)
                if len(variable.table.coords):
                    self.referred.add(each.part.url)
        count = place_tables(session, path, tables, starts, modified)
        if values or later:
            array = zarr.open_array(session.store, path=path.strip("/"), mode="r+")
            if values:
                _write_together(array, values)
            for start, block in later:
                array[_selection(start, block.shape)] = block
        return count

    def _is_there(self, variable: Variable, placed: Placed) -> bool:
        """Whether an earlier call has written what several files have in common."""
        own = [dim for dim in self._dims if dim in variable.dimensions]
        return 0 < len(own) < len(placed.start) and all(
            placed.start[dim] < self._archive.lengths.get(dim, 0) for dim in own
        )


def _selection(start: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True)) or ...


def _write_together(array: Any, values: Sequence[tuple[tuple[int, ...], npt.NDArray[Any]]]) -> None:
    """Write small blocks at once: many of them share chunks."""
    starts = np.asarray([start for start, _ in values], np.int64)
    ends = starts + np.asarray([block.shape for _, block in values], np.int64)
    low = tuple(starts.min(axis=0).tolist())
    box = tuple((ends.max(axis=0) - starts.min(axis=0)).tolist())
    if len(values) == 1:
        whole = values[0][1]
    else:
        # what no file has stays as it is
        whole = np.array(array[_selection(low, box)])
        for start, block in values:
            at = tuple(a - b for a, b in zip(start, low, strict=True))
            whole[_selection(at, block.shape)] = block
    array[_selection(low, box)] = whole


def _group_document(attributes: Mapping[str, Any]) -> bytes:
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    return json.dumps(document).encode()


def _contradiction(wrong: Sequence[Mismatch], on_mismatch: str) -> InvalidInputError:
    lines = "\n".join(f"  {mismatch}" for mismatch in wrong)
    files = len({mismatch.url for mismatch in wrong})
    what = "1 file does" if files == 1 else f"{files} files do"
    if on_mismatch == "materialize":
        advice = "These cannot be written by value; pass on_mismatch='skip' to leave them out."
    else:
        advice = (
            "Pass on_mismatch='skip' to leave these files out, or 'materialize' to write the "
            "values of what differs as native chunks."
        )
    return InvalidInputError(f"{what} not fit the others; nothing is written:\n{lines}\n{advice}")
