from __future__ import annotations

import asyncio
import pickle
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import obstore
import pytest

from icechunk import Repository, s3_storage
from icechunk.config import (
    S3Options,
    StorageConcurrencySettings,
    StorageRetriesSettings,
    StorageSettings,
)
from icechunk.credentials import S3StaticCredentials, s3_credentials
from icechunk.errors import (
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.storage import GetResult, ObjectStorage, Storage, storage_from_url
from icechunk.storage.reading import joined
from icechunk.storage.waiting import Runtime
from icechunk.testing.storage import StorageTests, contents
from tests.http_servers import Quiet, running_server
from tests.servers import S3Server

ONE_TRY = StorageSettings(retries=StorageRetriesSettings(max_tries=1))


class TestS3(StorageTests):
    secrets = ("test-secret-key", "test-key-id")

    @pytest.fixture
    def storage(self, s3_server: S3Server) -> Storage:
        return s3_server.storage()


@pytest.fixture
def storage(s3_server: S3Server) -> ObjectStorage:
    return s3_server.storage()


# -- what the server does, so that the suite above means something ----------------------
def test_the_server_checks_conditions_itself(s3_server: S3Server) -> None:
    # without anything of ours in between
    store = s3_server.storage("conditions")._writer
    created = obstore.put(store, "a", b"1", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "a", b"2", mode="create")
    obstore.put(store, "a", b"3", mode={"e_tag": created["e_tag"]})
    for key in ("a", "missing"):
        with pytest.raises(obstore.exceptions.PreconditionError):
            obstore.put(store, key, b"4", mode={"e_tag": created["e_tag"]})
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(store, "a", options={"if_match": created["e_tag"]})


# -- places ----------------------------------------------------------------------------
@pytest.mark.parametrize("prefix", ["a", "a/b", "with space/ü+%20#", "a.b/c=d"])
def test_prefixes(s3_server: S3Server, prefix: str) -> None:
    storage = s3_server.storage(f"/{prefix}/inner/")
    storage.put("k/l", b"x")
    assert contents(storage) == {"k/l": b"x"}
    assert contents(s3_server.storage(prefix))["inner/k/l"] == b"x"
    assert storage.url == f"s3://{s3_server.bucket}/{prefix}/inner"


def test_a_prefix_is_a_folder(s3_server: S3Server) -> None:
    s3_server.storage("beside-1").put("a", b"x")
    s3_server.storage("beside").put("b", b"y")
    assert contents(s3_server.storage("beside")) == {"b": b"y"}


def test_the_root_of_a_bucket(s3_server: S3Server) -> None:
    storage = s3_server.storage("", bucket=s3_server.public_bucket)
    storage.put("at-the-root", b"x")
    assert bytes(storage.get("at-the-root").data) == b"x"
    assert storage.url == f"s3://{s3_server.public_bucket}"


def test_a_missing_bucket_is_not_a_missing_object(s3_server: S3Server) -> None:
    storage = s3_server.storage(bucket="there-is-none")
    with pytest.raises(StorageError, match="NoSuchBucket") as caught:
        storage.get("a")
    assert not isinstance(caught.value, ObjectNotFoundError)


def test_urls(s3_server: S3Server) -> None:
    options = {
        "endpoint_url": s3_server.endpoint_url,
        "allow_http": True,
        "region": s3_server.region,
    }
    keys = {
        "access_key_id": s3_server.access_key_id,
        "secret_access_key": s3_server.secret_access_key,
    }
    url = f"s3://{s3_server.bucket}/urls"
    storage_from_url(url, **options, **keys).put("a", b"x")
    other = storage_from_url(url, **options, credentials=s3_credentials(**keys))
    assert contents(other) == {"a": b"x"}
    assert other.url == url


# -- credentials -----------------------------------------------------------------------
def test_a_wrong_key_is_named_as_the_cause_and_not_shown(s3_server: S3Server) -> None:
    storage = s3_server.storage(secret_access_key="WRONG-SECRET")
    with pytest.raises(StorageError, match="check the credentials") as caught:
        storage.get("a")
    text = "".join(traceback.format_exception(caught.value))
    assert "WRONG-SECRET" not in text
    assert s3_server.access_key_id not in text
    assert "Debug source" not in text


def test_anonymous(s3_server: S3Server) -> None:
    place = {"bucket": s3_server.public_bucket, "prefix": "anonymous"}
    s3_server.storage(**place).put("a", b"x")
    anonymous = s3_server.storage(**place, anonymous=True)
    assert contents(anonymous) == {"a": b"x"}
    with pytest.raises(StorageError, match="check the credentials"):
        anonymous.put("a", b"y")
    with pytest.raises(StorageError, match="check the credentials"):
        s3_server.storage(anonymous=True).get("a")


@pytest.fixture
def no_aws_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An environment that knows nothing of AWS; the home directory is the path."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # what would ask a machine in the cloud for credentials gives up at once
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    yield tmp_path


def test_credentials_from_variables(
    s3_server: S3Server, no_aws_variables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_access_key)
    # a profile does not count then
    folder = no_aws_variables / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = other\naws_secret_access_key = other\n"
    )
    storage = s3_server.storage(from_env=True)
    storage.put("a", b"x")
    assert contents(storage) == {"a": b"x"}


@pytest.mark.parametrize("profile", ["default", "other"])
def test_credentials_from_a_profile(
    s3_server: S3Server, no_aws_variables: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    folder = no_aws_variables / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        f"[unused]\naws_access_key_id = no\n\n[{profile}]\n"
        f"aws_access_key_id = {s3_server.access_key_id}\n"
        f"aws_secret_access_key = {s3_server.secret_access_key}\n"
    )
    name = profile if profile == "default" else f"profile {profile}"
    (folder / "config").write_text(f"[{name}]\nregion = {s3_server.region}\n")
    if profile != "default":
        monkeypatch.setenv("AWS_PROFILE", profile)
    storage = s3_server.storage(from_env=True, region=None)
    storage.put("a", b"x")
    assert contents(storage) == {"a": b"x"}


def test_explicit_keys_are_not_mixed_with_a_token_of_the_environment(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    storage = s3_server.storage()
    storage.put("a", b"x")
    assert contents(storage) == {"a": b"x"}


class Fetch:
    """Fetches credentials, and counts in a file, because it is pickled."""

    def __init__(self, server: S3Server, counter: Path, lifetime: timedelta) -> None:
        self.server = server
        self.counter = counter
        self.lifetime = lifetime

    def __call__(self) -> S3StaticCredentials:
        with self.counter.open("a") as file:
            file.write(".")
        return S3StaticCredentials(
            self.server.access_key_id,
            self.server.secret_access_key,
            None,
            datetime.now(UTC) + self.lifetime,
        )

    @property
    def calls(self) -> int:
        return len(self.counter.read_text()) if self.counter.exists() else 0


@pytest.mark.parametrize(("hours", "calls"), [(1, 1), (-1, 3)])
def test_refreshable_credentials(
    s3_server: S3Server, tmp_path: Path, hours: int, calls: int
) -> None:
    # those that have expired already are fetched for every request
    fetch = Fetch(s3_server, tmp_path / "calls", timedelta(hours=hours))
    storage = s3_server.storage(get_credentials=fetch)
    assert fetch.calls == 0
    storage.put("a", b"x")
    storage.get("a")
    storage.get("a")
    assert fetch.calls == calls


def test_scattered_credentials_are_used_by_copies(s3_server: S3Server, tmp_path: Path) -> None:
    fetch = Fetch(s3_server, tmp_path / "calls", timedelta(hours=1))
    storage = s3_server.storage(get_credentials=fetch, scatter_initial_credentials=True)
    assert fetch.calls == 1
    storage.put("a", b"x")
    pickle.loads(pickle.dumps(storage)).get("a")
    assert fetch.calls == 1


class Unable:
    def __call__(self) -> S3StaticCredentials:
        raise RuntimeError("the vault is closed")


def test_credentials_that_cannot_be_fetched(s3_server: S3Server) -> None:
    with pytest.raises(StorageError, match="the vault is closed"):
        s3_server.storage(get_credentials=Unable()).get("a")


# -- settings ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["create", "update"])
async def test_conditions_that_the_service_cannot_check(storage: Storage, kind: str) -> None:
    unsafe = storage.with_settings(
        StorageSettings(
            unsafe_use_conditional_create=False if kind == "create" else None,
            unsafe_use_conditional_update=False if kind == "update" else None,
        )
    )
    etag = unsafe.put("a", b"1", if_absent=True)
    for put in (unsafe.put, storage.put):
        with pytest.raises(PreconditionFailedError):
            put("a", b"no", if_absent=True)
        with pytest.raises(PreconditionFailedError):
            put("missing", b"no", if_match=etag)
    etag = unsafe.put("a", b"2", if_match=etag)
    with pytest.raises(PreconditionFailedError):
        await unsafe.put_async("a", b"no", if_match='"other"')
    with pytest.raises(PreconditionFailedError):
        await unsafe.put_async("a", b"no", if_absent=True)
    await unsafe.put_async("a", b"3", if_match=etag)
    await unsafe.put_async("b", b"4", if_absent=True)
    assert contents(storage) == {"a": b"3", "b": b"4"}


def test_storage_classes(storage: Storage) -> None:
    classes = storage.with_settings(
        StorageSettings(storage_class="STANDARD", chunks_storage_class="STANDARD_IA")
    )
    options = classes._put_options  # type: ignore[attr-defined]
    assert options("chunks/A", memoryview(b""), False, None)["attributes"] == {
        "Storage-Class": "STANDARD_IA"
    }
    assert options("repo", memoryview(b""), False, None)["attributes"] == {
        "Storage-Class": "STANDARD"
    }
    classes.put("chunks/A", b"x")
    classes.put("repo", b"y")
    assert contents(storage) == {"chunks/A": b"x", "repo": b"y"}


def test_parts_of_different_versions_are_not_joined() -> None:
    one, other = GetResult(b"1", '"1"'), GetResult(b"2", '"2"')
    assert joined("a", [one, one]).data == b"11"
    with pytest.raises(PreconditionFailedError, match="a"):
        joined("a", [one, one, other])


async def test_ranges_in_parts(storage: Storage) -> None:
    parts = storage.with_settings(
        StorageSettings(
            concurrency=StorageConcurrencySettings(
                max_concurrent_requests_for_object=4, ideal_concurrent_request_size=10
            )
        )
    )
    etag = storage.put("a", b"0" * 100)
    assert bytes(parts.get("a", byte_range=(5, 95), if_match=etag).data) == b"0" * 90
    result = await parts.get_async("a", byte_range=(5, 1000))
    assert (bytes(result.data), result.etag) == (b"0" * 95, etag)
    with pytest.raises(PreconditionFailedError):
        parts.get("a", byte_range=(5, 95), if_match='"other"')
    with pytest.raises(ObjectNotFoundError):
        parts.get("missing", byte_range=(5, 95))


def test_a_pickle_keeps_settings_and_does_not_carry_the_client(storage: Storage) -> None:
    settings = StorageSettings(minimum_size_for_multipart_upload=123)
    copied = pickle.loads(pickle.dumps(storage.with_settings(settings)))
    assert copied._settings == settings
    assert len(pickle.dumps(storage)) < 3000


def test_a_forked_process_is_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("a", b"x")
    assert Runtime.started
    monkeypatch.setattr(Runtime, "lost", False)
    Runtime.after_fork()
    with pytest.raises(StorageError, match="spawn"):
        storage.get("a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bucket": ""}, "bucket"),
        ({"bucket": "a/b"}, "bucket"),
        ({"prefix": "a/../b"}, "a/../b"),
        ({"endpoint_url": "localhost:1"}, "https://"),
        ({"allow_http": False}, "allow_http=True"),
        ({"legacy_rooted_keys": True}, "legacy_rooted_keys"),
        ({"anonymous": True, "from_env": True}, "anonymous"),
    ],
)
def test_arguments_that_cannot_be_right(
    s3_server: S3Server, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        s3_server.storage(**{"prefix": "p", **arguments})


def test_later_changes_of_the_options_do_not_matter(s3_server: S3Server) -> None:
    options = S3Options(endpoint_url=s3_server.endpoint_url, allow_http=True, anonymous=True)
    storage = Storage.new_s3(options, s3_server.public_bucket, "p")
    options.endpoint_url = "http://127.0.0.1:9"
    assert list(storage.with_settings(ONE_TRY).list()) == []


# -- regions ----------------------------------------------------------------------------------
MOVED = b"<Error><Code>PermanentRedirect</Code><Message>it is elsewhere</Message></Error>"
WRONG = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>expecting 'x'</Message></Error>"


def elsewhere(status: int, said: str) -> type[BaseHTTPRequestHandler]:
    """Return a service whose buckets are in another region."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = MOVED if status == 301 else WRONG
            self.send_response(status)
            self.send_header("x-amz-bucket-region", said)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = answer  # noqa: N815 (names of the base class)

    return Handler


@pytest.mark.parametrize("status", [301, 400])
@pytest.mark.parametrize("anonymous", [True, False])
def test_a_bucket_in_another_region(status: int, anonymous: bool) -> None:
    """The message says which, and how to say so."""
    keys: Any = {} if anonymous else {"access_key_id": "a", "secret_access_key": "b"}
    with running_server(elsewhere(status, "eu-central-1")) as url:

        def storage(region: str | None) -> ObjectStorage:
            how: Any = {"endpoint_url": url, "allow_http": True, "anonymous": anonymous, **keys}
            made = s3_storage(bucket="b", prefix="p", region=region, **how)
            assert isinstance(made, ObjectStorage)
            return made

        calls: list[Callable[[ObjectStorage], Any]] = [
            Repository.open,
            lambda made: made.get("f"),
            lambda made: asyncio.run(made.get_async("f")),
            lambda made: made.head("f"),
            lambda made: list(made.list("f/")),
            lambda made: made.put("f", b"x"),
            lambda made: made.copy("f", "g"),
        ]
        for call in calls:
            for region in ("us-west-2", None):
                with pytest.raises(StorageError, match=r"s3://b/p: .*region='eu-central-1'"):
                    call(storage(region))
            # it is something else
            with pytest.raises(StorageError) as caught:
                call(storage("eu-central-1"))
            assert "pass region" not in str(caught.value)


@pytest.mark.parametrize("said", ["", "x" * 100, "../a", "EU"])
def test_a_region_that_is_none(said: str) -> None:
    with running_server(elsewhere(301, said)) as url:
        how: Any = {"endpoint_url": url, "allow_http": True, "anonymous": True}
        with pytest.raises(StorageError, match="incorrectly configured region"):
            s3_storage(bucket="b", prefix="p", region="us-east-1", **how).get("f")
