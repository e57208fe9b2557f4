"""Virtual chunks: where they may be read from, who allowed it, and how they are read."""

from icechunk.config.object_stores import VirtualChunkContainer, VirtualChunkSpec

__all__ = ["VirtualChunkContainer", "VirtualChunkSpec"]
