"""Virtual chunks: where they may be read from, who allowed it, and how they are read."""

from icechunk.config import VirtualChunkContainer, VirtualChunkSpec

__all__ = ["VirtualChunkContainer", "VirtualChunkSpec"]
