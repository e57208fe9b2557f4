"""What users get wrong: each is one clear error, of the library's tree.

Where there is a builtin exception that programs catch for it, it is that, too.
"""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import assume, given, settings, strategies as st
from zarr.core.buffer import cpu, default_buffer_prototype

from icechunk import (
    AlreadyExistsError,
    ConflictDetector,
    ErrorKind,
    FormatError,
    IcechunkError,
    IcechunkStore,
    InvalidInputError,
    LocalStorage,
    MemoryStorage,
    NodeNotFoundError,
    PreconditionFailedError,
    ReadOnlyError,
    RefNotFoundError,
    RepoAvailability,
    Repository,
    RepositoryConfig,
    RepositoryExistsError,
    RepositoryNotFoundError,
    RepoStatus,
    Session,
    SessionStateError,
    SnapshotNotFoundError,
    StorageConfig,
    StoreConfig,
    http_storage,
    storage_from_url,
)
from icechunk.storage.base import Storage

B = cpu.Buffer.from_bytes
PROTOTYPE = default_buffer_prototype()
FIRST = "1CECHNKREP0F1RSTCMT0"
NOWHERE = "0" * 20


@pytest.fixture
def storage() -> Storage:
    return MemoryStorage()


@pytest.fixture
def repository(storage: Storage) -> Repository:
    repository = Repository.create(storage, RepositoryConfig(inline_chunk_threshold_bytes=4))
    with repository.transaction("main", message="array") as store:
        group = zarr.create_group(store)
        group.create_array("a", shape=(4, 4), chunks=(2, 2), dtype="i4")[:] = 1
        group.create_array("b", shape=(2,), chunks=(1,), dtype="i1", compressors=None)[:] = 1
    repository.create_tag("v1", repository.lookup_branch("main"))
    return repository


@pytest.fixture
def session(repository: Repository) -> Session:
    return repository.writable_session("main")


def refused(
    call: Callable[[], Any],
    error: type[IcechunkError],
    *builtins: type[Exception],
    kind: ErrorKind | None = None,
    says: str = ".",
) -> None:
    """The call raises just that, with a message for people, and the error pickles."""
    with pytest.raises(error, match=says) as info:
        call()
    assert type(info.value) is error
    for builtin in builtins:
        assert isinstance(info.value, builtin)
    if kind is not None:
        assert info.value.kind == kind
    message = str(info.value)
    assert len(message) > 15
    assert not message.startswith(("'", '"')) or " " in message
    copy = pickle.loads(pickle.dumps(info.value))
    assert (type(copy), str(copy), copy.kind) == (error, message, info.value.kind)


# -- repositories ----------------------------------------------------------------------
@pytest.mark.parametrize("place", ["missing", "empty", "full"])
def test_a_folder_that_is_no_repository(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    if place != "missing":
        folder.mkdir()
    if place == "full":
        (folder / "zarr.json").write_text("{}")
    for where in (LocalStorage(folder), folder, str(folder), folder.as_uri()):
        for call in (
            lambda w=where: Repository.open(w),
            lambda w=where: Repository.fetch_config(w),
            lambda w=where: IcechunkStore.open_existing(w),
            lambda w=where: IcechunkStore.open_or_create(w, "r+"),
        ):
            refused(
                call,
                RepositoryNotFoundError,
                FileNotFoundError,
                ValueError,
                KeyError,
                kind=ErrorKind.REPOSITORY_NOT_FOUND,
                says=place,
            )
        assert not Repository.exists(where)
        assert Repository.fetch_spec_version(where) is None
    # looking leaves nothing behind
    assert folder.exists() == (place != "missing")


def test_creating_over_a_repository(tmp_path: Path) -> None:
    Repository.create(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for call in (
        lambda: Repository.create(tmp_path),
        lambda: Repository.create(tmp_path, check_clean_root=False),
        lambda: IcechunkStore.create(LocalStorage(tmp_path)),
        lambda: IcechunkStore.open_or_create(LocalStorage(tmp_path), "w-"),
    ):
        refused(call, RepositoryExistsError, ValueError, says="already")
    assert Repository.open(tmp_path).lookup_branch("main") == FIRST
    kept = [path for path in before if path.is_file()]
    assert all(path.exists() for path in kept)


def test_creating_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(
        lambda: Repository.create(tmp_path),
        InvalidInputError,
        ValueError,
        kind=ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
        says=r"notes\.txt",
    )
    Repository.create(tmp_path, check_clean_root=False)


def test_creating_where_nothing_can_be_written() -> None:
    refused(
        lambda: Repository.create(http_storage("http://127.0.0.1:9/data")),
        ReadOnlyError,
        ValueError,
        kind=ErrorKind.READ_ONLY_STORAGE,
    )


@pytest.mark.parametrize("version", [0, 3])
def test_creating_another_version(storage: Storage, version: int) -> None:
    refused(
        lambda: Repository.create(storage, spec_version=version),
        InvalidInputError,
        ValueError,
        kind=ErrorKind.UNSUPPORTED_SPEC_VERSION,
        says=f"version {version}",
    )


@pytest.mark.parametrize("place", [5, None, object(), b"/tmp"])
def test_places_that_are_none(place: Any) -> None:
    for call in (Repository.open, Repository.create, Repository.exists):
        refused(lambda c=call: c(place), InvalidInputError, ValueError, says="is not a storage")


@pytest.mark.parametrize("url", ["ftp://host/x", "s4://bucket/x", "s3://", "gs:///x", "http://"])
def test_urls_that_lead_nowhere(url: str) -> None:
    for call in (storage_from_url, Repository.open):
        with pytest.raises(InvalidInputError) as info:
            call(url)
        assert isinstance(info.value, ValueError)


def test_an_unknown_mode(storage: Storage) -> None:
    for mode in ("x", "", "rw", None, 5):
        wrong: Any = mode
        for call in (
            lambda m=wrong: IcechunkStore.open_or_create(storage, m),
            lambda m=wrong: IcechunkStore.open_existing(storage, m),
            lambda m=wrong: IcechunkStore.create(storage, m),
        ):
            refused(call, InvalidInputError, ValueError, says="unknown mode")
    assert not Repository.exists(storage)


def test_an_unknown_option() -> None:
    """TypeError and AttributeError, as for any class of Python."""
    classes: list[Any] = [RepositoryConfig, StoreConfig, StorageConfig]
    for cls in classes:
        with pytest.raises(TypeError, match="nope"):
            cls(nope=1)
    config: Any = RepositoryConfig()
    with pytest.raises(AttributeError, match=r"nope.*inline_chunk_threshold_bytes"):
        config.nope = 1


@pytest.mark.parametrize("value", [-1, "512", 0.5, 2**16, True])
def test_an_option_with_a_wrong_value(value: Any) -> None:
    refused(
        lambda: RepositoryConfig(inline_chunk_threshold_bytes=value),
        InvalidInputError,
        ValueError,
        kind=ErrorKind.STORAGE_CONFIG,
        says="inline_chunk_threshold_bytes",
    )


def test_a_config_of_another_kind(storage: Storage) -> None:
    wrong: Any = {"inline_chunk_threshold_bytes": 5}
    refused(
        lambda: IcechunkStore.create(storage, config=wrong),
        InvalidInputError,
        ValueError,
        says="StoreConfig",
    )


# -- versions ------------------------------------------------------------------------------
def test_not_exactly_one_version(repository: Repository) -> None:
    both: list[dict[str, Any]] = [
        {},
        {"branch": "main", "tag": "v1"},
        {"branch": "main", "snapshot_id": FIRST},
        {"tag": "v1", "snapshot_id": FIRST},
    ]
    for arguments in both:
        for call in (repository.readonly_session, repository.ancestry):
            if call == repository.ancestry or "branch" not in arguments:
                refused(
                    lambda c=call, a=arguments: c(**a),
                    InvalidInputError,
                    ValueError,
                    kind=ErrorKind.INVALID_REF_TYPE,
                    says="Must provide one of branch, tag, or snapshot_id",
                )
    refused(
        lambda: repository.readonly_session("main", tag="v1"),
        InvalidInputError,
        says="Must provide",
    )
    refused(lambda: repository.diff(to_branch="main"), InvalidInputError, says="Must provide")


@pytest.mark.parametrize(
    "wrong", ["", "nonsense", FIRST + "0", FIRST[:-1] + "1", FIRST[:-1] + "U", 5, None, b"x" * 20]
)
def test_ids_that_are_none(repository: Repository, wrong: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: repository.lookup_snapshot(wrong),
        lambda: repository.list_manifest_files(wrong),
        lambda: repository.create_branch("new", wrong),
        lambda: repository.create_tag("new", wrong),
        lambda: repository.reset_branch("main", wrong),
    ]
    if wrong is not None:
        calls += [
            lambda: repository.readonly_session(snapshot_id=wrong),
            lambda: repository.reset_branch("main", FIRST, from_snapshot_id=wrong),
        ]
    for call in calls:
        refused(
            call,
            InvalidInputError,
            ValueError,
            kind=ErrorKind.INVALID_SNAPSHOT_ID,
            says="is not an id",
        )
    assert repository.list_branches() == {"main"}


def test_ids_of_nothing(repository: Repository) -> None:
    for call in (
        lambda: repository.lookup_snapshot(NOWHERE),
        lambda: repository.list_manifest_files(NOWHERE),
        lambda: repository.create_branch("new", NOWHERE),
        lambda: repository.create_tag("new", NOWHERE),
        lambda: repository.reset_branch("main", NOWHERE),
        lambda: repository.readonly_session(snapshot_id=NOWHERE),
    ):
        refused(call, SnapshotNotFoundError, KeyError, says=NOWHERE)


def test_ids_may_be_written_small(repository: Repository) -> None:
    assert repository.lookup_snapshot(FIRST.lower()).id == FIRST


def test_branches_and_tags_that_are_not_there(repository: Repository) -> None:
    for call in (
        lambda: repository.lookup_branch("new"),
        lambda: repository.lookup_tag("new"),
        lambda: repository.delete_branch("new"),
        lambda: repository.delete_tag("new"),
        lambda: repository.reset_branch("new", FIRST),
        lambda: repository.writable_session("new"),
        lambda: repository.rearrange_session("new"),
        lambda: repository.readonly_session("new"),
        lambda: repository.readonly_session(tag="new"),
        lambda: list(repository.ancestry(branch="new")),
    ):
        refused(call, RefNotFoundError, KeyError, says="'new'")


def test_branches_and_tags_that_are_there(repository: Repository) -> None:
    refused(
        lambda: repository.create_branch("main", FIRST),
        AlreadyExistsError,
        ValueError,
        kind=ErrorKind.BRANCH_ALREADY_EXISTS,
        says="reset_branch",
    )
    refused(
        lambda: repository.create_tag("v1", FIRST),
        AlreadyExistsError,
        ValueError,
        kind=ErrorKind.TAG_ALREADY_EXISTS,
    )
    repository.delete_tag("v1")
    refused(
        lambda: repository.create_tag("v1", FIRST),
        AlreadyExistsError,
        ValueError,
        kind=ErrorKind.TAG_PREVIOUSLY_DELETED,
    )
    refused(
        lambda: repository.delete_branch("main"),
        SessionStateError,
        kind=ErrorKind.CANNOT_DELETE_MAIN,
    )


@pytest.mark.parametrize("name", [5, None, b"x"])
def test_names_that_are_none(repository: Repository, name: Any) -> None:
    for call in (
        lambda: repository.create_branch(name, FIRST),
        lambda: repository.create_tag(name, FIRST),
    ):
        refused(
            call,
            InvalidInputError,
            ValueError,
            kind=ErrorKind.INVALID_REF_NAME,
            says="must be a string",
        )
    refused(lambda: repository.create_branch("\ud800", FIRST), InvalidInputError, ValueError)


@pytest.mark.parametrize("name", ["", "a/b", "..", " ", "é", "\0", "x" * 300, "ref.json"])
def test_names_that_official_clients_take_too(repository: Repository, name: str) -> None:
    repository.create_branch(name, FIRST)
    repository.create_tag(name, FIRST)
    again = Repository.open(repository.storage)
    assert again.lookup_branch(name) == again.lookup_tag(name) == FIRST


def test_a_time_that_is_none(repository: Repository) -> None:
    for wrong in ("2020-13-01", "yesterday", 2020, b"2020-01-01"):
        refused(
            lambda wrong=wrong: repository.readonly_session("main", as_of=wrong),
            InvalidInputError,
            ValueError,
            says="as_of",
        )
    refused(
        lambda: repository.readonly_session("main", as_of=datetime(2020, 1, 1, tzinfo=UTC)),
        SnapshotNotFoundError,
        KeyError,
        kind=ErrorKind.NO_SNAPSHOT_AT_TIME,
    )


# -- checkout ----------------------------------------------------------------------------
def test_checkouts_that_make_no_sense(repository: Repository) -> None:
    store = IcechunkStore.open_existing(repository.storage, "r+")
    for arguments in ({}, {"branch": "main", "tag": "v1"}, {"snapshot_id": FIRST, "tag": "v1"}):
        refused(
            lambda a=arguments: store.checkout(**a),
            InvalidInputError,
            ValueError,
            says="only one of",
        )
    store.checkout(tag="v1")
    for call in (lambda: store.commit("no"), lambda: store.distributed_commit("no", [])):
        refused(call, SessionStateError, kind=ErrorKind.NOT_ON_BRANCH, says="check out a branch")
    refused(lambda: store.with_mode("r+"), SessionStateError, kind=ErrorKind.NOT_ON_BRANCH)


def test_versions_of_a_store_that_belongs_to_a_session(session: Session) -> None:
    """It has no repository to ask."""
    store = session.store
    for call in (
        lambda: store.checkout(branch="main"),
        lambda: store.new_branch("new"),
        lambda: store.tag("new", FIRST),
        lambda: store.ancestry(),
    ):
        refused(call, SessionStateError, says="use its Repository")


# -- writing ------------------------------------------------------------------------------
def test_writing_to_what_is_read_only(repository: Repository) -> None:
    reader = repository.readonly_session("main")
    for store in (
        reader.store,
        repository.writable_session("main").store.with_read_only(True),
        IcechunkStore.open_existing(repository.storage, "r"),
    ):
        for call in (
            lambda s=store: s.set_sync("b/c/0", B(b"\1")),
            lambda s=store: s.set_sync("zarr.json", B(b"{}")),
            lambda s=store: s.delete_sync("b/c/0"),
            lambda s=store: s.sync_clear(),
        ):
            refused(call, ReadOnlyError, ValueError, says="read-only")
        with pytest.raises(ValueError, match="read-only"):
            zarr.open_array(store, path="b", mode="r+")
    for call in (reader.commit, reader.amend, reader.flush):
        refused(lambda c=call: c("no"), SessionStateError, kind=ErrorKind.COMMIT_NOT_ALLOWED)
    for call in (
        lambda: reader.discard_changes(),
        lambda: reader.move("/a", "/c"),
        lambda: reader.merge(),
    ):
        refused(call, ReadOnlyError, ValueError, kind=ErrorKind.READ_ONLY_SESSION)


def test_writing_to_a_repository_that_was_set_read_only(repository: Repository) -> None:
    session = repository.writable_session("main")
    session.store.set_sync("b/c/0", B(b"\2"))
    repository.set_status(RepoStatus(RepoAvailability.read_only, None, "moving house"))
    for call in (
        lambda: session.commit("no"),
        lambda: repository.create_branch("new", FIRST),
        lambda: repository.delete_tag("v1"),
        lambda: repository.writable_session("main"),
        lambda: repository.rearrange_session("main"),
    ):
        refused(
            call,
            ReadOnlyError,
            ValueError,
            kind=ErrorKind.READ_ONLY_REPOSITORY,
            says="moving house",
        )
    repository.set_status(RepoStatus(RepoAvailability.online))
    session.commit("yes")


def test_metadata_of_a_repository_that_are_none(repository: Repository) -> None:
    anything: Any
    for anything in ([1], "text", None):
        for call in (repository.set_metadata, repository.update_metadata):
            refused(lambda c=call, x=anything: c(x), InvalidInputError, says="must be a dict")
    refused(
        lambda: repository.set_default_commit_metadata({"a": object()}),
        InvalidInputError,
        kind=ErrorKind.BAD_METADATA,
    )
    assert repository.default_commit_metadata() == {}


@pytest.mark.parametrize(
    "key",
    [
        "foo",
        "",
        "/",
        "b/c/x",
        "b/c/-1",
        "b/c/0.5",
        "b/c/" + "9" * 5000,
        "b/c/٣",
        "b/zarr.jsonx",
        "zarr.json/x",
        "b/c/0/",
        "../zarr.json",
        "x/../zarr.json",
        "x//y/zarr.json",
        "./zarr.json",
        "../c/0",
        "x/./c/0",
        "\ud800/zarr.json",
    ],
)
def test_keys_that_are_none(session: Session, key: str) -> None:
    assert session.store.get_sync(key) is None
    refused(
        lambda: session.store.set_sync(key, B(b"x")),
        InvalidInputError,
        ValueError,
        kind=ErrorKind.INVALID_KEY,
        says="invalid zarr key format",
    )


@pytest.mark.parametrize("key", [".zarray", "x/.zgroup", "x/.zattrs", ".zmetadata"])
def test_documents_of_zarr_format_2(session: Session, key: str) -> None:
    refused(
        lambda: session.store.set_sync(key, B(b"{}")),
        SessionStateError,
        kind=ErrorKind.UNIMPLEMENTED,
        says="zarr_format=3",
    )


def test_zarr_format_2(session: Session) -> None:
    with pytest.raises(SessionStateError, match="zarr_format=3"):
        zarr.create_array(session.store, name="old", shape=(2,), dtype="i4", zarr_format=2)
    assert session.tree.get("/old") is None


def array_document(**changes: Any) -> str:
    document: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
    }
    document.update(changes)
    return json.dumps({k: v for k, v in document.items() if v is not None})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "not a JSON object"),
        ("5", "not a JSON object"),
        ("{}", "node_type"),
        ('{"node_type": "thing"}', "node_type is 'thing'"),
        (array_document(zarr_format=2), "zarr_format is 2"),
        (array_document(shape=None), "shape"),
        (array_document(shape="4"), "shape"),
        (array_document(shape=[-1]), "shape"),
        (array_document(shape=[1.5]), "shape"),
        (array_document(shape=[True]), "shape"),
        (array_document(shape=[4, 4]), "differ in rank"),
        (array_document(chunk_grid=None), "chunk_grid"),
        (array_document(chunk_grid={"name": "hexagonal"}), "chunk_grid"),
        (
            array_document(chunk_grid={"name": "regular", "configuration": {"chunk_shape": [0]}}),
            "zero",
        ),
        (
            array_document(
                shape=[2**40],
                chunk_grid={"name": "regular", "configuration": {"chunk_shape": [1]}},
            ),
            "2\\*\\*32",
        ),
        (array_document(chunk_key_encoding={"name": "v2"}), "chunk_key_encoding"),
        (
            array_document(
                chunk_key_encoding={"name": "default", "configuration": {"separator": "."}}
            ),
            "separator '/'",
        ),
        (array_document(dimension_names=["x", "y"]), "dimension_names"),
        (array_document(dimension_names=[5]), "dimension_names"),
        (array_document(dimension_names="x"), "dimension_names"),
        ("[" * 100_000, "not JSON|nested"),
    ],
)
def test_metadata_that_cannot_be_right(session: Session, document: str, says: str) -> None:
    raw = document.encode("latin-1")
    refused(
        lambda: session.store.set_sync("new/zarr.json", B(raw)),
        InvalidInputError,
        ValueError,
        kind=ErrorKind.BAD_METADATA,
        says=f"'/new'.*({says})",
    )
    assert session.tree.get("/new") is None
    assert not session.has_uncommitted_changes


@settings(max_examples=200)
@given(st.data())
def test_metadata_of_any_kind(data: st.DataObject) -> None:
    """A document is stored, or refused by an error of the library."""
    junk = st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.sampled_from([0, 1, -1, 2**31, 2**33, 10**400, 0.5]),
            st.sampled_from(["", "regular", "rectilinear", "default", "/", "array", "x"]),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["name", "configuration", "chunk_shape", "chunk_shapes", "kind"]),
                inner,
            ),
        ),
        max_leaves=6,
    )
    document = json.loads(array_document())
    for field in data.draw(
        st.sets(
            st.sampled_from(
                ["shape", "chunk_grid", "chunk_key_encoding", "dimension_names", "node_type"]
            ),
            min_size=1,
        )
    ):
        document[field] = data.draw(junk)
    session = Repository.create(MemoryStorage()).writable_session("main")
    try:
        session.store.set_sync("new/zarr.json", B(json.dumps(document).encode()))
    except InvalidInputError as error:
        assert "'/new'" in str(error)
        assert not session.has_uncommitted_changes
    else:
        session.commit("accepted")
        assert session.tree.get("/new") is not None


def test_chunks_that_have_no_place(session: Session) -> None:
    for key in ("a/c/2/0", "a/c/0/2", "a/c/0", "a/c/0/0/0", "a/c", "b/c/2", "b/c/4294967295"):
        refused(
            lambda k=key: session.store.set_sync(k, B(b"x")),
            InvalidInputError,
            ValueError,
            kind=ErrorKind.INVALID_CHUNK_INDEX,
            says="outside the chunk grid",
        )
    refused(
        lambda: session.store.set_sync("c/0", B(b"x")),
        InvalidInputError,
        ValueError,
        kind=ErrorKind.NOT_AN_ARRAY,
        says="is a group",
    )
    refused(
        lambda: session.store.set_sync("nothing/c/0", B(b"x")),
        NodeNotFoundError,
        KeyError,
        says="'/nothing'",
    )


def test_a_node_below_an_array(session: Session) -> None:
    """A store is keys and values: such nodes are kept, as official clients keep them."""
    group = b'{"zarr_format":3,"node_type":"group"}'
    session.store.set_sync("a/x/zarr.json", B(group))
    session.store.set_sync("p/q/zarr.json", B(group))
    session.store.set_sync("p/zarr.json", B(array_document().encode()))
    for key in ("a/x/zarr.json", "p/q/zarr.json"):
        found = session.store.get_sync(key)
        assert found is not None and found.to_bytes() == group


def test_moves_that_cannot_be(repository: Repository) -> None:
    session = repository.rearrange_session("main")
    for source, target, error, kind in (
        ("/nothing", "/x", NodeNotFoundError, ErrorKind.NODE_NOT_FOUND),
        ("/a", "/b", AlreadyExistsError, ErrorKind.MOVE_WONT_OVERWRITE),
        ("/a", "/a", SessionStateError, ErrorKind.MOVE_INTO_SELF_OR_DESCENDANT),
        ("/a", "/a/x", SessionStateError, ErrorKind.MOVE_INTO_SELF_OR_DESCENDANT),
        ("/", "/x", SessionStateError, ErrorKind.MOVE_INTO_SELF_OR_DESCENDANT),
        ("/a", "/x/y", SessionStateError, ErrorKind.MOVE_DESTINATION_PARENT_MISSING),
        ("/a", "/b/y", SessionStateError, ErrorKind.MOVE_DESTINATION_PARENT_NOT_GROUP),
        ("/a", "/../x", InvalidInputError, ErrorKind.INVALID_PATH),
        ("/a//b", "/x", InvalidInputError, ErrorKind.INVALID_PATH),
    ):
        refused(lambda s=source, t=target: session.move(s, t), error, kind=kind)
    assert not session.has_uncommitted_changes


@pytest.mark.parametrize("message", [5, None, b"bytes"])
def test_messages_that_are_none(session: Session, message: Any) -> None:
    session.store.set_sync("b/c/0", B(b"\2"))
    for call in (session.commit, session.amend, session.flush):
        refused(
            lambda c=call: c(message),
            InvalidInputError,
            ValueError,
            says="message of a commit must be a string",
        )
    session.commit("")


@pytest.mark.parametrize("solver", [None, "theirs", ConflictDetector, 3])
def test_solvers_that_are_none(session: Session, solver: Any) -> None:
    session.store.set_sync("b/c/0", B(b"\2"))
    calls = [session.rebase]
    if solver is not None:  # commits without one
        calls.append(lambda solver: session.commit("x", rebase_with=solver))
    for call in calls:
        refused(
            lambda c=call: c(solver), InvalidInputError, ValueError, says="must be a ConflictSolver"
        )
    session.commit("x", rebase_with=ConflictDetector())


@pytest.mark.parametrize("metadata", [[1], "text", {5: 1}, {"a": object()}, {"a": float("nan")}])
def test_commit_metadata_that_cannot_be_stored(session: Session, metadata: Any) -> None:
    session.store.set_sync("b/c/0", B(b"\2"))
    refused(
        lambda: session.commit("message", metadata),
        InvalidInputError,
        ValueError,
        kind=ErrorKind.BAD_METADATA,
        says="metadata",
    )
    session.commit("message", {})


# -- bytes ----------------------------------------------------------------------------------
def test_change_sets_that_are_none(session: Session) -> None:
    fork = session.fork()
    fork.store.set_sync("b/c/0", B(b"\2"))
    good = fork.change_set_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    for wrong in (b"", b"foreign", good[:-1], good + b"x", bytes(flipped), pickle.dumps(5)):
        for call in (
            lambda w=wrong: session.merge_change_sets([good, w]),
            lambda w=wrong: session.distributed_commit("no", [good, w]),
        ):
            refused(call, FormatError, says="change set 1.*change_set_bytes")
    assert not session.has_uncommitted_changes
    session.distributed_commit("yes", [good])


def test_a_put_with_a_wrong_version(storage: Storage, repository: Repository) -> None:
    refused(
        lambda: storage.put("repo", b"mine", if_match="never an etag"),
        PreconditionFailedError,
    )
    refused(lambda: storage.put("repo", b"mine", if_absent=True), PreconditionFailedError)
    assert Repository.open(storage).list_branches() == {"main"}


def everything(storage: Storage) -> dict[str, Any]:
    """Read all that a repository holds."""
    repository = Repository.open(storage)
    found: dict[str, Any] = {
        "branches": sorted(repository.list_branches()),
        "tags": sorted(repository.list_tags()),
        "ancestry": [
            (entry.id, entry.message, repr(entry.metadata))
            for entry in repository.ancestry(branch="main")
        ],
        "diff": repr(repository.diff(from_snapshot_id=FIRST, to_branch="main")),
        "log": [repr(update) for update in repository.ops_log()],
    }
    for entry in repository.ancestry(branch="main"):
        session = repository.readonly_session(snapshot_id=entry.id)
        for node in session.tree.nodes():
            found[f"{entry.id} {node.path}"] = bytes(node.user_data)
            if node.is_array:
                array = zarr.open_array(session.store, path=node.path, mode="r")
                found[f"{entry.id} {node.path} data"] = np.asarray(array[:]).tolist()
    return found


METADATA = ("repo", "snapshots/", "manifests/", "transactions/")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "exchanged"])
def test_damaged_objects(damage: str) -> None:
    """An error that names the object, or nothing at all where a bit means nothing."""
    storage = MemoryStorage()
    repository = Repository.create(storage)
    with repository.transaction("main", message="one") as store:
        group = zarr.create_group(store)
        group.create_array("a", shape=(4,), chunks=(2,), dtype="i4", compressors=None)[:] = 1
    before = everything(storage)
    objects = {
        meta.key: bytes(storage.get(meta.key).data)
        for meta in storage.list()
        if meta.key.startswith(METADATA)
    }
    assert len(objects) == 6

    @settings(max_examples=120)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(objects)))
        whole = objects[key]
        position = data.draw(st.integers(0, len(whole) - 1))
        damaged = {
            "cut": whole[:position],
            "empty": b"",
            "flipped": whole[:position]
            + bytes([whole[position] ^ data.draw(st.integers(1, 255))])
            + whole[position + 1 :],
            "exchanged": objects[data.draw(st.sampled_from(sorted(objects)))],
        }[damage]
        assume(damaged != whole)
        storage.put(key, damaged)
        try:
            assert everything(storage) == before
        except IcechunkError as error:
            assert key.rpartition("/")[2] in str(error), traceback.format_exc()
        finally:
            storage.put(key, whole)

    check()
    assert everything(storage) == before
