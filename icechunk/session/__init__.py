"""One transaction: edits on top of a snapshot until they are committed or dropped."""

from icechunk.session.committer import Committed
from icechunk.session.session import ChunkType, ForkSession, Session, SessionMode

__all__ = ["ChunkType", "Committed", "ForkSession", "Session", "SessionMode"]
