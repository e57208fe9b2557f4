"""Proof that everything is there: the verification that users run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from icechunk.base.texts import RESTORED
from icechunk.commit.publish import RepoState
from icechunk.errors import (
    FormatError,
    InvalidInputError,
    RepositoryNotFoundError,
    SnapshotNotFoundError,
)
from icechunk.format import layout
from icechunk.repository.sessions import Sessions
from icechunk.session.context import SessionContext

if TYPE_CHECKING:
    from icechunk.repository.decoding import Tried
    from icechunk.repository.verification import Damage, Verification
    from icechunk.repository.verify_values import Pick
    from icechunk.session import Session

__all__ = ["Proof"]


@dataclass(frozen=True)
class Proof:
    """Verifies a repository.

    Parameters
    ----------
    context : callable
        Returns what the sessions of the repository share.
    sessions : Sessions
    """

    _context: Callable[[], SessionContext]
    _sessions: Sessions

    def verify(
        self,
        *,
        sources: bool = False,
        deep: bool | Literal["sample"] = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Verification:
        """Prove that everything that versions refer to exists and is consistent.

        It reads the snapshots, transaction logs and manifests of all versions, and lists the
        chunks. Nothing is changed. Others may commit, expire versions and collect garbage in the
        meantime: what a version lacks does not count if the repository no longer has that version
        at the end.

        Parameters
        ----------
        sources : bool
            Whether to check the files that hold virtual chunks. One request for each file
            tells whether it exists, is long enough, and is the version that was referred to.
        deep : bool or "sample"
            Whether to decode the chunks of the newest version of each branch and tag: all of
            them, or a few of each array. What several of them share is decoded once. True also
            compares the chunks of each version with those of the one before it, and with what
            its transaction log says.
        progress : callable, optional
            Called with what is being checked, how many are done, and how many there are.

        Returns
        -------
        Verification
            Falsy if there is damage. It says what is wrong, and what that affects.

        Examples
        --------
        >>> print(repo.verify(deep="sample"))  # doctest: +SKIP
        """
        from icechunk.repository.decoding import Problem, decode_chunks
        from icechunk.repository.verification import Verification
        from icechunk.repository.verify import Verifier

        if deep not in (False, True, "sample"):
            raise InvalidInputError(f"deep must be False, True or 'sample', not {deep!r}")

        @lru_cache(1)
        def session(snapshot_id: str) -> Session:
            return self._sessions.readonly_session(snapshot_id=snapshot_id)

        def decode(snapshot_id: str, path: str, pick: Pick) -> Iterator[Tried]:
            try:
                at = session(snapshot_id)
            except SnapshotNotFoundError as error:
                # it expired since the verification began
                return iter([((), Problem(str(error)))])
            return decode_chunks(at, path, sample=deep == "sample", pick=pick)

        context = self._context()
        damage = _damage_to_all(context.state)
        if damage is not None:
            return Verification(context.assets.storage.url, (damage,))
        assets, state = context.assets.uncached(), context.state
        if state.spec_version < 2:
            # an expiration rewrites snapshots, which may be cached
            state = RepoState(assets, state.retries, 0)
        return Verifier(
            assets,
            state.load,
            virtual=context.virtual if sources else None,
            read_values=decode if deep else None,
            is_deep=deep is True,
            progress=progress,
        ).run()


def _damage_to_all(state: RepoState) -> Damage | None:
    """Return what is wrong with the object that names all versions; None if nothing is."""
    from icechunk.repository.verification import Damage

    problem, key = "unreadable", layout.REPO_KEY
    try:
        state.load()
        return None
    except FormatError as error:
        told = error.message.removeprefix(f"{key}: ")
    except RepositoryNotFoundError:
        problem = "missing"
        told = f"there is no such object; {RESTORED}"
        if state.known_spec_version == 1:
            key = f"{layout.REFS}branch.main/ref.json"
    return Damage(problem, key, told)
