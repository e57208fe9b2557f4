"""How results are printed: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from icechunk.base.visible import as_json, in_a_line, visible

__all__ = ["count", "done", "error_console", "fields", "print_json", "size", "table", "text"]


def console() -> Console:
    """Return the console of standard output: colours in a terminal only, and not with NO_COLOR."""
    return Console(soft_wrap=True, highlight=False, emoji=False, markup=False)


def error_console() -> Console:
    """Return the console of standard error, for progress."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False)


def text(line: str = "") -> None:
    """Print a line as it is, apart from characters that would steer the terminal."""
    console().print(Text(visible(line)))


def table(rows: Iterable[Sequence[Any]], *names: str) -> None:
    """Print rows under the names of their columns; numbers are aligned on the right."""
    listed = [list(row) for row in rows]
    shown = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for i, name in enumerate(names):
        numbers = bool(listed) and all(isinstance(row[i], int | float) for row in listed)
        shown.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        shown.add_row(*(Text(in_a_line(_short(value))) for value in row))
    console().print(shown)


def fields(pairs: Mapping[str, Any]) -> None:
    """Print names and values, a line each."""
    shown = Table(box=None, show_header=False, pad_edge=False, show_edge=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in pairs.items():
        shown.add_row(Text(in_a_line(name)), Text(in_a_line(_short(value))))
    console().print(shown)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(str, sorted(value) if isinstance(value, set | frozenset) else value))
    return str(value)


def done(as_json: bool, line: str, **told: Any) -> None:
    """Print what a command has done: a line, or the values in it as JSON."""
    if as_json:
        print_json(told)
    else:
        text(line)


def print_json(value: Any) -> None:
    """Print a value as JSON: one document, sorted sets, times in ISO 8601.

    Numbers that JSON lacks become the strings that Zarr uses for them, such as ``"NaN"``.
    """
    text = json.dumps(value, default=_plain)
    text = json.dumps(json.loads(text, parse_constant=str), indent=2, ensure_ascii=False)
    sys.stdout.write(as_json(text) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def count(number: int, noun: str) -> str:
    """Return a count with its noun: ``1 commit``, ``2 commits``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(count: int) -> str:
    """Return a number of bytes in readable form."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError
