"""Whether a storage checks the conditions of puts: without that, commits are lost silently."""

from __future__ import annotations

from icechunk.errors import PreconditionFailedError, StorageError
from icechunk.storage.base import BytesLike, Storage

#: Turns a version into another one: etags have digits in them, whoever makes them.
_OTHER_DIGITS = str.maketrans("0123456789", "5678901234")


def check_conditions(storage: Storage, key: str, data: BytesLike, version: str | None) -> None:
    """Refuse a storage that replaces an object although its version is another.

    Parameters
    ----------
    storage : Storage
    key : str
        An object that exists.
    data : bytes-like
        What is put there if the storage ignores the condition.
    version : str or None
        The version of the object, or of some other object.

    Raises
    ------
    StorageError
        If it does so, does not know such puts, or gives no versions.
    """
    if not storage.checks_conditions:
        try_condition(storage, key, data, version)


def try_condition(storage: Storage, key: str, data: BytesLike, version: str | None) -> None:
    """Do what `check_conditions` does, even for a storage that is known to check conditions."""
    if version is None or version.translate(_OTHER_DIGITS) == version:
        raise StorageError(
            f"{storage.url} gives no versions (etags) of its objects, so concurrent commits "
            f"cannot be told apart; {_ADVICE}"
        )
    try:
        storage.put(key, data, if_match=version.translate(_OTHER_DIGITS))
    except PreconditionFailedError:
        return
    except StorageError as error:
        if error.transient:
            raise
        raise StorageError(
            f"{storage.url} refuses a put under a condition (If-Match): {error.message}; {_ADVICE}",
            error.kind,
        ) from error
    raise StorageError(
        f"{storage.url} ignores the condition of a put (If-Match): some concurrent commits "
        f"would be lost silently; {_ADVICE}"
    )


_ADVICE = (
    "use a server that checks conditions, or if no more than one process ever writes, pass "
    "RepositoryConfig(storage=StorageSettings(unsafe_use_conditional_update=False))"
)
