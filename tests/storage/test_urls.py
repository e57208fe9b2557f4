from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import icechunk.storage
from icechunk.credentials import azure_credentials, gcs_credentials, s3_credentials
from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.storage import (
    LocalStorage,
    ObjectStorage,
    azure_storage,
    gcs_storage,
    hf_storage,
    r2_storage,
    s3_object_store_storage,
    s3_storage,
    storage_from_url,
)
from icechunk.storage.places import AzurePlace, GcsPlace, S3Place


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "options", "shown"),
    [
        ("s3://bucket", {}, "s3://bucket"),
        ("s3://bucket/", {}, "s3://bucket"),
        ("S3://bucket/a/b/", {"region": "eu-west-1"}, "s3://bucket/a/b"),
        ("s3://bucket/a?b#c%20", {"anonymous": True}, "s3://bucket/a?b#c%20"),
        ("s3://bucket/a", {"credentials": s3_credentials(anonymous=True)}, "s3://bucket/a"),
        ("gs://bucket/a", {"anonymous": True}, "gs://bucket/a"),
        ("gcs://bucket/a", {"bearer_token": "t"}, "gs://bucket/a"),
        ("gs://bucket/a", {"credentials": gcs_credentials(anonymous=True)}, "gs://bucket/a"),
        ("az://container/a", {"account": "me", "anonymous": True}, "az://container/a"),
        ("azure://container/a", {"account": "me", "sas_token": "s=1"}, "az://container/a"),
        ("abfs://container/a", {"account": "me", "access_key": "c2s="}, "az://container/a"),
        (
            "abfss://container@me.dfs.core.windows.net/a",
            {"credentials": azure_credentials(anonymous=True)},
            "az://container/a",
        ),
        ("az://container/a", {"config": {"account": "me"}, "anonymous": True}, "az://container/a"),
        ("r2://bucket/a", {"account_id": "me", "anonymous": True}, "s3://bucket/a"),
        ("tigris://bucket/a", {"region": "iad", "anonymous": True}, "s3://bucket/a"),
        ("http://host:81/a/", {"headers": {"a": "b"}}, "http://host:81/a"),
        ("https://host/a", {"opts": {"timeout": "5s"}}, "https://host/a"),
        ("http+icechunk://host/a", {}, "http://host/a"),
        ("memory://here", {}, "memory://here"),
        ("file:///a/b", {}, "file:///a/b"),
        ("file://localhost/a%20b", {}, "file:///a%20b"),
        ("/a/b", {}, "file:///a/b"),
        (Path("/a/b"), {}, "file:///a/b"),
    ],
)
def test_urls(url: Any, options: dict[str, Any], shown: str) -> None:
    assert storage_from_url(url, **options).url == shown


def test_a_path_is_taken_as_it_is() -> None:
    storage = storage_from_url("/a%20b/c:d")
    assert isinstance(storage, LocalStorage)
    assert storage.path == "/a%20b/c:d"


def test_the_account_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "az://container/a: pass account=.* or set AZURE_STORAGE_ACCOUNT_NAME"
    with pytest.raises(InvalidInputError, match=told):
        storage_from_url("az://container/a", anonymous=True)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "me")
    storage_from_url("az://container/a", anonymous=True)


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("ftp://host/a", {}, ["ftp://", "s3://", "gs://", "memory://"]),
        ("s3://bucket/a", {"regoin": "x"}, ["regoin", "region", "endpoint_url"]),
        ("gs://bucket/a", {"region": "x"}, ["region", "bearer_token"]),
        ("az://container/a", {"region": "x"}, ["region", "account"]),
        ("http://host/a", {"region": "x"}, ["region", "headers"]),
        ("memory://a", {"region": "x"}, ["region", "none"]),
        ("/a", {"region": "x"}, ["a path", "region"]),
        ("s3:///a", {}, ["bucket"]),
        ("gs://", {}, ["bucket"]),
        ("az:///a", {"account": "me"}, ["container"]),
        ("file://host/a", {}, ["file:///"]),
        ("file://", {}, ["file:///"]),
        ("http:///a", {}, ["http:///a"]),
        ("s3://bucket/../a", {}, ["../a"]),
        (
            "s3://bucket/a",
            {"credentials": s3_credentials(anonymous=True), "access_key_id": "x"},
            ["credentials", "access_key_id"],
        ),
        ("s3://bucket/a", {"credentials": gcs_credentials(anonymous=True)}, ["S3Credentials"]),
        ("r2://bucket/a", {}, ["account_id"]),
    ],
)
def test_what_cannot_be_understood(url: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        storage_from_url(url, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# -- constructors ------------------------------------------------------------------------
def s3_place(storage: ObjectStorage) -> S3Place:
    assert isinstance(storage._place, S3Place)
    return storage._place


def test_stores_that_speak_the_protocol_of_s3() -> None:
    r2 = s3_place(r2_storage(bucket="b", prefix="p", account_id="me", anonymous=True))
    assert r2.options.endpoint_url == "https://me.r2.cloudflarestorage.com"
    assert r2.options.region == "auto"
    by_prefix = s3_place(r2_storage(prefix="b/p/q", account_id="me", anonymous=True))
    assert (by_prefix.bucket, by_prefix.prefix) == ("b", "p/q")
    hf = s3_place(hf_storage(bucket="b", prefix="p", namespace="me", anonymous=True))
    assert hf.options.endpoint_url == "https://s3.hf.co/me"
    other = s3_place(s3_object_store_storage(bucket="b", prefix="p", region="x", anonymous=True))
    assert other.options.region == "x"


@pytest.mark.parametrize(
    ("make", "secret"),
    [
        (lambda s: s3_storage(bucket="b", prefix="p", access_key_id="AK", secret_access_key=s), 0),
        (lambda s: gcs_storage(bucket="b", prefix="p", bearer_token=s), 1),
        (lambda s: azure_storage(account="a", container="b", prefix="p", sas_token=f"sig={s}"), 2),
    ],
)
def test_secrets_are_not_shown(make: Callable[[str], ObjectStorage], secret: int) -> None:
    storage = make(f"SECRET{secret}")
    assert "SECRET" not in repr(storage) + storage.url + repr(storage._place) + repr(vars(storage))


def test_other_services_know_their_places() -> None:
    google = gcs_storage(bucket="b", prefix=None, anonymous=True)._place
    assert isinstance(google, GcsPlace)
    assert (google.bucket, google.prefix) == ("b", "")
    azure = azure_storage(account="a", container="c", prefix="p", anonymous=True)._place
    assert isinstance(azure, AzurePlace)
    assert (azure.account, azure.container, azure.prefix) == ("a", "c", "p")


def test_a_missing_key_file_is_named() -> None:
    with pytest.raises(StorageError, match="gs://b/p") as caught:
        gcs_storage(bucket="b", prefix="p", service_account_file="/there/is/none.json")
    assert caught.value.kind == ErrorKind.STORAGE_CONFIG


@pytest.mark.parametrize("name", icechunk.storage.__all__)
def test_public_names_are_documented(name: str) -> None:
    documented = getattr(icechunk.storage, name)
    if not inspect.isclass(documented) and not inspect.isfunction(documented):
        return
    assert (documented.__doc__ or "").strip()


@pytest.mark.parametrize("text", ["s3:", "s3:bucket/prefix", "S3:/bucket", "https:host"])
def test_a_url_without_its_slashes(text: str) -> None:
    with pytest.raises(InvalidInputError, match="slashes"):
        storage_from_url(text)


def test_a_folder_with_a_colon() -> None:
    assert storage_from_url("./s3:folder").url.endswith("/s3%3Afolder")
    assert storage_from_url("experiment:1").url.endswith("/experiment%3A1")
