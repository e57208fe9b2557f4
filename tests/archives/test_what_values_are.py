"""What attributes and dimensions say of values: as xarray reads it, or refused by name."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError, MemoryStorage
from icechunk_dask import virtualize
from tests.archives.day_files import archived, content, together

QUIET: Any = {"scheduler": "sync", "isolate": False, "progress": False}


def write(path: Path, day: int = 0, **variables: Any) -> Path:
    """Write a file of two days with more variables: values and attributes.

    Their first dimension is ``time`` if they have two values, else ``place``.
    """
    with h5py.File(path, "w") as file:
        time = file.create_dataset("time", data=np.arange(2) + 2 * day, maxshape=(None,))
        time.attrs["units"] = "days since 2000-01-01"
        file["number"] = np.zeros(3)
        for name in ("time", "place"):
            if name == "place":
                file["place"] = np.arange(3)
            file[name].make_scale(name)
        file["number"].dims[0].attach_scale(file["place"])
        for name, (values, attributes) in variables.items():
            data = np.asarray(values)
            first = file["time" if len(data) == 2 else "place"]
            rest = (None,) if first.name == "/time" else (3,)
            text = h5py.string_dtype() if data.dtype.kind == "O" else None
            shape = (*rest, *data.shape[1:])
            made = file.create_dataset(
                name, data=data, dtype=text, maxshape=shape, chunks=data.shape
            )
            made.attrs.update(attributes)
            made.dims[0].attach_scale(first)
            for axis, length in enumerate(data.shape[1:], 1):
                width = file.require_dataset(f"width {length}", (length,), "f4")
                only = f"This is a netCDF dimension but not a netCDF variable. {length:9}"
                width.make_scale(only)
                made.dims[axis].attach_scale(width)
    return path


# -- one file ----------------------------------------------------------------------------
MARKS: dict[str, tuple[Any, str, bytes, bool]] = {
    # characters along a dimension that numbers have too are no texts
    "single": ([b"a", b" ", b"c"], "_FillValue", b" ", True),
    "single, none": ([b"a", b"b", b"c"], "_FillValue", b" ", False),
    "single, the other mark": ([b"a", b"x", b"c"], "missing_value", b"x", True),
    "texts that end with it": ([[b"a", b" "]] * 3, "_FillValue", b" ", False),
    "texts of one character": ([[b"a"], [b" "], [b"c"]], "_FillValue", b" ", True),
    "empty texts": ([[b"a", b"b"], [b"", b""], [b"c", b""]], "missing_value", b"\0", True),
}


@pytest.mark.parametrize("case", MARKS)
def test_missing_bytes(tmp_path: Path, case: str) -> None:
    values, mark, byte, masks = MARKS[case]
    path = write(tmp_path / "a.nc", v=(np.array(values), {mark: np.bytes_(byte)}))
    truth = content(path)
    assert masks == any(value != value for value in truth["v"].values.ravel().tolist())
    storage = MemoryStorage()
    if masks:
        with pytest.raises(InvalidInputError, match=rf"{mark}' equals .*=\['v:{mark}'\]"):
            virtualize([path], storage, **QUIET)
        report = virtualize([path], storage, drop_attributes=[f"v:{mark}"], **QUIET)
        truth = content(path, decode_cf=False)
    else:
        report = virtualize([path], storage, **QUIET)
    got = archived(storage, report)["v"].values
    np.testing.assert_array_equal(got.ravel().tolist(), texts(truth["v"], got.shape))


def texts(variable: xr.DataArray, shape: tuple[int, ...]) -> list[bytes]:
    """Return characters, joined if that gives the shape."""
    values = variable.values
    if values.shape != shape:
        values = np.ascontiguousarray(values).view(f"S{values.shape[-1]}")
    return [bytes(value) for value in values.ravel().tolist()]


def test_fill_values_of_bytes_taken_for_others(tmp_path: Path) -> None:
    cases = list(
        product(
            ("i1", "u1", "i2"),
            (np.uint8(255), np.int8(-1), np.int16(7), np.uint16(65535)),
            ("true", "false", None),
        )
    )
    variables = {}
    for number, (dtype, fill, unsigned) in enumerate(cases):
        attributes = {"_FillValue": fill, **({"_Unsigned": unsigned} if unsigned else {})}
        variables[f"v{number}"] = np.array([-1, 7, 3], "i8").astype(dtype), attributes
    path = write(tmp_path / "a.nc", **variables)
    storage = MemoryStorage()
    found = archived(storage, virtualize([path], storage, **QUIET))
    for name, variable in content(path, decode_cf=False).variables.items():
        try:
            truth = xr.conventions.decode_cf_variable(name, variable)
        except (OverflowError, ValueError):
            continue
        assert found[name].dtype == truth.dtype, cases[int(str(name)[1:])]
        np.testing.assert_array_equal(found[name], truth)


@pytest.mark.parametrize("name", ["a\\b", "..", "g\\h/x", "g/../x"])
def test_names_that_zarr_does_not_have(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.nc")
    with h5py.File(path, "a") as file:
        group: Any = file
        for part in name.split("/")[:-1]:
            group = h5py.Group(h5py.h5g.create(group.id, part.encode()))
        space = h5py.h5s.create_simple((3,))
        last = name.rpartition("/")[2].encode()
        h5py.h5d.create(group.id, last, h5py.h5t.NATIVE_INT32, space)
    storage = MemoryStorage()
    with pytest.raises(InvalidInputError, match=r"cannot be stored: .* name") as caught:
        virtualize([path], storage, **QUIET)
    assert f"drop_variables=[{name!r}]" in str(caught.value)


@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("kind", ["characters", "fixed", "any", "with a fill value"])
def test_texts_shorter_than_an_unlimited_dimension(tmp_path: Path, kind: str, short: int) -> None:
    """NetCDF fills them up."""
    values: Any = {"characters": [[b"a", b"b"]] * 2, "any": np.array(["ab", "cd"], object)}
    data = np.array(values.get(kind, [b"ab", b"cd"]))
    path = write(tmp_path / "a.nc", v=(data, {}))
    with h5py.File(path, "a") as file:
        if kind == "with a fill value":
            axes = file["v"].dims[0][0]
            del file["v"]
            made = file.create_dataset("v", (2,), "S2", maxshape=(None,), fillvalue=b"zz")
            made[...] = data
            made.dims[0].attach_scale(axes)
        file["v"].resize(short, axis=0)
    storage = MemoryStorage()
    found = archived(storage, virtualize([path], storage, **QUIET))["v"].values
    filled: Any = {"any": "", "with a fill value": b"zz"}.get(kind, b"")
    written: Any = "ab" if kind == "any" else b"ab"
    assert found.tolist() == [*[written] * short, *[filled] * (2 - short)]


# -- several files -----------------------------------------------------------------------
FLAGS = {"flag_values": np.array([0, 1], "i1"), "flag_meanings": "good bad"}
Variable = tuple[Any, dict[str, Any]]
DIFFER: dict[str, tuple[Variable, Variable, str]] = {
    "bool, and not": (([0, 1], {"dtype": "bool"}), ([0, 1], {}), "'dtype' is None"),
    "not, and bool": (([0, 2], {}), ([0, 1], {"dtype": "bool"}), "'dtype' is 'bool'"),
    "durations": (
        ([0, 2], {"units": "days"}),
        ([0, 2], {"units": "days", "dtype": "timedelta64[ns]"}),
        "'dtype' is 'timedelta64",
    ),
    "encodings": (
        (np.array([[b"a"], [b"b"]]), {"_Encoding": "utf-8"}),
        (np.array([[b"a"], [b"\xfc"]]), {"_Encoding": "latin-1"}),
        "'_Encoding' is 'latin-1'",
    ),
    "no encoding": (
        (np.array([[b"a"], [b"b"]]), {"_Encoding": "utf-8"}),
        (np.array([[b"a"], [b"b"]]), {}),
        "'_Encoding' is None",
    ),
    "flags": (([0, 1], FLAGS), ([0, 1], {**FLAGS, "flag_meanings": "bad good"}), "'bad good'"),
    "flag values": (
        ([0, 1], FLAGS),
        ([0, 1], {**FLAGS, "flag_values": np.array([1, 0], "i1")}),
        r"'flag_values' is \[1, 0\]",
    ),
    "another projection": (
        ([0, 1], {"grid_mapping_name": "transverse_mercator", "false_easting": 5e5}),
        ([0, 1], {"grid_mapping_name": "transverse_mercator", "false_easting": 0.0}),
        "'false_easting' is 0.0",
    ),
    "longer texts": (
        (np.array([b"ab", b"c"]), {}),
        (np.array([b"abc", b"c"]), {}),
        "have up to 3 bytes, those of the others 2",
    ),
}


@pytest.mark.parametrize("case", DIFFER)
def test_files_that_say_other_things_of_their_values(tmp_path: Path, case: str) -> None:
    first, second, expected = DIFFER[case]
    files = [write(tmp_path / f"{i}.nc", i, v=v) for i, v in enumerate((first, second, first))]
    for path in files:
        # they are values of the archive, and not read
        with h5py.File(path, "a") as file:
            file.create_dataset("big", (2, 999), "i1")
    storage = MemoryStorage()
    with pytest.raises(InvalidInputError, match=rf"1\.nc: v: .*{expected}") as caught:
        virtualize(files, storage, **QUIET)
    said = str(caught.value)
    report = virtualize(files, storage, on_mismatch="skip", **QUIET)
    assert list(report.skipped) == [str(files[1])]
    advised = {name for name in ("drop_attributes", "materialize") if name in said}
    if "drop_attributes" in advised:
        dropped = [f"v:{name}" for name in {*first[1], *second[1]} - {"grid_mapping_name"}]
        report = virtualize(files, MemoryStorage(), drop_attributes=dropped, **QUIET)
        assert len(report.added) == 3
        with pytest.raises(InvalidInputError, match=r"1\.nc: v: ") as caught:
            # what the archive says stays
            virtualize(files, storage, **QUIET)
        assert "drop_attributes" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"units": "days since 2000-01-01"}, {"units": "days since 2000-1-1 00:00:00"}),
        ({"units": "hours since 2000-01-01Z"}, {"units": "hours since 2000-01-01T06:00 +6:00"}),
        ({"units": "days since 2000-01-01", "calendar": "standard"},
         {"units": "days since 2000-01-01", "calendar": "Gregorian"}),
        ({"units": "days since 2000-01-01"},
         {"units": "day since 2000-01-01", "calendar": "standard"}),
        ({"units": "days since 0001-01-01", "calendar": "noleap"},
         {"units": "days since 1-1-1", "calendar": "365_day"}),
    ],
)  # fmt: skip
def test_times_in_other_words(
    tmp_path: Path, first: dict[str, str], second: dict[str, str]
) -> None:
    values = np.arange(6.0).reshape(3, 2, 1) + np.zeros(999)
    files = [
        write(tmp_path / f"{i}.nc", i, v=(values[i], attributes))
        for i, attributes in enumerate((first, second, first))
    ]
    storage = MemoryStorage()
    report = virtualize(files, storage, **QUIET)
    assert report.variables["v"].virtual == 3
    truth = together([content(path) for path in files])
    np.testing.assert_array_equal(archived(storage, report)["v"], truth["v"])


@pytest.mark.parametrize("calendar", ["standard", "noleap"])
def test_coordinates_with_missing_labels(tmp_path: Path, calendar: str) -> None:
    """The others say where files lie."""
    files = [write(tmp_path / f"{'cab'[i]}.nc", i, v=([i, i], {})) for i in range(3)]
    for number, path in enumerate(files):
        with h5py.File(path, "a") as file:
            days = file["time"][...].astype("f8")
            if number:
                days[1] = -1
            del file["time"]
            time = file.create_dataset("time", data=days, maxshape=(None,))
            time.attrs.update(units="days since 2000-01-01", calendar=calendar, _FillValue=-1.0)
            time.make_scale("time")
            file["v"].dims[0].attach_scale(time)
    storage = MemoryStorage()
    report = virtualize(files[:2], storage, **QUIET)
    report = virtualize(files, storage, **QUIET)
    found, truth = archived(storage, report), together([content(path) for path in files])
    np.testing.assert_array_equal(found["v"], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(found["time"].isnull(), truth["time"].isnull())
    known = ~truth["time"].isnull().values
    np.testing.assert_array_equal(found["time"][known], truth["time"][known])
    if calendar != "standard":
        return
    with h5py.File(files[1], "a") as file:
        file["time"][...] = -1
    with pytest.raises(InvalidInputError, match="'time' has no value that is not missing"):
        virtualize(files[1:2], MemoryStorage(), **QUIET)


def test_what_files_do_not_agree_about_can_be_left_out(tmp_path: Path) -> None:
    """But for coordinates: files of other places are not put together."""
    files = [
        write(tmp_path / f"{i}.nc", i, area=([1, 2, i], {}), v=(np.full((2, 3), i), {}))
        for i in range(3)
    ]
    storage = MemoryStorage()
    with pytest.raises(InvalidInputError, match=r"area: has other (.|\n)*drop_.*=\['area'\]"):
        virtualize(files, storage, **QUIET)
    report = virtualize(files, storage, drop_variables=["area"], **QUIET)
    assert len(report.added) == 3
    for path in files:
        with h5py.File(path, "a") as file:
            file["v"].attrs["coordinates"] = "area"
    with pytest.raises(InvalidInputError, match=r"area: has other values") as caught:
        virtualize(files, MemoryStorage(), **QUIET)
    assert "drop_variables" not in str(caught.value)


@pytest.mark.parametrize("scalar", [True, False])
def test_files_that_are_steps_of_a_new_dimension(tmp_path: Path, scalar: bool) -> None:
    """A scalar of the file labels it, with its bounds; files without one are told by URLs."""
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.nc")
        dataset = xr.Dataset(
            {"v": (("y", "x"), np.arange(6.0).reshape(2, 3) + i), "crs": 5}, {"x": np.arange(3)}
        )
        if scalar:
            dataset = dataset.assign_coords(step=2.5 + i)
            dataset["step"].attrs["bounds"] = "limits"
            dataset["limits"] = "two", [2.0 + i, 3.0 + i]
        dataset.to_netcdf(files[-1], engine="h5netcdf")
    storage = MemoryStorage()
    with pytest.raises(InvalidInputError, match=r"expand_dims=\['step'\]"):
        virtualize(files, storage, concat_dims="step", **QUIET)
    for some in (files[:2], files):
        report = virtualize(some, storage, expand_dims="step", concat_dims=(), **QUIET)
    ours = archived(storage, report)
    parts = [content(path) for path in files]
    for part in parts:
        for name in {"v", "limits"} & {*part}:
            part[name] = part[name].expand_dims("step")
    truth = xr.concat(parts, "step", data_vars="minimal", coords="minimal", compat="equals")
    assert ours["v"].dims == ("step", "y", "x") and not ours["crs"].dims
    xr.testing.assert_equal(ours, truth)


def test_texts_of_other_widths(tmp_path: Path) -> None:
    words = [b"abcd", b"a"], [b"ab", b"c"], [b"abc", b"c"]
    files = [write(tmp_path / f"{i}.nc", i, v=(np.array(v), {})) for i, v in enumerate(words)]
    storage = MemoryStorage()
    report = virtualize(files, storage, **QUIET)
    found = archived(storage, report)
    truth = together([content(path) for path in files])
    assert found["v"].dtype == "S4"
    np.testing.assert_array_equal(found["v"], truth["v"])
