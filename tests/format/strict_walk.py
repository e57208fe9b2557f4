"""A second, slow and strict reader of FlatBuffers, to check what the fast one writes.

It works on one value at a time with `struct`, knows nothing of the library, and refuses
what a strict verifier refuses: misaligned values, offsets and vtables that lead out of the
buffer, missing required fields, strings without terminator, a tag without a value.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass
class Table:
    """`fields`: slot -> (name, type), with a `*` after the name of a required one."""

    fields: Mapping[int, tuple[str, Any]] = field(default_factory=dict)


@dataclass
class Vector:
    """Of numbers or ids (their code), "string", `Struct` or `Table`."""

    of: Any


@dataclass
class Struct:
    """Numbers of one code, inline."""

    code: str
    count: int


@dataclass
class Union:
    """Tag in the slot, table in the next one."""

    members: Mapping[int, Table]


Type: TypeAlias = str | Table | Vector | Struct | Union

_SIZES = {"B": 1, "?": 1, "H": 2, "I": 4, "i": 4, "Q": 8, "id8": 8, "id12": 12}


def walk(payload: bytes, root: Table) -> dict[str, Any]:
    """Return the root table as a dict; absent fields are left out."""
    assert payload[4:8] == b"Ichk"
    return _Walker(payload).table(_follow(payload, 0), root)


def _follow(payload: bytes, at: int) -> int:
    assert at % 4 == 0, f"offset at {at} is misaligned"
    step: int = struct.unpack_from("<I", payload, at)[0]
    assert step > 0
    return at + step


class _Walker:
    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def unpack(self, code: str, at: int) -> Any:
        assert at % _SIZES[code] == 0, f"{code} at {at} is misaligned"
        return struct.unpack_from("<" + code, self.payload, at)[0]

    def table(self, at: int, schema: Table) -> dict[str, Any]:
        vtable = at - self.unpack("i", at)
        assert vtable % 2 == 0
        length, inline = self.unpack("H", vtable), self.unpack("H", vtable + 2)
        assert length >= 4 and length % 2 == 0 and inline >= 4
        assert 8 <= vtable <= len(self.payload) - length
        assert at + inline <= len(self.payload)
        slots = (length - 4) // 2
        known = {
            slot + more
            for slot, (_, kind) in schema.fields.items()
            for more in range(2 if isinstance(kind, Union) else 1)
        }
        found = {}
        for slot in range(slots):
            offset = self.unpack("H", vtable + 4 + 2 * slot)
            if offset:
                assert slot in known, f"slot {slot} is not in the schema"
                assert 4 <= offset < inline
                found[slot] = offset
        taken = sorted(found.values())
        result = {}
        for slot, (name, kind) in schema.fields.items():
            if slot not in found:
                assert not name.endswith("*"), f"{name} is missing"
                assert not isinstance(kind, Union) or slot + 1 not in found
                continue
            start = at + found[slot]
            after = next((t for t in taken if t > found[slot]), inline)
            assert found[slot] + self.inline_size(kind) <= after, f"{name} overlaps"
            if isinstance(kind, Union):
                tag = self.unpack("B", start)
                target = _follow(self.payload, at + found[slot + 1])
                result[name.rstrip("*")] = (tag, self.table(target, kind.members[tag]))
            else:
                result[name.rstrip("*")] = self.value(start, kind)
        return result

    def inline_size(self, kind: Type) -> int:
        if isinstance(kind, Union):
            return 1
        return _SIZES.get(kind, 4) if isinstance(kind, str) else 4

    def value(self, at: int, kind: Type) -> Any:
        if isinstance(kind, str) and kind in ("id8", "id12"):
            return self.raw(at, _SIZES[kind])
        if isinstance(kind, str) and kind in _SIZES:
            return self.unpack(kind, at)
        if isinstance(kind, Struct):
            size = struct.calcsize(kind.code)
            return tuple(self.unpack(kind.code, at + i * size) for i in range(kind.count))
        target = _follow(self.payload, at)
        if isinstance(kind, Table):
            return self.table(target, kind)
        count = self.unpack("I", target)
        if kind == "string":
            raw = self.raw(target + 4, count + 1)
            assert raw[-1] == 0, "no terminator"
            return raw[:-1].decode()
        if kind == "bytes":
            return self.raw(target + 4, count)
        assert isinstance(kind, Vector)
        element = kind.of
        if isinstance(element, Struct):
            size = struct.calcsize(element.code) * element.count
        else:
            size = self.inline_size(element)
        return [self.value(target + 4 + i * size, element) for i in range(count)]

    def raw(self, at: int, size: int) -> bytes:
        assert 0 <= at <= at + size <= len(self.payload)
        return self.payload[at : at + size]
