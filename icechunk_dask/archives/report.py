"""What became of the files and variables of an archive."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk import InvalidInputError
from icechunk.base.html import Html, bullets, card, code, fields, section, table
from icechunk.base.texts import counted
from icechunk.base.visible import in_a_line

__all__ = ["VariableReport", "VirtualizeReport"]

#: Maximum number of files of each kind that a report shows.
_SHOWN = 10


@dataclass
class VariableReport:
    """What became of a variable.

    Attributes
    ----------
    by_value : str
        Why its values are stored rather than referenced; empty if they are not.
    virtual, inline : int
        Chunks that were added: references to files, and chunks inside the references.
    bytes_by_value : int
        Bytes of the values that were added, before compression.
    reasons : dict of str to int
        These bytes, by the reason why values were stored.
    chunk_lengths : dict of str to str
        The range of chunk lengths, by dimension along which they differ: ``"28 to 31"``. Zarr
        calls such a grid rectilinear.
    """

    by_value: str = ""
    virtual: int = 0
    inline: int = 0
    bytes_by_value: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    chunk_lengths: dict[str, str] = field(default_factory=dict)

    def count_values(self, block: npt.NDArray[Any], reason: str) -> None:
        """Count values that were stored."""
        size = block.nbytes
        if isinstance(block.dtype, np.dtypes.StringDType):
            size = sum(len(text.encode()) for text in block.ravel().tolist())
        self.bytes_by_value += size
        self.reasons[reason] = self.reasons.get(reason, 0) + size


@dataclass(frozen=True, repr=False)
class VirtualizeReport:
    """What became of each file, and of each variable.

    Attributes
    ----------
    group : str
    snapshot_id : str or None
        Of the commit; None if there was nothing to commit.
    added, replaced, removed, already : tuple of str
        URLs that were added, replaced by a new version, removed, and in the group before.
    changed : tuple of str
        URLs that were in the group before, and whose files have changed since.
    failed : dict of str to str
        URLs that could not be read, and why. The next call tries them again.
    withheld : tuple of str
        URLs that were not added, because a file before them could not be read.
    skipped, materialized : dict of str to tuple of str
        URLs of files that do not fit, and why; left out, or with the variables that do not fit
        written by value.
    variables : dict of str to VariableReport
        By path within the group.
    sizes : dict of str to int
        Lengths of the dimensions.
    chunks : dict of str to int
        Numbers of ``"virtual"`` and ``"inline"`` chunks that were added.
    holes : tuple of str
        Places without a file in an archive along several dimensions, such as ``"time 2 to 3,
        member 1"``: ten of each group, and how many more. They read as fill values.
    order : dict of str to str
        By dimension, whether files are sorted by ``"coordinate"`` or ``"url"``.
    access : dict of str to str
        Prefixes of the containers to authorise for reading, and the source of a
        credential for each, with names of `icechunk.credentials`.
    trusted : bool
        Whether reading also requires trust in the servers that the repository's configuration
        names: the argument ``config=Repository.fetch_config(storage)``.
    target : str
        Where the repository is.
    options : dict
        Options for opening it there, without secrets.
    branch : str
    unmet : tuple of str
        What arguments name and no file has, with names that are near: ``"drop_variables names
        'lta', and no file has it; did you mean 'lat'?"``.

    Examples
    --------
    >>> from icechunk_dask import virtualize
    >>> report = virtualize("files/*.nc", "archive", concat_dims=["time"])
    >>> len(report.added), report.failed
    (3, {})
    """

    group: str
    snapshot_id: str | None = None
    added: tuple[str, ...] = ()
    already: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    materialized: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    variables: Mapping[str, VariableReport] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    chunks: Mapping[str, int] = field(default_factory=dict)
    holes: tuple[str, ...] = ()
    order: Mapping[str, str] = field(default_factory=dict)
    access: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = False
    target: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    branch: str = "main"
    unmet: tuple[str, ...] = ()

    @property
    def arrays(self) -> tuple[str, ...]:
        """Paths of the variables within the group."""
        return tuple(sorted(self.variables))

    @property
    def opening(self) -> str:
        """The Python code that opens the result, ready to paste.

        It takes credentials from the environment, and contains none. Empty if there is nothing to
        open, because no file could be added.
        """
        if not self.target:
            return ""
        imports = ["import xarray as xr"]
        arguments = [repr(self.target), 'engine="icechunk"']
        if self.group != "/":
            arguments.append(f"group={self.group!r}")
        if self.branch != "main":
            arguments.append(f"branch={self.branch!r}")
        options = dict(self.options)
        if options:
            arguments.append(f"storage_options={options!r}")
        if self.trusted:
            imports.insert(0, "import icechunk")
            more = f", **{options!r}" if options else ""
            storage = f"icechunk.storage_from_url({self.target!r}{more})"
            arguments.append(f"config=icechunk.Repository.fetch_config({storage})")
        if self.access:
            names = sorted(_names(self.access.values()))
            imports.append(f"from icechunk.credentials import {', '.join(names)}")
            access = ", ".join(f"{prefix!r}: {call}" for prefix, call in self.access.items())
            arguments.append(f"authorize_virtual_chunk_access={{{access}}}")
        lines = ",\n    ".join(arguments)
        return "\n".join([*imports, "", f"ds = xr.open_dataset(\n    {lines},\n)"])

    def raise_for_failures(self) -> None:
        """Raise if a file could not be read, was withheld, or has changed.

        Raises
        ------
        InvalidInputError
            Lists the files, and why.
        """
        lines = [f"  {url}: {reason}" for url, reason in self.failed.items()]
        lines += [f"  {url}: a file before it could not be read" for url in self.withheld]
        lines += [f"  {url}: it has changed, and was not taken again" for url in self.changed]
        if lines:
            listed = "\n".join(lines)
            files = counted(len(lines), "file is", "files are")
            raise InvalidInputError(f"{files} not in {self.group}:\n{listed}")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary of JSON types."""
        found = {name: _plain(value) for name, value in vars(self).items()}
        found["arrays"] = list(self.arrays)
        found["opening"] = self.opening
        return found

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __repr__(self) -> str:
        return "\n".join(["<icechunk_dask.VirtualizeReport>", *map(in_a_line, self._lines())])

    def _repr_html_(self) -> str:
        sizes = {name: f"{size:,}" for name, size in self.sizes.items()}
        failed = {url: (why,) for url, why in self.failed.items()}
        return card(
            "VirtualizeReport",
            self.group,
            fields({"files": self._counts(), "virtual chunks": self._chunks()}),
            section("Not found", bullets(self.unmet), is_open=True),
            _files_that("Could not be read", failed, is_open=True),
            _files_that("Withheld: a file before could not be read", _plainly(self.withheld)),
            _files_that("Changed, and not taken again", _plainly(self.changed)),
            _files_that("Skipped", self.skipped),
            section("No file is there", fields(dict.fromkeys(self.holes, _HOLE))),
            _files_that("Written by value, because they do not fit", self.materialized),
            section("Dimensions", fields(sizes)),
            section("Variables", table(_COLUMNS, self._table()), is_open=True),
            section("Chunks of several lengths", fields(dict(self._lengths()))),
            section("To open it", code(self.opening) if self.target else Html(""), is_open=True),
        )

    def _lines(self) -> Iterator[str]:
        yield from self._files()
        if self.variables:
            yield "variables:"
            table = [_COLUMNS, *self._table()]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            for row in table:
                cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                yield ("  " + "  ".join(cells)).rstrip()
        lengths = list(self._lengths())
        if lengths:
            yield f"chunks of several lengths: {'; '.join(map(': '.join, lengths))}"
        if self.target:
            yield "to open it:"
        yield from (f"  {line}".rstrip() for line in self.opening.splitlines())

    def _files(self) -> Iterator[str]:
        sizes = ", ".join(f"{name}: {size}" for name, size in self.sizes.items())
        yield f"group: {self.group}" + (f" ({sizes})" if sizes else "")
        yield f"files: {self._counts()}"
        chunks = self._chunks()
        if chunks is not None:
            yield f"virtual chunks: {chunks}"
        yield from self.unmet
        yield from _listed("failed", {url: (why,) for url, why in self.failed.items()})
        yield from _listed(
            "withheld, because a file before could not be read", _plainly(self.withheld)
        )
        yield from _listed("changed, and not taken again", _plainly(self.changed))
        yield from _listed("skipped", self.skipped)
        yield from _listed("written by value, because they do not fit", self.materialized)
        yield from _listed("holes, that read as fill values", _plainly(self.holes))

    def _lengths(self) -> Iterator[tuple[str, str]]:
        """Yield the chunk lengths of each variable that has several, and advice."""
        for name, each in sorted(self.variables.items()):
            if each.chunk_lengths:
                yield name, ", ".join(f"{d} {n}" for d, n in each.chunk_lengths.items())
        if any(each.chunk_lengths for each in self.variables.values()):
            yield "readers", _READERS

    def _counts(self) -> str:
        state = f"snapshot {self.snapshot_id}" if self.snapshot_id else "nothing was committed"
        counts = [f"{len(self.added)} added"]
        counts += [f"{len(self.replaced)} replaced"] if self.replaced else []
        counts += [f"{len(self.removed)} taken out"] if self.removed else []
        return f"{', '.join(counts)}, {len(self.already)} were there before; {state}"

    def _chunks(self) -> str | None:
        if not self.added and not self.replaced:
            return None
        sorted_by = ", ".join(f"{dim} by {what}" for dim, what in self.order.items())
        count = self.chunks.get("virtual", 0)
        return f"{count}" + (f"; sorted along {sorted_by}" if sorted_by else "")

    def _table(self) -> list[tuple[str, ...]]:
        return [
            (
                name,
                str(each.virtual),
                str(each.inline),
                str(each.bytes_by_value),
                "; ".join(each.reasons) or each.by_value,
            )
            for name, each in sorted(self.variables.items())
        ]


#: Which readers support chunks of several lengths.
_READERS = (
    "the engine 'icechunk' opens them; zarr.open and the engine 'zarr', with the official client "
    "too, need Zarr 3.2 or newer and zarr.config.set({'array.rectilinear_chunks': True})"
)
_HOLE = "reads as fill values"
_COLUMNS = ("name", "virtual", "inline", "bytes by value", "why by value")


def _names(calls: Iterable[str]) -> set[str]:
    """Return the names that some expressions use."""
    nodes = (node for call in calls for node in ast.walk(ast.parse(call)))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _plain(value: Any) -> Any:
    if isinstance(value, VariableReport):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _plainly(urls: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(urls, ())


def _files_that(title: str, files: Mapping[str, tuple[str, ...]], *, is_open: bool = False) -> Html:
    rows = [(url, "; ".join(reasons)) for url, reasons in files.items()]
    names = ("file", "reason" if any(files.values()) else "")
    return section(f"{title}: {len(rows):,}", table(names, rows), is_open=is_open)


def _listed(title: str, files: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    if files:
        yield f"{title}: {len(files)}"
    for url, reasons in list(files.items())[:_SHOWN]:
        yield f"  {url}" + (f": {'; '.join(reasons)}" if reasons else "")
    if len(files) > _SHOWN:
        yield f"  and {len(files) - _SHOWN} more"
