"""Expiration and garbage collection leave the same behind, whoever does them.

Random histories are copied, both sides do the same to a copy each, and what they say of it
and what is left must be equal. Files have times that the test gives them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from icechunk.format import layout
from icechunk.format.chunk_refs import RefKind
from icechunk.format.ids import decode_id
from icechunk.format.manifest import decode_manifest
from icechunk.format.repo_info import RepoInfo, decode_repo_info
from icechunk.format.snapshot import decode_snapshot
from tests.interop.sides import Official, Ours, Side

NUMBERS = st.integers(0, 30)
BRANCHES = st.sampled_from(["main", "main", "b", "c"])
STEPS = st.one_of(
    st.tuples(st.just("commit"), BRANCHES, NUMBERS, st.just("commit")),
    st.tuples(st.just("commit"), BRANCHES, NUMBERS, st.sampled_from(["commit", "amend", "flush"])),
    st.tuples(st.just("clash"), BRANCHES, NUMBERS),
    st.tuples(st.just("set_branch"), BRANCHES, NUMBERS),
    st.tuples(st.just("delete_branch"), BRANCHES),
    st.tuples(st.just("set_tag"), st.sampled_from("tuv"), NUMBERS),
    st.tuples(st.just("delete_tag"), st.sampled_from("tuv")),
    st.tuples(st.just("expire"), NUMBERS),
)
#: Times of files are so many seconds after this.
START = 1_700_000_000
FOLDERS = (layout.SNAPSHOTS, layout.TRANSACTIONS, layout.MANIFESTS, layout.CHUNKS)


class Copies:
    """A random repository, and a copy of it for each of two sides.

    Parameters
    ----------
    folder : Path
        Empty.
    maker : Side
    sides : sequence of Side
    """

    def __init__(
        self, folder: Path, maker: Side, sides: list[Side], spec_version: int, steps: Any
    ) -> None:
        self.sides = sides
        self.source = folder / "source"
        self.copies = [folder / side.name for side in sides]
        maker.run("maintenance.build", str(self.source), spec_version, steps)
        self._maker = maker

    def set_times(self, fraction: float) -> list[Path]:
        """Give every file a second of its own, in their order; return them."""
        files = [self.source / key for key in files_in(self.source)]
        files.sort(key=lambda path: path.stat().st_mtime_ns)
        for place, path in enumerate(files):
            os.utime(path, (START + place + fraction,) * 2)
        return files

    def copy(self) -> None:
        """Make the copies."""
        for copy in self.copies:
            shutil.copytree(self.source, copy)

    def pairs(self) -> list[tuple[Side, Path]]:
        """Return each side with its copy."""
        return list(zip(self.sides, self.copies, strict=True))

    def both(self, function: str, *arguments: Any) -> list[Any]:
        """Call a function of `tests.interop.maintenance` under each side, on its own copy."""
        return [
            side.run(f"maintenance.{function}", str(copy), *arguments)
            for side, copy in self.pairs()
        ]


def files_in(folder: Path) -> dict[str, int]:
    """Return the keys and sizes of objects that garbage collection is about."""
    return {
        f"{part}{path.name}": path.stat().st_size
        for part in FOLDERS
        for path in (folder / part).glob("*")
        if "#" not in path.name
    }


def state(folder: Path) -> dict[str, Any]:
    """Return what there is to know of snapshots and refs, with all ids."""
    if not (folder / "repo").exists():
        return {
            "parents": {
                path.name: decode_snapshot(path.read_bytes(), path.name).parent_id
                for path in (folder / "snapshots").glob("*")
                if "#" not in path.name
            },
            "refs": {
                str(path.relative_to(folder)): path.read_bytes()
                for path in (folder / "refs").rglob("ref.json*")
                if "#" not in path.name
            },
        }
    info: RepoInfo = decode_repo_info((folder / "repo").read_bytes(), "repo")
    return {
        "snapshots": {id: (entry.parent_id, entry.pruned) for id, entry in info.snapshots.items()},
        "branches": dict(info.branches),
        "tags": dict(info.tags),
        "deleted tags": sorted(info.deleted_tags),
        "update": info.updates[0].kind,
        "updates": sum(1 for _ in info.updates),
    }


def assert_alike(copies: Copies, spec_version: int, official_1: Side) -> None:
    """All clients see the same in both copies."""
    readers = [*copies.sides, *([official_1] if spec_version == 1 else [])]
    seen = [side.run("maintenance.look", str(copy)) for side in readers for copy in copies.copies]
    assert all(each == seen[0] for each in seen)


@pytest.mark.parametrize("spec_version", [1, 2])
@settings(max_examples=8)
@given(
    steps=st.lists(STEPS, min_size=5, max_size=12),
    when=st.tuples(NUMBERS, st.integers(-1, 1)),
    doomed=st.tuples(st.booleans(), st.booleans()),
    made_here=st.booleans(),
)
def test_both_expire_alike(
    steps: Any,
    when: tuple[int, int],
    doomed: tuple[bool, bool],
    made_here: bool,
    spec_version: int,
    ours: Ours,
    official: Official,
    official_1: Official,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copies = Copies(
            Path(folder), ours if made_here else official, [ours, official], spec_version, steps
        )
        copies.copy()
        mine, theirs = copies.both("sizes")
        assert mine == theirs
        times = official.run("maintenance.written_at", str(copies.source))
        older_than = times[when[0] % len(times)] + when[1]
        mine, theirs = copies.both("expire", older_than, *doomed)
        assert mine == theirs
        mine, theirs = map(state, copies.copies)
        assert mine == theirs
        assert_alike(copies, spec_version, official_1)
        mine, theirs = copies.both("sizes")
        assert mine == theirs


# -- garbage collection ----------------------------------------------------------------------
def needs_of(snapshot: Path) -> set[str]:
    """Return the keys of a snapshot and of all that it needs."""
    folder, id = snapshot.parent.parent, decode_id(snapshot.name)
    found = {layout.snapshot_key(id), layout.transaction_key(id)}
    for manifest in decode_snapshot(snapshot.read_bytes(), snapshot.name).manifest_files:
        key = layout.manifest_key(manifest)
        found.add(key)
        for refs in decode_manifest((folder / key).read_bytes(), key).arrays.values():
            rows = map(refs.row, range(len(refs)))
            found.update(
                layout.chunk_key(row.chunk_id)
                for row in rows
                if row.kind == RefKind.NATIVE and row.chunk_id is not None
            )
    return found


def is_older(path: Path, cutoff: float) -> bool:
    """Say whether both take a file to be older; a time without a fraction is a whole second."""
    time = path.stat().st_mtime
    return time + 1 <= cutoff if time.is_integer() else time < cutoff


def said_of(gone: dict[str, int]) -> dict[str, int]:
    """Return what a summary says if some objects were deleted."""
    counts = {part.rstrip("/"): sum(1 for key in gone if key.startswith(part)) for part in FOLDERS}
    counts["transaction_logs"] = counts.pop("transactions")
    return {"bytes": sum(gone.values()), "attributes": 0, **counts}


@pytest.mark.parametrize("spec_version", [1, 2])
@settings(max_examples=8)
@given(
    steps=st.lists(STEPS, min_size=5, max_size=12),
    expired=st.booleans(),
    cutoff=st.floats(0, 1),
    fractions=st.tuples(st.sampled_from([0, 0.5]), st.sampled_from([0, 0.5, 0.75])),
    made_here=st.booleans(),
)
def test_both_collect_alike(
    steps: Any,
    expired: bool,
    cutoff: float,
    fractions: tuple[float, float],
    made_here: bool,
    spec_version: int,
    ours: Ours,
    official: Official,
    official_1: Official,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copies = Copies(
            Path(folder), ours if made_here else official, [ours, official], spec_version, steps
        )
        if expired:
            now = official.run("maintenance.written_at", str(copies.source))[-1]
            official.run("maintenance.expire", str(copies.source), now, True, True)
        files = copies.set_times(fractions[0])
        older_than = START + int(cutoff * (len(files) + 1)) + fractions[1]
        young = {
            path
            for path in files
            if path.parent.name == "snapshots" and not is_older(path, older_than)
        }
        # Here what was written lately is kept with all that it needs. The official client
        # takes the older parts away from those of which it knows nothing.
        needed = set().union(*map(needs_of, young))
        before = files_in(copies.source)
        copies.copy()
        dry = copies.both("collect", int(older_than * 1e6), True)
        assert [files_in(copy) for copy in copies.copies] == [before, before]
        said = copies.both("collect", int(older_than * 1e6), False)
        # a dry run of theirs counts logs that the run itself comes to need
        assert said[0] == dry[0]
        mine, theirs = map(files_in, copies.copies)
        assert mine == theirs | {key: before[key] for key in needed & before.keys()}
        for left, saying in zip((mine, theirs), said, strict=True):
            assert saying == said_of({key: before[key] for key in before.keys() - left.keys()})
        mine, theirs = map(state, copies.copies)
        if spec_version == 1:
            mine, theirs = mine["refs"], theirs["refs"]
        assert mine == theirs
        assert_alike(copies, spec_version, official_1)
        copies.sides.reverse()
        now = [side.run("maintenance.go_on", str(copy)) for side, copy in copies.pairs()][-1]
        for _ in range(2):
            copies.both("expire", now, False, False)
            copies.both("collect", now, False)
            for copy in copies.copies:
                official.run("history.inspect", str(copy))
                seen = [side.run("maintenance.look", str(copy)) for side in copies.sides]
                assert seen[0] == seen[1]


# -- sizes -----------------------------------------------------------------------------------
@pytest.mark.parametrize("spec_version", [1, 2])
def test_both_count_alike(
    spec_version: int, ours: Ours, official: Official, tmp_path: Path
) -> None:
    """Chunks of all kinds: the same ranges again, others that overlap; in several manifests."""
    numbers = [0, 15, 0, 30, 5, 20, 10, 2, 3, 4]
    steps = [
        *(["commit", "main", number, "commit"] for number in numbers),
        ["commit", "main", 25, "flush"],
        ["commit", "main", 9, "flush"],
        ["set_branch", "b", 3],
        ["commit", "b", 7, "commit"],
        ["clash", "b", 13],
        ["set_tag", "t", 7],
        ["set_branch", "main", 5],
    ]
    folder = str(tmp_path / "repository")
    ours.run("maintenance.build", folder, spec_version, steps)
    found = []
    for older_than in (0, official.run("maintenance.written_at", folder)[-1]):
        ours.run("maintenance.expire", folder, older_than, False, True)
        mine, theirs = (side.run("maintenance.sizes", folder) for side in (ours, official))
        assert mine == theirs
        found.append(mine)
    assert all(found[1])
    assert found[1][0] < found[0][0]
