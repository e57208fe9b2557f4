"""Edits, moves of chunks, forks of forks, commits beside others: against a dictionary of chunks."""

from __future__ import annotations

import itertools
import pickle
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import ConflictDetector, MemoryStorage, Repository, Session

Coords = tuple[int, ...]
SIZE = 2  # of chunks, in each dimension
FILL = -1


def place(coords: Coords) -> tuple[slice, ...]:
    return tuple(slice(SIZE * i, SIZE * (i + 1)) for i in coords)


@dataclass
class Array:
    """What an array holds: one number for each chunk that is written."""

    shape: tuple[int, ...]
    chunks: dict[Coords, int] = field(default_factory=dict)

    @property
    def grid(self) -> Coords:
        return tuple(n // SIZE for n in self.shape)

    def cells(self) -> list[Coords]:
        return list(itertools.product(*map(range, self.grid)))

    def values(self) -> Any:
        values = np.full(self.shape, FILL, "i4")
        for coords, number in self.chunks.items():
            values[place(coords)] = number
        return values

    def copy(self) -> Array:
        return Array(self.shape, dict(self.chunks))


Model = dict[str, Array]


def copied(model: Model) -> Model:
    return {path: array.copy() for path, array in model.items()}


def check(session: Session, model: Model) -> None:
    """The session reads what the model holds, and knows which chunks are written."""
    assert {n.path.strip("/") for n in session.tree.nodes() if n.is_array} == set(model)
    for path, array in model.items():
        found = zarr.open_array(session.store, path=path, mode="r")[...]
        assert np.array_equal(found, array.values()), path
        written = np.zeros(array.grid, bool)
        for coords in array.chunks:
            written[coords] = True
        assert np.array_equal(session.written_chunks(path), written), path


def edit(rng: random.Random, session: Session, model: Model, path: str) -> None:
    """Do something to an array, here and there."""
    array, store = model[path], session.store
    opened = zarr.open_array(store, path=path, mode="r+")
    cells = array.cells()
    match rng.choice(["write", "write", "erase", "shift", "reindex", "resize"]):
        case "write":
            for coords in rng.sample(cells, min(len(cells), rng.randrange(1, 4))):
                array.chunks[coords] = rng.randrange(1 << 20)
                opened[place(coords)] = array.chunks[coords]
        case "erase":
            coords = rng.choice(cells)
            array.chunks.pop(coords, None)
            opened[place(coords)] = FILL
        case "shift":
            offset = tuple(rng.randrange(-2, 3) for _ in array.shape)
            session.shift_array(f"/{path}", offset)
            moved = {
                tuple(i + o for i, o in zip(coords, offset, strict=True)): number
                for coords, number in array.chunks.items()
            }
            inside = set(cells)
            array.chunks = {coords: n for coords, n in moved.items() if coords in inside}
        case "reindex":
            targets = rng.sample(cells, len(cells))
            forward = dict(zip(cells, targets, strict=True))
            staying = {coords for coords in cells if rng.random() < 0.2}
            back = {target: coords for coords, target in forward.items() if coords not in staying}
            session.reindex_array(
                f"/{path}",
                lambda at: None if tuple(at) in staying else forward[tuple(at)],
                lambda at: back.get(tuple(at)),
            )
            array.chunks = {
                forward[coords]: number
                for coords, number in array.chunks.items()
                if coords not in staying
            }
        case "resize":
            # by whole chunks: what is cut within one stays in it
            array.shape = tuple(SIZE * rng.randrange(1, 5) for _ in array.shape)
            opened.resize(array.shape)
            inside = set(array.cells())
            array.chunks = {c: n for c, n in array.chunks.items() if c in inside}


def travelled(rng: random.Random, fork: Any) -> Any:
    return pickle.loads(pickle.dumps(fork)) if rng.random() < 0.6 else fork


def spread(rng: random.Random, session: Session, model: Model, paths: list[str], deep: int) -> None:
    """Let forks edit arrays, each its own, and merge them in any order."""
    paths = rng.sample(paths, len(paths))
    number = rng.randrange(1, 4)
    base, forks = copied(model), []
    for own in (paths[i::number] for i in range(number)):
        fork = travelled(rng, session.fork(pack=rng.choice([None, True, False])))
        mine = copied(base)
        for _ in range(rng.randrange(4) if own else 0):
            edit(rng, fork, mine, rng.choice(own))
        if deep and own and rng.random() < 0.5:
            spread(rng, fork, mine, own, deep - 1)
        check(fork, mine)
        model.update({path: mine[path] for path in own})
        forks.append(travelled(rng, fork))
    session.merge(*rng.sample(forks, len(forks)))


def add(rng: random.Random, session: Session, model: Model, path: str) -> None:
    model[path] = Array(tuple(SIZE * rng.randrange(1, 4) for _ in range(rng.choice([1, 2]))))
    zarr.create_array(
        session.store,
        name=path,
        shape=model[path].shape,
        chunks=(SIZE,) * len(model[path].shape),
        dtype="i4",
        fill_value=FILL,
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_life(seed: int) -> None:
    rng = random.Random(seed)
    repository = Repository.create(MemoryStorage())
    with repository.transaction("main", message="root") as store:
        zarr.create_group(store)
    model: Model = {}
    session = repository.writable_session("main", pack=rng.choice([True, False]))
    for number in range(rng.randrange(8, 20)):
        action = rng.choice(["edit"] * 4 + ["add", "remove", "fork", "fork", "commit", "others"])
        if action == "add" or not model:
            add(rng, session, model, f"a{number}")
        elif action == "edit":
            edit(rng, session, model, rng.choice(sorted(model)))
        elif action == "remove":
            path = rng.choice(sorted(model))
            del zarr.open_group(session.store, mode="r+")[path], model[path]
        elif action == "fork":
            spread(rng, session, model, sorted(model), 2)
        elif session.has_uncommitted_changes:
            if action == "others":
                other, added = repository.writable_session("main"), Model()
                add(rng, other, added, f"b{number}")
                edit(rng, other, added, f"b{number}")
                other.commit("of somebody else")
                if rng.random() < 0.5:
                    session.rebase(ConflictDetector())
                session.commit("beside others", rebase_with=ConflictDetector())
                model |= added
            elif rng.random() < 0.2:
                session.amend("instead of the last one")
            else:
                session.commit("mine")
            session = repository.writable_session("main", pack=rng.choice([True, False]))
        check(session, model)
    if session.has_uncommitted_changes:
        session.commit("the last one")
    check(repository.readonly_session("main"), model)
    assert repository.verify(deep=True).ok
