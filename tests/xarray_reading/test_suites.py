"""xarray's own tests of its Zarr backend, on stores of this project and through its engine.

`conftest.NOT_APPLICABLE` lists what is left out, and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from xarray.tests import test_backends, test_backends_datatree

import icechunk


def new_store() -> icechunk.IcechunkStore:
    """Return a store that writes to a new repository."""
    return icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main").store


class _OnStore:
    @contextlib.contextmanager
    def create_zarr_target(self) -> Iterator[icechunk.IcechunkStore]:
        yield new_store()


class TestStore(_OnStore, test_backends.TestZarrDictStore):
    """A store with uncommitted changes, under the engine ``zarr``."""


@pytest.fixture
def tmp_store() -> icechunk.IcechunkStore:
    return new_store()


class TestRegions(_OnStore, test_backends.TestZarrRegionAuto):
    """Writes of regions that xarray finds by itself."""


class TestDataArrays(test_backends.TestDataArrayToZarr):
    """Data arrays, under the engine ``zarr``."""


class TestEngine(test_backends.ZarrBase):
    """Committed versions, under the engine ``icechunk``."""

    @contextlib.contextmanager
    def create_zarr_target(self) -> Iterator[icechunk.IcechunkStore]:
        self.storage = icechunk.in_memory_storage()
        # a store of this kind goes on after a commit
        yield icechunk.IcechunkStore.create(self.storage)

    @contextlib.contextmanager
    def open(self, path: icechunk.IcechunkStore, **options: Any) -> Iterator[xr.Dataset]:
        if path.has_uncommitted_changes:
            path.commit("written by xarray")
        with xr.open_dataset(self.storage, engine="icechunk", **options) as dataset:
            yield dataset


# what xarray tests with Zarr alone is about writing, or names the engine ``zarr``: see TestStore
for _name in set(dir(test_backends.ZarrBase)) - set(dir(test_backends.CFEncodedBase)):
    if _name.startswith("test_"):
        setattr(TestEngine, _name, None)


class TestTrees(test_backends_datatree.TestZarrDatatreeIO):
    """Trees, under the engine ``icechunk``.

    The tests name paths. What is written to one goes to a repository there and is committed.
    """

    @pytest.fixture(autouse=True)
    def repositories(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for cls in (xr.Dataset, xr.DataTree):
            monkeypatch.setattr(cls, "to_zarr", _committing(cls.to_zarr))
        for module in (test_backends_datatree, xr):
            for name in ("open_dataset", "open_datatree", "open_groups", "load_datatree"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, _with_engine(getattr(module, name)))


def _committing(to_zarr: Callable[..., Any]) -> Callable[..., Any]:
    def write(data: Any, path: str | Path, **options: Any) -> Any:
        repo = icechunk.Repository.open_or_create(path)
        session = repo.writable_session("main")
        result = to_zarr(data, session.store, **options)
        session.commit("written by xarray")
        return result

    return write


def _with_engine(open_: Callable[..., Any]) -> Callable[..., Any]:
    def open_path(path: str | Path, *, engine: str | None = None, **options: Any) -> Any:
        # None must find out by itself
        return open_(path, engine=engine and "icechunk", **options)

    return open_path
