"""What a file is, by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable

import pytest

from icechunk_dask.archives.sources import kind_of
from tests.archives.classic_files import classic
from tests.archives.grib_files import message


def _zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nc", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("pack", "name"),
    [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"), (_zipped, "zip")],
)
def test_packed_files(pack: Callable[[bytes], bytes], name: str) -> None:
    for data in (message(), classic({}, {})):
        with pytest.raises(ValueError, match=f"is packed with {name}: unpack it first"):
            kind_of(io.BytesIO(pack(data)))


def test_other_files() -> None:
    assert (
        kind_of(io.BytesIO(message())) == kind_of(io.BytesIO(b"TTAA00\r\n" + message())) == "grib"
    )
    assert kind_of(io.BytesIO(classic({}, {}))) == "classic"
    with pytest.raises(ValueError, match="it is empty"):
        kind_of(io.BytesIO())
    with pytest.raises(ValueError, match="begins with b'<html>'"):
        kind_of(io.BytesIO(b"<html>"))
