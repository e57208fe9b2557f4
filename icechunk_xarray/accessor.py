"""The accessor: ``ds.icechunk.to_icechunk(...)``, after ``import icechunk_xarray``."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import xarray as xr

from icechunk_xarray.groups import Writable
from icechunk_xarray.writer import to_icechunk


@xr.register_dataset_accessor("icechunk")  # type: ignore[no-untyped-call]
@xr.register_dataarray_accessor("icechunk")  # type: ignore[no-untyped-call]
@xr.register_datatree_accessor("icechunk")  # type: ignore[no-untyped-call]
class IcechunkAccessor:
    """The Icechunk methods of Datasets, DataArrays and DataTrees.

    xarray finds the engine ``icechunk`` by itself; the accessor exists once `icechunk_xarray`
    is imported.

    Examples
    --------
    >>> snapshot = ds.icechunk.to_icechunk("year", message="A year")
    """

    def __init__(self, obj: Writable) -> None:
        self._obj = obj

    @property
    def to_icechunk(self) -> Callable[..., Any]:
        """`icechunk_xarray.to_icechunk` with this object."""
        # as a bound method, it shows its parameters in help()
        return MethodType(to_icechunk, self._obj)

    def __repr__(self) -> str:
        return f"<icechunk accessor of a {type(self._obj).__name__}: to_icechunk(target, ...)>"
