"""Checks that new files fit values that were copied before."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from icechunk import InvalidInputError
from icechunk.base.texts import counted
from icechunk_xarray.inserting import order_of

__all__ = ["Block", "check_appended", "check_trees", "in_words"]

#: Encodings that determine how the numbers of a variable are stored.
_STORED_BY: Final = ("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value")
#: Bytes of values that are compared at a time.
_AT_A_TIME: Final = 1 << 26
#: How far packed numbers may differ, in steps of their packing.
_SLACK: Final = 1e-3
_SHOWN: Final = 10
_ELSEWHERE: Final = "copy these files into another group"
#: How xarray names a variable that it cannot decode, and a group that does not fit its parents.
_UNDECODED: Final = re.compile(r"decoding variable '(.+)' with value")
_UNALIGNED: Final = re.compile(r"group '(.+)' is not aligned with its parents")


@contextmanager
def in_words() -> Iterator[None]:
    """Say why xarray cannot open what was scanned, and what to leave out.

    Raises
    ------
    InvalidInputError
        In place of what xarray raises.
    """
    try:
        yield
    except InvalidInputError:
        raise
    except Exception as error:  # xarray raises errors of many kinds
        reason = str(error)
        name = _UNDECODED.search("\n".join([reason, *getattr(error, "__notes__", [])]))
        group = _UNALIGNED.search(reason)
        if group is not None:
            reason = (
                f"a dimension of group {group[1]!r} has another length in a group around it, and "
                "xarray has no tree of such groups: leave out the variables of one of them with "
                "drop_variables=, by their paths, and call this for those with variables= and "
                "another group="
            )
        elif name is not None:
            key = "units" if "time units" in reason else "scale_factor"
            reason = (
                f"variable {name[1]!r} cannot be decoded: {reason.splitlines()[0]} Copy its "
                f"numbers as they are with drop_attributes=[{f'{name[1]}:{key}'!r}], or leave it "
                f"out with drop_variables=[{name[1]!r}]"
            )
        raise InvalidInputError(f"xarray cannot open these files: {reason}") from error


class Block(NamedTuple):
    """The steps of one file."""

    url: str
    start: int
    stop: int


def check_fit(stored: xr.Dataset, given: xr.Dataset, dim: str, root: str) -> None:
    """Refuse variables that differ from those of a group, and values that it cannot hold.

    Parameters
    ----------
    stored, given : xarray.Dataset
        Decoded. Values are read when they are needed.
    dim : str
        The dimension along which files are appended.
    root : str
        The group, for messages.
    """
    for key in stored.variables.keys() & given.variables.keys():
        _check_variable(str(key), stored[key].variable, given[key].variable, dim, root)
    new = sorted(map(str, given.data_vars.keys() - stored.variables.keys()))
    new += sorted(str(k) for k, v in given.coords.items() if k not in stored and dim in v.dims)
    if new:
        raise InvalidInputError(
            f"{root!r} has no variable {new[0]!r}: leave it out with drop_variables={new}, or "
            "copy the files into another group"
        )
    gone = sorted(str(k) for k, v in stored.variables.items() if dim in v.dims and k not in given)
    if gone:
        raise InvalidInputError(
            f"the new files have no variable {gone[0]!r}, which {root!r} has along {dim!r}, and "
            f"which would be shorter than the others then: {_ELSEWHERE}"
        )


def _check_variable(
    name: str, stored: xr.Variable, given: xr.Variable, dim: str, root: str
) -> None:
    mine, theirs = (each.attrs.get("units") for each in (stored, given))
    if mine != theirs:
        raise InvalidInputError(
            f"variable {name!r} has the units {theirs!r} in the new files, and {mine!r} in "
            f"{root!r}: copy them into another group"
        )
    if not any(dim in each.dims for each in (stored, given)):
        if not stored.equals(given):  # type: ignore[no-untyped-call]
            raise InvalidInputError(
                f"variable {name!r} has other values in the new files than in {root!r}, "
                f"and no dimension {dim!r}: leave it out with drop_variables=[{name!r}], "
                "or copy the files into another group"
            )
        return
    if set(stored.dims) != set(given.dims):
        raise InvalidInputError(
            f"variable {name!r} has the dimensions {given.dims} in the new files, and "
            f"{stored.dims} in {root!r}: {_ELSEWHERE}"
        )
    kinds = [_kind(each) for each in (stored, given)]
    if kinds[0] != kinds[1]:
        raise InvalidInputError(
            f"variable {name!r} has {kinds[1]} in the new files, and {kinds[0]} in {root!r}: "
            f"{_ELSEWHERE}"
        )
    ours, others = ({k: each.encoding.get(k) for k in _STORED_BY} for each in (stored, given))
    units = ("units", "calendar") if kinds[0] != "numbers" else ()
    if all(_same(ours[key], others[key]) for key in _STORED_BY) and all(
        stored.encoding.get(key) == given.encoding.get(key) for key in units
    ):
        return
    lost = _first_lost(name, stored, given)
    if lost is not None:
        how = ", ".join(f"{k}={v!r}" for k, v in ours.items() if v is not None and k != "dtype")
        is_number = given.dtype.kind in "iufc"
        packing = f" with {how}" if how and is_number else ""
        advice = ""
        if is_number:
            dtype = str(np.promote_types(stored.dtype, given.dtype))
            advice = (
                ", with an encoding that holds all of them, such as "
                f"encoding={{{name!r}: {{'dtype': {dtype!r}}}}}"
            )
        raise InvalidInputError(
            f"variable {name!r} is stored as {ours['dtype']}{packing} in {root!r}, which the "
            f"value {lost} of the new files cannot be: {_ELSEWHERE}{advice}"
        )


def _kind(variable: xr.Variable) -> str:
    """Return the kind of a variable's values, with their calendar."""
    kind = variable.dtype.kind
    if kind in "OT" and variable.size:
        first = variable[(0,) * variable.ndim].values.item()
        if hasattr(first, "calendar"):
            return f"times of the calendar {first.calendar!r}"
    names = {"M": "times", "m": "durations", "S": "texts", "U": "texts", "T": "texts", "O": "texts"}
    return names.get(kind, "numbers")


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    try:
        return bool(np.all(pd.isnull(one) & pd.isnull(other)) or np.all(one == other))
    except (TypeError, ValueError):
        return False


def _first_lost(name: str, stored: xr.Variable, given: xr.Variable) -> Any:
    """Return a value that a stored array cannot hold, None if it holds all of them."""
    keys = (*_STORED_BY, "units", "calendar", "_Unsigned")
    encoding = {k: stored.encoding[k] for k in keys if stored.encoding.get(k) is not None}
    if _same(encoding.get("_FillValue"), np.nan) and "missing_value" in encoding:
        del encoding["_FillValue"]
    texts = _kind(given) == "texts"
    rows = len(given) if given.ndim else 1
    step = max(1, _AT_A_TIME // max(given.nbytes // max(rows, 1), 1))
    for start in range(0, rows, step):
        part = given[start : start + step] if given.ndim else given
        values = part.values
        plain = xr.Variable(part.dims, values)
        if texts:
            limit = stored.encoding.get("dtype")
            if getattr(limit, "kind", "O") not in "SU":
                return None
            decoded = values.astype(limit).astype(values.dtype)
            lost = np.asarray(values != decoded, bool)
        else:
            plain.encoding = encoding
            with np.errstate(all="ignore"), warnings.catch_warnings():
                # xarray warns about what it changes; the comparison below finds it
                warnings.simplefilter("ignore")
                encoded = xr.conventions.encode_cf_variable(plain, name=name)
                decoded = xr.conventions.decode_cf_variable(name, encoded).values
            if "units" in encoding and encoded.attrs.get("units") != encoding["units"]:
                return values.flat[0] if len(values) == 1 else f"{values.flat[0]} or another one"
            lost = _lost(values, decoded, encoding)
        if lost.any():
            return values[np.unravel_index(int(lost.argmax()), lost.shape)]
    return None


def _lost(
    values: npt.NDArray[Any], decoded: npt.NDArray[Any], encoding: dict[str, Any]
) -> npt.NDArray[np.bool_]:
    missing, gone = (np.asarray(pd.isnull(each)) for each in (values, decoded))
    same = np.asarray(values == decoded)
    if "scale_factor" in encoding or "add_offset" in encoding:
        slack = _SLACK * abs(float(encoding.get("scale_factor", 1)))
        same |= abs(values - decoded) <= slack
    return np.asarray((missing != gone) | (~missing & ~same), bool)


def check_places(
    stored: xr.Dataset, given: xr.Dataset, dim: str, root: str, blocks: Sequence[Block]
) -> None:
    """Refuse files whose steps are there already, naming them."""
    if not all(dim in each.coords for each in (stored, given)):
        return
    old, new = pd.Index(stored[dim].values), given[dim].values
    repeated = pd.Index(new).isin(old)
    urls = sorted({block.url for block in blocks if repeated[block.start : block.stop].any()})
    if urls:
        raise InvalidInputError(
            f"{counted(len(urls), 'file has', 'files have')} values of {dim!r} that {root!r} "
            f"has already, "
            f"but no call of ingest has copied them, or its record of them is lost:\n"
            f"{_lines(urls)}\nLeave them out, and the others are appended; or copy all of them "
            "into another group"
        )


def check_appended(
    stored: xr.Dataset, given: xr.Dataset, dim: str, root: str, blocks: Sequence[Block]
) -> bool:
    """Check that files fit what is stored; return whether they belong between its steps."""
    check_fit(stored, given, dim, root)
    check_places(stored, given, dim, root, blocks)
    return order_of(stored, given, dim) is not None


def check_trees(
    stored: xr.DataTree,
    given: xr.DataTree,
    dim: str,
    root: str,
    blocks_of: Callable[[str, str], Sequence[Block]],
) -> None:
    """Refuse files with groups that differ from those of a group, or belong between its steps.

    Parameters
    ----------
    stored, given : xarray.DataTree
    dim : str
        The dimension along which files are appended.
    root : str
        The path of `stored`, for messages.
    blocks_of : callable
        Takes a dimension and the path of a group of files. Returns which file has which steps.
    """
    ours, theirs = ({n.path: n for n in tree.subtree if n.variables} for tree in (stored, given))
    for path in sorted(ours.keys() ^ theirs.keys()):
        at = f"{root.rstrip('/')}{path}".rstrip("/") or "/"
        if path not in ours:
            raise InvalidInputError(f"there is no group {at!r} to append to: {_ELSEWHERE}")
        if dim in ours[path].dims:
            raise InvalidInputError(
                f"the new files have no group {path.strip('/')!r}, which would be shorter along "
                f"{dim!r} than the others then: {_ELSEWHERE}"
            )
    for path, node in theirs.items():
        at = f"{root.rstrip('/')}{path}".rstrip("/") or "/"
        old, new = (each.to_dataset() for each in (ours[path], node))
        if check_appended(old, new, dim, at, blocks_of(dim, path.strip("/"))):
            raise InvalidInputError(
                f"the new files belong before or between steps of {at!r} along {dim!r}, and files "
                f"with groups are only appended: {_ELSEWHERE}"
            )


def _lines(urls: Sequence[str]) -> str:
    more = [f"  and {len(urls) - _SHOWN} more"] if len(urls) > _SHOWN else []
    return "\n".join([f"  {url}" for url in urls[:_SHOWN]] + more)
