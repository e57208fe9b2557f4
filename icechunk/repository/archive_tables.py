"""Tables of files in archives: objects that arrays name, stored beside those of the format.

`icechunk_dask.virtualize` writes and reads them. A field in the ``zarr.json`` of one array of
an archive names its table, so each version has its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["FIELD", "FOLDER", "Named", "is_table", "named_table", "table_key", "tables_in"]

#: Field of ``zarr.json`` that names the table; readers need not understand it.
FIELD: Final = "icechunk_archive"
FOLDER: Final = "archives/"
_NAME: Final = "[0-9a-f]{24}"
_KEY: Final = re.compile(FOLDER + _NAME)
_QUOTED: Final = re.compile(f'"({_NAME})"'.encode())
_FIELD_BYTES: Final = FIELD.encode()


def table_key(name: str) -> str:
    """Return the key of a table."""
    return FOLDER + name


def is_table(key: str) -> bool:
    """Whether an object has the name of a table."""
    return _KEY.fullmatch(key) is not None


@dataclass(frozen=True)
class Named:
    """A table, as an array names it.

    Attributes
    ----------
    table : str
    array : str or None
        Path of that array within the archive: several archives may be below one group. None
        if an earlier version of this library wrote it.
    """

    table: str
    array: str | None = None

    def root(self, path: str) -> str | None:
        """Return the group of the archive, by the path of the array; None if unknown."""
        if self.array is None or not path.endswith(f"/{self.array}"):
            return None
        return path.removesuffix(f"/{self.array}") or "/"

    def field(self) -> dict[str, object]:
        """Return the value of `FIELD`."""
        return {"must_understand": False, "table": self.table, "array": self.array}


def named_table(user_data: bytes) -> Named | None:
    """Return the table that a ``zarr.json`` names, or None."""
    if _FIELD_BYTES not in user_data:
        return None
    field = json.loads(user_data).get(FIELD)
    if not isinstance(field, Mapping) or not isinstance(field.get("table"), str):
        return None
    if not is_table(table_key(field["table"])):
        return None
    array = field.get("array")
    return Named(field["table"], array if isinstance(array, str) else None)


def tables_in(user_data: bytes) -> set[str]:
    """Return the keys of all tables that a ``zarr.json`` may name, whatever its form."""
    if _FIELD_BYTES not in user_data:
        return set()
    return {table_key(name.decode()) for name in _QUOTED.findall(user_data)}
