"""Storages from options and credentials that are objects already: `Storage.new_s3` and others.

`constructors` has the functions that most people want. They end here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from icechunk.config import S3Options
from icechunk.config.credential_types import (
    AnyAzureCredential,
    AnyGcsCredential,
    AnyS3Credential,
    AzureCredentials,
    GcsCredentials,
    S3Credentials,
)
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.storage.base import Storage
from icechunk.storage.object_store import ObjectStorage
from icechunk.storage.place_names import check_host_part
from icechunk.storage.places import AzurePlace, GcsPlace, S3Place

Headers: TypeAlias = Mapping[str, str] | None


def s3(
    config: S3Options,
    bucket: str,
    prefix: str | None,
    credentials: AnyS3Credential | None = None,
    legacy_rooted_keys: bool | None = None,
    *,
    read_headers: Headers = None,
    write_headers: Headers = None,
    headers: Headers = None,
) -> ObjectStorage:
    """Return the storage in a bucket of S3; see `s3_storage` for the parameters.

    Parameters
    ----------
    config : S3Options
    bucket : str
    prefix : str or None
    credentials : one of S3Credentials, optional
        Default: none if `config` is anonymous, else from the environment.
    legacy_rooted_keys : bool, optional
    read_headers, write_headers, headers : mapping, optional

    Raises
    ------
    InvalidInputError
        If something cannot be valid.
    """
    if legacy_rooted_keys:
        raise InvalidInputError(
            "legacy_rooted_keys=True is not supported: keys that begin with '/' cannot be reached",
            ErrorKind.STORAGE_CONFIG,
        )
    if credentials is None:
        credentials = S3Credentials.Anonymous() if config.anonymous else S3Credentials.FromEnv()
    _check_family(credentials, S3Credentials)
    place = S3Place(
        bucket,
        prefix or "",
        config,
        credentials,
        read_headers=merged(headers, read_headers),
        write_headers=merged(headers, write_headers),
    )
    return ObjectStorage(place)


def s3_object_store(
    config: S3Options,
    bucket: str,
    prefix: str | None,
    credentials: AnyS3Credential | None = None,
    *,
    read_headers: Headers = None,
    write_headers: Headers = None,
    headers: Headers = None,
) -> ObjectStorage:
    """Return the same as `s3`; there is only one implementation here."""
    return s3(
        config,
        bucket,
        prefix,
        credentials,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def r2(
    config: S3Options,
    bucket: str | None = None,
    prefix: str | None = None,
    account_id: str | None = None,
    credentials: AnyS3Credential | None = None,
    legacy_rooted_keys: bool | None = None,
    *,
    read_headers: Headers = None,
    write_headers: Headers = None,
    headers: Headers = None,
) -> ObjectStorage:
    """Return the storage in a bucket of Cloudflare R2; see `r2_storage`."""
    if bucket is None:
        bucket, _, prefix = (prefix or "").lstrip("/").partition("/")
    if config.endpoint_url is None and account_id is None:
        raise InvalidInputError(
            "r2_storage: pass account_id or endpoint_url", ErrorKind.STORAGE_CONFIG
        )
    if account_id is not None:
        check_host_part("account_id", account_id)
    endpoint = config.endpoint_url or f"https://{account_id}.r2.cloudflarestorage.com"
    return s3(
        replace(config, endpoint_url=endpoint, region=config.region or "auto"),
        bucket,
        prefix,
        credentials,
        legacy_rooted_keys,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def tigris(
    config: S3Options,
    bucket: str,
    prefix: str | None,
    use_weak_consistency: bool,
    credentials: AnyS3Credential | None = None,
    legacy_rooted_keys: bool | None = None,
    *,
    read_headers: Headers = None,
    write_headers: Headers = None,
    headers: Headers = None,
) -> ObjectStorage:
    """Return the storage in a bucket of Tigris; see `tigris_storage`."""
    region = config.region
    if not use_weak_consistency:
        headers = merged(_tigris_headers(region), headers)
    storage = s3(
        replace(
            config,
            endpoint_url=config.endpoint_url or "https://t3.storage.dev",
            region=region or "auto",
        ),
        bucket,
        prefix,
        credentials,
        legacy_rooted_keys,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )
    return storage.as_read_only() if use_weak_consistency else storage


def hf(
    config: S3Options,
    bucket: str,
    prefix: str | None,
    namespace: str,
    credentials: AnyS3Credential | None = None,
    legacy_rooted_keys: bool | None = None,
    *,
    read_headers: Headers = None,
    write_headers: Headers = None,
    headers: Headers = None,
) -> ObjectStorage:
    """Return the storage in a storage bucket of Hugging Face; see `hf_storage`."""
    return s3(
        replace(config, endpoint_url=f"https://s3.hf.co/{namespace}", region="us-east-1"),
        bucket,
        prefix,
        credentials,
        legacy_rooted_keys,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def gcs(
    bucket: str,
    prefix: str | None,
    credentials: AnyGcsCredential | None = None,
    *,
    config: Mapping[str, str] | None = None,
    read_headers: Headers = None,
    write_headers: Headers = None,
    headers: Headers = None,
) -> ObjectStorage:
    """Return the storage in a bucket of Google Cloud Storage; see `gcs_storage`."""
    credentials = credentials or GcsCredentials.FromEnv()
    _check_family(credentials, GcsCredentials)
    place = GcsPlace(
        bucket,
        prefix or "",
        dict(config or {}),
        credentials,
        read_headers=merged(headers, read_headers),
        write_headers=merged(headers, write_headers),
    )
    return ObjectStorage(place)


def azure_blob(
    account: str | None,
    container: str,
    prefix: str | None = None,
    credentials: AnyAzureCredential | None = None,
    *,
    config: Mapping[str, str] | None = None,
) -> ObjectStorage:
    """Return the storage in a container of Azure Blob Storage; see `azure_storage`.

    The account may also come from ``account`` in `config`, or from the environment's
    ``AZURE_STORAGE_ACCOUNT_NAME``.
    """
    credentials = credentials or AzureCredentials.FromEnv()
    _check_family(credentials, AzureCredentials)
    options = dict(config or {})
    named = options.pop("account", None)
    place = AzurePlace(account or named, container, prefix or "", options, credentials)
    return ObjectStorage(place)


def http(base_url: str, config: Headers = None, headers: Headers = None) -> Storage:
    """Return the storage in a folder of a web server; see `http_storage`."""
    from icechunk.storage.guarded_http import GuardedHttp

    return GuardedHttp(base_url, config, headers)


def _tigris_headers(region: str | None) -> dict[str, str]:
    """Return the headers that make reads consistent."""
    if region is None:
        raise InvalidInputError(
            "tigris_storage: pass the region of the bucket, or use_weak_consistency=True "
            "to read possibly old data from the nearest one",
            ErrorKind.STORAGE_CONFIG,
        )
    return {
        "x-tigris-consistent": "true",
        "x-tigris-regions": region,
        "cache-control": "no-cache",
    }


def _check_family(credentials: object, family: type) -> None:
    if not isinstance(credentials, family):
        raise InvalidInputError(
            f"expected credentials of {family.__name__}, got {type(credentials).__name__}",
            ErrorKind.INVALID_CREDENTIALS,
        )


def merged(both: Headers, one: Headers) -> dict[str, str]:
    """Return the headers for one kind of request."""
    return {**(both or {}), **(one or {})}
