"""What became of the files of an archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["VirtualizeReport"]

#: Files that a report shows of each kind.
_SHOWN = 10


@dataclass(frozen=True, repr=False)
class VirtualizeReport:
    """What became of each file.

    Attributes
    ----------
    group : str
    snapshot_id : str or None
        Of the commit; None if there was nothing to commit.
    added, already : tuple of str
        URLs that were added, and that were in the group before.
    failed : dict of str to str
        URLs that could not be read, and why. The next call tries them again.
    skipped, materialized : dict of str to tuple of str
        URLs of files that do not fit, and in what; left out, or with the variables that
        do not fit written by value.
    arrays : tuple of str
        Paths within the group.
    sizes : dict of str to int
        Lengths of the dimensions.
    chunks : dict of str to int
        Virtual chunks that were added, under ``"virtual"``.
    order : dict of str to str
        By dimension, whether files were sorted by ``"coordinate"`` or ``"url"``.
    access : dict of str to str
        Prefixes of the containers to authorise for reading, and the source of a
        credential for each, with names of `icechunk.credentials`.
    trusted : bool
        Whether reading also takes trust in the servers that the repository's configuration
        names: the argument ``config=Repository.fetch_config(storage)``.
    """

    group: str
    snapshot_id: str | None = None
    added: tuple[str, ...] = ()
    already: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    materialized: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    arrays: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    chunks: Mapping[str, int] = field(default_factory=dict)
    order: Mapping[str, str] = field(default_factory=dict)
    access: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = False

    def __repr__(self) -> str:
        return "\n".join(["<icechunk_dask.VirtualizeReport>", *self._lines()])

    def _lines(self) -> Iterator[str]:
        sizes = ", ".join(f"{name}: {size}" for name, size in self.sizes.items())
        yield f"group: {self.group}" + (f" ({sizes})" if sizes else "")
        state = f"snapshot {self.snapshot_id}" if self.snapshot_id else "nothing was committed"
        sorted_by = ", ".join(f"{dim} by {what}" for dim, what in self.order.items())
        yield f"files: {len(self.added)} added, {len(self.already)} were there before; {state}"
        if self.added:
            count = self.chunks.get("virtual", 0)
            yield f"virtual chunks: {count}" + (f"; sorted along {sorted_by}" if sorted_by else "")
        yield from _listed("failed", {url: (why,) for url, why in self.failed.items()})
        yield from _listed("skipped", self.skipped)
        yield from _listed("written by value", self.materialized)
        if self.access:
            access = ", ".join(f"{prefix!r}: {call}" for prefix, call in self.access.items())
            yield "to read it, open the repository with (names of icechunk.credentials)"
            yield f"  authorize_virtual_chunk_access={{{access}}}"
            if self.trusted:
                yield "  config=icechunk.Repository.fetch_config(storage), if you trust its servers"


def _listed(title: str, files: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    if files:
        yield f"{title}: {len(files)}"
    for url, reasons in list(files.items())[:_SHOWN]:
        yield f"  {url}: {'; '.join(reasons)}"
    if len(files) > _SHOWN:
        yield f"  and {len(files) - _SHOWN} more"
