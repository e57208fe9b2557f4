"""What the official client has under this name; `icechunk_xarray` holds it."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["LazyArrayWriter", "is_dask_collection", "to_icechunk"]

LazyArrayWriter: Any
is_dask_collection: Any
to_icechunk: Any


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(
            "icechunk_xarray" if name == "to_icechunk" else "icechunk_xarray.official"
        )
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{__name__}.{name} needs {error.name}: pip install 'icechunk[xarray]'"
        ) from error
    return getattr(module, name)
