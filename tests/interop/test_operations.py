"""The same work, done by both sides, leaves equal transaction logs, nodes and references."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.interop import both  # noqa: F401 (fills the table)
from tests.interop.base import OPERATIONS
from tests.interop.refusals import REFUSALS
from tests.interop.sides import Bases
from tests.interop.summary import Summary


def test_both_write_the_same_base(bases: Bases) -> None:
    mine, theirs = (Summary(Path(base)).everything() for _, base in bases)
    assert mine == theirs


@pytest.mark.parametrize("operation", OPERATIONS)
def test_both_write_the_same(operation: str, bases: Bases, tmp_path: Path) -> None:
    found = []
    for side, base in bases:
        folder = tmp_path / side.name
        side.run("operate", base, str(folder), operation)
        found.append(Summary(folder).everything())
    mine, theirs = found
    assert mine["logs"] == theirs["logs"]
    assert mine["snapshots"] == theirs["snapshots"]
    assert mine["repo"] == theirs["repo"]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_both_refuse_the_same(refusal: str, bases: Bases, tmp_path: Path) -> None:
    mine, theirs = (
        side.run("refuse", base, str(tmp_path / side.name), refusal) for side, base in bases
    )
    assert theirs, "the official client accepts it"
    assert mine == theirs


#: What is refused here. The official client leaves a node without a parent, or two nodes of
#: one path.
STRICTER = {
    ("deleted_group", "new_array_in_group"),
    ("new_array_in_group", "deleted_group"),
    ("recreated_array", "recreated_array"),
}


def test_both_rebase_alike(bases: Bases, tmp_path: Path) -> None:
    mine, theirs = (side.run("rebase", base, str(tmp_path / side.name)) for side, base in bases)
    assert mine.keys() == theirs.keys()
    for case in mine:
        first, second, _ = case.split(", ")
        if (first, second) in STRICTER:
            assert isinstance(mine[case], list), case
        else:
            assert mine[case] == theirs[case], case


# -- whatever comes to mind ----------------------------------------------------------------
PATHS = st.sampled_from(
    ["a", "m", "split", "virtual", "g", "g/deep", "g/deep/x", "n", "n/p", "g/q"]
)
SMALL = st.integers(0, 9)
STEPS = st.one_of(
    st.tuples(st.just("array"), PATHS, SMALL, st.booleans()),
    st.tuples(st.just("group"), PATHS, st.booleans()),
    st.tuples(st.just("write"), PATHS, SMALL, SMALL, st.integers(0, 2)),
    st.tuples(st.just("resize"), PATHS, SMALL),
    st.tuples(st.just("attribute"), PATHS, st.integers(0, 1)),
    st.tuples(st.just("delete"), PATHS),
    st.tuples(st.just("delete_chunk"), PATHS, SMALL),
    st.tuples(st.just("virtual"), PATHS, SMALL),
    st.tuples(st.just("move"), PATHS, PATHS),
    st.tuples(st.just("finish"), st.sampled_from(["commit", "amend", "flush", "discard_changes"])),
)


@settings(max_examples=40)
@given(steps=st.lists(STEPS, max_size=20))
def test_both_do_the_same_steps(steps: list[tuple[object, ...]], bases: Bases) -> None:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for side, base in bases:
            place = Path(folder, side.name)
            result = side.run("play", base, str(place), steps)
            found.append((result, Summary(place).everything()))
    (my_result, mine), (their_result, theirs) = found
    assert my_result["outcomes"] == their_result["outcomes"]
    assert mine == theirs
    for diff in (each["diff"] for each in [*my_result["diffs"], *their_result["diffs"]]):
        # of an array and another one that took its place the official client tells the chunks
        # of one, whichever has the larger id
        for path in {*diff["new_arrays"]} & {*diff["deleted_arrays"]}:
            diff["updated_chunks"].pop(path, None)
    assert my_result["diffs"] == their_result["diffs"]
