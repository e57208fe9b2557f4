"""What opens doors is shown to nobody: not in a repr, a log line, a stored byte or an error."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import zarr

from icechunk import (
    AzureRefreshableCredential,
    GcsBearerCredential,
    Repository,
    RepositoryConfig,
    S3StaticCredentials,
    StorageRetriesSettings,
    StorageSettings,
    VirtualChunkContainer,
    azure_credentials,
    azure_storage,
    azure_store,
    containers_credentials,
    gcs_credentials,
    gcs_storage,
    gcs_store,
    http_store,
    s3_credentials,
    s3_storage,
    s3_store,
)
from icechunk.errors import IcechunkError, InvalidInputError
from icechunk.storage import MemoryStorage, Storage, http_storage
from tests.servers import ObjectServer

#: Base64, which keys of Azure must be.
SECRET = "TWFya2VyTWFya2VyTWFya2Vy"
SOON = datetime.now(UTC) + timedelta(hours=1)


def s3_pair() -> S3StaticCredentials:
    return S3StaticCredentials(SECRET, SECRET, SECRET, SOON)


def gcs_token() -> GcsBearerCredential:
    return GcsBearerCredential(SECRET, expires_after=SOON)


def azure_token() -> Any:
    return AzureRefreshableCredential.SasToken(f"sig={SECRET}", expires_after=SOON)


PAIR = {"access_key_id": SECRET, "secret_access_key": SECRET, "session_token": SECRET}
S3: list[dict[str, Any]] = [
    PAIR,
    {"get_credentials": s3_pair},
    {"get_credentials": s3_pair, "scatter_initial_credentials": True},
]
GCS: list[dict[str, Any]] = [
    {"bearer_token": SECRET},
    {"get_credentials": gcs_token},
    {"get_credentials": gcs_token, "scatter_initial_credentials": True},
]
AZURE: list[dict[str, Any]] = [
    {"access_key": SECRET},
    {"sas_token": f"sig={SECRET}"},
    {"bearer_token": SECRET},
    {"get_credentials": azure_token},
    {"get_credentials": azure_token, "scatter_initial_credentials": True},
]
ALLOWED = containers_credentials(
    {
        "s3://bucket/": s3_credentials(**S3[2]),
        "gs://bucket/": gcs_credentials(**GCS[2]),
        "az://bucket/": azure_credentials(**AZURE[4]),
    }
)


def containers() -> RepositoryConfig:
    config = RepositoryConfig()
    for prefix, store in (
        ("s3://bucket/", s3_store(region="us-east-1")),
        ("gs://bucket/", gcs_store()),
        ("az://bucket/", azure_store(account="account")),
    ):
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
    return config


def storages(url: str) -> Iterator[Storage]:
    """Yield a storage for each way to authenticate, at a server of ours."""
    for arguments in S3:
        yield s3_storage(
            bucket="bucket", prefix="p", endpoint_url=url, allow_http=True, region="r", **arguments
        )
    for arguments in GCS:
        config = {"base_url": url, "allow_http": "true"}
        yield gcs_storage(bucket="bucket", prefix="p", config=config, **arguments)
    for arguments in AZURE:
        config = {"endpoint": url, "allow_http": "true"}
        yield azure_storage(
            account="account", container="bucket", prefix="p", config=config, **arguments
        )
    server = url.removeprefix("http://")
    yield http_storage(f"http://user:{SECRET}@{server}/x", headers={"authorization": SECRET})


def shown(value: Any) -> str:
    texts = [repr(value), str(value), f"{[value]} { ({0: value}) }", f"{value}"]
    html = getattr(value, "_repr_html_", None)
    return " ".join([*texts, html() if html is not None else ""])


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text


def test_nothing_prints_or_stores_a_secret(
    lines: Callable[[], str], capfd: pytest.CaptureFixture[str]
) -> None:
    place = MemoryStorage()
    repository = Repository.create(place, containers(), ALLOWED)
    repository.save_config()
    session = repository.writable_session("main")
    store = session.store
    zarr.create_array(store, name="a", shape=3, chunks=1, dtype="u1", compressors=None)
    for i, prefix in enumerate(ALLOWED):
        store.set_virtual_ref(f"a/c/{i}", prefix + "f", offset=0, length=1)
    fork = session.fork()
    for value in (
        repository,
        session,
        fork,
        store,
        repository.config,
        repository.readonly_session("main"),
        repository._context.virtual,
        repository._recipe,
        repository._context,
    ):
        assert SECRET not in shown(value), type(value)
    session.commit("references")
    # no reader of the repository, and nobody who gets a change set, learns anything
    for meta in place.list():
        assert SECRET.encode() not in bytes(place.get(meta.key).data), meta.key
    assert SECRET not in str(repository.config.to_dict())
    assert SECRET.encode() not in fork.change_set_bytes()
    out = capfd.readouterr()
    assert SECRET not in lines() + out.out + out.err


def test_failing_requests_show_no_secret(
    object_server: ObjectServer, lines: Callable[[], str], capfd: pytest.CaptureFixture[str]
) -> None:
    once = StorageSettings(retries=StorageRetriesSettings(max_tries=1))
    for place in storages(object_server.url):
        assert SECRET not in shown(place)
        assert SECRET not in place.url
        quick = place.with_settings(once)
        for status in (400, 401, 403, 404, 500, 503):
            for call in (
                lambda: Repository.open(quick),  # noqa: B023 (called at once)
                lambda: quick.get("a", byte_range=(0, 5)),  # noqa: B023
                lambda: quick.put("a", b"x"),  # noqa: B023
                lambda: list(quick.list()),  # noqa: B023
            ):
                object_server.failures[:] = [status] * 4
                with pytest.raises(IcechunkError) as caught:
                    call()
                whole = "".join(traceback.format_exception(caught.value))
                assert SECRET not in whole + repr(caught.value) + str(caught.value.args)
    out = capfd.readouterr()
    assert SECRET not in lines() + out.out + out.err


def test_pickles_carry_what_the_user_gave_and_not_what_was_fetched() -> None:
    for arguments, carried in zip(S3, (True, False, True), strict=True):
        place = s3_storage(bucket="bucket", prefix="p", region="r", **arguments)
        assert (SECRET.encode() in pickle.dumps(place)) == carried


@pytest.mark.parametrize(
    "store",
    [
        gcs_store({"google_service_account_key": SECRET}),
        azure_store(account="a", config={"azure_storage_sas_key": SECRET}),
        http_store(headers={"Authorization": SECRET}),
    ],
)
def test_secrets_in_containers_are_neither_shown_nor_stored(store: Any) -> None:
    scheme = {"Gcs": "gs", "Azure": "az", "Http": "https"}[type(store).__name__]
    container = VirtualChunkContainer(f"{scheme}://bucket/", store)
    config = RepositoryConfig()
    config.set_virtual_chunk_container(container)
    assert SECRET not in shown(store) + shown(container) + shown(config)
    place = MemoryStorage()
    with pytest.raises(InvalidInputError) as caught:
        Repository.create(place, config)
    assert SECRET not in str(caught.value)
    assert list(place.list()) == []


def test_every_credential_class_hides_its_fields() -> None:
    made = [s3_credentials(**a) for a in S3]
    made += [gcs_credentials(**a) for a in [*GCS, {"service_account_key": SECRET}]]  # type: ignore[misc]
    made += [azure_credentials(**a) for a in AZURE]  # type: ignore[misc]
    for credential in [*made, *ALLOWED.values(), s3_pair(), gcs_token(), azure_token()]:
        assert SECRET not in shown(credential)
        assert SECRET not in shown(pickle.loads(pickle.dumps(credential)))
