"""Where the objects of a repository live; `base.Storage` says what a back end must do."""

from icechunk.config import (
    AnyObjectStoreConfig,
    ChecksumAlgorithm,
    ObjectStoreConfig,
    S3Options,
    StorageConcurrencySettings,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
    azure_store,
    gcs_store,
    http_store,
    local_filesystem_store,
    s3_store,
)
from icechunk.storage.base import ByteRange, BytesLike, GetResult, ObjectMeta, Storage
from icechunk.storage.constructors import (
    azure_storage,
    gcs_storage,
    hf_storage,
    http_storage,
    in_memory_storage,
    local_filesystem_storage,
    r2_storage,
    s3_object_store_storage,
    s3_storage,
    tigris_storage,
)
from icechunk.storage.local import LocalStorage
from icechunk.storage.memory import MemoryStorage
from icechunk.storage.object_store import ObjectStorage
from icechunk.storage.urls import AnyStorage, as_storage, redirect_storage, storage_from_url
from icechunk.storage.version_urls import VersionURL, version_url
from icechunk.storage.wrappers import (
    CountingStorage,
    Fault,
    FaultyStorage,
    LatencyStorage,
    OperationCount,
    WrapperStorage,
)

#: The name of listed objects in the official client.
StorageObjectInfo = ObjectMeta

__all__ = [
    "AnyObjectStoreConfig",
    "AnyStorage",
    "ByteRange",
    "BytesLike",
    "ChecksumAlgorithm",
    "CountingStorage",
    "Fault",
    "FaultyStorage",
    "GetResult",
    "LatencyStorage",
    "LocalStorage",
    "MemoryStorage",
    "ObjectMeta",
    "ObjectStorage",
    "ObjectStoreConfig",
    "OperationCount",
    "S3Options",
    "Storage",
    "StorageConcurrencySettings",
    "StorageObjectInfo",
    "StorageRetriesSettings",
    "StorageSettings",
    "StorageTimeoutSettings",
    "VersionURL",
    "WrapperStorage",
    "as_storage",
    "azure_storage",
    "azure_store",
    "gcs_storage",
    "gcs_store",
    "hf_storage",
    "http_storage",
    "http_store",
    "in_memory_storage",
    "local_filesystem_storage",
    "local_filesystem_store",
    "r2_storage",
    "redirect_storage",
    "s3_object_store_storage",
    "s3_storage",
    "s3_store",
    "storage_from_url",
    "tigris_storage",
    "version_url",
]
