"""Work as a list of steps, to be done by both sides, whatever sense it makes."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.core.sync import sync

import icechunk
from tests.interop.base import create

Step = list[Any]


class Work:
    """Does steps in a repository; a session begins with the first step that needs one."""

    def __init__(self, repo: Any) -> None:
        self._repo = repo
        self._session: Any = None
        self._moves = False
        self._commits = 0

    def do(self, step: Step) -> str:
        """Do one step; return what became of it."""
        name, *arguments = step
        try:
            getattr(self, name)(*arguments)
        except icechunk.IcechunkError as error:
            return f"{type(error).__name__} {error.kind}"
        except Exception:
            # of zarr, which is not the same version on both sides
            return "refused"
        return "done"

    def _open(self, *, moves: bool) -> Any:
        """Return a session that edits, or one that moves; the other one is committed."""
        if self._session is not None and moves is not self._moves:
            self.finish("commit")
        if self._session is None:
            repo = self._repo
            open_session = repo.rearrange_session if moves else repo.writable_session
            self._session, self._moves = open_session("main"), moves
        return self._session

    def _root(self) -> zarr.Group:
        return zarr.open_group(self._open(moves=False).store, mode="a")

    def _key(self, path: str, index: int) -> str:
        """Return the key of a chunk, of the rank that the array has."""
        node = self._root().get(path)
        ndim = node.ndim if isinstance(node, zarr.Array) else 1
        return "/".join([path, "c", str(index), *"0" * (ndim - 1)])

    def array(self, path: str, length: int, overwrite: bool) -> None:
        """Create an array with chunks of two elements."""
        create(self._root(), path, (length,), (2,), overwrite=overwrite)

    def group(self, path: str, overwrite: bool) -> None:
        """Create a group."""
        self._root().create_group(path, overwrite=overwrite)

    def write(self, path: str, start: int, length: int, value: int) -> None:
        """Write to an array; 0 erases."""
        array = self._root()[path]
        assert isinstance(array, zarr.Array)
        array[start : start + length] = value

    def resize(self, path: str, length: int) -> None:
        """Resize an array along its first dimension."""
        array = self._root()[path]
        assert isinstance(array, zarr.Array)
        array.resize((length, *array.shape[1:]))

    def attribute(self, path: str, value: int) -> None:
        """Set an attribute of a node."""
        self._root()[path].attrs["x"] = value

    def delete(self, path: str) -> None:
        """Delete a node with all below it."""
        del self._root()[path]

    def delete_chunk(self, path: str, index: int) -> None:
        """Delete a chunk."""
        sync(self._root().store.delete(self._key(path, index)))

    def virtual(self, path: str, index: int) -> None:
        """Make a chunk refer to a file that nobody reads."""
        store: Any = self._root().store
        key = self._key(path, index)
        store.set_virtual_ref(key, f"s3://bucket/{index}", offset=index, length=8)

    def move(self, source: str, target: str) -> None:
        """Move a node."""
        self._open(moves=True).move(f"/{source}", f"/{target}")

    def finish(self, how: str) -> None:
        """End the session by `commit`, `amend`, `flush` or `discard_changes`."""
        session, self._session = self._session, None
        if session is not None and how == "discard_changes":
            session.discard_changes()
        elif session is not None:
            self._commits += 1
            getattr(session, how)(f"commit {self._commits}")
