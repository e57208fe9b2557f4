"""References in all their forms mean the same."""

from __future__ import annotations

import base64
import gzip
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from kerchunk.df import refs_to_dataframe

from icechunk import IcechunkError, InvalidInputError, Session, StorageError
from icechunk.kerchunk import import_references
from tests.kerchunk.base import array_refs, repository, rows

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FILES = {"a b.bin": 64, "%41?#.bin": 100}


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory() as place:
        for name, size in FILES.items():
            Path(place, name).write_bytes(os.urandom(size))
        yield Path(place).resolve()


def imported(references: Any, folder: Path, **options: Any) -> tuple[Session, Any]:
    session = repository(folder).writable_session("main")
    # what is drawn has other sizes than its chunks
    report = import_references(references, session, verify="none", **options)
    return session, report


def everything(session: Session) -> dict[str, Any]:
    found = {}
    for node in session.tree.nodes():
        refs = rows(session, node.path) if node.is_array else None
        found[node.path] = (json.loads(node.user_data), refs)
    return found


# a chunk: missing, in the references, a range, a range of no bytes, or a whole file
# bytes that begin like base64 are taken for it
PAYLOADS = st.binary(max_size=700).filter(lambda data: not data.startswith(b"base64:"))
VALUES = st.one_of(
    st.none(),
    st.tuples(st.just("data"), PAYLOADS),
    st.tuples(
        st.just("range"),
        st.sampled_from(sorted(FILES)),
        # in Parquet, two zeros mean the whole file
        st.integers(1, 2**40),
        st.one_of(st.just(0), st.integers(0, 2**33)),
    ),
    st.tuples(st.just("file"), st.sampled_from(sorted(FILES))),
)


@st.composite
def reference_sets(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(0, 3))
    grid = tuple(draw(st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim)))
    chunks = {}
    for coordinate in np.ndindex(grid):
        name = ".".join(map(str, coordinate)) or "0"
        value = draw(VALUES)
        if value is not None:
            chunks[name] = value
    return {"grid": grid, "chunks": chunks, "generated": draw(st.integers(0, 5))}


def spelled(value: Any, start: str, text: str) -> Any:
    """A reference as JSON has it."""
    match value:
        case ("data", data):
            if text == "bytes":
                return data
            return "base64:" + base64.b64encode(data).decode()
        case ("range", name, offset, length):
            return [start + name, offset, length]
        case ("file", name):
            return [start + name]


def forms(logical: dict[str, Any], folder: Path, place: Path) -> dict[str, Any]:
    """The same references in all forms."""
    grid, chunks, generated = logical["grid"], logical["chunks"], logical["generated"]
    path = f"{folder}/"

    def complete(start: str, text: str = "base64") -> dict[str, Any]:
        named = {key: spelled(value, start, text) for key, value in chunks.items()}
        # compressed, so that a chunk may have any number of bytes
        packed = {"compressor": {"id": "zlib", "level": 1}}
        return array_refs(named, tuple(3 * n for n in grid), (3,) * len(grid), **packed)

    one = array_refs({}, (8, 2), (1, 2), "group/b", {"units": "K"})
    made = {f"group/b/{i}.0": [f"{path}a b.bin", 8 * i, 8] for i in range(generated)}
    plain = {**complete(path), **one}
    version_0 = {**plain, **made}
    generator = {
        "key": "group/b/{{i}}.0",
        "url": "{{folder}}/a b.bin",
        "offset": "{{i * 8}}",
        "length": "{{whole(x='8')}}",
        "dimensions": {"i": {"stop": generated}},
    }
    version_1 = {
        "version": 1,
        "templates": {"folder": f"file://{folder}", "whole": "{{x}}"},
        "refs": {**complete("{{ folder }}/"), **one},
        "gen": [generator],
    }
    called = {**version_1, "refs": {**complete("{{whole(x=folder)}}/"), **one}}
    (place / "plain.json").write_text(json.dumps(version_0))
    (place / "packed.json.zst").write_bytes(zstd.compress(json.dumps(version_1).encode()))
    (place / "packed.json.gz").write_bytes(gzip.compress(json.dumps(called).encode()))
    consolidated = {key: value for key, value in version_0.items() if "/.z" not in key}
    metadata = {k: json.loads(v) for k, v in version_0.items() if "/.z" in k}
    consolidated[".zmetadata"] = json.dumps({"metadata": metadata})
    refs_to_dataframe(dict(version_0), str(place / "parquet"), record_size=5)
    return {
        "version 0": version_0,
        "bytes": {**complete(path, "bytes"), **one, **made},
        "version 1": version_1,
        "called templates": called,
        "JSON": str(place / "plain.json"),
        "zstd": place / "packed.json.zst",
        "gzip": f"file://{place}/packed.json.gz",
        "consolidated": consolidated,
        "Parquet": place / "parquet",
    }


@settings(max_examples=10)
@given(reference_sets())
def test_all_forms_mean_the_same(folder: Path, logical: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        found = {
            name: imported(references, folder)
            for name, references in forms(logical, folder, Path(place)).items()
        }
    session, report = found["version 0"]
    expected = everything(session)
    for name, (other, other_report) in found.items():
        assert everything(other) == expected, name
        assert repr(other_report) == repr(report), name
    refs = expected["/a"][1]
    for key, value in logical["chunks"].items():
        coordinate = tuple(map(int, key.split("."))) if logical["grid"] else ()
        ref = refs.get(coordinate)
        match value:
            case ("data", data):
                assert (ref is None) == (not data)
                if data:
                    node = session.tree.require("/a")
                    assert bytes(session.chunks.get(node, coordinate) or b"") == data
            case ("range", name, offset, length):
                assert (ref is None) == (not length)
                if length:
                    assert (ref.offset, ref.length) == (offset, length)
            case ("file", name):
                assert (ref.offset, ref.length) == (0, FILES[name])
    # what follows a container's prefix names the file itself
    for location in session.all_virtual_chunk_locations():
        storage, key = session.virtual.resolve(location)
        assert key in FILES
        assert storage.get(key).data == (folder / key).read_bytes()


def test_separators_and_v3_keys(folder: Path) -> None:
    chunk = [f"{folder}/a b.bin", 0, 4]
    expected, _ = imported(array_refs({"1.2": chunk}, (4, 4), (1, 1)), folder)
    slash = array_refs({"1/2": chunk}, (4, 4), (1, 1), dimension_separator="/")
    assert everything(imported(slash, folder)[0]) == everything(expected)
    document = everything(expected)["/a"][0]
    for encoding, key in (
        ({"name": "default"}, "c/1/2"),
        ({"name": "default", "configuration": {"separator": "."}}, "c.1.2"),
        ({"name": "v2"}, "1.2"),
        ({"name": "v2", "configuration": {"separator": "/"}}, "1/2"),
    ):
        refs = {
            "zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": {}},
            "a/zarr.json": {**document, "chunk_key_encoding": encoding},
            f"a/{key}": chunk,
        }
        assert everything(imported(refs, folder)[0]) == everything(expected)


def test_urls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locations(url: str, **options: Any) -> list[str]:
        refs = array_refs({"0": [url, 0, 4]}, (1,), (1,))
        session, _ = imported(refs, folder, validate_containers=False, **options)
        return session.all_virtual_chunk_locations()

    monkeypatch.chdir(folder)
    assert locations("x/../y z.nc") == [f"file://{folder}/y%20z.nc"]
    assert locations("y.nc", base_url="/data/") == ["file:///data/y.nc"]
    assert locations("y.nc", base_url="s3://bucket/p") == ["s3://bucket/p/y.nc"]
    assert locations("bucket/y.nc", remote_protocol="s3") == ["s3://bucket/y.nc"]
    assert locations("s3a://bucket/50%?#.nc") == ["s3://bucket/50%25%3F%23.nc"]
    assert locations("https://host/50%25.nc?x=1") == ["https://host/50%25.nc?x=1"]
    assert locations("gcs://bucket/y.nc") == ["gs://bucket/y.nc"]
    assert locations("local:///y.nc") == locations("file:/y.nc") == ["file:///y.nc"]
    monkeypatch.setenv("HOME", "/home/me")
    assert locations("~/y.nc") == locations("file://~/y.nc") == ["file:///home/me/y.nc"]


UNREADABLE = {
    "C:\\data\\x.nc": "Windows",
    "c:/data/x.nc": "Windows",
    "\\\\host\\share\\x.nc": "Windows",
    "/data/a\nb.nc": "control",
    "file:///data/a\tb.nc": "control",
    "s3://bucket/a\nb.nc": "control",
    "s3://bucket/a//b.nc": "empty segments",
    "https://host/a%0Ab.nc": "control",
    "https://host/a/": "empty segments",
}


@pytest.mark.parametrize("url", UNREADABLE, ids=repr)
def test_urls_that_nobody_could_read(folder: Path, url: str) -> None:
    refs = array_refs({"0": [url, 0, 4]}, (1,), (1,))
    with pytest.raises(InvalidInputError, match=f"'a/0'.*{UNREADABLE[url]}"):
        imported(refs, folder, validate_containers=False)


GOOD = array_refs({}, (4, 4), (1, 1))
BAD: dict[str, tuple[Any, str]] = {
    "version": ({"version": 2, "refs": {}}, "version 2"),
    "no metadata": ({"version": 1, "refs": {}}, "no Zarr metadata"),
    "no array": ({**GOOD, "b/0.0": "x"}, "'b/0.0'.*no array"),
    "rank": ({**GOOD, "a/0": "x"}, "'a/0'.*2 dimensions"),
    "other separator": ({**GOOD, "a/0/0": "x"}, "'a/0/0'.*2 dimensions"),
    "zeros before": ({**GOOD, "a/00.0": "x"}, "'a/00.0'"),
    "sign": ({**GOOD, "a/+0.0": "x"}, "'a/.0.0'"),
    "digits of others": ({**GOOD, "a/\u0660.0": "x"}, "not a chunk"),
    "outside": ({**GOOD, "a/0.4": "x"}, r"'a/0.4'.*\(4, 4\)"),
    "two items": ({**GOOD, "a/0.0": ["file:///x", 1]}, "'a/0.0'.*offset, length"),
    "negative": ({**GOOD, "a/0.0": ["file:///x", -1, 5]}, "'a/0.0'.*-1"),
    "text": ({**GOOD, "a/0.0": ["file:///x", "1", 5]}, "'a/0.0'.*'1'"),
    "half": ({**GOOD, "a/0.0": ["file:///x", 1.5, 5]}, "'a/0.0'.*1.5"),
    "a number": ({**GOOD, "a/0.0": 5}, "'a/0.0'.*5"),
    "url": ({**GOOD, "a/0.0": [5, 0, 1]}, "'a/0.0'.*no.* URL|'a/0.0'.*not a URL"),
    "base64": ({**GOOD, "a/0.0": "base64:@@"}, "'a/0.0'.*base64"),
    "metadata": ({**GOOD, "a/.zattrs": "{"}, "'a/.zattrs'.*JSON"),
    "consolidated": ({".zmetadata": "{}"}, "'.zmetadata'.*metadata"),
    "container": ({**GOOD, "a/0.0": ["s3://b/k", 0, 1]}, "'a/0.0'.*s3://b/k.*container"),
    "whole file": ({**GOOD, "a/0.0": ["/no/such"]}, "'a/0.0'.*whole file"),
    "template": (
        {"version": 1, "refs": {**GOOD, "a/0.0": ["{{u}}", 0, 1]}},
        "'a/0.0'.*{{u}}.*undefined",
    ),
    "template syntax": (
        {"version": 1, "refs": {**GOOD, "a/0.0": ["{{u!}}", 0, 1]}},
        "'a/0.0'.*cannot be read",
    ),
    "templates": ({"version": 1, "templates": ["u"], "refs": GOOD}, "'templates'"),
    "escape": (
        {"version": 1, "refs": {**GOOD, "a/0.0": ["{{''.__class__.__mro__}}", 0, 1]}},
        "'a/0.0'.*cannot be read: .__class__",
    ),
    "gen": ({"version": 1, "refs": GOOD, "gen": [{"key": "a"}]}, r"'gen\[0\]'"),
    "gen offset": (
        {
            "version": 1,
            "refs": GOOD,
            "gen": [{"key": "k", "url": "u", "dimensions": {}, "offset": "0"}],
        },
        r"'gen\[0\]'.*both",
    ),
    "gen dimension": (
        {"version": 1, "refs": GOOD, "gen": [{"key": "k", "url": "u", "dimensions": {"i": {}}}]},
        r"'gen\[0\]'.*'i'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, folder: Path) -> None:
    references, message = BAD[name]
    session = repository(folder).writable_session("main")
    with pytest.raises(InvalidInputError, match=message):
        validate = name not in ("whole file",)
        import_references(references, session, validate_containers=validate)
    assert not session.has_uncommitted_changes


def test_files_that_are_no_references(folder: Path, tmp_path: Path) -> None:
    session = repository(folder).writable_session("main")
    for data in (b"", b"[]", b"\x28\xb5\x2f\xfdxx", b"\x1f\x8bxx", b"\xff"):
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"x\.json"):
            import_references(tmp_path / "x.json", session)
    with pytest.raises(StorageError, match=r"nothing\.json"):
        import_references(tmp_path / "nothing.json", session)
    with pytest.raises(StorageError, match="nosuch"):
        import_references("nosuch://x.json", session)


def test_damaged_parquet(folder: Path, tmp_path: Path) -> None:
    chunks = {f"{i}.0": [f"{folder}/a b.bin", i, 1] for i in range(4)}
    references = array_refs(chunks, (4, 1), (1, 1), dtype="|i1")
    refs_to_dataframe(references, str(tmp_path / "p"), record_size=2)
    record = tmp_path / "p/a/refs.1.parq"
    whole = record.read_bytes()

    def attempt() -> dict[tuple[int, ...], Any]:
        session, _ = imported(tmp_path / "p", folder)
        return rows(session, "/a")

    assert len(attempt()) == 4
    for damaged in (whole[:-20], b"", b"PAR1" + whole[4:-30] + b"PAR1"):
        record.write_bytes(damaged)
        with pytest.raises(InvalidInputError, match=r"a/refs\.1\.parq"):
            attempt()
    record.unlink()
    assert sorted(attempt()) == [(0, 0), (1, 0)]
    metadata = json.loads((tmp_path / "p/.zmetadata").read_text())
    metadata["record_size"] = 3
    (tmp_path / "p/.zmetadata").write_text(json.dumps(metadata))
    with pytest.raises(InvalidInputError, match=r"refs\.0\.parq.*2 rows instead of 3"):
        attempt()
    del metadata["record_size"]
    (tmp_path / "p/.zmetadata").write_text(json.dumps(metadata))
    with pytest.raises(InvalidInputError, match="record_size"):
        attempt()


class Seen:
    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


def test_progress(folder: Path, tmp_path: Path) -> None:
    chunks = {f"{i}.0": [f"{folder}/a b.bin", i, 1] for i in range(7)}
    references = array_refs(chunks, (7, 1), (1, 1), dtype="|i1")
    refs_to_dataframe(dict(references), str(tmp_path / "p"), record_size=3)
    for source, expected in (
        (references, [(7, 7)]),
        (tmp_path / "p", [(3, 7), (6, 7), (7, 7)]),
    ):
        progress = Seen()
        imported(source, folder, progress=progress)
        assert progress.calls == expected

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    session = repository(folder).writable_session("main")
    with pytest.raises(KeyboardInterrupt):
        import_references(tmp_path / "p", session, progress=interrupt)
    assert not session.has_uncommitted_changes


def test_errors_are_of_the_tree() -> None:
    with pytest.raises(IcechunkError, match="not a str"):
        import_references({}, "session")  # type: ignore[arg-type]
