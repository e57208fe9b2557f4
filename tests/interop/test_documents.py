"""Documents of nodes that one client takes are read and changed by the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from icechunk import Repository
from tests.interop.sides import Official, Ours, Side

GROUP = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})


def array(**changes: Any) -> str:
    fields = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4],
        "data_type": "int32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    return json.dumps(fields | changes)


def grid(chunk: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": [chunk]}}


#: What is at the edge of what JSON readers agree on.
ODD = {
    "large": array(attributes={"a": 2**64, "b": -(2**63) - 1, "c": 10**400, "d": 2**63}),
    "fill": array(fill_value=2**65),
    "text": array(attributes={"a\0b": "\0", "é": "\U0001f600"}),
    "floats": array(attributes={"a": 1e308, "b": -0.0, "c": 5e-324}),
    "names": array(dimension_names=["a/b\0c"]),
    "extra": array(extra={"must_understand": False}),
    "long": array(shape=[2**64 - 1], chunk_grid=grid(2**63)),
    "far": array(chunk_grid=grid(2**64 - 1)),
    "empty": array(shape=[0], chunk_grid=grid(0)),
}


@pytest.mark.parametrize("spec_version", [1, 2])
def test_documents_at_the_edge(sides: tuple[Side, Side], spec_version: int, tmp_path: Path) -> None:
    writer, reader = sides
    folder = str(tmp_path / "repo")
    documents = {f"{name}/zarr.json": text for name, text in ODD.items()}
    writer.run("documents.write", folder, spec_version, {"zarr.json": GROUP, **documents})
    assert reader.run("documents.read", folder) == {"zarr.json": GROUP, **documents}
    changed = {key: array(attributes={"new": 1}) for key in documents}
    reader.run("documents.edit", folder, changed)
    assert writer.run("documents.read", folder) == {"zarr.json": GROUP, **changed}
    assert Repository.open(folder).verify().ok


#: Nodes without a group above them.
WITHOUT = [
    {"x/y/zarr.json": GROUP},
    {"zarr.json": GROUP, "a/zarr.json": array(), "a/b/zarr.json": array()},
    {"a/zarr.json": array(), "a/b/zarr.json": GROUP, "a/zarr.json!": None},
    {"zarr.json": array(), "b/zarr.json": array()},
]


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("number", range(len(WITHOUT)))
def test_nodes_without_a_group_above_them_are_no_damage(
    ours: Ours, official: Official, spec_version: int, number: int, tmp_path: Path
) -> None:
    found = []
    for side in (ours, official):
        folder = str(tmp_path / side.name)
        side.run("documents.write", folder, spec_version, WITHOUT[number])
        assert Repository.open(folder).verify(deep=True).damages == ()
        found.append(side.run("documents.read", folder))
    assert found[0] == found[1]
