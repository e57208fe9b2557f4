"""A session and its store as notebooks display them: what changed, and the tree of nodes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from icechunk.base.html import Html, card, escaped, fields, note, section
from icechunk.base.texts import counted
from icechunk.commit.diff import parts_of
from icechunk.errors import IcechunkError
from icechunk.format.nodes import ArrayInfo, Node

if TYPE_CHECKING:
    from icechunk.session.session import Session

__all__ = ["session_overview", "store_overview"]

#: The number of nodes that a tree shows.
_NODES: Final = 300


def session_overview(session: Session) -> Html:
    """Return a card of a session. It makes no request."""
    told = fields(
        {
            "snapshot": session.snapshot_id,
            "branch": session.branch,
            "mode": session.mode.name,
            "storage": session.storage_url,
        }
    )
    parts = [told]
    if session.is_loaded and session.has_uncommitted_changes:
        parts += [note("not committed yet:"), *parts_of(session.status())]
    elif not session.read_only:
        parts.append(note("no changes"))
    return card(type(session).__name__, session.branch or session.snapshot_id, *parts)


def store_overview(session: Session) -> Html:
    """Return a card of a store: its groups and arrays."""
    title = f"{session.storage_url} at {session.branch or session.snapshot_id}"
    try:
        body = tree(session.tree.nodes())
    except IcechunkError as error:
        body = note(error)
    return card("IcechunkStore", title, body)


def tree(nodes: Sequence[Node]) -> Html:
    """Return groups that fold, with their arrays."""
    members: dict[str, list[Node]] = defaultdict(list)
    for node in sorted(nodes[:_NODES], key=lambda node: node.path):
        if node.path != "/":
            members[node.path.rpartition("/")[0] or "/"].append(node)
    more = note(f"and {counted(len(nodes) - _NODES, 'more node')}") if len(nodes) > _NODES else ""
    return Html(f"{_group('/', members)}{more}")


def _group(path: str, members: Mapping[str, Sequence[Node]]) -> Html:
    lines = [
        _array(node, node.array) if node.array is not None else _group(node.path, members)
        for node in members.get(path, ())
    ]
    name = path.rpartition("/")[2] or "/"
    return section(f"{name} ({len(lines)})", Html("".join(lines) or "empty"), is_open=True)


def _array(node: Node, array: ArrayInfo) -> Html:
    name = node.path.rpartition("/")[2]
    names = array.dimension_names or [None] * len(array.shape)
    shape = ", ".join(
        f"{dim}: {size:,}" if dim else f"{size:,}"
        for dim, size in zip(names, array.shape, strict=True)
    )
    document = _document(node)
    options = document.get("chunk_grid", {}).get("configuration", {})
    chunks = options.get("chunk_shape", "of several lengths" if "chunk_shapes" in options else None)
    told = fields(
        {
            "data type": _data_type(document.get("data_type")),
            "shape": array.shape,
            "chunks": f"{tuple(chunks)}" if isinstance(chunks, list) else chunks,
            "chunk grid": array.num_chunks,
            **{f"attribute {key}": value for key, value in document.get("attributes", {}).items()},
        }
    )
    title = Html(f"<code>{escaped(name)}</code> {escaped(f'({shape})')}")
    return section(title, told)


def _document(node: Node) -> dict[str, Any]:
    try:
        found = json.loads(node.user_data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _data_type(found: object) -> object:
    return found.get("name") if isinstance(found, dict) else found
