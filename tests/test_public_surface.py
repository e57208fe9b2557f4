"""What programs for the official client expect beside the operations themselves."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr

import icechunk
from icechunk import CountingStorage, InvalidInputError, Repository, Storage
from icechunk.config import S3Options
from tests.servers import S3Server

ROOT = Path(__file__).parents[1]


# -- opening -----------------------------------------------------------------------------------
def test_open_or_create_fetches_the_repo_info_once() -> None:
    storage = CountingStorage(icechunk.in_memory_storage())
    created = Repository.open_or_create(storage, icechunk.RepositoryConfig())
    storage.reset()
    opened = Repository.open_or_create(storage, icechunk.RepositoryConfig())
    assert storage.requests == 1
    assert opened.lookup_branch("main") == created.lookup_branch("main")


def test_settings_for_a_single_look() -> None:
    storage = icechunk.in_memory_storage()
    settings = icechunk.StorageSettings(retries=icechunk.StorageRetriesSettings(max_tries=1))
    assert not Repository.exists(storage, settings)
    Repository.create(storage)
    assert Repository.exists(storage, storage_settings=settings)
    assert Repository.fetch_spec_version(storage, settings) == 2


def test_the_attribution_stays_with_the_repository() -> None:
    attribution = icechunk.Attribution(client="weather/1", workload="nightly")
    repo = Repository.create(icechunk.in_memory_storage(), attribution=attribution)
    for other in (repo, repo.reopen(), pickle.loads(pickle.dumps(repo))):
        assert other.attribution == attribution
    assert Repository.open(repo.storage).attribution is None


# -- storages of objects -------------------------------------------------------------------------
OPTIONS = {"region": "eu-1", "allow_http": True}


@pytest.mark.parametrize(
    ("named", "of_objects"),
    [
        (
            icechunk.s3_storage(bucket="b", prefix="p", headers={"x": "y"}, **OPTIONS),
            Storage.new_s3(S3Options(**OPTIONS), "b", "p", headers={"x": "y"}),
        ),
        (
            icechunk.r2_storage(prefix="b/p", account_id="me", **OPTIONS),
            Storage.new_r2(S3Options(**OPTIONS), prefix="b/p", account_id="me"),
        ),
        (
            icechunk.tigris_storage(bucket="b", prefix="p", **OPTIONS),
            Storage.new_tigris(S3Options(**OPTIONS), "b", "p", False),
        ),
        (
            icechunk.hf_storage(bucket="b", prefix="p", namespace="me", allow_http=True),
            Storage.new_hf(S3Options(**OPTIONS), "b", "p", "me"),
        ),
        (
            icechunk.gcs_storage(bucket="b", prefix="p", anonymous=True),
            Storage.new_gcs("b", "p", icechunk.GcsCredentials.Anonymous()),
        ),
        (
            icechunk.azure_storage(account="a", container="c", prefix="p", anonymous=True),
            Storage.new_azure_blob("a", "c", "p", icechunk.AzureCredentials.Anonymous()),
        ),
    ],
    ids=["s3", "r2", "tigris", "hf", "gcs", "azure"],
)
def test_both_ways_to_describe_a_storage_agree(named: Any, of_objects: Any) -> None:
    of_named, _, read_only = named.__reduce__()[1]
    place, _, too = of_objects.__reduce__()[1]
    mine, other = (dict(vars(each)) for each in (of_named, place))
    for fields in (mine, other):
        options = fields.get("options")
        if options is not None:
            # the function's own default; the class leaves it to others
            options.network_stream_timeout_seconds = None
    assert (mine, read_only) == (other, too)


def test_both_ways_to_describe_a_web_server_agree() -> None:
    named = icechunk.http_storage("http://h/p", headers={"x": "y"})
    assert named.__reduce__() == Storage.new_http("http://h/p", headers={"x": "y"}).__reduce__()


def test_a_storage_from_options_works(s3_server: S3Server) -> None:
    storage = Storage.new_s3(
        S3Options(region="us-east-1", endpoint_url=s3_server.endpoint_url, allow_http=True),
        s3_server.bucket,
        "made-of-objects",
        icechunk.s3_static_credentials(
            access_key_id=s3_server.access_key_id,
            secret_access_key=s3_server.secret_access_key,
        ),
    )
    Repository.create(storage)
    assert Repository.exists(storage)


# -- enumerations --------------------------------------------------------------------------------
def test_enumerations_are_their_numbers() -> None:
    for member, number in (
        (icechunk.ChunkType.virtual, 2),
        (icechunk.VersionSelection.UseTheirs, 2),
        (icechunk.ConflictType.ChunkDoubleUpdate, 6),
        (icechunk.SpecVersion.v2, 2),
    ):
        assert member == number == int(member)
        assert repr(member) == str(member) == f"{type(member).__name__}.{member.name}"
        assert pickle.loads(pickle.dumps(member)) is member


# -- deprecated credentials --------------------------------------------------------------------
def test_none_as_a_credential_warns_where_it_is_passed(tmp_path: Path) -> None:
    config = icechunk.RepositoryConfig()
    prefix = f"{tmp_path.as_uri()}/"
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(prefix, icechunk.local_filesystem_store(str(tmp_path)))
    )
    storage = icechunk.in_memory_storage()
    with pytest.warns(DeprecationWarning, match="LocalFileSystemAccess") as seen:
        Repository.create(storage, config, {prefix: None})
    assert [warning.filename for warning in seen] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Repository.open(storage, None, {prefix: icechunk.credentials.LocalFileSystemAccess})


# -- logs ----------------------------------------------------------------------------------------
@pytest.fixture
def reset_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget filters of logs afterwards."""
    monkeypatch.delenv("ICECHUNK_LOG", raising=False)
    yield
    icechunk.set_logs_filter(None)


def test_logs_tell_requests_and_commits_and_no_secrets(
    s3_server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "icechunk")
    repo = Repository.create(s3_server.storage())
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    snapshot = session.commit("a group")
    text = caplog.text
    assert f"committed snapshot {snapshot} to branch main" in text
    assert f"put snapshots/{snapshot}" in text
    assert "get repo" in text
    assert s3_server.secret_access_key not in text


def test_lost_races_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "icechunk")
    failing = icechunk.FaultyStorage(icechunk.in_memory_storage())
    repo = Repository.create(failing)

    def other_tag(*_: Any) -> None:
        Repository.open(failing.inner).create_tag("other", repo.lookup_branch("main"))

    failing.before = lambda operation, *rest: (  # type: ignore[method-assign]
        other_tag() if operation == "copy" and not repo.list_tags() else None
    )
    repo.create_tag("mine", repo.lookup_branch("main"))
    assert repo.list_tags() == {"mine", "other"}
    assert "somebody else was faster: 1 changes" in caplog.text


@pytest.mark.parametrize(
    ("directive", "shown"),
    [
        ("debug", {"icechunk", "icechunk.storage.object_store"}),
        ("warn,icechunk.storage=trace", {"icechunk.storage.object_store"}),
        ("debug,icechunk::storage=off", {"icechunk"}),
        ("off", set()),
    ],
)
@pytest.mark.usefixtures("reset_logs")
def test_filters_of_logs(directive: str, shown: set[str]) -> None:
    icechunk.set_logs_filter(directive)
    names = ("icechunk", "icechunk.storage.object_store")
    assert {n for n in names if logging.getLogger(n).isEnabledFor(logging.DEBUG)} == shown


@pytest.mark.usefixtures("reset_logs")
def test_a_filter_that_is_none_changes_nothing() -> None:
    icechunk.set_logs_filter("info")
    with pytest.raises(InvalidInputError, match="'loud' is not a level"):
        icechunk.set_logs_filter("debug,icechunk=loud")
    assert logging.getLogger("icechunk").level == logging.INFO


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), **environment},
    )


CREATE_AND_COMMIT = """
    import icechunk, zarr
    session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
    zarr.create_group(session.store)
    session.commit("a group")
    icechunk.shutdown_telemetry()
"""


def test_the_environment_turns_logs_on() -> None:
    told = run(CREATE_AND_COMMIT, ICECHUNK_LOG="debug", ICECHUNK_LOG_TO_STDOUT="1")
    assert "committed snapshot" in told.stdout
    assert not told.stderr
    ignored = run(CREATE_AND_COMMIT, ICECHUNK_LOG="icechunk=loud")
    assert not ignored.stdout
    (line,) = ignored.stderr.splitlines()
    assert "ICECHUNK_LOG is ignored" in line


# -- the rest ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("module", "name", "library"),
    [("xarray", "to_icechunk", "xarray"), ("dask", "store_dask", "dask")],
)
def test_a_missing_extra_is_named(module: str, name: str, library: str) -> None:
    # an import of what is None there fails as if it were not installed
    code = f"""
        import sys
        sys.modules[{library!r}] = sys.modules["icechunk_{module}"] = None
        try:
            from icechunk.{module} import {name}
        except ImportError as error:
            print(error)
    """
    assert f"pip install 'icechunk[{module}]'" in run(code).stdout


HEAVY = ("dask", "distributed", "fsspec", "h5py", "kerchunk", "obstore", "rich", "xarray", "zarr")


def loaded(code: str) -> set[str]:
    """Return which of the heavy libraries some code imports."""
    names = run(f"import sys\n{code}\nprint(*sys.modules)").stdout.split()
    return set(HEAVY) & set(names)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    assert loaded("import icechunk; icechunk.__version__; dir(icechunk)") == set()
    assert loaded("from icechunk import RepositoryConfig, S3Options, s3_credentials") == set()
    assert loaded("from icechunk import in_memory_storage, LocalStorage") <= {"obstore"}
    # Zarr itself imports fsspec
    assert loaded("from icechunk import Repository") <= {"fsspec", "obstore", "zarr"}


def test_every_public_name_is_where_it_should_be() -> None:
    assert set(dir(icechunk)) == set(icechunk.__all__)
    for name in icechunk.__all__:
        assert getattr(icechunk, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = icechunk.nothing
    # modules are found without being imported first, as in the official client
    run("import icechunk; icechunk.credentials.s3_credentials; icechunk.config.CachingConfig")


def test_debug_info(capsys: pytest.CaptureFixture[str]) -> None:
    icechunk.print_debug_info()
    shown = capsys.readouterr().out
    assert f"icechunk:  {icechunk.__version__}\n" in shown
    assert f"zarr:  {zarr.__version__}\n" in shown


def test_notebooks_show_cards_or_what_repr_says() -> None:
    repo = Repository.create(icechunk.in_memory_storage())
    (first,) = repo.ancestry(branch="main")
    session = repo.writable_session("main")
    for shown in (repo, session, session.store, session.fork(), first, session.status()):
        assert shown._repr_html_().startswith('<div class="icechunk-card">')
    for shown in (repo.status, repo.storage, repo.config):
        html = shown._repr_html_()
        assert html.startswith("<pre>")
        assert "<icechunk" not in html
