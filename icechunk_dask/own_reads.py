"""Whether what Dask is to compute reads arrays of a session."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from types import FunctionType, MethodType, ModuleType
from typing import Any

import zarr

from icechunk import IcechunkStore, Session

__all__ = ["arrays_read"]

#: What refers to the whole program, or to nothing.
_OPAQUE = (type, ModuleType, str, bytes, int, float, bool, type(None))


def arrays_read(source: Any, session: Session) -> set[str]:
    """Return the paths of the arrays of a session that a Dask array may be computed from.

    Parameters
    ----------
    source : dask.array.Array
    session : Session
        The very one: a fork of it does not count, which has a state of its own.
    """
    found: set[str] = set()
    graph = source.dask
    layers = getattr(graph, "layers", {}).values()
    waiting: list[Any] = [*layers] or [graph]
    seen: set[int] = set()
    keep: list[Any] = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, _OPAQUE) or id(value) in seen:
            continue
        seen.add(id(value))
        # or its id may become that of another one
        keep.append(value)
        if isinstance(value, zarr.Array):
            store = value.store
            if isinstance(store, IcechunkStore) and store.session is session:
                found.add("/" + value.path.strip("/"))
            continue
        waiting.extend(_referents(value))
    return found


def _referents(value: Any) -> Iterable[Any]:
    """Return what a value refers to, without the names of the module that a function is in."""
    if isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    return [each for each in gc.get_referents(value) if not isinstance(each, IcechunkStore)]
