"""Drawings of history; tests/interop compares them with the official client's."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import zarr

from icechunk import AncestryGraph, InvalidInputError, RefNotFoundError, Repository
from icechunk.format.ids import encode_id
from icechunk.storage import MemoryStorage

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def repository() -> Repository:
    repository = Repository.create(MemoryStorage())
    for message in ("one", "two"):
        start = commit(repository, "main", message)
        for name in ("a", "b"):
            repository.create_branch(f"{message}-{name}", start)
    for branch in ("one-a", "one-b", "two-a", "main"):
        commit(repository, branch, f"on {branch}")
    repository.create_tag("\x1b[31mred", start)
    return repository


def commit(repository: Repository, branch: str, message: str) -> str:
    session = repository.writable_session(branch)
    zarr.open_group(session.store, mode="a").attrs["says"] = message
    return session.commit(message)


def without_ids(graph: AncestryGraph) -> list[str]:
    lines = re.sub(r"\b[0-9A-Z]{8}\b", "#", str(graph)).split("\n")
    return [line.rstrip() for line in lines]


def test_lanes(repository: Repository) -> None:
    assert without_ids(repository.ancestry_graph(plain=True)) == [
        "●         # (main) on main",
        "│",
        "│     ●   # (two-a) on two-a",
        "│     │",
        "│   ● │   # (one-b) on one-b",
        "│   │ │",
        "│ ● │ │   # (one-a) on one-a",
        "│ │ │ │",
        "●─┼─┼─╯   # (two-b, \\x1b[31mred) two",
        "│ │ │",
        "●─┴─╯     # one",
        "│",
        "●         # Repository initialized",
        "",
    ]


def test_one_lane(repository: Repository) -> None:
    drawn = without_ids(repository.ancestry_graph(branch="one-b", plain=True))
    assert drawn == ["● # (one-b) on one-b", "│", "● # one", "│", "● # Repository initialized", ""]
    tip = repository.lookup_branch("one-b")
    assert without_ids(repository.ancestry_graph(snapshot_id=tip, plain=True))[0] == "● # on one-b"


def test_colors(repository: Repository) -> None:
    plain, colored = (str(repository.ancestry_graph(plain=plain)) for plain in (True, False))
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]+m", "", colored) == plain
    assert colored != plain


def test_clocks_that_were_wrong(repository: Repository) -> None:
    info = repository._info
    latest = max(entry.flushed_at for entry in info.snapshots.values())
    for flushed_at in (lambda time: 2 * latest - time, lambda time: 0):
        snapshots = {
            entry.id: replace(entry, flushed_at=flushed_at(entry.flushed_at))
            for entry in info.snapshots.values()
        }
        graph = AncestryGraph.from_branches(replace(info, snapshots=snapshots), plain=True)
        ids = re.findall(r"\b[0-9A-Z]{8}\b", str(graph))
        place = {encode_id(id)[:8]: entry for id, entry in snapshots.items()}
        for position, found in enumerate(ids):
            parent = place[found].parent_id
            assert parent is None or encode_id(parent)[:8] in ids[position + 1 :]
        assert ElementTree.fromstring(graph._repr_svg_()) is not None


@pytest.mark.parametrize("plain", [True, False])
def test_svg(repository: Repository, plain: bool) -> None:
    text = repository.ancestry_graph(plain=plain)._repr_svg_()
    root = ElementTree.fromstring(text)
    assert len(root.findall(f"{SVG}circle")) == 7
    assert len(root.findall(f"{SVG}path")) == 3
    messages = ["".join(found.itertext()) for found in root.findall(f"{SVG}text")]
    oldest = list(repository.ancestry(branch="main"))[-1]
    assert messages[-1] == f"{oldest.id[:8]} {oldest.written_at:%Y-%m-%d %H:%M} {oldest.message}"
    assert (re.search('fill="#', text) is None) is plain


async def test_versions_that_do_not_exist(repository: Repository) -> None:
    with pytest.raises(RefNotFoundError):
        repository.ancestry_graph(branch="none")
    with pytest.raises(InvalidInputError):
        repository.ancestry_graph(branch="main", tag="x")
    drawn = await repository.ancestry_graph_async(plain=True)
    assert str(drawn) == str(repository.ancestry_graph(plain=True)) == repr(drawn)
