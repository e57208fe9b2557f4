"""History of a repository: drawn, and rewritten."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

from icechunk.ancestry_graph import AncestryGraph
from icechunk.async_twin import async_twin
from icechunk.conditions import splitting_rules
from icechunk.config import RepositoryConfig
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.metadata import with_reserved
from icechunk.format.repo_info import RepoInfo
from icechunk.session import Session
from icechunk.versions import resolve

#: Whether a commit adds a snapshot to its branch, or replaces the newest one.
CommitMethod: TypeAlias = Literal["new_commit", "amend"]

#: How the official client says that no array is split.
_NO_SPLITTING: Final[Any] = [
    [{"path_matches": {"regex": ".*"}}, [{"condition": "Any", "num_chunks": 2**32 - 1}]]
]


class History(ABC):
    """The part of `icechunk.Repository` that is about history."""

    @property
    @abstractmethod
    def _info(self) -> RepoInfo:
        """The current repo info."""

    @property
    @abstractmethod
    def config(self) -> RepositoryConfig:
        """The configuration in force."""

    @abstractmethod
    def writable_session(self, branch: str) -> Session:
        """Return a session that edits the newest snapshot of a branch."""

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
            return AncestryGraph.from_branches(info, plain=plain)
        tip = resolve(info, branch, tag, snapshot_id)
        return AncestryGraph.from_version(info, tip, branch, plain=plain)

    def rewrite_manifests(
        self,
        message: str,
        *,
        branch: str,
        metadata: Mapping[str, Any] | None = None,
        commit_method: CommitMethod = "new_commit",
    ) -> str:
        """Cut the references of all arrays into manifests anew, and commit.

        The rules are those of the configuration in force, and are noted in the metadata of
        the commit, as ``metadata["__icechunk"]["splitting_config"]``. Every array gets new
        manifests, even if they hold the same as before.

        Parameters
        ----------
        message : str
        branch : str
        metadata : mapping, optional
            Anything that JSON can express, to be found in the history.
        commit_method : {"new_commit", "amend"}
            Whether to add a snapshot to the branch, or to replace the newest one.

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        InvalidInputError
            If `commit_method` is neither.
        ConflictError
            If the branch moves meanwhile.
        SessionStateError
            If the newest snapshot cannot be amended.
        """
        if commit_method not in get_args(CommitMethod):
            raise InvalidInputError(
                f"commit_method is {commit_method!r}, expected 'new_commit' or 'amend'",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        manifest = self.config.manifest
        splitting = manifest.splitting if manifest is not None else None
        rules = _NO_SPLITTING
        if splitting is not None:
            rules = splitting_rules().dump(splitting.split_sizes)
        noted = with_reserved(metadata, splitting_config={"split_sizes": rules})
        return self.writable_session(branch)._commit(
            message, noted, True, amends=commit_method == "amend", rewrites=True
        )

    rewrite_manifests_async = async_twin(rewrite_manifests)
    ancestry_graph_async = async_twin(ancestry_graph)
