"""Ctrl-C while a server does not answer, in everything that people do.

The one who waits is free at once, whatever threads are waiting beside; afterwards the repository
is in its old or its new state, and the same call finishes it.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from icechunk import LocalStorage, Repository
from icechunk.storage import locks
from icechunk.storage.locks import exclusive, open_lock
from tests.faults.operations import CONFIG, OPERATIONS, check_whole, commit, prepared
from tests.faults.proxy import Ask, Forward, Plan, Proxy, Reply, misbehaving
from tests.servers import S3Server

pytestmark = pytest.mark.usefixtures("interruptible", "no_pauses")

STRIDE = 1 if os.environ.get("ICECHUNK_EVERY_CALL") else 17
#: Longer than anybody should wait, and shorter than a request is given up, in seconds.
PATIENCE = 15


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    with misbehaving(s3_server) as proxy:
        yield proxy


class Silence:
    """A server that answers so many requests and then none, and has Ctrl-C pressed."""

    def __init__(self, answered: int) -> None:
        self.left = answered
        self.is_silent = False
        self.was_waited_for = False
        self._over = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, ask: Ask, forward: Forward) -> Reply | None:
        with self._lock:
            self.left -= 1
            if self.left >= 0:
                answers = True
            else:
                answers = False
                first, self.is_silent = not self.is_silent, True
        if answers:
            return forward(ask)
        if first:
            os.kill(os.getpid(), signal.SIGINT)
        if not self._over.wait(PATIENCE):
            self.was_waited_for = True
        return None

    def end(self) -> None:
        self._over.set()


@pytest.mark.parametrize(("name", "spec_version"), OPERATIONS)
def test_an_interrupt(name: str, spec_version: int, proxy: Proxy, s3_server: S3Server) -> None:
    answered = zlib.crc32(f"{name} {spec_version}".encode()) % STRIDE
    while True:
        prefix = uuid.uuid4().hex
        storage = s3_server.storage(prefix)
        made = prepared(name, spec_version, storage, proxy.storage(prefix))
        silence = Silence(answered)
        proxy.plan = Plan(silence)
        try:
            made.act()
        except KeyboardInterrupt:
            was_waited_for = silence.was_waited_for
            silence.end()
            proxy.heal()
            assert not was_waited_for
            with suppress(*made.said):
                made.act()
        finally:
            silence.end()
            proxy.heal()
        check_whole(storage, made)
        if not silence.is_silent:
            break
        answered += STRIDE


@pytest.mark.parametrize("lock", ["repo#0", "repo#1"], ids=["the lock", "the queue"])
def test_an_interrupt_while_others_hold_a_lock(
    lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    made = prepared("commit", 2, storage, storage)
    if lock == "repo#1":
        # who has lost once stands in the queue
        commit(Repository.open(storage, CONFIG), {5: 5})
    free, was_waited_for = threading.Event(), threading.Event()

    def hold(held: threading.Event) -> None:
        with exclusive(open_lock(str(tmp_path / lock))):
            held.set()
            if not free.wait(PATIENCE):
                was_waited_for.set()

    held = threading.Event()
    holder = threading.Thread(target=hold, args=(held,))
    holder.start()
    held.wait()
    acquire = locks._acquire

    def press(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), os.stat(tmp_path / lock)):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        acquire(fd)

    monkeypatch.setattr(locks, "_acquire", press)
    try:
        with pytest.raises(KeyboardInterrupt):
            if lock == "repo#1":
                with storage.turn("repo"):
                    pass
            made.act()
        assert not was_waited_for.is_set()
    finally:
        free.set()
        holder.join()
    monkeypatch.setattr(locks, "_acquire", acquire)
    if lock == "repo#0":
        made.act()
        check_whole(storage, made)
