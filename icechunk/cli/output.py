"""How results are printed: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

import click

from icechunk.base.visible import as_json, in_a_line, visible

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "console",
    "done",
    "error_console",
    "fields",
    "print_json",
    "size",
    "table",
    "text",
]


def console() -> Console:
    """Return the console of standard output: colours in a terminal only, and not with NO_COLOR."""
    from rich.console import Console  # most commands do without, and start sooner

    return Console(soft_wrap=True, highlight=False, emoji=False, markup=False)


def error_console() -> Console:
    """Return the console of standard error, for progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False, markup=False)


def text(line: str = "") -> None:
    """Print a line as it is, apart from characters that would steer the terminal."""
    click.echo(visible(line))


def table(rows: Iterable[Sequence[Any]], *names: str) -> None:
    """Print rows under the names of their columns; numbers are aligned on the right.

    No cell is cut or folded, so that ids can be pasted and lines can be searched.
    """
    listed = [list(row) for row in rows]
    numbers = [
        bool(listed) and all(isinstance(row[i], int | float) for row in listed)
        for i in range(len(names))
    ]
    cells = [[in_a_line(_short(value)) for value in row] for row in listed]
    head, *lines = _aligned([list(names), *cells], numbers)
    click.echo(_bold(head.rstrip(" ")))
    for line in lines:
        click.echo(line.rstrip(" "))


def fields(pairs: Mapping[str, Any]) -> None:
    """Print names and values, a line each."""
    names = _aligned([[in_a_line(name), ""] for name in pairs], [False, False])
    for name, value in zip(names, pairs.values(), strict=True):
        click.echo(_bold(name) + in_a_line(_short(value)))


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Return a line for each row, with columns as wide as their widest cell."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for cell, width, is_right in zip(row, widths, right, strict=True):
            space = " " * (width - _width(cell))
            cells.append(space + cell if is_right else cell + space)
        lines.append("  ".join(cells))
    return lines


def _bold(line: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return line if plain else click.style(line, bold=True)  # echo strips it in pipes


def _width(cell: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if cell.isascii():
        return len(cell)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in cell)
    return len(cell) + wide - sum(map(bool, map(unicodedata.combining, cell)))


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


def size(count: int) -> str:
    """Return a number of bytes in readable form."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError
