"""Real NetCDF files, written with `to_icechunk` of one side and read with the other."""

from __future__ import annotations

from pathlib import Path

import iris_sample_data
import numpy as np
import pytest
import xarray as xr

from icechunk import Repository
from icechunk_xarray import to_icechunk
from tests.dask_writes.clusters import shared
from tests.interop.sides import Official, Ours
from tests.interop.xarray_writing import describe

FOLDER = Path(iris_sample_data.path)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository with the files, as groups."""
    folder = tmp_path_factory.mktemp("files") / "repository"
    session = Repository.create(str(folder)).writable_session("main")
    ocean = xr.open_dataset(FOLDER / "ostia_monthly.nc", engine="h5netcdf")
    to_icechunk(
        ocean,
        session,
        group="ocean",
        encoding={"surface_temperature": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -1}},
    )
    scenarios = {
        f"/{name}": xr.open_dataset(FOLDER / f"{name}_north_america.nc", engine="h5netcdf")
        for name in ("A1B", "E1")
    }
    to_icechunk(xr.DataTree.from_dict(scenarios), session, group="scenarios")
    nemo = FOLDER / "NEMO" / "nemo_1m_20150101-20150201_grid-T.nc"
    to_icechunk(xr.open_dataset(nemo, engine="h5netcdf"), session, group="nemo")
    session.commit("real files")
    return str(folder)


@pytest.mark.parametrize("group", ["ocean", "scenarios/A1B", "scenarios/E1", "nemo"])
def test_the_official_client_reads_what_we_write(
    group: str, written: str, ours: Ours, official: Official
) -> None:
    found = official.run("xarray_writing.read", written, group)
    assert found == ours.run("xarray_writing.read", written, group)
    if group.startswith("scenarios"):
        path = FOLDER / f"{group.removeprefix('scenarios/')}_north_america.nc"
        file = xr.open_dataset(path, engine="h5netcdf", decode_times=False)
        from_file = describe(file.load())
        for name, described in from_file.items():
            if name:  # dimensions, shape, dtype and values
                assert found[name][:4] == list(described[:4]), name


def test_the_official_client_reads_what_a_cluster_writes(
    written: str, ours: Ours, official: Official, tmp_path: Path
) -> None:
    encoding = {
        "surface_temperature": {
            "dtype": "i2",
            "scale_factor": 0.01,
            "_FillValue": -1,
            "chunks": (9, 18, 432),
        }
    }
    ocean = xr.open_dataset(FOLDER / "ostia_monthly.nc", engine="h5netcdf", chunks={"time": 9})
    folder = str(tmp_path / "repository")
    session = Repository.create(folder).writable_session("main")
    with shared("cluster"):
        to_icechunk(ocean.isel(time=slice(27)), session, group="ocean", encoding=encoding)
        session.commit("one half")
        to_icechunk(ocean.isel(time=slice(27, None)), folder, group="ocean", append_dim="time")
    found = official.run("xarray_writing.read", folder, "ocean")
    assert found == ours.run("xarray_writing.read", folder, "ocean")
    # xarray gives the units of bounds other words, where Dask has them
    name = "surface_temperature"
    assert found[name] == ours.run("xarray_writing.read", written, "ocean")[name]


def test_parts_appends_and_regions_of_either_are_the_whole(
    written: str, ours: Ours, official: Official, tmp_path: Path
) -> None:
    whole = ours.run("xarray_writing.read", written, "ocean")
    for writer in (ours, official):
        copy = str(tmp_path / writer.name)
        writer.run("xarray_writing.copy", written, copy, "ocean", "time")
        for reader in (ours, official):
            found = reader.run("xarray_writing.read", copy, "ocean")
            assert found == whole, (writer.name, reader.name)


def test_appends_in_turns(written: str, ours: Ours, official: Official, tmp_path: Path) -> None:
    folder = str(tmp_path / "turns")
    official.run("xarray_writing.copy", written, folder, "ocean", "time")
    ours.run("xarray_writing.append", folder, "ocean", "time", 5000)
    official.run("xarray_writing.append", folder, "ocean", "time", 10000)
    found = ours.run("xarray_writing.read", folder, "ocean")
    assert found["surface_temperature"][1] == [4 * 54, 18, 432]
    assert found == official.run("xarray_writing.read", folder, "ocean")


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_the_official_client_changes_what_we_write(
    missing: float, official: Official, tmp_path: Path
) -> None:
    """Documents are strict JSON, whatever stands for missing values."""
    values = np.array([1, np.nan, 3], "f4")
    dataset = xr.Dataset({"v": ("x", values), "w": ("x", [1, 2, 3])}, {"x": [0.5, 1.5, 2.5]})
    dataset["v"].encoding["missing_value"] = missing
    folder = str(tmp_path / "repository")
    to_icechunk(dataset, folder)
    to_icechunk(dataset, folder, group="g")
    changed = official.run("xarray_writing.change", folder)
    assert changed == sorted(["", "v", "w", "x", "g", "g/v", "g/w", "g/x"])
    for group in (None, "g"):
        found = xr.open_dataset(folder, engine="icechunk", group=group).load()
        np.testing.assert_array_equal(found["v"], values)
        assert found["v"].attrs == {"touched": "yes"}
