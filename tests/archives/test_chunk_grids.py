"""Chunks of several lengths: those of each file, one after the other, on a rectilinear grid."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings, strategies as st
from kerchunk.hdf import SingleHdf5ToZarr

from icechunk import InvalidInputError, Repository
from icechunk.base.rectilinear import are_known
from icechunk.cli.app import main
from icechunk.credentials import LocalFileSystemAccess
from icechunk.kerchunk import export_references, import_references
from icechunk_dask import remove_files, virtualize
from tests.archives.day_files import access, archived, content, together, write_days

needed = pytest.mark.skipif(not are_known(), reason="this Zarr has no rectilinear grids")
HOW: Any = {"scheduler": "sync"}
WISH = r"(?s)1\.nc: t: its chunk_grid .* chunk_grid='auto'"
MONTHS = [31, 29, 31, 30]
#: How the variable of a file is stored: compressed, in an order of its own, in parts of a row.
KINDS: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip"},
    "parts of rows": {"compression": "gzip", "inner": 2},
    "plain parts of rows": {"compression": None, "shuffle": None, "inner": 2},
}


def write(folder: Path, lengths: list[int], chunks: list[int], kind: str = "gzip") -> list[Path]:
    """Write files of so many days, in chunks of so many."""
    options = dict(KINDS[kind])
    inner = options.pop("inner", 3)
    first, files = 0, []
    for i, (days, rows) in enumerate(zip(lengths, chunks, strict=True)):
        path = folder / f"{i}.nc"
        files.append(write_days(path, first, days, options={**options, "chunks": (rows, inner)}))
        first += days
    return files


def check(repo: Path, report: Any, files: list[Path], *lengths: int) -> None:
    """Compare an archive with its files, and its chunks with their lengths."""
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(repo, report), expected)
    if not lengths:
        return
    source = Repository.open(str(repo), None, access(report))
    lazy = xr.open_dataset(source, engine="icechunk", chunks={})
    assert lazy["t"].chunks is not None and lazy["t"].chunks[0] == lengths
    xr.testing.assert_identical(lazy.compute(scheduler="sync"), expected)
    assert not source.verify(deep=True).damages


@needed
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("appended", [0, 1, 2, 3])
def test_months(appended: int, kind: str, tmp_path: Path) -> None:
    files = write(tmp_path, MONTHS, MONTHS, kind)
    repo = tmp_path / "repo"
    if appended:
        virtualize(files[:appended], repo, **HOW)
    report = virtualize(files, repo, chunk_grid="auto", **HOW)
    check(repo, report, files, *MONTHS)
    assert report.variables["t"].bytes_by_value == 0 and not report.materialized
    assert report.variables["t"].chunk_lengths["time"] == "29 to 31"
    assert "array.rectilinear_chunks" in repr(report)
    assert "29 to 31" in report._repr_html_() and "29 to 31" in report.to_json()
    # nothing else changes
    assert not zarr.config.get("array.rectilinear_chunks")


@needed
@pytest.mark.parametrize("late", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_month_comes_late_and_goes(late: int, kind: str, tmp_path: Path) -> None:
    files = write(tmp_path, MONTHS, MONTHS, kind)
    early = files[:late] + files[late + 1 :]
    repo = tmp_path / "repo"
    virtualize(early, repo, **HOW)
    report = virtualize(files, repo, **HOW)
    check(repo, report, files, *MONTHS)
    remove_files([files[late]], repo)
    check(repo, report, early, *(MONTHS[:late] + MONTHS[late + 1 :]))
    # and another version of it
    report = virtualize(files, repo, **HOW)
    write_days(files[late], sum(MONTHS[:late]), 7, shift=100, options={"chunks": (7, 3)})
    if kind != "gzip":
        return
    report = virtualize(files, repo, on_changed="replace", **HOW)
    check(repo, report, files, *([*MONTHS[:late], 7, *MONTHS[late + 1 :]]))


@needed
def test_the_last_chunk_of_a_file_may_be_longer_if_nothing_follows(tmp_path: Path) -> None:
    files = write(tmp_path, [10, 8, 7, 12], [10, 4, 5, 4])
    repo = tmp_path / "repo"
    report = virtualize(files[:3], repo, **HOW)
    check(repo, report, files[:3], 10, 4, 4, 5, 2)
    # what follows it is refused, or what it has is copied: of that chunk only
    with pytest.raises(InvalidInputError, match=r"(?s)3\.nc: t: begins at 25 .*materialize"):
        virtualize(files, repo, **HOW)
    assert virtualize(files, repo, on_mismatch="skip", **HOW).skipped
    # what is there has to be read for that
    with pytest.raises(InvalidInputError, match="reading from it was not allowed"):
        virtualize(files, repo, on_mismatch="materialize", **HOW)
    allowed = {"authorize_virtual_chunk_access": access(report)}
    report = virtualize(files, repo, on_mismatch="materialize", **allowed, **HOW)
    check(repo, report, files, 10, 4, 4, 5, 2, 4, 4, 4)
    assert report.variables["t"].bytes_by_value == 2 * 3 * 4
    assert list(report.materialized) == [str(files[3])]
    assert not virtualize(files, repo, **HOW).added


@needed
@pytest.mark.parametrize("kind", KINDS)
def test_a_shorter_chunk_in_the_middle(kind: str, tmp_path: Path) -> None:
    files = write(tmp_path, [24, 24, 10], [10, 10, 10], kind)
    repo = tmp_path / "repo"
    if kind == "plain parts of rows":
        # what is beyond the file is left out of the reference
        report = virtualize(files, repo, **HOW)
    else:
        with pytest.raises(InvalidInputError, match=r"(?s)0\.nc: t: ends at 24 .* a chunk of 10"):
            virtualize(files, repo, **HOW)
        report = virtualize(files, repo, on_mismatch="materialize", **HOW)
        assert report.variables["t"].bytes_by_value == 2 * 4 * 3 * 4
        assert list(report.materialized) == list(map(str, files[:2]))
    check(repo, report, files, 10, 10, 4, 10, 10, 4, 10)
    parts = 1 if kind == "gzip" else 2
    shorter = 2 if kind == "plain parts of rows" else 0
    assert report.variables["t"].virtual == (5 + shorter) * parts


def test_regular_is_a_wish(tmp_path: Path) -> None:
    files = write(tmp_path, MONTHS, MONTHS)
    with pytest.raises(InvalidInputError, match=WISH):
        virtualize(files, tmp_path / "repo", chunk_grid="regular", **HOW)
    with pytest.raises(InvalidInputError, match="chunk_grid must be one of"):
        virtualize(files, tmp_path / "repo", chunk_grid="rectilinear", **HOW)
    virtualize(files[:1], tmp_path / "repo", **HOW)
    # others may read it with what does not know such grids
    with pytest.raises(InvalidInputError, match=WISH):
        virtualize(files, tmp_path / "repo", **HOW)


@pytest.mark.skipif(are_known(), reason="this Zarr has rectilinear grids")
def test_a_zarr_without(tmp_path: Path) -> None:
    files = write(tmp_path, MONTHS, MONTHS)
    with pytest.raises(InvalidInputError, match=r"Zarr 3\.1\.\d+ has no chunks of several lengths"):
        virtualize(files, tmp_path / "repo", **HOW)
    virtualize(files[:1], tmp_path / "repo", **HOW)
    session = Repository.open(str(tmp_path / "repo")).writable_session("main")
    document = session.tree.require("/t").user_data
    grid = (
        b'{"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[31], 3]}}'
    )
    regular = b'{"name": "regular", "configuration": {"chunk_shape": [31, 3]}}'
    assert regular in document
    session.set_metadata_document("/t", document.replace(regular, grid))
    session.commit("by another client")
    for call in (
        lambda: xr.open_dataset(tmp_path / "repo", engine="icechunk"),
        lambda: virtualize(files, tmp_path / "repo", **HOW),
    ):
        with pytest.raises(InvalidInputError, match=r"array.*t'?: Zarr .* install 3\.2 or newer"):
            call()


# -- any of it -----------------------------------------------------------------------------
@needed
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=5),
    steps=st.lists(st.integers(0, 4), max_size=2),
    kind=st.sampled_from(list(KINDS)),
    gone=st.integers(0, 4),
)
def test_any_lengths(
    files: list[tuple[int, int]],
    steps: list[int],
    kind: str,
    gone: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever comes in which order, and goes: values are those of the files."""
    folder = tmp_path_factory.mktemp("any")
    paths = write(folder, [days for days, _ in files], [rows for _, rows in files], kind)
    repo = folder / "repo"
    there: set[Path] = set()
    options: dict[str, Any] = {"on_mismatch": "materialize", "chunk_grid": "auto", **HOW}
    container = f"file://{folder}/"
    for step in [*steps, None]:
        some = paths if step is None else [paths[step % len(paths)]]
        report = virtualize(some, repo, **options)
        options["authorize_virtual_chunk_access"] = {container: LocalFileSystemAccess}
        there |= set(some)
        check(repo, report, sorted(there, key=lambda path: path.name))
    if len(paths) > 1:
        remove_files([paths[gone % len(paths)]], repo)
        there.discard(paths[gone % len(paths)])
        check(repo, report, sorted(there, key=lambda path: path.name))


# -- two dimensions ------------------------------------------------------------------------
def write_tile(path: Path, y: int, x: int, ny: int, nx: int, chunks: tuple[int, int]) -> Path:
    with h5py.File(path, "w") as file:
        for name, first, count in (("y", y, ny), ("x", x, nx)):
            file.create_dataset(name, data=np.arange(first, first + count)).make_scale(name)
        values = np.add.outer(100 * np.arange(y, y + ny), np.arange(x, x + nx)).astype("i4")
        t = file.create_dataset("t", data=values, chunks=chunks, compression="gzip")
        for i, name in enumerate("yx"):
            t.dims[i].attach_scale(file[name])
    return path


@needed
@pytest.mark.parametrize("materialize", [False, True])
@pytest.mark.parametrize("first", [4, 2, 1])
def test_tiles(first: int, materialize: bool, tmp_path: Path) -> None:
    rows, columns = [3, 5], [4, 6]
    files = []
    for (j, ny), (i, nx) in itertools.product(enumerate(rows), enumerate(columns)):
        # with chunks that end beyond the tile, or with it
        chunks = (2, nx) if materialize else (ny, nx)
        files.append(
            write_tile(tmp_path / f"{j}{i}.nc", sum(rows[:j]), sum(columns[:i]), ny, nx, chunks)
        )
    options: dict[str, Any] = {"concat_dims": ["y", "x"], "chunk_grid": "auto", **HOW}
    if materialize:
        options["on_mismatch"] = "materialize"
    repo = tmp_path / "repo"
    virtualize(files[:first], repo, **options)
    options["authorize_virtual_chunk_access"] = {f"file://{tmp_path}/": LocalFileSystemAccess}
    report = virtualize(files, repo, **options)
    ours = archived(repo, report)
    expected = np.add.outer(100 * np.arange(8), np.arange(10))
    np.testing.assert_array_equal(ours["t"].values, expected)
    assert bool(report.materialized) == (materialize and first < 4)
    if first < 4:
        assert set(report.variables["t"].chunk_lengths) == {"y", "x"}
    # tiles of one place that have other chunks are copied
    again = write_tile(tmp_path / "00.nc", 0, 0, 3, 4, (1, 1))
    report = virtualize(
        [again], repo, on_changed="replace", **{**options, "on_mismatch": "materialize"}
    )
    np.testing.assert_array_equal(archived(repo, report)["t"].values, expected)


def translate(path: Path) -> dict[str, Any]:
    """The references that kerchunk makes of a file."""
    found: dict[str, Any] = SingleHdf5ToZarr(str(path), inline_threshold=0).translate()
    return found


# -- other ways in -------------------------------------------------------------------------
@needed
def test_the_command_line_and_displays(tmp_path: Path) -> None:
    files = write(tmp_path, [3, 2], [3, 2])
    repo = str(tmp_path / "repo")
    run = CliRunner()
    made = run.invoke(
        main, ["virtualize", repo, *map(str, files), "--chunk-grid", "auto"], catch_exceptions=False
    )
    assert made.exit_code == 0 and "t: time 2 to 3" in made.output
    assert "2 to 3" in run.invoke(main, ["ls", repo]).output
    listed = json.loads(run.invoke(main, ["ls", repo, "--json"]).output)
    assert listed["t"]["chunks"] == [[3, 2], 3]
    source = Repository.open(repo, None, {f"file://{tmp_path}/": LocalFileSystemAccess})
    assert "of several lengths" in source.readonly_session("main").store._repr_html_()
    with pytest.raises(InvalidInputError, match=r"chunk grid 'rectilinear' has no equivalent"):
        export_references(source.readonly_session("main"), tmp_path / "out.json")
    # references cannot be put into it, in words of ours
    refs = translate(files[0])
    for options in ({"append_dim": "time"}, {"region": {"time": slice(0, 3)}}):
        with pytest.raises(InvalidInputError, match="chunks of several lengths"):
            import_references(refs, source.writable_session("main"), **options)
