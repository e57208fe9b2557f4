"""Virtual datasets and external storage, where the caller allows the files that they name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5s, h5t

from tests.archives.hdf5_truth import check


def below(folder: Path) -> Callable[[str], bool]:
    return lambda location: location.startswith(folder.as_uri() + "/")


def _sources(folder: Path, count: int = 3, **options: Any) -> None:
    for number in range(count):
        with h5py.File(folder / f"s{number}.h5", "w") as file:
            values = np.arange(40, dtype="f4").reshape(4, 10) + 100 * number
            file.create_dataset("v", data=values, **options)
            file.create_dataset("group/row", data=values[0], **options | {"chunks": None})


def _virtual(path: Path, layout: h5py.VirtualLayout, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("v", layout, **options)
        file["plain"] = np.arange(3)


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (2, 5), "compression": "gzip", "shuffle": True}]
)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("fill", [None, -5])
def test_sources_one_after_the_other(
    tmp_path: Path, options: dict[str, Any], absolute: bool, fill: int | None
) -> None:
    _sources(tmp_path, **options)
    layout = h5py.VirtualLayout((16, 10), "f4")
    for number in range(3):
        name = str(tmp_path / f"s{number}.h5") if absolute else f"s{number}.h5"
        layout[4 * number : 4 * number + 4] = h5py.VirtualSource(name, "v", (4, 10))
    _virtual(tmp_path / "a.h5", layout, fillvalue=fill)
    found = check(tmp_path / "a.h5", may_open=below(tmp_path))
    assert found == {"v": "virtual", "plain": "virtual"}


def test_rows_of_a_new_dimension(tmp_path: Path) -> None:
    _sources(tmp_path)
    layout = h5py.VirtualLayout((4, 10), "f4")
    for number in range(3):
        layout[number] = h5py.VirtualSource(f"s{number}.h5", "group/row", (10,))
    _virtual(tmp_path / "a.h5", layout, fillvalue=7)
    assert check(tmp_path / "a.h5", may_open=below(tmp_path))["v"] == "virtual"


def _boxes(layout: h5py.VirtualLayout, source: h5py.VirtualSource, case: str) -> None:
    match case:
        case "whole chunks":
            layout[0:2, 5:10] = source[2:4, 0:5]
        case "to the end":
            layout[4:6, 10:13] = source[2:4, 5:8]
        case "within a chunk":
            layout[0:1, 0:5] = source[1:2, 0:5]
        case "not at a chunk":
            layout[1:3, 0:5] = source[0:2, 0:5]
        case "spread":
            layout[0:8:2, 0:10] = source[0:4]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("whole chunks", ""),
        ("to the end", ""),
        ("within a chunk", "its box and its chunks begin or end in different places"),
        ("not at a chunk", "its box and its chunks begin or end in different places"),
        ("spread", "it is not mapped as one box"),
    ],
)
def test_parts_of_sources(tmp_path: Path, case: str, reason: str) -> None:
    _sources(tmp_path, chunks=(2, 5))
    layout = h5py.VirtualLayout((8, 13), "f4")
    _boxes(layout, h5py.VirtualSource("s1.h5", "v", (4, 10)), case)
    _virtual(tmp_path / "a.h5", layout, fillvalue=3)
    location = (tmp_path / "s1.h5").as_uri()
    expected = f"by value: of its part in {location}: {reason}" if reason else "virtual"
    assert check(tmp_path / "a.h5", may_open=below(tmp_path))["v"] == expected


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda f: f.create_dataset("v", data=np.zeros((4, 10), "f8")), "it has another type"),
        (lambda f: f.create_dataset("v", data=np.zeros((4, 10), ">f4")), "it has another type"),
        (
            lambda f: f.create_dataset("v", (4, 10), "f4", chunks=(2, 5), fillvalue=9),
            "it has another fill value",
        ),
        (
            lambda f: f.create_dataset(
                "v", data=np.zeros((4, 10), "f4"), chunks=(4, 10), compression="lzf"
            ),
            "filter 'lzf' has no codec",
        ),
    ],
)
def test_sources_that_differ(tmp_path: Path, write: Callable[[Any], Any], reason: str) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        write(file)
    layout = h5py.VirtualLayout((4, 10), "f4")
    layout[:] = h5py.VirtualSource("s.h5", "v", (4, 10))
    _virtual(tmp_path / "a.h5", layout, fillvalue=3)
    location = (tmp_path / "s.h5").as_uri()
    found = check(tmp_path / "a.h5", may_open=below(tmp_path))
    assert found["v"] == f"by value: of its part in {location}: {reason}"


def test_parts_that_differ_or_overlap(tmp_path: Path) -> None:
    _sources(tmp_path, 1)
    _sources(tmp_path / ".", 1)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("v", data=np.ones((4, 10), "f4"), chunks=(2, 10))
    for name, rows, reason in (
        ("other.h5", slice(4, 8), "its parts have different chunks or filters"),
        ("s0.h5", slice(0, 4), "its parts overlap"),
    ):
        layout = h5py.VirtualLayout((8, 10), "f4")
        layout[0:4] = h5py.VirtualSource("s0.h5", "v", (4, 10))
        layout[rows] = h5py.VirtualSource(name, "v", (4, 10))
        _virtual(tmp_path / "a.h5", layout)
        assert check(tmp_path / "a.h5", may_open=below(tmp_path))["v"] == f"by value: {reason}"


def test_within_the_file(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((2, 10), "f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["row"] = np.arange(10, dtype="f4")
        layout[0] = h5py.VirtualSource(file["row"])
        layout[1] = h5py.VirtualSource(file["row"])
        file.create_virtual_dataset("v", layout)
    assert set(check(tmp_path / "a.h5", may_open=lambda _: False).values()) == {"virtual"}


def test_nothing_is_mapped(tmp_path: Path) -> None:
    _virtual(tmp_path / "a.h5", h5py.VirtualLayout((2, 10), "f4"), fillvalue=4)
    assert check(tmp_path / "a.h5", may_open=lambda _: False)["v"] == "virtual"


@pytest.mark.parametrize("time", ["NEVER", "ALLOC", "IFSET"])
def test_fill_of_virtual_datasets(tmp_path: Path, time: str) -> None:
    """Unlike others, they are filled whatever the time of filling is."""
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("v", (2, 10), "f4", chunks=(1, 10), fillvalue=4)[0] = 1
    layout = h5py.VirtualLayout((4, 10), "f4")
    layout[0:2] = h5py.VirtualSource("s.h5", "v", (2, 10))
    layout.dcpl.set_fill_value(np.array(4, "f4"))
    layout.dcpl.set_fill_time(getattr(h5d, f"FILL_TIME_{time}"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5d.create(file.id, b"v", h5t.IEEE_F32LE, h5s.create_simple((4, 10)), dcpl=layout.dcpl)
    assert check(tmp_path / "a.h5", may_open=below(tmp_path)) == {"v": "virtual"}


def test_sources_that_are_refused(tmp_path: Path) -> None:
    """What is not allowed, not there, not fixed, or leads on."""
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    allowed.mkdir()
    secret.mkdir()
    _sources(allowed)
    _sources(secret)
    (allowed / "link.h5").symlink_to(secret / "s0.h5")
    with h5py.File(allowed / "leads.h5", "w") as file:
        file["v"] = h5py.ExternalLink(secret / "s0.h5", "v")
        file["soft"] = h5py.SoftLink("/outside/v")
        file["outside"] = h5py.ExternalLink(secret / "s0.h5", "/")
        nested = h5py.VirtualLayout((4, 10), "f4")
        nested[:] = h5py.VirtualSource(secret / "s0.h5", "v", (4, 10))
        file.create_virtual_dataset("nested", nested)
        raw = str(secret / "s0.h5")
        file.create_dataset("raw", (4, 10), "f4", external=[(raw, 0, 160)])
    before = {one: one.stat().st_atime_ns for one in secret.iterdir()}
    refusals = {
        (str(secret / "s0.h5"), "v"): "not among the authorised",
        ("../secret/s0.h5", "v"): "not among the authorised",
        ("link.h5", "v"): "not among the authorised",
        ("no.h5", "v"): "does not exist",
        ("100%%.h5", "v"): "is a pattern of names",
        ("s0.h5", "none"): "has no plain dataset",
        ("s0.h5", "group"): "has no plain dataset",
        ("leads.h5", "v"): "an external link",
        ("leads.h5", "soft"): "an external link",
        ("leads.h5", "nested"): "has no plain dataset",
        ("leads.h5", "raw"): "external storage",
    }
    for (name, dataset), reason in refusals.items():
        layout = h5py.VirtualLayout((4, 10), "f4")
        layout[:] = h5py.VirtualSource(name, dataset, (4, 10))
        _virtual(allowed / "a.h5", layout)
        found = check(allowed / "a.h5", xarray=False, may_open=below(allowed))
        assert found["v"].startswith("refused: "), (name, dataset)
        assert reason in found["v"], (name, dataset, found)
        assert found["plain"] == "virtual"
    assert {one: one.stat().st_atime_ns for one in secret.iterdir()} == before


def test_virtual_datasets_that_grow(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("v", data=np.arange(10.0), chunks=(5,), maxshape=(None,))
    layout = h5py.VirtualLayout((10,), "f8", maxshape=(None,))
    source = h5py.VirtualSource("s.h5", "v", (10,), maxshape=(None,))
    layout[: h5s.UNLIMITED] = source[: h5s.UNLIMITED]
    _virtual(tmp_path / "a.h5", layout)
    found = check(tmp_path / "a.h5", xarray=False, may_open=below(tmp_path))
    assert found["v"].startswith("refused: ")
    assert "is not fixed" in found["v"]


# -- external storage ------------------------------------------------------------------
def _external(path: Path, *pieces: tuple[str, int, int], shape: tuple[int, ...] = (10,)) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("v", shape, ">f4", external=list(pieces), fillvalue=2)
        file["plain"] = np.arange(3)


def test_external_storage(tmp_path: Path) -> None:
    (tmp_path / "raw.bin").write_bytes(bytes(8) + np.arange(50, dtype=">f4").tobytes())
    for shape in ((10,), (4, 5), (0,)):
        _external(tmp_path / "a.h5", (str(tmp_path / "raw.bin"), 8, 200), shape=shape)
        found = check(tmp_path / "a.h5", may_open=below(tmp_path))
        assert found == {"v": "virtual", "plain": "virtual"}


def test_external_storage_that_is_refused(tmp_path: Path) -> None:
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for folder in (allowed, secret):
        folder.mkdir()
        (folder / "raw.bin").write_bytes(np.arange(50, dtype=">f4").tobytes())
    (allowed / "link.bin").symlink_to(secret / "raw.bin")
    raw = str(allowed / "raw.bin")
    cases: tuple[tuple[list[tuple[str, int, int]], str], ...] = (
        ([(str(secret / "raw.bin"), 0, 40)], "not among the authorised"),
        ([(str(allowed / "link.bin"), 0, 40)], "not among the authorised"),
        ([(str(allowed / "../secret/raw.bin"), 0, 40)], "not among the authorised"),
        ([("raw.bin", 0, 40)], "not an absolute path"),
        ([(str(allowed / "no.bin"), 0, 40)], "does not exist"),
        ([(raw, 180, 40)], "beyond the end"),
        ([(raw, 0, 20), (raw, 40, 20)], "not in one piece"),
    )
    for pieces, reason in cases:
        _external(allowed / "a.h5", *pieces)
        found = check(allowed / "a.h5", xarray=False, may_open=below(allowed))
        assert found["v"].startswith("refused: ")
        assert reason in found["v"], pieces
    with (allowed / "a.h5").open("rb") as file:
        assert file.read(1)
    assert os.listdir(secret) == ["raw.bin"]
