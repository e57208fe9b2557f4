"""Documents of nodes: what is stored is strict JSON, what is there already stays readable."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import zarr
from hypothesis import given, settings, strategies as st

from icechunk import InvalidInputError, MemoryStorage, Repository, Session
from icechunk.changes.zarr_metadata import check_document, parse_node_metadata

NAN, INF = math.nan, math.inf


def session() -> Session:
    return Repository.create(MemoryStorage()).writable_session("main")


def group(**attributes: Any) -> bytes:
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(document).encode()


def array(shape: list[int], chunk_shapes: list[Any]) -> bytes:
    grid = {
        "name": "rectilinear",
        "configuration": {"kind": "inline", "chunk_shapes": chunk_shapes},
    }
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default"},
    }
    return json.dumps(document).encode()


def regular(length: int, chunk: int) -> bytes:
    document = json.loads(array([length], [chunk]))
    document["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": [chunk]}}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"valid_min": -INF}, "attribute 'valid_min' is -Infinity"),
        ({"missing_value": NAN}, "attribute 'missing_value' is NaN"),
        ({"range": [0, INF]}, "attribute 'range' is Infinity"),
        ({"deep": {"er": [1, {"x": NAN}]}}, "attribute 'deep.er.x' is NaN"),
        ({"half": "a\ud800"}, "attribute 'half'.*surrogate"),
        ({"\udfff": 1}, "surrogate"),
    ],
)
def test_what_json_cannot_express(attributes: dict[str, Any], words: str) -> None:
    target = session()
    with pytest.raises(InvalidInputError, match=rf"^bad metadata: metadata of .*{words}"):
        target.set_metadata_document("/g", group(**attributes))
    assert not target.has_uncommitted_changes


def test_all_ways_into_a_store() -> None:
    target = session()
    root = zarr.create_group(target.store)
    with pytest.raises(InvalidInputError, match="'a' is NaN"):
        root.attrs["a"] = NAN
    with pytest.raises(InvalidInputError, match="'b' is Infinity"):
        root.create_array("x", shape=(2,), dtype="f4", attributes={"b": INF})
    with pytest.raises(InvalidInputError, match="'c' is -Infinity"):
        zarr.create_group(target.store, path="g", attributes={"c": [-INF]})
    # of a fill value Zarr makes a text
    root.create_array("filled", shape=(2,), dtype="f4", fill_value=NAN)
    assert sorted(root) == ["filled"]


@pytest.mark.parametrize(
    "document",
    [
        group().decode().encode("utf-16"),
        b"\xef\xbb\xbf" + group(),
        group()[:-1] + b"\xff}",
        group(x=1).replace(b"1", b"1e999"),
        group(x=1).replace(b"1", b"[" * 5000 + b"]" * 5000),
    ],
)
def test_other_encodings_and_numbers_out_of_range(document: bytes) -> None:
    with pytest.raises(InvalidInputError, match="metadata of node '/g'"):
        session().set_metadata_document("/g", document)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # what a dict with the keys 1 and "1" becomes
        ('"attributes": {}', '"attributes": {"1": 2, "1": 3}', "'1' is there twice"),
        ('"attributes": {}', '"attributes": {"x": [{"y": 2, "y": 2}]}', "'y' is there twice"),
        ('"zarr_format": 3', '"zarr_format": 3, "zarr_format": 3', "'zarr_format' is there twice"),
    ],
)
def test_names_that_are_there_twice(old: str, new: str, words: str) -> None:
    document = group().decode().replace(old, new).encode()
    with pytest.raises(InvalidInputError, match=f"metadata of node '/g': {words}"):
        session().set_metadata_document("/g", document)


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("shape, chunk", [(4, 2**64), (2**64, 2**64 - 1), (2**80, 2**79)])
def test_sizes_of_more_than_64_bits(spec_version: int, shape: int, chunk: int) -> None:
    target = Repository.create(MemoryStorage(), spec_version=spec_version).writable_session("main")
    with pytest.raises(
        InvalidInputError, match=r"shape is \[\d+\], but sizes are stored in 64 bits"
    ):
        target.set_metadata_document("/a", regular(shape, chunk))


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("shape, chunk", [(4, 2**64 - 1), (2**64 - 1, 2**63), (2**63, 2**33)])
def test_the_largest_sizes(spec_version: int, shape: int, chunk: int) -> None:
    repository = Repository.create(MemoryStorage(), spec_version=spec_version)
    writing = repository.writable_session("main")
    writing.set_metadata_document("/a", regular(shape, chunk))
    writing.commit("large")
    reopened = Repository.open(repository.storage).readonly_session("main")
    assert reopened.tree.require_array("/a")[1].shape == (shape,)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=50)
@given(attributes=st.dictionaries(st.text(), VALUES))
def test_strict_json_is_taken_and_nothing_else(attributes: dict[str, Any]) -> None:
    try:
        strict = json.dumps(attributes, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:  # of the encoding, too
        with pytest.raises(InvalidInputError):
            check_document(group(**attributes), "/g")
    else:
        check_document(group(**attributes), "/g")
        assert json.loads(strict) == attributes


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([4, -1, 7], "chunk size -1 along axis 1"),
        ([4, 0, 6], "chunk size 0"),
        ([4, "6"], "chunk size '6'"),
        ([4, 6.0], "chunk size 6.0"),
        ([True, 9], "chunk size True"),
        ([[5, "2"]], r"chunk size \[5, '2'\]"),
        ([[5, 0], 10], r"chunk size \[5, 0\]"),
        ([[5, 2, 1]], r"chunk size \[5, 2, 1\]"),
        ([4, 5], "add up to 9, but the array is 10 long"),
        ([], "add up to 0"),
    ],
)
def test_rectilinear_grids_that_do_not_cover_the_array(edges: list[Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        session().set_metadata_document("/a", array([3, 10], [3, edges]))


@pytest.mark.parametrize("edges", [[4, 6], [[5, 2]], [[3, 3], 1], 4, [4, 6, 2]])
def test_rectilinear_grids_that_do(edges: Any) -> None:
    """The last chunks may reach beyond the array, as after it was made smaller."""
    target = session()
    target.set_metadata_document("/a", array([3, 10], [3, edges]))
    assert target.tree.require_array("/a")[1].shape == (3, 10)


def test_what_others_stored_stays_readable() -> None:
    lax = group(valid_min=-INF)
    assert not parse_node_metadata(lax, "/g").is_array
    assert parse_node_metadata(array([10], [[4, "6", -1]]), "/a").shape == (10,)


def test_nodes_that_were_stored_laxly(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read, moved and deleted, and can be put in order."""
    repository = Repository.create(MemoryStorage())
    with monkeypatch.context() as patch:
        patch.setattr("icechunk.changes.tree.check_document", lambda *_: None)
        writing = repository.writable_session("main")
        root = zarr.create_group(writing.store, attributes={"top": NAN})
        a = root.create_array("a", shape=(4,), chunks=(2,), dtype="i4", attributes={"low": -INF})
        a[:] = [1, 2, 3, 4]
        writing.commit("lax")
    reading = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert reading["a"].attrs["low"] == -INF
    writing = repository.writable_session("main")
    a = zarr.open_array(writing.store, path="a")
    a[0] = 5
    # the same document again is no change
    writing.set_metadata_document("/a", writing.tree.require("/a").user_data)
    with pytest.raises(InvalidInputError, match="attribute 'low' is -Infinity"):
        a.resize((6,))
    a = zarr.open_array(writing.store, path="a")
    a.attrs["low"] = -999
    a.resize((6,))
    writing.commit("in order")
    moving = repository.rearrange_session("main")
    moving.move("/a", "/b")
    moving.commit("moved")
    read = zarr.open_array(repository.readonly_session("main").store, path="b", mode="r")
    assert read[:].tolist() == [5, 2, 3, 4, 0, 0]
