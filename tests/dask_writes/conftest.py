from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dask_writes.clusters import WAYS, running, shared


# not longer than a module: what other tests compute would run there, too
@pytest.fixture(scope="module", params=WAYS)
def anywhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run tasks in each way, one after another."""
    with shared(request.param):
        yield request.param


@pytest.fixture
def here() -> Iterator[None]:
    """Run tasks one by one in this thread, whatever cluster there is."""
    with running("sync"):
        yield
