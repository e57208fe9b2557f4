"""The Zarr store: keys in, calls on a session out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Any, Final, Self, TypeAlias

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.buffer import default_buffer_prototype

from icechunk.base.methods import async_twin, of_part
from icechunk.base.texts import labelled
from icechunk.base.zarr_internals import mark_open
from icechunk.config import RepositoryConfig
from icechunk.early.checkout import AccessMode, Checkout
from icechunk.early.config import StoreConfig
from icechunk.errors import ErrorKind, InvalidInputError, ReadOnlyError
from icechunk.format.snapshot import Node
from icechunk.repository.repository import Authorization
from icechunk.session import listing
from icechunk.session.array_chunks import ChunkBatch
from icechunk.session.keys import ChunkKey, MetadataKey, find_key, writable_key
from icechunk.session.overview import store_overview
from icechunk.session.session import Session
from icechunk.session.virtual_refs import VirtualRefs
from icechunk.storage import AnyStorage
from icechunk.storage.base import ByteRange, BytesLike, resolve_range

__all__ = ["IcechunkStore"]

#: The number of keys of a listing that are made in one go.
_KEYS_AT_A_TIME: Final = 10_000
_AnyRange: TypeAlias = ByteRequest | tuple[int | None, int | None] | None


class IcechunkStore(Store):
    """A Zarr store on a session.

    Get one from `Session.store`, or open repository, session and store in one call with
    `open_existing`, `create` or `open_or_create`.

    Parameters
    ----------
    session : Session
    read_only : bool, optional
        Default: as the session is.
    """

    def __init__(self, session: Session, read_only: bool | None = None) -> None:
        if not isinstance(session, Session):
            raise InvalidInputError(
                "an IcechunkStore is made from a session: use Session.store, or "
                "IcechunkStore.open_existing, create or open_or_create",
                ErrorKind.NOT_ALLOWED,
            )
        self._checkout = Checkout(session)
        super().__init__(read_only=bool(read_only))
        mark_open(self, True)

    @property
    def _read_only(self) -> bool:
        # stores that wrap others look at it
        return self._asked_read_only or self._session.read_only

    @_read_only.setter
    def _read_only(self, read_only: bool) -> None:
        self._asked_read_only = read_only

    @property
    def _session(self) -> Session:
        return self._checkout.session

    # -- opening the repository as well ----------------------------------------------
    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Open or create a store; Zarr calls this, users call `open_or_create`."""
        return await asyncio.to_thread(lambda: cls.open_or_create(*args, **kwargs))

    @classmethod
    def open_or_create(
        cls,
        storage: AnyStorage | None = None,
        mode: AccessMode = "r",
        config: StoreConfig | RepositoryConfig | None = None,
        *,
        authorize_virtual_chunk_access: Authorization | None = None,
        read_only: bool | None = None,
    ) -> Self:
        """Open a store on the branch ``main``, or create a repository first.

        Parameters
        ----------
        storage : StorageConfig, Storage, str or path
        mode : {"r", "r+", "a", "w", "w-"}
            Read an existing repository; write to an existing one; write, creating it if
            necessary; the same, starting empty; create it or fail.
        config : StoreConfig or RepositoryConfig, optional
        authorize_virtual_chunk_access : mapping, optional
            See `Repository.open`.
        read_only : bool, optional
            Zarr's name for the choice between the modes ``"r"`` and ``"a"``.

        Raises
        ------
        InvalidInputError
            If there is no storage, or the mode is unknown.
        RepositoryNotFoundError
            If there is no repository, in the modes ``"r"`` and ``"r+"``.
        RepositoryExistsError
            If there is one, in the mode ``"w-"``.
        """
        if read_only is not None:
            mode = "r" if read_only else "a"
        access = authorize_virtual_chunk_access
        return cls._of(Checkout.open_or_create(storage, mode, config, access))

    @classmethod
    def open_existing(
        cls,
        storage: AnyStorage,
        mode: AccessMode = "r",
        config: StoreConfig | RepositoryConfig | None = None,
        *,
        authorize_virtual_chunk_access: Authorization | None = None,
    ) -> Self:
        """Open a store on the branch ``main`` of an existing repository.

        Parameters are those of `open_or_create`. In every mode but ``"r"`` the store can
        be written.

        Raises
        ------
        RepositoryNotFoundError
            If there is none.
        """
        access = authorize_virtual_chunk_access
        return cls._of(Checkout.open_existing(storage, mode, config, access))

    @classmethod
    def create(
        cls,
        storage: AnyStorage,
        mode: AccessMode = "w",
        config: StoreConfig | RepositoryConfig | None = None,
        *,
        authorize_virtual_chunk_access: Authorization | None = None,
    ) -> Self:
        """Create a repository and open a store on it.

        Parameters are those of `open_or_create`.

        Raises
        ------
        RepositoryExistsError
            If there is a repository.
        """
        access = authorize_virtual_chunk_access
        return cls._of(Checkout.create(storage, mode, config, access))

    @classmethod
    def _of(cls, checkout: Checkout, *, is_open: bool = True) -> Self:
        store = cls(checkout.session, checkout.read_only)
        store._checkout = checkout
        mark_open(store, is_open)
        return store

    def with_mode(self, mode: AccessMode) -> Self:
        """Return a store on the same version with another mode.

        From a store that reads, any mode but ``"r"`` gives one that writes to the branch
        that is checked out.
        """
        return self._of(self._checkout.with_mode(mode), is_open=False)

    # -- properties --------------------------------------------------------------
    @property
    def session(self) -> Session:
        """The session that the store reads and writes."""
        return self._session

    @property
    def read_only(self) -> bool:
        """Whether the store refuses writes, on its own account or that of its session."""
        return self._read_only

    @property
    def supports_writes(self) -> bool:
        """Whether the store takes writes."""
        return not self.read_only

    @property
    def supports_deletes(self) -> bool:
        """Whether the store takes deletes."""
        return not self.read_only

    @property
    def supports_listing(self) -> bool:
        """Always true."""
        return True

    @property
    def supports_partial_writes(self) -> Any:
        """Always false: a chunk is written as a whole."""
        return False

    @property
    def supports_consolidated_metadata(self) -> bool:
        """Always false: a snapshot is consolidated metadata already."""
        return False

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, IcechunkStore)
            and self._session == other._session
            and self.read_only == other.read_only
        )

    def __repr__(self) -> str:
        lines = {
            "read_only": str(self.read_only),
            "snapshot_id": self._session.snapshot_id,
            "branch": str(self._session.branch),
        }
        return labelled("icechunk.IcechunkStore", lines)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return store_overview(self._session)

    def with_read_only(self, read_only: bool = False) -> IcechunkStore:
        """Return a store on the same version that refuses writes, or allows them.

        A store that belongs to a read-only session stays read-only.
        """
        if self._checkout.repository is not None:
            return self.with_mode("r" if read_only else "a")
        store = type(self)(self._session, read_only=read_only)
        # Zarr opens it
        mark_open(store, False)
        return store

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(
                # the first words are Zarr's, whose test suite looks for them
                "store was opened in read-only mode and does not support writing; open it with "
                "mode 'a' or 'r+', or take the store of Repository.writable_session(branch)",
                ErrorKind.READ_ONLY_STORE,
            )

    # -- reading -------------------------------------------------------------------
    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: _AnyRange = None,
    ) -> Buffer | None:
        """Return the value of a key, or None if it has none.

        Parameters
        ----------
        key : str
            A key that Zarr v3 does not use has no value.
        prototype : BufferPrototype, optional
            Kind of buffer to return. Default: that of Zarr.
        byte_range : ByteRequest, optional
            A range, an offset, or a suffix.

        Raises
        ------
        InvalidInputError
            If the range is negative or ends before it starts.
        StorageError
            If the bytes of a chunk are missing or were changed.
        """
        wanted = _byte_range(byte_range)
        found = await self._lookup_async(key)
        if isinstance(found, tuple):
            data = await self._session.chunks.get_async(*found, wanted)
        else:
            data = _cut(listing.readable(found, key), wanted)
        return _buffer(data, prototype)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: _AnyRange = None,
    ) -> Buffer | None:
        """Return the value of a key as `get` does, without an event loop."""
        wanted = _byte_range(byte_range)
        found = listing.find(self._session, key)
        if isinstance(found, tuple):
            data = self._session.chunks.get(*found, wanted)
        else:
            data = _cut(listing.readable(found, key), wanted)
        return _buffer(data, prototype)

    async def _lookup_async(self, key: str) -> bytes | tuple[Node, tuple[int, ...]] | None:
        await self._loaded()
        return listing.find(self._session, key)

    async def _loaded(self) -> None:
        if not self._session.is_loaded:
            await asyncio.to_thread(self._session.load)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, _AnyRange]],
    ) -> list[Buffer | None]:
        """Return many values, or ranges of them, in the order asked for.

        Ranges may also be tuples: ``(start, end)``, ``(start, None)`` for all from a
        position on, ``(None, n)`` for the first `n` bytes.
        """
        count = self._session.effective_config.get_partial_values_concurrency
        limit = asyncio.Semaphore(max(count, 1))

        async def one(key: str, wanted: _AnyRange) -> Buffer | None:
            request = _from_tuple(wanted) if isinstance(wanted, tuple) else wanted
            async with limit:
                return await self.get(key, prototype, request)

        return list(await asyncio.gather(*(one(key, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether a key has a value."""
        found = await self._lookup_async(key)
        if isinstance(found, tuple):
            return await self._session.chunks.find_async(*found) is not None
        return found is not None

    async def getsize(self, key: str) -> int:
        """Return the size of a value in bytes, without reading it.

        Raises
        ------
        FileNotFoundError
            If the key has no value.
        """
        found = await self._lookup_async(key)
        if isinstance(found, tuple):
            ref = await self._session.chunks.find_async(*found)
            size = ref.length if ref is not None else None
        else:
            size = len(found) if found is not None else None
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def getsize_prefix(self, prefix: str) -> int:
        """Return the size in bytes of all values below a prefix, without reading them."""
        return await asyncio.to_thread(listing.size_below, self._session, prefix)

    # -- writing -------------------------------------------------------------------
    async def set(self, key: str, value: Buffer) -> None:
        """Set the value of a key.

        Raises
        ------
        ReadOnlyError
            If store or session are read-only.
        NodeNotFoundError, InvalidInputError
            If it is a chunk of no array, or lies outside the grid, or if the key is none that
            Zarr v3 uses.
        """
        parsed, data = self._prepare_set(key, value)
        if isinstance(parsed, ChunkKey):
            await self._session.chunks.set_async(parsed.path, parsed.coordinate, data)
        else:
            await self._loaded()
            # without a pause: programs set a document and its chunks at the same time
            self._session.set_metadata_document(parsed.path, bytes(data))

    def set_sync(self, key: str, value: Buffer) -> None:
        """Set the value of a key as `set` does, without an event loop."""
        parsed, data = self._prepare_set(key, value)
        if isinstance(parsed, ChunkKey):
            self._session.chunks.set(parsed.path, parsed.coordinate, data)
        else:
            self._session.set_metadata_document(parsed.path, bytes(data))

    def _prepare_set(self, key: str, value: Buffer) -> tuple[MetadataKey | ChunkKey, BytesLike]:
        self._check_writable()
        if not isinstance(value, Buffer):
            raise TypeError(
                f"IcechunkStore.set(): `value` must be a Buffer instance. "
                f"Got an instance of {type(value)} instead."
            )
        data: Any = value.as_numpy_array()
        return writable_key(key), memoryview(data).cast("B")

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Set the value of a key, unless it has one already."""
        self._check_writable()
        if not await self.exists(key):
            await self.set(key, value)

    async def set_partial_values(
        self, key_start_values: Iterable[tuple[str, int, BytesLike]]
    ) -> None:
        """Store bytes within values, from a position on.

        `supports_partial_writes` is false all the same: each value is read and written as a
        whole, so this saves nothing.

        Parameters
        ----------
        key_start_values : iterable of (str, int, bytes-like)
            A key may occur many times, with ranges that do not overlap. One that has no value
            starts from an empty one.

        Raises
        ------
        InvalidInputError
            If a position is negative or past the end of the value. Nothing is stored then.
        """
        self._check_writable()
        kind = default_buffer_prototype().buffer
        values: dict[str, bytearray] = {}
        for key, start, data in key_start_values:
            if key not in values:
                found = await self.get(key)
                values[key] = bytearray(found.to_bytes() if found is not None else b"")
            if not 0 <= start <= len(values[key]):
                raise InvalidInputError(
                    f"cannot store bytes of {key!r} from position {start} on: its value has "
                    f"{len(values[key])} bytes",
                    ErrorKind.INVALID_BYTE_RANGE,
                )
            values[key][start : start + len(data)] = data
        for key, value in values.items():
            await self.set(key, kind.from_bytes(bytes(value)))

    async def delete(self, key: str) -> None:
        """Delete a key. One without a value is ignored.

        Deleting the metadata of a group deletes everything below it. An array is deleted alone,
        with its chunks; nodes below it, if any, stay.
        """
        await asyncio.to_thread(self.delete_sync, key)

    def delete_sync(self, key: str) -> None:
        """Delete a key as `delete` does, without an event loop."""
        self._check_writable()
        parsed = find_key(key)
        if isinstance(parsed, ChunkKey):
            self._session.chunks.delete(parsed.path, parsed.coordinate)
        elif isinstance(parsed, MetadataKey):
            self._session.delete_nodes(parsed.path, below=False)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all keys below a prefix."""
        self._check_writable()
        await asyncio.to_thread(listing.delete_below, self._session, prefix)

    async def clear(self) -> None:
        """Delete all groups and arrays from the session. History stays as it is."""
        await asyncio.to_thread(self.sync_clear)

    def sync_clear(self) -> None:
        """Delete all groups and arrays from the session. History stays as it is."""
        self._check_writable()
        self._session.delete_nodes("/")

    # -- virtual chunks ----------------------------------------------------------------
    @property
    def _virtual_refs(self) -> VirtualRefs:
        self._check_writable()
        return VirtualRefs(self._session)

    set_virtual_ref = of_part("_virtual_refs", VirtualRefs.set_virtual_ref)
    set_virtual_refs = of_part("_virtual_refs", VirtualRefs.set_virtual_refs)
    set_virtual_refs_arr = of_part("_virtual_refs", VirtualRefs.set_virtual_refs_arr)

    def array_chunk_iterator(
        self, array_path: str, batch_size: int = 100_000
    ) -> AsyncIterator[ChunkBatch]:
        """Yield the references of an array, as `icechunk.Session.chunk_batches` does."""
        return self._session.chunk_batches(array_path, batch_size)

    # -- listing -----------------------------------------------------------------------
    async def list(self) -> AsyncIterator[str]:
        """Yield all keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield all keys below a folder, which may be given with or without a final ``/``."""
        keys = listing.keys_below(self._session, prefix)
        # the next item of a generator is made where it is requested: each batch in a thread
        while batch := await asyncio.to_thread(lambda: list(islice(keys, _KEYS_AT_A_TIME))):
            for key in batch:
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a prefix, of keys and of folders."""
        for name in await asyncio.to_thread(listing.names_in, self._session, prefix):
            yield name

    async def is_empty(self, prefix: str) -> bool:
        """Whether there is no key below a prefix."""
        return not await asyncio.to_thread(
            lambda: any(True for _ in listing.below(self._session, prefix))
        )

    # -- versions: the early API ---------------------------------------------------------
    @property
    def snapshot_id(self) -> str:
        """Id of the snapshot that the store is based on."""
        return self._checkout.snapshot_id

    @property
    def branch(self) -> str | None:
        """The branch that is checked out; None if a tag or snapshot is."""
        return self._checkout.branch

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether there are changes that were not committed."""
        return self._checkout.has_uncommitted_changes

    async def empty(self) -> bool:
        """Whether there are neither groups nor arrays."""
        await self._loaded()
        return not self._session.tree.nodes()

    checkout = of_part("_checkout", Checkout.checkout)
    commit = of_part("_checkout", Checkout.commit)
    distributed_commit = of_part("_checkout", Checkout.distributed_commit)
    change_set_bytes = of_part("_checkout", Checkout.change_set_bytes)
    reset = of_part("_checkout", Checkout.reset)
    new_branch = of_part("_checkout", Checkout.new_branch)
    tag = of_part("_checkout", Checkout.tag)
    ancestry = of_part("_checkout", Checkout.ancestry)
    async_ancestry = of_part("_checkout", Checkout.async_ancestry)

    async_checkout = async_twin(checkout)
    async_commit = async_twin(commit)
    async_distributed_commit = async_twin(distributed_commit)
    async_reset = async_twin(reset)
    async_new_branch = async_twin(new_branch)
    async_tag = async_twin(tag)
    set_virtual_ref_async = async_twin(set_virtual_ref)
    async_set_virtual_ref = set_virtual_ref_async
    set_virtual_refs_async = async_twin(set_virtual_refs)
    set_virtual_refs_arr_async = async_twin(set_virtual_refs_arr)


def _byte_range(request: _AnyRange) -> ByteRange | None:
    match request:
        case None:
            return None
        case RangeByteRequest(start, end):
            return (start, end)
        case OffsetByteRequest(offset):
            return (offset, None)
        case SuffixByteRequest(suffix):
            return (None, suffix)
    # the wording is Zarr's, whose test suite looks for it
    raise ValueError(f"Unexpected byte_range, got {request}.")


def _from_tuple(wanted: tuple[int | None, int | None]) -> ByteRequest | None:
    start, end = wanted
    if end is not None:
        return RangeByteRequest(start or 0, end)
    return OffsetByteRequest(start) if start is not None else None


def _cut(data: bytes | None, wanted: ByteRange | None) -> bytes | None:
    if data is None or wanted is None:
        return data
    start, end = resolve_range(wanted, len(data))
    return data[start:end]


def _buffer(data: BytesLike | None, prototype: BufferPrototype | None) -> Buffer | None:
    if data is None:
        return None
    kind = prototype if prototype is not None else default_buffer_prototype()
    return kind.buffer.from_bytes(data)
