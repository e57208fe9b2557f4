"""Everything non-public that is used of Zarr: a new release may change it.

- The classes of array metadata, in `zarr.core.metadata`, which check a ``zarr.json`` without a
  store.
- `ArraySpec`, which tells a codec about a chunk.
- `Store._is_open`, which says whether Zarr has to open a store before it uses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zarr.abc.store import Store
from zarr.core.array_spec import ArraySpec
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.core.metadata.v3 import ArrayV3Metadata

__all__ = ["ArraySpec", "ArrayV2Metadata", "ArrayV3Metadata", "mark_open", "v3_metadata"]


def v3_metadata(document: Mapping[str, Any]) -> ArrayV3Metadata:
    """Return the metadata that the ``zarr.json`` of an array holds, checked by Zarr."""
    # Zarr removes values from what it is given
    return ArrayV3Metadata.from_dict(json.loads(json.dumps(document)))


def mark_open(store: Store, is_open: bool) -> None:
    """Say whether a store is open; `Store.open` refuses one that is."""
    store._is_open = is_open
