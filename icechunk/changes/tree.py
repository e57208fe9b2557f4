"""The node hierarchy as a session sees it: a snapshot under layers of edits.

The layers are change sets, oldest first. The last one takes new edits. A plain session
has one layer. A fork has its parent's edits below its own, and a session that merged
forks has their edits above its own. Node edits are few, so the difference to the
snapshot is kept as a dict that each edit updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from icechunk.base.near import near
from icechunk.changes.change_set import ChangeSet, MovedNode
from icechunk.changes.zarr_metadata import check_document, parse_node_metadata
from icechunk.errors import (
    AlreadyExistsError,
    ErrorKind,
    InvalidInputError,
    NodeNotFoundError,
    SessionStateError,
)
from icechunk.format.ids import is_within, parent_path
from icechunk.format.snapshot import ArrayInfo, ManifestRef, Node, Snapshot


def node_from_metadata(
    node_id: bytes, path: str, user_data: bytes, manifests: tuple[ManifestRef, ...] = ()
) -> Node:
    """Return the node that a ``zarr.json`` describes."""
    metadata = parse_node_metadata(user_data, path)
    array = None
    if metadata.is_array:
        array = ArrayInfo(metadata.shape, metadata.num_chunks, metadata.dimension_names, manifests)
    return Node(node_id, path, user_data, array)


class Tree:
    """Nodes by path, with the edits of all layers applied.

    Parameters
    ----------
    snapshot : Snapshot
    layers : list of ChangeSet
        Oldest first, at least one. The list is shared with the caller. After changing it,
        or a layer of it, from outside, call `rebuild`.
    """

    def __init__(self, snapshot: Snapshot, layers: list[ChangeSet]) -> None:
        self.snapshot = snapshot
        self.layers = layers
        # nodes of the snapshot that were asked for: creating one takes a while if its array
        # has many manifests, and every chunk asks for it
        self._stored: dict[str, Node] = {}
        self.rebuild()

    def rebuild(self) -> None:
        """Compute the difference to the snapshot again."""
        self._present: dict[str, Node] = {}  # new, updated, or at another path
        self._absent: set[str] = set()  # paths of the snapshot that are gone
        deleted: set[bytes] = set()
        updated: dict[bytes, bytes] = {}
        moved: dict[bytes, MovedNode] = {}
        for layer in self.layers:
            deleted |= layer.deleted.keys()
            updated.update(layer.updated)
            moved.update(layer.moved)
        for node_id in deleted | updated.keys() | moved.keys():
            node = self.snapshot.get_by_id(node_id)
            if node is None:
                continue
            self._absent.add(node.path)
            if node_id in deleted:
                continue
            path = moved[node_id].to_path if node_id in moved else node.path
            user_data = updated.get(node_id, node.user_data)
            self._present[path] = node_from_metadata(
                node_id, path, user_data, node.array.manifests if node.array else ()
            )
        for layer in self.layers:
            for path, new in layer.new_nodes.items():
                if new.id not in deleted:
                    user_data = updated.get(new.id, new.user_data)
                    self._present[path] = node_from_metadata(new.id, path, user_data)

    # -- looking up ------------------------------------------------------------
    def get(self, path: str) -> Node | None:
        """Return the node at a path, or None."""
        node = self._present.get(path)
        if node is not None or path in self._absent:
            return node
        node = self._stored.get(path)
        if node is None:
            node = self.snapshot.get(path)
            if node is not None:
                self._stored[path] = node
        return node

    def by_id(self, node_ids: Iterable[bytes]) -> dict[bytes, Node]:
        """Return the nodes that exist, of those with the given ids."""
        edited = {node.id: node for node in self._present.values()}
        found = {}
        for node_id in node_ids:
            node = edited.get(node_id) or self.snapshot.get_by_id(node_id)
            if node is not None and (node_id in edited or node.path not in self._absent):
                found[node_id] = node
        return found

    def require(self, path: str) -> Node:
        """Return the node at a path.

        Raises
        ------
        NodeNotFoundError
            If there is none.
        """
        node = self.get(path)
        if node is None:
            raise NodeNotFoundError(
                f"there is no group or array at {path!r}{near(path, self.paths_below('/'))}"
            )
        return node

    def require_array(self, path: str) -> tuple[Node, ArrayInfo]:
        """Return the array at a path and its grid.

        Raises
        ------
        NodeNotFoundError
            If there is no node.
        InvalidInputError
            If the node is a group.
        """
        node = self.require(path)
        if node.array is None:
            raise InvalidInputError(
                f"{path!r} is a group, expected an array", ErrorKind.NOT_AN_ARRAY
            )
        return node, node.array

    def within(self, path: str) -> list[Node]:
        """Return the node at `path` and all below it, sorted by path bytes."""
        nodes = [n for n in self.snapshot.within(path) if n.path not in self._absent]
        if self._present:
            nodes = [n for n in nodes if n.path not in self._present]
            nodes += [n for p, n in self._present.items() if is_within(p, path)]
            nodes.sort(key=lambda n: n.path.encode())
        return nodes

    def nodes(self) -> list[Node]:
        """Return all nodes, sorted by path bytes."""
        return self.within("/")

    def paths_below(self, path: str) -> list[str]:
        """Return the paths of all nodes below a path, sorted by their bytes."""
        paths = [p for p in self.snapshot.paths_below(path) if p not in self._absent]
        if self._present:
            edited = {p for p in self._present if p != path and is_within(p, path)}
            paths = sorted(edited.union(paths), key=str.encode)
        return paths

    def children(self, path: str) -> Iterator[Node]:
        """Yield the nodes directly below a path, in no particular order."""
        for node in self.snapshot.children(path):
            if node.path not in self._absent and node.path not in self._present:
                yield node
        for node in list(self._present.values()):
            if parent_path(node.path) == path:
                yield node

    # -- editing ---------------------------------------------------------------
    def put(self, path: str, user_data: bytes) -> Node:
        """Create the node at a path, or replace its metadata.

        A group that becomes an array is a new node, and so is an array that becomes a group or
        changes its rank: the old node is deleted with all its chunks. Whatever lies below
        it stays, also below an array, because a store holds keys and values.
        """
        fresh = node_from_metadata(b"", path, user_data)
        old = self.get(path)
        if old is None or old.user_data != user_data:
            check_document(user_data, path)
        if old is not None and not _same_kind(old, fresh):
            self._delete(old)
            old = None
        top = self.layers[-1]
        if old is None:
            # two layers may have deleted the same one
            gone = set[bytes]().union(*(layer.deleted_at(path) for layer in self.layers))
            created = top.create(path, user_data, is_array=fresh.is_array, taken=len(gone))
            node = Node(created.id, path, user_data, fresh.array)
        else:
            if old.user_data == user_data:
                return old
            top.update(old.id, path, user_data)
            manifests = old.array.manifests if old.array else ()
            node = node_from_metadata(old.id, path, user_data, manifests)
            base = self.snapshot.get_by_id(old.id)
            if base is not None:
                self._absent.add(base.path)
        self._present[path] = node
        return node

    def delete(self, path: str, *, below: bool = True) -> None:
        """Delete the node at a path and everything below it. A missing node is ignored.

        Parameters
        ----------
        path : str
        below : bool
            Whether everything below goes in any case. Otherwise it goes with a group, but stays
            below an array, where it has keys of its own.
        """
        top = self.get(path)
        if not below and top is not None and top.is_array:
            self._delete(top)
            return
        for node in self.within(path):
            self._delete(node)

    def _delete(self, node: Node) -> None:
        self.layers[-1].delete(node.id, node.path, is_array=node.is_array)
        self._present.pop(node.path, None)
        self._absent.add(node.path)

    def move(self, source: str, target: str) -> None:
        """Move a node and everything below it to another path.

        Raises
        ------
        NodeNotFoundError, AlreadyExistsError, SessionStateError
            If there is no `source`, if `target` exists, lies within `source`, or has no
            group as its parent.
        """
        self.require(source)
        if is_within(target, source):
            raise SessionStateError(
                f"cannot move {source!r} to {target!r}, which is the same or lies within it",
                ErrorKind.MOVE_INTO_SELF_OR_DESCENDANT,
            )
        if self.get(target) is not None:
            raise AlreadyExistsError(
                f"cannot move {source!r} to {target!r}: there is a node already",
                ErrorKind.MOVE_WONT_OVERWRITE,
            )
        parent = self.get(parent_path(target) or "/")
        if parent is None or parent.is_array:
            raise SessionStateError(
                f"cannot move {source!r} to {target!r}: its parent is "
                + ("missing" if parent is None else "an array"),
                ErrorKind.MOVE_DESTINATION_PARENT_MISSING
                if parent is None
                else ErrorKind.MOVE_DESTINATION_PARENT_NOT_GROUP,
            )
        top = self.layers[-1]
        for node in self.within(source):
            path = target + node.path[len(source) :]
            earlier = top.moved.get(node.id)
            start = earlier.from_path if earlier else node.path
            top.moved[node.id] = MovedNode(start, path, node.is_array)
        self.rebuild()


def _same_kind(a: Node, b: Node) -> bool:
    if a.array is None or b.array is None:
        return a.array is b.array
    return len(a.array.shape) == len(b.array.shape)
