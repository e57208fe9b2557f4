"""What to answer to keyword arguments that belong elsewhere.

Newcomers pass what other libraries take: options of the storage to a function that opens a
repository, a version to one that opens all versions. Python's own error does not say where they
belong.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any, Final, Literal, ParamSpec, TypeVar

from icechunk.base.near import meant
from icechunk.base.public_url import public_url
from icechunk.config import RepositoryConfig

__all__ = ["answers_keywords"]

P = ParamSpec("P")
R = TypeVar("R")

#: Our names, by those of boto3, fsspec and others. Where a service has a name of its own, it is
#: told by the URL.
_SPELLINGS: Final[Mapping[str, str]] = {
    "account_key": "access_key",
    "account_name": "account",
    "anon": "anonymous",
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "default_region": "region",
    "endpoint": "endpoint_url",
    "key": "access_key_id",
    "region_name": "region",
    "request_payer": "requester_pays",
    "secret": "secret_access_key",
    "skip_signature": "anonymous",
    "token": "session_token",
    "use_ssl": "allow_http",
}
_FOR_GOOGLE: Final = {"token": "bearer_token", "key": "service_account_key"}
_FOR_AZURE: Final = {"token": "bearer_token", "key": "access_key", "credential": "access_key"}
#: Those of no storage: parts of its URL, and what is not an argument anywhere.
_OF_URLS: Final = frozenset({"bucket", "bucket_name", "container", "container_name", "prefix"})
_ELSEWHERE: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("profile", "profile_name", "aws_profile"),
        "the profile of AWS is the environment variable AWS_PROFILE",
    ),
    "project": "the project of Google Cloud is of no use here: buckets are not created",
    "verify": "certificates are always verified; SSL_CERT_FILE names a file with others",
}
#: Options that hold others, or the credentials as an object.
_GROUPED: Final = frozenset({"client_kwargs", "credentials", "storage_options"})
_ANY_URL: Final = "s3://bucket/prefix"
_OLD: Final = {"virtual_chunk_credentials": "authorize_virtual_chunk_access"}
_VERSIONS: Final = frozenset({"as_of", "branch", "ref", "snapshot", "snapshot_id", "tag"})
_MODES: Final = frozenset({"mode", "read_only", "readonly"})
_PLACES: Final = frozenset(
    {"filename", "location", "path", "root", "store", "storage", "uri", "url", "urlpath"}
)


def answers_keywords(
    takes: Literal["a storage", "storage_options"],
    place: int = 0,
    like: Callable[..., Any] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: the error about an unknown keyword argument says where it belongs.

    Parameters
    ----------
    takes : {"a storage", "storage_options"}
        Whether the function takes options of the storage, or a storage made with them.
    place : int
        Position of the argument that names the place, not counting a class or an object.
    like : callable, optional
        The function that takes the other keyword arguments, too.

    Examples
    --------
    >>> @answers_keywords("storage_options")
    ... def load(place, *, storage_options=None): ...
    >>> load("s3://data/weather", anon=True)
    Traceback (most recent call last):
    TypeError: load() got an unexpected keyword argument 'anon': it is an option of the storage; \
pass storage_options={'anonymous': ...}
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        code = function.__code__
        known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        others = signature(like).parameters.keys() if like is not None else ()
        at = place + (known[0] in ("self", "cls"))

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            unknown = [name for name in kwargs if name not in known and name not in others]
            if unknown:
                where = args[at] if len(args) > at else kwargs.get(known[at])
                said = _answer(unknown, (*known, *others), takes, known[at], where)
                raise TypeError(
                    f"{function.__qualname__}() got an unexpected keyword argument "
                    f"{unknown[0]!r}{said}"
                )
            return function(*args, **kwargs)

        return called

    return decorate


def _answer(
    unknown: list[str], known: Iterable[str], takes: str, place_name: str, place: object
) -> str:
    """Return the end of the error: where the first of these belongs, and all of its kind."""
    from icechunk.storage.urls import known_options, option_names

    name = unknown[0]
    known = [each for each in known if each not in ("cls", "self")]
    if name in _OF_URLS:
        return f": it is a part of the URL; pass {place_name}='s3://bucket/prefix'"
    if name in _PLACES:
        return f": the place is the argument {place_name}"
    url = os.fspath(place) if isinstance(place, str | os.PathLike) else _ANY_URL
    options = {_in_our_words(url, each): each for each in unknown}
    options = {ours: each for ours, each in options.items() if ours in option_names() | _GROUPED}
    if name in options.values():
        return _of_storage(url, sorted(options), known_options(url), takes, place_name)
    if name in _ELSEWHERE:
        return f": {_ELSEWHERE[name]}"
    if name in _OLD and _OLD[name] in known:
        return f": it is {_OLD[name]} now"
    if name in {field.name for field in fields(RepositoryConfig)} and "config" in known:
        option = f"config=icechunk.RepositoryConfig({name}=...)"
        return f": it is an option of the repository; pass {option}"
    if takes == "a storage" and name in _VERSIONS:
        return f": a repository has all versions; name one in repo.readonly_session({name}=...)"
    if takes == "a storage" and name in _MODES:
        return (
            ": Repository.open opens what exists, Repository.create makes it, and "
            "Repository.open_or_create does either; repo.readonly_session only reads"
        )
    return meant(name, known) or f"; it takes {', '.join(known)}"


def _of_storage(
    url: str, names: list[str], known: Iterable[str], takes: str, place_name: str
) -> str:
    """Return how to pass options, which may be secrets: they are named without their values."""
    lacking = [name for name in names if name not in known and name not in _GROUPED]
    what = "they are options" if len(names) > 1 else "it is an option"
    if lacking:
        of = public_url(url) if "://" in url else "a path"
        has = f"has {', '.join(sorted(known))}" if known else "has no options"
        return f": {what} of other storages; {of} {has}"
    if takes == "storage_options":
        entries = ", ".join(f"{name!r}: ..." for name in names)
        return f": {what} of the storage; pass storage_options={{{entries}}}"
    given = ", ".join("**storage_options" if n == "storage_options" else f"{n}=..." for n in names)
    made = f"icechunk.storage_from_url({public_url(url)!r}, {given})"
    return f": {what} of the storage; pass {place_name}={made}"


def _in_our_words(url: str, name: str) -> str:
    scheme = url.partition("://")[0].lower()
    if scheme in ("gs", "gcs"):
        name = _FOR_GOOGLE.get(name, name)
    elif scheme in ("az", "azure", "abfs", "abfss"):
        name = _FOR_AZURE.get(name, name)
    elif scheme.startswith("http") and name == "token":
        name = "bearer_token"
    return _SPELLINGS.get(name, name)
