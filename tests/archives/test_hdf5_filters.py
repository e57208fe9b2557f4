"""Filters of HDF5: in any order, repeated, skipped by some chunks, and of other people."""

from __future__ import annotations

import bz2
import ctypes
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from h5py import h5t, h5z

from icechunk import InvalidInputError
from icechunk_dask.archives.hdf5 import open_hdf5
from icechunk_dask.archives.hdf5_filters import _load_plugins
from tests.archives.hdf5_truth import check, everything, store_of
from tests.archives.test_hdf5_scanner import create, values_of

VALUES = values_of((8, 30), "<f4")


def _chunked(path: Path, prepare: Callable[[Any], None], shape: tuple[int, ...] = (8, 30)) -> None:
    with h5py.File(path, "w") as file:
        made = create(file, "a", "<f4", shape, prepare=prepare)
        made[...] = values_of(shape, "<f4")


ORDERS: dict[str, tuple[str, ...]] = {
    "deflate, shuffle": ("deflate", "shuffle"),
    "deflate twice": ("deflate", "deflate"),
    "shuffle twice": ("shuffle", "shuffle"),
    "fletcher32 first": ("fletcher32", "deflate"),
    "fletcher32, shuffle": ("fletcher32", "shuffle", "deflate"),
    "fletcher32 twice": ("fletcher32", "fletcher32"),
    "fletcher32 between": ("shuffle", "fletcher32", "deflate", "fletcher32"),
    "scale-offset": ("scaleoffset", "deflate"),
}
#: What a shuffle gets there has a length that depends on the values.
BY_VALUE = {
    "deflate, shuffle": "filter 'shuffle' works on a length for which there is no codec",
    "scale-offset": "filter 'scale-offset' has no codec",
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders(tmp_path: Path, name: str) -> None:
    def prepare(plist: Any) -> None:
        for one in ORDERS[name]:
            options = {"deflate": (4,), "scaleoffset": (0, 2)}.get(one, ())
            getattr(plist, f"set_{one}")(*options)

    for shape in ((8, 30), (7, 29)):
        _chunked(tmp_path / "a.h5", prepare, shape)
        expected = f"by value: {BY_VALUE[name]}" if name in BY_VALUE else "virtual"
        assert check(tmp_path / "a.h5") == {"a": expected}


MIXED = "by value: some of its chunks skip filters, and others do not"
#: Bits of the filters that each of four chunks skips; shuffle, deflate, fletcher32.
MASKS: dict[str, tuple[tuple[int, ...], str]] = {
    "none": ((0, 0, 0, 0), "virtual"),
    "no shuffle": ((1, 1, 1, 1), "virtual"),
    "no deflate": ((2, 2, 2, 2), "virtual"),
    "no checksum": ((4, 4, 4, 4), "virtual"),
    "nothing": ((7, 7, 7, 7), "virtual"),
    "bits of no filter": ((0, 8, 16, 1 << 31), "virtual"),
    "one skips shuffle": ((0, 0, 0, 1), MIXED),
    "all differ": ((1, 2, 4, 7), MIXED),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(tmp_path: Path, name: str) -> None:
    masks, expected = MASKS[name]
    path = tmp_path / "masks.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "a", (4, 64), "<f4", chunks=(1, 64), shuffle=True, compression="gzip", fletcher32=True
        )
        values = values_of((4, 64), "<f4")
        for row, mask in enumerate(masks):
            data = values[row].tobytes()
            if not mask & 1:
                data = bytes(numcodecs.Shuffle(4).encode(data))
            if not mask & 2:
                data = zlib.compress(data)
            if not mask & 4:
                data = bytes(numcodecs.Fletcher32().encode(np.frombuffer(data, "u1")))
            made.id.write_direct_chunk((row, 0), data, filter_mask=mask)
    assert check(path) == {"a": expected}


def test_chunks_of_another_length(tmp_path: Path) -> None:
    """A chunk without filters that is shorter than its values has no codec."""
    path = tmp_path / "short.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("a", (4, 8), "<f4", chunks=(1, 8), compression="gzip")
        for row in range(4):
            made.id.write_direct_chunk((row, 0), bytes(32 - 4 * (row == 2)), filter_mask=1)
    with open_hdf5(path, path.as_uri()) as dataset:
        assert "another length than the 32 bytes" in dataset.variables["a"].by_value


def test_types_of_their_own_behind_a_plugin(tmp_path: Path) -> None:
    """What has to be copied, and cannot be read, is refused."""
    path = tmp_path / "type.h5"
    tid = h5t.STD_U16LE.copy()
    tid.set_precision(12)
    with h5py.File(path, "w") as file:
        made = create(
            file,
            "a",
            "u2",
            (4,),
            tid=tid,
            prepare=lambda plist: plist.set_filter(32015, h5z.FLAG_OPTIONAL, (3,)),
        )
        for start in (0, 2):
            made.id.write_direct_chunk((start,), bytes(numcodecs.Zstd().encode(bytes(4))))
    with open_hdf5(path, path.as_uri()) as dataset:
        assert dataset.variables["a"].refused == (
            "its integers have 12 bits at bit 0 of 16, and HDF5 has no plugin for filter 'zstd', "
            "so that its values cannot be copied either; install hdf5plugin"
        )


# -- chunks at the edge ----------------------------------------------------------------
def _hdf5_library() -> ctypes.CDLL:
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split()[-1] for line in maps if "/libhdf5" in line and "_hl" not in line}
    return ctypes.CDLL(min(paths, key=len))


@pytest.mark.parametrize(
    "filters", [("deflate",), ("shuffle",), ("shuffle", "deflate"), ("fletcher32",)]
)
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("unfiltered", [False, True])
def test_unfiltered_edges(
    tmp_path: Path, filters: tuple[str, ...], noise: bool, unfiltered: bool
) -> None:
    path = tmp_path / "edges.h5"
    rng = np.random.default_rng(0)

    def prepare(plist: Any) -> None:
        for one in filters:
            getattr(plist, f"set_{one}")(*((4,) if one == "deflate" else ()))
        if unfiltered:
            dont_filter = 2
            assert _hdf5_library().H5Pset_chunk_opts(ctypes.c_int64(plist.id), dont_filter) == 0

    with h5py.File(path, "w", libver="latest") as file:
        for name, shape in (("a", (9, 7)), ("whole", (8, 6))):
            made = create(file, name, "<f4", shape, prepare=prepare)
            made[...] = rng.random(shape) if noise else values_of(shape, "<f4")
    edges = "by value: its chunks at the edge are not filtered, and others are"
    # of (9, 7), chunks are (4, 3), of (8, 6) too
    assert check(path) == {"a": edges if unfiltered else "virtual", "whole": "virtual"}


def test_unfiltered_edges_that_look_filtered(tmp_path: Path) -> None:
    """Equal bytes are the same, shuffled or not; the last chunk tells."""
    path = tmp_path / "edges.h5"

    def prepare(plist: Any) -> None:
        plist.set_shuffle()
        dont_filter = 2
        assert _hdf5_library().H5Pset_chunk_opts(ctypes.c_int64(plist.id), dont_filter) == 0

    with h5py.File(path, "w", libver="latest") as file:
        made = create(file, "a", "<f4", (9, 7), prepare=prepare)
        made[...] = 0
        made[8] = np.arange(7)
    assert check(path)["a"].startswith("by value: its chunks at the edge")


# -- filters of other people -----------------------------------------------------------
def _blosc(name: str, shuffle: int) -> tuple[int, tuple[int, ...], Callable[[bytes], bytes]]:
    codec = numcodecs.Blosc(name, clevel=5, shuffle=shuffle)
    codes = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
    values = (2, 2, 4, 480, 5, shuffle, codes.index(name))
    return 32001, values, lambda data: bytes(codec.encode(np.frombuffer(data, "<f4")))


PLUGINS: dict[str, tuple[int, tuple[int, ...], Callable[[bytes], bytes]]] = {
    "bzip2": (307, (9,), bz2.compress),
    "zstd": (32015, (3,), lambda data: bytes(numcodecs.Zstd(3).encode(data))),
    **{
        f"blosc {name} {shuffle}": _blosc(name, shuffle)
        for name in ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
        for shuffle in (0, 1, 2)
    },
}


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("name", PLUGINS)
def test_filters_of_plugins_that_zarr_decodes(tmp_path: Path, name: str, checksum: bool) -> None:
    """HDF5 itself cannot read them here: the values that were compressed are the truth."""
    code, parameters, encode = PLUGINS[name]
    path = tmp_path / "plugin.h5"

    def prepare(plist: Any) -> None:
        plist.set_filter(code, h5z.FLAG_OPTIONAL, parameters)
        if checksum:
            plist.set_fletcher32()

    with h5py.File(path, "w") as file:
        made = create(file, "a", "<f4", VALUES.shape, prepare=prepare)
        for row, column in ((0, 0), (0, 15), (4, 0), (4, 15)):
            data = encode(VALUES[row : row + 4, column : column + 15].tobytes())
            if checksum:
                data = bytes(numcodecs.Fletcher32().encode(np.frombuffer(data, "u1")))
            made.id.write_direct_chunk((row, column), data)
    with open_hdf5(path, path.as_uri()) as dataset:
        assert not dataset.variables["a"].by_value and not dataset.variables["a"].refused
        found = zarr.open_array(store_of(dataset), path="a", mode="r")[...]
    assert np.array_equal(found, VALUES)


def test_chunks_at_the_edge_of_the_length_of_their_values(tmp_path: Path) -> None:
    """They are not unfiltered for that, though HDF5 itself cannot read them here."""
    path = tmp_path / "plugin.h5"
    size = 40
    data = PLUGINS["zstd"][2](bytes(4 * size))
    padding = 4 * size - len(data) - 8
    # a frame that decoders skip
    data = struct.pack("<II", 0x184D2A50, padding) + bytes(padding) + data
    assert len(data) == 4 * size
    with h5py.File(path, "w") as file:
        made = create(
            file,
            "a",
            "<f4",
            (2 * size - 2,),
            prepare=lambda plist: (
                plist.set_chunk((size,)),
                plist.set_filter(32015, h5z.FLAG_OPTIONAL, (3,)),
            ),
        )
        for start in (0, size):
            made.id.write_direct_chunk((start,), data)
    with open_hdf5(path, path.as_uri()) as dataset:
        found = dataset.variables["a"]
        assert (found.by_value, found.refused) == ("", "")


@pytest.mark.parametrize("code", [32004, 32008, 32013, 32026, 40000])
def test_filters_that_nobody_decodes(tmp_path: Path, code: int) -> None:
    path = tmp_path / "plugin.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(3)
        for name, flags in (("written", 0), ("skipped", 1)):
            made = create(
                file,
                name,
                "<f4",
                (2, 4),
                prepare=lambda plist: plist.set_filter(code, h5z.FLAG_OPTIONAL, (1,)),
            )
            for row in range(2):
                for column in (0, 2):
                    made.id.write_direct_chunk((row, column), bytes(8), filter_mask=flags)
    names = {32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32026: "blosc2", 40000: "40000"}
    with open_hdf5(path, path.as_uri()) as dataset:
        reasons = {name: one.refused for name, one in dataset.variables.items()}
    assert reasons["written"].startswith(f"filter {names[code]!r} has no codec, and HDF5 has no")
    assert "hdf5plugin" in reasons["written"]
    assert not reasons["plain"] and not reasons["skipped"]


def test_plugins_that_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are imported when a file needs them; whether they helped is what HDF5 says."""
    (tmp_path / "hdf5plugin.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hdf5plugin", raising=False)
    _load_plugins.cache_clear()
    path = tmp_path / "plugin.h5"

    def prepare(plist: Any) -> None:
        plist.set_filter(32015, h5z.FLAG_OPTIONAL, (3,))

    with h5py.File(path, "w") as file:
        file.create_dataset("plain", data=VALUES, chunks=(4, 15), compression="gzip")
    with open_hdf5(path, path.as_uri()) as dataset:
        assert dataset.variables["plain"].document
    assert "hdf5plugin" not in sys.modules
    with h5py.File(path, "a") as file:
        made = create(file, "a", "<f4", VALUES.shape, prepare=prepare)
        made.id.write_direct_chunk((0, 0), PLUGINS["zstd"][2](VALUES[:4, :15].tobytes()))
    with open_hdf5(path, path.as_uri()) as dataset:
        reason = "no plugin for filter 'zstd'; install hdf5plugin"
        with pytest.raises(InvalidInputError, match=reason):
            everything(dataset.variables["a"])
    assert sys.modules.pop("hdf5plugin").__file__ == str(tmp_path / "hdf5plugin.py")
