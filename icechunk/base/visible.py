"""Text to be displayed, without characters that would control the screen.

Names, messages and keys are whatever somebody wrote into a repository. Terminals obey control
characters, and a change of direction makes one text look like another.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["as_json", "in_a_line", "visible"]

#: Control characters of both sets, changes of direction (Unicode Standard Annex 9), other line
#: ends, what takes no room, and lone surrogates, which cannot be encoded. Line feeds and tabs
#: are kept, and so are joiners, which scripts and emoji need.
_STEERING: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_LINES: Final = re.compile("[\n\t]")
_SHORT: Final = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _in_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def visible(text: str) -> str:
    """Return a text with such characters escaped as Python escapes them in strings."""
    return _STEERING.sub(_escaped, text)


def in_a_line(text: str) -> str:
    """Return a text as `visible` does, always in one line."""
    return _LINES.sub(_escaped, visible(text))


def as_json(text: str) -> str:
    """Return JSON with the same meaning, and such characters escaped as JSON escapes them."""
    return _STEERING.sub(_in_json, text)
