"""Configuration classes of the early Icechunk API.

They describe the same things as `icechunk.Storage` and `icechunk.RepositoryConfig`, and
turn into them: `StorageConfig.storage`, `StoreConfig.to_repository_config`.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass

from icechunk.base.public_url import public_fields
from icechunk.config import ObjectStoreConfig, RepositoryConfig, S3Options, VirtualChunkContainer
from icechunk.config.credential_types import (
    AnyCredential,
    AnyS3Credential,
    Credentials,
    S3Credentials,
    S3StaticCredentials,
)
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.storage import (
    MemoryStorage,
    Storage,
    from_config,
    local_filesystem_storage,
)

__all__ = ["StorageConfig", "StoreConfig", "VirtualRefConfig"]

_S3_PREFIX = "s3://"


def _as_credential(credentials: object) -> AnyS3Credential:
    """Return the credentials that an argument describes; None stands for the environment."""
    if credentials is None:
        return S3Credentials.FromEnv()
    if isinstance(credentials, S3StaticCredentials):
        return S3Credentials.Static(credentials)
    if isinstance(
        credentials,
        S3Credentials.Static
        | S3Credentials.Anonymous
        | S3Credentials.FromEnv
        | S3Credentials.Refreshable,
    ):
        return credentials
    raise InvalidInputError(
        f"credentials must be S3Credentials, not a {type(credentials).__name__}",
        ErrorKind.INVALID_CREDENTIALS,
    )


def _environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _options(
    endpoint_url: str | None,
    allow_http: bool | None,
    region: str | None,
    credentials: AnyS3Credential,
) -> S3Options:
    """Return the options of an S3 store; from the environment if the credentials are."""
    if isinstance(credentials, S3Credentials.FromEnv):
        endpoint_url = endpoint_url or _environment("AWS_ENDPOINT_URL")
        region = region or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
        if allow_http is None:
            allow_http = (_environment("AWS_ALLOW_HTTP") or "").lower() in ("1", "true", "yes")
    return S3Options(
        region=region,
        endpoint_url=endpoint_url,
        allow_http=bool(allow_http),
        anonymous=isinstance(credentials, S3Credentials.Anonymous),
        # stores that are not AWS rarely have a host name per bucket
        force_path_style=endpoint_url is not None,
    )


class StorageConfig:
    """Where a repository is: in memory, in a folder, or in a bucket.

    Parameters
    ----------
    config : StorageConfig.Memory, StorageConfig.Filesystem or StorageConfig.S3
    """

    @dataclass(frozen=True)
    class Memory:
        """In the memory of this process. The prefix is a name for humans."""

        prefix: str

    @dataclass(frozen=True, repr=False)
    class Filesystem:
        """In a folder."""

        root: str

        def __repr__(self) -> str:
            return public_fields(self)

    @dataclass(frozen=True, repr=False)
    class S3:
        """In a bucket of S3, or of a store that speaks its protocol.

        Without `credentials`, those of the environment are used.
        """

        bucket: str
        prefix: str
        credentials: AnyS3Credential | S3StaticCredentials | None = None
        endpoint_url: str | None = None
        allow_http: bool | None = None
        region: str | None = None

        def __repr__(self) -> str:
            return public_fields(self)

    def __init__(self, storage: Memory | Filesystem | S3) -> None:
        if not isinstance(storage, self.Memory | self.Filesystem | self.S3):
            raise InvalidInputError(
                "StorageConfig takes a StorageConfig.Memory, Filesystem or S3, not a "
                f"{type(storage).__name__}",
                ErrorKind.STORAGE_CONFIG,
            )
        self.config = storage
        # one memory for each object, which is shared by everything opened with it, and its copies
        self._memory = MemoryStorage()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, StorageConfig)
            and self.config == other.config
            and (not isinstance(self.config, self.Memory) or self._memory.url == other._memory.url)
        )

    def __hash__(self) -> int:
        return hash(self.config)

    def __repr__(self) -> str:
        return f"StorageConfig({self.config!r})"

    def __dask_tokenize__(self) -> str:
        # Dask takes equal tokens for equal data, and what is stored in a place changes
        return uuid.uuid4().hex

    @classmethod
    def memory(cls, prefix: str) -> StorageConfig:
        """Return a place of its own in the memory of this process."""
        return cls(cls.Memory(prefix))

    @classmethod
    def filesystem(cls, root: str) -> StorageConfig:
        """Return a folder."""
        return cls(cls.Filesystem(root))

    @classmethod
    def s3_from_env(cls, bucket: str, prefix: str) -> StorageConfig:
        """Return a place in a bucket, with access as the environment describes it.

        It reads ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
        ``AWS_SESSION_TOKEN``, ``AWS_ENDPOINT_URL`` and ``AWS_ALLOW_HTTP``.
        """
        return cls(cls.S3(bucket, prefix))

    @classmethod
    def s3_from_config(
        cls,
        bucket: str,
        prefix: str,
        credentials: AnyS3Credential | S3StaticCredentials,
        endpoint_url: str | None,
        allow_http: bool | None = None,
        region: str | None = None,
    ) -> StorageConfig:
        """Return a place in a bucket with the given access. The environment is not read."""
        checked = _as_credential(credentials)
        return cls(cls.S3(bucket, prefix, checked, endpoint_url, allow_http, region))

    @classmethod
    def s3_anonymous(
        cls,
        bucket: str,
        prefix: str,
        endpoint_url: str | None,
        allow_http: bool | None = None,
        region: str | None = None,
    ) -> StorageConfig:
        """Return a place in a bucket that can be read without credentials."""
        anonymous = S3Credentials.Anonymous()
        return cls(cls.S3(bucket, prefix, anonymous, endpoint_url, allow_http, region))

    def storage(self) -> Storage:
        """Return the storage that this describes."""
        config = self.config
        if isinstance(config, self.Memory):
            return self._memory
        if isinstance(config, self.Filesystem):
            return local_filesystem_storage(config.root)
        credentials = _as_credential(config.credentials)
        options = _options(config.endpoint_url, config.allow_http, config.region, credentials)
        return from_config.s3(options, config.bucket, config.prefix, credentials)


@dataclass
class VirtualRefConfig:
    """How virtual chunks in S3 are read.

    It applies to all buckets: a config with one authorises every location that begins
    with ``s3://``.

    Attributes
    ----------
    config : VirtualRefConfig.S3
    """

    @dataclass(frozen=True, repr=False)
    class S3:
        """Access to S3, or to a store that speaks its protocol.

        Without `credentials`, those of the environment are used.
        """

        credentials: AnyS3Credential | S3StaticCredentials | None = None
        endpoint_url: str | None = None
        allow_http: bool | None = None
        region: str | None = None

        def __repr__(self) -> str:
            return public_fields(self)

    config: S3

    @classmethod
    def s3_from_env(cls) -> VirtualRefConfig:
        """Return access as the environment describes it.

        It reads ``AWS_REGION`` or ``AWS_DEFAULT_REGION``, ``AWS_ACCESS_KEY_ID``,
        ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_ENDPOINT_URL`` and
        ``AWS_ALLOW_HTTP``.
        """
        return cls(cls.S3())

    @classmethod
    def s3_from_config(
        cls,
        credentials: AnyS3Credential | S3StaticCredentials,
        *,
        endpoint_url: str | None = None,
        allow_http: bool | None = None,
        region: str | None = None,
    ) -> VirtualRefConfig:
        """Return the given access. The environment is not read."""
        return cls(cls.S3(_as_credential(credentials), endpoint_url, allow_http, region))

    @classmethod
    def s3_anonymous(
        cls,
        *,
        endpoint_url: str | None = None,
        allow_http: bool | None = None,
        region: str | None = None,
    ) -> VirtualRefConfig:
        """Return access without credentials."""
        return cls(cls.S3(S3Credentials.Anonymous(), endpoint_url, allow_http, region))

    def container(self) -> VirtualChunkContainer:
        """Return the container of all locations in S3."""
        config = self.config
        options = _options(
            config.endpoint_url,
            config.allow_http,
            config.region,
            _as_credential(config.credentials),
        )
        store = (
            ObjectStoreConfig.S3Compatible(options)
            if options.endpoint_url is not None
            else ObjectStoreConfig.S3(options)
        )
        return VirtualChunkContainer(_S3_PREFIX, store)

    def credentials(self) -> AnyCredential:
        """Return the credentials for that container."""
        return Credentials.S3(_as_credential(self.config.credentials))


@dataclass
class StoreConfig:
    """Configuration of a store.

    Parameters
    ----------
    get_partial_values_concurrency : int, optional
        How many values are read at the same time. Default 10.
    inline_chunk_threshold_bytes : int, optional
        Chunks of up to this size are kept in the manifest. Default 512.
    unsafe_overwrite_refs : bool, optional
        Whether `IcechunkStore.tag` moves an existing tag. Default: it is refused.
    virtual_ref_config : VirtualRefConfig, optional
        Access to virtual chunks.
    """

    get_partial_values_concurrency: int | None = None
    inline_chunk_threshold_bytes: int | None = None
    unsafe_overwrite_refs: bool | None = None
    virtual_ref_config: VirtualRefConfig | None = None

    def to_repository_config(self) -> RepositoryConfig:
        """Return the part that can be stored as a configuration of a repository.

        Access to virtual chunks is not part of it: a container of all buckets may not be stored.
        """
        return RepositoryConfig(
            inline_chunk_threshold_bytes=self.inline_chunk_threshold_bytes,
            get_partial_values_concurrency=self.get_partial_values_concurrency,
        )
