"""Every command, on real repositories in a folder, as text and as JSON."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from click import Choice, Context, Option
from click.testing import CliRunner, Result

import icechunk_dask
from icechunk import RepoAvailability, Repository, RepoStatus, local_filesystem_storage
from icechunk.cli import archives
from icechunk.cli.app import COMMANDS, main
from icechunk.cli.output import fields, table
from icechunk.storage.wrappers import WrapperStorage
from tests.cli.terminals import all_shown
from tests.servers import S3Server

#: Any status but 0.
ANY = -1


def run(*args: str | int | Path, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args], input=answer)
    assert result.exit_code == code or (code == ANY and result.exit_code), result.output
    # a mistake is a message, never a traceback
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def data(*args: str | int | Path) -> Any:
    return json.loads(run(*args, "--json").stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with three commits, a branch and a tag."""
    folder = tmp_path / "repo"
    repo = Repository.create(local_filesystem_storage(str(folder)))
    session = repo.writable_session("main")
    group = zarr.create_group(session.store, path="g")
    array = group.create_array(
        "a", shape=(4, 6), chunks=(2, 3), dtype="f4", dimension_names=("y", "x")
    )
    array[:2] = 1
    first = session.commit("first\nwith details", {"who": "me"})
    repo.create_tag("v1", first)
    repo.create_branch("side", first)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="g/a")[2:] = np.arange(12).reshape(2, 6)
    session.commit("second")
    return folder


@pytest.fixture
def repo(folder: Path) -> Repository:
    return Repository.open(local_filesystem_storage(str(folder)))


def test_info(folder: Path, repo: Repository) -> None:
    told = data("info", folder)
    assert told["branches"] == {name: repo.lookup_branch(name) for name in ("main", "side")}
    assert told["tags"] == {"v1": repo.lookup_tag("v1")}
    assert told["spec_version"] == 2
    shown = run("info", folder).stdout
    assert all(part in shown for part in ("main", "side", "v1", "second", repo.lookup_tag("v1")))
    assert "with details" not in shown


def test_log(folder: Path, repo: Repository) -> None:
    ids = [each.id for each in repo.ancestry(branch="main")]
    assert [each["id"] for each in data("log", folder)] == ids
    assert [each["id"] for each in data("log", folder, "-n", "1", "-r", "v1")] == ids[1:2]
    lines = run("log", folder).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ids


def test_graph(folder: Path, repo: Repository) -> None:
    newest = next(repo.ancestry(branch="main"))
    drawn = run("log", folder, "--graph").stdout
    assert f"{newest.id[:8]} {newest.written_at:%Y-%m-%d %H:%M} (main) {newest.message}" in drawn
    assert drawn.splitlines()[:1] == run("log", folder, "--graph", "-n", "1").stdout.splitlines()
    told = data("log", folder, "--graph")
    assert {each["id"] for each in told} == {
        each.id for name in ("main", "side") for each in repo.ancestry(branch=name)
    }
    (tip,) = (each for each in told if "main" in each["branches"])
    assert tip["id"] == newest.id and tip["written_at"] == newest.written_at.isoformat()
    tagged = data("log", folder, "--graph", "-r", "v1")
    assert [each["id"] for each in tagged] == [each.id for each in repo.ancestry(tag="v1")]
    assert "v1" in tagged[0]["tags"]


def test_show(folder: Path, repo: Repository) -> None:
    told = data("show", folder, "-r", "v1")
    assert told["commit"]["metadata"] == {"who": "me"}
    assert told["changes"]["new_arrays"] == ["/g/a"]
    shown = run("show", folder).stdout
    assert "second" in shown
    assert "/g/a" in shown
    # the first snapshot of all has no parent
    oldest = [each.id for each in repo.ancestry(branch="main")][-1]
    assert "no changes" in run("show", folder, "-r", oldest).stdout


def test_diff(folder: Path) -> None:
    told = data("diff", folder, "--from", "v1")
    assert told["updated_chunks"] == {"/g/a": [[1, 0], [1, 1]]}
    run("diff", folder, "--from", "v1", "--exit-code", code=1)
    run("diff", folder, "--from", "v1", "--to", "side", "--exit-code")
    assert "chunks" in run("diff", folder, "--from", "v1").stdout


def test_contents(folder: Path) -> None:
    assert data("ls", folder) == {"g": {"kind": "group"}}
    described = {
        "kind": "array",
        "dimensions": ["y", "x"],
        "shape": [4, 6],
        "chunks": [2, 3],
        "dtype": "float32",
    }
    assert data("ls", folder, "/g") == {"a": described}
    assert data("tree", folder)["members"]["g"]["members"]["a"] == described
    assert "a (y: 4, x: 6) float32" in run("tree", folder).stdout
    assert json.loads(run("cat", folder, "g/a").stdout)["dimension_names"] == ["y", "x"]
    assert run("cat", folder, "g/a", "-c", "1,1").stdout.split() == (
        ["[[", "3.", "4.", "5.]", "[", "9.", "10.", "11.]]"]
    )
    assert data("chunks", folder, "g/a", "-r", "v1") == {
        "grid": [2, 2],
        "written": 2,
        "missing": 2,
        "inline": 2,
        "native": 0,
        "virtual": 0,
        "bytes": data("chunks", folder, "g/a", "-r", "v1")["bytes"],
        "files": 0,
    }


def test_branches_and_tags(folder: Path, repo: Repository) -> None:
    run("branch", folder, "new", "--at", "v1")
    assert data("branch", folder)["new"] == repo.lookup_tag("v1")
    run("branch", folder, "new", "--delete", code=1, answer="n\n")
    assert "new" in data("branch", folder)
    run("branch", folder, "new", "--delete", "--yes")
    assert "new" not in data("branch", folder)
    run("tag", folder, "v2")
    assert data("tag", folder)["v2"] == repo.lookup_branch("main")
    run("tag", folder, "v2", "--delete", answer="y\n")
    assert set(data("tag", folder)) == {"v1"}
    assert "second" in run("branch", folder).stdout


def test_reset(folder: Path, repo: Repository) -> None:
    before = repo.lookup_branch("main")
    assert before in run("reset", folder, "main", "v1", "--dry-run").stdout
    assert repo.lookup_branch("main") == before
    run("reset", folder, "main", "v1", "--yes")
    assert repo.lookup_branch("main") == repo.lookup_tag("v1")


def test_upkeep(folder: Path, repo: Repository, tmp_path: Path) -> None:
    assert data("stats", folder)["inlined_bytes"] > 0
    assert "native" in run("stats", folder).stdout
    assert data("expire", folder, "--older-than", "2000-01-01", "--yes") == {"expired": []}
    count = data("gc", folder, "--older-than", "1h", "--dry-run")["snapshots_deleted"]
    assert count == 0
    run("gc", folder, "--older-than", "1h", "--yes")
    run("rewrite", folder, "-m", "anew")
    assert data("log", folder)[0]["message"] == "anew"
    run("create", tmp_path / "old", "--spec-version", "1")
    assert data("info", tmp_path / "old")["spec_version"] == 1
    run("upgrade", tmp_path / "old", "--dry-run")
    run("upgrade", tmp_path / "old", "--yes")
    assert data("info", tmp_path / "old")["spec_version"] == 2
    # refused without a question
    refused = run("upgrade", tmp_path / "old", code=1).output
    assert "there is nothing to upgrade" in refused and "[y/N]" not in refused
    assert isinstance(data("config", folder), dict)
    assert "RepositoryConfig" in run("config", folder).stdout


def test_ops_and_inspect(folder: Path, repo: Repository) -> None:
    assert [each["operation"] for each in data("ops", folder, "-n", "1")] == ["NewCommit"]
    assert "commit" in run("ops", folder).stdout.lower()
    tip = repo.lookup_branch("main")
    assert json.loads(run("inspect", folder, "snapshot", tip).stdout)["id"] == tip
    assert json.loads(run("inspect", folder, "snapshot", "main").stdout)["id"] == tip
    assert data("inspect", folder, "transactions", "main~1") == data(
        "inspect", folder, "transactions", repo.resolve("v1")
    )
    assert "did you mean 'main'" in run("inspect", folder, "snapshot", "mian", code=1).output
    assert json.loads(run("inspect", folder, "repo").stdout)
    assert "its id is missing" in run("inspect", folder, "manifest", code=2).output


def test_verify(folder: Path) -> None:
    assert data("verify", folder, "--deep", "all", "--sources")["ok"] is True
    assert "no damage" in run("verify", folder).stdout
    (manifest, *_) = sorted((folder / "manifests").iterdir())
    manifest.unlink()
    told = run("verify", folder, code=1).stdout
    assert f"missing: manifests/{manifest.name}" in told


def test_jobs(folder: Path, repo: Repository) -> None:
    assert data("jobs", folder) == []
    repo.jobs.create("days", keys=[1, 2], message="x")
    assert data("jobs", folder) == ["days"]
    assert "days" in run("jobs", folder, "days").stdout
    assert data("jobs", folder, "days")
    assert "there is no job" in run("jobs", folder, "weeks", code=1).output


def test_versions_by_other_names(folder: Path, repo: Repository) -> None:
    ids = [each.id for each in repo.ancestry(branch="main")]
    assert data("show", folder, "-r", "main~1")["commit"]["id"] == ids[1]
    assert data("show", folder, "-r", ids[1][:8])["commit"]["id"] == ids[1]
    assert "main" in run("log", folder, "-r", "mian", code=1).output


def test_kerchunk_references_go_out_and_come_back(folder: Path, tmp_path: Path) -> None:
    run("export", folder, tmp_path / "refs.json")
    run("create", tmp_path / "other")
    # chunks in the references come back by value
    run("import-kerchunk", tmp_path / "other", tmp_path / "refs.json")
    assert data("tree", tmp_path / "other")["members"]["g"]["members"]["a"]["shape"] == [4, 6]


def test_virtualize(tmp_path: Path) -> None:
    for day in range(2):
        values = xr.Dataset({"t": (("time", "x"), np.full((1, 3), day, "f4"))}, {"time": [day]})
        values.to_netcdf(tmp_path / f"{day}.nc", engine="h5netcdf")
    files = [tmp_path / "0.nc", tmp_path / "1.nc"]
    assert "2 added" in run("virtualize", tmp_path / "archive", *files, "--dim", "time").stdout
    assert data("ls", tmp_path / "archive")["t"]["shape"] == [2, 3]
    assert "0 added" in run("virtualize", tmp_path / "archive", *files).stdout
    assert "nothing.nc" in run("virtualize", tmp_path / "x", tmp_path / "nothing.nc", code=1).output
    # one of several: nothing was committed, and there is nothing to open
    (tmp_path / ".nc").write_bytes(files[0].read_bytes()[:3000])
    told = run("virtualize", tmp_path / "y", tmp_path / ".nc", *files, code=1).stdout
    assert "nothing was committed" in told and "open it" not in told


@pytest.mark.parametrize("command", ["virtualize", "ingest"])
def test_choices_among_what_files_hold(command: str, tmp_path: Path) -> None:
    for day in range(2):
        values = np.full((1, 3), day, "f4")
        xr.Dataset(
            {
                "t": (("time", "x"), values, {"note": "n", "units": "K"}),
                "u": (("time", "x"), values + 1, {"note": "n"}),
                "v": (("time", "x"), values + 2),
            },
            {"time": [day]},
        ).to_netcdf(tmp_path / f"{day}.nc", engine="h5netcdf")
    place, files = tmp_path / "archive", [tmp_path / "0.nc", tmp_path / "1.nc"]
    chosen = ["--variable", "t", "--variable", "u", "--rename", "t=temp", "--rename", "x=lon"]
    left_out = ["--drop-attribute", "temp:note", "--verify", "all"]
    run(command, place, *files, *chosen, *left_out)
    found = data("tree", place)["members"]
    assert sorted(found) == ["temp", "time", "u"]
    document = data("cat", place, "/temp")
    assert document["dimension_names"] == ["time", "lon"]
    assert document["attributes"]["units"] == "K" and "note" not in document["attributes"]
    assert data("cat", place, "/u")["attributes"]["note"] == "n"
    run(command, tmp_path / "less", *files, "--drop-variable", "t", "--drop-variable", "v")
    assert sorted(data("tree", tmp_path / "less")["members"]) == ["time", "u"]
    wrong = run(command, place, *files, "--rename", "t", code=2).output
    assert "'t' is not OLD=NEW" in wrong


def test_virtualize_what_has_changed(tmp_path: Path) -> None:
    def write(day: int, value: float) -> None:
        values = np.full((1, 40), value, "f4")
        content = xr.Dataset({"t": (("time", "x"), values)}, {"time": [day]})
        content.to_netcdf(tmp_path / f"{day}.nc", engine="h5netcdf")

    files = [tmp_path / f"{day}.nc" for day in range(3)]
    write(0, 0)
    (tmp_path / "1.nc").write_text("no file of values")
    write(2, 2)
    place = tmp_path / "archive"
    run("virtualize", place, *files, code=1)
    assert data("tree", place)["members"]["t"]["shape"] == [1, 40]
    run("virtualize", place, *files, "--allow-gaps", "--commit-every", 1, code=1)
    assert data("tree", place)["members"]["t"]["shape"] == [2, 40]
    write(2, 5)
    assert "2.nc" in run("virtualize", place, files[0], files[2], code=1).output
    assert (
        "1 replaced"
        in run("virtualize", place, files[0], files[2], "--on-changed", "replace").stdout
    )
    access = ("--authorize-virtual-chunk-access", tmp_path)
    assert data("cat", place, "/t", "-c", "1,0", *access)["values"] == [[5.0] * 40]


@pytest.mark.parametrize("function", [icechunk_dask.virtualize, icechunk_dask.ingest])
def test_options_are_arguments(function: Callable[..., Any]) -> None:
    command = archives.COMMANDS[function.__name__]
    given = {param.name for param in command.params}
    assert given - {"repo", "options", "as_json"} <= set(inspect.signature(function).parameters)
    # and so are their values
    # where one is as for the other, it is told there
    told = f"{inspect.getdoc(function)}\n{inspect.getdoc(icechunk_dask.virtualize)}"
    choices = {p.name: p.type.choices for p in command.params if isinstance(p.type, Choice)}
    assert {"on_mismatch", "on_changed", "verify"} <= set(choices)
    for name, values in choices.items():
        listed, *_ = re.findall(rf"^{name} : \{{(.*?)\}}", told, re.MULTILINE)
        assert sorted(re.findall(r'"(\w+)"', listed)) == sorted(values), name


def test_virtual_chunks_of_a_folder(tmp_path: Path) -> None:
    values = np.arange(12, dtype="f4").reshape(2, 6)
    (tmp_path / "files").mkdir()
    file, place = tmp_path / "files" / "0.nc", tmp_path / "archive"
    content = xr.Dataset({"t": (("time", "x"), values)}, {"time": [0, 1]})
    content.to_netcdf(file, engine="h5netcdf", encoding={"t": {"chunksizes": (1, 6)}})
    run("virtualize", place, file)
    refused = run("cat", place, "/t", "-c", "0,0", code=1).output
    assert "pass --authorize-virtual-chunk-access 'file:" in refused
    prefix = f"file://{tmp_path}/files/"
    for way in (tmp_path / "files", prefix, f"{prefix}=anonymous"):
        access = ("--authorize-virtual-chunk-access", way)
        shown = data("cat", place, "/t", "-c", "1,0", *access)
        assert shown["values"] == [values[1].tolist()]
    looked = data("verify", place, "--sources", "--deep", "all", *access)["checked"]
    assert looked["values"] == 3 and "sources that may not be read" not in looked
    assert data("verify", place, "--sources")["checked"]["sources that may not be read"] == 1
    message = "'ftp://x/' begins with none of file, s3, "
    wrong = ("--authorize-virtual-chunk-access", "ftp://x/")
    assert message in run("cat", place, "/t", *wrong, code=2).output


def test_files_of_a_private_bucket(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository is a folder: options are for the files, and keys are in the environment."""
    content = xr.Dataset({"t": (("time", "x"), np.ones((2, 6), "f4"))}, {"time": [0, 1]})
    content.to_netcdf(tmp_path / "0.nc", engine="h5netcdf", encoding={"t": {"chunksizes": (1, 6)}})
    storage = s3_server.storage()
    storage.put("files/0.nc", (tmp_path / "0.nc").read_bytes())
    prefix = f"{storage.url}/files/"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_access_key)
    options = {"endpoint_url": s3_server.endpoint_url, "allow_http": "true", "region": "us-east-1"}
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    place = tmp_path / "archive"
    run("virtualize", place, f"{prefix}*.nc", *given)
    run("ingest", tmp_path / "copy", f"{prefix}0.nc", *given)
    assert data("cat", tmp_path / "copy", "/t", "-c", "0,0")["values"][0] == [1.0] * 6
    command = ("cat", place, "/t", "-c", "0,0", "--authorize-virtual-chunk-access", prefix)
    # the stored endpoint could be anybody's
    assert "--trust-config" in run(*command, code=1).output
    assert data(*command, "--trust-config")["values"] == [[1.0] * 6]
    given = [{"-o": "--remote-option"}.get(word, word) for word in given]
    assert "0 added" in run("virtualize", place, f"{prefix}*.nc", *given).stdout


# -- doctor ------------------------------------------------------------------------------------
def test_doctor(folder: Path, tmp_path: Path) -> None:
    def objects() -> list[Path]:
        # locks of a folder stay, and are empty
        return sorted(p for p in folder.rglob("*") if p.is_file() and "#" not in p.name)

    before = objects()
    assert all(each["ok"] for each in data("doctor", folder))
    assert objects() == before
    assert "no repository yet" in run("doctor", tmp_path / "none", "--read-only").stdout


class IgnoresConditions(WrapperStorage):
    """A server that has not heard of conditional puts."""

    def put(self, key: str, data: Any, **conditions: Any) -> str | None:
        return super().put(key, data)


def test_doctor_finds_a_server_that_loses_commits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(url: str, **options: Any) -> Any:
        return IgnoresConditions(local_filesystem_storage(url))

    monkeypatch.setattr("icechunk.cli.options.storage_from_url", made)
    told = run("doctor", folder, code=1).stdout
    assert "ignores If-None-Match" in told
    assert "ignores the condition of a put (If-Match)" in " ".join(told.split())


# -- mistakes, and terminals -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info", "nowhere"], "nowhere"),
        (["log", "{}", "-r", "mian"], "mian"),
        (["ls", "{}", "/nope"], "nope"),
        (["chunks", "{}", "/g"], "is a group"),
        (["cat", "{}", "/g/a", "-c", "9,9"], "is not a chunk"),
        (["gc", "{}", "--older-than", "yesterday"], "is not a time"),
        (["info", "{}", "-o", "nonsense"], "NAME=VALUE"),
        (["info", "s3:/bucket"], "s3"),
        (["lgo", "{}"], "Did you mean log"),
        (["create", "{}"], "exists"),
        (
            ["config", "{}", "--add-container", "s3://b/", "--add-container", "ftp://x"],
            "'ftp://x/' begins with none of file, s3,",
        ),
        (["config", "{}", "--add-container", "az://files/x"], "needs its account"),
    ],
)
def test_mistakes(folder: Path, args: list[str], message: str) -> None:
    result = CliRunner().invoke(main, [arg.format(folder) for arg in args])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


def test_every_command_has_help() -> None:
    listed = run("--help").stdout
    for name in COMMANDS:
        assert name in listed
        assert "Options:" in run(name, "--help").stdout


def test_every_option_has_help() -> None:
    for name in COMMANDS:
        command = main.get_command(Context(main), name)
        assert command is not None
        for option in command.params:
            if isinstance(option, Option):
                # a sentence that says what it does
                assert re.fullmatch(r"\w[^.]+ .+\.", option.help or ""), (name, option.name)


def command(*args: str | Path, **environment: str) -> list[str]:
    return [sys.executable, "-c", "from icechunk.cli.app import main; main()", *map(str, args)]


def test_as_a_module(folder: Path) -> None:
    """``python -m icechunk`` is the command under its own name."""
    done = subprocess.run(
        [sys.executable, "-m", "icechunk", "inof", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Usage: python -m icechunk" in done.stderr
    assert "Did you mean info?" in done.stderr


def test_help_does_not_wait_for_zarr() -> None:
    code = "import sys, icechunk.cli.app; print('zarr' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_looking_at_a_repository_loads_little(folder: Path) -> None:
    """What is not imported keeps the start of each of these under 0.3 s."""
    program = """
import contextlib, io, sys
from icechunk.cli import main
folder = sys.argv[1]
for command in ("info", "log", "show", "diff", "branch", "tag", "ops", "config"):
    sys.argv = ["icechunk", command, folder, *(["--from", "v1"] if command == "diff" else [])]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            assert not end.code, command
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    loaded = set(done.stdout.split())
    others = {name.partition(".")[0] for name in loaded} & {
        *(
            "zarr",
            "xarray",
            "dask",
            "pandas",
            "h5py",
            "fsspec",
            "yaml",
            "boto3",
            "numcodecs",
            "rich",
        ),
        *("asyncio", "ssl", "socket", "http", "email", "multiprocessing", "subprocess"),
    }
    assert not others
    ours = {name for name in loaded if name.startswith("icechunk")}
    assert not {name for name in ours if ".kerchunk" in name or ".repository.job" in name}
    assert "icechunk.repository.verify" not in ours


def test_columns_stand_below_each_other_and_cells_are_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Widths are those of a terminal, where some characters take two columns, and some none."""
    long = "a message that is far longer than any terminal is wide " * 5
    rows = [("ab", 1, long), ("\u6c34", 12_000, "e\u0301 \x1b[1m"), ("e\u0301", 3, "")]
    table(rows, "name", "bytes", "message")
    fields({"a": 1, "longer": "\n"})
    assert capsys.readouterr().out.split("\n") == [
        "name  bytes  message",
        f"ab        1  {long.rstrip()}",
        "\u6c34    12000  e\u0301 \\x1b[1m",
        "e\u0301         3",
        "a       1",
        "longer  \\n",
        "",
    ]


def in_a_terminal(args: list[str], **environment: str) -> str:
    """Run a command through a pseudo-terminal and return what it shows."""
    parent, child = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", **environment}
    with subprocess.Popen(args, stdout=child, stderr=child, env=env) as process:
        os.close(child)
        shown = all_shown(parent)
        assert process.wait() == 0, shown
    os.close(parent)
    return shown.decode()


def test_colours_are_for_terminals(folder: Path) -> None:
    args = command("info", folder)
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    piped = subprocess.run(args, capture_output=True, text=True, check=True, env=environment)
    assert "\x1b" not in piped.stdout
    assert "\x1b[1m" in in_a_terminal(args)
    assert "\x1b[3" not in in_a_terminal(args, NO_COLOR="1")


def test_text_of_strangers_does_not_steer_the_terminal(folder: Path, repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="g/a")[0] = 5
    session.commit("\x1b[2J\x07gone")
    for args in (["log"], ["info"], ["show"], ["branch"], ["log", "--graph"], ["ops"]):
        shown = run(args[0], folder, *args[1:]).stdout
        assert "\x1b" not in shown
        assert "\x07" not in shown


def test_commits_of_commits(folder: Path, repo: Repository) -> None:
    def values(branch: str) -> float:
        store = repo.readonly_session(branch).store
        return float(zarr.open_array(store, path="g/a", mode="r")[:].sum())

    second = repo.lookup_branch("main")
    id = run("cherry-pick", folder, "main", "-b", "side").stdout.split()[-1]
    assert repo.lookup_branch("side") == id
    assert values("side") == 78.0
    run("revert", folder, "main", "-m", "back")
    assert (values("main"), repo.lookup_snapshot(repo.lookup_branch("main")).message) == (
        12,
        "back",
    )
    assert "no changes made to the session" in run("revert", folder, second, code=1).output
    run("squash", folder, "v1", "-m", "one")
    assert values("main") == 12.0
    assert [each.message for each in repo.ancestry(branch="main")][:2] == [
        "one",
        "first\nwith details",
    ]
    run("squash", folder, "v1", code=2)


def test_repair(folder: Path, repo: Repository) -> None:
    tip = repo.lookup_branch("main")
    assert "nothing to repair" in run("repair", folder).output
    (folder / "repo").write_bytes(b"")
    assert "icechunk repair" in run("verify", folder, code=1).output
    told = data("repair", folder, "--dry-run")
    assert told["unlisted"][0]["id"] == tip
    assert (folder / "repo").read_bytes() == b""
    assert "Aborted" in run("repair", folder, code=1, answer="n\n").output
    run("repair", folder, "--yes")
    run("repair", folder, "--adopt", f"main={tip}", "--yes")
    assert Repository.open(folder).lookup_branch("main") == tip
    run("repair", folder, "--adopt", "main", code=2)
    # one of the newest version, which is what is repaired; names are random
    (manifest,) = Repository.open(folder).list_manifest_files(tip)
    (folder / "manifests" / manifest.id).unlink()
    assert "would be dropped" in run("repair", folder, "-b", "main", "--dry-run").output
    run("repair", folder, "-b", "main", "--drop-unreadable", "--yes")
    assert Repository.open(folder).lookup_branch("main") != tip
    # what is left can be decoded
    assert "nothing to repair" in run("repair", folder, "-b", "main", "--deep").output
    assert "deep needs a branch" in run("repair", folder, "--deep", code=1).output


def completions(line: str) -> list[str]:
    environment = {
        "_ICECHUNK_COMPLETE": "bash_complete",
        "COMP_WORDS": f"icechunk {line}",
        "COMP_CWORD": str(len(line.split(" "))),
    }
    result = CliRunner().invoke(main, prog_name="icechunk", env=environment)
    assert "Traceback" not in result.output
    return [answer.partition(",")[2] for answer in result.stdout.split()]


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("che", ["cherry-pick"]),
        ("log {} --gr", ["--graph"]),
        ("log {} -r ", ["main", "side", "v1"]),
        ("log {} -r v", ["v1"]),
        ("diff {} --from s", ["side"]),
        ("reset {} m", ["main"]),
        ("reset {} main v", ["v1"]),
        ("branch {} s", ["side"]),
        ("tag {} ", ["v1"]),
        ("revert {} -b si", ["side"]),
        ("ls {} ", ["g"]),
        ("chunks {} /g", ["/g"]),
        ("chunks {} -r side g/", ["g/a"]),
        ("chunks {} /g/", ["/g/a"]),
        ("cat {} /nope/", []),
        ("cat {} -r nope ", []),
        ("jobs {} ", ["monthly"]),
        ("log {}-missing -r ", []),
        ("log {} -o nonsense=1 -r ", []),
        ("log s3:/x -r ", []),
    ],
)
def test_completion(line: str, completed: list[str], folder: Path, repo: Repository) -> None:
    repo.jobs.create("monthly", keys=[1], message="Months")
    assert completions(line.format(folder)) == completed


@pytest.mark.parametrize(
    "name",
    [
        *(f"s{letter}x" for letter in " $`;&|<>()*?[]{}!#~^'\"\\\n\r\t\x1b\u202e"),
        "s$(id)",
        "s\nplain,x",
    ],
)
def test_completion_offers_nothing_that_a_shell_runs(
    name: str, folder: Path, repo: Repository
) -> None:
    tip = repo.lookup_branch("main")
    repo.create_branch(name, tip)
    repo.create_tag(name, tip)
    session = repo.writable_session("main")
    zarr.create_group(session.store, path=name)
    session.commit("named")
    assert completions(f"log {folder} -r s") == ["side"]
    assert completions(f"tag {folder} s") == []
    # Zarr takes a backslash for a slash
    assert completions(f"ls {folder} s") == (["s"] if "\\" in name else [])


@pytest.mark.parametrize("name", ["s-x", "s_x.1", "s/x", "s@x", "sä", "s+x=1:2,3%"])
def test_completion_offers_other_names(name: str, folder: Path, repo: Repository) -> None:
    repo.create_branch(name, repo.lookup_branch("main"))
    assert set(completions(f"log {folder} -r s")) == {"side", name}


def test_completion_of_a_snapshot(folder: Path, repo: Repository) -> None:
    tip = repo.lookup_branch("main")
    assert completions(f"show {folder} -r {tip[:6]}") == [tip]


def test_completion_does_not_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr("icechunk.cli.completing._PATIENCE", 0.01)
    monkeypatch.setattr(Repository, "list_branches", lambda self: answered.wait(60) and {"main"})
    assert completions(f"reset {folder} m") == []
    answered.set()


def test_preview_of_an_expiration(folder: Path, repo: Repository) -> None:
    told = data("expire", folder, "--older-than", "0d", "--dry-run", "--tags")
    assert told["tags"] == ["v1"]
    assert "would expire" in run("expire", folder, "--older-than", "0d", "--dry-run").output
    assert list(repo.list_tags()) == ["v1"]
    assert "kept, too young" in run("gc", folder, "--older-than", "1d", "--dry-run").output
    assert "deleted" in run("gc", folder, "--older-than", "1d", "--incremental", "--yes").output


def test_copy_and_annotate(folder: Path, repo: Repository, tmp_path: Path) -> None:
    told = data("copy", folder, tmp_path / "other")
    assert (told["branch"], told["snapshots"]) == ("main", 3)
    assert "were there" in run("copy", folder, tmp_path / "other", "-r", "v1", "-b", "old").output
    other = Repository.open(tmp_path / "other")
    assert other.lookup_branch("main") == repo.lookup_branch("main")
    assert other.lookup_branch("old") == repo.lookup_tag("v1")
    run("copy", folder, tmp_path / "third", "--no-history")
    run("copy", folder, tmp_path / "fourth", "--to-option", "x", code=2)
    told = data("annotate", folder, "g/a")
    first, second = repo.lookup_tag("v1"), repo.lookup_branch("main")
    assert told["metadata"] == first
    assert {k: v["chunks"] for k, v in told["commits"].items()} == {
        second: [[1, 0], [1, 1]],
        first: [[0, 0], [0, 1]],
    }
    shown = run("annotate", folder, "g/a", "-c", "0:1,0:9").stdout
    assert first in shown and second not in shown
    run("annotate", folder, "g/a", "-c", "0-1", code=2)


#: What is refused, and how: nobody is asked first.
REFUSED = {
    "the main branch": ("branch", "{}", "main", "-d"),
    "a branch that is not there": ("branch", "{}", "mian", "-d"),
    "a branch without a name": ("branch", "{}", "-d"),
    "a tag without a name": ("tag", "{}", "-d"),
    "a job that is not there": ("jobs", "{}", "nightly", "-d"),
    "a version that is not there": ("reset", "{}", "main", "v9"),
    "an upgrade of spec 2": ("upgrade", "{}"),
}


@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_not_asked(command: tuple[str, ...], folder: Path) -> None:
    shown = run(*(word.format(folder) for word in command), code=ANY, answer="").output
    assert "[y/N]" not in shown
    assert "Error: " in shown


ASKING = {
    "branch": ("branch", "{}", "dev", "-d"),
    "tag": ("tag", "{}", "v1", "-d"),
    "reset": ("reset", "{}", "dev", "v1"),
    "expire": ("expire", "{}", "--older-than", "1d"),
    "gc": ("gc", "{}", "--older-than", "1d"),
    "jobs": ("jobs", "{}", "nightly", "-d"),
}


@pytest.mark.parametrize("command", ASKING.values(), ids=ASKING)
def test_a_read_only_repository_is_not_asked_about(command: tuple[str, ...], folder: Path) -> None:
    repo = Repository.open(folder)
    if "dev" not in repo.list_branches():
        repo.create_branch("dev", repo.resolve("main"))
    repo.jobs.create("nightly", keys=[1], message="Every night")
    words = [word.format(folder) for word in command]
    assert "[y/N]" in run(*words, code=1, answer="n\n").output
    repo.set_status(RepoStatus(RepoAvailability.read_only, limited_availability_reason="moving"))
    shown = run(*words, code=1, answer="").output
    assert "[y/N]" not in shown
    assert "moving" in shown


def test_a_branch_that_is_there_already_is_not_moved(folder: Path) -> None:
    before = len(list(Repository.open(folder).ops_log()))
    assert "already" in run("reset", folder, "main", "main").output
    assert data("reset", folder, "main", "main")["moved"] is False
    assert len(list(Repository.open(folder).ops_log())) == before


def test_an_object_is_not_called_a_snapshot(folder: Path) -> None:
    shown = run("inspect", folder, "manifest", "BAD", code=1).output
    assert "'BAD' is not an id" in shown
    assert "snapshot" not in shown


def test_one_thing_is_not_called_several(folder: Path) -> None:
    """In what a command prints of a repository in which there is one of each kind."""
    place = folder.parent / "one"
    repo = Repository.create(place)
    with repo.transaction("main", message="One") as store:
        array = zarr.create_array(store, name="a", shape=(1,), chunks=(1,), dtype="f8")
        array[:] = 1.5
    commands = [("verify", "--deep", "all"), ("jobs",), ("stats",), ("annotate", "/a"), ("info",)]
    for name, *options in commands:
        shown = run(name, place, *options).output
        assert not re.search(r"\b1 (?:more |other )?[a-z]+(?<!byte)s\b", shown), shown
