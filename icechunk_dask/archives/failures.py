"""What is wrong with a file, in words.

A damaged file is told from too little memory, and from a mistake of this library.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from icechunk import IcechunkError

__all__ = ["failure_of", "not_in_json"]

_log = logging.getLogger(__name__)

#: What Python raises for mistakes in code. What a file is to blame for are other kinds.
_MISTAKES: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    TypeError,
)
_OWN: Final = Path(__file__).parents[1]
_CORE: Final = _OWN.with_name("icechunk")


def failure_of(exc: Exception) -> str:
    """Return in words why a file could not be scanned.

    Parameters
    ----------
    exc : Exception
        As it was caught.
    """
    reason = f"{type(exc).__name__}: {exc or 'no reason is given'}"
    if isinstance(exc, MemoryError):
        return (
            f"{reason}; there was too little memory to read it, which says nothing about the "
            "file: scan fewer files at a time (fewer threads of each worker), or leave out what "
            "is large with drop_variables"
        )
    if isinstance(exc, _MISTAKES) and not isinstance(exc, IcechunkError):
        last = deque(traceback.walk_tb(exc.__traceback__), 1)
        path = Path(last[0][0].f_code.co_filename) if last else Path()
        if path.is_relative_to(_OWN) or path.is_relative_to(_CORE):
            _log.error("a file could not be scanned", exc_info=exc)
            return (
                f"{reason}, at line {last[0][1]} of {path.name}; this is a mistake of this "
                "library rather than damage of the file: please report it, with the file if "
                "possible"
            )
    return reason


def not_in_json(attributes: Mapping[str, Any]) -> str:
    """Return which attribute has a number that JSON does not have; empty if none has.

    Parameters
    ----------
    attributes : mapping
        Numbers, texts, lists and mappings.
    """
    for name, value in attributes.items():
        odd = _odd_number(value)
        if odd is not None:
            token = "NaN" if math.isnan(odd) else "Infinity" if odd > 0 else "-Infinity"
            return f"its attribute {name!r} is {token}, a number that JSON does not have"
    return ""


def _odd_number(value: Any) -> float | None:
    match value:
        case float() if not math.isfinite(value):
            return value
        case list():
            return next((odd for odd in map(_odd_number, value) if odd is not None), None)
        case dict():
            return _odd_number(list(value.values()))
    return None
