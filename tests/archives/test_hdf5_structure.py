"""Groups, dimensions, links and attributes of HDF5 files, as xarray has them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5a, h5s, h5t

from icechunk.errors import InvalidInputError
from icechunk_dask.archives.hdf5 import open_hdf5
from tests.archives.hdf5_truth import check
from tests.archives.test_hdf5_scanner import create


def _write(dataset: xr.Dataset, path: Path, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.to_netcdf(path, engine="h5netcdf", **options)


def _weather(steps: int = 3, name: str = "t") -> xr.Dataset:
    values = np.arange(steps * 20, dtype="f4").reshape(steps, 4, 5)
    return xr.Dataset(
        {
            name: (("time", "lat", "lon"), values, {"units": "K", "coordinates": "height"}),
            "time_bounds": (("time", "nv"), np.arange(steps * 2.0).reshape(steps, 2)),
            "crs": ((), np.int32(0), {"grid_mapping_name": "latitude_longitude"}),
            "height": ((), 2.0),
        },
        {
            "time": (
                "time",
                np.arange(steps),
                {"units": "days since 2000-01-01", "bounds": "time_bounds"},
            ),
            "lat": np.linspace(-60, 60, 4),
            "lon": np.arange(5.0),
        },
        {"title": "Grüße", "version": 3, "levels": [1.0, 2.0]},
    )


# -- NetCDF4 ---------------------------------------------------------------------------
@pytest.mark.parametrize("unlimited", [[], ["time"]])
def test_netcdf4(tmp_path: Path, unlimited: list[str]) -> None:
    path = tmp_path / "a.nc"
    packed = {"dtype": "i2", "scale_factor": 0.5, "add_offset": 7.0, "_FillValue": -9999}
    _write(_weather(), path, unlimited_dims=unlimited, encoding={"t": {"zlib": True, **packed}})
    assert set(check(path).values()) == {"virtual"}


def test_groups(tmp_path: Path) -> None:
    """A name of a dimension has another length in each group, or is inherited."""
    path = tmp_path / "a.nc"
    _write(_weather(4), path)
    _write(_weather(12, "q"), path, group="data_20", mode="a")
    _write(_weather(2, "q").drop_vars(["lat", "lon"]), path, group="data_20/deep/er", mode="a")
    with h5py.File(path, "a") as file:
        group = file.create_group("inherits")
        group.attrs["of"] = "the root"
        made = group.create_dataset("u", data=np.zeros((4, 5), "f4"))
        for axis, name in enumerate(("lat", "lon")):
            made.dims[axis].attach_scale(file[name])
        file.create_group("empty/below")
    found = check(path)
    assert set(found.values()) == {"virtual"}
    assert {"t", "data_20/q", "data_20/deep/er/q", "inherits/u"} <= set(found)
    with open_hdf5(path, path.as_uri()) as dataset:
        assert set(dataset.groups) == {
            "", "data_20", "data_20/deep", "data_20/deep/er", "inherits", "empty", "empty/below",
        }  # fmt: skip
        assert dataset.variables["inherits/u"].dimensions == ("lat", "lon")


@pytest.mark.parametrize("track_order", [False, True])
def test_dimensions_without_scales(tmp_path: Path, track_order: bool) -> None:
    """The names are those that h5netcdf makes up, of each group by itself."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", track_order=track_order) as file:
        file["square"] = np.zeros((4, 4))
        file["long"] = np.zeros((4, 7, 4, 7, 4))
        file["scalar"] = 3.0
        file["x"] = np.arange(7)
        file["x"].make_scale("x")
        file["rows"] = np.zeros((7, 100))
        scaled = file.create_dataset("scaled", data=np.zeros(7))
        scaled.dims[0].attach_scale(file["x"])
        for name in ("b", "a", "a/in"):
            file[f"{name}/one"] = np.zeros((4, 9))
            file[f"{name}/two"] = np.zeros((7, 9))
    assert set(check(path).values()) == {"virtual"}


def test_odd_scales(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, length in (("x", 3), ("y", 4), ("z", 3)):
            file[name] = np.arange(length)
            only = "This is a netCDF dimension but not a netCDF variable. 3"
            file[name].make_scale(only if name == "z" else name)
        file["twice"] = np.zeros((3, 3))
        for scale in ("x", "z"):  # the last one counts
            file["twice"].dims[0].attach_scale(file[scale])
        file["twice"].dims[1].attach_scale(file["x"])
        file["again"] = file["y"]  # a second link to one dataset
        file["linked"] = np.zeros(4)
        file["linked"].dims[0].attach_scale(file["again"])
        for name in ("y", "z"):
            file[f"_nc4_non_coord_{name}"] = np.zeros(3)
            file[f"_nc4_non_coord_{name}"].dims[0].attach_scale(file["x"])
    found = check(path, xarray=False)
    # there is no other variable z
    assert found.pop("_nc4_non_coord_y") == "refused: its name is that of the variable 'y'"
    assert set(found.values()) == {"virtual"}
    with open_hdf5(path, path.as_uri()) as dataset:
        names = {name: one.dimensions for name, one in dataset.variables.items()}
    assert names["twice"] == ("z", "x")
    assert names["z"] == ("x",)
    assert names["linked"] == ("again",)


def test_scales_of_some_dimensions_only(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
        file["x"].make_scale("x")
        file["mixed"] = np.zeros((3, 4))
        file["mixed"].dims[0].attach_scale(file["x"])
        file["longer"] = np.zeros(5)
        file["longer"].dims[0].attach_scale(file["x"])
    assert check(path, xarray=False) == {
        "x": "virtual",
        "mixed": "refused: some of its dimensions have scales, and others have none",
        "longer": "refused: it has a length of 5 along 'x', whose length is 3",
    }


@pytest.mark.parametrize("fill", [None, -7])
@pytest.mark.parametrize("short", [0, 2, 3])
def test_variables_shorter_than_their_unlimited_dimension(
    tmp_path: Path, short: int, fill: int | None
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("time", data=np.arange(5), maxshape=(None,), chunks=(4,))
        file["time"].make_scale("time")
        for name, dtype, chunk in (("one", "f4", 1), ("two", ">i2", 2), ("bool", bool, 1)):
            made = file.create_dataset(
                name, (short, 3), dtype, maxshape=(None, 3), chunks=(chunk, 3),
                fillvalue=None if name == "bool" else fill,
            )  # fmt: skip
            made[...] = 5
            made.dims[0].attach_scale(file["time"])
            made.dims[1].attach_scale(file.require_dataset("x", 3, "f4"))
    found = check(path)
    shapes = f"it has the shape ({short}, 3), and its dimensions (5, 3)"
    assert found["one"] == "virtual"
    assert found["two"] == (f"by value: {shapes}" if short % 2 else "virtual")
    assert found["bool"] == f"refused: {shapes}"


def test_variables_longer_than_the_scale_of_their_unlimited_dimension(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("time", data=np.arange(2), maxshape=(None,), chunks=(1,))
        file["time"].make_scale("time")
        file.create_dataset("long", data=np.arange(5.0), maxshape=(None,), chunks=(2,))
        file["long"].dims[0].attach_scale(file["time"])
        file["phony"] = np.zeros((2, 5))
    assert set(check(path).values()) == {"virtual"}


def test_short_variables_that_are_not_filled(tmp_path: Path) -> None:
    """HDF5 reads zeros within the dataset, and h5netcdf fills up with the fill value."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("time", data=np.arange(5), maxshape=(None,), chunks=(4,))
        file["time"].make_scale("time")
        for fill in (0, 7):
            made = file.create_dataset(
                f"fill {fill}", (3,), "f4", maxshape=(None,), chunks=(1,), fillvalue=fill,
                fill_time="never",
            )  # fmt: skip
            made[0] = 5
            made.dims[0].attach_scale(file["time"])
    assert check(path) == {
        "time": "virtual",
        "fill 0": "virtual",
        "fill 7": "by value: it has the shape (3,), and its dimensions (5,)",
    }


def test_texts_along_two_dimensions(tmp_path: Path) -> None:
    """A coordinate whose first dimension has its name."""
    path = tmp_path / "a.nc"
    dataset = xr.Dataset(
        {"station": ("station", np.array(["ab", "cde"], "S3")), "v": ("station", [1.0, 2.0])}
    )
    _write(dataset, path)
    with h5py.File(path) as file:
        assert "_Netcdf4Coordinates" in file["station"].attrs or file["station"].ndim == 1
    assert set(check(path).values()) == {"virtual"}


def test_damaged_scales(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(3)
        for name in ("x", "deleted"):
            file.create_dataset(name, data=np.arange(3), maxshape=(None,))
            file[name].make_scale(name)
        for name, scale in (("gone", "x"), ("lost", "deleted")):
            file[name] = np.zeros(3)
            file[name].dims[0].attach_scale(file[scale])
        for name in ("numbers", "empty"):
            file[name] = np.zeros(3)
        file["numbers"].attrs["DIMENSION_LIST"] = np.arange(1)
        file["empty"].attrs["DIMENSION_LIST"] = h5py.Empty("f4")
        h5a.create(file["empty"].id, b"CLASS", h5t.UNIX_D32LE, h5s.create(h5s.SCALAR))
        file["y"] = np.arange(4)
        file["y"].make_scale("y")
        file["y"].attrs["_Netcdf4Dimid"] = np.arange(2)
        del file["gone"], file["deleted"]
    found = check(path, xarray=False)
    assert {name for name, one in found.items() if one == "virtual"} == {"plain", "x"}
    assert all(one.startswith(("virtual", "refused: ")) for one in found.values())


def test_groups_within_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        here = file["/"]
        for _ in range(1200):
            here = here.create_group("g")
        here["v"] = np.arange(3)
    with open_hdf5(path, path.as_uri()) as dataset:
        assert len(dataset.groups) == 1201
        assert list(dataset.variables) == ["g/" * 1200 + "v"]


# -- fill values -----------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["f4", ">f8", "i2", "u1"])
@pytest.mark.parametrize("declared", [None, 0, 7, 100])
@pytest.mark.parametrize("attribute", [None, 0, 7, 100])
def test_fill_of_hdf5_and_attribute(
    tmp_path: Path, dtype: str, declared: int | None, attribute: int | None
) -> None:
    """What is unwritten is the one, what is missing is the other."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "v", (4, 3), dtype, chunks=(1, 3), maxshape=(None, 3), fillvalue=declared
        )
        made[0], made[2] = (1, 2, 3), (0, 7, 100)
        if attribute is not None:
            made.attrs["_FillValue"] = np.array([attribute], dtype)
        made.attrs["scale_factor"] = 0.5
    assert check(path) == {"v": "virtual"}


def test_attributes_that_mask_oddly(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, value in {
            "vector": [1.0, 2.0],
            "text": "missing",
            "fraction": 0.5,
            "nan": np.nan,
        }.items():
            file[name] = np.arange(3, dtype="i2")
            file[name].attrs["_FillValue"] = value
        file["fine"] = np.arange(3, dtype="i2")
        file["fine"].attrs["_FillValue"] = 2.0
        file["fine"].attrs["missing_value"] = np.array([0, 1], "i2")
    found = check(path)
    assert found.pop("fine") == "virtual"
    for name, outcome in found.items():
        assert outcome.startswith("refused: its attribute '_FillValue' is "), name


def test_missing_texts(tmp_path: Path) -> None:
    """Bytes lose the attribute: `virtualize` looks whether that makes a difference."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, values, fill in (
            ("no zeros", [[b"a", b"b"], [b"c", b""]], np.bytes_(b"\0")),
            ("blanks", [[b"a", b" "], [b" ", b" "]], np.bytes_(b" ")),
            ("words", [b"ab", b"zz"], np.bytes_(b"zz")),
        ):
            file[name] = np.array(values)
            file[name].attrs["_FillValue"] = fill
        file.create_dataset("any", data=["a", "zz"], dtype=h5py.string_dtype())
        file["any"].attrs["_FillValue"] = "zz"
    assert check(path, lost={"_FillValue"}) == {
        "no zeros": "virtual",
        "blanks": "virtual",
        "words": "virtual",
        "any": "by value: texts of any length are stored apart from the chunks",
    }


# -- attributes ------------------------------------------------------------------------
def test_attributes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["v"] = np.arange(3)
        attrs = file["v"].attrs
        for name, value in {
            "text": "Grüße",
            "fixed": np.bytes_(b"fixed"),
            "one byte": np.bytes_(b"x"),
            "texts": np.array(["a", "bc"], "S2"),
            "grid of texts": np.array([["a", "bc"], ["d", "e"]], "S2"),
            "any texts": np.array(["a", "bc"], h5py.string_dtype()),
            "any text": np.array(["a"], h5py.string_dtype()),
            "number": 3,
            "big-endian": np.array([1, 2], ">i2"),
            "one": np.array([2.5]),
            "one row": np.array([[1, 2]]),
            "grid": np.arange(4).reshape(2, 2),
            "nan": np.nan,
            "bool": True,
            "bools": np.array([True, False]),
            "complex": 1 + 2j,
            "none": np.array([], "f4"),
            "empty": h5py.Empty("f4"),
            "empty text": h5py.Empty("S1"),
            "": "no name",
            "naïve": "name",
        }.items():
            attrs[name or "x"] = value
        file.attrs["title"] = "of the root"
    assert check(path) == {"v": "virtual"}


def _attribute(oid: Any, name: bytes, raw: bytes) -> None:
    tid = h5t.C_S1.copy()
    tid.set_size(len(raw))
    made = h5a.create(oid, name, tid, h5s.create(h5s.SCALAR))
    made.write(np.array(raw, f"S{len(raw)}"), mtype=tid)


def test_attributes_that_have_no_form_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for owner in (file, file.create_dataset("v", data=np.arange(3))):
            owner.attrs["reference"] = file.ref
            owner.attrs["references"] = np.array([file.ref, file.ref], h5py.ref_dtype)
            owner.attrs["opaque"] = np.void(b"abc")
            owner.attrs["record"] = np.array((1, 2.5), [("a", "i4"), ("b", "f8")])
            owner.attrs["ragged"] = np.array([np.arange(2), np.arange(3)], h5py.vlen_dtype("i4"))
            _attribute(owner.id, b"latin", "Zürich".encode("latin-1"))
            _attribute(owner.id, b"utf-8 called ASCII", "Zürich".encode())
            owner.attrs["long"] = np.longdouble(2.5)
    with open_hdf5(path, path.as_uri()) as dataset:
        for odd in (dataset.odd_attributes[""], dataset.variables["v"].odd_attributes):
            assert odd.keys() == {"reference", "references", "opaque"}
        for found in (dataset.groups[""], dataset.variables["v"].attributes):
            assert found == {
                "record": [1, 2.5],
                "ragged": [[0, 1], [0, 1, 2]],
                "latin": "Zürich",
                "utf-8 called ASCII": "Zürich",
                "long": 2.5,
            }
        assert dataset.variables["v"].document is not None


def test_attributes_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(3)
        for owner in (file, file.create_dataset("v", data=np.arange(3))):
            h5a.create(owner.id, b"when", h5t.UNIX_D32LE, h5s.create(h5s.SCALAR))
            owner.attrs["units"] = "K"
    found = check(path, xarray=False)
    assert found["plain"] == "virtual"
    assert found["v"].startswith("refused: its attribute 'when' cannot be read: ")


# -- links, and other files ------------------------------------------------------------
def test_links(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["group/v"] = np.arange(3.0)
        file["hard"] = file["group/v"]
        file["soft"] = h5py.SoftLink("/group/v")
        file["twice"] = h5py.SoftLink("group/relative")
        file["group/relative"] = h5py.SoftLink("v")
        file["group/circle"] = file["/"]
        file["a group"] = h5py.SoftLink("/group")
    assert check(path) == dict.fromkeys(
        ["group/v", "hard", "soft", "twice", "group/relative"], "virtual"
    )


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(3.0)
        file["dangling"] = h5py.SoftLink("/no/where")
        file["circle"] = h5py.SoftLink("circle")
        file["through"] = h5py.SoftLink("/plain/v")
        file["type"] = np.dtype("f4")
        file["to a type"] = h5py.SoftLink("/type")  # no values, as the type itself
    assert check(path, xarray=False) == {
        "plain": "virtual",
        "dangling": "refused: it is a link to '/no/where', which does not exist",
        "circle": "refused: it is a link that leads through more than 16 others",
        "through": "refused: it is a link to '/plain/v', which does not exist",
    }


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A file with values that must not be read."""
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    with h5py.File(secret / "secret.h5", "w") as file:
        file["v"] = np.full(10, 42.0, "f4")
        file["group/v"] = np.full(10, 42.0, "f4")
    (secret / "raw.bin").write_bytes(np.full(10, 42.0, "f4").tobytes())
    return secret


def _leads_outside(path: Path, elsewhere: Path) -> dict[str, str]:
    """Write a file whose values are elsewhere, and return how that is refused."""
    virtual = "refused: its values are in other files (a virtual dataset)"
    external = "refused: its values are in other files (external storage)"
    link = "refused: it is in another file (an external link)"
    secret = elsewhere / "secret.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(3.0)
        layout = h5py.VirtualLayout((10,), "f4")
        layout[:] = h5py.VirtualSource(secret, "v", (10,))
        file.create_virtual_dataset("vds", layout, fillvalue=-5)
        growing = h5py.VirtualLayout((10,), "f4", maxshape=(None,))
        source = h5py.VirtualSource(secret, "v", (10,), maxshape=(None,))
        growing[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("growing", growing)
        file.create_dataset("raw", (10,), "f4", external=[(str(elsewhere / "raw.bin"), 0, 40)])
        file["link"] = h5py.ExternalLink(secret, "/v")
        file["group link"] = h5py.ExternalLink(secret, "/group")
        file["soft"] = h5py.SoftLink("/group link/v")
    return {
        "plain": "virtual",
        "vds": virtual,
        "growing": virtual,
        "raw": external,
        "link": link,
        "group link": link,
        "soft": link,
    }


def test_values_in_other_files(tmp_path: Path, elsewhere: Path) -> None:
    path = tmp_path / "a.h5"
    expected = _leads_outside(path, elsewhere)
    before = _times(elsewhere)
    assert check(path, xarray=False) == expected
    assert _times(elsewhere) == before
    with open_hdf5(path, path.as_uri()) as dataset, pytest.raises(InvalidInputError, match="vds"):
        dataset.variables["vds"].read((slice(None),))


def test_other_files_are_not_opened(tmp_path: Path, elsewhere: Path) -> None:
    """They are folders: to open one as a file fails, and is refused in other words."""
    path = tmp_path / "a.h5"
    expected = _leads_outside(path, elsewhere)
    for one in list(elsewhere.iterdir()):
        one.unlink()
        one.mkdir()
    assert check(path, xarray=False) == expected


def _times(folder: Path) -> dict[str, int]:
    return {one.name: one.stat().st_atime_ns for one in folder.iterdir()}


def test_variables_that_are_dropped(tmp_path: Path, elsewhere: Path) -> None:
    path = tmp_path / "a.h5"
    expected = _leads_outside(path, elsewhere)
    dropped = set(expected) - {"plain"}
    with open_hdf5(path, path.as_uri(), drop_variables=dropped) as dataset:
        assert set(dataset.variables) == {"plain"}


# -- files -----------------------------------------------------------------------------
@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("block", [512, 4096])
def test_user_block(tmp_path: Path, block: int, libver: str) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=block, libver=libver) as file:
        for layout in ("compact", "contiguous", "chunked"):
            create(file, layout, "f4", (10,), layout=layout)[...] = np.arange(10)
        file.create_dataset("deflate", data=np.arange(50), chunks=(20,), compression="gzip")
    # h5netcdf looks for the signature at the start only
    assert set(check(path, xarray=False).values()) == {"virtual"}


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
def test_indexes_of_chunks(tmp_path: Path, libver: str) -> None:
    """Single chunk, implicit, fixed and extensible arrays, trees of both versions."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=libver) as file:
        for name, shape, limits, options in (
            ("single", (4, 4), (4, 4), {"chunks": (4, 4)}),
            ("single filtered", (4, 4), (4, 4), {"chunks": (4, 4), "compression": "gzip"}),
            ("fixed", (8, 4), (8, 4), {"chunks": (2, 3)}),
            ("fixed filtered", (8, 4), (8, 4), {"chunks": (2, 3), "compression": "gzip"}),
            ("one unlimited", (8, 4), (None, 4), {"chunks": (2, 3)}),
            ("two unlimited", (8, 4), (None, None), {"chunks": (2, 3), "compression": "gzip"}),
        ):
            for part in ("all", "part", "none"):
                made = file.create_dataset(
                    f"{name} {part}", shape, "f4", maxshape=limits, fillvalue=3, **options
                )
                if part == "all":
                    made[...] = np.arange(np.prod(shape)).reshape(shape)
                elif part == "part":
                    made[3, 1] = 9
        many = file.create_dataset("many", (300,), "i4", chunks=(1,), maxshape=(None,))
        many[::3] = np.arange(100)
        shrunk = file.create_dataset("shrunk", data=np.arange(20), chunks=(3,), maxshape=(None,))
        shrunk.resize((10,))
        shrunk.resize((14,))
    assert set(check(path).values()) == {"virtual"}


def test_places_beyond_the_end(tmp_path: Path) -> None:
    """What the file says is where its values are, and there is nothing."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(3)
        file["v"] = np.arange(10.0)
        place = file["v"].id.get_offset()
    content = path.read_bytes()
    for moved in (len(content) - 8, 1 << 40):
        assert content.count(place.to_bytes(8, "little")) == 1
        changed = content.replace(place.to_bytes(8, "little"), moved.to_bytes(8, "little"))
        path.write_bytes(changed)
        with open_hdf5(path, path.as_uri()) as dataset:
            assert dataset.variables["v"].refused
            assert not dataset.variables["plain"].refused


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    path.write_bytes(b"CDF\x01" + bytes(100))
    with (
        pytest.raises(InvalidInputError, match="cannot be opened as an HDF5 file"),
        open_hdf5(path, path.as_uri()),
    ):
        raise AssertionError
    with pytest.raises(FileNotFoundError), open_hdf5(tmp_path / "no.nc", "file:///no.nc"):
        raise AssertionError


def test_file_objects(tmp_path: Path, elsewhere: Path) -> None:
    path = tmp_path / "a.h5"
    expected = _leads_outside(path, elsewhere)
    with path.open("rb") as file, open_hdf5(file, path.as_uri()) as dataset:
        for name, one in dataset.variables.items():
            assert expected[name] == (f"refused: {one.refused}" if one.refused else "virtual")
        assert dataset.variables["plain"].read((slice(None),)).tolist() == [0, 1, 2]
