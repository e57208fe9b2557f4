"""Read answers of web servers, but no more and no longer than was asked for.

A server may send an endless body, or one byte now and then. Neither a limit on silence
nor the size that it announces helps against that.
"""

from __future__ import annotations

import http.client
import io
import math
import re
from typing import Any, Final

from icechunk.storage.allowance import Allowance
from icechunk.storage.base import ByteRange, whole_limit

_PIECE: Final = 1 << 20
#: No more than this is read of an answer that is not a file.
_MAX_ERROR: Final = 1 << 16
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class UnfitAnswerError(Exception):
    """An answer that is not what was asked for, and that another try would not change."""


class _TimedLine(io.RawIOBase):
    """The reading end of a socket, which waits as long as an allowance permits."""

    def __init__(self, raw: Any, sock: Any, allowance: Allowance) -> None:
        self._raw, self._sock, self._allowance = raw, sock, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._allowance.wait())
        count: int | None = self._raw.readinto(buffer)
        self._allowance.count(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """An answer, headers included, that may take as long as an allowance permits."""

    def __init__(self, sock: Any, *args: Any, allowance: Allowance, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp = io.BufferedReader(_TimedLine(self.fp.detach(), sock, allowance))


def read_body(response: http.client.HTTPResponse, byte_range: ByteRange | None) -> bytes:
    """Read what is wanted of an answer, and no more than needed of a file that is sent whole.

    Raises
    ------
    UnfitAnswerError
        If the server sends another range, a compressed body, or a file too large to be
        read whole.
    http.client.IncompleteRead
        If it sends less than it announced.
    """
    if response.status not in (200, 206):
        return response.read(_MAX_ERROR)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity") and response.length != 0:
        raise UnfitAnswerError("the server sent it compressed, although asked not to")
    if response.status == 206:
        return _head(response, _announced(response, byte_range))
    start, end = byte_range or (0, None)
    if start is None:
        return _tail(response, end or 0)
    if start > whole_limit() and not (response.length or math.inf) <= whole_limit():
        raise UnfitAnswerError(
            f"the server does not support ranges: it would send the {start} bytes before them, too"
        )
    skip = start
    while skip and (skipped := len(response.read(min(skip, _PIECE)))):
        skip -= skipped
    return _head(response, None if end is None else end - start, may_be_short=True)


def _announced(response: http.client.HTTPResponse, byte_range: ByteRange | None) -> int:
    """Return how many bytes a part has, if it is the one that was asked for."""
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is not None and byte_range is not None:
        first, last = int(found[1]), int(found[2])
        whole = math.inf if found[3] == "*" else int(found[3])
        start, end = byte_range
        if start is None:
            begin, stop = max(whole - (end or 0), 0), whole
        else:
            begin, stop = start, min(whole, math.inf if end is None else end)
        size = last + 1 - first
        # if the size is unknown, nobody knows where the file ends: the caller may find it short
        ends = last + 1 == stop or (whole == math.inf and end is not None and last < stop)
        if first == begin and ends and response.length in (None, size):
            if end is None:
                _check_whole(size)
            return size
    raise UnfitAnswerError("the server sent a different range than requested")


def _check_whole(size: int) -> None:
    if size > whole_limit():
        raise UnfitAnswerError(f"the file has {size} bytes, more than {whole_limit()}")


def _head(
    response: http.client.HTTPResponse, wanted: int | None, *, may_be_short: bool = False
) -> bytes:
    """Read a number of bytes, or everything up to the limit for whole objects."""
    # nothing is allocated by the announced size: a server may announce anything
    if wanted is None:
        _check_whole(response.length or 0)
    pieces, left = [], whole_limit() if wanted is None else wanted
    while left and (piece := response.read(min(left, _PIECE))):
        pieces.append(piece)
        left -= len(piece)
    if wanted is None and not left and response.read(1):
        raise UnfitAnswerError(f"the file has more than {whole_limit()} bytes")
    if left and (response.length or not may_be_short):
        # the connection was cut
        raise http.client.IncompleteRead(b"", response.length or left)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _tail(response: http.client.HTTPResponse, wanted: int) -> bytes:
    """Read to the end, and keep this many bytes."""
    _check_whole(response.length or 0)
    kept, received = bytearray(), 0
    while piece := response.read(_PIECE):
        received += len(piece)
        _check_whole(received)
        kept += piece
        del kept[: max(len(kept) - wanted, 0)]
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(kept)
