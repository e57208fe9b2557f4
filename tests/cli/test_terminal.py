"""Every command in a terminal, on repositories of this client and of both official ones.

All commands of a repository run in one process behind a pseudo-terminal, as text and as JSON.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from icechunk import Repository
from icechunk.cli.app import COMMANDS
from tests.cli.terminals import all_shown

GOLDEN = Path(__file__).parents[1] / "data"
#: Between commands of a session, and before the status of one.
MARK = "\x1e"
DRIVER = f"""
import json, sys
from icechunk.cli.app import main
for line in json.loads(sys.argv[1]):
    print("{MARK}", end="", flush=True)
    try:
        main(line, prog_name="icechunk")
    except SystemExit as end:
        print(f"{MARK}{{end.code}}", end="", flush=True)
"""
#: What is refused, by spec version and the beginning of a line.
REFUSED = {
    1: ("ops", "inspect repo", "copy", "expire --older-than 2000-01-01 --dry-run"),
    2: ("upgrade --dry-run",),
}


def session(lines: list[list[str]], **environment: str) -> Iterator[tuple[list[str], str, int]]:
    """Run commands in one terminal; yield each with what it shows, and its status."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (50, 140))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    args = [sys.executable, "-c", DRIVER, json.dumps(lines)]
    with subprocess.Popen(
        args, stdin=child, stdout=child, stderr=child, env=env | {"TERM": "xterm"} | environment
    ) as process:
        os.close(child)
        shown = all_shown(parent)
    os.close(parent)
    assert process.returncode == 0, shown
    parts = shown.decode().replace("\r\n", "\n").split(MARK)[1:]
    assert len(parts) == 2 * len(lines), shown
    for line, text, status in zip(lines, parts[::2], parts[1::2], strict=True):
        yield line, text, int(status)


@pytest.fixture(params=["ours", "official", "spec 1"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    if request.param != "ours":
        version = {"official": "v2", "spec 1": "v1"}[request.param]
        shutil.copytree(GOLDEN / version / "repository", folder)
        return folder
    repo = Repository.create(folder)
    with repo.transaction("main", message="first") as store:
        zarr.create_array(
            store, name="g/sub/named", shape=(20,), chunks=(2,), dtype="f8", dimension_names=("t",)
        )
    with repo.transaction("main", message="second") as store:
        zarr.open_array(store, path="g/sub/named")[:10] = np.arange(10)
    return folder


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


def commands(folder: Path) -> list[list[str]]:
    """Return lines of every command."""
    repo = Repository.open(folder)
    tip = repo.lookup_branch("main")
    nodes = repo.readonly_session("main").tree.nodes()
    (array,) = (node.path for node in nodes if node.path.endswith("/named"))
    (manifest, *_) = repo.list_manifest_files(tip)
    place = folder.parent
    month = xr.Dataset({"t": ("time", np.arange(4.0))}, {"time": np.arange(4)})
    month.to_netcdf(place / "month.nc", engine="h5netcdf")
    (place / "references.json").write_text(
        json.dumps({".zgroup": '{"zarr_format": 2}', ".zattrs": '{"title": "x"}'})
    )
    lines = f"""
        info REPO
        log REPO
        log REPO --graph
        log REPO -n 1 -r main~1
        show REPO
        diff REPO --from main~1 --to main
        ls REPO
        ls REPO|icechunk:@branch.main{array}
        tree REPO
        cat REPO {array}
        cat REPO {array} -c 0
        chunks REPO {array}
        annotate REPO {array}
        ops REPO -n 3
        inspect REPO repo
        inspect REPO snapshot {tip}
        inspect REPO transactions {tip}
        inspect REPO manifest {manifest.id}
        branch REPO
        branch REPO work --at main
        tag REPO
        tag REPO t1
        branch REPO t2
        branch REPO t2 -d -y
        reset REPO work main~1 --dry-run
        reset REPO work main~1 -y
        cherry-pick REPO main -b work
        revert REPO work -b work
        squash REPO main~1 -b work -m one
        rewrite REPO -b work
        branch REPO work -d -y
        copy REPO COPY
        create NEW
        config REPO
        doctor REPO
        stats REPO
        jobs REPO
        verify REPO
        repair REPO --dry-run
        expire REPO --older-than 2000-01-01 --dry-run
        expire REPO --older-than 2000-01-01 -y
        gc REPO --older-than 2000-01-01 --dry-run
        gc REPO --older-than 2000-01-01 -y
        ingest INGESTED month.nc
        virtualize ARCHIVE month.nc
        export ARCHIVE references.out
        import-kerchunk ARCHIVE references.json -g /imported
        upgrade REPO --dry-run
    """
    names = {"REPO": folder, "month.nc": place / "month.nc"}
    for name in ("COPY", "NEW", "INGESTED", "ARCHIVE", "references.out", "references.json"):
        names[name] = place / name
    found = []
    for line in lines.strip().splitlines():
        words = line.split()
        found.append([re.sub(r"^[\w.]+", lambda m: str(names.get(m[0], m[0])), w) for w in words])
    return found


def test_every_command(folder: Path) -> None:
    lines = commands(folder)
    assert {line[0] for line in lines} == set(COMMANDS)
    expected = REFUSED[int(Repository.open(folder).spec_version)]
    # each way on a repository of its own, because commands change it
    copied = folder.with_name("as-json") / "repo"
    copied.parent.mkdir()
    shutil.copytree(folder, copied)
    refused = []
    for line, text, status in session(lines):
        assert "Traceback" not in text and plain(text).strip(), (line, text)
        if status:
            refused.append(" ".join([line[0], *line[2:]]))
            print(line, text)
            assert "Error: " in plain(text), (line, text)
    assert [line for line in refused if not line.startswith(expected)] == []
    assert len(refused) == len(expected)
    for line, text, status in session([[*line, "--json"] for line in commands(copied)]):
        if status:
            assert " ".join([line[0], *line[2:-1]]).startswith(expected), (line, text)
            continue
        # progress is on the other stream, and clears its line
        told = re.search(r"^[\[{\"].*", plain(text), re.DOTALL | re.MULTILINE)
        assert told is not None, (line, text)
        json.loads(told[0], parse_constant=pytest.fail)


def test_no_colours_where_none_are_wanted(folder: Path) -> None:
    lines = [line for line in commands(folder) if line[0] in ("info", "log", "diff", "tree", "ls")]
    shown = [text for _, text, _ in session(lines)]
    assert any("\x1b[" in text for text in shown)
    for _, text, _ in session(lines, NO_COLOR="1"):
        # bold is no colour
        assert not re.search(r"\x1b\[(?:\d+;)*3\d", text)
