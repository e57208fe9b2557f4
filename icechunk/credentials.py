"""Credentials for object stores, under the name that the official client has for them."""

from icechunk.config import credential_types, credentials
from icechunk.config.credential_types import *
from icechunk.config.credentials import *

__all__: list[str] = []
__all__ += credential_types.__all__
__all__ += credentials.__all__
