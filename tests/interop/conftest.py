from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.interop.sides import VARIABLE, Official, Ours, Side


@pytest.fixture(scope="session")
def ours() -> Ours:
    """This project."""
    return Ours()


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Official]:
    """The official client."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.fail(
            f"{VARIABLE} is not set: it names the Python interpreter of an environment with the "
            "official client. `make test` makes one and sets it"
        )
    side = Official(python, tmp_path_factory.mktemp("official"))
    yield side
    side.close()


@pytest.fixture(params=["ours first", "official first"])
def sides(request: pytest.FixtureRequest, ours: Ours, official: Official) -> tuple[Side, Side]:
    """Both, in either order."""
    return (ours, official) if request.param == "ours first" else (official, ours)
