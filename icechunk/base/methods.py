"""Methods that are made and not written: asynchronous twins, and those of a part."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a thread, while the event loop goes on.

    Examples
    --------
    >>> asyncio.run(in_thread(len, "abc"))
    3
    """
    import asyncio  # takes a tenth of a start, and who waits for a coroutine has it

    return await asyncio.to_thread(function, *args, **kwargs)


def async_twin(method: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return a coroutine function that runs `method` in a thread.

    Metadata operations take a few requests each, so a thread adds no cost that matters.
    Chunk reads and writes do not come through here.

    Class methods and static methods keep their kind.
    """
    if isinstance(method, classmethod | staticmethod):
        return cast(
            "Callable[P, Coroutine[Any, Any, R]]", type(method)(async_twin(method.__func__))
        )

    @functools.wraps(method)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        return await in_thread(method, *args, **kwargs)

    twin.__name__ = f"{method.__name__}_async"
    twin.__qualname__ = f"{method.__qualname__}_async"
    twin.__doc__ = f"Do what `{method.__name__}` does, without blocking the event loop."
    return twin


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
    # errors about arguments name the class that was called, and not the part
    owner = sys._getframe(1).f_locals.get("__qualname__")
    if owner is not None:
        inspected: Any = method
        while inspected is not None:
            inspected.__qualname__ = f"{owner}.{method.__name__}"
            inspected = getattr(inspected, "__wrapped__", None)

    @functools.wraps(method)
    def passed_on(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(getattr(self, part), *args, **kwargs)

    return cast("Callable[Concatenate[Any, P], R]", passed_on)
