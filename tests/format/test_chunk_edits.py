from __future__ import annotations

import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from icechunk.errors import InvalidInputError
from icechunk.format import chunk_edits
from icechunk.format.chunk_edits import ChunkEdits
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs, RefKind
from tests.format.test_chunk_refs import Model, build, check, models, refs


class EditsAgainstADictionary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # small, so that most edits go through runs and merges
        self.limit = mock.patch.object(chunk_edits, "_TAIL_LIMIT", 3)
        self.limit.start()

    def teardown(self) -> None:
        self.limit.stop()

    @initialize(ndim=st.integers(0, 4))
    def begin(self, ndim: int) -> None:
        self.ndim = ndim
        self.edits = ChunkEdits(ndim)
        self.model: Model = {}

    def coord(self, data: st.DataObject) -> tuple[int, ...]:
        return data.draw(st.tuples(*[st.integers(0, 2)] * self.ndim))

    @rule(data=st.data(), ref=refs)
    def set(self, data: st.DataObject, ref: ChunkRef) -> None:
        coord = self.coord(data)
        self.edits.set(coord, ref)
        self.model[coord] = ref

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        coord = self.coord(data)
        self.edits.delete(coord)
        self.model[coord] = ChunkRef.deleted()

    @rule(data=st.data())
    def set_many(self, data: st.DataObject) -> None:
        many = data.draw(models(self.ndim, near=True))
        self.edits.set_many(build(many, self.ndim))
        self.model |= many

    @rule()
    def refs(self) -> None:
        check(self.edits.refs(), self.model, self.ndim)
        assert len(self.edits) == len(self.model)

    @rule()
    def copy(self) -> None:
        original = self.edits
        self.edits = pickle.loads(pickle.dumps(original))
        original.set_many(ChunkRefs.deleted(original.refs().coords))

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        coord = self.coord(data)
        assert self.edits.get(coord) == self.model.get(coord)

    @invariant()
    def is_compact(self) -> None:
        sizes = [len(run) for run in self.edits._runs]
        assert all(older >= 2 * newer > 0 for older, newer in pairwise(sizes))
        assert len(self.edits._tail) < 3
        assert bool(self.edits) == bool(self.model)


TestEditsAgainstADictionary = EditsAgainstADictionary.TestCase
TestEditsAgainstADictionary.settings = settings(max_examples=40, stateful_step_count=25)


def test_many_edits_are_few_objects() -> None:
    edits = ChunkEdits(2)
    native = b"a" * 12
    for i in range(5 * chunk_edits._TAIL_LIMIT + 5):
        edits.set((i % 1000, i // 1000), ChunkRef.native(native, i + 1))
    alive = sum(isinstance(thing, ChunkRef) for thing in gc.get_objects())
    assert alive < chunk_edits._TAIL_LIMIT
    assert len(edits._runs) <= 3
    assert edits.get((7, 3)) == ChunkRef.native(native, 3008)
    assert edits.get((999, 999)) is None


def test_inline_payloads_that_were_replaced_are_dropped() -> None:
    edits = ChunkEdits(1)
    for value in range(10):
        edits.set_many(ChunkRefs.inline([[0], [1]], [bytes([value]) * 100] * 2))
    held = sum(len(run.inline_data) for run in edits._runs if run.inline_data is not None)
    assert held == 200


def test_threads_see_their_own_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_edits, "_TAIL_LIMIT", 16)
    edits = ChunkEdits(2)
    begin = threading.Barrier(4)

    def work(thread: int) -> None:
        begin.wait()
        for i in range(300):
            ref = ChunkRef.inline(bytes([thread, i % 256]))
            edits.set((thread, i), ref)
            assert edits.get((thread, i)) == ref
            assert edits.get((thread, 0)) == ChunkRef.inline(bytes([thread, 0]))
            if i % 100 == 50:
                edits.refs()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, thread) for thread in range(4)]:
            done.result()
    model = {(t, i): ChunkRef.inline(bytes([t, i % 256])) for t in range(4) for i in range(300)}
    check(edits.refs(), model, 2)


def test_numbers_of_numpy_are_coordinates() -> None:
    edits = ChunkEdits(1)
    edits.delete(np.array([3], np.uint32))  # type: ignore[arg-type]
    found = edits.get((3,))
    assert found is not None
    assert found.kind == RefKind.DELETED


@pytest.mark.parametrize("coord", [(), (1,), (1, 2, 3), (-1, 0), (0, 2**32)])
def test_coordinates_outside_any_grid_are_refused(coord: tuple[int, ...]) -> None:
    edits = ChunkEdits(2)
    with pytest.raises(InvalidInputError):
        edits.set(coord, ChunkRef.deleted())
    assert not edits
    with pytest.raises(InvalidInputError):
        edits.set_many(ChunkRefs.empty(1))
    assert "ndim=2" in repr(edits)
