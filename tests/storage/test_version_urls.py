"""URLs that name a version: ``REPOSITORY|icechunk:@REF/PATH``, wherever one is opened."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from icechunk import InvalidInputError, Repository, storage_from_url
from icechunk.cli.app import main
from icechunk.storage import VersionURL, version_url
from icechunk_xarray import to_icechunk

ID = "1CECHNKREP0F1RSTCMT0"
BASES = ["s3://bucket/repo", "/data/repo", "file:///data/repo", "memory://x", "a|b", "C:\\repo"]
REFS = {
    "": None,
    "@branch.main": "@branch.main",
    "@branch.a.b": "@branch.a.b",
    "@branch.a%2Fb": "@branch.a/b",
    "@tag.v1": "@tag.v1",
    f"@{ID}": f"@{ID}",
}
PATHS = {"": "", "/": "", "/a": "a", "/a/b/": "a/b", "/a%20b": "a b", "//a//b": "a/b"}
TAILS = {"": "", "|zarr3:": "", "|zarr3:c/d": "c/d", "|zarr:c": "c"}


def test_all_parts() -> None:
    for base, slash, ref, path, tail in product(BASES, ("", "/"), REFS, PATHS, TAILS):
        expected = "/".join(filter(None, (PATHS[path], TAILS[tail])))
        url = f"{base}{slash}|icechunk:{ref}{path}{tail}"
        assert version_url(url) == VersionURL(base, REFS[ref], expected), url


@pytest.mark.parametrize("target", [*BASES, Path("/a"), None, 3, object()])
def test_everything_else_is_no_such_url(target: object) -> None:
    assert version_url(target) is None


WRONG = ["@", "@/a", "@main", "@branch.", "@tag./a", "@commit.x", "@1CE", "@v1/a"]
WRONG += ["a|zip:b", "a|", "|zarr2:a", "a|icechunk:b"]


@pytest.mark.parametrize("rest", WRONG)
def test_what_is_wrong_is_named(rest: str) -> None:
    with pytest.raises(InvalidInputError, match=r"/data/repo\|icechunk:"):
        version_url(f"/data/repo|icechunk:{rest}")


def test_messages_have_no_credentials() -> None:
    for url in ("s3://key:secret@bucket/x|icechunk:@no", "https://u:secret@h/|icechunk:@tag.v1"):
        with pytest.raises(InvalidInputError) as caught:
            storage_from_url(url)
        assert "secret" not in str(caught.value)


def dataset(value: int) -> xr.Dataset:
    return xr.Dataset({"v": ("x", np.full(3, value))}, {"x": [1, 2, 3]}, {"value": value})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A repository with 1 in the tag, 2 in the branch dev/x and 3 in main; 10 more below."""
    url = str(tmp_path / "repo")
    for value, branch in ((1, "main"), (2, "dev/x"), (3, "main")):
        to_icechunk(dataset(value), url, mode="w", branch=branch)
        to_icechunk(dataset(value + 10), url, group="g/h", mode="w", branch=branch)
        if value == 1:
            repo = Repository.open(url)
            repo.create_tag("v1", repo.lookup_branch("main"))
            repo.create_branch("dev/x", repo.lookup_branch("main"))
    return url


VALUES = {"": 3, "@branch.main": 3, "@branch.dev%2Fx": 2, "@tag.v1": 1, "@ID": 1}


def expand(folder: str, ref: str) -> str:
    tag = Repository.open(folder).lookup_tag("v1")
    return ref.replace("@ID", f"@{tag}")


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("path", "more"), [("", 0), ("/g/h", 10), ("/g/h/", 10), ("|zarr3:g/h", 10)]
)
@pytest.mark.parametrize("ref", VALUES)
def test_the_engine_opens_it(folder: str, ref: str, path: str, more: int, scheme: str) -> None:
    url = f"{scheme}{folder}|icechunk:{expand(folder, ref)}{path}"
    # netCDF4's engine takes each URL with a scheme that it is asked about
    engine: Any = "icechunk" if scheme else None
    with xr.open_dataset(url, engine=engine) as opened:
        xr.testing.assert_identical(opened.load(), dataset(VALUES[ref] + more))
    with xr.open_datatree(url, engine="icechunk") as tree:
        xr.testing.assert_identical(tree.to_dataset().load(), dataset(VALUES[ref] + more))
    above = url.removesuffix("/").removesuffix("h") if more else url
    group = "h" if more else "g/h"
    with xr.open_dataset(above, engine="icechunk", group=group) as opened:
        xr.testing.assert_identical(opened.load(), dataset(VALUES[ref] + 10))


def test_a_time_goes_with_a_branch_of_the_url(folder: str) -> None:
    first = Repository.open(folder).ancestry(tag="v1")
    when = next(iter(first)).written_at
    url = f"{folder}|icechunk:@branch.main"
    with xr.open_dataset(url, engine="icechunk", as_of=when) as opened:
        assert opened.v[0] == 1


@pytest.mark.parametrize("named", [{"branch": "main"}, {"tag": "v1"}, {"ref": "main"}])
def test_two_versions_are_refused(folder: str, named: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="the URL each name a version"):
        xr.open_dataset(f"{folder}|icechunk:@tag.v1", engine="icechunk", **named)


def test_where_a_repository_is_needed(folder: str) -> None:
    assert Repository.open(f"{folder}|icechunk:").lookup_tag("v1")
    for rest in ("@tag.v1", "g", "@branch.main/g"):
        with pytest.raises(InvalidInputError, match="a storage is needed"):
            Repository.open(f"{folder}|icechunk:{rest}")


def test_writing_goes_to_the_branch_and_the_group(folder: str) -> None:
    to_icechunk(dataset(7), f"{folder}|icechunk:@branch.dev%2Fx/g", group="h", mode="w")
    url = f"{folder}|icechunk:@branch.dev%2Fx"
    with xr.open_dataset(url, engine="icechunk", group="g/h") as opened:
        assert opened.v[0] == 7
    with xr.open_dataset(folder, engine="icechunk", group="g/h") as opened:
        assert opened.v[0] == 13
    for rest, named in (("@tag.v1", {}), ("@branch.main", {"branch": "dev/x"})):
        with pytest.raises(InvalidInputError):
            to_icechunk(dataset(7), f"{folder}|icechunk:{rest}", mode="w", **named)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def test_the_command_line(folder: str) -> None:
    for path, value in (("", 1), ("g/h", 11)):
        result = run("cat", f"{folder}|icechunk:@tag.v1/{path}")
        assert json.loads(result.stdout)["attributes"] == {"value": value}
    assert run("ls", f"{folder}|icechunk:@tag.v1/g/h").stdout == run("ls", folder, "g/h").stdout
    for code, *args in (
        (2, "cat", f"{folder}|icechunk:@tag.v1", "v", "-r", "main"),
        (2, "ls", f"{folder}|icechunk:g", "g"),
        (2, "info", f"{folder}|icechunk:@tag.v1"),
        (1, "ls", f"{folder}|icechunk:@nothing"),
    ):
        result = run(*map(str, args))
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
