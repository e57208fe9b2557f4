"""Runs under both clients: documents of nodes, as they are given."""

from __future__ import annotations

import asyncio
from typing import Any

from zarr.core.buffer import cpu, default_buffer_prototype

import icechunk


def _storage(folder: str) -> Any:
    return icechunk.local_filesystem_storage(folder)


def write(folder: str, spec_version: int, documents: dict[str, str | None]) -> None:
    """Create a repository, and set or delete documents one after the other."""
    repository = icechunk.Repository.create(_storage(folder), spec_version=spec_version)
    _edit(repository, documents)


def edit(folder: str, documents: dict[str, str | None]) -> None:
    """Set or delete documents in a repository."""
    _edit(icechunk.Repository.open(_storage(folder)), documents)


def _edit(repository: Any, documents: dict[str, str | None]) -> None:
    session = repository.writable_session("main")

    async def put() -> None:
        for key, text in documents.items():
            # a second name for a key that is set before, and deleted then
            key = key.rstrip("!")
            if text is None:
                await session.store.delete(key)
            else:
                await session.store.set(key, cpu.Buffer.from_bytes(text.encode()))

    asyncio.run(put())
    session.commit("documents")


def read(folder: str) -> dict[str, str]:
    """Return all documents."""
    store = icechunk.Repository.open(_storage(folder)).readonly_session("main").store

    async def get() -> dict[str, str]:
        found = {}
        async for key in store.list():
            value = await store.get(key, default_buffer_prototype())
            assert value is not None
            found[key] = value.to_bytes().decode()
        return found

    return asyncio.run(get())
