"""Mutated files of every kind through the decoders: a few; `make mutations` takes a million."""

from __future__ import annotations

import pytest

from tests.format.mutations import MAX_BYTES, Kind, check, kinds, memory

KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_error_of_ours_or_a_value(kind: Kind) -> None:
    before = memory()
    tally = check(kind, 250, seed=1)
    assert tally.problems == []
    # damage that always fails, or never does, would show nothing
    assert 0 < tally.values < tally.files
    assert memory() - before < MAX_BYTES


def test_there_is_every_kind_of_file() -> None:
    names = {kind.name for kind in KINDS}
    stored = {
        f"{name} v{version}"
        for name in ("snapshots", "manifests", "transactions")
        for version in (1, 2)
    }
    assert names >= stored | {
        "repo v2",
        "refs",
        "config",
        "config.yaml",
        "change sets",
        "zarr.json",
    }
    assert names >= {"job job", "job attempts", "job log", "job parts", "classic NetCDF"}
