"""Entries of a history are the same whether they come from a table or are made at once."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime

import pytest

import icechunk
from icechunk.commit.snapshot_info import SnapshotInfo, snapshot_of_row
from icechunk.format import snapshot_table
from icechunk.format.metadata import Metadata
from icechunk.format.snapshot_table import SnapshotEntry, SnapshotTable


def entries(count: int) -> list[SnapshotEntry]:
    ids = [bytes([255 - row] * 12) for row in range(count)]
    return [
        SnapshotEntry(id, ids[row - 1] if row else None, row, f"{row} é", Metadata({"row": row}))
        for row, id in enumerate(ids)
    ]


@pytest.mark.parametrize("count", [1, 3, snapshot_table._FEW + 10])
def test_from_a_table(count: int) -> None:
    rows = entries(count)
    table = SnapshotTable.of({entry.id: entry for entry in rows})
    for entry in rows:
        row = table.row(entry.id)
        assert row is not None
        made = SnapshotInfo.from_entry(entry)
        for field in ("metadata", "id", "parent_id", "written_at", "message"):
            assert getattr(snapshot_of_row(table, row), field) == getattr(made, field)
        assert repr(snapshot_of_row(table, row)) == repr(made)
        assert pickle.loads(pickle.dumps(snapshot_of_row(table, row))) == made
        assert copy.deepcopy(snapshot_of_row(table, row)) == made
        assert snapshot_of_row(table, row) == made


def test_a_field_that_there_is_not() -> None:
    rows = entries(1)
    told = snapshot_of_row(SnapshotTable.of({rows[0].id: rows[0]}), 0)
    assert not hasattr(told, "author")
    with pytest.raises(AttributeError, match="author"):
        told.author  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError):
        told.message = "another"  # type: ignore[misc]
    assert told.metadata is told.metadata
    assert not hasattr(SnapshotInfo("1", None, datetime.now(UTC), ""), "author")


def test_history_of_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata are decoded for those entries only whose metadata are asked for."""
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    for number in range(5):
        session = repository.writable_session("main")
        session.commit(f"{number}", metadata={"number": number}, allow_empty=True)
    decoded: list[str] = []
    get = Metadata.__getitem__
    monkeypatch.setattr(
        Metadata, "__getitem__", lambda self, key: (decoded.append(key), get(self, key))[1]
    )
    history = list(repository.ancestry(branch="main"))
    assert [entry.message for entry in history[:-1]] == ["4", "3", "2", "1", "0"]
    assert decoded == []
    assert history[2].metadata == {"number": 2}
    assert decoded == ["number"]
