from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from icechunk.errors import InvalidInputError, StorageError
from icechunk.storage import MemoryStorage, Storage, in_memory_storage, storage_from_url
from icechunk.testing.storage import StorageTests


class TestMemoryStorage(StorageTests):
    @pytest.fixture
    def storage(self) -> Storage:
        return MemoryStorage()


def test_a_name_is_shared_within_the_process() -> None:
    one, other = MemoryStorage("shared"), storage_from_url("memory://shared")
    one.put("a", b"x")
    assert bytes(other.get("a").data) == b"x"
    assert one.url == other.url == "memory://shared"
    assert list(MemoryStorage("another").list()) == []


def test_objects_under_a_name_outlive_the_storage() -> None:
    MemoryStorage("kept").put("a", b"x")
    assert bytes(MemoryStorage("kept").get("a").data) == b"x"


def test_anonymous_storages_share_nothing() -> None:
    one, other = in_memory_storage(), in_memory_storage()
    one.put("a", b"x")
    assert list(other.list()) == []
    assert one.url != other.url


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="name"):
        storage_from_url("memory://")


def test_what_was_put_does_not_change_with_its_source() -> None:
    storage = MemoryStorage()
    source = bytearray(b"before")
    storage.put("a", source)
    source[:] = b"after!"
    assert bytes(storage.get("a").data) == b"before"


def test_a_pickle_of_a_dropped_storage_says_so() -> None:
    copy = pickle.loads(pickle.dumps(MemoryStorage()))
    with pytest.raises(StorageError, match="cannot be shared between processes"):
        copy.get("a")


#: Forks, too: the child has a copy of the objects, which is not to be taken for them. It
#: is a process of its own because this one may have threads, which forking does not copy.
ELSEWHERE = """
import os, pickle, sys
from icechunk.storage import MemoryStorage

def load(what, pickled):
    copy = pickle.loads(pickled)  # raises nothing
    assert copy.url.startswith("memory://")
    assert pickle.loads(pickle.dumps(copy)).url == copy.url
    try:
        copy.put("a", b"a")
        print(what, copy.url, flush=True)
    except Exception as error:
        print(what, type(error).__name__, error, flush=True)

own = MemoryStorage("own")
pickled_own = pickle.dumps(own)
load("own", pickled_own)
for pickled in pickle.loads(sys.stdin.buffer.read()):
    load("other", pickled)
if os.fork() == 0:
    load("forked", pickled_own)
    os._exit(0)
os.wait()
"""


def test_other_processes_cannot_use_it() -> None:
    storages = [MemoryStorage(), MemoryStorage("own")]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=pickle.dumps([pickle.dumps(storage) for storage in storages]),
        capture_output=True,
        check=True,
    )
    own, *others = done.stdout.decode().splitlines()
    assert own == "own memory://own"
    assert [line.split()[:2] for line in others] == [
        ["other", "StorageError"],
        ["other", "StorageError"],
        ["forked", "StorageError"],
    ]
    assert all("cannot be shared between processes" in line for line in others)
