"""Names in arguments that no file has, which therefore do nothing: they may be misspelt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from icechunk import InvalidInputError
from icechunk.base.near import near
from icechunk_dask.archives.parts import Scan, Schema

__all__ = ["Unmet", "unmet_name"]

_OF_ATTRIBUTES = "drop_attributes"


def unmet_name(argument: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence for a name that no file has, with those that are near."""
    return f"{argument} names {name!r}, and no file has it{near(name, known)}"


@dataclass
class Unmet:
    """Collects what files lack of the names in arguments.

    Attributes
    ----------
    names : set of (str, str) or None
        Arguments, and names in them that no file has had until now; None without a file.
    """

    names: frozenset[tuple[str, str]] | None = None
    _schemas: dict[int, Schema] = field(default_factory=dict)

    def see(self, scans: Iterable[Scan]) -> None:
        """Take note of more files."""
        for scan in scans:
            for part in scan.parts:
                # one object for files of one kind
                if id(part.schema) not in self._schemas:
                    self._schemas[id(part.schema)] = part.schema
                    unmet = part.schema.unmet
                    self.names = unmet if self.names is None else self.names & unmet

    def told(self) -> tuple[str, ...]:
        """Return a sentence for each name, with those that are near."""
        return tuple(self._sentence(*each) for each in sorted(self.names or ()))

    def refuse(self, argument: str) -> None:
        """Refuse names of one argument that no file has.

        Raises
        ------
        InvalidInputError
            Names one, and those that are near.
        """
        for each in sorted(self.names or ()):
            if each[0] == argument:
                raise InvalidInputError(self._sentence(*each))

    def _sentence(self, argument: str, name: str) -> str:
        known = self._attributes() if argument == _OF_ATTRIBUTES else self._variables()
        return unmet_name(argument, name, known)

    def _variables(self) -> set[str]:
        found: set[str] = set()
        for schema in self._schemas.values():
            for path, variable in schema.variables.items():
                found.update((path, path.rpartition("/")[2], *variable.dimensions))
        return found

    def _attributes(self) -> set[str]:
        found: set[str] = set()
        for schema in self._schemas.values():
            for path, own in schema.groups.items():
                found.update(name for key in own for name in (key, f"{path}:{key}"))
            for path, variable in schema.variables.items():
                own = variable.document["attributes"]
                found.update(name for key in own for name in (key, f"{path}:{key}"))
        return found
