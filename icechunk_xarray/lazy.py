"""Dask variables of `to_icechunk`: written with `icechunk_dask`, now or later.

There is no other way to write them: `icechunk_dask` needs only Dask itself, whose
threaded scheduler works without distributed.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import zarr
from zarr.storage import StorePath

from icechunk import IcechunkStore, InvalidInputError, Session, SessionStateError, TaskError
from icechunk.errors import ErrorKind
from icechunk_xarray.staging import PendingWrite

if TYPE_CHECKING:
    from icechunk_dask import Status

#: Objects that refer to the whole program, or to nothing.
_OPAQUE = (type, ModuleType, str, bytes, int, float, bool, type(None))


@dataclass(frozen=True)
class LazyWrite:
    """How Dask variables are written: all in one computation.

    The names are those of `to_icechunk`.
    """

    split_every: int | None
    align_chunks: bool
    progress: bool | Callable[[Status], object] | None
    options: Mapping[str, Any]

    def check(self, *, compute: bool) -> None:
        """Refuse options that do not apply to Dask."""
        if self.options and not compute:
            raise InvalidInputError(
                "chunkmanager_store_kwargs say how to compute, which compute=False does not: pass "
                f"{', '.join(self.options)} to compute() of the result",
                ErrorKind.NOT_ALLOWED,
            )
        if not self.options:
            return
        own = inspect.signature(_store_dask()).parameters
        for name in self.options:
            if name in own and name not in ("executor", "stragglers", "timeout"):
                raise InvalidInputError(
                    f"chunkmanager_store_kwargs has {name!r}, which to_icechunk decides itself: "
                    "it is for options of Dask, such as scheduler or retries",
                    ErrorKind.NOT_ALLOWED,
                )

    def write(self, writes: list[PendingWrite]) -> None:
        """Write into the session that the targets belong to.

        Raises
        ------
        TaskError
        InvalidInputError
            If, among other reasons, a value cannot be stored.
        """
        if writes:
            self.store(writes)

    def store(self, writes: list[PendingWrite], **how: Any) -> Any:
        """Write with `icechunk_dask.store_dask`."""
        try:
            return self._store(writes, progress=self.progress, **self.options, **how)
        except TaskError as error:
            refusal = error.__cause__
            if not isinstance(refusal, InvalidInputError):
                raise
            # an error about a value: the region that the task names stays in the cause
            refused = InvalidInputError(refusal.message, refusal.kind)
            for note in getattr(error, "__notes__", ()):
                refused.add_note(note)
            raise refused from error

    def check_own_reads(self, writes: list[PendingWrite], session: Session, group: str) -> None:
        """Refuse to replace a group from which values are computed later.

        Raises
        ------
        InvalidInputError
        """
        if not writes:
            return
        top = f"/{group}/".replace("//", "/")
        for write in writes:
            for path in sorted(_arrays_read(write.source, session)):
                if path.startswith(top) and session.tree.get(path) is not None:
                    raise InvalidInputError(
                        f"variable {write.target.basename!r} is computed from {path!r} of the same "
                        "session, which mode='w' replaces now, so compute() would find nothing "
                        "there: leave out compute=False, or open the source from "
                        "Repository.readonly_session(branch)",
                        ErrorKind.NOT_ALLOWED,
                    )

    def delay(self, writes: list[PendingWrite], session: Session) -> Any:
        """Return a `Delayed` that writes into a session when it is computed."""
        from dask.delayed import delayed

        if not writes:
            return delayed(None)
        targets = [replace(write, target=_same(write.target, session)) for write in writes]
        return self._store(targets, compute=False).then(_Merge(session))

    def _store(self, writes: list[PendingWrite], **options: Any) -> Any:
        return _store_dask()(
            sources=[write.source for write in writes],
            targets=[write.target for write in writes],
            regions=[write.region for write in writes],
            split_every=self.split_every,
            align_chunks=self.align_chunks,
            **options,
        )


class _Merge:
    """The last step of a delayed write: merges the changes of the tasks into a session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, changes: bytes) -> None:
        self._session.merge_change_sets([changes])

    def __reduce__(self) -> NoReturn:
        raise SessionStateError(
            "a write with compute=False changes a session that only this process has: call the "
            "compute() of the result itself, or compute it with scheduler='threads'"
        )


def _store_dask() -> Callable[..., Any]:
    # without Dask variables, Dask is not needed
    try:
        from icechunk_dask import store_dask
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Dask variables are written with icechunk_dask, which needs {error.name}: "
            "pip install 'icechunk[dask]'"
        ) from error
    return store_dask


def _same(array: zarr.Array[Any], session: Session) -> zarr.Array[Any]:
    """Return an array, with its configuration, as a session sees it."""
    place = StorePath(session.store, array.path)
    return zarr.Array(zarr.AsyncArray(array.metadata, place, array.async_array.config))


def _arrays_read(source: Any, session: Session) -> set[str]:
    """Return the paths of the arrays of a session that a Dask array may be computed from.

    Parameters
    ----------
    source : dask.array.Array
    session : Session
        This very session: a fork does not count, because it has a state of its own.
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
        # keeps it alive, or another object may get its id
        keep.append(value)
        if isinstance(value, zarr.Array):
            store = value.store
            if isinstance(store, IcechunkStore) and store.session is session:
                found.add("/" + value.path.strip("/"))
            continue
        waiting.extend(_referents(value))
    return found


def _referents(value: Any) -> Iterable[Any]:
    """Return what a value refers to, without the globals of a function's module."""
    if isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    return [each for each in gc.get_referents(value) if not isinstance(each, IcechunkStore)]
