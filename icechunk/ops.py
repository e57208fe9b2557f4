"""The operations log, under the name that the official client has for it."""

from icechunk.repository.ops import (
    GCSummary,
    RepoAvailability,
    RepoStatus,
)
from icechunk.repository.update_types import Update, UpdateType

__all__ = [
    "GCSummary",
    "RepoAvailability",
    "RepoStatus",
    "Update",
    "UpdateType",
]
