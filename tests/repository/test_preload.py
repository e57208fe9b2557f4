"""Manifests that are fetched when a session opens."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    CountingStorage,
    ManifestConfig,
    ManifestPreloadCondition,
    ManifestPreloadConfig,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
)

SIZES = {"a": 3, "lat": 4, "lon": 5, "time": 2, "z/depth": 1}


@pytest.fixture
def storage() -> CountingStorage:
    storage = CountingStorage(MemoryStorage())
    session = Repository.create(storage).writable_session("main")
    for name, size in SIZES.items():
        data = np.arange(1, size + 1)
        zarr.create_array(session.store, name=name, data=data, chunks=(1,))
    session.commit("arrays")
    return storage


def config(preload: ManifestPreloadConfig) -> RepositoryConfig:
    return RepositoryConfig(manifest=ManifestConfig(preload=preload))


def wait() -> None:
    """Wait until nothing is fetched any more."""
    while threads := [t for t in threading.enumerate() if t.name == "icechunk-preload"]:
        for thread in threads:
            thread.join()


def requests(storage: CountingStorage, session: Session) -> int:
    """Return how many it takes to list the chunks of all arrays."""
    wait()
    storage.reset()
    for name in SIZES:
        assert len(session.chunk_refs(f"/{name}")) == SIZES[name]
    return storage.requests


@pytest.mark.parametrize(
    "preload,left",
    [
        ({}, 1),
        ({"max_total_refs": 0}, 5),
        ({"max_arrays_to_scan": 0}, 5),
        ({"max_total_refs": 7}, 2),  # /lat, /time and /z/depth: /lon did not fit
        ({"max_arrays_to_scan": 2}, 4),
        ({"preload_if": ManifestPreloadCondition.true()}, 0),
        ({"preload_if": ManifestPreloadCondition.false()}, 5),
        ({"preload_if": ManifestPreloadCondition.num_refs(3, 5)}, 3),
        ({"preload_if": ManifestPreloadCondition.name_matches("^depth$")}, 4),
    ],
)
def test_what_is_left_to_fetch(
    storage: CountingStorage, preload: dict[str, Any], left: int
) -> None:
    repository = Repository.open(storage, config(ManifestPreloadConfig(**preload)))
    assert requests(storage, repository.readonly_session("main")) == left


def test_all_kinds_of_sessions(storage: CountingStorage) -> None:
    everything = ManifestPreloadConfig(preload_if=ManifestPreloadCondition.true())
    for open_session in ("readonly_session", "writable_session", "rearrange_session"):
        repository = Repository.open(storage, config(everything))
        assert requests(storage, getattr(repository, open_session)("main")) == 0
    # what is there already is not fetched again
    storage.reset()
    repository.readonly_session("main")
    wait()
    assert storage.requests == 1  # the repo info


def test_what_cannot_be_fetched(storage: CountingStorage, caplog: pytest.LogCaptureFixture) -> None:
    for found in list(storage.list("manifests/")):
        storage.delete([found.key])
    repository = Repository.open(storage, config(ManifestPreloadConfig()))
    repository.readonly_session("main")
    wait()
    assert "cannot preload manifest" in caplog.text


#: For these the official client does, and does not, preload by default.
COORDINATES = [
    "t",
    "time1",
    "time12",
    "min2",
    "olev",
    "oolev",
    "nav_lev",
    "gdept",
    "gdep_",
    "zoo",
    "z_1",
    "z",
    "zab12",
    "lev_1",
    "ylat",
    "xlon",
    "xnav_lon",
    "xglamx",
    "ygphi2",
    "isobaric_1",
    "pressure_level",
    "height2",
    "heights",
    "lv_is",
    "sigma_w",
    "pres2",
    "altitudes",
    "year1900",
    "lat",
    "lon",
    "latitude2x",
    "lats",
    "lonb",
    "x",
    "y",
    "i",
    "j",
    "ni",
    "nj",
    "nlat",
    "rlon",
    "depth_",
    "bottom_top",
    "isotherm",
]
OTHERS = [
    "t1",
    "mint",
    "times",
    "mytime",
    "time_bnds",
    "z1a",
    "xlat",
    "ylon",
    "yylat",
    "hgt",
    "hgh",
    "lon_x",
    "lonA",
    "rlat2",
    "nlat1",
    "x2",
    "i2",
    "j_",
    "alti",
    "yearly",
    "weeks",
    "yi",
    "xi",
    "Z",
    "Z1",
    "X",
    "Time",
    "Latitude",
    "lat_2",
    "lat_bnds",
    "lv_ISBL",
    "date",
    "air",
    "vertical",
]


def test_names_of_coordinates() -> None:
    condition = RepositoryConfig().effective().preload_if
    assert [name for name in COORDINATES if not condition.matches(f"/g/{name}", 1000)] == []
    assert [name for name in OTHERS if condition.matches(f"/time/{name}", 1)] == []
    assert not condition.matches("/time", 1001)
