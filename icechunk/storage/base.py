"""What a storage back end must do: a handful of calls on keys and bytes.

A storage is a flat space of objects below one prefix. Keys are relative to it, with
``/`` between segments. The calls that move chunk bytes exist in a synchronous form
and in an asynchronous one (``*_async``); listing is synchronous only, because only
administration lists. Conditions are part of the call, as in obspec: `put` says what
must hold, and the error says that it did not.
"""

from __future__ import annotations

import builtins
import importlib
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias, TypedDict, Unpack

from icechunk.base.display import Displayed
from icechunk.base.methods import in_thread
from icechunk.config import StorageSettings
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    PreconditionFailedError,
    ReadOnlyError,
    StorageError,
)

#: ``(start, end)`` is bytes `start` to `end` (exclusive), ``(start, None)`` all from
#: `start` on, ``(None, n)`` the last `n`. A range may reach past the end of the
#: object and is then cut there; one that starts at or past the end gives no bytes.
ByteRange: TypeAlias = tuple[int | None, int | None]

BytesLike: TypeAlias = bytes | bytearray | memoryview


class GetOptions(TypedDict, total=False):
    """What `Storage.get` takes besides a key, for callers that pass it on."""

    byte_range: ByteRange | None
    if_match: str | None
    if_unmodified_since: datetime | None


class PutConditions(TypedDict, total=False):
    """The conditions of `Storage.put`, for callers that pass them on."""

    if_absent: bool
    if_match: str | None


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """What a listing says about one object.

    Attributes
    ----------
    key : str
        Relative to the storage's prefix.
    size : int
        In bytes.
    etag : str or None
        The version, as `put` and `get` use it.
    last_modified : datetime
        In UTC, by the clock of the storage.
    """

    key: str
    size: int
    etag: str | None
    last_modified: datetime

    @property
    def size_bytes(self) -> int:
        """`size`, under the name that it has in the official client."""
        return self.size

    @property
    def created_at(self) -> datetime:
        """`last_modified`: objects are never changed in place."""
        return self.last_modified


@dataclass(frozen=True, slots=True)
class GetResult:
    """The bytes of an object (or of a range of it) and its version.

    Attributes
    ----------
    data : bytes-like
        One contiguous buffer; zero-copy where the back end can.
    etag : str or None
        The version of the whole object.
    last_modified : datetime or None
        In UTC.
    """

    data: BytesLike
    etag: str | None
    last_modified: datetime | None = None


class _Constructor:
    """A function that makes a storage, presented as a static method of `Storage`.

    It is looked up when it is called, because the functions that make storages import this module.
    """

    def __init__(self, module: str, function: str) -> None:
        self._module, self._function = module, function

    def __get__(self, instance: object, owner: type) -> Callable[..., Storage]:
        found: Callable[..., Storage] = getattr(
            importlib.import_module(f"icechunk.storage.{self._module}"), self._function
        )
        return found


class Storage(Displayed, ABC):
    """Where a repository's objects live.

    Errors of every back end: `ObjectNotFoundError` for a missing key,
    `PreconditionFailedError` for a condition that does not hold, `StorageError` for
    everything else (with the key, the operation and the cause in its message),
    `InvalidInputError` for a key that leaves the prefix.

    Examples
    --------
    >>> storage.get("repo").etag is not None
    True
    """

    #: False for a storage that cannot write, such as plain HTTP.
    supports_writes: bool = True
    #: True for a storage that is known to check the conditions of puts. Others are tested
    #: when a repository is created or first written.
    checks_conditions: bool = False
    #: Whether `turn` makes others wait.
    queues_writers: bool = False
    #: Whether `copy` with a condition fetches the object and puts it again.
    copies_by_reading: bool = False
    #: Whether a request takes so long that others should run at the same time.
    is_remote: bool = False

    # -- constructors of the official client ---------------------------------------
    new_in_memory = _Constructor("constructors", "in_memory_storage")
    new_local_filesystem = _Constructor("constructors", "local_filesystem_storage")
    new_s3 = _Constructor("from_config", "s3")
    new_s3_object_store = _Constructor("from_config", "s3_object_store")
    new_tigris = _Constructor("from_config", "tigris")
    new_r2 = _Constructor("from_config", "r2")
    new_hf = _Constructor("from_config", "hf")
    new_gcs = _Constructor("from_config", "gcs")
    new_azure_blob = _Constructor("from_config", "azure_blob")
    new_http = _Constructor("from_config", "http")
    new_redirect = _Constructor("urls", "redirect_storage")

    # -- reading ---------------------------------------------------------------
    @abstractmethod
    def get(
        self,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        if_match: str | None = None,
        if_unmodified_since: datetime | None = None,
    ) -> GetResult:
        """Fetch an object or a range of it.

        Raises
        ------
        ObjectNotFoundError
            If there is no such object.
        PreconditionFailedError
            If the object is not the version `if_match`, or was modified after
            `if_unmodified_since`.
        """

    def get_if_changed(self, key: str, etag: str | None) -> GetResult | None:
        """Fetch an object, or return None if its version is still `etag`."""
        result = self.get(key)
        return None if etag is not None and result.etag == etag else result

    def get_at_once(self, key: str) -> GetResult | None:
        """Fetch an object if that takes less time than handing the task to a thread.

        Event loops call it. None means that it would take longer.
        """
        return None

    async def get_async(self, key: str, **options: Unpack[GetOptions]) -> GetResult:
        """Fetch as `get` does, without blocking the event loop."""
        return await in_thread(self.get, key, **options)

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield every object whose key starts with the folder `prefix`, sorted by key.

        `prefix` is empty or ends with ``/``. A missing folder is an empty one.
        """

    # -- writing ---------------------------------------------------------------
    @abstractmethod
    def put(
        self,
        key: str,
        data: BytesLike,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str | None:
        """Write an object whole and return its version.

        Readers see the old object or the new one, never a part. A put with a condition
        publishes: it survives a crash of the machine, and so does everything that was put
        before it through this storage. A put without one may wait for that, or for `sync`.

        Raises
        ------
        PreconditionFailedError
            If `if_absent` and the object exists, or if its version is not `if_match`
            (also when it does not exist).
        """

    async def put_async(
        self, key: str, data: BytesLike, **conditions: Unpack[PutConditions]
    ) -> str | None:
        """Write as `put` does, without blocking the event loop."""
        return await in_thread(self.put, key, data, **conditions)

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are ignored."""

    def sync(self) -> None:
        """Make everything put so far survive a crash of the machine.

        For objects whose names are about to be passed on in other ways than by a put with a
        condition. Default: nothing.
        """

    def delete_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        """Delete what killed writers left behind, where a storage has such leftovers.

        Parameters
        ----------
        before : datetime
            Only what was last written before this time: newer files may belong to live writers.
        dry_run : bool, default False
            Only count.

        Returns
        -------
        int
            How many bytes were freed. Default: 0, there are no leftovers.
        """
        return 0

    def copy(self, source: str, target: str, *, if_match: str | None = None) -> None:
        """Copy one object, on the server where that is possible.

        Raises
        ------
        ObjectNotFoundError
            If `source` does not exist.
        PreconditionFailedError
            If its version is not `if_match`.
        """
        self.put(target, self.get(source, if_match=if_match).data)

    def turn(self, key: str) -> AbstractContextManager[None]:
        """Return what to hold while an object is read and replaced by one of many writers.

        It saves others from working in vain, but does not protect: whoever does not get a
        turn soon goes on without. Default: nobody waits.
        """
        return nullcontext()

    # -- the storage itself ----------------------------------------------------
    @abstractmethod
    def with_settings(self, settings: StorageSettings) -> Storage:
        """Return the same place with other retries, timeouts and concurrency."""

    def with_user_agent(self, user_agent: str) -> Storage:
        """Return the same place, with requests that identify this program.

        Default: the storage itself, since one without requests identifies itself to nobody.
        """
        return self

    def default_settings(self) -> StorageSettings:
        """Return the settings used when the configuration has none.

        Options that are unset in them have the defaults that `StorageSettings` documents.
        """
        return StorageSettings()

    def list_objects_metadata(
        self, settings: StorageSettings | None = None, prefix: str | None = None
    ) -> builtins.list[ObjectMeta]:
        """Return every object whose key starts with `prefix`, sorted by key.

        Parameters
        ----------
        settings : StorageSettings, optional
            For this listing only.
        prefix : str, optional
            Any beginning of keys, not only a folder. Default: all objects.
        """
        storage = self if settings is None else self.with_settings(settings)
        folder, slash, _ = (prefix or "").rpartition("/")
        return [m for m in storage.list(folder + slash) if m.key.startswith(prefix or "")]

    def list_objects(
        self, settings: StorageSettings | None = None, prefix: str | None = None
    ) -> builtins.list[tuple[str, int]]:
        """Return key and size in bytes of what `list_objects_metadata` finds."""
        return [(m.key, m.size) for m in self.list_objects_metadata(settings, prefix)]

    @property
    @abstractmethod
    def url(self) -> str:
        """The location as a URL, without credentials."""

    @property
    def endpoint(self) -> str | None:
        """The URL of the service, or None if the user did not choose one."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __dask_tokenize__(self) -> str:
        # Dask takes equal tokens for equal data, but the content of a storage changes
        return uuid.uuid4().hex


# -- rules that every back end applies ---------------------------------------------
#: Empty, ``.`` and ``..`` segments, control characters, and halves of surrogate pairs,
#: which have no UTF-8 form.
_BAD_KEY: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f\ud800-\udfff]")


def check_key(key: str) -> str:
    """Return `key` if it names an object inside of a prefix.

    Raises
    ------
    InvalidInputError
        If it is empty, absolute, has an empty segment, ``.`` or ``..``, or a character
        that not every back end can store.
    """
    if _BAD_KEY.search(key):
        raise InvalidInputError(
            f"{key!r} is not a valid key: it must be relative, without empty segments, "
            "'.', '..' or control characters"
        )
    return key


def check_folder(prefix: str) -> str:
    """Return `prefix` if it is empty, or a key followed by ``/``.

    Raises
    ------
    InvalidInputError
        If it is neither.
    """
    if prefix and not (prefix.endswith("/") and check_key(prefix[:-1])):
        raise InvalidInputError(
            f"{prefix!r} is not a folder to list: end it with '/'", ErrorKind.BAD_PREFIX
        )
    return prefix


#: FlatBuffers cannot be larger, and no object that is read whole may be.
MAX_WHOLE: Final = 1 << 31


def whole_limit() -> int:
    """Return how many bytes an object may have to be read whole.

    Metadata are read whole. Chunks are read by ranges, which themselves say how much is wanted.
    """
    return MAX_WHOLE


def check_whole(key: str, size: int, where: str) -> None:
    """Check that an object is not too large to be read whole, before anything is read.

    Raises
    ------
    StorageError
        If it is.
    """
    if size > whole_limit():
        raise StorageError(
            f"cannot read {key} in {where}: it has {size} bytes, and an object that is read "
            f"whole may have {whole_limit()}"
        )


def check_range(byte_range: ByteRange) -> None:
    """Check that a range is valid, whatever the size of the object.

    Raises
    ------
    InvalidInputError
        If it has no bound, a negative one, or ends before it starts.
    """
    start, end = byte_range
    bounds = [bound for bound in byte_range if bound is not None]
    if not bounds or min(bounds) < 0 or (start is not None and end is not None and end < start):
        raise InvalidInputError(
            f"{byte_range!r} is not a range of bytes: expected (start, end), (start, None) or "
            "(None, length), not negative and in order",
            ErrorKind.INVALID_BYTE_RANGE,
        )


def resolve_range(byte_range: ByteRange | None, size: int) -> tuple[int, int]:
    """Return the first and the last position (exclusive) of a range in `size` bytes.

    Raises
    ------
    InvalidInputError
        As `check_range`.
    """
    if byte_range is None:
        return 0, size
    check_range(byte_range)
    start, end = byte_range
    if start is None:
        return max(0, size - (end or 0)), size
    start = min(start, size)
    return start, size if end is None else min(end, size)


def same_version(one: str, other: str) -> bool:
    """Whether two etags are equal, apart from the quotes that HTTP puts around them."""
    return one.strip('"') == other.strip('"')


def check_version(
    key: str,
    etag: str | None,
    last_modified: datetime | None,
    *,
    if_match: str | None,
    if_unmodified_since: datetime | None,
) -> None:
    """Check the conditions that were given to `Storage.get`.

    Raises
    ------
    PreconditionFailedError
        If one does not hold, or if the storage does not tell.
    """
    if if_match is not None and (etag is None or not same_version(etag, if_match)):
        raise PreconditionFailedError(
            f"{key}: the object is not the version asked for: expected etag {if_match}, "
            f"found {etag or 'none'}"
        )
    if if_unmodified_since is not None and (
        last_modified is None or last_modified.timestamp() > if_unmodified_since.timestamp()
    ):
        raise PreconditionFailedError(
            f"{key}: the object was modified at {last_modified or 'an unknown time'}, after "
            f"{if_unmodified_since}"
        )


def refuse_write(storage: Storage, key: str) -> ReadOnlyError:
    """Return the error for a write to a storage that only reads."""
    return ReadOnlyError(
        f"cannot write {key}: {storage.url} can only be read", ErrorKind.READ_ONLY_STORAGE
    )
