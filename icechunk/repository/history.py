"""History of a repository: listed, compared, and drawn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, TypeAlias

from icechunk.base.html import Html, card, note, table
from icechunk.base.methods import async_twin
from icechunk.commit.assets import Assets
from icechunk.commit.diff import Diff, diff_from_logs
from icechunk.commit.publish import RepoState
from icechunk.commit.snapshot_info import (
    ManifestFileInfo,
    SnapshotInfo,
    snapshot_of_row,
)
from icechunk.commit.version_names import id_of_snapshot, require_snapshot, resolve
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.ids import encode_id
from icechunk.format.repo_info import RepoInfo
from icechunk.format.snapshot_table import SnapshotTable
from icechunk.repository.ancestry_graph import AncestryGraph
from icechunk.repository.rereading import while_others_collect

#: The number of snapshots that a notebook shows.
_SHOWN: Final = 50
#: A branch, a tag, or the id of a snapshot.
_Version: TypeAlias = tuple[str | None, str | None, str | None]


class Ancestry(Iterator[SnapshotInfo]):
    """Iterates over a snapshot and its ancestors. A notebook shows a table without consuming it.

    Parameters
    ----------
    info : RepoInfo
    start : bytes
        The newest snapshot.
    """

    def __init__(self, info: RepoInfo, start: bytes) -> None:
        self._info, self._start = info, start
        self._left = self._begin()

    def _begin(self) -> Iterator[SnapshotInfo]:
        info = self._info
        if isinstance(info.snapshots, SnapshotTable):
            return map(partial(snapshot_of_row, info.snapshots), info.ancestry_rows(self._start))
        return map(SnapshotInfo.from_entry, info.ancestry(self._start))

    def __next__(self) -> SnapshotInfo:
        return next(self._left)

    def __iter__(self) -> Iterator[SnapshotInfo]:
        return self._left

    def _repr_html_(self) -> str:
        newest = islice(self._begin(), _SHOWN + 1)
        rows = [(each.id, each.written_at, each.message) for each in newest]
        more = note(f"and older ones than these {_SHOWN}") if len(rows) > _SHOWN else Html("")
        columns = ("snapshot", "written (UTC)", "message")
        return card("Ancestry", encode_id(self._start), table(columns, rows[:_SHOWN]), more)


@dataclass(frozen=True)
class History:
    """The history of one repository.

    Parameters
    ----------
    assets : Assets
    state : RepoState
    """

    _assets: Assets
    _state: RepoState

    def lookup_snapshot(self, snapshot_id: str) -> SnapshotInfo:
        """Return the entry of a snapshot in the history.

        Raises
        ------
        SnapshotNotFoundError

        Examples
        --------
        >>> repo.lookup_snapshot(first).message
        'First'
        """
        info = self._state.load()
        found = require_snapshot(info, id_of_snapshot(snapshot_id, lambda: info))
        return SnapshotInfo.from_entry(found)

    def list_manifest_files(self, snapshot_id: str) -> list[ManifestFileInfo]:
        """Return the manifests that a snapshot refers to.

        Examples
        --------
        >>> sum(file.num_chunk_refs for file in repo.list_manifest_files(first))
        4
        """
        snapshot = self._assets.snapshot(id_of_snapshot(snapshot_id, self._state.load))
        return [ManifestFileInfo.from_file(file) for file in snapshot.manifest_files.values()]

    def ancestry(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        ref: str | None = None,
    ) -> Iterator[SnapshotInfo]:
        """Return an iterator over a snapshot and its ancestors, newest first.

        Notebooks show it as a table.

        Parameters
        ----------
        branch, tag, snapshot_id, ref : str
            Exactly one of them: where to start. For `ref` see `icechunk.Repository.resolve`.

        Examples
        --------
        >>> [commit.message for commit in repo.ancestry(branch="main")]
        ['Second', 'First', 'Repository initialized']
        """
        info = self._state.load()
        return Ancestry(info, resolve(info, branch, tag, snapshot_id, ref))

    async def async_ancestry(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        ref: str | None = None,
    ) -> AsyncIterator[SnapshotInfo]:
        """Yield the same as `ancestry`."""
        listed = async_twin(
            lambda: list(self.ancestry(branch=branch, tag=tag, snapshot_id=snapshot_id, ref=ref))
        )
        for entry in await listed():
            yield entry

    def diff(
        self,
        *,
        from_branch: str | None = None,
        from_tag: str | None = None,
        from_snapshot_id: str | None = None,
        to_branch: str | None = None,
        to_tag: str | None = None,
        to_snapshot_id: str | None = None,
    ) -> Diff:
        """Return what changed between a version and a later one.

        Parameters
        ----------
        from_branch, from_tag, from_snapshot_id : str
            Exactly one of them: the earlier version.
        to_branch, to_tag, to_snapshot_id : str
            Exactly one of them: the later version.

        Raises
        ------
        InvalidInputError
            If the earlier version is not an ancestor of the later one.

        Examples
        --------
        >>> diff = repo.diff(from_tag="v1", to_branch="main")
        >>> diff.updated_chunks
        {'/temperature': [[0, 0]]}
        """
        # versions may expire and be collected in the meantime
        return while_others_collect(
            self._state,
            lambda note: self._diff(
                note(self._state.load()),
                (from_branch, from_tag, from_snapshot_id),
                (to_branch, to_tag, to_snapshot_id),
            ),
        )

    def _diff(self, info: RepoInfo, earlier: _Version, later: _Version) -> Diff:
        start, end = resolve(info, *earlier), resolve(info, *later)
        assets = self._assets
        logs = []
        for entry in info.ancestry(end):
            if entry.id == start:
                break
            logs.append(assets.transaction_log(entry.id))
            # logs of expired commits between this one and its parent are still there
            logs += [assets.transaction_log(pruned) for pruned in reversed(entry.pruned)]
        else:
            raise InvalidInputError(
                f"snapshot {encode_id(start)} is not an ancestor of {encode_id(end)}; "
                "diff goes from an earlier version to a later one",
                ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF,
            )
        after = {node.id: node for node in assets.snapshot(end).nodes()}
        return diff_from_logs(reversed(logs), assets.snapshot(start), after)

    def ancestry_graph(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        plain: bool = False,
    ) -> AncestryGraph:
        """Draw the history of all branches, or of one version.

        Parameters
        ----------
        branch, tag, snapshot_id : str, optional
            At most one of them: the version whose history is drawn, in a line.
        plain : bool
            Whether to omit colours, for files and logs.

        Returns
        -------
        AncestryGraph
            ``print`` it, or display it in a notebook.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version.
        InvalidInputError
            If several are named.

        Examples
        --------
        >>> print(repo.ancestry_graph(plain=True).dated(1))  # doctest: +ELLIPSIS
        ● ... (main) Second
        """
        info = self._state.load()
        if branch is None and tag is None and snapshot_id is None:
            return AncestryGraph.from_branches(info, plain=plain)
        tip = resolve(info, branch, tag, snapshot_id)
        return AncestryGraph.from_version(info, tip, branch, plain=plain)
