"""Dask writes into an Icechunk repository: in parallel, and committed as one.

`store_dask` stores Dask arrays, `distributed_write` calls a function for each of many items
and keeps what it writes. Threads, processes and clusters work with the same call.
`written_chunks` says what is there already.
"""

from icechunk_dask.batches import Written
from icechunk_dask.grid import written_chunks
from icechunk_dask.items import distributed_write
from icechunk_dask.progress import Status
from icechunk_dask.write import store_dask

__all__ = ["Status", "Written", "distributed_write", "store_dask", "written_chunks"]
