"""``xr.open_dataset(..., engine="icechunk")`` and its siblings."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings, strategies as st
from zarr.core.buffer import default_buffer_prototype

import icechunk
from icechunk import (
    InvalidInputError,
    LocalStorage,
    NodeNotFoundError,
    Repository,
    RepositoryNotFoundError,
)
from icechunk.storage import CountingStorage, WrapperStorage
from icechunk.storage.base import Storage
from icechunk_xarray.targets import open_session
from tests.servers import S3Server
from tests.xarray_reading.versions import VERSIONS, version, write, write_versions

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading") / "repository"
    write_versions(LocalStorage(folder))
    return folder


@pytest.fixture(scope="module")
def repo(folder: Path) -> icechunk.Repository:
    return icechunk.Repository.open(folder)


def commits(repo: icechunk.Repository) -> list[icechunk.SnapshotInfo]:
    """Return those that `write_versions` made, oldest first."""
    return list(repo.ancestry(branch="main"))[VERSIONS - 1 :: -1]


# -- what can be opened --------------------------------------------------------------------
TARGETS: dict[str, Callable[[icechunk.Repository, str], Any]] = {
    "path": lambda repo, path: path,
    "Path": lambda repo, path: Path(path),
    "URL": lambda repo, path: Path(path).as_uri(),
    "Storage": lambda repo, path: repo.storage,
    "StorageConfig": lambda repo, path: icechunk.StorageConfig.filesystem(path),
    "Repository": lambda repo, path: repo,
    "Session": lambda repo, path: repo.readonly_session("main"),
    "IcechunkStore": lambda repo, path: repo.readonly_session("main").store,
    "early IcechunkStore": lambda repo, path: icechunk.IcechunkStore.open_existing(path, "r"),
    "writable Session": lambda repo, path: repo.writable_session("main"),
}


@pytest.mark.parametrize(
    ("kind", "engine"),
    # engines for NetCDF take all URLs to be theirs
    [
        (kind, engine)
        for kind in TARGETS
        for engine in ("icechunk", None)
        if engine or kind != "URL"
    ],
)
def test_all_that_names_a_repository_opens(
    kind: str, engine: Any, repo: icechunk.Repository, folder: Path
) -> None:
    target = TARGETS[kind](repo, str(folder))
    with xr.open_dataset(target, engine=engine) as dataset:
        xr.testing.assert_identical(dataset, version(2))
        assert dataset.encoding["source"] == folder.as_uri()
        assert dataset.encoding["icechunk_snapshot_id"] == repo.lookup_branch("main")
        by_id = kind in ("Session", "IcechunkStore")
        assert dataset.encoding["icechunk_ref"] == (
            {"snapshot_id": repo.lookup_branch("main")} if by_id else {"branch": "main"}
        )
        again = xr.open_dataset(folder, **dataset.encoding["icechunk_ref"])
        xr.testing.assert_identical(dataset, again)
    with xr.open_datatree(target, engine=engine) as tree:
        expected = {"/": version(2), "/deep/er": version(12)}
        xr.testing.assert_identical(tree, xr.DataTree.from_dict(expected))
        assert (
            tree["deep/er"].encoding
            == tree.encoding
            == again.encoding | {"icechunk_ref": dataset.encoding["icechunk_ref"]}
        )
    groups = xr.open_groups(target, engine=engine, group="/deep/")
    assert list(groups) == [".", "er"]
    xr.testing.assert_identical(groups["er"], version(12))


def test_a_url_takes_storage_options(s3_server: S3Server) -> None:
    storage = s3_server.storage()
    write_versions(storage)
    options = {
        "endpoint_url": s3_server.endpoint_url,
        "region": s3_server.region,
        "allow_http": True,
        "force_path_style": True,
        "access_key_id": s3_server.access_key_id,
        "secret_access_key": s3_server.secret_access_key,
    }
    dataset = xr.open_dataset(storage.url, engine="icechunk", storage_options=options, tag="v0")
    xr.testing.assert_identical(dataset, version(0))
    assert dataset.encoding["source"] == storage.url
    assert s3_server.secret_access_key not in repr(dataset.encoding)


def test_home_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    for engine in ("icechunk", None):
        assert xr.open_dataset("~/repository", engine=engine).title == "version 2"


def test_config_and_access_to_virtual_chunks_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.bin").write_bytes(np.arange(6, dtype="<f4").tobytes())
    prefix = f"file://{tmp_path}/archive/"
    container = icechunk.VirtualChunkContainer(
        prefix, icechunk.local_filesystem_store(str(tmp_path / "archive"))
    )
    config = icechunk.RepositoryConfig(virtual_chunk_containers={prefix: container})
    repo = icechunk.Repository.create(
        tmp_path / "repository", config, {prefix: icechunk.credentials.LocalFileSystemAccess}
    )
    session = repo.writable_session("main")
    empty = xr.Dataset({"a": ("x", np.zeros(6, "f4"))})
    write(session, empty.assign(a=empty.a.assign_attrs(units="K")))
    zarr.create_array(
        session.store,
        name="a",
        overwrite=True,
        shape=(6,),
        chunks=(6,),
        dtype="<f4",
        compressors=None,
        dimension_names=("x",),
    )
    session.store.set_virtual_ref("a/c/0", f"{prefix}a.bin", offset=0, length=24)
    session.commit("virtual")
    for target in (tmp_path / "repository", icechunk.Repository.open(tmp_path / "repository")):
        opened = xr.open_dataset(
            target,
            engine="icechunk",
            config=config,
            authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
        )
        assert opened["a"].values.tolist() == [0, 1, 2, 3, 4, 5]
        with pytest.raises(icechunk.IcechunkError, match="authorize_virtual_chunk_access"):
            xr.open_dataset(target, engine="icechunk").load()


def test_many_repositories_at_once(tmp_path: Path) -> None:
    paths = []
    for day in range(3):
        paths.append(str(tmp_path / f"{day}"))
        session = icechunk.Repository.create(paths[-1]).writable_session("main")
        times = {"time": [np.datetime64(f"2000-01-0{day + 1}", "ns")]}
        write(session, xr.Dataset({"a": ("time", [day])}, times))
        session.commit("a day")
    sessions = [icechunk.Repository.open(path).readonly_session("main") for path in paths]
    for targets in (paths, sessions):
        with xr.open_mfdataset(targets, engine="icechunk") as dataset:
            assert dataset["a"].values.tolist() == [0, 1, 2]
    with xr.open_mfdataset(f"{tmp_path}/*", engine="icechunk", combine="by_coords") as dataset:
        assert dataset["a"].chunks == ((1, 1, 1),)


# -- which version -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ref", "number"),
    [({}, 2), ({"branch": "main"}, 2), ({"branch": "old"}, 1), ({"tag": "v0"}, 0)],
)
def test_refs(ref: dict[str, Any], number: int, folder: Path, repo: icechunk.Repository) -> None:
    named = {"snapshot_id": commits(repo)[number].id}
    for how in (ref, named):
        dataset = xr.open_dataset(folder, engine="icechunk", **how)
        xr.testing.assert_identical(dataset, version(number))
        assert dataset.encoding["icechunk_ref"] == (how or {"branch": "main"})


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


TIMES: list[Callable[[datetime], Any]] = [
    lambda t: t,
    lambda t: t.astimezone(timezone(timedelta(hours=-7))),
    lambda t: t.replace(tzinfo=None),
    lambda t: t.isoformat(),
    lambda t: t.replace(tzinfo=None).isoformat(" "),
    lambda t: t.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat(),
    lambda t: np.datetime64(t.replace(tzinfo=None), "ns"),
    lambda t: pd.Timestamp(t),
    lambda t: pd.Timestamp(t).tz_localize(None),
]


@pytest.mark.parametrize("kind", range(len(TIMES)))
@pytest.mark.usefixtures("far_from_greenwich")
def test_as_of_is_the_newest_that_is_not_younger(kind: int, repo: icechunk.Repository) -> None:
    for number, commit in enumerate(commits(repo)):
        for late, expected in ((0, number), (1, number), (-1, number - 1)):
            when = TIMES[kind](commit.written_at + timedelta(microseconds=late))
            if expected < 0:
                # the root snapshot of the repository is empty
                with pytest.raises(NodeNotFoundError, match="no groups at all"):
                    xr.open_dataset(repo, engine="icechunk", as_of=when)
                continue
            opened = xr.open_dataset(repo, engine="icechunk", as_of=when)
            assert opened.title == f"version {expected}"
            ref = opened.encoding["icechunk_ref"]
            assert xr.open_dataset(repo, engine="icechunk", **ref).title == opened.title


@pytest.mark.usefixtures("far_from_greenwich")
def test_a_date_is_its_first_instant_in_utc(repo: icechunk.Repository) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date()
    for day in (tomorrow, tomorrow.isoformat(), np.datetime64(tomorrow)):
        assert open_session(repo, as_of=day).snapshot_id == repo.lookup_branch("main")
        assert open_session(repo, branch="old", as_of=day).snapshot_id == repo.lookup_branch("old")
    today = datetime.now(UTC).date()
    for long_ago in (date(2020, 2, 29), "2020-02-29", today.isoformat(), np.datetime64(today)):
        with pytest.raises(icechunk.SnapshotNotFoundError, match="its first is from"):
            open_session(repo, as_of=long_ago)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("path", {"branch": "main", "tag": "v0"}, "branch and tag each name a version"),
        ("path", {"tag": "v0", "as_of": "2024-01-01"}, "as_of goes with a branch"),
        ("path", {"snapshot_id": "1CECHNKREP0F1RSTCMT0", "as_of": "2024-01-01"}, "as_of goes with"),
        ("path", {"as_of": "yesterday"}, "as_of is 'yesterday'.*ISO 8601"),
        ("path", {"as_of": pd.NaT}, "as_of is NaT"),
        ("path", {"as_of": np.datetime64("NaT")}, "as_of is"),
        ("path", {"as_of": 2024}, "as_of is 2024"),
        ("path", {"branch": "mian"}, "no branch 'mian'"),
        ("path", {"tag": "main"}, "there is a branch of this name"),
        ("path", {"storage_options": {"region": "x"}}, "no option region"),
        ("path", {"consolidated": True}, "snapshot holds the metadata of all nodes"),
        ("path", {"zarr_format": 2}, "format 3 only"),
        ("Storage", {"storage_options": {"region": "x"}}, "cannot be given with a LocalStorage"),
        ("Repository", {"storage_options": {}}, "cannot be given with a Repository"),
        ("Session", {"branch": "main"}, "branch cannot be given with a Session"),
        ("Session", {"as_of": "2024-01-01"}, "as_of cannot be given with a Session"),
        ("IcechunkStore", {"tag": "v0"}, "tag cannot be given with an IcechunkStore"),
        ("IcechunkStore", {"config": icechunk.RepositoryConfig()}, "config cannot be given"),
    ],
)
def test_contradictions(
    target: str, options: dict[str, Any], words: str, repo: icechunk.Repository, folder: Path
) -> None:
    named = TARGETS[target](repo, str(folder))
    for open_ in (xr.open_dataset, xr.open_datatree, xr.open_groups):
        with pytest.raises(icechunk.IcechunkError, match=words):
            open_(named, engine="icechunk", **options)


# -- what is not there ---------------------------------------------------------------------
def test_a_missing_group_is_told_with_those_that_exist(folder: Path) -> None:
    for open_ in (xr.open_dataset, xr.open_datatree):
        with pytest.raises(NodeNotFoundError, match=r"no group '/shallow'; .* '/', '/deep'"):
            open_(folder, engine="icechunk", group="shallow")
        with pytest.raises(NodeNotFoundError, match=r"'/deep/er/lag' is an array: .* '/deep/er'"):
            open_(folder, engine="icechunk", group="deep/er/lag")


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError, match=r"Repository\.create"):
        xr.open_dataset(tmp_path / "nothing", engine="icechunk")
    assert not (tmp_path / "nothing").exists()
    for zarr_format in (2, 3):
        path = tmp_path / f"plain{zarr_format}"
        version(0).to_zarr(path, zarr_format=zarr_format, consolidated=False)
        with pytest.raises(RepositoryNotFoundError, match=r"plain Zarr store.*engine='zarr'"):
            xr.open_dataset(path, engine="icechunk")
    with pytest.raises(InvalidInputError, match="an int names no repository"):
        xr.open_dataset(7, engine="icechunk")


def test_arrays_without_names_of_dimensions_are_named() -> None:
    repository = DATA / "v1" / "repository"
    with pytest.raises(InvalidInputError, match=r"group '/g/sub'.* 'sharded': .*dimension_names"):
        xr.open_dataset(repository, group="g/sub")


#: What makes an array that no dataset can have, of one that it can.
UNFIT: dict[str, dict[str, Any]] = {
    "dimension_names": {"dimension_names": None},
    "nobody.knows": {"codecs": [{"name": "bytes"}, {"name": "nobody.knows"}]},
    "TypeError": {
        "data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 1 << 34}},
        "fill_value": "",
    },
    "OverflowError": {"fill_value": 10**400},
}


@pytest.mark.parametrize("told", UNFIT)
def test_an_array_that_cannot_be_opened_is_named_and_can_be_left_out(
    told: str, tmp_path: Path
) -> None:
    repository = Repository.create(tmp_path)
    session = repository.writable_session("main")
    for group in ("/", "/sub"):
        version(1).to_zarr(session.store, group=group, zarr_format=3, consolidated=False)
    for path in ("temperature", "sub/temperature"):
        document = json.loads(session.store.get_sync(f"{path}/zarr.json").to_bytes())
        document.update(UNFIT[told])
        buffer = default_buffer_prototype().buffer.from_bytes(json.dumps(document).encode())
        session.store.set_sync(f"{path}/zarr.json", buffer)
    session.commit("odd")
    session = repository.readonly_session("main")
    for open_ in (xr.open_dataset, xr.open_datatree, xr.open_groups):
        with pytest.raises(InvalidInputError, match=f"'/'.*'temperature': .*{told}") as error:
            open_(session.store, engine="icechunk")
        assert "drop_variables=['temperature'] leaves them out" in str(error.value)
    expected = version(1).drop_vars("temperature")
    for drop in ("temperature", ["temperature", "not there"]):
        opened = xr.open_dataset(session.store, engine="icechunk", drop_variables=drop)
        xr.testing.assert_identical(opened.load(), expected)
        assert pickle.loads(pickle.dumps(opened)).identical(expected)
    tree = xr.open_datatree(session.store, engine="icechunk", drop_variables=["temperature"])
    for group in ("/", "/sub"):
        xr.testing.assert_identical(tree[group].to_dataset().load(), expected)


def test_unknown_options_are_errors(folder: Path) -> None:
    for open_ in (xr.open_dataset, xr.open_datatree, xr.open_groups):
        with pytest.raises(TypeError, match="snapshot"):
            open_(folder, engine="icechunk", snapshot="v0")


# -- who opens what ------------------------------------------------------------------------
def test_only_repositories_are_recognised(tmp_path: Path, folder: Path) -> None:
    guess = xr.backends.plugins.get_backend("icechunk").guess_can_open
    for version_of_spec in ("v1", "v2"):
        found = DATA / version_of_spec / "repository"
        assert guess(found) and guess(str(found)) and guess(found.as_uri())
        assert xr.open_dataset(found, group="g-1").encoding["source"] == found.as_uri()
    # the name says zarr, the files say otherwise
    (tmp_path / "link.zarr").symlink_to(folder)
    assert xr.open_dataset(tmp_path / "link.zarr").encoding["source"].endswith("link.zarr")
    version(0).to_zarr(tmp_path / "plain.zarr")
    version(0).drop_vars("name").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    (tmp_path / "repo").write_text("a file of that name")
    others = ("plain.zarr", "a.nc", "repo", "nothing", "", "a\0b")
    for other in (*(tmp_path / name for name in others), tmp_path.as_uri()):
        assert not guess(other)
    for other in ("s3://bucket/repo", "https://host/x", "memory://x", "file://", b"x", 7, None):
        assert not guess(other)
    with open(tmp_path / "a.nc", "rb") as file:
        assert not guess(file)
    assert xr.open_dataset(tmp_path / "plain.zarr").title == "version 0"
    with xr.open_dataset(tmp_path / "a.nc") as netcdf:
        assert netcdf.title == "version 0"


# -- decoding ------------------------------------------------------------------------------
DECODING = st.fixed_dictionaries(
    {},
    optional={
        "decode_cf": st.booleans(),
        "mask_and_scale": st.booleans() | st.just({"temperature": False}),
        "decode_times": st.booleans() | st.just(xr.coders.CFDatetimeCoder(time_unit="s")),
        "decode_timedelta": st.booleans(),
        "concat_characters": st.booleans(),
        "decode_coords": st.booleans() | st.just("all"),
        "drop_variables": st.sampled_from(["lag", ["lag", "time"]]),
        "chunks": st.sampled_from([{}, "auto", {"time": 2}]),
        "cache": st.booleans(),
        "create_default_indexes": st.booleans(),
        "group": st.just("deep/er"),
    },
)


@settings(max_examples=40)
@given(options=DECODING)
def test_decoding_is_that_of_the_zarr_engine(options: dict[str, Any], folder: Path) -> None:
    store = icechunk.Repository.open(folder).readonly_session("main").store
    ours = xr.open_dataset(folder, engine="icechunk", **options)
    theirs = xr.open_dataset(store, engine="zarr", consolidated=False, **options)
    xr.testing.assert_identical(ours, theirs)
    for name, variable in theirs.variables.items():
        # a fill value may be NaN, which equals nothing
        assert repr(ours[name].encoding) == repr(variable.encoding)
        assert ours[name].chunks == variable.chunks
        assert ours[name].dtype == variable.dtype
    assert ours.xindexes.keys() == theirs.xindexes.keys()


def test_fill_values_can_be_masks() -> None:
    session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=(2,), dtype="i2", fill_value=7, dimension_names=("x",)
    )
    array[:] = [7, 8]
    zarr.group(session.store)
    plain = xr.open_dataset(session, engine="icechunk")
    masked = xr.open_dataset(session, engine="icechunk", use_zarr_fill_value_as_mask=True)
    assert plain["a"].values.tolist() == [7, 8]
    assert np.isnan(masked["a"].values[0]) and masked["a"].values[1] == 8


# -- nothing eager -------------------------------------------------------------------------
class RecordingStorage(WrapperStorage):
    """Notes which objects are read."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.read: list[str] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.read += keys


@pytest.mark.parametrize(("arrays", "others"), [(1, 0), (200, 0), (1, 2000)])
def test_opening_takes_two_requests(arrays: int, others: int) -> None:
    storage = icechunk.in_memory_storage()
    config = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=0)
    session = icechunk.Repository.create(storage, config).writable_session("main")
    write(session, xr.Dataset({"v": ("x", np.ones(4), {"units": "K"})}), "wanted")
    document = session.tree.require("/wanted/v").user_data
    for i in range(1, arrays):
        session.set_metadata_document(f"/wanted/v{i}", document)
    for i in range(others):
        session.set_metadata_document(f"/other/v{i}", document)
    session.commit("all")
    counting = CountingStorage(storage)
    opened = xr.open_dataset(counting, engine="icechunk", group="wanted", chunks={})
    assert len(opened) == arrays
    assert counting.requests == 2  # the repo info and the snapshot
    opened["v"].load()
    assert counting.requests == 4  # a manifest and a chunk
    counting.reset()
    assert len(xr.open_datatree(counting, engine="icechunk", group="wanted")) == arrays
    assert counting.requests == 2


def test_no_chunk_is_read_but_for_indexes(tmp_path: Path) -> None:
    config = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=0)
    session = icechunk.Repository.create(tmp_path, config).writable_session("main")
    coords = {"x": np.arange(4.0), "y": ("x", np.arange(4.0))}
    write(session, xr.Dataset({"a": ("x", np.ones(4))}, coords))
    session.commit("all")
    for default_indexes, chunks in ((True, 1), (False, 0)):
        storage = RecordingStorage(LocalStorage(tmp_path))
        opened = xr.open_dataset(
            storage,
            engine="icechunk",
            create_default_indexes=default_indexes,
        )
        assert sum(key.startswith("chunks/") for key in storage.read) == chunks
        opened.load()
        assert sum(key.startswith("chunks/") for key in storage.read) == 3


# -- elsewhere -----------------------------------------------------------------------------
LOADED = """
import pickle, sys
opened = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps([each.load() for each in opened]))
"""


def test_what_is_pickled_opens_in_another_process(folder: Path) -> None:
    dataset = xr.open_dataset(folder, tag="v0")
    lazy = xr.open_dataset(folder, tag="v0", chunks={})
    tree = xr.open_datatree(folder)
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        input=pickle.dumps((dataset, lazy, tree)),
        capture_output=True,
        check=True,
    )
    loaded = pickle.loads(done.stdout)
    for each in loaded[:2]:
        xr.testing.assert_identical(each, version(0))
    xr.testing.assert_identical(loaded[2]["deep/er"].to_dataset(), version(12))


def test_dask_workers_open_it_themselves(folder: Path) -> None:
    with dask.config.set(scheduler="processes", num_workers=1):
        dataset = xr.open_dataset(folder, chunks={"time": 2})
        xr.testing.assert_identical(dataset.compute(), version(2))


def test_copies_in_one_process_fetch_the_snapshot_once(folder: Path) -> None:
    counting = CountingStorage(LocalStorage(folder))
    store = open_session(counting, tag="v0").store
    pickled = [pickle.dumps(store) for _ in range(10)]
    before = counting.requests
    # as in a worker, where nobody has it yet
    del store
    gc.collect()
    copies = [pickle.loads(each) for each in pickled]
    shared = copies[0].session.storage
    assert isinstance(shared, CountingStorage) and shared is not counting
    assert all(copy.session.storage is shared for copy in copies)
    # nothing is asked before a copy is used, and then once for all of them
    assert shared.requests == before
    opened = [xr.open_dataset(copy, engine="icechunk", decode_cf=False) for copy in copies]
    assert all(each.title == "version 0" for each in opened)
    assert all(copy.session.tree.get("/") is not None for copy in copies)
    manifests = len(
        {r.id for n in copies[0].session.tree.nodes() if n.array for r in n.array.manifests}
    )
    assert before + 1 <= shared.requests <= before + 1 + manifests


def test_a_writable_session_reads_its_changes_and_does_not_travel(folder: Path) -> None:
    session = icechunk.Repository.open(folder).writable_session("main")
    write(session, version(5))
    dataset = xr.open_dataset(session, chunks={})
    xr.testing.assert_identical(dataset, version(5))
    assert dataset.encoding == {"source": folder.as_uri(), "icechunk_ref": {"branch": "main"}}
    with pytest.raises(icechunk.SessionStateError, match=r"session\.fork\(\)"):
        pickle.dumps(dataset)


def test_what_was_opened_is_written_without_traces(folder: Path, tmp_path: Path) -> None:
    dataset = xr.open_dataset(folder)
    dataset.to_zarr(tmp_path / "copy.zarr")
    dataset.drop_vars("name").to_netcdf(tmp_path / "copy.nc", engine="h5netcdf")
    for copy in ("copy.zarr", "copy.nc"):
        with xr.open_dataset(tmp_path / copy) as copied:
            assert copied.attrs == version(2).attrs


@pytest.mark.parametrize("kind", ["path", "Storage", "StorageConfig", "Repository", "Session"])
def test_versions_differ_in_one_dask_graph(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "repository")
    repo = icechunk.Repository.create(path)
    opened = []
    for number in range(2):
        session = repo.writable_session("main")
        write(session, xr.Dataset({"a": ("x", [number])}))
        session.commit("a version")
        opened.append(xr.open_dataset(TARGETS[kind](repo, path), engine="icechunk", chunks={}))
    assert (opened[1] - opened[0])["a"].values.tolist() == [1]


@pytest.mark.parametrize("tree", [False, True])
def test_versions_of_a_url_differ_in_one_dask_graph(tree: bool, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    repo = icechunk.Repository.create(folder)
    opened = []
    for number in range(2):
        session = repo.writable_session("main")
        write(session, xr.Dataset({"a": ("x", [number]), "c": ("y", [number])}).set_coords("c"))
        session.commit("a version")
        how: dict[str, Any] = {"engine": "icechunk", "chunks": {}}
        if tree:
            dataset = xr.open_datatree(folder.as_uri(), **how).to_dataset()
        else:
            dataset = xr.open_dataset(folder.as_uri(), **how)
        assert list(dataset.coords) == ["c"]
        opened.append(dataset.reset_coords())
    difference = opened[1] - opened[0]
    assert difference["a"].values.tolist() == difference["c"].values.tolist() == [1]
    # nothing is left of how it was done
    assert {type(each.variable) for each in opened[0].values()} == {xr.Variable}


def test_two_sessions_of_one_version_share_dask_tasks(repo: icechunk.Repository) -> None:
    names = {
        xr.open_dataset(repo.readonly_session("main"), chunks={})["temperature"].data.name
        for _ in range(2)
    }
    assert len(names) == 1


def test_it_is_an_installed_engine() -> None:
    description = repr(xr.backends.list_engines()["icechunk"])
    assert "Icechunk" in description and os.fspath("icechunk") in xr.backends.list_engines()
