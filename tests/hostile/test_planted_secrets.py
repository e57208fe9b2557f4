"""A secret in every place that takes one, or that somebody puts one into by mistake.

Every call is made to fail where it can. What came out is searched: the error and all that
led to it, what was printed, logged and warned, every `repr`, and every byte that is stored.
"""

from __future__ import annotations

import json
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk as ic
from icechunk import (
    MemoryStorage,
    Repository,
    RepositoryConfig,
    S3Options,
    StorageRetriesSettings,
    StorageSettings,
    VirtualChunkContainer,
    VirtualChunkSpec,
    containers_credentials,
    http_storage,
    redirect_storage,
    s3_storage,
    storage_from_url,
    suggest_containers,
)
from icechunk.errors import IcechunkError
from icechunk.kerchunk import import_references
from tests.web_server import WebServer, serving

SECRET = "SEKRET0000"
#: In forms that a password may have.
PASSWORDS = (
    SECRET,
    f"/{SECRET}",
    f"{SECRET}/x",
    f"a/{SECRET}",
    f"a?{SECRET}",
    f"a#{SECRET}",
    f"a@{SECRET}",
    f"a:{SECRET}",
    f"1/{SECRET[1:]}@{SECRET}",
    f"%2F{SECRET}",
    f"\\{SECRET}",
)
QUERIES = (
    f"X-Amz-Signature={SECRET}",
    f"sig={SECRET}",
    f"a=1&token={SECRET}",
    f"X-Goog-Credential={SECRET}",
    f"key={SECRET}",
    f"Key-Pair-Id={SECRET}",
    f"subscription-key={SECRET}",
)
#: Inside of headers, tokens and keys.
ODD = (f"{SECRET}\n", f"{SECRET}\r\nX: y", f"{SECRET}\0", f"{SECRET}é\n", f"{SECRET}☃")


@pytest.fixture(autouse=True)
def searched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """Search what every test prints, logs and stores."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
    out = capfd.readouterr()
    assert SECRET not in out.out + out.err + caplog.text
    assert SECRET not in "".join(str(w.message) for w in warned)
    for path in tmp_path.rglob("*"):
        assert SECRET not in path.name
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def shown(value: Any) -> str:
    html = getattr(value, "_repr_html_", None)
    return f"{value!r} {value} {[value]} {html() if html else ''}"


def hidden(call: Callable[[], Any], *, fails: bool | None = True) -> Any:
    """Make a call; neither its result nor its error shows the secret."""
    try:
        result = call()
    except IcechunkError as error:
        text = "".join(traceback.format_exception(error))
        # the lines of this file that are in the traceback hold no secret, only names
        assert SECRET not in text, text
        assert SECRET not in repr(error) + str(error) + str(error.args)
        assert SECRET.encode() not in pickle.dumps(error)
        assert fails is not False, text
        return None
    assert fails is not True
    assert SECRET not in shown(result)
    return result


# -- URLs of storages ----------------------------------------------------------------------
@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["htps", "s3", "gs", "az", "r2", "tigris", "foo", "S3"])
def test_storages_whose_url_holds_keys(scheme: str, password: str) -> None:
    url = f"{scheme}://AKIA:{password}@bucket/p"
    for call in (storage_from_url, Repository.open, Repository.create, Repository.exists):
        hidden(lambda c=call: c(url))


@pytest.mark.parametrize("password", PASSWORDS)
def test_web_servers_whose_url_holds_a_password(password: str) -> None:
    once = StorageSettings(retries=StorageRetriesSettings(max_tries=1))
    for url in (f"http://me:{password}@127.0.0.1:9/r", f"http://me:{password}@127.0.0.1:9/r?x=1"):
        storage = hidden(lambda u=url: http_storage(u), fails=None)
        if storage is not None:
            assert SECRET not in storage.url
            hidden(lambda s=storage: s.with_settings(once).get("repo"))
        hidden(lambda u=url: redirect_storage(u))
    hidden(lambda: http_storage(f"http://me:{password}@127.0.0.1:port/r"))
    hidden(lambda: http_storage(f"http://me:{password}@127.0.0.1:99999999/r"))
    hidden(lambda: http_storage(f"http://me:{password}@[::1/r"))
    hidden(lambda: http_storage(f"me:{password}@host/r"))


@pytest.mark.parametrize("query", [*QUERIES, *(f"sig={odd}" for odd in ODD), f"sig={SECRET} x"])
def test_web_servers_whose_url_holds_a_signature(query: str) -> None:
    once = StorageSettings(retries=StorageRetriesSettings(max_tries=1))
    storage = hidden(lambda: http_storage(f"http://127.0.0.1:9/r?{query}"), fails=None)
    if storage is not None:
        hidden(lambda: storage.with_settings(once).get("repo"))
        hidden(lambda: Repository.open(storage.with_settings(once)))
    hidden(lambda: redirect_storage(f"http://127.0.0.1:9/r?{query}"))
    hidden(lambda: storage_from_url(f"s3://bucket/p?{query}"), fails=None)


@pytest.mark.parametrize(
    "bucket", [f"AKIA:{SECRET}@b", f"{SECRET}@b", f"b?sig={SECRET}", f"b#{SECRET}"]
)
def test_buckets_that_are_none(bucket: str) -> None:
    hidden(lambda: s3_storage(bucket=bucket, prefix="p", anonymous=True))
    hidden(lambda: ic.gcs_storage(bucket=bucket, prefix="p", anonymous=True))
    hidden(lambda: ic.azure_storage(account="a", container=bucket, prefix="p", anonymous=True))


ENDPOINTS = (
    *(f"u:{password}@host" for password in PASSWORDS),
    *(f"https://u:{password}@host/p" for password in PASSWORDS),
    *(f"https://host/p?{query}" for query in QUERIES),
    f"https://host/#{SECRET}",
)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoints_with_secrets(endpoint: str) -> None:
    hidden(lambda: S3Options(endpoint_url=endpoint))
    hidden(lambda: ic.s3_store(endpoint_url=endpoint))
    hidden(lambda: setattr(S3Options(), "endpoint_url", endpoint))
    hidden(lambda: s3_storage(bucket="b", prefix="p", endpoint_url=endpoint, anonymous=True))
    config = {"base_url": endpoint}
    hidden(lambda: ic.gcs_storage(bucket="b", prefix="p", anonymous=True, config=config))
    config = {"endpoint": endpoint}
    hidden(
        lambda: ic.azure_storage(
            account="a", container="b", prefix="p", anonymous=True, config=config
        )
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoints_that_other_clients_stored(endpoint: str) -> None:
    """They are read without what opens doors, and not stored again with it."""
    config = RepositoryConfig(
        virtual_chunk_containers={"s3://b/": VirtualChunkContainer("s3://b/", ic.s3_store())}
    )
    stored = config.to_dict()
    stored["virtual_chunk_containers"]["s3://b/"]["store"]["s3"]["endpoint_url"] = endpoint
    loaded = RepositoryConfig.from_dict(stored)
    assert SECRET not in shown(loaded) + json.dumps(loaded.to_dict())


# -- headers and tokens ------------------------------------------------------------------------
@pytest.mark.parametrize("value", ODD)
def test_headers_that_no_request_can_carry(value: str) -> None:
    for headers in ({"Authorization": f"Bearer {value}"}, {value: "x"}, {"": value}):
        hidden(lambda h=headers: http_storage("http://127.0.0.1:9/r", headers=h))
        for name in ("headers", "read_headers", "write_headers"):
            given: Any = {name: headers}
            hidden(lambda g=given: s3_storage(bucket="b", prefix="p", anonymous=True, **g))
    hidden(lambda: http_storage("http://127.0.0.1:9/r", {"user_agent": value}))


MAKERS: dict[str, Callable[[str], Any]] = {
    "s3 key id": lambda s: ic.s3_credentials(access_key_id=s, secret_access_key="x"),
    "s3 key": lambda s: ic.s3_credentials(access_key_id="x", secret_access_key=s),
    "s3 token": lambda s: ic.s3_credentials(
        access_key_id="x", secret_access_key="x", session_token=s
    ),
    "gcs token": lambda s: ic.gcs_credentials(bearer_token=s),
    "gcs bearer": lambda s: ic.GcsBearerCredential(s),
    "azure token": lambda s: ic.azure_credentials(bearer_token=s),
    "azure sas": lambda s: ic.azure_credentials(sas_token=s),
    "azure key": lambda s: ic.azure_credentials(access_key=s),
    "azure bearer": lambda s: ic.AzureRefreshableCredential.BearerToken(s),
    "s3 pair": lambda s: ic.S3StaticCredentials(s, s),
}


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("maker", MAKERS)
def test_tokens_that_no_request_can_carry(maker: str, value: str) -> None:
    hidden(lambda: MAKERS[maker](value))


@pytest.mark.parametrize("value", ["a\nb", "a\n", "\x7f"])
@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
)
def test_variables_that_no_request_can_carry(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(each, "x")
    monkeypatch.setenv(name, SECRET + value)
    error = None
    try:
        s3_storage(bucket="b", prefix="p", from_env=True)
    except IcechunkError as caught:
        error = caught
    assert error is not None
    assert name in str(error)
    assert SECRET not in str(error)


def leaky() -> Any:
    raise RuntimeError(f"https://u:{SECRET}@host/token?sig={SECRET} failed")


def test_functions_that_fail_to_fetch_credentials() -> None:
    for make in (ic.s3_credentials, ic.gcs_credentials, ic.azure_credentials):
        with pytest.raises(IcechunkError) as caught:
            make(get_credentials=leaky, scatter_initial_credentials=True)  # type: ignore[operator]
        assert SECRET not in str(caught.value)


# -- descriptions of stores ------------------------------------------------------------------
NAMES = (
    "X-Auth",
    "X-Access",
    "JWT",
    "X-Session",
    "sig",
    "subscription",
    "Authorization",
    "Cookie",
    "X-Api-Key",
    "anything",
)


@pytest.mark.parametrize("name", NAMES)
def test_containers_with_secret_headers_and_options(tmp_path: Path, name: str) -> None:
    stores: list[tuple[str, Any]] = [
        ("https://h/", ic.http_store(headers={name: SECRET})),
        ("https://h/", ic.http_store({name: SECRET})),
        ("gs://b/", ic.gcs_store({name: SECRET})),
        ("az://b/", ic.azure_store(account="a", config={name: SECRET})),
        ("https://h/", ic.http_store({"proxy_url": f"http://u:{SECRET}@p"})),
        ("gs://b/", ic.gcs_store({"default_headers": f"a: {SECRET}"})),
        ("gs://b/", ic.gcs_store({"base_url": f"https://u:{SECRET}@p"})),
    ]
    for i, (prefix, store) in enumerate(stores):
        container = VirtualChunkContainer(prefix, store)
        config = RepositoryConfig()
        config.set_virtual_chunk_container(container)
        for value in (store, container, config):
            assert SECRET not in shown(value)
        hidden(lambda c=config, i=i: Repository.create(tmp_path / f"new{i}", c))
        repository = Repository.create(tmp_path / f"old{i}")
        opened = Repository.open(tmp_path / f"old{i}", config)
        assert SECRET not in shown(opened) + shown(opened.config)
        hidden(opened.save_config)
        assert repository is not None


@pytest.mark.parametrize("password", PASSWORDS)
def test_containers_whose_prefix_holds_a_password(tmp_path: Path, password: str) -> None:
    for prefix in (f"https://u:{password}@h/d/", f"https://h/d/?sig={SECRET}/"):
        container = VirtualChunkContainer(prefix, ic.http_store())
        config = RepositoryConfig()
        config.set_virtual_chunk_container(container)
        for value in (container, config):
            assert SECRET not in shown(value)
        hidden(lambda c=config: Repository.create(tmp_path / "r", c))
        hidden(lambda p=prefix: suggest_containers([p + "x", p + "y"], named=True), fails=None)
        hidden(lambda p=prefix: suggest_containers(p))
        hidden(lambda p=prefix: containers_credentials({p: 5}))  # type: ignore[dict-item]


# -- locations ---------------------------------------------------------------------------------
LOCATIONS = (
    *(f"https://u:{password}@h/d/x" for password in PASSWORDS),
    *(f"https://h/d/x?{query}" for query in QUERIES),
    f"s3://AKIA:{SECRET}@b/x",
    f"https://h/d/x#access_token={SECRET}",
    f"https://h/d/x?a=1#sig={SECRET}",
    f"https://{SECRET}@h/d/x",
    f"vcc://u:{SECRET}@h/x",
)


def repository_with_an_array(place: Any) -> Repository:
    config = RepositoryConfig()
    config.set_virtual_chunk_container(
        VirtualChunkContainer("https://h/d/", ic.http_store(), "named")
    )
    repository = Repository.create(place, config)
    with repository.transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=4, chunks=4, dtype="u1", compressors=None)
    return repository


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("validate", [False, True])
def test_locations_with_secrets_are_not_stored(
    tmp_path: Path, location: str, validate: bool
) -> None:
    repository = repository_with_an_array(tmp_path / "r")
    session = repository.writable_session("main")
    store = session.store
    hidden(
        lambda: store.set_virtual_ref(
            "a/c/0", location, offset=0, length=4, validate_container=validate
        )
    )
    spec = VirtualChunkSpec([0], location, 0, 4)
    assert SECRET not in shown(spec)
    hidden(lambda: store.set_virtual_refs("a", [spec], validate_containers=validate))
    one = np.asarray([4], np.uint64)
    hidden(
        lambda: store.set_virtual_refs_arr(
            "a", (1,), [location], one, one, validate_containers=validate
        )
    )
    array = '{"zarr_format":2,"shape":[4],"chunks":[4],"dtype":"|u1","compressor":null,'
    array += '"filters":null,"fill_value":0,"order":"C"}'
    for reference in ([location, 0, 4], [location], [location, 1], [location, -1, 4]):
        refs = {".zgroup": '{"zarr_format":2}', "b/.zarray": array, "b/0": reference}
        hidden(lambda r=refs: import_references(r, session, validate_containers=validate))
    for url in (f"{location}/{{{{x}}}}", "{{ u }}"):
        refs = {".zgroup": '{"zarr_format":2}', "b/.zarray": array, "b/0": [url, 0, 4]}
        whole = {"version": 1, "templates": {"u": location}, "refs": refs}
        hidden(lambda w=whole: import_references(w, session, validate_containers=validate))
    assert session.all_virtual_chunk_locations() == []
    assert not session.has_uncommitted_changes


@pytest.mark.parametrize("location", LOCATIONS)
def test_locations_with_secrets_that_others_stored(location: str) -> None:
    """They are looked for as they are, and not shown."""
    repository = repository_with_an_array(MemoryStorage())
    virtual = repository.readonly_session("main").virtual
    for call in (
        lambda: virtual.fetch(location, 0, 4),
        lambda: virtual.validate(location),
        lambda: virtual.resolve(location),
    ):
        hidden(call, fails=None)
    opened = Repository.open(
        repository.storage, None, {"https://h/d/": None, f"https://u:{SECRET}@h/": None}
    )
    hidden(lambda: opened.readonly_session("main").virtual.resolve(location), fails=None)
    assert SECRET not in shown(opened.readonly_session("main").virtual)


def test_references_behind_a_signed_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icechunk.storage.guarded_http.time.sleep", lambda seconds: None)
    session = repository_with_an_array(tmp_path / "r").writable_session("main")
    for url in (
        f"http://u:{SECRET}@127.0.0.1:9/refs.json",
        f"http://127.0.0.1:9/refs.json?sig={SECRET}",
    ):
        hidden(lambda u=url: import_references(u, session))


def test_archives_behind_a_signed_url(tmp_path: Path) -> None:
    from icechunk_dask import virtualize

    repository = Repository.create(tmp_path / "r")
    for url in (f"http://u:{SECRET}@127.0.0.1:9/x.nc", f"http://127.0.0.1:9/x.nc?sig={SECRET}"):
        hidden(lambda u=url: virtualize([u], repository, concat_dims=["t"]))


# -- answers -----------------------------------------------------------------------------------
@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving() as server:
        server.files["/d/f"] = b"data"
        yield server


def test_redirects_with_secrets(web: WebServer) -> None:
    once = StorageSettings(retries=StorageRetriesSettings(max_tries=1))
    for target in (
        f"https://u:{SECRET}@elsewhere/x",
        f"https://elsewhere/x?sig={SECRET}",
        f"/x?sig={SECRET} y",
        f"https://[{SECRET}",
    ):
        web.redirects["/d/r"] = web.redirects["/r"] = target
        hidden(lambda: http_storage(web.url + "d").with_settings(once).get("r"))
        hidden(lambda: redirect_storage(web.url + "r"))


def test_answers_that_echo(web: WebServer) -> None:
    once = StorageSettings(retries=StorageRetriesSettings(max_tries=1))
    place = f"http://me:{SECRET}@{web.url.removeprefix('http://')}d?sig={SECRET}"
    storage = http_storage(place, headers={"X-Token": SECRET}).with_settings(once)
    for status in (400, 401, 403, 404, 412, 418, 429, 500, 503):
        web.failures[:] = [status] * 3
        hidden(lambda: storage.get("f"))
        hidden(lambda: Repository.open(storage))
    assert SECRET not in shown(storage)


# -- graphs and notebooks ------------------------------------------------------------------------
def test_graphs_of_what_lies_behind_a_secret(web: WebServer) -> None:
    """Keys and the values of tasks are what a dashboard shows, and logs of workers."""
    place = MemoryStorage()
    repository = Repository.create(place, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="values") as store:
        options: Any = {"dimension_names": ["x"]}
        zarr.create_array(store, name="a", shape=4, chunks=2, dtype="u1", **options)[:] = 1
    for meta in place.list():
        web.files[f"/r/{meta.key}"] = bytes(place.get(meta.key).data)
    url = f"http://me:{SECRET}@{web.url.removeprefix('http://')}r?sig={SECRET}"
    storage = http_storage(url, headers={"X-Token": SECRET})
    with xr.open_dataset(storage, engine="icechunk", chunks={"x": 2}) as dataset:
        graph = dict(dataset["a"].data.__dask_graph__())
        assert len(graph) > 2
        for text in (shown(dataset), shown(dataset["a"]), str(list(graph)), repr(graph)):
            assert SECRET not in text
        assert SECRET not in str(dataset.encoding) + str(dataset["a"].encoding)
        assert dataset["a"].values.tolist() == [1] * 4
