"""Both sides take turns in one repository, and agree with a model of it after each."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.interop.sides import Official, Ours, Side

#: Each path with an attribute, and values if it is an array.
Version = dict[str, list[Any]]

# "a b", "a-b" and "ä" sort around what is below "a"
NAMES = ("a", "a b", "a-b", "ä", "z")
sizes = st.integers(0, 5)
either = st.booleans()
# what shortens histories keeps other steps from meeting each other
rarely = st.sampled_from([False, False, False, True])


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def below(version: Version, path: str) -> list[str]:
    return [other for other in version if other == path or other.startswith(path + "/")]


def free_paths(version: Version) -> list[str]:
    """Return where a node could be created."""
    groups = ["", *(path for path, (_, values) in version.items() if values is None)]
    candidates = [f"{group}/{name}".strip("/") for group in groups for name in NAMES]
    return [path for path in candidates if path not in version and path.count("/") < 3]


def apply(version: Version, edits: list[list[Any]]) -> None:
    """Do to the model what `turns.edit` does to a store."""
    for name, path, *arguments in edits:
        if name == "array":
            version[path] = [None, [0] * arguments[0]]
        elif name == "group":
            version[path] = [None, None]
        elif name == "delete":
            for doomed in below(version, path):
                del version[doomed]
        elif name == "attribute":
            version[path][0] = arguments[0]
        elif name == "write":
            start, values = arguments
            version[path][1][start : start + len(values)] = values
        else:
            old = version[path][1][: arguments[0]]
            version[path][1] = old + [0] * (arguments[0] - len(old))


def draw_edits(data: st.DataObject, version: Version) -> list[list[Any]]:
    """Return edits that make sense one after the other, and apply them to `version`."""
    edits: list[list[Any]] = []
    for _ in range(data.draw(st.integers(1, 4))):
        arrays = [path for path, (_, values) in version.items() if values is not None]
        kinds = ["array", "group"] if free_paths(version) else []
        kinds += ["attribute", "delete"] if version else []
        kinds += ["write", "write", "write", "resize"] if arrays else []
        kind = data.draw(st.sampled_from(kinds))
        if kind in {"array", "group"}:
            path = data.draw(st.sampled_from(free_paths(version)))
            made = [kind, path] + ([data.draw(sizes)] if kind == "array" else [])
        elif kind in {"attribute", "delete"}:
            path = data.draw(st.sampled_from(list(version)))
            made = [kind, path] + ([data.draw(sizes)] if kind == "attribute" else [])
        elif kind == "write":
            made = draw_write(data, version, data.draw(st.sampled_from(arrays)))
        else:
            # whole chunks: Zarr lets what was cut off within a chunk come back
            length = 2 * data.draw(st.integers(0, 3))
            made = [kind, data.draw(st.sampled_from(arrays)), length]
        apply(version, [made])
        edits.append(made)
    return edits


def draw_write(data: st.DataObject, version: Version, path: str) -> list[Any]:
    length = len(version[path][1])
    start, stop = sorted(data.draw(st.integers(0, length)) for _ in range(2))
    return ["write", path, start, [data.draw(sizes) for _ in range(start, stop)]]


def chunks(write: list[Any]) -> set[int]:
    """Return the chunks that a write touches."""
    _, _, start, values = write
    return {i // 2 for i in range(start, start + len(values))}


class Turns(RuleBasedStateMachine):
    """A repository of two clients."""

    def __init__(self, ours: Ours, official: Official, place: Path) -> None:
        super().__init__()
        self._sides: dict[str, Side] = {"ours": ours, "official": official}
        shutil.rmtree(place, ignore_errors=True)
        self._folder = str(place)
        self._branches: dict[str, Version] = {"main": {}}
        self._history: dict[str, list[str]] = {"main": ["Repository initialized"]}
        self._tags: dict[str, Version] = {}
        self._tagged: dict[str, str] = {}
        # messages of snapshots, oldest first
        self._made = ["Repository initialized"]
        # of a branch whose last commit moved nodes, which only moves may amend
        self._moved: set[str] = set()
        self._names = 0

    def _run(self, side: str, function: str, *arguments: Any) -> Any:
        return self._sides[side].run(f"turns.{function}", self._folder, *arguments)

    def _new_name(self) -> str:
        self._names += 1
        return f"name {self._names}"

    def _add(self, branch: str, message: str) -> None:
        self._history[branch].insert(0, message)
        self._made.append(message)

    def _branch(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self._branches)))

    side = st.sampled_from(["ours", "official"])

    @initialize(side=side)
    def begin(self, side: str) -> None:
        self._run(side, "new")
        first = [
            *(["array", name, 5] for name in ("a", "z")),
            *(["write", name, 0, [1, 2, 3, 4, 5]] for name in ("a", "z")),
            ["group", "ä"],
        ]
        apply(self._branches["main"], first)
        self._run(side, "commit", "main", first, "first", "commit")
        self._add("main", "first")

    @rule(sides=st.lists(side, min_size=1, max_size=4), data=st.data())
    def commit(self, sides: list[str], data: st.DataObject) -> None:
        for side in sides:
            branch, message = self._branch(data), self._new_name()
            edits = draw_edits(data, self._branches[branch])
            self._run(side, "commit", branch, edits, message, "commit")
            self._add(branch, message)
            self._moved.discard(branch)

    @rule(side=side, data=st.data())
    def amend(self, side: str, data: st.DataObject) -> None:
        branch, message = self._branch(data), self._new_name()
        if len(self._history[branch]) == 1 or branch in self._moved:
            return
        edits = draw_edits(data, self._branches[branch])
        self._run(side, "commit", branch, edits, message, "amend")
        del self._history[branch][0]
        self._add(branch, message)

    @rule(side=side, data=st.data())
    def move(self, side: str, data: st.DataObject) -> None:
        branch, message = self._branch(data), self._new_name()
        version = self._branches[branch]
        moves = []
        for _ in range(data.draw(st.integers(1, 2))):
            sources = sorted(version)
            if not sources:
                return
            source = data.draw(st.sampled_from(sources))
            targets = [path for path in free_paths(version) if not path.startswith(source + "/")]
            if not targets:
                return
            target = data.draw(st.sampled_from(targets))
            for path in below(version, source):
                version[target + path[len(source) :]] = version.pop(path)
            moves.append([source, target])
        self._run(side, "move", branch, moves, message)
        self._add(branch, message)
        self._moved.add(branch)

    @rule(first=side, data=st.data(), solve=either, expire=rarely)
    def race(self, first: str, data: st.DataObject, solve: bool, expire: bool) -> None:
        """One begins, the other commits, the first rebases.

        What the first began at may expire meanwhile: there the official client fails.
        """
        branch = self._branch(data)
        version = self._branches[branch]
        arrays = sorted(path for path, (_, values) in version.items() if values)
        if not arrays:
            return
        second = "official" if first == "ours" else "ours"
        mine, theirs = (
            draw_write(data, version, data.draw(st.sampled_from(arrays))) for _ in range(2)
        )
        messages = [self._new_name() for _ in range(2)]
        self._run(first, "begin", branch, [mine])
        self._run(second, "commit", branch, [theirs], messages[0], "commit")
        apply(version, [theirs])
        self._add(branch, messages[0])
        self._moved.discard(branch)
        if expire and first == "ours":
            self._run(data.draw(self.side), "expire")
            self._expire(self._made, branches=False, tags=False)
        clash = mine[1] == theirs[1] and chunks(mine) & chunks(theirs)
        if not chunks(mine):
            # nothing to commit: what that means is not the point here
            self._run(first, "forget")
            return
        conflicts = self._run(first, "end", messages[1], solve)
        if clash and not solve:
            assert conflicts == ["/" + mine[1]]
            return
        assert conflicts == []
        # chunks are taken whole from the one who is rebased
        if clash:
            self._branches[branch] = self._run(second, "look")["branches"][branch]
            written = self._branches[branch][mine[1]][1][mine[2] : mine[2] + len(mine[3])]
            assert written == mine[3]
        else:
            apply(version, [mine])
        self._add(branch, messages[1])

    @rule(side=side, data=st.data())
    def create_branch(self, side: str, data: st.DataObject) -> None:
        source, name = self._branch(data), self._new_name().replace(" ", "-")
        self._run(side, "create_branch", source, name)
        self._branches[name] = copy.deepcopy(self._branches[source])
        self._history[name] = list(self._history[source])
        if source in self._moved:
            self._moved.add(name)

    @precondition(lambda self: len(self._branches) > 1)
    @rule(side=side, data=st.data())
    def delete_branch(self, side: str, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set(self._branches) - {"main"})))
        self._run(side, "delete_branch", name)
        self._forget_branch(name)

    @precondition(lambda self: len(self._branches) > 1)
    @rule(side=side, data=st.data())
    def reset_branch(self, side: str, data: st.DataObject) -> None:
        branch, target = self._branch(data), self._branch(data)
        self._run(side, "reset_branch", branch, target)
        self._branches[branch] = copy.deepcopy(self._branches[target])
        self._history[branch] = list(self._history[target])
        if target in self._moved:
            self._moved.add(branch)
        else:
            self._moved.discard(branch)

    @rule(side=side, data=st.data())
    def tag(self, side: str, data: st.DataObject) -> None:
        branch, name = self._branch(data), self._new_name()
        self._run(side, "create_tag", branch, name)
        self._tags[name] = copy.deepcopy(self._branches[branch])
        self._tagged[name] = self._history[branch][0]

    @precondition(lambda self: self._tags)
    @rule(side=side, data=st.data())
    def delete_tag(self, side: str, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self._tags)))
        self._run(side, "delete_tag", name)
        del self._tags[name]

    @rule(side=side, data=st.data(), now=rarely, branches=rarely, tags=rarely, collect=either)
    def expire(
        self, side: str, data: st.DataObject, now: bool, branches: bool, tags: bool, collect: bool
    ) -> None:
        """Forget what is older than some snapshot, and delete what nothing needs any more."""
        if not now:
            return
        source = self._branch(data)
        age = data.draw(st.integers(0, len(self._history[source]) - 1))
        expired = self._made[: self._made.index(self._history[source][age])]
        self._run(side, "expire", source, age, branches, tags)
        self._expire(expired, branches=branches, tags=tags)
        if collect:
            self._run(data.draw(self.side), "collect")

    def _expire(self, expired: list[str], *, branches: bool, tags: bool) -> None:
        for name in sorted(self._branches if branches else []):
            if name != "main" and self._history[name][0] in expired[1:]:
                self._forget_branch(name)
        for name in sorted(self._tags if tags else []):
            if self._tagged[name] in expired[1:]:
                del self._tags[name]
        kept = {messages[0] for messages in self._history.values()}
        kept |= {self._made[0], *(self._tagged[name] for name in self._tags)}
        released = set(expired) - kept
        for messages in self._history.values():
            # the first that stays becomes a child of the very first
            for place, message in enumerate(messages):
                if message in released:
                    messages[place:] = self._made[:1]
                    break

    def _forget_branch(self, name: str) -> None:
        del self._branches[name], self._history[name]
        self._moved.discard(name)

    @invariant()
    def both_agree(self) -> None:
        if not Path(self._folder).exists():
            return
        for side in self._sides:
            found = self._run(side, "look")
            assert found["branches"] == self._branches, side
            assert found["tags"] == self._tags, side
            assert found["history"] == self._history, side

    def teardown(self) -> None:
        if Path(self._folder).exists():
            # raises where the official client cannot make sense of an object
            self._sides["official"].run("history.inspect", self._folder)


@pytest.mark.timeout(600)
def test_turns(ours: Ours, official: Official, tmp_path: Path) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Turns(ours, official, tmp_path / "repository"),
        settings=settings(max_examples=15, stateful_step_count=15),
    )
