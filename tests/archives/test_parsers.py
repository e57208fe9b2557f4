"""Parsers of VirtualiZarr, through the same checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from virtualizarr.manifests import ChunkManifest, ManifestArray, ManifestGroup, ManifestStore
from virtualizarr.parsers import HDFParser, NetCDF3Parser

from icechunk import InvalidInputError
from icechunk_dask import virtualize
from tests.archives.day_files import archived, content, together, write_days

RAW: dict[str, Any] = {"compression": None, "shuffle": None}


def test_hdf5(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    virtualize(files[:2], tmp_path / "repo", scheduler="sync", parser=HDFParser())
    # the scanner here says the same
    report = virtualize(files, tmp_path / "repo", scheduler="sync")
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def test_chunks_in_another_file(tmp_path: Path) -> None:
    """A file may be no more than an index of others."""
    files = []
    for i in range(2):
        (tmp_path / f"{i}.bin").write_bytes((np.arange(12, dtype="<f4") + i).tobytes())
        files.append(tmp_path / f"{i}.index")
        files[-1].write_text(f"{4 * i}")

    def parser(url: str, registry: Any) -> ManifestStore:
        path = Path(url.removeprefix("file://"))
        days = write_days(tmp_path / "days.nc", int(path.read_text()), options=RAW)
        group = HDFParser()(days.as_uri(), registry)._group
        manifest = ChunkManifest.from_arrays(
            paths=np.asarray([[path.with_suffix(".bin").as_uri()]], np.dtypes.StringDType()),
            offsets=np.asarray([[0]], np.uint64),
            lengths=np.asarray([[48]], np.uint64),
        )
        arrays = {**group.arrays, "t": ManifestArray(group.arrays["t"].metadata, manifest)}
        return ManifestStore(ManifestGroup(arrays, attributes={}), registry=registry)

    options: dict[str, Any] = {"scheduler": "sync", "verify": "all", "parser": parser}
    report = virtualize(files, tmp_path / "repo", **options)
    ours = archived(tmp_path / "repo", report)
    assert ours["t"].values.ravel().tolist() == [*range(12), *range(1, 13)]
    assert ours["time"].size == 8


#: Where a parser may say that bytes are: path, offset, length. And what is said of it.
LIES: dict[str, tuple[str, int, int, str]] = {
    "a file beside the folder": ("{out}/secret", 0, 48, "not among the authorised"),
    "dots": ("{folder}/../out/secret", 0, 48, "not among the authorised"),
    "encoded dots": ("{folder}/%2e%2e/out/secret", 0, 48, "No such file|not among"),
    "a link": ("{folder}/link", 0, 48, "leads out of .* by a link"),
    "a device": ("file:///dev/zero", 0, 48, "not among the authorised"),
    "a server": ("http://127.0.0.1:9/x", 0, 48, "not among the authorised"),
    "a bucket": ("s3://other/x", 0, 48, "not among the authorised"),
    "a password": ("http://u:SEKRET@127.0.0.1:9/x", 0, 48, "carries a user or password"),
    "a signature": ("http://h/x?X-Amz-Signature=SEKRET", 0, 48, "carries a signature"),
    "a line break": ("{own}\nx", 0, 48, "not a valid key"),
    "behind the end": ("{own}", 1 << 40, 48, "of a file that has"),
    "around the sign": ("{own}", (1 << 63) - 8, 48, "ends behind byte"),
    "above the sign": ("{own}", 1 << 63, 48, "ends behind byte"),
    "around zero": ("{own}", (1 << 64) - 8, 48, "ends behind byte"),
    "longer": ("{own}", 0, 1 << 62, "each chunk of the array 48"),
}


@pytest.mark.parametrize("lie", LIES)
def test_parsers_that_lie(lie: str, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "secret").write_bytes(b"TOPSECRET" * 100)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out" / "secret")
    days = write_days(tmp_path / "in" / "a.nc", 0, options=RAW)
    path, offset, length, message = LIES[lie]
    folders = {"folder": (tmp_path / "in").as_uri(), "out": (tmp_path / "out").as_uri()}
    where = path.format(**folders, own=days.as_uri())

    def parser(url: str, registry: Any) -> ManifestStore:
        group = HDFParser()(url, registry)._group
        manifest = ChunkManifest.from_arrays(
            paths=np.asarray([[where]], np.dtypes.StringDType()),
            offsets=np.asarray([[offset]], np.uint64),
            lengths=np.asarray([[length]], np.uint64),
        )
        arrays = {**group.arrays, "t": ManifestArray(group.arrays["t"].metadata, manifest)}
        return ManifestStore(ManifestGroup(arrays, attributes={}), registry=registry)

    with pytest.raises(InvalidInputError, match=message) as caught:
        virtualize([days], tmp_path / "repo", scheduler="sync", parser=parser)
    assert "SEKRET" not in str(caught.value) and "mistake of this library" not in str(caught.value)
    stored = b"".join(each.read_bytes() for each in tmp_path.glob("repo/**/*") if each.is_file())
    assert b"TOPSECRET" not in stored and b"SEKRET" not in stored


def test_a_folder(tmp_path: Path) -> None:
    """Such as a Zarr store: its parser lists what is in it, and nothing beside it."""
    days = write_days(tmp_path / "days.nc", 0, options=RAW)
    folder = tmp_path / "a.store"
    folder.mkdir()
    (folder / "0.bin").write_bytes(np.arange(12, dtype="<f4").tobytes())

    def parser(url: str, registry: Any) -> ManifestStore:
        store, path = registry.resolve(url)
        assert [entry["path"] for batch in store.list(path or None) for entry in batch] == ["0.bin"]
        with pytest.raises(Exception, match="days"):
            store.get("../days.nc")
        group = HDFParser()(days.as_uri(), ObjectStoreRegistry({"file://": LocalStore()}))._group
        manifest = ChunkManifest.from_arrays(
            paths=np.asarray([[f"{url}/0.bin"]], np.dtypes.StringDType()),
            offsets=np.asarray([[0]], np.uint64),
            lengths=np.asarray([[48]], np.uint64),
        )
        t = ManifestArray(group.arrays["t"].metadata, manifest)
        return ManifestStore(ManifestGroup({"t": t}, attributes={}), registry=registry)

    report = virtualize(folder, tmp_path / "repo", scheduler="sync", parser=parser)
    ours = archived(tmp_path / "repo", report)
    assert ours["t"].values.ravel().tolist() == list(range(12))
    assert virtualize([folder], tmp_path / "repo", scheduler="sync", parser=parser).already


def test_what_a_parser_gets_wrong(tmp_path: Path) -> None:
    path = write_days(tmp_path / "a.nc", 0, options=RAW)

    def shorter(url: str, registry: Any) -> ManifestStore:
        found = HDFParser()(url, registry)
        group = found._group
        t = group.arrays["t"]
        ((_, entry),) = t.manifest.iter_refs()
        manifest = ChunkManifest.from_arrays(
            paths=np.asarray([[entry["path"]]], np.dtypes.StringDType()),
            offsets=np.asarray([[entry["offset"]]], np.uint64),
            lengths=np.asarray([[entry["length"] - 4]], np.uint64),
        )
        arrays = {**group.arrays, "t": ManifestArray(t.metadata, manifest)}
        attributes = group.metadata.attributes
        return ManifestStore(ManifestGroup(arrays, attributes=attributes), registry=registry)

    with pytest.raises(InvalidInputError, match=r"'t': chunk \(0, 0\) has 44 bytes.* 48"):
        virtualize([path], tmp_path / "repo", scheduler="sync", parser=shorter)
    with pytest.raises(InvalidInputError, match=r"returned a dict, not a ManifestStore"):
        virtualize([path], tmp_path / "repo", scheduler="sync", parser=lambda url, _: {})
    with pytest.raises(InvalidInputError, match=r"a\.nc: .*the parser NetCDF3Parser failed"):
        virtualize([path], tmp_path / "repo", scheduler="sync", parser=NetCDF3Parser())
    for wrong in (HDFParser, "hdf", 5):
        with pytest.raises(InvalidInputError, match=r"pass a parser of VirtualiZarr, such as HDF"):
            virtualize([path], tmp_path / "repo", parser=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"a\.nc: .*the parser <lambda> failed: TypeError"):
        virtualize([path], tmp_path / "repo", scheduler="sync", parser=lambda url: {})  # type: ignore[arg-type,misc]
