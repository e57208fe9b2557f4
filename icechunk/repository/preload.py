"""Fetch small manifests ahead of the reads that need them.

A user who opens a dataset reads its coordinates next. Their manifests are fetched in
the background as soon as a session opens, which saves one round trip.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from icechunk.commit.assets import Assets
from icechunk.config.repository_config import EffectiveConfig
from icechunk.errors import IcechunkError
from icechunk.format.ids import encode_id
from icechunk.format.snapshot import Snapshot
from icechunk.session.session import Session

_THREADS: Final = 4
_NAME: Final = "icechunk-preload"
_log = logging.getLogger(__name__)


def manifests_to_preload(snapshot: Snapshot, config: EffectiveConfig) -> list[bytes]:
    """Return the manifests to fetch when a session opens.

    The first arrays are examined, in the order of their paths. A manifest that meets the
    condition is left out if it would exceed the limit on references; smaller ones after it
    may still fit.
    """
    chosen: list[bytes] = []
    room = config.preload_max_total_refs
    arrays = 0
    for node in snapshot.nodes():
        if arrays == config.preload_max_arrays_to_scan or room <= 0:
            break
        if node.array is None:
            continue
        arrays += 1
        for ref in node.array.manifests:
            file = snapshot.manifest_files.get(ref.id)
            if file is None or file.num_chunk_refs > room:
                continue
            if config.preload_if.matches(node.path, file.num_chunk_refs):
                chosen.append(ref.id)
                room -= file.num_chunk_refs
    return chosen


def preloading(session: Session, assets: Assets) -> Session:
    """Start to fetch manifests for a new session, and return the session.

    A manifest that cannot be fetched now fails when it is read, with an error that says so.
    """
    config = session.effective_config
    if config.preload_max_total_refs > 0 and config.preload_max_arrays_to_scan > 0:
        _start(_preload, session.tree.snapshot, assets, config)
    return session


def _start(function: Callable[..., None], *arguments: object) -> threading.Thread:
    # a daemon: nothing waits for it, not even the end of the process
    thread = threading.Thread(target=function, args=arguments, name=_NAME, daemon=True)
    thread.start()
    return thread


def _preload(snapshot: Snapshot, assets: Assets, config: EffectiveConfig) -> None:
    try:
        chosen = manifests_to_preload(snapshot, config)
    except IcechunkError as error:
        _log.warning("cannot preload for snapshot %s: %s", encode_id(snapshot.id), error)
        return
    wanted = deque(id for id in chosen if assets.cached_manifest(id) is None)
    for _ in range(min(_THREADS, len(wanted))):
        _start(_fetch, wanted, assets)


def _fetch(wanted: deque[bytes], assets: Assets) -> None:
    while wanted:
        try:
            manifest_id = wanted.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            assets.manifest(manifest_id)
        except IcechunkError as error:
            _log.warning("cannot preload manifest %s: %s", encode_id(manifest_id), error)
