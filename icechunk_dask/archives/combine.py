"""How the files of an archive fit together: where each goes, and what contradicts.

Zarr decodes every chunk of an array in the same way. A file that was packed, chunked or
compressed differently from the others would be decoded to wrong values, so all that
matters is compared before anything is written.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from icechunk import InvalidInputError
from icechunk.kerchunk.metadata import Documented, normal_form
from icechunk_dask.archives.scan import Part, Variable

__all__ = [
    "Mismatch",
    "Placed",
    "Template",
    "compare",
    "misaligned",
    "other_kinds",
    "place",
    "recode",
]

#: What all chunks of an array have in common, by its name in ``zarr.json``.
_LAYOUT: Final = ("data_type", "codecs", "fill_value", "chunk_grid")


@dataclass(frozen=True)
class Mismatch:
    """How a file differs from the others.

    Attributes
    ----------
    url, variable, problem : str
    curable : bool
        Whether its values can be stored in the way of the others.
    """

    url: str
    variable: str
    problem: str
    curable: bool

    def __str__(self) -> str:
        return f"{self.url}: {self.variable}: {self.problem}"


@dataclass(frozen=True)
class Template(Documented):
    """What a variable of the archive is like.

    Attributes
    ----------
    dimensions, document, meaning, digest
        As those of `Variable`; the document in its normal form.
    """

    dimensions: tuple[str, ...]
    document: dict[str, Any]
    meaning: dict[str, Any]
    digest: str = ""

    @classmethod
    def of(cls, variable: Variable) -> Template:
        """Return what variables of other files have to be like."""
        document = normal_form(variable.document)
        return cls(variable.dimensions, document, variable.meaning, variable.digest)


@dataclass(frozen=True)
class Placed:
    """A part, and where it begins along the dimensions of the archive."""

    part: Part
    start: Mapping[str, int]

    def start_of(self, dimensions: Sequence[str]) -> tuple[int, ...]:
        """Return where a variable of these dimensions begins."""
        return tuple(self.start.get(dim, 0) for dim in dimensions)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# -- comparing -------------------------------------------------------------------------
def compare(
    templates: Mapping[str, Template], part: Part, concat_dims: Sequence[str]
) -> Iterator[Mismatch]:
    """Yield how a part differs from what the archive is like."""
    for name in [*templates, *(name for name in part.variables if name not in templates)]:
        if name not in templates or name not in part.variables:
            where = "the others" if name in templates else "this file"
            yield Mismatch(part.url, name, f"is in {where} only", False)
            continue
        for problem, curable in _differences(templates[name], part.variables[name], concat_dims):
            yield Mismatch(part.url, name, problem, curable)


def _differences(
    template: Template, variable: Variable, concat_dims: Sequence[str]
) -> Iterator[tuple[str, bool]]:
    if template.dimensions != variable.dimensions:
        yield f"has dimensions {variable.dimensions}, the others {template.dimensions}", False
        return
    for dim, ours, theirs in zip(template.dimensions, template.shape, variable.shape, strict=True):
        if dim not in concat_dims and ours != theirs:
            yield f"has {theirs} along {dim!r}, the others {ours}", False
            return
    combined = set(concat_dims) & set(template.dimensions)
    both = template.digest and variable.digest
    if both and not combined and template.digest != variable.digest:
        yield f"has other values, and none of the dimensions {tuple(concat_dims)}", False
        return
    if not combined:
        # stored once, from the first file
        return
    document = normal_form(variable.document)
    by_value = variable.values is not None
    same_kind = _json(document["codecs"][-1]) == _json(template.document["codecs"][-1])
    if by_value and same_kind:
        # written by value, whatever it was like
        try:
            recode(variable.values, variable, template)
        except ValueError as exc:
            yield str(exc), False
        return
    for field in _LAYOUT:
        own, other = _json(document[field]), _json(template.document[field])
        if own != other:
            yield f"its {field} is {own}, of the others {other}", True
    for key in sorted({*template.meaning, *variable.meaning}):
        meant, means = template.meaning.get(key), variable.meaning.get(key)
        if _json(meant) != _json(means):
            curable = key not in ("units", "calendar") or _is_time(meant, means)
            yield f"its attribute {key!r} is {means!r}, of the others {meant!r}", curable


def _is_time(*units: Any) -> bool:
    return all(" since " in str(each) for each in units)


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
    ours, theirs = template.meaning, variable.meaning
    data_type = template.document["data_type"]
    same_type = _json(normal_form(variable.document)["data_type"]) == _json(data_type)
    if same_type and _json(ours) == _json(theirs):
        return np.asarray(values)
    time = _is_time(ours.get("units"), theirs.get("units"))
    for key in ("units", "calendar"):
        if not time and ours.get(key) != theirs.get(key):
            raise ValueError(f"its {key} {theirs.get(key)!r} cannot become {ours.get(key)!r}")
    if not isinstance(data_type, str) or values.dtype.kind not in "fciub":
        raise ValueError(f"{values.dtype} cannot become {data_type!r}")
    kept = ours if time else {k: v for k, v in ours.items() if k != "units"}
    attributes = theirs if time else {k: v for k, v in theirs.items() if k != "units"}
    with warnings.catch_warnings():
        # of what cannot be stored exactly; it is compared below
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
        except (ValueError, TypeError, OverflowError) as exc:
            raise ValueError(f"its values cannot be stored as those of the others: {exc}") from None
    step = abs(float(ours.get("scale_factor", 0))) / 2
    if not _close(read.values, again.values, step):
        raise ValueError(
            f"its values do not fit into {data_type} with {kept}, as those of the others are stored"
        )
    return stored


def _close(a: npt.NDArray[Any], b: npt.NDArray[Any], step: float) -> bool:
    if a.dtype.kind in "fc" and b.dtype.kind in "fc":
        # the precision of what is stored is that of the others
        return bool(np.allclose(a, b, rtol=1e-6, atol=step * 1.01, equal_nan=True))
    missing = (a != a) & (b != b)
    return bool(np.all((a == b) | missing))


def other_kinds(
    parts: Sequence[Part],
    concat_dims: Sequence[str],
    coordinates: Mapping[str, npt.NDArray[Any] | None],
) -> Iterator[Mismatch]:
    """Yield the parts whose coordinates cannot be compared with those of the others."""
    for dim in concat_dims:
        blocks = [(part.url, part.coordinates.get(dim)) for part in parts]
        kinds = [(url, _kind(block)) for url, block in blocks if block is not None and len(block)]
        known = coordinates.get(dim)
        first = _kind(known) if known is not None and len(known) else None
        for url, kind in kinds:
            first = first or kind
            if kind != first:
                yield Mismatch(url, dim, f"has {kind}, the others {first}", False)


def _kind(block: npt.NDArray[Any]) -> str:
    if block.dtype.kind == "O":
        calendar = getattr(block.flat[0], "calendar", None)
        return "texts" if calendar is None else f"times of the calendar {calendar!r}"
    names = {"M": "times of the calendar 'standard'", "m": "durations", "T": "texts", "U": "texts"}
    return names.get(block.dtype.kind, "numbers")


# -- placing ---------------------------------------------------------------------------
def place(
    parts: Sequence[Part],
    concat_dims: Sequence[str],
    lengths: Mapping[str, int],
    coordinates: Mapping[str, npt.NDArray[Any] | None],
) -> tuple[list[Placed], dict[str, str]]:
    """Return where parts go, and by what they were sorted along each dimension.

    Parameters
    ----------
    parts : sequence of Part
        Sorted by URL.
    concat_dims : sequence of str
    lengths : mapping
        Of these dimensions, of what is there already.
    coordinates : mapping
        Decoded, of what is there already.

    Raises
    ------
    InvalidInputError
        If their coordinates overlap, or belong before what is there.
    """
    used = [dim for dim in concat_dims if any(part.length(dim) for part in parts)]
    starts: list[dict[str, int]] = [{} for _ in parts]
    order: dict[str, str] = {}
    for dim in used:
        blocks = [part.coordinates.get(dim) for part in parts]
        known = coordinates.get(dim)
        first = lengths.get(dim, 0)
        if len(used) == 1 and _says_nothing(blocks, known, first):
            order[dim] = "url"
            for start, part in zip(starts, parts, strict=True):
                start[dim] = first
                first += part.length(dim)
            continue
        if any(block is None for block in blocks):
            missing = next(p.url for p, b in zip(parts, blocks, strict=True) if b is None)
            raise InvalidInputError(f"{missing} has no coordinate {dim!r} to sort files by")
        order[dim] = "coordinate"
        _sort(dim, parts, blocks, known, first, starts, unique=len(used) == 1)
    taken: dict[tuple[Any, ...], tuple[str, str]] = {}
    for part, start in zip(parts, starts, strict=True):
        for name, variable in part.variables.items():
            if not set(used) & set(variable.dimensions):
                continue
            where = (name, *(start.get(dim, 0) for dim in variable.dimensions))
            url, known_digest = taken.setdefault(where, (part.url, variable.digest))
            if url != part.url and (not known_digest or known_digest != variable.digest):
                raise InvalidInputError(
                    f"{part.url} and {url} have different values of {name!r} at the same place "
                    f"along {tuple(used)}"
                )
    return [Placed(part, start) for part, start in zip(parts, starts, strict=True)], order


def _says_nothing(
    blocks: Sequence[npt.NDArray[Any] | None], known: npt.NDArray[Any] | None, length: int
) -> bool:
    """Whether the coordinate of a dimension is missing, or the same in each file."""
    if all(block is None for block in blocks):
        return True
    if any(block is None for block in blocks):
        return False
    first = np.asarray(blocks[0])
    same = all(np.array_equal(first, np.asarray(block)) for block in blocks)
    if not length:
        return same and len(blocks) > 1
    if known is None or not same or length % len(first):
        return False
    return np.array_equal(np.tile(first, length // len(first)), known)


def _sort(
    dim: str,
    parts: Sequence[Part],
    blocks: Sequence[Any],
    known: npt.NDArray[Any] | None,
    first: int,
    starts: list[dict[str, int]],
    *,
    unique: bool,
) -> None:
    """Find where blocks of coordinates begin; equal ones at the same place unless `unique`."""
    falling = any(
        len(b) > 1 and b[-1] < b[0] for b in (*blocks, *([] if known is None else [known]))
    )
    places: dict[str, list[int]] = {}
    for i, block in enumerate(blocks):
        if (block != block).any():
            raise InvalidInputError(f"{parts[i].url}: its coordinate {dim!r} has missing values")
        places.setdefault(repr(block.tolist()), []).append(i)
    rows = sorted(places.values(), key=lambda row: blocks[row[0]].min(), reverse=falling)
    last: Any = None
    last_url = "what is in the archive"
    if known is not None and len(known):
        last = known.min() if falling else known.max()
    for row in rows:
        block, url = blocks[row[0]], parts[row[0]].url
        if unique and len(row) > 1:
            raise InvalidInputError(f"{url} and {parts[row[1]].url} have the same {dim!r}")
        low, high = block.min(), block.max()
        if last is not None and not (high < last if falling else low > last):
            there = None if unique or known is None else _find(known, block)
            if there is None:
                raise InvalidInputError(
                    f"{url}: its {dim!r}, {low} to {high}, is not beyond {last_url}, which ends "
                    f"at {last}; files are only appended, and may not overlap"
                )
            for i in row:
                starts[i][dim] = there
            continue
        last, last_url = (low if falling else high), url
        for i in row:
            starts[i][dim] = first
        first += len(block)


def _find(known: npt.NDArray[Any], block: npt.NDArray[Any]) -> int | None:
    for start in np.flatnonzero(known == block[0]).tolist():
        if np.array_equal(known[start : start + len(block)], block):
            return int(start)
    return None


def misaligned(
    templates: Mapping[str, Template], placed: Placed, concat_dims: Sequence[str]
) -> Iterator[Mismatch]:
    """Yield the variables of a part whose chunks are none of the archive's grid."""
    for name, variable in placed.part.variables.items():
        if variable.table is None or name not in templates:
            continue
        template = templates[name]
        for dim, start, size in zip(
            template.dimensions,
            placed.start_of(template.dimensions),
            template.chunks,
            strict=True,
        ):
            if dim in concat_dims and start % size:
                yield Mismatch(
                    placed.part.url,
                    name,
                    f"begins at {start} along {dim!r}, within a chunk of {size}: the files before "
                    "it do not end with whole chunks",
                    True,
                )
