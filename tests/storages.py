"""Storages to run one test on: each kind, empty and new every time."""

from __future__ import annotations

import uuid

import pytest

from icechunk.storage import LocalStorage, MemoryStorage
from icechunk.storage.base import Storage

KINDS = ("memory", "local", "s3")


def new_storage(kind: str, request: pytest.FixtureRequest) -> Storage:
    """Return a new place of a kind."""
    if kind == "memory":
        return MemoryStorage()
    if kind == "local":
        return LocalStorage(request.getfixturevalue("tmp_path") / uuid.uuid4().hex)
    storage: Storage = request.getfixturevalue("s3_server").storage()
    return storage
