"""A repository against a model of it.

The model of a version is a dictionary of Zarr keys and values. Whatever is done through
Zarr is done twice: to a session's store, and to a `zarr.storage.MemoryStore` on the
dictionary. Commits copy the dictionary, branches and tags name such copies.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from icechunk.config import (
    CachingConfig,
    ManifestConfig,
    ManifestSplittingConfig,
    RepositoryConfig,
)
from icechunk.config.conditions import ManifestSplitCondition, ManifestSplitDimCondition
from icechunk.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    NodeNotFoundError,
    ReadOnlyError,
    RefNotFoundError,
    SessionStateError,
)
from icechunk.repository import Repository
from icechunk.session import Session
from icechunk.session.listing import keys_below
from icechunk.storage.base import Storage
from tests.storages import KINDS, new_storage

#: What is stored under each key.
Version: TypeAlias = dict[str, Buffer]

# Inline and native chunks both occur, arrays have several manifests, and some of these
# do not stay in the cache.
CONFIG = RepositoryConfig(
    inline_chunk_threshold_bytes=20,
    num_updates_per_repo_info_file=5,
    caching=CachingConfig(num_chunk_refs=50),
    manifest=ManifestConfig(
        splitting=ManifestSplittingConfig.from_dict(
            {
                ManifestSplitCondition.name_matches("^a"): {
                    ManifestSplitDimCondition.Axis(0): 2,
                    ManifestSplitDimCondition.Any(): 1,
                }
            }
        )
    ),
)
NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)
sizes = st.integers(0, 5)
numbers = st.integers(-9, 9)
# what undoes the work of other steps would keep them from meeting each other
rarely = st.sampled_from([False, False, False, True])


def everything(session: Session) -> dict[str, bytes]:
    """Read all that a session sees."""
    store = session.store
    found: dict[str, bytes] = {}
    for key in keys_below(session, ""):
        value = store.get_sync(key)
        assert value is not None
        found[key] = value.to_bytes()
    return found


PLAIN: Any = {"dtype": "i4", "compressors": None}


def fill(array: zarr.Array[Any], value: int) -> None:
    array[...] = value


def plain(version: Version) -> dict[str, bytes]:
    return {key: value.to_bytes() for key, value in version.items()}


def node_paths(version: Version, *, arrays: bool) -> list[str]:
    found = []
    for key, value in version.items():
        if key.rpartition("/")[2] == "zarr.json":
            is_array = b'"node_type": "array"' in value.to_bytes()
            if is_array == arrays:
                found.append("/" + key.rpartition("/")[0])
    return sorted(found)


@dataclass
class Commit:
    """What is known of a snapshot."""

    parent: str | None
    version: Version
    moves: bool = False


class Repositories(RuleBasedStateMachine):
    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.deleted_tags: set[str] = set()

    @initialize()
    def create(self) -> None:
        self.repository = Repository.create(self.storage, CONFIG)
        self.first = self.repository.lookup_branch("main")
        self.commits[self.first] = Commit(None, {})
        self.branches["main"] = self.first
        self.begin("main")
        # something to begin with, so that most steps have something to do
        for path in ("a", "b/a"):
            self.both(
                lambda store, path=path: fill(
                    zarr.create_array(store, name=path, shape=(5, 4), chunks=(1, 2), **PLAIN), 1
                )
            )
        self.commit(empty=False)

    def begin(self, branch: str) -> None:
        """Open a session on a branch."""
        self.branch = branch
        self.base = self.branches[branch]
        self.session = self.repository.writable_session(branch)
        self.now = dict(self.commits[self.base].version)

    def both(self, change: Callable[[Store], None], session: Session | None = None) -> None:
        change((session or self.session).store)
        change(MemoryStore(self.now))

    def dirty(self) -> bool:
        return self.session.has_uncommitted_changes

    def current(self) -> bool:
        """Whether the branch still is where the session began."""
        return self.branches.get(self.branch) == self.base

    # -- editing -----------------------------------------------------------------------
    def groups(self) -> list[str]:
        found = node_paths(self.now, arrays=False)
        if "/" not in found:
            self.both(lambda store: zarr.create_group(store))
        return sorted({"/", *found})

    def arrays(self) -> list[str]:
        return node_paths(self.now, arrays=True)

    def free_path(self, data: st.DataObject) -> str | None:
        groups = [path for path in self.groups() if path.count("/") < 3]
        path = data.draw(st.sampled_from(groups)).rstrip("/") + "/" + data.draw(names)
        taken = set(self.groups()) | set(self.arrays())
        return None if path in taken else path

    @rule(data=st.data())
    def add_group(self, data: st.DataObject) -> None:
        path = self.free_path(data)
        if path is not None:
            attributes = {"n": data.draw(numbers)}
            self.both(lambda store: zarr.create_group(store, path=path, attributes=attributes))

    @rule(data=st.data(), shape=st.lists(sizes, max_size=3), value=numbers)
    def add_array(self, data: st.DataObject, shape: list[int], value: int) -> None:
        path = self.free_path(data)
        if path is None:
            return
        chunks = tuple(data.draw(st.integers(1, 3)) for _ in shape)

        def add(store: Store) -> None:
            fill(zarr.create_array(store, name=path, shape=shape, chunks=chunks, **PLAIN), value)

        self.both(add)

    @precondition(lambda self: self.arrays())
    @rule(data=st.data(), value=numbers)
    def write(self, data: st.DataObject, value: int) -> None:
        """Write a region, often a small one."""
        path = data.draw(st.sampled_from(self.arrays()))
        shape = zarr.open_array(MemoryStore(self.now), path=path).shape
        where = tuple(
            slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))))
            for n in shape
        )
        size = tuple(s.stop - s.start for s in where)
        values = value + np.arange(np.prod(size, dtype=int)).reshape(size) % 3

        def put(store: Store) -> None:
            zarr.open_array(store, path=path, mode="r+")[where] = values

        self.both(put)

    @precondition(lambda self: self.arrays())
    @rule(data=st.data())
    def resize(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.arrays()))
        shape = tuple(
            data.draw(sizes) for _ in zarr.open_array(MemoryStore(self.now), path=path).shape
        )
        self.both(lambda store: zarr.open_array(store, path=path, mode="r+").resize(shape))

    @rule(data=st.data(), value=numbers)
    def set_attributes(self, data: st.DataObject, value: int) -> None:
        path = data.draw(st.sampled_from(self.groups() + self.arrays()))
        self.both(lambda store: zarr.open(store, path=path, mode="r+").attrs.update(n=value))

    @rule(data=st.data(), really=rarely)
    def delete(self, data: st.DataObject, really: bool) -> None:
        path = data.draw(st.sampled_from(self.groups() + self.arrays()))
        if path == "/" or not really:
            return

        def remove(store: Store) -> None:
            parent, _, name = path.rpartition("/")
            del zarr.open_group(store, path=parent, mode="r+")[name]

        self.both(remove)

    @rule(really=rarely)
    def clear(self, really: bool) -> None:
        if not really:
            return
        self.session.store.sync_clear()
        self.now.clear()

    @rule(really=rarely)
    def discard(self, really: bool) -> None:
        if not really:
            return
        self.session.discard_changes()
        assert not self.dirty()
        self.now = dict(self.commits[self.base].version)

    # -- working in other processes --------------------------------------------------------
    @rule(data=st.data(), as_bytes=st.booleans())
    def fork_and_merge(self, data: st.DataObject, as_bytes: bool) -> None:
        """Two forks write to chunks of their own, and see what the session did before."""
        self.groups()
        arrays = [
            path
            for path in self.arrays()
            if np.prod(zarr.open_array(MemoryStore(self.now), path=path).shape[:1]) > 0
        ]
        forks = [pickle.loads(pickle.dumps(self.session.fork())) for _ in range(2)]
        for number, fork in enumerate(forks):
            assert everything(fork) == everything(self.session)

            def work(store: Store, number: int = number) -> None:
                group = zarr.open_group(store, mode="r+")
                group.require_group(f"fork{number}").attrs["n"] = len(self.commits)
                for path in arrays:
                    array = zarr.open_array(store, path=path, mode="r+")
                    if array.ndim:
                        step = array.chunks[0]
                        mine = range(number * step, array.shape[0], 2 * step)
                        for start in mine:
                            array[start : start + step] = number + 1

            work(fork.store)
            work(MemoryStore(self.now))
        if as_bytes:
            self.session.merge_change_sets([fork.change_set_bytes() for fork in forks])
        else:
            self.session.merge(*forks)

    # -- committing ------------------------------------------------------------------------
    def committed(self, snapshot_id: str, parent: str, *, moves: bool = False) -> None:
        assert snapshot_id not in self.commits
        self.commits[snapshot_id] = Commit(parent, dict(self.now), moves)

    @rule(empty=st.booleans())
    def commit(self, empty: bool) -> None:
        if not self.dirty() and not empty:
            with pytest.raises(SessionStateError) as nothing:
                self.session.commit("nothing")
            assert nothing.value.kind == ErrorKind.NO_CHANGES_TO_COMMIT
            return
        status = repr(self.session.status())
        if not self.current():
            with pytest.raises(ConflictError):
                self.session.commit("too late", allow_empty=empty)
            assert everything(self.session) == plain(self.now)
            self.begin("main")
            return
        new = self.session.commit("commit", {"n": len(self.commits)}, allow_empty=empty)
        self.committed(new, self.base)
        assert self.repository.lookup_snapshot(new).metadata == {"n": len(self.commits) - 1}
        diff = self.repository.diff(from_snapshot_id=self.base, to_snapshot_id=new)
        assert repr(diff) == status
        before = self.commits[self.base].version
        for arrays, added, gone in (
            (True, diff.new_arrays, diff.deleted_arrays),
            (False, diff.new_groups, diff.deleted_groups),
        ):
            old, now = (set(node_paths(v, arrays=arrays)) for v in (before, self.now))
            assert added >= now - old
            assert gone >= old - now
        self.branches[self.branch] = new
        self.assert_committed(new)

    def assert_committed(self, new: str) -> None:
        """The session is at the new snapshot, and reads."""
        assert self.session.read_only
        assert self.session.snapshot_id == new
        assert everything(self.session) == plain(self.now)
        with pytest.raises(ReadOnlyError):
            self.session.store.sync_clear()
        self.begin(self.branch if self.branch in self.branches else "main")

    @precondition(lambda self: self.current())
    @rule()
    def amend(self) -> None:
        base = self.commits[self.base]
        if self.base == self.first or base.moves:
            with pytest.raises(SessionStateError):
                self.session.amend("impossible", allow_empty=True)
            return
        new = self.session.amend("amended", allow_empty=True)
        assert base.parent is not None
        self.committed(new, base.parent)
        self.branches[self.branch] = new
        self.assert_committed(new)

    @precondition(lambda self: self.dirty())
    @rule(really=rarely)
    def flush(self, really: bool) -> None:
        if not really:
            return
        new = self.session.flush("on no branch")
        self.committed(new, self.base)
        self.assert_committed(new)

    @precondition(lambda self: self.current())
    @rule(data=st.data(), really=rarely)
    def rearrange(self, data: st.DataObject, really: bool) -> None:
        """Move nodes, in a session that does nothing else."""
        if self.dirty() and not really:
            return
        self.begin(self.branch)
        session = self.repository.rearrange_session(self.branch)
        moved = False
        for _ in range(data.draw(st.integers(1, 3))):
            there = node_paths(self.now, arrays=False) + node_paths(self.now, arrays=True)
            source = "/" + "/".join(data.draw(st.lists(names, min_size=1, max_size=2)))
            target = "/" + "/".join(data.draw(st.lists(names, min_size=1, max_size=2)))
            parent = target.rpartition("/")[0] or "/"
            if source not in there:
                with pytest.raises(NodeNotFoundError):
                    session.move(source, target)
            elif f"{target}/".startswith(source + "/"):
                with pytest.raises(SessionStateError):
                    session.move(source, target)
            elif target in there:
                with pytest.raises(AlreadyExistsError):
                    session.move(source, target)
            elif parent not in node_paths(self.now, arrays=False):
                with pytest.raises(SessionStateError):
                    session.move(source, target)
            else:
                session.move(source, target)
                moved = True
                for key in [k for k in self.now if f"/{k}".startswith(source + "/")]:
                    self.now[target[1:] + key[len(source) - 1 :]] = self.now.pop(key)
            assert everything(session) == plain(self.now)
        with pytest.raises(SessionStateError) as refused:
            session.store.sync_clear()
        assert refused.value.kind == ErrorKind.REARRANGE_SESSION_ONLY
        if moved:
            # there and back is a commit, and no move
            moves = bool(session.status().moved_nodes)
            new = session.commit("moved")
            self.committed(new, self.base, moves=moves)
            self.branches[self.branch] = new
        self.begin(self.branch)

    # -- branches and tags -------------------------------------------------------------------
    def any_commit(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(list(self.commits)))

    @rule(data=st.data(), name=names)
    def create_branch(self, data: st.DataObject, name: str) -> None:
        target = self.any_commit(data)
        if name in self.branches:
            with pytest.raises(AlreadyExistsError):
                self.repository.create_branch(name, target)
        else:
            self.repository.create_branch(name, target)
            self.branches[name] = target

    @rule(data=st.data(), really=rarely)
    def switch(self, data: st.DataObject, really: bool) -> None:
        if self.dirty() and not really:
            return
        self.begin(data.draw(st.sampled_from(sorted(self.branches))))

    @rule(data=st.data(), check=st.booleans())
    def reset_branch(self, data: st.DataObject, check: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.branches)))
        target, expected = self.any_commit(data), self.any_commit(data) if check else None
        if expected not in (None, self.branches[name]):
            with pytest.raises(ConflictError):
                self.repository.reset_branch(name, target, from_snapshot_id=expected)
        else:
            self.repository.reset_branch(name, target, from_snapshot_id=expected)
            self.branches[name] = target

    @rule(name=names)
    def delete_branch(self, name: str) -> None:
        if name in self.branches:
            self.repository.delete_branch(name)
            del self.branches[name]
        else:
            with pytest.raises(RefNotFoundError):
                self.repository.delete_branch(name)

    @rule(data=st.data(), name=names)
    def create_tag(self, data: st.DataObject, name: str) -> None:
        target = self.any_commit(data)
        if name in self.tags or name in self.deleted_tags:
            with pytest.raises(AlreadyExistsError):
                self.repository.create_tag(name, target)
        else:
            self.repository.create_tag(name, target)
            self.tags[name] = target

    @rule(name=names)
    def delete_tag(self, name: str) -> None:
        if name in self.tags:
            self.repository.delete_tag(name)
            del self.tags[name]
            self.deleted_tags.add(name)
        else:
            with pytest.raises(RefNotFoundError):
                self.repository.delete_tag(name)

    # -- opening again and looking back ------------------------------------------------------
    @rule()
    def reopen(self) -> None:
        self.repository = Repository.open(self.storage)
        assert self.repository.config == CONFIG

    @rule()
    def pickle_repository(self) -> None:
        self.repository = pickle.loads(pickle.dumps(self.repository))

    @rule(data=st.data(), send=st.booleans())
    def travel(self, data: st.DataObject, send: bool) -> None:
        target = self.any_commit(data)
        session = self.repository.readonly_session(snapshot_id=target)
        if send:
            session = pickle.loads(pickle.dumps(session))
        assert everything(session) == plain(self.commits[target].version)
        for path in node_paths(self.commits[target].version, arrays=True):
            ours = zarr.open_array(session.store, path=path, mode="r")
            model = zarr.open_array(MemoryStore(dict(self.commits[target].version)), path=path)
            np.testing.assert_array_equal(ours[...], model[...])

    @rule(data=st.data())
    def travel_to_a_tag(self, data: st.DataObject) -> None:
        for tag, target in self.tags.items():
            session = self.repository.readonly_session(tag=tag)
            assert session.snapshot_id == target
            assert everything(session) == plain(self.commits[target].version)

    @rule(data=st.data())
    def history(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from(sorted(self.branches)))
        entries = list(self.repository.ancestry(branch=branch))
        expected: str | None = self.branches[branch]
        for entry in entries:
            assert entry.id == expected
            expected = self.commits[entry.id].parent
            assert entry.parent_id == expected
        assert expected is None
        times = [entry.written_at for entry in entries]
        assert times == sorted(times, reverse=True)
        assert len(set(times)) == len(times)
        chosen = data.draw(st.sampled_from(entries))
        session = self.repository.readonly_session(branch, as_of=chosen.written_at)
        assert session.snapshot_id == chosen.id

    # -- what always holds -------------------------------------------------------------------
    @invariant()
    def session_reads_what_was_written(self) -> None:
        assert everything(self.session) == plain(self.now)
        assert self.session.snapshot_id == self.base
        if plain(self.now) != plain(self.commits[self.base].version):
            assert self.dirty()

    @invariant()
    def refs_are_where_they_were_put(self) -> None:
        assert self.repository.list_branches() == set(self.branches)
        assert self.repository.list_tags() == set(self.tags)
        assert {b: self.repository.lookup_branch(b) for b in self.branches} == self.branches
        assert {t: self.repository.lookup_tag(t) for t in self.tags} == self.tags


@pytest.mark.parametrize("kind", KINDS)
def test_repository(kind: str, request: pytest.FixtureRequest) -> None:
    run_state_machine_as_test(
        lambda: Repositories(new_storage(kind, request)),
        settings=settings(max_examples=30 if kind == "memory" else 8, stateful_step_count=30),
    )
