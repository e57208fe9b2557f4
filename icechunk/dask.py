"""What the official client has under this name; `icechunk_dask` holds it."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "computing_meta",
    "merge_sessions_array_kwargs",
    "session_merge_reduction",
    "store_dask",
]

computing_meta: Any
merge_sessions_array_kwargs: Any
session_merge_reduction: Any
store_dask: Any


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(
            "icechunk_dask" if name == "store_dask" else "icechunk_dask.official"
        )
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{__name__}.{name} needs {error.name}: pip install 'icechunk[dask]'"
        ) from error
    return getattr(module, name)
