"""Store the newest version of a branch differently: its manifests, its small chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from icechunk.commit.snapshot_info import CommitMethod
from icechunk.commit.splitting import splitting_note
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.metadata import with_reserved
from icechunk.repository.repack import RepackSummary, repack
from icechunk.repository.sessions import Sessions
from icechunk.session.context import SessionContext

__all__ = ["Rewriting"]


@dataclass(frozen=True)
class Rewriting:
    """Stores what a version refers to differently, and commits.

    Parameters
    ----------
    context : callable
        Returns what the sessions of the repository share.
    sessions : Sessions
    """

    _context: Callable[[], SessionContext]
    _sessions: Sessions

    def rewrite_manifests(
        self,
        message: str,
        *,
        branch: str,
        metadata: Mapping[str, Any] | None = None,
        commit_method: CommitMethod = "new_commit",
    ) -> str:
        """Split the references of all arrays into new manifests, and commit.

        The rules are those of the configuration in force. They are recorded in the metadata of
        the commit, as ``metadata["__icechunk"]["splitting_config"]``. Every array gets new
        manifests, even if they have the same content as before.

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
            If the branch moves in the meantime.
        SessionStateError
            If the newest snapshot cannot be amended.

        Examples
        --------
        >>> snapshot = repo.rewrite_manifests("New manifests", branch="main")
        """
        if commit_method not in get_args(CommitMethod):
            raise InvalidInputError(
                f"commit_method is {commit_method!r}, expected 'new_commit' or 'amend'",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        noted = with_reserved(metadata, splitting_config=splitting_note(self._context().config))
        return self._sessions.writable_session(branch).rewrite_manifests(
            message, noted, amends=commit_method == "amend"
        )

    def repack(
        self,
        branch: str,
        *,
        message: str = "Pack small chunks",
        max_waste: float = 0.5,
        dry_run: bool = False,
    ) -> RepackSummary:
        """Pack small chunks of the newest snapshot into shared objects, and commit.

        It packs the native chunks of less than 256 KiB that have an object each, and those in
        objects with too much waste because chunks were overwritten or deleted. Older
        versions keep the objects that they refer to: `expire_snapshots` and
        `garbage_collect` delete what no version needs.

        Parameters
        ----------
        branch : str
        message : str
            Of the commit.
        max_waste : float, default 0.5
            The share of an object, from 0 to 1, that may be waste.
        dry_run : bool, default False
            Whether to report only, without changes.

        Returns
        -------
        RepackSummary
            How many bytes are wasted, how many chunks are rewritten, and the new snapshot.

        Raises
        ------
        RefNotFoundError
            If there is no such branch.
        InvalidInputError
            If `max_waste` is not between 0 and 1.
        ConflictError
            If the branch moves in the meantime.

        Examples
        --------
        >>> repo.repack("main", dry_run=True).packs
        0
        """
        session = self._sessions.writable_session(branch, pack=True)
        return repack(session, message, max_waste=max_waste, dry_run=dry_run)
