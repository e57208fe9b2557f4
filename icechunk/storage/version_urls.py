"""URLs that name a version of a repository, and a node in it.

They are those of the `URL pipeline proposal <https://github.com/jbms/url-pipeline>`_:
``s3://bucket/repo|icechunk:@tag.v1/group`` is the storage, and after the bar what is read in it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from icechunk.base.public_url import public_fields, public_url
from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["VersionURL", "version_url"]

_MARK: Final = "|icechunk:"
#: An id, or the beginning of one.
_ID: Final = re.compile("[0-9A-HJKMNP-TV-Z]{4,20}")
#: Formats that may follow: every node of a repository has Zarr format 3.
_ZARR: Final = ("zarr", "zarr3")


@dataclass(frozen=True, repr=False)
class VersionURL:
    """What a URL names.

    Attributes
    ----------
    storage : str
        The URL or path of the repository.
    ref : str or None
        ``@branch.NAME``, ``@tag.NAME`` or ``@ID``, as `Repository.resolve` takes it.
    path : str
        Of a group or an array, without slashes around; empty for the root.
    """

    storage: str
    ref: str | None = None
    path: str = ""

    def __repr__(self) -> str:
        return public_fields(self)

    @property
    def branch(self) -> str | None:
        """The branch that the ref names, or None."""
        kind, _, name = (self.ref or "").partition(".")
        return name if kind == "@branch" else None


def version_url(target: object) -> VersionURL | None:
    """Return what a URL with ``|icechunk:`` names, or None for anything else.

    The ref ends at the first slash. A slash in a name, and any other character, may be
    percent-encoded. ``|zarr3:PATH`` may follow.

    Parameters
    ----------
    target : object
        A string or path; other objects are never URLs.

    Raises
    ------
    InvalidInputError
        If what follows ``|icechunk:`` is not a version and a path.

    Examples
    --------
    >>> version_url("s3://bucket/repo|icechunk:@tag.v1/group")
    VersionURL(storage='s3://bucket/repo', ref='@tag.v1', path='group')
    >>> version_url("s3://bucket/repo")
    """
    text = os.fspath(target) if isinstance(target, os.PathLike) else target
    if not isinstance(text, str) or _MARK not in text:
        return None
    storage, _, rest = text.partition(_MARK)
    version, *following = rest.split("|")
    ref = None
    version = version.lstrip("/")
    if version.startswith("@"):
        ref, _, version = version.partition("/")
        ref = unquote(ref)
        _check(ref, storage)
    paths = [version]
    for segment in following:
        name, colon, path = segment.partition(":")
        if not colon or name not in _ZARR:
            raise _invalid(storage, f"{segment!r} is unknown there: only |zarr3:PATH may follow")
        paths.append(path)
    path = "/".join(part for path in paths for part in unquote(path).split("/") if part)
    # a path that ends in a slash is the same repository
    return VersionURL(storage.rstrip("/") or storage, ref, path)


def _check(ref: str, storage: str) -> None:
    kind, dot, name = ref[1:].partition(".")
    if dot and kind in ("branch", "tag") and name:
        return
    if not dot and _ID.fullmatch(kind.upper()):
        return
    raise _invalid(
        storage, f"{ref!r} is not a version: write @branch.NAME, @tag.NAME or @SNAPSHOT_ID"
    )


def _invalid(storage: str, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{public_url(storage)}{_MARK}...: {reason}", ErrorKind.CANNOT_PARSE_URL
    )
