"""Object ids, their text form, and node paths.

Ids are raw ``bytes`` inside the library and text at its edge. The text form is
Crockford's base32 in upper case, most significant bit first, padded with zero bits
on the right (Icechunk spec, "Identifiers"), so text order equals byte order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from icechunk.errors import ErrorKind, InvalidInputError

OBJECT_ID_SIZE: Final = 12  # snapshots, manifests, chunks
NODE_ID_SIZE: Final = 8

#: Every repository begins with this snapshot.
INITIAL_SNAPSHOT_ID: Final = bytes.fromhex("0b1cc8d6787580f0e33a6534")

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES: Final = {c: i for i, c in enumerate(_ALPHABET)}
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]
#: Value of each byte as a digit, 255 for bytes that are not digits.
_DIGITS: Final = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(_ALPHABET.encode(), np.uint8)] = np.arange(32)
#: Letters of an object id, and the zero bits that they have to spare.
_ID_CHARS: Final = (OBJECT_ID_SIZE * 8 + 4) // 5
_SPARE: Final = _ID_CHARS * 5 - OBJECT_ID_SIZE * 8


def new_object_id() -> bytes:
    """Return 12 random bytes."""
    return os.urandom(OBJECT_ID_SIZE)


def encode_id(raw: bytes) -> str:
    """Return the text form: 20 characters for 12 bytes, 13 for 8."""
    chars = (len(raw) * 8 + 4) // 5
    spare = -chars % 2 * 5 + chars * 5 - len(raw) * 8
    number = int.from_bytes(raw, "big") << spare
    pairs = [_PAIRS[number >> shift & 1023] for shift in range((chars - 1) // 2 * 10, -1, -10)]
    return "".join(pairs)[:chars]


def encode_ids(rows: npt.NDArray[np.uint8]) -> list[str]:
    """Return the text forms of many ids: uint8[n, size]."""
    count, size = rows.shape
    chars = (size * 8 + 4) // 5
    bits = np.zeros((count, chars * 5), np.uint8)
    bits[:, : size * 8] = np.unpackbits(rows, axis=1)
    digits = bits.reshape(count, chars, 5) @ np.array([16, 8, 4, 2, 1], np.uint8)
    text = np.frombuffer(_ALPHABET.encode(), np.uint8)[digits].tobytes().decode()
    return [text[start : start + chars] for start in range(0, count * chars, chars)]


def decode_id(text: str, kind: ErrorKind = ErrorKind.INVALID_SNAPSHOT_ID) -> bytes:
    """Return the raw form of an id, written in upper or lower case.

    Raises
    ------
    InvalidInputError
        If `text` is not the text form of 12 bytes.
    """
    letters = text.upper() if isinstance(text, str) and text.isascii() else ""
    if len(letters) == _ID_CHARS and all(c in _VALUES for c in letters):
        number = 0
        for c in letters:
            number = number << 5 | _VALUES[c]
        if number & ((1 << _SPARE) - 1) == 0:
            return (number >> _SPARE).to_bytes(OBJECT_ID_SIZE, "big")
        last = ", ".join(_ALPHABET[:: 1 << _SPARE])
        problem = f"no id ends with {letters[-1]!r}, only with one of {last}"
    else:
        problem = f"expected {_ID_CHARS} characters of {_ALPHABET}"
    shown = repr(text) if isinstance(text, str) else f"a value of type {type(text).__name__}"
    raise InvalidInputError(f"{shown} is not an id: {problem}", kind)


def decode_ids(texts: Sequence[str]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """Return which texts are object ids as `encode_ids` writes them, and their raw forms.

    Returns
    -------
    valid : bool[n]
    rows : uint8[count of valid texts, 12]
    """
    fits = [len(text) == _ID_CHARS and text.isascii() for text in texts]
    joined = "".join(text for text, good in zip(texts, fits, strict=True) if good)
    digits = _DIGITS[np.frombuffer(joined.encode(), np.uint8)].reshape(-1, _ID_CHARS)
    bits = np.unpackbits(digits, axis=1).reshape(len(digits), _ID_CHARS, 8)[:, :, 3:]
    bits = bits.reshape(len(digits), _ID_CHARS * 5)
    # a digit is below 32, and the spare bits at the end are zero
    good = (digits < 32).all(axis=1) & ~bits[:, OBJECT_ID_SIZE * 8 :].any(axis=1)
    valid = np.array(fits, np.bool_)
    valid[valid] = good
    return valid, np.packbits(bits[good, : OBJECT_ID_SIZE * 8], axis=1)


def normalize_path(path: str) -> str:
    """Return the absolute form of a node path: ``/`` or ``/a/b``.

    Raises
    ------
    InvalidInputError
        If a segment is empty, ``.`` or ``..``.
    """
    stripped = path.strip("/")
    if not stripped:
        return "/"
    if any(part in ("", ".", "..") for part in stripped.split("/")):
        raise InvalidInputError(
            f"{path!r} is not a node path: segments may not be empty, '.' or '..'",
            ErrorKind.INVALID_PATH,
        )
    return "/" + stripped


def wrong_path(paths: Sequence[str]) -> str | None:
    """Return the first of some stored paths that `normalize_path` would not return.

    They may become names of files, where ``..`` leads out of the folder.
    """
    # as one text, because there may be a million
    text = "\n".join(["", *paths, ""])
    plain = (
        text.count("\n") == text.count("\n/") + 1 == len(paths) + 1
        and text.count("/\n") == text.count("\n/\n")
        and not any(part in text for part in ("//", "/./", "/../", "/.\n", "/..\n"))
    )
    if not plain:
        for path in paths:
            parts = path.split("/")
            whole = path == "/" or {"", ".", ".."}.isdisjoint(parts[1:])
            if not (path.startswith("/") and whole):
                return path
    return None


def parent_path(path: str) -> str | None:
    """Return the path of the parent group, or None for the root."""
    if path == "/":
        return None
    return path.rsplit("/", 1)[0] or "/"


def parent_paths(path: str) -> Iterator[str]:
    """Yield the paths of all groups that hold a node, the nearest first."""
    parent = parent_path(path)
    while parent is not None:
        yield parent
        parent = parent_path(parent)


def is_within(path: str, ancestor: str) -> bool:
    """Whether `path` is `ancestor` or lies below it."""
    return path == ancestor or ancestor == "/" or path.startswith(ancestor + "/")
