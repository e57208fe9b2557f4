"""Types for annotations, under the names that the official client has for them."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["CommitMethod"]

#: How a session puts its changes on a branch: as a snapshot of their own, or as a part of the
#: newest one.
CommitMethod: TypeAlias = Literal["new_commit", "amend"]
