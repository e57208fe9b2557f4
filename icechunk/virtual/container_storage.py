"""The storage of a virtual chunk container."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

from icechunk.base.windows import is_elsewhere
from icechunk.config import AnyObjectStoreConfig, ObjectStoreConfig, S3Options
from icechunk.config.credential_types import AnyCredential, Credentials
from icechunk.config.object_stores import serves
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.storage import from_config
from icechunk.storage.base import Storage
from icechunk.storage.local import LocalStorage
from icechunk.virtual.container_trust import Trust, check_stored_options, patient, s3_options
from icechunk.virtual.locations import shown

#: The characters that a bucket's part of a host name may have, in any of the services.
_BUCKET: Final = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._$-]*")

#: For each kind of store, the credential that fits and how to write a typical one.
_CREDENTIALS: Final[dict[type, tuple[type, str]]] = {
    ObjectStoreConfig.S3: (Credentials.S3, "Credentials.S3(s3_credentials(from_env=True))"),
    ObjectStoreConfig.S3Compatible: (
        Credentials.S3,
        "Credentials.S3(s3_credentials(from_env=True))",
    ),
    ObjectStoreConfig.Tigris: (Credentials.S3, "Credentials.S3(s3_credentials(from_env=True))"),
    ObjectStoreConfig.Gcs: (Credentials.Gcs, "Credentials.Gcs(gcs_credentials(from_env=True))"),
    ObjectStoreConfig.Azure: (
        Credentials.Azure,
        "Credentials.Azure(azure_credentials(from_env=True))",
    ),
    ObjectStoreConfig.LocalFileSystem: (
        Credentials.LocalFileSystemAccess,
        "LocalFileSystemAccess",
    ),
    ObjectStoreConfig.Http: (Credentials.HttpAccess, "HttpAccess"),
}


def credential_call(store: AnyObjectStoreConfig) -> str:
    """Return source code for a credential that fits a kind of store."""
    return _CREDENTIALS[type(store)][1] if type(store) in _CREDENTIALS else "None"


def open_container(
    store: AnyObjectStoreConfig,
    root: str,
    credential: AnyCredential | None,
    may_follow: Callable[[str], bool],
    trust: Trust,
) -> Storage:
    """Return a storage for everything below a URL.

    Parameters
    ----------
    store : one of the classes of ObjectStoreConfig
    root : str
        In normal form, with a slash at its end. It alone decides: a path in the
        description of a local store plays no role, because the user did not see it when
        allowing the URL.
    credential : one of Credentials, optional
        None for the defaults of the store.
    may_follow : callable
        Whether a redirect may lead to a given URL.
    trust : Trust
        Whose options those of `store` are.

    Raises
    ------
    InvalidInputError
        If the credential or the URL does not fit the kind of store, or if the repository
        sets options that only the caller may set.
    """
    if isinstance(store, ObjectStoreConfig.InMemory):
        raise InvalidInputError(
            f"{shown(root)}: virtual chunks cannot be in memory", ErrorKind.STORAGE_CONFIG
        )
    family = _CREDENTIALS[type(store)]
    if credential is not None and not isinstance(credential, family[0]):
        raise InvalidInputError(
            f"{shown(root)}: the container is an ObjectStoreConfig.{type(store).__name__} and "
            f"cannot be opened with {type(credential).__qualname__}; pass {family[1]}",
            ErrorKind.INVALID_CREDENTIALS,
        )
    parts = urlsplit(root)
    if not serves(store, parts.scheme):
        raise InvalidInputError(
            f"{shown(root)}: an ObjectStoreConfig.{type(store).__name__} has no such locations",
            ErrorKind.STORAGE_CONFIG,
        )
    check_stored_options(store, root, trust)
    store = patient(store, trust)
    if isinstance(store, ObjectStoreConfig.LocalFileSystem):
        from urllib.request import url2pathname

        return LocalStorage(_folder(root, url2pathname(parts.path), trust))
    if isinstance(store, ObjectStoreConfig.Http):
        from icechunk.storage.guarded_http import GuardedHttp

        return GuardedHttp(root, store.opts or {}, store.headers or {}, may_follow)
    bucket, prefix = parts.netloc, unquote(parts.path)[1:-1]
    if not _BUCKET.fullmatch(bucket) or prefix != prefix.strip("/"):
        raise InvalidInputError(
            f"{shown(root)} is not a prefix of a bucket that can be read",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    if isinstance(store, ObjectStoreConfig.Gcs):
        gcs = credential.credentials if isinstance(credential, Credentials.Gcs) else None
        return from_config.gcs(bucket, prefix, gcs, config=store.opts)
    if isinstance(store, ObjectStoreConfig.Azure):
        azure = credential.credentials if isinstance(credential, Credentials.Azure) else None
        return from_config.azure_blob(None, bucket, prefix, azure, config=store.opts)
    s3 = credential.credentials if isinstance(credential, Credentials.S3) else None
    return from_config.s3(_s3_options(store), bucket, prefix, s3)


def _folder(root: str, path: str, trust: Trust) -> str:
    """Return a folder, if the caller chose it, or if it is one of this machine."""
    if os.name == "nt" and not trust.containers and is_elsewhere(path):
        raise InvalidInputError(
            f"{shown(root)} is on another host or a device, which only you may choose: open the "
            "repository with the container as yours, config=Repository.fetch_config(storage)",
            ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
        )
    return path


def _s3_options(store: AnyObjectStoreConfig) -> S3Options:
    options = s3_options(store) or S3Options()
    if isinstance(store, ObjectStoreConfig.Tigris):
        options = dataclasses.replace(
            options,
            endpoint_url=options.endpoint_url or "https://t3.storage.dev",
            region=options.region or "auto",
        )
    # used for writing only, and not all kinds are supported
    return dataclasses.replace(options, checksum_algorithm=None)
