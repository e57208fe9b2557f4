from icechunk._version import __version__ as __version__, user_agent as user_agent
from icechunk.base.about import (
    print_debug_info as print_debug_info,
)
from icechunk.base.deadline import (
    time_limit as time_limit,
)
from icechunk.config import (
    AnyObjectStoreConfig as AnyObjectStoreConfig,
    Attribution as Attribution,
    CachingConfig as CachingConfig,
    ChecksumAlgorithm as ChecksumAlgorithm,
    CompressionAlgorithm as CompressionAlgorithm,
    CompressionConfig as CompressionConfig,
    FeatureFlag as FeatureFlag,
    ManifestConfig as ManifestConfig,
    ManifestPreloadCondition as ManifestPreloadCondition,
    ManifestPreloadConfig as ManifestPreloadConfig,
    ManifestSplitCondition as ManifestSplitCondition,
    ManifestSplitDimCondition as ManifestSplitDimCondition,
    ManifestSplittingConfig as ManifestSplittingConfig,
    ManifestVirtualChunkLocationCompressionConfig as ManifestVirtualChunkLocationCompressionConfig,
    ObjectStoreConfig as ObjectStoreConfig,
    RepositoryConfig as RepositoryConfig,
    RepoUpdateRetryConfig as RepoUpdateRetryConfig,
    S3Options as S3Options,
    StorageConcurrencySettings as StorageConcurrencySettings,
    StorageRetriesSettings as StorageRetriesSettings,
    StorageSettings as StorageSettings,
    StorageTimeoutSettings as StorageTimeoutSettings,
    VirtualChunkContainer as VirtualChunkContainer,
    VirtualChunkSpec as VirtualChunkSpec,
    azure_store as azure_store,
    gcs_store as gcs_store,
    http_store as http_store,
    local_filesystem_store as local_filesystem_store,
    s3_store as s3_store,
)
from icechunk.config.logs import (
    initialize_logs as initialize_logs,
    set_logs_filter as set_logs_filter,
    shutdown_telemetry as shutdown_telemetry,
)
from icechunk.conflicts import (
    BasicConflictSolver as BasicConflictSolver,
    ConflictDetector as ConflictDetector,
    ConflictSolver as ConflictSolver,
    VersionSelection as VersionSelection,
)
from icechunk.credentials import (
    AnyAzureCredential as AnyAzureCredential,
    AnyAzureStaticCredential as AnyAzureStaticCredential,
    AnyCredential as AnyCredential,
    AnyGcsCredential as AnyGcsCredential,
    AnyGcsStaticCredential as AnyGcsStaticCredential,
    AnyS3Credential as AnyS3Credential,
    AzureCredentials as AzureCredentials,
    AzureRefreshableCredential as AzureRefreshableCredential,
    AzureStaticCredentials as AzureStaticCredentials,
    Credentials as Credentials,
    GcsBearerCredential as GcsBearerCredential,
    GcsCredentials as GcsCredentials,
    GcsStaticCredentials as GcsStaticCredentials,
    S3Credentials as S3Credentials,
    S3StaticCredentials as S3StaticCredentials,
    azure_anonymous_credentials as azure_anonymous_credentials,
    azure_credentials as azure_credentials,
    azure_from_env_credentials as azure_from_env_credentials,
    azure_refreshable_credentials as azure_refreshable_credentials,
    azure_static_credentials as azure_static_credentials,
    containers_credentials as containers_credentials,
    gcs_anonymous_credentials as gcs_anonymous_credentials,
    gcs_credentials as gcs_credentials,
    gcs_from_env_credentials as gcs_from_env_credentials,
    gcs_refreshable_credentials as gcs_refreshable_credentials,
    gcs_static_credentials as gcs_static_credentials,
    s3_anonymous_credentials as s3_anonymous_credentials,
    s3_credentials as s3_credentials,
    s3_from_env_credentials as s3_from_env_credentials,
    s3_refreshable_credentials as s3_refreshable_credentials,
    s3_static_credentials as s3_static_credentials,
)
from icechunk.early.config import (
    StorageConfig as StorageConfig,
    StoreConfig as StoreConfig,
    VirtualRefConfig as VirtualRefConfig,
)
from icechunk.errors import (
    AlreadyExistsError as AlreadyExistsError,
    Conflict as Conflict,
    ConflictError as ConflictError,
    ConflictType as ConflictType,
    ErrorKind as ErrorKind,
    FormatError as FormatError,
    IcechunkError as IcechunkError,
    InternalError as InternalError,
    InvalidInputError as InvalidInputError,
    NodeNotFoundError as NodeNotFoundError,
    NotFoundError as NotFoundError,
    ObjectNotFoundError as ObjectNotFoundError,
    OutcomeUnknownError as OutcomeUnknownError,
    PreconditionFailedError as PreconditionFailedError,
    ReadOnlyError as ReadOnlyError,
    RebaseFailedError as RebaseFailedError,
    RefNotFoundError as RefNotFoundError,
    RepositoryExistsError as RepositoryExistsError,
    RepositoryNotFoundError as RepositoryNotFoundError,
    SessionStateError as SessionStateError,
    SnapshotNotFoundError as SnapshotNotFoundError,
    StorageError as StorageError,
    TaskError as TaskError,
)
from icechunk.format.spec import (
    SpecVersion as SpecVersion,
    spec_version as spec_version,
    supported_spec_versions as supported_spec_versions,
)
from icechunk.ops import (
    GCSummary as GCSummary,
    RepoAvailability as RepoAvailability,
    RepoStatus as RepoStatus,
    Update as Update,
    UpdateType as UpdateType,
)
from icechunk.repository import (
    Repository as Repository,
)
from icechunk.repository.job import (
    Job as Job,
)
from icechunk.repository.jobs import (
    Jobs as Jobs,
)
from icechunk.repository.jobs_status import (
    JobStatus as JobStatus,
    PartResult as PartResult,
)
from icechunk.repository.repack import (
    RepackSummary as RepackSummary,
)
from icechunk.repository.upgrade import (
    upgrade_icechunk_repository as upgrade_icechunk_repository,
)
from icechunk.session import (
    ChunkType as ChunkType,
    Committed as Committed,
    ForkSession as ForkSession,
    Session as Session,
    SessionMode as SessionMode,
)
from icechunk.snapshots import (
    AncestryGraph as AncestryGraph,
    Diff as Diff,
    ManifestFileInfo as ManifestFileInfo,
    SnapshotInfo as SnapshotInfo,
    SnapshotMetadata as SnapshotMetadata,
)
from icechunk.storage import (
    CountingStorage as CountingStorage,
    FaultyStorage as FaultyStorage,
    LatencyStorage as LatencyStorage,
    LocalStorage as LocalStorage,
    MemoryStorage as MemoryStorage,
    ObjectStorage as ObjectStorage,
    Storage as Storage,
    azure_storage as azure_storage,
    gcs_storage as gcs_storage,
    hf_storage as hf_storage,
    http_storage as http_storage,
    in_memory_storage as in_memory_storage,
    local_filesystem_storage as local_filesystem_storage,
    r2_storage as r2_storage,
    redirect_storage as redirect_storage,
    s3_storage as s3_storage,
    storage_from_url as storage_from_url,
    tigris_storage as tigris_storage,
)
from icechunk.store import (
    IcechunkStore as IcechunkStore,
)
from icechunk.types import (
    CommitMethod as CommitMethod,
)
from icechunk.virtual.container_suggestions import (
    suggest_containers as suggest_containers,
)
