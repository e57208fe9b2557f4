"""Cards in notebooks: what they show, and that nothing in them is markup of strangers."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk
from icechunk import CountingStorage, Diff, MemoryStorage, Repository
from icechunk.base.html import Html, bullets, card, chunk_map, code, fields, section, table
from icechunk.repository.jobs_status import FailedPart, JobStatus
from icechunk.repository.verification import Damage, Verification
from icechunk_dask import VirtualizeReport

EVIL = '<script>alert("x")</script>&'
#: Of HTML and SVG, without an end.
VOID = {"br", "rect"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps them and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + "\n"


def read(page: str) -> Reader:
    assert page.startswith('<div class="icechunk-card">')
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    assert "script" not in reader.tags and reader.tags.count("style") == 1
    return reader


@pytest.fixture
def repository() -> Repository:
    repository = Repository.create(MemoryStorage())
    with repository.transaction("main", message=EVIL, metadata={EVIL: EVIL}) as store:
        group = zarr.create_group(store, path="g", attributes={"title": EVIL})
        array = group.create_array(
            "a", shape=(40, 60), chunks=(4, 6), dtype="f4", dimension_names=("lat", "lon")
        )
        array[:] = np.arange(2400).reshape(40, 60)
    repository.create_tag("v1", repository.lookup_branch("main"))
    return repository


# -- pieces ------------------------------------------------------------------------------
def test_text_is_escaped_once() -> None:
    body = Html("".join([fields({EVIL: EVIL}), table([EVIL], [[EVIL]]), bullets([EVIL])]))
    reader = read(card(EVIL, EVIL, section(EVIL, body), code(EVIL)))
    assert reader.text.count(EVIL) == 9


def test_what_is_empty_is_left_out() -> None:
    assert not section("title", table(("a",), [])) + fields({"a": None}) + bullets([]) + code("")


def test_long_things_are_cut() -> None:
    assert "and 30 more" in read(card("x", "y", table(("n",), [(i,) for i in range(80)]))).text
    assert "and 30 more" in read(card("x", "y", bullets(range(80)))).text
    assert len(read(card("x", "y" * 10_000)).text) < 400


@pytest.mark.parametrize(
    ("coords", "cells", "told"),
    [
        ([], 0, ""),
        ([[]], 0, ""),
        ([[3, 4]], 0, ""),
        ([[3], [5]], 2, "axis 0 across: 3 to 5"),
        ([[0, 0], [1, 1]], 2, "axis 0 down: 0 to 1, axis 1 across: 0 to 1"),
        ([[7, i, j] for i in range(4) for j in range(9)], 36, "axis 1 down: 0 to 3, axis 2"),
        ([[i, 5, 0] for i in range(640)], 32, "axis 0 down: 0 to 639, axis 1 across: 5 to 5"),
    ],
)
def test_chunk_map(coords: list[list[int]], cells: int, told: str) -> None:
    page = chunk_map(coords)
    # one is the frame
    assert page.count("<rect") == cells + bool(cells)
    assert told in page


def test_cells_of_many_chunks_are_darker() -> None:
    page = chunk_map([[i] for i in [*range(20), 60]])
    assert page.count('opacity="1.00"') == 10 and page.count('opacity="0.68"') == 1


# -- cards -------------------------------------------------------------------------------
def test_repository(repository: Repository) -> None:
    storage = CountingStorage(repository.storage)
    opened = Repository.open(storage)
    storage.reset()
    reader = read(opened._repr_html_())
    assert storage.requests <= 1
    tip = repository.lookup_branch("main")
    # as a branch, a tag and a commit
    assert reader.text.count(tip) == 3 and reader.text.count(EVIL) == 3
    assert "Branches: 1" in reader.text and "Tags: 1" in reader.text
    assert "Repository initialized" in reader.text


def test_repository_of_spec_1() -> None:
    repository = Repository.create(MemoryStorage(), spec_version=1)
    assert repository.lookup_branch("main") in read(repository._repr_html_()).text


def test_repository_that_is_gone() -> None:
    storage = MemoryStorage()
    repository = Repository.create(storage)
    storage.delete(["repo"])
    assert "no Icechunk repository" in read(repository._repr_html_()).text


def test_session(repository: Repository) -> None:
    session = repository.writable_session("main")
    assert "no changes" in read(session._repr_html_()).text
    zarr.open_array(session.store, path="g/a")[:10] = 1
    zarr.create_group(session.store, path=EVIL.replace("/", ""))
    reader = read(session._repr_html_())
    assert "Chunks of /g/a: 30" in reader.text and "Groups created: 1" in reader.text
    assert "svg" in reader.tags
    session.commit("x")
    assert "not committed" not in read(session._repr_html_()).text
    assert "readonly" in read(repository.readonly_session("main")._repr_html_()).text


def test_store(repository: Repository) -> None:
    text = read(repository.readonly_session("main").store._repr_html_()).text
    for words in ("g (1)", "(lat: 40, lon: 60)", "float32", "(4, 6)", "(10, 10)"):
        assert words in text


def test_store_of_many_nodes() -> None:
    repository = Repository.create(MemoryStorage())
    with repository.transaction("main", message="x") as store:
        for i in range(320):
            zarr.create_group(store, path=f"g{i}")
    store = repository.readonly_session("main").store
    assert "and 21 more nodes" in read(store._repr_html_()).text


def test_snapshot(repository: Repository) -> None:
    newest = next(repository.ancestry(branch="main"))
    text = read(newest._repr_html_()).text
    assert text.count(EVIL) == 3 and newest.id in text and f"{newest.written_at:%Y-%m-%d}" in text


def test_diff(repository: Repository) -> None:
    first = repository.resolve("main~1")
    diff = repository.diff(from_snapshot_id=first, to_branch="main")
    reader = read(diff._repr_html_())
    assert "100 chunks changed" in reader.text and "Chunks of /g/a: 100" in reader.text
    # and a frame
    assert reader.tags.count("rect") == 101
    assert "no changes" in read(Diff()._repr_html_()).text
    many = Diff(updated_chunks={f"/a{i}": [[i]] for i in range(25)}, moved_nodes=[("/x", "/y")])
    text = read(many._repr_html_()).text
    assert "and 5 more arrays" in text and "/x -> /y" in text


def test_job() -> None:
    failed = FailedPart(EVIL, 2, EVIL, "", "2024-01-01T00:00:00Z", "host")
    status = JobStatus("j", "main", "open", 2, [1], 0, [], [failed], [], [])
    assert read(status._repr_html_()).text.count(EVIL) >= 3


def test_verification() -> None:
    damage = Damage("missing", EVIL, EVIL, ("A",), ("main",), EVIL, 3)
    text = read(Verification("memory://", (damage,), {}, {"chunks": 3})._repr_html_()).text
    assert text.count(EVIL) == 3 and "main" in text
    assert "no damage" in read(Verification("memory://")._repr_html_()).text


def test_report() -> None:
    report = VirtualizeReport(EVIL, failed={EVIL: EVIL}, withheld=(EVIL,), sizes={EVIL: 1000})
    text = read(report._repr_html_()).text
    assert text.count(EVIL) >= 5 and "1,000" in text
    assert "Could not be read: 1" in text


def test_others_are_shown_as_repr_has_them() -> None:
    storage = icechunk.in_memory_storage()
    assert storage._repr_html_().startswith("<pre>")
