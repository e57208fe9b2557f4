"""Sessions on a repository: those that read a version, and those that edit a branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from icechunk.commit import publish
from icechunk.commit.conflicts import ConflictSolver
from icechunk.commit.version_names import (
    as_of as snapshot_as_of,
    branch_tip,
    invalid_version,
    resolve,
    resolve_ref,
)
from icechunk.config.times import Time
from icechunk.errors import ErrorKind, ReadOnlyError
from icechunk.format.ids import decode_id, encode_id
from icechunk.format.repo_info import RepoInfo
from icechunk.repository.preload import preloading
from icechunk.session.context import SessionContext, SessionMode
from icechunk.session.replay import changes_between
from icechunk.session.session import Session

if TYPE_CHECKING:
    from icechunk.store import IcechunkStore

__all__ = ["Sessions"]


@dataclass(frozen=True)
class Sessions:
    """Opens sessions on a repository.

    Parameters
    ----------
    context : callable
        Returns what the sessions of the repository share.
    """

    _context: Callable[[], SessionContext]

    def readonly_session(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        ref: str | None = None,
        as_of: Time | None = None,
    ) -> Session:
        """Return a session that reads one version.

        Parameters
        ----------
        branch, tag, snapshot_id, ref : str
            Exactly one of them. The beginning of an id is enough if it is unique; for `ref` see
            `resolve`.
        as_of : datetime, date, numpy.datetime64 or str, optional
            With `branch`: the newest snapshot of its history that is not younger. Strings are
            dates or times in ISO 8601. A time without a zone is in UTC; a date is its first
            instant.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version.
        InvalidInputError
            If not exactly one version is named.

        Examples
        --------
        >>> session = repo.readonly_session(ref="main~1")
        >>> float(zarr.open_array(session.store, path="temperature", mode="r")[0, 0])
        15.0
        """
        if as_of is not None and branch is None:
            raise invalid_version("as_of argument must be provided together with a branch name")
        return self.at(self._context().state.load(), branch, tag, snapshot_id, ref, as_of)

    def resolve(self, ref: str) -> str:
        """Return the id of the snapshot that a text names.

        Parameters
        ----------
        ref : str
            A branch, a tag, or the id of a snapshot or its beginning (4 characters or more, if
            no other id begins the same way). ``@branch.NAME``, ``@tag.NAME`` and ``@{ID}`` say
            which of these is meant. After any of them, ``~N`` is the snapshot N commits before,
            and ``@TIME`` the newest that is not younger: a date or time in ISO 8601, in UTC
            if it has no zone.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version. The message lists similar names.
        InvalidInputError
            If the name fits more than one version.

        Examples
        --------
        >>> before = repo.resolve("main~2")
        >>> session = repo.readonly_session(ref="main@2100-05-01")  # the newest then
        """
        return encode_id(resolve_ref(self._context().state.load(), ref))

    def at(
        self,
        info: RepoInfo,
        branch: str | None,
        tag: str | None,
        snapshot_id: str | None,
        ref: str | None,
        as_of: Time | None,
    ) -> Session:
        """Return a session that reads one version, given a state of the repository."""
        resolved = resolve(info, branch, tag, snapshot_id, ref)
        if as_of is not None and branch is not None:
            resolved = snapshot_as_of(info, branch, as_of)
        session = Session(self._context(), resolved, SessionMode.readonly)
        return preloading(session, self._context().assets)

    def writable_session(self, branch: str, *, pack: bool = False) -> Session:
        """Return a session that edits the newest snapshot of a branch.

        Parameters
        ----------
        branch : str
        pack : bool, default False
            Whether chunks of less than 256 KiB share objects of about 4 MiB. Far fewer
            requests write them, and one request reads neighbours. A chunk that is overwritten
            leaves its old bytes in the object; `repack` tells how many, and makes
            objects without them. Every client of the format reads packed chunks.

        Raises
        ------
        RefNotFoundError
            If there is no such branch.

        Examples
        --------
        >>> session = repo.writable_session("main")
        >>> zarr.open_array(session.store, path="temperature")[0] = 17.0
        >>> snapshot = session.commit("Warmer")
        """
        return self._open_branch(branch, SessionMode.writable, pack=pack)

    def rearrange_session(self, branch: str) -> Session:
        """Return a session that moves nodes of the newest snapshot of a branch.

        Raises
        ------
        RefNotFoundError
            If there is no such branch.

        Examples
        --------
        >>> session = repo.rearrange_session("main")
        >>> session.move("/temperature", "/t")
        >>> snapshot = session.commit("A short name")
        """
        return self._open_branch(branch, SessionMode.rearrange)

    def _open_branch(self, branch: str, mode: SessionMode, *, pack: bool = False) -> Session:
        info = self._writable_info()
        if mode is SessionMode.rearrange:
            self._context().state.require_version_2("moving nodes")
        session = Session(self._context(), branch_tip(info, branch), mode, branch, pack=pack)
        return preloading(session, self._context().assets)

    def _writable_info(self) -> RepoInfo:
        """Return the current repo info, if the repository and its storage allow writes."""
        info = self._context().state.load()
        if not self._context().assets.storage.supports_writes:
            raise ReadOnlyError(
                f"{self._context().assets.storage.url} cannot be written; use readonly_session",
                ErrorKind.READ_ONLY_STORAGE,
            )
        publish.require_online(info)
        return info

    def replay_session(self, branch: str, *, from_snapshot_id: str, to_snapshot_id: str) -> Session:
        """Return a session with the changes between two versions, ready to be committed.

        It brings the work of one branch to another that has moved in the meantime, as one
        commit. The work began at the first version and led to the second. The session is on the
        first version, so a commit to a branch at another version needs ``rebase_with``, and
        is refused if both changed the same thing.

        Parameters
        ----------
        branch : str
            The branch that the session commits to.
        from_snapshot_id, to_snapshot_id : str
            The versions.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such branch or version.
        SessionStateError
            If a node was moved in between.
        """
        info = self._writable_info()
        branch_tip(info, branch)  # refuses a missing version
        before, after = (
            Session(self._context(), resolve(info, None, None, id), SessionMode.readonly)
            for id in (from_snapshot_id, to_snapshot_id)
        )
        changes = changes_between(before, after)
        needs = [decode_id(after.snapshot_id)]
        return Session(
            self._context(), changes.base, SessionMode.writable, branch, [changes], needs
        )

    def session_after_commit(self, branch: str, snapshot_id: str) -> Session:
        """Return a writable session that continues from a commit that was just made."""
        return Session(self._context(), decode_id(snapshot_id), SessionMode.writable, branch)

    @contextmanager
    def transaction(
        self,
        branch: str,
        *,
        message: str,
        metadata: Mapping[str, Any] | None = None,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1000,
        fair: bool = False,
    ) -> Iterator[IcechunkStore]:
        """Yield a writable store, and commit at the end of the block.

        If the block raises, nothing is committed. The parameters are those of
        `Session.commit`.

        Examples
        --------
        >>> with repo.transaction("main", message="Warmer") as store:
        ...     zarr.open_array(store, path="temperature")[0] = 17.0
        """
        session = self.writable_session(branch)
        yield session.store
        session.commit(
            message, metadata, rebase_with=rebase_with, rebase_tries=rebase_tries, fair=fair
        )
