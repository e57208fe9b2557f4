"""The life of an archive on an object store and a cluster; both clients read what is left."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from icechunk import LocalStorage, Storage
from tests.archives.test_life import ArchiveLife
from tests.dask_writes.clusters import shared
from tests.interop.sides import Official, Ours
from tests.servers import S3Server

#: A few short lives: `ArchiveLife` has many, in a folder.
SHORT = settings(
    max_examples=3, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)


def on_s3(server: S3Server) -> Callable[[ArchiveLife], tuple[Storage, Any]]:
    def made(life: ArchiveLife) -> tuple[Storage, Any]:
        prefix = life.folder.name
        place = {
            "bucket": server.bucket,
            "prefix": prefix,
            "region": server.region,
            "endpoint_url": server.endpoint_url,
            "allow_http": True,
            "force_path_style": True,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
        }
        return server.storage(prefix), place

    return made


def in_a_folder(life: ArchiveLife) -> tuple[Storage, Any]:
    return LocalStorage(life.folder / "repo"), str(life.folder / "repo")


@pytest.mark.parametrize(("way", "where"), [("sync", "s3"), ("cluster", "folder")])
def test_elsewhere(
    way: str, where: str, ours: Ours, official: Official, request: pytest.FixtureRequest
) -> None:
    place = on_s3(request.getfixturevalue("s3_server")) if where == "s3" else in_a_folder
    ends = []

    with shared(way) as client:

        class Elsewhere(ArchiveLife):
            how = MappingProxyType({"executor": client if client is not None else "sync"})

            def storage(self) -> Storage:
                storage, self.place = place(self)
                return storage

            def teardown(self) -> None:
                if self.report is not None and self.inside and not self.stale:
                    prefixes = list(self.report.access)
                    seen = [
                        side.run("archives.read_archive", self.place, prefixes)
                        for side in (ours, official)
                    ]
                    assert seen[0] == seen[1]
                    days = sum(dataset.sizes["time"] for dataset, _ in self.inside.values())
                    assert seen[0]["t"][0] == [days, 3] and "own/t" in seen[0]
                    ends.append(seen[0])
                super().teardown()

        run_state_machine_as_test(Elsewhere, settings=SHORT)
    assert ends
