"""What is not what the file's own library reads is refused by name, before the commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from icechunk import (
    InvalidInputError,
    LocalStorage,
    Repository,
    RepositoryConfig,
    VirtualChunkContainer,
    local_filesystem_store,
)
from icechunk.kerchunk import import_references
from icechunk_dask import virtualize
from icechunk_dask.archives import opening, selection
from icechunk_dask.archives.described import Dataset, FileVariable
from tests.archives.day_files import archived, content, write_days

# -- a scanner that errs ---------------------------------------------------------------
Change = Callable[[FileVariable], FileVariable]


def _document(variable: FileVariable, **fields: Any) -> FileVariable:
    assert variable.document is not None
    return replace(variable, document={**variable.document, **fields})


def _codecs(variable: FileVariable) -> FileVariable:
    assert variable.document is not None
    codecs = [codec for codec in variable.document["codecs"] if "shuffle" not in codec["name"]]
    return _document(variable, codecs=codecs)


def _table(variable: FileVariable, **columns: Any) -> FileVariable:
    assert variable.table is not None
    return replace(variable, table=replace(variable.table, **columns))


def _swapped(variable: FileVariable) -> FileVariable:
    assert variable.table is not None
    return _table(variable, coords=variable.table.coords[::-1].copy())


def _beyond(variable: FileVariable) -> FileVariable:
    assert variable.table is not None
    return _table(variable, offset=variable.table.offset + (1 << 20))


def _short(variable: FileVariable) -> FileVariable:
    assert variable.table is not None
    return _table(variable, length=variable.table.length - 4)


WRONG: dict[str, tuple[dict[str, Any], Change, str]] = {
    "a filter that is not mentioned": ({}, _codecs, "decodes to other values"),
    "chunks in other places": ({}, _swapped, "decodes to other values"),
    "another type": ({}, lambda v: _document(v, data_type="int32"), "decodes to other values"),
    "another byte order": (
        {"compression": None, "shuffle": None},
        lambda v: _document(v, codecs=[{"name": "bytes", "configuration": {"endian": "big"}}]),
        "decodes to other values",
    ),
    "a codec of something else": (
        {},
        lambda v: _document(
            v,
            codecs=[
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 0, "checksum": False}},
            ],
        ),
        "cannot be decoded",
    ),
    "beyond the end": ({}, _beyond, "of a file that has"),
    "too short": ({"compression": None, "shuffle": None}, _short, "each chunk of the array 48"),
    "another fill value": (
        {"fillvalue": 7},
        lambda v: _document(v, fill_value=0.0),
        "other values",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("verify", ["sample", "all"])
def test_what_a_scanner_may_get_wrong(
    kind: str, verify: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, change, message = WRONG[kind]
    path = write_days(tmp_path / "a.nc", 0, 12, options=options)
    if "fillvalue" in options:
        with h5py.File(path, "a") as file:
            file["t"].resize(16, 0)
            file["time"].resize(16, 0)
    of = selection.Selection.of

    def wrong(self: selection.Selection, dataset: Dataset) -> Dataset:
        found = of(self, dataset)
        return Dataset(found.groups, {**found.variables, "t": change(found.variables["t"])})

    monkeypatch.setattr(selection.Selection, "of", wrong)
    with pytest.raises(InvalidInputError, match=rf"a\.nc: .*'t': chunk .*{message}"):
        virtualize([path], tmp_path / "repo", scheduler="sync", verify=verify)
    assert not (tmp_path / "repo").exists()


def test_all_chunks_are_looked_at_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_days(tmp_path / "a.nc", 0, 40)
    of = selection.Selection.of

    def wrong(self: selection.Selection, dataset: Dataset) -> Dataset:
        found = of(self, dataset)
        table = found.variables["t"].table
        assert table is not None
        offset = table.offset.copy()
        offset[4] = offset[5]
        return Dataset(
            found.groups, {**found.variables, "t": _table(found.variables["t"], offset=offset)}
        )

    monkeypatch.setattr(selection.Selection, "of", wrong)
    with pytest.raises(InvalidInputError, match=r"'t': chunk \(4, 0\)"):
        virtualize([path], tmp_path / "repo", scheduler="sync", verify="all")


# -- variables that cannot be represented ----------------------------------------------
def test_a_variable_that_cannot_be_stored(tmp_path: Path) -> None:
    path = write_days(tmp_path / "a.nc", 0)
    with h5py.File(path, "a") as file:
        file.create_dataset("odd", data=np.zeros(4, [("a", "f4"), ("b", "i4")]))
    with pytest.raises(InvalidInputError, match=r"'odd'.*drop_variables=\['odd'\]"):
        virtualize([path], tmp_path / "repo", scheduler="sync")
    report = virtualize([path], tmp_path / "repo", scheduler="sync", drop_variables=["odd"])
    expected = xr.open_dataset(path, engine="h5netcdf", drop_variables=["odd"]).load()
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def test_months_of_a_calendar_that_xarray_does_not_decode(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    for path in files:
        with h5py.File(path, "a") as file:
            file["time"].attrs["units"] = "months since 2000-01-01"
            file["time"].attrs["calendar"] = "standard"
    report = virtualize(files[::-1], tmp_path / "repo", scheduler="sync")
    repository = Repository.open(str(tmp_path / "repo"))
    ours = xr.open_dataset(repository, engine="icechunk", decode_times=False)
    assert ours["time"].values.tolist() == list(range(8))
    assert report.order == {"time": "coordinate"}


def test_names_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_days(tmp_path / "a\nb.nc", 0)
    with pytest.raises(InvalidInputError, match=r"cannot be read.*control characters"):
        virtualize([path], tmp_path / "repo", scheduler="sync")


# -- what is copied --------------------------------------------------------------------
def test_copies_are_limited(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, copied=True) for i in range(4)]
    options: dict[str, Any] = {"scheduler": "sync", "max_bytes_by_value": 100}
    with pytest.raises(InvalidInputError, match=r"'v' has to be copied: .*max_bytes_by_value"):
        virtualize(files, tmp_path / "repo", **options)
    options["max_bytes_by_value"] = 40
    with pytest.raises(InvalidInputError, match=r"0\.nc: .*'v' has to be copied: .*48 bytes"):
        virtualize(files[:1], tmp_path / "repo", **options)
    assert not (tmp_path / "repo").exists()
    report = virtualize(files, tmp_path / "repo", loadable=["v"], **options)
    assert report.variables["v"].reasons == {"asked for": 192}
    report = virtualize(files, tmp_path / "other", drop_variables=["v"], **options)
    assert "v" not in report.variables


# -- references of others --------------------------------------------------------------
def _references(path: Path, offset: int, length: int, **more: Any) -> dict[str, Any]:
    import json

    zarray = {
        "zarr_format": 2,
        "shape": [4],
        "chunks": [4],
        "dtype": "<i4",
        "compressor": None,
        "filters": None,
        "fill_value": None,
        "order": "C",
        **more,
    }
    return {
        ".zgroup": '{"zarr_format": 2}',
        "a/.zarray": json.dumps(zarray),
        "a/.zattrs": '{"_ARRAY_DIMENSIONS": ["x"]}',
        "a/0": [str(path), offset, length],
    }


@pytest.mark.parametrize(
    ("offset", "length", "more", "message"),
    [
        (0, 12, {}, "has 12 bytes, and each chunk of the array 16"),
        (8, 16, {}, "at bytes 8 to 24 of a file that has 16"),
        (0, 16, {"compressor": {"id": "zlib", "level": 1}}, "cannot be decoded"),
    ],
)
def test_imports_are_checked(
    offset: int, length: int, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(np.arange(4, dtype="<i4").tobytes())
    config = RepositoryConfig()
    container = VirtualChunkContainer(
        f"{tmp_path.as_uri()}/", local_filesystem_store(str(tmp_path))
    )
    config.set_virtual_chunk_container(container)
    repository = Repository.create(
        LocalStorage(tmp_path / "repo"), config, {container.url_prefix: None}
    )
    session = repository.writable_session("main")
    with pytest.raises(InvalidInputError, match=rf"'a(/0)?'.*{message}"):
        import_references(_references(path, offset, length, **more), session)
    assert not session.has_uncommitted_changes
    import_references(_references(path, offset, length, **more), session, verify="none")
    session.discard_changes()
    import_references(_references(path, 0, 16), session)
    with pytest.raises(InvalidInputError, match=r"'a/0'.*control characters"):
        import_references(_references(tmp_path / "a\tb", 0, 16), session, group="b")


def test_of_large_chunks_without_compression_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_days(tmp_path / "a.nc", 0)
    with h5py.File(path, "a") as file:
        big = np.arange(4 * 500_000, dtype="f4").reshape(4, 500_000)
        dims = file.create_dataset("big", data=big).dims
        cell = file.create_dataset("cell", data=np.arange(500_000))
        cell.make_scale("cell")
        dims[0].attach_scale(file["time"])
        dims[1].attach_scale(cell)
    lengths: list[int] = []
    fetch = opening.OpenFile.fetch

    def counted(self: opening.OpenFile, table: Any, row: int) -> bytes:
        data = fetch(self, table, row)
        lengths.append(len(data))
        return data

    monkeypatch.setattr(opening.OpenFile, "fetch", counted)
    report = virtualize([path], tmp_path / "repo", scheduler="sync")
    assert sorted(lengths)[-2:] == [2_000_000, 2_000_000]
    assert np.array_equal(archived(tmp_path / "repo", report)["big"], big)


def test_a_file_that_says_what_it_is(tmp_path: Path) -> None:
    """Nothing is refused that is right."""
    path = write_days(tmp_path / "a.nc", 0, 10, copied=True, options={"fillvalue": 3})
    report = virtualize([path], tmp_path / "repo", scheduler="sync", verify="all")
    xr.testing.assert_identical(archived(tmp_path / "repo", report), content(path))
