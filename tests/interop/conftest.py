from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.interop.sides import VARIABLE, VARIABLE_V1, Bases, Official, Ours, Side


@pytest.fixture(scope="session")
def ours() -> Ours:
    """This project."""
    return Ours()


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Official]:
    """The official client."""
    side = Official(interpreter(VARIABLE), tmp_path_factory.mktemp("official"))
    yield side
    side.close()


@pytest.fixture(scope="session")
def official_1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Official]:
    """The official client 1.1.21, which knows spec version 1 only."""
    side = Official(interpreter(VARIABLE_V1), tmp_path_factory.mktemp("official_1"), "official_1")
    yield side
    side.close()


def interpreter(variable: str) -> str:
    """Return the path that an environment variable holds."""
    python = os.environ.get(variable)
    if not python:
        pytest.fail(
            f"{variable} is not set: it names the Python interpreter of an environment with the "
            "official client. `make test` makes one and sets it"
        )
    return python


@pytest.fixture(params=["ours first", "official first"])
def sides(request: pytest.FixtureRequest, ours: Ours, official: Official) -> tuple[Side, Side]:
    """Both, in either order."""
    return (ours, official) if request.param == "ours first" else (official, ours)


@pytest.fixture(scope="session")
def bases(ours: Ours, official: Official, tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Both sides, each with what it made of `base.write_base`; for reading and copying."""
    found: Bases = []
    for side in (ours, official):
        folder = str(tmp_path_factory.mktemp(side.name) / "base")
        side.run("create_base", folder)
        found.append((side, folder))
    return found
