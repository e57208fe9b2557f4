"""Credentials for object stores, and the functions that make them.

A credential is an immutable value. It is never written to a repository, and its
``repr`` shows no secret: key ids are cut to four characters, and every other secret is
shown as ``***``.

Each family (`S3Credentials`, `GcsCredentials`, `AzureCredentials`) is a namespace
with one class for each way to authenticate. ``isinstance(x, S3Credentials)`` is true
of its variants. *Refreshable* variants call a function of the user whenever the
credentials that it last returned have expired.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

from icechunk.base.public_url import public_text, public_url
from icechunk.config.credential_types import (
    AnyAzureCredential,
    AnyAzureRefreshableCredential,
    AnyAzureStaticCredential,
    AnyCredential,
    AnyGcsCredential,
    AnyGcsStaticCredential,
    AnyS3Credential,
    AzureCredentials,
    AzureStaticCredentials,
    Credentials,
    GcsBearerCredential,
    GcsCredentials,
    GcsStaticCredentials,
    S3Credentials,
    S3StaticCredentials,
    invalid_credentials,
)

__all__ = [
    "azure_anonymous_credentials",
    "azure_credentials",
    "azure_from_env_credentials",
    "azure_refreshable_credentials",
    "azure_static_credentials",
    "containers_credentials",
    "gcs_anonymous_credentials",
    "gcs_credentials",
    "gcs_from_env_credentials",
    "gcs_refreshable_credentials",
    "gcs_static_credentials",
    "s3_anonymous_credentials",
    "s3_credentials",
    "s3_from_env_credentials",
    "s3_refreshable_credentials",
    "s3_static_credentials",
]


def _pickled(function: Callable[[], Any]) -> bytes:
    dumps: Callable[[Any], bytes] = pickle.dumps
    if getattr(function, "__module__", None) == "__main__":
        # a script or a notebook defines it, which other processes cannot import: pickle by value,
        # where a library can do that
        with suppress(ImportError):
            import cloudpickle

            dumps = cloudpickle.dumps
    try:
        return dumps(function)
    except Exception as exc:
        raise invalid_credentials(
            f"get_credentials cannot be pickled ({public_text(exc)}): pass a function defined at "
            "the top level of an importable module, or an instance of a class with __call__"
        ) from exc


def _fetching(kind: Any, function: Callable[[], Any], now: bool) -> tuple[bytes, Any]:
    """Return the parts of a refreshable credential: a function, and its result at this moment."""
    current = kind.call(function) if now else None
    return _pickled(function), current


def _only_one(function: str, **ways: object) -> str | None:
    """Return the name of the one way that was requested, or None."""
    given = [name for name, value in ways.items() if value is not None and value is not False]
    if len(given) > 1:
        raise invalid_credentials(
            f"{function}: {' and '.join(given)} exclude each other; pass one of them"
        )
    return given[0] if given else None


def s3_refreshable_credentials(
    get_credentials: Callable[[], S3StaticCredentials],
    scatter_initial_credentials: bool = False,
) -> S3Credentials.Refreshable:
    """Return S3 credentials that a function fetches and refreshes.

    Parameters
    ----------
    get_credentials : callable
        Takes no argument and returns `S3StaticCredentials`. It is pickled. One that a script
        or notebook defines travels to other processes only if cloudpickle is installed, as
        it is with Dask.
    scatter_initial_credentials : bool, default False
        Call it now, and let copies that are sent to other processes carry the result, so
        that a large cluster does not request credentials all at once. The pickled copies
        then contain secrets. Once these have expired, each copy calls the function.

    Raises
    ------
    InvalidInputError
        If the function cannot be pickled; with `scatter_initial_credentials` also if it
        fails, or returns anything else.

    Examples
    --------
    >>> from functools import partial
    >>> fresh = partial(icechunk.S3StaticCredentials, "key", "secret")  # or a function of yours
    >>> credentials = icechunk.s3_refreshable_credentials(fresh)
    """
    kind = S3Credentials.Refreshable
    return kind(*_fetching(kind, get_credentials, scatter_initial_credentials))


def s3_static_credentials(
    *,
    access_key_id: str,
    secret_access_key: str,
    session_token: str | None = None,
    expires_after: datetime | None = None,
) -> S3Credentials.Static:
    """Return fixed S3 credentials.

    Examples
    --------
    >>> credentials = icechunk.s3_static_credentials(
    ...     access_key_id="key", secret_access_key="secret"
    ... )
    """
    return S3Credentials.Static(
        S3StaticCredentials(access_key_id, secret_access_key, session_token, expires_after)
    )


def s3_anonymous_credentials() -> S3Credentials.Anonymous:
    """Return credentials that leave S3 requests unsigned.

    Examples
    --------
    >>> credentials = icechunk.s3_anonymous_credentials()
    """
    return S3Credentials.Anonymous()


def s3_from_env_credentials() -> S3Credentials.FromEnv:
    """Return S3 credentials that are looked up in the environment.

    Examples
    --------
    >>> credentials = icechunk.s3_from_env_credentials()
    """
    return S3Credentials.FromEnv()


def s3_credentials(
    *,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    get_credentials: Callable[[], S3StaticCredentials] | None = None,
    scatter_initial_credentials: bool = False,
) -> AnyS3Credential:
    """Return S3 credentials of the kind that the arguments describe.

    Without arguments they come from the environment.

    Raises
    ------
    InvalidInputError
        If the arguments describe two kinds, or only half of a key pair.

    Examples
    --------
    >>> credentials = icechunk.s3_credentials(access_key_id="key", secret_access_key="secret")
    """
    pair = {"access_key_id": access_key_id, "secret_access_key": secret_access_key}
    static = {**pair, "session_token": session_token, "expires_after": expires_after}
    way = _only_one(
        "s3_credentials",
        anonymous=anonymous,
        from_env=from_env,
        get_credentials=get_credentials,
        **{"a key pair": any(v is not None for v in static.values())},
    )
    if way == "anonymous":
        return s3_anonymous_credentials()
    if get_credentials is not None:
        return s3_refreshable_credentials(get_credentials, scatter_initial_credentials)
    if way == "a key pair":
        missing = [name for name, value in pair.items() if value is None]
        if access_key_id is None or secret_access_key is None:
            raise invalid_credentials(f"s3_credentials: {' and '.join(missing)} must be given too")
        return s3_static_credentials(
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            session_token=session_token,
            expires_after=expires_after,
        )
    return s3_from_env_credentials()


def gcs_static_credentials(
    *,
    service_account_file: str | None = None,
    service_account_key: str | None = None,
    application_credentials: str | None = None,
    bearer_token: str | None = None,
) -> AnyGcsStaticCredential:
    """Return fixed credentials for Google Cloud Storage from exactly one argument.

    Raises
    ------
    InvalidInputError
        If none is given, or more than one.

    Examples
    --------
    >>> credentials = icechunk.gcs_static_credentials(bearer_token="token")
    """
    _only_one(
        "gcs_static_credentials",
        service_account_file=service_account_file,
        service_account_key=service_account_key,
        application_credentials=application_credentials,
        bearer_token=bearer_token,
    )
    if service_account_file is not None:
        return GcsStaticCredentials.ServiceAccount(service_account_file)
    if service_account_key is not None:
        return GcsStaticCredentials.ServiceAccountKey(service_account_key)
    if application_credentials is not None:
        return GcsStaticCredentials.ApplicationCredentials(application_credentials)
    if bearer_token is not None:
        return GcsStaticCredentials.BearerToken(bearer_token)
    raise invalid_credentials(
        "gcs_static_credentials: pass service_account_file, service_account_key, "
        "application_credentials or bearer_token"
    )


def gcs_refreshable_credentials(
    get_credentials: Callable[[], GcsBearerCredential],
    scatter_initial_credentials: bool = False,
) -> GcsCredentials.Refreshable:
    """Return Google Cloud credentials that a function fetches and refreshes.

    The function returns `GcsBearerCredential`; everything else is as in
    `s3_refreshable_credentials`.

    Examples
    --------
    >>> from functools import partial
    >>> fresh = partial(icechunk.GcsBearerCredential, "token")  # or a function of yours
    >>> credentials = icechunk.gcs_refreshable_credentials(fresh)
    """
    kind = GcsCredentials.Refreshable
    return kind(*_fetching(kind, get_credentials, scatter_initial_credentials))


def gcs_anonymous_credentials() -> GcsCredentials.Anonymous:
    """Return credentials that leave Google Cloud requests unsigned.

    Examples
    --------
    >>> credentials = icechunk.gcs_anonymous_credentials()
    """
    return GcsCredentials.Anonymous()


def gcs_from_env_credentials() -> GcsCredentials.FromEnv:
    """Return Google Cloud credentials that are looked up in the environment.

    Examples
    --------
    >>> credentials = icechunk.gcs_from_env_credentials()
    """
    return GcsCredentials.FromEnv()


def gcs_credentials(
    *,
    service_account_file: str | None = None,
    service_account_key: str | None = None,
    application_credentials: str | None = None,
    bearer_token: str | None = None,
    from_env: bool | None = None,
    anonymous: bool | None = None,
    get_credentials: Callable[[], GcsBearerCredential] | None = None,
    scatter_initial_credentials: bool = False,
) -> AnyGcsCredential:
    """Return Google Cloud credentials of the kind that the arguments describe.

    Without arguments they come from the environment.

    Raises
    ------
    InvalidInputError
        If the arguments describe two kinds.

    Examples
    --------
    >>> credentials = icechunk.gcs_credentials(bearer_token="token")
    """
    static = {
        "service_account_file": service_account_file,
        "service_account_key": service_account_key,
        "application_credentials": application_credentials,
        "bearer_token": bearer_token,
    }
    way = _only_one(
        "gcs_credentials",
        anonymous=anonymous,
        from_env=from_env,
        get_credentials=get_credentials,
        **static,
    )
    if way == "anonymous":
        return gcs_anonymous_credentials()
    if get_credentials is not None:
        return gcs_refreshable_credentials(get_credentials, scatter_initial_credentials)
    if way in static:
        return GcsCredentials.Static(gcs_static_credentials(**static))
    return gcs_from_env_credentials()


def azure_static_credentials(
    *,
    access_key: str | None = None,
    sas_token: str | None = None,
    bearer_token: str | None = None,
) -> AnyAzureStaticCredential:
    """Return fixed credentials for Azure from exactly one argument.

    Raises
    ------
    InvalidInputError
        If none is given, or more than one.

    Examples
    --------
    >>> credentials = icechunk.azure_static_credentials(access_key="secret")
    """
    _only_one(
        "azure_static_credentials",
        access_key=access_key,
        sas_token=sas_token,
        bearer_token=bearer_token,
    )
    if access_key is not None:
        return AzureStaticCredentials.AccessKey(access_key)
    if sas_token is not None:
        return AzureStaticCredentials.SasToken(sas_token)
    if bearer_token is not None:
        return AzureStaticCredentials.BearerToken(bearer_token)
    raise invalid_credentials(
        "azure_static_credentials: pass access_key, sas_token or bearer_token"
    )


def azure_refreshable_credentials(
    get_credentials: Callable[[], AnyAzureRefreshableCredential],
    scatter_initial_credentials: bool = False,
) -> AzureCredentials.Refreshable:
    """Return Azure credentials that a function fetches and refreshes.

    The function returns one of `AzureRefreshableCredential`; everything else is as in
    `s3_refreshable_credentials`.
    """
    kind = AzureCredentials.Refreshable
    return kind(*_fetching(kind, get_credentials, scatter_initial_credentials))


def azure_from_env_credentials() -> AzureCredentials.FromEnv:
    """Return Azure credentials that are looked up in the environment.

    Examples
    --------
    >>> credentials = icechunk.azure_from_env_credentials()
    """
    return AzureCredentials.FromEnv()


def azure_anonymous_credentials() -> AzureCredentials.Anonymous:
    """Return credentials that leave Azure requests unsigned.

    Examples
    --------
    >>> credentials = icechunk.azure_anonymous_credentials()
    """
    return AzureCredentials.Anonymous()


def azure_credentials(
    *,
    access_key: str | None = None,
    sas_token: str | None = None,
    bearer_token: str | None = None,
    from_env: bool | None = None,
    anonymous: bool | None = None,
    get_credentials: Callable[[], AnyAzureRefreshableCredential] | None = None,
    scatter_initial_credentials: bool = False,
) -> AnyAzureCredential:
    """Return Azure credentials of the kind that the arguments describe.

    Without arguments they come from the environment.

    Raises
    ------
    InvalidInputError
        If the arguments describe two kinds.

    Examples
    --------
    >>> credentials = icechunk.azure_credentials(access_key="secret")
    """
    static = {"access_key": access_key, "sas_token": sas_token, "bearer_token": bearer_token}
    way = _only_one(
        "azure_credentials",
        anonymous=anonymous,
        from_env=from_env,
        get_credentials=get_credentials,
        **static,
    )
    if way == "anonymous":
        return azure_anonymous_credentials()
    if get_credentials is not None:
        return azure_refreshable_credentials(get_credentials, scatter_initial_credentials)
    if way in static:
        return AzureCredentials.Static(azure_static_credentials(**static))
    return azure_from_env_credentials()


def containers_credentials(
    m: Mapping[
        str,
        AnyS3Credential | AnyGcsCredential | AnyAzureCredential | AnyCredential | None,
    ],
) -> dict[str, AnyCredential | None]:
    """Return the argument ``authorize_virtual_chunk_access`` for some containers.

    Parameters
    ----------
    m : mapping
        From the URL prefix of a container to credentials: of a store's own family, or already
        wrapped in `Credentials`. None stands for the defaults of the store.

    Raises
    ------
    InvalidInputError
        If a value is none of these.

    Examples
    --------
    >>> access = icechunk.containers_credentials(
    ...     {"s3://archive/": icechunk.s3_anonymous_credentials()}
    ... )
    """
    result: dict[str, AnyCredential | None] = {}
    for prefix, credential in m.items():
        if credential is None or isinstance(credential, Credentials):
            result[prefix] = cast("AnyCredential | None", credential)
        elif isinstance(credential, S3Credentials):
            result[prefix] = Credentials.S3(cast(AnyS3Credential, credential))
        elif isinstance(credential, GcsCredentials):
            result[prefix] = Credentials.Gcs(cast(AnyGcsCredential, credential))
        elif isinstance(credential, AzureCredentials):
            result[prefix] = Credentials.Azure(cast(AnyAzureCredential, credential))
        else:
            raise invalid_credentials(
                f"{public_url(str(prefix))}: {type(credential).__name__} is not a credential; use "
                "one of the functions of icechunk.credentials"
            )
    return result
