"""Repair: make a damaged repository usable again.

The object that names all versions is restored from the copies that each update leaves.
This loses nothing else, and nothing is dropped unless requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final

from icechunk.base.texts import counted
from icechunk.commit import publish, publish_v1
from icechunk.commit.assets import Assets
from icechunk.commit.building import now_microseconds
from icechunk.commit.publish import RepoState
from icechunk.commit.relog import says_all
from icechunk.commit.snapshot_info import from_microseconds
from icechunk.commit.version_names import branch_tip
from icechunk.config import RepositoryConfig
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    FormatError,
    IcechunkError,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    ReadOnlyError,
    RepositoryNotFoundError,
)
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import decode_id, encode_id
from icechunk.format.repo_info import RepoInfo, SnapshotEntry, decode_repo_info
from icechunk.format.snapshot import Snapshot
from icechunk.format.update_log import LAST_TIME
from icechunk.repository.creation import stored_config
from icechunk.repository.decoding import Tried, decode_chunks
from icechunk.repository.recipe import context_at
from icechunk.repository.repairs import Repair, UnlistedVersion
from icechunk.repository.rereading import check_damage, read_again
from icechunk.repository.salvage import Salvage
from icechunk.session import Session, SessionMode
from icechunk.storage import AnyStorage
from icechunk.storage.base import BytesLike

__all__ = ["Repairer", "repair"]

_COPIES: Final = f"{layout.OVERWRITTEN}{layout.REPO_KEY}."
#: The most unlisted snapshots that are examined, newest first.
_LOOKED_AT: Final = 100


@dataclass
class _Found:
    """The findings so far; becomes a `Repair`."""

    damage: str | None = None
    restored_from: str | None = None
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    unlisted: list[UnlistedVersion] = field(default_factory=list)


def repair(
    storage: AnyStorage,
    *,
    branch: str | None = None,
    drop_unreadable: bool = False,
    deep: bool = False,
    adopt: Mapping[str, str] | None = None,
    dry_run: bool = True,
    config: RepositoryConfig | None = None,
) -> Repair:
    """Repair a damaged repository, so that it can be opened and read again.

    If the object ``repo``, which names all versions, is missing, truncated or damaged, it is
    restored from the newest readable copy in ``overwritten/`` whose branches and tags can be
    read. The damaged object is kept beside it. Such a copy is the state *before* an
    update: it may lack the last commit, which is listed for `adopt`.

    Nothing is dropped unless `drop_unreadable` is set, and then only from the newest
    version of one branch, by a new commit. Older versions stay as they are.

    Parameters
    ----------
    storage : Storage, str or path
        The place of the repository, even if it cannot be opened.
    branch : str, optional
        A branch whose newest version is checked. Unreadable transaction logs of its history
        are rebuilt from the snapshots.
    drop_unreadable : bool, default False
        Whether to commit a version without what is unreadable to that branch: without chunks
        whose objects are missing or truncated, manifests, nodes. **What is dropped reads as
        fill values**; the report names each. If the newest version cannot be read at all,
        the branch is moved to the newest one that can be.
    deep : bool, default False
        Whether to decode all chunks of the newest version of the branch. Those whose bytes
        exist but are refused by the codecs of their array count as unreadable. Chunks whose
        request fails, or that need a codec that is not installed, do not.
    adopt : mapping of str to str, optional
        Branches, and the ids of snapshots that become their newest versions: commits that
        the restored state does not know. In spec 1, which has no copies of refs, it tells
        where an unreadable branch was.
    dry_run : bool, default True
        Change nothing, and report what would be done.
    config : RepositoryConfig, optional
        Determines how objects are written.

    Returns
    -------
    Repair
        What was found and done. ``print`` it.

    Raises
    ------
    RepositoryNotFoundError
        If there is nothing to restore a repository from.
    FormatError
        If no copy can be restored, or no version of the branch can be read.
    InvalidInputError
        If a snapshot cannot follow the newest one of the branch that is to adopt it.
    ConflictError
        If somebody else writes in the meantime.
    ReadOnlyError
        If the storage does not allow writes.

    Examples
    --------
    >>> print(Repository.repair("s3://bucket/weather"))  # doctest: +SKIP
    >>> Repository.repair("s3://bucket/weather", dry_run=False)  # doctest: +SKIP
    """
    for name, given in (("drop_unreadable", drop_unreadable), ("deep", deep)):
        if given and branch is None:
            raise InvalidInputError(f"{name} needs a branch: name the one to look at")
    context = context_at(storage, config or RepositoryConfig())

    def decode(id: bytes, path: str, refs: ChunkRefs) -> Iterator[Tried]:
        return decode_chunks(Session(context, id, SessionMode.readonly), path, refs=refs)

    repairer = Repairer(
        context.assets.uncached(), context.state, decode if deep else None, dry_run=dry_run
    )
    return repairer.run(branch, adopt or {}, drop_unreadable=drop_unreadable)


class Repairer:
    """One repair.

    Parameters
    ----------
    assets : Assets
        Without a cache.
    state : RepoState
    decode : callable or None
        Decodes chunks for `Salvage`.
    dry_run : bool
    """

    def __init__(
        self,
        assets: Assets,
        state: RepoState,
        decode: Callable[[bytes, str, ChunkRefs], Iterator[Tried]] | None = None,
        *,
        dry_run: bool,
    ) -> None:
        self._assets = assets
        self._state = state
        self._storage = assets.storage
        self._decode = decode
        self._dry_run = dry_run
        if not (dry_run or self._storage.supports_writes):
            raise ReadOnlyError(
                f"cannot repair: {self._storage.url} cannot be written",
                ErrorKind.READ_ONLY_STORAGE,
            )

    def run(self, branch: str | None, adopt: Mapping[str, str], *, drop_unreadable: bool) -> Repair:
        """Carry out the requested repairs."""
        found = _Found()
        info = self._restore(found)
        if info is None:
            adopted = self._restore_refs(found, adopt)
        else:
            adopted = {name: self._adopt(info, name, decode_id(id)) for name, id in adopt.items()}
        told: dict[str, Any] = {
            "damage": found.damage,
            "restored_from": found.restored_from,
            "passed_over": tuple(found.passed_over),
            "unlisted": tuple(found.unlisted),
            "adopted": tuple(adopted.items()),
        }
        if branch is not None:
            if info is None or (adopted and not self._dry_run):
                info = self._state.load()
            salvage = Salvage(self._assets, self._state, info, branch, self._decode)
            told |= salvage.run(drop=drop_unreadable, dry_run=self._dry_run)
        return Repair(self._storage.url, self._dry_run, **told)

    # -- the object that names all versions ------------------------------------------------
    def _restore(self, found: _Found) -> RepoInfo | None:
        """Return the state, restored if necessary; None in spec version 1."""
        key = layout.REPO_KEY
        etag: str | None = None

        def read() -> RepoInfo:
            nonlocal etag
            stored = self._storage.get(key)
            etag = stored.etag
            return _usable(stored.data, key)

        try:
            return read_again(read)
        except ObjectNotFoundError:
            found.damage = f"{key}: there is no such object"
        except FormatError as error:
            if error.kind is ErrorKind.UNSUPPORTED_SPEC_VERSION:
                raise
            found.damage = str(error)
        copies = sorted(
            m.key for m in self._storage.list(layout.OVERWRITTEN) if m.key.startswith(_COPIES)
        )
        if etag is None and not copies:
            # spec version 1 has no such object, nor does a place without a repository
            found.damage = None
            return None
        data, info = self._best_copy(copies, found)
        if not self._dry_run:
            self._replace(data, etag)
        self._look_for_unlisted(info, found)
        return info

    def _best_copy(self, copies: list[str], found: _Found) -> tuple[BytesLike, RepoInfo]:
        """Return the newest copy that decodes, and whose branches and tags can be read."""

        def read(copy: str) -> tuple[BytesLike, RepoInfo]:
            data = self._storage.get(copy).data
            info = _usable(data, copy)
            for target in {*info.branches.values(), *info.tags.values()}:
                self._assets.snapshot(target)
            return data, info

        for copy in copies:
            try:
                usable = read_again(partial(read, copy))
            except IcechunkError as error:
                check_damage(error)  # an older one would be taken in place of it
                found.passed_over.append((copy, str(error)))
                continue
            found.restored_from = copy
            return usable
        why = "; ".join(f"{copy}: {told}" for copy, told in found.passed_over[:3])
        raise FormatError(
            f"{self._storage.url} cannot be repaired: {found.damage}, and none of "
            f"{counted(len(copies), 'copy', 'copies')} in {layout.OVERWRITTEN} can take its place"
            + (f": {why}" if why else ""),
            ErrorKind.INVALID_FILE_FORMAT,
        )

    def _replace(self, data: BytesLike, etag: str | None) -> None:
        key = layout.REPO_KEY
        try:
            if etag is None:
                self._storage.put(key, data, if_absent=True)
                return
            # keeps everything, even what nobody can read now
            kept = layout.OVERWRITTEN + "damaged-" + layout.backup_name(0).partition(".")[2]
            self._storage.copy(key, kept, if_match=etag)
            self._storage.put(key, data, if_match=etag)
        except PreconditionFailedError:
            raise ConflictError(
                message=f"somebody else has written {key} meanwhile; look again",
                kind=ErrorKind.REPO_INFO_UPDATED,
            ) from None

    # -- commits that the restored state does not know -------------------------------------
    def _look_for_unlisted(self, info: RepoInfo, found: _Found) -> None:
        since = info.updates[0].updated_at if info.updates else 0
        if since > now_microseconds():
            # a clock was ahead; later versions are younger than the one that it noted, no more
            since = max(entry.flushed_at for entry in info.snapshots.values())
        metas = sorted(self._storage.list(layout.SNAPSHOTS), key=lambda meta: meta.last_modified)
        for version in islice(self._unlisted(info, [m.key for m in reversed(metas)]), _LOOKED_AT):
            if version.flushed_at > since:
                found.unlisted.append(_shown(version, self._fits(info, version)))

    def _unlisted(self, info: RepoInfo, keys: list[str]) -> Iterator[Snapshot]:
        for key in keys:
            try:
                id = decode_id(key.removeprefix(layout.SNAPSHOTS))
                if id not in info.snapshots:
                    yield self._assets.snapshot(id)
            except IcechunkError as error:
                check_damage(error)

    def _fits(self, info: RepoInfo, version: Snapshot) -> Iterator[str]:
        """Yield the branches on whose newest version a snapshot was made."""
        try:
            log = self._assets.transaction_log(version.id)
        except IcechunkError as error:
            check_damage(error)
            return
        for name, tip in sorted(info.branches.items()):
            try:
                before = self._assets.snapshot(tip)
            except IcechunkError as error:
                check_damage(error)
                continue
            if before.flushed_at < version.flushed_at and says_all(log, before, version):
                yield name

    def _adopt(self, info: RepoInfo, branch: str, id: bytes) -> str:
        """Make a snapshot that no state lists the newest of a branch."""
        version = self._assets.snapshot(id)
        self._assets.transaction_log(id)
        tip = branch_tip(info, branch)
        if id in info.snapshots:
            raise InvalidInputError(
                f"snapshot {encode_id(id)} is known: Repository.reset_branch moves a branch to it",
                ErrorKind.NOT_ALLOWED,
            )
        if branch not in self._fits(info, version):
            raise InvalidInputError(
                f"snapshot {encode_id(id)} was not made on {encode_id(tip)}, the newest of "
                f"{branch!r}",
                ErrorKind.NOT_ALLOWED,
            )
        if not self._dry_run:
            entry = SnapshotEntry(id, tip, version.flushed_at, version.message, version.metadata)
            self._state.update(publish.add_commit(branch, tip, entry), needs_online=False)
        return encode_id(id)

    # -- spec version 1 --------------------------------------------------------------------
    def _restore_refs(self, found: _Found, adopt: Mapping[str, str]) -> dict[str, str]:
        """Check the refs: there are no copies of them, so the caller says where they were."""
        storage = self._storage
        snapshots = [meta.key for meta in storage.list(layout.SNAPSHOTS)]
        bad = publish_v1.damaged_refs(storage)
        if not snapshots:
            raise RepositoryNotFoundError(
                f"there is no Icechunk repository at {storage.url}, nor what is left of one"
            )
        if bad:
            found.damage = "; ".join(bad)
            found.unlisted += [_shown(version) for version in _tips(self._assets, snapshots)]
        for branch, text in adopt.items():
            id = decode_id(text)
            list(_history(self._assets, id))
            if not self._dry_run:
                publish_v1.restore_branch(storage, branch, id)
        return dict(adopt)


def _shown(version: Snapshot, fits: Iterable[str] = ()) -> UnlistedVersion:
    written = from_microseconds(version.flushed_at)
    return UnlistedVersion(encode_id(version.id), version.message, written, tuple(fits))


def _history(assets: Assets, id: bytes | None) -> Iterator[Snapshot]:
    """Yield a snapshot of spec version 1 and its ancestors, all of which must be readable."""
    while id is not None:
        version = assets.snapshot(id)
        yield version
        id = version.parent_id


def _tips(assets: Assets, keys: list[str]) -> list[Snapshot]:
    """Return the snapshots that are no parent of another one, newest first."""
    found: dict[bytes, Snapshot] = {}
    for key in keys:
        try:
            id = decode_id(key.removeprefix(layout.SNAPSHOTS))
            found[id] = assets.snapshot(id)
        except IcechunkError as error:
            check_damage(error)
    parents = {version.parent_id for version in found.values()}
    tips = [version for id, version in found.items() if id not in parents]
    return sorted(tips, key=lambda version: version.flushed_at, reverse=True)[:_LOOKED_AT]


def _usable(data: BytesLike, key: str) -> RepoInfo:
    """Return a state to work with.

    Raises
    ------
    FormatError
    """
    info = decode_repo_info(data, key)
    if "main" not in info.branches:
        raise FormatError(f"{key}: there is no branch 'main'", ErrorKind.INVALID_FILE_FORMAT)
    if not info.updates or info.updates[0].backup is not None:
        raise FormatError(
            f"{key}: its operations log does not begin with its newest update",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    list(info.snapshots.values())  # decodes all of them
    dict(info.metadata)
    stored_config(info)
    if info.updates[0].updated_at >= LAST_TIME:
        raise FormatError(
            f"{key}: its newest update has the last time that can be stored",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    return info
