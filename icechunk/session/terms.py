"""What a commit is made with, and what is known of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from icechunk.commit.building import Builder, Built
from icechunk.commit.conflicts import ConflictSolver
from icechunk.commit.tickets import Place
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.transaction_log import TransactionLog

__all__ = ["Committed", "Course", "Rebasing", "Sent", "check_solver", "check_words"]


@dataclass(frozen=True)
class Committed:
    """What a commit took.

    Attributes
    ----------
    snapshot_id : str
        The new snapshot.
    attempts : int
        How often it was tried to publish it. All attempts but the last were lost to others.
    rebases : int
        How often the changes were carried over to a newer snapshot of the branch.
    objects : int
        The number of objects written for the commit: manifests, transaction logs, snapshots, the
        repo info with its copies, and tickets. Lost attempts count too. Chunks do not.

    Examples
    --------
    >>> zarr.open_array(session.store, path="temperature")[1] = 17.0
    >>> snapshot = session.commit("Warmer")
    >>> session.committed.attempts
    1
    """

    snapshot_id: str
    attempts: int
    rebases: int
    objects: int = 0


@dataclass(frozen=True)
class Rebasing:
    """What to do when the branch has moved.

    Attributes
    ----------
    solver : ConflictSolver
    tries : int
        The maximum number of rebases.
    before, after : callable, optional
        Called around every rebase with its number, from 1 on.
    fair : bool
        Whether to wait for the writers that came to the same branch before.
    """

    solver: ConflictSolver
    tries: int
    fair: bool = False
    before: Callable[[int], None] | None = None
    after: Callable[[int], None] | None = None


@dataclass
class Course:
    """A commit on its way.

    Attributes
    ----------
    message, metadata
        What it says.
    builder : Builder
    amended : TransactionLog or None
        Of the commit that it replaces.
    rebasing : Rebasing or None
    on_built : callable or None
        As for `Committer.commit`.
    turn : ExitStack
        Holds the turn of this commit until its end.
    place : Place or None
        In the queue of fair commits.
    attempts, rebases : int
        So far.
    has_turn, lost : bool
        Whether it is its turn, and whether somebody else was faster.
    """

    message: str
    metadata: Mapping[str, Any] | None
    builder: Builder
    amended: TransactionLog | None
    rebasing: Rebasing | None
    on_built: Callable[[str], None] | None
    turn: ExitStack
    place: Place | None = None
    attempts: int = 0
    rebases: int = 0
    has_turn: bool = False
    lost: bool = False

    @property
    def asks_nobody(self) -> bool:
        """Whether no function of the caller takes part in it."""
        rebasing = self.rebasing
        return self.on_built is None and not (rebasing and (rebasing.before or rebasing.after))


@dataclass(eq=False)
class Sent:
    """A snapshot that was sent to be published, and may have been.

    Attributes
    ----------
    built : Built
    base : bytes
        The snapshot below it.
    changes : bytes
        What was committed by it; empty as long as that is not known.
    """

    built: Built
    base: bytes
    changes: bytes = b""


def check_words(message: object, metadata: object) -> None:
    """Refuse anything that cannot be the message or the metadata of a commit."""
    if not isinstance(message, str):
        raise InvalidInputError(
            f"the message of a commit must be a string, not {message!r}",
            ErrorKind.INVALID_COMMIT_CONFIGURATION,
        )
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"the metadata of a commit must be a dict, not {metadata!r}",
            ErrorKind.BAD_METADATA,
        )


def check_solver(name: str, solver: object) -> None:
    """Refuse an argument that is no solver of conflicts."""
    if not isinstance(solver, ConflictSolver):
        raise InvalidInputError(
            f"{name} must be a ConflictSolver, such as icechunk.ConflictDetector(), not {solver!r}",
            ErrorKind.INVALID_COMMIT_CONFIGURATION,
        )
