"""Storages around other storages: slow ones, counted ones, failing ones.

They serve tests and experiments: how many requests does this make, what if an answer
is lost, what if every request takes a tenth of a second?
"""

from __future__ import annotations

import builtins
import copy
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeVar, Unpack

from icechunk.config import StorageSettings
from icechunk.errors import InvalidInputError, StorageError
from icechunk.storage.base import (
    BytesLike,
    GetOptions,
    GetResult,
    ObjectMeta,
    PutConditions,
    Storage,
)

#: Operations by the names that wrappers use. Asynchronous calls count as the others.
READS: Final = ("get", "get_if_changed", "list")
WRITES: Final = ("put", "delete", "copy")

WrapperType = TypeVar("WrapperType", bound="WrapperStorage")


class WrapperStorage(Storage):
    """A storage that passes every call on, and lets subclasses act around it.

    Parameters
    ----------
    inner : Storage
    """

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.supports_writes = inner.supports_writes
        self.checks_conditions = inner.checks_conditions
        self.queues_writers = inner.queues_writers
        self.copies_by_reading = inner.copies_by_reading
        self.is_remote = inner.is_remote

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Act before a call reaches the inner storage; may raise.

        Parameters
        ----------
        operation : str
            One of `READS` or `WRITES`.
        keys : tuple of str
            The objects, or the folder that is listed.
        written : int
            Bytes that it sends.
        """

    async def before_async(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Do the same in asynchronous calls. Default: `before`."""
        self.before(operation, keys, written)

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        """Act after a call has taken effect; may raise.

        Parameters
        ----------
        operation, keys
            As in `before`.
        read : int
            Bytes that it got.
        """

    # -- calls -------------------------------------------------------------------
    def get(self, key: str, **options: Unpack[GetOptions]) -> GetResult:
        """Pass on `Storage.get`."""
        self.before("get", (key,), 0)
        result = self.inner.get(key, **options)
        self.after("get", (key,), len(result.data))
        return result

    async def get_async(self, key: str, **options: Unpack[GetOptions]) -> GetResult:
        """Pass on `Storage.get_async`."""
        await self.before_async("get", (key,), 0)
        result = await self.inner.get_async(key, **options)
        self.after("get", (key,), len(result.data))
        return result

    def get_if_changed(self, key: str, etag: str | None) -> GetResult | None:
        """Pass on `Storage.get_if_changed`."""
        self.before("get_if_changed", (key,), 0)
        result = self.inner.get_if_changed(key, etag)
        self.after("get_if_changed", (key,), 0 if result is None else len(result.data))
        return result

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Pass on `Storage.list`; it counts as one call, made now."""
        self.before("list", (prefix,), 0)
        found = self.inner.list(prefix)
        self.after("list", (prefix,), 0)
        return found

    def put(self, key: str, data: BytesLike, **conditions: Unpack[PutConditions]) -> str | None:
        """Pass on `Storage.put`."""
        self.before("put", (key,), len(data))
        etag = self.inner.put(key, data, **conditions)
        self.after("put", (key,), 0)
        return etag

    async def put_async(
        self, key: str, data: BytesLike, **conditions: Unpack[PutConditions]
    ) -> str | None:
        """Pass on `Storage.put_async`."""
        await self.before_async("put", (key,), len(data))
        etag = await self.inner.put_async(key, data, **conditions)
        self.after("put", (key,), 0)
        return etag

    def delete(self, keys: Iterable[str]) -> None:
        """Pass on `Storage.delete`; it counts as one call, for however many objects."""
        doomed = tuple(keys)
        self.before("delete", doomed, 0)
        self.inner.delete(doomed)
        self.after("delete", doomed, 0)

    def sync(self) -> None:
        """Pass on `Storage.sync`, which is not a request."""
        self.inner.sync()

    def turn(self, key: str) -> AbstractContextManager[None]:
        """Pass on `Storage.turn`, which is not a request."""
        return self.inner.turn(key)

    def delete_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        """Pass on `Storage.delete_leftovers`, which is not a request."""
        return self.inner.delete_leftovers(before, dry_run=dry_run)

    def copy(self, source: str, target: str, *, if_match: str | None = None) -> None:
        """Pass on `Storage.copy`."""
        self.before("copy", (source, target), 0)
        self.inner.copy(source, target, if_match=if_match)
        self.after("copy", (source, target), 0)

    # -- the storage itself --------------------------------------------------------
    def with_settings(self: WrapperType, settings: StorageSettings) -> WrapperType:
        """Return a wrapper that shares what this one counts or does, with other settings."""
        other = copy.copy(self)
        other.inner = self.inner.with_settings(settings)
        return other

    def with_user_agent(self: WrapperType, user_agent: str) -> WrapperType:
        """Return a wrapper that shares what this one counts or does."""
        other = copy.copy(self)
        other.inner = self.inner.with_user_agent(user_agent)
        return other

    @property
    def url(self) -> str:
        """The URL of the inner storage."""
        return self.inner.url

    @property
    def endpoint(self) -> str | None:
        """That of the inner storage."""
        return self.inner.endpoint


class LatencyStorage(WrapperStorage):
    """A storage that takes its time.

    Parameters
    ----------
    inner : Storage
    write_latency_ms, read_latency_ms : int, default 0
        Wait this long before each call that writes, or reads. May be changed later, for
        this storage and for those made from it by `with_settings`.

    Examples
    --------
    >>> slow = icechunk.LatencyStorage(storage, read_latency_ms=20)
    """

    def __init__(
        self, inner: Storage, *, write_latency_ms: int = 0, read_latency_ms: int = 0
    ) -> None:
        super().__init__(inner)
        self._latency = {"write": write_latency_ms, "read": read_latency_ms}

    @property
    def write_latency_ms(self) -> int:
        """Delay of calls that write, in milliseconds."""
        return self._latency["write"]

    @write_latency_ms.setter
    def write_latency_ms(self, value: int) -> None:
        self._latency["write"] = value

    @property
    def read_latency_ms(self) -> int:
        """Delay of calls that read, in milliseconds."""
        return self._latency["read"]

    @read_latency_ms.setter
    def read_latency_ms(self, value: int) -> None:
        self._latency["read"] = value

    def _seconds(self, operation: str) -> float:
        return self._latency["write" if operation in WRITES else "read"] / 1000

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Wait."""
        time.sleep(self._seconds(operation))

    async def before_async(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Wait, and let others run meanwhile."""
        import asyncio

        await asyncio.sleep(self._seconds(operation))


@dataclass(slots=True)
class OperationCount:
    """How often an operation was called, and how much it moved.

    Attributes
    ----------
    requests : int
        Calls, including those that failed.
    bytes_read, bytes_written : int
        Bytes read count when they have arrived, bytes written when they are sent.
    """

    requests: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class _Shared:
    """A lock that a pickled copy replaces by a new one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.Lock())


class _Counts(_Shared):
    def __init__(self) -> None:
        super().__init__()
        self.of = {operation: OperationCount() for operation in READS + WRITES}


class CountingStorage(WrapperStorage):
    """A storage that counts. Copies in other processes count for themselves.

    Parameters
    ----------
    inner : Storage

    Examples
    --------
    >>> counting = icechunk.CountingStorage(storage)
    >>> repo = icechunk.Repository.open(counting)
    >>> counting.requests > 0
    True
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._counts = _Counts()

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Count a request and the bytes that it sends."""
        with self._counts.lock:
            count = self._counts.of[operation]
            count.requests += 1
            count.bytes_written += written

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        """Count the bytes that a request got."""
        with self._counts.lock:
            self._counts.of[operation].bytes_read += read

    @property
    def counts(self) -> dict[str, OperationCount]:
        """A copy of the counts so far, by operation."""
        with self._counts.lock:
            return copy.deepcopy(self._counts.of)

    @property
    def requests(self) -> int:
        """All requests so far."""
        return sum(count.requests for count in self.counts.values())

    @property
    def bytes_read(self) -> int:
        """All bytes read so far."""
        return sum(count.bytes_read for count in self.counts.values())

    @property
    def bytes_written(self) -> int:
        """All bytes written so far."""
        return sum(count.bytes_written for count in self.counts.values())

    def reset(self) -> None:
        """Start from zero."""
        with self._counts.lock:
            for operation in self._counts.of:
                self._counts.of[operation] = OperationCount()


@dataclass(slots=True)
class Fault:
    """One rule of a `FaultyStorage`.

    Attributes
    ----------
    operation, key, nth, times, when, error
        As given to `FaultyStorage.fail`.
    seen : int
        Calls so far that match.
    raised : int
        How often it has failed.
    """

    operation: str | None
    key: Callable[[str], bool]
    nth: int
    times: int
    when: Literal["before", "after"]
    error: Exception
    seen: int = 0
    raised: int = 0


class _Faults(_Shared):
    def __init__(self) -> None:
        super().__init__()
        self.rules: list[Fault] = []


class _StartsWith:
    """A key test that can be pickled."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __call__(self, key: str) -> bool:
        return key.startswith(self.prefix)


class FaultyStorage(WrapperStorage):
    """A storage that fails where a test wants it to.

    Parameters
    ----------
    inner : Storage

    Examples
    --------
    >>> faulty = icechunk.FaultyStorage(storage)
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._faults = _Faults()

    def fail(
        self,
        operation: str | None = None,
        *,
        key: str | Callable[[str], bool] = "",
        nth: int = 1,
        times: int = 1,
        when: Literal["before", "after"] = "before",
        error: Exception | None = None,
    ) -> Fault:
        """Let a future call fail.

        Parameters
        ----------
        operation : str, optional
            ``get``, ``get_if_changed``, ``list``, ``put``, ``delete`` or ``copy``.
            Default: any of them.
        key : str or callable, default ""
            The beginning of a key, or a function that says whether a key matches.
        nth : int, default 1
            The first matching call that fails, counted from now.
        times : int, default 1
            How many matching calls fail from there on.
        when : {"before", "after"}, default "before"
            Before the call has an effect; or after it, so that only the answer is lost.
        error : Exception, optional
            Default: a `StorageError`.

        Returns
        -------
        Fault
            The rule, which also counts how often it was applied.

        Raises
        ------
        InvalidInputError
            If there is no such operation, or a count is less than one.
        """
        if operation is not None and operation not in READS + WRITES:
            raise InvalidInputError(
                f"{operation!r} is not an operation: expected one of {', '.join(READS + WRITES)}"
            )
        if nth < 1 or times < 1:
            raise InvalidInputError(f"nth ({nth}) and times ({times}) must be at least 1")
        fault = Fault(
            operation,
            _StartsWith(key) if isinstance(key, str) else key,
            nth,
            times,
            when,
            error or StorageError(f"injected: {operation or 'call'} failed {when} its effect"),
        )
        with self._faults.lock:
            self._faults.rules.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all rules."""
        with self._faults.lock:
            self._faults.rules.clear()

    def _meet(self, when: str, operation: str, keys: tuple[str, ...]) -> None:
        with self._faults.lock:
            for fault in self._faults.rules:
                if (
                    fault.when != when
                    or fault.operation not in (None, operation)
                    or not any(map(fault.key, keys))
                ):
                    continue
                fault.seen += 1
                if fault.nth <= fault.seen < fault.nth + fault.times:
                    fault.raised += 1
                    raise fault.error

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Fail if a rule says so."""
        self._meet("before", operation, keys)

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        """Lose the answer if a rule says so."""
        self._meet("after", operation, keys)

    @property
    def faults(self) -> builtins.list[Fault]:
        """All rules so far."""
        with self._faults.lock:
            return [*self._faults.rules]
