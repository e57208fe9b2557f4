"""Virtual references in a session: chunks that are bytes of files elsewhere."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from icechunk.config import VirtualChunkSpec
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import normalize_path
from icechunk.session.keys import ChunkKey, writable_key
from icechunk.session.session import Session
from icechunk.virtual.specs import (
    checksum_parts,
    refs_from_arrays,
    refs_from_specs,
    scalar_place,
)

if TYPE_CHECKING:
    import numpy.typing as npt


class VirtualRefs:
    """Puts virtual references into a session.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def set_virtual_ref(
        self,
        key: str,
        location: str,
        *,
        offset: int,
        length: int,
        checksum: str | datetime | None = None,
        validate_container: bool = True,
    ) -> None:
        """Make a chunk refer to bytes of a foreign file.

        Parameters
        ----------
        key : str
            The key of the chunk, such as ``array/c/0/0``.
        location : str
            URL of the file, such as ``s3://bucket/path/file.nc``, or
            ``vcc://<container>/<path>``.
        offset, length : int
            Where the chunk is in the file, in bytes.
        checksum : str or datetime, optional
            The ETag that the file must have, or the time after which it must not have
            been modified, in whole seconds. Reading fails if it does not hold.
        validate_container : bool
            Whether to refuse a location that is in no container of the config.

        Raises
        ------
        InvalidInputError
            If the key is not a chunk's, the length is zero, or the location is in no
            container.
        NodeNotFoundError
            If there is no such array.
        """
        parsed = writable_key(key)
        if not isinstance(parsed, ChunkKey):
            raise InvalidInputError(
                f"invalid zarr key format: {key!r} is not the key of a chunk", ErrorKind.INVALID_KEY
            )
        etag, modified = checksum_parts(checksum)
        spec = VirtualChunkSpec(list(parsed.coordinate), location, offset, length, etag, modified)
        failed = self.set_virtual_refs(parsed.path, [spec], validate_containers=validate_container)
        if failed:
            self._session.virtual.validate(location)

    def set_virtual_refs(
        self,
        array_path: str,
        chunks: list[VirtualChunkSpec],
        *,
        validate_containers: bool = True,
    ) -> list[tuple[int, ...]] | None:
        """Make many chunks of one array refer to bytes of foreign files.

        Parameters
        ----------
        array_path : str
        chunks : list of VirtualChunkSpec
        validate_containers : bool
            Whether to leave out locations that are in no container of the config.

        Returns
        -------
        list of tuple of int, or None
            Coordinates of the chunks that were left out; None if all were set.
        """
        node, array = self._session.tree.require_array(normalize_path(array_path))
        refs = refs_from_specs(chunks, len(array.shape))
        return self._set_virtual(node.path, refs, validate_containers)

    def set_virtual_refs_arr(
        self,
        array_path: str,
        chunk_grid_shape: tuple[int, ...],
        locations: list[str],
        offsets: npt.NDArray[np.uint64],
        lengths: npt.NDArray[np.uint64],
        *,
        validate_containers: bool = True,
        arr_offset: tuple[int, ...] | None = None,
        checksum: datetime | str | None = None,
    ) -> list[tuple[int, ...]] | None:
        """Make a block of chunks refer to bytes of foreign files, from arrays.

        Parameters
        ----------
        array_path : str
        chunk_grid_shape : tuple of int
            Shape of the block; the other arguments are flat and in C order.
        locations : sequence of str
            URL of each chunk's file; empty where there is no chunk.
        offsets, lengths : array of uint64
            Where each chunk is in its file, in bytes.
        validate_containers : bool
            Whether to leave out locations that are in no container of the config.
        arr_offset : tuple of int, optional
            Coordinates of the block's first chunk. Default: zeros.
        checksum : str or datetime, optional
            ETag or time of last modification of all the files.

        Returns
        -------
        list of tuple of int, or None
            Coordinates of the chunks that were left out; None if all were set.
        """
        path = normalize_path(array_path)
        ndim = len(self._session.tree.require_array(path)[1].shape)
        grid = scalar_place(chunk_grid_shape, ndim, 1)
        start = None if arr_offset is None else scalar_place(arr_offset, ndim)
        etag, modified = checksum_parts(checksum)
        refs = refs_from_arrays(grid, locations, offsets, lengths, start, etag, modified)
        return self._set_virtual(path, refs, validate_containers)

    def _set_virtual(
        self, path: str, refs: ChunkRefs, validate: bool
    ) -> list[tuple[int, ...]] | None:
        failed: list[tuple[int, ...]] | None = None
        if validate and refs.locations is not None and refs.location is not None:
            bad = self._session.virtual.invalid_locations(refs.locations)
            if bad:
                outside = np.isin(refs.location, bad)
                failed = [tuple(c) for c in refs.coords[outside].tolist()]
                refs = refs.take(~outside)
        if len(refs):
            self._session.set_refs(path, refs)
        return failed or None
