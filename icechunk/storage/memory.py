"""Objects in the memory of this process: for tests and small experiments."""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Unpack

from icechunk.base.texts import labelled
from icechunk.config import StorageConcurrencySettings, StorageRetriesSettings, StorageSettings
from icechunk.errors import (
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.storage.base import (
    ByteRange,
    BytesLike,
    GetOptions,
    GetResult,
    ObjectMeta,
    PutConditions,
    Storage,
    check_folder,
    check_key,
    check_version,
    resolve_range,
    same_version,
)


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    etag: str
    last_modified: datetime


class _Space:
    """The objects that all storages of one name share."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: dict[str, _Object] = {}
        self.lock = threading.RLock()
        self.version = 0


#: Every space that is in use, so that a pickled storage finds its own again.
_spaces: Final[weakref.WeakValueDictionary[str, _Space]] = weakref.WeakValueDictionary()
#: Those that a user named live as long as the process.
_named: Final[dict[str, _Space]] = {}
_registry_lock: Final = threading.Lock()
#: Differs between processes even if their pids do not, as on two machines.
_PROCESS: Final = uuid.uuid4().hex


class MemoryStorage(Storage):
    """Objects in memory, gone when the process ends.

    Parameters
    ----------
    name : str, optional
        Storages of one name hold the same objects, like ``memory://name``. Without a
        name, only this one and its copies do.

    Examples
    --------
    >>> repo = icechunk.Repository.create(icechunk.MemoryStorage())
    """

    checks_conditions = True

    def __init__(self, name: str | None = None) -> None:
        if name == "":
            raise InvalidInputError("the name of a memory storage cannot be empty")
        with _registry_lock:
            if name is None:
                space = _Space(f"anonymous-{uuid.uuid4().hex}")
            else:
                space = _named.setdefault(name, _Space(name))
            _spaces[space.name] = space
        self._name = space.name
        self._home = _this_process()
        self._found: _Space | None = space

    @property
    def _space(self) -> _Space:
        if self._found is None:
            raise StorageError(
                f"{self.url} lives in the process that made it: memory storage cannot be "
                "shared between processes; use a folder or an object store"
            )
        return self._found

    @property
    def url(self) -> str:
        """``memory://`` and the name."""
        return f"memory://{self._name}"

    def get(
        self,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        if_match: str | None = None,
        if_unmodified_since: datetime | None = None,
    ) -> GetResult:
        """Fetch an object or a range of it; see `Storage.get`."""
        found = self._space.objects.get(check_key(key))
        if found is None:
            raise ObjectNotFoundError(f"{key}: there is no such object in {self.url}")
        check_version(
            key,
            found.etag,
            found.last_modified,
            if_match=if_match,
            if_unmodified_since=if_unmodified_since,
        )
        start, stop = resolve_range(byte_range, len(found.data))
        # a view, because a slice of bytes would be a copy
        part = found.data if byte_range is None else memoryview(found.data)[start:stop]
        return GetResult(part, found.etag, found.last_modified)

    def get_at_once(self, key: str) -> GetResult | None:
        """Fetch an object: there is nothing to wait for."""
        return self.get(key)

    async def get_async(self, key: str, **options: Unpack[GetOptions]) -> GetResult:
        """Fetch as `get` does. There is nothing to wait for, so it uses no thread."""
        return self.get(key, **options)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield the objects of a folder; see `Storage.list`."""
        check_folder(prefix)
        with self._space.lock:
            found = sorted(
                item for item in self._space.objects.items() if item[0].startswith(prefix)
            )
        for key, item in found:
            yield ObjectMeta(key, len(item.data), item.etag, item.last_modified)

    def put(
        self,
        key: str,
        data: BytesLike,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Write an object whole; see `Storage.put`."""
        check_key(key)
        stored = bytes(data)
        with self._space.lock:
            current = self._space.objects.get(key)
            if if_absent and current is not None:
                raise PreconditionFailedError(f"{key}: the object exists already in {self.url}")
            if if_match is not None and (
                current is None or not same_version(current.etag, if_match)
            ):
                raise PreconditionFailedError(
                    f"{key}: not replaced, its version is no longer {if_match}"
                )
            self._space.version += 1
            etag = f'"{self._space.version}"'
            self._space.objects[key] = _Object(stored, etag, datetime.now(UTC))
        return etag

    async def put_async(
        self, key: str, data: BytesLike, **conditions: Unpack[PutConditions]
    ) -> str:
        """Write as `put` does. There is nothing to wait for, so it uses no thread."""
        return self.put(key, data, **conditions)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; see `Storage.delete`."""
        for key in keys:
            self._space.objects.pop(check_key(key), None)

    def __repr__(self) -> str:
        return labelled("icechunk.Storage", {"type": "in-memory"})

    def default_settings(self) -> StorageSettings:
        """Return the settings used when the configuration has none: no request is retried."""
        return StorageSettings(
            concurrency=StorageConcurrencySettings(5, 1),
            retries=StorageRetriesSettings(1, 0, 0),
        )

    def with_settings(self, settings: StorageSettings) -> MemoryStorage:
        """Return the storage itself: memory has no such settings."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._name, self._home)


def _this_process() -> tuple[str, int]:
    # the pid too: a forked child has a copy of _PROCESS and of the objects, and does not
    # see what the parent writes, nor the parent what the child writes
    return _PROCESS, os.getpid()


def _unpickle(name: str, home: tuple[str, int]) -> MemoryStorage:
    storage = MemoryStorage.__new__(MemoryStorage)
    storage._name = name
    # kept, so that a copy that comes back finds its objects again
    storage._home = home
    # in another process it fails on use: an error here would end the process
    storage._found = _spaces.get(name) if home == _this_process() else None
    return storage
