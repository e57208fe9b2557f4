"""Turn what obstore raises into errors of this library, without secrets.

Requests are signed in headers and sometimes in query strings, services echo parts of
them in their answers, and users put passwords into URLs. So nothing of an answer's body
gets into a message except the code and the text that object stores put there, and URLs
lose everything except the location.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from obstore.exceptions import (
    AlreadyExistsError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)

from icechunk.base.public_url import public_text
from icechunk.errors import (
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.storage.cloud_environment import AZURE_WAYS, GOOGLE_WAYS, S3_WAYS
from icechunk.storage.one_host import leads_away

_STATUS: Final = re.compile(r"(Server returned non-2xx status code: \d+[^:\n]*):(.*)", re.DOTALL)
_CODE: Final = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]*)</Message>")
_REFUSED: Final = re.compile(r"status code: 40[13]\b")
#: Not 408 (timeout), 409 (somebody writes now), 425 (too early) and 429 (too many).
_FOR_GOOD: Final = re.compile(r"status code: (?:4(?!08|09|25|29)\d\d|501)\b")
#: What services answer if a request is for another region, among other things.
_ELSEWHERE: Final = re.compile(r"redirect without LOCATION|status code: 400\b")
#: Where machines of the clouds have credentials, and what else to pass.
_OF_A_MACHINE: Final = (
    (re.compile(r"/latest/(?:api/token|meta-data/iam)"), S3_WAYS),
    (re.compile(r"/computeMetadata/"), GOOGLE_WAYS),
    (re.compile(r"/metadata/identity/"), AZURE_WAYS),
)
_MAX_REASON: Final = 500


class Place(Protocol):
    """As much of a place as errors say."""

    @property
    def url(self) -> str:
        """The location, without credentials."""

    def other_region(self) -> str | None:
        """Return the region that the place is in, if requests went to another one."""


def reason(error: BaseException) -> str:
    """Return what an exception of obstore says, short and without secrets."""
    text = str(error).partition("\n\nDebug source")[0]
    status = _STATUS.search(text)
    if status is not None:
        parts = [status[1]]
        parts += [m[1] for m in (_CODE.search(status[2]), _MESSAGE.search(status[2])) if m]
        text = text[: status.start()] + ": ".join(parts)
    text = public_text(text)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_REASON else text[:_MAX_REASON] + "..."


def translate(error: BaseException, operation: str, key: str, place: Place) -> IcechunkError:
    """Return this library's error for one that obstore raised.

    Parameters
    ----------
    error : exception
    operation : str
        A verb for the message.
    key : str
        The object or folder that it was about.
    place : Place
        Where it is.
    """
    url = place.url
    where = f"{key} in {url}"
    text = reason(error)
    if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
        return ObjectNotFoundError(f"{key}: there is no such object in {url}")
    if isinstance(error, AlreadyExistsError):
        return PreconditionFailedError(f"{key}: the object exists already in {url}")
    if isinstance(error, PreconditionError):
        return PreconditionFailedError(
            f"{key}: the object in {url} is not in the version that was asked for"
        )
    if isinstance(error, UnknownConfigurationKeyError):
        return InvalidInputError(f"{url}: {text}", ErrorKind.STORAGE_CONFIG)
    if isinstance(error, ValueError):
        return InvalidInputError(f"cannot {operation} {where}: {text}")
    for service, ways in _OF_A_MACHINE:
        if service.search(text):
            text = (
                "no other credentials were found, so the metadata service of the machine was "
                f"asked. {ways}. It said: {text}"
            )
            is_final = _FOR_GOOD.search(text) is not None
            return (refused if is_final else StorageError)(f"cannot {operation} {where}: {text}")
    # a refused listing has no error class of its own
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(text):
        return refused(f"cannot {operation} {where}: check the credentials: {text}")
    if is_throttled(text):
        return StorageError(f"cannot {operation} {where}: {text}", ErrorKind.THROTTLED)
    if leads_away(error):
        return refused(
            f"cannot {operation} {where}: the server redirects to another host, and such "
            "redirects are not followed; if you trust that host, pass its URL as the endpoint"
        )
    if _ELSEWHERE.search(text) and (region := place.other_region()) is not None:
        return refused(
            f"cannot {operation} {where}: the bucket is in another region: pass region={region!r}"
        )
    message = f"cannot {operation} {where}: {text}"
    return refused(message) if _FOR_GOOD.search(text) else StorageError(message)


def refused(message: str, kind: ErrorKind | None = None) -> StorageError:
    """Return the error for a request that would fail again."""
    error = StorageError(message, kind)
    error.transient = False
    return error


def is_throttled(text: str) -> bool:
    """Whether a reason says that the service wants fewer requests."""
    return any(sign in text for sign in ("SlowDown", "status code: 429", "status code: 503"))


def starts_past_end(error: BaseException) -> bool:
    """Whether a range was refused because the object ends before it."""
    return "status code: 416" in str(error)
