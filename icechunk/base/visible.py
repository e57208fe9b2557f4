"""Text that is to be shown, without what would steer the screen that shows it.

Names, messages and keys are whatever somebody wrote into a repository. Terminals take control
characters for commands, and a change of direction makes a text look like another one.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["as_json", "in_a_line", "visible"]

#: Control characters of both sets, changes of direction (Unicode Standard Annex 9), other ends
#: of lines, and halves of characters, which cannot be written. A line feed and a tab are left.
_STEERING: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)
_LINES: Final = re.compile("[\n\t]")
_SHORT: Final = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def visible(text: str) -> str:
    """Return a text with such characters as Python escapes them in strings."""
    return _STEERING.sub(_escaped, text)


def in_a_line(text: str) -> str:
    """Return a text as `visible` does, in one line whatever it holds."""
    return _LINES.sub(_escaped, visible(text))


def as_json(text: str) -> str:
    """Return JSON that means the same, with such characters as JSON escapes them."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
