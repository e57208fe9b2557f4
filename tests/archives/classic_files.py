"""Writes classic NetCDF files of all versions, right ones and wrong ones.

SciPy writes CDF-1 and CDF-2 only, and neither odd attributes nor characters beyond ASCII.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

TYPES = {
    "i1": 1,
    "S1": 2,
    "i2": 3,
    "i4": 4,
    "f4": 5,
    "f8": 6,
    "u1": 7,
    "u2": 8,
    "u4": 9,
    "i8": 10,
    "u8": 11,
}
#: Of CDF-1 and CDF-2.
OLD_TYPES = tuple(name for name, number in TYPES.items() if number <= 6)


@dataclass
class Var:
    """A variable: names of dimensions, values, attributes (bytes are texts)."""

    dimensions: tuple[str, ...]
    values: npt.NDArray[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def classic(
    dimensions: Mapping[str, int | None],
    variables: Mapping[str, Var],
    attributes: Mapping[str, Any] | None = None,
    *,
    version: int = 1,
    records: int = 0,
    streaming: bool = False,
    encoding: str = "utf-8",
) -> bytes:
    """Return the bytes of a file; the length of the record dimension is None."""
    writer = _Writer(version, encoding)
    names = list(dimensions)
    of_records = [n for n, v in variables.items() if _of_records(v, dimensions)]
    rows = {
        name: v.values.nbytes // (max(records, 1) if name in of_records else 1)
        if v.values.size
        else int(np.prod(v.values.shape[1:])) * v.values.itemsize
        for name, v in variables.items()
    }
    only = len(of_records) == 1
    begins: dict[str, int] = {}
    # the size of the header does not depend on the offsets in it
    for _ in range(2):
        head = writer.head(
            dimensions, names, variables, attributes or {}, rows, begins, records, streaming
        )
        at = len(head)
        for name in [n for n in variables if n not in of_records]:
            begins[name] = at
            at += _up(rows[name])
        for name in of_records:
            begins[name] = at
            at += _up(rows[name])
    body = bytearray()
    for name, variable in variables.items():
        if name not in of_records:
            body += _padded(_big(variable.values))
    for record in range(records):
        for name in of_records:
            data = _big(variables[name].values[record])
            body += data if only else _padded(data)
    return head + bytes(body)


def _of_records(variable: Var, dimensions: Mapping[str, int | None]) -> bool:
    return bool(variable.dimensions) and dimensions[variable.dimensions[0]] is None


def _up(count: int) -> int:
    return count + -count % 4


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _big(values: npt.NDArray[Any]) -> bytes:
    values = np.asarray(values)
    return values.astype(values.dtype.newbyteorder(">")).tobytes()


class _Writer:
    def __init__(self, version: int, encoding: str) -> None:
        self.version, self.encoding = version, encoding

    def number(self, value: int) -> bytes:
        return struct.pack(">q" if self.version == 5 else ">i", value)

    def name(self, text: str) -> bytes:
        data = text.encode(self.encoding)
        return self.number(len(data)) + _padded(data)

    def listed(self, tag: int, items: list[bytes]) -> bytes:
        return struct.pack(">I", tag if items else 0) + self.number(len(items)) + b"".join(items)

    def attributes(self, attributes: Mapping[str, Any]) -> bytes:
        return self.listed(12, [self.name(n) + self.value(v) for n, v in attributes.items()])

    def value(self, value: Any) -> bytes:
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, bytes):
            return struct.pack(">I", 2) + self.number(len(value)) + _padded(value)
        values = np.atleast_1d(value)
        kind = TYPES[values.dtype.str[1:]]
        return struct.pack(">I", kind) + self.number(values.size) + _padded(_big(values))

    def head(
        self,
        dimensions: Mapping[str, int | None],
        names: list[str],
        variables: Mapping[str, Var],
        attributes: Mapping[str, Any],
        rows: Mapping[str, int],
        begins: Mapping[str, int],
        records: int,
        streaming: bool,
    ) -> bytes:
        count = b"\xff" * (8 if self.version == 5 else 4) if streaming else self.number(records)
        parts = [b"CDF" + bytes([self.version]) + count]
        parts.append(
            self.listed(10, [self.name(n) + self.number(k or 0) for n, k in dimensions.items()])
        )
        parts.append(self.attributes(attributes))
        items = []
        for name, variable in variables.items():
            item = self.name(name) + self.number(len(variable.dimensions))
            item += b"".join(self.number(names.index(d)) for d in variable.dimensions)
            item += self.attributes(variable.attributes)
            item += struct.pack(">I", TYPES[variable.values.dtype.str[1:]])
            item += self.number(_up(rows[name]))
            item += struct.pack(">i" if self.version == 1 else ">q", begins.get(name, 0))
            items.append(item)
        parts.append(self.listed(11, items))
        return b"".join(parts)
