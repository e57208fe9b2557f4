"""A repository that somebody else wrote cannot read what its reader did not allow."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    Repository,
    RepositoryConfig,
    Storage,
    VirtualChunkContainer,
    azure_credentials,
    azure_store,
    containers_credentials,
    gcs_credentials,
    gcs_store,
    http_store,
    local_filesystem_store,
    s3_credentials,
    s3_store,
)
from icechunk.errors import ErrorKind, IcechunkError, InvalidInputError
from icechunk.storage import MemoryStorage
from tests.servers import S3Server
from tests.web_server import WebServer, serving

DATA = b"these sixteen by"
CANARY = b"never to be read"
KEYS = s3_credentials(access_key_id="MARKER-ID", secret_access_key="MARKER", session_token="MARKER")


def hostile(
    location: str, *containers: VirtualChunkContainer, storage: Storage | None = None
) -> Storage:
    """Return the storage of a repository with one virtual chunk, written with no check."""
    config = RepositoryConfig(virtual_chunk_containers={c.url_prefix: c for c in containers})
    storage = storage or MemoryStorage()
    repository = Repository.create(storage, config)
    with repository.transaction("main", message="bait") as store:
        zarr.create_array(store, name="a", shape=16, chunks=16, dtype="u1", compressors=None)
        store.set_virtual_ref("a/c/0", location, offset=0, length=16, validate_container=False)
    return storage


def read(repository: Repository) -> bytes:
    store = repository.readonly_session("main").store
    values = zarr.open_array(store, path="a", mode="r")[:]
    return np.asarray(values).tobytes()


def refusal(storage: Storage, **arguments: Any) -> IcechunkError:
    """Return the error that reading ends with, whichever way the repository got here."""
    opened = Repository.open(storage, **arguments)
    travelled = pickle.loads(pickle.dumps(opened))
    session = pickle.loads(pickle.dumps(opened.readonly_session("main")))
    with pytest.raises(IcechunkError) as first:
        read(opened)
    with pytest.raises(IcechunkError) as second:
        read(travelled.reopen())
    with pytest.raises(IcechunkError) as third:
        zarr.open_array(session.store, path="a", mode="r")[:]
    assert str(first.value) == str(second.value) == str(third.value)
    assert "MARKER" not in str(first.value)
    assert "chunk (0,) of '/a'" in str(first.value)
    return first.value


# -- files of this machine ---------------------------------------------------------------
def test_a_file_of_this_machine_is_not_read() -> None:
    container = VirtualChunkContainer("file:///etc/", local_filesystem_store("/etc"), "etc")
    for location in ("file:///etc/hostname", "vcc://etc/hostname"):
        assert refusal(hostile(location)).kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK
        error = refusal(hostile(location, container))
        assert error.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
        assert "authorize_virtual_chunk_access={'file:///etc/': icechunk.credentials.Local" in str(
            error
        )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder ``in`` that may be read, with canaries around it."""
    for name in ("in", "in-evil", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(DATA if name == "in" else CANARY)
    (tmp_path / "in" / "leak").symlink_to(tmp_path / "out" / "f")
    (tmp_path / "in" / "leaks").symlink_to(tmp_path / "out")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "in/../out/f",
        "in/%2e%2e/out/f",
        "in/.%2E/out/f",
        "in/..%2fout/f",
        "in/..%5cout/f",
        "in/leak",
        "in/leaks/f",
        "in/sub/../../out/f",
        "in-evil/f",
        "in%2f..%2fout/f",
        "out/f",
    ],
)
def test_what_lies_outside_of_a_folder_is_not_read(tree: Path, name: str) -> None:
    prefix = (tree / "in").as_uri() + "/"
    # the path in the description is the writer's, and plays no role
    container = VirtualChunkContainer(prefix, local_filesystem_store("/"))
    inside = Repository.open(
        hostile(prefix + "f", container), authorize_virtual_chunk_access={prefix: None}
    )
    assert read(inside) == DATA
    storage = hostile(f"{tree.as_uri()}/{name}", container)
    refusal(storage, authorize_virtual_chunk_access={prefix: None})


def test_a_name_that_leads_out_of_its_container(tree: Path) -> None:
    prefix = (tree / "in").as_uri() + "/"
    container = VirtualChunkContainer(prefix, local_filesystem_store("/"), "c")
    for location in ("vcc://c/../out/f", "vcc://c/%2e%2e/out/f", "vcc://c//../out/f"):
        refusal(hostile(location, container), authorize_virtual_chunk_access={prefix: None})


# -- credentials that would go elsewhere ---------------------------------------------------
@pytest.fixture
def evil() -> Iterator[WebServer]:
    with serving() as server:
        server.files["/bucket/f"] = server.files["/d/f"] = DATA
        yield server


def s3_at(server: WebServer, **options: Any) -> VirtualChunkContainer:
    store = s3_store(endpoint_url=server.url.rstrip("/"), allow_http=True, **options)
    return VirtualChunkContainer("s3://bucket/", store)


def test_credentials_do_not_go_to_an_endpoint_of_the_repository(
    evil: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "MARKER")
    storage = hostile("s3://bucket/f", s3_at(evil, region="us-east-1"))
    for credential in (KEYS, s3_credentials(from_env=True), None):
        allowed = containers_credentials({"s3://bucket/": credential})
        error = refusal(storage, authorize_virtual_chunk_access=allowed)
        assert error.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
        assert evil.url.rstrip("/") in str(error)
        assert "config=Repository.fetch_config(storage)" in str(error)
    assert evil.requests == []


def test_what_the_caller_passes_is_the_callers(evil: WebServer) -> None:
    storage = hostile("s3://bucket/f", s3_at(evil, region="us-east-1"))
    allowed = containers_credentials({"s3://bucket/": KEYS})
    mine = Repository.fetch_config(storage)
    opened = Repository.open(storage, mine, allowed)
    closed = Repository.open(storage, None, allowed)
    for repository in (opened, pickle.loads(pickle.dumps(opened)), closed.reopen(mine)):
        assert read(repository) == DATA
        assert "MARKER-ID" in evil.requests[-1][1]["authorization"]
    # passing something else does not make the stored containers mine
    refusal(
        storage,
        config=RepositoryConfig(inline_chunk_threshold_bytes=0),
        authorize_virtual_chunk_access=allowed,
    )


def test_redirects_do_not_lead_out(evil: WebServer) -> None:
    with serving() as internal:
        internal.files["/metadata"] = CANARY
        evil.redirects["/d/r"] = internal.url + "metadata"
        container = VirtualChunkContainer(evil.url + "d/", http_store())
        location = evil.url + "d/r"
        storage = hostile(location, container)
        error = refusal(storage, authorize_virtual_chunk_access={container.url_prefix: None})
        assert error.kind == ErrorKind.VIRTUAL_CHUNK_FETCH
        assert "redirects" in str(error)
        assert internal.requests == []


@pytest.mark.parametrize(
    ("container", "named"),
    [
        (("s3://bucket/", s3_store(region="evil.example/#")), "region"),
        (("s3://bucket/", s3_store(requester_pays=True)), "requester_pays"),
        (("s3://bucket/", s3_store(allow_http=True)), "allow_http"),
        (("gs://bucket/", gcs_store({"base_url": "http://evil.example"})), "base_url"),
        (("gs://bucket/", gcs_store({"GOOGLE_SERVICE_ACCOUNT": "/x"})), "google_service_account"),
        (("gs://bucket/", gcs_store({"proxy_url": "http://evil.example"})), "proxy_url"),
        (("gs://bucket/", gcs_store({"bucket": "other"})), "bucket"),
        (("az://bucket/", azure_store(account="evil.example/#")), "account"),
        (
            ("az://bucket/", azure_store(account="a", config={"endpoint": "http://evil.example"})),
            "endpoint",
        ),
        (
            ("az://bucket/", azure_store(account="a", config={"allow_invalid_certificates": "1"})),
            "allow_invalid_certificates",
        ),
    ],
)
def test_options_that_only_the_caller_may_set(container: Any, named: str) -> None:
    credentials = {
        "s3": KEYS,
        "gs": gcs_credentials(bearer_token="MARKER"),
        "az": azure_credentials(bearer_token="MARKER"),
    }[container[0][:2]]
    storage = hostile(container[0] + "f", VirtualChunkContainer(*container))
    error = refusal(
        storage, authorize_virtual_chunk_access=containers_credentials({container[0]: credentials})
    )
    assert isinstance(error, InvalidInputError)
    assert error.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    assert f"sets {named}" in str(error)


@pytest.mark.parametrize(
    ("prefix", "store"),
    [
        ("s3://bucket/", s3_store(region="eu-west-1", force_path_style=True)),
        ("gs://bucket/", gcs_store({"timeout": "30s"})),
        ("az://bucket/", azure_store(account="account1", config={"connect_timeout": "5s"})),
    ],
)
def test_options_that_a_repository_may_set(prefix: str, store: Any) -> None:
    credentials = {
        "s3": KEYS,
        "gs": gcs_credentials(bearer_token="MARKER"),
        "az": azure_credentials(bearer_token="MARKER"),
    }[prefix[:2]]
    storage = hostile(prefix + "f", VirtualChunkContainer(prefix, store))
    repository = Repository.open(storage, None, containers_credentials({prefix: credentials}))
    assert repository.readonly_session("main")._context.virtual.resolve(prefix + "f")[1] == "f"


def test_the_service_of_the_repository_itself_is_trusted(s3_server: S3Server) -> None:
    s3_server.storage("archive").put("f", DATA)
    store = s3_store(
        region=s3_server.region, endpoint_url=s3_server.endpoint_url + "/", allow_http=True
    )
    prefix = f"s3://{s3_server.bucket}/archive/"
    storage = hostile(
        prefix + "f", VirtualChunkContainer(prefix, store), storage=s3_server.storage()
    )
    keys = s3_credentials(
        access_key_id=s3_server.access_key_id, secret_access_key=s3_server.secret_access_key
    )
    assert read(Repository.open(storage, None, containers_credentials({prefix: keys}))) == DATA
