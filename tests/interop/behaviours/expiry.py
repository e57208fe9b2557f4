"""Steps around the expiry of snapshots that a session stands on."""

from __future__ import annotations

import shutil
from typing import Any

import icechunk
from tests.interop import turns
from tests.interop.behaviours.table import commit, conflicts, messages, root_of, succeeds, tree


def prepare(base: str, folder: str) -> None:
    """Copy the base and commit to it, so that something can expire."""
    shutil.copytree(base, folder)
    repo = icechunk.Repository.open(turns.storage(folder))
    for number in range(2):
        commit(repo, {"scalar": number}, f"number {number}")


def outcome(folder: str) -> dict[str, Any]:
    """Return what becomes of the session that is open there."""
    session = turns.OPEN.pop(folder)
    found = {
        "before": [
            succeeds(lambda: root_of(session)["scalar"][...]),
            succeeds(session.commit, "ours"),
        ],
        "rebase": conflicts(session.commit, "rebased", rebase_with=icechunk.ConflictDetector()),
        "uncommitted": session.has_uncommitted_changes,
    }
    repo = icechunk.Repository.open(turns.storage(folder))
    return {
        **found,
        "history": messages(repo, branch="main"),
        "nodes": tree(repo.readonly_session("main")),
    }
