"""Zarr v2 metadata to v3 and back: the values are those that zarr reads."""

from __future__ import annotations

import base64
import json
import warnings
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as npst
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from icechunk import InvalidInputError
from icechunk.kerchunk import export_references, import_references
from icechunk.kerchunk.metadata import array_from_v2
from icechunk.kerchunk.metadata_v2 import array_to_v2
from tests.kerchunk.base import array_refs, repository, through_fsspec, through_session

NUMBERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
OTHERS = ["|b1", "|S1", "|S7", "<U3", ">U3", "<M8[s]", ">M8[ns]", "<m8[h]", "|V5"]
DTYPES = [f"{order}{name}" for name in NUMBERS for order in "<>"] + OTHERS
COMPRESSORS: list[numcodecs.abc.Codec | None] = [
    None,
    numcodecs.Zlib(3),
    numcodecs.GZip(3),
    numcodecs.BZ2(3),
    numcodecs.LZMA(preset=1),
    numcodecs.LZ4(),
    numcodecs.Zstd(3),
    numcodecs.Zstd(3, checksum=True),
    *(numcodecs.Blosc(name, 3, shuffle) for name in ("lz4", "zstd") for shuffle in (-1, 0, 1, 2)),
]


@st.composite
def filters_for(draw: st.DrawFn, dtype: np.dtype[Any]) -> list[Any]:
    """Filters that v2 arrays of this data type can have."""
    choices: list[list[Any]] = [[]]
    order = dtype.str[0]
    if dtype.kind in "iu":
        choices += [[numcodecs.Delta(dtype.str)]]
        choices += [[numcodecs.AsType(f"{order}i8", dtype.str)]] if dtype.itemsize > 1 else []
        choices += [[numcodecs.Delta(dtype.str, dtype.str), numcodecs.Shuffle(dtype.itemsize)]]
    if dtype.str[1:] in ("f4", "f8"):
        packed = numcodecs.FixedScaleOffset(10, 0.1, dtype.str, f"{order}i2")
        other = numcodecs.FixedScaleOffset(10, 0.1, dtype.str, ">i4" if order == "<" else "<i4")
        tiny = numcodecs.FixedScaleOffset(-10, 10, dtype.str, "|u1")
        choices += [
            [packed],
            [tiny],
            [other, numcodecs.Shuffle(4)],
            [numcodecs.Quantize(2, dtype.str)],
        ]
        if dtype.isnative:
            # it looks types up by name, and knows only these
            choices += [[numcodecs.BitRound(5)]]
    if dtype.kind == "b":
        choices += [[numcodecs.PackBits()]]
    if dtype.kind not in "UV":
        choices += [[numcodecs.Shuffle(dtype.itemsize)]]
        choices += [[numcodecs.CRC32()], [numcodecs.Adler32()], [numcodecs.Fletcher32()]]
    return draw(st.sampled_from(choices))


def arrays(dtype: np.dtype[Any], shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    if dtype.kind != "V":
        return npst.arrays(dtype, shape, elements=npst.from_dtype(dtype))
    size = dtype.itemsize * int(np.prod(shape))
    return st.binary(min_size=size, max_size=size).map(
        lambda data: np.frombuffer(data, dtype).reshape(shape)
    )


def fill_values(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    if dtype.kind == "V":
        return st.just(None)
    return st.one_of(st.none(), npst.from_dtype(dtype, allow_nan=True))


def written(values: np.ndarray[Any, Any], chunks: tuple[int, ...], **options: Any) -> Any:
    """A v2 array with some chunks, and references that hold all of it."""
    held: dict[str, Any] = {}
    store = MemoryStore(held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create(
            shape=values.shape,
            chunks=chunks,
            dtype=values.dtype,
            store=store,
            path="a",
            zarr_format=2,
            **options,
        )
        half = tuple(slice(0, -(-n // 2)) for n in values.shape)
        array[half] = values[half]
        seen = array[...]
    refs = {key: value.to_bytes() for key, value in held.items()}
    for key, data in refs.items():
        if ".z" not in key:
            refs[key] = "base64:" + base64.b64encode(data).decode()
    return refs, seen


def equal(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind in "fc":
        return np.array_equal(a, b, equal_nan=True)
    return bool(a.shape == b.shape and (a.astype(object) == b.astype(object)).all()) or (
        a.dtype.kind in "mM" and np.array_equal(a.view("i8"), b.astype(a.dtype).view("i8"))
    )


def read_back(refs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """What our array holds, and what the exported references do, with their metadata."""
    session = repository().writable_session("main")
    import_references(refs, session)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = zarr.open_array(session.store, path="a", mode="r")[...]
        exported = export_references(session)
        assert exported is not None
        again = exported["refs"]
        make = default_buffer_prototype().buffer.from_bytes
        held = {
            key: make(base64.b64decode(v[7:]) if v.startswith("base64:") else v.encode())
            for key, v in again.items()
        }
        theirs = zarr.open_array(MemoryStore(held), path="a", mode="r", zarr_format=2)[...]
    return ours, theirs, json.loads(again["a/.zarray"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_values_survive(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3)))
    chunks = tuple(data.draw(st.integers(1, 5)) for _ in shape)
    values = data.draw(arrays(dtype, shape))
    if dtype.kind == "f":
        # what scaled integers can hold
        values = np.nan_to_num(values.astype("f8"), posinf=0, neginf=0).clip(-9, 9)
        values = np.asarray(values, dtype)
    filters = data.draw(filters_for(dtype))
    refs, seen = written(
        values,
        chunks,
        order=data.draw(st.sampled_from("CF")),
        filters=filters or None,
        compressor=data.draw(st.sampled_from(COMPRESSORS)),
        fill_value=data.draw(fill_values(dtype)),
        dimension_separator=data.draw(st.sampled_from("./")),
    )
    ours, theirs, zarray = read_back(refs)
    assert equal(ours, seen)
    assert equal(theirs, seen)
    before = json.loads(refs["a/.zarray"])
    assert {k: zarray[k] for k in ("shape", "order")} == {
        "shape": before["shape"],
        "order": before["order"] if len(shape) > 1 else "C",
    }
    assert np.dtype(zarray["dtype"]).newbyteorder("=") == dtype.newbyteorder("=")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(max_size=5), min_size=1, max_size=8),
    st.sampled_from(["vlen-utf8", "json2", "msgpack2"]),
    st.sampled_from(COMPRESSORS),
)
def test_texts_survive(texts: list[str], codec: str, compressor: Any) -> None:
    texts = [t.encode("utf-8", "ignore").decode() for t in texts]
    objects = np.array(texts, dtype=object)
    encoded = numcodecs.get_codec({"id": codec}).encode(objects)
    if codec == "vlen-utf8" and compressor is not None:
        encoded = compressor.encode(encoded)
    held = "base64:" + base64.b64encode(bytes(encoded)).decode()
    config = compressor.get_config() if codec == "vlen-utf8" and compressor is not None else None
    refs = array_refs(
        {"0": held},
        (len(texts),),
        (len(texts),),
        dtype="|O",
        fill_value="",
        filters=[{"id": codec}],
        compressor=config,
    )
    ours, theirs, zarray = read_back(refs)
    assert list(ours) == list(theirs) == texts
    assert zarray["filters"] == [{"id": "vlen-utf8"}]


def test_bytes_of_any_length() -> None:
    values = np.array([b"", b"a\0b", b"\xff"], dtype=object)
    encoded = bytes(numcodecs.VLenBytes().encode(values))
    held = "base64:" + base64.b64encode(encoded).decode()
    refs = array_refs(
        {"0": held}, (3,), (3,), dtype="|O", fill_value=None, filters=[{"id": "vlen-bytes"}]
    )
    ours, theirs, _ = read_back(refs)
    assert list(ours) == list(theirs) == list(values)


@pytest.mark.parametrize(
    ("dtype", "fill", "attribute"),
    [
        ("<f4", "NaN", np.nan),
        (">f8", 1e20, 1e20),
        ("<f8", "Infinity", np.inf),
        ("<i2", -32767, -32767),
        ("<i2", None, None),
        ("<f4", None, None),
    ],
)
def test_xarray_masks_as_before(dtype: str, fill: Any, attribute: Any) -> None:
    data = base64.b64encode(np.array([1, 2], dtype).tobytes()).decode()
    refs = array_refs(
        {"0": f"base64:{data}"},
        (4,),
        (2,),
        attributes={"_ARRAY_DIMENSIONS": ["x"], "scale_factor": 0.5},
        dtype=dtype,
        fill_value=fill,
    )
    session = repository().writable_session("main")
    import_references(refs, session)
    before, ours = through_fsspec(refs), through_session(session)
    xr.testing.assert_identical(ours, before)
    assert ours["a"].dtype == before["a"].dtype
    found = ours["a"].encoding.get("_FillValue")
    assert (found is None) == (attribute is None)
    assert found is None or np.array_equal(found, attribute, equal_nan=True)
    xr.testing.assert_identical(through_fsspec(export_references(session)), before)
    # and without: only what the references call _FillValue
    session = repository().writable_session("main")
    import_references(refs, session, mask_fill_value=False)
    assert "_FillValue" not in through_session(session)["a"].encoding
    refs["a/.zattrs"] = json.dumps({"_ARRAY_DIMENSIONS": ["x"], "_FillValue": 2})
    session = repository().writable_session("main")
    import_references(refs, session, mask_fill_value=False)
    assert through_session(session)["a"].encoding["_FillValue"] == 2
    assert np.isnan(through_session(session)["a"][1])


def test_dimensions() -> None:
    attributes = {"_ARRAY_DIMENSIONS": ["x", "y"], "units": "K", "n": [1, None, {"a": 2.5}]}
    refs = array_refs({}, (4, 5), (2, 9), attributes=attributes)
    array = array_from_v2("a", json.loads(refs["a/.zarray"]), attributes)
    assert array.document["dimension_names"] == ["x", "y"]
    assert array.document["attributes"] == {
        "units": "K",
        "n": [1, None, {"a": 2.5}],
        "_FillValue": -1,
    }
    zarray, zattrs = array_to_v2("a", array.document, complete=False)
    assert zattrs == attributes
    assert zarray == {**json.loads(refs["a/.zarray"]), "dimension_separator": "."}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dtype": [["x", "<i4"]]}, "structured"),
    ({"dtype": "nonsense"}, "nonsense"),
    ({"dtype": "|O"}, "objects"),
    ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "objects"),
    ({"fill_value": "high"}, "high"),
    ({"shape": [4]}, "differ in rank"),
    ({"shape": [-4, 4]}, "shape"),
    ({"chunks": None}, "chunks"),
    ({"chunks": [0, 1]}, "zero"),
    ({"order": "A"}, "order"),
    ({"dimension_separator": "-"}, "dimension_separator"),
    ({"filters": ["zlib"]}, "filters"),
    ({"compressor": "zlib"}, "compressor"),
    ({"compressor": {"id": "unheard-of"}}, "unheard-of"),
    ({"compressor": {"id": "zlib", "level": 1, "speed": 2}}, "zlib"),
    ({"filters": [{"id": "fill_hdf_strings", "dtype": "S16"}]}, "fill_hdf_strings"),
    ({"dtype": "|i1", "filters": [numcodecs.AsType("<i8", "|i1").get_config()]}, "int64 of int8"),
    ({"filters": [{"id": "delta", "dtype": ">i4"}]}, "decodes to '>i4'"),
    ({"filters": [{"id": "shuffle"}, {"id": "delta", "dtype": "<i4"}]}, "'delta' comes after"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    refs = array_refs({}, (4, 4), (1, 1))
    refs["a/.zarray"] = json.dumps({**json.loads(refs["a/.zarray"]), **changes})
    session = repository().writable_session("main")
    with pytest.raises(InvalidInputError, match=f"'a/.zarray'.*{message}"):
        import_references(refs, session)
    assert not session.has_uncommitted_changes


def test_dimension_names_must_fit() -> None:
    refs = array_refs({}, (4, 4), (1, 1), attributes={"_ARRAY_DIMENSIONS": ["x"]})
    with pytest.raises(InvalidInputError, match=r"'a/.zattrs'.*2 names"):
        import_references(refs, repository().writable_session("main"))


def test_what_v2_cannot_express() -> None:
    session = repository().writable_session("main")
    root = zarr.create_group(session.store)
    root.create_array("plain", shape=(4,), chunks=(2,), dtype="f4")
    root["plain"][:] = 1
    assert export_references(session) is not None
    root.create_array("sharded", shape=(4,), chunks=(2,), shards=(4,), dtype="f4")
    with pytest.raises(InvalidInputError, match=r"'sharded/zarr.json'.*sharding_indexed"):
        export_references(session)
    assert export_references(session, zarr_format=3) is not None
