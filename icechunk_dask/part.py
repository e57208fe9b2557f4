"""What tasks return, and how it is reduced to one change set on the way to the coordinator."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from icechunk import ForkSession, TaskError
from icechunk.distributed import merge_change_sets

__all__ = ["Part", "failing_as", "finished", "merge_parts"]


@dataclass(frozen=True, slots=True)
class Part:
    """What one task did, or several together.

    Attributes
    ----------
    change_set : bytes
    tasks : int
    chunks : int
        Chunks that were stored.
    nbytes : int
        Size of these as they are stored.
    empty : int
        Chunks that hold fill values only and were not stored.
    """

    change_set: bytes
    tasks: int
    chunks: int
    nbytes: int
    empty: int


def finished(fork: ForkSession) -> Part:
    """Return what a task did with its fork."""
    changes = fork.array_changes()
    return Part(
        fork.change_set_bytes(),
        1,
        sum(change.stored for change in changes),
        sum(change.nbytes for change in changes),
        sum(change.deleted for change in changes),
    )


def merge_parts(parts: Sequence[Part]) -> Part:
    """Make one of several.

    Raises
    ------
    ConflictError
        If two of them wrote the same chunk or node.
    """
    if len(parts) == 1:
        return parts[0]
    return Part(
        merge_change_sets(part.change_set for part in parts),
        sum(part.tasks for part in parts),
        sum(part.chunks for part in parts),
        sum(part.nbytes for part in parts),
        sum(part.empty for part in parts),
    )


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Say what failed, whatever was raised.

    Raises
    ------
    TaskError
        With the original error as its cause.
    """
    try:
        yield
    except TaskError:
        raise
    except Exception as error:
        cause = error
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            # it could not leave the worker, and its message is better than no error at all
            cause = RuntimeError(f"{type(error).__name__}: {error}")
        raise TaskError(f"writing {what} failed: {type(error).__name__}: {error}") from cause
