"""What references say of the bytes of a chunk, compared with what the chunk must have."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from zarr.core.metadata.v3 import ArrayV3Metadata

from icechunk.kerchunk.metadata import ArrayMetadata, quiet
from icechunk.kerchunk.tables import refuse

__all__ = ["check_lengths"]

#: Codecs that leave the number of bytes as it is.
_PLAIN: Final = frozenset({"bytes", "transpose"})


def check_lengths(
    array: ArrayMetadata, length: npt.NDArray[np.int64], key: Callable[[int], str]
) -> None:
    """Refuse chunks that cannot have so many bytes.

    Parameters
    ----------
    array : ArrayMetadata
    length : int64[n]
        Of its chunks, in bytes.
    key : callable
        Returns the key of a row, for errors.

    Raises
    ------
    InvalidInputError
        If the values are not compressed, and a chunk has too few bytes for them, or too many.
    """
    exact = _exact_length(array.document)
    if exact is None or not (wrong := length != exact).any():
        return
    row = int(wrong.argmax())
    refuse(key(row), f"has {length[row]} bytes, and each chunk of the array {exact}")


def _exact_length(document: dict[str, Any]) -> int | None:
    """Return the bytes of each chunk, None if they depend on the values."""
    names = {c if isinstance(c, str) else c["name"] for c in document["codecs"]}
    if not names <= _PLAIN:
        return None
    with quiet():
        dtype = ArrayV3Metadata.from_dict(dict(document)).data_type.to_native_dtype()
    chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
    return int(prod(chunk) * dtype.itemsize)
