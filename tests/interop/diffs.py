"""Comparison of diffs by this project with those by the official client."""

from __future__ import annotations

from typing import Any

Diffs = list[dict[str, Any]]


def assert_same_diffs(mine: Diffs, theirs: Diffs) -> None:
    """Compare diffs, each with the snapshots that it lies between.

    Over several commits the official client also lists what was later done to new nodes,
    and a node that moved twice has two moves; here a new node is new, and a move goes from
    the first path to the last.
    """
    assert [(d["from"], d["to"]) for d in mine] == [(d["from"], d["to"]) for d in theirs]
    for our, their in zip(mine, theirs, strict=True):
        found, wanted = dict(our["diff"]), dict(their["diff"])
        new = {*wanted["new_groups"], *wanted["new_arrays"]}
        old_paths, new_paths = ({move[i] for move in wanted["moved_nodes"]} for i in (0, 1))
        if old_paths & new_paths:
            del wanted["moved_nodes"], found["moved_nodes"]
        else:
            wanted["moved_nodes"] = [move for move in wanted["moved_nodes"] if move[1] not in new]
        for part in ("updated_groups", "updated_arrays"):
            wanted[part] = [path for path in wanted[part] if path not in new]
        assert found == wanted
