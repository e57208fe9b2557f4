"""GRIB messages as bytes: where they lie in a file, and which fields they hold.

The layout is that of the WMO Manual on Codes, FM 92, editions 1 and 2. ecCodes interprets the
sections. It gets a whole message of one field: the field itself, or one with the same
metadata and no values.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NoReturn

from icechunk.errors import InvalidInputError

__all__ = ["GribField", "field_message", "grib_fields"]

_START: Final = b"GRIB"
_END: Final = b"7777"
#: The size of the blocks in which the next message is searched for.
_BLOCK: Final = 1 << 16
#: The maximum size of a metadata section. Real ones have some hundreds of bytes, and those of
#: reduced grids some kilobytes.
_MOST_METADATA: Final = 1 << 24


@dataclass(frozen=True)
class GribField:
    """A field of a file.

    Attributes
    ----------
    offset, length : int
        Of the bytes that `field_message` turns into a message: the whole message if it has one
        field, else its beginning up to the end of the field.
    header : bytes
        A whole message with the metadata of the field, and zeros for its values unless they
        are spherical harmonics of edition 1.
    grid : bytes
        The section that describes the grid; equal ones mean equal coordinates. Empty if the
        message has none.
    """

    offset: int
    length: int
    header: bytes
    grid: bytes


def grib_fields(file: BinaryIO, location: str) -> Iterator[GribField]:
    """Yield the fields of all GRIB messages of a file, without reading their values.

    Bytes between messages are skipped.

    Parameters
    ----------
    file : binary file
        It needs ``seek`` and ``read`` only.
    location : str
        For error messages.

    Raises
    ------
    InvalidInputError
        If a message is truncated, damaged, or of another edition; the error names the file, the
        number of the message, and where it begins.
    """
    size = file.seek(0, 2)

    def read(start: int, count: int) -> bytes:
        file.seek(start)
        return file.read(count)

    position = 0
    number = 0
    while (start := _next_start(read, position, size)) is not None:
        number += 1
        name = f"{location}: message {number}, at byte {start},"
        source = _Source(read, start, size - start, name)
        if source.edition() == 1:
            length = yield from _fields_1(source)
        else:
            length = yield from _fields_2(source)
        position = start + length


def field_message(data: bytes) -> bytes:
    """Return a whole message of one field.

    Parameters
    ----------
    data : bytes
        A message, followed by anything: its first field is taken, because kerchunk's references
        mean that one. Or the beginning of a message of edition 2 up to the end of a field,
        which is the one taken.

    Raises
    ------
    InvalidInputError
        If `data` is neither.
    """
    source = _Source(lambda start, count: data[start : start + count], 0, len(data), "the chunk")
    if source.edition() == 1:
        return data[: _sections_1(source).total]
    total = source.number(8, 8)
    fields = list(_sections_2(source, len(data) if total > len(data) else None))
    field = fields[-1] if total > len(data) else fields[0]
    return _composed([source.take(*field[number]) for number in sorted(field)], source)


def _next_start(read: Callable[[int, int], bytes], position: int, size: int) -> int | None:
    """Return where the next message begins, or None if there is no other."""
    while position < size:
        block = read(position, min(_BLOCK, size - position))
        found = block.find(_START)
        if found >= 0:
            return position + found
        # the block may end with the first letters of a message
        position += max(len(block) - len(_START) + 1, 1)
    return None


class _Source:
    """The bytes from the start of a message on.

    Parameters
    ----------
    read : callable
        Returns bytes of the file from an offset on.
    start, size : int
        Where the message begins, and how many bytes there are from there.
    name : str
        For error messages.
    """

    def __init__(self, read: Callable[[int, int], bytes], start: int, size: int, name: str) -> None:
        self._read = read
        self.start = start
        self.size = size
        self._name = name

    def take(self, position: int, count: int) -> bytes:
        """Return exactly `count` bytes."""
        data = b""
        if position + count <= self.size:
            data = self._read(self.start + position, count)
        if len(data) < count or position + count > self.size:
            self.bad("is truncated")
        return data

    def number(self, position: int, count: int) -> int:
        return int.from_bytes(self.take(position, count), "big")

    def metadata(self, position: int, count: int) -> bytes:
        """Return a section that describes a field."""
        if count > _MOST_METADATA:
            self.bad(f"has a section of metadata of {count} bytes, which is too long")
        return self.take(position, count)

    def edition(self) -> int:
        head = self.take(0, 8)
        if head[:4] != _START:
            self.bad(f"begins with {head[:4]!r}, not with {_START!r}")
        if head[7] not in (1, 2):
            self.bad(f"is of GRIB edition {head[7]}; 1 and 2 are read")
        return head[7]

    def check_end(self, total: int) -> None:
        if total > self.size:
            self.bad(f"is truncated: it has {total} bytes, and {self.size} are there")
        if total < 12 or self.take(total - 4, 4) != _END:
            self.bad(f"is damaged: it does not end with {_END!r} after {total} bytes")

    def bad(self, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self._name} {reason}")


# -- edition 1 -------------------------------------------------------------------------
@dataclass(frozen=True)
class _Sections1:
    """Offset and length of sections, and the length of the message."""

    product: tuple[int, int]
    grid: tuple[int, int] | None
    data: tuple[int, int]
    total: int


def _sections_1(source: _Source) -> _Sections1:
    flags = source.number(15, 1)
    position = 8
    found: list[tuple[int, int] | None] = []
    for there in (True, flags & 0x80, flags & 0x40):  # product, grid, bitmap
        count = source.number(position, 3) if there else 0
        if there and count < 4:
            source.bad(f"is damaged: a section has {count} bytes")
        found.append((position, count) if there else None)
        position += count
    total = source.number(4, 3)
    data = source.number(position, 3)
    if total & 0x800000 and data < 120:
        # lengths above 8 MiB do not fit. ECMWF counts in units of 120 bytes, and puts the excess
        # where the length of the data would be
        total = (total & 0x7FFFFF) * 120 - data + 4
    elif position + data + len(_END) > total:
        source.bad("is damaged: its sections are longer than itself")
    source.check_end(total)
    product, grid, _ = found
    assert product is not None
    return _Sections1(product, grid, (position, data), total)


def _fields_1(source: _Source) -> Generator[GribField, None, int]:
    sections = _sections_1(source)
    product = bytearray(source.metadata(*sections.product))
    product[7] &= ~0x40  # without a bitmap
    grid = source.metadata(*sections.grid) if sections.grid else b""
    if source.number(sections.data[0] + 3, 1) & 0x80:
        # spherical harmonics: the metadata includes properties of the values
        yield GribField(source.start, sections.total, source.take(0, sections.total), grid)
        return sections.total
    # all values equal the reference value, zero, and need no bits: octets 1 to 11, and one
    # more to make the length even
    data = bytes([0, 0, 12, 8]) + bytes(8)
    body = bytes(product) + grid + data + _END
    header = _START + (8 + len(body)).to_bytes(3, "big") + b"\x01" + body
    yield GribField(source.start, sections.total, header, grid)
    return sections.total


# -- edition 2 -------------------------------------------------------------------------
#: Offset and length of the sections of one field, by number.
_Sections2 = dict[int, tuple[int, int]]


def _sections_2(source: _Source, end: int | None) -> Iterator[_Sections2]:
    """Yield the sections of each field.

    Parameters
    ----------
    end : int or None
        Where the sections end; None for a whole message.
    """
    if end is None:
        total = source.number(8, 8)
        source.check_end(total)
        end = total - len(_END)
    found: _Sections2 = {}
    bitmap: tuple[int, int] | None = None
    position, last = 16, 0
    while position < end:
        length, number = source.number(position, 4), source.number(position + 4, 1)
        if length < 5 or position + length > end:
            source.bad(f"is damaged: section {number} has {length} bytes")
        # the next field begins with the first section that differs
        if not (last < number <= 7 or (last == 7 and number in (2, 3, 4))):
            source.bad(f"is damaged: section {number} follows section {last}")
        found[number] = position, length
        if number == 6:
            given = source.number(position + 5, 1)
            if given == 0:
                bitmap = found[6]
            elif given == 254:  # the previous one (code table 6.0)
                if bitmap is None:
                    source.bad("is damaged: it refers to an earlier bitmap, and there is none")
                found[6] = bitmap
        position, last = position + length, number
        if number == 7:
            if not {1, 3, 4, 5, 6} <= set(found):
                source.bad(f"is damaged: a field has only the sections {sorted(found)}")
            yield dict(found)
            del found[5], found[6], found[7]
    if last != 7:
        source.bad(f"is damaged: it ends with section {last}")


def _fields_2(source: _Source) -> Generator[GribField, None, int]:
    fields = list(_sections_2(source, None))
    total = source.number(8, 8)
    for field in fields:
        grid = source.metadata(*field[3])
        parts = [source.metadata(*field[number]) for number in (1, 2, 3, 4) if number in field]
        # simple packing: all values equal the reference value, zero, and need no bits
        points = grid[6:10]
        parts.append((21).to_bytes(4, "big") + b"\x05" + points + bytes(12))
        parts.append((6).to_bytes(4, "big") + b"\x06\xff")
        parts.append((5).to_bytes(4, "big") + b"\x07")
        end = sum(field[7])
        yield GribField(
            source.start,
            end if len(fields) > 1 else total,
            _composed(parts, source),
            grid,
        )
    return total


def _composed(sections: list[bytes], source: _Source) -> bytes:
    """Return a message of edition 2 with these sections."""
    total = 16 + sum(map(len, sections)) + len(_END)
    # discipline and edition stay
    head = source.take(0, 8) + total.to_bytes(8, "big")
    return b"".join([head, *sections, _END])
