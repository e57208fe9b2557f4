"""Something goes wrong at each request of everything that people do.

It is tried until it succeeds, as a user would. Then it was done exactly once, and the
repository is whole. ``ICECHUNK_EVERY_CALL=1`` tries every request with every fault; otherwise each
operation has two of the faults, at one request in a few, and each fault comes in many operations.
"""

from __future__ import annotations

import os
import zlib

import pytest

from icechunk import MemoryStorage
from icechunk.base import deadline
from tests.faults.operations import OPERATIONS, check_whole, finish, prepared
from tests.faults.troubled import FAULTS, Fault, Troubled

pytestmark = pytest.mark.usefixtures("no_pauses")

EVERY = bool(os.environ.get("ICECHUNK_EVERY_CALL"))
#: Requests from one that fails to the next.
STRIDE = 1 if EVERY else 37
CASES = [
    (name, spec_version, fault)
    for at, (name, spec_version) in enumerate(OPERATIONS)
    for more, fault in enumerate(FAULTS)
    if EVERY or (2 * at + more) % len(FAULTS) in (0, 4)
]


@pytest.mark.parametrize(("name", "spec_version", "fault"), CASES)
def test_something_goes_wrong_at_each_request(
    name: str, spec_version: int, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "clock", deadline.clock)  # put back in the end
    number = zlib.crc32(f"{name} {spec_version} {fault}".encode())
    nth = 1 + number % STRIDE
    while True:
        storage = MemoryStorage()
        troubled = Troubled(storage)
        # where requests take long, those of a commit run at the same time
        troubled.is_remote = bool(os.environ.get("ICECHUNK_REMOTE", number // STRIDE % 2))
        made = prepared(name, spec_version, storage, troubled)
        troubled.plan(nth, fault)
        error = finish(made, troubled.heal)
        try:
            check_whole(storage, made)
        except Exception as problem:
            problem.add_note(f"request {nth} went wrong ({fault}); told: {error!r}")
            raise
        if not troubled.reached:
            break
        nth += STRIDE
