"""FlexBuffers: the JSON-like values of snapshot metadata, and the stored config.

Icechunk spec, "Metadata encoding". A buffer is read from its end: the last byte is the
width of the root, the one before it the root's packed type (``type << 2 | log2(width)``),
and before that stands the root, a scalar or an offset. Offsets point backwards.

`dumps` makes the choices of the official writer (smallest widths, typed vectors for
numbers and booleans only, every key once, in the order of the mapping). `loads`
reads all of FlexBuffers except vectors of strings without type bytes (type 15), which
FlexBuffers itself has withdrawn.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np

from icechunk.errors import ErrorKind, FormatError, InvalidInputError
from icechunk.format.encoding.envelope import BytesLike

__all__ = ["MAX_DEPTH", "dumps", "loads"]

#: Lists and dicts inside each other, in both directions.
MAX_DEPTH: Final = 128

_NULL, _INT, _UINT, _FLOAT, _KEY, _STRING = range(6)
_INDIRECT: Final = {6: _INT, 7: _UINT, 8: _FLOAT}
_MAP, _VECTOR = 9, 10
_BLOB: Final = 25
_BOOL: Final = 26
_KEYS: Final = 14
# element type -> vector type: length stored; and without a length, for 2, 3, 4 elements
_TYPED: Final = {_INT: 11, _UINT: 12, _FLOAT: 13, _BOOL: 36}
_FIXED: Final = {
    (_INT, 2): 16, (_UINT, 2): 17, (_FLOAT, 2): 18,
    (_INT, 3): 19, (_UINT, 3): 20, (_FLOAT, 3): 21,
    (_INT, 4): 22, (_UINT, 4): 23, (_FLOAT, 4): 24,
}  # fmt: skip
_TYPED_ELEMENTS: Final = {vector: element for element, vector in _TYPED.items()}
_FIXED_ELEMENTS: Final = {vector: element_and_count for element_and_count, vector in _FIXED.items()}

_INLINE: Final = frozenset((_NULL, _INT, _UINT, _FLOAT, _BOOL))
# struct codes by log2(width); FlexBuffers has no floats of 1 or 2 bytes
_CODES: Final = {
    _NULL: "BHIQ",
    _INT: "bhiq",
    _UINT: "BHIQ",
    _FLOAT: "??fd",
    _BOOL: "BHIQ",
}
_UINT_MAX: Final = 2**64 - 1
_INT_MIN: Final = -(2**63)


def dumps(value: object, name: str = "value") -> bytes:
    """Encode a JSON-like value.

    Parameters
    ----------
    value : None, bool, int, float, str, list, tuple or mapping
        NumPy scalars become the Python values that they stand for, and tuples become lists.
        The order of a mapping decides only where its keys are stored.
    name : str
        What the value is, for messages.

    Raises
    ------
    InvalidInputError
        For a value that JSON cannot express (NaN, infinities, keys that are not
        strings, other types), an integer beyond 64 bits, a key with a NUL, or more than
        `MAX_DEPTH` levels. The message names the place.
    """
    return _Writer(name).finish(value)


def loads(data: BytesLike, name: str) -> Any:
    """Decode a buffer.

    Parameters
    ----------
    data : bytes-like
    name : str
        Where the bytes come from, for messages.

    Returns
    -------
    None, bool, int, float, str, list or dict
        Or bytes for a blob, which no known client writes.

    Raises
    ------
    FormatError
        If the buffer is damaged or deeper than `MAX_DEPTH`, or if shared parts would make
        the value much larger than the buffer.
    """
    return _Reader(bytes(data), name).root()


# -- writing -------------------------------------------------------------------


# an encoded value: its type; the number itself, or the position of what was written;
# log2 of the width that an inline number needs, or that the written object has
_Value: TypeAlias = tuple[int, Any, int]


def _uint_width(number: int) -> int:
    return 0 if number < 1 << 8 else 1 if number < 1 << 16 else 2 if number < 1 << 32 else 3


def _float_width(number: float) -> int:
    try:
        return 2 if struct.unpack("<f", struct.pack("<f", number))[0] == number else 3
    except OverflowError:
        return 3


class _Writer:
    def __init__(self, name: str) -> None:
        self._buffer = bytearray()
        self._keys: dict[str, int] = {}
        self._name = name
        self._path: list[object] = []

    def finish(self, value: object) -> bytes:
        kind, _, width = root = self._encode(value)
        slot = self._slot_width([root], 0)
        self._align(slot)
        self._number(_UINT if kind not in _INLINE else kind, self._relative(root), slot)
        packed = kind << 2 | (slot if kind in _INLINE else width)
        self._buffer += bytes((packed, 1 << slot))
        return bytes(self._buffer)

    def _refuse(self, problem: str) -> NoReturn:
        place = self._name + "".join(f"[{step!r}]" for step in self._path)
        raise InvalidInputError(f"{place}: {problem}", ErrorKind.BAD_METADATA)

    def _encode(self, value: object) -> _Value:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None:
            return _NULL, 0, 0
        if isinstance(value, bool):
            return _BOOL, int(value), 0
        if isinstance(value, int):
            if value > _UINT_MAX or value < _INT_MIN:
                self._refuse("an integer of more than 64 bits cannot be stored")
            if value < 0:
                return _INT, value, _uint_width(~value << 1)
            return _UINT, value, _uint_width(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                self._refuse(f"{value} cannot be stored, numbers must be finite as in JSON")
            return _FLOAT, value, _float_width(value)
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, (list, tuple, Mapping)):
            if len(self._path) >= MAX_DEPTH:
                self._refuse(f"more than {MAX_DEPTH} lists and dicts inside each other")
            return self._map(value) if isinstance(value, Mapping) else self._list(value)
        self._refuse(
            f"a value of type {type(value).__name__} cannot be stored, only what JSON has: "
            "None, bool, int, float, str, list, dict"
        )

    def _utf8(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            self._refuse(f"{text!r} is not valid Unicode: {error.reason}")

    def _string(self, text: str) -> _Value:
        raw = self._utf8(text)
        width = _uint_width(len(raw))
        self._align(width)
        self._number(_UINT, len(raw), width)
        position = len(self._buffer)
        self._buffer += raw + b"\0"
        return _STRING, position, width

    def _list(self, items: list[Any] | tuple[Any, ...]) -> _Value:
        values = []
        for index, item in enumerate(items):
            self._path.append(index)
            values.append(self._encode(item))
            self._path.pop()
        kinds = {kind for kind, _, _ in values}
        element = kinds.pop() if len(kinds) == 1 else None
        if element not in _TYPED:
            return self._vector(_VECTOR, values, (), with_types=True)
        fixed = _FIXED.get((element, len(values)))
        if fixed is not None:
            width = self._slot_width(values, 0)
            self._align(width)
            return fixed, self._slots(values, width), width
        return self._vector(_TYPED[element], values, (), with_types=False)

    def _map(self, items: Mapping[Any, Any]) -> _Value:
        entries = []
        for key, item in items.items():
            self._path.append(key)
            position = self._key(key)
            entries.append((key.encode(), position, self._encode(item)))
            self._path.pop()
        entries.sort(key=itemgetter(0))
        keys = self._vector(_KEYS, [(_KEY, at, 0) for _, at, _ in entries], (), with_types=False)
        return self._vector(_MAP, [value for _, _, value in entries], (keys,), with_types=True)

    def _key(self, key: object) -> int:
        if not isinstance(key, str):
            self._refuse(f"the key is of type {type(key).__name__}, keys must be strings")
        position = self._keys.get(key)
        if position is None:
            raw = self._utf8(key)
            if b"\0" in raw:
                self._refuse("the key contains a NUL, which ends a stored key")
            position = self._keys[key] = len(self._buffer)
            self._buffer += raw + b"\0"
        return position

    def _vector(
        self, kind: int, values: list[_Value], keys: tuple[_Value, ...], *, with_types: bool
    ) -> _Value:
        """Write the words before the elements, the elements, and their types."""
        before = 3 if keys else 1
        width = max(
            self._slot_width(values, before), self._slot_width(keys, 0), _uint_width(len(values))
        )
        self._align(width)
        if keys:
            self._slots(keys, width)
            self._number(_UINT, 1 << keys[0][2], width)
        self._number(_UINT, len(values), width)
        position = self._slots(values, width)
        if with_types:
            self._buffer += bytes(
                kind << 2 | (width if kind in _INLINE else own) for kind, _, own in values
            )
        return kind, position, width

    def _slot_width(self, values: list[_Value] | tuple[_Value, ...], before: int) -> int:
        """Return log2 of the smallest width in which all slots can be written here."""
        start = len(self._buffer)
        needed = 0
        for index, (kind, payload, width) in enumerate(values, before):
            if kind in _INLINE:
                needed = max(needed, width)
                continue
            # a wider slot lies further from its target
            while (-(-start >> needed) + index << needed) - payload >> (8 << needed):
                needed += 1
        return needed

    def _slots(self, values: list[_Value] | tuple[_Value, ...], width: int) -> int:
        position = len(self._buffer)
        for value in values:
            self._number(value[0] if value[0] in _INLINE else _UINT, self._relative(value), width)
        return position

    def _relative(self, value: _Value) -> Any:
        kind, payload, _ = value
        return payload if kind in _INLINE else len(self._buffer) - payload

    def _number(self, kind: int, number: float, width: int) -> None:
        self._buffer += struct.pack("<" + _CODES[kind][width], number)

    def _align(self, width: int) -> None:
        self._buffer += bytes(-len(self._buffer) % (1 << width))


# -- reading -------------------------------------------------------------------


class _Reader:
    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._texts: dict[tuple[int, int], str] = {}
        # Elements and bytes of text. A buffer whose parts are not shared needs fewer than
        # one per byte, and shared text is decoded once. Anything beyond this is a bomb.
        self._budget = 4 * len(data) + 1024

    def root(self) -> Any:
        data = self._data
        if len(data) < 3 or data[-1] not in (1, 2, 4, 8):
            self._fail("not a FlexBuffer: the last byte must be the width of the root")
        slot = data[-1].bit_length() - 1
        return self._value(data[-2], len(data) - 2 - data[-1], slot, 0)

    def _fail(self, problem: str) -> NoReturn:
        raise FormatError(f"{self._name}: {problem}")

    def _spend(self, amount: int) -> None:
        self._budget -= amount
        if self._budget < 0:
            self._fail("the value is much larger than its encoding, parts are shared too often")

    def _numbers(self, kind: int, position: int, count: int, width: int) -> tuple[Any, ...]:
        code = _CODES[kind][width]
        if code == "?":
            self._fail(f"a float of {1 << width} bytes at {position}")
        if position < 0 or position + (count << width) > len(self._data):
            self._fail(f"{count} numbers of {1 << width} bytes at {position} reach outside")
        return struct.unpack_from(f"<{count}{code}", self._data, position)

    def _target(self, position: int, width: int) -> int:
        target = position - int(self._numbers(_UINT, position, 1, width)[0])
        if target < 0:
            self._fail(f"the offset at {position} points outside")
        return target

    def _length(self, target: int, width: int) -> int:
        return int(self._numbers(_UINT, target - (1 << width), 1, width)[0])

    def _value(self, packed: int, position: int, slot: int, depth: int) -> Any:
        """Read the value of packed type `packed` whose slot of width `slot` is at `position`."""
        kind, width = packed >> 2, packed & 3
        if kind in _INLINE:
            return self._scalar(kind, position, slot)
        target = self._target(position, slot)
        if kind == _STRING:
            return self._text(target, self._length(target, width))
        if kind in (_MAP, _VECTOR):
            if depth >= MAX_DEPTH:
                self._fail(f"more than {MAX_DEPTH} lists and dicts inside each other")
            items = self._items(target, self._length(target, width), width, depth + 1)
            return self._map(items, target, width) if kind == _MAP else items
        if kind in _TYPED_ELEMENTS:
            return self._typed(_TYPED_ELEMENTS[kind], target, self._length(target, width), width)
        if kind in _FIXED_ELEMENTS:
            element, count = _FIXED_ELEMENTS[kind]
            return self._typed(element, target, count, width)
        if kind == _KEY:
            return self._key(target)
        if kind == _KEYS:
            return self._keys(target, self._length(target, width), width)
        if kind in _INDIRECT:
            return self._scalar(_INDIRECT[kind], target, width)
        if kind == _BLOB:
            return self._bytes(target, self._length(target, width))
        self._fail(f"unknown type {kind} at {position}")

    def _scalar(self, kind: int, position: int, width: int) -> Any:
        if kind == _NULL:
            return None
        number = self._numbers(kind, position, 1, width)[0]
        return bool(number) if kind == _BOOL else number

    def _items(self, target: int, count: int, width: int, depth: int) -> list[Any]:
        self._spend(count)
        types = target + (count << width)
        if types + count > len(self._data):
            self._fail(f"a vector of {count} elements at {target} reaches outside")
        return [
            self._value(self._data[types + i], target + (i << width), width, depth)
            for i in range(count)
        ]

    def _map(self, values: list[Any], target: int, width: int) -> dict[str, Any]:
        word = 1 << width
        keys_width = int(self._numbers(_UINT, target - 2 * word, 1, width)[0])
        if keys_width not in (1, 2, 4, 8):
            self._fail(f"the keys of the map at {target} have width {keys_width}")
        keys_width = keys_width.bit_length() - 1
        keys_at = self._target(target - 3 * word, width)
        count = self._length(keys_at, keys_width)
        if count != len(values):
            self._fail(f"a map at {target} has {count} keys and {len(values)} values")
        return dict(zip(self._keys(keys_at, count, keys_width), values, strict=True))

    def _typed(self, element: int, target: int, count: int, width: int) -> list[Any]:
        self._spend(count)
        numbers = self._numbers(element, target, count, width)
        return [bool(number) for number in numbers] if element == _BOOL else list(numbers)

    def _keys(self, target: int, count: int, width: int) -> list[str]:
        self._spend(count)
        offsets = self._numbers(_UINT, target, count, width)
        return [self._key(target + (i << width) - offset) for i, offset in enumerate(offsets)]

    def _key(self, target: int) -> str:
        end = self._data.find(0, target) if target >= 0 else -1
        if end < 0:
            self._fail(f"the key at {target} reaches outside")
        return self._text(target, end - target)

    def _text(self, target: int, length: int) -> str:
        text = self._texts.get((target, length))
        if text is None:
            try:
                text = self._bytes(target, length).decode()
            except UnicodeDecodeError:
                self._fail(f"the text at {target} is not UTF-8")
            self._texts[target, length] = text
        return text

    def _bytes(self, target: int, length: int) -> bytes:
        self._spend(length)
        if target + length > len(self._data):
            self._fail(f"{length} bytes at {target} reach outside")
        return self._data[target : target + length]
