"""Proof that everything is there: the verification that users run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from icechunk.errors import InvalidInputError, SnapshotNotFoundError
from icechunk.repository.sessions import Sessions
from icechunk.session.context import SessionContext

if TYPE_CHECKING:
    from icechunk.repository.decoding import Tried
    from icechunk.repository.verification import Verification
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
        from icechunk.repository.verify import Verifier, damage_to_all

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
        damage = damage_to_all(context.state)
        if damage is not None:
            return Verification(context.assets.storage.url, (damage,))
        return Verifier(
            context.assets.uncached(),
            context.state.load,
            virtual=context.virtual if sources else None,
            read_values=decode if deep else None,
            is_deep=deep is True,
            progress=progress,
        ).run()
