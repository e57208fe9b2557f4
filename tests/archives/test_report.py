"""What a report says, and which variables and files are taken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from icechunk import InvalidInputError, Repository
from icechunk_dask import ingest, remove_files, virtualize
from icechunk_dask.archives.sources import Sources
from tests.archives.day_files import archived, content, together, write_days
from tests.servers import S3Server

ROOT = Path(__file__).parents[2]


def pasted(lines: str, **environment: str) -> str:
    """Run the lines that a report says, and what they opened."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{lines}\nprint(ds['t'].sum().item())"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("group", ["/", "some/where"])
def test_the_lines_that_open_the_result(group: str, tmp_path: Path) -> None:
    path = write_days(tmp_path / "a.nc", 0)
    report = virtualize([path], tmp_path / "repo", scheduler="sync", group=group)
    again = virtualize([path], tmp_path / "repo", scheduler="sync", group=group)
    assert again.snapshot_id is None and again.opening == report.opening
    assert report.opening.splitlines()[-1] in repr(report)
    assert float(pasted(report.opening)) == float(content(path)["t"].sum())


def test_on_a_server(s3_server: S3Server, tmp_path: Path) -> None:
    """One vocabulary for target and files, patterns, and lines to paste."""
    prefix = uuid.uuid4().hex
    bucket = s3_server.storage(prefix)
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(5)]
    for path in files:
        bucket.put(f"data/{path.name}", path.read_bytes())
    base = f"s3://{s3_server.bucket}/{prefix}"
    ours = {
        "access_key_id": s3_server.access_key_id,
        "secret_access_key": s3_server.secret_access_key,
        "endpoint_url": s3_server.endpoint_url,
        "region": s3_server.region,
        "allow_http": True,
    }
    theirs = {
        "key": s3_server.access_key_id,
        "secret": s3_server.secret_access_key,
        "client_kwargs": {
            "endpoint_url": s3_server.endpoint_url,
            "region_name": s3_server.region,
        },
    }
    expected = float(together([content(path) for path in files])["t"].sum())
    for number, options in enumerate((ours, theirs)):
        target = f"{base}/repo{number}"
        report = virtualize(f"{base}/data/*.nc", target, scheduler="sync", storage_options=options)
        assert len(report.added) == 5
        assert s3_server.secret_access_key not in report.to_json() + repr(report)
        total = pasted(
            report.opening,
            AWS_ACCESS_KEY_ID=s3_server.access_key_id,
            AWS_SECRET_ACCESS_KEY=s3_server.secret_access_key,
        )
        assert float(total) == expected
        again = virtualize(f"{base}/data/*.nc", target, scheduler="sync", storage_options=options)
        assert len(again.already) == 5
    bucket.put("data/1.nc", write_days(tmp_path / "1.nc", 4, shift=9).read_bytes())
    with pytest.raises(InvalidInputError, match=r"data/1\.nc"):
        virtualize(f"{base}/data/*.nc", target, scheduler="sync", storage_options=options)


def test_forms_of_a_report(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, copied=True) for i in range(2)]
    (tmp_path / "2.nc").write_text("<b>")
    report = virtualize([*files, tmp_path / "2.nc"], tmp_path / "repo", scheduler="sync")
    assert report.variables["t"].virtual == 2 and report.variables["t"].bytes_by_value == 0
    (reason,) = report.variables["v"].reasons
    assert report.variables["v"].bytes_by_value == 96 and "scale-offset" in reason
    assert report.variables["time"].reasons == {"coordinate": 64}
    assert reason in repr(report) and str(tmp_path / "2.nc") in repr(report)
    parsed = json.loads(report.to_json())
    assert parsed == json.loads(json.dumps(report.to_dict()))
    assert parsed["variables"]["v"]["bytes_by_value"] == 96
    assert parsed["failed"] == dict(report.failed)
    page = report._repr_html_()
    assert all(f"<td>{name}</td>" in page for name in report.variables)


# -- which files -----------------------------------------------------------------------
def test_patterns(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    odd = write_days(tmp_path / "a[1].nc", 12)
    (tmp_path / "x.nc").mkdir()
    report = virtualize(f"{tmp_path}/?.nc", tmp_path / "repo", scheduler="sync")
    assert report.added == tuple(map(str, files))
    report = virtualize([f"{tmp_path}/?.nc", odd], tmp_path / "repo", scheduler="sync")
    assert report.added == (str(odd),)
    # one file without a list around it
    report = virtualize(files[0], tmp_path / "alone", scheduler="sync")
    report = virtualize(str(files[1]), tmp_path / "alone", scheduler="sync")
    assert report.added == (str(files[1]),)
    # one file, in three spellings
    spellings = [files[0], files[0].as_uri(), f"{tmp_path}/./0.nc"]
    report = virtualize(spellings, tmp_path / "one", scheduler="sync", order="url")
    assert report.added == (str(files[0]),)
    with pytest.raises(InvalidInputError, match=r"no file matches .*\*\.grib"):
        virtualize(f"{tmp_path}/*.grib", tmp_path / "repo")
    with pytest.raises(InvalidInputError, match=r"is a folder; pass a pattern such as .*/\*\.nc"):
        virtualize(tmp_path, tmp_path / "repo")


def test_hidden_files(tmp_path: Path) -> None:
    """As in shells, no wildcard stands for their dot."""
    for number, name in enumerate(("a.nc", "._a.nc", ".tmp/a.nc", "b/a.nc", "b/.old.nc")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_days(tmp_path / name, 4 * number)
    for pattern, names in {
        "*.nc": ["a.nc"],
        "**/*.nc": ["a.nc", "b/a.nc"],
        ".*.nc": ["._a.nc"],
        ".tmp/?.nc": [".tmp/a.nc"],
        "b/.*": ["b/.old.nc"],
    }.items():
        assert Sources({}).expand(f"{tmp_path}/{pattern}") == [f"{tmp_path}/{n}" for n in names]


@pytest.mark.parametrize("spelling", ["~/a.nc", "file://~/a.nc", "file:{}/a.nc", "local:{}/a.nc"])
def test_spellings_of_fsspec(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read is what references name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_days(tmp_path / "a.nc", 0)
    url = spelling.format(tmp_path)
    report = virtualize(url, tmp_path / "repo", scheduler="sync")
    xr.testing.assert_identical(archived(tmp_path / "repo", report), content(path))
    assert virtualize(path, tmp_path / "repo", scheduler="sync").already == (str(path),)
    assert remove_files(url, tmp_path / "repo").removed


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        (None, "None is neither a URL or path nor a list of them"),
        (7, "7 is neither"),
        ("", "'' is no URL or path of a file"),
        ([["a.nc"], ["b.nc"]], r"\['a.nc'\] is no URL .* a flat list"),
        ([None], "None is no URL"),
        (b"a.nc", "b'a.nc' is no URL"),
        ([], "there are no urls"),
        ("{}/{{a,b}}*.nc", "braces mean nothing in patterns"),
        ("http://127.0.0.1:9/x/", "web servers do not list theirs; pass URLs of files"),
        (["{}"], "is a folder; pass a pattern such as"),
    ],
)
def test_what_is_no_file(urls: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    if urls and "{}" in str(urls):
        urls = urls.format(tmp_path) if isinstance(urls, str) else [str(tmp_path)]
    for copy in (virtualize, ingest):
        with pytest.raises(InvalidInputError, match=words):
            copy(urls, tmp_path / "repo")


# -- which names -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rename": {"tt": "u"}}, "rename names 'tt', and no file has it; did you mean 't'?"),
        ({"rename": {"tmie": "when"}}, "rename names 'tmie'.*; did you mean 'time'?"),
        ({"concat_dims": ["tiem"]}, "has one of the dimensions 'tiem'; .*; did you mean 'time'?"),
        ({"variables": ["tt"]}, "it has no variable 'tt'"),
        ({"group": "a//b"}, "'a//b' is not the path of a group"),
        ({"group": "a/../b"}, "'a/../b' is not the path of a group"),
    ],
)
def test_misspelt_names(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(2)]
    pattern = ".*".join(map(re.escape, words.split(".*")))
    with pytest.raises(InvalidInputError, match=pattern):
        virtualize(files, tmp_path / "repo", scheduler="sync", **arguments)
    # nothing was begun
    assert not Repository.exists(tmp_path / "repo")


def test_files_are_removed_from_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"there is no archive in / of file:///.*/nothing"):
        remove_files(["1.nc"], tmp_path / "nothing")


# -- which variables -------------------------------------------------------------------
def test_variables_are_chosen_and_renamed(tmp_path: Path) -> None:
    note = {"note": "n"}
    files = [
        write_days(tmp_path / f"{i}.nc", 4 * i, copied=True, attributes=note) for i in range(2)
    ]
    whole = together([content(path) for path in files])
    without_note = whole.rename(t="u")
    del without_note["u"].attrs["note"]
    cases: list[tuple[dict[str, Any], xr.Dataset]] = [
        ({"variables": ["t"]}, whole[["t"]]),
        ({"drop_variables": "v"}, whole.drop_vars("v")),
        ({"rename": {"t": "u", "lat": "y"}}, whole.rename(t="u", lat="y")),
        (
            {"rename": {"time": "when"}, "concat_dims": ["when"]},
            whole.rename(time="when"),
        ),
        # an attribute of a variable goes by the new name of that variable
        ({"rename": {"t": "u"}, "drop_attributes": ["u:note"]}, without_note),
    ]
    for number, (options, expected) in enumerate(cases):
        repo = tmp_path / f"repo{number}"
        report = virtualize(files, repo, scheduler="sync", **options)
        xr.testing.assert_identical(archived(repo, report), expected)
    with pytest.raises(InvalidInputError, match="it has no variable 'x'; it has lat, t, time, v"):
        virtualize(files, tmp_path / "repo", scheduler="sync", variables=["x"])


def test_the_same_in_other_words(tmp_path: Path) -> None:
    """The level of a compressor, and the type of a number, tell no values apart."""
    a = write_days(
        tmp_path / "a.nc", 0, options={"compression_opts": 1}, attributes={"scale_factor": 2}
    )
    b = write_days(
        tmp_path / "b.nc", 4, options={"compression_opts": 9}, attributes={"scale_factor": 2.0}
    )
    report = virtualize([a, b], tmp_path / "repo", scheduler="sync")
    assert report.variables["t"].virtual == 2
    ours = archived(tmp_path / "repo", report)
    xr.testing.assert_equal(ours, together([content(a), content(b)]))
