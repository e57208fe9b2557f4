"""What file systems lack that a repository in a folder needs, as far as the system says so.

A lock that a file system refuses is an error when it is asked for. One that it grants to one
machine only looks the same as a real one: only the kind of the file system tells.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Final

from icechunk.base.calling import depth_of_caller

__all__ = ["missing_locks", "warn_of_missing_locks"]

#: Locks of these hold on this machine only, and most of them rename in steps.
_LOCAL: Final = re.compile(
    r"fuse\.(sshfs|s3fs|rclone|gcsfuse|goofys|mount-s3|mountpoint-s3|blobfuse2?)"
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def missing_locks(folder: str, mounts: str | None = None) -> str | None:
    """Say why file locks of a folder do not keep out other machines; None where they do.

    Parameters
    ----------
    folder : str
        An absolute path; it need not exist.
    mounts : str, optional
        What ``/proc/self/mountinfo`` says. Default: that; without it, nothing is known.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return None
    best, kind, options = "", "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 10 or "-" not in fields[6:]:
            continue
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])
        inside = point == "/" or folder == point or folder.startswith(point + "/")
        # later ones lie on top
        if inside and len(point) >= len(best):
            after = fields[fields.index("-", 6) + 1 :]
            best, kind, options = point, after[0], f"{fields[5]},{','.join(after[2:])}"
    given = set(options.split(","))
    if kind.startswith("nfs") and given & {"nolock", "local_lock=all", "local_lock=flock"}:
        (option,) = sorted(given & {"nolock", "local_lock=all", "local_lock=flock"})[:1]
        return f"{best} is NFS mounted with {option!r}; mount it with version 4, or without that"
    if kind in ("cifs", "smb3") and "nobrl" in given:
        return f"{best} is {kind} mounted with 'nobrl'; mount it without that"
    if _LOCAL.fullmatch(kind):
        return f"{best} is a file system of the kind {kind}; use the storage behind it directly"
    return None


def warn_of_missing_locks(folder: str) -> None:
    """Warn if the locks of a folder are worth nothing to other machines."""
    reason = missing_locks(os.path.realpath(folder))
    if reason is not None:
        warnings.warn(
            f"file locks in {folder} do not keep out other machines, and of two that commit at a "
            f"time one may be lost: {reason}",
            stacklevel=depth_of_caller(),
        )
