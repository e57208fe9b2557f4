"""Steps of `to_icechunk` under the names of the official client.

`to_icechunk` needs none of them. They are for programs that drive xarray's Zarr backend
themselves, and write in-memory and lazy values at different times.
"""

from __future__ import annotations

from typing import Any

from xarray.backends.common import ArrayWriter

from icechunk_xarray.xarray_internals import is_chunked_array

__all__ = ["LazyArrayWriter", "is_dask_collection"]


def is_dask_collection(x: Any) -> bool:
    """Whether Dask computes a value."""
    graph = getattr(x, "__dask_graph__", None)
    return callable(graph) and graph() is not None


class LazyArrayWriter(ArrayWriter):
    """A writer for xarray's backends that writes nothing until it is told to.

    Attributes
    ----------
    sources, targets, regions : list
        Dask arrays, their targets, and the parts that they fill: for `ArrayWriter.sync`.
    eager_sources, eager_targets, eager_regions : list
        The same for arrays in memory: for `write_eager`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._forget()

    def _forget(self) -> None:
        self.eager_sources: list[Any] = []
        self.eager_targets: list[Any] = []
        self.eager_regions: list[Any] = []

    def add(self, source: Any, target: Any, region: Any = None) -> None:
        """Record an array to write."""
        if is_chunked_array(source):
            self.sources.append(source)
            self.targets.append(target)
            self.regions.append(region)
        else:
            self.eager_sources.append(source)
            self.eager_targets.append(target)
            self.eager_regions.append(region)

    def write_eager(self) -> None:
        """Write the arrays in memory."""
        noted = zip(self.eager_sources, self.eager_targets, self.eager_regions, strict=True)
        for source, target, region in noted:
            target[... if region is None else region] = source
        self._forget()
