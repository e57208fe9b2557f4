"""History of a repository: drawn, and rewritten."""

from __future__ import annotations

from abc import ABC, abstractmethod

from icechunk.ancestry_graph import AncestryGraph
from icechunk.async_twin import async_twin
from icechunk.format.repo_info import RepoInfo
from icechunk.versions import resolve


class History(ABC):
    """The part of `icechunk.Repository` that is about history."""

    @property
    @abstractmethod
    def _info(self) -> RepoInfo:
        """The current repo info."""

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
            Whether to do without colors, for files and logs.

        Returns
        -------
        AncestryGraph
            ``print`` it, or show it in a notebook.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version.
        InvalidInputError
            If several are named.
        """
        info = self._info
        if branch is None and tag is None and snapshot_id is None:
            return AncestryGraph.of_branches(info, plain=plain)
        tip = resolve(info, branch, tag, snapshot_id)
        return AncestryGraph.of_version(info, tip, branch, plain=plain)

    ancestry_graph_async = async_twin(ancestry_graph)
