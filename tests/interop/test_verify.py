"""Nothing that the official client writes is taken for damage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings, strategies as st

from icechunk import Repository, local_filesystem_storage
from tests.interop.sides import Official
from tests.interop.test_maintenance import STEPS


@settings(max_examples=12)
@given(spec_version=st.sampled_from([1, 2, 2]), steps=st.lists(STEPS, max_size=10))
def test_random_histories(official: Official, spec_version: int, steps: list[Any]) -> None:
    if spec_version == 1:
        steps = [step for step in steps if step[0] != "commit" or step[3] != "amend"]
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "repo")
        official.run("maintenance.build", place, spec_version, steps)
        found = Repository.open(local_filesystem_storage(place)).verify(deep=True)
        assert found.damages == ()
