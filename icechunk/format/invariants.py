"""What must hold within a stored object, beyond the fact that it can be decoded.

The official reader searches most vectors by bisection and never checks their order: an item out
of order is not found, and an array reads as fill values (Icechunk spec, "Sort orders").
The decoders here accept any order, so this module looks at the bytes themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from icechunk.format.encoding.envelope import BytesLike, FileType, unwrap
from icechunk.format.encoding.flatbuf import Tables, read_root
from icechunk.format.ids import NODE_ID_SIZE, OBJECT_ID_SIZE, encode_id

__all__ = ["broken_invariants"]

_IDENTIFIER: Final = b"Ichk"
_URL: Final = re.compile(rb"[a-z][a-z0-9+.-]*://.")
_LISTS: Final = (
    "new groups",
    "new arrays",
    "deleted groups",
    "deleted arrays",
    "updated arrays",
    "updated groups",
)
_FLAGS: Final = ((10, "enabled feature flags"), (11, "disabled feature flags"))


def broken_invariants(file_type: FileType, data: BytesLike, name: str) -> Iterator[str]:
    """Yield what is wrong with an object that can be decoded.

    Parameters
    ----------
    file_type : FileType
    data : bytes-like
        The whole object.
    name : str
        Its key, for messages.

    Raises
    ------
    FormatError
        If it cannot be decoded.
    """
    payload, spec_version = unwrap(data, file_type, name)
    root = read_root(payload, name)
    if bytes(payload[4:8]) != _IDENTIFIER:
        yield "it lacks the identifier that all clients write"
    if file_type is FileType.TRANSACTION_LOG:
        yield from _log(root, spec_version)
        return
    checks = {
        FileType.SNAPSHOT: _snapshot,
        FileType.MANIFEST: _manifest,
        FileType.REPO: _repo,
    }
    yield from checks[file_type](root)


def _snapshot(root: Tables) -> Iterator[str]:
    nodes, _ = root.children(2, "nodes", required=True)
    yield from _texts("nodes", nodes.text(1, "path"))
    if root.present(7)[0]:
        files, _ = root.children(7, "manifest_files_v2")
        ids = files.struct(0, OBJECT_ID_SIZE, "id")[0]
    else:
        rows, _ = root.vector(6, np.uint8, "manifest_files", columns=32)
        ids = rows[:, :OBJECT_ID_SIZE]
    yield from _rows("manifests", ids)
    yield from _metadata(root, 5)


def _manifest(root: Tables) -> Iterator[str]:
    arrays, _ = root.children(1, "arrays", required=True)
    ids, _ = arrays.struct(0, NODE_ID_SIZE, "node_id")
    yield from _rows("arrays", ids)
    refs, ends = arrays.children(1, "refs", required=True)
    index, cuts = refs.vector(0, "<u4", "index", required=True)
    for row, (start, end) in enumerate(pairwise(ends.tolist())):
        if start == end:
            yield f"it lists array {encode_id(ids[row].tobytes())}, and no references of it"
        elif end - start > 1:
            ndim = int(cuts[start + 1] - cuts[start])
            coords = index[cuts[start] : cuts[end]].reshape(end - start, ndim)
            yield from _rows("chunk references", coords)
    native, compressed, plain = (refs.present(slot) for slot in (4, 8, 5))
    elsewhere = native | compressed | plain
    length = refs.scalar(3, "<u8", field="length")
    empty = int((elsewhere & (length == 0)).sum())
    if empty:
        yield f"{empty} references of no bytes, which official clients cannot read"
    both = int((refs.present(6) & refs.present(7) & (compressed | plain) & ~native).sum())
    if both:
        yield f"{both} references with two checksums, an etag and a time"
    virtual = np.flatnonzero(plain & ~native & ~compressed)
    if len(virtual):
        values, _ = refs.take(virtual).distinct_blobs(5, "location")
        bad = [value for value in values if not _URL.match(value)]
        if bad:
            yield f"{len(bad)} locations that are not URLs, such as {bad[0][:80]!r}"


def _log(root: Tables, spec_version: int) -> Iterator[str]:
    for slot, what in enumerate(_LISTS, 1):
        rows, _ = root.vector(slot, np.uint8, what, columns=NODE_ID_SIZE)
        yield from _rows(what, rows)
    arrays, _ = root.children(7, "updated_chunks", required=True)
    yield from _rows("arrays of updated chunks", arrays.struct(0, NODE_ID_SIZE, "node_id")[0])
    chunks, ends = arrays.children(1, "chunks", required=True)
    flat, cuts = chunks.vector(0, "<u4", "coords", required=True)
    # official clients 1.x left them in any order
    for start, end in pairwise(ends.tolist() if spec_version > 1 else ()):
        ranks = np.diff(cuts[start : end + 1])
        if len(ranks) > 1 and (ranks == ranks[0]).all():
            coords = flat[cuts[start] : cuts[end]].reshape(end - start, int(ranks[0]))
            yield from _rows("updated chunks", coords)
    if root.present(8)[0]:
        moves, _ = root.children(8, "moved_nodes")
        paths = [(text or "").split("/") for text in moves.text(1, "to")]
        if paths != sorted(paths):
            yield _disorder("moved nodes")


def _repo(root: Tables) -> Iterator[str]:
    for slot, what in ((1, "tags"), (2, "branches")):
        refs, _ = root.children(slot, what, required=True)
        yield from _texts(what, refs.text(0, what))
    yield from _texts("deleted tags", root.texts(3, "deleted_tags")[0])
    snapshots, _ = root.children(4, "snapshots", required=True)
    yield from _rows("snapshots", snapshots.struct(0, OBJECT_ID_SIZE, "id")[0])
    yield from _metadata(root, 6)
    for slot, what in _FLAGS:
        flags, _ = root.vector(slot, "<u2", what)
        yield from _rows(what, flags.reshape(-1, 1))
    updates, _ = root.children(7, "latest_updates")
    times = updates.scalar(2, "<u8", field="updated_at")
    if (times[1:] >= times[:-1]).any():
        yield _disorder("updates")
    backups = updates.text(3, "backup_path")
    if backups and backups[0] is not None:
        yield "its newest update says that it was backed up, at which official clients panic"


def _metadata(owner: Tables, slot: int) -> Iterator[str]:
    items, _ = owner.children(slot, "metadata")
    yield from _texts("metadata", items.text(0, "metadata name"))


def _texts(what: str, texts: Sequence[str | None]) -> Iterator[str]:
    raw = [(text or "").encode() for text in texts]
    if any(a > b for a, b in pairwise(raw)):
        yield _disorder(what)
    twice = [a for a, b in pairwise(sorted(raw)) if a == b]
    if twice:
        yield f"{what}: {twice[0].decode()!r} occurs twice"


def _rows(what: str, table: NDArray[Any]) -> Iterator[str]:
    """Yield what is wrong with rows that must rise, column by column."""
    if len(table) < 2:
        return
    rising = np.zeros(len(table) - 1, np.bool_)
    tie = ~rising
    for axis in table.T:
        rising |= tie & (axis[1:] > axis[:-1])
        tie &= axis[1:] == axis[:-1]
    if tie.any():
        yield f"{what}: one occurs twice"
    if not (rising | tie).all():
        yield _disorder(what)


def _disorder(what: str) -> str:
    return f"{what} are not in order: official clients do not find some of them"
