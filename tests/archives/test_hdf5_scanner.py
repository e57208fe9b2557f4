"""A table of HDF5 files: what is virtual equals the file, and so does what is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from tests.archives.hdf5_truth import check

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "deflate": {"compression": "gzip"},
    "shuffle": {"shuffle": True},
    "shuffle deflate": {"shuffle": True, "compression": "gzip"},
    "fletcher32": {"fletcher32": True},
    "all": {"shuffle": True, "compression": "gzip", "fletcher32": True},
    "lzf": {"compression": "lzf", "shuffle": True},
    "szip": {"compression": "szip"},
    "scale-offset": {"scaleoffset": 3},
}
BY_VALUE = {"lzf", "szip", "scale-offset"}
DTYPES = ("<f4", ">f4", "<f8", "<i2", ">i2", "u1", "<i8", ">u4", "<f2")


def values_of(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return (np.arange(np.prod(shape, dtype=int)) % 100 + 1).reshape(shape).astype(dtype)


@pytest.mark.parametrize("filters", FILTERS)
def test_layouts_filters_orders_and_fills(tmp_path: Path, filters: str) -> None:
    """One file for all types, chunks at the edge or not, fills or not, and what is written."""
    path = tmp_path / "table.h5"
    with h5py.File(path, "w") as file:
        every = itertools.product(DTYPES, (None, 7), (False, True), (False, True))
        for number, (dtype, fill, unlimited, partly) in enumerate(every):
            if number % 3 and dtype not in DTYPES[:2]:
                continue
            if filters == "scale-offset" and np.dtype(dtype) == "<f2":
                continue
            name = f"{dtype[-2:]}{'b' * (dtype[0] == '>')}_{fill}_{unlimited}_{partly}"
            made = file.create_dataset(
                name,
                (5, 6),
                dtype,
                chunks=(2, 4),
                maxshape=(None, 6) if unlimited else None,
                fillvalue=fill,
                **FILTERS[filters],
            )
            if partly:
                made[3, 1] = 50
            else:
                made[...] = values_of((5, 6), dtype)
    found = set(check(path).values())
    if filters in BY_VALUE:
        # small chunks that all skip the filter need no codec
        assert f"by value: filter {filters!r} has no codec" in found
        assert (
            len(found - {"virtual", "by value: some of its chunks skip filters, and others do not"})
            == 1
        )
    else:
        assert found == {"virtual"}


@pytest.mark.parametrize("written", ["all", "some", "none"])
@pytest.mark.parametrize("fill", [None, 7, float("nan")])
@pytest.mark.parametrize("layout", ["compact", "contiguous", "chunked"])
@pytest.mark.parametrize("shape", [(), (20,), (0,), (3, 0, 2), (4, 5)])
def test_layouts(
    tmp_path: Path, layout: str, fill: float | None, written: str, shape: tuple[int, ...]
) -> None:
    if layout == "chunked" and not shape:
        return
    path = tmp_path / "layout.h5"
    with h5py.File(path, "w") as file:
        for dtype in ("<f8", ">f4"):
            made = create(file, dtype, dtype, shape, layout=layout, fill=fill)
            if written == "all":
                made[...] = values_of(shape, dtype)
            elif written == "some" and made.size:
                made[(-1,) * len(shape)] = 3
    assert set(check(path).values()) == {"virtual"}


def create(
    file: h5py.File,
    name: str,
    dtype: Any,
    shape: tuple[int, ...],
    *,
    layout: str = "chunked",
    fill: Any = None,
    tid: Any = None,
    prepare: Callable[[Any], None] = lambda plist: None,
) -> h5py.Dataset:
    """Create a dataset through the low level of h5py."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_layout(getattr(h5d, layout.upper()))
    if layout == "chunked":
        plist.set_chunk(tuple(max(1, n // 2) for n in shape))
    if fill is not None:
        plist.set_fill_value(np.array(fill, dtype))
    prepare(plist)
    tid = tid or h5t.py_create(np.dtype(dtype), logical=True)
    did = h5d.create(file.id, name.encode(), tid, h5s.create_simple(shape), dcpl=plist)
    return h5py.Dataset(did)


@pytest.mark.parametrize("time", ["ALLOC", "NEVER", "IFSET"])
@pytest.mark.parametrize("alloc", ["EARLY", "LATE"])
@pytest.mark.parametrize("layout", ["contiguous", "chunked"])
def test_times_of_filling(tmp_path: Path, time: str, alloc: str, layout: str) -> None:
    path = tmp_path / "fill.h5"

    def prepare(plist: Any) -> None:
        plist.set_fill_time(getattr(h5d, f"FILL_TIME_{time}"))
        plist.set_alloc_time(getattr(h5d, f"ALLOC_TIME_{alloc}"))

    with h5py.File(path, "w") as file:
        for fill in (None, 5):
            create(file, f"nothing {fill}", "f4", (8,), layout=layout, fill=fill, prepare=prepare)
            made = create(
                file, f"part {fill}", "f4", (8,), layout=layout, fill=fill, prepare=prepare
            )
            made[1] = 2
    assert set(check(path).values()) == {"virtual"}
