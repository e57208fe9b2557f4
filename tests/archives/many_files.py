"""Archives of many files without as many files: one is scanned, the others are like it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icechunk.kerchunk.tables import StringHeap
from icechunk_dask.archives.bundles import Bundle
from icechunk_dask.archives.parts import Scan
from icechunk_dask.archives.scan import Scanner
from icechunk_dask.archives.sources import Sources, Version, location_of
from tests.archives.day_files import write_days

_DAYS = 4
_DAY = 86_400_000_000


def names(folder: Path, numbers: Sequence[int]) -> list[str]:
    """Names of files that need not exist."""
    return [str(folder / f"{number:06}.nc") for number in numbers]


def scan_one_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be what one is, with days and a location of its own."""
    path = write_days(folder / "one.nc", 0, _DAYS)
    real, some = Scanner.__call__, Scanner.some
    known: dict[str, bytes] = {}

    def scanned(self: Scanner, url: str) -> Scan:
        if not known:
            known["scan"] = pickle.dumps(real(self, str(path)))
        number = int(url[-9:-3])
        scan: Scan = pickle.loads(known["scan"])
        (part,) = scan.parts
        payload = part.payload()
        heap, _ = StringHeap.from_strings([location_of(url)])
        tables = {name: replace(t, locations=heap) for name, t in payload.tables.items()}
        values = {
            name: v + _DAYS * number if name == "time" else v for name, v in payload.values.items()
        }
        shift = _DAYS * _DAY * number
        ends = tuple(
            replace(
                e, low=e.low + shift, high=e.high + shift, digest=number * 2654435761 % (1 << 32)
            )
            for e in part.ends
        )
        bundle = Bundle([replace(payload, tables=tables, values=values)])
        version = Version(scan.version.size, scan.version.modified + number)
        own = replace(part, url=url, ends=ends, bundle=bundle)
        return replace(scan, url=url, version=version, parts=(own,))

    def travelled(
        self: Scanner, urls: Sequence[str], counted: Callable[[], None] | None = None
    ) -> Any:
        return pickle.loads(pickle.dumps(some(self, urls, counted)))

    monkeypatch.setattr(Scanner, "__call__", scanned)
    # as from another process
    monkeypatch.setattr(Scanner, "some", travelled)
    monkeypatch.setattr(Sources, "versions", lambda self, urls: dict.fromkeys(urls, Version()))


def times(count: int) -> Any:
    """The coordinate of an archive of so many files."""
    return np.datetime64("2000-01-01", "ns") + np.arange(_DAYS * count) * np.timedelta64(1, "D")
