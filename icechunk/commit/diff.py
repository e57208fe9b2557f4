"""What changed between two states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from icechunk.base.display import Displayed
from icechunk.base.html import Html, bullets, card, chunk_map, note, section
from icechunk.base.texts import counted
from icechunk.base.visible import in_a_line
from icechunk.format.nodes import Node
from icechunk.format.snapshot import Snapshot
from icechunk.format.transaction_log import TransactionLog

__all__ = ["Diff", "diff_from_logs", "parts_of"]

#: The number of arrays whose chunks a card shows.
_MAPS: Final = 20
#: Chunks of an array that a text names.
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Diff(Displayed):
    """What changed between two states: paths, and chunk coordinates by path.

    Attributes
    ----------
    new_groups, new_arrays, deleted_groups, deleted_arrays : set of str
    updated_groups, updated_arrays : set of str
        Nodes whose metadata changed.
    updated_chunks : dict of str to list of list of int
        Chunks written or deleted, by array.
    moved_nodes : list of (str, str)
        Old and new path, for every move of a node, in the order of the commits.
    dimension_names : dict of str to tuple of (str or None)
        Of the arrays in `updated_chunks` that name their dimensions.

    Examples
    --------
    >>> diff = repo.diff(from_tag="v1", to_branch="main")
    >>> diff.updated_arrays, diff.updated_chunks
    (set(), {'/temperature': [[0, 0]]})
    """

    new_groups: set[str] = field(default_factory=set)
    new_arrays: set[str] = field(default_factory=set)
    deleted_groups: set[str] = field(default_factory=set)
    deleted_arrays: set[str] = field(default_factory=set)
    updated_groups: set[str] = field(default_factory=set)
    updated_arrays: set[str] = field(default_factory=set)
    updated_chunks: dict[str, list[list[int]]] = field(default_factory=dict)
    moved_nodes: list[tuple[str, str]] = field(default_factory=list)
    dimension_names: dict[str, tuple[str | None, ...]] = field(default_factory=dict, compare=False)

    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not any(
            (
                self.new_groups,
                self.new_arrays,
                self.deleted_groups,
                self.deleted_arrays,
                self.updated_groups,
                self.updated_arrays,
                self.updated_chunks,
                self.moved_nodes,
            )
        )

    def __repr__(self) -> str:
        blocks = [
            f"{title}:\n" + "".join(f"    {in_a_line(path)}\n" for path in sorted(paths)) + "\n"
            for title, paths in (
                ("Groups created", self.new_groups),
                ("Arrays created", self.new_arrays),
                ("Group definitions updated", self.updated_groups),
                ("Array definitions updated", self.updated_arrays),
                ("Groups deleted", self.deleted_groups),
                ("Arrays deleted", self.deleted_arrays),
            )
            if paths
        ]
        if self.updated_chunks:
            blocks.append("Chunks updated:\n")
        for path, chunks in sorted(self.updated_chunks.items()):
            lines = [str(list(chunk)) for chunk in chunks[:_SHOWN]]
            if len(chunks) > _SHOWN:
                lines.append(f"... {len(chunks) - _SHOWN} more")
            blocks.append(
                f"    {in_a_line(path)}:\n" + "".join(f"        {line}\n" for line in lines)
            )
        if self.moved_nodes:
            moves = (f"    {in_a_line(old)} -> {in_a_line(new)}\n" for old, new in self.moved_nodes)
            blocks.append("Nodes moved/renamed:\n" + "".join(moves) + "\n")
        return "".join(blocks)

    def _repr_html_(self) -> str:
        count = sum(map(len, self.updated_chunks.values()))
        title = "no changes" if self.is_empty() else counted(count, "chunk") + " changed"
        return card("Diff", title, *parts_of(self))


def diff_from_logs(
    logs: Iterable[TransactionLog],
    before: Snapshot,
    after: Mapping[bytes, Node],
) -> Diff:
    """Summarise several transaction logs: operations, not only their outcome.

    A node that was made and edited later is new and updated, one that was edited and deleted
    later is updated and deleted. Of one that came and went, only its moves are listed. Nodes
    have their path at the end or, if they are gone, at the beginning.

    Parameters
    ----------
    logs : iterable of TransactionLog
        Oldest first.
    before : Snapshot
        The state that the first log was made on.
    after : mapping
        The nodes after the last log, by their ids.
    """
    diff = Diff()
    chunks: dict[bytes, set[tuple[int, ...]]] = {}
    updated: set[bytes] = set()
    mentioned: set[bytes] = set()
    for log in logs:
        mentioned.update(log.new_groups, log.new_arrays, log.deleted_groups, log.deleted_arrays)
        updated.update(log.updated_groups, log.updated_arrays)
        for node_id, parts in log.updated_chunks.items():
            known = chunks.setdefault(node_id, set())
            known.update(tuple(row) for part in parts for row in part.tolist())
        diff.moved_nodes.extend((move.from_path, move.to_path) for move in log.moved_nodes)
    for node_id in mentioned:
        old, new = before.get_by_id(node_id), after.get(node_id)
        if old is None and new is not None:
            (diff.new_arrays if new.is_array else diff.new_groups).add(new.path)
        elif old is not None and new is None:
            (diff.deleted_arrays if old.is_array else diff.deleted_groups).add(old.path)

    def last_seen(node_id: bytes) -> Node | None:
        return after.get(node_id) or before.get_by_id(node_id)

    for node_id in updated:
        found = last_seen(node_id)
        if found is not None:
            (diff.updated_arrays if found.is_array else diff.updated_groups).add(found.path)
    for node_id, coords in chunks.items():
        found = last_seen(node_id)
        if found is not None:
            # an array that was deleted and one that was made in its place share the path
            known = {tuple(row) for row in diff.updated_chunks.get(found.path, ())}
            diff.updated_chunks[found.path] = [list(row) for row in sorted(known | coords)]
            if found.array is not None and found.array.dimension_names is not None:
                diff.dimension_names[found.path] = tuple(found.array.dimension_names)
    return diff


def parts_of(diff: Diff) -> list[Html]:
    """Return the changes as parts of a card."""
    parts = [
        section(f"{title}: {len(paths):,}", bullets(sorted(paths)), is_open=True)
        for title, paths in _paths(diff)
    ]
    moves = [f"{old} -> {new}" for old, new in diff.moved_nodes]
    parts.append(section(f"Nodes moved: {len(moves):,}", bullets(moves), is_open=True))
    for i, (path, chunks) in enumerate(sorted(diff.updated_chunks.items())):
        if i == _MAPS:
            parts.append(note(f"and {counted(len(diff.updated_chunks) - _MAPS, 'more array')}"))
            break
        told = f"Chunks of {path}: {len(chunks):,}"
        names = diff.dimension_names.get(path, ())
        shown = chunk_map(chunks, names) or bullets([tuple(chunk) for chunk in chunks])
        parts.append(section(told, shown, is_open=i == 0))
    return parts


def _paths(diff: Diff) -> list[tuple[str, set[str]]]:
    return [
        ("Groups created", diff.new_groups),
        ("Groups updated", diff.updated_groups),
        ("Groups deleted", diff.deleted_groups),
        ("Arrays created", diff.new_arrays),
        ("Arrays updated", diff.updated_arrays),
        ("Arrays deleted", diff.deleted_arrays),
    ]
