"""Types for annotations, under the names that the official client has for them."""

from icechunk.commit.snapshot_info import CommitMethod

__all__ = ["CommitMethod"]
