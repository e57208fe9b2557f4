"""Runs under both clients: a repository whose small chunks share objects."""

from __future__ import annotations

from typing import Any

import zarr

import icechunk


def _open(folder: str) -> Any:
    return icechunk.Repository.open(icechunk.local_filesystem_storage(folder))


def read_packed(folder: str) -> Any:
    """Return what the array `a` holds."""
    store = _open(folder).readonly_session("main").store
    return zarr.open_array(store, path="a", mode="r")[:].tolist()


def write_more(folder: str) -> None:
    """Write a chunk beside those that are packed."""
    session = _open(folder).writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[:256] = -1
    session.commit("one more")


def collect(folder: str) -> Any:
    """Collect all garbage, and return the bytes of native chunks."""
    from datetime import UTC, datetime, timedelta

    later = datetime.now(UTC) + timedelta(seconds=1)
    repository = _open(folder)
    repository.garbage_collect(later)
    return repository.chunk_storage_stats().native_bytes
