"""Nodes that are moved into each other's place."""

from __future__ import annotations

from typing import Any

from tests.interop.base import create, edit, rearrange
from tests.interop.behaviours.table import (
    BEHAVIOURS,
    behaviour,
    changes,
    root_of,
    succeeds,
    tree,
)

#: Moves, one after the other, in a repository with the groups `p` and `q` beside the base.
MOVES: dict[str, list[tuple[str, str]]] = {
    "groups_swap_places": [("/p", "/tmp"), ("/q", "/p"), ("/tmp", "/q")],
    "three_groups_rotate": [("/p", "/tmp"), ("/q", "/p"), ("/g", "/q"), ("/tmp", "/g")],
    "a_group_goes_where_another_one_was": [("/p", "/away"), ("/q", "/p")],
    "a_group_goes_below_its_sibling": [("/p", "/q/p")],
    "a_group_goes_below_its_sibling_and_takes_its_place": [
        ("/p", "/q/p"),
        ("/q", "/p"),
        ("/p/p", "/q"),
    ],
    "a_child_takes_the_place_of_its_parent": [
        ("/p/inner", "/inner"),
        ("/p", "/inner/p"),
        ("/inner", "/p"),
    ],
    "parent_and_child_change_roles": [("/p/inner", "/tmp"), ("/p", "/tmp/inner"), ("/tmp", "/p")],
    "arrays_and_groups_swap_places": [("/p", "/tmp"), ("/a", "/p"), ("/tmp", "/a")],
    "children_of_two_groups_swap_places": [
        ("/p/x", "/tmp"),
        ("/q/x", "/p/x"),
        ("/tmp", "/q/x"),
    ],
    "a_group_moves_while_its_child_is_elsewhere": [
        ("/p/inner", "/elsewhere"),
        ("/p", "/r"),
        ("/elsewhere", "/r/inner"),
    ],
    "around_in_a_circle": [("/p", "/r"), ("/r", "/q/r"), ("/q/r", "/p")],
}


def _prepare(repo: Any) -> None:
    with edit(repo) as root:
        for name, value in (("p", 1), ("q", 2)):
            group = root.create_group(name, attributes={"was": name})
            create(group, "x", (4,), (2,))[:] = value
            create(group, "inner/y", (2, 2), (1, 1))[0] = 10 * value


def _move(repo: Any, moves: list[tuple[str, str]]) -> Any:
    _prepare(repo)
    prepared = repo.lookup_branch("main")
    session = repo.rearrange_session("main")
    for source, target in moves:
        session.move(source, target)
    found = {"session": [tree(session), changes(session.status())]}
    session.commit("moved")
    with edit(repo) as root:
        for path, node in root.members(max_depth=None):
            if path.rpartition("/")[2] in {"x", "y"}:
                node[0] = 7
    diff = repo.diff(from_snapshot_id=prepared, to_branch="main")
    return {**found, "after": tree(repo.readonly_session("main")), "diff": changes(diff)}


def _script(name: str) -> Any:
    return lambda repo: _move(repo, MOVES[name])


for _name in MOVES:
    BEHAVIOURS[_name] = _script(_name)


@behaviour
def moves_that_are_refused(repo: Any) -> Any:
    """One after the other; the session goes on as before."""
    _prepare(repo)
    session = repo.rearrange_session("main")
    session.move("/p", "/r")
    found = [
        [source, target, succeeds(session.move, source, target)]
        for source, target in (
            ("/p", "/s"),
            ("/q", "/r"),
            ("/q", "/p/q"),
            ("/q", "/a/q"),
            ("/r", "/r/inner/r"),
            ("/r/x", "/r/x/y"),
            ("/", "/root"),
            ("/q", "/"),
            ("/q", "/q"),
        )
    ]
    return [found, changes(session.status()), tree(session)]


@behaviour
def discard_of_moves(repo: Any) -> Any:
    session = repo.rearrange_session("main")
    session.move("/g", "/h")
    found = [session.has_uncommitted_changes, str(session.mode), session.read_only]
    session.discard_changes()
    found += [session.has_uncommitted_changes, sorted(tree(session))]
    session.move("/g", "/i")
    session.commit("moved")
    return [*found, sorted(tree(repo.readonly_session("main"))), str(session.mode)]


@behaviour
def moves_back_and_forth_over_commits(repo: Any) -> Any:
    start = repo.lookup_branch("main")
    for source, target in (("/g", "/h"), ("/a", "/g"), ("/h", "/a"), ("/g", "/b"), ("/a", "/g")):
        with rearrange(repo) as session:
            session.move(source, target)
    last = repo.lookup_branch("main")
    found = changes(repo.diff(from_snapshot_id=start, to_snapshot_id=last))
    moves = found.pop("moved_nodes")
    return {"first": moves[0], "moves": sorted(moves), "others": found}


@behaviour
def moved_then_deleted_then_created(repo: Any) -> Any:
    start = repo.lookup_branch("main")
    with rearrange(repo) as session:
        session.move("/g", "/h")
    with edit(repo) as root:
        del root["h/deep"]
        create(root, "g/deep/x", (2,), (2,))[:] = 3
        root["h"].attrs["x"] = 1
    diff = repo.diff(from_snapshot_id=start, to_branch="main")
    return [changes(diff), tree(repo.readonly_session("main"))]


@behaviour
def a_move_amends_what_was_created(repo: Any) -> Any:
    _prepare(repo)
    session = repo.rearrange_session("main")
    session.move("/p", "/tmp")
    session.move("/q", "/p")
    session.move("/tmp", "/q")
    session.amend("created and swapped")
    first = list(repo.ancestry(branch="main"))[1].id
    diff = repo.diff(from_snapshot_id=first, to_branch="main")
    root_of(repo.writable_session("main"))
    return [changes(diff), tree(repo.readonly_session("main"))]
