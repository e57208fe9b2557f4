"""Fixtures for all tests. Servers are started when the first test asks for them."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tests.hypothesis_profiles  # noqa: F401
from tests import servers
from tests.programs import Programs


def pytest_collection_finish() -> None:
    """Look for garbage among what tests make, and not in all that is imported and collected.

    Each full look at that takes a quarter of a second, and all of them a seventh of the time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def disks() -> Iterator[Callable[[int], None]]:
    """Do not wait for disks: a commit to a folder takes most of its time for that.

    What it guards against, a machine that stops, happens in no test. Tests of what is forced to
    disk, and when, take `forced`.
    """
    fsync = os.fsync
    os.fsync = lambda fd: None
    yield fsync
    os.fsync = fsync


@pytest.fixture
def forced(disks: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Force to disk what is written there, as users have it."""
    monkeypatch.setattr(os, "fsync", disks)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    """A real S3 server; tests take prefixes of their own. One for each worker of xdist."""
    with servers.s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Run programs in processes of their own that need no time to import."""
    running = Programs(tmp_path_factory.mktemp("programs"))
    yield running
    running.close()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between attempts to publish."""
    monkeypatch.setattr("icechunk.commit.retrying.sleep", lambda seconds: None)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take interrupts, which jobs in the background of a shell are told to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def object_server() -> Iterator[servers.ObjectServer]:
    """A small HTTP server, new for every test."""
    with servers.object_server() as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let those who want to look at something say where it should stay."""
    parser.addoption(
        "--artefacts",
        metavar="DIR",
        default="build/artefacts",
        help="folder for pictures that tests take (default: %(default)s)",
    )


@pytest.fixture(scope="session")
def artefacts(request: pytest.FixtureRequest) -> Path:
    """The folder for what is to be looked at after a test."""
    folder = Path(request.config.rootpath, request.config.getoption("--artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
