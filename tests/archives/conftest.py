from __future__ import annotations

from tests.dask_writes.conftest import anywhere, here

__all__ = ["anywhere", "here"]
