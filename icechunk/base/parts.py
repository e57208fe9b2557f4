"""Methods that an object delegates to its parts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def of_part(
    part: str, method: Callable[Concatenate[Any, P], R]
) -> Callable[Concatenate[Any, P], R]:
    """Return a method that calls `method` of a part, and has its signature and docstring.

    Parameters
    ----------
    part : str
        Name of the attribute that holds the part.
    method : callable
        Of the class of the part.

    Examples
    --------
    ::

        class Repository:
            create_tag = of_part("_tags", Tags.create_tag)
    """

    @functools.wraps(method)
    def passed_on(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(getattr(self, part), *args, **kwargs)

    return cast("Callable[Concatenate[Any, P], R]", passed_on)
