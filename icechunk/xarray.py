"""`icechunk_xarray.to_icechunk` under the name that the official client has for it."""

from __future__ import annotations

from typing import Any

__all__ = ["to_icechunk"]

to_icechunk: Any


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import icechunk_xarray
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{__name__}.{name} needs {error.name}: pip install 'icechunk[xarray]'"
        ) from error
    return getattr(icechunk_xarray, name)
