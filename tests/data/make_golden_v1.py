"""Write ``v1/``: a repository of spec version 1, by the official client 1.1.21.

Run it in an environment of its own, with Python 3.11 or newer:

    pip install icechunk==1.1.21 zarr
    python tests/data/make_golden_v1.py
"""

from __future__ import annotations

import icechunk
from golden_content import (
    ODD_BRANCH,
    config,
    expectations,
    fresh_folder,
    save_expectations,
    write_first,
    write_on_branch,
    write_second,
)


def main() -> None:
    folder = fresh_folder("v1")
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    repo = icechunk.Repository.create(storage, config=config())
    repo.save_config()
    session = repo.writable_session("main")
    write_first(session)
    first = session.commit("first", metadata={"author": "golden", "n": 1, "nested": {"x": [1.5]}})
    session = repo.writable_session("main")
    write_second(session)
    session.commit("second ⛄", metadata={"none": None, "big": 2**40, "negative": -3})
    repo.create_branch("dev", first)
    session = repo.writable_session("dev")
    write_on_branch(session)
    branch_tip = session.commit("on a branch")
    # local storage percent-encodes such a name
    repo.create_branch(ODD_BRANCH, branch_tip)
    repo.create_branch("gone", first)
    repo.delete_branch("gone")
    repo.create_tag("v1.0", first)
    repo.create_tag("oops", branch_tip)
    repo.delete_tag("oops")
    found = expectations(repo)
    found["deleted_tags"] = ["oops"]
    found["spec_version"] = 1
    save_expectations(folder, found)


if __name__ == "__main__":
    main()
