"""One transaction: edits on top of a snapshot until they are committed or dropped."""

from icechunk.session.session import ChunkType, ForkSession, Session, SessionMode
from icechunk.session.terms import Committed

__all__ = ["ChunkType", "Committed", "ForkSession", "Session", "SessionMode"]
