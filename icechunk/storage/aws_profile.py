"""The files of the AWS tools, which obstore does not read.

They are used as those tools use them: when the environment has neither a key nor a token.
Keys in a file are read here. A profile that fetches them elsewhere (``sso_session``,
``role_arn``, ``credential_process``) is left to botocore, where that is installed.
"""

from __future__ import annotations

import configparser
import os
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any

from icechunk.errors import ErrorKind, StorageError

#: Any of these says where credentials come from, and obstore knows them all.
_FROM_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def profile_options() -> dict[str, str]:
    """Return the keys of the active profile, as options of obstore.

    Empty if the environment has credentials of its own, or if there are none in the files.
    """
    if any(os.environ.get(name) for name in _FROM_VARIABLES):
        return {}
    _, found = _active()
    if _elsewhere(found) is not None or not _has_keys(found):
        return {}
    options = {
        "access_key_id": found["aws_access_key_id"],
        "secret_access_key": found["aws_secret_access_key"],
    }
    if "aws_session_token" in found:
        options["session_token"] = found["aws_session_token"]
    return options


def profile_region() -> str | None:
    """Return the region of the active profile, unless a variable sets one."""
    if os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return None
    return _active()[1].get("region")


def profile_endpoint() -> tuple[str, str] | None:
    """Return the URL of the service in the active profile, and its source."""
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    name, found = _active()
    url = found.get("endpoint_url")
    return (f"endpoint_url of the profile {name!r}", url) if url else None


class ProfileCredentials:
    """Credentials that botocore fetches for the active profile, as obstore asks for them.

    botocore keeps them, and fetches new ones some minutes before they expire.
    """

    def __init__(self, region: str) -> None:
        from botocore.session import Session

        self._session = Session()
        self._session.set_config_variable("region", region)

    def __call__(self) -> dict[str, Any]:
        """Return keys that stay valid for some time.

        Raises
        ------
        StorageError
            If there are none.
        """
        failure = None
        try:
            credentials = self._session.get_credentials()
            keys = None if credentials is None else credentials.get_frozen_credentials()
        except Exception as error:
            failure = f": {error}"
        if failure is not None or keys is None:
            raise StorageError(
                f"{describe_profile()}{failure or ''}", ErrorKind.INVALID_CREDENTIALS
            )
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + _ASK_AGAIN,
        }


def fetched_credentials(region: str | None = None) -> ProfileCredentials | None:
    """Return what fetches the keys of the active profile, or None if nothing says how.

    Parameters
    ----------
    region : str, optional
        Of the services to be asked, if neither a variable nor the profile names one.
    """
    if not fetches():
        return None
    known = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return ProfileCredentials(known or profile_region() or region or "us-east-1")


def fetches() -> bool:
    """Whether keys are fetched elsewhere and botocore is there to do it."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or not _has_botocore():
        return False
    if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        # obstore would use TLS only, and no region but its own
        return bool(os.environ.get("AWS_ROLE_ARN"))
    return not any(map(os.environ.get, _FROM_VARIABLES)) and _elsewhere(_active()[1]) is not None


#: Settings of profiles that fetch their keys elsewhere. Some of them apply even if there are
#: keys in a file, which then authenticate that request.
_ALWAYS = (
    "role_arn",
    "sso_session",
    "sso_start_url",
    "sso_account_id",
)
_WITHOUT_KEYS = ("credential_process", "login_session")
#: Keys are requested again after this time: botocore fetches new ones ten minutes before
#: they expire.
_ASK_AGAIN = timedelta(minutes=6)


def _has_keys(found: dict[str, str]) -> bool:
    return "aws_access_key_id" in found and "aws_secret_access_key" in found


def _elsewhere(found: dict[str, str]) -> str | None:
    """Return the setting that says where a profile fetches its keys."""
    options = _ALWAYS if _has_keys(found) else _ALWAYS + _WITHOUT_KEYS
    return next((option for option in options if option in found), None)


def _has_botocore() -> bool:
    return find_spec("botocore") is not None


def describe_profile() -> str:
    """Say why the active profile has no keys."""
    name, found = _active()
    files = "~/.aws/credentials and ~/.aws/config"
    if not found and not os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return f"there is no profile {name!r} in {files}"
    elsewhere = _elsewhere(found)
    if elsewhere is not None and not _has_botocore():
        return (
            f"the profile {name!r} fetches its keys elsewhere ({elsewhere}), which takes botocore: "
            "pip install 'icechunk[aws]'"
        )
    if elsewhere is not None:
        return f"the profile {name!r} fetches its keys elsewhere ({elsewhere}), and got none"
    if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "AWS_WEB_IDENTITY_TOKEN_FILE gave no keys"
    return f"the profile {name!r} in {files} has no keys"


def _active() -> tuple[str, dict[str, str]]:
    """Return the name of the active profile, and what both files say about it."""
    name = os.environ.get("AWS_PROFILE", "default")
    keys = _section("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name)
    config = _section(
        "AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"
    )
    return name, {**config, **keys}


def _section(variable: str, default: str, name: str) -> dict[str, str]:
    # no interpolation: secrets may contain %
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(os.path.expanduser(os.environ.get(variable, default)), encoding="utf-8")
        return dict(parser[name])
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError):
        return {}
