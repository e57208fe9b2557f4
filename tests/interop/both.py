"""What runs on both sides: this project and the official client are each `icechunk` here.

Arguments and results are what JSON can express. Each function opens what it needs and
leaves nothing behind but the repository, at a folder or in a bucket.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zarr

import icechunk
from tests.data import golden_content as content
from tests.interop import (
    commits,  # noqa: F401 (fills the table)
    operations,  # noqa: F401 (fills the table)
    random_work,
    rearranging,  # noqa: F401 (fills the table)
    rebases,
    refusals,
)
from tests.interop.base import OPERATIONS, Place, config, storage_at, write_base
from tests.xarray_reading import versions


def open_at(place: Place, source: str) -> Any:
    """Open a repository, and be allowed to read the virtual chunks in the folder `source`."""
    return icechunk.Repository.open(
        storage_at(place), authorize_virtual_chunk_access=content.authorization(Path(source))
    )


# -- a repository with everything in it ----------------------------------------------------
def write(place: Place, source: str) -> None:
    """Create a repository and write commits of all kinds."""
    content.write_source(Path(source))
    repo = icechunk.Repository.create(
        storage_at(place),
        content.full_config(Path(source)),
        authorize_virtual_chunk_access=content.authorization(Path(source)),
    )
    content.write_history(repo)


def go_on(place: Place, source: str) -> None:
    """Write more commits of all kinds on top of what the other side wrote."""
    content.continue_history(open_at(place, source))


def add_to_migrated(folder: str, source: str, name: str) -> None:
    """Commit to a repository that was of spec version 1."""
    repo = open_at(folder, source)
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    content.create(root, name, content.numbers((4, 4), "f4"), (2, 2))
    root["split"][0] = len(list(root))
    root["g/cube"].attrs[name] = True
    session.commit(f"by {name}", rebase_with=icechunk.BasicConflictSolver())
    session = repo.rearrange_session("main")
    session.move(f"/{name}", f"/g/{name}")
    session.amend(f"by {name}, moved")


def amend_after_expiration(folder: str) -> None:
    """Amend the snapshot of the golden repository whose parent has expired."""
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(folder))
    session = repo.writable_session("reset")
    zarr.open_group(session.store, mode="r+")["scalar"][...] = 2.5
    session.amend("amended after expiration")


def read(place: Place, source: str) -> dict[str, Any]:
    """Return all that there is to see in a repository."""
    repo = open_at(place, source)
    found: dict[str, Any] = content.expectations(repo)
    found["updates"] = [
        [type(update.kind).__name__, update.updated_at.isoformat(), update.backup_path]
        for update in repo.ops_log()
    ]
    found["metadata"] = repo.get_metadata()
    flags = [[flag.id, flag.name, flag.setting, flag.enabled] for flag in repo.feature_flags()]
    found["flags"] = sorted(flags)
    found["status"] = str(repo.get_status().availability)
    session = repo.readonly_session("main")
    found["virtual_locations"] = sorted(set(session.all_virtual_chunk_locations()))
    found["manifests"] = sorted(
        [file.id, file.size_bytes, file.num_chunk_refs]
        for file in repo.list_manifest_files(session.snapshot_id)
    )
    return found


# -- tables of small pieces of work --------------------------------------------------------
def create_base(folder: str) -> None:
    """Create the repository that each of them begins with a copy of."""
    storage = icechunk.local_filesystem_storage(folder)
    write_base(icechunk.Repository.create(storage, config()))


def _copy(base: str, folder: str) -> Any:
    shutil.copytree(base, folder)
    return icechunk.Repository.open(icechunk.local_filesystem_storage(folder))


def operate(base: str, folder: str, name: str) -> None:
    """Do one of `OPERATIONS` in a copy of the base."""
    OPERATIONS[name](_copy(base, folder))


def refuse(base: str, folder: str, name: str) -> list[str]:
    """Do one of `refusals.REFUSALS` in a copy of the base; return class and kind of the error."""
    repo = _copy(base, folder)
    try:
        refusals.REFUSALS[name](repo)
    except icechunk.IcechunkError as error:
        return [type(error).__name__, str(error.kind)]
    except Exception as error:
        return [type(error).__name__, "", str(error)]
    return []


def play(base: str, folder: str, steps: list[random_work.Step]) -> dict[str, Any]:
    """Do steps in a copy of the base.

    Returns
    -------
    dict
        What became of each step, and what is different at the end from each commit on.
    """
    repo = _copy(base, folder)
    work = random_work.Work(repo)
    outcomes = [work.do(step) for step in [*steps, ["finish", "commit"]]]
    history = list(repo.ancestry(branch="main"))
    diffs = [
        {
            "from": entry.message,
            "to": history[0].message,
            "diff": content.plain_diff(
                repo.diff(from_snapshot_id=entry.id, to_snapshot_id=history[0].id)
            ),
        }
        for entry in history[1:]
    ]
    return {"outcomes": outcomes, "diffs": diffs}


def rebase(base: str, folder: str) -> dict[str, Any]:
    """Return what rebases make of all pairs of `rebases.EDITS`."""
    return rebases.matrix(_copy(base, folder))


def ask_as(url: str, labels: dict[str, str]) -> bool:
    """Ask a web server for a repository, with an attribution; False if that is refused."""
    try:
        attribution = icechunk.Attribution(**labels)
    except ValueError:
        return False
    with suppress(icechunk.IcechunkError):
        icechunk.Repository.open(icechunk.http_storage(url), attribution=attribution)
    return True


def clean_up(place: Place, source: str) -> dict[str, int]:
    """Rewrite all manifests, expire all old snapshots, and collect the garbage."""
    repo = open_at(place, source)
    repo.rewrite_manifests("rewritten", branch="main")
    now = datetime.now(UTC)
    repo.expire_snapshots(now)
    summary = repo.garbage_collect(now)
    return {"snapshots": summary.snapshots_deleted, "manifests": summary.manifests_deleted}


def read_array(folder: str, path: str) -> Any:
    """Return the values of an array on main."""
    repo = icechunk.Repository.open(storage_at(folder))
    store = repo.readonly_session("main").store
    return zarr.open_array(store, path=path, mode="r")[:].tolist()


# -- xarray --------------------------------------------------------------------------------
def write_datasets(place: Place) -> None:
    """Write datasets as users of the official client do, over three commits."""
    from icechunk.xarray import to_icechunk

    repo = icechunk.Repository.create(storage_at(place))
    for number in range(versions.VERSIONS):
        session = repo.writable_session("main")
        to_icechunk(versions.version(number), session, mode="w")
        to_icechunk(versions.version(10 + number).chunk(time=2), session, group="deep/er", mode="w")
        session.commit(f"version {number}")
    repo.create_tag("v0", next(s.id for s in repo.ancestry(branch="main") if "0" in s.message))
