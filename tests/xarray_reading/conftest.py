"""What xarray's own test suites need, and which of their tests do not apply."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray.tests.conftest as theirs
from xarray.tests.conftest import create_test_datatree, simple_datatree, time_unit  # noqa: F401
from xarray.tests.test_backends_datatree import unaligned_datatree_zarr_factory  # noqa: F401

if hasattr(theirs, "use_dask"):  # older suites have none
    use_dask = theirs.use_dask

_FORMAT_2 = "documents of Zarr format 2 cannot be stored"
_WRITABLE = "a session with changes is not pickled: the changes of the copy would be lost"
_PLAIN = "writes and opens a folder of plain Zarr"
_UPSTREAM = "xarray skips it, or expects it to fail, with all Zarr stores"
_NETCDF = "xarray skips it where there is no module named netcdf, and nobody has one"

#: By a part of the test's id. All else in the suites must pass.
NOT_APPLICABLE = {
    # what a repository is not
    "zarr_format=2]": _FORMAT_2,
    "test_hidden_zarr_keys": _FORMAT_2,
    "test_chunk_key_encoding_v2": "the format has chunk keys of the default encoding only",
    "TestStore::test_pickle": _WRITABLE,
    "test_to_zarr_compute_false[": "looks for the files of plain Zarr",
    "test_to_zarr_not_consolidated": "wants a warning that consolidated metadata is missing",
    "TestEngine::test_roundtrip_consolidated[True]": "there is no consolidated metadata",
    "TestEngine::test_append_write": _PLAIN,
    "TestEngine::test_append_overwrite_values": _PLAIN,
    # what xarray does not run either
    "sel-Variable]": "variables have no method sel",
    "test_raise_on_older_zarr_version": "is about zarr before 3.1",
    "test_to_zarr_zip_store": _UPSTREAM,
    "test_roundtrip_mask_and_scale[dtype1": _UPSTREAM,
    "create_bad_unsigned_masked_scaled_data": _UPSTREAM,
    "create_unsigned_false_masked_scaled_data-": _UPSTREAM,
    "test_roundtrip_bytes_with_fill_value": _UPSTREAM,
    "test_encoding_unlimited_dims": _UPSTREAM,
    "test_append_string_length_mismatch_works": _UPSTREAM,
    "test_roundtrip_example_1_netcdf": _NETCDF,
    "test_drop_encoding": _NETCDF,
    "test_coordinate_variables_after_iris_roundtrip": _NETCDF,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not apply."""
    here = Path(__file__).parent
    out = [
        item
        for item in items
        if item.path.parent == here and any(part in item.nodeid for part in NOT_APPLICABLE)
    ]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def default_zarr_format() -> None:
    """Stand in for the fixture with which xarray chooses: 3 is Zarr's default."""
