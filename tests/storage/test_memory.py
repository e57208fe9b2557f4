from __future__ import annotations

import os
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
    pickled = pickle.dumps(MemoryStorage())
    with pytest.raises(StorageError, match="cannot be shared between processes"):
        pickle.loads(pickled)


@pytest.mark.parametrize("name", [None, "named"])
def test_another_process_cannot_unpickle(name: str | None) -> None:
    storage = MemoryStorage(name)
    code = (
        "import pickle, sys\n"
        "try: pickle.loads(sys.stdin.buffer.read())\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(storage), capture_output=True, check=True
    )
    assert b"StorageError" in done.stdout
    assert b"cannot be shared between processes" in done.stdout


def test_a_forked_process_cannot_unpickle() -> None:
    # in a process of its own: this one may have threads, which forking does not copy
    code = (
        "import os, pickle\n"
        "from icechunk.storage import MemoryStorage\n"
        "storage = MemoryStorage('forked')\n"
        "pickled = pickle.dumps(storage)\n"
        "pickle.loads(pickled)\n"
        "if os.fork() == 0:\n"
        "    try: pickle.loads(pickled)\n"
        "    except Exception as e: print(type(e).__name__, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["StorageError"], (done.stderr, os.getpid())
