"""Damage for files, and what a decoder may do with it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from icechunk.errors import FormatError

# small counts, signs, and what overflows when it is added or multiplied
_WORDS = (0, 1, 2, 4, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A cut, some wrong bytes, wrong words, or one part copied over another."""
    out = bytearray(data)
    at = st.integers(0, max(len(data) - 1, 0))
    how = draw(st.sampled_from(("cut", "bytes", "words", "copy")))
    if how == "cut":
        del out[draw(at) :]
    elif how == "copy":
        source, target, size = draw(at), draw(at), draw(st.integers(1, 64))
        out[target : target + size] = out[source : source + size]
    else:
        for _ in range(draw(st.integers(1, 4))):
            if how == "bytes":
                out[draw(at)] = draw(st.integers(0, 255))
            else:
                word = draw(at) // 4 * 4
                near = st.integers(0, len(data))
                value = draw(st.one_of(st.sampled_from(_WORDS), near))
                out[word : word + 4] = struct.pack("<I", value)
    return bytes(out)


def value_or_format_error(decode: Callable[[], Any]) -> Any:
    """Call `decode`; a `FormatError` is fine and gives None, anything else is a failure."""
    try:
        return decode()
    except FormatError as error:
        assert str(error)
        return None
