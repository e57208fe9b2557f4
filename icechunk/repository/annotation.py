"""Which commit last changed what in an array, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.base.display import Displayed
from icechunk.base.html import card, note, table
from icechunk.base.texts import counted
from icechunk.base.visible import in_a_line
from icechunk.commit.assets import Assets
from icechunk.commit.snapshot_info import SnapshotInfo
from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import decode_id, normalize_path
from icechunk.format.nodes import Node
from icechunk.format.repo_info import RepoInfo
from icechunk.format.transaction_log import TransactionLog
from icechunk.repository.rereading import while_others_collect
from icechunk.repository.sessions import Sessions
from icechunk.session.context import SessionContext

__all__ = ["Annotation", "Annotations"]

_SHOWN: Final = 50


@dataclass(frozen=True, repr=False, eq=False)
class Annotation(Displayed):
    """Which commit last changed each chunk of an array.

    Attributes
    ----------
    path : str
    chunks : uint32[n, ndim]
        Coordinates of the chunks that have a value, sorted.
    commit : int64[n]
        For each chunk, the position of its commit in `commits`; -1 if that is unknown.
    commits : list of SnapshotInfo
        Newest first. A commit that stands for expired ones before it is in `expired`.
    expired : frozenset of str
        Ids of commits whose changes may come from an older commit that has expired.
    metadata : SnapshotInfo or None
        The commit that last changed the ``zarr.json``, or created the array.
    """

    path: str
    chunks: npt.NDArray[np.uint32]
    commit: npt.NDArray[np.int64]
    commits: list[SnapshotInfo] = field(default_factory=list)
    expired: frozenset[str] = frozenset()
    metadata: SnapshotInfo | None = None

    def of(self, chunk: Sequence[int]) -> SnapshotInfo | None:
        """Return the commit that last changed a chunk, or None if the chunk has no value."""
        rows = np.flatnonzero((self.chunks == np.asarray(chunk, np.uint32)).all(axis=1))
        if not len(rows) or self.commit[rows[0]] < 0:
            return None
        return self.commits[int(self.commit[rows[0]])]

    def to_dict(self) -> dict[str, Any]:
        """Return the values in a form that JSON can express."""
        return {
            "path": self.path,
            "metadata": None if self.metadata is None else self.metadata.id,
            "commits": {
                each.id: {
                    "written_at": each.written_at.isoformat(),
                    "message": each.message,
                    "expired": each.id in self.expired,
                    "chunks": self.chunks[self.commit == place].tolist(),
                }
                for place, each in enumerate(self.commits)
            },
            "unknown": self.chunks[self.commit < 0].tolist(),
        }

    def rows(self) -> Iterator[tuple[str, str, str, int, str]]:
        """Yield id, time, message, number of chunks, and their box, for each commit."""
        for place, each in enumerate(self.commits):
            chunks = self.chunks[self.commit == place]
            box = ", ".join(f"{axis.min()}:{axis.max() + 1}" for axis in chunks.T)
            first = each.message.partition("\n")[0]
            more = " (or before, expired)" if each.id in self.expired else ""
            yield each.id, f"{each.written_at:%Y-%m-%d %H:%M:%S}", first + more, len(chunks), box

    def __repr__(self) -> str:
        lines = [f"<icechunk.Annotation of {in_a_line(self.path)}>"]
        rows = list(self.rows())
        lines += [
            f"{id} {time} {count:>6} [{box}] {in_a_line(told)}"
            for id, time, told, count, box in rows[:_SHOWN]
        ]
        if len(rows) > _SHOWN:
            lines.append(f"and {counted(len(rows) - _SHOWN, 'more commit')}")
        unknown = int((self.commit < 0).sum())
        if unknown:
            lines.append(f"{counted(unknown, 'chunk')} of which nothing is known")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        names = ("commit", "written (UTC)", "message", "chunks", "where")
        count = note(counted(len(self.chunks), "chunk"))
        return card("Annotation", self.path, count, table(names, list(self.rows())))


@dataclass(frozen=True)
class Annotations:
    """Determines which commits changed what.

    Parameters
    ----------
    context : callable
        Returns what the sessions of the repository share.
    sessions : Sessions
    """

    _context: Callable[[], SessionContext]
    _sessions: Sessions

    def annotate(
        self,
        path: str,
        ref: str = "main",
        *,
        region: Sequence[tuple[int, int]] | None = None,
    ) -> Annotation:
        """Return which commit last changed each chunk of an array.

        The search follows the transaction logs, newest first, until all chunks are found.

        Parameters
        ----------
        path : str
            Of the array.
        ref : str, default "main"
            The version, as `resolve` takes it.
        region : sequence of (int, int), optional
            A box ``[from, to)`` of chunk coordinates, per dimension. Default: all chunks.

        Returns
        -------
        Annotation
            For the chunks that have a value. ``print`` it, or ask for the commit `of` a chunk.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError, NodeNotFoundError
            If there is no such version or array.
        StorageError, FormatError
            If a transaction log that is needed cannot be read: without it, the chunks that it
            names would seem to be of older commits.
        InvalidInputError
            If the region has a different number of dimensions.

        Examples
        --------
        >>> print(repo.annotate("/temperature", region=[(0, 10), (0, 1)]))  # doctest: +SKIP
        """
        context = self._context()

        def annotated(note: Callable[[RepoInfo], RepoInfo]) -> Annotation:
            info = note(context.state.load())
            session = self._sessions.at(info, None, None, None, ref, None)
            node, _ = session.tree.require_array(normalize_path(path))
            refs = _in_region(session.chunk_refs(node.path), region)
            tip = decode_id(session.snapshot_id)
            return _annotate(context.assets, info, tip, node, refs)

        # versions may expire and be collected in the meantime
        return while_others_collect(context.state, annotated)


def _annotate(
    assets: Assets, info: RepoInfo, tip: bytes, node: Node, refs: ChunkRefs
) -> Annotation:
    """Follow the history of a version back until all chunks of an array are found.

    Parameters
    ----------
    assets : Assets
    info : RepoInfo
    tip : bytes
    node : Node
        The array, in that version.
    refs : ChunkRefs
        References of the requested chunks.
    """
    owner = np.full(len(refs), -1, np.int64)
    commits: list[SnapshotInfo] = []
    expired: set[str] = set()
    metadata: SnapshotInfo | None = None
    for entry in info.ancestry(tip):
        made = False
        for log_id in (entry.id, *reversed(entry.pruned)):
            try:
                log = assets.transaction_log(log_id)
            except StorageError as error:
                if error.kind is not ErrorKind.OBJECT_NOT_FOUND:
                    raise
                if entry.parent_id is None:
                    continue  # the first snapshot of spec 1 has none
                if log_id == entry.id:
                    raise
                # others may delete logs of expired commits: nothing is known of what is left
                return Annotation(node.path, refs.coords, owner, commits, frozenset(expired))
            told = SnapshotInfo.from_entry(entry)
            made = made or node.id in log.new_arrays
            if metadata is None and (made or node.id in log.updated_arrays):
                metadata = told
            rows = _rows(refs, log, node.id)
            rows = rows[owner[rows] < 0]
            if len(rows):
                if not commits or commits[-1].id != told.id:
                    commits.append(told)
                owner[rows] = len(commits) - 1
                if log_id != entry.id:
                    expired.add(told.id)
        if made or (metadata is not None and (owner >= 0).all()):
            break
    return Annotation(node.path, refs.coords, owner, commits, frozenset(expired), metadata)


def _rows(refs: ChunkRefs, log: TransactionLog, node_id: bytes) -> npt.NDArray[np.int64]:
    parts = [part for part in log.updated_chunks.get(node_id, ()) if part.shape[1] == refs.ndim]
    if not parts:
        return np.empty(0, np.int64)
    rows = refs.find_many(np.concatenate(parts))
    return np.unique(rows[rows >= 0])


def _in_region(refs: ChunkRefs, region: Sequence[tuple[int, int]] | None) -> ChunkRefs:
    """Return the references of the chunks in a box of the grid."""
    if region is None:
        return refs
    if len(region) != refs.ndim:
        raise InvalidInputError(
            f"the region has {counted(len(region), 'dimension')}, but the array has {refs.ndim}"
        )
    inside = np.ones(len(refs), np.bool_)
    for axis, (low, high) in enumerate(region):
        inside &= (refs.coords[:, axis] >= low) & (refs.coords[:, axis] < high)
    return refs.take(np.flatnonzero(inside))
