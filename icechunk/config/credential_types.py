"""The credential classes; `icechunk.credentials` exports them with their constructors.

A credential is an immutable value. Its ``repr`` shows no secret: key ids are cut to
four characters, and every other secret is shown as ``***``.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, Generic, TypeAlias, TypeVar, cast

from icechunk.base.display import Displayed
from icechunk.base.public_url import public_text
from icechunk.base.texts import labelled, plain
from icechunk.config.options import Family
from icechunk.errors import ErrorKind, InvalidInputError

__all__ = [
    "AnyAzureCredential",
    "AnyAzureRefreshableCredential",
    "AnyAzureStaticCredential",
    "AnyCredential",
    "AnyGcsCredential",
    "AnyGcsStaticCredential",
    "AnyS3Credential",
    "AzureCredentials",
    "AzureRefreshableCredential",
    "AzureStaticCredentials",
    "Credentials",
    "GcsBearerCredential",
    "GcsCredentials",
    "GcsStaticCredentials",
    "HttpAccess",
    "LocalFileSystemAccess",
    "S3Credentials",
    "S3StaticCredentials",
]

#: Refresh this long before the stated expiry, so that a request in progress still succeeds.
EXPIRY_MARGIN: Final = timedelta(seconds=10)


def invalid_credentials(message: str) -> InvalidInputError:
    """Return the error for a credential that cannot be valid."""
    return InvalidInputError(message, ErrorKind.INVALID_CREDENTIALS)


def _secret() -> Any:
    return field(metadata={"secret": True})


def _optional_secret() -> Any:
    return field(default=None, metadata={"secret": True})


def _is_one_line(of: Any, value: str) -> bool:
    """Whether a value is allowed in a header. Some clients abort if it is not."""
    return bool(of.metadata.get("lines")) or (value.isascii() and value.isprintable())


_W = TypeVar("_W")


class _Credential(Displayed):
    """What all credential classes share: checks of their fields, a safe ``repr``."""

    def __post_init__(self) -> None:
        for f in fields(cast(Any, self)):
            value = getattr(self, f.name)
            where = f"{type(self).__qualname__}: {f.name}"
            if f.name == "expires_after":
                if value is not None and (not isinstance(value, datetime) or value.tzinfo is None):
                    raise invalid_credentials(f"{where} must be a datetime with a time zone")
            elif f.metadata.get("secret") or f.metadata.get("key_id"):
                wanted = bytes if f.name == "pickled_function" else str
                if not isinstance(value, wanted) and not (value is None and f.default is None):
                    # the value itself is not shown: it may be a secret of another type
                    raise invalid_credentials(
                        f"{where} must be {wanted.__name__}, not {type(value).__name__}"
                    )
                if isinstance(value, str) and not _is_one_line(f, value):
                    raise invalid_credentials(
                        f"{where} has a line break or another character that no request can "
                        "carry; what is read from a file ends with one: pass text.strip()"
                    )

    def __repr__(self) -> str:
        return self.as_call()

    def as_call(self) -> str:
        """Return the text that appears inside the text of other objects."""
        shown = []
        for f in fields(cast(Any, self)):
            value = getattr(self, f.name)
            if value is None:
                continue
            text = value.as_call() if isinstance(value, _Credential) else repr(value)
            if f.metadata.get("key_id"):
                text = repr(value[:4] + "***")
            elif f.metadata.get("secret") or (isinstance(value, str) and not _is_name(value)):
                text = "'***'"
            shown.append(f"{f.name}={text}")
        return f"{type(self).__qualname__}({', '.join(shown)})"


def _is_name(text: str) -> bool:
    # the text of a key file is passed where its path belongs
    return text.isprintable() and "{" not in text


@dataclass(frozen=True, repr=False)
class _Nothing(_Credential):
    """A variant without fields: the class says everything."""


@dataclass(frozen=True, repr=False)
class _Wrapping(_Credential, Generic[_W]):
    """Credentials of one family, as a way to authenticate to one kind of store."""

    #: What it holds.
    _family: ClassVar[type]

    credentials: _W

    def __post_init__(self) -> None:
        _check_wrapped(self.credentials, self._family, self)


class _Expiring(_Credential):
    expires_after: datetime | None


_T = TypeVar("_T", bound=_Expiring)


@dataclass(frozen=True, repr=False, eq=False)
class _Refreshable(_Credential, Generic[_T]):
    """Credentials from a pickled function, which is called again when they expire."""

    #: What the function returns.
    _family: ClassVar[type]

    pickled_function: bytes = _secret()
    current: _T | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.current is not None:
            _check_wrapped(self.current, self._family, self)
        self._reset(self.current)

    def _reset(self, newest: _T | None) -> None:
        # the dataclasses are frozen; this state is not part of their value
        object.__setattr__(self, "_lock", threading.Lock())
        object.__setattr__(self, "_newest", newest)

    def __getstate__(self) -> tuple[bytes, _T | None]:
        # what was fetched stays in this process: a copy sent elsewhere fetches its own
        return self.pickled_function, self.current

    def __setstate__(self, state: tuple[bytes, _T | None]) -> None:
        object.__setattr__(self, "pickled_function", state[0])
        object.__setattr__(self, "current", state[1])
        self._reset(state[1])

    def get(self) -> _T:
        """Return credentials that have not expired, calling the function if needed.

        Safe to call from several threads: one of them calls the function, the others
        wait for what it returns. Credentials without an expiry are kept for good.

        Raises
        ------
        InvalidInputError
            If the function cannot be loaded or fails, or if it returns anything other than
            credentials of its family.
        """
        lock: threading.Lock = cast(Any, self)._lock
        with lock:
            newest: _T | None = cast(Any, self)._newest
            if newest is None or _expired(newest.expires_after):
                newest = self._call()
                object.__setattr__(self, "_newest", newest)
            return newest

    def _call(self) -> _T:
        try:
            function = pickle.loads(self.pickled_function)
        except Exception as exc:
            raise invalid_credentials(
                f"{type(self).__qualname__}: the function that fetches credentials cannot be "
                f"loaded here ({exc}); it must be importable in this process"
            ) from exc
        return self.call(function)

    @classmethod
    def call(cls, function: Callable[[], _T]) -> _T:
        """Return what a user's function fetches.

        Raises
        ------
        InvalidInputError
            If it fails, or returns anything else. The message names it.
        """
        named = function if hasattr(function, "__qualname__") else type(function)
        where = f"{cls.__qualname__}: get_credentials, {named.__module__}.{named.__qualname__}"
        try:
            value = function()
        except Exception as exc:
            why = f"{type(exc).__name__}: {public_text(exc)}"
            raise invalid_credentials(f"{where}, failed: {why}") from exc
        if not isinstance(value, cls._family):
            raise invalid_credentials(
                f"{where}, must return {cls._family.__name__}, not {type(value).__name__}"
            )
        return value

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash(self.__getstate__())


def _expired(expires_after: datetime | None) -> bool:
    return expires_after is not None and datetime.now(UTC) >= expires_after - EXPIRY_MARGIN


def _check_wrapped(value: object, family: type, owner: object) -> None:
    if not isinstance(value, family):
        raise invalid_credentials(
            f"{type(owner).__qualname__}: credentials must be {family.__name__}, "
            f"not {type(value).__name__}"
        )


# -- S3 ------------------------------------------------------------------------------
@dataclass(frozen=True, repr=False)
class S3StaticCredentials(_Expiring):
    """A key pair for S3.

    Parameters
    ----------
    access_key_id, secret_access_key : str
    session_token : str, optional
        For temporary credentials.
    expires_after : datetime, optional
        With a time zone. Tells a refreshable credential when to fetch new ones.

    Examples
    --------
    >>> keys = icechunk.S3StaticCredentials("key", "secret")
    """

    access_key_id: str = field(metadata={"key_id": True})
    secret_access_key: str = _secret()
    session_token: str | None = _optional_secret()
    expires_after: datetime | None = None

    def __repr__(self) -> str:
        lines = {
            "access_key_id": f"{self.access_key_id[:4]}****",
            "secret_access_key": "****",
            "session_token": "None" if self.session_token is None else "****",
            "expires_after": plain(self.expires_after),
        }
        return labelled("icechunk.credentials.S3StaticCredentials", lines)


class S3Credentials(metaclass=Family):
    """The ways to authenticate to S3 and to stores that speak its protocol.

    Calling it, ``S3Credentials(access_key_id=..., secret_access_key=...)``, makes a
    `S3Credentials.Static`.
    """

    def __new__(  # type: ignore[misc]
        cls,
        access_key_id: str,
        secret_access_key: str,
        session_token: str | None = None,
        expires_after: datetime | None = None,
    ) -> S3Credentials.Static:
        """Return static credentials."""
        return S3Credentials.Static(
            S3StaticCredentials(access_key_id, secret_access_key, session_token, expires_after)
        )

    class FromEnv(_Nothing):
        """Whatever the environment offers: variables, profiles, instance metadata."""

    class Anonymous(_Nothing):
        """Requests are not signed."""

    class Static(_Wrapping["S3StaticCredentials"]):
        """A fixed key pair."""

        _family = S3StaticCredentials

    class Refreshable(_Refreshable[S3StaticCredentials]):
        """Key pairs from a pickled function; see `s3_refreshable_credentials`."""

        _family = S3StaticCredentials


AnyS3Credential: TypeAlias = (
    S3Credentials.Static
    | S3Credentials.Anonymous
    | S3Credentials.FromEnv
    | S3Credentials.Refreshable
)


# -- Google Cloud Storage --------------------------------------------------------------
@dataclass(frozen=True, repr=False)
class GcsBearerCredential(_Expiring):
    """An OAuth token for Google Cloud Storage.

    Parameters
    ----------
    bearer : str
    expires_after : datetime, optional
        With a time zone.

    Examples
    --------
    >>> token = icechunk.GcsBearerCredential("token")
    """

    bearer: str = _secret()
    expires_after: datetime | None = field(default=None, kw_only=True)


class GcsStaticCredentials(metaclass=Family):
    """Fixed credentials for Google Cloud Storage."""

    @dataclass(frozen=True, repr=False)
    class ServiceAccount(_Credential):
        """A service account, as the path of its key file."""

        path: str

    @dataclass(frozen=True, repr=False)
    class ServiceAccountKey(_Credential):
        """A service account, as the JSON text of its key."""

        key: str = field(metadata={"secret": True, "lines": True})

    @dataclass(frozen=True, repr=False)
    class ApplicationCredentials(_Credential):
        """Application default credentials, as the path of their file."""

        path: str

    @dataclass(frozen=True, repr=False)
    class BearerToken(_Credential):
        """An OAuth token."""

        token: str = _secret()


AnyGcsStaticCredential: TypeAlias = (
    GcsStaticCredentials.ServiceAccount
    | GcsStaticCredentials.ServiceAccountKey
    | GcsStaticCredentials.ApplicationCredentials
    | GcsStaticCredentials.BearerToken
)


class GcsCredentials(metaclass=Family):
    """The ways to authenticate to Google Cloud Storage."""

    class Anonymous(_Nothing):
        """Requests are not signed."""

    class FromEnv(_Nothing):
        """Whatever the environment offers."""

    class Static(_Wrapping["AnyGcsStaticCredential"]):
        """Fixed credentials."""

        _family = GcsStaticCredentials

    class Refreshable(_Refreshable[GcsBearerCredential]):
        """Tokens from a pickled function; see `gcs_refreshable_credentials`."""

        _family = GcsBearerCredential


AnyGcsCredential: TypeAlias = (
    GcsCredentials.Anonymous
    | GcsCredentials.FromEnv
    | GcsCredentials.Static
    | GcsCredentials.Refreshable
)


# -- Azure ---------------------------------------------------------------------------
class AzureRefreshableCredential(metaclass=Family):
    """What a function that refreshes Azure credentials may return."""

    @dataclass(frozen=True, repr=False)
    class AccessKey(_Expiring):
        """The key of the storage account."""

        key: str = _secret()
        expires_after: datetime | None = None

    @dataclass(frozen=True, repr=False)
    class SasToken(_Expiring):
        """A shared access signature."""

        token: str = _secret()
        expires_after: datetime | None = None

    @dataclass(frozen=True, repr=False)
    class BearerToken(_Expiring):
        """An OAuth token."""

        bearer: str = _secret()
        expires_after: datetime | None = None


AnyAzureRefreshableCredential: TypeAlias = (
    AzureRefreshableCredential.AccessKey
    | AzureRefreshableCredential.SasToken
    | AzureRefreshableCredential.BearerToken
)


class AzureStaticCredentials(metaclass=Family):
    """Fixed credentials for Azure."""

    @dataclass(frozen=True, repr=False)
    class AccessKey(_Credential):
        """The key of the storage account."""

        key: str = _secret()

    @dataclass(frozen=True, repr=False)
    class SasToken(_Credential):
        """A shared access signature."""

        token: str = _secret()

    @dataclass(frozen=True, repr=False)
    class BearerToken(_Credential):
        """An OAuth token."""

        token: str = _secret()


AnyAzureStaticCredential: TypeAlias = (
    AzureStaticCredentials.AccessKey
    | AzureStaticCredentials.SasToken
    | AzureStaticCredentials.BearerToken
)


class AzureCredentials(metaclass=Family):
    """The ways to authenticate to Azure Blob Storage."""

    class Anonymous(_Nothing):
        """Requests are not signed."""

    class FromEnv(_Nothing):
        """Whatever the environment offers."""

    class Static(_Wrapping["AnyAzureStaticCredential"]):
        """Fixed credentials."""

        _family = AzureStaticCredentials

    class Refreshable(_Refreshable[AnyAzureRefreshableCredential]):
        """Credentials from a pickled function; see `azure_refreshable_credentials`."""

        _family = AzureRefreshableCredential


AnyAzureCredential: TypeAlias = (
    AzureCredentials.FromEnv
    | AzureCredentials.Anonymous
    | AzureCredentials.Static
    | AzureCredentials.Refreshable
)


# -- any store -----------------------------------------------------------------------
class Credentials(metaclass=Family):
    """What authorises a virtual chunk container, one class for each kind of store."""

    class S3(_Wrapping["AnyS3Credential"]):
        """Access to a container on S3."""

        _family = S3Credentials

    class Gcs(_Wrapping["AnyGcsCredential"]):
        """Access to a container on Google Cloud Storage."""

        _family = GcsCredentials

    class Azure(_Wrapping["AnyAzureCredential"]):
        """Access to a container on Azure Blob Storage."""

        _family = AzureCredentials

    class LocalFileSystemAccess(_Nothing):
        """Access to a folder: a permission, without a secret."""

    class HttpAccess(_Nothing):
        """Access to a web server: a permission, without a secret."""


AnyCredential: TypeAlias = (
    Credentials.S3
    | Credentials.Gcs
    | Credentials.Azure
    | Credentials.LocalFileSystemAccess
    | Credentials.HttpAccess
)

#: Authorises a container on the local file system.
LocalFileSystemAccess: Final = Credentials.LocalFileSystemAccess()
#: Authorises a container on a web server.
HttpAccess: Final = Credentials.HttpAccess()
