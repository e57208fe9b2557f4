"""Chunks that move within their array; that both write the same is in `test_operations`."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

from hypothesis import given, settings, strategies as st

from tests.interop.rearranging import MANY_TO_ONE, MAPS
from tests.interop.sides import Official, Ours


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Draw chunks of a small array, edits of it, and a way to move them."""
    grid = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    positions = [list(at) for at in itertools.product(*map(range, grid))]
    some = st.lists(st.sampled_from(positions), max_size=6, unique_by=tuple)
    case = {"grid": grid, "written": draw(some), "changed": draw(some), "erased": draw(some)}
    if draw(st.booleans()):
        case["offset"] = [draw(st.integers(-n - 1, n + 1)) for n in grid]
    else:
        names = st.sampled_from(sorted(MAPS))
        case |= {"forward": draw(names), "backward": draw(names | st.none())}
        if case["forward"] in MANY_TO_ONE:
            # the official client visits what was written in the session out of order, and
            # the last one stays
            case["changed"] = []
    return case


@settings(max_examples=100)
@given(cases())
def test_both_move_chunks_alike(ours: Ours, official: Official, case: dict[str, Any]) -> None:
    mine, theirs = (
        ours.run("rearranging.move_chunks", case),
        official.run("rearranging.move_chunks", case),
    )
    assert mine == theirs


def test_both_list_the_same_chunks(ours: Ours, official: Official, tmp_path: Path) -> None:
    folder = str(tmp_path / "repository")
    ours.run("create_base", folder)
    official.run("rearranging.share_a_file", folder)
    assert ours.run("rearranging.list_chunks", folder) == official.run(
        "rearranging.list_chunks", folder
    )
    shutil.rmtree(folder)
