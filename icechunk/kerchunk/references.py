"""Read kerchunk references in all their forms.

The rules are those of the kerchunk documentation ("References specification", versions 0
and 1, and "Parquet storage") and, where it is silent, what fsspec's reference filesystem
does. A set of references is Zarr metadata, and for each array a table of where its chunks
are. A dictionary is read once; a Parquet store record by record.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from icechunk.base.public_url import public_text, public_url
from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.kerchunk.dictionary import DictReferences
from icechunk.kerchunk.locations import Normalizer
from icechunk.kerchunk.parquet import ParquetReferences
from icechunk.kerchunk.reading import inflated, reference_files
from icechunk.kerchunk.tables import References

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["open_references"]


def open_references(
    references: Mapping[str, Any] | str,
    normalize: Normalizer,
    storage_options: Mapping[str, Any] | None = None,
) -> References:
    """Open references in any form.

    Parameters
    ----------
    references : mapping, str or path
        A dictionary, or the URL or path of a JSON file, which may be compressed with zstd
        or gzip, or of a Parquet store.
    normalize : Normalizer
        Applied to the URLs of references.
    storage_options : mapping, optional
        Options for reading the references.

    Raises
    ------
    InvalidInputError
        If they are malformed; the message names the key.
    StorageError
        If they cannot be read.
    """
    if isinstance(references, Mapping):
        return DictReferences(references, normalize)
    url = str(references)
    try:
        files, path = reference_files(url, storage_options or {})
        root = path.rstrip("/")
        try:
            metadata = files.read(f"{root}/.zmetadata")
        except (FileNotFoundError, NotADirectoryError):
            data = files.read(path)
        else:
            return ParquetReferences(files, root, metadata, normalize)
    except (OSError, ImportError, ValueError, MemoryError) as exc:
        if isinstance(exc, InvalidInputError):
            raise
        # clients put signed URLs into their error messages
        why = public_text(exc) or type(exc).__name__
        failure = StorageError(f"the references at {public_url(url)} cannot be read: {why}")
    else:
        return DictReferences(_parse(data, public_url(url)), normalize)
    raise failure


def _parse(data: bytes, url: str) -> Mapping[str, Any]:
    try:
        document = json.loads(inflated(data, url))
    except InvalidInputError:
        raise
    except (ValueError, EOFError, OSError, RecursionError, MemoryError, zstd.ZstdError) as exc:
        raise InvalidInputError(
            f"{url} holds no kerchunk references, neither JSON nor a Parquet store: {exc}",
            ErrorKind.INVALID_VIRTUAL_REF,
        ) from None
    if not isinstance(document, dict):
        raise InvalidInputError(
            f"{url} holds no kerchunk references: expected a JSON object, not "
            f"{type(document).__name__}",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    return document
