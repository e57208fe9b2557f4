"""Names of variables that no node can have, or that Zarr would not find."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from icechunk import InvalidInputError
from icechunk_dask import VirtualizeReport, ingest, virtualize
from tests.archives.classic_files import Var, classic
from tests.archives.day_files import archived

_VALUES = np.arange(20.0).reshape(4, 5)


def _classic(path: Path, name: str) -> str:
    variables = {
        "time": Var(("time",), np.arange(4.0)),
        "x": Var(("x",), np.arange(5.0)),
        name: Var(("time", "x"), _VALUES),
    }
    path.write_bytes(classic({"time": None, "x": 5}, variables, records=4))
    return name


def _hdf5(path: Path, name: str, group: str = "") -> str:
    with h5py.File(path, "w") as file:
        file["time"] = np.arange(4.0)
        file["time"].make_scale("time")
        file["x"] = np.arange(5.0)
        file["x"].make_scale("x")
        within = file.create_group(group) if group else file
        within.attrs["title"] = "a group"
        within[name] = _VALUES
        for number, dimension in enumerate(("time", "x")):
            within[name].dims[number].attach_scale(file[dimension])
    return f"{group}/{name}" if group else name


def _inside(path: Path, name: str) -> str:
    return _hdf5(path, "t", name)


@pytest.mark.parametrize("call", [virtualize, ingest])
@pytest.mark.parametrize(
    ("write", "name"),
    [
        *((_classic, name) for name in ("a\\b", "\\", "zarr.json", "..", ".")),
        *((_hdf5, name) for name in ("a\\b", "zarr.json")),
        *((_inside, name) for name in ("a\\b", "zarr.json")),
    ],
)
def test_names_that_no_node_can_have(
    write: Callable[[Path, str], str],
    name: str,
    call: Callable[..., VirtualizeReport],
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.nc"
    full = write(path, name)
    options: dict[str, Any] = {"executor": "sync"}
    with pytest.raises(InvalidInputError, match=re.escape(repr(name)[1:-1])) as caught:
        call([path], tmp_path / "repo", **options)
    assert f"its variable {full!r} cannot be stored" in str(caught.value)
    advised = re.search(r"drop_variables=(\[.*?\])", str(caught.value))
    assert advised
    report = call([path], tmp_path / "repo", drop_variables=eval(advised[1]), **options)
    assert set(archived(tmp_path / "repo", report).variables) == {"time", "x"}
    if write is not _inside:
        named = tmp_path / "named"
        report = call([path], named, rename={name: "other"}, **options)
        assert np.array_equal(archived(named, report)["other"], _VALUES)
