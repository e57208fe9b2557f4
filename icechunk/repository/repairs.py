"""The findings and actions of a repair, as a value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from icechunk.base.display import Displayed
from icechunk.base.html import card, note, section, table

__all__ = ["Dropped", "Repair", "UnlistedVersion"]

#: Rows of each kind that a text shows.
_SHOWN: Final = 50


@dataclass(frozen=True)
class Dropped(Displayed):
    """Something unreadable that is no longer in the repaired version.

    Attributes
    ----------
    path : str
        Of the array or group.
    why : str
        Includes the key of the missing or damaged object.
    chunks : int
        How many chunks of the array now hold the fill value. 0 if the whole node is gone.
    region : tuple of (int, int), or None
        The box ``[from, to)`` of their coordinates, per dimension.
    """

    path: str
    why: str
    chunks: int = 0
    region: tuple[tuple[int, int], ...] | None = None

    def __str__(self) -> str:
        where = ""
        if self.region:
            where = " chunks [" + ", ".join(f"{low}:{high}" for low, high in self.region) + "]"
        count = f" ({self.chunks})" if self.chunks else ""
        return f"{self.path}{where}{count}: {self.why}"


@dataclass(frozen=True)
class UnlistedVersion(Displayed):
    """A complete snapshot that is younger than the restored state.

    It was either committed after the copy of that state was made, or written by somebody who
    lost a race or never published it: the files do not tell which.

    Attributes
    ----------
    id : str
    message : str
    written_at : datetime
    fits : tuple of str
        Branches on whose newest version it was made: it equals that version with the
        changes of its own transaction log.
    """

    id: str
    message: str
    written_at: datetime
    fits: tuple[str, ...] = ()

    def __str__(self) -> str:
        fits = f", made on {', '.join(self.fits)}" if self.fits else ""
        return f"{self.id} of {self.written_at:%Y-%m-%d %H:%M:%S} UTC, {self.message!r}{fits}"


@dataclass(frozen=True, repr=False)
class Repair(Displayed):
    """What `Repository.repair` found, and what it did or would do.

    Attributes
    ----------
    url : str
        Of the repository.
    dry_run : bool
        Whether nothing was changed.
    damage : str or None
        What was wrong with the object that names all versions: ``repo``, or in spec 1 a ref.
        None if nothing was.
    restored_from : str or None
        The copy of ``repo`` that replaced it.
    passed_over : tuple of (str, str)
        Newer copies that could not, and why.
    unlisted : tuple of UnlistedVersion
        Commits that may be lost; `adopt` takes their ids.
    adopted : dict of str to str
        Branches that were moved to such a version.
    logs : tuple of str
        Keys of transaction logs that were rebuilt.
    dropped : tuple of Dropped
        What the newest version of the branch has lost.
    reset : tuple of str
        Ids of newest versions of the branch that could not be read at all, and were abandoned.
    unread : tuple of Dropped
        Chunks that several requests could not fetch, or that this environment cannot decode.
        Nobody knows whether they are damaged: they stay.
    snapshot_id : str or None
        The new version of the branch without what was dropped.
    """

    url: str
    dry_run: bool
    damage: str | None = None
    restored_from: str | None = None
    passed_over: tuple[tuple[str, str], ...] = ()
    unlisted: tuple[UnlistedVersion, ...] = ()
    adopted: tuple[tuple[str, str], ...] = ()
    logs: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    reset: tuple[str, ...] = ()
    unread: tuple[Dropped, ...] = ()
    snapshot_id: str | None = None

    @property
    def is_needed(self) -> bool:
        """Whether there is, or was, anything to repair."""
        return bool(self.damage or self.adopted or self.logs or self.dropped or self.reset)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON expresses them."""
        found = asdict(self)
        for version in found["unlisted"]:
            version["written_at"] = version["written_at"].isoformat()
        return {**found, "adopted": dict(self.adopted)}

    def __repr__(self) -> str:
        return "\n".join([f"<icechunk.Repair of {self.url}>", *self._lines()])

    __str__ = __repr__

    def _lines(self) -> Iterator[str]:
        would = "would be " if self.dry_run else ""
        if not self.is_needed:
            yield "nothing to repair"
        if self.damage:
            yield f"damage: {self.damage}"
        if self.restored_from:
            yield f"{would}restored from {self.restored_from}"
        elif self.damage and not self.adopted:
            yield "no copy can be restored"
        yield from _listed(
            "newer copies that cannot be used", [f"{k}: {w}" for k, w in self.passed_over]
        )
        yield from _listed(
            "commits that may be lost (adopt={branch: id} puts one back)", map(str, self.unlisted)
        )
        for branch, id in self.adopted:
            yield f"the branch {branch!r} {would}moved to {id}"
        yield from _listed(f"transaction logs {would}made anew", self.logs)
        yield from _listed(f"versions {would}left, since they cannot be read", self.reset)
        yield from _listed(f"{would}dropped", map(str, self.dropped))
        yield from _listed("kept, though they could not be read", map(str, self.unread))
        if self.snapshot_id:
            yield f"committed {self.snapshot_id}"

    def _repr_html_(self) -> str:
        first, *rest = self._lines()
        lost = [(d.path, d.chunks or "", d.why) for d in self.dropped]
        return card(
            "Repair",
            self.url,
            note(first),
            *(note(line) for line in rest),
            section("Dropped", table(("node", "chunks", "why"), lost)),
        )


def _listed(title: str, items: Any) -> Iterator[str]:
    rows = list(items)
    if rows:
        yield f"{title}:"
        yield from (f"  {row}" for row in rows[:_SHOWN])
        if len(rows) > _SHOWN:
            yield f"  and {len(rows) - _SHOWN} more"
