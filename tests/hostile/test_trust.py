"""What a repository may decide about the stores behind its virtual chunks, and about prefixes.

The neighbours of an attack are generated: encodings, positions and schemes.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from icechunk import (
    InvalidInputError,
    Repository,
    RepositoryConfig,
    S3Options,
    StorageError,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
    VirtualChunkContainer,
    azure_credentials,
    azure_store,
    containers_credentials,
    gcs_credentials,
    gcs_store,
    http_storage,
    http_store,
    s3_credentials,
    s3_store,
)
from icechunk.errors import ErrorKind
from icechunk.virtual.container_trust import Trust
from icechunk.virtual.locations import check_segments, container_prefix, key_below
from icechunk.virtual.resolver import VirtualResolver
from tests.hostile.test_hostile_repository import CANARY, DATA, hostile, read, refusal
from tests.web_server import WebServer, serving

#: How servers have been made to see a dot, and what ends a segment for one of them.
DOTS = (".", "%2e", "%2E", "%252e", "%25252e", "%c0%ae", "%EF%BC%8E")
ENDS = ("/", "%2f", "%2F", "%252f", "\\", "%5c", "%255C", ";/", ";x=1/", "%3b/")
BLANKS = ("", "%20", "%09", "%00", "\t")


def ways_up() -> Iterator[str]:
    for first, second in itertools.product(DOTS, DOTS):
        for end in ENDS:
            yield first + second + end
    for blank, end in itertools.product(BLANKS, ENDS):
        yield "." + blank + "." + end
        yield ".." + blank + end
        yield "." + end


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs", "az", "vcc"])
@pytest.mark.parametrize("position", ["{}private/f", "a/{}private/f", "a/b%20/{}f", "a\\{}f"])
def test_no_way_up_is_a_path(scheme: str, position: str) -> None:
    prefix = f"{scheme}://host/public/"
    for way in ways_up():
        path = position.format(way)
        with pytest.raises(InvalidInputError, match="among its segments") as caught:
            key_below(prefix + path, path)
        assert caught.value.kind == ErrorKind.INVALID_VIRTUAL_REF
        with pytest.raises(InvalidInputError):
            container_prefix(prefix + path)


@pytest.mark.parametrize(
    "path", ["a.b/c..d", "a/...", ".hidden", "a/.zarray", "50%25.nc", "x..;y", "a/..b", "a%20.b"]
)
def test_names_with_dots_are_names(path: str) -> None:
    check_segments(path, path)
    assert container_prefix(f"http://h/{path}/") == f"http://h/{path}/"


def test_what_is_encoded_for_ever_is_refused_in_time() -> None:
    with pytest.raises(InvalidInputError, match="again and again"):
        check_segments("x", "%" + "25" * 1_000_000 + "41")


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving() as server:
        server.files["/public/f"] = DATA
        for path in ("/private/f", "/public/../private/f", "/latest/meta-data/f", "/internal/f"):
            server.files[path] = CANARY
        yield server


@pytest.mark.parametrize("way", ["../private/", "%2e%2e/private/", "..%2fprivate/", "..\\private/"])
@pytest.mark.parametrize("named", [False, True])
def test_a_container_does_not_lead_out_of_what_covers_it(
    web: WebServer, way: str, named: bool
) -> None:
    public = web.url + "public/"
    inner = VirtualChunkContainer(public + way, http_store(), "c" if named else None)
    storage = hostile("vcc://c/f" if named else public + way + "f", inner)
    refusal(storage, authorize_virtual_chunk_access={public: None})
    assert web.requests == []


def test_a_query_in_a_prefix_is_no_container(web: WebServer) -> None:
    prefix = web.url + "public/?file=/"
    storage = hostile(
        "vcc://c/f", VirtualChunkContainer(web.url + "public/", http_store(), "other")
    )
    with pytest.raises(InvalidInputError, match="more than a path"):
        Repository.open(storage, None, {prefix: None})
    resolver = VirtualResolver(
        {"c": VirtualChunkContainer(prefix, http_store(), "c")}, {web.url + "public/": None}
    )
    with pytest.raises(InvalidInputError, match="no virtual chunk container with the name"):
        resolver.fetch("vcc://c/f", 0, 4)
    assert web.requests == []


# -- endpoints ---------------------------------------------------------------------------
ENDPOINTS = ("{}", "{}/latest/meta-data/#", "{}/latest/meta-data?", "{}/a/../latest/meta-data")
ANONYMOUS = {
    "credential": s3_credentials(anonymous=True),
    "stored": None,
}


def stored_s3(url: str, **options: Any) -> VirtualChunkContainer:
    """Describe a container as another client may have stored it, with no check."""
    made = S3Options(allow_http=True, **options)
    object.__setattr__(made, "endpoint_url", url)
    return VirtualChunkContainer("s3://public/", s3_store())._merge(
        VirtualChunkContainer("s3://public/", type(s3_store())(made))
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("how", ANONYMOUS)
@pytest.mark.parametrize("location", ["s3://public/f", "vcc://n/f"])
def test_a_stored_endpoint_gets_no_request(
    web: WebServer, endpoint: str, how: str, location: str
) -> None:
    base = web.url.rstrip("/")
    container = stored_s3(endpoint.format(base), anonymous=how == "stored")
    container.name = "n"
    allowed = containers_credentials({"s3://public/": ANONYMOUS[how]})
    resolver = VirtualResolver({"c": container}, allowed, Trust(containers=False))
    with pytest.raises(InvalidInputError, match=r"config=Repository\.fetch_config") as caught:
        resolver.fetch(location, 0, 16)
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    assert web.requests == []


def test_a_stored_endpoint_is_used_with_the_word_of_the_caller(web: WebServer) -> None:
    store = s3_store(endpoint_url=web.url.rstrip("/"), allow_http=True, anonymous=True)
    storage = hostile("s3://public/f", VirtualChunkContainer("s3://public/", store))
    refusal(storage, authorize_virtual_chunk_access={"s3://public/": None})
    mine = Repository.fetch_config(storage)
    assert read(Repository.open(storage, mine, {"s3://public/": None})) == DATA
    for _, headers in web.requests:
        assert "authorization" not in headers


@pytest.mark.parametrize("endpoint", ENDPOINTS[1:])
@pytest.mark.parametrize("way", ["#", "?x", "/%2e%2e/x", "/./x", "//x", "/a b", "\\x"])
def test_endpoints_are_hosts_and_plain_paths(endpoint: str, way: str) -> None:
    for url in (endpoint.format("http://h"), f"http://h{way}"):
        container = stored_s3(url, anonymous=True)
        mine = VirtualResolver({"c": container}, {"s3://public/": None})
        with pytest.raises(InvalidInputError, match=r"endpoint_url|without user"):
            mine.fetch("s3://public/f", 0, 4)


# -- options of web servers ----------------------------------------------------------------
HEADERS = (
    "Host",
    "Connection",
    "Keep-Alive",
    "Transfer-Encoding",
    "TE",
    "Trailer",
    "Upgrade",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Content-Length",
    "Expect",
    "Range",
    "If-Match",
    "Cookie",
    "Authorization",
    "X-Forwarded-For",
    "X-Original-URL",
    "X-HTTP-Method-Override",
    "Accept-Encoding",
)
OPTIONS = ("allow_invalid_certificates", "proxy_url", "root_certificate", "default_headers", "x")


@pytest.mark.parametrize(
    "store",
    [
        *(http_store(headers={name: "internal.example"}) for name in HEADERS),
        *(http_store(headers={name.lower(): "x"}) for name in HEADERS),
        *(http_store({name: "true"}) for name in OPTIONS),
        *(http_store({name.upper(): "true"}) for name in OPTIONS),
    ],
    ids=repr,
)
def test_a_repository_does_not_speak_for_the_caller(web: WebServer, store: Any) -> None:
    container = VirtualChunkContainer(web.url + "public/", store)
    resolver = VirtualResolver(
        {"c": container}, {container.url_prefix: None}, Trust(containers=False)
    )
    with pytest.raises(InvalidInputError, match="only you may"):
        resolver.fetch(container.url_prefix + "f", 0, 4)
    assert web.requests == []


def test_what_a_repository_may_say_to_a_web_server(web: WebServer) -> None:
    store = http_store({"timeout": "5s", "user_agent": "me/1"}, {"Accept-Language": "de"})
    container = VirtualChunkContainer(web.url + "public/", store)
    storage = hostile(web.url + "public/f", container)
    assert read(Repository.open(storage, None, {container.url_prefix: None})) == DATA
    [(_, headers)] = web.requests
    assert (headers["user-agent"], headers["accept-language"]) == ("me/1", "de")


# -- patience ------------------------------------------------------------------------------
GREEDY = StorageSettings(
    retries=StorageRetriesSettings(
        max_tries=60_000, initial_backoff_ms=3_600_000, max_backoff_ms=3_600_000
    ),
    timeouts=StorageTimeoutSettings(
        connect_timeout_ms=2**31, read_timeout_ms=2**31, operation_timeout_ms=2**31
    ),
)


def test_a_repository_is_as_patient_as_its_reader(web: WebServer) -> None:
    """Stored retries are capped by what the caller passed, and by the defaults."""
    container = VirtualChunkContainer(web.url + "public/", http_store())
    storage = hostile(web.url + "public/f", container)
    repository = Repository.open(storage, RepositoryConfig(storage=GREEDY))
    repository.save_config()
    mine = StorageSettings(
        retries=StorageRetriesSettings(max_tries=3, initial_backoff_ms=1, max_backoff_ms=1)
    )
    for config, tries in ((RepositoryConfig(storage=mine), 3), (None, 10)):
        opened = Repository.open(storage, config, {container.url_prefix: None})
        virtual = opened.readonly_session("main").virtual
        effective = virtual.resolve(web.url + "public/f")[0]._effective
        assert effective.retries.max_tries == tries
        assert effective.retries.max_backoff_ms <= 180_000
        assert effective.timeouts.read_timeout_ms in (None, 60_000)
        assert effective.timeouts.operation_timeout_ms in (None, 180_000)
    web.failures[:] = [503] * 100
    opened = Repository.open(storage, RepositoryConfig(storage=mine), {container.url_prefix: None})
    refused = opened.readonly_session("main").virtual
    with pytest.raises(Exception, match="503"):
        refused.fetch(web.url + "public/f", 0, 4)
    assert len(web.requests) == 3


@pytest.mark.parametrize(
    ("prefix", "store", "credential"),
    [
        ("https://h/", http_store({"timeout": "90h", "read_timeout": "61s"}), None),
        ("s3://b/", s3_store(network_stream_timeout_seconds=0), s3_credentials(anonymous=True)),
        (
            "gs://b/",
            gcs_store({"timeout": "9999999s"}),
            gcs_credentials(anonymous=True),
        ),
        (
            "az://b/",
            azure_store(account="a", config={"read_timeout": "1 day"}),
            azure_credentials(anonymous=True),
        ),
    ],
)
def test_stored_waits_are_cut(prefix: str, store: Any, credential: Any) -> None:
    from icechunk.virtual.container_trust import patient

    cut = patient(store, Trust(containers=False))
    assert patient(store, Trust()) is store
    for name, value in (getattr(cut, "opts", None) or {}).items():
        assert value == "60s" or name in ("account",)
    options = getattr(cut, "options", None)
    if options is not None:
        assert options.network_stream_timeout_seconds == 60
    resolver = VirtualResolver(
        {"c": VirtualChunkContainer(prefix, store)},
        containers_credentials({prefix: credential}),
        Trust(containers=False),
    )
    assert resolver.resolve(prefix + "f")[1] == "f"


# -- redirects -----------------------------------------------------------------------------
INSIDE = (
    "http://127.0.0.1/x",
    "http://localhost/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/x",
    "http://192.168.1.1:8080/x",
    "http://[::1]/x",
    "http://[fd00::1]/x",
    "http://[::ffff:127.0.0.1]/x",
    "http://0/x",
    "http://127.1/x",
    "http://2130706433/x",
    "http://0x7f000001/x",
    "http://metadata.google.internal/x",
    "http://x.localhost/x",
)


@pytest.mark.parametrize("target", INSIDE)
def test_the_world_does_not_redirect_into_a_private_network(target: str) -> None:
    outside = http_storage("http://data.example.org/r", follow_redirects=True)
    inside = http_storage("http://127.0.0.1:1/r", follow_redirects=True)
    for storage in (outside, pickle.loads(pickle.dumps(outside))):
        assert not storage._may_follow(target)
        assert storage._may_follow("http://mirror.example.org/r/x")
        for other in (
            "file:///etc/passwd",
            "ftp://mirror.example.org/x",
            "s3://b/x",
            "",
            "http://",
        ):
            assert not storage._may_follow(other)
    assert inside._may_follow(target)


def test_headers_stay_with_their_server(web: WebServer) -> None:
    """Also those of a user and a signature in the URL, where redirects lead elsewhere."""
    with serving() as other:
        other.files["/f"] = DATA
        web.redirects["/r/f"] = other.url + "f"
        place = f"http://me:SEKRET@{web.url.removeprefix('http://')}r?sig=SEKRET"
        storage = http_storage(place, headers={"X-Token": "SEKRET"}, follow_redirects=True)
        assert storage.get("f").data == DATA
        assert "SEKRET" in str(web.requests)
        assert "SEKRET" not in str(other.requests)
        refused = http_storage(place, headers={"X-Token": "SEKRET"})
        with pytest.raises(StorageError, match="follow_redirects"):
            refused.get("f")
        assert len(other.requests) == 1
