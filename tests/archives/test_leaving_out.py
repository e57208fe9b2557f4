"""What cannot be stored is named, with an argument that leaves it out, all at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from scipy.io import netcdf_file

from icechunk import InvalidInputError
from icechunk_dask import ingest, virtualize
from tests.archives.day_files import archived, content, together, write_days
from tests.archives.grib_files import message

#: Attributes that JSON has no form for, by what an error says of them.
_ODD: dict[str, Callable[[Any], None]] = {
    "is NaN": lambda node: node.attrs.create("odd", np.nan),
    "is -Infinity": lambda node: node.attrs.create("odd", np.asarray([1, -np.inf], "f4")),
    "is a reference": lambda node: node.attrs.create("odd", node.file.ref, dtype=h5py.ref_dtype),
    "is of an opaque type": lambda node: node.attrs.create("odd", np.void(b"abc")),
}


def _advice(error: pytest.ExceptionInfo[InvalidInputError], argument: str) -> list[str]:
    found = re.search(rf"{argument}=(\[.*?\])", str(error.value))
    return eval(found[1]) if found else []


@pytest.mark.parametrize("where", ["", "t", "inner", "inner/t"])
@pytest.mark.parametrize("kind", _ODD)
def test_attributes_that_json_has_no_form_for(kind: str, where: str, tmp_path: Path) -> None:
    path = write_days(tmp_path / "a.nc", 0, group="inner", own=1)
    expected = content(path, "inner")
    with h5py.File(path, "a") as file:
        _ODD[kind](file[where or "/"])
        file["t"].attrs["kept"] = file.attrs["kept"] = 1
    with pytest.raises(InvalidInputError, match=f"attribute 'odd' {kind}") as caught:
        virtualize([path], tmp_path / "repo", scheduler="sync")
    advice = _advice(caught, "drop_attributes")
    assert advice == [f"{where}:odd"]
    for number, names in enumerate((advice, ["odd"], [f"/{where}:odd"])):
        folder = tmp_path / f"repo{number}"
        report = virtualize([path], folder, drop_attributes=names, scheduler="sync")
        xr.testing.assert_identical(archived(folder, report, "inner"), expected)
        ours = archived(folder, report)
        assert "odd" not in ours.attrs and ours.attrs["kept"] == ours["t"].attrs["kept"] == 1


def _broken(file: h5py.File) -> tuple[set[str], set[str]]:
    """Put all kinds of things into a file; return variables and attributes to leave out."""
    file["dangling"] = h5py.SoftLink("/nowhere")
    file["inner/elsewhere"] = h5py.ExternalLink("other.h5", "/v")
    file["zarr.json"] = np.arange(3)
    file.create_dataset("ragged", (2,), dtype=h5py.vlen_dtype("i4"))
    file["lat"].attrs["odd"] = np.nan
    file["inner/t"].attrs["valid_range"] = np.asarray([0, np.inf])
    file["t"].attrs["_FillValue"] = "none"
    file.attrs["odd"] = np.nan
    return {"dangling", "inner/elsewhere", "zarr.json", "ragged"}, {
        "lat:odd",
        "inner/t:valid_range",
        "t:_FillValue",
        ":odd",
    }


@pytest.mark.parametrize("options", [{}, {"coordinates": ()}], ids=["by value", "virtual"])
def test_all_is_named_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, group="inner", own=1) for i in range(2)]
    expected = {g: together([content(path, g) for path in files]) for g in (None, "inner")}
    for path in files:
        with h5py.File(path, "a") as file:
            variables, attributes = _broken(file)
    options["scheduler"] = "sync"
    with pytest.raises(InvalidInputError) as caught:
        virtualize(files, tmp_path / "repo", **options)
    dropped = _advice(caught, "drop_variables"), _advice(caught, "drop_attributes")
    assert (set(dropped[0]), set(dropped[1])) == (variables, attributes)
    report = virtualize(
        files,
        tmp_path / "repo",
        drop_variables=dropped[0],
        drop_attributes=dropped[1],
        **options,
    )
    report.raise_for_failures()
    for group, truth in expected.items():
        xr.testing.assert_identical(archived(tmp_path / "repo", report, group), truth)


def test_a_scalar_named_as_a_dimension(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with netcdf_file(path, "w") as file:
        file.createDimension("x", 4)
        file.createVariable("x", "f4", ())
        file.createVariable("v", "f4", ("x",))
    with pytest.raises(ValueError, match="already exists as a scalar variable"):
        xr.open_dataset(path, engine="scipy")
    with pytest.raises(InvalidInputError, match=r"'x'.*a scalar with the name of a dim") as caught:
        virtualize([path], tmp_path / "repo", scheduler="sync")
    dropped = _advice(caught, "drop_variables")
    report = virtualize([path], tmp_path / "repo", drop_variables=dropped, scheduler="sync")
    assert archived(tmp_path / "repo", report)["v"].dims == ("x",)


def test_scalars_that_are_referred_to(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    for path in files:
        with h5py.File(path, "a") as file:
            file["scalar"] = 3.5
    report = virtualize(files, tmp_path / "repo", coordinates=(), scheduler="sync")
    assert report.variables["scalar"].virtual == 1
    assert archived(tmp_path / "repo", report)["scalar"] == 3.5


def _with(path: Path, first: int, *names: str) -> Path:
    write_days(path, first)
    with h5py.File(path, "a") as file:
        for name in names:
            file[name] = file["t"][...] + 100
            for i, dim in enumerate(("time", "lat")):
                file[name].dims[i].attach_scale(file[dim])
    return path


@pytest.mark.parametrize("mode", ["error", "materialize"])
@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize("names", [("v",), ("u", "v")])
@pytest.mark.parametrize("has", [0, 1])
def test_advice_about_variables_of_some_files(
    mode: str, appended: bool, names: Sequence[str], has: int, tmp_path: Path
) -> None:
    files = [_with(tmp_path / f"{i}.nc", 4 * i, *(names if i == has else ())) for i in range(2)]
    options: dict[str, Any] = {"scheduler": "sync", "on_mismatch": mode}
    if appended:
        virtualize(files[:1], tmp_path / "repo", **options)
    with pytest.raises(InvalidInputError, match="only") as caught:
        virtualize(files, tmp_path / "repo", **options)
    assert "materialize" not in str(caught.value)
    advice = _advice(caught, "drop_variables")
    # the archive has them already, and keeps them
    assert advice == ([] if appended and not has else list(names))
    if advice:
        report = virtualize(files, tmp_path / "repo", drop_variables=advice, **options)
        expected = together([content(path).drop_vars(names, errors="ignore") for path in files])
        xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    assert "on_mismatch='skip'" in str(caught.value)
    report = virtualize(files, tmp_path / "skipping", **{**options, "on_mismatch": "skip"})
    assert report.skipped.keys() == {str(files[1])}


def test_no_advice_to_leave_out_what_tells_files_apart(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    with h5py.File(files[1], "a") as file:
        file["lat"][...] += 1
    with pytest.raises(InvalidInputError, match="lat: has other values") as caught:
        virtualize(files, tmp_path / "repo", scheduler="sync")
    assert "drop_variables" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("scale_factor", 2.0, None),
        ("scale_factor", None, 2.0),
        ("add_offset", 1.0, 2.0),
        ("_FillValue", 1.0, 2.0),
        ("units", "m", "km"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"coordinates": ()}], ids=["by value", "virtual"])
@pytest.mark.parametrize("appended", [False, True])
def test_what_all_files_have_means_the_same(
    appended: bool, options: dict[str, Any], name: str, first: Any, second: Any, tmp_path: Path
) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    for path, value in zip(files, (first, second), strict=True):
        with h5py.File(path, "a") as file:
            file["k"] = np.arange(3.0)
            if value is not None:
                file["k"].attrs[name] = value
    for mode in ("error", "materialize"):
        folder = tmp_path / mode
        given = {**options, "on_mismatch": mode, "scheduler": "sync"}
        if appended:
            virtualize(files[:1], folder, **given)
        with pytest.raises(InvalidInputError, match=f"k: its attribute '{name}' is "):
            virtualize(files, folder, **given)


def test_advice_where_some_of_it_can_be_written(tmp_path: Path) -> None:
    files = [_with(tmp_path / "0.nc", 0), _with(tmp_path / "1.nc", 4, "v")]
    with h5py.File(files[1], "a") as file:
        file["t"].attrs["scale_factor"] = 2.0
    with pytest.raises(InvalidInputError, match="with on_mismatch='materialize'") as caught:
        virtualize(files, tmp_path / "repo", scheduler="sync")
    report = virtualize(
        files,
        tmp_path / "repo",
        drop_variables=_advice(caught, "drop_variables"),
        on_mismatch="materialize",
        scheduler="sync",
    )
    expected = together([content(path).drop_vars("v", errors="ignore") for path in files])
    xr.testing.assert_allclose(archived(tmp_path / "repo", report)["t"], expected["t"])


def test_attributes_of_grib(tmp_path: Path) -> None:
    path = tmp_path / "a.grib"
    path.write_bytes(message())
    report = virtualize(
        [path],
        tmp_path / "repo",
        expand_dims=["time"],
        drop_attributes=["GRIB_cfName", "t:units"],
        scheduler="sync",
    )
    ours = archived(tmp_path / "repo", report)["t"]
    assert {"GRIB_cfName", "units"}.isdisjoint(ours.attrs) and "GRIB_units" in ours.attrs


# -- names that no file has ------------------------------------------------------------------
#: Arguments with names that are there, as paths too, and one that is not.
_NAMES: dict[str, tuple[Any, str, str]] = {
    "drop_variables": (["lat", "inner/t", "latt"], "latt", "'lat'|'t'"),
    "drop_attributes": ([":title", "t:long_name", "inner:note", "untis"], "untis", "'units'"),
    "loadable": (["t", "inner/t", "tt"], "tt", "'t'"),
    "coordinates": (["lat", "inner/time", "tmie"], "tmie", "'time'"),
    "rename": ({"lat": "y", "inner/t": "u", "tmie": "when"}, "tmie", "'time'"),
}  # fmt: skip


def _odd_days(path: Path, first: int) -> Path:
    write_days(path, first, group="inner", own=1, attributes={"long_name": "n"})
    with h5py.File(path, "a") as file:
        file.attrs["title"] = "a"
        file["inner"].attrs["note"] = "b"
    return path


@pytest.mark.parametrize("call", [virtualize, ingest])
@pytest.mark.parametrize("argument", _NAMES)
def test_names_that_no_file_has(argument: str, call: Any, tmp_path: Path) -> None:
    """They may be misspelt, which the report says; `rename` would lose them for good."""
    if call is ingest and argument in ("loadable", "coordinates"):
        return
    given, misspelt, near = _NAMES[argument]
    files = [_odd_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    said = rf"^{argument} names '{misspelt}', and no file has it; did you mean .*({near})"
    options: dict[str, Any] = {"isolate": False, "executor": "sync"}
    if argument == "rename":
        with pytest.raises(InvalidInputError, match=said):
            call(files[:2], tmp_path / "repo", rename=given, **options)
        given = {old: new for old, new in given.items() if old != misspelt}
    report = call(files[:2], tmp_path / "repo", **{argument: given}, **options)
    told = report.unmet
    if argument != "rename":
        assert len(told) == 1 and re.match(said, told[0])
        assert told[0] in repr(report) and report.to_dict()["unmet"] == list(told)
        assert misspelt in report._repr_html_()
    if call is virtualize:
        # later files need not have any of it, and one that has is enough
        with h5py.File(files[2], "a") as file:
            file["t"].attrs[misspelt] = 1
            if argument == "drop_variables":
                file[misspelt] = np.zeros(3)
                file[misspelt].dims[0].attach_scale(file["lat"])
        report = call(files, tmp_path / "repo", **{argument: given}, **options)
        found = argument in ("drop_variables", "drop_attributes", "rename")
        assert report.added == (str(files[2]),) and bool(report.unmet) != found


def test_names_that_some_messages_have(tmp_path: Path) -> None:
    path = tmp_path / "a.grib2"
    path.write_bytes(message(shortName="2t") + message(shortName="sp"))
    options: dict[str, Any] = {"concat_dims": "time", "isolate": False, "executor": "sync"}
    dropped = ["sp", "sq", "GRIB_name", "GRIB_nome"]
    report = virtualize(
        path, tmp_path / "repo", drop_variables=dropped[:2], drop_attributes=dropped[2:], **options
    )
    assert [each.split("'")[1] for each in report.unmet] == ["GRIB_nome", "sq"]
