"""The history of a repository as a drawing: text for terminals, SVG for notebooks.

Every branch has a lane, and ``main`` has the first. Its commits are in its lane, down to one
that already belongs to a lane further left, where the lane ends.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from icechunk.base.visible import in_a_line
from icechunk.commit.snapshot_info import SnapshotInfo
from icechunk.format.repo_info import RepoInfo, SnapshotEntry

__all__ = ["AncestryGraph"]

_MAIN: Final = "main"
_ID_LENGTH: Final = 8
_MESSAGE_LENGTH: Final = 60
# terminal colours, and the Okabe-Ito palette, which everybody can tell apart
_TERMINAL_COLORS: Final = (32, 33, 36, 35, 34, 31)
_SVG_COLORS: Final = ("#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#0072B2", "#D55E00")
_TAG_TERMINAL_COLOR: Final = 36
# of the SVG, in pixels
_LANE: Final = 20
_LINE: Final = 28
_CHARACTER: Final = 8
_TEXT_SIZE: Final = 13


@dataclass(frozen=True)
class _Row:
    """One commit.

    Attributes
    ----------
    lane : int
        The lane that the commit is in.
    joins : tuple of int
        Lanes that end here.
    passing : frozenset of int
        Other lanes that are drawn at this height.
    below : frozenset of int
        Lanes that continue below.
    """

    commit: SnapshotInfo
    branches: tuple[tuple[str, int], ...]
    tags: tuple[str, ...]
    lane: int
    joins: tuple[int, ...]
    passing: frozenset[int]
    below: frozenset[int]

    @property
    def id(self) -> str:
        """The beginning of the id, which is enough to name a version."""
        return self.commit.id[:_ID_LENGTH]

    @property
    def message(self) -> str:
        """The first line of the message, shortened to fit."""
        return _shortened(self.commit.message)

    @property
    def written(self) -> str:
        """The time in UTC, to the minute."""
        return f"{self.commit.written_at:%Y-%m-%d %H:%M}"


class AncestryGraph:
    """A drawing of history. ``print`` it, or display it in a notebook.

    Made by `Repository.ancestry_graph`. Snapshots that are on no branch are not in it.
    Notebooks show times in UTC; so does `dated`.

    Examples
    --------
    >>> graph = repo.ancestry_graph(plain=True)
    >>> [commit.message for commit, branches, tags in graph.commits()]
    ['Second', 'First', 'Repository initialized']
    """

    def __init__(self, rows: Sequence[_Row], lanes: int, plain: bool) -> None:
        self._rows = rows
        self._lanes = lanes
        self._plain = plain

    @classmethod
    def from_branches(cls, info: RepoInfo, *, plain: bool) -> AncestryGraph:
        """Draw the history of all branches."""
        names = sorted(info.branches, key=lambda name: (name != _MAIN, name))
        branches: dict[bytes, list[tuple[str, int]]] = {}
        for lane, name in enumerate(names):
            branches.setdefault(info.branches[name], []).append((name, lane))
        tips = [info.branches[name] for name in names]
        return cls(_layout(info, tips, branches), len(tips), plain)

    @classmethod
    def from_version(
        cls, info: RepoInfo, tip: bytes, branch: str | None, *, plain: bool
    ) -> AncestryGraph:
        """Draw the history of one snapshot, which may be that of a branch."""
        branches = {tip: [(branch, 0)]} if branch is not None else {}
        return cls(_layout(info, [tip], branches), 1, plain)

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self._lines())

    def __repr__(self) -> str:
        return str(self)

    def dated(self, number: int | None = None) -> str:
        """Return the text with the time of each commit, in UTC.

        Parameters
        ----------
        number : int, optional
            The maximum number of commits, the newest first.
        """
        lines = self._lines(dates=True)
        return "\n".join(islice(lines, None if number is None else max(2 * number - 1, 0)))

    def commits(self) -> Iterator[tuple[SnapshotInfo, list[str], list[str]]]:
        """Yield each commit with the names of the branches and tags that point to it."""
        for row in self._rows:
            yield row.commit, [name for name, _ in row.branches], list(row.tags)

    # -- text ------------------------------------------------------------------------------
    def _lines(self, *, dates: bool = False) -> Iterator[str]:
        for position, row in enumerate(self._rows):
            names = [
                self._styled(name, f"1;{_terminal_color(lane)}") for name, lane in row.branches
            ]
            names += [self._styled(tag, f"1;3;{_TAG_TERMINAL_COLOR}") for tag in row.tags]
            refs = f"({', '.join(names)}) " if names else ""
            time = f"{row.written} " if dates else ""
            short = self._styled(row.id, "2")
            yield f"{self._commit_line(row)}{short} {time}{refs}{row.message}"
            if position < len(self._rows) - 1:
                yield "".join(
                    self._colored("│" if lane in row.below else " ", lane) + " "
                    for lane in range(self._lanes)
                )

    def _commit_line(self, row: _Row) -> str:
        last = max(row.joins, default=row.lane)
        cells = []
        for lane in range(self._lanes):
            in_reach = row.lane < lane <= last
            if lane == row.lane:
                sign = "●"
            elif lane in row.joins:
                sign = "╯" if lane == last else "┴"
            elif lane in row.passing:
                sign = "┼" if in_reach else "│"
            else:
                sign = "─" if in_reach else " "
            cells.append(self._colored(sign, lane))
            cells.append(self._colored("─" if row.lane <= lane < last else " ", last))
        return "".join(cells)

    def _colored(self, text: str, lane: int) -> str:
        return self._styled(text, str(_terminal_color(lane))) if text.strip() else text

    def _styled(self, text: str, codes: str) -> str:
        return text if self._plain else f"\x1b[{codes}m{text}\x1b[0m"

    # -- SVG -------------------------------------------------------------------------------
    def _repr_svg_(self) -> str:
        starts: dict[int, int] = {}
        shortpes, texts = [], []
        for position, row in enumerate(self._rows):
            height = _middle(position)
            starts.setdefault(row.lane, position)
            for lane in row.joins:
                # straight down to the row before, and from there to this commit
                x, y = _center(lane), height - _LINE
                shortpes.append(self._line(lane, starts[lane], position - 1))
                shortpes.append(
                    f'<path d="M {x} {y} C {x} {height}, {x} {height}, '
                    f'{_center(row.lane)} {height}" fill="none" {self._stroke(lane)}/>'
                )
            if row.lane not in row.below:
                shortpes.append(self._line(row.lane, starts[row.lane], position))
            texts.append(self._svg_commit(row, height))
        longest = max(map(_text_length, self._rows))
        width = _center(self._lanes) + longest * _CHARACTER
        height = _LINE * len(self._rows)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
                f'style="font-family: monospace; font-size: {_TEXT_SIZE}px;">',
                *shortpes,
                *texts,
                "</svg>",
            ]
        )

    def _svg_commit(self, row: _Row, height: int) -> str:
        # in the colour of the page: no other can be read on light and on dark pages
        names = [
            f'<tspan font-weight="bold">{html.escape(name)}</tspan>' for name, _ in row.branches
        ]
        names += [
            f'<tspan font-weight="bold" font-style="italic">{html.escape(tag)}</tspan>'
            for tag in row.tags
        ]
        refs = f"({', '.join(names)}) " if names else ""
        fill = self._fill(_svg_color(row.lane))
        return (
            f'<circle cx="{_center(row.lane)}" cy="{height}" r="5"{fill}/>'
            f'<text x="{_center(self._lanes)}" y="{height + 4}" fill="currentColor">'
            f'<tspan opacity="0.75">{row.id} {row.written}</tspan> {refs}'
            f"{html.escape(row.message)}</text>"
        )

    def _line(self, lane: int, first: int, last: int) -> str:
        x = _center(lane)
        return (
            f'<line x1="{x}" y1="{_middle(first)}" x2="{x}" y2="{_middle(last)}" '
            f"{self._stroke(lane)}/>"
        )

    def _stroke(self, lane: int) -> str:
        return f'stroke="{"gray" if self._plain else _svg_color(lane)}" stroke-width="2"'

    def _fill(self, color: str) -> str:
        return "" if self._plain else f' fill="{color}"'


def _layout(
    info: RepoInfo, tips: Sequence[bytes], branches: dict[bytes, list[tuple[str, int]]]
) -> list[_Row]:
    lane_of: dict[bytes, int] = {}
    entries: dict[bytes, SnapshotEntry] = {}
    joins: dict[bytes, list[int]] = {}
    for lane, tip in enumerate(tips):
        for entry in info.ancestry(tip):
            if entry.id in entries:
                if entry.id != tip:
                    joins.setdefault(entry.id, []).append(lane)
                break
            entries[entry.id], lane_of[entry.id] = entry, lane
    tags: dict[bytes, list[str]] = {}
    for tag, target in sorted(info.tags.items()):
        tags.setdefault(target, []).append(tag)
    rows: list[_Row] = []
    drawn: set[int] = set()
    times = _rising_times(entries)
    for entry in sorted(entries.values(), key=lambda entry: -times[entry.id]):
        lane = lane_of[entry.id]
        ending = tuple(joins.get(entry.id, ()))
        passing = frozenset(drawn - {lane, *ending})
        drawn -= {lane, *ending}
        if entry.parent_id is not None:
            drawn.add(lane)
        rows.append(
            _Row(
                SnapshotInfo.from_entry(entry),
                tuple((in_a_line(name), lane) for name, lane in branches.get(entry.id, ())),
                tuple(map(in_a_line, tags.get(entry.id, ()))),
                lane,
                ending,
                passing,
                frozenset(drawn),
            )
        )
    return rows


def _rising_times(entries: dict[bytes, SnapshotEntry]) -> dict[bytes, int]:
    """Return when each snapshot was made, or earlier if one of its children claims to be older."""
    times = {entry.id: entry.flushed_at for entry in entries.values()}
    for entry in entries.values():
        child, parent = entry, entries.get(entry.parent_id or b"")
        while parent is not None and times[parent.id] >= times[child.id]:
            times[parent.id] = times[child.id] - 1
            child, parent = parent, entries.get(parent.parent_id or b"")
    return times


def _shortened(message: str) -> str:
    """Return the first line, shortened if necessary."""
    line = in_a_line(message.split("\n", 1)[0])
    if len(line) > _MESSAGE_LENGTH:
        line = line[: _MESSAGE_LENGTH - 3] + "..."
    return line


def _text_length(row: _Row) -> int:
    refs = [*(name for name, _ in row.branches), *row.tags]
    return len(f"{row.id} {row.written} ({', '.join(refs)}) {row.message}")


def _center(lane: int) -> int:
    return _LANE * lane + 15


def _middle(position: int) -> int:
    return _LINE * position + 15


def _terminal_color(lane: int) -> int:
    return _TERMINAL_COLORS[lane % len(_TERMINAL_COLORS)]


def _svg_color(lane: int) -> str:
    return _SVG_COLORS[lane % len(_SVG_COLORS)]
