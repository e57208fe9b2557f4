"""How public objects are displayed: numbered enumerations, and notebooks."""

from __future__ import annotations

import html
from enum import Enum

from icechunk.base.visible import visible


class NumberedEnum(int, Enum):
    """An enumeration whose members equal their numbers and are displayed by name."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class Displayed:
    """Shows the ``repr`` of an object in notebooks, line by line as it is."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(visible(repr(self)))}</pre>"
