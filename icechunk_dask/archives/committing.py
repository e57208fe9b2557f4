"""Committing an archive: an unrelated change must not cost the scan of many files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from icechunk import (
    ConflictDetector,
    ConflictError,
    OutcomeUnknownError,
    RebaseFailedError,
    Repository,
    Session,
    StorageError,
)

__all__ = ["commit"]

#: How often the storage may fail at the commit; it has retried requests itself.
_TRIES: Final = 3


def commit(
    repository: Repository,
    session: Session,
    message: str,
    metadata: Mapping[str, Any] | None,
    group: str,
    arrays: Iterable[str],
) -> str:
    """Commit what was written to an archive; return the id of the snapshot.

    What others committed meanwhile stays, if it does not touch the archive.

    Parameters
    ----------
    repository : Repository
    session : Session
        Of that repository.
    message : str
    metadata : mapping, optional
    group : str
        Path of the archive.
    arrays : iterable of str
        The arrays of the archive, by paths within it.

    Raises
    ------
    ConflictError
        If others have changed the archive, or deleted the branch.
    StorageError
        If the storage fails again and again.
    """
    begun = session.snapshot_id
    own = {f"{group.rstrip('/')}/{name}" for name in arrays}

    def check(_: int) -> None:
        # a rebase may accept what they wrote, and moving chunks would still lose it
        theirs = repository.diff(from_snapshot_id=begun, to_snapshot_id=session.snapshot_id)
        touched = sorted(own & {*theirs.updated_arrays, *theirs.updated_chunks})
        if touched:
            raise _changed(group, f"they have written to {touched[0]!r}")

    for left in reversed(range(_TRIES)):
        try:
            return session.commit(
                message, metadata, rebase_with=ConflictDetector(), after_rebase=check
            )
        except RebaseFailedError as exc:
            raise _changed(group, str(exc)) from exc
        except OutcomeUnknownError:
            # the session finds out whether it was committed
            if not left:
                raise
        except StorageError as exc:
            if not left:
                raise StorageError(
                    f"{exc}. Nothing is committed to the archive in {group}; call again when the "
                    "storage works",
                    exc.kind,
                ) from exc
    raise AssertionError("unreachable")


def _changed(group: str, how: str) -> ConflictError:
    return ConflictError(
        message=f"others have changed the archive in {group} meanwhile, so nothing is committed "
        f"({how}). Call again: files that are in the archive by now are left out"
    )
