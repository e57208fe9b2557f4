"""Where an object store is and how to authenticate there, as values that can travel.

A place is the recipe for a client of obstore, and what a pickled storage consists of.
Its ``repr`` is its URL. Keys and tokens stay inside.
"""

from __future__ import annotations

import copy
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from obstore.exceptions import UnknownConfigurationKeyError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from icechunk._version import user_agent as own_user_agent
from icechunk.base.public_url import public_url
from icechunk.config import ChecksumAlgorithm, S3Options, StorageRetriesSettings, StorageSettings
from icechunk.config.credential_types import (
    EXPIRY_MARGIN,
    AnyAzureCredential,
    AnyGcsCredential,
    AnyS3Credential,
    AzureCredentials,
    AzureRefreshableCredential,
    AzureStaticCredentials,
    GcsBearerCredential,
    GcsCredentials,
    GcsStaticCredentials,
    S3Credentials,
    S3StaticCredentials,
)
from icechunk.config.storage_settings import EffectiveStorageSettings
from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.storage import aws_environment
from icechunk.storage.aws_profile import (
    ProfileCredentials,
    fetched_credentials,
    profile_options,
    profile_region,
)
from icechunk.storage.client_options import (
    STREAM_TIMEOUT,
    WRITE_STREAM_TIMEOUT,
    client_options,
    retry_options,
    split_options,
)
from icechunk.storage.cloud_environment import S3_WAYS, missing_azure, missing_google
from icechunk.storage.failures import reason
from icechunk.storage.headers import check_headers, check_variables, is_short
from icechunk.storage.one_host import staying_at
from icechunk.storage.place_names import (
    check_endpoint,
    check_host_part,
    check_name,
    clean_prefix,
    join_url,
)

_REGION: Final = re.compile(r"[a-z0-9-]{1,40}")
#: Variables whose values go into headers.
_S3_VARIABLES: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

_CHECKSUMS: Final = {ChecksumAlgorithm.Sha256: "SHA256", ChecksumAlgorithm.Crc64Nvme: "CRC64NVME"}


@dataclass(frozen=True)
class _Client:
    """What a client is told, whatever the service: see `client_options`."""

    settings: EffectiveStorageSettings
    headers: Mapping[str, str]
    agent: str
    silence: int
    retry: Any

    def options(self, more: Mapping[str, Any], silence: int | None = None) -> Any:
        wait = self.silence if silence is None else silence
        return client_options(self.settings, self.headers, more, self.agent, wait)


@dataclass(frozen=True, repr=False)
class Place(ABC):
    """One location in one service.

    Attributes
    ----------
    read_headers, write_headers : dict
        Sent with every request that reads, or writes.
    user_agent : str
        Who makes the requests.
    """

    #: Whether the service understands "the last n bytes".
    suffix_ranges: ClassVar[bool] = True

    read_headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    write_headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    user_agent: str = field(default_factory=own_user_agent, kw_only=True)

    @property
    @abstractmethod
    def url(self) -> str:
        """The location, without credentials."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @abstractmethod
    def lines(self) -> dict[str, str]:
        """Return what a storage displays of its place: kind and names, no secrets."""

    def version(self, meta: Mapping[str, Any]) -> str | None:
        """Return what identifies the version of an object, from obstore's answer."""
        etag: str | None = meta["e_tag"]
        return etag

    def etag(self, version: str) -> str:
        """Return the etag, for conditional gets."""
        return version

    def put_mode(self, version: str) -> Any:
        """Return the mode of a put that replaces this version.

        Raises
        ------
        InvalidInputError
            If it is not a version of this service.
        """
        return {"e_tag": quoted(version)}

    def missing_credentials(self) -> str | None:
        """Say where credentials were looked for in vain, and what else to pass."""
        looked = self._looked_in_vain()
        return looked and f"no credentials for {self.url}: {looked}"

    def _looked_in_vain(self) -> str | None:
        return None

    def other_region(self) -> str | None:
        """Return the region that the place is in, if it is known and not the one asked."""
        return None

    def open(self, settings: EffectiveStorageSettings, *, write: bool) -> ObjectStore:
        """Return a client.

        Raises
        ------
        InvalidInputError
            If an option is unknown.
        StorageError
            If something that the client cannot do without is missing or malformed.
        """
        headers = dict(self.write_headers if write else self.read_headers)
        check_headers({**headers, "User-Agent": self.user_agent}, self.url)
        try:
            return self._open(
                _Client(
                    settings,
                    headers,
                    self.user_agent,
                    WRITE_STREAM_TIMEOUT if write else STREAM_TIMEOUT,
                    retry_options(settings, write=write),
                )
            )
        except InvalidInputError:
            raise
        except UnknownConfigurationKeyError as error:
            failure: Exception = InvalidInputError(
                f"{self.url}: {reason(error)}", ErrorKind.STORAGE_CONFIG
            )
        except Exception as error:
            failure = StorageError(
                f"cannot set up access to {self.url}: {reason(error)}", ErrorKind.STORAGE_CONFIG
            )
        # outside of the handler: the original may show more than it should
        raise failure

    @abstractmethod
    def _open(self, client: _Client) -> ObjectStore: ...


@dataclass(frozen=True, repr=False)
class S3Place(Place):
    """A prefix in a bucket of S3 or of a store that speaks its protocol."""

    bucket: str
    prefix: str
    options: S3Options
    credentials: AnyS3Credential

    def __post_init__(self) -> None:
        check_name("bucket", self.bucket)
        object.__setattr__(self, "prefix", clean_prefix(self.prefix))
        options = copy.deepcopy(self.options)
        object.__setattr__(self, "options", options)
        endpoint = options.endpoint_url
        if endpoint is not None:
            check_endpoint("endpoint_url", endpoint)
        if endpoint is not None and endpoint.startswith("http://") and not options.allow_http:
            raise InvalidInputError(
                f"endpoint_url {public_url(endpoint)!r} has no TLS: pass allow_http=True if that "
                "is what you want",
                ErrorKind.STORAGE_CONFIG,
            )
        checksum = options.checksum_algorithm
        if checksum is not None and checksum not in _CHECKSUMS:
            raise InvalidInputError(
                f"checksum_algorithm {checksum.name} is not supported: use "
                f"{' or '.join(a.name for a in _CHECKSUMS)}",
                ErrorKind.STORAGE_CONFIG,
            )

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return join_url("s3", self.bucket, self.prefix)

    def lines(self) -> dict[str, str]:
        """Return bucket, prefix, and the options that are set."""
        endpoint = self.options.endpoint_url
        shown = {
            "region": self.options.region,
            "endpoint_url": None if endpoint is None else public_url(endpoint),
            "anonymous": isinstance(self.credentials, S3Credentials.Anonymous),
            "allow_http": self.options.allow_http,
            "force_path_style": self.options.force_path_style,
            "requester_pays": self.options.requester_pays,
        }
        return {
            "type": "S3 (native)",
            **_bucket_lines(self.bucket, self.prefix),
            **{name: str(value) for name, value in shown.items() if value},
        }

    def other_region(self) -> str | None:
        """Ask the service for the region of the bucket, which it tells everybody."""
        from icechunk.storage.guarded_http import GuardedHttp

        options = self.options
        _, endpoint = aws_environment.endpoint() or ("", "https://s3.amazonaws.com")
        http = GuardedHttp(
            options.endpoint_url or endpoint,
            {"timeout": "5s", "allow_http": str(options.allow_http)},
            settings=StorageSettings(retries=StorageRetriesSettings(max_tries=1)),
        )
        try:
            found = http.headers(self.bucket).get("x-amz-bucket-region") or ""
        except StorageError:
            return None
        asked = next(self._regions(), "us-east-1")
        return found if found != asked and _REGION.fullmatch(found) else None

    def _regions(self) -> Iterator[str]:
        variables = map(os.environ.get, ("AWS_REGION", "AWS_DEFAULT_REGION"))
        return filter(None, (self.options.region, profile_region(), *variables))

    def _looked_in_vain(self) -> str | None:
        from_env = isinstance(self.credentials, S3Credentials.FromEnv)
        looked = aws_environment.missing_credentials() if from_env else None
        return looked and f"{looked}. {S3_WAYS}"

    def _open(self, client: _Client) -> ObjectStore:
        options = self.options
        for named in self._regions():
            check_host_part("region", named)
        allow_http = options.allow_http
        # the path style works everywhere: with AWS, with IP addresses, without DNS
        config: dict[str, Any] = {"virtual_hosted_style_request": False}
        credentials = self.credentials
        provider: _Provider | ProfileCredentials | None = None
        if isinstance(credentials, S3Credentials.Anonymous):
            config["skip_signature"] = True
        elif isinstance(credentials, S3Credentials.FromEnv):
            check_variables(_S3_VARIABLES)
            profile = profile_options()
            check_headers(profile, "the credentials file of AWS")
            config.update(profile)
            provider = fetched_credentials(options.region)
            if (metadata := aws_environment.metadata_endpoint()) is not None:
                config["metadata_endpoint"] = metadata
            if (region := profile_region()) is not None:
                config["region"] = region
        else:
            # not as options: those would be mixed with a session token of the environment
            provider = _Provider(credentials)
        if options.region is not None:
            config["region"] = options.region
        endpoint = None
        if options.endpoint_url is not None:
            endpoint = options.endpoint_url
        elif (found := aws_environment.endpoint()) is not None:
            check_endpoint(*found)
            allow_http = allow_http or aws_environment.allows_http()
            if not allow_http:
                aws_environment.check_tls(*found)
            endpoint = found[1]
        staying: dict[str, str] = {}
        if endpoint is not None:
            # the name that wins over variables
            config["aws_endpoint_url_s3"] = endpoint
            others = aws_environment.asked_by_the_client() if provider is None else ()
            staying = staying_at(endpoint, *others)
        if options.requester_pays:
            config["request_payer"] = True
        if options.checksum_algorithm is not None:
            config["checksum_algorithm"] = _CHECKSUMS[options.checksum_algorithm]
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            config=config,  # type: ignore[arg-type]
            client_options=client.options(
                {"allow_http": allow_http, **staying}, options.network_stream_timeout_seconds
            ),
            retry_config=client.retry,
            credential_provider=provider,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, repr=False)
class GcsPlace(Place):
    """A prefix in a bucket of Google Cloud Storage.

    Its conditional puts compare generation numbers, its conditional gets etags; a version
    is both, with a ``#`` between them.
    """

    bucket: str
    prefix: str
    config: Mapping[str, str]
    credentials: AnyGcsCredential

    def __post_init__(self) -> None:
        check_name("bucket", self.bucket)
        object.__setattr__(self, "prefix", clean_prefix(self.prefix))

    @property
    def url(self) -> str:
        """``gs://bucket/prefix``."""
        return join_url("gs", self.bucket, self.prefix)

    def lines(self) -> dict[str, str]:
        """Return bucket and prefix."""
        return {"type": "GCS", **_bucket_lines(self.bucket, self.prefix)}

    def _looked_in_vain(self) -> str | None:
        from_env = isinstance(self.credentials, GcsCredentials.FromEnv)
        return missing_google(self.config) if from_env else None

    def version(self, meta: Mapping[str, Any]) -> str | None:
        """Return etag and generation."""
        return f"{meta['e_tag']}#{meta['version']}" if meta["version"] else meta["e_tag"]

    def etag(self, version: str) -> str:
        """Return the etag: the checksum of a virtual chunk is exactly that."""
        return version.rpartition("#")[0] or version

    def put_mode(self, version: str) -> Any:
        """Return the mode of a put that replaces this generation."""
        etag, found, generation = version.rpartition("#")
        if not found:
            raise InvalidInputError(f"{version!r} is not a version of an object in {self.url}")
        return {"e_tag": etag, "version": generation}

    def _open(self, client: _Client) -> ObjectStore:
        return GCSStore(
            self.bucket,
            prefix=self.prefix or None,
            **_arguments(client, self.config, self.credentials, {}),
        )


@dataclass(frozen=True, repr=False)
class AzurePlace(Place):
    """A prefix in a container of Azure Blob Storage."""

    suffix_ranges: ClassVar[bool] = False

    account: str | None
    container: str
    prefix: str
    config: Mapping[str, str]
    credentials: AnyAzureCredential

    def __post_init__(self) -> None:
        check_name("container", self.container)
        if self.account is not None:
            check_host_part("account", self.account)
        object.__setattr__(self, "prefix", clean_prefix(self.prefix))

    @property
    def url(self) -> str:
        """``az://container/prefix``."""
        return join_url("az", self.container, self.prefix)

    def lines(self) -> dict[str, str]:
        """Return account, container and prefix."""
        names = {"account": self.account or "", "container": self.container}
        prefix = {"prefix": self.prefix} if self.prefix else {}
        return {"type": "Azure", **names, **prefix}

    def _looked_in_vain(self) -> str | None:
        from_env = isinstance(self.credentials, AzureCredentials.FromEnv)
        return missing_azure(self.config) if from_env else None

    def _open(self, client: _Client) -> ObjectStore:
        variables = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR")
        if self.account is None and not self.config and not any(map(os.environ.get, variables)):
            raise InvalidInputError(
                f"{self.url}: pass account=..., the name of the storage account, or set "
                f"{variables[0]}",
                ErrorKind.STORAGE_CONFIG,
            )
        account = {} if self.account is None else {"account_name": self.account}
        return AzureStore(
            self.container,
            prefix=self.prefix or None,
            **_arguments(client, self.config, self.credentials, account),
        )


def _arguments(
    client: _Client,
    config: Mapping[str, str],
    credentials: AnyGcsCredential | AnyAzureCredential,
    more: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the clients for Google and Azure take, except for the place."""
    service, of_client = split_options(config)
    check_headers({k: v for k, v in config.items() if is_short(k)}, "options")
    endpoints = {k: v for k, v in config.items() if k.lower().endswith(("base_url", "endpoint"))}
    for name, value in endpoints.items():
        check_endpoint(name, value)
    if isinstance(credentials, GcsCredentials.FromEnv | AzureCredentials.FromEnv):
        services = ("GOOGLE_", "AZURE_")
        check_variables(n for n in os.environ if n.startswith(services) and is_short(n))
    service.update(more)
    provider = None
    if isinstance(credentials, GcsCredentials.Anonymous | AzureCredentials.Anonymous):
        service["skip_signature"] = "true"
    elif isinstance(credentials, GcsCredentials.Refreshable | AzureCredentials.Refreshable):
        provider = _Provider(credentials)
    elif isinstance(credentials, GcsCredentials.Static | AzureCredentials.Static):
        option, attribute = _FIXED[type(credentials.credentials)]
        service[option] = getattr(credentials.credentials, attribute)
    staying: dict[str, str] = {}
    # credentials of a file or of the environment are exchanged for tokens, at other hosts
    asks_itself = isinstance(credentials, GcsCredentials.FromEnv | AzureCredentials.FromEnv)
    asks_itself |= not _EXCHANGED.isdisjoint(service)
    if endpoints and not asks_itself and "proxy_url" not in of_client:
        first, *others = endpoints.values()
        staying = staying_at(first, *others)
    return {
        "config": service,
        "client_options": client.options({**staying, **of_client}),
        "retry_config": client.retry,
        "credential_provider": provider,
    }


# -- credentials in the form that obstore takes --------------------------------------
#: Fixed credentials: the option of the client, and the attribute that is its value.
_FIXED: Final[dict[type, tuple[str, str]]] = {
    GcsStaticCredentials.ServiceAccount: ("service_account", "path"),
    GcsStaticCredentials.ServiceAccountKey: ("service_account_key", "key"),
    GcsStaticCredentials.ApplicationCredentials: ("application_credentials", "path"),
    GcsStaticCredentials.BearerToken: ("bearer_token", "token"),
    AzureStaticCredentials.AccessKey: ("account_key", "key"),
    AzureStaticCredentials.SasToken: ("sas_key", "token"),
    AzureStaticCredentials.BearerToken: ("token", "token"),
}
#: Options whose credentials are exchanged for tokens.
_EXCHANGED: Final = frozenset(
    ("service_account", "service_account_key", "application_credentials", "client_secret")
)
#: Credentials that a provider hands out: the attribute for each of obstore's keys.
_PROVIDED: Final[dict[type, dict[str, str]]] = {
    S3StaticCredentials: {
        "access_key_id": "access_key_id",
        "secret_access_key": "secret_access_key",
        "token": "session_token",
    },
    GcsBearerCredential: {"token": "bearer"},
    AzureRefreshableCredential.AccessKey: {"access_key": "key"},
    AzureRefreshableCredential.SasToken: {"sas_token": "token"},
    AzureRefreshableCredential.BearerToken: {"token": "bearer"},
}


def _bucket_lines(bucket: str, prefix: str) -> dict[str, str]:
    return {"bucket": bucket, **({"prefix": prefix} if prefix else {})}


class _Provider:
    """Credentials that obstore requests again when they have expired."""

    def __init__(
        self,
        credentials: S3Credentials.Static
        | S3Credentials.Refreshable
        | GcsCredentials.Refreshable
        | AzureCredentials.Refreshable,
    ) -> None:
        self._credentials = credentials

    def __call__(self) -> Any:
        credentials = self._credentials
        fixed = isinstance(credentials, S3Credentials.Static)
        newest = credentials.credentials if fixed else credentials.get()  # type: ignore[union-attr]
        keys = _PROVIDED[type(newest)]
        end = newest.expires_after
        return {
            **{key: getattr(newest, attribute) for key, attribute in keys.items()},
            # fixed ones cannot be renewed: the service will say when they have expired
            "expires_at": None if fixed or end is None else end - EXPIRY_MARGIN,
        }


def quoted(etag: str) -> str:
    """Return an etag as HTTP has it; checksums are often recorded without the quotes."""
    return etag if etag.startswith(('"', "W/")) or etag == "*" else f'"{etag}"'
