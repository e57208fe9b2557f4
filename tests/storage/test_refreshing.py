"""Credentials that end while a storage, a repository or a copy of one is in use."""

from __future__ import annotations

import json
import pickle
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    AzureRefreshableCredential,
    GcsBearerCredential,
    Repository,
    S3StaticCredentials,
    azure_storage,
    gcs_storage,
)
from icechunk.errors import StorageError
from icechunk.storage import ObjectStorage
from tests.servers import ObjectServer, S3Server


class Vault:
    """A file with the key pair that is valid now, and how long it is, in seconds.

    Parameters
    ----------
    path : Path
    user : str
        Of the server, whose key pair it is.
    """

    def __init__(self, path: Path, user: str) -> None:
        self.path = path
        self.user = user

    def rotate(self, server: S3Server, lifetime: float) -> dict[str, str]:
        """Let the server take a new key pair, and no longer the old one."""
        old = json.loads(self.path.read_text()) if self.path.exists() else None
        new = {"id": f"KEY{secrets.token_hex(8).upper()}", "secret": secrets.token_hex(16)}
        server.administer(
            f"s3.configure -user={self.user} -access_key={new['id']} -secret_key={new['secret']} "
            f"-actions=Read:{server.bucket},Write:{server.bucket},List:{server.bucket} -apply"
        )
        _wait_until(server, new, taken=True)
        self.path.write_text(json.dumps({**new, "lifetime": lifetime}))
        if old is not None:
            server.administer(
                f"s3.configure -user={self.user} -access_key={old['id']} -delete -apply"
            )
            _wait_until(server, old, taken=False)
        return new

    def __call__(self) -> S3StaticCredentials:
        with self.path.with_name("calls").open("a") as file:
            file.write(".")
        held = json.loads(self.path.read_text())
        # ten seconds of it are a margin for requests under way
        end = datetime.now(UTC) + timedelta(seconds=10 + held["lifetime"])
        return S3StaticCredentials(held["id"], held["secret"], None, end)

    @property
    def calls(self) -> int:
        path = self.path.with_name("calls")
        return len(path.read_text()) if path.exists() else 0


def _wait_until(server: S3Server, pair: dict[str, str], *, taken: bool) -> None:
    """Wait until the server has heard of a change."""
    storage = server.storage(access_key_id=pair["id"], secret_access_key=pair["secret"])
    deadline = time.monotonic() + 30
    while taken != _is_taken(storage):
        assert time.monotonic() < deadline


def _is_taken(storage: ObjectStorage) -> bool:
    try:
        storage.put("k", b"x")
    except StorageError:
        return False
    return True


@pytest.fixture
def vault(s3_server: S3Server, tmp_path: Path) -> Iterator[Vault]:
    user = f"user-{secrets.token_hex(4)}"
    yield Vault(tmp_path / "vault", user)
    s3_server.administer(f"s3.configure -user={user} -delete -apply")


DATA = np.arange(100.0)

#: What a worker does with a repository that was sent to it.
_WORKER = """
import pickle, sys, zarr
repository = pickle.loads(open(sys.argv[1], "rb").read())
store = repository.readonly_session("main").store
print(zarr.open_array(store, path="a", mode="r")[:].sum())
"""


def elsewhere(repository: Repository, path: Path) -> float:
    """Return the sum that another process reads from a pickled repository."""
    path.write_bytes(pickle.dumps(repository))
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": ":".join([str(Path(__file__).parents[2]), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_keys_that_the_server_no_longer_takes(
    s3_server: S3Server, vault: Vault, tmp_path: Path
) -> None:
    first = vault.rotate(s3_server, lifetime=-1)
    prefix = secrets.token_hex(8)
    fixed = s3_server.storage(prefix, access_key_id=first["id"], secret_access_key=first["secret"])
    repository = Repository.create(s3_server.storage(prefix, get_credentials=vault))
    with repository.transaction("main", message="data") as store:
        zarr.create_array(store, name="a", data=DATA, chunks=10)
    assert len(list(fixed.list())) > 0

    second = vault.rotate(s3_server, lifetime=-1)
    with pytest.raises(StorageError, match="check the credentials"):
        fixed.get("repo")
    store = repository.readonly_session("main").store
    np.testing.assert_array_equal(zarr.open_array(store, path="a", mode="r")[:], DATA)

    # a copy refreshes on the other side, and carries no key there
    pickled = pickle.dumps(repository)
    assert not any(part.encode() in pickled for part in (*first.values(), *second.values()))
    vault.rotate(s3_server, lifetime=60)
    assert elsewhere(repository, tmp_path / "pickled") == DATA.sum()


def test_keys_are_kept_until_they_end(s3_server: S3Server, vault: Vault) -> None:
    vault.rotate(s3_server, lifetime=0.5)
    storage = s3_server.storage(get_credentials=vault)
    storage.put("a", b"x")
    vault.rotate(s3_server, lifetime=60)
    # those that are in use end soon, and nothing but that makes it ask again
    deadline = time.monotonic() + 30
    while True:
        try:
            assert bytes(storage.get("a").data) == b"x"
            break
        except StorageError as error:
            assert "InvalidAccessKeyId" in str(error)
            assert time.monotonic() < deadline
    calls = vault.calls
    assert calls >= 2
    storage.get("a")
    assert vault.calls == calls


def test_initial_keys_travel_when_asked_and_are_replaced_when_they_end(
    s3_server: S3Server, vault: Vault, tmp_path: Path
) -> None:
    prefix = secrets.token_hex(8)
    first = vault.rotate(s3_server, lifetime=-1)
    storage = s3_server.storage(prefix, get_credentials=vault, scatter_initial_credentials=True)
    repository = Repository.create(storage)
    with repository.transaction("main", message="data") as store:
        zarr.create_array(store, name="a", data=DATA, chunks=10)
    assert first["secret"].encode() in pickle.dumps(repository)
    vault.rotate(s3_server, lifetime=60)
    assert elsewhere(repository, tmp_path / "pickled") == DATA.sum()


def test_threads_share_one_fetch(s3_server: S3Server, vault: Vault) -> None:
    vault.rotate(s3_server, lifetime=60)
    storage = s3_server.storage(get_credentials=vault)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: storage.put(f"k{i}", b"x"), range(16)))
    assert vault.calls == 1
    assert len(list(storage.list())) == 16


# -- Google and Azure ----------------------------------------------------------------------
class Numbered:
    """Hands out tokens with a number, which have ended or have not."""

    def __init__(self, make: Any, path: Path, hours: int) -> None:
        self.make = make
        self.path = path
        self.hours = hours

    def __call__(self) -> Any:
        with self.path.open("a") as file:
            file.write(".")
        number = len(self.path.read_text())
        end = datetime.now(UTC) + timedelta(hours=self.hours)
        return self.make(f"sig=TOKEN{number}", expires_after=end)


def google(server: ObjectServer, get_credentials: Numbered) -> ObjectStorage:
    return gcs_storage(
        bucket="bucket",
        prefix="p",
        config={"base_url": server.url, "allow_http": "true"},
        get_credentials=get_credentials,
    )


def azure(server: ObjectServer, get_credentials: Numbered) -> ObjectStorage:
    return azure_storage(
        account="account",
        container="bucket",
        prefix="p",
        config={"endpoint": server.url, "allow_http": "true"},
        get_credentials=get_credentials,
    )


@pytest.mark.parametrize(("hours", "last"), [(-1, 3), (1, 1)])
@pytest.mark.parametrize(
    ("storage", "make"),
    [
        (google, GcsBearerCredential),
        (azure, AzureRefreshableCredential.BearerToken),
        (azure, AzureRefreshableCredential.SasToken),
    ],
)
def test_tokens_of_other_services(
    object_server: ObjectServer, tmp_path: Path, storage: Any, make: Any, hours: int, last: int
) -> None:
    object_server.put("bucket/p/a", b"x")
    opened = storage(object_server, Numbered(make, tmp_path / "calls", hours))
    for _ in range(3):
        opened.get("a")
    seen = [f"{r.headers.get('authorization', '')}?{r.query}" for r in object_server.requests]
    assert f"TOKEN{last}" in seen[-1]
    assert "TOKEN1" in seen[0]
    # a copy begins with its own
    pickle.loads(pickle.dumps(opened)).get("a")
    assert len((tmp_path / "calls").read_text()) == last + 1


def test_keys_of_azure_sign_anew(object_server: ObjectServer, tmp_path: Path) -> None:
    object_server.put("bucket/p/a", b"x")
    numbered = Numbered(_access_key, tmp_path / "calls", -1)
    opened = azure(object_server, numbered)
    for _ in range(2):
        opened.get("a")
    for request in object_server.requests:
        assert request.headers["authorization"].startswith("SharedKey account:")
    assert len((tmp_path / "calls").read_text()) == 2


def _access_key(token: str, expires_after: datetime) -> Any:
    return AzureRefreshableCredential.AccessKey("c2VjcmV0", expires_after=expires_after)


class Closed:
    def __call__(self) -> S3StaticCredentials:
        raise RuntimeError("the vault is closed")


def test_the_function_that_failed_is_named(s3_server: S3Server) -> None:
    storage = s3_server.storage(get_credentials=Closed())
    with pytest.raises(StorageError) as caught:
        storage.get("a")
    assert "test_refreshing.Closed, failed: RuntimeError: the vault is closed" in str(caught.value)
