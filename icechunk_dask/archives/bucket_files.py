"""Files in buckets of S3, read through the storage that virtual chunks are read through.

It reads no more of an answer than was asked for, and waits no longer than an answer may take,
which s3fs does not promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, Final, cast

from icechunk import StorageConcurrencySettings, StorageSettings, s3_storage
from icechunk.storage.option_names import for_storage
from icechunk_dask.archives.range_files import RangeFile

__all__ = ["open_in_bucket"]

#: What is said in other words there, or does not matter to single reads.
_KNOWN: Final = frozenset(
    ("key", "secret", "token", "anon", "endpoint_url", "client_kwargs", "use_listings_cache")
)
_CLIENT: Final = frozenset(("region_name", "endpoint_url"))
_SINGLE: Final = StorageSettings(
    concurrency=StorageConcurrencySettings(max_concurrent_requests_for_object=1)
)


def open_in_bucket(fs: Any, path: str, options: Mapping[str, Any]) -> BinaryIO | None:
    """Open an object, or return None if the options of s3fs do not say all that it takes.

    Without keys there, s3fs looks for them in more places than can be followed here, and
    without a region it finds that, too.
    """
    client = options.get("client_kwargs") or {}
    signs = options.get("anon") or (options.get("key") and options.get("secret"))
    located = client.get("region_name")
    if not (signs and located and set(options) <= _KNOWN and set(client) <= _CLIENT):
        return None
    given = {n: v for n, v in options.items() if n != "use_listings_cache" and v is not None}
    bucket, _, key = path.partition("/")
    has_server = bool(given.get("endpoint_url") or client.get("endpoint_url"))
    storage = s3_storage(
        bucket=bucket, prefix=None, force_path_style=has_server, **for_storage(given)
    ).with_settings(_SINGLE)
    info = fs.info(path)
    etag = str(info.get("ETag") or "").strip('"') or None
    ahead = fs.default_block_size
    return cast(BinaryIO, RangeFile(storage, key, int(info["size"]), etag, ahead=ahead))
