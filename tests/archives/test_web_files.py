"""Archives on web servers: read by ranges, with few requests, and of one version."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError, MemoryStorage, Repository
from icechunk.errors import StorageError
from icechunk_dask import ingest, virtualize
from icechunk_dask.archives.hdf5 import open_hdf5
from icechunk_dask.archives.range_files import RangeFile
from icechunk_dask.archives.sources import GONE, Sources, Version, kind_of
from tests.archives.day_files import write_days
from tests.web_server import LAST_MODIFIED_SECONDS, WebServer, serving


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with serving() as server:
        for number in range(2):
            path = write_days(tmp_path / f"{number}.nc", 4 * number)
            server.files[f"/d/{number}.nc"] = path.read_bytes()
        yield server


def urls(web: WebServer) -> list[str]:
    return [f"{web.url}d/{number}.nc" for number in range(2)]


def read(place: MemoryStorage, web: WebServer, group: str | None = None) -> xr.Dataset:
    allowed = {web.url: None, web.url + "d/": None}
    repository = Repository.open(place, authorize_virtual_chunk_access=allowed)
    session = repository.readonly_session("main")
    return xr.open_zarr(session.store, group=group, consolidated=False, chunks=None).load()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("call", [virtualize, ingest])
def test_the_values(web: WebServer, tmp_path: Path, call: Any, ranges: bool) -> None:
    web.ranges = ranges
    place = MemoryStorage()
    report = (
        call(urls(web), place, concat_dims=["time"], scheduler="sync")
        if (call is virtualize)
        else call(urls(web), place, concat_dims=["time"])
    )
    report.raise_for_failures()
    truth = xr.open_mfdataset(
        [tmp_path / f"{n}.nc" for n in range(2)], combine="nested", concat_dim="time"
    )
    xr.testing.assert_equal(read(place, web).drop_attrs(), truth.load().drop_attrs())


def test_a_file_that_has_changed(web: WebServer) -> None:
    place = MemoryStorage()
    virtualize(urls(web), place, concat_dims=["time"], scheduler="sync")
    assert virtualize(urls(web), place, concat_dims=["time"], scheduler="sync").already
    web.etag = '"v2"'
    with pytest.raises(InvalidInputError, match=r"2 files .* changed"):
        virtualize(urls(web), place, concat_dims=["time"], scheduler="sync")


def test_versions(web: WebServer) -> None:
    found = Sources({}).versions([*urls(web), web.url + "none"])
    size = len(web.files["/d/0.nc"])
    assert found[urls(web)[0]] == Version(size, LAST_MODIFIED_SECONDS * 10**9, "v1")
    assert found[web.url + "none"] == GONE


def large(path: Path) -> bytes:
    """Write a file whose metadata are all over it."""
    with h5py.File(path, "w") as file:
        for number in range(20):
            group = file.create_group(f"g{number}")
            values = np.arange(300_000, dtype="f4") + number
            dataset = group.create_dataset("v", data=values, chunks=(100_000,))
            dataset.attrs["units"] = "K" * 500
    return path.read_bytes()


def test_the_requests_are_no_more_than_those_of_fsspec(web: WebServer, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    web.files["/large"] = large(tmp_path / "large")
    url = web.url + "large"
    counts, found = [], []
    for ours in (False, True):
        web.requests.clear()
        fs = fsspec.filesystem("http", skip_instance_cache=True)
        with Sources({}).open(url).opened() if ours else fs.open(url) as file:
            assert kind_of(file) == "hdf5"
            file.seek(0)
            with open_hdf5(file, url) as dataset:
                found.append(
                    {k: v.read((slice(None),)).sum() for k, v in dataset.variables.items()}
                )
        counts.append(len(web.requests))
    assert found[0] == found[1] and len(found[0]) == 20
    assert counts[1] < counts[0]


def test_any_reads(web: WebServer) -> None:
    pytest.importorskip("aiohttp")
    numbers = random.Random(1)
    data = numbers.randbytes(3_000_000)
    web.files["/x"] = data
    for ahead in (1, 70_000, 5 << 20):
        file = Sources({"block_size": ahead}).open(web.url + "x").opened()
        theirs = fsspec.filesystem("http", block_size=ahead).open(web.url + "x")
        counts = [0, 0]
        for _ in range(60):
            start = numbers.randrange(len(data) + 10)
            size = numbers.choice([0, 1, 4000, 300_000, 2_000_000])
            for number, each in enumerate((file, theirs)):
                before = len(web.requests)
                each.seek(start)
                assert each.read(size) == data[start : start + size]
                counts[number] += len(web.requests) - before
        assert counts[0] <= counts[1]
        file.seek(-5, 2)
        assert file.read() == data[-5:] and file.read() == b"" and file.read(3) == b""
        file.seek(7)
        buffer = bytearray(11)
        assert file.readinto(buffer) == 11 and buffer == data[7:18]  # type: ignore[attr-defined]
        with pytest.raises(ValueError):
            file.seek(-1)


def test_what_is_kept_is_bounded() -> None:
    class Zeros(MemoryStorage):
        def get(self, key: str, **options: Any) -> Any:
            start, end = options["byte_range"]
            return super().get("zeros", byte_range=(0, end - start))

    place = Zeros()
    place.put("zeros", bytes(80 << 20))
    file = RangeFile(place, "x", 1 << 60, None)
    for start in range(0, 1 << 30, 16 << 20):
        file.seek(start)
        assert file.read(10) == bytes(10)
    assert sum(map(len, file._kept.values())) <= 32 << 20
    assert len(file.read(70 << 20)) == 70 << 20
    assert sum(map(len, file._kept.values())) <= 32 << 20


def test_a_file_that_changes_while_it_is_read(web: WebServer) -> None:
    web.files["/x"] = bytes(20_000_000)
    file = Sources({}).open(web.url + "x").opened()
    web.etag = '"v2"'
    file.seek(15_000_000)
    with pytest.raises(StorageError):
        file.read(1)
    web.etag = '"v1"'
    web.files["/x"] = bytes(100)
    with pytest.raises(StorageError):
        file.read(1)


def test_options(web: WebServer) -> None:
    auth: Any = type("Auth", (), {"encode": lambda self: "Basic dTpw"})()
    table: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"headers": {"X-A": "1"}}, {"x-a": "1"}),
        ({"bearer_token": "t"}, {"authorization": "Bearer t"}),
        ({"client_kwargs": {"headers": {"X-A": "2"}}}, {"x-a": "2"}),
        ({"client_kwargs": {"auth": auth}}, {"authorization": "Basic dTpw"}),
        ({"user_agent": "me"}, {"user-agent": "me"}),
        # those of the repository
        ({"key": "k", "secret": "s", "endpoint_url": "http://e", "anon": True}, {}),
        ({"client_kwargs": {"region_name": "r"}}, {}),
    ]
    for options, headers in table:
        web.requests.clear()
        Sources(options).open(urls(web)[0]).opened()
        assert headers.items() <= web.requests[0][1].items()
        assert "k" not in web.requests[0][1].values()
    with pytest.raises(InvalidInputError, match="no option nonsense"):
        Sources({"nonsense": 1}).open(urls(web)[0]).opened()


def test_servers_that_know_get_only(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # the answer to HEAD is a failure, that to GET is not
    web.failures = [405]
    found = Sources({}).open(urls(web)[0]).version()
    assert found.size == len(web.files["/d/0.nc"]) and found.etag == "v1"


def test_a_copy_is_whole(web: WebServer, tmp_path: Path) -> None:
    with Sources({}).open(urls(web)[0]).opened() as file, (tmp_path / "copy").open("wb") as out:
        shutil.copyfileobj(file, out)
    assert (tmp_path / "copy").read_bytes() == web.files["/d/0.nc"]
