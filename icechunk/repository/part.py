"""What the parts of `icechunk.Repository` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from icechunk.base.display import Displayed
from icechunk.commit.assets import Assets
from icechunk.commit.publish import Compute
from icechunk.format.repo_info import RepoInfo


class RepositoryPart(Displayed, ABC):
    """A group of methods of `icechunk.Repository`, which supplies what they need."""

    @property
    @abstractmethod
    def _info(self) -> RepoInfo:
        """The current repo info."""

    @property
    @abstractmethod
    def _assets(self) -> Assets:
        """Access to the stored objects."""

    @abstractmethod
    def _update(self, compute: Compute, *, needs_online: bool = True) -> None:
        """Publish a change of the repo info."""
