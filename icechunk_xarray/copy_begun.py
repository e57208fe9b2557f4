"""What earlier calls of `ingest` began, and whether this call may continue it.

Their records are in the repository, which anybody may have made. So this call reads only the files
that it was asked for, and only in the way that it was asked to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from icechunk import InvalidInputError, Job, Repository, Session
from icechunk.base.public_url import public_url

__all__ = ["ON_MISMATCH", "begun_copies"]

#: What `ingest` may do with files that differ.
ON_MISMATCH: Final = "error", "skip", "materialize"
#: Types of the fields of a file's version: size, times, etag, digest.
_VERSION: Final = (int, int, str, int, int)


def begun_copies(
    repository: Repository,
    prefix: str,
    locations: Mapping[str, str],
    opening: Mapping[str, Any] | None,
    scanned: Callable[[Sequence[str]], Session],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what earlier calls began: the branch of a scan, and what the job records.

    Parameters
    ----------
    repository : Repository
    prefix : str
        Prefix of the names of jobs and branches.
    locations : mapping of str to str
        Locations of the requested files, by name.
    opening : mapping or None
        How to open them.
    scanned : callable
        Scans files anew and returns a session of references: a virtual dataset may refer to others.

    Raises
    ------
    InvalidInputError
        If the record is about other files, or opens them in another way.
    """
    jobs = repository.jobs
    for name in [name for name in jobs.list() if name.startswith(prefix)]:
        if name.endswith("-files"):
            about = _checked(jobs.open(name), locations, opening)
            staging = name.removesuffix("-files")
            if opening is None and staging in repository.list_branches():
                staged = repository.readonly_session(staging).all_virtual_chunk_locations()
                others = set(staged).difference(about["locations"])
                if others:
                    others.difference_update(scanned(about["files"]).all_virtual_chunk_locations())
                for location in sorted(others):
                    raise _refused(
                        name,
                        f"an earlier call has begun to copy {public_url(location)}, to which none "
                        "of the files refers: copy them into another group",
                    )
            yield staging, about


def _checked(
    job: Job, locations: Mapping[str, str], opening: Mapping[str, Any] | None
) -> dict[str, Any]:
    about = job.about
    versions, begun = about.get("versions"), about.get("locations")
    fits = (
        isinstance(about.get("appends"), bool)
        and isinstance(begun, list)
        and isinstance(versions, list)
        and len(versions) == len(begun)
        and all(isinstance(each, list) and tuple(map(type, each)) == _VERSION for each in versions)
        and all(isinstance(each, str) for each in begun)
    )
    if not fits or (opening is not None and about.get("on_mismatch") not in ON_MISMATCH):
        raise _refused(job.name, "an earlier call has begun something that makes no sense")
    assert isinstance(begun, list)
    names = {location: name for name, location in locations.items()}
    others = [location for location in begun if location not in names]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise _refused(
            job.name,
            f"an earlier call has begun to copy {public_url(others[0])}{more}, and this one does "
            "not name it: name all files that it named",
        )
    if about.get("opening") != (None if opening is None else json.loads(json.dumps(opening))):
        before = about["opening"].get("engine") if isinstance(about.get("opening"), dict) else None
        raise _refused(
            job.name,
            f"an earlier call has begun to copy these files with engine={before!r} and options of "
            "its own: pass those",
        )
    return {**about, "files": [names[location] for location in begun]}


def _refused(name: str, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{what}; or give up what it has begun with Repository.jobs.delete({name!r})"
    )
