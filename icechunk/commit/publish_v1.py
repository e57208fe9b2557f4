"""Publishing in repositories of spec version 1: each ref is an object of its own.

There is no repo info: a branch or tag is a small JSON object, the history is what
snapshot files say about their parents, and the configuration is a YAML file. So a change is
one conditional put of one ref, and only changes of a single ref are possible (Icechunk
spec, "Spec version 1"). `load` presents all this as a `RepoInfo` whose parts are fetched when
they are needed: reading takes no permission to list.
"""

from __future__ import annotations

import re
import time
from collections import ChainMap
from collections.abc import Collection, ItemsView, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, cast
from urllib.parse import quote, unquote

from icechunk.base.texts import MENDED
from icechunk.base.threads import Threads
from icechunk.commit.assets import Assets, advising
from icechunk.commit.delivery import Outcome, Write
from icechunk.errors import (
    ErrorKind,
    FormatError,
    IcechunkError,
    InvalidInputError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
    SnapshotNotFoundError,
)
from icechunk.format import layout, v1
from icechunk.format.encoding import flexbuf
from icechunk.format.ids import decode_id
from icechunk.format.repo_info import RepoInfo, SnapshotEntry
from icechunk.format.updates import Status, UpdateEntry, UpdateKind
from icechunk.storage.base import Storage

_BRANCH: Final = "branch"
_TAG: Final = "tag"
_MAIN_KEY: Final = f"{layout.REFS}branch.main/ref.json"
_REF_KEY: Final = re.compile(r"refs/(branch|tag)\.([^/]+)/ref\.json(\.deleted)?")
_TOMBSTONE: Final = ".deleted"
#: Requests at a time where all refs are fetched.
_REQUESTS: Final = 16

#: Special characters that official clients do not percent-encode in names of refs.
_UNCODED: Final = " !$&'()+,:;=@"


def needs_upgrade(what: str) -> FormatError:
    """Return the error for something that spec version 1 does not have."""
    return FormatError(
        f"{what}: not possible in a repository of spec version 1; "
        "icechunk.upgrade_icechunk_repository(repo, dry_run=False) upgrades it to version 2",
        ErrorKind.UNSUPPORTED_SPEC_VERSION,
    )


# -- names ---------------------------------------------------------------------------
def _is_raw(storage: Storage) -> bool:
    """Whether official clients use names unchanged: on S3, where they have code of their own."""
    return storage.url.startswith("s3://")


def _encode(name: str) -> str:
    # `quote` does not encode a tilde, but official clients do
    return quote(name, safe=_UNCODED).replace("~", "%7E")


def _ref_keys(storage: Storage, kind: str, name: str) -> list[str]:
    """Return the keys that a ref may have. The first is the one for a new ref.

    A folder that was downloaded from S3 has names that are not encoded.
    """
    names = [name] if _is_raw(storage) else [_encode(name), name]
    return [f"{layout.REFS}{kind}.{each}/ref.json" for each in dict.fromkeys(names)]


def _name(storage: Storage, stored: str) -> str:
    """Return the name of a ref that is stored as `stored`, if `_ref_keys` would find it there.

    Whoever looks at all refs must find each again, or would take what it needs for garbage.
    """
    if _is_raw(storage):
        return stored
    name = unquote(stored)
    return name if _is_name(name) and stored in (_encode(name), name) else stored


def _is_name(name: str) -> bool:
    return name != "" and "/" not in name


# -- a repository, as far as it is looked at --------------------------------------------
class _Lazy(Mapping[str, bytes]):
    """Branches or tags by name: fetched when asked for, listed when iterated."""

    def __init__(self, storage: Storage, kind: str) -> None:
        self._storage = storage
        self._kind = kind
        self._fetched: dict[str, tuple[str, bytes, str | None] | None] = {}

    def __getitem__(self, name: str) -> bytes:
        return self.stored(name)[1]

    def stored(self, name: str) -> tuple[str, bytes, str | None]:
        """Return key, snapshot and version of a ref; KeyError if there is none."""
        if name not in self._fetched:
            self._fetched[name] = self._fetch(name)
        found = self._fetched[name]
        if found is None:
            raise KeyError(name)
        return found

    def _fetch(self, name: str) -> tuple[str, bytes, str | None] | None:
        for key in _ref_keys(self._storage, self._kind, name) if _is_name(name) else ():
            try:
                result = self._storage.get(key)
            except (ObjectNotFoundError, InvalidInputError):
                continue  # the second: a name that this storage cannot have
            _check_case(self._storage, self._kind, name)
            if self._kind == _TAG and _exists(self._storage, key + _TOMBSTONE):
                return None
            with advising(MENDED):
                return key, v1.parse_ref(result.data, key), result.etag
        return None

    def __iter__(self) -> Iterator[str]:
        return iter(_list_names(self._storage, self._kind)[0])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def items(self) -> ItemsView[str, bytes]:
        """Return names and snapshots. A ref that is deleted in the meantime is left out."""
        found = ((name, self.get(name)) for name in self)
        return {name: target for name, target in found if target is not None}.items()


class _DeletedTags(Collection[str]):
    """Names that deleted tags had."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or not _is_name(name):
            return False
        keys = _ref_keys(self._storage, _TAG, name)
        return any(_exists(self._storage, key + _TOMBSTONE) for key in keys)

    def __iter__(self) -> Iterator[str]:
        return iter(_list_names(self._storage, _TAG)[1])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _SnapshotFiles(Mapping[bytes, SnapshotEntry]):
    """History: each snapshot file names its parent. Iterating follows it from all refs."""

    def __init__(self, assets: Assets, refs: Collection[Mapping[str, bytes]]) -> None:
        self._assets = assets
        self._refs = refs

    def __getitem__(self, snapshot_id: bytes) -> SnapshotEntry:
        try:
            snapshot = self._assets.snapshot(snapshot_id)
        except SnapshotNotFoundError:
            raise KeyError(snapshot_id) from None
        return SnapshotEntry(
            snapshot.id,
            snapshot.parent_id,
            snapshot.flushed_at,
            snapshot.message,
            snapshot.metadata,
        )

    def __iter__(self) -> Iterator[bytes]:
        seen: set[bytes] = set()
        todo = [target for refs in self._refs for _, target in refs.items()]
        while todo:
            snapshot_id = todo.pop()
            if snapshot_id not in seen:
                seen.add(snapshot_id)
                yield snapshot_id
                parent = self[snapshot_id].parent_id
                todo += [parent] if parent is not None else []

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _exists(storage: Storage, key: str) -> bool:
    try:
        storage.get(key)
    except (ObjectNotFoundError, InvalidInputError):
        return False
    return True


def _check_case(storage: Storage, kind: str, name: str) -> None:
    """Refuse a name that a folder takes for another one, as it ignores case."""
    if not storage.url.startswith("file:") or not _exists(storage, _MAIN_KEY.upper()):
        return
    names = {each for some in _list_names(storage, kind) for each in some}
    others = [each for each in names if each.casefold() == name.casefold()]
    if others and name not in others:
        raise InvalidInputError(
            f"the {kind} {name!r} cannot be told from {others[0]!r}: {storage.url} ignores case, "
            "and spec version 1 has a file for each. Use another name, or upgrade the repository "
            "to spec version 2",
            ErrorKind.INVALID_REF_NAME,
        )


def _list_names(storage: Storage, kind: str) -> tuple[list[str], list[str]]:
    """Return the names of the existing branches or tags, and those of the deleted ones."""
    present: set[str] = set()
    deleted: set[str] = set()
    for meta in storage.list(layout.REFS):
        match = _REF_KEY.fullmatch(meta.key)
        if match is not None and match[1] == kind:
            (deleted if match[3] else present).add(_name(storage, match[2]))
    return sorted(present - deleted), sorted(deleted)


def exists(storage: Storage) -> bool:
    """Whether there is a repository of spec version 1, unless there is a newer one."""
    return _exists(storage, _MAIN_KEY)


def load(assets: Assets) -> RepoInfo:
    """Return what is known about a repository; most of it is fetched on demand.

    Raises
    ------
    RepositoryNotFoundError
        If there is none.
    """
    storage = assets.storage
    branches, tags = _Lazy(storage, _BRANCH), _Lazy(storage, _TAG)
    if "main" not in branches:
        raise RepositoryNotFoundError(
            f"there is no Icechunk repository at {storage.url}; create one with "
            "Repository.create, or check the location"
        )
    try:
        document = v1.parse_config(storage.get(layout.CONFIG_KEY).data, layout.CONFIG_KEY)
    except ObjectNotFoundError:
        document = None
    return RepoInfo(
        snapshots=_SnapshotFiles(assets, (branches, tags)),
        branches=branches,
        tags=tags,
        deleted_tags=_DeletedTags(storage),
        status=Status(0, 0),
        updates=(),
        config=flexbuf.dumps(document) if document is not None else None,
        spec_version=1,
    )


# -- changes ---------------------------------------------------------------------------
def first_writes(storage: Storage, info: RepoInfo) -> Iterator[Write]:
    """Yield the writes that make a repository: the first branch, and its configuration.

    The branch comes first: it decides which of several creators the repository belongs to.
    It looks the same whoever stored it. In case of doubt, the configuration decides.
    """
    yield _new_object(storage, _MAIN_KEY, v1.dump_ref(info.branches["main"]))
    if info.config is not None:
        yield _new_object(storage, layout.CONFIG_KEY, _config_yaml(info.config))


def _new_object(storage: Storage, key: str, data: bytes, *, is_ours: bool = False) -> Write:
    """Return the write of an object that does not exist yet."""

    def look() -> Outcome:
        found = _content(storage, key)
        if found is None:
            return Outcome.OPEN
        return Outcome.DONE if found == data else Outcome.LOST

    return Write(lambda: storage.put(key, data, if_absent=True), look, is_ours)


def _content(storage: Storage, key: str) -> bytes | None:
    try:
        return bytes(storage.get(key).data)
    except (ObjectNotFoundError, InvalidInputError):
        return None


def _config_yaml(config: bytes) -> bytes:
    return v1.dump_config(flexbuf.loads(config, layout.CONFIG_KEY))


def write_of(assets: Assets, info: RepoInfo, changed: RepoInfo, entry: UpdateEntry) -> Write | None:
    """Return the one write that makes a change visible, or None if none is needed.

    Parameters
    ----------
    assets : Assets
    info : RepoInfo
        The state that the change was computed from, as `load` returned it.
    changed : RepoInfo
    entry : UpdateEntry
        What the change is.

    Raises
    ------
    FormatError
        If spec version 1 has no such change.
    InvalidInputError
        If a name cannot be one.
    """
    storage, name = assets.storage, entry.name or ""
    branches, tags = cast(_Lazy, info.branches), cast(_Lazy, info.tags)
    if entry.kind is UpdateKind.NEW_DETACHED_SNAPSHOT:
        return None  # its files are all there is
    if entry.kind is UpdateKind.CONFIG_CHANGED:
        return _config_write(storage, _config_yaml(changed.config or b""))
    if entry.kind in (UpdateKind.NEW_COMMIT, UpdateKind.BRANCH_RESET):
        return _moved_branch(assets, branches, name, changed.branches[name], entry.kind)
    if entry.kind in (UpdateKind.BRANCH_CREATED, UpdateKind.TAG_CREATED):
        kind = _TAG if entry.kind is UpdateKind.TAG_CREATED else _BRANCH
        _check_name(name, kind)
        target = (changed.tags if kind == _TAG else changed.branches)[name]
        return _new_object(storage, _ref_keys(storage, kind, name)[0], v1.dump_ref(target))
    if entry.kind is UpdateKind.BRANCH_DELETED:
        return _deletion(storage, branches.stored(name)[0])
    if entry.kind is UpdateKind.TAG_DELETED:
        return _new_object(storage, tags.stored(name)[0] + _TOMBSTONE, b"")
    raise needs_upgrade(entry.kind.name.lower().replace("_", " "))


def _moved_branch(
    assets: Assets, branches: _Lazy, name: str, target: bytes, kind: UpdateKind
) -> Write:
    key, tip, etag = branches.stored(name)

    def look() -> Outcome:
        now = load(assets)
        found = now.branches.get(name)
        if found == target:
            return Outcome.DONE
        if found == tip:
            return Outcome.OPEN
        # others may have committed on top of it
        has_landed = (
            kind is UpdateKind.NEW_COMMIT
            and found is not None
            and is_above(now, found, target, tip)
        )
        return Outcome.DONE if has_landed else Outcome.LOST

    return Write(lambda: assets.storage.put(key, v1.dump_ref(target), if_match=etag), look)


def _deletion(storage: Storage, key: str) -> Write:
    return Write(
        lambda: storage.delete([key]),
        lambda: Outcome.OPEN if _exists(storage, key) else Outcome.DONE,
    )


def is_above(info: RepoInfo, tip: bytes, snapshot_id: bytes, base: bytes) -> bool:
    """Whether a snapshot is in the history of a tip, back to its base."""
    newer = takewhile(lambda entry: entry.id != base, info.ancestry(tip))
    return any(entry.id == snapshot_id for entry in newer)


def _config_write(storage: Storage, data: bytes) -> Write:
    """Return the write that replaces the configuration, after a copy of the old one."""
    try:
        old = storage.get(layout.CONFIG_KEY)
    except ObjectNotFoundError:
        return _new_object(storage, layout.CONFIG_KEY, data, is_ours=True)
    before = bytes(old.data)
    backup = layout.backup_key(layout.backup_name(time.time_ns() // 1_000_000, "config.yaml"))

    def send() -> None:
        storage.copy(layout.CONFIG_KEY, backup, if_match=old.etag)
        storage.put(layout.CONFIG_KEY, data, if_match=old.etag)

    def look() -> Outcome:
        found = _content(storage, layout.CONFIG_KEY)
        if found == data:
            return Outcome.DONE
        return Outcome.OPEN if found == before else Outcome.LOST

    return Write(send, look)


def _check_name(name: str, kind: str) -> None:
    if not _is_name(name):
        raise InvalidInputError(
            f"{name!r} cannot be the name of a {kind} in a repository of spec version 1: "
            + ("it is empty" if not name else "it contains a '/'"),
            ErrorKind.INVALID_REF_NAME,
        )


# -- all of it at once, to leave it behind ------------------------------------------------
@dataclass(frozen=True)
class AllRefs:
    """Every ref of a repository.

    Attributes
    ----------
    branches, tags : dict
        Name to snapshot id.
    deleted_tags : dict
        Name to the snapshot id that it had, None if that is not known.
    """

    branches: dict[str, bytes]
    tags: dict[str, bytes]
    deleted_tags: dict[str, bytes | None]


def read_all_refs(storage: Storage) -> AllRefs:
    """Fetch every ref."""
    live, tags = _Lazy(storage, _BRANCH), _Lazy(storage, _TAG)
    with Threads(_REQUESTS) as pool:
        deleted = _list_names(storage, _TAG)[1]
        was = pool.map(lambda name: _deleted_target(storage, name), deleted)
        for refs in (live, tags):
            list(pool.map(refs.get, list(refs)))
        return AllRefs(dict(live.items()), dict(tags.items()), dict(zip(deleted, was, strict=True)))


def load_whole(assets: Assets, refs: AllRefs, concurrency: int = 64) -> RepoInfo:
    """Return what `load` does, with all refs, and with the history read ahead.

    Parameters
    ----------
    assets : Assets
    refs : AllRefs
    concurrency : int
        Snapshots that are read at the same time.
    """
    info = load(assets)

    def fetch(key: str) -> SnapshotEntry | None:
        try:
            return info.snapshots.get(decode_id(key.removeprefix(layout.SNAPSHOTS)))
        except IcechunkError:
            return None

    keys = [meta.key for meta in assets.storage.list(layout.SNAPSHOTS)]
    with Threads(concurrency) as pool:
        fetched = {entry.id: entry for entry in pool.map(fetch, keys) if entry is not None}
    # the rest is fetched as it is reached, with errors that say what is missing
    history = ChainMap(fetched, cast("MutableMapping[bytes, SnapshotEntry]", info.snapshots))
    return replace(info, snapshots=history, branches=refs.branches, tags=refs.tags)


def _deleted_target(storage: Storage, tag: str) -> bytes | None:
    for key in _ref_keys(storage, _TAG, tag):
        try:
            return v1.parse_ref(storage.get(key).data, key)
        except ObjectNotFoundError:
            continue
    return None


def damaged_refs(storage: Storage) -> list[str]:
    """Return what is wrong with refs: unreadable ones, and ``main`` if it is missing."""
    told: list[str] = []
    keys = {meta.key for meta in storage.list(layout.REFS)}
    for key in sorted(keys):
        match = _REF_KEY.fullmatch(key)
        if match is None or match[3] or key + _TOMBSTONE in keys:
            continue
        try:
            v1.parse_ref(storage.get(key).data, key)
        except FormatError as error:
            told.append(str(error))
    if _MAIN_KEY not in keys:
        told.append(f"{_MAIN_KEY}: there is no such object")
    return told


def restore_branch(storage: Storage, name: str, target: bytes) -> None:
    """Put the ref of a branch that is missing or cannot be read.

    Raises
    ------
    InvalidInputError
        If it can be read, and so is not lost.
    """
    _check_name(name, _BRANCH)
    key = _ref_keys(storage, _BRANCH, name)[0]
    try:
        stored = storage.get(key)
    except ObjectNotFoundError:
        storage.put(key, v1.dump_ref(target), if_absent=True)
        return
    with suppress(FormatError):
        v1.parse_ref(stored.data, key)
        raise InvalidInputError(
            f"the branch {name!r} is not lost: Repository.reset_branch moves it",
            ErrorKind.NOT_ALLOWED,
        )
    storage.put(key, v1.dump_ref(target), if_match=stored.etag)


def stored_keys(storage: Storage) -> list[str]:
    """Return the keys of what a repository of spec version 2 does not use.

    The branch ``main`` comes first: without it, no client takes this for a repository of
    version 1 any more.
    """
    keys = [meta.key for meta in storage.list(layout.REFS) if _REF_KEY.fullmatch(meta.key)]
    keys.sort(key=lambda key: key != _MAIN_KEY)
    return [*keys, *([layout.CONFIG_KEY] if _exists(storage, layout.CONFIG_KEY) else [])]
