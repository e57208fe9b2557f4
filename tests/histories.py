"""Small repositories with a history: one array ``a``, whose chunks are any bytes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype

from icechunk import (
    ConflictDetector,
    ManifestConfig,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    ManifestSplittingConfig,
    Repository,
    RepositoryConfig,
    Session,
)
from icechunk.storage.base import Storage

#: Chunks of up to three bytes are inline, and each manifest holds two chunks.
CONFIG = RepositoryConfig(
    inline_chunk_threshold_bytes=3,
    manifest=ManifestConfig(
        splitting=ManifestSplittingConfig.from_dict(
            {ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Any(): 2}}
        )
    ),
)
CHUNKS = 6
#: Chunks by number; those that are not there were never written.
Values = dict[int, bytes]


def create(
    storage: Storage, spec_version: int = 2, config: RepositoryConfig = CONFIG
) -> Repository:
    """Return a new repository with an array, in a first commit."""
    Repository.create(storage, spec_version=spec_version)
    # not stored: in spec version 1 reading it takes long
    repository = Repository.open(storage, config)
    session = repository.writable_session("main")
    zarr.create_group(session.store).create_array(
        "a", shape=(CHUNKS,), chunks=(1,), dtype="i8", compressors=None
    )
    session.commit("array")
    return repository


def write(session: Session, values: Mapping[int, bytes]) -> None:
    """Write whole chunks."""
    for chunk, value in values.items():
        buffer = default_buffer_prototype().buffer.from_bytes(value)
        session.store.set_sync(f"a/c/{chunk}", buffer)


def commit(repository: Repository, values: Mapping[int, bytes], branch: str = "main") -> str:
    """Commit some chunks."""
    session = repository.writable_session(branch)
    write(session, values)
    return session.commit(f"{dict(values)}")


def read(session: Session) -> Values:
    """Return all chunks that a session sees."""
    found = {}
    for chunk in range(CHUNKS):
        value = session.store.get_sync(f"a/c/{chunk}")
        if value is not None:
            found[chunk] = value.to_bytes()
    return found


def newest(storage: Storage, branch: str = "main") -> Values:
    """Return all chunks of a branch, as somebody sees them who has read nothing before."""
    return read(Repository.open(storage).readonly_session(branch))


def commit_at_once(
    repository: Repository, sessions: list[Session], **more: Any
) -> list[BaseException | str]:
    """Commit in threads that all wait before the first of them may publish."""
    state = repository.context.state
    state.is_contended = True
    results: list[BaseException | str] = [""] * len(sessions)

    def commit(number: int) -> None:
        try:
            given = {"rebase_with": ConflictDetector(), **more}
            results[number] = sessions[number].commit(f"number {number}", **given)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(len(sessions))]
    with state.turn():
        for number, thread in enumerate(threads, 1):
            thread.start()
            with state.turns._changed:
                while len(state.turns._waiting) < number:
                    state.turns._changed.wait(0.01)
    for thread in threads:
        thread.join(60)
    return results
