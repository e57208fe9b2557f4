"""Write ``migrated/``: ``v1/``, migrated to spec version 2 by the official client 2.3.0.

It has a commit on top.

Run it in an environment of its own, with Python 3.12 or newer, after make_golden_v1.py:

    pip install icechunk==2.3.0 zarr
    python tests/data/make_golden_migrated.py
"""

from __future__ import annotations

import shutil
from urllib.parse import quote

import icechunk
import zarr
from golden_content import (
    HERE,
    ODD_BRANCH,
    create,
    expectations,
    fresh_folder,
    numbers,
    save_expectations,
)


def main() -> None:
    folder = fresh_folder("migrated")
    shutil.copytree(HERE / "v1" / "repository", folder / "repository")
    # 2.3.0 cannot migrate a branch whose name local storage encodes
    shutil.rmtree(folder / "repository" / "refs" / f"branch.{quote(ODD_BRANCH, safe=' ')}")
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    repo = icechunk.upgrade_icechunk_repository(
        icechunk.Repository.open(storage), dry_run=False, delete_unused_v1_files=True
    )
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    root["late/array"][1] = 77
    create(root, "after_migration", numbers((2, 2), "f4"), (1, 2))
    session.commit("after the migration")
    found = expectations(repo)
    found["deleted_tags"] = ["oops"]
    found["spec_version"] = 2
    save_expectations(folder, found)


if __name__ == "__main__":
    main()
