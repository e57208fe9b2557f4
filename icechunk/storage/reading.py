"""How one get becomes requests: ranges, conditions, and what to ask next.

No I/O: `ObjectStorage` sends what `Read.options` says, synchronously or not, and reports
what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import numpy as np
from obstore.exceptions import NotModifiedError

from icechunk.config.storage_settings import EffectiveStorageSettings
from icechunk.errors import IcechunkError, PreconditionFailedError, StorageError
from icechunk.storage.allowance import Allowance
from icechunk.storage.base import (
    ByteRange,
    BytesLike,
    GetResult,
    check_key,
    check_range,
    check_version,
    check_whole,
    resolve_range,
)
from icechunk.storage.failures import starts_past_end, translate
from icechunk.storage.places import Place, quoted

#: What obstore gives for an object whose server does not say when it was modified.
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: No sane server needs more.
_MAX_REQUESTS: Final = 4
#: An answer of up to this size is one piece, which is not copied.
_WHOLE: Final = 1 << 26
#: Others are read in pieces of this size, and so are all where the line is slow: only the end of
#: a piece shows that something arrives.
_PIECE: Final = 1 << 20
#: No more is reserved before it comes: a server may announce anything.
_RESERVED: Final = 1 << 30
#: So much of a piece counts as received while it is on its way, since its progress shows only at
#: its end. With a limit of a kilobyte a second a small piece must come four times as fast.
_CREDIT: Final = _PIECE // 4


class Memory:
    """The bytes of one read, which its parts fill. They take no place before they come.

    Parameters
    ----------
    size : int
    """

    def __init__(self, size: int) -> None:
        self._bytes = np.empty(size, np.uint8).data if size <= _RESERVED else None

    def part(self, start: int, stop: int) -> memoryview | None:
        """Return a part to write to; None where all of it is too much to reserve."""
        return None if self._bytes is None else self._bytes[start:stop]


class Line:
    """What is known of the way to a server.

    Attributes
    ----------
    is_slow : bool
        Whether an answer in one piece came too slowly: then they come in small pieces.
    """

    is_slow = False


class Read:
    """One object, or a range of it, on its way.

    Parameters
    ----------
    place : Place
    key : str
    byte_range : ByteRange or None
    if_match : str or None
    if_unmodified_since : datetime or None
    line : Line, optional
        What is known of the way there.
    part : (Memory, int, int), optional
        The bytes of the read that this one is a part of, and its place among them.

    Attributes
    ----------
    options : dict
        Of the next request, as `obstore.get` takes them.
    """

    def __init__(
        self,
        place: Place,
        key: str,
        byte_range: ByteRange | None = None,
        if_match: str | None = None,
        if_unmodified_since: datetime | None = None,
        line: Line | None = None,
        part: tuple[Memory, int, int] | None = None,
    ) -> None:
        self.key = check_key(key)
        if byte_range is not None:
            check_range(byte_range)
        self._place = place
        self._byte_range = byte_range
        self._if_match = None if if_match is None else place.etag(if_match)
        self._if_unmodified_since = if_unmodified_since
        self._line = line or Line()
        self._part = part
        self._is_one_piece = False
        self._requests_left = _MAX_REQUESTS
        self.options: dict[str, Any] = {}
        if self._if_match is not None:
            self.options["if_match"] = quoted(self._if_match)
        if if_unmodified_since is not None:
            self.options["if_unmodified_since"] = if_unmodified_since
        if byte_range is not None:
            self._ask_for(*byte_range)

    def _ask_for(self, start: int | None, end: int | None) -> None:
        if end == (start or 0) or (start is None and not self._place.suffix_ranges):
            # no bytes, which cannot be requested; or the size is needed first
            self.options["head"] = True
        elif start is None:
            self.options["range"] = {"suffix": end}
        elif end is None:
            self.options["range"] = {"offset": start}
        else:
            self.options["range"] = (start, end)

    @property
    def wants_data(self) -> bool:
        """Whether the body of the next answer is to be read."""
        return "head" not in self.options

    def body(self, response: Any, allowance: Allowance) -> Body:
        """Return what collects the body of an answer.

        Raises
        ------
        StorageError
            If it announces more than may be read whole, where no end was asked for.
        """
        start, end = response.range
        if self.wants_data and (self._byte_range is None or self._byte_range[1] is None):
            check_whole(self.key, end - start, self._place.url)
        size = end - start if self.wants_data else 0
        if self._part is None and not self._line.is_slow and size <= _WHOLE:
            self._is_one_piece = size > _PIECE
            return Body(self.key, self._place.url, response, size, allowance, size)
        memory = None
        if size > _PIECE:
            whole, begin, stop = self._part or (Memory(size), 0, size)
            # the next part has what follows
            memory = whole.part(begin, begin + size) if size <= stop - begin else None
        return Body(self.key, self._place.url, response, size, allowance, _PIECE, memory)

    def parts(self, settings: EffectiveStorageSettings) -> list[Read]:
        """Return the reads that together give this one, to run at the same time."""
        start, end = self._byte_range or (None, None)
        if start is None or end is None:
            return [self]
        size = end - start
        count = -(-size // settings.ideal_concurrent_request_size)
        count = min(count, settings.max_concurrent_requests_for_object)
        if count < 2:
            return [self]
        bounds = [size * i // count for i in range(count + 1)]
        memory = Memory(size)
        return [
            Read(
                self._place,
                self.key,
                (start + begin, start + stop),
                self._if_match,
                self._if_unmodified_since,
                self._line,
                (memory, begin, stop),
            )
            for begin, stop in pairwise(bounds)
        ]

    def answered(self, meta: Any, data: Any) -> GetResult | IcechunkError | None:
        """Take an answer; return the final result, or None to send `options`."""
        start, stop = resolve_range(self._byte_range, meta["size"])
        if not self.wants_data and start < stop and self._byte_range != (start, stop):
            # the size was needed for this; the next answer must be of the same version
            if meta["e_tag"] is not None:
                self.options["if_match"] = meta["e_tag"]
            return self._again(range=(start, stop))
        modified = None if meta["last_modified"] == _EPOCH else meta["last_modified"]
        try:
            # not every server knows conditions, so they are checked again
            check_version(
                self.key,
                meta["e_tag"],
                modified,
                if_match=self._if_match,
                if_unmodified_since=self._if_unmodified_since,
            )
        except PreconditionFailedError as error:
            return error
        return GetResult(memoryview(data), self._place.version(meta), modified)

    def failed(
        self, error: Exception, came_slowly: bool
    ) -> IcechunkError | NotModifiedError | None:
        """Take an exception; return the final result, or None to send `options`.

        Parameters
        ----------
        error : Exception
        came_slowly : bool
            Whether it is one because the body of an answer took too long.
        """
        if came_slowly and self._is_one_piece:
            # perhaps fast enough, but nobody saw how much had come
            self._line.is_slow, self._is_one_piece = True, False
            return None
        if "range" in self.options and starts_past_end(error):
            # there are no such bytes, but the version must be known all the same
            return self._again(head=True)
        if isinstance(error, NotModifiedError | StorageError):
            return error
        return translate(error, "read", self.key, self._place)

    def _again(self, **options: Any) -> StorageError | None:
        conditions = {k: v for k, v in self.options.items() if k not in ("head", "range")}
        self.options = {**conditions, **options}
        self._requests_left -= 1
        if self._requests_left:
            return None
        return StorageError(
            f"cannot read {self.key} in {self._place.url}: the server contradicts itself about "
            "the size of the object"
        )


class Body:
    """The bytes of an answer, as they arrive: as many as were announced, and no more.

    Servers announce the range that they send, and the client compares it with the one that was
    requested. What they then send is another matter: it may have no end.

    Parameters
    ----------
    key, url : str
        For messages.
    response : obstore.GetResult
    size : int
        How many bytes are announced and wanted.
    allowance : Allowance
        How long they may take.
    piece : int
        How many to read at a time.
    memory : memoryview, optional
        Where they are to be, `size` of them. Default: pieces are kept, and joined.
    """

    def __init__(
        self,
        key: str,
        url: str,
        response: Any,
        size: int,
        allowance: Allowance,
        piece: int,
        memory: memoryview | None = None,
    ) -> None:
        self._key, self._url, self._size = key, url, size
        self._allowance = allowance
        self._memory = memory
        self._pieces: list[Any] = []
        self._received = 0
        piece = min(size, piece)
        allowance.count(min(piece // 4, _CREDIT))
        self._stream: Any = response.stream(piece) if size else ()

    def read(self, wait: Callable[[Callable[[], Any], Callable[[], object]], Any]) -> Any:
        """Return all of it; `wait` waits for one piece after another, as `answer` does.

        Raises
        ------
        StorageError
            If it is not as long as was announced.
        """
        with suppress(StopAsyncIteration):
            while self._size and not self._is_last(wait(self._next, self._forget)):
                pass
        return self._data()

    async def read_async(self, goes_on: Callable[[], None]) -> Any:
        """Return all of it as `read` does; `goes_on` is called before each piece."""
        if self._size:
            goes_on()
            async for piece in self._stream:
                if self._is_last(piece):
                    break
                goes_on()
        return self._data()

    def _next(self) -> Any:
        return self._stream.__anext__()

    def _forget(self) -> None:
        self._stream = None

    def _is_last(self, piece: Any) -> bool:
        size = len(piece)
        end = self._received + size
        if self._memory is None:
            self._pieces.append(piece)
        elif end <= self._size:
            self._memory[self._received : end] = memoryview(piece)
        self._received = end
        self._allowance.count(size)
        return end >= self._size

    def _data(self) -> Any:
        if self._received != self._size:
            some = "more" if self._received > self._size else f"{self._received}"
            raise StorageError(
                f"cannot read {self._key} in {self._url}: the server announced {self._size} "
                f"bytes and sent {some}"
            )
        if self._memory is not None:
            # a cache may keep it, too
            return self._memory.toreadonly()
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def joined(key: str, parts: Sequence[GetResult]) -> GetResult:
    """Return one result for the parts of a read.

    Raises
    ------
    PreconditionFailedError
        If they are of different versions.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.etag != first.etag for part in parts):
        raise PreconditionFailedError(f"{key}: the object changed while it was read")
    data = _whole([part.data for part in parts])
    return GetResult(data, first.etag, first.last_modified)


def _whole(parts: list[BytesLike]) -> BytesLike:
    """Return the memory that parts fill side by side, or else a copy of them."""
    first = parts[0]
    memory = first.obj if isinstance(first, memoryview) else None
    if (
        isinstance(memory, np.ndarray)
        and all(isinstance(part, memoryview) and part.obj is memory for part in parts)
        and sum(map(len, parts)) == memory.nbytes
    ):
        return memoryview(memory).toreadonly()
    return b"".join(parts)
