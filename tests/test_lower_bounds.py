"""The lower bounds of pyproject.toml are what the tests run with on the oldest versions."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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


#: What is imported under another name, or comes with what is declared.
ALSO = {
    "backports": "backports-zstd",
    "compression": "backports-zstd",  # where Python has it
    "numcodecs": "zarr",
    "pandas": "xarray",
    "tblib": "distributed",
    "yaml": "pyyaml",
}
#: What is imported where somebody has it already.
OPTIONAL = {"IPython", "hypothesis", "obspec_utils", "pytest"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    for name in ("xarray", "dask", "virtual", "cli", "aws"):
        declared |= {canonicalize_name(Requirement(line).name) for line in extras[name]}
    ours = {"icechunk", "icechunk_dask", "icechunk_xarray"}
    for path in (file for package in sorted(ours) for file in (ROOT / package).rglob("*.py")):
        for module in imported(path):
            name = module.partition(".")[0]
            if name in OPTIONAL | ours or (name in sys.stdlib_module_names and name not in ALSO):
                continue
            assert canonicalize_name(ALSO.get(name, name)) in declared, (path, module)
