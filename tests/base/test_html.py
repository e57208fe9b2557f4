"""Cards in notebooks: what they show, and that nothing in them is markup of strangers."""

from __future__ import annotations

import json
import pickle
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk
from icechunk import CountingStorage, Diff, MemoryStorage, Repository
from icechunk.base.html import Html, bullets, card, chunk_map, code, fields, section, table
from icechunk.changes.zarr_metadata import chunk_runs
from icechunk.repository.jobs_status import FailedPart, JobStatus
from icechunk.repository.verification import Damage, Verification
from icechunk_dask import VirtualizeReport

EVIL = '<script>alert("x")</script>&'
#: Of HTML and SVG, without an end.
VOID = {"br"}


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


def test_axes_have_names() -> None:
    assert "lat down: 0 to 1, axis 1 across" in chunk_map([[0, 0], [1, 1]], ("lat", None))


def test_cells_of_many_chunks_are_darker() -> None:
    page = chunk_map([[i] for i in [*range(20), 60]])
    assert page.count('opacity="1.00"') == 10 and page.count('opacity="0.68"') == 1


# -- cards -------------------------------------------------------------------------------
def test_repository(repository: Repository) -> None:
    storage = CountingStorage(repository.storage)
    opened = Repository.open(storage)
    storage.reset()
    reader = read(opened._repr_html_())
    assert storage.requests <= 2
    assert "3 groups and arrays, 100 chunks in 1 manifest" in reader.text
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
    assert "svg" in reader.tags and "lat down: 0 to 2, lon across: 0 to 9" in reader.text
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


def test_ancestry(repository: Repository) -> None:
    found = repository.ancestry(branch="main")
    ids = [each.id for each in repository.ancestry(branch="main")]
    text = read(found._repr_html_()).text  # type: ignore[attr-defined]
    assert all(id in text for id in ids) and "Repository initialized" in text
    assert next(found).id == ids[0] and [each.id for each in found] == ids[1:]
    for i in range(55):
        repository.writable_session("main").commit(f"commit {i}", allow_empty=True)
    text = read(repository.ancestry(branch="main")._repr_html_()).text  # type: ignore[attr-defined]
    assert "older ones than these 50" in text and "commit 5\n" in text and "commit 4\n" not in text


def test_diff(repository: Repository) -> None:
    first = repository.resolve("main~1")
    diff = repository.diff(from_snapshot_id=first, to_branch="main")
    reader = read(diff._repr_html_())
    assert "100 chunks changed" in reader.text and "Chunks of /g/a: 100" in reader.text
    # and a frame
    assert reader.tags.count("rect") == 101
    assert "lat down: 0 to 9, lon across: 0 to 9" in reader.text
    assert diff.dimension_names == {"/g/a": ("lat", "lon")}
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


# -- chunks that were written ------------------------------------------------------------
def titles(page: str) -> list[str]:
    return re.findall(r"<title>(.*?)</title>", page)


def test_written_chunks(repository: Repository) -> None:
    session = repository.writable_session("main")
    array = zarr.create_array(
        session.store,
        name="b",
        shape=(10, 3, 130),
        chunks=(4, 3, 2),
        dtype="i2",
        dimension_names=("time", None, "x"),
    )
    array[:4, :, :6] = 1
    array[8:, :, 128:] = 1
    written = session.written_chunks("/b")
    page = written._repr_html_()  # type: ignore[attr-defined]
    reader = read(page)
    assert (
        "4 of 195" in reader.text
        and "time: 3 chunks of 4, axis 1: 1 chunk of 3, x: 65 chunks of 2" in reader.text
    )
    assert "Not written: 191, of which the first 50" in reader.text
    # three rows of 22 cells, each of three chunks, and the last column of two
    assert len(titles(page)) == 66
    assert titles(page)[0] == "time 0:4, x 0:6: 3 of 3"
    assert titles(page)[-1] == "time 8:10, x 126:130: 1 of 2"
    assert "0, 0, 3" in reader.text and "time 0:4, axis 1 0:3, x 6:8" in reader.text
    changed = session.changed_chunks("b")
    assert "Chunks changed" in read(changed._repr_html_()).text  # type: ignore[attr-defined]


def test_masks_of_chunks_are_arrays(repository: Repository) -> None:
    written = repository.readonly_session("main").written_chunks("/g/a")
    assert isinstance(written, np.ndarray) and written.dtype == bool
    assert type(~written) is np.ndarray and type(written.sum()) is np.int64
    others: list[Any] = [written[:2], written.copy(), pickle.loads(pickle.dumps(written))]
    for other in others:
        np.testing.assert_array_equal(other, np.ones(other.shape, bool))
        assert other._repr_html_().startswith("<pre>")
    assert repr(np.asarray(written)) == repr(written)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 0)])
def test_written_chunks_of_small_grids(shape: tuple[int, ...]) -> None:
    session = Repository.create(MemoryStorage()).writable_session("main")
    zarr.create_array(session.store, name="a", shape=shape, chunks=(4,) * len(shape), dtype="i1")
    written = session.written_chunks("a")
    assert f"0 of {written.size}" in read(written._repr_html_()).text  # type: ignore[attr-defined]


def test_sizes_of_chunks() -> None:
    def runs(configuration: Any) -> list[list[tuple[int, int]]]:
        text = json.dumps({"chunk_grid": {"configuration": configuration}})
        return chunk_runs(text.encode(), (10, 7))

    assert runs({"chunk_shape": [4, 7]}) == [[(4, 3)], [(7, 1)]]
    assert runs({"chunk_shapes": [[6, 4], [[2, 3], 1]]}) == [[(6, 1), (4, 1)], [(2, 3), (1, 1)]]
    assert runs({"chunk_shapes": [5, [7]]}) == [[(5, 2)], [(7, 1)]]
    malformed: list[Any] = [None, [], {}, {"chunk_shape": [4]}, {"chunk_shapes": [{}, "x"]}]
    for strange in malformed:
        assert runs(strange) == [[(10, 1)], [(7, 1)]]
