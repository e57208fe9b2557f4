"""Damaged descriptions of grids, by which ecCodes would end the process, or never end."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from icechunk_dask.archives.grib import open_grib
from tests.archives.grib_files import message, sections_of, whole_message

#: Where numbers stand in section 3 of a reduced Gaussian grid (WMO FM 92, template 3.40).
_ROWS, _PARALLELS, _FIRST, _SECOND = 34, 67, 72, 74


def _damaged(*changes: tuple[int, bytes]) -> bytes:
    whole = message("reduced_gg_pl_32_grib2", small=False)
    sections = sections_of(whole)
    grid = bytearray(sections[3])
    assert grid[12:14] == (40).to_bytes(2, "big") and grid[10] == 2
    assert grid[_PARALLELS : _PARALLELS + 4] == (32).to_bytes(4, "big")
    assert grid[_ROWS : _ROWS + 4] == (64).to_bytes(4, "big")
    for place, data in changes:
        grid[place : place + len(data)] = data
    sections[3] = bytes(grid)
    return whole_message(whole, b"".join(data for _, data in sorted(sections.items())))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([(_PARALLELS, bytes(4))], "has 0 parallels from pole to equator, and 64 rows"),
        ([(_PARALLELS, b"\x7f\xff\xff\xff")], "2147483647 parallels"),
        ([(_PARALLELS, (31).to_bytes(4, "big"))], "31 parallels"),
        ([(_ROWS, (62).to_bytes(4, "big"))], "rows of its grid have"),
        ([(_FIRST, bytes(2))], "rows of its grid have"),
        ([(_FIRST, bytes(2)), (_SECOND, b"\xff\xff")], "rows of its grid have"),
    ],
)
def test_reduced_gaussian_grids(changes: list[tuple[int, bytes]], reason: str) -> None:
    with open_grib(BytesIO(_damaged()), "file:///a") as (whole,):
        truth = whole.variables["t"].read((slice(None),))
        assert whole.variables["latitude"].shape == truth.shape == (6114,)
    with open_grib(BytesIO(_damaged(*changes)), "file:///a") as (found,):
        for name in ("latitude", "longitude"):
            assert reason in found.variables[name].refused
        # the values are whole, and may be had without coordinates
        assert not found.variables["t"].refused
        np.testing.assert_array_equal(found.variables["t"].read((slice(None),)), truth)
