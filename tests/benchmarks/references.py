"""A million references, or more, from Parquet or from arrays into a repository.

Usage: ``python references.py parquet|arrays COUNT FOLDER``, ``references.py make COUNT FOLDER``.
Runs under either client, except that the official one has no importer. Prints one JSON object:
seconds per step, peak memory of the process in MiB, bytes of manifests per reference.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import icechunk

#: Chunks in one file, references in one Parquet file, and manifests per million references.
PER_FILE, PER_RECORD = 10_000, 100_000
PREFIX = "s3://bucket/"
PATH = PREFIX + "archive/2020/file-{:06d}.nc"


def make(count: int, folder: Path) -> None:
    """Write a Parquet store as kerchunk does."""
    import fastparquet
    import pandas as pd

    array = {
        "zarr_format": 2,
        "shape": [count // PER_FILE, 100, 100],
        "chunks": [1, 1, 1],
        "dtype": "<f4",
        "fill_value": None,
        "order": "C",
        "filters": [{"id": "shuffle", "elementsize": 4}],
        "compressor": {"id": "zlib", "level": 4},
    }
    metadata = {
        ".zgroup": {"zarr_format": 2},
        ".zattrs": {},
        "v/.zarray": array,
        "v/.zattrs": {"_ARRAY_DIMENSIONS": ["time", "y", "x"], "units": "K"},
    }
    (folder / "v").mkdir(parents=True)
    document = {"metadata": metadata, "record_size": PER_RECORD}
    (folder / ".zmetadata").write_text(json.dumps(document))
    for number in range(-(-count // PER_RECORD)):
        rows = np.arange(number * PER_RECORD, min((number + 1) * PER_RECORD, count))
        files = rows // PER_FILE
        names = [PATH.format(i) for i in range(int(files[0]), int(files[-1]) + 1)]
        offsets, lengths = ranges(rows)
        columns = {
            "path": pd.Categorical.from_codes(files - files[0], np.array(names, object)),
            "offset": offsets,
            "size": lengths,
            "raw": np.full(len(rows), None, object),
        }
        fastparquet.write(
            str(folder / f"v/refs.{number}.parq"),
            pd.DataFrame(columns, copy=False),
            compression="ZSTD",
            stats=False,
            write_index=False,
            object_encoding={"raw": "bytes", "path": "utf8"},
            has_nulls=["path", "raw"],
        )


def ranges(rows: Any) -> tuple[Any, Any]:
    """Return offset and length of chunks as compression makes them: of many sizes."""
    lengths = np.random.default_rng(int(rows[0])).integers(3000, 5000, len(rows))
    return rows % PER_FILE * 5000 + 20_000, lengths


def create(folder: Path, count: int) -> Any:
    config = icechunk.RepositoryConfig.default()
    store = icechunk.s3_store(region="us-east-1")
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(PREFIX, store))
    rule = {
        icechunk.ManifestSplitCondition.AnyArray(): {
            icechunk.ManifestSplitDimCondition.Axis(0): 100
        }
    }
    splitting = icechunk.ManifestSplittingConfig.from_dict(rule)
    config.manifest = icechunk.ManifestConfig(splitting=splitting)
    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder)), config)


def main(how: str, count: int, source: Path, folder: Path) -> dict[str, float]:
    steps: dict[str, float] = {}
    session = create(folder, count).writable_session("main")
    begin = time.perf_counter()
    if how == "parquet":
        from icechunk.kerchunk import import_references

        import_references(source, session)
    else:
        shape = (count // PER_FILE, 100, 100)
        zarr.create_array(session.store, name="v", shape=shape, chunks=(1, 1, 1), dtype="f4")
        rows = np.arange(count)
        names = [PATH.format(i) for i in range(count // PER_FILE)]
        locations = [name for name in names for _ in range(PER_FILE)]
        offsets, lengths = (part.astype("u8") for part in ranges(rows))
        begin = time.perf_counter()
        session.store.set_virtual_refs_arr("v", shape, locations, offsets, lengths)
        del locations, offsets, lengths, rows
    steps["import" if how == "parquet" else "set"] = time.perf_counter() - begin
    begin = time.perf_counter()
    session.commit("references")
    steps["commit"] = time.perf_counter() - begin
    steps["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(path.stat().st_size for path in (folder / "manifests").iterdir())
    steps["manifest bytes a reference"] = size / count
    return steps


def read(folder: Path) -> dict[str, float]:
    """Open a repository, and find one chunk; its file is on no server, so that is the end."""
    begin = time.perf_counter()
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(folder)))
    array = zarr.open_array(repository.readonly_session("main").store, path="v", mode="r")
    try:
        print(array[tuple(n // 2 for n in array.shape)])
    except icechunk.IcechunkError:
        return {"open and find a chunk": time.perf_counter() - begin}
    raise AssertionError("read a chunk without being allowed to")


if __name__ == "__main__":
    logging.disable()
    how, count, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if how == "make":
        make(count, place)
    elif how == "read":
        print(json.dumps(read(place)))
    else:
        print(json.dumps(main(how, count, place, Path(sys.argv[4]))))
