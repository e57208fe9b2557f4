"""Commands that look into a version: ls, tree, cat, chunks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
import zarr
from rich.text import Text
from rich.tree import Tree

from icechunk import FormatError, IcechunkError, InvalidInputError, Repository, Session
from icechunk.base.rectilinear import decoded_sizes, places, rectilinear_chunks
from icechunk.base.visible import in_a_line
from icechunk.cli import completing
from icechunk.cli.options import as_json, chunk_repository, ref, repository
from icechunk.cli.output import console, fields, print_json, size, table, text
from icechunk.format.chunk_ref import RefKind

__all__ = ["COMMANDS"]

path_argument = click.argument("path", default="/", shell_complete=completing.paths)


def _read_by_zarr(command: Callable[..., None]) -> Callable[..., None]:
    """Report a document that Zarr cannot read as invalid, whatever Zarr raises."""

    @functools.wraps(command)
    def reading(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (IcechunkError, click.ClickException, click.exceptions.Exit, OSError):
            raise
        except Exception as error:
            raise FormatError(
                f"Zarr cannot read {kwargs.get('path', '/')!r}: {type(error).__name__}: {error}"
            ) from error

    return reading


def _node(session: Session, path: str) -> zarr.Array[Any] | zarr.Group:
    session.tree.require("/" + path.strip("/"))  # Zarr's error would be of a group in any case
    with rectilinear_chunks():
        return zarr.open(session.store, path=path.strip("/"), mode="r", zarr_format=3)


def _array(session: Session, path: str) -> zarr.Array[Any]:
    node = _node(session, path)
    if isinstance(node, zarr.Group):
        raise InvalidInputError(f"{path!r} is a group; name an array")
    return node


def _members(group: zarr.Group) -> Iterator[tuple[str, zarr.Array[Any] | zarr.Group]]:
    with rectilinear_chunks():
        members = sorted(group.members())
    yield from members


def _described(node: zarr.Array[Any] | zarr.Group) -> dict[str, Any]:
    if isinstance(node, zarr.Group):
        return {"kind": "group"}
    return {
        "kind": "array",
        "dimensions": list(node.metadata.dimension_names or ())
        if node.metadata.zarr_format == 3
        else [],
        "shape": list(node.shape),
        "chunks": decoded_sizes(node),
        "dtype": str(node.dtype),
    }


def _short(sizes: int | list[int]) -> str:
    return str(sizes) if isinstance(sizes, int) else f"{min(sizes)} to {max(sizes)}"


def _line(name: str, node: zarr.Array[Any] | zarr.Group) -> str:
    if isinstance(node, zarr.Group):
        return f"{name}/"
    described = _described(node)
    names = described["dimensions"] or [""] * len(described["shape"])
    sizes = ", ".join(
        f"{name}: {n}" if name else str(n)
        for name, n in zip(names, described["shape"], strict=True)
    )
    return f"{name} ({sizes}) {described['dtype']}"


@click.command()
@repository
@path_argument
@ref
@as_json
@_read_by_zarr
def ls(repo: Repository, ref: str, path: str, as_json: bool) -> None:
    """List the groups and arrays of a group."""
    node = _node(repo.readonly_session(ref=ref), path)
    name = path.strip("/").rpartition("/")[2]
    members = _members(node) if isinstance(node, zarr.Group) else iter([(name, node)])
    if as_json:
        print_json({name: _described(member) for name, member in members})
        return
    rows = []
    for name, member in members:
        told = _described(member)
        shape = ", ".join(map(str, told["shape"])) if "shape" in told else None
        rows.append(
            (
                told["kind"],
                name,
                ", ".join(map(str, told.get("dimensions", ()))) or None,
                shape,
                ", ".join(map(_short, told["chunks"])) if "chunks" in told else None,
                told.get("dtype"),
            )
        )
    table(rows, "kind", "name", "dimensions", "shape", "chunks", "dtype")


@click.command()
@repository
@path_argument
@ref
@as_json
@_read_by_zarr
def tree(repo: Repository, ref: str, path: str, as_json: bool) -> None:
    """Draw all groups and arrays below a group."""
    node = _node(repo.readonly_session(ref=ref), path)

    def nested(node: zarr.Array[Any] | zarr.Group) -> dict[str, Any]:
        told = _described(node)
        if isinstance(node, zarr.Group):
            told["members"] = {name: nested(member) for name, member in _members(node)}
        return told

    def grow(branch: Tree, node: zarr.Array[Any] | zarr.Group) -> None:
        if isinstance(node, zarr.Group):
            for name, member in _members(node):
                grow(branch.add(Text(in_a_line(_line(name, member)))), member)

    if as_json:
        print_json(nested(node))
        return
    name = path.strip("/").rpartition("/")[2]
    drawn = Tree(Text(in_a_line(_line(name, node))))
    grow(drawn, node)
    console().print(drawn)


@click.command()
@chunk_repository
@path_argument
@click.option(
    "-c",
    "--chunk",
    "index",
    metavar="I,J,...",
    help="Print the values of the chunk with these indices.",
)
@ref
@as_json
@_read_by_zarr
def cat(repo: Repository, ref: str, path: str, index: str | None, as_json: bool) -> None:
    """Print the zarr.json of a group or array, or the values of a chunk."""
    session = repo.readonly_session(ref=ref)
    if index is None:
        node = _node(session, path)
        print_json(json.loads(json.dumps(node.metadata.to_dict(), default=_jsonable)))
        return
    array = _array(session, path)
    chunk = _index(array, index)
    selection = tuple(
        places(n, length)(i)
        for i, n, length in zip(chunk, decoded_sizes(array), array.shape, strict=True)
    )
    values = np.asarray(array[selection])
    if as_json:
        print_json({"chunk": chunk, "values": values})
        return
    with np.printoptions(threshold=10_000, linewidth=100):
        text(str(values))


def _jsonable(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else str(value)


def _index(array: zarr.Array[Any], text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a chunk index such as 0,1") from None
    counts = [
        -(-n // c) if isinstance(c, int) else len(c)
        for n, c in zip(array.shape, decoded_sizes(array), strict=True)
    ]
    outside = len(found) != len(counts) or any(
        not 0 <= i < n for i, n in zip(found, counts, strict=True)
    )
    if outside:
        raise click.BadParameter(f"{text!r} is not a chunk of an array of {counts} chunks")
    return found


@click.command()
@repository
@path_argument
@ref
@as_json
@_read_by_zarr
def chunks(repo: Repository, ref: str, path: str, as_json: bool) -> None:
    """Show where the chunks of an array are, and how many are missing."""
    session = repo.readonly_session(ref=ref)
    _array(session, path)
    written = session.written_chunks(path)
    refs = session.chunk_refs("/" + path.strip("/"))
    kinds = {
        kind.name.lower(): int((refs.kind == kind).sum())
        for kind in (RefKind.INLINE, RefKind.NATIVE, RefKind.VIRTUAL)
    }
    told: dict[str, Any] = {
        "grid": list(written.shape),
        "written": int(written.sum()),
        "missing": int(written.size - written.sum()),
        **kinds,
        "bytes": int(refs.length.sum()),
        "files": len(refs.locations or ()),
    }
    if as_json:
        print_json(told)
        return
    fields({**told, "grid": " x ".join(map(str, told["grid"])), "bytes": size(told["bytes"])})


COMMANDS = {"cat": cat, "chunks": chunks, "ls": ls, "tree": tree}
