"""Many writers of one branch, half of them killed again and again, and maintenance beside them.

Each writer owns a row of an array, commits one element after another, and notes each commit
that it was told of. In the end every commit that anybody was told of is there, with its value,
none is there twice, and `Repository.verify` finds nothing. `make soak` runs it for five minutes on
SeaweedFS, with the official client as one more writer, and for five on a folder.

    python -m tests.faults.soak --seconds 300 --writers 20 --on folder
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from icechunk import (
    ConflictDetector,
    ConflictError,
    LocalStorage,
    OutcomeUnknownError,
    Repository,
    RepositoryConfig,
    SessionStateError,
)
from icechunk.storage.base import Storage
from tests.servers import S3Server, s3_server

COLUMNS = 5000
CONFIG = RepositoryConfig(inline_chunk_threshold_bytes=0)


@dataclass(frozen=True)
class Place:
    """Where the repository and the notes are.

    Attributes
    ----------
    notes : Path
        A file for each writer, one for each snapshot that was seen, one for what went wrong.
    server : S3Server or None
        None for a folder.
    """

    notes: Path
    server: S3Server | None

    def storage(self) -> Storage:
        if self.server is None:
            return LocalStorage(self.notes / "repository")
        return self.server.storage("soak")

    def say(self, name: str, line: str) -> None:
        with (self.notes / name).open("a") as file:
            file.write(line + "\n")

    def said(self, name: str) -> list[str]:
        path = self.notes / name
        # who is killed may leave half a line
        return [line for line in path.read_text().split("\n")[:-1] if line] if path.exists() else []


# -- what processes do ---------------------------------------------------------------------
def create(place: Place, rows: int) -> None:
    """Create the repository."""
    repository = Repository.create(place.storage(), CONFIG)
    with repository.transaction("main", message="begun") as store:
        options: dict[str, Any] = {"dtype": "i8", "fill_value": -1, "compressors": None}
        zarr.create_array(store, name="a", shape=(rows, COLUMNS), chunks=(1, 1), **options)


def write_on(place: Place, row: int) -> None:
    """Commit element after element of a row."""
    rng = random.Random()
    repository = Repository.open(place.storage())
    while True:
        session = repository.writable_session("main")
        array: Any = zarr.open_array(session.store, path="a")
        at = int(np.flatnonzero(session.written_chunks("/a")[row])[-1:].sum()) + 1
        value = rng.getrandbits(62)
        array[row, at] = value
        try:
            snapshot = _committed(session, f"{row} {at}")
        except (ConflictError, SessionStateError) as error:
            # somebody of this row was killed, and had committed it after all; or it took too long
            place.say("refused", f"{row} {at} {type(error).__name__}: {error}")
            continue
        place.say(f"row {row}", f"{at} {value} {snapshot}")


def _committed(session: Any, message: str) -> str:
    while True:
        try:
            return str(session.commit(message, rebase_with=ConflictDetector()))
        except OutcomeUnknownError:
            # the next commit of the session finds out
            continue


def expire(place: Place, age: float) -> None:
    """Expire snapshots, again and again."""
    repository = Repository.open(place.storage())
    while True:
        expired = repository.expire_snapshots(datetime.now(UTC) - timedelta(seconds=age))
        place.say("expired", str(len(expired)))
        time.sleep(1)


def collect(place: Place, age: float) -> None:
    """Collect garbage, again and again."""
    repository = Repository.open(place.storage())
    while True:
        found = repository.garbage_collect(datetime.now(UTC) - timedelta(seconds=age))
        place.say("collected", str(found.chunks_deleted))
        time.sleep(1)


def look(place: Place) -> None:
    """Verify, and note which commits there are, again and again."""
    repository = Repository.open(place.storage())
    known: set[str] = set()
    while True:
        for entry in repository.ancestry(branch="main"):
            if entry.id not in known:
                known.add(entry.id)
                place.say("seen", f"{entry.id} {entry.message}")
        report = repository.verify(deep="sample")
        report.raise_if_damaged()
        place.say("verified", "clean")
        time.sleep(1)


#: What the official client does; it owns a row too.
OFFICIAL = """
import sys
import icechunk, zarr
url, bucket, row, notes, key, secret = sys.argv[1:]
storage = icechunk.s3_storage(
    bucket=bucket, prefix="soak", endpoint_url=url, region="us-east-1", allow_http=True,
    force_path_style=True, access_key_id=key, secret_access_key=secret,
)
repository = icechunk.Repository.open(storage)
row = int(row)
while True:
    session = repository.writable_session("main")
    array = zarr.open_array(session.store, path="a")
    at = int((array[row] != -1).sum()) + 1
    array[row, at] = at
    try:
        snapshot = session.commit(f"{row} {at}", rebase_with=icechunk.ConflictDetector())
    except Exception as error:
        with open(f"{notes}/refused", "a") as file:
            file.write(f"{row} {at} official: {type(error).__name__}: {error!s:.200}\\n")
        continue
    with open(f"{notes}/row {row}", "a") as file:
        file.write(f"{at} {at} {snapshot}\\n")
"""


# -- the run -------------------------------------------------------------------------------
@dataclass
class Soak:
    """One run.

    Attributes
    ----------
    kills : int
        Writers that were killed.
    problems : list of str
        What should not be.
    """

    place: Place
    kills: int = 0
    problems: list[str] = field(default_factory=list)
    _running: dict[int, tuple[str, Callable[[], None]]] = field(default_factory=dict)

    def start(self, name: str, work: Callable[[], None]) -> int:
        """Run a function in a process. This one has no connections that it would share."""
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException:
                self.place.say("errors", f"{name}: {traceback.format_exc()}")
                os._exit(1)
            os._exit(0)
        self._running[pid] = name, work
        return pid

    def wait(self, pid: int) -> None:
        """Wait for a process."""
        os.waitpid(pid, 0)
        del self._running[pid]

    def kill(self, pid: int) -> tuple[str, Callable[[], None]]:
        """Kill a process that was started here."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return self._running.pop(pid)

    def run(self, writers: int, seconds: float, official: str | None, kill_every: float) -> None:
        """Run for a time, kill every second writer now and then, and stop."""
        place, age = self.place, max(45.0, seconds * 0.4)
        rows = writers + (official is not None)
        self.wait(self.start("create", lambda: create(place, rows)))
        for row in range(writers):
            self.start(f"writer {row}", lambda row=row: write_on(place, row))  # type: ignore[misc]
        self.start("expire", lambda: expire(place, age / 4))
        self.start("collect", lambda: collect(place, age))
        self.start("look", lambda: look(place))
        rng = random.Random()
        with ExitStack() as stack:
            if official is not None:
                stack.enter_context(self._official(official, writers))
            stack.callback(self._kill_all)
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                time.sleep(min(rng.uniform(0, 2 * kill_every), max(ends - time.monotonic(), 0)))
                self._bury()
                doomed = [
                    pid
                    for pid, (name, _) in self._running.items()
                    if name.startswith("writer") and int(name.split()[1]) % 2
                ]
                if doomed:
                    self.start(*self.kill(rng.choice(doomed)))
                    self.kills += 1

    def _kill_all(self) -> None:
        for pid in list(self._running):
            self.kill(pid)

    def _bury(self) -> None:
        """Notice processes that ended by themselves."""
        for pid, (name, work) in list(self._running.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._running[pid]
                self.problems.append(f"{name} ended")
                self.start(name, work)

    def _official(self, python: str, row: int) -> Any:
        server = self.place.server
        assert server is not None
        arguments = [server.endpoint_url, server.bucket, str(row), str(self.place.notes)]
        keys = [server.access_key_id, server.secret_access_key]
        stack = ExitStack()
        # -I: this project is called icechunk, too
        process = subprocess.Popen([python, "-I", "-c", OFFICIAL, *arguments, *keys])
        stack.callback(process.wait)
        stack.callback(process.kill)
        return stack

    def check(self, rows: int) -> str:
        """Look whether all is there; return what to report."""
        place = self.place
        repository = Repository.open(place.storage())
        found = np.asarray(
            zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[:]
        )
        told = lost = 0
        for row in range(rows):
            for line in place.said(f"row {row}"):
                at, value, _ = line.split()
                told += 1
                if found[row, int(at)] != int(value):
                    lost += 1
                    self.problems.append(f"lost: {row} {line}, found {found[row, int(at)]}")
        seen = dict(line.split(" ", 1) for line in place.said("seen"))
        seen |= {entry.id: entry.message for entry in repository.ancestry(branch="main")}
        self.problems += [f"twice: {m}" for m, n in Counter(seen.values()).items() if n > 1]
        for row in range(rows):
            written = np.flatnonzero(found[row] != -1)
            if written.tolist() != list(range(1, len(written) + 1)):
                self.problems.append(f"row {row} has gaps: {written.tolist()[:20]}")
        report = repository.verify(deep=True)
        if not report.ok:
            self.problems.append(str(report))
        self.problems += place.said("errors")
        commits = int((found != -1).sum())
        expired, collected = (sum(map(int, place.said(n))) for n in ("expired", "collected"))
        return (
            f"{commits} commits ({told} told), {self.kills} kills, {lost} lost, "
            f"{int((found[-1] != -1).sum())} by the last writer, "
            f"{len(place.said('refused'))} refused, {len(place.said('verified'))} times verified, "
            f"{expired} snapshots expired, {collected} chunks collected, "
            f"{len(self.problems)} problems"
        )


def _serve(folder: Path, line: Connection) -> None:
    with s3_server(folder) as server:
        line.send(server)
        line.recv()


@contextmanager
def _server_elsewhere(folder: Path) -> Iterator[S3Server]:
    """Run a server from a process of its own: a process that has made requests cannot be forked."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, there))
    process.start()
    try:
        yield here.recv()
    finally:
        here.send("enough")
        process.join()


def soak(
    on: str, writers: int, seconds: float, *, official: str | None = None, kill_every: float = 0.5
) -> tuple[str, list[str]]:
    """Run it, on ``"folder"`` or ``"s3"``; return what to report, and what should not be."""
    with ExitStack() as stack:
        notes = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="icechunk-soak-")))
        server = None
        if on == "s3":
            (notes / "server").mkdir()
            server = stack.enter_context(_server_elsewhere(notes / "server"))
        run = Soak(Place(notes, server))
        run.run(writers, seconds, official if on == "s3" else None, kill_every)
        report = run.check(writers + (official is not None and on == "s3"))
        for line in run.place.said("refused")[:5]:
            print("refused:", line[:300])
        return report, run.problems


def main() -> int:
    """Run from the command line; the exit code says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", choices=["folder", "s3"], default="folder")
    parser.add_argument("--writers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    official = os.environ.get("ICECHUNK_OFFICIAL_PYTHON")
    report, problems = soak(options.on, options.writers, options.seconds, official=official)
    print(f"{options.on}: {report}")
    for problem in problems[:20]:
        print("   ", problem[:3000])
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
