"""`ingest` against `xarray.open_mfdataset`: every value, attribute and coordinate, or a refusal."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from icechunk import InvalidInputError, MemoryStorage, Repository
from icechunk_dask import ingest
from icechunk_xarray import to_icechunk
from tests.archives.grib_files import SHAPE, message

QUIET: Any = {"progress": False, "verify": "none"}
Change = Callable[[xr.Dataset, int], xr.Dataset]


@pytest.fixture(autouse=True)
def _sync() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


def part(i: int, steps: int = 3) -> xr.Dataset:
    times = pd.date_range("2000-01-01", periods=steps) + pd.Timedelta(days=steps * i)
    values = np.arange(steps * 4.0).reshape(steps, 4) + 100 * i
    return xr.Dataset(
        {"v": (("time", "x"), values)}, {"time": times, "x": np.arange(4)}, {"title": "t"}
    )


def write(folder: Path, change: Change, count: int = 4, **encoding: Any) -> list[Path]:
    files = []
    for i in range(count):
        files.append(folder / f"{i}.nc")
        change(part(i), i).to_netcdf(files[-1], engine="h5netcdf", encoding=encoding)
    return files


def expected(files: list[Path], **options: Any) -> xr.Dataset:
    return xr.open_mfdataset(
        files,
        engine="h5netcdf",
        combine="nested",
        concat_dim="time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="override",
        join="override",
        **options,
    ).load()


def found(storage: Any, group: str | None = None) -> xr.Dataset:
    repo: Any = Repository.open(storage)
    return xr.open_dataset(repo, engine="icechunk", group=group, chunks=None).load()


def stamped(dataset: xr.Dataset, name: str = "v", **encoding: Any) -> xr.Dataset:
    dataset[name].encoding.update(encoding)
    return dataset


def of_a_model(ds: xr.Dataset, i: int) -> xr.Dataset:
    """Return the same of another calendar, with bounds that have a fill value, and none."""
    ds = ds.convert_calendar("noleap", use_cftime=True)
    times = ds["time"].values
    ds["b"] = ("time", "n"), np.stack([times, times], 1)
    ds["m"] = "time", times
    ds["time"].attrs["bounds"] = "b"
    ds["time"].encoding = {"units": "days since 0001-01-01", "calendar": "noleap", "dtype": "f8"}
    ds["m"].encoding = {**ds["time"].encoding, "_FillValue": 1e36}
    return stamped(ds, "b", dtype="f8", _FillValue=np.nan)


UNITS = "days since 2000-01-01"
TIMES = part(0)["time"].values
TEXTS = np.array(["a", "bb", "ü"], object)
TAKEN: dict[str, Change] = {
    "as they are": lambda ds, i: ds,
    "packed": lambda ds, i: stamped(ds.where(ds.v % 3 > 0), dtype="i2", scale_factor=0.5,
                                    _FillValue=-1),
    "another fill value later": lambda ds, i: stamped(ds.where(ds.v % 3 > 0), dtype="i4",
                                                      _FillValue=-1 if i < 2 else -2),
    "another packing later, exact": lambda ds, i: stamped(ds, dtype="i4",
                                                          scale_factor=0.5 if i < 2 else 0.25),
    "unsigned": lambda ds, i: stamped(ds.assign(b=("time", [1, 200, 255.0])), "b", dtype="i1",
                                      _Unsigned="true", _FillValue=-2),
    "missing values marked once more": lambda ds, i: stamped(ds.where(ds.v != 2),
                                                             missing_value=-9.0),
    "times of a model": of_a_model,
    "integers packed as integers": lambda ds, i: ds.assign(
        a=("time", np.array([1, 2, 3 + i], "i2"), {"scale_factor": np.int64(10)}),
        b=("time", np.array([1, -56, i], "i1"), {"_Unsigned": "true"}),
        c=("time", np.array([1, 200, i], "u1"), {"_Unsigned": "false"}),
        d=("time", np.array([1, 200, i], "u1"), {"_Unsigned": "false", "_FillValue": np.uint8(0)}),
        e=("time", np.array([1, 2, 3 + i], "i2"), {"scale_factor": np.int64(2), "units": UNITS}),
    ).assign_coords(x=("x", np.array([1, 2, 3, -6], "i1"), {"_Unsigned": "true"})),
    "durations": lambda ds, i: ds.assign(d=("time", TIMES - TIMES[0])),
    "texts": lambda ds, i: ds.assign(s=("time", TEXTS)),
    "characters": lambda ds, i: stamped(ds.assign(s=("time", TEXTS)), "s", dtype="S1"),
    "times since the year 1": lambda ds, i: stamped(ds, "time", units="days since 1-1-1",
                                                    dtype="f8"),
    "times of another unit": lambda ds, i: stamped(ds, "time", dtype="i8",
                                                   units=f"days since 2000-01-0{i + 1}"),
    "chunks that do not meet": lambda ds, i: stamped(ds, chunksizes=(2, 3), zlib=True),
    "other chunks in each": lambda ds, i: stamped(ds, chunksizes=(i % 3 + 1, 4), zlib=True),
    "a lone coordinate": lambda ds, i: ds.assign_coords(z=("level", [1.0, 2.0])),
    "other attributes": lambda ds, i: ds.assign_attrs(title=f"file {i}"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::xarray.SerializationWarning")
@pytest.mark.parametrize("case", TAKEN)
def test_files_that_are_taken(tmp_path: Path, case: str) -> None:
    files = write(tmp_path, TAKEN[case])
    wanted = expected(files)
    if case in ("texts", "characters"):
        wanted["s"] = wanted["s"].astype(object)
    if case == "another packing later, exact":
        wanted = wanted.astype("f8")
    for engine in (None, "h5netcdf"):
        storage = MemoryStorage()
        ingest(files[:2], storage, engine=engine, **QUIET)
        ingest(files, storage, engine=engine, **QUIET)
        got = found(storage)
        if case in ("texts", "characters"):
            got["s"] = got["s"].astype(object)
        if case == "another packing later, exact":
            got = got.astype("f8")
        xr.testing.assert_identical(got, wanted)


def test_characters_that_are_no_texts(tmp_path: Path) -> None:
    """Of a dimension that has labels, xarray joins no characters."""
    files = write(tmp_path, lambda ds, i: ds.drop_vars("v"))
    for i, file in enumerate(files):
        with h5py.File(file, "a") as opened:
            for name, dims in {"c": ["time"], "d": ["x"], "e": ["x", "time"]}.items():
                values = np.arange(np.prod([opened[dim].size for dim in dims])) % 3
                shape = [opened[dim].size for dim in dims]
                kept = (values + 97 + (i if "time" in dims else 0)).astype("u1").view("S1")
                opened[name] = kept.reshape(shape)
                for axis, dim in enumerate(dims):
                    opened[name].dims[axis].attach_scale(opened[dim])
            opened["s"] = np.bytes_("a")
    storage = MemoryStorage()
    ingest(files, storage, **QUIET)
    xr.testing.assert_identical(found(storage), expected(files))


@pytest.mark.parametrize("marks", [{"missing_value": 6.0, "_FillValue": 5.0},
                                   {"missing_value": [6.0, 5.0]}])  # fmt: skip
def test_two_marks_of_missing_values(tmp_path: Path, marks: dict[str, Any]) -> None:
    files = write(tmp_path, lambda ds, i: ds, 3, v={"_FillValue": None})
    for file in files:
        with h5py.File(file, "a") as opened:
            opened["v"].attrs.update(marks)
    storage = MemoryStorage()
    with pytest.warns(xr.SerializationWarning):
        ingest(files[:2], storage, **QUIET)
        ingest(files, storage, **QUIET)
        wanted = expected(files)
    xr.testing.assert_identical(found(storage), wanted)


REFUSED: dict[str, tuple[Change, str]] = {
    "rounded": (
        lambda ds, i: stamped(ds + 0.25 * (i > 1), dtype="i4", scale_factor=0.5 if i < 2 else 0.25),
        "scale_factor=0.5.* 200.25 .*dtype",
    ),
    "narrow": (
        lambda ds, i: (ds + 0.1).astype("f4" if i < 2 else "f8"),
        "'v' is stored as float32",
    ),
    "calendar": (
        lambda ds, i: ds.assign_coords(time=xr.date_range(
            f"2000-0{i + 1}-01", periods=3, use_cftime=True,
            calendar="360_day" if i < 2 else "noleap")),
        "calendar 'noleap' in the new files",
    ),
    "hours": (
        lambda ds, i: ds.assign_coords(time=ds.time + pd.Timedelta(hours=6 * (i > 1))),
        "'time' is stored as int64",
    ),
    "gone": (lambda ds, i: ds.assign(w=ds.v) if i < 2 else ds, "no variable 'w', which '/' has"),
    "new": (lambda ds, i: ds.assign(w=ds.v) if i > 1 else ds, r"drop_variables=\['w'\]"),
    "new coordinate": (
        lambda ds, i: ds.assign_coords(q=("time", np.ones(3))) if i > 1 else ds,
        r"drop_variables=\['q'\]",
    ),
    "repeated": (lambda ds, i: part(i % 2), r"2 files have values of 'time'"),
    "units": (
        lambda ds, i: ds.assign(v=ds.v.assign_attrs(units="K" if i < 2 else "degC")),
        "units 'degC' in the new files",
    ),
    "texts": (
        lambda ds, i: ds.assign(s=("time", TEXTS if i < 2 else [1, 2, 3])),
        "'s' has numbers in the new files",
    ),
    "static": (lambda ds, i: ds.assign(k=("x", np.arange(4) + (i > 1))), "'k' has other values"),
}  # fmt: skip


@pytest.mark.parametrize("engine", [None, "h5netcdf"])
@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_refused(tmp_path: Path, case: str, engine: str | None) -> None:
    """By name, before anything is committed, and with no advice that ingest does not know."""
    change, words = REFUSED[case]
    files = write(tmp_path, change)
    storage = MemoryStorage()
    ingest(files[:2], storage, engine=engine, **QUIET)
    repository = Repository.open(storage)
    tip, before = repository.lookup_branch("main"), found(storage)
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=words) as caught:
            ingest(files, storage, engine=engine, **QUIET)
        assert "safe_" not in str(caught.value)
        assert repository.lookup_branch("main") == tip
        assert (repository.jobs.list(), repository.list_branches()) == ([], {"main"})
    xr.testing.assert_identical(found(storage), before)


@pytest.mark.parametrize("engine", [None, "h5netcdf"])
@pytest.mark.parametrize("chunks", [None, {"time": 2}, {"time": -1}])
@pytest.mark.parametrize("dtype", ["S3", "<U3", object])
def test_texts_of_later_files_are_longer(
    tmp_path: Path, engine: str | None, chunks: Any, dtype: Any
) -> None:
    """And chunks are those of texts, where a file has characters."""

    def change(dataset: xr.Dataset, i: int) -> xr.Dataset:
        texts = np.array([f"{n}{'x' * i}" for n in range(dataset.sizes["time"])])
        return dataset.assign(s=("time", texts.astype(dtype)))

    files, storage = write(tmp_path, change, 3), MemoryStorage()
    for several in (files[:1], files):
        ingest(several, storage, engine=engine, chunks=chunks, **QUIET)
    got = found(storage)["s"]
    assert got.values.astype(object).tolist() == expected(files)["s"].values.tolist()
    assert chunks is None or got.encoding["chunks"] == (2 if chunks["time"] == 2 else 3,)


# -- any engine ---------------------------------------------------------------------------------
def test_stores_of_zarr(tmp_path: Path) -> None:
    stores = []
    for i in range(3):
        stores.append(tmp_path / f"{i}.zarr")
        part(i).to_zarr(stores[-1], zarr_format=2, consolidated=False)
    storage = MemoryStorage()
    how: Any = {"engine": "zarr", "open_options": {"consolidated": False}, **QUIET}
    ingest(stores[:2], storage, **how)
    report = ingest(stores, storage, chunks={"time": 4}, **how)
    assert (len(report.added), len(report.already)) == (1, 2)
    xr.testing.assert_identical(
        found(storage), xr.concat([part(i) for i in range(3)], "time", data_vars="minimal")
        .assign_coords(time=found(storage)["time"])
    )  # fmt: skip


def test_a_store_of_zarr_by_itself(tmp_path: Path) -> None:
    stores = [tmp_path / "0.zarr", tmp_path / "1.zarr"]
    for i, store in enumerate(stores):
        part(i).to_zarr(store, zarr_format=3, consolidated=False)
    with pytest.raises(InvalidInputError, match=r"0\.zarr is a Zarr store: .* the engine 'zarr'"):
        ingest(stores, MemoryStorage(), **QUIET)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (stores[0] / "v" / "c" / "planted").symlink_to(secret)
    with pytest.raises(InvalidInputError, match="'v/c/planted' is a link that leads out"):
        ingest(stores, MemoryStorage(), engine="zarr", **QUIET)


def test_files_that_are_packed_unlike(tmp_path: Path) -> None:
    """As those of a reanalysis are: each file by the range of its values."""
    files = write(
        tmp_path,
        lambda ds, i: stamped(ds + i / 3, dtype="i2", scale_factor=0.01 * (i + 1), add_offset=i),
    )
    storage = MemoryStorage()
    how: Any = {"engine": "h5netcdf", **QUIET}
    with pytest.raises(InvalidInputError, match="v: is packed by"):
        ingest(files, storage, **how)
    ingest(files[:2], storage, on_mismatch="materialize", **how)
    ingest(files, storage, on_mismatch="materialize", **how)
    assert found(storage)["v"].equals(expected(files)["v"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"open_options": {"mask_and_scale": False}}, "pass engine="),
        ({"engine": "h5netcdf", "open_options": {"decode_times": object()}}, "JSON"),
        ({"engine": "h5netcdf", "open_options": {"chunks": {}}}, "chunks"),
        ({"engine": "h5netcdf", "filter_by_keys": {"level": 1}}, "filter_by_keys is for files"),
        ({"on_mismatch": "no"}, "on_mismatch is 'no'"),
        ({"engine": "h5netcdf", "concat_dims": ["t"]}, "no dimension 't', only"),
        ({"engine": "h5netcdf", "variables": ["w"]}, "no variable 'w'"),
        ({"engine": "h5netcdff"}, "engine is 'h5netcdff'.*did you mean 'h5netcdf'"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: Any, words: str) -> None:
    files = write(tmp_path, lambda ds, i: ds, 2)
    with pytest.raises(InvalidInputError, match=words):
        ingest(files, MemoryStorage(), **options, **QUIET)


def test_what_an_engine_gives_is_chosen(tmp_path: Path) -> None:
    files = write(tmp_path, lambda ds, i: ds.assign(w=ds.v, s=1).isel(time=0), 3)
    storage = MemoryStorage()
    how: Any = {"engine": "h5netcdf", "expand_dims": "time", "drop_variables": "s", **QUIET}
    with pytest.raises(InvalidInputError, match=r"^rename names 'ww', .* did you mean 'w'"):
        ingest(files, storage, rename={"ww": "u"}, **how)
    how["drop_variables"] = ["s", "sl"]
    report = ingest(files[:2], storage, rename={"w": "u"}, **how)
    assert report.unmet == ("drop_variables names 'sl', and no file has it; did you mean 's'?",)
    ingest(files, storage, rename={"w": "u"}, **how)
    got = found(storage)
    assert set(got.data_vars) == {"v", "u"}
    assert got["v"].values.tolist() == [part(i)["v"].values[0].tolist() for i in range(3)]


def test_an_engine_opens_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_dataset = xr.open_dataset

    def count(name: Any, **options: Any) -> xr.Dataset:
        opened.append(name)
        return open_dataset(name, **options)

    files, storage = write(tmp_path, lambda ds, i: ds), MemoryStorage()
    monkeypatch.setattr(xr, "open_dataset", count)
    ingest(files, storage, engine="h5netcdf", **QUIET)
    monkeypatch.undo()
    assert sorted(name for name in opened if str(name).endswith(".nc")) == list(map(str, files))
    xr.testing.assert_identical(found(storage), expected(files))


def test_a_file_that_no_engine_opens(tmp_path: Path) -> None:
    files = write(tmp_path, lambda ds, i: ds, 3)
    files[1].write_bytes(b"no file")
    storage = MemoryStorage()
    how: Any = {"engine": "h5netcdf", **QUIET}
    with pytest.raises(InvalidInputError, match=r"1 file could not be opened, .*1\.nc the first"):
        ingest(files, storage, **how)
    report = ingest(files, storage, allow_gaps=True, **how)
    assert list(report.failed) == [str(files[1])]
    xr.testing.assert_identical(found(storage), expected([files[0], files[2]]))


def test_a_file_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    files = write(tmp_path, lambda ds, i: ds, 2)

    def replace(status: Any) -> None:
        if files[1].stat().st_size:
            files[1].write_bytes(files[1].read_bytes() + b" ")

    with pytest.raises(InvalidInputError, match=r"1 file changed during .*1\.nc"):
        ingest(files, MemoryStorage(), engine="h5netcdf", progress=replace)


@pytest.mark.parametrize("engine", [None, "h5netcdf"])
def test_a_file_of_the_same_size_and_time(tmp_path: Path, engine: str | None) -> None:
    files = write(tmp_path, lambda ds, i: ds, 2)
    storage = MemoryStorage()
    ingest(files, storage, engine=engine, **QUIET)
    before = files[1].stat()
    whole = files[1].read_bytes()
    # the same bytes again are no change
    for data in (whole, whole[:-1] + bytes([whole[-1] ^ 1])):
        files[1].unlink()
        files[1].write_bytes(data)
        os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
        if data == whole:
            assert ingest(files, storage, engine=engine, **QUIET).changed == ()
    with pytest.raises(InvalidInputError, match=r"1 file changed(.|\n)*1\.nc"):
        ingest(files, storage, engine=engine, **QUIET)


def test_a_store_whose_chunk_is_replaced(tmp_path: Path) -> None:
    """Nothing is to be seen of it in the folder of the store itself."""
    stores = []
    for i in range(2):
        stores.append(tmp_path / f"{i}.zarr")
        part(i).to_zarr(stores[-1], zarr_format=3, consolidated=False)
    storage = MemoryStorage()
    how: Any = {"engine": "zarr", "open_options": {"consolidated": False}, **QUIET}
    ingest(stores, storage, **how)
    assert len(ingest(stores, storage, **how).already) == 2
    region = {"time": slice(0, 3), "x": slice(0, 4)}
    (part(1) + 1).drop_vars(["time", "x"]).to_zarr(stores[1], region=region, consolidated=False)
    with pytest.raises(InvalidInputError, match=r"1 file changed(.|\n)*1\.zarr"):
        ingest(stores, storage, **how)


# -- places -------------------------------------------------------------------------------------
def test_a_group_below_is_no_data_of_the_group(tmp_path: Path) -> None:
    files = write(tmp_path, lambda ds, i: ds, 2)
    storage = MemoryStorage()
    ingest(files, storage, group="below", **QUIET)
    report = ingest(files, storage, **QUIET)
    assert len(report.added) == 2
    xr.testing.assert_identical(found(storage), expected(files))
    xr.testing.assert_identical(found(storage, "below"), expected(files))


@pytest.mark.parametrize("repeats", [True, False])
def test_groups_keep_their_coordinates(repeats: bool, tmp_path: Path) -> None:
    """A group may repeat coordinates of the group around it, and is opened without that."""
    groups = ["inner", "inner/most", "other"]
    files = [_with_groups(tmp_path / f"{i}.nc", i, groups, repeats) for i in range(4)]
    storage = MemoryStorage()
    ingest(files[:2], storage, **QUIET)
    report = ingest(files, storage, **QUIET)
    assert (len(report.added), len(report.already)) == (2, 2)
    for group in ["", *groups]:
        xr.testing.assert_identical(found(storage, group or None), expected(files, group=group))


def _with_groups(path: Path, i: int, groups: list[str], repeats: bool) -> Path:
    whole = part(i, 4).assign_attrs(title=f"file {i}")
    whole.to_netcdf(path, engine="h5netcdf")
    for group in groups:
        below = whole if repeats else whole.drop_vars("time")
        below.to_netcdf(path, engine="h5netcdf", group=group, mode="a")
    return path


@pytest.mark.parametrize(
    ("i", "groups", "words"),
    [
        (2, ["inner"], "no group 'other', which would be shorter along 'time'"),
        (2, ["inner", "other", "new"], "no group '/data/new' to append to"),
        (0, ["inner", "other"], "before or between steps of '/data/?.*' along 'time'"),
        (1, ["inner", "other"], "1 file has values of 'time'"),
    ],
)
def test_files_with_groups_are_refused(
    i: int, groups: list[str], words: str, tmp_path: Path
) -> None:
    storage = MemoryStorage()
    first = _with_groups(tmp_path / "first.nc", 1, ["inner", "other"], True)
    ingest([first], storage, group="data", **QUIET)
    tip = Repository.open(storage).lookup_branch("main")
    other = _with_groups(tmp_path / "other.nc", i, groups, True)
    with pytest.raises(InvalidInputError, match=words):
        ingest([other], storage, group="data", **QUIET)
    assert Repository.open(storage).lookup_branch("main") == tip


def test_small_chunks_share_objects(tmp_path: Path) -> None:
    files = write(tmp_path, lambda ds, i: xr.Dataset(
        {"v": (("time", "x"), np.random.default_rng(i).random((8, 200)))}, {"time": part(i, 8).time}
    ))  # fmt: skip
    storage = MemoryStorage()
    ingest(files, storage, chunks={"time": 1}, **QUIET)
    session = Repository.open(storage).readonly_session("main")
    assert session.written_chunks("v").sum() == 32
    assert sum(1 for _ in storage.list("chunks/")) == 1


def test_attributes_that_json_does_not_have(tmp_path: Path) -> None:
    files = write(tmp_path, lambda ds, i: ds, 2)
    for file in files:
        with h5py.File(file, "a") as opened:
            opened["v"].attrs["valid_max"] = np.inf
    storage = MemoryStorage()
    with pytest.raises(InvalidInputError, match=r"drop_attributes=\['v:valid_max'\]"):
        ingest(files, storage, **QUIET)
    # as the message says
    ingest(files, storage, drop_attributes=["v:valid_max"], **QUIET)
    assert "valid_max" not in found(storage)["v"].attrs


@pytest.mark.parametrize(
    ("name", "given", "dropped"),
    [
        ("v", {"_Encoding": "utf-8"}, ["v:_Encoding"]),
        ("x", {"_Encoding": "utf-8"}, ["x:_Encoding"]),
        ("n", {"scale_factor": 2, "_FillValue": 1}, ["n:_FillValue", "n:missing_value"]),
        ("n", {"scale_factor": 2, "missing_value": 1},
         ["n:_FillValue", "n:missing_value"]),
    ],
)  # fmt: skip
def test_what_xarray_fails_to_decode_when_it_reads(
    name: str, given: dict[str, Any], dropped: list[str], tmp_path: Path
) -> None:
    """Its errors name no variable, and a copy would have begun."""
    files = write(tmp_path, lambda ds, i: ds.assign(n=("time", [0, 1, 2])), 2)
    for file in files:
        with h5py.File(file, "a") as opened:
            opened[name].attrs.update(given)
    storage = MemoryStorage()
    with pytest.raises(InvalidInputError, match=re.escape(f"drop_attributes={dropped!r}")):
        ingest(files, storage, **QUIET)
    # as the message says
    ingest(files, storage, drop_attributes=dropped, **QUIET)
    assert found(storage).sizes["time"] == 6
    assert Repository.open(storage).jobs.list() == []


def test_a_job_keeps_coordinates_that_no_variable_has() -> None:
    dataset = part(0).assign_coords(z=("level", [1.0, 2.0]), run=7)
    for given in (dataset, dataset[["time", "z"]].reset_coords("z", drop=True), dataset[["z"]]):
        storage = MemoryStorage()
        to_icechunk(given, Repository.create(storage), job="copy")
        xr.testing.assert_equal(found(storage), given)


def test_other_messages_of_a_file_that_is_there(tmp_path: Path) -> None:
    values = np.arange(np.prod(SHAPE), dtype="f8").reshape(SHAPE)
    kinds = [
        {"shortName": "t", "typeOfLevel": "isobaricInhPa", "level": 500},
        {"shortName": "t", "typeOfLevel": "surface"},
        {"shortName": "u", "typeOfLevel": "heightAboveGround", "level": 10},
    ]
    path = tmp_path / "a.grib"
    path.write_bytes(
        b"".join(message(edition=2, values=values + 100 * i, **k) for i, k in enumerate(kinds))
    )
    storage = MemoryStorage()
    how: Any = {"expand_dims": ["time"], "concat_dims": ["time"], **QUIET}
    first = {"typeOfLevel": "isobaricInhPa"}
    ingest([path], storage, filter_by_keys=first, **how)
    assert len(ingest([path], storage, filter_by_keys=first, **how).already) == 1
    for number, keys in enumerate(
        ({"typeOfLevel": "surface"}, {"typeOfLevel": "heightAboveGround"}), start=1
    ):
        with pytest.raises(InvalidInputError, match="group= for these messages"):
            ingest([path], storage, filter_by_keys=keys, **how)
        # as the message says
        ingest([path], storage, filter_by_keys=keys, group=f"g{number}", **how)
        got = found(storage, f"g{number}")
        (name,) = (n for n in got.data_vars if "GRIB_paramId" in got[n].attrs)
        np.testing.assert_allclose(got[name].values[0], values + 100 * number, atol=1e-3)


def test_what_xarray_cannot_open(tmp_path: Path) -> None:
    """It is refused by name, and what the error advises works."""
    months = part(0).assign_coords(time=np.arange(3))
    months["time"].attrs["units"] = "months since 2000-01-01"
    path = tmp_path / "months.nc"
    months.to_netcdf(path, engine="h5netcdf")
    storage = MemoryStorage()
    with pytest.raises(InvalidInputError, match=r"'time' cannot be decoded: .*'time:units'"):
        ingest([path], storage, **QUIET)
    ingest([path], storage, drop_attributes=["time:units"], **QUIET)
    np.testing.assert_array_equal(found(storage)["time"], months["time"])
    # a dimension of another length in a group
    path, storage = tmp_path / "groups.nc", MemoryStorage()
    part(0).to_netcdf(path, engine="h5netcdf")
    part(0, 5).to_netcdf(path, engine="h5netcdf", group="inner", mode="a")
    with pytest.raises(InvalidInputError, match=r"group '/inner' .*drop_variables=.* group="):
        ingest([path], storage, group="whole", **QUIET)
    inner = [f"inner/{name}" for name in ("v", "time", "x")]
    ingest([path], storage, group="outer", drop_variables=inner, **QUIET)
    ingest([path], storage, group="other", variables=["inner/v"], **QUIET)
    xr.testing.assert_identical(found(storage, "outer"), part(0))
    xr.testing.assert_identical(found(storage, "other/inner"), part(0, 5))
