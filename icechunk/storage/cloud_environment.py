"""Where the clients for Google and Azure look for credentials, if none are passed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from icechunk.storage.machine_service import LINK_LOCAL, unanswered

__all__ = ["AZURE_WAYS", "GOOGLE_WAYS", "S3_WAYS", "missing_azure", "missing_google"]

#: What gcloud writes, below the home directory.
_LOGIN: Final = ".config/gcloud/application_default_credentials.json"
#: What to pass where nothing is found.
S3_WAYS: Final = (
    "Pass access_key_id=... and secret_access_key=..., or get_credentials=..., or anonymous=True "
    "for public data"
)
GOOGLE_WAYS: Final = (
    "Pass service_account_file=..., or bearer_token=..., or anonymous=True for public data"
)
AZURE_WAYS: Final = "Pass access_key=..., or sas_token=..., or anonymous=True for public data"
#: Options and variables of these names say nothing of credentials.
_NO_CREDENTIALS: Final = ("bucket", "base_url", "account_name", "endpoint", "project", "emulator")


def missing_google(options: Mapping[str, str]) -> str | None:
    """Say where no credentials for Google were found; None if there are some, or may be.

    Parameters
    ----------
    options : mapping
        Of the client: they may have credentials, too.
    """
    if _may_have(options, ("GOOGLE_", "GCE_METADATA", "METADATA_")):
        return None
    if (Path.home() / _LOGIN).exists():
        return None
    silent = unanswered(LINK_LOCAL, "Metadata-Flavor: Google")
    if silent is None:
        return None
    return (
        "neither GOOGLE_APPLICATION_CREDENTIALS nor GOOGLE_SERVICE_ACCOUNT is set, there is no "
        f"~/{_LOGIN} (gcloud auth application-default login), and the metadata service of a "
        f"machine at {silent}. {GOOGLE_WAYS}"
    )


def missing_azure(options: Mapping[str, str]) -> str | None:
    """Say where no credentials for Azure were found; None if there are some, or may be.

    Parameters
    ----------
    options : mapping
        Of the client: they may have credentials, too.
    """
    if _may_have(options, ("AZURE_", "IDENTITY_", "MSI_")):
        return None
    silent = unanswered(LINK_LOCAL)
    if silent is None:
        return None
    return (
        "neither AZURE_STORAGE_ACCOUNT_KEY nor AZURE_STORAGE_SAS_TOKEN nor AZURE_CLIENT_ID is "
        f"set, and the metadata service of a machine at {silent}. {AZURE_WAYS}"
    )


def _may_have(options: Mapping[str, str], prefixes: tuple[str, ...]) -> bool:
    variables = [name for name in os.environ if name.startswith(prefixes) and os.environ[name]]
    return any(map(_is_credential, (*options, *variables)))


def _is_credential(name: str) -> bool:
    return not any(word in name.lower() for word in _NO_CREDENTIALS)
