"""Feature flags: parts of the library that can be switched off for a repository.

Numbers and names are those of the Icechunk spec, "Feature flags". A flag that is in
neither list of the repo info has its default. Numbers that this library does not know are
kept as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from icechunk.config import FeatureFlag
from icechunk.errors import ErrorKind, InvalidInputError, SessionStateError
from icechunk.format.repo_info import RepoInfo
from icechunk.format.updates import UpdateEntry, UpdateKind

MOVE_NODE: Final = "move_node"
CREATE_TAG: Final = "create_tag"
DELETE_TAG: Final = "delete_tag"
_IDS: Final = {MOVE_NODE: 3, CREATE_TAG: 4, DELETE_TAG: 5}


def feature_flags(info: RepoInfo) -> list[FeatureFlag]:
    """Return all features that this library knows, by number."""
    found = []
    for name, flag in _IDS.items():
        setting = None
        if flag in (info.enabled_flags or ()):
            setting = True
        elif flag in (info.disabled_flags or ()):
            setting = False
        found.append(FeatureFlag(flag, name, True, setting, setting is not False))
    return found


def require_feature(info: RepoInfo, name: str) -> None:
    """Refuse a feature that is switched off in this repository.

    Raises
    ------
    SessionStateError
    """
    if not all(flag.enabled for flag in feature_flags(info) if flag.name == name):
        raise SessionStateError(
            f"the feature {name} is switched off in this repository; "
            f"Repository.set_feature_flag({name!r}, None) switches it on",
            ErrorKind.FEATURE_FLAG_DISABLED,
        )


def set_feature(info: RepoInfo, name: str, setting: bool | None) -> tuple[RepoInfo, UpdateEntry]:
    """Return the state with a feature switched on, off, or back to its default (None).

    Raises
    ------
    InvalidInputError
        If there is no such feature.
    """
    flag = _IDS.get(name)
    if flag is None:
        raise InvalidInputError(
            f"there is no feature {name!r}; known are {', '.join(_IDS)}",
            ErrorKind.INVALID_FEATURE_FLAG,
        )
    changed = replace(
        info,
        enabled_flags=_listed(info.enabled_flags, flag, setting is True),
        disabled_flags=_listed(info.disabled_flags, flag, setting is False),
    )
    return changed, UpdateEntry(
        kind=UpdateKind.FEATURE_FLAG_CHANGED,
        flag_id=flag,
        flag_value=bool(setting),
        flag_is_set=setting is not None,
    )


def _listed(flags: tuple[int, ...] | None, flag: int, wanted: bool) -> tuple[int, ...] | None:
    if flags is None and not wanted:
        return None
    kept = {number for number in flags or () if number != flag}
    return tuple(sorted(kept | {flag} if wanted else kept))
