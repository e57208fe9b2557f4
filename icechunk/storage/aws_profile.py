"""The credentials file of the AWS tools, which obstore does not read.

It is used as those tools do: when neither key nor token is in the environment. Profiles
that fetch keys elsewhere (``sso_session``, ``role_arn``, ``credential_process``) are not
supported; pass `get_credentials` for those.
"""

from __future__ import annotations

import configparser
import os

#: Any of these says where credentials come from, and obstore knows them all.
_FROM_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def profile_options() -> dict[str, str]:
    """Return the keys and the region of the active profile, as options of obstore.

    Empty if the environment has credentials of its own, or if there is no such profile.
    """
    if any(os.environ.get(name) for name in _FROM_VARIABLES):
        return {}
    _, found = _active()
    if "aws_access_key_id" not in found or "aws_secret_access_key" not in found:
        return {}
    options = {
        "access_key_id": found["aws_access_key_id"],
        "secret_access_key": found["aws_secret_access_key"],
    }
    if "aws_session_token" in found:
        options["session_token"] = found["aws_session_token"]
    if "region" in found and not _region_from_variables():
        options["region"] = found["region"]
    return options


#: What profiles have that fetch their keys elsewhere.
_ELSEWHERE = ("sso_session", "sso_start_url", "role_arn", "credential_process")


def describe_profile() -> str:
    """Say why the active profile has no keys."""
    name, found = _active()
    files = "~/.aws/credentials and ~/.aws/config"
    if not found:
        return f"there is no profile {name!r} in {files}"
    elsewhere = next((option for option in _ELSEWHERE if option in found), None)
    if elsewhere is not None:
        return (
            f"the profile {name!r} fetches its keys elsewhere ({elsewhere}), which is not supported"
        )
    return f"the profile {name!r} in {files} has no keys"


def _active() -> tuple[str, dict[str, str]]:
    """Return the name of the active profile, and what both files say of it."""
    name = os.environ.get("AWS_PROFILE", "default")
    keys = _section("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name)
    config = _section(
        "AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"
    )
    return name, {**config, **keys}


def _region_from_variables() -> bool:
    return bool(os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"))


def _section(variable: str, default: str, name: str) -> dict[str, str]:
    # no interpolation: secrets may contain %
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(os.path.expanduser(os.environ.get(variable, default)), encoding="utf-8")
        return dict(parser[name])
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError):
        return {}
