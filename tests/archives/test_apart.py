"""Files that end the process that scans them, or keep it computing: failures with a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from icechunk import InvalidInputError
from icechunk_dask import ingest, virtualize
from icechunk_dask.archives import apart
from icechunk_dask.archives.apart import call_apart, can_be_apart, scan_apart, stop_apart
from tests.archives.apart_scanner import Odd


@pytest.fixture
def children() -> apart._Pool:
    """Scan in processes apart; they are used again by the next test."""
    return apart._pool


def log(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "log").read_text().splitlines()
    return [(int(pid), url) for pid, _, url in (line.partition(" ") for line in lines)]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("at", [0, 3, 5])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("segv", r"ended its process \(SIGSEGV\)"),
        ("abrt", "SIGABRT"),
        ("kill", "SIGKILL.*too little memory"),
        ("exit", "status 3"),
    ],
)
def test_one_bad_file_fails_alone(
    bad: str, reason: str, at: int, tmp_path: Path, children: apart._Pool
) -> None:
    urls = [f"good-{i}" for i in range(6)]
    urls[at] = bad
    counted: list[None] = []
    found = scan_apart(Odd(tmp_path), urls, lambda: counted.append(None))
    assert [scan.url for scan in found] == urls and len(counted) == 6
    assert [scan.url for scan in found if scan.failure] == [bad]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found[at].failure)
    assert "the file may be damaged" in found[at].failure


def test_many_bad_files(tmp_path: Path, children: apart._Pool) -> None:
    urls = [f"segv-{i}" if i % 3 else f"good-{i}" for i in range(9)]
    found = scan_apart(Odd(tmp_path), urls)
    assert [bool(scan.failure) for scan in found] == [bool(i % 3) for i in range(9)]


def test_a_file_is_not_blamed_for_another(tmp_path: Path, children: apart._Pool) -> None:
    found = scan_apart(Odd(tmp_path), ["good", "spoilt", "also good"])
    assert not any(scan.failure for scan in found)


def test_computing_without_an_end(
    tmp_path: Path, children: apart._Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "_COMPUTING", 1.5)
    found = scan_apart(Odd(tmp_path), ["good", "loop", "long"])
    assert [bool(scan.failure) for scan in found] == [False, True, False]
    assert "computing" in found[1].failure and "isolate=False" in found[1].failure
    # what computes too long is not tried again
    assert [url for _, url in log(tmp_path)].count("loop") == 1


def test_silence(tmp_path: Path, children: apart._Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_SILENT", 2.0)
    found = scan_apart(Odd(tmp_path), ["good", "wait", "good"])
    assert [bool(scan.failure) for scan in found] == [False, True, False]
    assert "no sign of life" in found[1].failure


@pytest.mark.skipif(sys.platform != "linux", reason="others do not bound memory")
def test_memory(tmp_path: Path, children: apart._Pool) -> None:
    (found,) = scan_apart(Odd(tmp_path), ["greedy"])
    assert found.failure == "MemoryError"


def test_a_child_is_used_again(tmp_path: Path, children: apart._Pool) -> None:
    scan_apart(Odd(tmp_path), ["a", "b"])
    scan_apart(Odd(tmp_path), ["c"])
    assert len({pid for pid, _ in log(tmp_path)}) == 1
    assert call_apart(Odd(tmp_path), "read", "value") == log(tmp_path)[0][0] != os.getpid()
    with pytest.raises(OSError, match="no such thing"):
        call_apart(Odd(tmp_path), "read", "raise")
    with pytest.raises(InvalidInputError, match="SIGSEGV"):
        call_apart(Odd(tmp_path), "read", "segv")
    # one that has ended meanwhile
    before = call_apart(Odd(tmp_path), "read", "value")
    os.kill(before, signal.SIGKILL)
    assert call_apart(Odd(tmp_path), "read", "value") != before


def test_a_child_takes_over_what_its_parent_has(
    tmp_path: Path, children: apart._Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call_apart(Odd(tmp_path), "read", "value")
    monkeypatch.setenv("SOME_CREDENTIALS", "new")
    second = call_apart(Odd(tmp_path), "read", "value")
    monkeypatch.chdir(tmp_path)
    third = call_apart(Odd(tmp_path), "read", "value")
    assert len({first, second, third}) == 3 and not is_there(first)


def test_a_call_is_given_up(tmp_path: Path, children: apart._Pool) -> None:
    failure: list[BaseException] = []

    def scan() -> None:
        try:
            scan_apart(Odd(tmp_path), ["good", "wait"])
        except BaseException as exc:
            failure.append(exc)

    thread = threading.Thread(target=scan)
    thread.start()
    while not (tmp_path / "log").exists() or "wait" not in (tmp_path / "log").read_text():
        thread.join(0.01)
    stop_apart("another call")
    assert thread.is_alive()
    stop_apart("call")
    thread.join(60)
    assert not thread.is_alive() and failure and not is_there(log(tmp_path)[-1][0])


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(how: signal.Signals, tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from icechunk_dask.archives.apart import scan_apart
        from tests.archives.apart_scanner import Odd
        scan_apart(Odd(Path(sys.argv[1])), ["good", "wait"])
        """
    )
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "log").exists() or "wait" not in (tmp_path / "log").read_text():
        assert parent.poll() is None
        time.sleep(0.01)
    parent.send_signal(how)
    parent.wait(60)
    (pid,) = {pid for pid, _ in log(tmp_path)}
    end = time.monotonic() + 60
    while is_there(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_there(pid)


def test_what_another_process_cannot_read() -> None:
    assert can_be_apart(["/a b/c.nc", "file:///a", "s3://a/b", "https://a/b", "gs://a/b"])
    assert not can_be_apart(["/a", "memory://a"]) and not can_be_apart(["mine://a"])


# -- real files ------------------------------------------------------------------------
def day(path: Path, number: int) -> Path:
    with h5py.File(path, "w") as file:
        time = file.create_dataset("time", data=[float(number)])
        time.make_scale("time")
        time.attrs["units"] = "days since 2000-01-01"
        data = file.create_dataset("v", data=[np.float32(number)])
        data.dims[0].attach_scale(time)
    return path


def endless(path: Path, number: int) -> Path:
    """Return a file whose texts HDF5 looks for without an end."""
    day(path, number)
    with h5py.File(path, "a") as file:
        file.attrs["title"] = "a text of any length"
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    # the size of the first object of the global heap (HDF5 file format specification, III.E)
    data[heap + 24] = 0xFF
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("call", "executor"), [(virtualize, "threads"), (ingest, "sync")])
def test_a_damaged_file_among_good_ones(
    executor: str,
    call: Any,
    tmp_path: Path,
    children: apart._Pool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apart, "_COMPUTING", 1.0)
    good = [day(tmp_path / f"{i}.nc", i) for i in (0, 1, 3)]
    bad = endless(tmp_path / "2.nc", 2)
    report = call(
        str(tmp_path / "?.nc"),
        tmp_path / "repo",
        allow_gaps=True,
        executor=executor,
        progress=False,
    )
    assert set(report.added) == set(map(str, good))
    assert list(report.failed) == [str(bad)] and "of computing" in report.failed[str(bad)]
