"""How files differ from the archive that they are to join.

Zarr decodes every chunk of an array in the same way. A file that was packed, chunked or
compressed differently from the others would be decoded to wrong values, so everything that
matters is compared before anything is written.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from icechunk.kerchunk.decoding import decoding_form, equal
from icechunk.kerchunk.metadata import MAPPING, Documented, normal_form
from icechunk.repository.archive_tables import FIELD
from icechunk_dask.archives.cutting import rows_of, with_chunks_of
from icechunk_dask.archives.grids import Edges
from icechunk_dask.archives.parts import Part, Schema, Variable, digests_of

__all__ = ["Comparison", "Mismatch", "Template", "recode"]

#: What all chunks of an array have in common, by its name in ``zarr.json``.
_LAYOUT: Final = ("data_type", "codecs", "fill_value", "chunk_grid")
#: Attributes that give values a meaning. Values are not converted from one to another.
_SAID: Final = ("_Encoding", "flag_masks", "flag_meanings", "flag_values", *MAPPING)
_LAYOUT_ONLY: Final = ("its codecs is ", "its fill_value is ", "its chunk_grid is ")


@dataclass(frozen=True)
class Mismatch:
    """How a file differs from the others.

    Attributes
    ----------
    url, variable, problem : str
    curable : bool
        Whether its values can be stored like those of the others.
    placed : bool
        Whether it concerns only the place of the file.
    lone : bool
        Whether archives may do without the variable: only some files have it, or it is not a
        coordinate and has other values.
    gridded : bool
        Whether it might fit a grid with chunks of several lengths.
    attribute : str
        The attribute of the variable that differs, if archives may do without it.
    short : str
        ``"own"`` if only the last chunk of the file must be copied, ``"before"`` if it is the
        last chunk before the file; else empty.
    scalar : bool
        Whether a scalar differs, which may become a dimension.
    """

    url: str
    variable: str
    problem: str
    curable: bool
    placed: bool = False
    lone: bool = False
    gridded: bool = False
    attribute: str = ""
    short: str = ""
    scalar: bool = False

    @property
    def of_layout(self) -> bool:
        """Whether it concerns only chunks, and not what their numbers mean."""
        return self.curable and (self.placed or self.problem.startswith(_LAYOUT_ONLY))

    def __str__(self) -> str:
        return f"{self.url}: {self.variable}: {self.problem}"


@dataclass(frozen=True)
class Template(Documented):
    """What a variable of the archive is like.

    Attributes
    ----------
    dimensions, document, meaning, by_value
        As in `Variable`; the document in its normal form.
    digest : bytes
        Of its values, if they are the same in all files; empty if not, or if unknown.
    edges : dict of int to Edges
        Of the existing chunks, by axis, where they have several lengths. Their length in the
        document means nothing.
    """

    dimensions: tuple[str, ...]
    document: dict[str, Any]
    meaning: dict[str, Any]
    by_value: str = ""
    digest: bytes = b""
    edges: dict[int, Edges] = field(default_factory=dict)

    @classmethod
    def of(cls, variable: Variable, digest: bytes = b"") -> Template:
        """Return what variables of other files have to be like."""
        document = normal_form(variable.document)
        document.pop(FIELD, None)
        return cls(variable.dimensions, document, variable.meaning, variable.by_value, digest)

    @cached_property
    def form(self) -> dict[str, Any]:
        """The properties that decide how chunks are decoded."""
        return decoding_form(self.document)


#: See `_Compared`.
_Problem = tuple[str, str, bool, bool, str]


@dataclass(frozen=True)
class _Compared:
    """How files of one kind differ from an archive, and what remains to compare in each file.

    Attributes
    ----------
    schema : Schema
        Kept alive, so that no other schema gets its identity.
    problems : list of (str, str, bool, bool, str)
        The variable, how it differs, whether that is curable, whether it concerns the grid, and
        the attribute, if archives may do without it.
    shared : list of str
        Variables whose values must equal those of the archive.
    recoded : list of str
        Variables whose values are written in another form.
    joined : list of str
        Variables whose chunks must be joined to match those of the archive.
    """

    schema: Schema
    problems: list[_Problem]
    shared: list[str]
    recoded: list[str]
    joined: list[str]


@dataclass
class Comparison:
    """Compares files with an archive; files of one kind only once.

    Attributes
    ----------
    templates : dict of str to Template
    dims : tuple of str
        Along which files are combined.
    several : collection of str
        Variables whose chunks may have several lengths along these dimensions.
    """

    templates: Mapping[str, Template]
    dims: tuple[str, ...]
    several: Collection[str] = ()
    _known: dict[int, _Compared] = field(default_factory=dict)

    def mismatches(self, part: Part) -> Iterator[Mismatch]:
        """Yield how a part differs from the archive."""
        compared = self._known.get(id(part.schema))
        if compared is None:
            compared = self._known[id(part.schema)] = self._compared(part.schema)
        for name, problem, curable, gridded, attribute in compared.problems:
            lone = name not in self.templates or name not in part.schema.variables
            yield Mismatch(
                part.url,
                name,
                problem,
                curable,
                lone=lone,
                gridded=gridded,
                attribute=attribute,
            )
        digests = digests_of(part) if compared.shared else {}
        for name in compared.shared:
            own = digests.get(name)
            if own and self.templates[name].digest != own:
                problem = f"has other values, and none of the dimensions {self.dims}"
                scalar = not self.templates[name].dimensions
                lone = name not in self._coordinates
                yield Mismatch(part.url, name, problem, False, lone=lone, scalar=scalar)
        for name in compared.joined:
            template, variable = self.templates[name], part.schema.variables[name]
            rows, to = variable.chunks[0], template.chunks[0]
            table = part.payload().tables[name]
            if with_chunks_of(table, rows, to, part.shape(name)[0]) is None:
                problem = (
                    f"has chunks of {rows} along {template.dimensions[0]!r}, the others of {to}, "
                    "and they cannot be joined: they do not lie one after the other in the file, "
                    "some were never written, or the last ones are too few"
                )
                yield Mismatch(part.url, name, problem, True, gridded=True)
        for name in compared.recoded:
            variable = part.schema.variables[name]
            try:
                recode(part.payload().values[name], variable, self.templates[name])
            except ValueError as exc:
                yield Mismatch(part.url, name, str(exc), False)

    @cached_property
    def _coordinates(self) -> set[str]:
        """Variables that say where values are: files in which they differ cover other places."""
        found: set[str] = set()
        for name, template in self.templates.items():
            named = str(template.document["attributes"].get("coordinates", "")).split()
            group = name.rpartition("/")[0]
            found.update(f"{group}/{each}".strip("/") for each in (*template.dimensions, *named))
        return found

    def _compared(self, schema: Schema) -> _Compared:
        problems = list(self._schema(schema))
        wrong = {name for name, *_ in problems}
        shared, recoded, joined = [], [], []
        for name, template in self.templates.items():
            if name in wrong or name not in schema.variables:
                continue
            variable = schema.variables[name]
            combined = set(self.dims) & set(template.dimensions)
            if not combined and template.digest:
                shared.append(name)
            if (
                combined
                and self._is_recoded(template, variable)
                and not _is_same(variable, template)
            ):
                recoded.append(name)
            elif combined and self._is_joined(name, template, variable):
                joined.append(name)
        return _Compared(schema, problems, shared, recoded, joined)

    def _schema(self, schema: Schema) -> Iterator[_Problem]:
        """Yield how all files of one kind differ, in the form of `_Compared`."""
        for name in [*self.templates, *(n for n in schema.variables if n not in self.templates)]:
            if name not in self.templates or name not in schema.variables:
                where = "the others" if name in self.templates else "this file"
                yield name, f"is in {where} only", False, False, ""
                continue
            variable = schema.variables[name]
            for problem, curable, gridded in self._differences(name, variable):
                yield name, problem, curable, gridded, ""
            for key in _SAID:
                meant = self.templates[name].meaning.get(key)
                means = variable.meaning.get(key)
                if not equal(meant, means):
                    problem = f"its attribute {key!r} is {means!r}, of the others {meant!r}"
                    yield name, problem, False, False, key

    def _is_recoded(self, template: Template, variable: Variable) -> bool:
        """Whether the values of a variable are written like those of the others."""
        return bool(variable.by_value) and _same_kind(template, variable)

    def _has_rows(self, template: Template, variable: Variable) -> bool:
        """Whether chunks of a variable can be cut and joined to match those of the archive."""
        return bool(rows_of(template, self.dims) and rows_of(variable, self.dims))

    def _is_joined(self, name: str, template: Template, variable: Variable) -> bool:
        """Whether chunks of a variable must be joined to match those of the archive."""
        apart = not template.by_value and not variable.by_value and name not in self.several
        return (
            apart
            and self._has_rows(template, variable)
            and variable.chunks[0] % template.chunks[0] != 0
        )

    def _differences(self, name: str, variable: Variable) -> Iterator[tuple[str, bool, bool]]:
        template = self.templates[name]
        if template.dimensions != variable.dimensions:
            problem = f"has dimensions {variable.dimensions}, the others {template.dimensions}"
            yield problem, False, False
            return
        for dim, ours, theirs in zip(
            template.dimensions, template.shape, variable.shape, strict=True
        ):
            if dim not in self.dims and ours != theirs:
                yield f"has {theirs} along {dim!r}, the others {ours}", False, False
                return
        combined = set(self.dims) & set(template.dimensions)
        # values are written, whatever their form in the file
        if combined and self._is_recoded(template, variable):
            return
        # variables without them are stored once, from the first file, and their values compared
        if combined:
            yield from self._layout(name, template, variable)
        keys = {*template.meaning, *variable.meaning} - {*_SAID}
        if _are_times_alike(template.meaning, variable.meaning):
            keys -= {"units", "calendar"}
        for key in sorted(keys):
            meant, means = template.meaning.get(key), variable.meaning.get(key)
            if not equal(meant, means):
                curable = key not in ("units", "calendar") or _is_time(meant, means)
                problem = f"its attribute {key!r} is {means!r}, of the others {meant!r}"
                yield problem, curable and bool(combined), False

    def _layout(
        self, name: str, template: Template, variable: Variable
    ) -> Iterator[tuple[str, bool, bool]]:
        """Yield why the chunks of a variable would not be decoded correctly."""
        form = decoding_form(variable.document)
        for key in _LAYOUT:
            ours, theirs = template.form[key], form[key]
            if equal(theirs, ours):
                continue
            # along the combined dimensions, a grid may have chunks of several lengths
            apart = key == "chunk_grid" and all(
                dim in self.dims or a == b
                for dim, a, b in zip(
                    template.dimensions, template.chunks, variable.chunks, strict=True
                )
            )
            if apart and (name in self.several or self._has_rows(template, variable)):
                continue
            yield f"its {key} is {_json(theirs)}, of the others {_json(ours)}", True, apart


def _same_kind(template: Template, variable: Variable) -> bool:
    return equal(decoding_form(variable.document)["codecs"][-1], template.form["codecs"][-1])


def _is_same(variable: Variable, template: Template) -> bool:
    """Whether values of a variable need no conversion for the archive."""
    same_type = equal(normal_form(variable.document)["data_type"], template.document["data_type"])
    return same_type and equal(template.meaning, variable.meaning)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_time(*units: Any) -> bool:
    return all(" since " in str(each) for each in units)


def _are_times_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether numbers mean the same times, however worded: ``gregorian`` is ``standard``."""
    told = [
        {key: each[key] for key in ("units", "calendar") if key in each} for each in (one, other)
    ]
    if told[0] == told[1] or not _is_time(*(each.get("units") for each in told)):
        return False
    try:
        first, second = (
            xr.conventions.decode_cf_variable(
                "times", xr.Variable(("n",), np.array([0, 1], "i8"), each)
            ).values.tolist()
            for each in told
        )
        return bool(first == second)
    except (TypeError, ValueError, KeyError, OverflowError):
        return False


def recode(values: Any, variable: Variable, template: Template) -> npt.NDArray[Any]:
    """Return values as an archive stores them.

    Parameters
    ----------
    values : array
        As the file stores them.
    variable : Variable
    template : Template

    Raises
    ------
    ValueError
        If they cannot be stored in that way; the message says why.
    """
    if _is_same(variable, template):
        return np.asarray(values)
    ours, theirs = template.meaning, variable.meaning
    data_type = template.document["data_type"]
    time = _is_time(ours.get("units"), theirs.get("units"))
    for key in ("units", "calendar"):
        if not time and ours.get(key) != theirs.get(key):
            raise ValueError(f"its {key} {theirs.get(key)!r} cannot become {ours.get(key)!r}")
    if not isinstance(data_type, str) and values.dtype.kind == "S" and equal(ours, theirs):
        return _as_wide(values, int(data_type["configuration"]["length_bytes"]))
    if not isinstance(data_type, str) or values.dtype.kind not in "fciub":
        raise ValueError(f"{values.dtype} cannot become {_json(data_type)}")
    kept = ours if time else {k: v for k, v in ours.items() if k != "units"}
    attributes = theirs if time else {k: v for k, v in theirs.items() if k != "units"}
    with warnings.catch_warnings():
        # about inexact values; they are compared below
        warnings.simplefilter("ignore")
        try:
            read = xr.conventions.decode_cf_variable(
                "values", xr.Variable(variable.dimensions, values, attributes)
            )
            plain = xr.Variable(
                read.dims, read.values, encoding={**kept, "dtype": np.dtype(data_type)}
            )
            made = xr.conventions.encode_cf_variable(plain, name="values")
            stored = np.asarray(made.values).astype(data_type)
            again = xr.conventions.decode_cf_variable(
                "values", xr.Variable(read.dims, stored, kept)
            )
        except (ValueError, TypeError, OverflowError, KeyError) as exc:
            raise ValueError(f"its values cannot be stored as those of the others: {exc}") from None
    step = abs(float(ours.get("scale_factor", 0))) / 2
    if not _close(read.values, again.values, step):
        raise ValueError(
            f"its values do not fit into {data_type} with {kept}, as those of the others are stored"
        )
    return stored


def _as_wide(values: npt.NDArray[np.bytes_], width: int) -> npt.NDArray[np.bytes_]:
    """Return bytes of another width.

    Raises
    ------
    ValueError
        If some of them are longer.
    """
    longest = int(np.strings.str_len(values).max(initial=0))
    if longest > width:
        raise ValueError(f"its texts have up to {longest} bytes, those of the others {width}")
    return values.astype(f"S{width}")


def _close(a: npt.NDArray[Any], b: npt.NDArray[Any], step: float) -> bool:
    if a.dtype.kind in "fc" and b.dtype.kind in "fc":
        # stored values have the precision of the others
        return bool(np.allclose(a, b, rtol=1e-6, atol=step * 1.01, equal_nan=True))
    missing = (a != a) & (b != b)
    return bool(np.all((a == b) | missing))
