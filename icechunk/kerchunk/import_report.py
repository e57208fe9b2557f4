"""The report of an import of references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from icechunk.base.visible import in_a_line

__all__ = ["ImportReport"]


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes
    ----------
    arrays : tuple of str
        Paths of the arrays that were created or added to.
    groups : tuple of str
        Paths of the groups that were created or whose attributes were set.
    untouched : tuple of str
        Paths of the arrays that an append, or an import into a region, found and left
        unchanged, because they have none of the dimensions.
    virtual, inline, native : int
        Chunks that refer to files, lie in manifests, and are objects of the repository.
    files : int
        Distinct files that virtual chunks refer to.
    unmasked : tuple of str
        Paths of the arrays whose fill value is zero and was not taken for missing values,
        since kerchunk writes zero where a file has no ``_FillValue``. Where a file has one,
        and it is zero, import with ``mask_fill_value=True``.
    unmet : tuple of str
        What `drop_attributes` names and the references do not have, with names that are near.
    undecoded : dict of str to str
        Paths of the arrays of which no chunk was decoded, because the session may not read
        their files, or they cannot be read yet, and why.

    Examples
    --------
    >>> from icechunk.kerchunk import import_references
    >>> report = import_references({".zgroup": '{"zarr_format": 2}'}, session, group="month")
    >>> report.groups
    ('/month',)
    """

    arrays: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    virtual: int = 0
    inline: int = 0
    native: int = 0
    files: int = 0
    unmasked: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    undecoded: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [
            "<icechunk.kerchunk.ImportReport>",
            f"arrays: {_listed(self.arrays)}",
            f"groups: {_listed(self.groups)}",
            f"chunks: {self.virtual} virtual in {self.files} "
            f"{'file' if self.files == 1 else 'files'}, {self.inline} inline, "
            f"{self.native} native",
        ]
        if self.untouched:
            lines.append(f"left as they were: {_listed(self.untouched)}")
        if self.unmasked:
            lines.append(
                f"zeros are values, not missing: {_listed(self.unmasked)}; if they are missing, "
                "pass mask_fill_value=True"
            )
        if self.undecoded:
            lines.append(
                f"no chunk was decoded of {_listed(tuple(self.undecoded))}: "
                f"{next(iter(self.undecoded.values()))}"
            )
        return "\n".join(map(in_a_line, [*lines, *self.unmet]))


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:10])
    more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
    return f"{len(paths)}" + (f" ({shown}{more})" if paths else "")
