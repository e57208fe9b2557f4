"""What errors advise is said in options and commands where the command line prints them."""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path
from typing import Final

import click
import pytest
import xarray as xr
from click.testing import CliRunner

from icechunk import Repository, local_filesystem_storage
from icechunk.cli import advice
from icechunk.cli.advice import METHODS, in_options
from icechunk.cli.app import COMMANDS, main
from icechunk.storage import aws_environment
from tests.test_advice import ADVICE, ROOT, looked_up, texts

CONTEXT: Final = click.Context(main)


def command(name: str) -> click.Command:
    found = main.get_command(CONTEXT, name)
    assert found is not None
    return found


#: Command, what an error says in Python, and on the command line (None: the same).
PAIRS: Final = [
    (
        "info",
        "pass anonymous=True, or region='eu-west-1'",
        "pass -o anonymous=true, or -o region=eu-west-1",
    ),
    ("info", "pass account_id or endpoint_url", "pass -o account_id=... or -o endpoint_url=..."),
    ("info", "; Repository.repair says whether", "; icechunk repair says whether"),
    ("virtualize", "with drop_variables=['a', 'b']", "with --drop-variable a --drop-variable b"),
    (
        "virtualize",
        "leave them out with drop_variables=",
        "leave them out with --drop-variable NAME",
    ),
    ("virtualize", "name it in concat_dims", "name it in --dim"),
    ("virtualize", "pass filter_by_keys={'a': 'b', 'c': 1}", "pass --filter a=b --filter c=1"),
    ("virtualize", "pass allow_gaps=True to", "pass --allow-gaps to"),
    ("virtualize", "pass order='url' for", "pass --order url for"),
    ("virtualize", "isolate=False scans", None),
    (
        "ingest",
        "with Repository.jobs.delete('a b')",
        "with icechunk jobs REPO 'a b' --delete",
    ),
    ("ingest", "on_mismatch='skip' to", "--on-mismatch skip to"),
    ("import-kerchunk", "pass overwrite=True, append_dim to", "pass --overwrite, --append to"),
    ("import-kerchunk", "pass mask_fill_value=True", "pass --mask-fill-value"),
    (
        "cat",
        "to allow it, open the repository with authorize_virtual_chunk_access={'s3://b/': "
        "icechunk.s3_from_env_credentials() or icechunk.s3_anonymous_credentials()}",
        "to allow it, pass --authorize-virtual-chunk-access 's3://b/', or 's3://b/'=anonymous for "
        "public data",
    ),
    (
        "info",
        "set AWS_ALLOW_HTTP=true, at http://x/?a_b=c",
        "set AWS_ALLOW_HTTP=true, at http://x/?a_b=c",
    ),
    (
        "info",
        "Repository.set_status changes that",
        f"Repository.set_status changes that{advice._NOTE}",
    ),
    (
        "info",
        "pip install 'icechunk[xarray]' for icechunk.xarray",
        "pip install 'icechunk[xarray]' for icechunk.xarray",
    ),
]


@pytest.mark.parametrize(("name", "said", "shown"), PAIRS)
def test_words(name: str, said: str, shown: str | None) -> None:
    assert in_options(said, command(name)) == (shown or said)


def test_methods_and_their_commands_exist() -> None:
    for method, words in METHODS.items():
        assert looked_up(method) is not None or looked_up(f"Repository.{method}") is not None
        program, name = words.split()
        assert program == "icechunk" and name in COMMANDS


#: The command that raises what a room says, for those whose functions have arguments.
ROOMS: Final = {
    "icechunk/commit": "info",
    "icechunk/repository": "info",
    "icechunk/storage": "info",
    "icechunk/virtual": "cat",
    "icechunk/kerchunk/import": "import-kerchunk",
    "icechunk_dask/archives/within": "ingest",
    "icechunk_dask/archives": "virtualize",
    "icechunk_xarray/cop": "ingest",
    "icechunk_xarray/opened": "ingest",
}
#: Arguments that commands do not have, and what is no advice.
PYTHON_ONLY: Final = {
    *("isolate", "containers", "base_url", "dtype", "encoding", "height", "width", "options"),
    *("stores", "config", "y", "from_env"),
}


def test_no_advice_is_left_in_python_without_a_word() -> None:
    left = {}
    looked_at = 0
    for path in sorted(ROOT.glob("icechunk*/**/*.py")):
        place = str(path.relative_to(ROOT))
        name = next((name for room, name in ROOMS.items() if place.startswith(room)), None)
        for text, line in texts(ast.parse(path.read_text())) if name else ():
            if (
                len(text) < 30
                or "in_memory" in text
                or "/repository/job" in place
                or re.search(r"</|/>|\(\?|<\w+ |import |^ds = ", text)
            ):
                continue
            looked_at += 1
            # a value of its own in each place
            said = in_options(text.replace("{}", "'x'"), command(name or ""))
            found = ADVICE.search(re.sub(r"-o \w+=", "", said))
            if found and advice._NOTE not in said and found["argument"] not in PYTHON_ONLY:
                left[f"{place}:{line}"] = (found[0], said)
    assert looked_at > 300
    assert not left


# -- errors as they are printed ----------------------------------------------------------------
@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a repository, and an environment without credentials."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(aws_environment, "_MACHINE", ())
    Repository.create(local_filesystem_storage(str(tmp_path / "repo")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "file.nc").write_bytes(b"\x89HDF")
    (tmp_path / "plain.zarr").mkdir()
    (tmp_path / "plain.zarr/zarr.json").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "advised"),
    [
        ("info {}/nothing", "make one with icechunk create"),
        ("info {}/full/x", "is a file, and a repository is a folder"),
        ("ls {}/repo/group", "open that, and name the group 'group'"),
        ("info {}/file.nc", "icechunk virtualize and icechunk ingest make a repository of it"),
        (
            "info {}/plain.zarr",
            "not an Icechunk repository: xarray and Zarr open it",
        ),
        ("create {}/repo", "icechunk info shows it"),
        ("create {}/full", "choose an empty place"),
        (
            "info s3://bucket/x",
            "Pass -o access_key_id=... and -o secret_access_key=..., or -o anon",
        ),
        ("info s3://b/x -o endpoint_url=http://127.0.0.1:1", "pass -o allow_http=true"),
        ("info r2://b/x -o anonymous=true", "pass -o account_id=... or -o endpoint_url=..."),
        ("info tigris://b/x -o anonymous=true", "-o use_weak_consistency=true"),
        ("branch {}/repo main", "icechunk reset moves it"),
        ("branch {}/repo main --delete --yes", "icechunk reset moves it"),
        ("jobs {}/repo none --delete --yes", "there is no job 'none'"),
        ("jobs {}/repo --delete", "name the job to delete"),
    ],
)
def test_errors(nothing: Path, line: str, advised: str) -> None:
    done = CliRunner().invoke(main, line.format(nothing).split())
    assert done.exit_code in (1, 2)
    assert advised in done.output
    assert not advice._PYTHON.search(done.output)


def test_a_job_is_deleted(nothing: Path) -> None:
    repo = Repository.open(nothing / "repo")
    repo.jobs.create("days", keys=[0], message="Days")
    line = ["jobs", str(nothing / "repo"), "days", "--delete"]
    assert "Delete the job days?" in CliRunner().invoke(main, line, input="n").output
    assert repo.jobs.list() == ["days"]
    done = CliRunner().invoke(main, [*line, "--yes"])
    assert done.output == "deleted the job days\n"
    assert repo.jobs.list() == []


def test_a_container_for_files_of_an_archive(nothing: Path) -> None:
    """Each error advises the next command, until the archive is there."""
    data = xr.Dataset({"t": (("time",), [1.0, 2.0])}, {"time": [0, 1]})
    (nothing / "my files").mkdir()
    file, repo = str(nothing / "my files/0.nc"), str(nothing / "repo")
    data.to_netcdf(file, engine="h5netcdf")
    line = ["virtualize", repo, file]
    for _ in range(3):
        done = CliRunner().invoke(main, line)
        if not done.exit_code:
            break
        said = done.output.replace("REPO", repo)
        advised = shlex.split(re.findall(r"--[a-z-]+ '[^']*'", said)[0])
        if "icechunk config" in said:
            assert CliRunner().invoke(main, ["config", repo, *advised]).exit_code == 0
        else:
            line += advised
    assert not done.exit_code, done.output
    config = Repository.fetch_config(nothing / "repo")
    assert config is not None
    assert list(config.virtual_chunk_containers or {}) == [f"file://{nothing}/my%20files/"]
