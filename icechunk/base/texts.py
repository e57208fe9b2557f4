"""Objects as text, in the two forms of the official client.

One is a label with a line for each field, ``<icechunk.ops.GCSummary>``. The other is a call
that makes the object, ``icechunk.config.CachingConfig(...)``. Programs and doctests compare
them, so every space counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from enum import Enum
from textwrap import indent
from typing import Any, ClassVar, Final, cast

from icechunk.base.display import Displayed
from icechunk.base.visible import visible

_STEP = "    "

#: What it means if an object is missing that a version needs.
COLLECTED: Final = (
    "the repository is damaged, or was garbage collected under this reader; Repository.verify "
    "says which, and Repository.repair what can be mended"
)
#: What to do about an object that cannot be decoded.
MENDED: Final = "Repository.repair says what can be mended"
#: The same for the object that names all versions.
RESTORED: Final = "Repository.repair says whether a copy can be restored"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number of things, in the singular or in the plural.

    Parameters
    ----------
    number : int
    one : str
        What follows if it is 1: a noun, and a verb where there is one.
    many : str, optional
        What follows otherwise. Default: `one` with an ``s``.

    Examples
    --------
    >>> counted(1, "commit"), counted(2000, "commit"), counted(2, "file is", "files are")
    ('1 commit', '2,000 commits', '2 files are')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def labelled(name: str, lines: Mapping[str, str]) -> str:
    """Return a label with a line for each field. A value of several lines becomes a block."""
    text = f"<{name}>\n"
    for field, value in lines.items():
        value = visible(value)
        if "\n" in value:
            text += f"{field}:\n{indent(value.rstrip(), _STEP)}\n"
        else:
            text += f"{field}: {value}\n"
    return text


def call(name: str, arguments: Mapping[str, str]) -> str:
    """Return a call with a line for each argument."""
    lines = "".join(
        f"{_STEP}{key}={visible(value).replace(chr(10), chr(10) + _STEP)},\n"
        for key, value in arguments.items()
    )
    return f"{name}(\n{lines})"


def literal(value: object) -> str:
    """Return a value as it appears in a call: strings in double quotes, enumerations by name."""
    if isinstance(value, str) and not isinstance(value, Enum):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return plain(value)


def plain(value: object) -> str:
    """Return a value as it appears in a line of its own."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        parts = (value.year, value.month, value.day, value.hour, value.minute, value.second)
        shown = ",".join(map(str, (*parts, value.microsecond)))
        return f"datetime.datetime({shown}, tzinfo=datetime.timezone.utc)"
    if isinstance(value, dict):
        return literal(value)
    return repr(value)


class Labelled(Displayed):
    """Displays a dataclass as a label with a line for each field."""

    __slots__ = ()
    _label: ClassVar[str]

    def __repr__(self) -> str:
        names = [field.name for field in fields(cast(Any, self)) if field.repr]
        return labelled(self._label, {name: self._shown(name) for name in names})

    def _shown(self, name: str) -> str:
        return plain(getattr(self, name))


def article(value: object) -> str:
    """Return the name of a value's type with its article.

    Examples
    --------
    >>> article(1), article("")
    ('an int', 'a str')
    """
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
