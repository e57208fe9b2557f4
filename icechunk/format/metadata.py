"""Metadata of snapshots and of the repository: names with JSON-like values.

Icechunk spec, "MetadataItem". Values stay encoded until they are needed: the repo
info of a long history holds thousands that nobody looks at, and they go back to disk
byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format import v1
from icechunk.format.encoding import flexbuf
from icechunk.format.encoding.flatbuf import Batch, Tables

__all__ = ["Metadata", "metadata_batch", "read_metadata", "with_reserved"]


#: Values under this name belong to clients, not to users (Icechunk spec, "Commit").
_RESERVED: Final = "__icechunk"


class Metadata(Mapping[str, Any]):
    """An immutable mapping of names to JSON-like values, sorted by name.

    A value is decoded whenever it is requested, so changing it has no effect on the
    mapping. Damaged values raise `FormatError` then.

    Parameters
    ----------
    values : mapping
        As `flexbuf.dumps` takes them. They are encoded at once.
    name : str
        What they are, for messages.

    Raises
    ------
    InvalidInputError
        If a key is not a string, or a value cannot be stored.
    """

    __slots__ = ("_name", "_raw", "_spec_version")

    def __init__(self, values: Mapping[str, Any], name: str = "metadata") -> None:
        for key in values:
            if not isinstance(key, str):
                raise InvalidInputError(
                    f"{name}: the key {key!r} is of type {type(key).__name__}; keys are strings",
                    ErrorKind.BAD_METADATA,
                )
        self._raw = {key: flexbuf.dumps(values[key], f"{name}[{key!r}]") for key in sorted(values)}
        self._spec_version = 2
        self._name = name

    @classmethod
    def stored(cls, raw: dict[str, bytes], spec_version: int, name: str) -> Metadata:
        """Return a mapping of encoded values.

        Parameters
        ----------
        raw : dict
        spec_version : int
            Of the file that holds them: MessagePack in 1, FlexBuffers in 2.
        name : str
            The file, for messages.
        """
        self = cls.__new__(cls)
        self._raw = raw
        self._spec_version = spec_version
        self._name = name
        return self

    def packed(self, spec_version: int = 2) -> dict[str, bytes]:
        """Return the values as a file of a spec version has them, sorted by name."""
        if spec_version == self._spec_version:
            return dict(sorted(self._raw.items()))
        if spec_version == 1:
            return {key: v1.metadata_dumps(self[key]) for key in sorted(self)}
        return Metadata(self, self._name).packed()

    def __getitem__(self, key: str) -> Any:
        raw = self._raw[key]
        loads = v1.metadata_loads if self._spec_version == 1 else flexbuf.loads
        return loads(raw, f"{self._name}: metadata[{key!r}]")

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __repr__(self) -> str:
        return f"Metadata({dict(self)!r})"


def with_reserved(metadata: Mapping[str, Any] | None, **noted: Any) -> dict[str, Any]:
    """Return metadata of a commit, with what the library notes under its reserved name.

    Other entries under that name stay.
    """
    given = dict(metadata or {})
    reserved = given.get(_RESERVED)
    return {**given, _RESERVED: {**(reserved if isinstance(reserved, Mapping) else {}), **noted}}


def read_metadata(owners: Tables, slot: int, spec_version: int, name: str) -> list[Metadata]:
    """Return the metadata of each table, from its vector of items in `slot`."""
    items, offsets = owners.children(slot, "metadata")
    names = items.text(0, "metadata name", required=True)
    values = items.blobs(1, "metadata value", required=True)
    pairs = list(zip(names, values, strict=True))
    return [
        Metadata.stored(dict(pairs[start:end]), spec_version, name)  # type: ignore[arg-type]
        for start, end in pairwise(offsets.tolist())
    ]


def metadata_batch(rows: Sequence[Metadata], spec_version: int = 2) -> tuple[Batch, list[int]]:
    """Return the items of several tables, and where those of each begin and end."""
    names: list[str | None] = []
    values: list[bytes | None] = []
    offsets = [0]
    for row in rows:
        packed = row.packed(spec_version)
        names += packed
        values += packed.values()
        offsets.append(len(names))
    batch = Batch(len(names))
    batch.text(0, names)
    batch.blob(1, values)
    return batch, offsets
