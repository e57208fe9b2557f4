"""A Zarr v3 codec for chunks that are GRIB messages, as kerchunk's scanner references them.

kerchunk's own class cannot be created from metadata. Bytes and options are those of its
Zarr v2 codec ``grib``. The result differs where kerchunk's is wrong: a value is missing if
the message says so, not if it equals ``missingValue``, and points stored along meridians
go where they belong.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from zarr.abc.buffer import Buffer, NDBuffer
from zarr.abc.codec import ArrayBytesCodec
from zarr.registry import register_codec

from icechunk.base.zarr_internals import ArraySpec
from icechunk.errors import InvalidInputError
from icechunk.kerchunk.grib_sections import field_message

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["NUMCODEC", "GribCodec", "GridLines", "grib_handle", "grid_lines", "grid_points"]

#: Name of the codec in numcodecs.
NUMCODEC: Final = "grib"
#: No Gaussian grid has more parallels between pole and equator.
_MOST_PARALLELS: Final = 1 << 14
#: Grids on which ecCodes computes points in the order of the message if every other row is
#: scanned backwards. On all others it does not turn these rows.
_TURNING: Final = ("lambert", "mercator", "polar_stereographic")
#: ecCodes is not thread-safe.
_ECCODES: Final = threading.RLock()


@dataclass(frozen=True)
class GribCodec(ArrayBytesCodec):
    """A codec that decodes the values, or the coordinates, of one GRIB field. It cannot encode.

    A chunk is a message of edition 1 or 2, whose first field is decoded, or the beginning of
    a message up to the end of a field, which is the one decoded.

    Parameters
    ----------
    var : str
        ``"latitude"`` and ``"longitude"`` select the coordinates of the values.
    dtype : str, optional
        Type of the values. Default: ``"float64"`` for coordinates, else ``"float32"``.
    """

    var: str
    dtype: str | None = None

    name: ClassVar[str] = "icechunk.kerchunk.grib"
    is_fixed_size = False

    @classmethod
    def from_numcodec(cls, config: Mapping[str, Any]) -> GribCodec:
        """Return the codec for the options of the Zarr v2 codec."""
        dtype = config.get("dtype")
        return cls(str(config.get("var")), None if dtype is None else np.dtype(dtype).str)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GribCodec:
        """Return the codec that metadata describes."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """Return the codec as metadata describes it."""
        options = {"var": self.var, "dtype": self.dtype}
        return {
            "name": self.name,
            "configuration": {k: v for k, v in options.items() if v is not None},
        }

    def decode_field(self, data: bytes, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Decode a chunk.

        Parameters
        ----------
        data : bytes
        shape : tuple of int
            Shape of the chunk. The last of two dimensions runs along parallels (index i).

        Raises
        ------
        InvalidInputError
            If `data` is not a GRIB message, or has another number of values.
        """
        import eccodes

        message = field_message(data)
        coordinate = self.var in ("latitude", "longitude")
        try:
            with grib_handle(message) as handle:
                if coordinate:
                    values: Any = grid_points(handle)[self.var == "longitude"]
                else:
                    # NaN cannot be mistaken for a value
                    eccodes.codes_set(handle, "missingValue", float("nan"))
                    values = eccodes.codes_get_array(handle, "values")
                # in fields without rows, all values lie along one dimension
                rows = len(shape) > 1 and shape[-1] != values.size
                lines = grid_lines(handle) if rows else None
        except eccodes.CodesInternalError as exc:
            raise InvalidInputError(f"ecCodes cannot decode a GRIB message: {exc}") from exc
        if values.size != np.prod(shape, dtype=np.int64):
            raise InvalidInputError(
                f"the GRIB message has {values.size} values, but its chunk has the shape {shape}"
            )
        if lines is not None:
            points = lines.shape
            if shape[-2:] != points:
                raise InvalidInputError(
                    f"the GRIB message has {points} points, but its chunk has the shape {shape}"
                )
            values = lines.points_in_rows(values) if coordinate else lines.in_rows(values)
        dtype = self.dtype or ("float64" if coordinate else "float32")
        return np.asarray(values.reshape(shape), dtype=dtype)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        values: Any = await asyncio.to_thread(
            self.decode_field, chunk_data.to_bytes(), chunk_spec.shape
        )
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(values)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise NotImplementedError("GRIB messages are read, not written")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Refuse: the size is unknown before decoding."""
        raise NotImplementedError("the size of a GRIB message follows from its values")


@contextmanager
def grib_handle(message: bytes) -> Iterator[Any]:
    """Open a message in ecCodes, which only one thread may use at a time.

    Yields
    ------
    int
        The handle of the message.
    """
    import eccodes

    with _ECCODES:
        handle = eccodes.codes_new_from_message(message)
        try:
            yield handle
        finally:
            eccodes.codes_release(handle)


def grid_points(handle: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the latitudes and longitudes of the values of a message, in degrees.

    Raises
    ------
    InvalidInputError
        If ecCodes orders coordinates differently from values, as it does for some projected
        grids, against its own documentation.
    eccodes.KeyValueNotFoundError
        If there are no coordinates, as for spherical harmonics.
    """
    import eccodes

    count = eccodes.codes_get_size(handle, "values")
    _check_grid(handle, count)
    copy = eccodes.codes_clone(handle)
    try:
        # rising values reveal the order
        for key, value in {
            "packingType": "grid_simple",
            "bitmapPresent": 0,
            "bitsPerValue": 24,
        }.items():
            eccodes.codes_set(copy, key, value)
        eccodes.codes_set_values(copy, np.arange(float(count)))
        table = eccodes.codes_get_array(copy, "latLonValues", float).reshape(-1, 3)
    finally:
        eccodes.codes_release(copy)
    _check_latitudes(handle, table[:, 0])
    if len(table) == count and not (np.diff(table[:, 2]) < 0).any():
        return table[:, 0].copy(), table[:, 1].copy()
    lines = grid_lines(handle)
    # ecCodes starts at the first point, and goes along rows and northwards. Where values go
    # elsewhere, it takes the first point for another corner than the standard does
    if not (
        lines is not None
        and lines.is_northeast
        and lines.ni * lines.nj == count
        and np.array_equal(table[:, 2], lines.numbers())
    ):
        kind = eccodes.codes_get(handle, "gridType", str)
        raise InvalidInputError(
            f"ecCodes does not say where points lie in a grid {kind!r} that is scanned in this way"
        )
    found = np.empty((2, count))
    found[:, table[:, 2].astype(np.intp)] = table[:, :2].T
    return found[0], found[1]


def _check_grid(handle: Any, count: int) -> None:
    """Check the description of a Gaussian or reduced grid.

    ecCodes computes coordinates without this check: if the description is damaged, it ends the
    process, writes beyond its memory, or computes for hours.

    Raises
    ------
    InvalidInputError
        If the lengths of rows contradict the number of points, or the number of parallels
        contradicts that of rows.
    """
    import eccodes

    kind = eccodes.codes_get(handle, "gridType", str)
    if kind.endswith("_gg"):
        parallels, rows = (eccodes.codes_get_long(handle, key) for key in ("N", "Nj"))
        if not (rows + 1) // 2 <= parallels <= _MOST_PARALLELS:
            raise InvalidInputError(
                f"its Gaussian grid has {parallels} parallels from pole to equator, and {rows} rows"
            )
    if not kind.startswith("reduced_"):
        return
    lengths = np.zeros(0, np.int64)
    if eccodes.codes_is_defined(handle, "pl"):
        lengths = np.asarray(eccodes.codes_get_array(handle, "pl"), np.int64)
    points = int(lengths.sum())
    # a Gaussian grid of part of the globe gives the lengths of rows around the whole globe
    part = kind != "reduced_ll" and points > count and lengths.all()
    if points != count and not part:
        raise InvalidInputError(f"the rows of its grid have {points} points, and it has {count}")


def _check_latitudes(handle: Any, latitudes: npt.NDArray[np.float64]) -> None:
    """Check the latitudes that ecCodes has computed.

    ecCodes walks a reduced Gaussian grid eastwards and southwards, wherever its first point is,
    and past the last parallel.

    Raises
    ------
    InvalidInputError
        If the latitudes of a Gaussian grid are not its parallels, from the first on.
    """
    import eccodes

    kind = eccodes.codes_get(handle, "gridType", str)
    right = True
    if kind == "reduced_rotated_gg":
        flags = ("iScansNegatively", "jScansPositively")
        right = not any(eccodes.codes_get_long(handle, flag) for flag in flags)
    elif kind in ("regular_gg", "reduced_gg") and len(latitudes):
        number = eccodes.codes_get_long(handle, "N")
        parallels = np.sort(list(eccodes.codes_get_gaussian_latitudes(number)))
        found = np.unique(latitudes)
        near = np.searchsorted(parallels, found).clip(1, len(parallels) - 1)
        apart = np.minimum(abs(parallels[near - 1] - found), abs(parallels[near] - found))
        first = eccodes.codes_get_double(handle, "latitudeOfFirstGridPointInDegrees")
        right = bool((apart < 1e-6).all() and abs(latitudes[0] - first) <= 45 / number)
    if not right:
        raise InvalidInputError(f"ecCodes computes latitudes that are none of its grid {kind!r}")


@dataclass(frozen=True)
class GridLines:
    """The order of the values of a message on a grid of rows and columns.

    Attributes
    ----------
    ni, nj : int
        Points in a row (along index i) and in a column.
    columns : bool
        Whether consecutive values lie in a column.
    turning : bool
        Whether every other row (or column) is scanned backwards.
    turning_points : bool
        Whether ecCodes computes points in that order, too.
    is_northeast : bool
        Whether the first line is scanned towards larger i and j.
    """

    ni: int
    nj: int
    columns: bool
    turning: bool
    turning_points: bool
    is_northeast: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows, and of points in a row."""
        return self.nj, self.ni

    def in_rows(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values in rows that all run in the same direction."""
        return self._in_rows(values, self.turning)

    def points_in_rows(self, points: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return latitudes or longitudes, as ecCodes orders them, in the same rows."""
        return self._in_rows(points, self.turning_points)

    def _in_rows(self, values: npt.NDArray[Any], turning: bool) -> npt.NDArray[Any]:
        lines = values.reshape((self.ni, self.nj) if self.columns else self.shape).copy()
        if turning:
            lines[1::2] = lines[1::2, ::-1].copy()
        return np.ascontiguousarray(lines.T) if self.columns else lines

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return the index of each point's value in the message, row by row."""
        return self.in_rows(np.arange(self.ni * self.nj)).ravel()


def grid_lines(handle: Any) -> GridLines | None:
    """Return the order of values; None if it is that of the grid."""
    import eccodes

    def flag(key: str) -> bool:
        return bool(eccodes.codes_is_defined(handle, key) and eccodes.codes_get_long(handle, key))

    columns = flag("jPointsAreConsecutive")
    turning = flag("alternativeRowScanning")
    if not columns and not turning:
        return None
    turning_points = turning and eccodes.codes_get(handle, "gridType", str) in _TURNING
    ni, nj = (eccodes.codes_get_long(handle, key) for key in ("Ni", "Nj"))
    northeast = flag("jScansPositively") and not flag("iScansNegatively")
    return GridLines(ni, nj, columns, turning, turning_points, northeast)


register_codec(GribCodec.name, GribCodec)
