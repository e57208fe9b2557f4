"""Stage one group as xarray would write it: make and resize arrays, write no values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import xarray as xr
import zarr
from xarray.backends import ZarrStore

from icechunk import (
    AlreadyExistsError,
    IcechunkError,
    IcechunkStore,
    InvalidInputError,
    NodeNotFoundError,
)
from icechunk.base.near import meant
from icechunk.base.rectilinear import stored_sizes
from icechunk.errors import ErrorKind
from icechunk_xarray import attributes, safety
from icechunk_xarray.kinds import check_kinds
from icechunk_xarray.names import check_names, check_place
from icechunk_xarray.preparing import in_shape, prepared, with_chunks
from icechunk_xarray.refusals import refused
from icechunk_xarray.regions import edges_of
from icechunk_xarray.time_units import encodable
from icechunk_xarray.values import Check, is_nan, packing_of
from icechunk_xarray.xarray_internals import encode

Mode: TypeAlias = Literal["w", "w-", "a", "a-", "r+"]
Region: TypeAlias = Mapping[str, slice | Literal["auto"]] | Literal["auto"] | None


@dataclass(frozen=True)
class Options:
    """How datasets are written; the names are those of `to_icechunk`."""

    mode: Mode
    append_dim: Hashable | None
    region: Region
    safe_chunks: bool
    align_chunks: bool
    safe_append: bool
    safe_encoding: bool
    #: Arrays that were made for these values, with the requested encoding.
    fresh: frozenset[str] = frozenset()
    #: New arrays whose dtype the caller asked for, and did not come along from a file.
    asked: frozenset[str] = frozenset()


class _Group(ZarrStore):
    """A group whose arrays xarray encodes in the way that readers decode them."""

    #: Arrays whose values are given as they are stored, and are not to be packed once more.
    as_stored: frozenset[str] = frozenset()
    _bounded: dict[str, Mapping[str, Any]] | None = None

    def open_store_variable(self, name: str) -> xr.Variable:
        """Return a variable with all attributes and encodings that its values need.

        - Bounds get the units of what they bound; CF does not require them to repeat these.
        - Units of time get the words by which xarray encodes.
        - Of two marks of missing values, one of which is NaN, the other is kept: xarray
          encodes no values by both.
        - Chunks of several lengths become chunks of one, because xarray writes to no others.
          Existing chunks stay as they are, whatever xarray takes them for.
        - Attributes that say how numbers are packed are left out for values that are packed.
        - Times of other calendars are decoded to find their type. xarray fails on
          times that are all missing, as in a new array, so it is given others.
        """
        variable: xr.Variable = super().open_store_variable(name)  # type: ignore[no-untyped-call]
        for key in ("chunks", "shards"):
            sizes = variable.encoding.get(key)
            if sizes is not None and not all(isinstance(size, int) for size in sizes):
                variable.encoding[key] = tuple(int(np.max(size)) for size in sizes)
        attrs = variable.attrs
        if is_nan(attrs.get("_FillValue")) and not is_nan(attrs.get("missing_value", np.nan)):
            del attrs["_FillValue"]
        for key in packing_of(attrs) if name in self.as_stored else ():
            del attrs[key]
        if "units" not in attrs and variable.dtype.kind in "iuf":
            attrs.update(self._units_of_bounded().get(name, {}))
        attrs.update(encodable(attrs, stored=True))
        if _has_no_moment(variable):
            some = np.broadcast_to(variable.dtype.type(0), variable.shape)
            return xr.Variable(variable.dims, some, attrs, variable.encoding)
        return variable

    def _units_of_bounded(self) -> dict[str, Mapping[str, Any]]:
        """Return the units of times by the names of their bounds."""
        if self._bounded is None:
            self._bounded = {}
            for _, array in self.zarr_group.arrays():
                attrs = dict(array.attrs)
                if "bounds" in attrs and " since " in str(attrs.get("units", "")):
                    units = {key: attrs[key] for key in ("units", "calendar") if key in attrs}
                    self._bounded[str(attrs["bounds"])] = units
        return self._bounded


def _has_no_moment(variable: xr.Variable) -> bool:
    """Whether the first and the last value are missing times of a cftime calendar."""
    if " since " not in str(variable.attrs.get("units", "")) or not variable.size:
        return False

    def decoded(values: Any) -> Any:
        one = xr.Variable(("end",), values, dict(variable.attrs))
        try:
            return xr.conventions.decode_cf_variable("end", one).values
        except ValueError:
            return None

    origin = decoded(np.zeros(1, variable.dtype))
    # times of NumPy may be missing, and are not examined
    if origin is None or origin.dtype.kind != "O":
        return False
    ends = [variable[(end,) * variable.ndim].values for end in (0, -1)]
    return decoded(np.array(ends)) is None


@dataclass(frozen=True)
class PendingWrite:
    """Values, and the part of an array to write them to.

    Attributes
    ----------
    source : numpy.ndarray or dask.array.Array
        Encoded.
    target : zarr.Array
    region : tuple of slice
        Each with a start and a stop.
    """

    source: Any
    target: zarr.Array[Any]
    region: tuple[slice, ...]

    @property
    def is_lazy(self) -> bool:
        """Whether Dask computes the values; xarray loads some variables to encode them."""
        return hasattr(self.source, "dask")


def stage(
    dataset: xr.Dataset,
    store: IcechunkStore,
    group: str,
    encoding: Mapping[str, Mapping[str, Any]],
    options: Options,
) -> list[PendingWrite]:
    """Check a dataset against a group, make its arrays, and return the writes that remain.

    Raises
    ------
    InvalidInputError, AlreadyExistsError, NodeNotFoundError
        If the dataset does not fit what is stored, or the mode does not allow the write.
    """
    check_names(dataset, encoding)
    check_place(dataset, store, group, anew=options.mode == "w")
    existing = _existing(dataset, store, group, options)
    if options.safe_encoding:
        check_kinds(dataset.variables, existing)
    region = None
    if options.region is not None:
        region = safety.resolve_region(dataset, existing, options.region)
    if options.mode not in ("w", "w-"):
        safety.check_against(
            dataset,
            existing,
            encoding,
            mode=options.mode,
            append_dim=options.append_dim,
            region=region,
            safe_append=options.safe_append,
        )
    if region is not None:
        # the region is known, and coordinates that equal the stored ones stay
        is_written = partial(_is_written, store, group)
        settled = safety.settled_coordinates(dataset, existing, region, is_written)
        dataset = dataset.drop_vars(settled)
    backend = _Group.open_group(
        store,
        mode=options.mode,
        group=group,
        append_dim=options.append_dim,
        write_region=region,
        zarr_format=3,
        consolidated=False,
        consolidate_on_close=False,
        safe_chunks=False,  # checked here, on what is stored
    )
    backend.as_stored = _as_stored(dataset, existing)
    variables, attrs = xr.conventions.encode_dataset_coordinates(dataset)
    if options.mode in ("a", "a-"):
        attrs = attributes.of_group(attrs, backend.zarr_group, dataset)
    for name, variable in variables.items():
        try:
            variables[name] = prepared(in_shape(name, variable), existing.get(name))
        except (TypeError, ValueError) as error:
            raise refused(f"variable {name!r} cannot be encoded: {error}") from error
    for name, wanted in encoding.items():
        variables[name].encoding = dict(wanted)
    for name in variables.keys() - existing.keys():
        known = encodable(variables[name].encoding)
        if known != variables[name].encoding:
            variables[name] = variables[name].copy(deep=False)
            variables[name].encoding = known
    if options.align_chunks:
        for name in variables.keys() - existing.keys():
            variables[name] = with_chunks(variables[name])
    asked = {name for name, wanted in encoding.items() if "dtype" in wanted}
    options = replace(options, asked=options.asked | asked)
    try:
        encoded = encode(backend, variables, attrs, set(encoding))
    except IcechunkError:
        raise
    except _XARRAY_RAISES as error:
        raise _not_encodable(backend, variables, set(encoding), error) from error
    if options.mode == "a" and options.append_dim is None and region is None:
        attributes.replace(
            backend.zarr_group, {n: variables[n] for n in existing if n in variables}
        )
    stored = _Group.open_group(store, mode="r", group=group, consolidated=False, zarr_format=3)
    writes = [
        _checked(PendingWrite(*write), dataset, stored, existing, options) for write in encoded
    ]
    whole = _replaced_whole(dataset, existing, options)
    return [
        write
        for write in writes
        if write.target.basename not in whole
        or not _is_stored(write, existing[write.target.basename])
    ]


def _as_stored(dataset: xr.Dataset, existing: Mapping[str, xr.Variable]) -> frozenset[str]:
    """Return the variables whose values are packed, as ``mask_and_scale=False`` reads them.

    Raises
    ------
    InvalidInputError
        If they are packed in another way than the stored ones.
    """
    packed = set()
    for name, variable in dataset.variables.items():
        given = packing_of(variable.attrs)
        if name not in existing or not given:
            continue
        kept = packing_of(existing[str(name)].attrs)
        if given.keys() != kept.keys() or not all(
            np.array_equal(given[key], kept[key]) or (is_nan(given[key]) and is_nan(kept[key]))
            for key in given
        ):
            raise refused(
                f"variable {name!r} has {_plain(given)} among its attributes, as values have that "
                f"are not decoded, and {_plain(kept) or 'no such attributes'} on disk; open it "
                "without mask_and_scale=False, or drop these attributes if they are not meant"
            )
        packed.add(str(name))
    return frozenset(packed)


def _plain(attrs: Mapping[str, Any]) -> str:
    shown = {
        k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for k, v in attrs.items()
    }
    return ", ".join(f"{key}={value!r}" for key, value in shown.items())


def _replaced_whole(
    dataset: xr.Dataset, existing: Mapping[str, xr.Variable], options: Options
) -> set[str]:
    """Return the arrays that are written whole, likely with the values that they have already.

    These are the arrays that an append does not extend, and coordinates in other writes.
    """
    if options.append_dim is not None:
        return {name for name, array in existing.items() if options.append_dim not in array.dims}
    if options.region is not None:
        return set()
    return (set(existing) & set(map(str, dataset.coords))) - options.fresh


def _is_written(store: IcechunkStore, group: str, name: str, region: Sequence[slice]) -> bool:
    """Whether any chunk of a part of an array is stored."""
    path = f"{group}/{name}".strip("/")
    array = zarr.open_array(store, path=path, mode="r")
    touched = tuple(
        slice(
            int(np.searchsorted(edges, bounds[0], side="right")) - 1,
            int(np.searchsorted(edges, bounds[1], side="left")),
        )
        for bounds, edges in zip(
            (part.indices(size) for part, size in zip(region, array.shape, strict=True)),
            edges_of(array),
            strict=True,
        )
    )
    return bool(store.session.written_chunks(path)[touched].any())


def _not_encodable(
    backend: ZarrStore,
    variables: Mapping[Any, xr.Variable],
    checked: set[str],
    error: Exception,
) -> InvalidInputError:
    """Return the error for what xarray cannot encode, naming the variable."""
    culprit = next(
        (n for n in variables if _fails_alike(backend, variables, n, checked, error)), None
    )
    what = "a variable of " + ", ".join(map(repr, variables))
    if culprit is not None:
        what = f"variable {culprit!r}"
        given = {
            key: value for key, value in variables[culprit].encoding.items() if key in _NUMBERS
        }
        if given:
            what += f" with the encoding {_plain(given)}"
    reason = f"{error} is not known" if isinstance(error, KeyError) else str(error)
    if "chunk()" in reason or "Dask chunks" in reason:
        reason = f"{reason.rstrip('.')}, or pass align_chunks=True"
    return refused(f"{what} cannot be encoded: {reason.rstrip('.')}{_meant(reason)}")


#: What xarray raises of values and encodings; the last is cftime's, of times far away.
_XARRAY_RAISES: Final = (
    TypeError,
    ValueError,
    OverflowError,
    NotImplementedError,
    KeyError,
    AttributeError,
)
#: The encodings that xarray computes with.
_NUMBERS: Final = ("dtype", "units", "_FillValue", "missing_value", "scale_factor", "add_offset")
#: The encodings that xarray passes on to Zarr.
_ENCODINGS: Final = ("chunks", "shards", "compressors", "filters", "serializer", "fill_value")


def _meant(reason: str) -> str:
    """Return a hint to add to xarray's complaint about unknown encodings."""
    if "unexpected encoding parameters" not in reason:
        return ""
    name, *_ = [*re.findall(r"'(\w+)'", reason), ""]
    return meant(name, _ENCODINGS) or f"; it may have {', '.join(_ENCODINGS)}"


def _fails_alike(
    backend: ZarrStore,
    variables: Mapping[Any, xr.Variable],
    name: Any,
    checked: set[str],
    error: Exception,
) -> bool:
    """Whether one variable alone raises the same error."""
    try:
        encode(backend, {name: variables[name]}, {}, checked & {name})
    except Exception as other:
        return type(other) is type(error) and str(other) == str(error)
    return False


def _is_stored(write: PendingWrite, stored: xr.Variable) -> bool:
    """Whether a write would repeat exactly what is stored.

    Such a write would appear as a change in every diff, and as a conflict in every rebase.
    """
    if write.is_lazy or stored.shape != write.source.shape:
        return False
    kept, given = np.asarray(stored.values), np.asarray(write.source)
    if kept.dtype.kind in "OTU" and given.dtype.kind in "OTU":
        return bool(np.array_equal(kept.astype(object), given.astype(object)))
    if kept.dtype != given.dtype:
        return False
    # NaN and negative zeros must match, too
    return np.ascontiguousarray(kept).tobytes() == np.ascontiguousarray(given).tobytes()


def _existing(
    dataset: xr.Dataset, store: IcechunkStore, group: str, options: Options
) -> dict[str, xr.Variable]:
    """Return the variables of a group as stored; refuse what the mode excludes."""
    mode = options.mode
    if mode == "w":
        return {}
    try:
        opened = _Group.open_group(store, mode="r", group=group, consolidated=False, zarr_format=3)
    except FileNotFoundError:
        if mode == "r+" or options.append_dim is not None:
            what = "append to" if options.append_dim is not None else "write values to"
            raise NodeNotFoundError(
                f"there is no group {_shown(group)} to {what}{_near(store, group)}; write it once "
                "with mode='w-', or check the name"
            ) from None
        return {}
    if mode == "w-":
        raise AlreadyExistsError(
            f"there is a group {_shown(group)} already: mode='w' replaces it, mode='a' overwrites "
            "and adds variables, append_dim and region add to its arrays"
        )
    found = {}
    for name in opened.array_keys():
        try:
            found[name] = opened.open_store_variable(name)
        except KeyError:
            # useless to xarray, which expects the dimension in all arrays
            if name in dataset.variables or options.append_dim is not None:
                raise refused(
                    f"the array {name!r} on disk has no dimension_names, without which xarray "
                    "neither reads nor writes its group; write into another group, or replace "
                    "this one with mode='w'"
                ) from None
    return found


def _checked(
    write: PendingWrite,
    dataset: xr.Dataset,
    stored: ZarrStore,
    existing: Mapping[str, xr.Variable],
    options: Options,
) -> PendingWrite:
    """Check chunks and values of a write; Dask values are checked when they are computed."""
    name = write.target.basename
    try:
        variable: xr.Variable = stored.open_store_variable(name)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise refused(
            f"variable {name!r} could not be read back as it would be stored: {error}"
        ) from error
    original = dataset.variables[name].transpose(*variable.dims)
    if write.is_lazy and not options.align_chunks:
        grid = stored_sizes(write.target)
        place = (name, original.dims, grid, write.region)
        safety.check_blocks(*place, write.source.chunks)
        if options.mode == "r+" and options.safe_chunks:
            safety.check_region(*place, write.target.shape)
    if not write.is_lazy:
        write = _in_numpy(name, write)
    if not options.safe_encoding:
        return _cast(write)
    is_new = name not in existing or name in options.fresh
    # floats stay floats, but a file that an object came from does not say that 0.5 may become 0
    rounds = is_new and (variable.dtype.kind not in "iu" or name in options.asked)
    check = Check.of(name, original, variable, exact=not rounds)
    if not check.needed(original.dtype, write.source.dtype):
        return _cast(write)
    if not write.is_lazy:
        check(write.source, original.values)
        return write
    import dask.array as da
    from dask.array.utils import meta_from_array

    blocks: Any = da.map_blocks
    meta = meta_from_array(write.source)
    source = blocks(check, write.source, original.data, dtype=write.source.dtype, meta=meta)
    return _cast(replace(write, source=source))


def _in_numpy(name: str, write: PendingWrite) -> PendingWrite:
    """Return a write of a NumPy array; arrays of other packages may refuse to become one."""
    try:
        return replace(write, source=np.asarray(write.source))
    except (TypeError, ValueError) as error:
        raise refused(
            f"variable {name!r} cannot be made an array of NumPy: {error}; convert it first"
        ) from error


def _cast(write: PendingWrite) -> PendingWrite:
    """Return a write of Dask values in the dtype of their array.

    Whether this loses anything is settled by now. All that remains to refuse are blocks whose
    dtype differs from what Dask declared.
    """
    wanted = write.target.dtype
    if not write.is_lazy or write.source.dtype == wanted or write.source.dtype.kind == "O":
        return write
    return replace(write, source=write.source.astype(wanted))


def choose_mode(mode: str | None, append_dim: Hashable | None, region: Region) -> Mode:
    """Return the mode that the arguments ask for.

    Raises
    ------
    InvalidInputError
        If they contradict each other.
    """
    if not isinstance(append_dim, Hashable):
        raise InvalidInputError(f"append_dim is {append_dim!r}: expected the name of a dimension")
    if mode is None:
        if append_dim is not None:
            return "a"
        return "w-" if region is None else "r+"
    if mode not in ("w", "w-", "a", "a-", "r+"):
        raise InvalidInputError(
            f"mode is {mode!r}: expected 'w', 'w-', 'a', 'a-' or 'r+'",
            ErrorKind.NOT_ALLOWED,
        )
    if append_dim is not None and mode not in ("a", "a-"):
        raise InvalidInputError(
            f"append_dim={append_dim!r} adds to arrays, mode={mode!r} does not: leave mode out, "
            "or pass 'a' or 'a-'",
            ErrorKind.NOT_ALLOWED,
        )
    if region is not None and mode not in ("a", "a-", "r+"):
        raise InvalidInputError(
            f"region is a part of arrays that exist, mode={mode!r} makes new ones: leave mode "
            "out, or pass 'r+', 'a' or 'a-'",
            ErrorKind.NOT_ALLOWED,
        )
    return mode  # type: ignore[return-value]


def _near(store: IcechunkStore, group: str) -> str:
    """Return a hint that names groups of similar names."""
    groups = [node.path for node in store.session.tree.within("/") if not node.is_array]
    near = difflib.get_close_matches("/" + group.strip("/"), groups)
    return f"; there is {' or '.join(map(repr, near))}" if near else ""


def _shown(group: str) -> str:
    return repr("/" + group.strip("/"))
