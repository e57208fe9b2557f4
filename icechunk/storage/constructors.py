"""Functions that make storages, with the names and arguments of the official client."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from inspect import signature
from typing import Any, Final, TypedDict, Unpack

from icechunk.base.near import meant
from icechunk.config import ChecksumAlgorithm, S3Options
from icechunk.config.credential_types import (
    AnyAzureRefreshableCredential,
    AnyS3Credential,
    GcsBearerCredential,
    S3StaticCredentials,
)
from icechunk.config.credentials import azure_credentials, gcs_credentials, s3_credentials
from icechunk.storage import from_config
from icechunk.storage.base import Storage
from icechunk.storage.local import LocalStorage
from icechunk.storage.memory import MemoryStorage
from icechunk.storage.object_store import ObjectStorage
from icechunk.storage.reach import Reach


class S3Arguments(TypedDict, total=False):
    """Arguments of `s3_storage` that its siblings share with it."""

    allow_http: bool
    access_key_id: str | None
    secret_access_key: str | None
    session_token: str | None
    expires_after: datetime | None
    anonymous: bool | None
    from_env: bool | None
    get_credentials: Callable[[], S3StaticCredentials] | None
    scatter_initial_credentials: bool
    force_path_style: bool
    network_stream_timeout_seconds: int
    requester_pays: bool
    checksum_algorithm: ChecksumAlgorithm | None
    legacy_rooted_keys: bool | None
    read_headers: dict[str, str] | None
    write_headers: dict[str, str] | None
    headers: dict[str, str] | None


#: Which of them concern credentials, and which requests. The rest are those of `S3Options`.
_OF_CREDENTIALS: Final = signature(s3_credentials).parameters.keys()
_OF_SIBLINGS: Final = ("bucket", "prefix", "region", "endpoint_url", "account_id", "namespace")
_OF_REQUESTS: Final = {"legacy_rooted_keys", "read_headers", "write_headers", "headers"}


def _described(
    region: str | None, endpoint_url: str | None, arguments: S3Arguments
) -> tuple[S3Options, AnyS3Credential, dict[str, Any]]:
    """Return options, credentials, and what remains."""
    unknown = sorted(arguments.keys() - S3Arguments.__annotations__.keys())
    if unknown:
        known = (*S3Arguments.__annotations__, *_OF_SIBLINGS)
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}{meant(unknown[0], known)}")
    given: dict[str, Any] = {"network_stream_timeout_seconds": 60, **arguments}
    others = {name: given.pop(name) for name in _OF_REQUESTS & given.keys()}
    credentials = s3_credentials(**{name: given[name] for name in _OF_CREDENTIALS & given.keys()})
    anonymous = bool(given.pop("anonymous", None))
    options = {name: value for name, value in given.items() if name not in _OF_CREDENTIALS}
    return (
        S3Options(region=region, endpoint_url=endpoint_url, anonymous=anonymous, **options),
        credentials,
        others,
    )


def in_memory_storage() -> MemoryStorage:
    """Return a new storage in the memory of this process.

    Examples
    --------
    >>> repo = icechunk.Repository.create(icechunk.in_memory_storage())
    """
    return MemoryStorage()


def local_filesystem_storage(path: str | os.PathLike[str]) -> LocalStorage:
    """Return the storage in a folder, which need not exist yet.

    Concurrent writers are safe, whether threads or processes.

    Parameters
    ----------
    path : str or path-like

    Examples
    --------
    >>> repo = icechunk.Repository.create(icechunk.local_filesystem_storage("weather"))
    """
    return LocalStorage(path)


def http_storage(
    base_url: str,
    opts: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    *,
    follow_redirects: bool = False,
) -> Storage:
    """Return the storage in a folder of a web server; it can only be read.

    Parameters
    ----------
    base_url : str
        Of the folder that has the object ``repo``.
    opts : dict, optional
        Options for the HTTP client: ``timeout``, ``connect_timeout`` and ``read_timeout``
        (such as ``30s``), ``user_agent``, ``allow_http``, ``allow_invalid_certificates``.
    headers : dict, optional
        Sent with every request to this server.
    follow_redirects : bool, default False
        Also follow redirects to other servers. Those to the same server are always followed.
        Those from https to http never are, nor those from a public address to this machine
        or a private network. Headers do not go to other servers.

    Raises
    ------
    InvalidInputError
        If it is another URL, or an option is unknown.

    Examples
    --------
    >>> storage = icechunk.http_storage("https://data.example.org/weather")
    """
    from icechunk.storage.guarded_http import GuardedHttp

    return GuardedHttp(base_url, opts, headers, Reach(base_url) if follow_redirects else None)


def s3_storage(
    *,
    bucket: str,
    prefix: str | None,
    region: str | None = None,
    endpoint_url: str | None = None,
    allow_http: bool = False,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    get_credentials: Callable[[], S3StaticCredentials] | None = None,
    scatter_initial_credentials: bool = False,
    force_path_style: bool = False,
    network_stream_timeout_seconds: int = 60,
    requester_pays: bool = False,
    checksum_algorithm: ChecksumAlgorithm | None = None,
    legacy_rooted_keys: bool | None = None,
    read_headers: dict[str, str] | None = None,
    write_headers: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> ObjectStorage:
    """Return the storage in a bucket of S3, or of a store that speaks its protocol.

    Without any argument that says otherwise, credentials come from the environment.

    Parameters
    ----------
    bucket : str
    prefix : str or None
        None or empty: the root of the bucket, where a repository can be read but none
        created.
    region : str, optional
    endpoint_url : str, optional
        Default: that of AWS.
    allow_http : bool, default False
        Allow an endpoint without TLS.
    access_key_id, secret_access_key, session_token, expires_after : optional
        A fixed key pair.
    anonymous : bool, optional
        Do not sign requests.
    from_env : bool, optional
        Take credentials from the environment.
    get_credentials, scatter_initial_credentials : optional
        A function that fetches credentials; see `s3_refreshable_credentials`.
    force_path_style : bool, default False
        Accepted for compatibility: the bucket is always part of the path.
    network_stream_timeout_seconds : int, default 60
        Give up on an answer that has been silent for this long; 0 means never.
    requester_pays : bool, default False
    checksum_algorithm : ChecksumAlgorithm, optional
        ``Sha256`` or ``Crc64Nvme``.
    legacy_rooted_keys : bool, optional
        True is not supported.
    read_headers, write_headers, headers : dict, optional
        Additional headers: for requests that read, that write, and for both. The first two win.

    Raises
    ------
    InvalidInputError
        If arguments exclude each other, or cannot be valid.

    Examples
    --------
    >>> storage = icechunk.s3_storage(
    ...     bucket="data", prefix="weather", region="us-east-1", anonymous=True
    ... )
    """
    options, credentials, others = _described(
        region,
        endpoint_url,
        {
            "allow_http": allow_http,
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "session_token": session_token,
            "expires_after": expires_after,
            "anonymous": anonymous,
            "from_env": from_env,
            "get_credentials": get_credentials,
            "scatter_initial_credentials": scatter_initial_credentials,
            "force_path_style": force_path_style,
            "network_stream_timeout_seconds": network_stream_timeout_seconds,
            "requester_pays": requester_pays,
            "checksum_algorithm": checksum_algorithm,
            "legacy_rooted_keys": legacy_rooted_keys,
            "read_headers": read_headers,
            "write_headers": write_headers,
            "headers": headers,
        },
    )
    return from_config.s3(options, bucket, prefix, credentials, **others)


def s3_object_store_storage(
    *,
    bucket: str,
    prefix: str | None,
    region: str | None = None,
    endpoint_url: str | None = None,
    **arguments: Unpack[S3Arguments],
) -> ObjectStorage:
    """Return the same as `s3_storage`; there is only one implementation here."""
    return s3_storage(
        bucket=bucket, prefix=prefix, region=region, endpoint_url=endpoint_url, **arguments
    )


def r2_storage(
    *,
    bucket: str | None = None,
    prefix: str | None = None,
    account_id: str | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    **arguments: Unpack[S3Arguments],
) -> ObjectStorage:
    """Return the storage in a bucket of Cloudflare R2.

    Parameters
    ----------
    bucket : str, optional
        Default: the first part of `prefix`.
    prefix : str, optional
    account_id : str, optional
        Gives the endpoint.
    endpoint_url : str, optional
        Instead of `account_id`.
    region : str, optional
        Default ``auto``.
    **arguments
        As in `s3_storage`.

    Raises
    ------
    InvalidInputError
        Without an account and an endpoint, or without a bucket.

    Examples
    --------
    >>> storage = icechunk.r2_storage(
    ...     bucket="data", prefix="weather", account_id="id",
    ...     access_key_id="key", secret_access_key="secret",
    ... )
    """
    options, credentials, others = _described(region, endpoint_url, arguments)
    return from_config.r2(options, bucket, prefix, account_id, credentials, **others)


def tigris_storage(
    *,
    bucket: str,
    prefix: str | None,
    region: str | None = None,
    endpoint_url: str | None = None,
    use_weak_consistency: bool = False,
    **arguments: Unpack[S3Arguments],
) -> ObjectStorage:
    """Return the storage in a bucket of Tigris.

    Parameters
    ----------
    bucket : str
    prefix : str or None
    region : str, optional
        Needed for consistent reads and for writing.
    endpoint_url : str, optional
        Default: the global one.
    use_weak_consistency : bool, default False
        Read whatever the nearest region has, which may be outdated. Writing is refused.
    **arguments
        As in `s3_storage`.

    Raises
    ------
    InvalidInputError
        Without a region, unless consistency may be weak.

    Examples
    --------
    >>> storage = icechunk.tigris_storage(
    ...     bucket="data", prefix="weather", region="auto",
    ...     access_key_id="key", secret_access_key="secret",
    ... )
    """
    options, credentials, others = _described(region, endpoint_url, arguments)
    return from_config.tigris(options, bucket, prefix, use_weak_consistency, credentials, **others)


def hf_storage(
    *, bucket: str, prefix: str | None, namespace: str, **arguments: Unpack[S3Arguments]
) -> ObjectStorage:
    """Return the storage in a storage bucket of Hugging Face, through its S3 gateway.

    Parameters
    ----------
    bucket : str
        Without the namespace.
    prefix : str or None
    namespace : str
        The user or organisation that owns the bucket.
    **arguments
        As in `s3_storage`. The key pair is made from an access token on their site; the
        token itself cannot be used.

    Examples
    --------
    >>> storage = icechunk.hf_storage(
    ...     bucket="data", prefix="weather", namespace="user",
    ...     access_key_id="key", secret_access_key="secret",
    ... )
    """
    options, credentials, others = _described(None, None, arguments)
    return from_config.hf(options, bucket, prefix, namespace, credentials, **others)


def gcs_storage(
    *,
    bucket: str,
    prefix: str | None,
    service_account_file: str | None = None,
    service_account_key: str | None = None,
    application_credentials: str | None = None,
    bearer_token: str | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    config: dict[str, str] | None = None,
    get_credentials: Callable[[], GcsBearerCredential] | None = None,
    scatter_initial_credentials: bool = False,
    read_headers: dict[str, str] | None = None,
    write_headers: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> ObjectStorage:
    """Return the storage in a bucket of Google Cloud Storage.

    Parameters
    ----------
    bucket : str
    prefix : str or None
    service_account_file, service_account_key, application_credentials, bearer_token
        At most one of the ways to authenticate; see `gcs_credentials`.
    anonymous, from_env, get_credentials, scatter_initial_credentials
        Others.
    config : dict, optional
        Options for the client, such as ``base_url``.
    read_headers, write_headers, headers : dict, optional
        As in `s3_storage`.

    Raises
    ------
    InvalidInputError
        If arguments exclude each other, or an option is unknown.

    Examples
    --------
    >>> storage = icechunk.gcs_storage(bucket="data", prefix="weather", anonymous=True)
    """
    return from_config.gcs(
        bucket,
        prefix,
        config=config,
        credentials=gcs_credentials(
            service_account_file=service_account_file,
            service_account_key=service_account_key,
            application_credentials=application_credentials,
            bearer_token=bearer_token,
            anonymous=anonymous,
            from_env=from_env,
            get_credentials=get_credentials,
            scatter_initial_credentials=scatter_initial_credentials,
        ),
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def azure_storage(
    *,
    account: str,
    container: str,
    prefix: str,
    access_key: str | None = None,
    sas_token: str | None = None,
    bearer_token: str | None = None,
    from_env: bool | None = None,
    anonymous: bool | None = None,
    config: dict[str, str] | None = None,
    get_credentials: Callable[[], AnyAzureRefreshableCredential] | None = None,
    scatter_initial_credentials: bool = False,
) -> ObjectStorage:
    """Return the storage in a container of Azure Blob Storage.

    Parameters
    ----------
    account : str
    container : str
    prefix : str
    access_key, sas_token, bearer_token : str, optional
        At most one of the ways to authenticate; see `azure_credentials`.
    from_env, anonymous, get_credentials, scatter_initial_credentials
        Others.
    config : dict, optional
        Options for the client, such as ``endpoint``.

    Raises
    ------
    InvalidInputError
        If arguments exclude each other, or an option is unknown.

    Examples
    --------
    >>> storage = icechunk.azure_storage(
    ...     account="mine", container="data", prefix="weather", access_key="c2VjcmV0"
    ... )
    """
    return from_config.azure_blob(
        account,
        container,
        prefix,
        config=config,
        credentials=azure_credentials(
            access_key=access_key,
            sas_token=sas_token,
            bearer_token=bearer_token,
            from_env=from_env,
            anonymous=anonymous,
            get_credentials=get_credentials,
            scatter_initial_credentials=scatter_initial_credentials,
        ),
    )
