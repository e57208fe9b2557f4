"""Credentials: secrets stay out of sight, and refreshable ones are fetched once."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st

from icechunk import credentials as ic
from icechunk.errors import ErrorKind, InvalidInputError

# longer than what a repr may show of a key id, and not part of any class name
SECRETS = st.text(st.characters(min_codepoint=0x30, max_codepoint=0x39), min_size=12)


def aware(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def every_secret(secret: str) -> list[Any]:
    """Return one credential of each class that holds a secret."""
    return [
        ic.S3StaticCredentials(secret, secret, secret, aware(60)),
        ic.s3_static_credentials(access_key_id=secret, secret_access_key=secret),
        ic.S3Credentials.Refreshable(secret.encode(), ic.S3StaticCredentials(secret, secret)),
        ic.GcsBearerCredential(secret),
        ic.GcsStaticCredentials.ServiceAccountKey(secret),
        ic.gcs_credentials(bearer_token=secret),
        ic.GcsCredentials.Refreshable(secret.encode(), ic.GcsBearerCredential(secret)),
        ic.AzureRefreshableCredential.AccessKey(secret),
        ic.AzureRefreshableCredential.SasToken(secret),
        ic.AzureRefreshableCredential.BearerToken(secret),
        ic.azure_credentials(access_key=secret),
        ic.azure_credentials(sas_token=secret),
        ic.azure_credentials(bearer_token=secret),
        ic.AzureCredentials.Refreshable(
            secret.encode(), ic.AzureRefreshableCredential.SasToken(secret)
        ),
        *ic.containers_credentials(
            {
                "s3://b/": ic.S3Credentials(secret, secret),
                "gs://b/": ic.gcs_credentials(service_account_key=secret),
                "az://b/": ic.azure_credentials(sas_token=secret),
            }
        ).values(),
    ]


@given(SECRETS)
def test_no_secret_is_printed(secret: str) -> None:
    for credential in every_secret(secret):
        for text in (repr(credential), str(credential), f"{[credential]}"):
            assert secret not in text
            assert "***" in text


@given(SECRETS)
def test_credentials_are_values(secret: str) -> None:
    for credential in every_secret(secret):
        copy = pickle.loads(pickle.dumps(credential))
        assert copy == credential
        assert hash(copy) == hash(credential)


def test_errors_do_not_print_secrets() -> None:
    with pytest.raises(InvalidInputError, match="secret_access_key") as caught:
        ic.S3StaticCredentials("id", b"hunter2-hunter2")  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("credential", "family"),
    [
        (ic.s3_credentials(), ic.S3Credentials),
        (ic.s3_credentials(anonymous=True), ic.S3Credentials),
        (ic.gcs_credentials(bearer_token="t"), ic.GcsCredentials),
        (ic.gcs_static_credentials(bearer_token="t"), ic.GcsStaticCredentials),
        (ic.azure_credentials(anonymous=True), ic.AzureCredentials),
        (ic.AzureRefreshableCredential.SasToken("t"), ic.AzureRefreshableCredential),
        (ic.LocalFileSystemAccess, ic.Credentials),
    ],
)
def test_variants_belong_to_their_family(credential: object, family: type) -> None:
    families = [
        ic.S3Credentials,
        ic.GcsCredentials,
        ic.GcsStaticCredentials,
        ic.AzureCredentials,
        ic.AzureStaticCredentials,
        ic.AzureRefreshableCredential,
        ic.Credentials,
    ]
    assert [f for f in families if isinstance(credential, f)] == [family]


# -- refreshing ------------------------------------------------------------------------
class Provider:
    """Hands out numbered credentials that live for some seconds."""

    lock = threading.Lock()
    calls = 0
    lifetime: float | None = None
    #: Where a second call at the same time would meet the first.
    meeting: threading.Barrier | None = None

    def __call__(self) -> ic.S3StaticCredentials:
        if Provider.meeting is not None:
            with suppress(threading.BrokenBarrierError):
                Provider.meeting.wait(0.2)
        with Provider.lock:
            Provider.calls += 1
            end = None if Provider.lifetime is None else aware(Provider.lifetime)
            return ic.S3StaticCredentials(f"key-{Provider.calls}", "secret", None, end)


@pytest.fixture
def provider() -> Provider:
    Provider.calls = 0
    Provider.lifetime = None
    Provider.meeting = None
    return Provider()


def wrong_type() -> int:
    return 3


def failing() -> ic.S3StaticCredentials:
    raise RuntimeError("the vault is closed")


class Unable:
    def __call__(self) -> ic.S3StaticCredentials:
        raise OSError("no vault")


@pytest.mark.parametrize(("lifetime", "calls"), [(None, 1), (3600, 1), (-1, 5), (5, 5)])
def test_credentials_are_fetched_again_only_when_they_end(
    provider: Provider, lifetime: float | None, calls: int
) -> None:
    # 5 s are less than the margin that keeps a request under way from failing
    Provider.lifetime = lifetime
    refreshable = ic.s3_refreshable_credentials(provider)
    assert Provider.calls == 0
    got = [refreshable.get().access_key_id for _ in range(5)]
    assert Provider.calls == calls
    assert got[-1] == f"key-{calls}"


def test_threads_share_one_fetch(provider: Provider) -> None:
    refreshable = ic.s3_refreshable_credentials(provider)
    Provider.meeting = threading.Barrier(2)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: refreshable.get().access_key_id, range(8)))
    assert got == ["key-1"] * 8
    assert Provider.calls == 1


def test_what_was_fetched_does_not_travel(provider: Provider) -> None:
    refreshable = ic.s3_refreshable_credentials(provider)
    assert refreshable.get().access_key_id == "key-1"
    assert b"key-1" not in pickle.dumps(refreshable)
    assert pickle.loads(pickle.dumps(refreshable)).get().access_key_id == "key-2"


def test_initial_credentials_travel_when_asked(provider: Provider) -> None:
    refreshable = ic.s3_refreshable_credentials(provider, scatter_initial_credentials=True)
    copy = pickle.loads(pickle.dumps(refreshable))
    assert copy.get().access_key_id == "key-1"
    assert Provider.calls == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (wrong_type, "test_credentials.wrong_type, must return S3StaticCredentials, not int"),
        (failing, "test_credentials.failing, failed: RuntimeError: the vault is closed"),
        (Unable(), "test_credentials.Unable, failed: OSError: no vault"),
    ],
)
def test_a_function_that_does_not_deliver_is_named(function: Any, message: str) -> None:
    refreshable = ic.s3_refreshable_credentials(function)
    for call in (
        refreshable.get,
        lambda: ic.s3_refreshable_credentials(function, scatter_initial_credentials=True),
    ):
        with pytest.raises(InvalidInputError, match=message) as caught:
            call()
        assert caught.value.kind == ErrorKind.INVALID_CREDENTIALS


def test_a_function_that_cannot_be_pickled() -> None:
    with pytest.raises(InvalidInputError, match="top level"):
        ic.s3_refreshable_credentials(lambda: ic.S3StaticCredentials("a", "b"))


def test_a_function_that_cannot_be_loaded() -> None:
    with pytest.raises(InvalidInputError, match="importable"):
        ic.S3Credentials.Refreshable(b"cno_such_module\nf\n.").get()


# -- constructors ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, ic.S3Credentials.FromEnv),
        ({"from_env": True}, ic.S3Credentials.FromEnv),
        ({"anonymous": False}, ic.S3Credentials.FromEnv),
        ({"anonymous": True, "from_env": False}, ic.S3Credentials.Anonymous),
        ({"access_key_id": "a", "secret_access_key": "b"}, ic.S3Credentials.Static),
        ({"get_credentials": wrong_type}, ic.S3Credentials.Refreshable),
    ],
)
def test_s3_credentials(arguments: dict[str, Any], kind: type) -> None:
    assert type(ic.s3_credentials(**arguments)) is kind


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (ic.s3_credentials, {"anonymous": True, "from_env": True}, "anonymous and from_env"),
        (ic.s3_credentials, {"access_key_id": "a"}, "secret_access_key must be given"),
        (ic.s3_credentials, {"session_token": "a"}, "access_key_id and secret_access_key"),
        (ic.s3_credentials, {"access_key_id": "", "anonymous": True}, "exclude each other"),
        (ic.s3_credentials, {"get_credentials": wrong_type, "expires_after": aware(1)}, "exclude"),
        (ic.gcs_credentials, {"bearer_token": "", "anonymous": True}, "exclude each other"),
        (ic.gcs_credentials, {"bearer_token": "a", "service_account_key": "b"}, "exclude"),
        (ic.gcs_static_credentials, {}, "pass service_account_file"),
        (ic.azure_credentials, {"access_key": "a", "sas_token": "b"}, "exclude each other"),
        (ic.azure_static_credentials, {}, "pass access_key"),
        (ic.S3Credentials.Static, {"credentials": "a"}, "must be S3StaticCredentials"),
        (ic.Credentials.S3, {"credentials": ic.gcs_credentials()}, "must be S3Credentials"),
        (ic.containers_credentials, {"m": {"s3://b/": 3}}, "s3://b/: int"),
        (
            ic.S3StaticCredentials,
            {
                "access_key_id": "a",
                "secret_access_key": "b",
                "expires_after": datetime(2030, 1, 1),
            },
            "time zone",
        ),
    ],
)
def test_contradictions_are_named(function: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        function(**arguments)
    assert caught.value.kind == ErrorKind.INVALID_CREDENTIALS


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"service_account_file": "f"}, ic.GcsStaticCredentials.ServiceAccount),
        ({"service_account_key": "k"}, ic.GcsStaticCredentials.ServiceAccountKey),
        ({"application_credentials": "f"}, ic.GcsStaticCredentials.ApplicationCredentials),
        ({"bearer_token": "t"}, ic.GcsStaticCredentials.BearerToken),
    ],
)
def test_gcs_credentials(arguments: dict[str, Any], kind: type) -> None:
    credential = ic.gcs_credentials(**arguments)
    assert isinstance(credential, ic.GcsCredentials.Static)
    assert type(credential.credentials) is kind


def test_containers_credentials_wrap_each_family() -> None:
    wrapped = ic.Credentials.S3(ic.s3_credentials(anonymous=True))
    assert ic.containers_credentials(
        {
            "s3://a/": ic.s3_credentials(anonymous=True),
            "s3://b/": wrapped,
            "gs://c/": ic.gcs_credentials(),
            "az://d/": ic.azure_credentials(),
            "file:///e/": ic.LocalFileSystemAccess,
            "https://f/": ic.HttpAccess,
            "s3://g/": None,
        }
    ) == {
        "s3://a/": wrapped,
        "s3://b/": wrapped,
        "gs://c/": ic.Credentials.Gcs(ic.GcsCredentials.FromEnv()),
        "az://d/": ic.Credentials.Azure(ic.AzureCredentials.FromEnv()),
        "file:///e/": ic.LocalFileSystemAccess,
        "https://f/": ic.HttpAccess,
        "s3://g/": None,
    }
