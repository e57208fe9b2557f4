"""What a header of a request may contain."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Final

from icechunk.errors import ErrorKind, InvalidInputError

#: A token of RFC 9110.
_NAME: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t -~\xa0-\xff]*")


def check_headers(headers: Mapping[str, str], where: str) -> None:
    """Check headers that the user gave, before a client fails at them and displays them.

    Parameters
    ----------
    headers : mapping of str to str
    where : str
        For the message, which does not show the values.

    Raises
    ------
    InvalidInputError
        If a name is invalid, or a value has a line break or a character that HTTP forbids.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidInputError(
                f"{where}: headers must be strings, not {type(name).__name__} and "
                f"{type(value).__name__}",
                ErrorKind.STORAGE_CONFIG,
            )
        if not _NAME.fullmatch(name):
            raise InvalidInputError(
                f"{where}: a header has a name that HTTP does not allow", ErrorKind.STORAGE_CONFIG
            )
        if not _VALUE.fullmatch(value):
            raise InvalidInputError(
                f"{where}: the value of the header {name!r} has a line break or another character "
                "that no request can carry; what is read from a file ends with one: pass "
                "text.strip()",
                ErrorKind.STORAGE_CONFIG,
            )


def check_variables(names: Iterable[str]) -> None:
    """Check environment variables that a client puts into headers. It would abort otherwise.

    Raises
    ------
    InvalidInputError
        If a value has a line break or a character that HTTP forbids.
    """
    for name in names:
        if not _VALUE.fullmatch(os.environ.get(name, "")):
            raise InvalidInputError(
                f"the environment variable {name} has a line break or another character that no "
                "request can carry",
                ErrorKind.INVALID_CREDENTIALS,
            )


def is_short(option: str) -> bool:
    """Whether the value of an option is a single line: keys as JSON and certificates are not."""
    return not any(word in option.lower() for word in ("service_account", "certificate"))
