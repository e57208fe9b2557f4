"""Virtual chunks: what may be read, what is read, and what happens when it cannot be."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import icechunk
from icechunk.config import (
    ObjectStoreConfig,
    S3Options,
    StorageRetriesSettings,
    StorageSettings,
    VirtualChunkContainer,
    azure_store,
    gcs_store,
    http_store,
    local_filesystem_store,
    s3_store,
)
from icechunk.credentials import (
    Credentials,
    HttpAccess,
    gcs_credentials,
    s3_credentials,
)
from icechunk.errors import ErrorKind, IcechunkError, InvalidInputError, StorageError
from icechunk.virtual.resolver import VirtualResolver, normalize_location
from tests.web_server import LAST_MODIFIED_SECONDS, WebServer, serving

ANONYMOUS = Credentials.S3(s3_credentials(anonymous=True))
DATA = bytes(range(256)) * 4
#: Ask again at once.
EAGER = StorageSettings(
    retries=StorageRetriesSettings(max_tries=5, initial_backoff_ms=0, max_backoff_ms=0)
)
CANARY = b"this must never be read " * 50


def resolver(*containers: VirtualChunkContainer, **authorized: Any) -> VirtualResolver:
    """Return a resolver for containers that are all authorised, or as `authorized` says."""
    allowed = authorized.get("authorized", {c.url_prefix: None for c in containers})
    return VirtualResolver({c.url_prefix: c for c in containers}, allowed, settings=EAGER)


def folder(path: Path, name: str | None = None) -> VirtualChunkContainer:
    return VirtualChunkContainer(path.as_uri() + "/", local_filesystem_store(str(path)), name)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a container ``in``, and canaries around it."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("in", "in/sub", "in-evil", "out", "in.evil"):
        (root / name).mkdir()
        (root / name / "f").write_bytes(DATA if name.startswith("in/") or name == "in" else CANARY)
    (root / "f").write_bytes(CANARY)
    (root / "in" / "a%41 #?é").write_bytes(DATA)
    (root / "in" / "inside").symlink_to(root / "in" / "f")
    (root / "in" / "leak").symlink_to(root / "out" / "f")
    (root / "in" / "leaks").symlink_to(root / "out")
    (root / "in" / "up").symlink_to("..")
    return root


# -- locations -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("location", "normal"),
    [
        ("S3://Bucket/A/../b c%20", "s3://Bucket/A/../b c%20"),
        ("https://h/a?x=1#y", "https://h/a?x=1#y"),
        ("VCC://Name/k", "vcc://Name/k"),
        ("FILE:///a/./b/../c", "file:///a/c"),
        ("file:/a/b", "file:///a/b"),
        ("file://localhost/a", "file:///a"),
        ("file:///a/%2e%2E/b", "file:///b"),
        ("file:///a/.%2e/b", "file:///b"),
        ("file:///../../b", "file:///b"),
        ("file:///a/b/..", "file:///a/"),
        ("file:///a/.", "file:///a/"),
        ("file:///a\\..\\b", "file:///b"),
        ("file:///a\t/.\n./b", "file:///b"),
        ("file:///a//b", "file:///a//b"),
        ("file:///a b/é%20{", "file:///a%20b/%C3%A9%20%7B"),
        ("file:///a/..%2fb", "file:///a/..%2fb"),
        ("file:///a/b?../c#d/../e", "file:///a/b?../c#d/../e"),
        ("file:///.hidden/..b/c..", "file:///.hidden/..b/c.."),
    ],
)
def test_normal_form(location: str, normal: str) -> None:
    assert normalize_location(location) == normal
    assert normalize_location(normal) == normal


@given(st.text("abAB./\\%2eE?#: \té-", max_size=20).map(lambda s: "file:" + s))
def test_a_normal_form_of_a_file_is_normal_and_has_no_dots(location: str) -> None:
    try:
        normal = normalize_location(location)
    except InvalidInputError:
        return
    assert normalize_location(normal) == normal
    path = re.split(r"[?#]", normal)[0]
    assert path.startswith("file:///")
    assert not {".", ".."} & set(path.lower().replace("%2e", ".").split("/"))


@pytest.mark.parametrize(
    "location", ["", "foo", "/a/b", "../b", "C", "://x", "s3:bucket/k", "file://host/a", None, b"x"]
)
def test_what_is_no_absolute_url(location: Any) -> None:
    for function in (normalize_location, resolver().validate):
        with pytest.raises(InvalidInputError) as caught:
            function(location)
        assert caught.value.kind == ErrorKind.INVALID_VIRTUAL_REF
    assert resolver().invalid_locations([location]) == [0]


BUCKET = VirtualChunkContainer("s3://bucket", s3_store(anonymous=True), "main")


@pytest.mark.parametrize(
    "location",
    [
        "s3://bucket-evil/k",
        "s3://bucket.evil/k",
        "s3://bucket",
        "s3://bucket?/k",
        "s3://bucket@evil/k",
        "s3://bucket:80/k",
        "s3://Bucket/k",
        "gs://bucket/k",
        "http://bucket/k",
        "file:///bucket/k",
        "vcc://other/k",
        "vcc://Main/k",
        "vcc://",
    ],
)
def test_what_only_looks_like_a_container_is_none(location: str) -> None:
    # what stands before an @ may be a secret
    visible = location.partition("?")[0].replace("bucket@", "")
    with pytest.raises(InvalidInputError, match=re.escape(visible)) as caught:
        resolver(BUCKET).validate(location)
    assert caught.value.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK


@pytest.mark.parametrize(
    ("location", "key"),
    [
        ("s3://bucket/k", "k"),
        ("S3://bucket/a%20b/c+d", "a b/c+d"),
        ("s3://bucket/a%2520", "a%20"),
        ("s3://bucket/a%3Fb%23c", "a?b#c"),
        ("s3://bucket/k?versionId=1", "k"),
        ("s3://bucket/k#part", "k"),
        ("s3://bucket/..a/b../...", "..a/b../..."),
        ("vcc://main/a/b", "a/b"),
        ("VCC://main/a%20b", "a b"),
    ],
)
def test_keys(location: str, key: str) -> None:
    storage, found = resolver(BUCKET).resolve(location)
    assert (storage.url, found) == ("s3://bucket", key)


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "?x",
        "a/",
        "../k",
        "a/../k",
        "./k",
        "%2e%2e/k",
        "a/..%2fk",
        "a%2F..",
        "a\\..\\k",
        "..%5Ck",
    ],
)
def test_keys_that_name_no_file_in_the_container(rest: str) -> None:
    for location in ("s3://bucket/" + rest, "vcc://main/" + rest):
        with pytest.raises(InvalidInputError) as caught:
            resolver(BUCKET).validate(location)
        assert caught.value.kind == ErrorKind.INVALID_VIRTUAL_REF


segments = st.sampled_from(
    [
        "..",
        ".",
        "%2e%2e",
        ".%2E",
        "..%2f",
        "%2f",
        "a",
        "b c",
        "in",
        "bucket",
        "",
        "\\..",
        "é",
        "?",
        "#",
    ]
)


@given(
    st.sampled_from(["s3://bucket/p", "S3://bucket/p/", "s3://bucket", "vcc://main", "s3://"]),
    st.lists(segments, max_size=5),
)
def test_a_key_never_leaves_its_container(start: str, rest: list[str]) -> None:
    container = VirtualChunkContainer("s3://bucket/p", s3_store(anonymous=True), "main")
    resolve = resolver(container)
    location = "/".join([start, *rest])
    try:
        storage, key = resolve.resolve(location)
    except IcechunkError:
        assert resolve.invalid_locations([location]) == [0]
        return
    assert storage.url == "s3://bucket/p"
    assert key
    assert not {".", ".."} & set(re.split(r"[/\\]", key))
    assert resolve.invalid_locations([location]) == []


def test_invalid_locations_are_found_by_position() -> None:
    locations = ["s3://bucket/a", "s3://other/a", "s3://bucket/b", "s3://bucket/../b", "x"]
    assert resolver(BUCKET).invalid_locations(locations) == [1, 3, 4]


def test_the_longest_prefix_decides() -> None:
    public = VirtualChunkContainer("s3://bucket/", s3_store(anonymous=True), "public")
    private = VirtualChunkContainer("s3://bucket/private", s3_store(anonymous=True))
    some = resolver(private, public, authorized={"s3://bucket/private": None})
    assert some.resolve("s3://bucket/private/k")[1] == "k"
    for location in ("s3://bucket/privateer/k", "vcc://public/k"):
        with pytest.raises(InvalidInputError, match="'s3://bucket/'"):
            some.resolve(location)
    both = resolver(public, private)
    storage, key = both.resolve("vcc://public/private/k")
    assert (storage.url, key) == ("s3://bucket/private", "k")


def test_a_container_of_all_buckets() -> None:
    everything = VirtualChunkContainer("s3://", s3_store(anonymous=True))
    resolve = resolver(everything)
    assert [(s.url, k) for s, k in map(resolve.resolve, ["s3://one/k", "s3://two/a/k"])] == [
        ("s3://one", "k"),
        ("s3://two", "a/k"),
    ]
    for location in ("s3://k", "s3:///k", "s3://b/", "s3://evil@b/k", "s3://b:1/k", "s3://b%2f/k"):
        with pytest.raises(InvalidInputError):
            resolve.resolve(location)


# -- authorisation ---------------------------------------------------------------------
STORES: list[tuple[str, Any]] = [
    ("s3://bucket/p", s3_store(region="us-east-1")),
    ("s3://bucket/", s3_store(s3_compatible=True)),
    ("tigris://bucket/", ObjectStoreConfig.Tigris(S3Options())),
    ("gs://bucket/", gcs_store()),
    ("az://bucket/", azure_store(account="account")),
    ("https://host/p/", http_store()),
    ("file:///folder/", local_filesystem_store("/folder")),
]


@pytest.mark.parametrize(("prefix", "store"), STORES)
def test_the_error_says_how_to_authorise(
    prefix: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_TOKEN", "unused")
    container = VirtualChunkContainer(prefix, store)
    location = prefix.rstrip("/") + "/k"
    closed = VirtualResolver({"any key": container})
    closed.validate(location)
    with pytest.raises(InvalidInputError) as caught:
        closed.resolve(location)
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    assert location in str(caught.value)
    argument = re.search(r"authorize_virtual_chunk_access=(\{.*?\})", str(caught.value))
    assert argument is not None
    authorized = eval(argument[1], {"icechunk": icechunk})
    assert VirtualResolver({"any key": container}, authorized).resolve(location)[1] == "k"


@pytest.mark.parametrize(("prefix", "store"), STORES)
def test_the_error_says_which_container_to_add(
    prefix: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_TOKEN", "unused")
    location = prefix.rstrip("/") + "/k"
    with pytest.raises(InvalidInputError) as caught:
        VirtualResolver({}).resolve(location)
    assert caught.value.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK
    call = re.search(r"set_virtual_chunk_container\((.*)\); ", str(caught.value))
    assert call is not None
    container = eval(call[1], {"icechunk": icechunk})
    container.validate()
    assert type(container.store) is type(store) or prefix.startswith("s3")
    assert resolver(container).resolve(location)[1] == "k"


def test_what_authorises_a_container() -> None:
    container = VirtualChunkContainer("s3://bucket/private/", s3_store(anonymous=True), "name")
    for prefix in (
        "s3://bucket/private/sub/",
        "s3://bucket/priv",
        "s3://bucket/private-evil/",
        "s3://buck",
        "vcc://name/",
    ):
        with pytest.raises(InvalidInputError, match="was not allowed"):
            resolver(container, authorized={prefix: None}).resolve("s3://bucket/private/k")
    for prefix in ("S3://bucket/private", "s3://bucket", "s3://"):
        resolver(container, authorized={prefix: None}).resolve("vcc://name/k")


def test_one_credential_serves_nested_prefixes_and_the_longest_decides() -> None:
    names = ("", "a/", "a/b/", "c/")
    containers = [VirtualChunkContainer(f"s3://bucket/{name}", s3_store()) for name in names]
    keys = {name: s3_credentials(access_key_id=name, secret_access_key="s") for name in "xy"}
    resolve = resolver(
        *containers, authorized={"s3://bucket": keys["x"], "s3://bucket/a": keys["y"]}
    )
    used = {
        name: resolve.resolve(f"s3://bucket/{name}k")[0]._place.credentials  # type: ignore[attr-defined]
        for name in names
    }
    assert used == {"": keys["x"], "a/": keys["y"], "a/b/": keys["y"], "c/": keys["x"]}


def test_a_nested_folder_does_not_lead_out_of_the_authorised_one(tree: Path) -> None:
    # the user allowed the parent; the repository names a link inside of it
    top, linked = folder(tree / "in"), folder(tree / "in" / "leaks")
    resolve = resolver(top, linked, authorized={top.url_prefix: None})
    assert bytes(resolve.fetch(top.url_prefix + "sub/f", 0, 10)) == DATA[:10]
    with pytest.raises(IcechunkError, match="leads out"):
        resolve.fetch(linked.url_prefix + "f", 0, 10)


def test_credentials_must_fit_the_store() -> None:
    wrong = Credentials.Gcs(gcs_credentials(anonymous=True))
    with pytest.raises(InvalidInputError, match=r"Credentials\.S3") as caught:
        resolver(BUCKET, authorized={"s3://bucket/": wrong}).resolve("s3://bucket/k")
    assert caught.value.kind == ErrorKind.INVALID_CREDENTIALS


def test_unwrapped_credentials_are_taken_too() -> None:
    plain = resolver(BUCKET, authorized={"s3://bucket": s3_credentials(anonymous=True)})
    assert plain.resolve("s3://bucket/k")[1] == "k"


@pytest.mark.parametrize(
    ("prefix", "store"),
    [
        ("file:///etc/", s3_store()),
        ("s3://bucket/", local_filesystem_store("/etc")),
        ("s3://bucket/", http_store()),
        ("memory://bucket/", ObjectStoreConfig.InMemory()),
        ("s3://bucket//p/", s3_store(anonymous=True)),
        ("s3://bucket/%2e%2e/p/", s3_store(anonymous=True)),
    ],
)
def test_containers_that_cannot_be_opened(prefix: str, store: Any) -> None:
    with pytest.raises(InvalidInputError):
        resolver(VirtualChunkContainer(prefix, store)).resolve(prefix + "k")


def test_a_container_with_a_malformed_prefix_holds_nothing() -> None:
    resolve = VirtualResolver({"x": VirtualChunkContainer("bucket/", s3_store()), "y": BUCKET})
    resolve.validate("s3://bucket/k")
    with pytest.raises(InvalidInputError):
        resolve.validate("bucket/k")


def test_resolvers_pickle_and_print_without_secrets() -> None:
    secret = s3_credentials(access_key_id="0123456789", secret_access_key="hunter2-hunter2")
    resolve = resolver(BUCKET, authorized={"s3://bucket/": secret})
    resolve.resolve("s3://bucket/k")
    copy = pickle.loads(pickle.dumps(resolve))
    assert copy.resolve("vcc://main/k")[1] == "k"
    assert repr(copy) == "VirtualResolver({'s3://bucket/': 'authorized'})"


def test_storages_are_opened_once() -> None:
    resolve = resolver(BUCKET)
    with ThreadPoolExecutor(8) as pool:
        storages = {id(s) for s, _ in pool.map(resolve.resolve, ["s3://bucket/k"] * 50)}
    assert len(storages) == 1


# -- local files -----------------------------------------------------------------------
parts = st.sampled_from(
    [
        *("..", ".", "%2e%2e", "..%2f", "%2e%2e%2f", "\\..", "..\\", "", "?f", "#f"),
        *("f", "in", "out", "sub", "leak", "leaks", "up", "inside", "in-evil", "in.evil"),
    ]
)


@settings(max_examples=300)
@given(
    st.sampled_from(["/in/", "/in", "/", "/in-evil/", "vcc", "/in%2f", "/%69n/", "/in/sub/"]),
    st.lists(parts, max_size=6),
)
def test_no_path_leads_out_of_a_folder(tree: Path, start: str, rest: list[str]) -> None:
    resolve = resolver(folder(tree / "in", "name"))
    base = "vcc://name/" if start == "vcc" else tree.as_uri() + start
    location = base + "/".join(rest)
    try:
        data = resolve.fetch(location, 0, 16)
    except IcechunkError:
        return
    assert bytes(data) == DATA[:16]


@pytest.mark.parametrize("name", ["leak", "leaks/f", "up/f", "up/out/f", "up/in/../out/f"])
def test_links_do_not_lead_out(tree: Path, name: str) -> None:
    with pytest.raises(IcechunkError, match=r"link|no virtual chunk container"):
        resolver(folder(tree / "in")).fetch(folder(tree / "in").url_prefix + name, 0, 16)


@pytest.mark.parametrize(
    "name",
    ["f", "sub/f", "sub/../f", "./f", "inside", "a%2541%20%23%3Fé", "up/in/f", "f?x=1", "f#x"],
)
def test_files_inside_are_read(tree: Path, name: str) -> None:
    container = folder(tree / "in", "name")
    for location in (container.url_prefix + name, "vcc://name/" + name):
        assert bytes(resolver(container).fetch(location, 3, 10)) == DATA[3:13]


def test_the_folder_is_that_of_the_url(tree: Path) -> None:
    # the user allowed the URL; the path beside it may be anything
    container = VirtualChunkContainer(
        (tree / "in").as_uri(), local_filesystem_store(str(tree / "out"))
    )
    assert bytes(resolver(container).fetch(container.url_prefix + "/f", 0, 4)) == DATA[:4]


ranges = st.one_of(
    st.none(),
    st.tuples(st.integers(0, 60), st.none()),
    st.tuples(st.none(), st.integers(0, 60)),
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda ab: (min(ab), max(ab))),
)


def sliced(data: bytes, byte_range: Any) -> bytes:
    if byte_range is None:
        return data
    start, end = byte_range
    return data[max(len(data) - end, 0) :] if start is None else data[start:end]


@given(st.integers(0, len(DATA) - 50), st.integers(0, 50), ranges)
def test_ranges_are_those_of_the_chunk(
    tree: Path, offset: int, length: int, byte_range: Any
) -> None:
    container = folder(tree / "in")
    data = resolver(container).fetch(
        container.url_prefix + "f", offset, length, byte_range=byte_range
    )
    assert bytes(data) == sliced(DATA[offset : offset + length], byte_range)


# -- sources that cannot be read as they were ------------------------------------------
Source = tuple[VirtualResolver, str]


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving() as server:
        yield server


@pytest.fixture(params=["file", "http", "s3"])
def source(request: pytest.FixtureRequest, tmp_path: Path, web: WebServer) -> Source:
    """Return a resolver, and the prefix of a container that holds DATA as ``f``."""
    if request.param == "file":
        (tmp_path / "f").write_bytes(DATA)
        os.utime(tmp_path / "f", (LAST_MODIFIED_SECONDS, LAST_MODIFIED_SECONDS))
        container = folder(tmp_path)
    elif request.param == "http":
        web.files["/d/f"] = DATA
        container = VirtualChunkContainer(web.url + "d/", http_store())
    else:
        web.files["/bucket/d/f"] = DATA
        store = s3_store(endpoint_url=web.url.rstrip("/"), allow_http=True, region="us-east-1")
        container = VirtualChunkContainer("s3://bucket/d/", store)
        return resolver(container, authorized={"s3://bucket/d/": ANONYMOUS}), "s3://bucket/d/"
    return resolver(container), container.url_prefix


async def failure(source: Source, key: str, *arguments: Any, **options: Any) -> StorageError:
    """Return the error that both ways of fetching end with."""
    resolve, prefix = source
    with pytest.raises(StorageError) as one:
        resolve.fetch(prefix + key, *arguments, **options)
    with pytest.raises(StorageError) as other:
        await resolve.fetch_async(prefix + key, *arguments, **options)
    assert (str(one.value), one.value.kind) == (str(other.value), other.value.kind)
    assert prefix + key in str(one.value)
    return one.value


async def test_both_ways_of_fetching_agree(source: Source) -> None:
    resolve, prefix = source
    for byte_range in (None, (2, 5), (None, 3), (4, None), (3, 3)):
        sync = resolve.fetch(prefix + "f", 100, 50, None, 0, byte_range)
        other = await resolve.fetch_async(prefix + "f", 100, 50, None, None, byte_range)
        assert bytes(sync) == bytes(other) == sliced(DATA[100:150], byte_range)


async def test_a_missing_file(source: Source) -> None:
    error = await failure(source, "missing", 10, 20)
    assert error.kind == ErrorKind.VIRTUAL_CHUNK_FETCH
    assert "bytes 10 to 30" in str(error)
    assert "no such file" in str(error)


@pytest.mark.parametrize(("offset", "length"), [(1000, 25), (1024, 1), (5000, 10), (0, 1025)])
async def test_a_file_that_is_too_short(source: Source, offset: int, length: int) -> None:
    error = await failure(source, "f", offset, length)
    assert error.kind == ErrorKind.VIRTUAL_CHUNK_FETCH
    assert f"bytes {offset} to {offset + length}" in str(error)


async def test_a_range_inside_of_a_file_that_is_too_short(source: Source) -> None:
    resolve, prefix = source
    # the part is there, although the whole chunk is not
    data = await resolve.fetch_async(prefix + "f", 1000, 100, byte_range=(0, 24))
    assert bytes(data) == DATA[1000:1024]
    error = await failure(source, "f", 1000, 100, byte_range=(0, 25))
    assert "only 24 of these 25 bytes" in str(error)


async def test_another_version(source: Source) -> None:
    error = await failure(source, "f", 0, 10, '"v0"')
    assert error.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED
    error = await failure(source, "f", 0, 10, None, LAST_MODIFIED_SECONDS - 1)
    assert error.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED


async def test_the_same_version(source: Source, tmp_path: Path) -> None:
    resolve, prefix = source
    if prefix.startswith("file"):
        status = os.stat(tmp_path / "f")
        etag = f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"
    else:
        etag = "v1"
    for version in (etag, f'"{etag}"'):
        assert bytes(resolve.fetch(prefix + "f", 0, 10, version)) == DATA[:10]
        assert bytes(await resolve.fetch_async(prefix + "f", 0, 10, version)) == DATA[:10]
    for seconds in (LAST_MODIFIED_SECONDS, LAST_MODIFIED_SECONDS + 1):
        assert bytes(resolve.fetch(prefix + "f", 0, 10, None, seconds)) == DATA[:10]


def test_a_folder_is_no_file(tree: Path) -> None:
    container = folder(tree / "in")
    with pytest.raises(StorageError) as caught:
        resolver(container).fetch(container.url_prefix + "sub", 0, 10)
    assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_FETCH


def test_signatures_in_locations_are_not_printed(web: WebServer) -> None:
    container = VirtualChunkContainer(web.url, http_store())
    query = "?X-Amz-Signature=hunter2"
    for call in (
        lambda: resolver(container).fetch(web.url + "k" + query, 0, 10),
        lambda: resolver(container, authorized={}).fetch(web.url + "k" + query, 0, 10),
        lambda: resolver().validate(web.url + "k" + query),
        lambda: resolver(container).validate(web.url + "../k" + query),
    ):
        with pytest.raises(IcechunkError) as caught:
            call()
        assert "hunter2" not in str(caught.value)


# -- web servers -----------------------------------------------------------------------
@pytest.fixture
def outside() -> Iterator[WebServer]:
    with serving() as server:
        server.files["/f"] = CANARY
        yield server


def http_container(server: WebServer, **arguments: Any) -> VirtualChunkContainer:
    return VirtualChunkContainer(server.url + "d/", http_store(**arguments))


Target = Callable[[WebServer, WebServer], str]


@pytest.mark.parametrize(
    "target",
    [
        lambda web, outside: outside.url + "f",
        lambda web, outside: web.url + "f",
        lambda web, outside: "../f",
        lambda web, outside: "/d-evil/f",
        lambda web, outside: web.url + "d/%2e%2e/f",
        lambda web, outside: "//evil.invalid/d/f",
        lambda web, outside: "file:///etc/passwd",
        lambda web, outside: "ftp://evil.invalid/d/f",
        lambda web, outside: web.url.replace("http://", "http://x@") + "d/f",
        lambda web, outside: "",
    ],
)
def test_redirects_do_not_lead_out(web: WebServer, outside: WebServer, target: Target) -> None:
    web.files.update({"/f": CANARY, "/d-evil/f": CANARY})
    web.redirects["/d/r"] = target(web, outside)
    container = http_container(web)
    with pytest.raises(StorageError, match=r"redirects|cannot read"):
        resolver(container).fetch(container.url_prefix + "r", 0, 10)
    assert outside.requests == []
    assert {path for path, _ in web.requests} == {"/d/r"}


def test_redirects_within_authorised_containers_are_followed(
    web: WebServer, outside: WebServer
) -> None:
    outside.files["/cdn/f x"] = outside.files["/cdn/f%20x"] = DATA
    web.redirects |= {"/d/r": "s/r?signed=1", "/d/s/r": outside.url + "cdn/f%20x?token=1"}
    ours = http_container(web, headers={"X-Token": "hunter2"})
    theirs = VirtualChunkContainer(outside.url + "cdn/", http_store())
    location = ours.url_prefix + "r"
    with pytest.raises(StorageError, match="authorise a virtual chunk container"):
        resolver(ours, theirs, authorized={ours.url_prefix: HttpAccess}).fetch(location, 0, 4)
    assert outside.requests == []
    assert bytes(resolver(ours, theirs).fetch(location, 4, 4)) == DATA[4:8]
    assert [h.get("x-token") for _, h in web.requests] == ["hunter2"] * 4
    assert [(path, h.get("x-token")) for path, h in outside.requests] == [
        ("/cdn/f%20x?token=1", None)
    ]


def test_redirects_come_to_an_end(web: WebServer) -> None:
    web.redirects["/d/r"] = "/d/r"
    container = http_container(web)
    with pytest.raises(StorageError, match="redirects more than"):
        resolver(container).fetch(container.url_prefix + "r", 0, 10)


@given(st.integers(0, len(DATA) - 50), st.integers(1, 50), ranges, st.booleans())
@settings(max_examples=30)
def test_servers_with_and_without_ranges(
    shared_web: WebServer, offset: int, length: int, byte_range: Any, knows: bool
) -> None:
    shared_web.ranges = knows
    container = http_container(shared_web)
    data = resolver(container).fetch(
        container.url_prefix + "f", offset, length, None, None, byte_range
    )
    assert bytes(data) == sliced(DATA[offset : offset + length], byte_range)


@pytest.fixture(scope="module")
def shared_web() -> Iterator[WebServer]:
    with serving() as server:
        server.files["/d/f"] = DATA
        yield server


def test_what_lies_before_a_range_is_skipped_in_pieces(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icechunk.storage.bounded_body._PIECE", 100)
    web.files["/d/f"] = DATA
    web.ranges = False
    container = http_container(web)
    assert bytes(resolver(container).fetch(container.url_prefix + "f", 555, 5)) == DATA[555:560]


def test_connections_are_used_again(web: WebServer) -> None:
    web.files["/d/f"] = DATA
    container = http_container(web)
    resolve = resolver(container)
    for i in range(10):
        assert bytes(resolve.fetch(container.url_prefix + "f", i, 10)) == DATA[i : i + 10]
    assert len(web.connections) == 1


def test_passing_failures_are_tried_again(web: WebServer) -> None:
    web.files["/d/f"] = DATA
    container = http_container(web)
    web.failures = [503, 429, 500]
    assert bytes(resolver(container).fetch(container.url_prefix + "f", 0, 4)) == DATA[:4]
    web.failures = [503] * 20
    with pytest.raises(StorageError, match="status 503"):
        resolver(container).fetch(container.url_prefix + "f", 0, 4)
    web.failures = [403]
    web.requests.clear()
    with pytest.raises(StorageError, match="status 403"):
        resolver(container).fetch(container.url_prefix + "f", 0, 4)
    assert len(web.requests) == 1


def test_a_server_that_is_not_there() -> None:
    with serving() as server:
        container = http_container(server)
    with pytest.raises(StorageError) as caught:
        resolver(container).fetch(container.url_prefix + "f", 0, 4)
    assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_FETCH


def test_a_proxy_of_the_environment_is_used(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.setenv("no_proxy", "")
    web.files["http://data.invalid/d/f"] = DATA
    container = VirtualChunkContainer("http://data.invalid/d/", http_store())
    assert bytes(resolver(container).fetch("http://data.invalid/d/f", 0, 4)) == DATA[:4]


def test_options_of_web_servers(web: WebServer) -> None:
    web.files["/d/f"] = DATA
    container = http_container(web, opts={"timeout": "5 seconds", "user_agent": "me/1"})
    assert bytes(resolver(container).fetch(container.url_prefix + "f", 0, 4)) == DATA[:4]
    assert web.requests[0][1]["user-agent"] == "me/1"
    odd = http_container(web, opts={"http3": "true"})
    with pytest.raises(InvalidInputError, match="http3"):
        resolver(odd).fetch(odd.url_prefix + "f", 0, 4)
