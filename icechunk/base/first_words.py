"""The words with which messages of the official client begin, by kind of error.

Programs look for these words, as ``pytest.raises(match=...)`` does. The details and the advice
follow them.
"""

from __future__ import annotations

from typing import Final

FIRST_WORDS: Final = {
    "bad-metadata": "bad metadata",
    "bad-snapshot-chain-for-diff": "`to` snapshot ancestry doesn't include `from`",
    "branch-already-exists": "branch already exists",
    "branch-update-conflict": "branch update conflict",
    "cannot-delete-main": "main branch cannot be deleted",
    "cannot-parse-url": "error parsing URL",
    "commit-conflict": "Failed to commit",
    "commit-not-allowed": "commits are not allowed on read-only or forked sessions",
    "invalid-feature-flag": "invalid feature flag name",
    "invalid-snapshot-id": "invalid snapshot id",
    "move-wont-overwrite": "move cannot overwrite existing node",
    "no-amend-for-initial-commit": "the first commit in the repository cannot be an amend",
    "no-changes-to-commit": "cannot commit, no changes made to the session",
    "no-container-for-virtual-chunk": (
        "invalid chunk location, no matching virtual chunk container"
    ),
    "node-not-found": "node not found",
    "non-rearrange-session": (
        "To move nodes in the hierarchy you need to create a rearrange session"
    ),
    "not-an-array": "there is not an array",
    "parent-directory-not-clean": "repositories can only be created in clean prefixes",
    "pickle": (
        "You must opt-in to pickle writable sessions in a distributed context using Session.fork()"
    ),
    "read-only-repository": "the repository status is read-only",
    "read-only-session": "Read only sessions cannot modify the repository",
    "read-only-store": "cannot write to read-only store",
    "rearrange-session-only": "This session was created to rearrange the hierarchy",
    "rebase-failed": "Rebase failed",
    "ref-not-found": "ref not found",
    "repository-not-found": "the repository doesn't exist",
    "snapshot-not-found": "snapshot id not found",
    "tag-already-exists": "tag already exists, tags are immutable",
    "tag-previously-deleted": "icechunk does not allow tag reuse and tag was already deleted",
    "zero-length-chunk": "zero-length chunk",
}


def with_first_words(kind: str, message: str) -> str:
    """Return a message that begins as the official one of this kind does."""
    words = FIRST_WORDS.get(kind)
    return message if words is None or message.startswith(words) else f"{words}: {message}"
