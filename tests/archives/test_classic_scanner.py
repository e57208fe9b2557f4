"""Classic NetCDF files by their headers: equal to what xarray and SciPy read, or refused."""

from __future__ import annotations

import io
import itertools
import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from hypothesis import assume, given, strategies as st
from scipy.io import netcdf_file

from icechunk import InvalidInputError
from icechunk_dask.archives.classic import open_classic
from icechunk_dask.archives.described import Dataset
from tests.archives.classic_files import OLD_TYPES, TYPES, Var, classic
from tests.archives.reading_classic import LOCATION, as_xarray, chunks, read_values, zarr_values


def values_of(kind: str, shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    """Return values of any bits that a type has, NaN and infinities too."""
    generator = np.random.default_rng(seed)
    if kind == "S1":
        return generator.choice(list(b"\0 abz\xe9"), shape).astype("u1").view("S1").reshape(shape)
    count = int(np.prod(shape))
    data = generator.bytes(count * np.dtype(kind).itemsize)
    return np.frombuffer(data, kind).reshape(shape)


def same(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether the values are equal to the bit, whatever their byte order."""
    if a.shape != b.shape or a.dtype.newbyteorder("=") != b.dtype.newbyteorder("="):
        return False
    return (
        a.astype(a.dtype.newbyteorder("=")).tobytes()
        == b.astype(b.dtype.newbyteorder("=")).tobytes()
    )


def check_values(path: Path, variables: dict[str, Var]) -> None:
    """The values of every variable, through references and by `read`, are those written."""
    with open_classic(path, LOCATION) as dataset:
        assert list(dataset.variables) == list(variables)
        decoded = zarr_values(dataset, path)
        for name, variable in variables.items():
            found = dataset.variables[name]
            assert found.dimensions == variable.dimensions
            assert same(read_values(found), variable.values), name
            assert same(decoded[name], variable.values), name


def original(path: Path, *, decode: bool = False) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with xr.open_dataset(path, engine="scipy", decode_cf=decode, mask_and_scale=decode) as ds:
            return ds.load()


LAYOUTS = ("scalar", "fixed", "only_record", "records", "mixed", "no_records")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", [1, 2, 5])
def test_every_type_in_every_layout(tmp_path: Path, version: int, layout: str) -> None:
    kinds = TYPES if version == 5 else OLD_TYPES
    path = tmp_path / "file.nc"
    for kind, inner in itertools.product(kinds, [(), (3,), (2, 3)]):
        names = tuple("yx"[2 - len(inner) :])
        dims = {"y": 2, "x": 3, "time": None}
        records = 0 if layout == "no_records" else 4
        fixed = Var(names, values_of(kind, inner))
        record = Var(("time", *names), values_of(kind, (records, *inner), 1))
        other = Var(("time",), values_of("i1", (records,), 2))
        third = Var(("time", "x"), values_of("i2", (records, 3), 3))
        variables = {
            "scalar": {"a": Var((), values_of(kind, ()))},
            "fixed": {"a": fixed, "b": Var(("x",), values_of("i2", (3,)))},
            "only_record": {"a": record, "f": fixed},
            "records": {"a": record, "b": other, "c": third},
            "mixed": {"f": fixed, "b": other, "a": record, "g": fixed, "c": third},
            "no_records": {"a": record, "b": other, "f": fixed},
        }[layout]
        path.write_bytes(classic(dims, variables, version=version, records=records))
        check_values(path, variables)
        if version < 5 and records:
            theirs = original(path)
            for name, variable in variables.items():
                assert same(theirs[name].values, variable.values), "the file itself"


def test_no_record_is_one_row_each(tmp_path: Path) -> None:
    path = tmp_path / "file.nc"
    shapes = {"t": Var(("time",), np.arange(5, dtype="f8")), "x": Var((), np.array(1, "i2"))}
    path.write_bytes(classic({"time": None}, shapes, records=5))
    with open_classic(path, LOCATION) as dataset:
        (t, x) = (dataset.variables[name] for name in "tx")
        assert t.document is not None and x.table is not None and t.table is not None
        assert t.document["chunk_grid"]["configuration"]["chunk_shape"] == [1]
        assert t.table.length.tolist() == [8] * 5 and x.table.length.tolist() == [2]
        assert {len(part) for part in chunks(t, path.read_bytes()).values()} == {8}


SELECTIONS = [
    (slice(None),),
    (slice(1, 3),),
    (slice(0, 0),),
    (slice(None, None, 2),),
    (slice(None, None, -1),),
    (slice(-1, None), slice(1, None)),
    (slice(4, 1, -2), slice(None, None, -2)),
    (slice(9, 20),),
]


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("dimension", ["time", "y"])
def test_reads_selections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dimension: str, near: bool
) -> None:
    monkeypatch.setattr("icechunk_dask.archives.classic._NEAR", 1 << 16 if near else 0)
    monkeypatch.setattr("icechunk_dask.archives.classic._AT_ONCE", 64)
    path = tmp_path / "file.nc"
    values = values_of("i2", (5, 3))
    variables = {
        "a": Var((dimension, "x"), values),
        "b": Var((dimension,), values_of("i1", (5,))),
    }
    path.write_bytes(classic({"time": None, "y": 5, "x": 3}, variables, records=5))
    with open_classic(path, LOCATION) as dataset:
        for selection in SELECTIONS:
            assert same(dataset.variables["a"].read(selection), values[selection]), selection


ATTRIBUTES: dict[str, Any] = {
    "text": "degrees north",
    "utf8": "Grad Nördlich",
    "latin1": b"caf\xe9",
    "nul": b"a\0b\0\0",
    "empty": b"",
    "short": np.int16(-3),
    "several": np.array([1, 2, 3], "i4"),
    "none": np.empty(0, "f8"),
    "float": np.float32(0.1),
    "nan": np.float64("nan"),
    "infinite": np.float64("inf"),
    "byte": np.array([-1, 2], "i1"),
}


@pytest.mark.parametrize("version", [1, 2, 5])
def test_attributes(tmp_path: Path, version: int) -> None:
    path = tmp_path / "file.nc"
    variables = {
        "a": Var(("x",), values_of("i2", (3,)), ATTRIBUTES),
        "b": Var(("t", "x"), values_of("f4", (2, 3)), ATTRIBUTES),
    }
    path.write_bytes(classic({"x": 3, "t": None}, variables, ATTRIBUTES, records=2))
    theirs = original(path)
    path.write_bytes(
        classic({"x": 3, "t": None}, variables, ATTRIBUTES, records=2, version=version)
    )
    with open_classic(path, LOCATION) as dataset:
        ours = as_xarray(dataset, path)
        for found, expected in [
            (ours.attrs, theirs.attrs),
            (dataset.groups[""], theirs.attrs),
            (ours["a"].attrs, theirs["a"].attrs),
            (dataset.variables["b"].attributes, theirs["b"].attrs),
        ]:
            assert list(found) == list(ATTRIBUTES)
            for name, value in expected.items():
                plain = value.tolist() if hasattr(value, "tolist") else value
                assert repr(found[name]) == repr(plain)


FILLS = [
    np.int16(2),
    np.float32(2),
    np.float64(2.5),
    np.float64(1e36),
    np.float32(1e20),
    np.float64("nan"),
    np.int32(70000),
    np.array([1, 2], "i2"),
    np.array([2, 1e36]),
    np.array([np.nan, 2]),
    np.empty(0, "f4"),
    b"abc",
    b"",
    None,
]


@pytest.mark.parametrize("missing", FILLS, ids=repr)
@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "f4", "f8"])
def test_fill_values_mask_what_they_mask_in_the_file(
    tmp_path: Path, kind: str, missing: Any
) -> None:
    """``_FillValue`` and ``missing_value`` of any type, one or several."""
    path = tmp_path / "file.nc"
    values = np.array([0, 1, 2, 3], kind)
    if kind[0] == "f":
        values = np.concatenate([values, np.array([2.5, 1e20, np.nan], kind)])
    variables = {}
    for number, fill in enumerate(FILLS):
        for packed in ({}, {"scale_factor": np.float64(0.5)}):
            given = {"_FillValue": fill, "missing_value": missing, **packed}
            given = {name: value for name, value in given.items() if value is not None}
            variables[f"v{number}{len(packed)}"] = Var(("x",), values, given)
    path.write_bytes(classic({"x": len(values)}, variables))
    theirs = original(path, decode=True)
    with open_classic(path, LOCATION) as dataset:
        ours = as_xarray(dataset, path, decode=True)
    for name in variables:
        assert ours[name].dtype == theirs[name].dtype, variables[name].attributes
        assert np.array_equal(ours[name].values, theirs[name].values, equal_nan=True), variables[
            name
        ].attributes


def test_names(tmp_path: Path) -> None:
    path = tmp_path / "file.nc"
    for encoding in ("utf-8", "latin-1"):
        variables = {"größe": Var(("höhe",), np.arange(3, dtype="i4"), {"maß": "µ"})}
        path.write_bytes(classic({"höhe": 3}, variables, encoding=encoding))
        check_values(path, variables)


def test_characters_are_as_xarray_has_them(tmp_path: Path) -> None:
    path = tmp_path / "file.nc"
    variables = {
        "a": Var(("t", "n"), values_of("S1", (4, 5))),
        "b": Var(("x", "n"), values_of("S1", (3, 5))),
        "c": Var((), values_of("S1", ())),
    }
    path.write_bytes(classic({"t": None, "x": 3, "n": 5}, variables, records=4))
    with open_classic(path, LOCATION) as dataset:
        ours, theirs = as_xarray(dataset, path), original(path)
        xr.testing.assert_identical(ours, theirs)
        assert ours["a"].dtype == theirs["a"].dtype == np.dtype("S1")


@pytest.mark.parametrize("version", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("extra", [0, 3])
def test_streamed_files_count_records_by_their_size(
    tmp_path: Path, version: int, count: int, extra: int
) -> None:
    path = tmp_path / "file.nc"
    for variables in (
        {"t": Var(("t",), values_of("f8", (count,)))},
        {"a": Var(("t",), values_of("i1", (count,))), "b": Var(("t", "x"), np.ones((count, 3)))},
        {"b": Var(("t", "x"), values_of("i2", (count, 3)))},
    ):
        data = classic({"t": None, "x": 3}, variables, version=version, records=count)
        same_file = classic(
            {"t": None, "x": 3}, variables, version=version, records=count, streaming=True
        )
        assert len(same_file) == len(data) and same_file != data
        path.write_bytes(same_file + b"\0" * extra)
        check_values(path, variables)


def test_a_file_object_stays_open_and_only_the_header_is_read() -> None:
    variables = {"a": Var(("x",), np.arange(500_000, dtype="f8"))}

    class Counted(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.count += len(data)
            return data

    file = Counted(classic({"x": 500_000}, variables))
    with open_classic(file, LOCATION) as dataset:
        assert file.count <= 8192
        assert dataset.variables["a"].read((slice(7, 9),)).tolist() == [7.0, 8.0]
        assert file.count <= 8192 + 16
    assert not file.closed


class Interrupted(io.BytesIO):
    """Lets other threads go on between ``seek`` and ``read``."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        found = super().seek(offset, whence)
        for _ in range(20):
            os.stat(os.curdir)  # which does not hold the interpreter
        return found


def test_threads_read_at_the_same_time() -> None:
    values = np.arange(400.0).reshape(100, 4)
    file = Interrupted(classic({"t": None, "x": 4}, {"a": Var(("t", "x"), values)}, records=100))
    with open_classic(file, LOCATION) as dataset, ThreadPoolExecutor(8) as pool:
        read = dataset.variables["a"].read
        found = pool.map(lambda n: read((slice(n, n + 1),)), range(100))
        assert np.array_equal(np.concatenate(list(found)), values)


def test_a_file_that_was_cut_meanwhile_is_an_error() -> None:
    file = io.BytesIO(classic({"x": 5}, {"a": Var(("x",), np.arange(5.0))}))
    with open_classic(file, LOCATION) as dataset:
        file.truncate(len(file.getvalue()) - 8)
        with pytest.raises(OSError, match="has changed"):
            read_values(dataset.variables["a"])


def test_too_many_records_go_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icechunk_dask.archives.classic._MOST_RECORDS", 3)
    path = tmp_path / "file.nc"
    variables = {"t": Var(("t",), np.arange(4.0)), "x": Var(("x",), np.arange(9.0))}
    path.write_bytes(classic({"t": None, "x": 9}, variables, records=4))
    with open_classic(path, LOCATION) as dataset:
        assert "4 records" in dataset.variables["t"].by_value
        xr.testing.assert_identical(as_xarray(dataset, path), original(path))


# -- damage ----------------------------------------------------------------------------
def plain_file(version: int = 1) -> bytes:
    variables = {
        "lat": Var(("lat",), np.arange(3, dtype="f4"), {"units": "degrees_north"}),
        "t": Var(("time",), np.arange(4, dtype="f8"), {"units": "days since 2000-01-01"}),
        "sst": Var(("time", "lat"), values_of("i2", (4, 3)), {"scale_factor": np.float64(0.1)}),
    }
    return classic(
        {"lat": 3, "time": None}, variables, {"title": "test"}, records=4, version=version
    )


@pytest.mark.parametrize("version", [1, 2, 5])
def test_every_truncation_is_refused(version: int) -> None:
    data = plain_file(version)
    # the last record of sst has two bytes of padding, which nobody needs
    for size in range(len(data) - 2):
        with (
            pytest.raises(InvalidInputError, match=f"^{LOCATION} is not a whole classic NetCDF"),
            open_classic(io.BytesIO(data[:size]), LOCATION),
        ):
            pass
    for size in (len(data) - 2, len(data) - 1):
        with open_classic(io.BytesIO(data[:size]), LOCATION) as dataset:
            assert read_values(dataset.variables["sst"]).shape == (4, 3)


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def big(value: int) -> bytes:
    return struct.pack(">I", value)


# the header of plain_file: magic, records, tag and number of dimensions, name of "lat"
HOSTILE = {
    "magic": (0, b"CDF\x03", "begins with"),
    "version": (0, b"CDF\x04", "begins with"),
    "records": (4, big(0xFFFFFFFE), "truncated"),
    "tag": (8, big(11), "has the tag 11"),
    "no tag": (8, big(0), "has the tag 0"),
    "dimensions": (12, big(0x7FFFFFFF), "more than fit"),
    "negative": (12, big(0xFFFFFFFF), "is -1"),
    "name": (16, big(0x7FFFFFF0), "ends within the name"),
    "no name": (16, big(0), "ends|empty|tag|length"),
    "length": (24, big(0x7FFFFFFF), "truncated"),
    "two unlimited": (24, big(0), "two record dimensions"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(case: str) -> None:
    at, new, message = HOSTILE[case]
    with (
        pytest.raises(InvalidInputError, match=message),
        open_classic(io.BytesIO(changed(plain_file(), at, new)), LOCATION),
    ):
        pass


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("slash", "slash"),
        ("twice", "two of the variables are called 'a'"),
        ("dimension twice", "two of the dimensions are called 'x'"),
        ("record dimension last", "record dimension after another"),
        ("within the header", "begins within the header"),
        ("no such dimension", "does not have"),
        ("type", "type 7, which CDF-1"),
        ("rank", "has 70 dimensions"),
    ],
)
def test_wrong_headers(what: str, message: str) -> None:
    values = np.arange(3, dtype="i4")
    dims: dict[str, int | None] = {"x": 3, "t": None}
    variables = {"a": Var(("x",), values), "b": Var(("x",), values)}
    data = classic(dims, variables)
    match what:
        case "slash":
            data = classic(dims, {"a/b": Var(("x",), values)})
        case "twice":
            data = data.replace(b"\0\0\0\x01b", b"\0\0\0\x01a")
        case "dimension twice":
            data = data.replace(b"\0\0\0\x01t", b"\0\0\0\x01x")
        case "record dimension last":
            data = classic(dims, {"a": Var(("x", "t"), values.reshape(3, 1))})
        case "within the header":
            (at,) = struct.unpack(">i", data[-len(values.tobytes()) * 2 - 4 :][:4])
            data = data.replace(big(at), big(8))
        case "no such dimension":
            at = data.index(b"\0\0\0\x01a\0\0\0")
            data = changed(data, at + 12, big(2))
        case "type":
            at = data.index(b"\0\0\0\x01a\0\0\0")
            data = changed(data, at + 24, big(7))
        case "rank":
            data = classic({"x": 1}, {"a": Var(("x",) * 60, np.ones((1,) * 60, "i4"))})
            data = data.replace(big(60), big(70), 1)
    with pytest.raises(InvalidInputError, match=message), open_classic(io.BytesIO(data), LOCATION):
        pass


@given(st.data())
def test_mutated_headers_are_refused_or_read(data: st.DataObject) -> None:
    """Whatever the header says, no other error, and only ranges within the file."""
    version = data.draw(st.sampled_from([1, 2, 5]))
    content = bytearray(plain_file(version))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 5))
        new = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=4),
                st.sampled_from([big(n) for n in (0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)]),
            )
        )
        content[at : at + len(new)] = new
    try:
        with open_classic(io.BytesIO(bytes(content)), LOCATION) as dataset:
            for variable in dataset.variables.values():
                read_values(variable)
                chunks(variable, bytes(content))
    except InvalidInputError as error:
        assert str(error).startswith(LOCATION)


# -- any file --------------------------------------------------------------------------
NAMES = st.text("abcxyzäß_0", min_size=1, max_size=4)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)


@st.composite
def attributes_of(draw: st.DrawFn) -> dict[str, Any]:
    value = st.one_of(
        TEXTS,
        st.sampled_from(["i1", "i2", "i4", "f4", "f8"]).flatmap(
            lambda kind: st.integers(1, 3).map(lambda n: values_of(kind, (n,), n))
        ),
    )
    return draw(st.dictionaries(NAMES, value, max_size=3))


@st.composite
def files(draw: st.DrawFn) -> tuple[dict[str, int | None], dict[str, Var], dict[str, Any], int]:
    dims: dict[str, int | None] = draw(st.dictionaries(NAMES, st.integers(1, 4), max_size=4))
    records = draw(st.integers(0, 4))
    if draw(st.booleans()):
        dims["record"] = None
    variables = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=5)):
        fixed = [name for name, length in dims.items() if length is not None]
        chosen = draw(st.lists(st.sampled_from(fixed), max_size=3, unique=True)) if fixed else []
        if "record" in dims and draw(st.booleans()):
            chosen = ["record", *chosen]
        shape = tuple(records if dims[n] is None else int(dims[n] or 0) for n in chosen)
        kind = draw(st.sampled_from(OLD_TYPES))
        seed = draw(st.integers(0, 99))
        variables[name] = Var(tuple(chosen), values_of(kind, shape, seed), draw(attributes_of()))
    return dims, variables, draw(attributes_of()), records


@given(drawn=files(), version=st.sampled_from([1, 2, 5]))
def test_any_file(drawn: Any, version: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    dims, variables, attributes, records = drawn
    path = tmp_path_factory.mktemp("classic") / "file.nc"
    path.write_bytes(classic(dims, variables, attributes, version=version, records=records))
    check_values(path, variables)
    with open_classic(path, LOCATION) as dataset:
        check_attributes(dataset, variables, attributes)


def check_attributes(
    dataset: Dataset, variables: dict[str, Var], attributes: dict[str, Any]
) -> None:
    pairs = [(dataset.groups[""], attributes)]
    pairs += [(dataset.variables[name].attributes, v.attributes) for name, v in variables.items()]
    for found, given_ones in pairs:
        assert list(found) == list(given_ones)
        for name, value in given_ones.items():
            expected = value.tolist() if isinstance(value, np.ndarray) else value
            expected = (
                expected[0] if isinstance(expected, list) and len(expected) == 1 else expected
            )
            assert repr(found[name]) == repr(expected)


@given(drawn=files(), version=st.sampled_from([1, 2]))
def test_any_file_of_scipy(
    drawn: Any, version: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SciPy writes, and what it and xarray read is what the scanner says."""
    dims, variables, _, records = drawn
    # xarray opens no file with a scalar that is called as a dimension
    assume(all(variables[name].dimensions for name in dims if name in variables))
    path = tmp_path_factory.mktemp("scipy") / "file.nc"
    with netcdf_file(str(path), "w", version=version) as file:
        # SciPy wants the record dimension first
        for name, length in sorted(dims.items(), key=lambda item: item[1] is not None):
            file.createDimension(name, length)
        for name, variable in variables.items():
            made = file.createVariable(
                name, variable.values.dtype.newbyteorder(">"), variable.dimensions
            )
            if not variable.dimensions:
                made.data[...] = variable.values
            elif records or variable.dimensions[0] != "record":
                made[:] = variable.values
    with open_classic(path, LOCATION) as dataset:
        theirs = original(path) if records or "record" not in dims else None
        decoded = zarr_values(dataset, path)
        for name in variables:
            ours = dataset.variables[name]
            if theirs is not None:
                assert same(read_values(ours), theirs[name].values)
                assert same(decoded[name], theirs[name].values)
            assert ours.dimensions == variables[name].dimensions
