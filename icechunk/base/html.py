"""Cards for notebooks: one look for all. They fold, and follow the page's light or dark theme.

Text is escaped unless it is `Html` already. Colours come from the page. The few others were
chosen to work on light and dark pages, and for colour-blind readers.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from icechunk.base.visible import visible

__all__ = [
    "Cell",
    "Html",
    "bullets",
    "card",
    "cell_map",
    "chunk_map",
    "code",
    "escaped",
    "fields",
    "note",
    "section",
    "table",
]

#: Rows that a table shows, and characters of a text.
_ROWS: Final = 50
_TEXT: Final = 300
#: Cells of a picture of chunks along each axis, and the side of a cell in pixels.
_CELLS: Final = 32
_SIDE: Final = 7

_STYLE: Final = """<style>
.icechunk-card{--ic-accent:#0072B2;--ic-line:rgba(128,128,128,.35);--ic-soft:rgba(128,128,128,.1);
 color:inherit;border:1px solid var(--ic-line);border-radius:6px;padding:8px 12px;margin:2px 0;
 max-width:60em;font:13px/1.5 system-ui,sans-serif;overflow-x:auto}
@media (prefers-color-scheme:dark){.icechunk-card{--ic-accent:#56B4E9}}
[data-jp-theme-light="true"] .icechunk-card,.vscode-light .icechunk-card,
 [data-theme="light"] .icechunk-card{--ic-accent:#0072B2}
[data-jp-theme-light="false"] .icechunk-card,.vscode-dark .icechunk-card,
 [data-theme="dark"] .icechunk-card{--ic-accent:#56B4E9}
.icechunk-card .ic-kind{color:var(--ic-accent);font-weight:600;margin-right:.6em}
.icechunk-card .ic-note{opacity:.75}
.icechunk-card summary{cursor:pointer;padding:2px 0}
.icechunk-card details{margin-top:4px}
.icechunk-card details>details,.icechunk-card details>div{margin-left:1.2em}
.icechunk-card table{border-collapse:collapse;margin:2px 0;background:none}
.icechunk-card th,.icechunk-card td{text-align:left;vertical-align:top;padding:1px 1.2em 1px 0;
 border:0;background:none;color:inherit;font-weight:normal;white-space:pre-wrap}
.icechunk-card th{opacity:.75}
.icechunk-card code,.icechunk-card pre{font:12px/1.5 ui-monospace,monospace;background:none;
 color:inherit;padding:0}
.icechunk-card pre{background:var(--ic-soft);padding:6px 8px;margin:4px 0;border-radius:4px;
 overflow-x:auto}
.icechunk-card svg rect{fill:var(--ic-accent)}
.icechunk-card svg .ic-frame{fill:none;stroke:var(--ic-line)}
</style>"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """Return a value as HTML: text escaped and not too long, a time in UTC to the second."""
    if isinstance(value, Html):
        return value
    text = f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else str(value)
    return Html(html.escape(visible(text if len(text) <= _TEXT else f"{text[:_TEXT]}...")))


def card(kind: str, title: object, *parts: Html) -> Html:
    """Return a card.

    Parameters
    ----------
    kind : str
        What it is, such as the name of a class.
    title : object
        What tells it apart from others of its kind.
    *parts : Html
        Below the title.
    """
    head = f'<div><span class="ic-kind">{escaped(kind)}</span><code>{escaped(title)}</code></div>'
    return Html(f'<div class="icechunk-card">{_STYLE}{head}{"".join(parts)}</div>')


def section(title: object, body: Html, *, is_open: bool = False) -> Html:
    """Return a part that folds, or nothing if it has no content."""
    if not body:
        return Html("")
    state = " open" if is_open else ""
    return Html(f"<details{state}><summary>{escaped(title)}</summary><div>{body}</div></details>")


def fields(values: Mapping[str, object]) -> Html:
    """Return names and values, one pair a line. Values that are None are left out."""
    rows = "".join(
        f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>"
        for name, value in values.items()
        if value is not None
    )
    return Html(f"<table>{rows}</table>" if rows else "")


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Return rows under their headings, up to a limit. Without rows, return nothing."""
    listed = list(rows)
    if not listed:
        return Html("")
    head = "".join(f"<th>{escaped(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escaped(value)}</td>" for value in row) + "</tr>"
        for row in listed[:_ROWS]
    )
    return Html(
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{_more(listed)}"
    )


def bullets(values: Iterable[object]) -> Html:
    """Return values, one a line, up to a limit."""
    listed = list(values)
    lines = "<br>".join(f"<code>{escaped(value)}</code>" for value in listed[:_ROWS])
    return Html(f"{lines}{_more(listed)}")


def code(text: str) -> Html:
    """Return lines unchanged, ready to be copied."""
    return Html(f"<pre>{html.escape(visible(text))}</pre>" if text else "")


def note(value: object) -> Html:
    """Return a line in a muted colour."""
    return Html(f'<div class="ic-note">{escaped(value)}</div>')


def _more(listed: Sequence[Any]) -> Html:
    return note(f"and {len(listed) - _ROWS:,} more") if len(listed) > _ROWS else Html("")


class Cell(NamedTuple):
    """A place in a picture.

    Attributes
    ----------
    y, x : int
        Where it is, from the corner above left.
    share : float
        How much of it there is, from 0 to 1.
    told : str
        What is shown when a pointer rests on it; may be empty.
    """

    y: int
    x: int
    share: float
    told: str = ""


def cell_map(cells: Sequence[Cell], axes: Sequence[tuple[str, int, int]]) -> Html:
    """Return a picture of cells, the darker the more there is of each.

    Parameters
    ----------
    cells : sequence of Cell
    axes : sequence of (str, int, int)
        Name, first and last coordinate of one or two axes; the last goes across.
    """
    width, height = (1 + max(getattr(cell, side) for cell in cells) for side in ("x", "y"))
    rects = "".join(
        f'<rect x="{cell.x * _SIDE + 1}" y="{cell.y * _SIDE + 1}" width="{_SIDE - 1}"'
        f' height="{_SIDE - 1}" opacity="{0.35 + 0.65 * cell.share if cell.share else 0.08:.2f}">'
        + (f"<title>{escaped(cell.told)}</title>" if cell.told else "")
        + "</rect>"
        for cell in cells
    )
    size = f'width="{width * _SIDE + 1}" height="{height * _SIDE + 1}"'
    ways = ("across",) if len(axes) == 1 else ("down", "across")
    told = escaped(
        ", ".join(
            f"{name} {way}: {first} to {last}"
            for (name, first, last), way in zip(axes, ways, strict=True)
        )
    )
    box = f'x="0.5" y="0.5" width="{width * _SIDE}" height="{height * _SIDE}"'
    frame = f'<rect class="ic-frame" {box}/>'
    return Html(f'<svg role="img" aria-label="{told}" {size}>{frame}{rects}</svg>{note(told)}')


def chunk_map(coords: Sequence[Sequence[int]], names: Sequence[str | None] = ()) -> Html:
    """Return a picture of chunks in their grid, or nothing for a grid of one chunk.

    It shows the two axes along which the chunks reach furthest. Where a cell stands for
    several chunks, it is darker the more of them there are.

    Parameters
    ----------
    coords : sequence of sequence of int
        Chunk grid coordinates, all of one rank.
    names : sequence of (str or None)
        Of the dimensions, where they have any.
    """
    if not coords or not coords[0]:
        return Html("")
    bounds = [(min(axis), max(axis)) for axis in zip(*coords, strict=True)]
    longest = sorted(range(len(bounds)), key=lambda i: bounds[i][0] - bounds[i][1])[:2]
    if bounds[longest[0]][0] == bounds[longest[0]][1]:
        return Html("")
    axes = sorted(longest)
    steps = [-(-(bounds[i][1] - bounds[i][0] + 1) // _CELLS) for i in axes]
    counts = Counter(
        tuple((row[i] - bounds[i][0]) // step for i, step in zip(axes, steps, strict=True))
        for row in coords
    )
    most = max(counts.values())
    cells = []
    for place, count in counts.items():
        y, x = (0, *place)[-2:]
        cells.append(Cell(y, x, count / most))
    named = {i: name for i, name in enumerate(names) if name}
    return cell_map(cells, [(named.get(i, f"axis {i}"), *bounds[i]) for i in axes])
