"""Transactional, versioned storage for Zarr v3, in Python and NumPy.

An independent implementation of the open Icechunk format. Start with
`Repository.create` and `Repository.open`; `Session.store` is a Zarr store.

Names are imported on first use: a program that only asks for the version, or for help on the
command line, does not wait for Zarr. The stub beside this file lists them, and where each
is defined.
"""

from __future__ import annotations

import ast
import pkgutil
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_STUB = pkgutil.get_data(__name__, "__init__.pyi") or b""
#: The module that defines each name.
_HOME = {
    alias.name: str(statement.module)
    for statement in ast.parse(_STUB).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is not None:
        value = globals()[name] = getattr(import_module(module), name)
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
