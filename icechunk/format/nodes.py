"""What a snapshot says about nodes and manifests, as values."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ArrayInfo", "ManifestFile", "ManifestRef", "Node"]


@dataclass(frozen=True, slots=True)
class ManifestRef:
    """A manifest that holds references of an array, or of a part of it.

    Attributes
    ----------
    id : bytes
    extents : tuple of (int, int)
        Per dimension the chunk coordinates ``[from, to)``; empty: all of them.
    """

    id: bytes
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """What a snapshot says about an array, besides its ``zarr.json``.

    Attributes
    ----------
    shape : tuple of int
        In elements.
    num_chunks : tuple of int
        Chunks per dimension, below 2**32.
    dimension_names : tuple of (str or None), or None
    manifests : tuple of ManifestRef
        With disjoint extents; empty for an array without chunks.
    """

    shape: tuple[int, ...]
    num_chunks: tuple[int, ...]
    dimension_names: tuple[str | None, ...] | None
    manifests: tuple[ManifestRef, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A group or an array.

    Attributes
    ----------
    id : bytes
        8 bytes, stable for the life of the node, moves included.
    path : str
        Absolute, without a trailing slash.
    user_data : bytes
        The ``zarr.json``, byte for byte.
    array : ArrayInfo or None
        None for a group.
    """

    id: bytes
    path: str
    user_data: bytes
    array: ArrayInfo | None

    @property
    def is_array(self) -> bool:
        """Whether this is an array."""
        return self.array is not None


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A manifest that a snapshot refers to.

    Attributes
    ----------
    id : bytes
    size_bytes : int
        Of the stored object, envelope included.
    num_chunk_refs : int
    """

    id: bytes
    size_bytes: int
    num_chunk_refs: int
