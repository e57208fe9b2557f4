"""What all sessions of one open repository share, and what a session may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from icechunk.base.display import NumberedEnum
from icechunk.commit.assets import Assets
from icechunk.commit.publish import RepoState
from icechunk.config import RepositoryConfig
from icechunk.config.repository_config import EffectiveConfig
from icechunk.virtual.resolver import VirtualResolver

if TYPE_CHECKING:
    import asyncio


class SessionMode(NumberedEnum):
    """What a session may do."""

    readonly = 0
    writable = 1
    rearrange = 2


class RequestLimit:
    """Limits the number of requests that run at the same time in each event loop.

    Parameters
    ----------
    count : int
        Values below 1 count as 1, the smallest number that gets anything done.
    """

    def __init__(self, count: int) -> None:
        self._count = max(count, 1)
        self._semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    def slot(self) -> asyncio.Semaphore:
        """Return what to hold during a request, with ``async with``."""
        import asyncio

        loop = asyncio.get_running_loop()
        found = self._semaphores.get(loop)
        if found is None:
            found = self._semaphores[loop] = asyncio.Semaphore(self._count)
        return found


@dataclass(frozen=True)
class SessionContext:
    """What all sessions of one open repository share.

    Attributes
    ----------
    assets : Assets
    state : RepoState
    virtual : VirtualResolver
    config : RepositoryConfig
    effective : EffectiveConfig
        The same, with defaults filled in.
    recipe : object
        It pickles; `recipe.context()` makes the same context in another process.
    limit : RequestLimit
        For the asynchronous requests of all sessions.
    default_commit_metadata : mapping
        Added to every commit.
    """

    assets: Assets
    state: RepoState
    virtual: VirtualResolver
    config: RepositoryConfig
    effective: EffectiveConfig
    recipe: Any
    limit: RequestLimit
    default_commit_metadata: Mapping[str, Any]
