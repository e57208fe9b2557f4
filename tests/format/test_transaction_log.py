from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from icechunk.errors import FormatError
from icechunk.format.encoding.envelope import FileType, unwrap, wrap
from icechunk.format.encoding.flatbuf import Batch, encode
from icechunk.format.transaction_log import (
    Move,
    TransactionLog,
    decode_transaction_log,
    encode_transaction_log,
)
from tests.format.hostile import damaged
from tests.format.strict_walk import Table, Vector, walk

LISTS = (
    "new_groups",
    "new_arrays",
    "deleted_groups",
    "deleted_arrays",
    "updated_arrays",
    "updated_groups",
)
CHUNKS = Table(
    {0: ("node_id*", "id8"), 1: ("chunks*", Vector(Table({0: ("coords*", Vector("I"))})))}
)
MOVE = Table(
    {0: ("from*", "string"), 1: ("to*", "string"), 2: ("node_id*", "id8"), 3: ("node_type*", "B")}
)
SCHEMA = Table(
    {
        0: ("id*", "id12"),
        **{slot: (f"{name}*", Vector("id8")) for slot, name in enumerate(LISTS, 1)},
        7: ("updated_chunks*", Vector(CHUNKS)),
        8: ("moved_nodes*", Vector(MOVE)),
    }
)

# Both written by the official client 2.3.0.
EMPTY = bytes.fromhex(
    "200000004963686b00001600300004001000140018001c002000240028002c00"
    "160000000b1cc8d6787580f0e33a65343c000000340000002c00000024000000"
    "18000000180000000c0000000400000000000000000000000000000000000000"
    "00000000000000000000000000000000"
)
TWO_CHUNKS = bytes.fromhex(
    "200000004963686b00001600300004001000140018001c002000240028002c00"
    "16000000f83e088b3625b7be400459178c000000840000007c00000074000000"
    "68000000680000000c0000000400000000000000010000000c00000008001000"
    "04000c0008000000eefae7a1cfd76aac04000000020000002000000004000000"
    "eeffffff04000000010000000200000000000600080004000600000004000000"
    "0100000001000000000000000000000000000000000000000000000000000000"
)
ID = b"snapshot ID."

node_ids = st.binary(min_size=8, max_size=8) | st.sampled_from([b"a" * 8, b"b" * 8])
id_lists = st.sets(node_ids, max_size=3).map(lambda ids: tuple(sorted(ids)))


@st.composite
def coordinates(draw: st.DrawFn, ndim: int) -> np.ndarray[Any, Any]:
    number = st.integers(0, 3) | st.integers(0, 2**32 - 1)
    where = draw(st.sets(st.tuples(*[number] * ndim), min_size=1, max_size=5))
    return np.array(sorted(where), np.uint32).reshape(len(where), ndim)


@st.composite
def of_all_ranks(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], ...]:
    ranks = draw(st.sets(st.integers(0, 3), max_size=2))
    return tuple(draw(coordinates(ndim)) for ndim in sorted(ranks))


def rows(parts: tuple[np.ndarray[Any, Any], ...]) -> list[list[int]]:
    return sorted(row for part in parts for row in part.tolist())


paths = st.sampled_from(["/", "/a", "/a!", "/a-b", "/a/x", "/a/x/y", "/ab", "/é"])


@st.composite
def logs(draw: st.DrawFn) -> TransactionLog:
    moves = draw(st.dictionaries(node_ids, st.tuples(paths, paths, st.booleans()), max_size=4))
    moved = [Move(a, b, node, is_array) for node, (a, b, is_array) in moves.items()]
    return TransactionLog(
        ID,
        **{name: draw(id_lists) for name in LISTS},
        updated_chunks=draw(st.dictionaries(node_ids, of_all_ranks(), max_size=3)),
        moved_nodes=tuple(sorted(moved, key=lambda m: m.to_path.split("/"))),
    )


def payload_of(stored: bytes) -> bytes:
    return unwrap(stored, FileType.TRANSACTION_LOG, "test")[0]


def decode_payload(payload: bytes) -> TransactionLog:
    return decode_transaction_log(wrap(payload, FileType.TRANSACTION_LOG), "transactions/X")


def test_the_official_empty_log() -> None:
    log = decode_payload(EMPTY)
    assert log == TransactionLog(bytes.fromhex("0b1cc8d6787580f0e33a6534"))
    assert walk(payload_of(encode_transaction_log(log)), SCHEMA) == walk(EMPTY, SCHEMA)


def test_the_official_log_of_two_chunks() -> None:
    log = decode_payload(TWO_CHUNKS)
    assert log == TransactionLog(
        bytes.fromhex("f83e088b3625b7be40045917"),
        updated_chunks={bytes.fromhex("eefae7a1cfd76aac"): (np.array([[1], [2]], np.uint32),)},
    )
    assert walk(payload_of(encode_transaction_log(log)), SCHEMA) == walk(TWO_CHUNKS, SCHEMA)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(logs())
def test_what_is_written_is_read(log: TransactionLog) -> None:
    assert decode_transaction_log(encode_transaction_log(log), "x") == log


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(logs())
def test_a_strict_reader_agrees(log: TransactionLog) -> None:
    found = walk(payload_of(encode_transaction_log(log)), SCHEMA)
    assert found == {
        "id": log.id,
        **{name: list(getattr(log, name)) for name in LISTS},
        "updated_chunks": [
            {"node_id": node, "chunks": [{"coords": c} for c in rows(parts)]}
            for node, parts in sorted(log.updated_chunks.items())
        ],
        "moved_nodes": [
            {
                "from": move.from_path,
                "to": move.to_path,
                "node_id": move.node_id,
                "node_type": int(move.is_array),
            }
            for move in log.moved_nodes
        ],
    }


@pytest.mark.parametrize(
    "change",
    [
        {"id": b"another ID.."},
        {"new_arrays": (b"a" * 8,)},
        {"updated_groups": (b"a" * 8,)},
        {"updated_chunks": {b"a" * 8: (np.zeros((1, 2), np.uint32),)}},
        {"moved_nodes": (Move("/a", "/b", b"a" * 8, False),)},
    ],
)
def test_logs_differ(change: dict[str, Any]) -> None:
    assert TransactionLog(**({"id": ID} | change)) != TransactionLog(ID)


def test_moves_are_sorted_segment_by_segment() -> None:
    names = ["/", "/a", "/a/x", "/a/x/y", "/a!", "/a-b", "/ab", "/é"]
    moves = tuple(Move("/old", name, name.encode().ljust(8), True) for name in names)
    log = decode_transaction_log(
        encode_transaction_log(TransactionLog(ID, moved_nodes=moves[::-1])), "x"
    )
    assert log.moved_nodes == moves


# ----------------------------------------------------------------------------- amend


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(logs(), logs())
def test_merge_is_a_union(older: TransactionLog, newer: TransactionLog) -> None:
    merged = older.merge(newer, b"another ID..")
    assert merged.id == b"another ID.."
    for name in LISTS:
        union = {*getattr(older, name), *getattr(newer, name)}
        assert getattr(merged, name) == tuple(sorted(union))
    for node in {*older.updated_chunks, *newer.updated_chunks}:
        sides = [rows(log.updated_chunks.get(node, ())) for log in (older, newer)]
        distinct = {tuple(row) for side in sides for row in side}
        assert rows(merged.updated_chunks[node]) == [list(row) for row in sorted(distinct)]
    assert decode_transaction_log(encode_transaction_log(merged), "x") == merged


@given(logs())
def test_merging_nothing_changes_nothing(log: TransactionLog) -> None:
    moved = tuple(m for m in log.moved_nodes if m.from_path != m.to_path)
    same = TransactionLog(
        ID,
        **{name: getattr(log, name) for name in LISTS},
        updated_chunks=log.updated_chunks,
        moved_nodes=moved,
    )
    assert log.merge(TransactionLog(ID), ID) == same
    assert TransactionLog(ID).merge(log, ID) == same


def test_moves_are_joined_and_those_that_lead_back_dropped() -> None:
    a, b, c = b"a" * 8, b"b" * 8, b"c" * 8
    older = TransactionLog(ID, moved_nodes=(Move("/1", "/2", a, True), Move("/5", "/6", b, False)))
    newer = TransactionLog(
        ID,
        moved_nodes=(
            Move("/0", "/1", c, True),
            Move("/2", "/3", a, True),
            Move("/6", "/5", b, False),
        ),
    )
    assert older.merge(newer, ID).moved_nodes == (
        Move("/0", "/1", c, True),
        Move("/1", "/3", a, True),
    )


# ------------------------------------------------------------------ what others write


def foreign(
    lists: list[bytes] | None = None, chunks: Batch | None = None, ends: Any = (0,)
) -> Batch:
    """Return a log without moves, which is how spec 1 has it."""
    root = Batch(1)
    root.struct(0, np.frombuffer(ID, np.uint8).reshape(1, 12))
    ids = np.frombuffer(b"".join(lists or []), np.uint8).reshape(-1, 8)
    for slot in range(1, 7):
        root.vector(slot, ids, [0, len(ids)])
    arrays = Batch(len(ends) - 1)
    arrays.struct(0, np.zeros((len(ends) - 1, 8), np.uint8))
    arrays.children(1, chunks or Batch(0), ends)
    root.children(7, arrays, [0, len(ends) - 1])
    return root


def coords(*rows: list[int]) -> Batch:
    batch = Batch(len(rows))
    flat = np.array([c for row in rows for c in row], np.uint32)
    batch.vector(0, flat, np.cumsum([0, *map(len, rows)]))
    return batch


def test_a_log_of_spec_1() -> None:
    assert decode_payload(encode(foreign())) == TransactionLog(ID)


def test_ids_and_coordinates_are_put_in_order() -> None:
    a, b = b"a" * 8, b"b" * 8
    root = foreign([b, a, b], coords([2, 0], [0, 3], [0, 1], [0, 3]), [0, 4])
    log = decode_payload(encode(root))
    assert all(getattr(log, name) == (a, b) for name in LISTS)
    (found,) = log.updated_chunks[bytes(8)]
    assert found.tolist() == [[0, 1], [0, 3], [2, 0]]


def test_coordinates_of_several_ranks() -> None:
    root = foreign([], coords([2, 0], [3], [], [2, 0], [], [1, 7], [3]), [0, 7])
    parts = decode_payload(encode(root)).updated_chunks[bytes(8)]
    assert [part.tolist() for part in parts] == [[[]], [[3]], [[1, 7], [2, 0]]]


def test_an_array_that_occurs_twice() -> None:
    with pytest.raises(FormatError, match="transactions/X: updated_chunks: array 0000000000000"):
        decode_payload(encode(foreign(chunks=coords([1], [2]), ends=[0, 1, 2])))


@pytest.mark.parametrize("slot", range(8))
def test_required_fields(slot: int) -> None:
    root = foreign()
    root._columns = [c for c in root._columns if c.slot != slot]
    with pytest.raises(FormatError, match="required field is missing"):
        decode_payload(encode(root))


@pytest.mark.parametrize("missing", [0, 1, 2, None])
def test_incomplete_moves(missing: int | None) -> None:
    moved = Batch(1)
    moved.text(0, ["/a" if missing != 0 else None])
    moved.text(1, ["/a" if missing != 1 else None])
    moved.struct(2, np.zeros((1, 8), np.uint8), present=[missing != 2])
    moved.scalar(3, [2], np.uint8)  # a type of node that does not exist
    root = foreign()
    root.children(8, moved, [0, 1])
    with pytest.raises(FormatError, match="transactions/X: moved_nodes"):
        decode_payload(encode(root))


EXAMPLE = payload_of(
    encode_transaction_log(
        TransactionLog(
            ID,
            new_groups=(b"a" * 8, b"b" * 8),
            updated_chunks={b"a" * 8: (np.array([[1, 2], [3, 4]], np.uint32),)},
            moved_nodes=(Move("/a", "/b", b"a" * 8, True), Move("/a/c", "/b/c", b"b" * 8, False)),
        )
    )
)


@settings(max_examples=200)
@given(st.sampled_from([EXAMPLE, TWO_CHUNKS]).flatmap(damaged))
def test_damage_is_an_error_or_a_value(payload: bytes) -> None:
    try:
        decode_payload(payload)
    except FormatError as error:
        assert str(error).startswith("transactions/X: ")


@given(st.binary(max_size=100))
def test_made_up_bytes_are_an_error(payload: bytes) -> None:
    with pytest.raises(FormatError, match=r"^transactions/X: "):
        decode_payload(payload)
