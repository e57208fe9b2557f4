from __future__ import annotations

import pytest

from icechunk_dask.archives import scan
from tests.dask_writes.conftest import anywhere, here

__all__ = ["anywhere", "here"]


@pytest.fixture(autouse=True)
def what_tests_replace_is_used(request: pytest.FixtureRequest) -> None:
    """Scan in this process where a test replaces functions of it; others cannot know of that."""
    if "monkeypatch" in request.fixturenames and "children" not in request.fixturenames:
        patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        patch.setattr(scan, "can_be_apart", lambda urls: False)
