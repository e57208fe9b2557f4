"""All use of xarray that is not public: a new release may change it.

- `Variable._data`, `Variable._in_memory` and `Dataset._replace`, because the public ways to
  inspect or replace a variable read its values;
- `is_chunked_array`, which also recognizes chunked arrays other than Dask's;
- `ZarrStore.store`, which encodes variables and makes arrays as `Dataset.to_zarr` does, with
  a replacement for its `ArrayWriter`;
- `ZarrStore._fetch_members`, because the public way opens every array of a group, and one that
  cannot be opened takes all others with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import Any, NamedTuple

import xarray as xr
import zarr
from xarray.backends import ZarrStore
from xarray.namedarray.pycompat import is_chunked_array
from zarr.abc.store import Store

__all__ = [
    "EncodedWrite",
    "encode",
    "is_chunked_array",
    "is_in_memory",
    "name_by_version",
    "open_group",
]


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
def open_group(store: Store, path: str, names: Collection[str] | None, **options: Any) -> ZarrStore:
    """Open a group to read it: with all its arrays, or as if it had only those.

    Parameters
    ----------
    store : zarr.abc.store.Store
    path : str
    names : collection of str or None
        Names of arrays; None for all.
    **options : Any
        See `ZarrStore.open_group`.
    """
    options |= {"mode": "r", "group": path, "consolidated": False}
    if names is None:
        group: ZarrStore = ZarrStore.open_group(store, **options)
        return group
    some: _Some = _Some.open_group(store, cache_members=False, **options)
    some.names = names
    return some


class _Some(ZarrStore):
    __slots__ = ("names",)

    names: Collection[str]

    def _fetch_members(self) -> dict[str, Any]:
        return {name: self.zarr_group[name] for name in self.names}


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
