"""Archives whose files change: gaps, repairs, replacements, and what is recorded of them."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError, LocalStorage, Repository, StorageError
from icechunk.repository.archive_tables import FIELD
from icechunk_dask import ingest, remove_files, virtualize
from icechunk_dask.archives import scan as scan_module
from tests.archives.day_files import access, archived, content, together, write_days


def run(files: Any, repo: Path, **options: Any) -> Any:
    return virtualize(files, repo, scheduler="sync", **options)


# -- gaps ------------------------------------------------------------------------------
@pytest.mark.parametrize("allow_gaps", [False, True])
def test_a_file_in_the_middle_that_fails_and_is_repaired(allow_gaps: bool, tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(5)]
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[:1000])
    report = run(files, tmp_path / "repo", allow_gaps=allow_gaps)
    assert list(report.failed) == [str(files[2])]
    inside = [files[i] for i in ((0, 1, 3, 4) if allow_gaps else (0, 1))]
    assert report.added == tuple(map(str, inside))
    assert report.withheld == (() if allow_gaps else tuple(map(str, files[3:])))
    with pytest.raises(InvalidInputError, match=r"2\.nc"):
        report.raise_for_failures()
    expected = together([content(path) for path in inside])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    files[2].write_bytes(whole)
    report = run(files, tmp_path / "repo")
    report.raise_for_failures()
    assert str(files[2]) in report.added
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


@pytest.mark.parametrize("large", [False, True])
def test_what_has_no_steps_stays_what_the_first_file_says(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that file came alone, and its chunks may not be read any more."""
    if large:
        monkeypatch.setattr("icechunk_dask.archives.scan._COMPARED", 0)
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    for path in files:
        with h5py.File(path, "a") as file:
            mask = file.create_dataset("mask", data=np.arange(900.0) + (path is files[2]))
            width = file.create_dataset("width", data=np.arange(900))
            width.make_scale("width")
            mask.dims[0].attach_scale(width)
    place = tmp_path / "repo"
    report = run(files[:1], place, isolate=False)
    assert report.variables["mask"].virtual
    if large:
        with pytest.raises(InvalidInputError, match=r"'mask'.*authorize_virtual_chunk_access"):
            run(files[:2], place, isolate=False)
    allowed = {"authorize_virtual_chunk_access": access(report)} if large else {}
    report = run(files[:2], place, isolate=False, **allowed)
    with pytest.raises(InvalidInputError, match=r"2\.nc: mask: has other values"):
        run(files, place, isolate=False, **allowed)
    expected = together([content(path) for path in files[:2]])
    xr.testing.assert_identical(archived(place, report), expected)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.nc", "FileNotFoundError"), ("text.nc", "not a NetCDF")]
)
def test_nothing_could_be_read(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "text.nc").write_text("words")
    with pytest.raises(InvalidInputError, match=rf"none of 1 file.*\n.*{name}.*{reason}"):
        run([tmp_path / name], tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_a_new_file_that_fails_is_no_error(tmp_path: Path) -> None:
    file = write_days(tmp_path / "0.nc", 0)
    run([file], tmp_path / "repo")
    report = run([file, tmp_path / "1.nc"], tmp_path / "repo")
    assert list(report.failed) == [str(tmp_path / "1.nc")] and report.snapshot_id is None


# -- late and early --------------------------------------------------------------------
@pytest.mark.parametrize("order", [(1, 0), (0, 2, 1), (2, 0, 1), (3, 1, 0, 2)])
@pytest.mark.parametrize("copied", [False, True])
def test_late_files_go_where_their_coordinate_says(
    order: tuple[int, ...], copied: bool, tmp_path: Path
) -> None:
    files: list[Path] = []
    for i in order:
        files.append(write_days(tmp_path / f"{i}.nc", 4 * i, copied=copied))
        report = run(files, tmp_path / "repo")
    expected = together([content(path) for path in sorted(files)])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def test_late_files_of_a_falling_coordinate(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    for path in files:
        with h5py.File(path, "a") as file:
            file["time"][...] = file["time"][...][::-1]
    run([files[0], files[2]], tmp_path / "repo")
    report = run(files, tmp_path / "repo")
    expected = together([content(path) for path in files[::-1]])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def test_a_late_file_that_does_not_end_with_whole_chunks(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, 3 if i == 1 else 4) for i in range(3)]
    run([files[0], files[2]], tmp_path / "repo")
    with pytest.raises(InvalidInputError, match=r"1\.nc: t: ends at 7 .* come after it"):
        run(files, tmp_path / "repo")


def test_tiles_that_are_late(tmp_path: Path) -> None:
    tiles = {}
    for i in range(3):
        for j in range(2):
            path = tiles[i, j] = write_days(tmp_path / f"{i}-{j}.nc", 4 * i, shift=100 * j)
            with h5py.File(path, "a") as file:
                file["lat"][...] += 100 * j
    options: dict[str, Any] = {"concat_dims": ["time", "lat"]}
    some = [path for key, path in tiles.items() if key not in ((1, 0), (1, 1), (0, 1))]
    report = run(some, tmp_path / "repo", **options)
    assert report.holes == ("time 0 to 3, lat 3 to 5",) and report.holes[0] in repr(report)
    report = run(list(tiles.values()), tmp_path / "repo", **options)
    assert not report.holes
    with xr.open_mfdataset(list(tiles.values()), combine="by_coords", chunks=None) as whole:
        expected = whole.load()
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    # one tile goes: its place is empty, the coordinates that it shares stay
    report = remove_files([tiles[1, 1]], tmp_path / "repo")
    assert report.holes == ("time 4 to 7, lat 3 to 5",)
    ours = archived(tmp_path / "repo", report)
    assert not ours["t"].values[4:8, 3:].any()
    expected["t"][4:8, 3:] = 0
    xr.testing.assert_identical(ours, expected)


# -- replaced --------------------------------------------------------------------------
def replaced(path: Path, first: int, **options: Any) -> None:
    before = path.stat().st_mtime_ns
    write_days(path, first, **options)
    # within the same second
    os.utime(path, ns=(before, before + 1000))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_replaced_files(which: int, tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    first = run(files, tmp_path / "repo")
    replaced(files[which], 4 * which, shift=1000)
    with pytest.raises(InvalidInputError, match=rf"{which}\.nc\n.*on_changed='replace'"):
        run(files, tmp_path / "repo")
    kept = run(files, tmp_path / "repo", on_changed="keep")
    assert kept.changed == (str(files[which]),) and kept.snapshot_id is None
    with pytest.raises(InvalidInputError, match="has changed"):
        kept.raise_for_failures()
    report = run(files, tmp_path / "repo", on_changed="replace")
    assert report.replaced == (str(files[which]),) and not report.added and not report.changed
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    # the version before is still there
    assert first.snapshot_id is not None
    old = Repository.open(str(tmp_path / "repo"), None, access(report))
    assert old.readonly_session(snapshot_id=first.snapshot_id)
    assert len(run(files, tmp_path / "repo").already) == 3


def test_a_replaced_file_may_have_other_steps(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 8 * i, copied=True) for i in range(3)]
    run(files, tmp_path / "repo")
    replaced(files[1], 8, days=8, shift=5, copied=True)
    report = run(files, tmp_path / "repo", on_changed="replace")
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def test_a_replaced_file_that_cannot_be_read_stays_what_it_was(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    run(files, tmp_path / "repo")
    files[1].write_bytes(b"nothing")
    report = run(files, tmp_path / "repo", on_changed="replace")
    assert report.snapshot_id is None and list(report.failed) == [str(files[1])]
    with pytest.raises(StorageError, match=r"1\.nc"):
        archived(tmp_path / "repo", report)


def test_a_file_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    verify = scan_module.Scanner._verify

    def meanwhile(*args: Any) -> None:
        verify(*args)
        replaced(files[1], 4, shift=7)

    monkeypatch.setattr(scan_module.Scanner, "_verify", meanwhile)
    report = run(files, tmp_path / "repo")
    assert "was replaced or written to while" in report.failed[str(files[1])]
    assert report.added == (str(files[0]),)


@pytest.mark.parametrize("change", ["replaced", "cut", "gone"])
@pytest.mark.parametrize("allow_gaps", [False, True])
def test_a_file_that_changes_while_others_are_read(
    change: str, allow_gaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(4)]
    scan = scan_module.Scanner.__call__

    def meanwhile(self: Any, url: str) -> Any:
        if url == str(files[3]):
            if change == "replaced":
                replaced(files[1], 4, shift=7)
            elif change == "cut":
                files[1].write_bytes(files[1].read_bytes()[:3000])
            else:
                files[1].unlink()
        return scan(self, url)

    with monkeypatch.context() as patched:
        patched.setattr(scan_module.Scanner, "__call__", meanwhile)
        report = run(files, tmp_path / "repo", allow_gaps=allow_gaps)
    assert (
        list(report.failed) == [str(files[1])]
        and "after it was read" in report.failed[str(files[1])]
    )
    inside = [files[i] for i in ((0, 2, 3) if allow_gaps else (0,))]
    assert report.added == tuple(map(str, inside))
    expected = together([content(path) for path in inside])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    run(files, tmp_path / "repo")
    files[1].unlink()
    with pytest.raises(InvalidInputError, match=r"or vanished:\n.*1\.nc\n.*remove_files"):
        run(files, tmp_path / "repo")
    report = run(files, tmp_path / "repo", on_changed="replace")
    assert list(report.failed) == [str(files[1])] and report.changed == (str(files[1]),)
    assert run(files, tmp_path / "repo", on_changed="keep").changed == (str(files[1]),)
    # what is not listed is not looked for
    assert len(run([files[0], files[2]], tmp_path / "repo").already) == 2


def test_a_reprocessed_file_with_the_times_of_the_only_one(tmp_path: Path) -> None:
    a = write_days(tmp_path / "a.nc", 0)
    run([a], tmp_path / "repo")
    b = write_days(tmp_path / "b.nc", 0, shift=1)
    with pytest.raises(InvalidInputError, match=r"b\.nc and .*a\.nc have the same 'time'"):
        run([a, b], tmp_path / "repo")
    remove_files([a], tmp_path / "repo")
    report = run([b], tmp_path / "repo")
    xr.testing.assert_identical(archived(tmp_path / "repo", report), content(b))


def test_files_of_one_variable_each(tmp_path: Path) -> None:
    """The archives of CMIP and ERA5 are such; the way that the error shows leads to all of it."""
    files: dict[str, list[Path]] = {}
    for name in ("tas", "pr"):
        for year in range(2):
            values = np.arange(40.0).reshape(4, 10) + 100 * year + len(name)
            dataset = xr.Dataset(
                {name: (("time", "x"), values)}, coords={"time": 4.0 * year + np.arange(4)}
            )
            path = tmp_path / f"{name}_{year}.nc"
            dataset.to_netcdf(path, engine="h5netcdf", encoding={name: {"chunksizes": (4, 10)}})
            files.setdefault(name, []).append(path)
    together = [path for some in files.values() for path in some]
    known = r"different variables \('tas', 'pr'\).*group=.*xarray\.merge"
    with pytest.raises(InvalidInputError, match=known):
        run(together, tmp_path / "repo", concat_dims=["time"])
    opened = []
    for name, some in files.items():
        report = run(some, tmp_path / "repo", concat_dims=["time"], group=name)
        opened.append(archived(tmp_path / "repo", report, name))
    expected = xr.open_mfdataset(together, engine="h5netcdf").load()
    xr.testing.assert_identical(xr.merge(opened), expected)


# -- taken out -------------------------------------------------------------------------
def test_files_are_taken_out(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, copied=True) for i in range(4)]
    report = run(files, tmp_path / "repo")
    with pytest.raises(InvalidInputError, match=r"missing\.nc is not in the archive"):
        remove_files([tmp_path / "missing.nc"], tmp_path / "repo")
    remove_files(f"{tmp_path}/[12].nc", tmp_path / "repo")
    expected = together([content(files[0]), content(files[3])])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    report = run(files, tmp_path / "repo")
    assert len(report.added) == 2
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


# -- the record ------------------------------------------------------------------------
def test_files_that_are_copied_are_remembered_after_expiry(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, copied=True) for i in range(3)]
    for path in files:
        with h5py.File(path, "a") as file:
            # nothing tells where they go, and no chunk refers to them
            del file["t"]
    run(files[:2], tmp_path / "repo")
    repository = Repository.open(LocalStorage(tmp_path / "repo"))
    later = datetime.now(UTC) + timedelta(days=1)
    repository.expire_snapshots(later)
    repository.garbage_collect(later)
    report = run(files, tmp_path / "repo")
    assert report.added == (str(files[2]),)
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def _without_table(repo: Path) -> None:
    """Drop the name of the table, as old versions have written archives."""
    repository = Repository.open(LocalStorage(repo))
    session = repository.writable_session("main")
    for node in list(session.tree.within("/")):
        document = json.loads(node.user_data)
        if document.pop(FIELD, None) is not None:
            session.set_metadata_document(node.path, json.dumps(document).encode())
    session.commit("no table")


def test_an_archive_without_a_table_grows_at_its_end(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(4)]
    run([files[0], files[2]], tmp_path / "repo")
    _without_table(tmp_path / "repo")
    report = run([files[0], files[2], files[3]], tmp_path / "repo")
    assert report.added == (str(files[3]),)
    expected = together([content(files[i]) for i in (0, 2, 3)])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    with pytest.raises(InvalidInputError, match=r"1\.nc: its 'time'.*overlaps"):
        run(files, tmp_path / "repo")
    with pytest.raises(InvalidInputError, match="was not recorded"):
        remove_files([files[0]], tmp_path / "repo")
    remove_files([files[3]], tmp_path / "repo")
    expected = together([content(files[i]) for i in (0, 2)])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def test_an_archive_that_something_else_has_written_to(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    run(files[:1], tmp_path / "repo")
    repository = Repository.open(LocalStorage(tmp_path / "repo"))
    session = repository.writable_session("main")
    more = content(files[1])
    more.to_zarr(session.store, append_dim="time", consolidated=False)  # type: ignore[call-overload]
    session.commit("more")
    with pytest.raises(
        InvalidInputError, match=r"has 8 steps along 'time', and the files of the archive have 4"
    ):
        run(files, tmp_path / "repo")


def test_the_table_is_that_of_the_version(tmp_path: Path) -> None:
    """A branch that was made before has its own."""
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    first = run(files[:1], tmp_path / "repo")
    run(files[:2], tmp_path / "repo")
    repository = Repository.open(LocalStorage(tmp_path / "repo"))
    repository.create_branch("old", first.snapshot_id)
    report = run([files[0], files[2]], tmp_path / "repo", branch="old")
    assert report.added == (str(files[2]),)
    ours = archived(tmp_path / "repo", report, branch="old")
    xr.testing.assert_identical(ours, together([content(files[0]), content(files[2])]))


# -- sorted by name --------------------------------------------------------------------
def test_an_archive_that_is_sorted_by_the_names_of_its_files(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 0, shift=10 * i, copied=True) for i in range(4)]
    some = [files[i] for i in (0, 1, 3)]
    assert run(some, tmp_path / "repo").order == {"time": "url"}
    report = run(files, tmp_path / "repo")
    xr.testing.assert_identical(
        archived(tmp_path / "repo", report), together([content(path) for path in files])
    )
    replaced(files[1], 0, days=8, shift=5, copied=True)
    report = run(files, tmp_path / "repo", on_changed="replace")
    remove_files([files[2]], tmp_path / "repo")
    xr.testing.assert_identical(
        archived(tmp_path / "repo", report),
        together([content(files[i]) for i in (0, 1, 3)]),
    )


def test_a_replaced_file_that_does_not_fit_stays_what_it_was(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    run(files, tmp_path / "repo")
    whole = files[1].read_bytes()
    modified = files[1].stat().st_mtime_ns
    replaced(files[1], 4, options={"chunks": (2, 3)})
    report = run(files, tmp_path / "repo", on_changed="replace", on_mismatch="skip")
    assert list(report.skipped) == [str(files[1])] and report.changed == (str(files[1]),)
    assert report.snapshot_id is None
    files[1].write_bytes(whole)
    os.utime(files[1], ns=(modified, modified))
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def test_on_workers(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(6)]
    files[4].write_text("broken")
    report = virtualize(files, tmp_path / "repo", scheduler="processes")
    assert len(report.added) == 4 and report.withheld == (str(files[5]),)
    write_days(files[4], 16)
    report = virtualize(files, tmp_path / "repo", scheduler="threads")
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


# -- files that look as they did -------------------------------------------------------
@pytest.mark.parametrize("call", [virtualize, ingest])
@pytest.mark.parametrize("in_place", [False, True])
def test_another_file_of_the_same_size_and_time(call: Any, in_place: bool, tmp_path: Path) -> None:
    plain = {"compression": None, "shuffle": None}
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, options=plain) for i in range(2)]
    call(files, tmp_path / "repo", progress=False)
    before = files[1].stat()
    data = bytearray(files[1].read_bytes())
    with h5py.File(files[1]) as file:
        place = file["t"].id.get_chunk_info(0).byte_offset
    assert len(data) >= place + 4
    data[place : place + 4] = np.float32(17).tobytes()
    other = files[1] if in_place else tmp_path / "other"
    other.write_bytes(data)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    if not in_place:
        other.replace(files[1])
    now = files[1].stat()
    assert (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(InvalidInputError, match=r"changed since"):
        call(files, tmp_path / "repo", progress=False)
    report = call(files, tmp_path / "repo", on_changed="keep", progress=False)
    assert report.changed == (str(files[1]),)
    if call is virtualize:
        report = call(files, tmp_path / "repo", on_changed="replace", progress=False)
        assert report.replaced == (str(files[1]),)
        expected = together([content(path) for path in files])
        xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


@pytest.mark.parametrize("size", [1 << 12, 3 << 20])
def test_the_same_file_under_other_circumstances(size: int, tmp_path: Path) -> None:
    """Permissions, links, and copies that keep the time, are no other version."""
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    with files[1].open("ab") as file:
        file.write(bytes(size))
    run(files, tmp_path / "repo")
    files[1].chmod(0o600)
    os.link(files[1], tmp_path / "link")
    assert run(files, tmp_path / "repo").changed == ()
    shutil.copy2(files[1], tmp_path / "copy")
    (tmp_path / "copy").replace(files[1])
    report = run(files, tmp_path / "repo")
    assert report.changed == () and report.already == tuple(map(str, files))
    # of a large one not only its ends are looked at
    data = bytearray(files[1].read_bytes())
    before = files[1].stat()
    middle = len(data) // 2
    data[middle : middle + 100] = b"x" * 100
    files[1].write_bytes(data)
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(files, tmp_path / "repo", on_changed="keep").changed == (str(files[1]),)
