"""Combine reads of neighbouring ranges of one file into one request.

Zarr asks for many chunks at once, one call each. Calls of the same turn of the event
loop are collected, and ranges of the same file that lie close to each other are
fetched together. No call waits for anything but the others of that turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from icechunk.storage.base import GetResult, Storage

if TYPE_CHECKING:
    import asyncio

#: Fetch up to this many bytes between two ranges rather than make another request: at
#: 100 MB/s they take less than a millisecond, but an object store needs many to answer.
MAX_GAP: Final = 64 * 1024
#: A request asks for no more than this, unless a single chunk does: all of it is in memory.
MAX_REQUEST: Final = 16 * 1024 * 1024


class Source(NamedTuple):
    """A file in one version: reads must agree in this to be fetched together.

    Attributes
    ----------
    storage : Storage
    key : str
    if_match, if_unmodified_since
        As in `Storage.get`.
    """

    storage: Storage
    key: str
    if_match: str | None = None
    if_unmodified_since: datetime | None = None


@dataclass
class _Wanted:
    start: int
    end: int
    result: asyncio.Future[GetResult]


#: Storages do not compare as values.
_Group: TypeAlias = tuple[int, str, str | None, datetime | None]


@dataclass
class _Turn:
    """What was asked for in one turn of a loop."""

    sources: dict[_Group, Source] = field(default_factory=dict)
    wanted: dict[_Group, list[_Wanted]] = field(default_factory=dict)


class Coalescer:
    """Fetches ranges of files, and combines those that are asked for at the same time.

    Any number of event loops may use it at the same time.
    """

    def __init__(self) -> None:
        self._turns: dict[asyncio.AbstractEventLoop, _Turn] = {}
        # a loop keeps no strong references to its tasks
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, source: Source, start: int, end: int) -> GetResult:
        """Return bytes `start` to `end` (exclusive) of a file, or fewer if it ends earlier.

        Raises
        ------
        IcechunkError
            As `Storage.get_async`.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        turn = self._turns.get(loop)
        if turn is None:
            turn = self._turns[loop] = _Turn()
            loop.call_soon(self._start, loop)
        group = (id(source.storage), *source[1:])
        wanted = _Wanted(start, end, loop.create_future())
        turn.sources.setdefault(group, source)
        turn.wanted.setdefault(group, []).append(wanted)
        return await wanted.result

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        turn = self._turns.pop(loop)
        for group, wanted in turn.wanted.items():
            for together in _merged(wanted):
                task = loop.create_task(_fetch(turn.sources[group], together))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)


def _merged(wanted: Sequence[_Wanted]) -> Iterator[list[_Wanted]]:
    """Yield groups of ranges to fetch together, each in order of its start."""
    ordered = sorted(wanted, key=lambda w: (w.start, w.end))
    together = ordered[:1]
    end = together[0].end
    for one in ordered[1:]:
        reaches = max(end, one.end)
        if one.start - end <= MAX_GAP and reaches - together[0].start <= MAX_REQUEST:
            together.append(one)
            end = reaches
        else:
            yield together
            together, end = [one], one.end
    yield together


async def _fetch(source: Source, together: Sequence[_Wanted]) -> None:
    import asyncio

    first, last = together[0].start, max(w.end for w in together)
    try:
        got = await source.storage.get_async(
            source.key,
            byte_range=(first, last),
            if_match=source.if_match,
            if_unmodified_since=source.if_unmodified_since,
        )
    except asyncio.CancelledError:
        for one in together:
            one.result.cancel()
        raise
    except Exception as error:
        for one in together:
            if not one.result.done():
                one.result.set_exception(error)
        return
    view = memoryview(got.data)
    for one in together:
        # a caller may have stopped waiting
        if not one.result.done():
            part = view[one.start - first : one.end - first]
            one.result.set_result(GetResult(part, got.etag, got.last_modified))
