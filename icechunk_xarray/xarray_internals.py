"""All use of xarray that is not public: a new release may change it.

- `Variable._data`, `Variable._in_memory` and `Dataset._replace`, because the public ways to
  inspect or replace a variable read its values;
- `is_chunked_array`, which also recognizes chunked arrays other than Dask's;
- `ZarrStore.store`, which encodes variables and makes arrays as `Dataset.to_zarr` does, with
  a replacement for its `ArrayWriter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import xarray as xr
import zarr
from xarray.backends import ZarrStore
from xarray.namedarray.pycompat import is_chunked_array

__all__ = ["EncodedWrite", "encode", "is_chunked_array", "is_in_memory", "name_by_version"]


def is_in_memory(variable: xr.Variable) -> bool:
    """Whether the values of a variable are in memory, neither in a file nor to be computed."""
    return bool(variable._in_memory)


# -- writing ------------------------------------------------------------------------------
class EncodedWrite(NamedTuple):
    """Encoded values, and the part of an array that xarray would write them to."""

    source: Any
    target: zarr.Array[Any]
    region: tuple[slice, ...]


class _Collector:
    """Replaces xarray's `ArrayWriter`, and writes nothing."""

    def __init__(self) -> None:
        self.writes: list[EncodedWrite] = []

    def add(self, source: Any, target: zarr.Array[Any], region: Any = None) -> None:
        """Record what xarray would write."""
        if not source.size:
            return
        cuts = region or (slice(None),) * target.ndim
        bounds = zip(cuts, target.shape, strict=True)
        explicit = tuple(slice(*cut.indices(size)[:2]) for cut, size in bounds)
        self.writes.append(EncodedWrite(source, target, explicit))


def encode(
    group: ZarrStore,
    variables: Mapping[Any, xr.Variable],
    attrs: Mapping[Any, Any],
    checked: Set[str],
) -> list[EncodedWrite]:
    """Encode variables for a group, make or resize its arrays, and return what is to be written.

    Parameters
    ----------
    group : ZarrStore
    variables : mapping
    attrs : mapping
        Attributes of the group.
    checked : set of str
        Variables whose encodings Zarr must understand.
    """
    collector = _Collector()
    group.store(variables, attrs, checked, collector)  # type: ignore[no-untyped-call]
    return collector.writes


# -- reading ------------------------------------------------------------------------------
class _Variable(xr.Variable):
    """A variable whose Dask tasks are named after the version that it reads.

    xarray names tasks after what was opened: for a URL, that is the text, which stays the
    same while a branch moves. Dask treats tasks of one name as identical, so the
    difference of two versions would be zero.
    """

    __slots__ = ()

    def chunk(self, chunks: Any = {}, *, from_array_kwargs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]  # noqa: B006
        """Return a plain variable of Dask chunks; see `xarray.Variable.chunk`."""
        from dask.base import tokenize

        options = dict(from_array_kwargs or {})
        if options.get("name"):
            # the data holds the store, and the store its snapshot
            options["name"] += f"-{tokenize(self._data)}"
        plain = xr.Variable(self.dims, self._data, self.attrs, self.encoding, fastpath=True)
        return plain.chunk(chunks, from_array_kwargs=options, **kwargs)


def name_by_version(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with variables whose Dask tasks differ from version to version."""
    named = dataset._replace(
        {
            name: variable
            if variable._in_memory
            else _Variable(
                variable.dims, variable._data, variable.attrs, variable.encoding, fastpath=True
            )
            for name, variable in dataset.variables.items()
        }
    )
    named.set_close(dataset.close)
    return named
