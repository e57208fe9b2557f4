"""Fit files to an archive: where they go, and what contradicts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from icechunk import InvalidInputError
from icechunk.base.near import near
from icechunk.base.rectilinear import are_known, what_it_takes
from icechunk_dask.archives.combine import Comparison, Mismatch, Template
from icechunk_dask.archives.cutting import common_rows, is_clipped, rows_of, with_rows
from icechunk_dask.archives.grids import Edges, Laid, is_in_chunks, is_short, laid, regular
from icechunk_dask.archives.group import ArchiveGroup
from icechunk_dask.archives.parts import Axis, Part, Scan, Variable, digests_of, group_of
from icechunk_dask.archives.placement import Placement, other_kinds, place
from icechunk_dask.archives.record import Record
from icechunk_dask.archives.sources import location_of

__all__ = ["ON_MISMATCH", "Fitted", "Fitting"]

ON_MISMATCH = ("error", "skip", "materialize", "layout")


@dataclass
class Fitted:
    """What becomes of an archive.

    Attributes
    ----------
    templates : dict of str to Template
    parts : list of Part
        New parts, which have a place.
    placement : Placement
    kept : Record
        What was in the archive before, without what is removed.
    taken_out : list of dict of Axis to int
        Earlier blocks of the parts that are removed.
    cured : dict of (int, str) to Mismatch
        By part and variable, what is written by value because it does not fit.
    short : dict of (int, str) to Mismatch
        The same, where that is only the last chunk.
    edges : dict of str to dict of int to Edges
        By variable and axis, where chunks begin and end, if they have several lengths.
    cut : set of (str, int)
        Variables and axes along which the existing last chunk ends beyond the last file, and
        is written by value.
    left_out : dict of str to list of Mismatch
        By URL, why files were left out.
    """

    templates: dict[str, Template]
    parts: list[Part] = field(default_factory=list)
    placement: Placement = field(default_factory=Placement)
    kept: Record = field(default_factory=Record)
    taken_out: list[dict[Axis, int]] = field(default_factory=list)
    cured: dict[tuple[int, str], Mismatch] = field(default_factory=dict)
    short: dict[tuple[int, str], Mismatch] = field(default_factory=dict)
    edges: dict[str, dict[int, Edges]] = field(default_factory=dict)
    cut: set[tuple[str, int]] = field(default_factory=set)
    left_out: dict[str, list[Mismatch]] = field(default_factory=dict)

    def copied(self) -> dict[str, tuple[str, ...]]:
        """Return by URL what is written by value because it does not fit, and why."""
        found: dict[str, list[str]] = {}
        for (i, _), mismatch in (*self.cured.items(), *self.short.items()):
            problems = found.setdefault(self.parts[i].url, [])
            problems.append(f"{mismatch.variable}: {mismatch.problem}")
        return {url: tuple(problems) for url, problems in sorted(found.items())}

    def urls(self) -> tuple[str, ...]:
        """Return the files that have a place now."""
        return tuple(dict.fromkeys(part.url for part in self.parts))


def _dimensions(part: Part) -> set[str]:
    return {dim for each in part.schema.variables.values() for dim in each.dimensions}


class Fitting:
    """Fits files to an archive.

    Parameters
    ----------
    archive : ArchiveGroup
    dims : tuple of str
        Along which files are combined.
    on_mismatch : {"error", "skip", "materialize", "layout"}
    order : {"auto", "coordinate", "url"}
        How to sort a new archive.
    chunk_grid : {"auto", "regular"}, optional
        Whether chunks may have several lengths. Default: in a new archive, and where they
        already do.
    expanded : collection of str
        Dimensions made from scalars of the files.
    """

    def __init__(
        self,
        archive: ArchiveGroup,
        dims: tuple[str, ...],
        on_mismatch: str,
        order: str,
        chunk_grid: str | None = None,
        expanded: Collection[str] = (),
    ) -> None:
        self._archive = archive
        self._dims = dims
        self._on_mismatch = on_mismatch
        self._order = order
        self._expanded = expanded
        wanted = "auto" if chunk_grid is None and archive.is_empty else chunk_grid
        self._several = wanted == "auto" and are_known()

    def fit(self, scans: Sequence[Scan], taken_out: Iterable[str] = ()) -> Fitted:
        """Find a place for the parts of new files.

        Parameters
        ----------
        scans : sequence of Scan
            Sorted by URL, without failures.
        taken_out : iterable of str
            Locations of files that leave the archive. One that is scanned again leaves
            only if it has a place.

        Raises
        ------
        InvalidInputError
            If parts contradict each other, and that is an error.
        """
        archive = self._archive
        parts = [part for scan in scans for part in scan.parts]
        out = set(taken_out)
        scanned = {location_of(scan.url) for scan in scans} if out else set()
        left_out: dict[str, list[Mismatch]] = {}
        self._check_dims(parts)
        while True:
            again = {location_of(part.url) for part in parts} if out else set()
            leaving = sorted(location for location in out if location not in scanned - again)
            kept = archive.record.without(leaving)
            found = Fitted(
                dict(archive.templates),
                parts,
                kept=kept,
                taken_out=archive.record.parts_of(leaving),
                left_out=left_out,
            )
            wrong = other_kinds(parts, self._dims, kept.blocks)
            bad = {mismatch.url for mismatch in wrong}
            if not wrong:
                found.placement = place(parts, self._dims, kept, self._order, self._expanded)
                if archive.is_empty and parts:
                    found.templates = self._new_templates(found)
                wrong = self._all_mismatches(found)
                bad = {mismatch.url for mismatch in wrong if not self._is_cured(mismatch)}
            if not bad:
                self._cure(found, wrong)
                return found
            if self._on_mismatch != "skip":
                raise self._contradiction(
                    [m for m in wrong if m.url in bad], len(scans), kept.blocks
                )
            # others may fit without these: those that differ are dropped before those that
            # only lie behind them
            different = {m.url for m in wrong if not m.placed}
            drop = different or {next(m.url for m in wrong)}
            for mismatch in wrong:
                if mismatch.url in drop:
                    left_out.setdefault(mismatch.url, []).append(mismatch)
            parts = [part for part in parts if part.url not in drop]

    def _is_cured(self, mismatch: Mismatch) -> bool:
        """Whether the values that do not fit are written."""
        if self._on_mismatch == "layout":
            return mismatch.of_layout
        return self._on_mismatch == "materialize" and mismatch.curable

    def _contradiction(
        self, wrong: Sequence[Mismatch], scanned: int, appended: Collection[Axis]
    ) -> InvalidInputError:
        """Return the error that names what does not fit, and the possible ways out.

        Parameters
        ----------
        wrong : sequence of Mismatch
        scanned : int
            How many new files there are.
        appended : collection of Axis
            Not empty if the archive already has files, and so keeps its variables.
        """
        lines = "\n".join(f"  {mismatch}" for mismatch in wrong)
        files = len({mismatch.url for mismatch in wrong})
        what = (
            "1 file does not fit the others"
            if files == 1
            else f"{files} files do not fit the others"
        )
        ways = ["on_mismatch='skip' to leave these files out"]
        if scanned == 1 and not appended:
            what = "some messages of the file do not fit its others"
            ways = ["filter_by_keys to take messages that fit, and the others into another group"]
        hard = {m.variable for m in wrong if not m.curable and not m.attribute}
        told = sorted({f"{m.variable}:{m.attribute}" for m in wrong if m.attribute})
        rest = {m.variable for m in wrong} - hard
        # other coordinates are other places, even if left out; and an archive keeps its variables
        lone = {m.variable for m in wrong if m.lone}
        droppable = lone - (self._archive.templates.keys() if appended else set())
        materialize = "on_mismatch='materialize' to write the values of what differs"
        asked = self._on_mismatch in ("error", "layout")
        if not hard and not told and asked:
            ways.append(materialize)
        if not self._several and any(m.gridded for m in wrong):
            several = "chunk_grid='auto' to have chunks of several lengths"
            ways.append(several if are_known() else f"{several}; for that {what_it_takes()}")
        scalars = {m.variable for m in wrong if m.scalar}
        if hard and hard <= scalars and not appended:
            # a moment follows from other scalars
            names = sorted(hard - {"valid_time"}) or sorted(hard)
            ways.append(f"expand_dims={[*self._dims, *names]!r} to have a dimension of each")
        if (hard or told) and hard <= droppable and not (told and appended):
            without = []
            if hard:
                without.append(f"drop_variables={sorted(hard)!r} to do without these variables")
            if told:
                without.append(f"drop_attributes={told!r} to do without what these say")
            if rest - {m.variable for m in wrong if m.attribute} and asked:
                without.append(materialize)
            ways.append(", with ".join(without))
        return InvalidInputError(
            f"{what}; nothing is written:\n{lines}\nPass {', or '.join(ways)}."
        )

    def _check_dims(self, parts: Sequence[Part]) -> None:
        several = len(parts) > 1 or (parts and self._archive.templates)
        if several and not any(part.lengths for part in parts):
            known = parts[0].schema.variables
            scalars = [dim for dim in self._dims if dim in known and not known[dim].dimensions]
            way = (
                f"{scalars[0]!r} is a scalar of it: pass expand_dims={scalars!r} to make a "
                "dimension of it"
                if scalars
                else "say along which of its dimensions to combine files with concat_dims, or make "
                f"each file a step of a new one with expand_dims={list(self._dims)!r}"
                + near(self._dims[0], _dimensions(parts[0]))
            )
            raise InvalidInputError(
                f"no variable of {parts[0].url} has one of the dimensions "
                f"{', '.join(map(repr, self._dims))}; {way}"
            )

    def _new_templates(self, found: Fitted) -> dict[str, Template]:
        starts = found.placement.starts()

        def rank(i: int) -> tuple[bool, list[int]]:
            part, places = found.parts[i], found.placement.of(i)
            # a part without steps says nothing about chunks
            return not any(part.lengths.values()), [
                int(starts[axis][index]) for axis, index in sorted(places.items())
            ]

        first = found.parts[min(range(len(found.parts)), key=rank)]
        templates: dict[str, Template] = {}
        # variables at only some places of a file come after those at the first
        for part in (first, *(p for p in found.parts if p.url == first.url and p is not first)):
            if not part.schema.variables.keys() - templates.keys():
                continue
            digests = digests_of(part)
            for name, variable in part.schema.variables.items():
                if name not in templates:
                    combined = set(self._dims) & set(variable.dimensions)
                    cut = self._cut(found, name, variable)
                    templates[name] = Template.of(cut, b"" if combined else digests.get(name, b""))
        return templates

    def _cut(self, found: Fitted, name: str, variable: Variable) -> Variable:
        """Return a variable whose chunks fit those of all files, if they can be cut."""
        schemas = {id(part.schema): part.schema for part in found.parts if part.lengths}
        rows = [
            rows_of(schema.variables[name], self._dims)
            for schema in schemas.values()
            if name in schema.variables
        ]
        if variable.by_value or not rows:
            return variable
        axis = group_of(name), variable.dimensions[0] if variable.dimensions else ""
        blocks = found.placement.blocks.get(axis)
        # nothing comes after the last one
        lengths = blocks.lengths[:-1].tolist() if blocks is not None else []
        to = common_rows(rows, lengths)
        if not to or to == variable.chunks[0]:
            return variable
        return replace(variable, document=with_rows(variable.document, to))

    def _all_mismatches(self, found: Fitted) -> list[Mismatch]:
        """Return what does not fit, on the grids that fit best."""
        several = {name for name, each in found.templates.items() if each.edges}
        wrong = list(self._mismatches(found, several))
        if self._several:
            more = {m.variable for m in wrong if m.gridded} - several
            if more:
                several |= more
                wrong = list(self._mismatches(found, several))
        return wrong

    def _lay(self, found: Fitted, several: Iterable[str]) -> dict[tuple[str, int], Laid]:
        """Lay the chunks of files one after the other."""
        laid_out: dict[tuple[str, int], Laid] = {}
        for name in several:
            template = found.templates[name]
            found.edges[name] = {}
            for i, dim in enumerate(template.dimensions):
                axis = group_of(name), dim
                blocks = found.placement.blocks.get(axis)
                if blocks is None:
                    if i in template.edges:
                        raise InvalidInputError(
                            f"{name}: something else has made chunks of several lengths along "
                            f"{dim!r}; virtualize all of the files into another group"
                        )
                    continue
                known = self._archive.record.blocks.get(axis)
                old = np.zeros(1, np.int64) if known is None else known.starts()
                before = template.edges.get(i)
                if before is None:
                    before = regular(int(old[-1]), template.chunks[i])
                sizes: dict[int, int] = {}
                for part, place_of in zip(found.parts, found.placement.places[axis], strict=True):
                    if place_of >= 0 and name in part.schema.variables:
                        sizes.setdefault(int(place_of), part.schema.variables[name].chunks[i])
                moved = found.placement.moved[axis]
                one = laid(blocks.starts(), old, moved, before, sizes)
                if one is None:
                    raise InvalidInputError(
                        f"{name}: files of the archive would have to move by other than whole "
                        "chunks; virtualize all of the files into another group"
                    )
                laid_out[name, i] = one
                found.edges[name][i] = one.edges
        return laid_out

    def _apart(
        self,
        part: Part,
        places: Mapping[Axis, int],
        starts: Mapping[Axis, npt.NDArray[np.int64]],
        laid_out: Mapping[tuple[str, int], Laid],
    ) -> Iterator[Mismatch]:
        """Yield the variables of a part whose chunks have no place among those of others."""
        for name, variable in part.schema.variables.items():
            for i, dim in enumerate(variable.dimensions):
                axis, one = (group_of(name), dim), laid_out.get((name, i))
                if one is None or axis not in places:
                    continue
                place_of, length, size = places[axis], part.lengths[axis], variable.chunks[i]
                start, end = int(starts[axis][place_of]), int(starts[axis][place_of + 1])
                if one.cut >= 0 and place_of == one.cut + 1:
                    problem = (
                        f"begins at {start} along {dim!r}, within a chunk: the files before it "
                        "do not end with whole chunks"
                    )
                    yield Mismatch(part.url, name, problem, True, placed=True, short="before")
                if variable.by_value:
                    continue
                if not is_in_chunks(one.edges, start, length, size):
                    problem = f"has chunks of {size} along {dim!r}, others of its place do not"
                    yield Mismatch(part.url, name, problem, True, placed=True)
                elif is_short(one.edges, start, length, size) and not is_clipped(variable, i):
                    problem = (
                        f"ends at {end} along {dim!r}, within a chunk of {size}, and others "
                        "come after it"
                    )
                    yield Mismatch(part.url, name, problem, True, placed=True, short="own")

    def _mismatches(self, found: Fitted, several: Collection[str]) -> Iterator[Mismatch]:
        found.edges.clear()
        laid_out = self._lay(found, several)
        found.cut = {key for key, one in laid_out.items() if one.cut >= 0}
        comparison = Comparison(found.templates, self._dims, several)
        starts = found.placement.starts()
        held = _held(found.parts)
        for i, part in enumerate(found.parts):
            places = found.placement.of(i)
            # what a file has at some places is missing at others
            holes = held.get(part.url, frozenset()) & found.templates.keys()
            holes -= part.schema.variables.keys()
            differing = [m for m in comparison.mismatches(part) if m.variable not in holes]
            if part.lengths and not places:
                # no steps, no chunks: only what all files share has to fit
                yield from (m for m in differing if not m.curable)
                continue
            yield from differing
            yield from self._misaligned(found, part, places, starts)
            yield from self._apart(part, places, starts, laid_out)

    def _misaligned(
        self,
        found: Fitted,
        part: Part,
        places: Mapping[Axis, int],
        starts: Mapping[Axis, npt.NDArray[np.int64]],
    ) -> Iterator[Mismatch]:
        """Yield the variables of a part whose chunks are not those of the archive's grid."""
        for name, variable in part.schema.variables.items():
            template = found.templates.get(name)
            if template is None or template.by_value or name in found.edges:
                continue
            for dim, size in zip(template.dimensions, template.chunks, strict=True):
                axis = group_of(name), dim
                if axis not in places:
                    continue
                index = places[axis]
                start, end = int(starts[axis][index]), int(starts[axis][index + 1])
                if start % size and not variable.by_value:
                    problem = (
                        f"begins at {start} along {dim!r}, within a chunk of {size}: the files "
                        "before it do not end with whole chunks"
                    )
                    yield Mismatch(part.url, name, problem, True, placed=True, gridded=True)
                elif end % size and self._is_followed(found, axis, index):
                    problem = (
                        f"ends at {end} along {dim!r}, within a chunk of {size}, and files of "
                        "the archive come after it"
                    )
                    yield Mismatch(part.url, name, problem, True, placed=True, gridded=True)

    def _is_followed(self, found: Fitted, axis: Axis, index: int) -> bool:
        """Whether a block that was there before follows this one."""
        return bool((found.placement.moved[axis] > index).any())

    def _cure(self, found: Fitted, wrong: Sequence[Mismatch]) -> None:
        whole = {(m.url, m.variable): m for m in wrong if m.curable and not m.short}
        # "own" comes after "before"
        short = sorted((m for m in wrong if m.short), key=lambda m: m.short == "own")
        last = {(m.url, m.variable): m for m in short}
        for i, part in enumerate(found.parts):
            for name in part.schema.variables:
                key = part.url, name
                if key in whole:
                    found.cured[i, name] = whole[key]
                elif key in last:
                    found.short[i, name] = last[key]


def _held(parts: Sequence[Part]) -> dict[str, frozenset[str]]:
    """Return by URL the variables of files that have several parts."""
    several = {part.url for part in parts if part.number}
    found: dict[str, frozenset[str]] = {}
    for part in parts:
        if part.url in several:
            found[part.url] = found.get(part.url, frozenset()) | part.schema.variables.keys()
    return found
