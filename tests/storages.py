"""Storages to run one test on: each kind, empty and new every time."""

from __future__ import annotations

import uuid
from pathlib import Path

from icechunk.storage.local import LocalStorage
from icechunk.storage.memory import MemoryStorage
from icechunk.storage.base import Storage

KINDS = ("memory", "local")


def new_storage(kind: str, folder: Path) -> Storage:
    """Return a new place of a kind; `folder` is where a local one may be."""
    if kind == "memory":
        return MemoryStorage()
    return LocalStorage(folder / uuid.uuid4().hex)
