"""Zarr's own store tests, on stores of this project."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.core.sync import _collect_aiterator, sync
from zarr.testing.store import StoreTests

from icechunk.errors import InvalidInputError, NodeNotFoundError, ReadOnlyError, SessionStateError
from icechunk.repository import Repository
from icechunk.session import Session
from icechunk.session.keys import ChunkKey, MetadataKey, V2Key, parse_key
from icechunk.storage import MemoryStorage
from icechunk.storage.base import Storage
from icechunk.store import IcechunkStore
from tests.storages import KINDS, new_storage

B = cpu.Buffer.from_bytes
PROTOTYPE = default_buffer_prototype()
GROUP = b'{"zarr_format": 3, "node_type": "group"}'


def array_document(shape: Iterable[int]) -> bytes:
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * len(list(shape))}},
    }
    return json.dumps(document).encode()


class ArraysFirst(IcechunkStore):
    """A store that makes what a key of Zarr's tests needs to exist.

    Those write chunks of arrays that are not there, and metadata documents that are none.
    The format has no place for either: the first gets its array before it is set, the
    second is replaced by that of a group, or left as it is. Chunks without bytes get one.
    """

    def _ready(self, key: str, value: Buffer) -> Buffer:
        try:
            parsed = parse_key(key)
        except InvalidInputError:
            return value
        if isinstance(parsed, MetadataKey) and not value.to_bytes().startswith(b"{"):
            node = self.session.tree.get(parsed.path)
            return B(node.user_data if node is not None else GROUP)
        if isinstance(parsed, ChunkKey) and not self._has_grid(parsed):
            path = parsed.path.strip("/")
            document = array_document([20] * len(parsed.coordinate))
            super().set_sync(f"{path}/zarr.json" if path else "zarr.json", B(document))
        return value if len(value) else B(b"0")

    def _has_grid(self, parsed: ChunkKey) -> bool:
        node = self.session.tree.get(parsed.path)
        return (
            node is not None
            and node.array is not None
            and len(node.array.shape) == len(parsed.coordinate)
        )

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, self._ready(key, value))

    def set_sync(self, key: str, value: Buffer) -> None:
        super().set_sync(key, self._ready(key, value))


class TestIcechunkStore(StoreTests[IcechunkStore, cpu.Buffer]):
    store_cls = ArraysFirst
    buffer_cls = cpu.Buffer

    @pytest.fixture(params=KINDS)
    def storage(self, request: pytest.FixtureRequest) -> Storage:
        storage = new_storage(request.param, request)
        Repository.create(storage)
        return storage

    @pytest.fixture
    def store_kwargs(self, storage: Storage) -> dict[str, Any]:
        return {"session": Repository.open(storage).writable_session("main")}

    @pytest.fixture
    async def store_not_open(self, store_kwargs: dict[str, Any]) -> IcechunkStore:
        store = self.store_cls(**store_kwargs)
        # that of a session is open from the beginning
        store._is_open = False
        return store

    @pytest.fixture
    def open_kwargs(self, storage: Storage) -> dict[str, Any]:
        return {"storage": storage, "mode": "a"}

    async def set(self, store: IcechunkStore, key: str, value: Buffer) -> None:
        """Put a value where the store will look for it; a name that is no key is a group."""
        session: Session = store.session
        try:
            parsed = parse_key(key)
        except InvalidInputError:
            parsed = MetadataKey(f"/{key}")
        assert not isinstance(parsed, V2Key)
        prepared = ArraysFirst(session)._ready(key, value).to_bytes()
        if isinstance(parsed, ChunkKey):
            session.chunks.set(parsed.path, parsed.coordinate, prepared)
        else:
            document = prepared if prepared.startswith(b"{") else GROUP
            session.set_metadata_document(parsed.path, document)

    async def get(self, store: IcechunkStore, key: str) -> Buffer:
        parsed = parse_key(key)
        assert not isinstance(parsed, V2Key)
        node = store.session.tree.require(parsed.path)
        if isinstance(parsed, MetadataKey):
            return B(node.user_data)
        data = store.session.chunks.get(node, parsed.coordinate)
        assert data is not None
        return B(bytes(data))

    # -- what every store has to say for itself --------------------------------------
    def test_store_repr(self, store: IcechunkStore) -> None:
        assert str(store) == (
            "<icechunk.IcechunkStore>\nread_only: False\n"
            f"snapshot_id: {store.snapshot_id}\nbranch: main\n"
        )

    def test_store_supports_writes(self, store: IcechunkStore) -> None:
        assert store.supports_writes
        assert not store.with_read_only(True).supports_writes

    def test_store_supports_listing(self, store: IcechunkStore) -> None:
        assert store.supports_listing

    # -- tests of Zarr that use keys which the format does not have ---------------------
    # It has <path>/zarr.json and <path>/c/0/0, nothing else, and no chunks without bytes: the
    # same tests on such keys and values.
    @pytest.mark.parametrize("key", ["c", "c/0", "foo/c/0", "foo/bar/c/1/2"])
    @pytest.mark.parametrize(
        ("data", "byte_range"),
        [
            (b"\x01\x02\x03\x04", None),
            (b"\x01\x02\x03\x04", RangeByteRequest(1, 4)),
            (b"\x01\x02\x03\x04", OffsetByteRequest(1)),
            (b"\x01\x02\x03\x04", SuffixByteRequest(1)),
        ],
    )
    async def test_get(
        self, store: IcechunkStore, key: str, data: bytes, byte_range: ByteRequest
    ) -> None:
        await super().test_get(store, key, data, byte_range)

    @pytest.mark.parametrize("key", ["c", "c/0", "foo/c/0", "foo/bar/c/1/2"])
    @pytest.mark.parametrize("data", [b"\x01\x02\x03\x04", b"\x01"])
    async def test_getsize(self, store: IcechunkStore, key: str, data: bytes) -> None:
        await super().test_getsize(store, key, data)

    @pytest.mark.parametrize("key", ["c", "c/0", "foo/c/0", "foo/bar/c/1/2"])
    @pytest.mark.parametrize("data", [b"\x01\x02\x03\x04", b"\x01"])
    async def test_set(self, store: IcechunkStore, key: str, data: bytes) -> None:
        await super().test_set(store, key, data)

    async def test_serializable_store(self, store: IcechunkStore) -> None:
        new_store: IcechunkStore = pickle.loads(pickle.dumps(store))
        assert new_store == store
        assert new_store.read_only == store.read_only
        await new_store.set("c/0", B(b"\x01\x02"))
        observed = await new_store.get("c/0", PROTOTYPE)
        assert observed is not None
        assert observed.to_bytes() == b"\x01\x02"

    async def test_with_read_only_store(self, open_kwargs: dict[str, Any]) -> None:
        store = await self.store_cls.open(**{**open_kwargs, "read_only": True})
        writer = store.with_read_only(read_only=False)
        assert store.read_only
        assert not writer._is_open
        assert not writer.read_only
        await writer.set("c/0", B(b"bar"))
        await writer.delete("c/0")
        for reader in (store, store.with_read_only(True), writer.with_read_only(True)):
            assert reader.read_only
            for write in (reader.set("c/0", B(b"bar")), reader.delete("c/0")):
                with pytest.raises(ReadOnlyError, match="opened in read-only mode"):
                    await write

    async def test_get_many(self, store: IcechunkStore) -> None:
        values = {f"c/{i}": str(i).encode() for i in range(10)}
        for key, value in values.items():
            await self.set(store, key, B(value))
        found = store._get_many([(key, PROTOTYPE, None) for key in values])
        observed = {key: value.to_bytes() async for key, value in found if value is not None}
        assert observed == values

    async def test_set_many(self, store: IcechunkStore) -> None:
        values = {"zarr.json": GROUP, "a/zarr.json": array_document((2,)), "a/c/1": b"1"}
        await store._set_many([(key, B(value)) for key, value in values.items()])
        for key, value in values.items():
            assert (await self.get(store, key)).to_bytes() == value

    async def test_getsize_prefix(self, store: IcechunkStore) -> None:
        await store._set_many([(f"foo/c/{i}", B(b"1234")) for i in range(3)])
        await store._set_many([(f"foo-bar/c/{i}", B(b"12")) for i in range(3)])
        assert await store.getsize_prefix("foo/c") == 12
        assert await store.getsize_prefix("foo") == 12 + await store.getsize("foo/zarr.json")
        assert await store.getsize_prefix("fo") == 0

    async def test_set_if_not_exists(self, store: IcechunkStore) -> None:
        await self.set(store, "c/0", B(b"0000"))
        for key, expected in (("c/0", b"0000"), ("c/1", b"1111")):
            await store.set_if_not_exists(key, B(b"1111"))
            result = await store.get(key, PROTOTYPE)
            assert result is not None
            assert result.to_bytes() == expected

    # -- tests that count keys: an array has a document ---------------------------------
    async def test_list_empty_path(self, store: IcechunkStore) -> None:
        keys = ["foo/bar/zarr.json", "foo/bar/c/1", "foo/baz/zarr.json", "foo/baz/c/0"]
        for key in keys:
            await store.set(key, B(array_document((2,))))
        for prefix in ("", "foo", "foo/", "foo/bar/", "foo/ba"):
            observed = await _collect_aiterator(store.list_prefix(prefix))
            folder = prefix.rstrip("/") + "/" if prefix else ""
            assert sorted(observed) == sorted(k for k in keys if k.startswith(folder))
        assert sorted(await _collect_aiterator(store.list())) == sorted(keys)

    async def test_list_dir(self, store: IcechunkStore) -> None:
        assert await _collect_aiterator(store.list_dir("")) == ()
        await store.set("foo/zarr.json", B(GROUP))
        await store.set("foo/bar/c/1/2", B(b"1"))
        await store.set("foo/baz/qux/zarr.json", B(GROUP))
        expected = {
            "": ["foo"],
            "foo": ["bar", "baz", "zarr.json"],
            "foo/bar": ["c", "zarr.json"],
            "foo/bar/c": ["1"],
            "foo/bar/c/1": ["2"],
            "foo/bar/c/1/2": [],
            "foo/baz": ["qux"],
            "fo": [],
        }
        for prefix, names in expected.items():
            for asked in (prefix, prefix + "/"):
                assert sorted(await _collect_aiterator(store.list_dir(asked))) == names

    # -- tests that write documents which are none and want their bytes back ------------
    async def test_get_bytes(self, store: IcechunkStore) -> None:
        await store.set("zarr.json", B(GROUP))
        observed = await store.get("zarr.json")
        assert observed is not None
        assert observed.to_bytes() == GROUP
        assert await store.get("nonexistent_key") is None

    def test_get_bytes_sync(self, store: IcechunkStore) -> None:
        store.set_sync("zarr.json", B(GROUP))
        observed = store.get_sync("zarr.json")
        assert observed is not None
        assert observed.to_bytes() == GROUP

    async def test_get_json(self, store: IcechunkStore) -> None:
        await self.test_get_bytes(store)

    def test_get_json_sync(self, store: IcechunkStore) -> None:
        self.test_get_bytes_sync(store)

    # -- tests of get_sync, set_sync and delete_sync on names that are no keys ----------
    @pytest.mark.parametrize("key", ["c/0", "zarr.json"])
    def test_get_sync(self, store: IcechunkStore, key: str) -> None:
        sync(self.set(store, key, B(GROUP)))
        result = store.get_sync(key)
        assert result is not None
        assert result.to_bytes() == GROUP

    @pytest.mark.parametrize("key", ["c/0", "zarr.json"])
    def test_set_sync(self, store: IcechunkStore, key: str) -> None:
        store.set_sync(key, B(GROUP))
        assert sync(self.get(store, key)).to_bytes() == GROUP

    @pytest.mark.parametrize("key", ["c/0", "zarr.json"])
    def test_delete_sync(self, store: IcechunkStore, key: str) -> None:
        store.set_sync(key, B(GROUP))
        store.delete_sync(key)
        assert store.get_sync(key) is None

    @pytest.mark.parametrize("direction", ["set_async_get_sync", "set_sync_get_async"])
    async def test_sync_async_set_get_parity(self, store: IcechunkStore, direction: str) -> None:
        if direction == "set_async_get_sync":
            await store.set("c/0", B(b"1234"))
            result = store.get_sync("c/0")
        else:
            store.set_sync("c/0", B(b"1234"))
            result = await store.get("c/0", PROTOTYPE)
        assert result is not None
        assert result.to_bytes() == b"1234"

    async def test_delete_sync_visible_to_async_get(self, store: IcechunkStore) -> None:
        await store.set("c/0", B(b"1234"))
        store.delete_sync("c/0")
        assert await store.get("c/0", PROTOTYPE) is None

    @pytest.mark.parametrize("key", ["c/0", "zarr.json"])
    @pytest.mark.parametrize(
        "byte_range",
        [
            None,
            RangeByteRequest(1, 4),
            RangeByteRequest(2, 2),
            RangeByteRequest(3, 5000),
            RangeByteRequest(1000, 2000),
            OffsetByteRequest(1),
            OffsetByteRequest(5000),
            SuffixByteRequest(1),
            SuffixByteRequest(5000),
        ],
    )
    async def test_get_sync_byte_range_parity(
        self, store: IcechunkStore, byte_range: ByteRequest | None, key: str
    ) -> None:
        await store.set("c/0", B(b"1234" * 200))
        whole = (await self.get(store, key)).to_bytes()
        match byte_range:
            case None:
                expected = whole
            case RangeByteRequest(start, end):
                expected = whole[start:end]
            case OffsetByteRequest(offset):
                expected = whole[offset:]
            case SuffixByteRequest(suffix):
                expected = whole[-suffix:]
        one = await store.get(key, PROTOTYPE, byte_range=byte_range)
        other = store.get_sync(key, byte_range=byte_range)
        assert one is not None
        assert other is not None
        assert one.to_bytes() == other.to_bytes() == expected


# -- what Zarr's tests do not ask ------------------------------------------------------
@pytest.fixture
def session() -> Session:
    return Repository.create(MemoryStorage()).writable_session("main")


@pytest.fixture
def store(session: Session) -> IcechunkStore:
    return session.store


@pytest.fixture
def array(store: IcechunkStore) -> zarr.Array[Any]:
    group = zarr.create_group(store)
    array = group.create_array("a/b", shape=(4, 4), chunks=(2, 2), dtype="i4")
    array[:] = np.arange(16).reshape(4, 4)
    return array


NO_KEYS = ["foo", "", "a/c/x", "a/zarr.jsonx", "zarr.json/", "a/b/c/-1/0", "a/b/c/1.0", "a/b/c/0/"]


@pytest.mark.parametrize("key", NO_KEYS)
async def test_names_that_are_no_keys(
    store: IcechunkStore, array: zarr.Array[Any], key: str
) -> None:
    """Nothing can be there, so reading finds nothing; writing is an error that says why."""
    assert await store.get(key, PROTOTYPE) is None
    assert store.get_sync(key) is None
    assert not await store.exists(key)
    with pytest.raises(FileNotFoundError):
        await store.getsize(key)
    with pytest.raises(InvalidInputError, match="invalid zarr key format"):
        await store.set(key, B(b"x"))
    await store.delete(key)
    assert (array[:] == np.arange(16).reshape(4, 4)).all()


@pytest.mark.parametrize("key", [".zgroup", "a/.zarray", "a/.zattrs", ".zmetadata"])
async def test_documents_of_format_2(store: IcechunkStore, key: str) -> None:
    assert await store.get(key, PROTOTYPE) is None
    assert not await store.exists(key)
    await store.delete(key)
    with pytest.raises(SessionStateError, match="zarr_format=3"):
        await store.set(key, B(b"{}"))


@pytest.mark.parametrize("listed", [False, True])
async def test_chunks_that_have_no_place(
    store: IcechunkStore, array: zarr.Array[Any], listed: bool
) -> None:
    """A listing turns the edits of a session into columns, which know the rank of an array."""
    if listed:
        assert len([key async for key in store.list()]) > 16 // 4
    for key, error in (
        ("nothing/c/0", NodeNotFoundError),
        ("c/0", InvalidInputError),  # of a group
        ("a/b/c/2/0", InvalidInputError),
        ("a/b/c", InvalidInputError),
        ("a/b/c/0", InvalidInputError),
        ("a/b/c/0/0/0", InvalidInputError),
        ("a/b/c/4294967296/0", InvalidInputError),
    ):
        assert await store.get(key, PROTOTYPE) is None
        assert store.get_sync(key) is None
        assert not await store.exists(key)
        with pytest.raises(FileNotFoundError):
            await store.getsize(key)
        await store.delete(key)
        for write in (store.set(key, B(b"x")), _lifted(store, key)):
            with pytest.raises(error):
                await write


async def _lifted(store: IcechunkStore, key: str) -> None:
    store.set_sync(key, B(b"x"))


async def test_a_tuple_is_no_byte_request(store: IcechunkStore, array: zarr.Array[Any]) -> None:
    """Zarr's suite wants a ValueError; `get_partial_values` takes tuples."""
    wanted: Any = (0, 2)
    with pytest.raises(ValueError, match="Unexpected byte_range, got"):
        await store.get("a/b/c/0/0", PROTOTYPE, byte_range=wanted)
    with pytest.raises(ValueError, match="Unexpected byte_range, got"):
        store.get_sync("a/b/c/0/0", byte_range=wanted)


@pytest.mark.parametrize("key", ["a/b/c/0/0", "a/b/zarr.json"])
@pytest.mark.parametrize("wanted", [RangeByteRequest(3, 1), OffsetByteRequest(-1)])
async def test_byte_requests_that_make_no_sense(
    store: IcechunkStore, array: zarr.Array[Any], key: str, wanted: ByteRequest
) -> None:
    with pytest.raises(InvalidInputError, match="is not a range of bytes"):
        await store.get(key, PROTOTYPE, byte_range=wanted)


async def test_a_value_must_be_a_buffer(store: IcechunkStore) -> None:
    value: Any = b"{}"
    with pytest.raises(TypeError, match="must be a Buffer"):
        await store.set("zarr.json", value)
    with pytest.raises(TypeError, match="must be a Buffer"):
        store.set_sync("zarr.json", value)


async def test_deleting_a_document_deletes_what_is_below(
    store: IcechunkStore, array: zarr.Array[Any]
) -> None:
    await store.delete("a/b/zarr.json")
    assert [key async for key in store.list_prefix("a/b")] == []
    await store.delete("zarr.json")
    assert [key async for key in store.list()] == []


async def test_delete_dir(store: IcechunkStore, array: zarr.Array[Any]) -> None:
    group = zarr.open_group(store)
    group.create_array("a/c", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
    group.create_array("b", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
    await store.delete_dir("a/b/c/1")
    assert (array[:] == np.vstack([np.arange(8).reshape(2, 4), np.zeros((2, 4))])).all()
    await store.delete_dir("a/b/c/")
    assert not array[:].any()
    assert await store.exists("a/b/zarr.json")
    await store.delete_dir("/a/")
    assert sorted([key async for key in store.list()]) == [
        "b/c/0",
        "b/c/1",
        "b/zarr.json",
        "zarr.json",
    ]
    await store.delete_dir("nothing")
    await store.delete_dir("")
    assert await store.is_empty("")


async def test_an_array_named_c(store: IcechunkStore) -> None:
    """The letter of chunk keys is a good name for a node too."""
    group = zarr.create_group(store)
    group.create_array("c", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
    group.create_array("c1/c/c", shape=(2,), chunks=(1,), dtype="i4")[:] = 2
    assert sorted([key async for key in store.list() if "/c/" in key]) == [
        "c/c/0",
        "c/c/1",
        "c1/c/c/c/0",
        "c1/c/c/c/1",
        "c1/c/c/zarr.json",
        "c1/c/zarr.json",
    ]
    assert (zarr.open_array(store, path="c")[:] == 1).all()
    assert (zarr.open_array(store, path="c1/c/c")[:] == 2).all()
    assert sorted([name async for name in store.list_dir("c")]) == ["c", "zarr.json"]


async def test_an_array_without_chunks(store: IcechunkStore) -> None:
    zarr.create_array(store, name="a", shape=(2,), chunks=(1,), dtype="i4")
    assert [name async for name in store.list_dir("a")] == ["zarr.json"]
    assert [name async for name in store.list_dir("a/c")] == []
    assert [key async for key in store.list_prefix("a/")] == ["a/zarr.json"]
    assert await store.is_empty("a/c")
    assert not await store.is_empty("a")


@pytest.mark.parametrize("committed", [False, True])
async def test_an_array_that_changes_its_rank(session: Session, committed: bool) -> None:
    """It is another array: chunks of the old one have no place in it."""
    store = session.store
    await store.set("a/zarr.json", B(array_document((2,))))
    await store.set("a/c/0", B(b"old"))
    if committed:
        session.commit("old")
        session = Repository.open(session._context.assets.storage).writable_session("main")
        store = session.store
    before = session.get_node_id("/a")
    await store.set("a/zarr.json", B(array_document((2, 2))))
    assert session.get_node_id("/a") != before
    assert [key async for key in store.list()] == ["a/zarr.json"]
    await store.set("a/c/0/0", B(b"new"))
    session.commit("new")
    assert sorted([key async for key in store.list()]) == ["a/c/0/0", "a/zarr.json"]


def test_equality(session: Session) -> None:
    store = session.store
    assert store == session.store
    assert store != store.with_read_only(True)
    assert store != object()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1, 1, 1, 1)])
def test_shapes(session: Session, shape: tuple[int, ...]) -> None:
    array = zarr.create_array(session.store, shape=shape, dtype="i2", chunks=(1,) * len(shape))
    array[...] = 7
    assert (zarr.open_array(session.store)[...] == np.full(shape, 7)).all()
    session.commit("shape")
    assert (zarr.open_array(session.store, mode="r")[...] == np.full(shape, 7)).all()
