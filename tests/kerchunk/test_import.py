"""Importing what kerchunk makes of real files: new, appended, into a region; all or nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import eccodes
import fsspec
import h5py
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from kerchunk.combine import MultiZarrToZarr
from kerchunk.df import refs_to_dataframe
from kerchunk.grib2 import scan_grib

from icechunk import (
    AlreadyExistsError,
    ChunkType,
    CountingStorage,
    FaultyStorage,
    IcechunkError,
    InvalidInputError,
    MemoryStorage,
    NodeNotFoundError,
    ReadOnlyError,
    Repository,
    RepositoryConfig,
    Session,
    StorageError,
    VirtualChunkContainer,
    s3_credentials,
    s3_store,
)
from icechunk.kerchunk import export_references, import_references
from tests.kerchunk.base import (
    ARCHIVE,
    NEMO,
    NETCDF,
    array_refs,
    local,
    repository,
    rows,
    scan,
    through_fsspec,
    through_session,
)
from tests.servers import S3Server

#: With this the netCDF library fills integers that nobody writes, such as those that only hold
#: the attributes of a grid mapping. References do not say that the file declares no fill value,
#: so it is masked; and they hold some numbers of attributes as texts.
NETCDF_DEFAULT = -2147483647


def kinds(session: Session, path: str) -> set[str]:
    return {ref.kind.name for ref in rows(session, path).values()}


# -- real files ------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETCDF)
def test_every_file_of_the_archive(name: str, tmp_path: Path) -> None:
    references = scan(ARCHIVE / name)
    repo = repository(ARCHIVE, storage=local(tmp_path / "repo"))
    session = repo.writable_session("main")
    report = import_references(references, session)
    session.commit(name)
    session = repo.readonly_session("main")
    ours = through_session(session)
    assert sorted(report.arrays) == sorted(f"/{name}" for name in ours.variables)
    # as kerchunk's users read it today
    xr.testing.assert_identical(ours, through_fsspec(references))
    # and as the file itself says
    own = xr.open_dataset(ARCHIVE / name).load()
    assert set(ours.variables) == set(own.variables) and ours.sizes == own.sizes
    for key, variable in own.variables.items():
        found = ours[key].variable
        if not found.shape and found.dtype.kind == "f" and variable.values == NETCDF_DEFAULT:
            assert np.isnan(found)
            continue
        xr.testing.assert_equal(found, variable)
        assert found.dtype.kind == variable.dtype.kind or variable.dtype.kind == "U"
    # out again: as references with metadata of both formats, and as Parquet
    xr.testing.assert_identical(through_fsspec(export_references(session)), ours)
    v3 = export_references(session, zarr_format=3)
    xr.testing.assert_identical(through_fsspec(v3, 3), ours)
    export_references(session, tmp_path / "parquet", format="parquet", record_size=64)
    xr.testing.assert_identical(through_fsspec(str(tmp_path / "parquet")), ours)
    # and in again
    for again in (v3, tmp_path / "parquet"):
        other = repository(ARCHIVE, tmp_path).writable_session("main")
        import_references(again, other)
        xr.testing.assert_identical(through_session(other), ours)


def test_grib() -> None:
    """Messages are decoded as kerchunk's own codec for Zarr v2 does it."""
    (references,) = scan_grib(str(ARCHIVE / "polar_stereo.grib2"))
    session = repository(ARCHIVE).writable_session("main")
    import_references(references, session)
    ours = through_session(session)
    with (ARCHIVE / "polar_stereo.grib2").open("rb") as file:
        message = eccodes.codes_grib_new_from_file(file)
        values = eccodes.codes_get_values(message)
        eccodes.codes_release(message)
    (name,) = ours.data_vars
    assert np.array_equal(ours[name].values.ravel(), values)
    xr.testing.assert_identical(ours, through_fsspec(references))
    xr.testing.assert_identical(through_fsspec(export_references(session)), ours)
    with pytest.raises(NotImplementedError, match="not written"):
        zarr.open_array(session.store, path=str(name))[...] = 1


def test_months_and_one_more(tmp_path: Path) -> None:
    """Three months combined by kerchunk; a fourth is appended."""
    files = [Path(shutil.copy(ARCHIVE / name, tmp_path)) for name in NEMO]
    fourth = Path(shutil.copy(files[-1], tmp_path / "fourth.nc"))
    with h5py.File(fourth, "r+") as file:
        for name in ("time_counter", "time_centered", "time_centered_bounds"):
            file[name][...] += 31 * 86400
        file["tos"][...] += 1
    months = [scan(file) for file in files]
    combine: dict[str, Any] = {
        "concat_dims": ["time_counter"],
        "coo_map": {"time_counter": "data:time_centered"},
        "identical_dims": ["nav_lat", "nav_lon", "bounds_lat", "bounds_lon"],
    }
    combined = MultiZarrToZarr(months, **combine).translate()
    repo = repository(tmp_path)
    session = repo.writable_session("main")
    import_references(combined, session)
    session.commit("three months")
    xr.testing.assert_identical(through_session(session), through_fsspec(combined))
    one = MultiZarrToZarr([scan(fourth)], **combine).translate()
    session = repo.writable_session("main")
    # the time axis is one chunk in the references, and one of three months in the repository
    assert json.loads(one["refs"]["time_counter/.zarray"])["chunks"] == [1]
    report = import_references(one, session, append_dim="time_counter")
    assert set(report.untouched) == {"/nav_lat", "/nav_lon", "/bounds_lat", "/bounds_lon"}
    session.commit("a fourth")
    ours = through_session(session)
    every = [through_fsspec(combined), through_fsspec(one)]
    for name in ("time_counter", "time_centered", "tos", "time_centered_bounds"):
        expected = np.concatenate([month[name].values for month in every])
        np.testing.assert_array_equal(ours[name].values, expected)
    assert kinds(session, "/tos") == {"VIRTUAL"}


def test_nested_groups(tmp_path: Path) -> None:
    path = tmp_path / "groups.nc"
    with h5py.File(path, "w") as file:
        file.attrs["title"] = "top"
        inner = file.create_group("a/b")
        inner.attrs["note"] = "inner"
        inner.create_dataset("v", data=np.arange(300.0), chunks=(100,), compression="gzip")
    references = scan(path, inline=0)
    refs_to_dataframe(dict(references["refs"]), str(tmp_path / "parquet"))
    for source in (references, tmp_path / "parquet"):
        session = repository(tmp_path).writable_session("main")
        report = import_references(source, session, group="/deep/er")
        assert report.arrays == ("/deep/er/a/b/v",)
        root = zarr.open_group(session.store, mode="r")
        assert root["deep/er"].attrs["title"] == "top"
        assert root["deep/er/a/b"].attrs["note"] == "inner"
        assert root["deep/er/a/b/v"][:].tolist() == list(range(300))
        exported = export_references(session, group="deep/er/a")
        assert exported is not None
        assert sorted(key for key in exported["refs"] if ".z" not in key) == [
            "b/v/0",
            "b/v/1",
            "b/v/2",
        ]


def test_on_a_server(s3_server: S3Server, tmp_path: Path) -> None:
    """References, data and repository, all on S3; through s3fs and obstore."""
    files = s3_server.storage("archive")
    for name in NEMO:
        files.put(name, (ARCHIVE / name).read_bytes())
    options = {
        "key": s3_server.access_key_id,
        "secret": s3_server.secret_access_key,
        "endpoint_url": s3_server.endpoint_url,
    }
    url = f"s3://{s3_server.bucket}/archive"
    references = json.loads(
        json.dumps(scan(ARCHIVE / NEMO[0], inline=0)).replace(str(ARCHIVE), url)
    )
    # one whole file among them: its length is asked for
    references["refs"]["raw/.zarray"] = json.dumps(
        {**json.loads(array_refs({}, (1,), (1,))["a/.zarray"]), "dtype": "|V1409534"}
    ).replace('"fill_value": -1', '"fill_value": null')
    references["refs"]["raw/.zattrs"] = json.dumps({"_ARRAY_DIMENSIONS": ["file"]})
    references["refs"]["raw/0"] = [f"{url}/{NEMO[2]}"]
    files.put("refs.json", json.dumps(references).encode())
    prefix = f"s3://{s3_server.bucket}/"
    store = s3_store(
        region=s3_server.region,
        endpoint_url=s3_server.endpoint_url,
        allow_http=True,
        s3_compatible=True,
        force_path_style=True,
    )
    config = RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
    access = s3_credentials(
        access_key_id=s3_server.access_key_id, secret_access_key=s3_server.secret_access_key
    )
    repo = Repository.create(s3_server.storage(), config, {prefix: access})
    session = repo.writable_session("main")
    import_references(f"{url}/refs.json", session, storage_options=options, remote_options=options)
    ours = through_session(session).drop_vars("raw")
    xr.testing.assert_equal(
        ours, xr.open_dataset(ARCHIVE / NEMO[0]).drop_vars("raw", errors="ignore")
    )
    (ref,) = rows(session, "/raw").values()
    assert ref.length == (ARCHIVE / NEMO[2]).stat().st_size
    # a native chunk, to be read through s3fs
    zarr.create_array(
        session.store, name="native", data=np.arange(1000.0), chunks=(1000,), dimension_names=["n"]
    )
    session.commit("on a server")
    assert session.chunk_type("native", [0]) is ChunkType.native
    for form in ("json", "parquet"):
        export_references(session, f"{url}/out.{form}", format=form, storage_options=options)
        theirs = through_fsspec(
            f"{url}/out.{form}",
            target_options=options,
            remote_options={**options, "asynchronous": True},
            remote_protocol="s3",
        )
        xr.testing.assert_equal(theirs.drop_vars(["native", "raw"]), ours)
        assert theirs["native"].values.tolist() == list(range(1000))


# -- where chunks go -------------------------------------------------------------------
def test_chunks_in_the_references(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(np.arange(300, dtype="<i4").tobytes())
    small, large = (np.full(n, 7, "<i4").tobytes() for n in (100, 200))
    for size, data, kind in ((100, small, "INLINE"), (200, large, "NATIVE")):
        text = "base64:" + base64.b64encode(data).decode()
        refs = array_refs({"0": text, "1": [f"{tmp_path}/f", 0, 4 * size]}, (3 * size,), (size,))
        session = repository(tmp_path, inline_chunk_threshold_bytes=400).writable_session("main")
        report = import_references(refs, session)
        assert [ref.kind.name for ref in rows(session, "/a").values()] == [kind, "VIRTUAL"]
        assert (report.inline, report.native) == ((1, 0) if kind == "INLINE" else (0, 1))
        assert (report.virtual, report.files) == (1, 1)
        array = zarr.open_array(session.store, path="a", mode="r")
        assert array[: 2 * size].tolist() == [7] * size + list(range(size))
        assert (array[2 * size :] == -1).all()


def test_whole_files_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from icechunk.kerchunk import import_chunks

    (tmp_path / "f").write_bytes(bytes(40))
    asked: list[str] = []
    real = import_chunks._local_size

    def size(path: str) -> int | None:
        asked.append(path)
        return real(path)

    monkeypatch.setattr(import_chunks, "_local_size", size)
    chunks = {str(i): [f"{tmp_path}/f"] for i in range(50)}
    session = repository(tmp_path).writable_session("main")
    import_references(array_refs(chunks, (500,), (10,)), session)
    assert asked == [f"{tmp_path}/f"]
    assert {ref.length for ref in rows(session, "/a").values()} == {40}


def test_files_that_were_modified(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(8))
    refs = array_refs({"0": [f"{tmp_path}/f", 0, 4], "1": "abcd"}, (2,), (1,))
    for day, fine in ((1, False), (-1, True)):
        session = repository(tmp_path).writable_session("main")
        import_references(refs, session, last_modified=datetime.now(UTC) - timedelta(days=day))
        array = zarr.open_array(session.store, path="a", mode="r")
        if fine:
            assert array[0] == 0
        else:
            with pytest.raises(StorageError, match="has changed"):
                array[0]
    with pytest.raises(InvalidInputError, match="time"):
        import_references(refs, session, last_modified=datetime(2020, 1, 1), overwrite=True)


def test_a_report(tmp_path: Path) -> None:
    session = repository(tmp_path).writable_session("main")
    report = import_references(array_refs({"0": "1234"}, (1,), (1,), "x/y"), session.store)
    assert repr(report) == (
        "<icechunk.kerchunk.ImportReport>\n"
        "arrays: 1 (/x/y)\n"
        "groups: 2 (/, /x)\n"
        "chunks: 0 virtual in 0 files, 1 inline, 0 native"
    )


def test_requests_do_not_grow_with_references(tmp_path: Path) -> None:
    counts = []
    for count in (10, 1000):
        storage = CountingStorage(MemoryStorage())
        session = repository(tmp_path, storage=storage).writable_session("main")
        chunks = {str(i): [f"{tmp_path}/f", i, 1] for i in range(count)}
        storage.reset()
        import_references(array_refs(chunks, (count,), (1,)), session, verify="none")
        session.commit("x")
        counts.append(storage.requests)
    assert counts[0] == counts[1]


# -- into what exists ------------------------------------------------------------------
UNITS = {"_ARRAY_DIMENSIONS": ["t", "x"], "units": "K", "scale_factor": 0.5}


def block(folder: Path, name: str, length: int, *, missing: tuple[int, ...] = ()) -> dict[str, Any]:
    """References to a file with `length` rows of four values, a chunk each two rows."""
    values = np.arange(4 * length, dtype="<i4") + 100 * (ord(name) - ord("a"))
    padded = np.concatenate([values, np.full(4, -1, "<i4")])
    (folder / name).write_bytes(padded.tobytes())
    chunks = {
        f"{i}.0": [f"{folder}/{name}", 32 * i, 32]
        for i in range(-(-length // 2))
        if i not in missing
    }
    refs = array_refs(chunks, (length, 4), (2, 4), attributes=UNITS)
    held = base64.b64encode(np.arange(length, dtype="<i4").tobytes()).decode()
    times = array_refs(
        {"0": f"base64:{held}"},
        (length,),
        (length,),
        "t",
        {"_ARRAY_DIMENSIONS": ["t"], "units": "days"},
    )
    held = base64.b64encode(np.arange(4, dtype="<i4").tobytes()).decode()
    x = array_refs({"0": f"base64:{held}"}, (4,), (4,), "x", {"_ARRAY_DIMENSIONS": ["x"]})
    return {**refs, **times, **x}


def values(session: Session, path: str = "a") -> Any:
    return zarr.open_array(session.store, path=path, mode="r")[...]


def test_append(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    session = repo.writable_session("main")
    import_references(block(tmp_path, "a", 4), session)
    session.commit("a")
    session = repo.writable_session("main")
    report = import_references(block(tmp_path, "b", 3), session, append_dim="t")
    assert (report.arrays, report.untouched) == (("/a", "/t"), ("/x",))
    session.commit("b")
    expected = [*range(16), *range(100, 112)]
    assert values(session).ravel().tolist() == expected
    assert values(session, "t").tolist() == [0, 1, 2, 3, 0, 1, 2]
    # now the last chunk is not full, and what comes next is in a file
    session = repo.writable_session("main")
    with pytest.raises(InvalidInputError, match=r"'a/0.0'.*last chunk of '/a'.*not full"):
        import_references(block(tmp_path, "c", 2), session, append_dim="t")
    assert not session.has_uncommitted_changes
    # but what is in the references can be appended all the same
    held = base64.b64encode(np.full(8, 5, "<i4").tobytes()).decode()
    inline = {**block(tmp_path, "c", 2), "a/0.0": f"base64:{held}"}
    import_references(inline, session, append_dim="t")
    assert values(session).ravel().tolist() == expected + [5] * 8


def changed(refs: dict[str, Any], key: str, **changes: Any) -> dict[str, Any]:
    return {**refs, key: json.dumps({**json.loads(refs[key]), **changes})}


DISAGREEING: list[tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    (lambda r: changed(r, "a/.zarray", dtype="<i8"), "'/a'.*data_type"),
    (lambda r: changed(r, "a/.zarray", fill_value=5), "'/a'.*fill_value"),
    (lambda r: changed(r, "a/.zarray", compressor={"id": "zlib", "level": 1}), "'a/0.0'.*zlib"),
    (lambda r: changed(r, "a/.zarray", dtype=">i4"), "'a/0.0'.*decoded by.*big"),
    (lambda r: changed(r, "a/.zarray", chunks=[1, 4]), r"'a/0.0'.*chunks \(1, 4\), not \(2, 4\)"),
    (lambda r: changed(r, "a/.zarray", shape=[2, 3]), "'/a'.*shape"),
    (lambda r: changed(r, "a/.zattrs", units="C"), "'/a'.*'units'"),
    (lambda r: changed(r, "a/.zattrs", scale_factor=2), "'/a'.*'scale_factor'"),
    (lambda r: changed(r, "a/.zattrs", add_offset=2), "'/a'.*'add_offset'"),
    (lambda r: changed(r, "t/.zattrs", units="hours"), "'/t'.*'units'"),
    (lambda r: changed(r, "x/.zarray", shape=[3]), "'/x'.*shape"),
    (lambda r: {k: v for k, v in r.items() if k[:2] != "t/"}, "'/t'.*not among"),
    (lambda r: {**r, **array_refs({}, (2,), (2,), "new")}, "'/new'.*there is none"),
]


@pytest.mark.parametrize("number", range(len(DISAGREEING)))
def test_what_disagrees_is_not_appended(number: int, tmp_path: Path) -> None:
    change, message = DISAGREEING[number]
    repo = repository(tmp_path)
    session = repo.writable_session("main")
    import_references(block(tmp_path, "a", 4), session)
    session.commit("a")
    session = repo.writable_session("main")
    with pytest.raises(IcechunkError, match=message):
        import_references(change(block(tmp_path, "b", 2)), session, append_dim="t")
    assert not session.has_uncommitted_changes


#: Two ways to write what is read alike.
SPELLINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"compressor": {"id": "zlib", "level": 1}}, {"compressor": {"id": "zlib", "level": 9}}),
    ({"compressor": {"id": "gzip", "level": 1}}, {"compressor": {"id": "gzip", "level": 4}}),
    ({"compressor": {"id": "bz2", "level": 1}}, {"compressor": {"id": "bz2", "level": 9}}),
    (
        {"compressor": {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1, "blocksize": 0}},
        {"compressor": {"id": "blosc", "cname": "zstd", "clevel": 9, "shuffle": 2, "blocksize": 0}},
    ),
    ({"compressor": {"id": "zstd", "level": 1}}, {"compressor": {"id": "zstd", "level": 9}}),
    (
        {"filters": [{"id": "shuffle", "elementsize": 4}, {"id": "zlib", "level": 1}]},
        {"filters": [{"id": "shuffle", "elementsize": 4}, {"id": "zlib", "level": 6}]},
    ),
    ({"zattrs": {"scale_factor": 1}}, {"zattrs": {"scale_factor": 1.0}}),
    ({"zattrs": {"missing_value": [7.0]}}, {"zattrs": {"missing_value": [7]}}),
]


def spelled(start: int, how: dict[str, Any]) -> dict[str, Any]:
    """References that hold eight numbers themselves, encoded in some way."""
    data = np.arange(start, start + 8, dtype="<i4").tobytes()
    zarray = {key: value for key, value in how.items() if key != "zattrs"}
    for codec in (*(zarray.get("filters") or ()), zarray.get("compressor")):
        if codec:
            data = bytes(numcodecs.get_codec(codec).encode(data))
    attributes = {"_ARRAY_DIMENSIONS": ["t"], **how.get("zattrs", {})}
    held = base64.b64encode(data).decode()
    return array_refs({"0": f"base64:{held}"}, (8,), (8,), "a", attributes, **zarray)


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_what_is_read_alike_is_appended(
    one: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    for first, second in ((one, other), (other, one)):
        session = repository(tmp_path, storage=MemoryStorage()).writable_session("main")
        import_references(spelled(0, first), session)
        report = import_references(spelled(8, second), session, append_dim="t")
        assert report.arrays == ("/a",)
        assert values(session).tolist() == [*range(16)]


@pytest.mark.parametrize(
    ("fill", "missing"),
    [
        (None, np.nan),
        ("NaN", np.nan),
        (-1.0, np.nan),
        (None, np.inf),
        ("Infinity", np.inf),
        (None, -np.inf),
        (None, [np.nan]),
    ],
)
def test_missing_values_that_json_does_not_have(fill: Any, missing: Any, tmp_path: Path) -> None:
    """Compared with what xarray reads from the references."""
    data = np.array([1, np.nan, np.inf, -np.inf, -1, 2], "<f4")
    refs = array_refs(
        {"0": "base64:" + base64.b64encode(data.tobytes()).decode()},
        (6,),
        (6,),
        attributes={"_ARRAY_DIMENSIONS": ["x"], "missing_value": missing, "scale_factor": 0.5},
        dtype="<f4",
        fill_value=fill,
    )
    session = repository(tmp_path, storage=MemoryStorage()).writable_session("main")
    import_references(refs, session)
    document = json.loads(session.tree.require("/a").user_data, parse_constant=_no_constant)
    assert "missing_value" not in document["attributes"]
    np.testing.assert_array_equal(through_session(session)["a"], through_fsspec(refs)["a"])


def _no_constant(token: str) -> None:
    raise AssertionError(token)


def test_chunks_that_may_not_be_read_are_told(tmp_path: Path) -> None:
    """Neither they nor those of the same codecs are decoded; what is in the references is."""
    (tmp_path / "file").write_bytes(np.arange(6, dtype="<i4").tobytes())
    refs = {}
    for name, file in {"a": "file", "b": "gone", "c": "file"}.items():
        chunk: Any = [(tmp_path / file).as_uri(), 0, 24]
        filters = [{"id": "zlib", "level": 1}] if name == "c" else None
        refs |= array_refs({"0": chunk}, (6,), (6,), name, filters=filters)
    refs |= array_refs({"0": "base64:" + "A" * 32}, (6,), (6,), "inner")
    allowed = repository(tmp_path)
    refused = Repository.open(allowed.storage)
    with pytest.raises(InvalidInputError, match=r"'c': chunk \(0,\)"):
        import_references(refs, allowed.writable_session("main"), verify="all")
    del refs["c/0"]
    for repo, unread, words in (
        (allowed, {"/b"}, "there is no such file"),
        (refused, {"/a", "/b"}, "reading from it was not allowed"),
    ):
        report = import_references(refs, repo.writable_session("main"), verify="all")
        assert set(report.undecoded) == unread
        assert all(words in why for why in report.undecoded.values())
        assert report.undecoded[min(unread)] in repr(report)
    for verify in ("sample", "none"):
        report = import_references(refs, refused.writable_session("main"), verify=verify)
        assert set(report.undecoded) == (unread if verify == "sample" else set())


def test_attributes_that_json_does_not_have(tmp_path: Path) -> None:
    given = {"_ARRAY_DIMENSIONS": ["x"], "valid_min": -np.inf, "kept": 1}
    refs = {
        **array_refs({}, (6,), (6,), attributes=given),
        ".zattrs": json.dumps({"top": np.nan, "kept": 1}),
        "g/.zgroup": json.dumps({"zarr_format": 2}),
        "g/.zattrs": json.dumps({"list": [1, np.inf]}),
    }
    session = repository(tmp_path, storage=MemoryStorage()).writable_session("main")
    with pytest.raises(InvalidInputError, match="'valid_min' of '/a' is -Infinity") as caught:
        import_references(refs, session)
    assert not session.has_uncommitted_changes
    names = ["a:valid_min", ":top", "g:list"]
    assert str(caught.value).endswith(f"leave these out with drop_attributes={names!r}")
    for dropped in (names, ["valid_min", "top", "list"], ["/a:valid_min", ":top", "/g:list"]):
        session = repository(tmp_path, storage=MemoryStorage()).writable_session("main")
        report = import_references(refs, session, drop_attributes=[*dropped, "list", "a:kpet"])
        said = "drop_attributes names 'a:kpet', which the references do not have; did you mean"
        assert len(report.unmet) == 1 and report.unmet[0].startswith(f"{said} 'a:kept'")
        assert report.unmet[0] in repr(report)
        for path in ("/", "/a"):
            document = json.loads(session.tree.require(path).user_data, parse_constant=_no_constant)
            assert document["attributes"]["kept"] == 1
            assert {"valid_min", "top"}.isdisjoint(document["attributes"])


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        *((key, "no node can be called 'zarr.json'") for key in ("zarr.json/a", "a/zarr.json")),
        ("zarr.json", "no node can be called 'zarr.json'"),
        ("a/..", "no node can be called '..'"),
        (".", "no node can be called '.'"),
        ("a/b\\c", "for a slash"),
        ("b\\c/a", "for a slash"),
    ],
)
def test_a_name_that_zarr_takes(key: str, reason: str, tmp_path: Path) -> None:
    refs = {k.replace("a/", f"{key}/", 1): v for k, v in array_refs({}, (6,), (6,)).items()}
    session = repository(tmp_path, storage=MemoryStorage()).writable_session("main")
    with pytest.raises(InvalidInputError, match=re.escape(reason)):
        import_references(refs, session)


def test_the_chunk_of_a_scalar(tmp_path: Path) -> None:
    """kerchunk calls it "" where it makes references of GRIB that hold no values."""
    document = {"zarr_format": 2, "shape": [], "chunks": [], "dtype": "<i8", "fill_value": 0}
    chunk = "base64:" + base64.b64encode(np.int64(7).tobytes()).decode()
    for names in ([""], ["0"], ["", "0"], ["1"]):
        refs = {"a/.zarray": json.dumps(document), **{f"a/{name}": chunk for name in names}}
        session = repository(tmp_path, storage=MemoryStorage()).writable_session("main")
        if len(names) > 1 or names == ["1"]:
            with pytest.raises(InvalidInputError, match=r"of a scalar array|has one chunk"):
                import_references(refs, session)
        else:
            import_references(refs, session)
            assert values(session, "a") == 7


def test_region(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    session = repo.writable_session("main")
    import_references(block(tmp_path, "a", 7), session)
    session.commit("a")
    session = repo.writable_session("main")
    part = block(tmp_path, "b", 4, missing=(1,))
    report = import_references(part, session, region={"t": slice(2, 6)})
    assert (report.arrays, report.untouched) == (("/a", "/t"), ("/x",))
    # a chunk that the references lack is missing now
    expected = [*range(8), *range(100, 108), *[-1] * 8, *range(24, 28)]
    assert values(session).ravel().tolist() == expected
    assert values(session, "t").tolist() == [0, 1, 0, 1, 2, 3, 6]
    end = block(tmp_path, "c", 3)
    import_references(end, session, region={"t": slice(4, 7)})
    assert values(session).ravel().tolist()[16:] == list(range(200, 212))
    for region, message in (
        ({"t": slice(1, 5)}, "'a/0.0'.*whole chunks"),
        ({"t": slice(0, 5)}, "'/a'.*0 to 5"),
        ({"t": slice(5, 9)}, "'/a'.*5 to 7"),
        ({"t": slice(0, 8, 2)}, "'/a'"),
        ({"t": slice(0, 4), "nowhere": slice(0, 1)}, "'nowhere'"),
    ):
        before = session.change_set_bytes()
        with pytest.raises(InvalidInputError, match=message):
            import_references(part, session, region=region)
        assert session.change_set_bytes() == before
    with pytest.raises(InvalidInputError, match="exclude each other"):
        import_references(part, session, region={"t": slice(0, 4)}, append_dim="t")


def test_what_is_there_already(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    session = repo.writable_session("main")
    import_references(block(tmp_path, "a", 4), session)
    before = session.change_set_bytes()
    with pytest.raises(AlreadyExistsError, match=r"'/a'.*overwrite"):
        import_references(block(tmp_path, "b", 2), session)
    with pytest.raises(AlreadyExistsError, match="'/a'"):
        import_references(array_refs({}, (1,), (1,), "a/b"), session)
    with pytest.raises(AlreadyExistsError, match=r"'/a'.*array"):
        import_references(array_refs({}, (1,), (1,)), session, group="a")
    assert session.change_set_bytes() == before
    zarr.open_group(session.store, mode="r+").attrs["mine"] = 1
    import_references(block(tmp_path, "b", 2), session, overwrite=True)
    assert values(session).ravel().tolist() == list(range(100, 108))
    assert zarr.open_group(session.store, mode="r").attrs["mine"] == 1
    assert len(rows(session, "/a")) == 1
    with pytest.raises(NodeNotFoundError, match="'/other/a'"):
        import_references(block(tmp_path, "b", 2), session, group="other", append_dim="t")


def test_read_only(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    refs = array_refs({}, (1,), (1,))
    with pytest.raises(ReadOnlyError):
        import_references(refs, repo.readonly_session("main"))
    with pytest.raises(ReadOnlyError):
        import_references(refs, repo.writable_session("main").store.with_read_only(True))


def test_into_a_fork(tmp_path: Path) -> None:
    session = repository(tmp_path).writable_session("main")
    fork = session.fork()
    import_references(block(tmp_path, "a", 4), fork)
    session.merge(fork)
    assert values(session).ravel().tolist() == list(range(16))


def test_a_chunk_that_cannot_be_stored_changes_nothing(tmp_path: Path) -> None:
    storage = FaultyStorage(MemoryStorage())
    session = repository(tmp_path, storage=storage).writable_session("main")
    held = "base64:" + base64.b64encode(bytes(4000)).decode()
    refs = array_refs({str(i): held for i in range(3)}, (3000,), (1000,))
    storage.fail("put", key="chunks/", nth=2)
    with pytest.raises(StorageError):
        import_references(refs, session)
    assert not session.has_uncommitted_changes
    assert session.tree.get("/a") is None
    import_references(refs, session)
    assert kinds(session, "/a") == {"NATIVE"}


# -- exporting -------------------------------------------------------------------------
def test_where_exports_go(tmp_path: Path) -> None:
    session = repository(tmp_path).writable_session("main")
    import_references(block(tmp_path, "a", 4), session)
    target = tmp_path / "deep/refs.json"
    export_references(session, target)
    with pytest.raises(AlreadyExistsError, match=r"refs\.json.*overwrite"):
        export_references(session.store, target)
    before = target.read_bytes()
    zarr.open_array(session.store, path="a").resize((2, 4))
    export_references(session, target, overwrite=True)
    assert target.read_bytes() != before
    export_references(session, tmp_path / "p", format="parquet")
    export_references(session, tmp_path / "p", format="parquet", overwrite=True)
    with pytest.raises(NodeNotFoundError, match="'/nothing'"):
        export_references(session, group="nothing")
    for wrong in (
        {"format": "yaml"},
        {"zarr_format": 1},
        {"format": "parquet"},
        {"format": "parquet", "zarr_format": 3, "target": tmp_path / "q"},
    ):
        with pytest.raises(InvalidInputError):
            export_references(session, **wrong)


def test_missing_chunks_stay_missing(tmp_path: Path) -> None:
    session = repository(tmp_path).writable_session("main")
    import_references(block(tmp_path, "a", 8, missing=(1, 3)), session)
    ours = through_session(session)
    assert np.isnan(ours["a"]).sum() == 16
    for record_size in (1, 3, 100):
        target = tmp_path / f"p{record_size}"
        export_references(session, target, format="parquet", record_size=record_size)
        xr.testing.assert_identical(through_fsspec(str(target)), ours)
        listed = fsspec.filesystem("reference", fo=str(target)).ls("a", detail=True)
        assert {"a/0.0", "a/2.0"} <= {entry["name"] for entry in listed}
        other = repository(tmp_path).writable_session("main")
        import_references(target, other)
        assert rows(other, "/a") == rows(session, "/a")


def test_chunks_of_the_repository_itself(tmp_path: Path) -> None:
    # a name that URLs have to quote
    for storage in (local(tmp_path / "a %20b"), MemoryStorage()):
        session = repository(storage=storage).writable_session("main")
        root = zarr.create_group(session.store)
        wanted = np.arange(2000.0).reshape(2, 1000)
        root.create_array("big", data=wanted, chunks=(1, 1000), dimension_names=["x", "y"])
        root.create_array("text", data=np.array(["a", "", "ü"]), dimension_names=["z"])
        scalar = root.create_array("scalar", shape=(), dtype="i8")
        scalar[...] = 5
        session.commit("x")
        references = export_references(session)
        assert references is not None
        held = isinstance(references["refs"]["big/0.0"], str)
        assert held == isinstance(storage, MemoryStorage)
        for form, zarr_format in ((references, 2), (export_references(session, zarr_format=3), 3)):
            found = through_fsspec(form, zarr_format)
            assert np.array_equal(found["big"], wanted)
            assert found["text"].values.tolist() == ["a", "", "ü"]
            assert found["scalar"] == 5
        target = tmp_path / f"p{held}"
        export_references(session, target, format="parquet", record_size=1)
        found = through_fsspec(str(target))
        assert np.array_equal(found["big"], wanted)
        assert found["scalar"] == 5
