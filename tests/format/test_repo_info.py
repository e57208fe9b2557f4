from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from icechunk.errors import ErrorKind, FormatError, InternalError, SnapshotNotFoundError
from icechunk.format.encoding import flexbuf
from icechunk.format.encoding.envelope import FileType, unwrap, wrap
from icechunk.format.encoding.flatbuf import Batch, encode
from icechunk.format.ids import INITIAL_SNAPSHOT_ID
from icechunk.format.metadata import Metadata
from icechunk.format.repo_info import (
    RepoInfo,
    SnapshotEntry,
    Status,
    UpdateEntry,
    UpdateKind,
    decode_repo_info,
    encode_repo_info,
    with_item,
)
from icechunk.format.update_log import UpdateLog
from icechunk.format.updates import status_batch
from tests.format import golden, json_values
from tests.format.hostile import damaged, value_or_format_error
from tests.format.strict_walk import Table, Union, Vector, walk
from tests.python_calls import python_calls

METADATA = Vector(Table({0: ("name*", "string"), 1: ("value*", "bytes")}))
REFS = Vector(Table({0: ("name*", "string"), 1: ("snapshot_index", "I")}))
STATUS = Table(
    {0: ("availability", "B"), 1: ("set_at", "Q"), 2: ("limited_availability_reason", "string")}
)
NAME = (("name*", "string"),)
ID = (("id*", "id12"),)
NUMBERS = (("a", "B"), ("b", "B"))
FLAG = (("id", "H"), ("new_value", "?"), ("is_set", "?"))
UPDATES: dict[int, tuple[tuple[str, Any], ...]] = {
    1: (), 2: NUMBERS, 3: (), 4: (), 5: NAME, 6: NAME + ID, 7: NAME, 8: NAME + ID,
    9: NAME + ID, 10: NAME + ID, 11: (*NAME, *ID, ("new*", "id12")), 12: ID, 13: (), 14: (),
    15: FLAG, 16: (("status*", STATUS),),
}  # fmt: skip
UPDATE = Table(
    {
        0: (
            "update_type*",
            Union({tag: Table(dict(enumerate(fields))) for tag, fields in UPDATES.items()}),
        ),
        2: ("updated_at", "Q"),
        3: ("backup_path", "string"),
    }
)
SNAPSHOT = Table(
    {
        0: ("id*", "id12"),
        1: ("parent_offset*", "i"),  # not required, but the official walk depends on it
        2: ("flushed_at", "Q"),
        3: ("message*", "string"),
        4: ("metadata", METADATA),
        5: ("pruned_ancestor_tx_logs", Vector("id12")),
    }
)
REPO = Table(
    {
        0: ("spec_version*", "B"),
        1: ("tags*", REFS),
        2: ("branches*", REFS),
        3: ("deleted_tags*", Vector("string")),
        4: ("snapshots*", Vector(SNAPSHOT)),
        5: ("status*", STATUS),
        6: ("metadata*", METADATA),
        7: ("latest_updates*", Vector(UPDATE)),
        8: ("repo_before_updates", "string"),
        9: ("config", "bytes"),
        10: ("enabled_feature_flags", Vector("H")),
        11: ("disabled_feature_flags", Vector("H")),
    }
)


def payload_of(info: RepoInfo) -> bytes:
    return unwrap(encode_repo_info(info), FileType.REPO, "repo")[0]


# -- what official clients wrote -------------------------------------------------


def test_official_fresh_repository() -> None:
    info = decode_repo_info(golden.REPO_OBJECT, "repo")
    first = SnapshotEntry(
        INITIAL_SNAPSHOT_ID,
        None,
        1795350386942064,
        "Repository initialized",
        Metadata({"__icechunk": {"is_root": True}}),
    )
    assert info == RepoInfo(
        snapshots={INITIAL_SNAPSHOT_ID: first},
        branches={"main": INITIAL_SNAPSHOT_ID},
        tags={},
        deleted_tags=(),
        status=Status(0, 1795350386943277),
        updates=(UpdateEntry(kind=UpdateKind.REPO_INITIALIZED, updated_at=1795350386943985),),
    )


def test_official_repository_with_history() -> None:
    info = decode_repo_info(wrap(golden.REPO, FileType.REPO), "repo")
    first = bytes.fromhex("0038141cd401a92071ee2154")
    second = bytes.fromhex("f83e088b3625b7be40045917")
    assert info.tags == {"v1": second}
    assert info.branches == {"main": second}
    assert list(info.ancestry(second)) == [
        SnapshotEntry(second, first, 1795351363218010, "second", Metadata({})),
        SnapshotEntry(first, INITIAL_SNAPSHOT_ID, 1795351363212433, "first", Metadata({"n": 1})),
        SnapshotEntry(
            INITIAL_SNAPSHOT_ID,
            None,
            1795351363204822,
            "Repository initialized",
            Metadata({"__icechunk": {"is_root": True}}),
        ),
    ]
    assert info.status == Status(0, 1795351363204912)
    assert info.updates == (
        UpdateEntry(kind=UpdateKind.TAG_CREATED, updated_at=1795351363218682, name="v1"),
        UpdateEntry(
            kind=UpdateKind.NEW_COMMIT,
            updated_at=1795351363218368,
            backup="repo.30708328636782.DEQG85CSKJBY99F9TX10",
            name="main",
            snapshot=second,
        ),
        UpdateEntry(
            kind=UpdateKind.NEW_COMMIT,
            updated_at=1795351363212985,
            backup="repo.30708328636782.TK2B2M6QZANYJH00KPK0",
            name="main",
            snapshot=first,
        ),
        UpdateEntry(
            kind=UpdateKind.REPO_INITIALIZED,
            updated_at=1795351363204949,
            backup="repo.30708328636788.Z87WX9DSMWJ4RST6QG70",
        ),
    )
    assert (info.repo_before_updates, info.config, info.enabled_flags) == (None, None, None)
    assert decode_repo_info(encode_repo_info(info), "repo") == info


# -- any repo info -----------------------------------------------------------------

ids = st.binary(min_size=12, max_size=12)
times = st.integers(0, 2**64 - 2)
names = st.text(max_size=8)
statuses = st.builds(Status, st.integers(0, 255), times, st.none() | names)
flags = st.none() | st.sets(st.integers(0, 2**16 - 1), max_size=4).map(lambda f: tuple(sorted(f)))


@st.composite
def updates(draw: st.DrawFn, *, backup: bool) -> UpdateEntry:
    kind = draw(st.sampled_from(UpdateKind))
    fields = dict(UPDATES[kind])
    values: dict[str, Any] = {}
    if "name*" in fields:
        values["name"] = draw(names)
    if "id*" in fields:
        new = kind in (UpdateKind.NEW_COMMIT, UpdateKind.NEW_DETACHED_SNAPSHOT)
        values["snapshot" if new else "previous"] = draw(ids)
    if "new*" in fields:
        values["snapshot"] = draw(ids)
    if kind == UpdateKind.REPO_MIGRATED:
        values |= {"from_version": draw(st.integers(0, 255)), "to_version": 2}
    if kind == UpdateKind.FEATURE_FLAG_CHANGED:
        values["flag_id"] = draw(st.integers(0, 2**16 - 1))
        values |= {"flag_value": draw(st.booleans()), "flag_is_set": draw(st.booleans())}
    if kind == UpdateKind.REPO_STATUS_CHANGED:
        values["status"] = draw(statuses)
    path = draw(st.none() | st.text(min_size=1, max_size=9)) if backup else None
    return UpdateEntry(kind=kind, updated_at=draw(times), backup=path, **values)


@st.composite
def repo_infos(draw: st.DrawFn) -> RepoInfo:
    snapshot_ids = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    snapshots = {}
    for row, id in enumerate(snapshot_ids):
        parent = draw(st.none() | st.sampled_from(snapshot_ids[:row])) if row else None
        snapshots[id] = SnapshotEntry(
            id,
            parent,
            draw(times),
            draw(names),
            Metadata(draw(json_values.objects)),
            tuple(draw(st.lists(ids, max_size=3))),
        )
    refs = st.dictionaries(names, st.sampled_from(snapshot_ids), max_size=4)
    return RepoInfo(
        snapshots=snapshots,
        branches=draw(refs),
        tags=draw(refs),
        deleted_tags=tuple(sorted(draw(st.sets(names, max_size=3)))),
        status=draw(statuses),
        updates=(draw(updates(backup=False)), *draw(st.lists(updates(backup=True), max_size=8))),
        metadata=Metadata(draw(json_values.objects)),
        repo_before_updates=draw(st.none() | names),
        config=draw(st.none() | json_values.objects.map(flexbuf.dumps)),
        enabled_flags=draw(flags),
        disabled_flags=draw(flags),
    )


@settings(max_examples=80)
@given(repo_infos())
def test_round_trip(info: RepoInfo) -> None:
    assert decode_repo_info(encode_repo_info(info), "repo") == info


@settings(max_examples=80)
@given(repo_infos())
def test_what_is_written_satisfies_a_strict_reader(info: RepoInfo) -> None:
    found = walk(payload_of(info), REPO)
    order = sorted(info.snapshots)
    assert found["spec_version"] == 2
    assert [entry["id"] for entry in found["snapshots"]] == order
    for entry in found["snapshots"]:
        parent = info.snapshots[entry["id"]].parent_id
        assert entry["parent_offset"] == (-1 if parent is None else order.index(parent))
        assert entry.get("pruned_ancestor_tx_logs") != []
    for field in ("tags", "branches"):
        stored = [ref["name"].encode() for ref in found[field]]
        assert stored == sorted(stored)
    deleted = [name.encode() for name in found["deleted_tags"]]
    assert deleted == sorted(deleted)
    assert "backup_path" not in found["latest_updates"][0]
    assert [u["updated_at"] for u in found["latest_updates"]] == [
        u.updated_at for u in info.updates
    ]


def many_snapshots(count: int) -> RepoInfo:
    index = [row.to_bytes(12, "big") for row in range(count)]
    entries = {
        id: SnapshotEntry(
            id, index[row - 1] if row else None, row, "the same message", Metadata({"who": "me"})
        )
        for row, id in enumerate(index)
    }
    update = UpdateEntry(kind=UpdateKind.REPO_INITIALIZED, updated_at=1)
    return RepoInfo(
        snapshots=entries,
        branches={"main": index[-1]},
        tags={},
        deleted_tags=(),
        status=Status(0, 1),
        updates=(update,),
    )


INFO = many_snapshots(3)


def test_equal_strings_are_stored_once() -> None:
    payload = payload_of(many_snapshots(100))
    assert payload.count(b"the same message") == 1
    assert payload.count(b"who") == 1


def test_metadata_of_other_snapshots_go_back_byte_for_byte() -> None:
    # a float in 8 bytes where 4 would do: legal, and not what this library writes
    odd = b"\x00\x00\x00\x00\x00\x00\xf8\x3f\x0f\x08"
    assert flexbuf.loads(odd, "x") == 1.5 and flexbuf.dumps(1.5) != odd
    entry = replace(INFO.snapshots[bytes(12)], metadata=Metadata.stored({"k": odd}, 2, "x"))
    info = replace(INFO, snapshots=INFO.snapshots | {entry.id: entry})
    again = decode_repo_info(encode_repo_info(info), "repo")
    assert again.snapshots[entry.id].metadata.packed() == {"k": odd}


def test_damaged_metadata_hurt_only_those_who_ask() -> None:
    entry = replace(INFO.snapshots[bytes(12)], metadata=Metadata.stored({"k": b"\xff"}, 2, "x"))
    info = replace(INFO, snapshots=INFO.snapshots | {entry.id: entry})
    again = decode_repo_info(encode_repo_info(info), "the/name")
    with pytest.raises(FormatError, match=r"the/name: metadata\['k'\]"):
        dict(again.snapshots[entry.id].metadata)


def test_no_time_is_left() -> None:
    last = replace(INFO.updates[0], updated_at=2**64 - 1)
    info = replace(INFO, updates=(last,))
    with pytest.raises(FormatError, match="last time that can be stored"):
        info.with_update(UpdateEntry(kind=UpdateKind.REPO_INITIALIZED), backup="b")


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[SnapshotEntry, UpdateEntry, int]]:
    """Return what some commits add to INFO, in order, and limits of the log."""
    known = list(INFO.snapshots)
    found = []
    for id in draw(st.lists(ids, min_size=1, max_size=8, unique=True)):
        if id in known:
            continue
        entry = SnapshotEntry(
            id,
            draw(st.sampled_from([None, *known])),
            draw(times),
            draw(names),
            Metadata(draw(json_values.objects)),
            tuple(draw(st.lists(ids, max_size=2))),
        )
        known.append(id)
        update = draw(updates(backup=False))
        # times increase, and some must be left
        update = replace(update, updated_at=min(update.updated_at, 2**64 - 20))
        found.append((entry, update, draw(st.integers(1, 6))))
    return found


@settings(max_examples=50)
@given(steps(), st.booleans())
def test_history_in_columns_is_that_in_rows(
    added: list[tuple[SnapshotEntry, UpdateEntry, int]], reopened: bool
) -> None:
    """What goes from file to file as columns is what would be encoded entry by entry."""
    columns = decode_repo_info(encode_repo_info(INFO), "repo") if reopened else INFO
    snapshots, log = dict(INFO.snapshots), list(INFO.updates)
    before = None
    for number, (entry, update, limit) in enumerate(added):
        columns = columns.with_update(
            update,
            backup=f"backup {number}",
            limit=limit,
            snapshots=with_item(columns.snapshots, entry.id, entry),
        )
        snapshots[entry.id] = entry
        time = max(update.updated_at, log[0].updated_at + 1)
        log[0] = replace(log[0], backup=f"backup {number}")
        log.insert(0, replace(update, updated_at=time, backup=None))
        if len(log) > limit:
            before = log[limit].backup
            del log[limit:]
        rows = replace(INFO, snapshots=snapshots, updates=tuple(log), repo_before_updates=before)
        assert columns == rows
        assert columns.updates[0] == log[0] and columns.updates[-1] == log[-1]
        assert {id: columns.snapshots[id] for id in snapshots} == snapshots
        assert walk(payload_of(columns), REPO) == walk(payload_of(rows), REPO)
        again = decode_repo_info(encode_repo_info(columns), "repo")
        assert again == rows
        assert [entry.id for entry in again.ancestry(entry.id)] == [
            list(again.snapshots)[row] for row in again.ancestry_rows(entry.id)
        ]


def test_snapshots_in_another_order_than_that_of_their_ids() -> None:
    """No client writes them so, but readers follow the indices of the file."""
    first, second = bytes(12), bytes([1] * 12)
    info = replace(many_snapshots(1), branches={}, snapshots={})
    table = Batch(2)
    table.struct(0, np.frombuffer(second + first, np.uint8).reshape(2, 12))
    table.scalar(1, [1, -1], "<i4")
    table.scalar(2, np.array([20, 10], "<u8"), "<u8")
    table.text(3, ["second", "first"])
    table.vector(5, np.zeros((1, 12), np.uint8), [0, 1, 1], present=[True, False])
    ref = Batch(1)
    ref.text(0, ["main"])
    ref.scalar(1, [0], "<u4", default=0)
    root = Batch(1)
    root.scalar(0, 2, "<u1")
    root.children(1, Batch(0), [0, 0])
    root.children(2, ref, [0, 1])
    root.texts(3, [[]])
    root.children(4, table, [0, 2])
    root.child(5, status_batch([Status(0, 1)]))
    root.children(7, UpdateLog.of(info.updates).batch(), [0, 1])
    found = decode_repo_info(wrap(encode(root), FileType.REPO), "repo")
    assert found.branches == {"main": second}
    assert list(found.ancestry(second)) == [
        SnapshotEntry(second, first, 20, "second", Metadata({}), (bytes(12),)),
        SnapshotEntry(first, None, 10, "first", Metadata({})),
    ]
    assert decode_repo_info(encode_repo_info(found), "repo") == found


# -- the log of updates --------------------------------------------------------------


@given(st.lists(st.integers(1, 6), max_size=15), st.integers(0, 4))
def test_log_with_its_backups_is_complete(limits: list[int], synthetic: int) -> None:
    # as after a migration: entries without a backup at the end
    entries = [
        UpdateEntry(kind=UpdateKind.NEW_COMMIT, updated_at=100 - row, name="", snapshot=bytes(12))
        for row in range(synthetic + 1)
    ]
    info = replace(INFO, updates=tuple(entries))
    log = list(entries)
    backups: dict[str, RepoInfo] = {}
    for step, limit in enumerate(limits):
        name = f"repo.{step}"
        backups[name] = info
        update = UpdateEntry(kind=UpdateKind.GC_RAN, updated_at=1000 + step)
        info = info.with_update(update, backup=name, limit=limit)
        log.insert(0, update)
        assert info.updates[0] == update
        assert all(u.backup is not None for u in info.updates[1 : step + 2])
        linkable = [u for u in info.updates if u.backup is not None]
        assert len(linkable) <= limit
        # the reader's rule: this file's entries, then those of the next file
        found, file = list(info.updates), info
        while file.repo_before_updates is not None:
            file = backups[file.repo_before_updates]
            found += file.updates
        assert [replace(u, backup=None) for u in found] == log


def test_log_of_official_limit() -> None:
    # five tags and a commit in a repository that keeps three entries
    info = INFO
    for step in range(6):
        update = UpdateEntry(kind=UpdateKind.TAG_CREATED, updated_at=10 + step, name=f"t{step}")
        info = info.with_update(update, backup=f"b{step}", limit=3)
    assert [(u.name, u.backup) for u in info.updates] == [("t5", None), ("t4", "b5"), ("t3", "b4")]
    assert info.repo_before_updates == "b3"


def test_times_increase_whatever_the_clock_says() -> None:
    update = UpdateEntry(kind=UpdateKind.GC_RAN, updated_at=0, backup="ignored")
    info = INFO.with_update(update, backup="b", tags={"t": bytes(12)})
    assert [(u.updated_at, u.backup) for u in info.updates] == [(2, None), (1, "b")]
    assert info.tags == {"t": bytes(12)}
    assert info.snapshots == INFO.snapshots


# -- history -------------------------------------------------------------------------


def test_ancestry() -> None:
    rows = [entry.flushed_at for entry in many_snapshots(50).ancestry((49).to_bytes(12, "big"))]
    assert rows == list(range(49, -1, -1))
    with pytest.raises(SnapshotNotFoundError, match="1CECHNKREP0F1RSTCMT0"):
        list(INFO.ancestry(INITIAL_SNAPSHOT_ID))


def test_history_with_a_missing_ancestor() -> None:
    child = SnapshotEntry(bytes(12), bytes([1]) * 12, 1, "", Metadata({}))
    info = RepoInfo({child.id: child}, {}, {}, (), Status(0, 0), ())
    history = info.ancestry(child.id)
    assert next(history) == child
    with pytest.raises(FormatError, match="missing"):
        next(history)


def test_history_in_a_circle() -> None:
    first = bytes(12)
    last = max(INFO.snapshots)
    snapshots = dict(INFO.snapshots)
    snapshots[first] = replace(snapshots[first], parent_id=last)
    info = decode_repo_info(encode_repo_info(replace(INFO, snapshots=snapshots)), "repo")
    with pytest.raises(FormatError, match="circle"):
        list(info.ancestry(last))


# -- damage and oddities ---------------------------------------------------------------


def stored(
    *,
    version: int | None = 2,
    parent: int | None = None,
    branch: int = 0,
    tag: int = 1,
    copies: int = 1,
) -> bytes:
    """A stored repo info that no writer would make."""
    snapshots = Batch(copies)
    snapshots.struct(0, np.zeros((copies, 12), np.uint8))
    if parent is not None:
        snapshots.scalar(1, [parent] * copies, "<i4")
    snapshots.text(3, ["m"] * copies)
    refs = Batch(1)
    refs.text(0, ["main"])
    refs.scalar(1, [branch], "<u4")
    update = Batch(1)
    update.union(0, [tag], {tag: Batch(1)})
    root = Batch(1)
    if version is not None:
        root.scalar(0, version, "<u1")
    root.children(1, Batch(0), [0, 0])
    root.children(2, refs, [0, 1])
    root.texts(3, [[]])
    root.children(4, snapshots, [0, copies])
    root.child(5, Batch(1))
    root.children(7, update, [0, 1])
    return wrap(encode(root), FileType.REPO)


def test_what_old_clients_leave_out() -> None:
    info = decode_repo_info(stored(parent=-1), "repo")
    assert info.snapshots[bytes(12)] == SnapshotEntry(bytes(12), None, 0, "m", Metadata({}))
    assert info.status == Status(0, 0)
    assert info.metadata == {}


def test_missing_parent_means_the_first_snapshot() -> None:
    assert decode_repo_info(stored(), "repo").snapshots[bytes(12)].parent_id == bytes(12)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (stored(tag=17), r"latest_updates\[0\]: unknown kind of update 17"),
        (stored(tag=200), r"latest_updates\[0\]: unknown kind of update 200"),
        (stored(parent=1), "parent_offset: 1 is not one of 1 snapshots"),
        (stored(parent=-1, branch=1), "branches: 1 is not one of 1 snapshots"),
        (stored(copies=2), "listed twice"),
    ],
)
def test_refuses(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=f"the/name: .*{problem}"):
        decode_repo_info(data, "the/name")


@pytest.mark.parametrize("version", [None, 0, 1, 3])
def test_other_versions(version: int | None) -> None:
    with pytest.raises(FormatError, match=f"version {version or 0}") as caught:
        decode_repo_info(stored(version=version), "repo")
    assert caught.value.kind == ErrorKind.UNSUPPORTED_SPEC_VERSION


def read_all(data: bytes) -> Any:
    info = decode_repo_info(data, "x")
    metadata = [dict(entry.metadata) for entry in info.snapshots.values()]
    return [list(info.ancestry(id)) for id in info.branches.values()], metadata, dict(info.metadata)


RICH = payload_of(
    replace(
        INFO,
        tags={"t": bytes(12)},
        deleted_tags=("gone",),
        metadata=Metadata({"k": [1, "x"]}),
        config=golden.CONFIG,
        enabled_flags=(3,),
    ).with_update(
        UpdateEntry(kind=UpdateKind.TAG_DELETED, updated_at=9, name="gone", previous=bytes(12)),
        backup="repo.b",
    )
)


@settings(max_examples=300)
@given(st.data())
def test_damage_gives_a_format_error(data: st.DataObject) -> None:
    payload = data.draw(st.sampled_from([golden.REPO, RICH]))
    wrong = wrap(data.draw(damaged(payload)), FileType.REPO)
    value_or_format_error(lambda: read_all(wrong))


@given(st.binary(max_size=200))
def test_made_up_payload(payload: bytes) -> None:
    value_or_format_error(lambda: read_all(wrap(payload, FileType.REPO)))


# -- what is not written -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"updates": ()}, "log of updates"),
        ({"updates": (replace(INFO.updates[0], backup="b"),)}, "log of updates"),
        ({"branches": {"main": INITIAL_SNAPSHOT_ID}}, "unknown snapshot 1CECHNKREP0F1RSTCMT0"),
        ({"tags": {"t": INITIAL_SNAPSHOT_ID}}, "unknown snapshot 1CECHNKREP0F1RSTCMT0"),
        (
            {
                "snapshots": {
                    INITIAL_SNAPSHOT_ID: SnapshotEntry(
                        INITIAL_SNAPSHOT_ID, b"unknown.....", 1, "", Metadata({})
                    )
                },
                "branches": {},
            },
            "parents refer to the unknown snapshot",
        ),
        (
            {"updates": (UpdateEntry(kind=UpdateKind.TAG_CREATED, updated_at=1),)},
            "TAG_CREATED has no name",
        ),
    ],
)
def test_states_that_official_clients_could_not_read(changes: Any, problem: str) -> None:
    with pytest.raises(InternalError, match=problem):
        encode_repo_info(replace(INFO, **changes))


def long_history(count: int) -> RepoInfo:
    ids = [i.to_bytes(12, "big") for i in range(count)]
    entries = [
        SnapshotEntry(
            id,
            ids[row - 1] if row else None,
            1_800_000_000_000_000 + row,
            f"message {row % 7} é",
            Metadata({"run": row, "by": "x"} if row % 3 else {}),
            (bytes([7]) * 12,) * (row % 2),
        )
        for row, id in enumerate(ids)
    ]
    mixed = sorted(entries, key=lambda entry: entry.flushed_at * 7919 % 104729)
    return RepoInfo(
        snapshots={entry.id: entry for entry in mixed},
        branches={"main": ids[-1]},
        tags={},
        deleted_tags=(),
        status=Status(0, 1),
        updates=(UpdateEntry(kind=UpdateKind.REPO_INITIALIZED, updated_at=1),),
    )


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=4))
def test_a_table_of_snapshots_is_a_mapping_of_them(
    count: int, added: list[tuple[int, bool]]
) -> None:
    info = long_history(count)
    expected = dict(info.snapshots)
    table: Any = decode_repo_info(encode_repo_info(info), "repo").snapshots
    for number, first in added:
        id = (number * 3).to_bytes(12, "big")
        parent = None if first else min(expected)
        entry = SnapshotEntry(id, parent, number, f"message {number}", Metadata({"run": number}))
        expected[id] = entry
        table = with_item(table, id, entry)
    assert table.keys() == expected.keys()
    for id in expected:
        assert table[id] == expected[id]
    assert dict(table) == expected
    assert bytes(11) not in table
    again = replace(info, snapshots=table, branches={"main": min(expected)})
    slow = replace(again, snapshots=expected)
    fast, slowly = (bytes(encode_repo_info(state)) for state in (again, slow))
    sizes = [len(unwrap(data, FileType.REPO, "repo")[0]) for data in (fast, slowly)]
    assert sizes[0] == sizes[1]
    assert decode_repo_info(fast, "repo") == decode_repo_info(slowly, "repo")
    assert decode_repo_info(fast, "repo").snapshots == expected


def test_old_snapshots_cost_no_calls_in_a_commit() -> None:
    entry = SnapshotEntry(bytes([9]) * 12, bytes(12), 5, "new", Metadata({"run": 1}))

    def commit(stored: bytearray) -> bytearray:
        info = decode_repo_info(stored, "repo")
        snapshots = with_item(info.snapshots, entry.id, entry)
        return encode_repo_info(replace(info, snapshots=snapshots))

    few, many = (encode_repo_info(long_history(count)) for count in (40, 3000))
    assert python_calls(lambda: commit(many)) < python_calls(lambda: commit(few)) + 300
    for stored in (few, many):
        assert decode_repo_info(commit(stored), "repo").snapshots[entry.id] == entry


def test_a_parent_that_is_unknown_is_refused() -> None:
    info = decode_repo_info(encode_repo_info(long_history(3)), "repo")
    entry = SnapshotEntry(bytes([9]) * 12, bytes([8]) * 12, 5, "new", Metadata({}))
    with pytest.raises(InternalError, match="unknown snapshot"):
        with_item(info.snapshots, entry.id, entry)
