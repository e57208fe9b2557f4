"""What newcomers pass where it does not belong: the error says where it does."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import icechunk
from icechunk import Repository, kerchunk
from icechunk_dask import ingest, remove_files, virtualize
from icechunk_xarray import initialize, plan_regions, to_icechunk

URL = "s3://data/weather"
DATA = xr.Dataset({"a": ("x", np.arange(3.0))})

#: Functions that take a storage, and those that take its options.
OF_A_STORAGE: dict[str, Callable[..., Any]] = {
    "create": Repository.create,
    "open": Repository.open,
    "open_or_create": Repository.open_or_create,
    "open_readonly_session": Repository.open_readonly_session,
    "open_async": lambda url, **given: asyncio.run(Repository.open_async(url, **given)),
}
OF_OPTIONS: dict[str, Callable[..., Any]] = {
    "open_dataset": lambda url, **given: xr.open_dataset(url, engine="icechunk", **given),
    "open_datatree": lambda url, **given: xr.open_datatree(url, engine="icechunk", **given),
    "open_groups": lambda url, **given: xr.open_groups(url, engine="icechunk", **given),
    "to_icechunk": lambda url, **given: to_icechunk(DATA, url, **given),
    "initialize": lambda url, **given: initialize(DATA, url, **given),
    "plan_regions": plan_regions,
    "virtualize": lambda url, **given: virtualize(["s3://data/1.nc"], url, **given),
    "ingest": lambda url, **given: ingest(["s3://data/1.nc"], url, **given),
    "remove_files": lambda url, **given: remove_files(["s3://data/1.nc"], url, **given),
    "import_references": lambda url, **given: kerchunk.import_references(url, object(), **given),
    "export_references": lambda url, **given: kerchunk.export_references(object(), url, **given),
}
ALL = {**OF_A_STORAGE, **OF_OPTIONS}

#: The URL, what is passed, and the option of the storage that is meant.
SPELLINGS = [
    *((URL, name, name) for name in ("anonymous", "access_key_id", "endpoint_url", "allow_http")),
    *((URL, name, name) for name in ("session_token", "force_path_style", "credentials")),
    (URL, "anon", "anonymous"),
    (URL, "key", "access_key_id"),
    (URL, "secret", "secret_access_key"),
    (URL, "token", "session_token"),
    (URL, "client_kwargs", "client_kwargs"),
    (URL, "aws_access_key_id", "access_key_id"),
    (URL, "region_name", "region"),
    (URL, "use_ssl", "allow_http"),
    ("gs://data/weather", "token", "bearer_token"),
    ("gs://data/weather", "bearer_token", "bearer_token"),
    ("az://data/weather", "account_name", "account"),
    ("az://data/weather", "key", "access_key"),
    ("az://data/weather", "sas_token", "sas_token"),
    ("https://data.example.org/weather", "token", "bearer_token"),
    ("https://data.example.org/weather", "headers", "headers"),
]


def error_of(function: Callable[..., Any], url: str, **given: Any) -> str:
    with pytest.raises(TypeError) as caught:
        function(url, **given)
    return str(caught.value)


@pytest.mark.parametrize("name", OF_A_STORAGE)
def test_options_of_a_storage_are_told_from_arguments(name: str) -> None:
    for url, given, option in SPELLINGS:
        error = error_of(OF_A_STORAGE[name], url, **{given: "hidden"})
        assert f"got an unexpected keyword argument {given!r}" in error
        assert f"pass storage=icechunk.storage_from_url({url!r}, {option}=...)" in error
        assert "hidden" not in error


@pytest.mark.parametrize("name", OF_OPTIONS)
def test_options_are_told_from_arguments(name: str) -> None:
    for url, given, option in SPELLINGS:
        if name == "to_icechunk" and given == "region":
            continue
        error = error_of(OF_OPTIONS[name], url, **{given: "hidden"})
        assert f"got an unexpected keyword argument {given!r}" in error
        assert f"pass storage_options={{{option!r}: ...}}" in error
        assert "hidden" not in error


VALUES = {
    "anonymous": True,
    "allow_http": True,
    "force_path_style": True,
    "credentials": icechunk.s3_credentials(anonymous=True),
    "client_kwargs": {"region_name": "us-east-1"},
    "headers": {"a": "b"},
    "access_key": "a2V5",
    "sas_token": "sig=x",
    "account": "them",
    "endpoint_url": "https://s3.example.org",
}
#: What must be given beside it: a key is of two parts.
BESIDE = {
    "access_key_id": {"secret_access_key": "s"},
    "secret_access_key": {"access_key_id": "k"},
    "session_token": {"access_key_id": "k", "secret_access_key": "s"},
    "access_key": {"account": "them"},
    "sas_token": {"account": "them"},
}


@pytest.mark.parametrize(("url", "option"), sorted({(url, option) for url, _, option in SPELLINGS}))
def test_the_advice_works(url: str, option: str) -> None:
    given = {option: VALUES.get(option, "x"), **BESIDE.get(option, {})}
    assert isinstance(icechunk.storage_from_url(url, **given), icechunk.Storage)


@pytest.mark.parametrize("name", ALL)
def test_several_are_told_at_once(name: str) -> None:
    error = error_of(ALL[name], URL, key="k", secret="s", anon=None)
    for option in ("access_key_id", "anonymous", "secret_access_key"):
        assert option in error.partition("they are options of the storage; pass ")[2]


@pytest.mark.parametrize("name", ALL)
def test_what_a_storage_does_not_have_is_not_advised(name: str, tmp_path: Any) -> None:
    assert "a path has no options" in error_of(ALL[name], str(tmp_path), anon=True)
    error = error_of(ALL[name], URL, account_name="them")
    assert "it is an option of other storages; s3://data/weather has access_key_id, " in error


@pytest.mark.parametrize("name", ALL)
def test_parts_of_the_url_and_names_of_the_place(name: str) -> None:
    for given in ("bucket", "container", "prefix"):
        assert "it is a part of the URL; pass " in error_of(ALL[name], URL, **{given: "x"})
    assert "the place is the argument " in error_of(ALL[name], URL, uri="x")
    assert "AWS_PROFILE" in error_of(ALL[name], URL, profile="x")


@pytest.mark.parametrize("name", OF_A_STORAGE)
def test_versions_modes_and_old_names(name: str) -> None:
    function = OF_A_STORAGE[name]
    if name != "open_readonly_session":
        error = error_of(function, URL, branch="main")
        assert "name one in repo.readonly_session(branch=...)" in error
    assert "Repository.open_or_create does either" in error_of(function, URL, mode="w")
    error = error_of(function, URL, virtual_chunk_credentials={})
    assert "it is authorize_virtual_chunk_access now" in error
    error = error_of(function, URL, inline_chunk_threshold_bytes=0)
    assert "pass config=icechunk.RepositoryConfig(inline_chunk_threshold_bytes=...)" in error
    assert re.search("did you mean 'config'|it takes storage, ", error_of(function, URL, cnfig=1))


def test_nothing_else_changes() -> None:
    parameters = inspect.signature(Repository.open).parameters
    assert list(parameters)[:2] == ["storage", "config"]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Repository.open()  # type: ignore[call-arg]
