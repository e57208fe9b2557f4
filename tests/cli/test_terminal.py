"""Every command in a terminal, on repositories of this client and of both official ones.

All commands run in one process behind a pseudo-terminal, as text and as JSON.
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
from collections import defaultdict
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
import json, os, sys
from icechunk.cli.app import main
for environment, line in json.loads(sys.argv[1]):
    os.environ.pop("NO_COLOR", None)
    os.environ.update(environment)
    print("{MARK}", end="", flush=True)
    try:
        main(line, prog_name="icechunk")
    except SystemExit as end:
        print(f"{MARK}{{end.code}}", end="", flush=True)
"""
KINDS = ("ours", "official", "spec 1")
#: What is looked at without colours.
LOOKING = ("info", "log", "diff", "tree", "ls")
#: A line, what it showed, and its status.
Shown = tuple[list[str], str, int]
#: What is refused, by spec version and the beginning of a line.
REFUSED = {
    1: ("ops", "inspect repo", "copy", "expire --older-than 2000-01-01 --dry-run"),
    2: ("upgrade --dry-run",),
}


def session(lines: list[tuple[dict[str, str], list[str]]]) -> Iterator[Shown]:
    """Run commands in one terminal, each with additions to the environment."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (50, 140))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    args = [sys.executable, "-c", DRIVER, json.dumps(lines)]
    with subprocess.Popen(
        args, stdin=child, stdout=child, stderr=child, env=env | {"TERM": "xterm"}
    ) as process:
        os.close(child)
        shown = all_shown(parent)
    os.close(parent)
    assert process.returncode == 0, shown
    parts = shown.decode().replace("\r\n", "\n").split(MARK)[1:]
    assert len(parts) == 2 * len(lines), shown
    for (_, line), text, status in zip(lines, parts[::2], parts[1::2], strict=True):
        yield line, text, int(status)


def make(kind: str, folder: Path) -> Path:
    """Make a repository of a kind."""
    if kind != "ours":
        version = {"official": "v2", "spec 1": "v1"}[kind]
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


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Shown]]:
    """What every command shows, by kind of repository and way, all from one process.

    Imports take longer than the commands. Each way has a repository of its own, because
    commands change it.
    """
    plan: list[tuple[tuple[str, str], dict[str, str], list[str]]] = []
    for kind in KINDS:
        place = tmp_path_factory.mktemp("terminal")
        lines = commands(make(kind, place / "text" / "repo"))
        plan += [((kind, "text"), {}, line) for line in lines]
        without = [line for line in lines if line[0] in LOOKING]
        plan += [((kind, "no colours"), {"NO_COLOR": "1"}, line) for line in without]
        lines = commands(make(kind, place / "json" / "repo"))
        plan += [((kind, "json"), {}, [*line, "--json"]) for line in lines]
    found = defaultdict(list)
    told = session([(environment, line) for _, environment, line in plan])
    for (key, _, _), each in zip(plan, told, strict=True):
        found[key].append(each)
    return found


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


@pytest.mark.parametrize("kind", KINDS)
def test_every_command(kind: str, shown: dict[tuple[str, str], list[Shown]]) -> None:
    assert {line[0] for line, _, _ in shown[kind, "text"]} == set(COMMANDS)
    expected = REFUSED[1 if kind == "spec 1" else 2]
    refused = []
    for line, text, status in shown[kind, "text"]:
        assert "Traceback" not in text and plain(text).strip(), (line, text)
        if status:
            refused.append(" ".join([line[0], *line[2:]]))
            print(line, text)
            assert "Error: " in plain(text), (line, text)
    assert [line for line in refused if not line.startswith(expected)] == []
    assert len(refused) == len(expected)
    for line, text, status in shown[kind, "json"]:
        if status:
            assert " ".join([line[0], *line[2:-1]]).startswith(expected), (line, text)
            continue
        # progress is on the other stream, and clears its line
        told = re.search(r"^[\[{\"].*", plain(text), re.DOTALL | re.MULTILINE)
        assert told is not None, (line, text)
        json.loads(told[0], parse_constant=pytest.fail)


@pytest.mark.parametrize("kind", KINDS)
def test_no_colours_where_none_are_wanted(
    kind: str, shown: dict[tuple[str, str], list[Shown]]
) -> None:
    assert any("\x1b[" in text for line, text, _ in shown[kind, "text"] if line[0] in LOOKING)
    assert shown[kind, "no colours"]
    for _, text, _ in shown[kind, "no colours"]:
        # bold is no colour
        assert not re.search(r"\x1b\[(?:\d+;)*3\d", text)
