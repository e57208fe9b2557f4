"""The lower bounds of pyproject.toml are what the tests run with on the oldest versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def test_they_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = project["dependencies"] + [
        line for name in ("xarray", "dask", "virtual", "cli", "aws") for line in extras[name]
    ]
    lowest = {}
    for line in listed:
        requirement = Requirement(line)
        (bound,) = requirement.specifier
        assert bound.operator == ">=", line
        lowest[requirement.name] = Version(bound.version)
    lines = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(re.split("==", line) for line in lines if not line.startswith("#"))
    assert {name: Version(pin) for name, pin in pins.items()} == lowest
