"""File systems whose locks hold on one machine only."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from icechunk import LocalStorage
from icechunk.storage.mounts import missing_locks

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:40 / /nfs4 rw,relatime shared:20 - nfs4 host:/a rw,vers=4.2,local_lock=none
41 22 0:41 / /nfs3 rw,relatime shared:21 - nfs host:/b rw,vers=3,nolock,local_lock=all
42 41 8:2 / /nfs3/disk rw - ext4 /dev/sdb rw
43 22 0:43 / /with\040space rw - nfs host:/c rw,vers=3,local_lock=flock
44 22 0:44 / /ssh rw master:1 - fuse.sshfs me@host: rw,user_id=0
45 22 0:45 / /smb rw - cifs //host/x rw,nobrl
46 22 0:46 / /smb2 rw - cifs //host/x rw
47 22 0:47 / /over rw - nfs host:/d rw,nolock
48 22 8:3 / /over rw - ext4 /dev/sdc rw
a line of something else
"""


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("/data/repo", None),
        ("/nfs4/repo", None),
        ("/nfs3/repo", "/nfs3 is NFS mounted with 'local_lock=all'"),
        ("/nfs3", "NFS"),
        ("/nfs35/repo", None),
        ("/nfs3/disk/repo", None),
        ("/with space/repo", "/with space is NFS mounted with 'local_lock=flock'"),
        ("/ssh/repo", "fuse.sshfs"),
        ("/smb/repo", "'nobrl'"),
        ("/smb2/repo", None),
        ("/over/repo", None),
    ],
)
def test_what_mounts_say(folder: str, words: str | None) -> None:
    found = missing_locks(folder, MOUNTS)
    assert found is None if words is None else words in (found or "")


def test_this_machine_is_asked() -> None:
    assert missing_locks("/proc") is None


def test_who_replaces_an_object_is_warned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icechunk.storage.mounts.missing_locks", lambda folder: "because")
    storage = LocalStorage(tmp_path)
    etag = storage.put("a", b"1", if_absent=True)
    with pytest.warns(UserWarning, match="other machines.*because"):
        etag = storage.put("a", b"2", if_match=etag)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        storage.put("a", b"3", if_match=etag)
