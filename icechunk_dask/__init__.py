"""Dask writes into an Icechunk repository: in parallel, and committed as one.

`store_dask` stores Dask arrays. `distributed_write` calls a function for each of many items
and keeps what the function writes. Threads, processes and clusters work with the same call.
`written_chunks` says what is already stored. `virtualize` makes one dataset of the files of an
archive without copying their data, and `remove_files` takes files out; `ingest` copies them. These
need ``icechunk[virtual]``, too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    from icechunk_dask.archives.report import VirtualizeReport
    from icechunk_dask.batches import Written
    from icechunk_dask.items import distributed_write
    from icechunk_dask.part import TaskRun
    from icechunk_dask.progress import Status
    from icechunk_dask.write import store_dask, written_chunks
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"icechunk_dask needs {error.name}: pip install 'icechunk[dask]'", name=error.name
    ) from error

if TYPE_CHECKING:
    from icechunk_dask.archives.virtualize import remove_files, virtualize
    from icechunk_xarray.copying import ingest

__all__ = [
    "Status",
    "TaskRun",
    "VirtualizeReport",
    "Written",
    "distributed_write",
    "ingest",
    "remove_files",
    "store_dask",
    "virtualize",
    "written_chunks",
]


def __getattr__(name: str) -> Any:
    # only these need what reads NetCDF files; `ingest` lies above, with xarray's parts
    if name not in ("ingest", "remove_files", "virtualize"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(
            "icechunk_xarray.copying" if name == "ingest" else "icechunk_dask.archives.virtualize"
        )
    except ModuleNotFoundError as error:
        raise ImportError(
            f"icechunk_dask.{name} needs {error.name}: pip install 'icechunk[dask,virtual]'"
        ) from error
    return getattr(module, name)
