"""Containers derived from references hold these references, and little else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st

import icechunk
from icechunk import Repository, RepositoryConfig, suggest_containers
from icechunk.config import azure_store, s3_store
from icechunk.credentials import LocalFileSystemAccess
from icechunk.errors import InvalidInputError
from icechunk.storage import MemoryStorage
from icechunk.virtual.resolver import VirtualResolver


def prefixes(references: Any, **arguments: Any) -> list[str]:
    return [c.url_prefix for c in suggest_containers(references, **arguments)]


NAMES = st.text("ab-.", min_size=1, max_size=3).filter(lambda name: name.strip("."))
LOCATIONS = st.builds(
    lambda scheme, top, path: f"{scheme}{top}/{'/'.join(path)}",
    st.sampled_from(["s3://", "gs://", "https://", "file:///"]),
    st.sampled_from(["x", "y"]),
    st.lists(NAMES, min_size=1, max_size=4),
)


@given(st.lists(LOCATIONS, max_size=8))
def test_every_location_is_in_exactly_one_container(locations: list[str]) -> None:
    containers = suggest_containers(locations)
    resolver = VirtualResolver({c.url_prefix: c for c in containers})
    assert resolver.invalid_locations(locations) == []
    for container in containers:
        container.validate()
        inside = [x for x in locations if x.startswith(container.url_prefix)]
        # the longest that they have in common: no folder below holds them all
        rest = [x.removeprefix(container.url_prefix) for x in inside]
        assert inside
        assert any("/" not in x for x in rest) or len({x.split("/")[0] for x in rest}) > 1
    assert len(containers) == len(
        {tuple(x.split("/")[: 4 if x[:4] == "file" else 3]) for x in locations}
    )
    assert prefixes(reversed(locations)) == prefixes(locations)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        ([], []),
        (["s3://b/k"], ["s3://b/"]),
        (["s3://b/2024/a.nc", "s3://b/2023/b.nc", "s3://c/x/y"], ["s3://b/", "s3://c/x/"]),
        (["s3://b/day-1/f", "s3://b/day-2/f"], ["s3://b/"]),
        (["S3://b/x/f?signature=1", "s3://b/x/g#y"], ["s3://b/x/"]),
        (["/data/a/f", "file:///data/b/g", "/home/x y"], ["file:///data/", "file:///home/"]),
        (["https://h:80/a/f", "http://h:80/a/f"], ["http://h:80/a/", "https://h:80/a/"]),
        (["vcc://name/k"], []),
        (
            {
                "version": 1,
                "refs": {".zgroup": "{}", "a/0": ["s3://b/d/f", 0, 9], "a/1": "base64:"},
            },
            ["s3://b/d/"],
        ),
        ({"a/0": ["s3://b/d/f"]}, ["s3://b/d/"]),
    ],
)
def test_prefixes(references: Any, expected: list[str]) -> None:
    assert prefixes(references) == expected


def test_names_and_stores() -> None:
    anonymous = s3_store(anonymous=True)
    found = suggest_containers(
        ["s3://b/x/f", "https://b/f", "file:///data/b/f", "az://c/f"],
        stores={"s3": anonymous, "az": azure_store(account="a")},
        named=True,
    )
    assert {c.url_prefix: c.name for c in found} == {
        "az://c/": "c",
        "file:///data/b/": "b",
        "https://b/": "b-2",
        "s3://b/x/": "b-3",
    }
    assert found[-1].store == anonymous
    resolver = VirtualResolver({c.url_prefix: c for c in found}, {"s3://b/": None})
    assert resolver.resolve("vcc://b-3/f")[1] == "f"


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ("s3://b/k", "expected URLs"),
        (["relative/path"], "not an absolute URL"),
        (["file:///hostname"], "in no folder"),
        (["s3://b"], "in no folder"),
        (["s3://{{u}}/k"], "template"),
        (["ftp://host/k"], "stores={'ftp': ...}"),
        (["az://c/k"], "azure_store"),
        ([3], "not an absolute URL"),
    ],
)
def test_what_no_container_can_hold(references: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        suggest_containers(references)
    assert message in str(caught.value)


def test_from_a_session_to_reading(tmp_path: Path) -> None:
    values = np.arange(8, dtype="u1")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(values.tobytes())
    storage = MemoryStorage()
    session = Repository.create(storage).writable_session("main")
    array = zarr.create_array(
        session.store, name="x", shape=16, chunks=8, dtype="u1", compressors=None
    )
    for i, name in enumerate(("a", "b")):
        location = (tmp_path / name / "f").as_uri()
        session.store.set_virtual_ref(
            f"x/c/{i}", location, offset=0, length=8, validate_container=False
        )
    session.commit("references without a container")
    with pytest.raises(InvalidInputError, match="suggest_containers"):
        array[:]

    containers = icechunk.suggest_containers(session)
    assert [c.url_prefix for c in containers] == [tmp_path.as_uri() + "/"]
    config = RepositoryConfig()
    for container in containers:
        config.set_virtual_chunk_container(container)
    allowed = dict.fromkeys(config.virtual_chunk_containers or {}, LocalFileSystemAccess)
    Repository.open(storage, config).save_config()
    store = Repository.open(storage, None, allowed).readonly_session("main").store
    np.testing.assert_array_equal(zarr.open_array(store, path="x")[:], np.tile(values, 2))
