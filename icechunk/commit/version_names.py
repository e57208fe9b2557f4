"""Names of versions: branches, tags, snapshot ids and times, looked up in a repo info.

One text names any of them, see `resolve_ref`. The rules are those of git, where git has any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final, cast

from icechunk.base.near import near
from icechunk.commit.snapshot_info import from_microseconds, to_microseconds
from icechunk.config.times import Time, instant
from icechunk.errors import (
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    RefNotFoundError,
    SnapshotNotFoundError,
)
from icechunk.format.ids import decode_id, encode_id
from icechunk.format.repo_info import RepoInfo, SnapshotEntry

__all__ = [
    "as_of",
    "branch_tip",
    "id_of_snapshot",
    "invalid_version",
    "require_snapshot",
    "resolve",
    "resolve_ref",
    "tag_target",
]

#: The shortest text that may be the beginning of an id.
_SHORTEST_PREFIX: Final = 4
#: A message lists no more names than this.
_LISTED: Final = 5
_ID_LETTERS: Final = re.compile(rf"[0-9A-HJKMNP-TV-Z]{{{_SHORTEST_PREFIX},20}}")
_GENERATIONS: Final = re.compile(r"(.+)~(\d*)", re.DOTALL)
_TIME: Final = re.compile(r"(.+)@(\{.+\}|[^{}@]+)", re.DOTALL)


def branch_tip(info: RepoInfo, branch: str) -> bytes:
    """Return the newest snapshot of a branch.

    Raises
    ------
    RefNotFoundError
    """
    tip = info.branches.get(branch)
    if tip is None:
        hint = "; there is a tag of this name" if branch in info.tags else ""
        if isinstance(branch, str) and _by_prefix(info, branch) is not None:
            hint = f"; it is the id of a snapshot: pass snapshot_id={branch!r}"
        hint = hint or _near(info, branch, info.branches)
        raise RefNotFoundError(f"there is no branch {branch!r}{hint}")
    return tip


def tag_target(info: RepoInfo, tag: str) -> bytes:
    """Return the snapshot that a tag names.

    Raises
    ------
    RefNotFoundError
    """
    target = info.tags.get(tag)
    if target is None:
        hint = "; there is a branch of this name" if tag in info.branches else ""
        hint = hint or _near(info, tag, info.tags)
        raise RefNotFoundError(f"there is no tag {tag!r}{hint}")
    return target


def require_snapshot(info: RepoInfo, snapshot_id: bytes) -> SnapshotEntry:
    """Return the entry of a snapshot in the history.

    Raises
    ------
    SnapshotNotFoundError
    """
    try:
        return info.snapshots[snapshot_id]
    except KeyError:
        raise SnapshotNotFoundError(
            f"there is no snapshot {encode_id(snapshot_id)} in this repository"
        ) from None


def invalid_version(reason: str) -> InvalidInputError:
    """Return the error for a version that cannot be named like this."""
    return InvalidInputError(reason, ErrorKind.INVALID_REF_TYPE)


def resolve(
    info: RepoInfo,
    branch: str | None,
    tag: str | None,
    snapshot_id: str | None,
    ref: str | None = None,
) -> bytes:
    """Return the snapshot named by exactly one of branch, tag, id and ref.

    The beginning of an id is enough if no other id begins the same way.

    Raises
    ------
    InvalidInputError, RefNotFoundError, SnapshotNotFoundError
    """
    given = sum(name is not None for name in (branch, tag, snapshot_id, ref))
    if given != 1:
        raise invalid_version(
            "Must provide one of branch, tag, or snapshot_id, or a ref: one of them names a "
            f"version, and {given} were given"
        )
    if branch is not None:
        return branch_tip(info, branch)
    if tag is not None:
        return tag_target(info, tag)
    if ref is not None:
        return resolve_ref(info, ref)
    return require_snapshot(info, id_of_snapshot(snapshot_id, lambda: info)).id


def id_of_snapshot(given: object, load: Callable[[], RepoInfo]) -> bytes:
    """Return the raw form of what was given as the id of a snapshot.

    The beginning of an id is enough if no other id begins the same way. Other names of a version
    are refused: what a branch points to now need not be what was meant by an id.

    Parameters
    ----------
    given : object
        A whole id need not be in the history.
    load : callable
        Returns the repo info. It is called for what is no whole id.

    Raises
    ------
    InvalidInputError
        If it is no id. The message says which version was named, and how to get its id.
    """
    try:
        return decode_id(cast(str, given))
    except InvalidInputError as error:
        info = load()
        found = _by_prefix(info, given) if isinstance(given, str) else None
        if found is not None:
            return found
        raise InvalidInputError(
            f"{error.message}{_meant(info, given)}", ErrorKind.INVALID_SNAPSHOT_ID
        ) from None


def _meant(info: RepoInfo, given: object) -> str:
    """Return the end of a sentence: how to get the id of what is no id."""
    if not isinstance(given, str):
        for name in ("snapshot_id", "id"):  # of sessions, and of entries in the history
            if hasattr(given, name):
                return f"; pass its {name}"
        return ""
    try:
        resolve_ref(info, given)
    except IcechunkError:
        return _near(info, given, info.branches, info.tags)
    kinds = (("branch", info.branches), ("tag", info.tags))
    kind = next((kind for kind, kept in kinds if kept.get(given) is not None), "version")
    return f"; it names a {kind}: pass repo.resolve({given!r})"


def resolve_ref(info: RepoInfo, text: str) -> bytes:
    """Return the snapshot that a text names.

    Parameters
    ----------
    text : str
        - a branch, a tag, or the id of a snapshot, of which the beginning is enough (4
          characters or more) if no other begins the same way;
        - ``@branch.NAME``, ``@tag.NAME`` or ``@ID``, as in URLs, also ``@{ID}``: one of these and
          nothing else;
        - any of them and ``~N``: N commits before (``~`` is ``~1``);
        - any of them and ``@TIME``: the newest of its history that is not younger. A date or
          time in ISO 8601; without a zone it is in UTC, a date is its first instant.

        A branch or tag with exactly that name comes first.

    Raises
    ------
    RefNotFoundError
        If there is no such branch, tag or snapshot. The message lists similar names.
    SnapshotNotFoundError
        If the history is not that long.
    InvalidInputError
        If the text names two versions, or is not a version at all.
    """
    if not isinstance(text, str) or not text:
        raise invalid_version(
            f"ref is {text!r}: expected a branch, tag or snapshot id, such as 'main', 'main~2' or "
            "'main@2024-05-01'"
        )
    found = _by_name(info, text)
    if found is not None:
        return found
    if text.startswith("@") and "@" not in text[1:] and "~" not in text:
        return _by_marked_name(info, text)
    if match := _GENERATIONS.fullmatch(text):
        return _ancestor(info, match[1], int(match[2] or 1))
    if match := _TIME.fullmatch(text):
        when = match[2].removeprefix("{").removesuffix("}")
        return _not_younger(info, resolve_ref(info, match[1]), when, repr(match[1]))
    found = _by_prefix(info, text)
    if found is not None:
        return found
    near = _near(info, text, info.branches, info.tags)
    raise RefNotFoundError(f"there is no branch, tag or snapshot {text!r}{near}")


def as_of(info: RepoInfo, branch: str, when: Time) -> bytes:
    """Return the newest snapshot of a branch that is not younger than a time.

    A time without zone is in UTC.

    Raises
    ------
    SnapshotNotFoundError
        If all snapshots are younger.
    InvalidInputError
        If it is no time.
    """
    return _not_younger(info, branch_tip(info, branch), when, f"the branch {branch!r}")


def _not_younger(info: RepoInfo, start: bytes, when: Time, what: str) -> bytes:
    limit = instant(when)
    microseconds = to_microseconds(limit)
    oldest = None
    for entry in info.ancestry(start):
        if entry.flushed_at <= microseconds:
            return entry.id
        oldest = entry
    born = from_microseconds(oldest.flushed_at).isoformat() if oldest is not None else "nothing"
    raise SnapshotNotFoundError(
        f"{what} has no snapshot as old as {limit.isoformat()}; its first is from {born}",
        ErrorKind.NO_SNAPSHOT_AT_TIME,
    )


def _by_name(info: RepoInfo, name: str) -> bytes | None:
    """Return what a branch or a tag with exactly that name points to, if there is one."""
    for mark, kept in (("@branch.", info.branches), ("@tag.", info.tags)):
        if name.startswith(mark):
            return kept.get(name.removeprefix(mark))
    tip, target = info.branches.get(name), info.tags.get(name)
    if tip is not None and target is not None and tip != target:
        raise invalid_version(
            f"ref {name!r} is both a branch and a tag: name one, as "
            f"{f'@branch.{name}'!r} or {f'@tag.{name}'!r}"
        )
    return tip if tip is not None else target


def _by_marked_name(info: RepoInfo, text: str) -> bytes:
    """Return what a ref in a URL names, which begins with an ``@``."""
    name = text[1:]
    if name.startswith("branch."):
        return branch_tip(info, name.removeprefix("branch."))
    if name.startswith("tag."):
        return tag_target(info, name.removeprefix("tag."))
    if name.startswith("{") and name.endswith("}"):
        name = name[1:-1]
    found = _by_prefix(info, name)
    if found is not None:
        return found
    return require_snapshot(info, decode_id(name)).id


def _by_prefix(info: RepoInfo, text: str) -> bytes | None:
    """Return the snapshot whose id begins with a text, or None.

    Raises
    ------
    InvalidInputError
        If several do.
    """
    letters = text.upper()
    if not _ID_LETTERS.fullmatch(letters):
        return None
    found = [id for id in info.snapshots if encode_id(id).startswith(letters)]
    if len(found) > 1:
        shown = ", ".join(encode_id(id) for id in found[:_LISTED])
        raise invalid_version(
            f"{len(found)} snapshots begin with {text!r}: {shown}"
            f"{', ...' if len(found) > _LISTED else ''}; give more characters"
        )
    return found[0] if found else None


def _ancestor(info: RepoInfo, text: str, generations: int) -> bytes:
    start = resolve_ref(info, text)
    found = next(islice(info.ancestry(start), generations, None), None)
    if found is None:
        length = sum(1 for _ in info.ancestry(start))
        raise SnapshotNotFoundError(
            f"ref '{text}~{generations}': the history of {text!r} has {length} snapshots, so "
            f"'{text}~{length - 1}' is the first one"
        )
    return found.id


def _near(info: RepoInfo, name: object, *refs: Mapping[str, bytes]) -> str:
    """Return what to say about names that may have been meant."""
    if info.spec_version == 1:
        # it would list names, and a reader need not have the permission to list
        return ""
    return near(name, (each for mapping in refs for each in mapping))
