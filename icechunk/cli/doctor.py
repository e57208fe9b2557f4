"""The command doctor: try what a repository needs of its storage, and say what fails."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from icechunk import IcechunkError, PreconditionFailedError, Repository, Storage
from icechunk.cli.options import as_json, storage
from icechunk.cli.output import print_json, table
from icechunk.commit.probing import try_condition

__all__ = ["COMMANDS"]

#: A clock that is off by more makes times of commits and collections wrong.
_MOST_SECONDS = 60


@click.command()
@storage
@click.option("--read-only", is_flag=True, help="Try only what writes nothing.")
@as_json
def doctor(place: Storage, read_only: bool, as_json: bool) -> None:
    """Try credentials, reading, writing, conditional writes, and the clock.

    It writes an object under a random name below doctor/, and deletes it again. The exit
    status is 1 if a check fails.
    """
    results = [
        {"check": name, "ok": ok, "told": told} for name, ok, told in _checks(place, read_only)
    ]
    if as_json:
        print_json(results)
    else:
        table(
            (("ok" if r["ok"] else "FAILED", r["check"], r["told"]) for r in results),
            "",
            "check",
            "",
        )
    if not all(r["ok"] for r in results):
        click.get_current_context().exit(1)


def _checks(place: Storage, read_only: bool) -> Iterator[tuple[str, bool, str]]:
    found, told = _try(lambda: "a repository" if Repository.exists(place) else "no repository yet")
    yield "read", found, told
    if not found:
        return
    if told == "a repository":
        yield "open", *_try(lambda: f"spec {int(Repository.open(place).spec_version)}")
    if read_only:
        return
    key = f"doctor/{secrets.token_hex(8)}"
    written, told = _try(lambda: _write(place, key))
    yield "write", written, told
    if not written:
        return
    try:
        yield "refuses to create twice", *_try(lambda: _create_twice(place, key))
        yield "refuses an old version", *_try(lambda: _put_over_old(place, key))
        yield "clock", *_try(lambda: _clock(place, key))
    finally:
        deleted, told = _try(lambda: _delete(place, key))
    yield "delete", deleted, told


def _try(act: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, act()
    except (IcechunkError, OSError) as error:
        return False, str(error)


def _write(place: Storage, key: str) -> str:
    place.put(key, b"1", if_absent=True)
    return place.url


def _create_twice(place: Storage, key: str) -> str:
    try:
        place.put(key, b"2", if_absent=True)
    except PreconditionFailedError:
        return "conditional create works"
    raise OSError(
        "the storage ignores If-None-Match: two processes that create a repository at once "
        "would destroy each other's work"
    )


def _put_over_old(place: Storage, key: str) -> str:
    version = place.get(key).etag
    try_condition(place, key, b"3", version)
    place.put(key, b"4", if_match=version)
    return "conditional put works"


def _clock(place: Storage, key: str) -> str:
    meta = next(meta for meta in place.list("doctor/") if meta.key == key)
    seconds = abs((datetime.now(UTC) - meta.last_modified).total_seconds())
    if seconds > _MOST_SECONDS:
        raise OSError(f"the clocks of this machine and of the storage differ by {seconds:.0f} s")
    return f"within {seconds:.0f} s of the storage's"


def _delete(place: Storage, key: str) -> str:
    place.delete([key])
    return "works"


COMMANDS: dict[str, Any] = {"doctor": doctor}
