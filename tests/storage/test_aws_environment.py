"""What the environment says of S3: where it is, and who asks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from icechunk import (
    ErrorKind,
    InvalidInputError,
    Repository,
    StorageError,
    azure_storage,
    gcs_storage,
    s3_storage,
)
from icechunk.storage import Storage, aws_environment, cloud_environment, machine_service
from icechunk.testing.storage import contents
from tests.servers import ObjectServer, S3Server


@pytest.fixture(autouse=True)
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variables, no files, and a machine of nobody's."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(aws_environment, "_MACHINE", ((tmp_path / "vendor", "Amazon EC2"),))
    (tmp_path / ".aws").mkdir()
    return tmp_path


def storage(**arguments: object) -> Storage:
    return s3_storage(bucket="bucket", prefix="p", **arguments)  # type: ignore[arg-type]


def refusal(found: Storage) -> str:
    with pytest.raises(StorageError) as caught:
        Repository.open(found)
    assert caught.value.kind is ErrorKind.INVALID_CREDENTIALS
    assert not caught.value.transient
    return str(caught.value)


# -- credentials -----------------------------------------------------------------------------
def test_no_credentials(object_server: ObjectServer) -> None:
    text = refusal(storage(endpoint_url=object_server.url, allow_http=True))
    assert not object_server.requests
    for word in (
        "s3://bucket/p",
        "AWS_ACCESS_KEY_ID",
        "no profile 'default' in ~/.aws/credentials",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "this is not an EC2 machine",
        "access_key_id=...",
        "get_credentials=...",
        "anonymous=True",
    ):
        assert word in text


async def test_no_credentials_in_an_event_loop() -> None:
    found = storage()
    with pytest.raises(StorageError, match="no credentials for"):
        await found.get_async("a")
    with pytest.raises(StorageError, match="no credentials for"):
        await found.put_async("a", b"x")


@pytest.mark.parametrize(
    ("profile", "section", "says"),
    [
        ("mian", "[main]\naws_access_key_id = a\n", "there is no profile 'mian'"),
        ("main", "[main]\nregion = here\n", "the profile 'main' in ~/.aws/credentials"),
    ],
)
def test_a_profile_without_keys(
    nothing: Path, monkeypatch: pytest.MonkeyPatch, profile: str, section: str, says: str
) -> None:
    (nothing / ".aws/credentials").write_text(section)
    monkeypatch.setenv("AWS_PROFILE", profile)
    assert says in refusal(storage())


def test_half_a_key_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SHOWN-TO-NOBODY")
    with pytest.raises(StorageError, match="Missing SecretAccessKey") as caught:
        storage()
    assert "SHOWN-TO-NOBODY" not in str(caught.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere"},
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "https://127.0.0.1:9/x"},
        {"AWS_SKIP_SIGNATURE": "true"},
    ],
)
def test_where_there_are_or_may_be_some(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert aws_environment.missing_credentials() is None


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a service that takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


SERVICES = {
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": "",
    "AWS_METADATA_ENDPOINT": "",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "/x",
}


@pytest.mark.parametrize("variable", SERVICES)
def test_a_service_of_the_machine_that_is_silent(
    variable: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once, for two seconds, and the error says where else it looked."""
    asked: list[object] = []
    connect = socket.create_connection

    def connecting(address: Any, timeout: float) -> socket.socket:
        asked.append(address)
        return connect(address, timeout)

    assert machine_service._PATIENCE == 2
    monkeypatch.setattr(socket, "create_connection", connecting)
    monkeypatch.setattr(machine_service, "_PATIENCE", 0.01)
    monkeypatch.setenv(variable, silent + SERVICES[variable])
    found = storage()
    text = refusal(found)
    assert f"{silent}{SERVICES[variable]} does not answer within" in text
    assert "access_key_id=..." in text and "anonymous=True" in text
    with pytest.raises(StorageError):
        found.get("a")
    assert len(asked) == 1


@pytest.mark.parametrize("variable", SERVICES)
def test_a_service_of_the_machine_that_answers(
    variable: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, object_server.url)
    assert aws_environment.missing_credentials() is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: gcs_storage(bucket="b", prefix="p"),
            ("gs://b/p", "GOOGLE_APPLICATION_CREDENTIALS", "gcloud auth", "bearer_token=..."),
        ),
        (
            lambda: azure_storage(account="a", container="c", prefix="p"),
            ("az://c/p", "AZURE_STORAGE_ACCOUNT_KEY", "sas_token=..."),
        ),
    ],
)
@pytest.mark.parametrize("is_silent", [True, False])
def test_no_credentials_for_other_clouds(
    make: Callable[[], Storage],
    words: tuple[str, ...],
    is_silent: bool,
    silent: str,
    nothing: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in os.environ:
        if name.startswith(("GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(machine_service, "_PATIENCE", 0.01)
    monkeypatch.setattr(
        cloud_environment, "LINK_LOCAL", silent if is_silent else "http://127.0.0.1:1"
    )
    text = refusal(make())
    assert "does not answer" in text
    for word in (*words, "anonymous=True"):
        assert word in text


def test_a_machine_of_ec2(nothing: Path, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (nothing / "vendor").write_text("Amazon EC2\n")
    monkeypatch.setattr(machine_service, "_PATIENCE", 0.01)
    monkeypatch.setattr(aws_environment, "LINK_LOCAL", silent)
    assert f"the machine at {silent} does not answer" in refusal(storage())
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "AWS_EC2_METADATA_DISABLED is set" in refusal(storage())


@pytest.mark.parametrize(
    "arguments",
    [
        {"anonymous": True},
        {"access_key_id": "a", "secret_access_key": "b"},
    ],
)
def test_others_need_nothing(arguments: dict[str, object], object_server: ObjectServer) -> None:
    """Whatever the server says, it was asked."""
    found = storage(endpoint_url=object_server.url, allow_http=True, **arguments)
    with pytest.raises(FileNotFoundError):
        found.get("a")
    assert object_server.requests


# -- where the service is ----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_endpoint(s3_server: S3Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, s3_server.endpoint_url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    found = s3_server.storage(endpoint_url=None, allow_http=False)
    found.put("a", b"x")
    assert contents(found) == {"a": b"x"}


def test_the_order(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_server.url)
    with pytest.raises(FileNotFoundError):
        storage(anonymous=True).get("a")
    assert object_server.requests
    # what is passed wins
    object_server.requests.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError):
        storage(anonymous=True, endpoint_url=object_server.url, allow_http=True).get("a")
    assert object_server.requests


def test_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    with pytest.raises(InvalidInputError, match=r"AWS_ENDPOINT_URL 'http://localhost:9000' has no"):
        storage()
    storage(allow_http=True)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    storage()


def test_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(InvalidInputError, match=r"AWS_ENDPOINT_URL .* must begin with https://"):
        storage()
