"""Options in the words of fsspec are the same options."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from icechunk import InvalidInputError, storage_from_url
from icechunk.storage.option_names import in_our_words
from tests.servers import ObjectServer


@pytest.mark.parametrize(
    ("scheme", "theirs", "ours"),
    [
        (
            "s3",
            {"key": "a", "secret": "b", "token": "c"},
            {"access_key_id": "a", "secret_access_key": "b", "session_token": "c"},
        ),
        ("s3", {"anon": True}, {"anonymous": True}),
        ("s3", {"endpoint_url": "https://x"}, {"endpoint_url": "https://x"}),
        ("s3", {"endpoint_url": "http://x"}, {"endpoint_url": "http://x"}),
        (
            "s3",
            {"client_kwargs": {"region_name": "r", "endpoint_url": "http://x"}},
            {"region": "r", "endpoint_url": "http://x", "allow_http": True},
        ),
        ("r2", {"key": "a"}, {"access_key_id": "a"}),
        (
            "abfs",
            {"account_name": "a", "account_key": "k"},
            {"account": "a", "access_key": "k"},
        ),
        ("az", {"anon": True}, {"anonymous": True}),
        ("gs", {"token": "anon"}, {"anonymous": True}),
        ("gs", {"token": "/key.json"}, {"service_account_file": "/key.json"}),
        ("https", {"bearer_token": "t"}, {"headers": {"Authorization": "Bearer t"}}),
        (
            "https",
            {"bearer_token": "t", "headers": {"a": "b"}},
            {"headers": {"a": "b", "Authorization": "Bearer t"}},
        ),
        ("file", {"key": "a"}, {"key": "a"}),
    ],
)
def test_in_our_words(scheme: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert in_our_words(scheme, theirs) == ours
    assert in_our_words(scheme, ours) == ours


@pytest.mark.parametrize(
    ("scheme", "options", "says"),
    [
        ("s3", {"key": "a", "access_key_id": "b"}, "'access_key_id'"),
        ("s3", {"region": "a", "client_kwargs": {"region_name": "b"}}, "'region'"),
        ("https", {"bearer_token": "a", "headers": {"authorization": "b"}}, "Authorization"),
    ],
)
def test_an_option_in_both(scheme: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match="are the same option: pass one") as caught:
        storage_from_url(f"{scheme}://bucket/p", **options)
    assert says in str(caught.value)


def test_an_unknown_option_lists_ours() -> None:
    with pytest.raises(InvalidInputError, match="no option key2; it knows access_key_id"):
        storage_from_url("s3://bucket/p", key2="a")


def test_a_key_pair_signs(object_server: ObjectServer) -> None:
    storage = storage_from_url(
        "s3://bucket/p",
        key="MINE",
        secret="hidden",
        client_kwargs={"endpoint_url": object_server.url, "region_name": "eu-west-7"},
    )
    with pytest.raises(FileNotFoundError):
        storage.get("a")
    assert "Credential=MINE/" in object_server.requests[-1].headers["authorization"]
    assert "/eu-west-7/s3/" in object_server.requests[-1].headers["authorization"]


def test_a_bearer_token_is_sent_and_not_shown(object_server: ObjectServer) -> None:
    storage = storage_from_url(f"{object_server.url}/folder", bearer_token="hidden-token")
    for it in (storage, pickle.loads(pickle.dumps(storage))):
        with pytest.raises(FileNotFoundError) as caught:
            it.get("a")
        assert object_server.requests[-1].headers["authorization"] == "Bearer hidden-token"
        assert "hidden-token" not in f"{caught.value} {it!r}"
