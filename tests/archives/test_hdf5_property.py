"""Any HDF5 dataset equals the file, virtual or by value, or is refused by name."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from hypothesis import given, settings, strategies as st

from tests.archives.hdf5_truth import check

PLAIN = ("<f4", ">f4", "<f8", ">i2", "<i8", "u1", "<u4", "<f2", "<c8", "bool", "S3")
BYTES = ("deflate", "shuffle", "fletcher32")
#: HDF5 crashes where these get anything but the values of a chunk.
FIRST = ("lzf", "scale-offset", "n-bit")


def _odd_types() -> dict[str, Any]:
    twelve = h5t.STD_I16LE.copy()
    twelve.set_precision(12)
    shifted = h5t.STD_U32BE.copy()
    shifted.set_precision(20)
    shifted.set_offset(5)
    biased = h5t.IEEE_F32LE.copy()
    biased.set_ebias(100)
    short = h5t.IEEE_F32LE.copy()
    short.set_fields(15, 7, 8, 0, 7)
    short.set_size(2)
    return {"twelve bits": twelve, "shifted": shifted, "biased": biased, "bfloat16": short}


@dataclass(frozen=True)
class Case:
    """What to write."""

    type: str
    shape: tuple[int, ...]
    layout: str
    chunks: tuple[int, ...]
    unlimited: bool
    filters: tuple[str, ...]
    masks: tuple[int, ...]
    fill: int | None
    fill_time: str
    written: str
    libver: str

    @property
    def is_common(self) -> bool:
        """Whether it is what most files have, which has to be virtual."""
        usual = [one for one in ("shuffle", "deflate", "fletcher32") if one in self.filters]
        return self.type in PLAIN and list(self.filters) == usual and len(set(self.masks)) <= 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    layout = (
        draw(st.sampled_from(["chunked"] * 4 + ["contiguous", "compact"]))
        if shape
        else (draw(st.sampled_from(["contiguous", "compact"])))
    )
    chunked = layout == "chunked"
    unlimited = chunked and draw(st.booleans())
    chunks = tuple(
        draw(st.integers(1, 9 if unlimited and not axis else max(1, length)))
        for axis, length in enumerate(shape)
    )
    usual = st.sampled_from(
        [(), ("deflate",), ("shuffle", "deflate"), ("shuffle", "deflate", "fletcher32")]
    )
    any_order = st.tuples(
        st.lists(st.sampled_from(FIRST), max_size=1), st.lists(st.sampled_from(BYTES), max_size=3)
    ).map(lambda two: (*two[0], *two[1]))
    filters = draw(st.one_of(usual, any_order)) if chunked else ()
    masks = draw(
        st.one_of(st.just(()), st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple))
    )
    kind = draw(st.sampled_from(PLAIN * 2 + tuple(_odd_types())))
    if kind not in PLAIN[:7]:
        filters = tuple(one for one in filters if one != "scale-offset")  # HDF5 has none
    return Case(
        kind,
        shape,
        layout,
        chunks,
        unlimited,
        filters,
        # HDF5 cannot read the second of two shuffles, and would not write it
        masks if set(filters) <= set(BYTES) and filters and filters.count("shuffle") < 2 else (),
        draw(st.sampled_from([None, 0, 7])),
        draw(st.sampled_from(["IFSET", "IFSET", "ALLOC", "NEVER"])),
        draw(st.sampled_from(["all", "one", "rows", "nothing"])),
        draw(st.sampled_from(["earliest", "v108", "latest"])),
    )


def _write(path: Path, case: Case) -> None:
    tid = _odd_types().get(case.type) or h5t.py_create(np.dtype(case.type), logical=True)
    dtype = tid.dtype
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_layout(getattr(h5d, case.layout.upper()))
    if case.layout == "chunked":
        plist.set_chunk(case.chunks)
    for one in case.filters:
        match one:
            case "deflate":
                plist.set_deflate(4)
            case "shuffle":
                plist.set_shuffle()
            case "fletcher32":
                plist.set_fletcher32()
            case "lzf":
                plist.set_filter(32000, 1)
            case "scale-offset":
                plist.set_scaleoffset(*((0, 2) if dtype.kind == "f" else (2, 0)))
            case "n-bit":
                plist.set_filter(5, 1)
    if case.fill is not None:
        plist.set_fill_value(np.array(case.fill).astype(dtype))
    plist.set_fill_time(getattr(h5d, f"FILL_TIME_{case.fill_time}"))
    limits = (h5s.UNLIMITED, *case.shape[1:]) if case.unlimited else case.shape
    space = h5s.create_simple(case.shape, limits)
    with h5py.File(path, "w", libver=case.libver) as file:
        did = h5d.create(file.id, b"v", tid, space, dcpl=plist)
        dataset = h5py.Dataset(did)
        size = int(np.prod(case.shape, dtype=int))
        values = (np.arange(size) % 90 + 1).reshape(case.shape).astype(dtype)
        if case.masks:
            _write_raw(did, case, values)
        elif not size or case.written == "nothing":
            pass
        elif case.written == "all":
            dataset[...] = values
        elif case.written == "one":
            index = tuple(n // 2 for n in case.shape)
            dataset[index] = values[index]
        else:
            rows = slice(None, None, 2) if case.shape else ()
            dataset[rows] = values[rows]


def _write_raw(did: h5d.DatasetID, case: Case, values: np.ndarray) -> None:
    """Write chunks that skip filters."""
    starts = itertools.product(
        *(range(0, n, c) for n, c in zip(case.shape, case.chunks, strict=True))
    )
    masks = itertools.cycle(case.masks)
    for number, start in enumerate(starts):
        if case.written == "nothing" or (case.written == "rows" and number % 2):
            continue
        mask = next(masks)
        region = tuple(slice(at, at + c) for at, c in zip(start, case.chunks, strict=True))
        chunk = np.zeros(case.chunks, values.dtype)
        part = values[region]
        chunk[tuple(slice(n) for n in part.shape)] = part
        data = chunk.tobytes()
        for position, one in enumerate(case.filters):
            if mask >> position & 1:
                continue
            if one == "shuffle":
                whole = len(data) // values.itemsize * values.itemsize
                data = bytes(numcodecs.Shuffle(values.itemsize).encode(data[:whole])) + data[whole:]
            elif one == "deflate":
                data = bytes(numcodecs.Zlib(4).encode(data))
            else:
                data = bytes(numcodecs.Fletcher32().encode(np.frombuffer(data, "u1")))
        did.write_direct_chunk(start, data, filter_mask=mask)


@settings(max_examples=200)
@given(cases())
def test_equal_or_refused(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        _write(path, case)
        # xarray sees what h5py does, and is compared in the other tests
        found = check(path, xarray=False)
    assert set(found) == {"v"}
    if case.is_common:
        assert found["v"] == "virtual"
    assert not found["v"].startswith("refused")
