"""Settings of a storage: concurrency, retries, timeouts, conditional writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

from icechunk.config.options import Options, flag, in_force, nested, text, unsigned

__all__ = [
    "StorageConcurrencySettings",
    "StorageRetriesSettings",
    "StorageSettings",
    "StorageTimeoutSettings",
]


@dataclass(frozen=True)
class EffectiveRetries:
    """How often and how quickly failed requests are retried.

    Attributes
    ----------
    max_tries : int
        At least 1.
    initial_backoff_ms, max_backoff_ms : int
        In milliseconds.
    """

    max_tries: int
    initial_backoff_ms: int
    max_backoff_ms: int


@dataclass(repr=False)
class StorageRetriesSettings(Options):
    """How often and how quickly failed requests are retried.

    Parameters
    ----------
    max_tries : int, optional
        At least 1. Default: 10 for requests to a storage, 100 for updates of a
        repository.
    initial_backoff_ms, max_backoff_ms : int, optional
        In milliseconds. Default: 100 and 180,000 for requests, 50 and 30,000 for
        updates.

    Examples
    --------
    >>> retries = icechunk.StorageRetriesSettings(max_tries=3)
    """

    _module = "icechunk.storage"
    _in_force: ClassVar = {
        "max_tries": 10,
        "initial_backoff_ms": 100,
        "max_backoff_ms": 180_000,
    }

    max_tries: Annotated[int | None, unsigned(16, low=1)] = None
    initial_backoff_ms: Annotated[int | None, unsigned(32)] = None
    max_backoff_ms: Annotated[int | None, unsigned(32)] = None


def effective_retries(settings: StorageRetriesSettings) -> EffectiveRetries:
    """Return the values to work with."""
    names = ("max_tries", "initial_backoff_ms", "max_backoff_ms")
    return EffectiveRetries(*(in_force(settings, name) for name in names))


@dataclass(repr=False)
class StorageTimeoutSettings(Options):
    """When to give up on a request, in milliseconds. The defaults are those of the client.

    Parameters
    ----------
    connect_timeout_ms : int, optional
        For the connection.
    read_timeout_ms : int, optional
        For the first byte of an answer, and between two bytes. Default 10,000 for reads and
        60,000 for writes.
    operation_timeout_ms : int, optional
        For a request with all its retries, until its answer begins. Default 30,000; a write
        gets another second for every 32 KiB.
    operation_attempt_timeout_ms : int, optional
        For one attempt.

    Examples
    --------
    >>> timeouts = icechunk.StorageTimeoutSettings(connect_timeout_ms=5_000)
    """

    _module = "icechunk.storage"

    connect_timeout_ms: Annotated[int | None, unsigned(32)] = None
    read_timeout_ms: Annotated[int | None, unsigned(32)] = None
    operation_timeout_ms: Annotated[int | None, unsigned(32)] = None
    operation_attempt_timeout_ms: Annotated[int | None, unsigned(32)] = None


@dataclass(repr=False)
class StorageConcurrencySettings(Options):
    """How a large object is fetched in parts.

    Parameters
    ----------
    max_concurrent_requests_for_object : int, optional
        At least 1. Default 18.
    ideal_concurrent_request_size : int, optional
        In bytes, at least 1. Default 12 MiB.

    Examples
    --------
    >>> settings = icechunk.StorageConcurrencySettings(max_concurrent_requests_for_object=4)
    """

    _module = "icechunk.storage"
    _in_force: ClassVar = {
        "max_concurrent_requests_for_object": 18,
        "ideal_concurrent_request_size": 12 * 1024**2,
    }

    max_concurrent_requests_for_object: Annotated[int | None, unsigned(16, low=1)] = None
    ideal_concurrent_request_size: Annotated[int | None, unsigned(64, low=1)] = None


@dataclass(frozen=True)
class EffectiveStorageSettings:
    """The settings that a storage works with, defaults filled in.

    Attributes
    ----------
    max_concurrent_requests_for_object, ideal_concurrent_request_size : int
    retries : EffectiveRetries
    timeouts : StorageTimeoutSettings
        None in a field leaves that timeout to the client.
    use_conditional_create, use_conditional_update, use_metadata : bool
    metadata_storage_class, chunks_storage_class : str or None
        None leaves the class to the bucket.
    minimum_size_for_multipart_upload : int
        In bytes.
    """

    max_concurrent_requests_for_object: int
    ideal_concurrent_request_size: int
    retries: EffectiveRetries
    timeouts: StorageTimeoutSettings
    use_conditional_create: bool
    use_conditional_update: bool
    use_metadata: bool
    metadata_storage_class: str | None
    chunks_storage_class: str | None
    minimum_size_for_multipart_upload: int


@dataclass(repr=False)
class StorageSettings(Options):
    """How requests to the storage of a repository are made.

    Parameters
    ----------
    concurrency : StorageConcurrencySettings, optional
    retries : StorageRetriesSettings, optional
    unsafe_use_conditional_create, unsafe_use_conditional_update : bool, optional
        False gives up the protection against concurrent writers, for stores without
        conditional writes. Default True.
    unsafe_use_metadata : bool, optional
        Whether objects get user metadata. Default True.
    storage_class : str, optional
        For all objects.
    metadata_storage_class, chunks_storage_class : str, optional
        For everything but chunks, and for chunks; default `storage_class`.
    minimum_size_for_multipart_upload : int, optional
        In bytes. Default 100 MiB.
    timeouts : StorageTimeoutSettings, optional

    Examples
    --------
    >>> settings = icechunk.StorageSettings(
    ...     retries=icechunk.StorageRetriesSettings(max_tries=3)
    ... )
    """

    _module = "icechunk.storage"
    _order = (
        "unsafe_use_conditional_create",
        "unsafe_use_conditional_update",
        "unsafe_use_metadata",
        "storage_class",
        "metadata_storage_class",
        "chunks_storage_class",
        "minimum_size_for_multipart_upload",
        "concurrency",
        "retries",
        "timeouts",
    )
    _in_force: ClassVar = {
        "unsafe_use_conditional_create": True,
        "unsafe_use_conditional_update": True,
        "unsafe_use_metadata": True,
        "minimum_size_for_multipart_upload": 100 * 1024**2,
        "concurrency": StorageConcurrencySettings(),
        "retries": StorageRetriesSettings(),
    }

    concurrency: Annotated[
        StorageConcurrencySettings | None, nested(StorageConcurrencySettings)
    ] = None
    retries: Annotated[StorageRetriesSettings | None, nested(StorageRetriesSettings)] = None
    unsafe_use_conditional_create: Annotated[bool | None, flag()] = None
    unsafe_use_conditional_update: Annotated[bool | None, flag()] = None
    unsafe_use_metadata: Annotated[bool | None, flag()] = None
    storage_class: Annotated[str | None, text()] = None
    metadata_storage_class: Annotated[str | None, text()] = None
    chunks_storage_class: Annotated[str | None, text()] = None
    minimum_size_for_multipart_upload: Annotated[int | None, unsigned(64)] = None
    timeouts: Annotated[StorageTimeoutSettings | None, nested(StorageTimeoutSettings)] = None

    def effective(self) -> EffectiveStorageSettings:
        """Return the values to work with (Icechunk spec, "RepositoryConfig")."""
        concurrency = in_force(self, "concurrency")
        return EffectiveStorageSettings(
            in_force(concurrency, "max_concurrent_requests_for_object"),
            in_force(concurrency, "ideal_concurrent_request_size"),
            effective_retries(in_force(self, "retries")),
            self.timeouts or StorageTimeoutSettings(),
            in_force(self, "unsafe_use_conditional_create"),
            in_force(self, "unsafe_use_conditional_update"),
            in_force(self, "unsafe_use_metadata"),
            _value_or(self.metadata_storage_class, self.storage_class),
            _value_or(self.chunks_storage_class, self.storage_class),
            in_force(self, "minimum_size_for_multipart_upload"),
        )

    def limited(self, limits: StorageSettings | None) -> StorageSettings:
        """Return the same settings, with no more retries and no longer waits than `limits`.

        Parameters
        ----------
        limits : StorageSettings or None
            The defaults are the limit where these are unset.
        """
        mine, most = self.effective(), (limits or StorageSettings()).effective()
        times = most.timeouts
        copied = StorageSettings._merge(self, StorageSettings())
        copied.retries = StorageRetriesSettings(
            max_tries=min(mine.retries.max_tries, most.retries.max_tries),
            initial_backoff_ms=min(
                mine.retries.initial_backoff_ms, most.retries.initial_backoff_ms
            ),
            max_backoff_ms=min(mine.retries.max_backoff_ms, most.retries.max_backoff_ms),
        )
        copied.timeouts = StorageTimeoutSettings(
            **{
                name: None if value is None else min(value, _value_or(getattr(times, name), limit))
                for name, limit in _LONGEST_MS.items()
                for value in [getattr(mine.timeouts, name)]
            }
        )
        return copied


def _value_or(value: Any, default: Any) -> Any:
    return default if value is None else value


#: In milliseconds, for waits that only somebody else asked for.
_LONGEST_MS: Final = {
    "connect_timeout_ms": 60_000,
    "read_timeout_ms": 60_000,
    "operation_timeout_ms": 180_000,
    "operation_attempt_timeout_ms": 180_000,
}
