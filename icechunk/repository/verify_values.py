"""Verification of values: chunks that cannot be decoded, each looked at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from icechunk.commit.assets import Assets
from icechunk.errors import IcechunkError
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import encode_id
from icechunk.format.nodes import Node
from icechunk.repository.decoding import Tried

__all__ = ["BadValues", "Pick", "ReadValues", "bad_values"]

#: Gets the references of an array, and returns which of them to decode.
Pick: TypeAlias = Callable[[ChunkRefs], ChunkRefs]
#: Gets the id of a snapshot, the path of an array, and a `Pick`. Yields coordinates of chunks with
#: what is wrong with them, or None if nothing is.
ReadValues: TypeAlias = Callable[[str, str, Pick], Iterator[Tried]]


class BadValues(NamedTuple):
    """What cannot be decoded of an array in one version.

    Attributes
    ----------
    snapshot_id : bytes
    path : str
    tried : int
        How many chunks were decoded, or tried.
    bad : dict of str to list
        Coordinates of chunks, by what is wrong with them.
    """

    snapshot_id: bytes
    path: str
    tried: int
    bad: dict[str, list[tuple[int, ...]]]


class _Decoded:
    """The references of an array that were decoded, with the same metadata, in other versions."""

    def __init__(self) -> None:
        self._good: ChunkRefs | None = None
        self._now: ChunkRefs | None = None

    def pick(self, refs: ChunkRefs) -> ChunkRefs:
        """Return those that were not."""
        self._now = refs
        if self._good is None or self._good.ndim != refs.ndim:
            return refs
        known = self._good.find_many(refs.coords) >= 0
        known[refs.find_many(self._good.conflicts(refs))] = False
        return refs.take(~known)

    def note(self, bad: Sequence[tuple[int, ...]]) -> None:
        """Take what was picked for decoded, but for some: each version is told of those."""
        refs, self._now = self._now, None
        if refs is None or (bad and any(len(coord) != refs.ndim for coord in bad)):
            return
        if bad:
            is_good = np.ones(len(refs), np.bool_)
            is_good[refs.find_many(bad)] = False
            refs = refs.take(is_good)
        same = self._good is not None and self._good.ndim == refs.ndim
        self._good = self._good.overlay(refs) if same and self._good is not None else refs


def bad_values(assets: Assets, tips: Sequence[bytes], read: ReadValues) -> Iterator[BadValues]:
    """Decode the chunks of some versions; a chunk that several share is decoded once.

    Parameters
    ----------
    assets : Assets
    tips : sequence of bytes
        Ids of snapshots.
    read : callable
    """
    waiting = Counter(_key(node) for tip in tips for node in _arrays(assets, tip))
    decoded: dict[tuple[bytes, int], _Decoded] = defaultdict(_Decoded)
    for tip in tips:
        for node in _arrays(assets, tip):
            key = _key(node)
            array = decoded[key]
            bad: dict[str, list[tuple[int, ...]]] = defaultdict(list)
            count = 0
            for coord, problem in read(encode_id(tip), node.path, array.pick):
                count += 1
                if problem is not None:
                    bad[problem.told].append(coord)
            array.note([coord for coords in bad.values() for coord in coords])
            yield BadValues(tip, node.path, count, bad)
            waiting[key] -= 1
            if not waiting[key]:
                del decoded[key]


def _arrays(assets: Assets, id: bytes) -> Iterator[Node]:
    try:
        nodes = list(assets.snapshot(id).nodes())
    except IcechunkError:
        return  # reported before
    yield from (node for node in nodes if node.array is not None)


def _key(node: Node) -> tuple[bytes, int]:
    return node.id, hash(node.user_data)
