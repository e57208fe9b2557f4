"""Trust the servers that the configuration of a repository names."""

import icechunk

storage = icechunk.local_filesystem_storage("made-by-others")
icechunk.Repository.create(storage, config=icechunk.RepositoryConfig()).save_config()
allowed = {"s3://public-data/": icechunk.s3_anonymous_credentials()}

# --8<-- [start:trust]
import icechunk

config = icechunk.Repository.fetch_config(storage)
print(config.virtual_chunk_containers)  # look at them
repository = icechunk.Repository.open(
    storage, config=config, authorize_virtual_chunk_access=allowed
)
# --8<-- [end:trust]
