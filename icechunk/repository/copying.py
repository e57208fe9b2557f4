"""Copy versions into another repository, byte for byte: their chunks, manifests and history.

Objects keep their names, so existing ones are not copied again: an interrupted copy
can be continued, and a later one transfers only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from icechunk.base.display import Displayed
from icechunk.base.threads import Threads
from icechunk.commit.assets import Assets
from icechunk.commit.building import now_microseconds
from icechunk.commit.publish import RepoState
from icechunk.commit.version_names import resolve_ref
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    RepositoryNotFoundError,
)
from icechunk.format import layout
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, OBJECT_ID_SIZE, encode_id, encode_ids
from icechunk.format.repo_info import RepoInfo, SnapshotEntry
from icechunk.format.updates import UpdateEntry, UpdateKind
from icechunk.repository import archive_tables
from icechunk.repository.listing import Listing
from icechunk.repository.reachable import batches
from icechunk.repository.recipe import context_at
from icechunk.repository.rereading import while_others_collect
from icechunk.session.context import SessionContext
from icechunk.storage import AnyStorage

__all__ = ["Copied", "Copier", "Copying"]

#: What is being copied, how many are done, and how many there are.
Progress: TypeAlias = Callable[[str, int, int], None]
_THREADS: Final = 16
_AT_A_TIME: Final = 1000


@dataclass(frozen=True)
class Copied(Displayed):
    """What was copied into another repository.

    Attributes
    ----------
    url : str
        URL of the other repository.
    branch : str
        The branch of the other repository that is at the version now.
    snapshot_id : str
    snapshots : int
        Versions of its history that it did not have before.
    objects, nbytes : int
        Stored in the other repository.
    skipped : int
        Objects that the other repository already had.
    """

    url: str
    branch: str
    snapshot_id: str
    snapshots: int
    objects: int
    nbytes: int
    skipped: int


@dataclass(frozen=True)
class Copying:
    """Copies versions of a repository into others.

    Parameters
    ----------
    context : callable
        Returns what the sessions of the repository share.
    """

    _context: Callable[[], SessionContext]

    def copy_to(
        self,
        target: AnyStorage,
        ref: str = "main",
        *,
        branch: str | None = None,
        history: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Copied:
        """Copy a version into another repository, with its history and its chunks.

        Objects are copied byte for byte and keep their names, so snapshot ids mean the
        same there. Existing objects are skipped: an interrupted copy continues when it
        is called again, and a later one transfers only what is new. Virtual references are
        copied unchanged. The branch moves when everything is there. Do not collect garbage in
        the target in the meantime.

        Parameters
        ----------
        target : Storage, str or path
            A place without a repository, or with a copy of this one.
        ref : str, default "main"
            The version, as `resolve` takes it.
        branch : str, optional
            The branch of the target that will be at it. Default: `ref` if that is the name of
            a branch, else ``main``.
        history : bool, default True
            Whether to copy all earlier versions, too. Otherwise they count as expired there.
        progress : callable, optional
            Called with what is being copied, how many are done, and how many there are.

        Returns
        -------
        Copied

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version.
        InvalidInputError
            If the target is a different repository.
        ConflictError
            If its branch has commits that are not in the history of the version.
        FormatError
            If either is of spec version 1; `icechunk.upgrade_icechunk_repository` helps.

        Examples
        --------
        >>> repo.copy_to("s3://backup/weather")  # doctest: +SKIP
        """
        context = self._context()
        context.state.require_version_2("a copy of versions")
        other = context_at(target, context.config)
        copier = Copier(context.assets.uncached(), other.assets.uncached(), other.state, progress)

        def copied(note: Callable[[RepoInfo], RepoInfo]) -> Copied:
            info = note(context.state.load())
            at = branch if branch is not None else ref if ref in info.branches else "main"
            return copier.run(info, resolve_ref(info, ref), at, history=history)

        # versions may expire and be collected in the meantime
        return while_others_collect(context.state, copied)


class Copier:
    """One copy of a version with its history.

    Parameters
    ----------
    assets : Assets
        Assets of the source, without a cache.
    target : Assets
    state : RepoState
        State of the target.
    progress : callable, optional
    """

    def __init__(
        self,
        assets: Assets,
        target: Assets,
        state: RepoState,
        progress: Progress | None = None,
    ) -> None:
        self._assets = assets
        self._target = target
        self._state = state
        self._progress = progress or (lambda what, done, total: None)
        self._objects = self._bytes = self._skipped = 0

    def run(self, info: RepoInfo, tip: bytes, branch: str, *, history: bool) -> Copied:
        """Copy a version, with its whole history or none, and move a branch of the target to it."""
        entries = list(info.ancestry(tip))
        if not history and len(entries) > 1:
            # as if everything between had expired: a rebase still replays their logs
            newest, *between, first = entries
            logs = [log for each in reversed(between) for log in (*each.pruned, each.id)]
            pruned = (*logs, *newest.pruned)
            entries = [replace(newest, parent_id=first.id, pruned=pruned), first]
        known = self._known(entries)
        new = [entry for entry in entries if entry.id not in known]
        ids, manifests, tables = self._needed(new)
        self._copy_ids(layout.CHUNKS, ids)
        self._copy_ids(layout.MANIFESTS, manifests)
        self._copy("archives", sorted(tables))
        logs = [id for entry in new for id in (*entry.pruned, entry.id)]
        self._copy("logs", map(layout.transaction_key, logs), len(logs), is_optional=True)
        self._copy("snapshots", [layout.snapshot_key(entry.id) for entry in new])
        self._publish(info, entries, tip, branch)
        # leftovers of an earlier copy may have been collected before they were needed again
        self._copy_ids(layout.CHUNKS, ids, is_check=True)
        self._copy_ids(layout.MANIFESTS, manifests, is_check=True)
        return Copied(
            self._target.storage.url,
            branch,
            encode_id(tip),
            len(new),
            self._objects,
            self._bytes,
            self._skipped,
        )

    def _known(self, entries: list[SnapshotEntry]) -> set[bytes]:
        """Return the versions that the target has.

        Raises
        ------
        InvalidInputError
            If it is an independent repository.
        """
        try:
            there = self._state.load()
        except RepositoryNotFoundError:
            return set()
        self._state.require_version_2("a copy of versions")
        first = there.snapshots.get(entries[-1].id)
        if first is None or first.flushed_at != entries[-1].flushed_at:
            raise InvalidInputError(
                f"{self._target.storage.url} has another history and is not a copy of "
                f"{self._assets.storage.url}: copy to a place where there is none",
                ErrorKind.NOT_ALLOWED,
            )
        return {entry.id for entry in entries if entry.id in there.snapshots}

    # -- objects -----------------------------------------------------------------------------
    def _needed(
        self, entries: list[SnapshotEntry]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], set[str]]:
        """Return the ids of chunks and manifests, and the keys of archive tables."""
        manifests: set[bytes] = set()
        tables: set[str] = set()
        for entry in entries:
            snapshot = self._assets.snapshot(entry.id)
            manifests.update(snapshot.manifest_files)
            for node in snapshot.nodes():
                tables |= archive_tables.tables_in(node.user_data)
        ids = np.empty((0, OBJECT_ID_SIZE), np.uint8)
        with Threads(_THREADS) as pool:
            for batch in batches(sorted(manifests), _THREADS):
                ids = _distinct([ids, *pool.map(self._assets.chunk_ids, batch)])
        rows = np.frombuffer(b"".join(sorted(manifests)), np.uint8)
        return ids, rows.reshape(-1, OBJECT_ID_SIZE), tables

    def _copy_ids(self, folder: str, ids: npt.NDArray[np.uint8], *, is_check: bool = False) -> None:
        """Copy objects that the target lacks, or has only in part."""
        ours, theirs = (
            Listing(storage.list(folder), folder)
            for storage in (self._assets.storage, self._target.storage)
        )
        here, there = ours.find(ids), theirs.find(ids)
        done = there >= 0
        if len(theirs.size) and len(ours.size):
            done &= (here < 0) | (ours.size[here] == theirs.size[there])
        if not is_check:
            self._skipped += int(done.sum())
        left = ids[~done]
        parts = (left[at : at + _AT_A_TIME] for at in range(0, len(left), _AT_A_TIME))
        names = (folder + name for part in parts for name in encode_ids(part))
        self._copy(folder.rstrip("/"), names, len(left))

    def _copy(
        self, what: str, keys: Iterable[str], count: int | None = None, *, is_optional: bool = False
    ) -> None:
        source, target = self._assets.storage, self._target.storage
        if isinstance(keys, list):
            count = len(keys)

        def copy(key: str) -> int | None:
            try:
                data = source.get(key).data
            except ObjectNotFoundError:
                # the first snapshot of an upgraded repository has no log
                if not is_optional:
                    raise
                return None
            target.put(key, data)
            return memoryview(data).nbytes

        done = 0
        with Threads(_THREADS) as pool:
            for batch in batches(keys, _AT_A_TIME):
                for size in pool.map(copy, batch):
                    done += 1
                    self._objects += size is not None
                    self._bytes += size or 0
                self._progress(what, done, count or 0)

    # -- the state -----------------------------------------------------------------------------
    def _publish(
        self, source: RepoInfo, entries: list[SnapshotEntry], tip: bytes, branch: str
    ) -> None:
        try:
            self._state.load()
        except RepositoryNotFoundError:
            self._create(source, entries, tip, branch)
            return

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            snapshots = dict(info.snapshots)
            snapshots.update({each.id: each for each in entries if each.id not in snapshots})
            changed = replace(info, snapshots=snapshots, branches={**info.branches, branch: tip})
            old = info.branches.get(branch)
            if old is None:
                return changed, UpdateEntry(kind=UpdateKind.BRANCH_CREATED, name=branch)
            if old not in {entry.id for entry in entries}:
                raise ConflictError(
                    message=f"the branch {branch!r} of {self._target.storage.url} is at "
                    f"{encode_id(old)}, which is not in the history of {encode_id(tip)}: copy to "
                    "a branch of another name",
                    kind=ErrorKind.BRANCH_UPDATE_CONFLICT,
                )
            return changed, UpdateEntry(kind=UpdateKind.BRANCH_RESET, name=branch, previous=old)

        self._state.update(compute)

    def _create(
        self, source: RepoInfo, entries: list[SnapshotEntry], tip: bytes, branch: str
    ) -> None:
        first = entries[-1]
        if first.id != INITIAL_SNAPSHOT_ID:
            raise InvalidInputError(
                f"the history of {encode_id(tip)} does not begin with the first snapshot of a "
                "repository",
                ErrorKind.NOT_ALLOWED,
            )
        info = replace(
            source,
            snapshots={entry.id: entry for entry in entries},
            branches={"main": first.id, branch: tip},
            tags={},
            deleted_tags=(),
            repo_before_updates=None,
            updates=(UpdateEntry(kind=UpdateKind.REPO_INITIALIZED, updated_at=_now(entries)),),
        )
        try:
            self._state.create(info, level=self._target.compression_level)
        except PreconditionFailedError:
            # somebody else copies, too
            self._publish(source, entries, tip, branch)


def _now(entries: Iterable[SnapshotEntry]) -> int:
    return max(now_microseconds(), *(entry.flushed_at for entry in entries))


def _distinct(parts: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Return distinct ids, sorted: uint8[n, 12]."""
    table = np.ascontiguousarray(np.concatenate(parts))
    found = np.unique(table.view("V12").ravel()) if len(table) else table
    return found.view(np.uint8).reshape(-1, 12)
