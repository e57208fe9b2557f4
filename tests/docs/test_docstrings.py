"""Examples in docstrings of what is public: there are some, and they run."""

from __future__ import annotations

import doctest
import enum
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk
from icechunk import Repository, Session

MODULES = ("icechunk", "icechunk_dask", "icechunk_xarray", "icechunk.kerchunk")


def public() -> Iterator[tuple[str, Any]]:
    """Yield what modules list, and the methods of the two classes that users hold."""
    seen = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing) and id(thing) not in seen:
                seen.add(id(thing))
                yield f"{module_name}.{name}", thing
    for owner in (Repository, Session):
        for name, thing in inspect.getmembers(owner, callable):
            if not name.startswith("_") and not name.endswith("_async"):
                yield f"{owner.__name__}.{name}", thing


PUBLIC = dict(public())
EXAMPLES = {name: text for name, o in PUBLIC.items() if ">>>" in (text := inspect.getdoc(o) or "")}

#: What has none: unions of types, names of the early API, what is for this project's own rooms.
UNTOLD = {
    "icechunk.Attribution",
    "icechunk.AzureCredentials",
    "icechunk.AzureRefreshableCredential",
    "icechunk.AzureStaticCredentials",
    "icechunk.CommitMethod",
    "icechunk.Credentials",
    "icechunk.FeatureFlag",
    "icechunk.GcsCredentials",
    "icechunk.GcsStaticCredentials",
    "icechunk.IcechunkStore",
    "icechunk.ObjectStoreConfig",
    "icechunk.S3Credentials",
    "icechunk.S3Options",
    "icechunk.StorageConfig",
    "icechunk.StoreConfig",
    "icechunk.VirtualRefConfig",
    "icechunk.azure_refreshable_credentials",
    "icechunk_dask.Status",
    "icechunk_dask.TaskRun",
    "Repository.async_ancestry",
    "Repository.replay_session",
    "Repository.session_after_commit",
    "Repository.total_chunks_storage",
    "Session.array_changes",
    "Session.change_set_bytes",
    "Session.changes",
    "Session.chunk_batches",
    "Session.chunk_coordinates",
    "Session.get_node_id",
    "Session.load",
    "Session.merge_parts",
    "Session.rewrite_manifests",
    "Session.set_metadata_document",
    "Session.set_refs",
}


def test_everything_has_an_example() -> None:
    without = {
        name
        for name, o in PUBLIC.items()
        if not (inspect.isclass(o) and issubclass(o, BaseException | enum.Enum))
    } - set(EXAMPLES)
    assert without <= UNTOLD


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples may use: a repository with two commits, and a session in it."""
    monkeypatch.chdir(tmp_path)
    ds = xr.Dataset({"t": ("time", np.arange(4.0))}, {"time": np.arange(4)})
    Path("files").mkdir()
    for i in range(3):
        later = ds.assign_coords(time=np.arange(4 * i, 4 * i + 4))
        later.to_netcdf(f"files/{i}.nc", engine="h5netcdf")
    storage = icechunk.in_memory_storage()
    repo = Repository.create(storage)
    with repo.transaction("main", message="First") as store:
        array = zarr.create_array(
            store,
            name="temperature",
            shape=(4, 6),
            chunks=(1, 6),
            dtype="f4",
            dimension_names=("time", "x"),
        )
        array[:] = 15.0
    first = repo.lookup_branch("main")
    repo.create_tag("v1", first)
    with repo.transaction("main", message="Second") as store:
        zarr.open_array(store, path="temperature")[0] = 16.0
    return {
        "icechunk": icechunk,
        "zarr": zarr,
        "np": np,
        "xr": xr,
        "da": da,
        "ds": ds,
        "storage": storage,
        "repo": repo,
        "first": first,
        "session": repo.writable_session("main"),
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, names: dict[str, Any]) -> None:
    module = inspect.getmodule(inspect.unwrap(PUBLIC[name]))
    known = {**vars(module), **names}
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], known, name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(
        test, out=said.append
    )
    assert not said, "".join(said)
