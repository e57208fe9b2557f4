"""What a repository in a folder needs of a file system, and some lack, as far as the system tells.

If a file system refuses a lock, asking for it fails. If it grants one that only holds on this
machine, it looks like a real one: only the kind of the file system gives it away.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Final

from icechunk.base.calling import depth_of_caller

__all__ = ["missing_locks", "warn_of_missing_locks"]

#: Their locks hold on this machine only, and most of them rename in several steps.
_LOCAL: Final = re.compile(
    r"fuse\.(sshfs|s3fs|rclone|gcsfuse|goofys|mount-s3|mountpoint-s3|blobfuse2?)"
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def missing_locks(folder: str, mounts: str | None = None) -> str | None:
    """Say why file locks of a folder do not keep out other machines, or return None if they do.

    Parameters
    ----------
    folder : str
        An absolute path; it need not exist.
    mounts : str, optional
        Content of ``/proc/self/mountinfo``. Default: read it; without it, nothing is known.
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
        # later mounts lie on top
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
    """Warn if the locks of a folder mean nothing to other machines."""
    reason = missing_locks(os.path.realpath(folder))
    if reason is not None:
        warnings.warn(
            f"file locks in {folder} do not keep out other machines, and of two that commit at a "
            f"time one may be lost: {reason}",
            stacklevel=depth_of_caller(),
        )
