"""Chunks that are looked up in a stored manifest are those of its columns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from icechunk.errors import FormatError
from icechunk.format import stored_manifest
from icechunk.format.chunk_ref import ChunkRef
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.encoding.envelope import FileType, unwrap, wrap
from icechunk.format.location_compression import LocationCompression
from icechunk.format.manifest import decode_manifest, encode_manifest
from icechunk.format.stored_manifest import StoredManifest
from tests.format.hostile import damaged

#: Mutated manifests; `make fuzz` asks for a million.
MUTATIONS = int(os.environ.get("ICECHUNK_FUZZ", "500"))
WORDS = (0, 1, 2, 4, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1)
ID, NODES = b"manifest id.", [b"node   a", b"node   b", b"node   c"]
ALWAYS = replace(LocationCompression(), min_num_chunks=1, only_where_smaller=False)


@pytest.fixture(autouse=True)
def searched() -> Iterator[None]:
    """Search manifests of any size, as often as it is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_manifest, "_SMALL", 0)
        patch.setattr(stored_manifest, "_REFS_PER_SEARCH", 0.001)
        yield


def mixed(count: int) -> ChunkRefs:
    """Return references of all kinds in two dimensions, some far away."""
    rows = [
        ChunkRef.native(b"chunk id....", 5, 7),
        ChunkRef.virtual("s3://a/é", 1, 5, "tag", 3),
        ChunkRef.virtual("s3://a/b", 1 << 40, 6),
        ChunkRef.inline(b"inline"),
        ChunkRef.inline(b"x"),
    ]
    coords = [(i // 3, i % 3 * 7 + (1 << 31) * (i % 3 == 2)) for i in range(count)]
    return ChunkRefs.from_rows(coords, [rows[i * i % 5] for i in range(count)], 2)


def virtual(count: int) -> ChunkRefs:
    urls = [f"s3://bucket/a/long/name/{i % 11:012d}.nc" for i in range(count)]
    coords = np.arange(count, dtype=np.uint32)[:, None] * 3
    return ChunkRefs.virtual(coords, urls, np.arange(count), np.full(count, 4))


def payload_of(arrays: dict[bytes, ChunkRefs], **how: Any) -> bytes:
    return unwrap(encode_manifest(ID, arrays, **how), FileType.MANIFEST, "manifest")[0]


SCALAR = ChunkRefs.from_rows([()], [ChunkRef.inline(b"one")], 0)
PAYLOADS = {
    "mixed": payload_of({NODES[0]: mixed(17), NODES[1]: SCALAR}),
    "plain": payload_of({NODES[0]: virtual(20), NODES[2]: virtual(1)}, compress_locations=None),
    "compressed": payload_of({NODES[1]: virtual(40)}, compress_locations=ALWAYS),
    "spec 1": payload_of({NODES[0]: mixed(4)}, spec_version=1),
}


ABSENT = [(node, at) for node in NODES for at in ((), (1,), (0, 8), (5, 0), (0, 0, 0))]


def decode(payload: bytes) -> Any:
    return decode_manifest(wrap(payload, FileType.MANIFEST), "manifests/X")


@cache
def answers(name: str) -> list[tuple[bytes, tuple[int, ...]]]:
    """Return what to ask for: what is there by the undamaged payload, and what is not."""
    arrays = decode(PAYLOADS[name]).arrays
    there = [(node, tuple(row)) for node, refs in arrays.items() for row in refs.coords.tolist()]
    return [*there, *ABSENT]


def opened(payload: bytes) -> StoredManifest:
    return StoredManifest(wrap(payload, FileType.MANIFEST), "manifests/X")


def of_columns(manifest: Any, node: bytes, at: tuple[int, ...]) -> ChunkRef | None:
    refs = manifest.arrays.get(node)
    if refs is None or refs.ndim != len(at):
        return None
    row = refs.find(at)
    return refs.row(row) if row >= 0 else None


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_chunk_is_found_without_columns(name: str) -> None:
    stored, manifest = opened(PAYLOADS[name]), decode(PAYLOADS[name])
    assert stored.id == ID
    for node, at in answers(name):
        expected = of_columns(manifest, node, at)
        # that there is none is for the columns to say
        assert stored.peek(node, at) == (expected is not None, expected)
    assert stored.nbytes == len(PAYLOADS[name])
    assert stored.whole() == manifest
    assert stored.nbytes == manifest.nbytes
    for node, at in answers(name):
        assert stored.peek(node, at) == (True, of_columns(manifest, node, at))


def test_how_much_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many references as the logarithm of their number, and one is decoded."""
    stored = opened(payload_of({NODES[0]: virtual(5000)}))
    looked: list[int] = []
    index = StoredManifest._index
    monkeypatch.setattr(
        StoredManifest, "_index", lambda self, *at: (looked.append(1), index(self, *at))[1]
    )
    is_known, ref = stored.peek(NODES[0], (3 * 4321,))
    assert is_known and ref is not None and ref.offset == 4321
    assert len(looked) <= 13


def test_columns_are_made_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_manifest, "_REFS_PER_SEARCH", 10)
    stored = opened(payload_of({NODES[0]: virtual(40)}))
    asked = [stored.peek(NODES[0], (0,))[0] for _ in range(6)]
    assert asked == [True] * 4 + [False] * 2
    stored.whole()
    assert stored.peek(NODES[0], (0,))[0]
    monkeypatch.setattr(stored_manifest, "_SMALL", 1 << 18)
    assert opened(PAYLOADS["mixed"]).peek(NODES[2], (1, 1)) == (True, None)


def test_references_in_the_wrong_order() -> None:
    """A chunk that a search misses is not taken for one that was never written."""
    refs = virtual(9)
    turned = ChunkRefs(**_reversed(refs))
    stored = opened(payload_of({NODES[0]: turned}))
    found = stored.peek(NODES[0], (0,))
    assert found == (False, None)
    whole = StoredManifest.of(stored.whole())
    assert whole.peek(NODES[0], (0,)) == (True, refs.row(0))


def _reversed(refs: ChunkRefs) -> dict[str, Any]:
    rows = slice(None, None, -1)
    return {
        "coords": refs.coords[rows].copy(),
        "kind": refs.kind[rows].copy(),
        "offset": refs.offset[rows].copy(),
        "length": refs.length[rows].copy(),
        "location": refs.location[rows].copy(),
        "locations": refs.locations,
    }


def check(name: str, payload: bytes, first: int) -> bool:
    """Compare both ways for what may be damaged; return whether columns can be made of it."""
    try:
        manifest = decode(payload)
    except FormatError:
        manifest = None
    try:
        stored = opened(payload)
    except FormatError:
        assert manifest is None
        return False
    for node, at in answers(name)[first::7]:
        try:
            is_known, ref = stored.peek(node, at)
        except FormatError as error:
            assert str(error).startswith("manifests/X: ")
            assert manifest is None
            continue
        if manifest is not None:
            expected = of_columns(manifest, node, at)
            assert (is_known, ref) in ((True, expected), (False, None))
        elif is_known:
            assert isinstance(ref, ChunkRef)
    if manifest is None:
        with pytest.raises(FormatError):
            stored.whole()
    return manifest is not None


@settings(max_examples=100)
@given(st.data(), st.sampled_from(sorted(PAYLOADS)), st.integers(0, 6))
def test_damage(data: st.DataObject, name: str, first: int) -> None:
    """Where columns have an answer it is the same one; a search may not see all damage."""
    check(name, data.draw(damaged(PAYLOADS[name])), first)


def test_much_damage() -> None:
    """Many more, made without Hypothesis, which takes longer than the check."""
    random = np.random.default_rng(int(os.environ.get("ICECHUNK_FUZZ_SEED", "0")))
    names = list(PAYLOADS)
    intact = 0
    for number in range(MUTATIONS):
        name = names[number % len(names)]
        out = bytearray(PAYLOADS[name])
        for _ in range(int(random.integers(1, 4))):
            at, how = int(random.integers(0, len(out) - 8)), random.integers(0, 4)
            if how == 0:
                out[at] ^= 1 << int(random.integers(0, 8))
            elif how == 1:
                out[at] = int(random.integers(0, 256))
            elif how == 2:
                word = int(random.choice(WORDS)) if random.integers(0, 2) else len(out) - at
                out[at // 4 * 4 : at // 4 * 4 + 4] = word.to_bytes(4, "little")
            else:
                source = int(random.integers(0, len(out) - 8))
                out[at : at + 8] = out[source : source + 8]
        intact += check(name, bytes(out), number % 7)
    # both kinds come up
    assert 0 < intact < MUTATIONS
