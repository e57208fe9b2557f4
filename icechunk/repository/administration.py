"""Administration of a repository: operations log, metadata, status, features."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from icechunk.base.methods import in_thread
from icechunk.base.texts import RESTORED
from icechunk.commit.assets import Assets, advising
from icechunk.commit.building import now_microseconds
from icechunk.commit.features import feature_flags, set_feature
from icechunk.commit.publish import RepoState
from icechunk.commit.publish_v1 import needs_upgrade
from icechunk.commit.snapshot_info import to_microseconds
from icechunk.config import FeatureFlag
from icechunk.errors import ErrorKind, InvalidInputError, ObjectNotFoundError
from icechunk.format import layout
from icechunk.format.metadata import Metadata
from icechunk.format.repo_info import RepoInfo, decode_repo_info
from icechunk.format.updates import Status, UpdateEntry, UpdateKind
from icechunk.repository.ops import RepoStatus

if TYPE_CHECKING:
    from icechunk.repository.update_types import Update


@dataclass(frozen=True)
class Administration:
    """What applies to one repository as a whole.

    Parameters
    ----------
    assets : Assets
    state : RepoState
    """

    _assets: Assets
    _state: RepoState

    @property
    def _repo_info(self) -> RepoInfo:
        """The current repo info; the repository must be of a version that stores one."""
        info = self._state.load()
        if info.spec_version < 2:
            raise needs_upgrade("operations log, metadata, status and features")
        return info

    # -- operations log ----------------------------------------------------------------
    def ops_log(self) -> Iterator[Update]:
        """Return an iterator over all updates of the repository, newest first.

        Older parts of the log are fetched as they are reached. Where one was removed, the
        log ends.

        Examples
        --------
        >>> newest = next(repo.ops_log())
        >>> type(newest.kind).__name__
        'NewCommit'
        """
        from icechunk.repository.update_types import Update

        info = self._repo_info
        seen: set[str] = set()

        def entries() -> Iterator[Update]:
            newest, *older = info.updates
            before = info.repo_before_updates
            while True:
                yield from map(Update.from_entry, (newest, *older))
                if before is None or before in seen:
                    return
                seen.add(before)
                key = layout.backup_key(before)
                try:
                    current = decode_repo_info(self._assets.storage.get(key).data, key)
                except ObjectNotFoundError:
                    return
                # a copy does not know its own name, which is that of its newest update
                newest, *older = current.updates
                newest = replace(newest, backup=before)
                before = current.repo_before_updates

        return entries()

    async def ops_log_async(self) -> AsyncIterator[Update]:
        """Yield what `ops_log` does."""
        for entry in await in_thread(lambda: list(self.ops_log())):
            yield entry

    # -- metadata ------------------------------------------------------------------------
    def get_metadata(self) -> dict[str, Any]:
        """Return the metadata of the repository itself.

        Examples
        --------
        >>> repo.get_metadata()
        {}
        """
        info = self._repo_info
        with advising(RESTORED):
            return dict(info.metadata)

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata of the repository.

        Parameters
        ----------
        metadata : mapping
            Names to anything that JSON can express.

        Examples
        --------
        >>> repo.set_metadata({"title": "Weather"})
        >>> repo.metadata
        {'title': 'Weather'}
        """
        stored = Metadata(_checked(metadata))
        self._state.update(
            lambda info: (
                replace(info, metadata=stored),
                UpdateEntry(kind=UpdateKind.METADATA_CHANGED),
            )
        )

    def update_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Add to the metadata of the repository, and return all of it.

        Parameters
        ----------
        metadata : mapping
            Its names replace existing ones; others stay.

        Examples
        --------
        >>> repo.update_metadata({"title": "Weather"})
        {'title': 'Weather'}
        """
        given = _checked(metadata)
        merged: dict[str, Any] = {}

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            merged.clear()
            merged.update({**info.metadata, **given})
            changed = replace(info, metadata=Metadata(merged))
            return changed, UpdateEntry(kind=UpdateKind.METADATA_CHANGED)

        self._state.update(compute)
        return dict(sorted(merged.items()))

    # -- status --------------------------------------------------------------------------
    def get_status(self) -> RepoStatus:
        """Return whether the repository takes writes.

        Examples
        --------
        >>> repo.get_status().availability.name
        'online'
        """
        return RepoStatus.from_status(self._repo_info.status)

    def set_status(self, status: RepoStatus) -> None:
        """Say whether the repository takes writes.

        Parameters
        ----------
        status : RepoStatus
            Its time is stored; if it has none, the current time.

        Raises
        ------
        InvalidInputError
            If it is not a `RepoStatus`.

        Examples
        --------
        >>> repo.set_status(repo.get_status())
        """
        if not isinstance(status, RepoStatus):
            raise InvalidInputError(
                f"set_status takes a RepoStatus, not {status!r}", ErrorKind.NOT_ALLOWED
            )
        set_at = status.set_at

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            stored = Status(
                status.availability.value,
                now_microseconds() if set_at is None else to_microseconds(set_at),
                status.limited_availability_reason,
            )
            changed = replace(info, status=stored)
            return changed, UpdateEntry(kind=UpdateKind.REPO_STATUS_CHANGED, status=stored)

        self._state.update(compute, needs_online=False)

    # -- features ------------------------------------------------------------------------
    def feature_flags(self) -> list[FeatureFlag]:
        """Return all features and whether they are on.

        Examples
        --------
        >>> flags = [flag.name for flag in repo.feature_flags()]
        """
        return feature_flags(self._repo_info)

    def enabled_feature_flags(self) -> list[FeatureFlag]:
        """Return the features that are on.

        Examples
        --------
        >>> enabled = {flag.name for flag in repo.enabled_feature_flags()}
        """
        return [flag for flag in self.feature_flags() if flag.enabled]

    def disabled_feature_flags(self) -> list[FeatureFlag]:
        """Return the features that are off.

        Examples
        --------
        >>> [flag.name for flag in repo.disabled_feature_flags()]
        []
        """
        return [flag for flag in self.feature_flags() if not flag.enabled]

    def set_feature_flag(self, name: str, setting: bool | None) -> None:
        """Switch a feature on or off for all users of the repository.

        Parameters
        ----------
        name : str
            ``move_node``, ``create_tag`` or ``delete_tag``.
        setting : bool or None
            None for the default, which is on.

        Raises
        ------
        InvalidInputError
            If there is no such feature.

        Examples
        --------
        >>> repo.set_feature_flag("delete_tag", False)
        >>> [flag.name for flag in repo.disabled_feature_flags()]
        ['delete_tag']
        """
        self._state.update(lambda info: set_feature(info, name, setting))


def _checked(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"the metadata of a repository must be a dict, not {metadata!r}", ErrorKind.BAD_METADATA
        )
    return metadata
