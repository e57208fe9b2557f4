"""Where each object of a repository lives, as keys relative to its prefix.

Icechunk spec, "Storage layout". Folders are flat and names have no extension. `REFS`
and `CONFIG_KEY` belong to spec 1; spec 2 keeps both inside the object `REPO_KEY`.
"""

from __future__ import annotations

from typing import Final

from icechunk.format.ids import encode_id, new_object_id

REPO_KEY: Final = "repo"
SNAPSHOTS: Final = "snapshots/"
MANIFESTS: Final = "manifests/"
TRANSACTIONS: Final = "transactions/"
CHUNKS: Final = "chunks/"
OVERWRITTEN: Final = "overwritten/"
REFS: Final = "refs/"
CONFIG_KEY: Final = "config.yaml"

# the year 3000 in milliseconds: names count down to it, so the newest backup is listed first
_END_OF_TIME_MS: Final = 32_503_680_000_000


def snapshot_key(snapshot_id: bytes) -> str:
    """Return the key of a snapshot."""
    return SNAPSHOTS + encode_id(snapshot_id)


def manifest_key(manifest_id: bytes) -> str:
    """Return the key of a manifest."""
    return MANIFESTS + encode_id(manifest_id)


def transaction_key(snapshot_id: bytes) -> str:
    """Return the key of the transaction log of a snapshot."""
    return TRANSACTIONS + encode_id(snapshot_id)


def chunk_key(chunk_id: bytes) -> str:
    """Return the key of a native chunk."""
    return CHUNKS + encode_id(chunk_id)


def backup_name(now_ms: int, key: str = REPO_KEY) -> str:
    """Return a new name for a copy of an object that changes, without the folder.

    Parameters
    ----------
    now_ms : int
        Milliseconds since the epoch.
    key : str
        `REPO_KEY` or `CONFIG_KEY`.
    """
    return f"{key}.{max(_END_OF_TIME_MS - now_ms, 0):014d}.{encode_id(new_object_id())}"


def backup_key(name: str) -> str:
    """Return the key of the backup `name`; the repo info stores bare names."""
    return OVERWRITTEN + name
