"""What references mean for netCDF: fill values, dimensions of groups, bytes of a chunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from kerchunk.hdf import SingleHdf5ToZarr

from icechunk import InvalidInputError
from icechunk.kerchunk import import_references
from tests.kerchunk.base import array_refs, repository


def opened(refs: Any, folder: Path, group: str | None = None, **options: Any) -> xr.Dataset:
    session = repository(folder).writable_session("main")
    import_references(refs, session, **options)
    return xr.open_dataset(session.store, engine="zarr", consolidated=False, group=group).load()


def scanned(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = SingleHdf5ToZarr(str(path), inline_threshold=0).translate()
    return found


@pytest.mark.parametrize("kind", ["i2", "u1", "f4", "f8"])
def test_both_kinds_of_files_in_one(tmp_path: Path, kind: str) -> None:
    """A zero is a value where nothing says more; what a file calls missing is masked."""
    path = tmp_path / "file.h5"
    values = np.array([0, 1, 2, 9], kind)
    with h5py.File(path, "w") as file:
        file.create_dataset("plain", data=values, chunks=(2,))
        file.create_dataset("masked", data=values, chunks=(2,), fillvalue=9)
        file["masked"].attrs["_FillValue"] = np.array([9], kind)
    ours = opened(scanned(path), tmp_path)
    assert ours["plain"].dtype == kind
    assert ours["plain"].values.tolist() == [0, 1, 2, 9]
    assert np.array_equal(ours["masked"].values, [0, 1, 2, np.nan], equal_nan=True)
    # and as the caller says
    zeros = opened(scanned(path), tmp_path, mask_fill_value=True)["plain"].values
    assert np.array_equal(zeros, [np.nan, 1, 2, 9], equal_nan=True)
    assert opened(scanned(path), tmp_path, mask_fill_value=False)["masked"].dtype == kind


def named(dims: dict[str, tuple[list[str], tuple[int, ...]]]) -> dict[str, Any]:
    """References to arrays with these dimensions and lengths."""
    refs: dict[str, Any] = {}
    for path, (names, shape) in dims.items():
        refs |= array_refs({}, shape, shape, path, {"_ARRAY_DIMENSIONS": names})
    return refs


def names_of(refs: Any, folder: Path) -> dict[str, tuple[str, ...]]:
    session = repository(folder).writable_session("main")
    import_references(refs, session)
    found = {}
    for key in refs:
        if key.endswith("/.zarray"):
            path = key.removesuffix("/.zarray")
            found[path] = zarr.open_array(session.store, path=path, mode="r").metadata
    return {path: metadata.dimension_names for path, metadata in found.items()}


NAMES: dict[
    str, tuple[dict[str, tuple[list[str], tuple[int, ...]]], dict[str, tuple[str, ...]]]
] = {
    "groups": (
        {
            "x": (["x"], (2,)),
            "g/x": (["g/x"], (3,)),
            "g/v": (["g/x", "g/y"], (3, 4)),
            "g/h/w": (["g/h/z", "g/y"], (5, 4)),
        },
        {"x": ("x",), "g/x": ("x",), "g/v": ("x", "y"), "g/h/w": ("z", "y")},
    ),
    "with a slash before": ({"g/v": (["/g/x"], (3,))}, {"g/v": ("x",)}),
    "of another group": ({"g/v": (["h/x"], (3,))}, {"g/v": ("h/x",)}),
    "of a group that begins alike": ({"gg/v": (["g/x"], (3,))}, {"gg/v": ("g/x",)}),
    "two lengths": (
        {"g/u": (["x"], (2,)), "g/v": (["g/x"], (3,))},
        {"g/u": ("x",), "g/v": ("g/x",)},
    ),
    "two of one name": ({"g/v": (["x", "g/x"], (3, 3))}, {"g/v": ("x", "g/x")}),
    "nameless": (
        {
            "a": (["phony_dim_0"], (5,)),
            "b": (["phony_dim_0", "phony_dim_1"], (7, 5)),
            "c": (["phony_dim_0", "phony_dim_1"], (5, 5)),
            "d": (["t", "phony_dim_1"], (3, 7)),
        },
        {
            "a": ("phony_dim_0",),
            "b": ("phony_dim_1", "phony_dim_0"),
            "c": ("phony_dim_0", "phony_dim_2"),
            "d": ("t", "phony_dim_1"),
        },
    ),
    "nameless, of one length": (
        {"a": (["phony_dim_3"], (5,)), "b": (["phony_dim_4"], (5,))},
        {"a": ("phony_dim_3",), "b": ("phony_dim_4",)},
    ),
    "nameless in groups": (
        {
            "a": (["phony_dim_0"], (5,)),
            "g/a": (["phony_dim_0"], (6,)),
            "g/b": (["phony_dim_0"], (7,)),
        },
        {"a": ("phony_dim_0",), "g/a": ("phony_dim_0",), "g/b": ("phony_dim_1",)},
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_dimensions(tmp_path: Path, case: str) -> None:
    given, expected = NAMES[case]
    assert names_of(named(given), tmp_path) == expected


def test_files_with_nameless_dimensions_and_groups_open(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        for group in ("", "g/"):
            file[f"{group}a"] = np.arange(100)
            file[f"{group}b"] = np.arange(50)
        file["g/x"] = np.arange(3.0)
        file["g/x"].make_scale("x")
        file["g/v"] = np.arange(3)
        file["g/v"].dims[0].attach_scale(file["g/x"])
    for group in (None, "g"):
        ours = opened(scanned(path), tmp_path, group)
        assert ours["a"].values.tolist() == list(range(100))
        assert ours["b"].values.tolist() == list(range(50))
    assert ours["v"].dims == ("x",) and ours.indexes["x"].tolist() == [0, 1, 2]


LENGTHS: dict[str, tuple[dict[str, Any], int | None]] = {
    "i4": ({"dtype": "<i4"}, 24),
    "big-endian": ({"dtype": ">f8"}, 48),
    "f order": ({"dtype": "<i2", "order": "F"}, 12),
    "bytes": ({"dtype": "|S3", "fill_value": ""}, 18),
    "times": ({"dtype": "<M8[s]", "fill_value": None}, 48),
    "compressed": ({"compressor": {"id": "zlib", "level": 1}}, None),
    "filtered": ({"filters": [{"id": "fletcher32"}]}, None),
}


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("case", LENGTHS)
def test_bytes_of_a_chunk(tmp_path: Path, case: str, inline: bool) -> None:
    document, exact = LENGTHS[case]
    (tmp_path / "f").write_bytes(bytes(100))
    for length in (1, 23, 24, 25, 12, 18, 48, 60):
        chunk = "x" * length if inline else [f"{tmp_path}/f", 0, length]
        refs = array_refs({"0.1": chunk}, (2, 6), (2, 3), **document)
        session = repository(tmp_path).writable_session("main")
        if exact in (None, length):
            # zeros are nothing that was compressed
            import_references(refs, session, verify="none" if exact is None else "sample")
            continue
        told = rf"'a/0\.1': the chunk has {length} bytes.*{exact}"
        with pytest.raises(InvalidInputError, match=told):
            import_references(refs, session)
        assert not session.has_uncommitted_changes


def test_bytes_of_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(23))
    refs = array_refs({"0": [f"{tmp_path}/f"]}, (6,), (6,))
    with pytest.raises(InvalidInputError, match=r"'a/0': the chunk has 23 bytes.*24"):
        import_references(refs, repository(tmp_path).writable_session("main"))


def test_zarr_version_3(tmp_path: Path) -> None:
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4],
        "data_type": "int32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    for length, fine in ((8, True), (7, False)):
        refs = {"a/zarr.json": json.dumps(document), "a/c/0": "x" * length}
        session = repository(tmp_path).writable_session("main")
        if fine:
            import_references(refs, session)
        else:
            with pytest.raises(InvalidInputError, match=r"has 7 bytes.*8"):
                import_references(refs, session)


def test_arrays_whose_zeros_are_not_masked_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        for name, attribute in (("plain", None), ("zero", 0), ("nine", 9)):
            file.create_dataset(name, data=[0, 9], chunks=(2,))
            if attribute is not None:
                file[name].attrs["_FillValue"] = attribute
    for given, expected in ((None, ("/plain", "/zero")), (True, ()), (False, ())):
        session = repository(tmp_path).writable_session("main")
        report = import_references(scanned(path), session, mask_fill_value=given)
        assert report.unmasked == expected
        assert ("mask_fill_value=True" in repr(report)) is bool(expected)
