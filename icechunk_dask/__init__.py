"""Dask writes into an Icechunk repository: in parallel, and committed as one.

`store_dask` stores Dask arrays. Threads, processes and clusters work with the same call.
"""

from icechunk_dask.write import store_dask

__all__ = ["store_dask"]
