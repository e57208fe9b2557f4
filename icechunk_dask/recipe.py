"""What a worker needs to open a repository as the coordinator sees it: once in the graph.

A recipe holds a fork of the coordinator's session: the storage with the credentials that the
user gave, the base snapshot, and what the coordinator has done since. Tasks refer to it by
its key, so that it travels to each worker once and no task grows with it.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import cloudpickle
import zarr
from zarr.storage import StorePath

from icechunk import ForkSession, InternalError, InvalidInputError, Session

__all__ = ["Recipe"]


@dataclass(frozen=True)
class _Content:
    fork: ForkSession
    # metadata and runtime configuration by path
    arrays: dict[str, tuple[Any, Any]]
    function: Callable[..., Any] | None


#: How many repositories a process keeps open. One job needs one at a time; a job in batches
#: needs one per batch.
_KEPT: Final = 2
_opened: Final[OrderedDict[str, _Content]] = OrderedDict()
_lock: Final = threading.Lock()


class Recipe:
    """A fork that each process opens at most once, and that gives forks to tasks.

    Parameters
    ----------
    session : Session
        The coordinator's session: writable, or a fork.
    arrays : iterable of zarr.Array
        The arrays that tasks write to, with the configuration that they are to have there.
    function : callable, optional
        What tasks call.
    """

    def __init__(
        self,
        session: Session,
        arrays: Iterable[zarr.Array[Any]] = (),
        function: Callable[..., Any] | None = None,
    ) -> None:
        self.token = uuid.uuid4().hex
        known = {array.path: (array.metadata, array.async_array.config) for array in arrays}
        self._content: _Content | None = _Content(session.fork(pack=True), known, function)
        self._pickled = b""

    def fork(self) -> ForkSession:
        """Return a session for one task, with no changes of its own."""
        # forks of a fork without changes of its own equal that fork
        return self._open().fork.fork()

    @property
    def function(self) -> Callable[..., Any]:
        """What tasks call."""
        function = self._open().function
        if function is None:
            raise InternalError("this recipe has no function")
        return function

    def check_travels(self) -> None:
        """Refuse a function that cannot be sent to other processes.

        Raises
        ------
        InvalidInputError
        """
        try:
            self.__getstate__()
        except Exception as error:
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise InvalidInputError(
                f"the function {name} cannot be sent to workers: {error}. What it uses from "
                "outside must pickle; let it open files, locks and sessions itself"
            ) from error

    def array(self, fork: ForkSession, path: str) -> zarr.Array[Any]:
        """Return an array of a session for one task, without a request to the store."""
        metadata, config = self._open().arrays[path]
        place = StorePath(fork.store, path)
        return zarr.Array(zarr.AsyncArray(metadata, place, config))

    def _open(self) -> _Content:
        if self._content is None:
            with _lock:
                content = _opened.get(self.token)
                if content is None:
                    # under the lock: otherwise all threads of a worker would open it at once
                    content = _opened[self.token] = _Content(*cloudpickle.loads(self._pickled))
                _opened.move_to_end(self.token)
                while len(_opened) > _KEPT:
                    _opened.popitem(last=False)
            self._content = content
        return self._content

    def __getstate__(self) -> dict[str, Any]:
        if not self._pickled:
            # once, however many processes it goes to; by value where the user's credentials
            # function lives in a script
            content = self._open()
            self._pickled = cloudpickle.dumps((content.fork, content.arrays, content.function))
        return {"token": self.token, "pickled": self._pickled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.token = state["token"]
        self._pickled = state["pickled"]
        self._content = None

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + len(self._pickled)

    def __dask_tokenize__(self) -> str:
        return self.token

    def __repr__(self) -> str:
        return f"<icechunk_dask.Recipe {self.token}>"
