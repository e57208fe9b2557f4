"""Versions of the format."""

from __future__ import annotations

from icechunk.base.display import NumberedEnum

__all__ = ["SpecVersion", "spec_version", "supported_spec_versions"]


class SpecVersion(NumberedEnum):
    """A version of the Icechunk spec. Version 2 covers the documents 2.0 and 2.1."""

    v1 = 1
    v2 = 2

    @staticmethod
    def current() -> SpecVersion:
        """Return the version that new repositories get."""
        return SpecVersion.v2


def spec_version() -> SpecVersion:
    """Return the version that new repositories get.

    Examples
    --------
    >>> int(icechunk.spec_version())
    2
    """
    return SpecVersion.current()


def supported_spec_versions() -> list[SpecVersion]:
    """Return the versions that can be read and written, newest first.

    Examples
    --------
    >>> sorted(map(int, icechunk.supported_spec_versions()))
    [1, 2]
    """
    return [SpecVersion.v2, SpecVersion.v1]
