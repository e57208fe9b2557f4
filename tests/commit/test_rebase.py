"""Rebase against a model: every pair of edits, with every solver, and what is to come of it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    BasicConflictSolver,
    ConflictDetector,
    ConflictSolver,
    MemoryStorage,
    RebaseFailedError,
    Repository,
    Session,
    VersionSelection,
)

#: An edit is one or more operations, each with its arguments.
Edit = tuple[tuple[Any, ...], ...]


# -- the model -------------------------------------------------------------------------------
@dataclass
class Node:
    path: str
    is_array: bool
    x: int = 0
    chunks: list[int] = field(default_factory=lambda: [0, 0])


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


@dataclass
class Model:
    """Nodes by an identity that moves keep, and what was done to them."""

    nodes: dict[str, Node]
    new: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    described: set[str] = field(default_factory=set)
    written: set[tuple[str, int]] = field(default_factory=set)

    def at(self, path: str) -> str | None:
        return next((k for k, node in self.nodes.items() if node.path == path), None)

    def below(self, path: str) -> list[str]:
        inside = f"{path}/"
        return [k for k, n in self.nodes.items() if n.path == path or n.path.startswith(inside)]

    def apply(self, edit: Edit, value: int) -> Model:
        """Return the model after an edit."""
        result = Model(copy.deepcopy(self.nodes))
        for operation in edit:
            result._do(operation, value)
        return result

    def carry_over(self, ours: Model, dropped: frozenset[tuple[str, int]]) -> Model:
        """Return the model with edits that were made elsewhere, to the nodes that were meant."""
        nodes = copy.deepcopy(self.nodes)
        for key in ours.new:
            nodes[key] = ours.nodes[key]
        for key in ours.deleted & nodes.keys():
            del nodes[key]
        for key in ours.moved:
            old, new = self.nodes[key].path, ours.nodes[key].path
            for node in nodes.values():
                # what others put there in the meantime comes along
                if node.path == old or node.path.startswith(f"{old}/"):
                    node.path = new + node.path[len(old) :]
        for key in ours.described:
            nodes[key].x = ours.nodes[key].x
        for key, chunk in ours.written - dropped:
            if key in nodes:
                nodes[key].chunks[chunk] = ours.nodes[key].chunks[chunk]
        return Model(nodes)

    def _do(self, operation: tuple[Any, ...], value: int) -> None:
        name, path, *more = operation
        key = self.at(path)
        if name in ("group", "array"):
            key = f"{path} of {value}"
            self.nodes[key] = Node(path, name == "array")
            self.new.add(key)
        elif name == "delete":
            for each in self.below(path):
                del self.nodes[each]
                self.deleted.add(each)
        elif name == "move":
            for each in self.below(path):
                self.nodes[each].path = more[0] + self.nodes[each].path[len(path) :]
                self.moved.add(each)
        elif name == "describe":
            assert key is not None
            self.nodes[key].x = value
            if key not in self.new:
                self.described.add(key)
        else:
            assert key is not None
            self.nodes[key].chunks[more[0]] = value
            if key not in self.new:
                self.written.add((key, more[0]))

    def state(self) -> dict[str, Any]:
        return {
            node.path: (node.x, node.chunks if node.is_array else None)
            for node in self.nodes.values()
        }


def refusals(base: Model, ours: Model, theirs: Model, solver: ConflictSolver) -> list[str]:
    """Say why edits cannot be carried over to a state that others have made."""
    found = []
    basic = solver if isinstance(solver, BasicConflictSolver) else None
    if theirs.moved:
        return ["they moved something"]

    def occupied(path: str) -> bool:
        there = theirs.at(path)
        return there is not None and there not in ours.deleted | ours.moved

    def is_group(path: str) -> bool:
        mine = ours.at(path)
        if mine in ours.new | ours.moved and mine is not None:
            return not ours.nodes[mine].is_array
        there = theirs.at(path)
        return there is not None and there not in ours.deleted and not theirs.nodes[there].is_array

    for key in ours.new | (ours.moved & theirs.nodes.keys()):
        path = ours.nodes[key].path
        if occupied(path):
            found.append(f"{path} is there already")
        if not is_group(parent(path)):
            found.append(f"{path} would have no parent")
    if ours.moved - theirs.nodes.keys():
        found.append("what was moved is gone")
    if ours.described & (theirs.described | theirs.deleted):
        found.append("both described it, or they deleted it")
    for key, chunk in ours.written:
        if key in theirs.deleted | theirs.described:
            found.append("they changed the array")
        if (key, chunk) in theirs.written and (
            basic is None or basic.on_chunk_conflict is VersionSelection.Fail
        ):
            found.append("both wrote a chunk")
    touched = theirs.described | {key for key, _ in theirs.written}
    # an array of theirs in the place of what was deleted has data, too
    touched |= {key for key in theirs.new if theirs.nodes[key].is_array}
    there = {theirs.at(base.nodes[key].path) for key in ours.deleted}
    for key in there & touched:
        is_array = theirs.nodes[key].is_array
        if basic is None or (
            basic.fail_on_delete_of_updated_array
            if is_array
            else basic.fail_on_delete_of_updated_group
        ):
            found.append("they changed what was deleted")
    for key in theirs.new:
        above = theirs.at(parent(theirs.nodes[key].path))
        if above in ours.deleted:
            found.append("their new node would have no parent")
    return found


# -- the same with sessions ----------------------------------------------------------------------
def edited(repository: Repository, branch: str, edit: Edit, value: int) -> Session:
    moves = any(name == "move" for name, *_ in edit)
    begin = repository.rearrange_session if moves else repository.writable_session
    session = begin(branch)
    for name, path, *more in edit:
        if name == "group":
            zarr.create_group(session.store, path=path).attrs["x"] = 0
        elif name == "array":
            create(session, path)
        elif name == "delete":
            session.delete_nodes(path)
        elif name == "move":
            session.move(path, more[0])
        elif name == "describe":
            node: Any = zarr.open(session.store, path=path, mode="r+")
            node.attrs["x"] = value
        else:
            zarr.open_array(session.store, path=path, mode="r+")[more[0]] = value
    return session


def create(session: Session, path: str) -> None:
    zarr.create_array(
        session.store, name=path, shape=(2,), chunks=(1,), dtype="i4", attributes={"x": 0}
    )[:] = 0


def state_of(session: Session) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in session.tree.nodes():
        values = None
        if node.is_array:
            array = zarr.open_array(session.store, path=node.path, mode="r")
            values = np.asarray(array[:]).tolist()
        found[node.path] = (json.loads(node.user_data)["attributes"]["x"], values)
    return found


BASE: Edit = (
    ("group", "/"),
    ("array", "/a"),
    ("group", "/g"),
    ("array", "/g/b"),
    ("group", "/g/s"),
)
EDITS: dict[str, Edit] = {
    "new group /n": (("group", "/n"),),
    "new array /n": (("array", "/n"),),
    "new group /g/n": (("group", "/g/n"),),
    "new array /g/s/n": (("array", "/g/s/n"),),
    "new group with an array": (("group", "/n"), ("array", "/n/c")),
    "describe /a": (("describe", "/a"),),
    "describe /g": (("describe", "/g"),),
    "describe /g/b": (("describe", "/g/b"),),
    "describe /g/s": (("describe", "/g/s"),),
    "write /a 0": (("write", "/a", 0),),
    "write /a 1": (("write", "/a", 1),),
    "write /a": (("write", "/a", 0), ("write", "/a", 1)),
    "write /g/b 0": (("write", "/g/b", 0),),
    "write and describe /a": (("write", "/a", 0), ("describe", "/a")),
    "delete /a": (("delete", "/a"),),
    "delete /g": (("delete", "/g"),),
    "delete /g/b": (("delete", "/g/b"),),
    "delete /g/s": (("delete", "/g/s"),),
    "array /a anew": (("delete", "/a"), ("array", "/a")),
    "group in place of /a": (("delete", "/a"), ("group", "/a")),
    "array in place of /g": (("delete", "/g"), ("array", "/g")),
    "move /a to /m": (("move", "/a", "/m"),),
    "move /a to /n": (("move", "/a", "/n"),),
    "move /a into /g/s": (("move", "/a", "/g/s/a"),),
    "move /g to /h": (("move", "/g", "/h"),),
    "move /g/b out": (("move", "/g/b", "/b"),),
    "move /g/s out, /a into it": (("move", "/g/s", "/s"), ("move", "/a", "/s/a")),
}
#: From the one that settles least.
SOLVERS: tuple[ConflictSolver, ...] = (
    ConflictDetector(),
    BasicConflictSolver(
        on_chunk_conflict=VersionSelection.Fail,
        fail_on_delete_of_updated_array=True,
        fail_on_delete_of_updated_group=True,
    ),
    BasicConflictSolver(fail_on_delete_of_updated_array=True),
    BasicConflictSolver(fail_on_delete_of_updated_group=True),
    BasicConflictSolver(),
)
THEIR_CHUNKS = BasicConflictSolver(on_chunk_conflict=VersionSelection.UseTheirs)


@pytest.fixture(scope="module")
def repository() -> Repository:
    repository = Repository.create(MemoryStorage())
    edited(repository, "main", BASE, 0).commit("base")
    return repository


@pytest.fixture(scope="module")
def base() -> Model:
    return Model(Model({}).apply(BASE, 0).nodes)


def test_the_model_does_what_sessions_do(repository: Repository, base: Model) -> None:
    for edit in EDITS.values():
        session = edited(repository, "main", edit, 7)
        assert state_of(session) == base.apply(edit, 7).state()


@pytest.mark.parametrize("name", EDITS)
def test_every_pair_with_every_solver(repository: Repository, base: Model, name: str) -> None:
    """`name` is what others committed; each other edit is rebased on top of it."""
    theirs = base.apply(EDITS[name], 8)
    start = repository.lookup_branch("main")
    repository.create_branch(name, start)
    sessions = {mine: edited(repository, name, edit, 9) for mine, edit in EDITS.items()}
    # where both write a chunk there are two ways to go on
    again = {
        mine: edited(repository, name, edit, 9)
        for mine, edit in EDITS.items()
        if any(operation[0] == "write" for operation in edit)
    }
    edited(repository, name, EDITS[name], 8).commit("theirs")
    for mine, edit in EDITS.items():
        ours = base.apply(edit, 9)
        twice = frozenset(ours.written & theirs.written)
        # a refusal changes nothing, so the next solver may try the same session
        tried = [(solver, sessions[mine], frozenset()) for solver in SOLVERS]
        if twice:
            tried.append((THEIR_CHUNKS, again[mine], twice))
        done = None
        for solver, session, dropped in tried:
            if session is done:
                continue
            reasons = refusals(base, ours, theirs, solver)
            where = (mine, "on top of", name, solver, reasons)
            if reasons:
                with pytest.raises(RebaseFailedError):
                    session.rebase(solver)
                    pytest.fail(f"{where}: was not refused")
                assert session.snapshot_id == start, where
                assert state_of(session) == ours.state(), where
            else:
                session.rebase(solver)
                done = session
                assert state_of(session) == theirs.carry_over(ours, dropped).state(), where
