"""Datasets that the official client wrote open through this project's engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from tests.interop.sides import Official
from tests.servers import S3Server
from tests.xarray_reading.versions import VERSIONS, version


@pytest.mark.parametrize("chunks", [None, {}])
def test_datasets_of_the_official_client(
    chunks: dict[str, int] | None, official: Official, tmp_path: Path
) -> None:
    official.run("write_datasets", str(tmp_path))
    last = VERSIONS - 1
    # found without engine=
    xr.testing.assert_identical(xr.open_dataset(tmp_path, chunks=chunks), version(last))
    xr.testing.assert_identical(xr.open_dataset(tmp_path, chunks=chunks, tag="v0"), version(0))
    expected = xr.DataTree.from_dict({"/": version(last), "/deep/er": version(10 + last)})
    xr.testing.assert_identical(xr.open_datatree(tmp_path, chunks=chunks), expected)


def test_datasets_of_the_official_client_on_s3(official: Official, s3_server: S3Server) -> None:
    place = {
        "bucket": s3_server.bucket,
        "prefix": "datasets",
        "region": s3_server.region,
        "endpoint_url": s3_server.endpoint_url,
        "allow_http": True,
        "force_path_style": True,
        "access_key_id": s3_server.access_key_id,
        "secret_access_key": s3_server.secret_access_key,
    }
    official.run("write_datasets", place)
    opened = xr.open_dataset(s3_server.storage("datasets"), group="deep/er", chunks={})
    xr.testing.assert_identical(opened, version(10 + VERSIONS - 1))
