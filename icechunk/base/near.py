"""What to say of a name that does not exist: those that could be meant."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from typing import Final

__all__ = ["meant", "near"]

#: Names that are said, and names that are compared: a repository may have a million.
_LISTED: Final = 5
_COMPARED: Final = 2000


def near(name: object, known: Iterable[str]) -> str:
    """Return the end of a sentence: names that are spelled much the same, or some that exist.

    Parameters
    ----------
    name : object
        What was asked for.
    known : iterable of str
        What there is.

    Examples
    --------
    >>> near("mian", ["main", "dev"])
    "; did you mean 'main'?"
    >>> near("x", ["main", "dev"])
    "; there are 'dev', 'main'"
    """
    names = sorted(set(itertools.islice(known, _COMPARED)))
    found = meant(name, names)
    if found:
        return found
    if not names:
        return "; there are none"
    if len(names) == 1:
        return f"; there is {names[0]!r}"
    more = ", ..." if len(names) > _LISTED else ""
    return f"; there are {', '.join(map(repr, names[:_LISTED]))}{more}"


def meant(name: object, known: Iterable[str]) -> str:
    """Return the end of a sentence: names that are spelled much the same, if there are any.

    Parameters
    ----------
    name : object
        What was given.
    known : iterable of str
        What there is.

    Examples
    --------
    >>> meant("mesage", ["message", "branch"])
    "; did you mean 'message'?"
    >>> meant("x", ["message", "branch"])
    ''
    """
    found = difflib.get_close_matches(str(name), list(known), _LISTED)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
