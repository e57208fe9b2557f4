"""The header of classic NetCDF files: CDF-1, CDF-2 (64-bit offset) and CDF-5 (64-bit data).

The format is that of the NetCDF User's Guide, appendix "File Format Specifications". Only
the header is read. A file may come from anywhere, so every count and length is compared with
the bytes that are there before it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, Final, NoReturn

import numpy as np

from icechunk import InvalidInputError

__all__ = ["ClassicHeader", "ClassicVariable", "read_classic_header"]

#: Maximum size of a header in bytes. Real ones take kilobytes.
_LIMIT: Final = 32 << 20
#: Minimum number of bytes to read at once.
_BLOCK: Final = 8192
#: NumPy's own limit.
_MOST_DIMENSIONS: Final = 64

_DIMENSIONS, _VARIABLES, _ATTRIBUTES = 10, 11, 12
_TYPES: Final = {
    1: ">i1",
    2: "S1",
    3: ">i2",
    4: ">i4",
    5: ">f4",
    6: ">f8",
    7: ">u1",
    8: ">u2",
    9: ">u4",
    10: ">i8",
    11: ">u8",
}
#: CDF-1 and CDF-2 have only the first six.
_LAST_TYPE: Final = {1: 6, 2: 6, 5: 11}
_VERSIONS: Final = {b"CDF\x01": 1, b"CDF\x02": 2, b"CDF\x05": 5}


@dataclass(frozen=True)
class ClassicVariable:
    """One variable, and where its values are.

    Attributes
    ----------
    name : str
    dimensions : tuple of str
    shape : tuple of int
        Includes the number of records if the first dimension is the record dimension.
    dtype : numpy.dtype
        Big-endian; ``S1`` for characters.
    attributes : dict
        Text as str, a number as a NumPy scalar, several numbers as an array.
    begin : int
        Offset of the first byte.
    row : int
        Bytes of one record without padding; of all values if there are no records.
    stride : int
        Bytes from one record to the next; 0 if there are no records.
    """

    name: str
    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: dict[str, Any]
    begin: int
    row: int
    stride: int

    @property
    def end(self) -> int:
        """Offset after the last byte; `begin` if there are no bytes."""
        if not self.stride:
            return self.begin + self.row
        return self.begin + (self.stride * (self.shape[0] - 1) + self.row if self.shape[0] else 0)


@dataclass(frozen=True)
class ClassicHeader:
    """The contents of a header.

    Attributes
    ----------
    attributes : dict
        Attributes of the file, in the same form as those of a variable.
    variables : list of ClassicVariable
    """

    attributes: dict[str, Any]
    variables: list[ClassicVariable]


def read_classic_header(file: BinaryIO, location: str) -> ClassicHeader:
    """Read the header of a classic NetCDF file.

    Parameters
    ----------
    file : binary file
        It needs only ``seek`` and ``read``.
    location : str
        Location of the file for error messages.

    Raises
    ------
    InvalidInputError
        If it is not such a file, is damaged, or ends before its last value. The message names
        the file and, if there is one, the variable.

    Examples
    --------
    >>> with open("sst.nc", "rb") as file:
    ...     header = read_classic_header(file, "sst.nc")
    >>> [variable.name for variable in header.variables]
    ['lat', 'lon', 'time', 'sst']
    """
    return _Reader(file, location).header()


@dataclass(frozen=True)
class _Described:
    """A variable as the header describes it, before the size of a record is known."""

    name: str
    dimensions: tuple[int, ...]
    attributes: dict[str, Any]
    dtype: np.dtype[Any]
    begin: int


class _Reader:
    """Parses a header from the first byte to the last."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file = file
        self._location = location
        self._size = file.seek(0, 2)
        self._data = b""
        self._position = 0
        magic = self._take(4, "magic number")
        if magic not in _VERSIONS:
            self._bad(f"it begins with {magic!r}")
        self._version = _VERSIONS[magic]
        self._count = ">q" if self._version == 5 else ">i"
        self._wide = 8 if self._version == 5 else 4

    def header(self) -> ClassicHeader:
        streaming = b"\xff" * self._wide
        # unsigned; the largest value means that the writer did not know
        raw = self._take(self._wide, "number of records")
        records = None if raw == streaming else int.from_bytes(raw, "big")
        dimensions = self._dimensions()
        attributes = self._attributes("the file")
        described = self._variables(dimensions)
        names = [name for name, _ in dimensions]
        lengths = [length for _, length in dimensions]
        unlimited = lengths.index(0) if 0 in lengths else None
        rows = {v.name: self._row(v, lengths, unlimited) for v in described}
        of_records = {v.name: v.begin for v in described if v.dimensions[:1] == (unlimited,)}
        stride = sum(-(-rows[name] // 4) * 4 for name in of_records)
        if len(of_records) == 1:
            # a file's only record variable has no padding between records
            stride = rows[next(iter(of_records))]
        if records is None:
            begin = min(of_records.values(), default=self._size)
            records = max(self._size - begin, 0) // stride if stride else 0
        if unlimited is not None:
            lengths[unlimited] = records
        found = [
            ClassicVariable(
                v.name,
                tuple(names[n] for n in v.dimensions),
                tuple(lengths[n] for n in v.dimensions),
                v.dtype,
                v.attributes,
                v.begin,
                rows[v.name],
                stride if v.name in of_records else 0,
            )
            for v in described
        ]
        for variable in found:
            self._check_place(variable)
        return ClassicHeader(attributes, found)

    def _row(self, variable: _Described, lengths: list[int], unlimited: int | None) -> int:
        of_records = variable.dimensions[:1] == (unlimited,)
        inner = variable.dimensions[1:] if of_records else variable.dimensions
        if unlimited in inner:
            self._bad(f"variable {variable.name!r} has the record dimension after another one")
        return prod(lengths[n] for n in inner) * variable.dtype.itemsize

    def _check_place(self, variable: ClassicVariable) -> None:
        if variable.end == variable.begin:
            return
        if variable.begin < self._position:
            self._bad(f"variable {variable.name!r} begins within the header")
        if variable.end > self._size:
            self._bad(
                f"variable {variable.name!r} ends at byte {variable.end}, and the file has "
                f"{self._size} bytes: it is truncated"
            )

    # -- lists -------------------------------------------------------------------------
    def _dimensions(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for _ in range(self._length_of_list(_DIMENSIONS, 2 * self._wide, "dimensions")):
            name = self._name("a dimension")
            found.append((name, self._number(f"length of dimension {name!r}")))
        self._check_distinct([name for name, _ in found], "dimensions")
        if sum(length == 0 for _, length in found) > 1:
            self._bad("it has two record dimensions")
        return found

    def _variables(self, dimensions: list[tuple[str, int]]) -> list[_Described]:
        found: list[_Described] = []
        least = 4 * self._wide + 12
        for _ in range(self._length_of_list(_VARIABLES, least, "variables")):
            name = self._name("a variable")
            if "/" in name:
                self._bad(f"variable {name!r} has a slash in its name")
            what = f"variable {name!r}"
            rank = self._number(f"number of dimensions of {what}")
            if rank > _MOST_DIMENSIONS:
                self._bad(f"{what} has {rank} dimensions; at most {_MOST_DIMENSIONS} are read")
            numbers = tuple(self._number(f"dimensions of {what}") for _ in range(rank))
            if any(number >= len(dimensions) for number in numbers):
                self._bad(f"{what} has a dimension that the file does not have")
            attributes = self._attributes(what)
            dtype = self._type(what)
            self._take(self._wide, f"size of {what}")  # it follows from the dimensions
            wide = 4 if self._version == 1 else 8
            begin = int.from_bytes(self._take(wide, f"offset of {what}"), "big")
            found.append(_Described(name, numbers, attributes, dtype, begin))
        self._check_distinct([v.name for v in found], "variables")
        return found

    def _attributes(self, what: str) -> dict[str, Any]:
        found: list[tuple[str, Any]] = []
        least = 2 * self._wide + 4
        for _ in range(self._length_of_list(_ATTRIBUTES, least, f"attributes of {what}")):
            name = self._name(f"an attribute of {what}")
            of = f"attribute {name!r} of {what}"
            dtype = self._type(of)
            count = self._number(f"number of values of {of}")
            data = self._padded(count * dtype.itemsize, f"values of {of}")
            found.append((name, _value(data, dtype)))
        self._check_distinct([name for name, _ in found], f"attributes of {what}")
        return dict(found)

    def _length_of_list(self, tag: int, least: int, what: str) -> int:
        """Return how many entries follow, each of at least `least` bytes."""
        given = int.from_bytes(self._take(4, f"list of {what}"), "big")
        count = self._number(f"number of {what}")
        if given != tag and (given or count):
            self._bad(f"the list of {what} has the tag {given}, expected {tag}")
        if count * least > min(self._size, _LIMIT) - self._position:
            self._bad(f"it says that it has {count} {what}, more than fit into the header")
        return count

    def _check_distinct(self, names: list[str], what: str) -> None:
        if len(set(names)) < len(names):
            twice = next(name for n, name in enumerate(names) if name in names[:n])
            self._bad(f"two of the {what} are called {twice!r}")

    # -- parts -------------------------------------------------------------------------
    def _type(self, what: str) -> np.dtype[Any]:
        number = int.from_bytes(self._take(4, f"type of {what}"), "big")
        if not 1 <= number <= _LAST_TYPE[self._version]:
            self._bad(f"{what} has the type {number}, which CDF-{self._version} does not have")
        return np.dtype(_TYPES[number])

    def _name(self, what: str) -> str:
        data = self._padded(self._number(f"length of the name of {what}"), f"name of {what}")
        data = data.rstrip(b"\0")
        if not data:
            self._bad(f"the name of {what} is empty")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data.decode("latin-1")  # written before UTF-8 was required

    def _number(self, what: str) -> int:
        (number,) = struct.unpack(self._count, self._take(self._wide, what))
        if number < 0:
            self._bad(f"the {what} is {number}")
        return int(number)

    def _padded(self, count: int, what: str) -> bytes:
        return self._take(count + -count % 4, what)[:count]

    def _take(self, count: int, what: str) -> bytes:
        end = self._position + count
        if end > self._size:
            self._bad(f"it ends within the {what}")
        if end > _LIMIT:
            self._bad(f"the {what} lies more than {_LIMIT} bytes from the begin of the header")
        missing = end - len(self._data)
        if missing > 0:
            self._file.seek(len(self._data))
            # double the length each time, so that bytes are seldom moved
            wanted = max(missing, _BLOCK, len(self._data))
            self._data += self._file.read(min(wanted, self._size - len(self._data)))
            if len(self._data) < end:
                self._bad(f"it ends within the {what}")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def _bad(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self._location} is not a whole classic NetCDF file: {reason}")


def _value(data: bytes, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "S":
        # the form in which xarray's engines return text that is not UTF-8
        return data.rstrip(b"\0").decode("utf-8", "replace")
    values = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return values[0] if len(values) == 1 else values
