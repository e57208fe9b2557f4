"""Runs the scripts; what is imported here fills their table."""

from __future__ import annotations

import json
import shutil
from typing import Any

import icechunk
from tests.interop.behaviours import (
    conflicts,  # noqa: F401
    expiry,  # noqa: F401
    moves,  # noqa: F401
    paths,  # noqa: F401
    scalars,  # noqa: F401
    sessions,  # noqa: F401
    splitting,  # noqa: F401
    versions,  # noqa: F401
)
from tests.interop.behaviours.table import BEHAVIOURS


def names() -> list[str]:
    """Return the names of all scripts."""
    return list(BEHAVIOURS)


def run(base: str, folder: str, name: str) -> Any:
    """Run a script in a copy of the base; return what it returns."""
    shutil.copytree(base, folder)
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(folder))
    return json.loads(json.dumps(BEHAVIOURS[name](repo)))
