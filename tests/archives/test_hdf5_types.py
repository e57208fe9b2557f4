"""Types of HDF5: each variable equals the file, or is refused by name; none loses the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5s, h5t

from icechunk.errors import InvalidInputError
from icechunk_dask.archives.hdf5 import open_hdf5
from tests.archives.hdf5_truth import check
from tests.archives.test_hdf5_scanner import create


def _beside(file: h5py.File) -> None:
    """Add a plain variable, which nothing that is wrong with another may lose."""
    file["plain"] = np.arange(3.0)


# -- types -----------------------------------------------------------------------------
def _integer(base: Any, precision: int, offset: int) -> Any:
    tid = base.copy()
    tid.set_precision(precision)
    tid.set_offset(offset)
    return tid


def _float(base: Any, fields: tuple[int, ...], size: int, bias: int) -> Any:
    tid = base.copy()
    tid.set_fields(*fields)
    tid.set_size(size)
    tid.set_ebias(bias)
    return tid


def _biased() -> Any:
    tid = h5t.IEEE_F32BE.copy()
    tid.set_ebias(100)
    return tid


TYPES: dict[str, tuple[Callable[[], Any], str]] = {
    "12 bits at 4": (lambda: _integer(h5t.STD_U16LE, 12, 4), "by value"),
    "12 bits signed": (lambda: _integer(h5t.STD_I16LE, 12, 0), "by value"),
    "24 of 32 big": (lambda: _integer(h5t.STD_I32BE, 24, 8), "by value"),
    "bfloat16": (lambda: _float(h5t.IEEE_F32LE, (15, 7, 8, 0, 7), 2, 127), "by value"),
    "bias 100": (_biased, "by value"),
    "bits": (lambda: h5t.STD_B8LE.copy(), "virtual"),
    "wide bits": (lambda: h5t.STD_B16BE.copy(), "virtual"),
    "half": (lambda: h5t.IEEE_F16BE.copy(), "virtual"),
}


@pytest.mark.parametrize("layout", ["compact", "contiguous", "chunked"])
@pytest.mark.parametrize("name", TYPES)
def test_types_of_numbers(tmp_path: Path, name: str, layout: str) -> None:
    path = tmp_path / "type.h5"
    make, outcome = TYPES[name]
    with h5py.File(path, "w") as file:
        _beside(file)
        made = create(file, "odd", "u1", (40,), layout=layout, tid=make())
        if name in ("bits", "wide bits"):
            raw = (np.arange(40) % 50).astype(made.dtype)
            made.id.write(h5s.ALL, h5s.ALL, raw, mtype=made.id.get_type())
        else:
            sign = -1 if "signed" in name or "float" in name else 1
            made[...] = np.arange(40) * sign
    found = check(path)
    assert found["odd"].partition(":")[0] == outcome
    assert found["plain"] == "virtual"


def _records(file: h5py.File) -> None:
    little = np.dtype([("a", "<f4"), ("b", "<i4")])
    file["little"] = np.array([(n, -n) for n in range(4)], little)
    file["big"] = np.array([(n, -n) for n in range(4)], [("a", ">f4"), ("b", "<i4")])
    spaced = {"names": ["a", "b"], "formats": ["<f4", "<i2"], "offsets": [0, 8], "itemsize": 16}
    file["spaced"] = np.array([(n, -n) for n in range(4)], spaced)
    padded = {"names": ["a"], "formats": ["<f4"], "offsets": [0], "itemsize": 8}
    file["padded"] = np.array([(n,) for n in range(4)], padded)
    swapped = {"names": ["a", "b"], "formats": ["<f4", "<i4"], "offsets": [4, 0]}
    file["swapped"] = np.array([(n, -n) for n in range(4)], swapped)
    file["nested"] = np.array(
        [(1, (2.5, b"ab"))], [("n", "<i8"), ("in", [("x", "<f8"), ("t", "S2")])]
    )
    file.create_dataset("unwritten", (3,), little, chunks=(2,), fillvalue=np.array((7, 8), little))


def test_records(tmp_path: Path) -> None:
    path = tmp_path / "records.h5"
    with h5py.File(path, "w") as file:
        _beside(file)
        _records(file)
        file["arrays"] = np.zeros(3, [("a", "<f4", (2,))])
        file["texts"] = np.array([("a",)], [("a", h5py.string_dtype())])
    spaced = "by value: its records are not little-endian and packed"
    # xarray reads no big-endian records
    assert check(path, xarray=False) == {
        "plain": "virtual",
        "little": "virtual",
        "nested": "virtual",
        "unwritten": "virtual",
        "big": spaced,
        "spaced": spaced,
        "swapped": spaced,
        "padded": spaced,
        "arrays": "refused: of its field 'a': its elements are arrays",
        "texts": "refused: of its field 'a': texts of any length are stored apart from the chunks",
    }


def test_records_in_xarray(tmp_path: Path) -> None:
    path = tmp_path / "records.h5"
    with h5py.File(path, "w") as file:
        _beside(file)
        file["records"] = np.array([(n, -n) for n in range(4)], [("a", "<f4"), ("b", "<i4")])
    assert set(check(path).values()) == {"virtual"}


def test_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.h5"
    words = ["a", "bcd", "", "ef"]
    with h5py.File(path, "w") as file:
        _beside(file)
        file["fixed"] = np.array(words, "S3")
        file["characters"] = np.array([list("ab"), list("cd")], "S1")
        file.create_dataset("chunked", data=np.array(words, "S4"), chunks=(3,), compression="gzip")
        file.create_dataset("any", data=words, dtype=h5py.string_dtype())
        file.create_dataset("any, unwritten", (3,), h5py.string_dtype(), chunks=(2,))
        file["one"] = "a text"
        for name, padding in (("spaces", h5t.STR_SPACEPAD), ("zero", h5t.STR_NULLTERM)):
            tid = h5t.C_S1.copy()
            tid.set_size(4)
            tid.set_strpad(padding)
            made = create(file, name, "S4", (2,), layout="contiguous", tid=tid)
            raw = np.array([b"ab  ", b"a\0bc"], "V4")
            made.id.write(h5s.ALL, h5s.ALL, raw, mtype=tid)
        tid = h5t.C_S1.copy()
        tid.set_strpad(h5t.STR_NULLTERM)
        create(file, "char of netCDF", "S1", (2,), layout="contiguous", tid=tid)[...] = b"x"
    anywhere = "by value: texts of any length are stored apart from the chunks"
    assert check(path) == {
        "plain": "virtual",
        "fixed": "virtual",
        "characters": "virtual",
        "chunked": "virtual",
        "char of netCDF": "virtual",
        "any": anywhere,
        "any, unwritten": anywhere,
        "one": anywhere,
        "spaces": "by value: its texts are padded with spaces",
        "zero": "by value: its texts end at their first zero",
    }


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as file:
        _beside(file)
        file.create_dataset(
            "latin", data=[b"a", "Zürich".encode("latin-1")], dtype=h5py.string_dtype()
        )
    with open_hdf5(path, path.as_uri()) as dataset:
        assert dataset.variables["latin"].by_value
        with pytest.raises(InvalidInputError, match="variable 'latin': a text in it is not UTF-8"):
            dataset.variables["latin"].read((slice(None),))
        assert dataset.variables["plain"].read((slice(None),)).tolist() == [0, 1, 2]


#: Of HDF5 2.0; older versions of h5py do not have it.
NATIVE_COMPLEX = getattr(h5t, "COMPLEX_IEEE_F32LE", None)


def test_other_types(tmp_path: Path) -> None:
    path = tmp_path / "types.h5"
    with h5py.File(path, "w") as file:
        _beside(file)
        file["bool"] = np.array([True, False, True])
        file.create_dataset("bool unwritten", (3,), bool, chunks=(2,), fillvalue=True)
        file["c8"] = np.array([1 + 2j, 3 - 1j], "<c8")
        file["c16 big"] = np.array([1 + 2j, 3 - 1j], ">c16")
        file.create_dataset("c8 fill", (3,), "<c8", chunks=(2,), fillvalue=2 - 3j)
        if NATIVE_COMPLEX is not None:
            create(file, "native complex", "c8", (2,), tid=NATIVE_COMPLEX)[...] = [1j, 2]
        enum = h5py.enum_dtype({"LAND": 0, "SEA": 5}, "i2")
        file.create_dataset("enum", data=[0, 5, 0], dtype=enum)
        big = h5py.enum_dtype({"LAND": 0, "SEA": 5}, ">i4")
        file.create_dataset("enum big", data=[0, 5, 7], dtype=big)
        file.create_dataset("enum fill", (3,), enum, chunks=(2,), fillvalue=5)
        file["opaque"] = np.array([b"abc", b"\0\1\2"], "V3")
        file.create_dataset("longdouble", data=np.arange(3), dtype=np.longdouble)
        file.create_dataset("references", data=[file.ref], dtype=h5py.ref_dtype)
        file.create_dataset("region", (1,), h5py.regionref_dtype)
        ragged = file.create_dataset("ragged", (2,), h5py.vlen_dtype("i4"))
        ragged[0], ragged[1] = [0], [1]
        file.create_dataset("arrays", (2,), np.dtype(("f4", (3,))))
        file["empty"] = h5py.Empty("f4")
        h5d.create(file.id, b"time", h5t.UNIX_D32LE, h5s.create_simple((2,)))
    found = check(path, xarray=False)
    assert {name for name, one in found.items() if one == "virtual"} - {"native complex"} == {
        "plain", "bool", "bool unwritten", "c8", "c16 big", "c8 fill", "enum", "enum big",
        "enum fill", "opaque",
    }  # fmt: skip
    assert NATIVE_COMPLEX is None or found["native complex"] == "virtual"
    assert {name: one for name, one in found.items() if one != "virtual"} == {
        "longdouble": "refused: Zarr has no data type for float128",
        "references": "refused: its elements are references to objects of the file",
        "region": "refused: its elements are references to objects of the file",
        "ragged": "refused: its elements are sequences of different lengths",
        "arrays": "refused: its elements are arrays",
        "empty": "refused: it has no values (an empty dataspace)",
        "time": found["time"],
    }
    assert found["time"].startswith("refused: ")


def test_times_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "moments.h5"
    moments = np.array(["2020-01-01", "2021-05-06"], "<M8[us]")
    with h5py.File(path, "w") as file:
        for name, values in (("moments", moments), ("lengths", moments - moments[0])):
            file.create_dataset(name, data=values.astype(h5py.opaque_dtype(values.dtype)))
    assert set(check(path).values()) == {"virtual"}
