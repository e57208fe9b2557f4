"""Branches and tags of a repository."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from icechunk.commit.features import CREATE_TAG, DELETE_TAG, require_feature
from icechunk.commit.publish import RepoState
from icechunk.commit.version_names import (
    branch_tip,
    id_of_snapshot,
    require_snapshot,
    tag_target,
)
from icechunk.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    InvalidInputError,
    SessionStateError,
)
from icechunk.format.ids import encode_id
from icechunk.format.repo_info import RepoInfo, with_item
from icechunk.format.updates import UpdateEntry, UpdateKind

MAIN: Final = "main"


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise InvalidInputError(
            f"the name of a branch or tag must be a string, not {name!r}",
            ErrorKind.INVALID_REF_NAME,
        )


@dataclass(frozen=True)
class BranchesAndTags:
    """The branches and tags of one repository.

    Parameters
    ----------
    state : RepoState
    """

    _state: RepoState

    # -- branches ------------------------------------------------------------------------
    def create_branch(self, branch: str, snapshot_id: str) -> None:
        """Create a branch at a snapshot.

        Raises
        ------
        AlreadyExistsError, SnapshotNotFoundError

        Examples
        --------
        >>> repo.create_branch("trial", repo.resolve("main~1"))
        """
        _check_name(branch)
        target = id_of_snapshot(snapshot_id, self._state.load)

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            if branch in info.branches:
                raise AlreadyExistsError(
                    f"{branch!r} is at snapshot {encode_id(info.branches[branch])}; "
                    "reset_branch moves it",
                    ErrorKind.BRANCH_ALREADY_EXISTS,
                )
            require_snapshot(info, target)
            changed = replace(info, branches=with_item(info.branches, branch, target))
            return changed, UpdateEntry(kind=UpdateKind.BRANCH_CREATED, name=branch)

        self._state.update(compute)

    def list_branches(self) -> set[str]:
        """Return the names of all branches.

        Examples
        --------
        >>> repo.list_branches()
        {'main'}
        """
        return set(self._state.load().branches)

    def lookup_branch(self, branch: str) -> str:
        """Return the id of the newest snapshot of a branch.

        Examples
        --------
        >>> repo.lookup_branch("main") == repo.resolve("main")
        True
        """
        return encode_id(branch_tip(self._state.load(), branch))

    def reset_branch(
        self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None
    ) -> None:
        """Make a branch point to another snapshot.

        Parameters
        ----------
        branch : str
        snapshot_id : str
            The new tip.
        from_snapshot_id : str, optional
            Where the branch must be now.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
        ConflictError
            If the branch is not at `from_snapshot_id`.

        Examples
        --------
        >>> repo.reset_branch("main", repo.resolve("main~1"))
        """
        target = id_of_snapshot(snapshot_id, self._state.load)

        expected = None
        if from_snapshot_id is not None:
            expected = id_of_snapshot(from_snapshot_id, self._state.load)

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            previous = branch_tip(info, branch)
            if expected is not None and previous != expected:
                raise ConflictError(
                    encode_id(expected),
                    encode_id(previous),
                    f"the branch {branch!r} is at snapshot {encode_id(previous)}, "
                    f"not at {encode_id(expected)}",
                    ErrorKind.BRANCH_UPDATE_CONFLICT,
                )
            require_snapshot(info, target)
            changed = replace(info, branches=with_item(info.branches, branch, target))
            return changed, UpdateEntry(
                kind=UpdateKind.BRANCH_RESET, name=branch, previous=previous
            )

        self._state.update(compute)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch. Its snapshots stay until garbage collection deletes them.

        Raises
        ------
        RefNotFoundError
        SessionStateError
            If it is ``main``.

        Examples
        --------
        >>> repo.create_branch("trial", first)
        >>> repo.delete_branch("trial")
        """
        if branch == MAIN:
            raise SessionStateError(
                "every repository has this branch; reset_branch moves it",
                ErrorKind.CANNOT_DELETE_MAIN,
            )

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            previous = branch_tip(info, branch)
            kept = {name: tip for name, tip in info.branches.items() if name != branch}
            return replace(info, branches=kept), UpdateEntry(
                kind=UpdateKind.BRANCH_DELETED, name=branch, previous=previous
            )

        self._state.update(compute)

    # -- tags ----------------------------------------------------------------------------
    def create_tag(self, tag: str, snapshot_id: str) -> None:
        """Create a tag of a snapshot. A tag never moves, and its name can be used only once.

        Raises
        ------
        AlreadyExistsError
            If a tag of this name exists, or has existed.
        SnapshotNotFoundError

        Examples
        --------
        >>> repo.create_tag("v2", repo.resolve("main"))
        """
        _check_name(tag)
        target = id_of_snapshot(snapshot_id, self._state.load)

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            require_feature(info, CREATE_TAG)
            if tag in info.tags:
                raise AlreadyExistsError(
                    f"{tag!r} is at snapshot {encode_id(info.tags[tag])}; use another name",
                    ErrorKind.TAG_ALREADY_EXISTS,
                )
            if tag in info.deleted_tags:
                raise AlreadyExistsError(
                    f"{tag!r}; use another name",
                    ErrorKind.TAG_PREVIOUSLY_DELETED,
                )
            require_snapshot(info, target)
            changed = replace(info, tags=with_item(info.tags, tag, target))
            return changed, UpdateEntry(kind=UpdateKind.TAG_CREATED, name=tag)

        self._state.update(compute)

    def list_tags(self) -> set[str]:
        """Return the names of all tags.

        Examples
        --------
        >>> repo.list_tags()
        {'v1'}
        """
        return set(self._state.load().tags)

    def lookup_tag(self, tag: str) -> str:
        """Return the id of the snapshot that a tag names.

        Examples
        --------
        >>> repo.lookup_tag("v1") == first
        True
        """
        return encode_id(tag_target(self._state.load(), tag))

    def delete_tag(self, tag: str) -> None:
        """Delete a tag; its name cannot be used again.

        Raises
        ------
        RefNotFoundError

        Examples
        --------
        >>> repo.delete_tag("v1")
        """

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            require_feature(info, DELETE_TAG)
            previous = tag_target(info, tag)
            kept = {name: target for name, target in info.tags.items() if name != tag}
            changed = replace(info, tags=kept, deleted_tags=(*info.deleted_tags, tag))
            return changed, UpdateEntry(kind=UpdateKind.TAG_DELETED, name=tag, previous=previous)

        self._state.update(compute)
