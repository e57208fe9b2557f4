"""Every error that the library raises on purpose, in one tree.

Each class says what a caller would do about it. `ErrorKind` says precisely what
went wrong, as a stable string in the attribute `kind`. Names and codes are those
of the official client, so handlers written for it keep working. Where a
class is also a builtin exception (in brackets), handlers for the builtin work too::

    IcechunkError
    ├── ConflictError
    │   └── RebaseFailedError
    ├── NotFoundError                       [KeyError]
    │   ├── NodeNotFoundError
    │   ├── SnapshotNotFoundError
    │   ├── RefNotFoundError
    │   └── RepositoryNotFoundError         [FileNotFoundError, ValueError]
    ├── AlreadyExistsError                  [ValueError]
    │   └── RepositoryExistsError           (an InvalidInputError, too)
    ├── ReadOnlyError                       [ValueError]
    ├── InvalidInputError                   [ValueError]
    ├── SessionStateError
    │   ├── UnpicklableSessionError         [ValueError]
    │   └── InvalidatedRepositoryError      [RuntimeError]
    ├── StorageError
    │   ├── ObjectNotFoundError             [FileNotFoundError]
    │   ├── OutcomeUnknownError
    │   └── PreconditionFailedError
    ├── FormatError
    ├── TaskError
    └── InternalError
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from icechunk.base.display import Displayed, NumberedEnum
from icechunk.base.first_words import with_first_words
from icechunk.base.public_url import public_text
from icechunk.base.texts import labelled
from icechunk.base.visible import visible

__all__ = [
    "AlreadyExistsError",
    "Conflict",
    "ConflictError",
    "ConflictType",
    "ErrorKind",
    "FormatError",
    "IcechunkError",
    "InternalError",
    "InvalidInputError",
    "InvalidatedRepositoryError",
    "NodeNotFoundError",
    "NotFoundError",
    "ObjectNotFoundError",
    "OutcomeUnknownError",
    "PreconditionFailedError",
    "ReadOnlyError",
    "RebaseFailedError",
    "RefNotFoundError",
    "RepositoryExistsError",
    "RepositoryNotFoundError",
    "SessionStateError",
    "SnapshotNotFoundError",
    "StorageError",
    "TaskError",
    "UnpicklableSessionError",
]


class ErrorKind(StrEnum):
    """Stable codes for the attribute `kind` of `IcechunkError`.

    A code is never renamed, because programs compare with it.
    """

    # conflicts
    COMMIT_CONFLICT = "commit-conflict"
    BRANCH_UPDATE_CONFLICT = "branch-update-conflict"
    REBASE_FAILED = "rebase-failed"
    CONFIG_UPDATED = "config-updated"
    REPO_INFO_UPDATED = "repo-info-updated"
    UPDATE_ATTEMPTS_EXHAUSTED = "update-attempts-exhausted"
    GC_DELETES_FAILING = "gc-deletes-failing"
    # not found
    NODE_NOT_FOUND = "node-not-found"
    ANCESTOR_NODE_NOT_FOUND = "ancestor-node-not-found"
    CHUNK_NOT_FOUND = "chunk-not-found"
    KEY_NOT_FOUND = "key-not-found"
    SNAPSHOT_NOT_FOUND = "snapshot-not-found"
    NO_SNAPSHOT_AT_TIME = "no-snapshot-at-time"
    REF_NOT_FOUND = "ref-not-found"
    BRANCH_NOT_FOUND = "branch-not-found"
    TAG_NOT_FOUND = "tag-not-found"
    REPOSITORY_NOT_FOUND = "repository-not-found"
    MANIFEST_INFO_NOT_FOUND = "manifest-info-not-found"
    # already exists
    NODE_ALREADY_EXISTS = "node-already-exists"
    BRANCH_ALREADY_EXISTS = "branch-already-exists"
    TAG_ALREADY_EXISTS = "tag-already-exists"
    TAG_PREVIOUSLY_DELETED = "tag-previously-deleted"
    MOVE_WONT_OVERWRITE = "move-wont-overwrite"
    # read only
    READ_ONLY_SESSION = "read-only-session"
    READ_ONLY_STORE = "read-only-store"
    READ_ONLY_STORAGE = "read-only-storage"
    READ_ONLY_REPOSITORY = "read-only-repository"
    # invalid input
    INVALID_KEY = "invalid-key"
    INVALID_CHUNK_INDEX = "invalid-chunk-index"
    ZERO_LENGTH_CHUNK = "zero-length-chunk"
    INVALID_MANIFEST_SPLIT_INDEX = "invalid-manifest-split-index"
    INVALID_REF_TYPE = "invalid-ref-type"
    INVALID_REF_NAME = "invalid-ref-name"
    INVALID_SNAPSHOT_ID = "invalid-snapshot-id"
    INVALID_PATH = "invalid-path"
    BAD_KEY_PREFIX = "bad-key-prefix"
    BAD_METADATA = "bad-metadata"
    BAD_PREFIX = "bad-prefix"
    NOT_AN_ARRAY = "not-an-array"
    NOT_A_GROUP = "not-a-group"
    INVALID_BYTE_RANGE = "invalid-byte-range"
    INVALID_COMMIT_CONFIGURATION = "invalid-commit-configuration"
    INVALID_ARRAY_METADATA = "invalid-array-metadata"
    INVALID_FEATURE_FLAG = "invalid-feature-flag"
    INVALID_VIRTUAL_REF = "invalid-virtual-ref"
    INVALID_CREDENTIALS = "invalid-credentials"
    NO_CONTAINER_FOR_VIRTUAL_CHUNK = "no-container-for-virtual-chunk"
    UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER = "unauthorized-virtual-chunk-container"
    EMPTY_PREFIX_CREATION = "empty-prefix-creation"
    PARENT_DIRECTORY_NOT_CLEAN = "parent-directory-not-clean"
    BAD_SNAPSHOT_CHAIN_FOR_DIFF = "bad-snapshot-chain-for-diff"
    # state of a session or repository
    COMMIT_NOT_ALLOWED = "commit-not-allowed"
    MERGE_NOT_ALLOWED = "merge-not-allowed"
    CANNOT_FORK_READ_ONLY_SESSION = "cannot-fork-read-only-session"
    REARRANGE_SESSION_ONLY = "rearrange-session-only"
    NON_REARRANGE_SESSION = "non-rearrange-session"
    MOVE_INTO_SELF_OR_DESCENDANT = "move-into-self-or-descendant"
    MOVE_DESTINATION_PARENT_MISSING = "move-destination-parent-missing"
    MOVE_DESTINATION_PARENT_NOT_GROUP = "move-destination-parent-not-group"
    NO_CHANGES_TO_COMMIT = "no-changes-to-commit"
    NO_AMEND_FOR_INITIAL_COMMIT = "no-amend-for-initial-commit"
    NOT_ON_BRANCH = "not-on-branch"
    NO_SNAPSHOT = "no-snapshot"
    CANNOT_DELETE_MAIN = "cannot-delete-main"
    UNCOMMITTED_CHANGES = "uncommitted-changes"
    MERGE_FAILED = "merge-failed"
    NOT_ALLOWED = "not-allowed"
    UNIMPLEMENTED = "unimplemented"
    REBASE_TX_LOG_PRUNED = "rebase-tx-log-pruned"
    FEATURE_FLAG_DISABLED = "feature-flag-disabled"
    TAG_ERROR = "tag-error"
    INVALID_REPOSITORY_MIGRATION = "invalid-repository-migration"
    # storage and environment
    OBJECT_NOT_FOUND = "object-not-found"
    OBJECT_STORE = "object-store"
    IO = "io"
    STORAGE_CONFIG = "storage-config"
    CANNOT_PARSE_URL = "cannot-parse-url"
    BAD_REDIRECT = "bad-redirect"
    SEMAPHORE_ACQUIRE = "semaphore-acquire"
    THROTTLED = "throttled"
    STORAGE_OTHER = "storage-other"
    VIRTUAL_CHUNK_FETCH = "virtual-chunk-fetch"
    VIRTUAL_CHUNK_MODIFIED = "virtual-chunk-modified"
    INVALID_OBJECT_SIZE = "invalid-object-size"
    # format
    SERIALIZATION = "serialization"
    DESERIALIZATION = "deserialization"
    CONFIG_DESERIALIZATION = "config-deserialization"
    INVALID_FILE_FORMAT = "invalid-file-format"
    UNSUPPORTED_SPEC_VERSION = "unsupported-spec-version"
    UNSUPPORTED_OPERATION_FOR_VERSION = "unsupported-operation-for-version"
    SNAPSHOT_TIMESTAMP = "snapshot-timestamp"
    DUPLICATE_SNAPSHOT_ID = "duplicate-snapshot-id"
    # the official client has no codes for these: work on other processes, and a change that
    # may have been made
    TASK_FAILED = "task-failed"
    OUTCOME_UNKNOWN = "outcome-unknown"
    # internal
    CONCURRENCY = "concurrency"
    FLUSH = "flush"
    PARTIAL_VALUES_PANIC = "partial-values-panic"
    CONFLICTING_PATH_NOT_FOUND = "conflicting-path-not-found"
    INCONSISTENT_MANIFESTS = "inconsistent-manifests"
    POISON_LOCK = "poison-lock"
    PICKLE = "pickle"
    UNKNOWN = "unknown"


class IcechunkError(Exception):
    """Base of all errors of this library.

    Parameters
    ----------
    message : str
        What went wrong, with the name of the thing, and what to do about it.
    kind : str or ErrorKind, optional
        The precise code. Default: the class's own `default_kind`.
    """

    default_kind = ErrorKind.UNKNOWN
    message: str
    kind: ErrorKind

    def __init__(self, message: str = "", kind: str | None = None) -> None:
        # whoever wrote it: a name in it may hold a password or a signature, or control terminals
        message = visible(public_text(message))
        self.kind = ErrorKind(kind) if kind is not None else self.default_kind
        message = with_first_words(str(self.kind), message)
        super().__init__(message)
        self.message = message

    # KeyError shows the repr of its argument and OSError a tuple; neither is readable
    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, str(self.kind))


class ConflictError(IcechunkError):
    """Somebody else changed what this operation was based on.

    Parameters
    ----------
    expected_parent, actual_parent : str, optional
        Snapshot ids: where the session began, and where the branch is now.
    """

    default_kind = ErrorKind.COMMIT_CONFLICT
    expected_parent: str | None
    actual_parent: str | None

    def __init__(
        self,
        expected_parent: str | None = None,
        actual_parent: str | None = None,
        message: str | None = None,
        kind: str | None = None,
    ) -> None:
        if message is None:
            message = (
                f"the branch moved while this session was open: it began at snapshot "
                f"{expected_parent}, the branch is now at {actual_parent}; "
                "rebase the session, or open a new one and write again"
            )
        super().__init__(message, kind)
        self.expected_parent = expected_parent
        self.actual_parent = actual_parent

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.expected_parent,
            self.actual_parent,
            self.message,
            str(self.kind),
        )


class ConflictType(NumberedEnum):
    """The ways in which two sets of changes can contradict each other."""

    NewNodeConflictsWithExistingNode = 1
    NewNodeInInvalidGroup = 2
    ZarrMetadataDoubleUpdate = 3
    ZarrMetadataUpdateOfDeletedArray = 4
    ZarrMetadataUpdateOfDeletedGroup = 5
    ChunkDoubleUpdate = 6
    ChunksUpdatedInDeletedArray = 7
    ChunksUpdatedInUpdatedArray = 8
    DeleteOfUpdatedArray = 9
    DeleteOfUpdatedGroup = 10
    MoveOperationCannotBeRebased = 11


class Conflict(Displayed):
    """One contradiction between two sets of changes.

    Parameters
    ----------
    conflict_type : ConflictType
    path : str
        The node, as an absolute path.
    conflicted_chunks : list of list of int, optional
        Chunk grid coordinates, for conflicts about chunks.

    Examples
    --------
    >>> ours, theirs = repo.writable_session("main"), repo.writable_session("main")
    >>> for each in (ours, theirs):
    ...     zarr.open_array(each.store, path="temperature")[1] = 17.0
    >>> snapshot = theirs.commit("Theirs")
    >>> try:
    ...     ours.rebase(icechunk.ConflictDetector())
    ... except icechunk.RebaseFailedError as error:
    ...     print([conflict.path for conflict in error.conflicts])
    ['/temperature']
    """

    __slots__ = ("conflict_type", "conflicted_chunks", "path")

    def __init__(
        self,
        conflict_type: ConflictType,
        path: str,
        conflicted_chunks: list[list[int]] | None = None,
    ) -> None:
        self.conflict_type = conflict_type
        self.path = path
        self.conflicted_chunks = conflicted_chunks

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Conflict):
            return NotImplemented
        return (self.conflict_type, self.path, self.conflicted_chunks) == (
            other.conflict_type,
            other.path,
            other.conflicted_chunks,
        )

    def __hash__(self) -> int:
        return hash((self.conflict_type, self.path))

    def __repr__(self) -> str:
        chunks = None if self.conflicted_chunks is None else [*map(list, self.conflicted_chunks)]
        lines = {
            "conflict_type": self.conflict_type.name,
            "path": self.path,
            "conflicted_chunks": str(chunks),
        }
        return labelled("icechunk.conflicts.Conflict", lines)

    def in_a_line(self) -> str:
        """Return a short text for messages, with the first few chunks."""
        chunks = ""
        if self.conflicted_chunks:
            shown = ", ".join(str(tuple(c)) for c in self.conflicted_chunks[:5])
            more = len(self.conflicted_chunks) - 5
            chunks = f", chunks {shown}" + (f" and {more} more" if more > 0 else "")
        return f"Conflict({self.conflict_type.name}, {self.path!r}{chunks})"


class RebaseFailedError(ConflictError):
    """A rebase met conflicts that its solver could not resolve.

    Parameters
    ----------
    snapshot : str
        The snapshot whose changes contradict those of the session.
    conflicts : sequence of Conflict
    """

    default_kind = ErrorKind.REBASE_FAILED
    snapshot: str
    conflicts: list[Conflict]

    def __init__(self, snapshot: str, conflicts: Sequence[Conflict]) -> None:
        listed = "; ".join(c.in_a_line() for c in list(conflicts)[:10])
        super().__init__(message=f"cannot rebase over snapshot {snapshot}: {listed}")
        self.snapshot = snapshot
        self.conflicts = list(conflicts)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.snapshot, self.conflicts)


class NotFoundError(IcechunkError, KeyError):
    """Something that was requested does not exist."""

    default_kind = ErrorKind.KEY_NOT_FOUND


class NodeNotFoundError(NotFoundError):
    """No group, array or chunk has this path."""

    default_kind = ErrorKind.NODE_NOT_FOUND


class SnapshotNotFoundError(NotFoundError):
    """No snapshot has this id, or none is old enough."""

    default_kind = ErrorKind.SNAPSHOT_NOT_FOUND


class RefNotFoundError(NotFoundError):
    """No branch or tag has this name."""

    default_kind = ErrorKind.REF_NOT_FOUND


class RepositoryNotFoundError(NotFoundError, FileNotFoundError, ValueError):
    """No Icechunk repository is stored at this location."""

    default_kind = ErrorKind.REPOSITORY_NOT_FOUND


class AlreadyExistsError(IcechunkError, ValueError):
    """Something that was to be created exists already."""

    default_kind = ErrorKind.NODE_ALREADY_EXISTS


class InvalidInputError(IcechunkError, ValueError):
    """An argument, key, index or metadata value is invalid."""

    default_kind = ErrorKind.INVALID_KEY


class RepositoryExistsError(AlreadyExistsError, InvalidInputError):
    """A repository was to be created where there already is one.

    It is invalid input, too, because the official client calls it that.
    """

    default_kind = ErrorKind.PARENT_DIRECTORY_NOT_CLEAN


class ReadOnlyError(IcechunkError, ValueError):
    """A write was tried through something that only reads."""

    default_kind = ErrorKind.READ_ONLY_SESSION


class SessionStateError(IcechunkError):
    """The session or repository is in a state that does not allow this."""

    default_kind = ErrorKind.NOT_ALLOWED


class UnpicklableSessionError(SessionStateError, ValueError):
    """The session can be written to, and a copy of it would lose what is written."""

    default_kind = ErrorKind.PICKLE


class InvalidatedRepositoryError(SessionStateError, RuntimeError):
    """The repository was upgraded, and this object only knows the old version."""

    default_kind = ErrorKind.INVALID_REPOSITORY_MIGRATION


class StorageError(IcechunkError):
    """The object store or file system failed, or is configured wrongly.

    Attributes
    ----------
    transient : bool
        Whether the same request may succeed later. False if the service refused it for good.
    """

    default_kind = ErrorKind.OBJECT_STORE
    transient: bool = True


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """The storage has no object with this key."""

    default_kind = ErrorKind.OBJECT_NOT_FOUND


class OutcomeUnknownError(StorageError):
    """A change may have been made or not: the answer was lost, and looking failed as well.

    A session finds out in its next `commit`, and never commits twice.

    Parameters
    ----------
    message : str
    kind : str or ErrorKind, optional
    branch : str, optional
        The branch, for a commit or another change of one.
    snapshot : str, optional
        Id of the snapshot, for a commit.
    """

    default_kind = ErrorKind.OUTCOME_UNKNOWN

    def __init__(
        self,
        message: str = "",
        kind: str | None = None,
        *,
        branch: str | None = None,
        snapshot: str | None = None,
    ) -> None:
        super().__init__(message, kind)
        self.branch = branch
        self.snapshot = snapshot

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, str(self.kind)), vars(self)


class PreconditionFailedError(StorageError):
    """A conditional put found another version than the one the caller had seen."""

    default_kind = ErrorKind.REPO_INFO_UPDATED


class FormatError(IcechunkError):
    """Stored bytes are damaged, cut, foreign, or of an unknown version."""

    default_kind = ErrorKind.DESERIALIZATION


class TaskError(IcechunkError):
    """A task of a distributed write failed. `__cause__` is what it raised.

    The cause travels with the error from one process to another.

    Parameters
    ----------
    message : str
        The item or region that failed.
    """

    default_kind = ErrorKind.TASK_FAILED

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, str(self.kind)), {"__cause__": self.__cause__}

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        self.__cause__ = (state or {}).get("__cause__")


class InternalError(IcechunkError):
    """A state that should be impossible: a bug worth reporting."""
