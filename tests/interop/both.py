"""What runs on both sides: this project and the official client are each `icechunk` here.

Arguments and results are what JSON can express. Each function opens what it needs and
leaves nothing behind but the repository, at a folder or in a bucket.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import icechunk

from tests.data import golden_content as content
from tests.interop import operations, refusals

#: A folder, or the options of an S3 storage.
Place = Any


def storage_at(place: Place) -> Any:
    """Return the storage at a place."""
    if isinstance(place, str):
        return icechunk.local_filesystem_storage(place)
    return icechunk.s3_storage(**place)


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


def read(place: Place, source: str) -> dict[str, Any]:
    """Return all that there is to see in a repository."""
    repo = open_at(place, source)
    found: dict[str, Any] = content.expectations(repo)
    found["updates"] = [
        [type(update.kind).__name__, update.updated_at.isoformat(), update.backup_path]
        for update in repo.ops_log()
    ]
    found["metadata"] = repo.get_metadata()
    found["flags"] = [[f.id, f.name, f.setting, f.enabled] for f in repo.feature_flags()]
    found["status"] = repo.get_status().availability.name
    session = repo.readonly_session("main")
    found["virtual_locations"] = sorted(set(session.all_virtual_chunk_locations()))
    found["manifests"] = sorted(
        [file.id, file.size_bytes, file.num_chunk_refs]
        for file in repo.list_manifest_files(session.snapshot_id)
    )
    return found


# -- tables of small pieces of work --------------------------------------------------------
def _base(place: Place) -> Any:
    repo = icechunk.Repository.create(storage_at(place), operations.config())
    operations.write_base(repo)
    return repo


def operate(place: Place, name: str) -> None:
    """Do one of `operations.OPERATIONS` in a repository of its own."""
    operations.OPERATIONS[name](_base(place))


def refuse(place: Place, name: str) -> list[str]:
    """Do one of `refusals.REFUSALS`; return class and kind of the error."""
    repo = _base(place)
    try:
        refusals.REFUSALS[name](repo)
    except icechunk.IcechunkError as error:
        return [type(error).__name__, str(error.kind)]
    except Exception as error:
        return [type(error).__name__, "", str(error)]
    return []
