"""Turn a file into parts of an archive: what is referenced, and what is copied.

The scanners report what a file holds. This module decides which variables to store by value,
and compares chunks with what the file's own library reads while the file is open.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy.typing as npt
import xarray as xr

from icechunk.kerchunk.attributes import not_in_json
from icechunk.kerchunk.guard import check_sizes, check_values, pipeline_of
from icechunk.kerchunk.locations import fsspec_url
from icechunk.kerchunk.names import name_problem
from icechunk.kerchunk.tables import ChunkTable
from icechunk_dask.archives.apart import call_apart, can_be_apart, scan_apart
from icechunk_dask.archives.bundles import Bundle, Payload, bundled, packed
from icechunk_dask.archives.conventions import is_joined, is_moment, meanings
from icechunk_dask.archives.cutting import in_rows, with_dims
from icechunk_dask.archives.described import Dataset, FileVariable
from icechunk_dask.archives.extents import Extent, extent_of
from icechunk_dask.archives.failures import Unstorable, failure_of
from icechunk_dask.archives.hdf5_attributes import (
    FILL,
    MASKS_BYTES,
    UnstorableFillError,
    masking_bytes,
)
from icechunk_dask.archives.native import digest, native_document, stored_texts
from icechunk_dask.archives.opening import OpenFile
from icechunk_dask.archives.parsed import Parser
from icechunk_dask.archives.parts import Axis, Part, Scan, Schema, SchemaTable, Variable, group_of
from icechunk_dask.archives.selection import Selection
from icechunk_dask.archives.signs import step
from icechunk_dask.archives.sources import Sources, Version, location_of

__all__ = ["Scanner"]

_T = TypeVar("_T")

#: Maximum bytes of a variable without combined dimensions that is stored by value.
_SMALL: Final = 512
#: The same for a coordinate: in each file, and if it is the same in all files.
_COORDINATE: Final = 1 << 20
_COMMON: Final = 1 << 24
#: Of a single file, variables without combined dimensions up to this size are read whole.
_COMPARED: Final = 1 << 26
#: Of uncompressed chunks larger than this, single rows are checked.
_LARGE: Final = 1 << 22
#: For each pipeline, the first files whose chunks are checked, and then one file in so many.
_FIRST, _EACH = 2, 16
#: Number of files seen in this process, by call and pipeline.
_looked_at: dict[str, Counter[str]] = {}


@dataclass(frozen=True)
class Scanner:
    """Scans files. It is sent to workers.

    Attributes
    ----------
    concat_dims, expand_dims : tuple of str
        All dimensions along which files are combined, and those made from scalars.
    coordinates : tuple of str or None
        Names of variables to store by value; None for CF coordinates, their bounds, and
        small variables.
    loadable : tuple of str
        More variables to store by value.
    selection : Selection
        Which variables to take, and their names.
    sources : Sources
    compare : bool
        Whether to compute digests of variables that must agree between files.
    verify : {"sample", "all", "none"}
    max_bytes : int
        Maximum bytes of a variable that is copied although nobody asked for it.
    call : str
        Identifies the call.
    parser : Parser or None
        For files that no scanner here reads.
    filter_by_keys : mapping or None
        Which GRIB fields to take.
    isolate : bool
        Whether to scan files in a separate process.
    """

    concat_dims: tuple[str, ...]
    expand_dims: tuple[str, ...]
    coordinates: tuple[str, ...] | None
    loadable: tuple[str, ...]
    selection: Selection
    sources: Sources
    compare: bool
    verify: str
    max_bytes: int
    call: str
    parser: Parser | None = None
    filter_by_keys: Mapping[str, Any] | None = None
    isolate: bool = False

    def __call__(self, url: str) -> Scan:
        """Scan one file; a failure becomes part of the result."""
        try:
            with warnings.catch_warnings():
                # zarr and xarray warn about data types and attributes
                warnings.simplefilter("ignore")
                return self._scan(url)
        except Exception as exc:  # any file may be damaged in any way
            return Scan(url, failure=failure_of(exc))

    def some(self, urls: Sequence[str], counted: Callable[[], None] | None = None) -> list[Scan]:
        """Scan some files, and pack the results together to send them to the client."""
        if self._is_apart(urls):
            return scan_apart(replace(self, isolate=False), urls, counted)
        found = []
        for url in urls:
            found.append(self(url))
            if counted is not None:
                counted()
        scans = SchemaTable().share(found, urls)
        rows = bundled([part.payload() for scan in scans for part in scan.parts])
        return [
            replace(
                scan,
                parts=tuple(
                    replace(part, bundle=bundle, row=row)
                    for part, (bundle, row) in zip(scan.parts, rows, strict=False)
                ),
            )
            for scan in scans
        ]

    def __repr__(self) -> str:
        return f"Scanner({self.concat_dims})"

    def read(self, part: Part, name: str) -> npt.NDArray[Any]:
        """Return the values of a variable of a part as they are stored."""
        if self._is_apart([part.url]):
            here = replace(self, isolate=False)
            values: npt.NDArray[Any] = call_apart(here, "read", part, name)
            return values
        with self._open(part.url) as file:
            blocks = list(self._blocks(file.datasets))
            if part.number >= len(blocks):
                raise ValueError(f"{part.url} has changed")
            return blocks[part.number].values(name)

    def _is_apart(self, urls: Sequence[str]) -> bool:
        # a user's parser need not be picklable for this
        return self.isolate and self.parser is None and can_be_apart(urls)

    def _scan(self, url: str) -> Scan:
        source = self.sources.open(url)
        before = replace(source.version(), digest=source.digest())
        step(before.size)
        copied: Counter[tuple[str, str]] = Counter()
        others: dict[str, Version] = {}
        with self._open(url) as file:
            blocks = list(self._blocks(file.datasets))
            if not any(block.schema.variables for block in blocks):
                raise ValueError("there are no variables in it")
            others = self._others(blocks, location_of(url))
            for block in blocks:
                for name, (size, reason) in block.copied.items():
                    copied[name, reason] += size
                if self.verify != "none":
                    sizes = {name: version.size for name, version in others.items()}
                    self._verify(block, file, {**sizes, location_of(url): before.size})
            parts = tuple(block.part(url, n) for n, block in enumerate(blocks))
        for name, version in others.items():
            if version.differs(self.sources.open(fsspec_url(name)).version()):
                raise ValueError(f"{name} was replaced or written to while it was read; call again")
        if source.has_changed(before, source.version()):
            raise ValueError("it was replaced or written to while it was read; call again")
        listed = tuple((name, size, reason) for (name, reason), size in sorted(copied.items()))
        modified = tuple((name, version.last_modified) for name, version in others.items())
        return Scan(url, parts, before, modified, listed)

    def _open(self, url: str) -> AbstractContextManager[OpenFile]:
        return OpenFile.of(
            self.sources,
            url,
            parser=self.parser,
            dropped=self.selection.drop_variables,
            filter_by_keys=self.filter_by_keys,
        )

    def _others(self, blocks: Sequence[_Block], own: str) -> dict[str, Version]:
        """Return the versions of the other files that are referenced."""
        names = {
            name
            for block in blocks
            for _, table in block.referred.values()
            for name in table.locations
        }
        others = sorted(names - {own})
        for name in others:
            self.sources.check_allowed(name)
        return {name: self.sources.open(fsspec_url(name)).version() for name in others}

    def _blocks(self, datasets: Sequence[Dataset]) -> Iterator[_Block]:
        joined: dict[str, _Block] = {}
        for dataset in datasets:
            taken = self.selection.of(dataset)
            unmet = self.selection.unmet(
                dataset, taken, loadable=self.loadable, coordinates=self.coordinates or ()
            )
            block = _Block(self, taken, unmet)
            place = repr(sorted(block.extents.items()))
            if place in joined:
                joined[place].join(block)
            else:
                joined[place] = block
        yield from joined.values()

    def _verify(self, block: _Block, file: OpenFile, sizes: Mapping[str, int]) -> None:
        counter = _looked_at.setdefault(self.call, Counter())
        for token in [token for token in _looked_at if token != self.call][:-4]:
            _looked_at.pop(token, None)
        for name, (variable, table) in block.referred.items():
            document = variable.document or {}
            for row, problem in check_sizes(document, table, sizes):
                raise ValueError(
                    f"its variable {name!r}: chunk {tuple(table.coords[row].tolist())} {problem}"
                )
            key = f"{name}: {pipeline_of(document)}"
            counter[key] += 1
            if self.verify == "sample" and counter[key] > _FIRST and counter[key] % _EACH:
                continue

            if int(table.length.max(initial=0)) > _LARGE:
                document, table = in_rows(document, table)

            def fetch(row: int, table: ChunkTable = table) -> bytes:
                step()
                return file.fetch(table, row)

            for coordinate, problem in check_values(
                document, table, fetch, variable.read, every=self.verify == "all"
            ):
                raise ValueError(
                    f"its variable {name!r}: chunk {coordinate} {problem}; leave it out with "
                    f"drop_variables=[{name!r}], or copy it with loadable=[{name!r}]"
                )


@dataclass
class _Block:
    """One dataset of a file; decides what becomes of each variable."""

    scanner: Scanner
    dataset: Dataset
    unmet: frozenset[tuple[str, str]]
    schema: Schema = field(init=False)
    lengths: dict[Axis, int] = field(default_factory=dict)
    extents: dict[Axis, Extent] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    copied: dict[str, tuple[int, str]] = field(default_factory=dict)
    referred: dict[str, tuple[FileVariable, ChunkTable]] = field(default_factory=dict)
    payload: Payload = field(default_factory=lambda: Payload({}, {}))
    common: Payload = field(default_factory=lambda: Payload({}, {}))
    #: Dimensions that the file does not mention: each file is one step along them.
    _unheard: set[str] = field(default_factory=set)
    _unstorable: Unstorable = field(default_factory=Unstorable)
    _read: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = {
            path: dict(attributes)
            for path, attributes in self.dataset.groups.items()
            # the variables of such a group are refused
            if not name_problem(path)
        }
        for path, attributes in groups.items():
            odd = {**self.dataset.odd_attributes.get(path, {}), **not_in_json(attributes)}
            for name, reason in odd.items():
                self._unstorable.attribute(f"group '/{path}'", path, name, reason)
        self.schema = Schema({}, groups, self.unmet)
        heard = {dim for one in self.dataset.variables.values() for dim in one.dimensions}
        heard.update(name.rpartition("/")[2] for name in self.dataset.variables)
        if not self.dataset.keys:  # other messages may mention them
            self._unheard = set(self.scanner.expand_dims) - heard
        by_group: dict[str, dict[str, FileVariable]] = {group: {} for group in groups}
        for name, variable in self.dataset.variables.items():
            problem = name_problem(name)
            if variable.refused or problem:
                odd_name = f"{problem} (rename gives it another name)"
                self._unstorable.variable(name, variable.refused or odd_name)
            else:
                by_group.setdefault(group_of(name), {})[name] = variable
        for group, variables in by_group.items():
            self._add_group(group, variables)
        self._unstorable.check()

    def values(self, name: str) -> npt.NDArray[Any]:
        """Return the values of a variable as they are stored."""
        values = self._copy(name)
        if values is not None:
            return values
        found = self._all(name)
        count = len(self.schema.variables[name].dimensions) - found.ndim
        return found.reshape((1,) * count + found.shape)

    def part(self, url: str, number: int) -> Part:
        """Return the part to keep."""
        return Part(
            url,
            self.schema,
            self.lengths,
            tuple(self.extents),
            tuple(self.extents.values()),
            tuple(sorted(self.digests.items())),
            Bundle([self.payload]),
            packed([self.common]),
            number=number,
        )

    def _copy(self, name: str) -> npt.NDArray[Any] | None:
        found = self.payload.values.get(name)
        return self.common.values.get(name) if found is None else found

    def join(self, other: _Block) -> None:
        """Take over the variables of a block at the same place.

        Raises
        ------
        ValueError
            If a variable that both have differs.
        """
        mine, theirs = self.schema.variables, other.schema.variables
        for name in [name for name in theirs if name in mine]:
            own, its = self._copy(name), other._copy(name)
            if own is None or its is None or digest(own) != digest(its):
                raise ValueError(
                    f"several of its messages have the variable {name!r}; {self._told(other)}"
                )
        new = [name for name in theirs if name not in mine]
        mine.update({name: theirs[name] for name in new})
        _take(new, self.digests, other.digests)
        _take(new, self.copied, other.copied)
        _take(new, self.referred, other.referred)
        for mine_too, theirs_too in ((self.payload, other.payload), (self.common, other.common)):
            _take(new, mine_too.tables, theirs_too.tables)
            _take(new, mine_too.values, theirs_too.values)
        self.lengths.update(other.lengths)
        self.schema = replace(self.schema, unmet=self.schema.unmet & other.schema.unmet)

    def _told(self, other: _Block) -> str:
        """Return how to tell two blocks of messages apart."""
        own, its = self.dataset.keys, other.dataset.keys
        ways = []
        expanded = [
            name
            for name, variable in self.dataset.variables.items()
            if not variable.shape
            and name in other.dataset.variables
            and name not in ("valid_time", *self.scanner.expand_dims)
            and self._all(name) != other._all(name)
        ]
        if expanded:
            ways.append(f"expand_dims={[*self.scanner.expand_dims, *expanded]!r}")
        key = next((key for key in own if own[key] != its.get(key)), None)
        if key is not None:
            chosen, left = ({key: keys.get(key)} for keys in (own, its))
            ways.append(f"filter_by_keys={chosen!r}, and {left!r} for another group")
        if not ways:
            return "nothing tells them apart, such as a level, a step or a type"
        return f"tell them apart with {', or take some of them with '.join(ways)}"

    # -- one group ---------------------------------------------------------------------
    def _add_group(self, group: str, variables: Mapping[str, FileVariable]) -> None:
        scanner = self.scanner
        start = f"{group}/" if group else ""
        last = {name: name.removeprefix(start) for name in variables}
        new = [
            dim
            for dim in scanner.expand_dims
            if dim in self._unheard
            or (start + dim in variables and not variables[start + dim].shape)
        ]
        # bounds have the dimensions of the variable they belong to
        cells = {
            variables[start + dim].attributes.get(of)
            for dim in new
            if start + dim in variables
            for of in ("bounds", "climatology")
        }
        reasons = self._by_value(group, variables, bool(new))
        means = meanings({last[name]: variable.attributes for name, variable in variables.items()})
        for name, variable in variables.items():
            expanded: list[str] = []
            if last[name] in new:
                expanded = [last[name]]
            elif new and (
                name not in reasons or is_moment(variable, last[name], new) or last[name] in cells
            ):
                expanded = new
            try:
                joined = bool(variable.shape) and is_joined(
                    variable.dimensions[-1], last, variables
                )
                self._add(name, variable, means[last[name]], reasons.get(name), expanded, joined)
            except _UnstorableError as exc:
                self._unstorable.variable(name, exc)
        for name in last.keys() & self.schema.variables.keys():
            if not self.schema.variables[name].dimensions and last[name] in self._dims(last):
                self._unstorable.variable(
                    name, "it is a scalar with the name of a dimension, which xarray cannot open"
                )
        for dim in scanner.concat_dims:
            if (group, dim) in self.lengths:
                self._add_extent(group, dim)

    def _add(
        self,
        name: str,
        variable: FileVariable,
        meaning: dict[str, Any],
        reason: tuple[str, bool] | None,
        expanded: Sequence[str],
        joined: bool,
    ) -> None:
        scanner = self.scanner
        odd = dict(variable.odd_attributes)
        dims = (*expanded, *variable.dimensions)
        combined = set(scanner.concat_dims) & set(dims)
        nbytes = math.prod(variable.shape) * max(1, variable.dtype.itemsize)
        if reason is not None:
            why, counted = reason
            if counted and combined:
                self.copied[name] = nbytes, why
            if counted and nbytes > scanner.max_bytes:
                raise ValueError(
                    f"its variable {name!r} has to be copied: {why}; it has {nbytes} bytes, more "
                    f"than max_bytes_by_value, {scanner.max_bytes}; leave it out with "
                    f"drop_variables=[{name!r}], or copy it with loadable=[{name!r}]"
                )
            try:
                values = self._all(name).reshape((1,) * len(expanded) + variable.shape)
                try:
                    document = native_document(name, values.shape, values.dtype, variable, dims)
                except UnstorableFillError as exc:
                    odd[FILL] = str(exc)
                    kept = {key: v for key, v in variable.attributes.items() if key != FILL}
                    bare = replace(variable, attributes=kept)
                    document = native_document(name, values.shape, values.dtype, bare, dims)
            except (TypeError, ValueError) as exc:
                raise _UnstorableError(exc) from exc
            for mark in masking_bytes(variable.attributes, values, joined=joined):
                odd.setdefault(mark, MASKS_BYTES)
            (self.payload if combined else self.common).values[name] = values
        else:
            assert variable.document is not None and variable.table is not None
            self.referred[name] = variable, variable.table
            document, table = with_dims(variable.document, variable.table, expanded)
            (self.payload if combined else self.common).tables[name] = table
        for dim, length in zip(dims, document["shape"], strict=True):
            if dim in combined:
                axis = group_of(name), dim
                if self.lengths.setdefault(axis, length) != length:
                    raise ValueError(
                        f"its variable {name!r} has {length} along {dim!r}, others of its group "
                        f"{self.lengths[axis]}"
                    )
        for attribute, problem in {**odd, **not_in_json(document["attributes"])}.items():
            self._unstorable.attribute(f"variable {name!r}", name, attribute, problem)
        document = {
            **document,
            "shape": [
                0 if dim in combined else n for dim, n in zip(dims, document["shape"], strict=True)
            ],
        }
        # so that later files can be compared with this one, which may not be readable then
        compared = scanner.compare or reason is not None or nbytes <= _COMPARED
        if compared and not set(scanner.concat_dims) <= set(dims):
            self.digests[name] = digest(self._all(name))
        why, counted = reason or ("", False)
        self.schema.variables[name] = Variable(dims, document, meaning, why, counted)

    def _dims(self, names: Iterable[str]) -> set[str]:
        """Return the dimensions of some variables."""
        variables = self.schema.variables
        return {dim for name in names if name in variables for dim in variables[name].dimensions}

    def _add_extent(self, group: str, dim: str) -> None:
        """Find the coordinate of a dimension, in its group or in an enclosing one."""
        length = self.lengths[group, dim]
        around = group
        while True:
            name = f"{around}/{dim}" if around else dim
            variable = self.dataset.variables.get(name)
            if variable is not None and variable.dimensions in ((dim,), ()):
                if math.prod(variable.shape) == length:
                    xarray = xr.Variable(
                        variable.dimensions, self._all(name), dict(variable.attributes)
                    )
                    extent = extent_of(dim, xarray)
                    if extent is not None:
                        self.extents[group, dim] = extent
                return
            if not around:
                return
            around = group_of(around)

    def _by_value(
        self, group: str, variables: Mapping[str, FileVariable], scalars: bool
    ) -> dict[str, tuple[str, bool]]:
        """Return which variables are read and stored by value, why, and whether that counts."""
        scanner = self.scanner
        start = f"{group}/" if group else ""
        found: dict[str, tuple[str, bool]] = {}
        wanted = self._coordinates(group, variables)
        for name, variable in variables.items():
            last = name.removeprefix(start)
            nbytes = math.prod(variable.shape) * max(1, variable.dtype.itemsize)
            combined = bool(set(scanner.concat_dims) & set(variable.dimensions))
            asked = {name, last} & {*scanner.loadable, *(scanner.coordinates or ())}
            limit = _COORDINATE if combined else _COMMON
            if asked:
                found[name] = "asked for", False
            elif last in wanted and (nbytes <= limit or variable.dimensions == (last,)):
                found[name] = "coordinate", False
            elif variable.dtype.kind not in "fciub":
                found[name] = f"references have no form for {variable.dtype}", nbytes > _SMALL
            elif variable.document is None:
                found[name] = variable.by_value, True
            elif (
                scanner.coordinates is None
                and nbytes <= _SMALL
                and not combined
                # others get the dimensions that scalars become
                and not (variable.shape and scalars)
            ):
                found[name] = "small", False
        return found

    def _coordinates(self, group: str, variables: Mapping[str, FileVariable]) -> set[str]:
        """Return the CF coordinates and their bounds."""
        if self.scanner.coordinates is not None:
            return set()
        named = set(self.scanner.concat_dims)
        attributes = [self.dataset.groups.get(group, {})]
        for variable in variables.values():
            named.update(variable.dimensions)
            attributes.append(variable.attributes)
        for each in attributes:
            named.update(str(each.get("coordinates", "")).split())
        start = f"{group}/" if group else ""
        for name in list(named):
            if start + name in variables:
                for of in ("bounds", "climatology"):
                    named.add(str(variables[start + name].attributes.get(of, "")))
        return named

    def _all(self, name: str) -> npt.NDArray[Any]:
        """Return all values of a variable; it is read only once."""
        found = self._read.get(name)
        if found is None:
            step()
            variable = self.dataset.variables[name]
            try:
                found = stored_texts(variable.read(tuple(slice(0, n) for n in variable.shape)))
            except MemoryError as exc:
                raise MemoryError(f"its variable {name!r}: {exc or 'cannot be held'}") from exc
            self._read[name] = found
        return found


def _take(names: Sequence[str], kept: dict[str, _T], added: Mapping[str, _T]) -> None:
    kept.update({name: added[name] for name in names if name in added})


# -- variables -------------------------------------------------------------------------
class _UnstorableError(Exception):
    """A variable cannot be stored; the message says why."""
