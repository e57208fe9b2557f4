"""The nodes that references describe, and where they go in a repository."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from icechunk.base.near import near
from icechunk.errors import AlreadyExistsError, ErrorKind, InvalidInputError
from icechunk.format.ids import normalize_path, parent_paths
from icechunk.kerchunk.append import Place
from icechunk.kerchunk.attributes import kept_attributes, not_in_json
from icechunk.kerchunk.dimensions import name_dimensions
from icechunk.kerchunk.metadata import (
    ArrayMetadata,
    array_from_v2,
    array_from_v3,
    group_from_v2,
)
from icechunk.kerchunk.names import METADATA, name_problem
from icechunk.kerchunk.tables import References, is_array, refuse
from icechunk.session.session import Session

__all__ = ["arrays_of", "check_attributes", "drop_attributes_of", "groups_of", "new_place"]


def _absolute(root: str, path: str) -> str:
    problem = name_problem(path)
    if problem:
        refuse(path, problem, ErrorKind.INVALID_PATH)
    try:
        return normalize_path(f"{root}/{path}")
    except InvalidInputError as exc:
        refuse(path, str(exc), ErrorKind.INVALID_PATH)


def arrays_of(
    source: References, root: str, mask_fill_value: bool | None
) -> dict[str, ArrayMetadata]:
    """Return the arrays of the references by their paths in the repository."""
    documents = source.documents
    found: dict[str, ArrayMetadata] = {}
    for key, document in sorted(documents.items()):
        if not is_array(key, document):
            continue
        head, _, name = key.rpartition("/")
        path = _absolute(root, head)
        if path in found:
            refuse(key, "there are two arrays of this path")
        if name == ".zarray":
            attributes = documents.get(f"{head}/.zattrs" if head else ".zattrs", {})
            found[path] = array_from_v2(head, document, attributes, mask_fill_value=mask_fill_value)
        else:
            found[path] = array_from_v3(head, document)
    name_dimensions(found)
    for path, array in found.items():
        inside = next((parent for parent in parent_paths(path) if parent in found), None)
        if inside is not None:
            refuse(array.keys.path, f"the array lies within another one, {inside!r}")
    if not found and not documents:
        raise InvalidInputError(
            "the references have no Zarr metadata", ErrorKind.INVALID_VIRTUAL_REF
        )
    return found


def drop_attributes_of(source: References, dropped: Sequence[str]) -> tuple[str, ...]:
    """Drop attributes from the metadata of references.

    Parameters
    ----------
    source : References
    dropped : sequence of str
        As `kept_attributes` takes them.

    Returns
    -------
    tuple of str
        A sentence for each of them that there is not, with those that are near.
    """
    if not dropped:
        return ()
    known: set[str] = set()
    for key, document in source.documents.items():
        head, _, name = key.rpartition("/")
        if name == ".zattrs":
            own = document
            source.documents[key] = kept_attributes(head, own, dropped)
        elif name == METADATA:
            own = document.get("attributes") or {}
            kept = kept_attributes(head, own, dropped)
            source.documents[key] = {**document, "attributes": kept}
        else:
            continue
        known.update(each for one in own for each in (one, f"{head}:{one}"))
    return tuple(
        f"drop_attributes names {name!r}, which the references do not have{near(name, known)}"
        for name in dropped
        if name.lstrip("/") not in known
    )


def check_attributes(source: References, arrays: Mapping[str, ArrayMetadata]) -> None:
    """Refuse attributes that cannot be stored, all of them at once.

    Raises
    ------
    InvalidInputError
    """
    attributes = {
        array.keys.path: array.document.get("attributes") or {} for array in arrays.values()
    }
    for key, document in source.documents.items():
        head, _, name = key.rpartition("/")
        if name in (".zattrs", METADATA) and head not in attributes:
            attributes[head] = document if name == ".zattrs" else document.get("attributes") or {}
    odd = {
        f"{path}:{name}": f"attribute {name!r} of {'/' + path!r} {reason}"
        for path, given in attributes.items()
        for name, reason in not_in_json(given).items()
    }
    if odd:
        what = "it" if len(odd) == 1 else "these"
        raise InvalidInputError(
            f"{'; '.join(odd.values())}; leave {what} out with drop_attributes={[*odd]!r}",
            ErrorKind.BAD_METADATA,
        )


def groups_of(
    session: Session,
    source: References,
    root: str,
    arrays: Mapping[str, ArrayMetadata],
    overwrite: bool,
) -> dict[str, bytes]:
    """Return the group documents to set: those of the references, and missing parents."""
    attributes: dict[str, dict[str, Any]] = {}
    for key, document in source.documents.items():
        head, _, name = key.rpartition("/")
        path = _absolute(root, head)
        if path in arrays:
            continue
        known = attributes.setdefault(path, {})
        if name == ".zattrs":
            known.update(document)
        elif name == "zarr.json":
            known.update(document.get("attributes") or {})
    for path in [*arrays, *attributes]:
        for parent in parent_paths(path):
            attributes.setdefault(parent, {})
    found = {}
    for path, given in attributes.items():
        node = session.tree.get(path)
        if node is not None and node.is_array:
            # an array above the requested group is in the way, whatever the mode
            if not overwrite or path not in (root, *_below(attributes, root)):
                raise AlreadyExistsError(
                    f"cannot import a group to {path!r}: there is an array already"
                )
            node = None
        old = json.loads(node.user_data) if node is not None else {}
        merged = {**(old.get("attributes") or {}), **given}
        document = {**group_from_v2({}), **old, "attributes": merged}
        data = json.dumps(document).encode()
        if node is None or document != old:
            found[path] = data
    return dict(sorted(found.items()))


def _below(paths: Mapping[str, Any], root: str) -> Iterator[str]:
    return (path for path in paths if root == "/" or path.startswith(root + "/"))


def new_place(session: Session, path: str, array: ArrayMetadata, overwrite: bool) -> Place:
    """Return the place for an array to create or replace."""
    existing = session.tree.get(path)
    if existing is not None and (not overwrite or not existing.is_array):
        kind = "an array" if existing.is_array else "a group"
        raise AlreadyExistsError(
            f"cannot import an array to {path!r}: there is {kind} already; pass overwrite=True "
            "to replace arrays, append_dim to append, or another group"
        )
    return Place(array.document, (0,) * len(array.shape))
