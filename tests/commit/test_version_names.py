"""Names of versions and points in time, the same wherever they are given."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, strategies as st

from icechunk import (
    IcechunkError,
    InvalidInputError,
    MemoryStorage,
    RefNotFoundError,
    Repository,
    SnapshotNotFoundError,
)
from icechunk.commit.version_names import resolve_ref
from icechunk.config.times import has_zone, instant
from icechunk.format.ids import decode_id, encode_id
from icechunk.format.repo_info import RepoInfo

#: When the commits were made, in UTC: one every six hours, through a summer time.
TIMES = [datetime(2024, 3, 30, 12, tzinfo=UTC) + timedelta(hours=6 * n) for n in range(8)]


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Commits on main at `TIMES`, a tag and a branch."""
    clock = [TIMES[0] - timedelta(days=1)]

    def now() -> int:
        return int(clock[0].timestamp() * 1_000_000)

    with monkeypatch.context() as patch:
        patch.setattr("icechunk.repository.creation.now_microseconds", now)
        patch.setattr("icechunk.commit.building.now_microseconds", now)
        repository = Repository.create(MemoryStorage())
        for number, clock[0] in enumerate(TIMES):
            session = repository.writable_session("main")
            zarr.create_group(session.store, attributes={"number": number}, overwrite=True)
            session.commit(str(number))
    ids = [entry.id for entry in repository.ancestry(branch="main")]
    repository.create_tag("v1.0", ids[2])
    repository.create_branch("feature/x~1@home", ids[3])
    return repository


@pytest.fixture
def ids(repository: Repository) -> list[str]:
    """Newest first."""
    return [entry.id for entry in repository.ancestry(branch="main")]


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Tokyo"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The time zone of this machine, where a naive time might be taken for local."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


# -- refs -------------------------------------------------------------------------------------
def test_refs(repository: Repository, ids: list[str]) -> None:
    assert len(ids) == len(TIMES) + 1
    expected = {
        "main": 0,
        "v1.0": 2,
        "feature/x~1@home": 3,
        ids[4]: 4,
        ids[4].lower(): 4,
        ids[4][:8]: 4,
        "@branch.main": 0,
        "@tag.v1.0": 2,
        "@branch.feature/x~1@home": 3,
        f"@{ids[5]}": 5,
        f"@{ids[5][:8]}": 5,
        f"@{{{ids[5]}}}": 5,
        "main~": 1,
        "main~0": 0,
        "main~2": 2,
        "main~8": 8,
        "main~~": 2,
        "main~1~2": 3,
        "v1.0~2": 4,
        f"{ids[4]}~1": 5,
        f"{ids[4][:8]}~": 5,
        "@tag.v1.0~1": 3,
        f"@{{{ids[4]}}}~1": 5,
        "main@2024-03-31": 5,
        "main@{2024-03-31}": 5,
        "main@2024-03-31~1": 6,
        "main@2024-03-31T06:00": 4,
        "main@2024-03-31T05:59:59.999999": 5,
        "main@2024-03-31T08:00+02:00": 4,
        "v1.0@2025-01-01": 2,
        "feature/x~1@home@2024-03-31": 5,
        "@tag.v1.0@2024-03-31": 5,
    }
    for ref, number in expected.items():
        assert repository.resolve(ref) == ids[number], ref
        assert repository.readonly_session(ref=ref).snapshot_id == ids[number]
        assert next(repository.ancestry(ref=ref)).id == ids[number]
        if number == len(TIMES):
            continue  # the first snapshot has no groups
        opened = xr.open_dataset(repository, engine="icechunk", ref=ref)  # type: ignore[arg-type]
        assert opened.encoding["icechunk_snapshot_id"] == ids[number]
        assert opened.encoding["icechunk_ref"] == {"ref": ref}
    assert Repository.open_readonly_session(repository.storage, ref="main~2").snapshot_id == ids[2]
    assert repository.readonly_session(snapshot_id=ids[4][:8]).snapshot_id == ids[4]


@pytest.mark.parametrize(
    ("ref", "kind", "words"),
    [
        ("mian", RefNotFoundError, "no branch, tag or snapshot 'mian'; did you mean 'main'?"),
        ("v1.1", RefNotFoundError, "did you mean 'v1.0'?"),
        ("zzz", RefNotFoundError, "there are 'feature/x~1@home', 'main', 'v1.0'"),
        ("mian~2", RefNotFoundError, "'mian'"),
        ("mian@2024-01-01", RefNotFoundError, "'mian'"),
        ("@branch.v1.0", RefNotFoundError, "there is a tag of this name"),
        ("@tag.v2.0", RefNotFoundError, "no tag 'v2.0'; did you mean 'v1.0'?"),
        ("@main", InvalidInputError, "'main' is not an id"),
        ("main~9", SnapshotNotFoundError, "has 9 snapshots, so 'main~8' is the first one"),
        ("main@2020-01-01", SnapshotNotFoundError, "no snapshot as old as 2020-01-01T00:00:00"),
        ("main@yesterday", InvalidInputError, "'yesterday'"),
        ("", InvalidInputError, "expected a branch, tag or snapshot id"),
        (None, InvalidInputError, "expected a branch, tag or snapshot id"),
        (7, InvalidInputError, "expected a branch, tag or snapshot id"),
        ("0000", RefNotFoundError, "'0000'"),
        ("ZZZZZZZZZZZZZZZZZZZ0", RefNotFoundError, "'ZZZZZZZZZZZZZZZZZZZ0'"),
    ],
)
def test_refs_that_name_nothing(
    repository: Repository, ref: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(IcechunkError) as caught:
        repository.resolve(ref)
    assert isinstance(caught.value, kind)
    assert words in str(caught.value)


def test_misspelt_branches_and_tags(repository: Repository) -> None:
    with pytest.raises(RefNotFoundError, match="no branch 'mian'; did you mean 'main'"):
        repository.writable_session("mian")
    with pytest.raises(RefNotFoundError, match=r"no tag 'V1\.0'; did you mean 'v1\.0'"):
        repository.readonly_session(tag="V1.0")
    repository.delete_tag("v1.0")
    with pytest.raises(RefNotFoundError, match="no tag 'x'; there are none"):
        repository.readonly_session(tag="x")


def test_what_is_no_id_of_a_snapshot(repository: Repository, ids: list[str]) -> None:
    """Every call that takes an id says what was named instead; the beginning of one is enough."""
    session = repository.readonly_session("main")
    meant: list[tuple[Any, str]] = [
        ("main", "'main' is not an id.*it names a branch: pass repo.resolve('main')"),
        ("v1.0", "it names a tag: pass repo.resolve('v1.0')"),
        ("main~2", "it names a version: pass repo.resolve('main~2')"),
        ("mian", "did you mean 'main'?"),
        ("zzz", "'zzz' is not an id.*there are 'feature/x~1@home', 'main', 'v1.0'"),
        (session, "a value of type Session is not an id.*; pass its snapshot_id"),
        (next(repository.ancestry(branch="main")), "type SnapshotInfo.*; pass its id"),
        (7, "a value of type int is not an id"),
    ]
    calls: list[tuple[Callable[[Any], object], str]] = [
        (lambda id: repository.create_branch("new", id), "create_branch"),
        (lambda id: repository.create_tag("new", id), "create_tag"),
        (lambda id: repository.reset_branch("new", id), "reset_branch"),
        (lambda id: repository.reset_branch("new", ids[0], from_snapshot_id=id), "reset from"),
        (repository.lookup_snapshot, "lookup_snapshot"),
        (repository.list_manifest_files, "list_manifest_files"),
        (repository.inspect_snapshot, "inspect_snapshot"),
        (repository.inspect_transaction_log, "inspect_transaction_log"),
        (lambda id: repository.readonly_session(snapshot_id=id), "readonly_session"),
        (lambda id: repository.ancestry(snapshot_id=id), "ancestry"),
        (lambda id: repository.diff(from_snapshot_id=id, to_branch="main"), "diff"),
        (lambda id: repository.ancestry_graph(snapshot_id=id), "ancestry_graph"),
    ]
    before = repository.list_branches(), repository.list_tags()
    for call, name in calls:
        for named, words in meant:
            pattern = ".*".join(map(re.escape, words.split(".*")))
            with pytest.raises(InvalidInputError, match=f"invalid snapshot id: .*{pattern}"):
                call(named)
                pytest.fail(f"{name} took {named!r}")
    assert (repository.list_branches(), repository.list_tags()) == before
    for call, _ in calls:
        call(ids[0][:8])
    assert repository.lookup_branch("new") == repository.lookup_tag("new") == ids[0]


def test_names_that_say_two_things(repository: Repository, ids: list[str]) -> None:
    repository.create_tag("main", ids[5])
    with pytest.raises(InvalidInputError, match=r"both a branch and a tag.*'@branch\.main'"):
        repository.resolve("main")
    assert repository.resolve("@branch.main") == ids[0]
    assert repository.resolve("@tag.main") == ids[5]
    # the same version by any of its names
    repository.create_tag("feature/x~1@home", ids[3])
    assert repository.resolve("feature/x~1@home") == ids[3]
    with pytest.raises(InvalidInputError, match="Must provide one of branch, tag, or snap"):
        repository.readonly_session("main", ref="main")
    with pytest.raises(InvalidInputError, match="as_of argument must be provided"):
        repository.readonly_session(ref="main", as_of="2024-03-31")


@given(data=st.data())
def test_beginnings_of_ids(data: st.DataObject) -> None:
    """The beginning of an id names what begins so; where several do, they are listed."""
    entry = next(iter(INFO.snapshots.values()))
    raw = data.draw(st.lists(st.binary(min_size=2, max_size=2), min_size=1, max_size=6))
    tails = [bytes(2) + tail + bytes(8) for tail in raw]
    info = replace(INFO, snapshots={tail: replace(entry, id=tail) for tail in tails})
    chosen = encode_id(data.draw(st.sampled_from(tails)))
    text = chosen[: data.draw(st.integers(4, 20))]
    matching = {encode_id(id) for id in tails if encode_id(id).startswith(text)}
    if len(matching) == 1:
        assert encode_id(resolve_ref(info, text)) == chosen
    else:
        with pytest.raises(InvalidInputError, match=f"{len(matching)} snapshots begin with"):
            resolve_ref(info, text)


def _info() -> RepoInfo:
    repository = Repository.create(MemoryStorage())
    return repository._info


INFO = _info()


# -- times ------------------------------------------------------------------------------------
def written(at: datetime) -> dict[str, Any]:
    """All ways to write a time of UTC."""
    naive = at.replace(tzinfo=None)
    return {
        "aware": at,
        "of another zone": at.astimezone(timezone(timedelta(hours=5, minutes=45))),
        "naive": naive,
        "text": naive.isoformat(),
        "text with zone": at.astimezone(timezone(timedelta(hours=-7))).isoformat(),
        "text with Z": naive.isoformat() + "Z",
        "numpy": np.datetime64(naive, "us"),
        "numpy, nanoseconds": np.datetime64(naive, "ns"),
        "pandas": pd.Timestamp(naive),
        "pandas with zone": pd.Timestamp(at).tz_convert("Asia/Tokyo"),
    }


def test_a_time_means_the_same_everywhere(
    repository: Repository, ids: list[str], zone: str
) -> None:
    for number, at in enumerate(reversed(TIMES)):
        for how, when in written(at).items():
            session = repository.readonly_session("main", as_of=when)
            assert session.snapshot_id == ids[number], how
            opened = xr.open_dataset(repository, engine="icechunk", as_of=when)  # type: ignore[arg-type]
            assert opened.encoding["icechunk_snapshot_id"] == ids[number], how
            assert opened.encoding["icechunk_ref"]["as_of"] == instant(when).isoformat()
            if isinstance(when, str):
                assert repository.resolve(f"main@{when}") == ids[number], how
                assert next(repository.ancestry(ref=f"main@{when}")).id == ids[number]
    day = date(2024, 3, 31)
    for when in (day, "2024-03-31", np.datetime64("2024-03-31"), pd.Timestamp("2024-03-31")):
        assert repository.readonly_session("main", as_of=when).snapshot_id == ids[5]


def test_cutoffs_mean_the_same(
    repository: Repository, ids: list[str], zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way to write a time expires the same snapshots, those that are older."""
    repository.delete_tag("v1.0")
    repository.delete_branch("feature/x~1@home")
    at = TIMES[4]
    for how, when in written(at).items():
        copy = _copy(repository)
        assert copy.expire_snapshots(when) == set(ids[4:-1]), how
        assert copy.garbage_collect(when).snapshots_deleted == 0  # their objects are new


def _copy(repository: Repository) -> Repository:
    storage = MemoryStorage()
    for meta in repository.storage.list():
        storage.put(meta.key, bytes(repository.storage.get(meta.key).data))
    return Repository.open(storage)


def test_cutoffs_of_a_clock_that_is_ahead(repository: Repository, zone: str) -> None:
    """A local time without zone would take what is written now for old."""
    ahead = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=9)
    acts: tuple[Callable[[Any], Any], ...] = (
        repository.expire_snapshots,
        repository.garbage_collect,
    )
    for act in acts:
        for when in (ahead, ahead.isoformat(), np.datetime64(ahead), pd.Timestamp(ahead)):
            with pytest.raises(InvalidInputError, match=r"in the future.*datetime\.now\(UTC\)"):
                act(when)
        act(ahead.replace(tzinfo=UTC))


@pytest.mark.parametrize(
    "wrong",
    ["yesterday", "", 2024, 1.5, None, pd.NaT, np.datetime64("NaT"), np.datetime64("9999999")],
)
def test_what_is_no_time(repository: Repository, wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"as_of is .*ISO 8601"):
        instant(wrong)
    assert not has_zone(wrong)
    if wrong is not None:
        with pytest.raises(InvalidInputError, match=r"as_of is .*ISO 8601"):
            repository.readonly_session("main", as_of=wrong)
    with pytest.raises(InvalidInputError, match=r"older_than is .*ISO 8601"):
        repository.expire_snapshots(wrong)


def test_ids_as_they_are(ids: list[str]) -> None:
    assert [encode_id(decode_id(text)) for text in ids] == ids
