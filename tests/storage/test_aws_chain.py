"""Where the AWS tools find credentials: every way ends in the signature of a request."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from icechunk import IcechunkError, Repository, StorageError, s3_storage, storage_from_url
from icechunk.storage import aws_environment, aws_profile
from icechunk_dask import virtualize
from icechunk_xarray import to_icechunk
from tests.servers import ObjectServer, S3Server

FAR = "2099-01-01T00:00:00Z"
KEYS = {
    "AccessKeyId": "FETCHED",
    "SecretAccessKey": "hidden",
    "SessionToken": "session",
    "Token": "session",
    "Expiration": FAR,
}


class _Aws(BaseHTTPRequestHandler):
    """STS, SSO and the metadata of an instance, in one."""

    asked: list[str]

    def _answer(self, text: str, kind: str = "application/json") -> None:
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/federation/credentials"):
            assert self.headers["x-amz-sso_bearer_token"] == "of the cache"
            keys = {
                "accessKeyId": "FETCHED",
                "secretAccessKey": "hidden",
                "sessionToken": "session",
                "expiration": 4_000_000_000_000,
            }
            self._answer(json.dumps({"roleCredentials": keys}))
        elif self.path.rstrip("/").endswith("security-credentials"):
            self._answer("role", "text/plain")
        else:
            self._answer(json.dumps({"Code": "Success", "LastUpdated": FAR, **KEYS}))

    def do_PUT(self) -> None:
        self.asked.append(self.path)
        self._answer("token", "text/plain")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        found = re.search(r"Action=(\w+)", body)
        assert found is not None
        self.asked.append(found[1])
        keys = "".join(f"<{k}>{v}</{k}>" for k, v in KEYS.items() if k != "Token")
        self._answer(
            f'<{found[1]}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<{found[1]}Result><Credentials>{keys}</Credentials><AssumedRoleUser><Arn>a</Arn>"
            f"<AssumedRoleId>b</AssumedRoleId></AssumedRoleUser></{found[1]}Result>"
            f"<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></{found[1]}Response>",
            "text/xml",
        )

    def log_message(self, *_: Any) -> None:
        pass


class Aws:
    """A running one."""

    def __init__(self, url: str, asked: list[str]) -> None:
        self.url = url
        self.asked = asked


@pytest.fixture
def aws() -> Iterator[Aws]:
    asked: list[str] = []
    handler = type("Handler", (_Aws,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Aws(f"http://127.0.0.1:{server.server_port}", asked)
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws: Aws) -> Path:
    """A home of nobody's, and all services of AWS at one place."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", aws.url)
    monkeypatch.setattr(aws_environment, "_MACHINE", ())
    cache = tmp_path / ".aws/sso/cache"
    cache.mkdir(parents=True)
    import botocore.credentials
    import botocore.tokens

    # botocore found out where the home is when it was imported
    for owner in (botocore.credentials.SSOProvider, botocore.tokens.SSOTokenProvider):
        monkeypatch.setattr(owner, "_SSO_TOKEN_CACHE_DIR", str(cache))
    return tmp_path


def process(home: Path, keys: dict[str, str]) -> str:
    """Return a command that says these keys."""
    script = home / "keys.py"
    answer = {"Version": 1, **keys}
    script.write_text(f"import json; print(json.dumps({answer!r}))")
    return f"{sys.executable} {script}"


def write(home: Path, config: str, credentials: str = "") -> None:
    (home / ".aws/config").write_text(config)
    (home / ".aws/credentials").write_text(credentials)


def by_file(home: Path) -> None:
    write(home, "", "[default]\naws_access_key_id=FETCHED\naws_secret_access_key=hidden\n")


def by_process(home: Path) -> None:
    write(home, f"[default]\ncredential_process = {process(home, KEYS)}\n")


def by_role(home: Path) -> None:
    write(
        home,
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = keys\n",
        "[keys]\naws_access_key_id=a\naws_secret_access_key=b\n",
    )


def by_a_role_of_its_own_keys(home: Path) -> None:
    write(
        home,
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = default\n",
        "[default]\naws_access_key_id=a\naws_secret_access_key=b\n",
    )


def by_web_identity(home: Path) -> None:
    (home / "token").write_text("a token")
    write(
        home,
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/r\n"
        f"web_identity_token_file = {home / 'token'}\n",
    )


def by_sso_session(home: Path) -> None:
    write(
        home,
        "[default]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\n"
        "[sso-session s]\nsso_region = us-east-1\nsso_start_url = https://example.org/start\n",
    )
    cached(home, "s")


def by_sso(home: Path) -> None:
    write(
        home,
        "[default]\nsso_start_url = https://example.org/start\nsso_region = us-east-1\n"
        "sso_account_id = 1\nsso_role_name = r\n",
    )
    cached(home, "https://example.org/start")


def cached(home: Path, name: str) -> None:
    file = home / ".aws/sso/cache" / f"{hashlib.sha1(name.encode()).hexdigest()}.json"
    token = {"accessToken": "of the cache", "expiresAt": FAR, "region": "us-east-1"}
    file.write_text(json.dumps({**token, "startUrl": "https://example.org/start"}))


WAYS = [by_file, by_process, by_role, by_a_role_of_its_own_keys, by_web_identity]
WAYS += [by_sso_session, by_sso]


def signatures(server: ObjectServer) -> set[tuple[str, str | None]]:
    """Return whose keys signed the requests, and the tokens of the sessions."""
    found = set()
    for request in server.requests:
        headers = {name.lower(): value for name, value in request.headers.items()}
        key = re.search(r"Credential=([^/]+)/", headers.get("authorization", ""))
        found.add((key[1] if key else "nobody", headers.get("x-amz-security-token")))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_profiles(
    way: Any, home: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(home)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_server.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    storage = storage_from_url("s3://bucket/p")
    with pytest.raises(FileNotFoundError):
        storage.get("a")
    token = None if way is by_file else "session"
    assert signatures(object_server) == {("FETCHED", token)}


def opened(url: str) -> None:
    Repository.open(url)


def created(url: str) -> None:
    Repository.create(url)


def read_by_the_engine(url: str) -> None:
    xarray.open_dataset(url, engine="icechunk")


def written_by_xarray(url: str) -> None:
    to_icechunk(xarray.Dataset({"x": ("t", [1])}), url)


def virtualized(url: str) -> None:
    virtualize([f"{url}/a.nc"], url, isolate=False)


def virtualized_apart(url: str) -> None:
    virtualize([f"{url}/a.nc"], url)


ENTRIES = [opened, created, read_by_the_engine, written_by_xarray, virtualized]


@pytest.mark.parametrize(
    ("way", "entry"), [*itertools.product(WAYS, ENTRIES), (by_role, virtualized_apart)]
)
def test_profiles_by_every_entry(
    way: Any, entry: Any, home: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(home)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_server.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    # the server knows too little of S3 to hold a repository; what is asked tells enough
    with pytest.raises(IcechunkError):
        entry("s3://bucket/p")
    token = None if way is by_file else "session"
    assert signatures(object_server) == {("FETCHED", token)}


async def test_a_profile_in_an_event_loop(home: Path, object_server: ObjectServer) -> None:
    by_role(home)
    storage = s3_storage(
        bucket="bucket", prefix="p", endpoint_url=object_server.url, allow_http=True
    )
    with pytest.raises(FileNotFoundError):
        await storage.get_async("a")
    assert signatures(object_server) == {("FETCHED", "session")}


def test_keys_are_kept(home: Path, object_server: ObjectServer, aws: Aws) -> None:
    by_role(home)
    storage = s3_storage(
        bucket="bucket", prefix="p", endpoint_url=object_server.url, allow_http=True
    )
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            storage.get("a")
    assert aws.asked == ["AssumeRole"]


def test_keys_of_the_environment_win(
    home: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_role(home)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "MINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    storage = s3_storage(
        bucket="bucket", prefix="p", endpoint_url=object_server.url, allow_http=True
    )
    with pytest.raises(FileNotFoundError):
        storage.get("a")
    assert signatures(object_server) == {("MINE", None)}


def test_a_web_identity_of_the_environment(
    home: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "token").write_text("a token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(home / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    storage = s3_storage(
        bucket="bucket", prefix="p", endpoint_url=object_server.url, allow_http=True
    )
    with pytest.raises(FileNotFoundError):
        storage.get("a")
    assert signatures(object_server) == {("FETCHED", "session")}


def test_metadata_of_a_machine(
    home: Path, object_server: ObjectServer, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", aws.url)
    storage = s3_storage(
        bucket="bucket", prefix="p", endpoint_url=object_server.url, allow_http=True
    )
    with pytest.raises(FileNotFoundError):
        storage.get("a")
    assert signatures(object_server) == {("FETCHED", "session")}
    assert "/latest/api/token" in aws.asked


def test_metadata_service_that_is_not_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"127.0.0.1:1 does not answer .*anonymous=True"):
        Repository.open("s3://bucket/p")


def test_metadata_service_that_has_no_credentials(
    home: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", object_server.url)
    with pytest.raises(StorageError, match=r"no other credentials were found.*anonymous=True"):
        Repository.open("s3://bucket/p")


def test_region_and_endpoint_of_a_profile(home: Path, object_server: ObjectServer) -> None:
    by_process(home)
    config = home / ".aws/config"
    config.write_text(
        config.read_text() + f"region = eu-west-7\nendpoint_url = {object_server.url}\n"
    )
    del os.environ["AWS_REGION"]
    with pytest.raises(FileNotFoundError):
        s3_storage(bucket="bucket", prefix="p", allow_http=True).get("a")
    assert "/eu-west-7/s3/" in str(object_server.requests[-1].headers)


def test_without_botocore(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_sso(home)
    monkeypatch.setattr(aws_profile, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r"sso_start_url.*pip install .icechunk.aws"):
        Repository.open("s3://bucket/p")


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("process", "credential_process"),
        ("sso", "SSO"),
    ],
)
def test_a_profile_that_fails(way: str, says: str, home: Path, object_server: ObjectServer) -> None:
    if way == "process":
        write(home, "[default]\ncredential_process = false\n")
    else:
        by_sso(home)
        for file in (home / ".aws/sso/cache").iterdir():
            file.unlink()
    with pytest.raises(StorageError) as caught:
        s3_storage(
            bucket="bucket", prefix="p", endpoint_url=object_server.url, allow_http=True
        ).get("a")
    assert not object_server.requests
    for word in ("default", says):
        assert word in str(caught.value)


def test_a_repository_by_a_process(
    home: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"AccessKeyId": s3_server.access_key_id, "SecretAccessKey": s3_server.secret_access_key}
    write(home, f"[profile lab]\ncredential_process = {process(home, keys)}\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    url = f"s3://{s3_server.bucket}/by-a-process"
    session = Repository.create(url).writable_session("main")
    xarray.Dataset({"x": ("t", [1, 2, 3])}).to_zarr(session.store, consolidated=False)
    session.commit("written")
    stored = zarr.open_array(Repository.open(url).readonly_session("main").store, path="x")
    assert np.array_equal(stored[:], [1, 2, 3])
    with xarray.open_dataset(url, engine="icechunk") as found:
        assert found.x.values.tolist() == [1, 2, 3]
