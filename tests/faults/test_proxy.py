"""What people do, through a proxy that misbehaves before a real S3 server.

Some of the requests have a trouble, or all of them have. Either it works, or an error says
about which object, and the next try on a line that works finishes it. It was done once then, and
the repository is whole.
"""

from __future__ import annotations

import os
import random
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from icechunk import IcechunkError
from icechunk.config.repository_config import StorageRetriesSettings, StorageSettings
from tests.faults.operations import OPERATIONS, check_whole, finish, prepared
from tests.faults.proxy import CASES, Plan, Proxy, misbehaving
from tests.servers import S3Server

pytestmark = pytest.mark.usefixtures("no_pauses")

SETTINGS = StorageSettings(
    retries=StorageRetriesSettings(max_tries=4, initial_backoff_ms=1, max_backoff_ms=2)
)


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    with misbehaving(s3_server) as proxy:
        yield proxy


def _combinations() -> list[Any]:
    """Return what to try: all with ``ICECHUNK_EVERY_CALL=1``, otherwise a part of each kind."""
    part = 1 if os.environ.get("ICECHUNK_EVERY_CALL") else 17
    return [
        pytest.param(case, share, operation, id=f"{operation[0]}, v{operation[1]}, {case}, {some}")
        for at, case in enumerate(CASES)
        for more, operation in enumerate(OPERATIONS)
        for both, (some, share) in enumerate((("some", 0.3), ("all", 1.0)))
        if (at + more + 3 * both) % part == 0
    ]


@pytest.mark.parametrize(("case", "share", "operation"), _combinations())
def test_trouble(
    case: str, share: float, operation: tuple[str, int], proxy: Proxy, s3_server: S3Server
) -> None:
    prefix = uuid.uuid4().hex
    storage = s3_server.storage(prefix)
    made = prepared(*operation, storage, proxy.storage(prefix).with_settings(SETTINGS))
    trouble = CASES[case]
    seed = random.Random(zlib.crc32(f"{case} {operation}".encode()))
    proxy.plan = Plan(trouble.trouble, trouble.concerns, share, rng=seed)
    error = finish(made, proxy.heal)
    try:
        check_whole(storage, made)
    except Exception as problem:
        problem.add_note(f"told: {error!r}")
        raise
    if error is not None:
        assert names_an_object(error, prefix), str(error)


def names_an_object(error: IcechunkError, prefix: str) -> bool:
    """Whether a message says about what it is: an object, a place, or a name of the user's."""
    folders = ("refs", "chunks", "snapshots", "manifests", "transactions", "overwritten", "jobs")
    words = (
        "repo",
        "config.yaml",
        prefix,
        "snapshot ",
        "the tag 't'",
        "job 'j'",
        *(f"{folder}/" for folder in folders),
    )
    return any(word in str(error) for word in words)
