"""The tests that every storage must pass.

Subclass `StorageTests` in a test module and give it a fixture ``storage``::

    class TestMyStorage(StorageTests):
        @pytest.fixture
        def storage(self) -> Storage:
            return MyStorage(...)  # empty, and nobody else's

Needs pytest, hypothesis and pytest-asyncio, the latter in its mode ``auto``.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from icechunk.config import StorageConcurrencySettings, StorageSettings
from icechunk.errors import (
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.storage import Storage

#: Valid keys that a careless storage mixes up, splits, decodes or drops.
ODD_KEYS = [
    "a b",
    " leading and trailing ",
    "a#b",
    "a#",
    "100%",
    "p%20q",
    "p%2Fq",
    "a+b",
    "a&b=c?d",
    "~!@$^*()[]{}|;:',<>`\"",
    "...",
    "..a/a..",
    ".hidden",
    "ünïcödé/ß",
    "日本語/データ",
    "e\u0301 is not \u00e9",
    "🧊/🧊",
    "UPPER/lower",
    "repo",
    "chunks/0123456789ABCDEFGHJK",
    "/".join(f"level-{i}" for i in range(30)),
    "n" * 200,
]

BAD_KEYS = [
    "",
    "/",
    "/absolute",
    "a/",
    "a//b",
    ".",
    "..",
    "../up",
    "a/../b",
    "a/./b",
    "a/..",
    "nul\0",
    "line\nbreak",
    "\x7f",
    "half a pair \ud800",
]

BAD_RANGES: list[Any] = [(None, None), (-1, 3), (3, 1), (None, -1), (-1, None)]

_bounds = st.integers(0, 40)
byte_ranges = st.one_of(
    st.tuples(_bounds, _bounds).map(lambda pair: (min(pair), max(pair))),
    st.tuples(_bounds, st.none()),
    st.tuples(st.none(), _bounds),
)

#: Short names, so that keys are often prefixes of others, as are folders.
_names = st.text("ab-", min_size=1, max_size=2)
keys = st.lists(_names, min_size=1, max_size=3).map("/".join)

few_examples = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)


def contents(storage: Storage, prefix: str = "") -> dict[str, bytes]:
    """Return every object below a folder."""
    return {m.key: bytes(storage.get(m.key).data) for m in storage.list(prefix)}


def slice_of(data: bytes, byte_range: tuple[int | None, int | None]) -> bytes:
    """Return what a range means, by the rules of Python."""
    start, end = byte_range
    if start is None:
        return data[max(0, len(data) - (end or 0)) :]
    return data[start:end]


def run_together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work` in threads that start at the same moment; return results and errors."""
    barrier = threading.Barrier(count)

    def start(i: int) -> Any:
        barrier.wait()
        try:
            return work(i)
        except StorageError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


class StorageTests:
    """What `icechunk.storage.Storage` promises.

    Attributes
    ----------
    secrets : tuple of str
        Must not show in the url, the ``repr``, or in any error.
    threads : int
        How many race against each other.
    large : int
        Bytes of a large object.
    """

    secrets: tuple[str, ...] = ()
    threads = 8
    large = 21 * 1024**2

    @pytest.fixture
    def storage(self) -> Storage:
        """Return an empty storage. Subclasses must override this."""
        raise NotImplementedError("give your subclass of StorageTests a fixture 'storage'")

    # -- reading and writing -------------------------------------------------------
    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 100])
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_get_returns_what_put_wrote(
        self, storage: Storage, data: bytes, kind: Callable[[bytes], Any]
    ) -> None:
        """All kinds of buffers, all sizes; etag and time come along."""
        earlier = datetime.now(UTC) - timedelta(minutes=5)
        etag = storage.put("a/b", kind(data))
        result = storage.get("a/b")
        assert bytes(result.data) == data
        assert memoryview(result.data).contiguous
        assert result.etag == etag
        assert etag
        assert result.last_modified is not None
        assert earlier < result.last_modified < datetime.now(UTC) + timedelta(minutes=5)

    def test_a_slice_of_a_buffer_is_written_as_it_is(self, storage: Storage) -> None:
        """A memoryview is not its underlying object."""
        storage.put("a", memoryview(b"0123456789")[2:5])
        assert bytes(storage.get("a").data) == b"234"

    def test_put_replaces(self, storage: Storage) -> None:
        """The second put wins, and is another version."""
        first = storage.put("a", b"one")
        second = storage.put("a", b"three")
        assert first != second
        assert bytes(storage.get("a").data) == b"three"

    def test_a_missing_object_is_not_found(self, storage: Storage) -> None:
        """Before any write, beside objects, below an object, and for a folder."""
        for key in ("a", "folder/a"):
            with pytest.raises(ObjectNotFoundError, match=key):
                storage.get(key)
        storage.put("folder/a", b"x")
        for key in ("folder", "folder/b", "folder/a/b"):
            with pytest.raises(ObjectNotFoundError, match=key):
                storage.get(key, byte_range=(0, 1))
            with pytest.raises(ObjectNotFoundError, match=key):
                storage.get(key, byte_range=(0, 0))

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys(self, storage: Storage, key: str) -> None:
        """Each is its own object in every call."""
        storage.put(key, key.encode())
        assert contents(storage) == {key: key.encode()}
        storage.copy(key, "copied/" + key)
        storage.delete([key])
        assert contents(storage) == {"copied/" + key: key.encode()}

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_bad_keys(self, storage: Storage, key: str) -> None:
        """Each is refused by every call."""
        storage.put("a", b"x")
        calls: list[Callable[[], Any]] = [
            lambda: storage.get(key),
            lambda: storage.get_if_changed(key, '"1"'),
            lambda: storage.put(key, b""),
            lambda: storage.put(key, b"", if_absent=True),
            lambda: storage.delete([key]),
            lambda: storage.copy("a", key),
            lambda: storage.copy(key, "a"),
        ]
        for call in calls:
            with pytest.raises(InvalidInputError):
                call()
        assert contents(storage) == {"a": b"x"}

    # -- ranges --------------------------------------------------------------------
    @few_examples
    @given(byte_range=byte_ranges)
    def test_a_range_is_a_slice(
        self, storage: Storage, byte_range: tuple[int | None, int | None]
    ) -> None:
        """Whatever the range, also past the end, and with the version of the object."""
        for key, data in (("full", bytes(range(25))), ("empty", b"")):
            etag = storage.put(key, data)
            result = storage.get(key, byte_range=byte_range)
            assert bytes(result.data) == slice_of(data, byte_range)
            assert result.etag == etag

    @pytest.mark.parametrize("byte_range", BAD_RANGES)
    def test_bad_ranges(self, storage: Storage, byte_range: Any) -> None:
        """Each is refused."""
        storage.put("a", b"0123456789")
        with pytest.raises(InvalidInputError):
            storage.get("a", byte_range=byte_range)

    # -- conditions ----------------------------------------------------------------
    def test_create(self, storage: Storage) -> None:
        """Works once."""
        etag = storage.put("a", b"first", if_absent=True)
        with pytest.raises(PreconditionFailedError, match="a"):
            storage.put("a", b"second", if_absent=True)
        result = storage.get("a")
        assert (bytes(result.data), result.etag) == (b"first", etag)
        storage.delete(["a"])
        storage.put("a", b"third", if_absent=True)
        assert bytes(storage.get("a").data) == b"third"

    def test_update(self, storage: Storage) -> None:
        """Each etag works once, whether from put, get or list; others never do."""
        etag = storage.put("a", b"0")
        seen = [etag]
        for i in range(1, 4):
            etag = storage.put("a", b"%d" % i, if_match=etag)
            assert etag not in seen
            for old in seen:
                with pytest.raises(PreconditionFailedError, match="a"):
                    storage.put("a", b"never", if_match=old)
            seen.append(etag)
        storage.put("a", b"4", if_match=storage.get("a").etag)
        [listed] = storage.list()
        storage.put("a", b"5", if_match=listed.etag)
        assert contents(storage) == {"a": b"5"}

    def test_update_of_a_missing_object(self, storage: Storage) -> None:
        """It fails, and creates nothing."""
        etag = storage.put("a", b"x")
        storage.delete(["a"])
        for key in ("a", "folder/b"):
            with pytest.raises(PreconditionFailedError):
                storage.put(key, b"y", if_match=etag)
        assert contents(storage) == {}

    def test_conditional_get(self, storage: Storage) -> None:
        """The current version is returned, any other is an error; also for ranges."""
        etag = storage.put("a", b"one")
        assert etag is not None
        assert bytes(storage.get("a", if_match=etag).data) == b"one"
        assert bytes(storage.get("a", if_match=etag.strip('"')).data) == b"one"
        assert bytes(storage.get("a", if_match=etag, byte_range=(1, 9)).data) == b"ne"
        storage.put("a", b"three")
        for byte_range in (None, (0, 2), (50, 60), (2, 2), (None, 2)):
            with pytest.raises(PreconditionFailedError, match="a"):
                storage.get("a", if_match=etag, byte_range=byte_range)

    def test_get_unmodified_since(self, storage: Storage) -> None:
        """The time of an object itself is late enough."""
        storage.put("a", b"x")
        modified = storage.get("a").last_modified
        assert modified is not None
        for since in (modified, modified + timedelta(days=1)):
            assert bytes(storage.get("a", if_unmodified_since=since).data) == b"x"
        with pytest.raises(PreconditionFailedError, match="a"):
            storage.get("a", if_unmodified_since=modified - timedelta(seconds=2))

    def test_get_if_changed(self, storage: Storage) -> None:
        """None means that nothing changed."""
        etag = storage.put("a", b"one")
        assert storage.get_if_changed("a", etag) is None
        for other in (None, '"other"'):
            result = storage.get_if_changed("a", other)
            assert result is not None
            assert (bytes(result.data), result.etag) == (b"one", etag)
        storage.put("a", b"three")
        result = storage.get_if_changed("a", etag)
        assert result is not None
        assert bytes(result.data) == b"three"
        with pytest.raises(ObjectNotFoundError):
            storage.get_if_changed("b", etag)

    # -- listing and deleting ------------------------------------------------------
    def test_list(self, storage: Storage) -> None:
        """Sorted by key; a folder is a folder, not a beginning of names."""
        wanted = sorted(["b", "a/x", "a-/x", "a b", "a/b/c", "ab", "é", "Z", "a/b-", "a/b.c"])
        assert list(storage.list()) == []
        for key in reversed(wanted):
            storage.put(key, key.encode())
        assert [m.key for m in storage.list()] == wanted
        assert [m.key for m in storage.list("a/")] == [k for k in wanted if k.startswith("a/")]
        assert [m.key for m in storage.list("a/b/")] == ["a/b/c"]
        for missing in ("x/", "b/", "a/x/", "a/b/c/d/"):
            assert list(storage.list(missing)) == []
        for meta in storage.list():
            result = storage.get(meta.key)
            assert (meta.size, meta.etag) == (len(result.data), result.etag)
            assert result.last_modified is not None
            assert abs(meta.last_modified - result.last_modified) <= timedelta(seconds=1)

    @pytest.mark.parametrize("prefix", ["a", "/", "//", "a//", "../", "a/../", "./"])
    def test_bad_folders(self, storage: Storage, prefix: str) -> None:
        """Only what ends with a slash, and is a key before it, is a folder."""
        with pytest.raises(InvalidInputError):
            list(storage.list(prefix))

    def test_list_objects(self, storage: Storage) -> None:
        """Any beginning of keys selects."""
        for key in ("a/b", "a/bc", "ab", "c"):
            storage.put(key, key.encode())
        assert storage.list_objects() == [("a/b", 3), ("a/bc", 4), ("ab", 2), ("c", 1)]
        assert storage.list_objects(prefix="a/b") == [("a/b", 3), ("a/bc", 4)]
        assert storage.list_objects(StorageSettings(), "a") == storage.list_objects()[:3]
        [meta] = storage.list_objects_metadata(prefix="c")
        assert (meta.key, meta.size_bytes) == ("c", 1)
        assert meta.created_at == meta.last_modified

    def test_delete(self, storage: Storage) -> None:
        """Any iterable; objects that do not exist, or any more, are ignored."""
        storage.delete([])
        storage.delete(["missing", "folder/missing"])
        for i in range(20):
            storage.put(f"d/{i}", b"x")
        storage.delete(f"d/{i}" for i in range(0, 30, 2))
        assert len(contents(storage, "d/")) == 10
        storage.delete([f"d/{i}" for i in range(20)])
        assert contents(storage) == {}

    @few_examples
    @given(
        steps=st.lists(
            st.one_of(
                st.tuples(st.just("put"), keys, st.binary(max_size=3)),
                st.tuples(st.just("create"), keys, st.binary(max_size=3)),
                st.tuples(st.just("delete"), keys, st.just(b"")),
                st.tuples(st.just("copy"), keys, st.just(b"")),
            ),
            max_size=12,
        )
    )
    def test_behaves_like_a_dict(
        self, storage: Storage, steps: list[tuple[str, str, bytes]]
    ) -> None:
        """Whatever is done in whatever order, as long as no key is a folder too."""
        root = uuid.uuid4().hex + "/"
        model: dict[str, bytes] = {}
        for action, name, data in steps:
            # an object and a folder of one name: a file system cannot have both
            key = root + name + ".o"
            if action == "put":
                storage.put(key, data)
                model[key] = data
            elif action == "create":
                try:
                    storage.put(key, data, if_absent=True)
                except PreconditionFailedError:
                    assert key in model
                else:
                    assert key not in model
                    model[key] = data
            elif action == "delete":
                storage.delete([key])
                model.pop(key, None)
            elif key in model:
                storage.copy(key, key + ".copy")
                model[key + ".copy"] = model[key]
        assert contents(storage, root) == model
        assert [m.key for m in storage.list(root)] == sorted(model)

    # -- copies --------------------------------------------------------------------
    def test_copy(self, storage: Storage) -> None:
        """The copy is whole, replaces what was there, and stays when the source goes."""
        storage.put("a", b"one")
        storage.put("b/c", b"old")
        storage.copy("a", "b/c")
        storage.delete(["a"])
        assert contents(storage) == {"b/c": b"one"}
        with pytest.raises(ObjectNotFoundError, match="a"):
            storage.copy("a", "d")
        assert contents(storage) == {"b/c": b"one"}

    def test_conditional_copy(self, storage: Storage) -> None:
        """The version that was asked for is copied, or nothing."""
        etag = storage.put("a", b"one")
        storage.copy("a", "b", if_match=etag)
        storage.put("a", b"three")
        with pytest.raises(PreconditionFailedError, match="a"):
            storage.copy("a", "c", if_match=etag)
        assert contents(storage) == {"a": b"three", "b": b"one"}
        with pytest.raises(ObjectNotFoundError):
            storage.copy("missing", "c", if_match=etag)

    # -- large objects -------------------------------------------------------------
    def test_large_objects(self, storage: Storage) -> None:
        """Written in one piece or in parts, read whole or in parallel parts."""
        block = 6 * 1024**2
        in_parts = storage.with_settings(
            StorageSettings(
                minimum_size_for_multipart_upload=block,
                concurrency=StorageConcurrencySettings(
                    max_concurrent_requests_for_object=3, ideal_concurrent_request_size=block
                ),
            )
        )
        data = bytes(range(251)) * (self.large // 251)
        for writer in (storage, in_parts):
            etag = writer.put("large", data)
            for reader in (storage, in_parts):
                result = reader.get("large", byte_range=(5, len(data) + 5))
                assert result.data == data[5:]
                assert result.etag == etag
                middle = reader.get(
                    "large", byte_range=(len(data) // 2, len(data) // 2 + 2 * block)
                )
                assert middle.data == data[len(data) // 2 :][: 2 * block]
            assert storage.get("large").data == data
        assert storage.put("large", data[:block], if_match=etag) is not None
        assert storage.get("large").data == data[:block]

    def test_readers_see_whole_objects(self, storage: Storage) -> None:
        """While an object is replaced, a reader gets the old one or the new one."""
        size = 500_000
        storage.put("a", b"0" * size)
        done = threading.Event()

        def write() -> None:
            for i in range(1, 20):
                storage.put("a", b"%d" % (i % 10) * size)
            done.set()

        def read() -> None:
            while not done.is_set():
                data = bytes(storage.get("a").data)
                assert len(data) == size
                assert data == data[:1] * size

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            writer = pool.submit(write)
            try:
                writer.result()
            finally:
                done.set()
            for reader in readers:
                reader.result()

    # -- concurrency ---------------------------------------------------------------
    def test_one_of_many_creates_wins(self, storage: Storage) -> None:
        """The others are told, and the winner's object is the one that stays."""
        outcomes = run_together(self.threads, lambda i: storage.put("a", b"%d" % i, if_absent=True))
        winners = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, str)]
        losers = [o for o in outcomes if isinstance(o, PreconditionFailedError)]
        assert (len(winners), len(losers)) == (1, self.threads - 1)
        assert bytes(storage.get("a").data) == b"%d" % winners[0]

    def test_one_of_many_updates_wins(self, storage: Storage) -> None:
        """The same for updates of one version."""
        etag = storage.put("a", b"old")
        outcomes = run_together(self.threads, lambda i: storage.put("a", b"%d" % i, if_match=etag))
        winners = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, str)]
        losers = [o for o in outcomes if isinstance(o, PreconditionFailedError)]
        assert (len(winners), len(losers)) == (1, self.threads - 1)
        assert bytes(storage.get("a").data) == b"%d" % winners[0]

    def test_no_update_is_lost(self, storage: Storage) -> None:
        """Threads count together, each by reading and conditionally writing."""
        rounds = 5
        storage.put("counter", b"0")

        def count(_: int) -> None:
            for _ in range(rounds):
                while True:
                    current = storage.get("counter")
                    following = b"%d" % (int(bytes(current.data)) + 1)
                    try:
                        storage.put("counter", following, if_match=current.etag)
                    except PreconditionFailedError:
                        continue
                    break

        assert run_together(4, count) == [None] * 4
        assert bytes(storage.get("counter").data) == b"%d" % (4 * rounds)

    # -- asynchronous calls --------------------------------------------------------
    async def test_async_calls_do_the_same(self, storage: Storage) -> None:
        """Results, ranges, conditions and errors."""
        etag = await storage.put_async("a", b"0123456789", if_absent=True)
        result = await storage.get_async("a")
        assert (bytes(result.data), result.etag) == (b"0123456789", etag)
        for byte_range in ((2, 5), (8, None), (None, 3), (5, 50), (50, 60), (4, 4)):
            part = await storage.get_async("a", byte_range=byte_range, if_match=etag)
            assert bytes(part.data) == slice_of(b"0123456789", byte_range)
        with pytest.raises(PreconditionFailedError):
            await storage.put_async("a", b"", if_absent=True)
        newer = await storage.put_async("a", b"new", if_match=etag)
        assert newer != etag
        with pytest.raises(PreconditionFailedError):
            await storage.put_async("a", b"", if_match=etag)
        with pytest.raises(PreconditionFailedError):
            await storage.get_async("a", if_match=etag)
        with pytest.raises(PreconditionFailedError):
            await storage.get_async("a", if_unmodified_since=datetime(2001, 1, 1, tzinfo=UTC))
        with pytest.raises(ObjectNotFoundError):
            await storage.get_async("b")
        with pytest.raises(InvalidInputError):
            await storage.get_async("../a")
        with pytest.raises(InvalidInputError):
            await storage.put_async("../a", b"")

    async def test_one_of_many_async_creates_wins(self, storage: Storage) -> None:
        """As with threads."""
        outcomes = await asyncio.gather(
            *(storage.put_async("a", b"%d" % i, if_absent=True) for i in range(self.threads)),
            return_exceptions=True,
        )
        losers = [o for o in outcomes if isinstance(o, PreconditionFailedError)]
        assert len(losers) == self.threads - 1

    async def test_many_async_calls_at_once(self, storage: Storage) -> None:
        """More than there are threads or connections by default."""
        names = [f"many/{i}" for i in range(100)]
        await asyncio.gather(*(storage.put_async(name, name.encode()) for name in names))
        results = await asyncio.gather(*(storage.get_async(name) for name in names))
        assert [bytes(result.data).decode() for result in results] == names

    # -- the storage itself --------------------------------------------------------
    def test_pickle(self, storage: Storage) -> None:
        """A copy is the same place, with the same settings."""
        storage.put("a", b"x")
        copied = pickle.loads(pickle.dumps(storage))
        assert copied.url == storage.url
        assert contents(copied) == {"a": b"x"}
        copied.put("b", b"y")
        assert contents(storage) == {"a": b"x", "b": b"y"}

    def test_with_settings(self, storage: Storage) -> None:
        """The same place."""
        other = storage.with_settings(StorageSettings(minimum_size_for_multipart_upload=1))
        assert other.url == storage.url
        other.put("a", b"x")
        assert contents(storage) == {"a": b"x"}
        assert isinstance(storage.default_settings(), StorageSettings)

    def test_secrets_are_not_shown(self, storage: Storage) -> None:
        """Not by ``repr``, url or errors, with the whole traceback."""
        shown = [repr(storage), str(storage), storage.url]
        etag = storage.put("a", b"x")
        storage.put("a", b"other")
        calls: list[Callable[[], Any]] = [
            lambda: storage.get("missing"),
            lambda: storage.put("a", b"", if_absent=True),
            lambda: storage.put("a", b"", if_match=etag),
            lambda: storage.get("../a"),
        ]
        for call in calls:
            with pytest.raises((StorageError, InvalidInputError)) as caught:
                call()
            shown += traceback.format_exception(caught.value)
        for secret in self.secrets:
            assert not any(secret in text for text in shown)
