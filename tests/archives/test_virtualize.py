"""Archives of real and made files, as one dataset: equal to what xarray reads from the files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from kerchunk.grib2 import scan_grib

from icechunk import (
    ConflictError,
    InvalidInputError,
    LocalStorage,
    Repository,
    RepositoryConfig,
    StorageError,
    VirtualChunkContainer,
    credentials,
    local_filesystem_store,
    s3_credentials,
)
from icechunk_dask import Status, VirtualizeReport, virtualize
from tests.kerchunk.base import ARCHIVE, NEMO, NETCDF, through_fsspec
from tests.servers import S3Server

ROOT = Path(__file__).parents[2]
MONTHS = [ARCHIVE / name for name in NEMO]


def opened(folder: Path, report: VirtualizeReport) -> Repository:
    """Open a repository with the permissions that a report names."""
    known = vars(credentials)
    access = {prefix: eval(call, dict(known)) for prefix, call in report.access.items()}
    return Repository.open(str(folder), None, access)


def read(repository: Repository, group: str | None = None) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.open_dataset(repository, engine="icechunk", group=group).load()


def original(path: Path, **options: Any) -> xr.Dataset:
    with xr.open_dataset(path, **options) as dataset:
        return dataset.load()


def month(
    path: Path,
    first: int,
    days: int = 4,
    *,
    units: str = "days since 2000-01-01",
    attributes: Mapping[str, Any] | None = None,
    dtype: str = "f4",
    encoding: Mapping[str, Any] | None = None,
    lat: tuple[float, ...] = (10.0, 20.0, 30.0),
    extra: bool = False,
    scale: float = 1.0,
) -> Path:
    """Write a file of some days."""
    data = first + np.arange(days * len(lat), dtype="f8").reshape(days, len(lat))
    data *= scale
    dataset = xr.Dataset(
        {
            "t": (
                ("time", "lat"),
                (data * scale).astype(dtype),
                dict(attributes or {"units": "K"}),
            ),
            "mask": ("lat", np.arange(200 * len(lat)).reshape(len(lat), 200)[:, 0]),
        },
        {
            "time": ("time", np.arange(first, first + days), {"units": units}),
            "lat": ("lat", np.asarray(lat)),
        },
        {"title": "days"},
    )
    if extra:
        dataset["more"] = ("time", np.arange(days))
    chosen = {"t": {"chunksizes": (4, len(lat)), "zlib": True, **(encoding or {})}}
    dataset.to_netcdf(path, engine="h5netcdf", encoding=chosen, unlimited_dims=["time"])
    return path


# -- real files ------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETCDF)
def test_every_file_of_a_folder(name: str, tmp_path: Path) -> None:
    report = virtualize([ARCHIVE / name], tmp_path / "repo", scheduler="sync")
    assert report.added == (str(ARCHIVE / name),) and report.chunks["virtual"]
    ours = read(opened(tmp_path / "repo", report))
    xr.testing.assert_identical(ours, original(ARCHIVE / name))


def test_every_file_of_a_bucket(s3_server: S3Server, tmp_path: Path) -> None:
    prefix = uuid.uuid4().hex
    bucket = s3_server.storage(prefix)
    for name in NETCDF:
        bucket.put(name, (ARCHIVE / name).read_bytes())
    base = f"s3://{s3_server.bucket}/{prefix}/"
    options = {
        "key": s3_server.access_key_id,
        "secret": s3_server.secret_access_key,
        "endpoint_url": s3_server.endpoint_url,
        "client_kwargs": {"region_name": s3_server.region},
    }
    for name in NETCDF:
        group = Path(name).stem
        report = virtualize(
            [base + name], tmp_path / "repo", group=group, remote_options=options, scheduler="sync"
        )
        assert not report.failed
        # nothing of the keys is anywhere
        assert s3_server.secret_access_key not in repr(report)
    assert list(report.access) == [base]
    assert report.access[base].startswith("Credentials.S3(")
    for file in (tmp_path / "repo").rglob("*"):
        assert file.is_dir() or s3_server.secret_access_key.encode() not in file.read_bytes()
    credential = s3_credentials(
        access_key_id=s3_server.access_key_id, secret_access_key=s3_server.secret_access_key
    )
    # the repository names the server that gets the keys, so it has to be trusted
    config = Repository.fetch_config(str(tmp_path / "repo"))
    assert "fetch_config" in repr(report)
    repository = Repository.open(str(tmp_path / "repo"), config, {base: credential})
    for name in NETCDF:
        xr.testing.assert_identical(read(repository, Path(name).stem), original(ARCHIVE / name))


def test_grib(tmp_path: Path) -> None:
    path = ARCHIVE / "polar_stereo.grib2"
    report = virtualize([path], tmp_path / "repo", scheduler="sync", expand_dims=["time"])
    ours = read(opened(tmp_path / "repo", report))
    theirs = through_fsspec(scan_grib(str(path))[0])
    (name,) = theirs.data_vars
    assert ours[name].dims == ("time", *theirs[name].dims) and ours.sizes["time"] == 1
    assert np.array_equal(ours[name].values[0], theirs[name].values)
    assert np.array_equal(ours["latitude"].values, theirs["latitude"].values)


def test_months_and_one_more(anywhere: str, tmp_path: Path) -> None:
    """Three months on each scheduler, then a fourth with the same call."""
    files = [Path(shutil.copy(path, tmp_path)) for path in MONTHS]
    told: list[Status] = []
    report = virtualize(
        files, tmp_path / "repo", concat_dims=["time_counter"], progress=told.append
    )
    assert told[-1] == Status("done", tasks=3, total=3, commits=1)
    assert report.sizes["time_counter"] == 3 and report.order == {"time_counter": "url"}
    options: dict[str, Any] = {
        "combine": "nested",
        "concat_dim": "time_counter",
        "data_vars": "minimal",
        "coords": "minimal",
        "compat": "override",
        "chunks": None,
    }
    with xr.open_mfdataset(sorted(files), **options) as months:
        xr.testing.assert_identical(read(opened(tmp_path / "repo", report)), months.load())
    files.append(Path(shutil.copy(files[-1], tmp_path / "x_fourth.nc")))
    with h5py.File(files[-1], "r+") as file:
        for name in ("time_centered", "time_centered_bounds"):
            file[name][...] += 31 * 86400
        file["tos"][...] += 1
    before = report.snapshot_id
    report = virtualize(files, tmp_path / "repo", concat_dims=["time_counter"])
    assert report.added == (str(files[-1]),) and len(report.already) == 3
    repository = opened(tmp_path / "repo", report)
    with xr.open_mfdataset(sorted(files), **options) as months:
        xr.testing.assert_identical(read(repository), months.load())
    # only the new one was written
    diff = repository.diff(from_snapshot_id=before, to_branch="main")
    assert diff.updated_chunks["/tos"] == [[3, 0, 0]]
    assert "/nav_lat" not in diff.updated_chunks
    again = virtualize(files, tmp_path / "repo", concat_dims=["time_counter"])
    assert again.snapshot_id is None and len(again.already) == 4


# -- combining -------------------------------------------------------------------------
def test_files_are_sorted_by_their_coordinate_and_units_are_translated(tmp_path: Path) -> None:
    a = month(tmp_path / "a.nc", 4)
    b = month(tmp_path / "b.nc", 0)
    c = month(tmp_path / "c.nc", 0, units="days since 2000-01-09")
    report = virtualize([a, b, c], tmp_path / "repo", scheduler="sync")
    ours = read(opened(tmp_path / "repo", report))
    assert report.order == {"time": "coordinate"}
    parts = [original(path) for path in (b, a, c)]
    xr.testing.assert_identical(ours, xr.concat(parts, "time", data_vars="minimal"))
    # and an earlier one goes before them
    earlier = month(tmp_path / "d.nc", -4)
    report = virtualize([a, b, c, earlier], tmp_path / "repo", scheduler="sync")
    assert report.added == (str(earlier),)
    ours = read(opened(tmp_path / "repo", report))
    parts.insert(0, original(earlier))
    xr.testing.assert_identical(ours, xr.concat(parts, "time", data_vars="minimal"))


def test_labels_that_are_true_and_false(tmp_path: Path) -> None:
    """A table of an archive holds them as numbers, or the next call could not read it."""
    files = []
    for i in range(2):
        files.append(tmp_path / f"{i}.nc")
        with h5py.File(files[-1], "w") as file:
            file["time"] = np.array([bool(i)])
            file["time"].make_scale("time")
            file["t"] = np.array([i + 2.0])
            file["t"].dims[0].attach_scale(file["time"])
    for some in (files[:1], files):
        report = virtualize(some, tmp_path / "repo", scheduler="sync", isolate=False)
    got = read(opened(tmp_path / "repo", report))
    assert got["time"].values.tolist() == [False, True]
    assert got["t"].values.tolist() == [2, 3]


def test_overlaps_are_refused(tmp_path: Path) -> None:
    files = [month(tmp_path / "a.nc", 0), month(tmp_path / "b.nc", 2)]
    with pytest.raises(InvalidInputError, match=r"b\.nc: its 'time'.*overlaps .*a\.nc"):
        virtualize(files, tmp_path / "repo", scheduler="sync")
    assert not (tmp_path / "repo").exists()


def test_tiles_along_two_dimensions(tmp_path: Path) -> None:
    tiles = {
        (first, lat): month(tmp_path / f"{first}-{lat[0]}.nc", first, lat=lat)
        for first in (0, 4, 8)
        for lat in ((10.0, 20.0, 30.0), (40.0, 50.0, 60.0))
    }
    options: dict[str, Any] = {"concat_dims": ["time", "lat"], "scheduler": "sync"}
    some = [path for (first, _), path in tiles.items() if first < 8]
    virtualize(some, tmp_path / "repo", **options)
    report = virtualize(list(tiles.values()), tmp_path / "repo", **options)
    assert len(report.added) == 2
    ours = read(opened(tmp_path / "repo", report))
    with xr.open_mfdataset(
        list(tiles.values()), combine="by_coords", data_vars="minimal", chunks=None
    ) as whole:
        xr.testing.assert_identical(ours, whole.load())


def test_scalars_become_a_dimension(tmp_path: Path) -> None:
    days = []
    for day in range(3):
        dataset = original(month(tmp_path / "all.nc", 0)).isel(time=day)
        path = tmp_path / f"{day}.nc"
        dataset.encoding = {}
        dataset.to_netcdf(path, engine="h5netcdf", encoding={"time": {"dtype": "i4"}})
        days.append(path)
    report = virtualize(
        days, tmp_path / "repo", expand_dims=["time"], concat_dims=[], scheduler="sync"
    )
    ours = read(opened(tmp_path / "repo", report))
    assert ours["t"].dims == ("time", "lat")
    whole = original(tmp_path / "all.nc").isel(time=slice(3))
    xr.testing.assert_equal(ours["t"], whole["t"])


def test_groups_of_files(tmp_path: Path) -> None:
    path = month(tmp_path / "a.nc", 0)
    original(path).to_netcdf(path, engine="h5netcdf", group="inner/deep", mode="a")
    report = virtualize([path], tmp_path / "repo", group="outer", scheduler="sync")
    repository = opened(tmp_path / "repo", report)
    xr.testing.assert_identical(read(repository, "outer"), original(path))
    xr.testing.assert_identical(
        read(repository, "outer/inner/deep"), original(path, group="inner/deep")
    )


# -- contradictions --------------------------------------------------------------------
Maker = Callable[[Path], Path]
PACKED = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}
CURABLE: dict[str, tuple[str, Maker, Maker]] = {
    "data type": ("data_type", lambda p: month(p, 0), lambda p: month(p, 4, dtype="f8")),
    "compression": (
        "codecs",
        lambda p: month(p, 0),
        lambda p: month(p, 4, encoding={"zlib": False, "shuffle": False}),
    ),
    "chunks": (
        "chunk_grid",
        lambda p: month(p, 0),
        lambda p: month(p, 4, encoding={"chunksizes": (2, 3)}),
    ),
    "scale": (
        "'scale_factor'",
        lambda p: month(p, 0, encoding=PACKED),
        lambda p: month(p, 4, encoding={**PACKED, "scale_factor": 0.25}),
    ),
    "offset": (
        "'add_offset'",
        lambda p: month(p, 0, encoding={**PACKED, "add_offset": 1.0}),
        lambda p: month(p, 4, encoding={**PACKED, "add_offset": 2.0}),
    ),
    "fill value": (
        "'_FillValue'",
        lambda p: month(p, 0, encoding={"_FillValue": -9.0}),
        lambda p: month(p, 4, encoding={"_FillValue": -99.0}),
    ),
}
INCURABLE: dict[str, tuple[str, Maker, Maker]] = {
    "units": (
        "attribute 'units' is 'degC'",
        lambda p: month(p, 0),
        lambda p: month(p, 4, attributes={"units": "degC"}),
    ),
    "shape": (
        "has 2 along 'lat', the others 3",
        lambda p: month(p, 0),
        lambda p: month(p, 4, lat=(10.0, 20.0)),
    ),
    "coordinate": (
        "lat: has other values",
        lambda p: month(p, 0),
        lambda p: month(p, 4, lat=(10.0, 20.0, 31.0)),
    ),
    "missing": (
        "more: is in the others only",
        lambda p: month(p, 0, extra=True),
        lambda p: month(p, 4),
    ),
    "more": (
        "more: is in this file only",
        lambda p: month(p, 0),
        lambda p: month(p, 4, extra=True),
    ),
    "calendar": (
        "time: has times of the calendar '360_day', the others .*'standard'",
        lambda p: month(p, 0, units="days since 2000-01-01"),
        lambda p: _with_calendar(month(p, 4)),
    ),
}


def _with_calendar(path: Path) -> Path:
    with h5py.File(path, "r+") as file:
        file["time"].attrs["calendar"] = "360_day"
    return path


@pytest.mark.parametrize("kind", [*CURABLE, *INCURABLE])
@pytest.mark.parametrize("appending", [False, True])
def test_contradictions(kind: str, appending: bool, tmp_path: Path) -> None:
    expected, first, second = {**CURABLE, **INCURABLE}[kind]
    a, b = first(tmp_path / "a.nc"), second(tmp_path / "b.nc")
    c = tmp_path / "c.nc"
    # the others go on after it
    shutil.copy(a, c)
    with h5py.File(c, "r+") as file:
        file["time"][...] += 8
    repo = tmp_path / "repo"
    access = {f"{tmp_path.as_uri()}/": credentials.LocalFileSystemAccess}
    if appending:
        virtualize([a], repo, scheduler="sync")
    options: dict[str, Any] = {"scheduler": "sync", "chunk_grid": "regular"}
    if appending:
        options["authorize_virtual_chunk_access"] = access
    with pytest.raises(InvalidInputError, match=expected) as caught:
        virtualize([a, b, c], repo, **options)
    assert str(b) in str(caught.value) and f"{c}:" not in str(caught.value)
    assert repo.exists() == appending
    if kind in INCURABLE:
        assert "materialize" not in str(caught.value)
        with pytest.raises(InvalidInputError, match=expected) as caught:
            virtualize([a, b, c], repo, on_mismatch="materialize", **options)
        assert "materialize" not in str(caught.value)
    else:
        cured = Path(shutil.copytree(repo, tmp_path / "cured")) if appending else tmp_path / "cured"
        report = virtualize([a, b, c], cured, on_mismatch="materialize", **options)
        assert expected in report.materialized[str(b)][0]
        ours = read(opened(cured, report))
        parts = [original(path)["t"] for path in (a, b, c)]
        whole = xr.concat(parts, "time").astype(ours["t"].dtype)
        xr.testing.assert_equal(ours["t"], whole)
        again = virtualize([a, b, c], cured, scheduler="sync")
        assert len(again.already) == 3
    report = virtualize([a, b, c], repo, on_mismatch="skip", **options)
    assert list(report.skipped) == [str(b)] and str(c) in report.added
    ours = read(opened(repo, report))
    parts = [original(path)["t"] for path in (a, c)]
    xr.testing.assert_identical(ours["t"], xr.concat(parts, "time"))


def test_large_variables_that_do_not_grow(tmp_path: Path) -> None:
    """They stay in the first file, and others are refused."""
    files = [month(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    for i, path in enumerate(files):
        depth = xr.DataArray(np.full(1000, i // 2), dims="cell", name="depth")
        depth.to_dataset().to_netcdf(path, engine="h5netcdf", mode="a")
    report = virtualize(files[:2], tmp_path / "repo", scheduler="sync")
    assert report.variables["depth"].virtual
    with pytest.raises(InvalidInputError, match=r"2\.nc: depth: has other values"):
        virtualize(files, tmp_path / "repo", scheduler="sync")


def test_files_that_do_not_end_with_whole_chunks(tmp_path: Path) -> None:
    a, b = month(tmp_path / "a.nc", 0, 3), month(tmp_path / "b.nc", 3)
    options: dict[str, Any] = {"scheduler": "sync", "chunk_grid": "regular"}
    with pytest.raises(InvalidInputError, match=r"b\.nc: t: begins at 3 .* a chunk of 4"):
        virtualize([a, b], tmp_path / "repo", **options)
    report = virtualize([a, b], tmp_path / "repo", on_mismatch="materialize", **options)
    ours = read(opened(tmp_path / "repo", report))
    whole = xr.concat([original(a), original(b)], "time", data_vars="minimal")
    xr.testing.assert_identical(ours, whole)


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    a = month(tmp_path / "a.nc", 0, encoding=PACKED)
    b = month(tmp_path / "b.nc", 4, scale=1e6)
    with pytest.raises(InvalidInputError, match=r"b\.nc: t: its values .*int16"):
        virtualize([a, b], tmp_path / "repo", scheduler="sync", on_mismatch="materialize")


# -- failures --------------------------------------------------------------------------
def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    files = [month(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[:2000])
    text = tmp_path / "text.nc"
    text.write_text("no data")
    every = [*files, text, tmp_path / "missing.nc"]
    report = virtualize(every, tmp_path / "repo", scheduler="sync")
    assert report.added == tuple(map(str, files[:2]))
    assert list(report.failed) == [str(files[2]), str(tmp_path / "missing.nc"), str(text)]
    assert "not a NetCDF" in report.failed[str(text)]
    assert "FileNotFoundError" in report.failed[str(tmp_path / "missing.nc")]
    assert all(url in repr(report) for url in report.failed)
    files[2].write_bytes(whole)
    report = virtualize(every, tmp_path / "repo", scheduler="sync")
    assert report.added == (str(files[2]),) and len(report.failed) == 2
    ours = read(opened(tmp_path / "repo", report))
    parts = [original(path) for path in files]
    xr.testing.assert_identical(ours, xr.concat(parts, "time", data_vars="minimal"))


def test_handles_of_hdf5_in_garbage_do_not_stop_a_scan(tmp_path: Path) -> None:
    program = """
    import gc, sys
    import h5py
    from zarr.core.codec_pipeline import BatchedCodecPipeline
    from icechunk_dask import virtualize
    from icechunk_dask.archives import opening

    class Cycle:
        pass

    read = BatchedCodecPipeline.read
    seen = []

    async def collecting(*args, **kwargs):
        lists = [[] for _ in range(200_000)]  # in zarr's thread: enough for a collection
        seen.append(1)
        return await read(*args, **kwargs)

    BatchedCodecPipeline.read = collecting
    open_hdf5 = opening.open_hdf5

    def littering(*args, **kwargs):
        for _ in range(10):
            cycle = Cycle()
            cycle.self = cycle
            cycle.file = h5py.File(sys.argv[1])
        return open_hdf5(*args, **kwargs)

    opening.open_hdf5 = littering
    gc.set_threshold(50_000)  # none elsewhere
    report = virtualize([sys.argv[1]], sys.argv[2], scheduler="sync", isolate=False)
    assert report.added == (sys.argv[1],), report
    assert gc.isenabled() and seen
    """
    path = month(tmp_path / "a.nc", 0)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path), str(tmp_path / "repo")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_seen_of_a_job_that_was_killed(tmp_path: Path) -> None:
    files = [month(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    virtualize(files[:1], tmp_path / "repo", scheduler="sync")
    before = Repository.open(str(tmp_path / "repo")).lookup_branch("main")
    program = """
    import os, signal, sys
    from icechunk import LocalStorage, Repository
    from icechunk.storage.wrappers import WrapperStorage
    from icechunk_dask import virtualize

    class Deadly(WrapperStorage):
        def before(self, operation, keys, written):
            if operation == "put" and keys == ("repo",):
                os.kill(os.getpid(), signal.SIGKILL)

    virtualize(sys.argv[2:], Repository.open(Deadly(LocalStorage(sys.argv[1]))), scheduler="sync")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "repo"), *map(str, files)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Repository.open(str(tmp_path / "repo")).lookup_branch("main") == before
    report = virtualize(files, tmp_path / "repo", scheduler="sync")
    assert report.added == tuple(map(str, files[1:]))
    assert read(opened(tmp_path / "repo", report)).sizes["time"] == 12


def test_a_file_that_changed_later_is_not_read(tmp_path: Path) -> None:
    path = month(tmp_path / "a.nc", 0)
    report = virtualize([path], tmp_path / "repo", scheduler="sync")
    read(opened(tmp_path / "repo", report))
    time = path.stat().st_mtime + 10
    os.utime(path, (time, time))
    with pytest.raises(StorageError, match=r"a\.nc.*changed"):
        read(opened(tmp_path / "repo", report))


def test_others_commit_meanwhile(tmp_path: Path) -> None:
    files = [month(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    virtualize(files[:1], tmp_path / "repo", scheduler="sync")
    repository = Repository.open(LocalStorage(tmp_path / "repo"))

    def meanwhile(status: Status) -> None:
        if status.phase == "writing":
            virtualize(files, repository, scheduler="sync")

    with pytest.raises(ConflictError):
        virtualize(files, repository, scheduler="sync", progress=meanwhile)
    assert virtualize(files, repository, scheduler="sync").snapshot_id is None


def test_files_outside_of_containers_are_refused_before_they_are_read(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    config = RepositoryConfig()
    config.set_virtual_chunk_container(
        VirtualChunkContainer(f"{inner.as_uri()}/", local_filesystem_store(str(inner)))
    )
    repository = Repository.create(LocalStorage(tmp_path / "repo"), config)
    with pytest.raises(InvalidInputError, match=r"a\.nc.* no virtual chunk container"):
        virtualize([tmp_path / "a.nc"], repository, scheduler="sync")
    path = month(inner / "a.nc", 0)
    report = virtualize([path], repository, scheduler="sync")
    assert f"{inner.as_uri()}/" in repr(report)
    with pytest.raises(InvalidInputError, match="authorize_virtual_chunk_access"):
        read(repository)


@pytest.mark.parametrize(
    ("urls", "arguments", "message"),
    [
        ("a.nc", {}, "none of 1 file could be read"),
        ([], {}, "no urls"),
        (["a.nc"], {"on_mismatch": "ignore"}, "on_mismatch"),
        (["a.nc"], {"coordinates": "all"}, "coordinates"),
        (["a.nc"], {"concat_dims": []}, "no dimension"),
    ],
)
def test_arguments(urls: Any, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        virtualize(urls, tmp_path / "repo", **arguments)


def test_dimensions_that_no_file_has(tmp_path: Path) -> None:
    files = [month(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    with pytest.raises(InvalidInputError, match=r"dimensions 'day'; .*concat_dims"):
        virtualize(files, tmp_path / "repo", concat_dims="day", scheduler="sync")
