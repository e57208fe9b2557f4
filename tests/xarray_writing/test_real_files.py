"""Real NetCDF files, of `iris-sample-data`: what is in a repository is what is in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import iris_sample_data
import numpy as np
import pytest
import xarray as xr

import icechunk
from icechunk import InvalidInputError, Repository
from icechunk_xarray import to_icechunk

FOLDER = Path(iris_sample_data.path)
MONTHS = sorted((FOLDER / "NEMO").glob("nemo_1m_*.nc"))
#: How each file lays out its chunks on disk is no property of the data.
LAYOUT = {"source", "original_shape", "preferred_chunks", "chunksizes", "contiguous", "endian"}
LAYOUT |= {"chunks", "shards", "compressors", "filters", "serializer", "zlib", "complevel"}
LAYOUT |= {"szip", "zstd", "bzip2", "blosc", "shuffle", "fletcher32", "compression"}
LAYOUT |= {"compression_opts", "fill_value"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::xarray.SerializationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def open_file(path: Path, chunks: Any = None, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="h5netcdf", chunks=chunks, **options)


def create() -> Repository:
    return Repository.create(icechunk.in_memory_storage())


def read(repo: Repository, group: str | None = None, branch: str = "main", **options: Any) -> Any:
    store = repo.readonly_session(branch).store
    return xr.open_zarr(store, group=group, consolidated=False, chunks=None, **options).load()


def assert_same(got: xr.Dataset, expected: xr.Dataset) -> None:
    """Values, attributes, and the encoding that decoding depends on, are equal."""
    xr.testing.assert_identical(got, expected)
    for name, variable in expected.variables.items():
        assert got[name].dtype == variable.dtype
        theirs = {key: value for key, value in variable.encoding.items() if key not in LAYOUT}
        ours = {key: value for key, value in got[name].encoding.items() if key not in LAYOUT}
        for key, value in theirs.items():
            # xarray spells the units of bounds anew: midnight goes without saying
            spelled = ours.pop(key).removesuffix(" 00:00:00") if key == "units" else ours.pop(key)
            wanted = value.removesuffix(" 00:00:00") if key == "units" else value
            np.testing.assert_equal(spelled, wanted, f"{name}: {key}")
        # what xarray adds whatever it writes to
        assert not ours.keys() - {"_FillValue", "coordinates"}, name


@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("ostia_monthly.nc", None),
        ("ostia_monthly.nc", {"time": 27}),
        ("A1B_north_america.nc", None),
        ("A1B_north_america.nc", {"time": 120}),
        ("NEMO/" + MONTHS[0].name, {}),
    ],
)
def test_a_file_as_it_is(name: str, chunks: Any) -> None:
    repo = create()
    to_icechunk(open_file(FOLDER / name, chunks), repo)
    expected = open_file(FOLDER / name).load()
    assert_same(read(repo), expected)
    # and undecoded: the numbers on disk are those of the file
    raw = {"decode_cf": False}
    stored, original = read(repo, **raw), open_file(FOLDER / name, **raw).load()
    for key, variable in original.variables.items():
        np.testing.assert_array_equal(stored[key], variable)
        assert stored[key].dtype == variable.dtype


@pytest.mark.parametrize("chunks", [None, {"y": 110}])
def test_months_appended(chunks: Any) -> None:
    """The three files give their months the same time_counter: an append of them repeats it."""
    repo = create()
    to_icechunk(open_file(MONTHS[0], chunks), repo)
    with pytest.raises(InvalidInputError, match="coordinate 'time_counter': 1 of 1"):
        to_icechunk(open_file(MONTHS[1], chunks), repo, append_dim="time_counter")
    for month in MONTHS[1:]:
        to_icechunk(open_file(month, chunks), repo, append_dim="time_counter", safe_append=False)
    months = [open_file(month).load() for month in MONTHS]
    expected = xr.concat(
        months, "time_counter", data_vars="minimal", coords="minimal", compat="override"
    )
    # the newest call has the last word on the attributes of the group
    expected.attrs = months[-1].attrs
    assert_same(read(repo), expected)
    assert len(list(repo.ancestry(branch="main"))) == 4


def test_months_with_a_time_of_their_own() -> None:
    def month(path: Path) -> xr.Dataset:
        dataset = open_file(path)
        return dataset.assign_coords(time_counter=dataset["time_centered"].values)

    session = create().writable_session("main")
    to_icechunk(month(MONTHS[0]), session)
    for path in MONTHS[1:]:
        to_icechunk(month(path), session, append_dim="time_counter")
    before = session.change_set_bytes()
    with pytest.raises(InvalidInputError, match="on disk already"):
        to_icechunk(month(MONTHS[1]), session, append_dim="time_counter")
    assert session.change_set_bytes() == before
    to_icechunk(month(MONTHS[1])[["tos"]].drop_vars(["nav_lat", "nav_lon"]), session, region="auto")
    store: Any = session.store
    got = xr.open_zarr(store, consolidated=False)
    np.testing.assert_array_equal(
        got["tos"], np.concatenate([open_file(path)["tos"] for path in MONTHS])
    )


def test_another_grid_is_not_appended() -> None:
    session = create().writable_session("main")
    to_icechunk(open_file(MONTHS[0]), session)
    moved = open_file(MONTHS[1]).load().assign_coords(time_counter=[1.0])
    moved["nav_lat"] = moved["nav_lat"] + 0.5
    with pytest.raises(InvalidInputError, match="coordinate 'nav_lat' differs"):
        to_icechunk(moved, session, append_dim="time_counter")


def test_scenarios_as_branches_and_as_a_tree() -> None:
    a1b, e1 = (open_file(FOLDER / f"{name}_north_america.nc") for name in ("A1B", "E1"))
    repo = create()
    first = to_icechunk(a1b, repo, message="A1B")
    repo.create_branch("e1", first)
    to_icechunk(e1, repo, branch="e1", mode="w", message="E1")
    assert_same(read(repo), a1b.load())
    assert_same(read(repo, branch="e1"), e1.load())

    tree = xr.DataTree.from_dict({"/A1B": a1b, "/E1": e1})
    to_icechunk(tree, repo, group="scenarios")
    store: Any = repo.readonly_session("main").store
    got = xr.open_datatree(store, engine="zarr", group="scenarios", consolidated=False)
    for name in ("A1B", "E1"):
        xr.testing.assert_identical(got[name].to_dataset().load(), tree[name].to_dataset())
        assert_same(
            read(repo, f"scenarios/{name}"), open_file(FOLDER / f"{name}_north_america.nc").load()
        )


def test_what_a_scenario_does_not_hold() -> None:
    a1b = open_file(FOLDER / "A1B_north_america.nc").load()
    session = create().writable_session("main")
    to_icechunk(a1b.isel(time=slice(None, 200)), session)
    rest = a1b.isel(time=slice(200, None))
    before = session.change_set_bytes()
    # years of 360 days are no dates
    dates = np.arange("2060", "2100", dtype="M8[Y]").astype("M8[ns]")
    with pytest.raises(InvalidInputError, match=r"'time'.*360_day"):
        to_icechunk(rest.assign_coords(time=dates), session, append_dim="time")
    # hours that are stored as integers
    halves = rest.assign_coords(forecast_period=rest["forecast_period"] + 0.5)
    with pytest.raises(InvalidInputError, match=r"'forecast_period'.*int32"):
        to_icechunk(halves, session, append_dim="time")
    celsius = rest.assign(air_temperature=rest["air_temperature"] - 273.15)
    celsius["air_temperature"].attrs = {"units": "degC"}
    with pytest.raises(InvalidInputError, match=r"'air_temperature'.*'degC'.*'K'"):
        to_icechunk(celsius, session, append_dim="time")
    assert session.change_set_bytes() == before
    to_icechunk(rest, session, append_dim="time")
    store: Any = session.store
    xr.testing.assert_identical(xr.open_zarr(store, consolidated=False).load(), a1b)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_what_another_store_of_zarr_had(tmp_path: Path, zarr_format: Any, lazy: bool) -> None:
    """Its codecs and shards are no reason to refuse what was selected from it."""
    values = np.arange(24.0).reshape(6, 4)
    texts = np.array(["a", "bb", "", "d"], object)
    encoding: Any = {"v": {"shards": (4, 4), "chunks": (2, 2)}} if zarr_format == 3 else {}
    xr.Dataset({"v": (("t", "x"), values), "s": ("x", texts)}, {"x": range(4)}).to_zarr(
        tmp_path / "store", zarr_format=zarr_format, consolidated=False, encoding=encoding
    )
    opened = xr.open_zarr(tmp_path / "store", consolidated=False, chunks={} if lazy else None)
    changes = (
        lambda dataset: dataset.isel(t=0),
        lambda dataset: dataset.isel(t=[0, 2, 5]).chunk(t=-1, x=-1),
        lambda dataset: dataset[["v"]].stack(z=("t", "x")).reset_index("z").chunk(z=8),
        lambda dataset: dataset.chunk(t=-1, x=-1),
    )
    for change in changes:
        repository = Repository.create(icechunk.in_memory_storage())
        given = change(opened)
        to_icechunk(given, repository)
        session: Any = repository.readonly_session("main")
        xr.testing.assert_equal(xr.open_dataset(session, engine="icechunk").load(), given.load())
