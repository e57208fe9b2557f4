"""What the columns cost: a million references through the manifest codec."""

from __future__ import annotations

import time

import numpy as np

from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.manifest import decode_manifest, encode_manifest


def test_a_million_references() -> None:
    count = 1_000_000
    coords = np.indices((100, 100, 100), np.uint32).reshape(3, count).T.copy()
    ids = np.random.default_rng(0).integers(0, 256, (count, 12), np.uint8)
    kinds = {
        "native": ChunkRefs.native(coords, ids, np.full(count, 4096, np.uint64)),
        "virtual": ChunkRefs.virtual(
            coords,
            [f"s3://bucket/prefix/file-{i // 10_000}.nc" for i in range(count)],
            np.arange(count, dtype=np.uint64),
            np.full(count, 4096, np.uint64),
        ),
    }
    print()
    for kind, refs in kinds.items():
        start = time.perf_counter()
        data = encode_manifest(bytes(12), {bytes(8): refs})
        middle = time.perf_counter()
        assert len(decode_manifest(data, "manifest").arrays[bytes(8)]) == count
        end = time.perf_counter()
        print(
            f"{kind}: encode {middle - start:.2f} s, decode {end - middle:.2f} s, "
            f"{len(data) / count:.1f} bytes a reference"
        )
