"""Open repositories on S3 with each kind of credentials; the server is named by S3_ENDPOINT."""

import os

endpoint = os.environ["S3_ENDPOINT"]
key, secret = os.environ["S3_KEY"], os.environ["S3_SECRET"]
bucket = os.environ["S3_BUCKET"]
url = f"s3://{bucket}/docs/credentials"

# --8<-- [start:options]
import icechunk

options = {
    "access_key_id": key,
    "secret_access_key": secret,
    "region": "us-east-1",
    # of a server of your own, such as MinIO; leave these two out for Amazon
    "endpoint_url": endpoint,
    "allow_http": True,
}
storage = icechunk.storage_from_url(url, **options)
repo = icechunk.Repository.open_or_create(storage)
# --8<-- [end:options]

# --8<-- [start:xarray]
import xarray as xr

from icechunk_xarray import to_icechunk

data = xr.Dataset({"a": ("x", [1.0, 2.0])})
to_icechunk(data, url, storage_options=options, mode="w", message="Two numbers")
again = xr.open_dataset(url, engine="icechunk", storage_options=options)
# --8<-- [end:xarray]
assert again.a.values.tolist() == [1.0, 2.0]

# --8<-- [start:environment]
import os

os.environ["AWS_ACCESS_KEY_ID"] = key
os.environ["AWS_SECRET_ACCESS_KEY"] = secret
os.environ["AWS_ENDPOINT_URL"] = endpoint
os.environ["AWS_ALLOW_HTTP"] = "true"
from_environment = xr.open_dataset(url, engine="icechunk", storage_options={"region": "us-east-1"})
# --8<-- [end:environment]
assert from_environment.a.values.tolist() == [1.0, 2.0]

# --8<-- [start:refreshed]
from datetime import UTC, datetime, timedelta


def fresh_credentials() -> icechunk.S3StaticCredentials:
    """Ask whoever hands out keys; called again before these expire."""
    hour = datetime.now(UTC) + timedelta(hours=1)
    return icechunk.S3StaticCredentials(key, secret, expires_after=hour)


refreshed = icechunk.s3_storage(
    bucket=bucket,
    prefix="docs/credentials",
    region="us-east-1",
    endpoint_url=endpoint,
    allow_http=True,
    get_credentials=fresh_credentials,
)
# --8<-- [end:refreshed]
assert icechunk.Repository.exists(refreshed)
