"""Write ``v2/``: a repository of spec version 2, by the official client 2.3.0.

Run it in an environment of its own, with Python 3.12 or newer:

    pip install icechunk==2.3.0 zarr
    python tests/data/make_golden_v2.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import icechunk
import zarr
from golden_content import (
    authorization,
    expectations,
    fresh_folder,
    full_config,
    save_expectations,
    write_history,
    write_source,
)


def main() -> None:
    folder = fresh_folder("v2")
    write_source(folder)
    # the stored config names this folder, so it is not the one of some checkout
    source = Path(tempfile.gettempdir()) / "icechunk-golden"
    source.mkdir(exist_ok=True)
    write_source(source)
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    repo = icechunk.Repository.create(
        storage, full_config(source), authorize_virtual_chunk_access=authorization(source)
    )
    snapshots = write_history(repo)
    # the parent of `first` expires
    limit = repo.lookup_snapshot(snapshots["first"]).written_at
    assert repo.expire_snapshots(older_than=limit) == {snapshots["start"]}

    flushed = repo.readonly_session(snapshot_id=snapshots["flushed"])
    found = expectations(repo)
    found |= {
        "deleted_tags": ["oops"],
        "spec_version": 2,
        "snapshot_names": snapshots,
        "metadata": repo.get_metadata(),
        "disabled_flags": [flag.id for flag in repo.disabled_feature_flags()],
        "updates": [
            {"kind": type(update.kind).__name__, "updated_at": update.updated_at.isoformat()}
            for update in repo.ops_log()
        ],
        "flushed_scalar": zarr.open_group(flushed.store, mode="r")["scalar"][()].item(),
    }
    save_expectations(folder, found)


if __name__ == "__main__":
    main()
