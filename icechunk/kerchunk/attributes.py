"""Attributes that cannot be stored, and how to leave attributes out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

__all__ = ["kept_attributes", "not_in_json"]

_T = TypeVar("_T")


def not_in_json(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return which attributes have a number that JSON lacks, and the number.

    Parameters
    ----------
    attributes : mapping
        Numbers, texts, lists and mappings.
    """
    found: dict[str, str] = {}
    for name, value in attributes.items():
        odd = _odd_number(value)
        if odd is not None:
            token = "NaN" if math.isnan(odd) else "Infinity" if odd > 0 else "-Infinity"
            found[name] = f"is {token}, a number that JSON does not have"
    return found


def _odd_number(value: Any) -> float | None:
    match value:
        case float() if not math.isfinite(value):
            return value
        case list():
            return next((odd for odd in map(_odd_number, value) if odd is not None), None)
        case dict():
            return _odd_number(list(value.values()))
    return None


def kept_attributes(
    path: str, attributes: Mapping[str, _T], dropped: Collection[str]
) -> dict[str, _T]:
    """Return the attributes of a node, without some of them.

    Parameters
    ----------
    path : str
        Of the node; the root is ``""``.
    attributes : mapping
    dropped : collection of str
        Names, left out wherever they are, or ``"path:name"`` for the attribute of one node.
    """
    gone = {name.lstrip("/") for name in dropped}
    return {
        name: value
        for name, value in attributes.items()
        if name not in gone and f"{path}:{name}" not in gone
    }
