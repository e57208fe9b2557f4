"""A Zarr v3 codec for chunks that are GRIB messages, as kerchunk's scanner refers to them.

kerchunk's own class of that kind cannot be made from metadata; the bytes and options are
those of its codec ``grib`` for Zarr v2.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["NUMCODEC", "GribCodec"]

#: Name of the codec among those of numcodecs.
NUMCODEC: Final = "grib"
#: eccodes is not safe to use from several threads.
_LOCK: Final = threading.RLock()


@dataclass(frozen=True)
class GribCodec(ArrayBytesCodec):
    """Decodes the values, or the coordinates, of one GRIB message. It does not encode.

    Parameters
    ----------
    var : str
        ``"latitude"`` and ``"longitude"`` mean the coordinates of the values.
    dtype : str, optional
        Of what is decoded. Default: ``"float64"`` for coordinates, else ``"float32"``.
    """

    var: str
    dtype: str | None = None

    name: ClassVar[str] = "icechunk.kerchunk.grib"
    is_fixed_size = False

    @classmethod
    def from_numcodec(cls, config: Mapping[str, Any]) -> GribCodec:
        """Return the codec for the options of the one of Zarr v2."""
        dtype = config.get("dtype")
        return cls(str(config.get("var")), None if dtype is None else np.dtype(dtype).str)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GribCodec:
        """Return the codec that metadata describes."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """Return the form that metadata has."""
        options = {"var": self.var, "dtype": self.dtype}
        return {
            "name": self.name,
            "configuration": {k: v for k, v in options.items() if v is not None},
        }

    def _values(self, message: bytes) -> npt.NDArray[Any]:
        import eccodes

        coordinate = self.var in ("latitude", "longitude")
        with _LOCK:
            handle = eccodes.codes_new_from_message(message)
            try:
                field = self.var + "s" if coordinate else "values"
                values: Any = eccodes.codes_get_array(handle, field)
                missing = eccodes.codes_get_string(handle, "missingValue")
            finally:
                eccodes.codes_release(handle)
        if not coordinate and missing:
            values[values == float(missing)] = np.nan
        made: npt.NDArray[Any] = values.astype(
            self.dtype or ("float64" if coordinate else "float32"), copy=False
        )
        return made

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        values: Any = await asyncio.to_thread(self._values, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(values.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise NotImplementedError("GRIB messages are read, not written")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not known before decoding."""
        raise NotImplementedError("the size of a GRIB message follows from its values")


register_codec(GribCodec.name, GribCodec)
