"""The findings of a verification, as values: damages, their effects, and orphans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from icechunk.base.display import Displayed
from icechunk.base.html import card, fields, note, section, table
from icechunk.base.texts import counted
from icechunk.base.visible import in_a_line
from icechunk.errors import ErrorKind, FormatError

__all__ = ["Damage", "Orphans", "Verification"]

#: The most damages that are listed; of the others only the number is shown.
_SHOWN: Final = 50


@dataclass(frozen=True)
class Damage(Displayed):
    """One thing that is wrong, and what it affects.

    Attributes
    ----------
    problem : {"missing", "unreadable", "short", "changed", "inconsistent"}
        An object does not exist; exists but cannot be read or decoded; has fewer bytes than
        are referred to; is a file elsewhere of another version than was referred to; or
        contradicts another object or the format.
    key : str
        The object, or the location of a file elsewhere.
    told : str
        What is wrong with it.
    snapshots : tuple of str
        Ids of all affected versions.
    refs : tuple of str
        Branches and tags whose newest snapshot is one of these.
    array : str or None
        Path of the affected array, None if the damage goes beyond one array.
    chunks : int
        Chunks of the array that cannot be read.
    region : tuple of (int, int), or None
        The box ``[from, to)`` of their coordinates, per dimension.
    """

    problem: str
    key: str
    told: str
    snapshots: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()
    array: str | None = None
    chunks: int = 0
    region: tuple[tuple[int, int], ...] | None = None

    def __str__(self) -> str:
        touched = ""
        if self.array is not None:
            touched = f"; {self.array}"
            if self.region:
                box = ", ".join(f"{low}:{high}" for low, high in self.region)
                touched += f" chunks [{box}]"
            if self.chunks:
                touched += f" ({self.chunks} {'chunk' if self.chunks == 1 else 'chunks'})"
        if self.refs:
            touched += f"; in {', '.join(self.refs)}"
        elif self.snapshots:
            count = len(self.snapshots)
            touched += f"; in {count} older {'version' if count == 1 else 'versions'}"
        return in_a_line(f"{self.problem}: {self.key}: {self.told}{touched}")


@dataclass(frozen=True)
class Orphans(Displayed):
    """Objects that no version refers to, including those that uncommitted sessions wrote.

    Attributes
    ----------
    objects, nbytes : int
    """

    objects: int = 0
    nbytes: int = 0


@dataclass(frozen=True, repr=False)
class Verification(Displayed):
    """What `Repository.verify` found.

    Attributes
    ----------
    url : str
        Of the repository.
    damages : tuple of Damage
    orphans : dict of str to Orphans
        By folder, such as ``"chunks/"``. `Repository.garbage_collect` deletes old ones.
    checked : dict of str to int
        How many snapshots, manifests, chunks, sources and values were checked.
    """

    url: str
    damages: tuple[Damage, ...] = ()
    orphans: Mapping[str, Orphans] = field(default_factory=dict)
    checked: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is no damage. Orphans do not count as damage."""
        return not self.damages

    def __bool__(self) -> bool:
        return self.ok

    def raise_if_damaged(self) -> None:
        """Raise an error if there is damage.

        Raises
        ------
        FormatError
            If there is damage.
        """
        if self.damages:
            raise FormatError(f"{self.url} is damaged:\n{self}", ErrorKind.INVALID_FILE_FORMAT)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON expresses them."""
        return {
            "url": self.url,
            "ok": self.ok,
            "damages": [asdict(damage) for damage in self.damages],
            "orphans": {folder: asdict(orphans) for folder, orphans in self.orphans.items()},
            "checked": dict(self.checked),
        }

    def __repr__(self) -> str:
        lines = [f"<icechunk.Verification of {self.url}>", *self._lines()]
        return "\n".join(map(in_a_line, lines))

    __str__ = __repr__

    def _lines(self) -> Iterator[str]:
        count = len(self.damages)
        yield "no damage" if not count else f"{counted(count, 'damage')}:"
        for damage in self.damages[:_SHOWN]:
            yield f"  {damage}"
        if count > _SHOWN:
            yield f"  and {count - _SHOWN} more"
        yield "looked at: " + ", ".join(
            counted(n, what.removesuffix("s"), what) for what, n in self.checked.items()
        )
        litter = [
            f"{each.objects:,} in {folder} ({counted(each.nbytes, 'byte')})"
            for folder, each in self.orphans.items()
            if each.objects
        ]
        if litter:
            yield "no version refers to: " + ", ".join(litter)

    def _repr_html_(self) -> str:
        rows = [
            (
                damage.problem,
                damage.key,
                damage.told,
                damage.array or "",
                damage.chunks or "",
                ", ".join(damage.refs) or counted(len(damage.snapshots), "version"),
            )
            for damage in self.damages
        ]
        names = ("problem", "object", "reason", "array", "chunks", "versions")
        litter = {
            folder: f"{counted(each.objects, 'object')}, {counted(each.nbytes, 'byte')}"
            for folder, each in self.orphans.items()
            if each.objects
        }
        first, *_ = self._lines()
        return card(
            "Verification",
            self.url,
            note(first),
            table(names, rows),
            section("Looked at", fields({name: f"{n:,}" for name, n in self.checked.items()})),
            section("No version refers to", fields(litter)),
        )
