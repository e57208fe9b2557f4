"""The stored records of jobs, as objects beside those of the repository.

None of them belongs to the format, and other clients leave the folder alone::

    jobs/<name>/job                          what the job is; never changed
    jobs/<name>/<id>/attempts/<digest>/<n>   who began the part with a key, or how it failed
    jobs/<name>/<id>/parts/<digest>          what a part did: keys, and the change set
    jobs/<name>/<id>/log/<n>                 commits of parts, one after another

The id is new whenever a job is created: what processes of a deleted job still write has no
effect on a new job of the same name.

Entries of the log are numbered without gaps, and one is only put after all before it were
read: nobody commits a key that another entry has. An entry is put *before* its commit takes
place, and names each snapshot that is about to become that commit. The operations log of the
repository, which nobody edits, says which of them did. So whoever finds a pending entry
knows whether to carry it out, wherever the process that put it died, and whatever has happened
to the history since.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from types import UnionType
from typing import Any, Final, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from icechunk.base.threads import Threads
from icechunk.errors import (
    ErrorKind,
    FormatError,
    InternalError,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.repository.stored_json import packed, unpacked
from icechunk.storage.base import Storage

__all__ = [
    "JOBS",
    "LEASE",
    "Attempt",
    "Begun",
    "Definition",
    "Entry",
    "JobFiles",
    "Part",
    "Try",
    "canonical",
    "closing",
    "digest_of",
    "folder_of",
    "now",
]

JOBS: Final = "jobs/"
#: Bytes that differ between file systems and URLs, and a dot at the beginning.
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9_.-]|^\.")
_ENCODED: Final = re.compile(r"=([0-9A-F]{2})")
_MAX_NAME: Final = 100
#: Seconds without a sign of life after which a part looks dead.
LEASE: Final = 300.0
_ALIVE: Final = ".alive"
_THREADS: Final = 16
#: The most attempts at one part that may begin at the same time.
_MOST_BESIDE: Final = 100
R = TypeVar("R")


def folder_of(name: str) -> str:
    """Return the name of a job's folder: unsafe bytes are written like ``=20``.

    Raises
    ------
    InvalidInputError
        If it is not a valid job name.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
        raise InvalidInputError(
            f"{name!r} is not a valid job name: use up to {_MAX_NAME} printable characters",
            ErrorKind.INVALID_REF_NAME,
        )
    return _UNSAFE.sub(lambda found: b"=%02X" % found[0][0], name.encode()).decode("ascii")


def _name_of(folder: str) -> str | None:
    """Return the name of the job in a folder; None if the folder is not a job's."""
    raw = _ENCODED.sub(lambda found: chr(int(found[1], 16)), folder)
    try:
        name = raw.encode("latin-1").decode()
        return name if folder_of(name) == folder else None
    except (UnicodeError, InvalidInputError):
        return None


def canonical(key: Any) -> str:
    """Return a key as the JSON text that identifies it.

    Raises
    ------
    InvalidInputError
        If JSON cannot express it, or another value has the same text.
    """
    try:
        text = json.dumps(
            key, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{key!r} cannot be the key of a part: {error}; keys are values that JSON can express, "
            "such as numbers, strings, and lists of them"
        ) from None
    if not _has_text_keys(key):
        raise InvalidInputError(
            f"{key!r} cannot be the key of a part: JSON turns the keys of a dict into strings"
        )
    return text


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _has_text_keys(v) for k, v in value.items())
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))


def digest_of(text: str) -> str:
    """Return the name by which files identify the part with a key."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# -- the objects ---------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Definition:
    """The definition of a job. `keys` and `base` are None if more keys may come at any time."""

    id: str
    name: str
    branch: str
    message: str
    metadata: dict[str, Any]
    created: str
    keys: list[Any] | None = None
    base: str | None = None
    about: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a part, on a base; if it failed, with an error."""

    key: Any
    number: int
    base: str
    started: str
    host: str
    pid: int
    ended: str | None = None
    error: str | None = None
    traceback: str | None = None
    lease: float = LEASE


class Begun(NamedTuple):
    """An attempt as listed: when it began, and when it was last seen."""

    number: int
    began: datetime
    seen: datetime


@dataclass(frozen=True, slots=True)
class Part:
    """What one attempt did, for one or several keys."""

    keys: list[Any]
    base: str
    attempt: int
    started: str
    ended: str
    host: str
    pid: int
    chunks: int
    nbytes: int
    token: str
    change_set: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Try:
    """A snapshot that may become a commit, if the branch still stands at `tip`."""

    snapshot: str
    tip: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a job's log.

    Attributes
    ----------
    number : int
    kind : str
        ``"commit"`` of parts, or the last one: ``"finished"`` or ``"cancelled"``.
    state : str
        ``"pending"``, ``"done"``, or ``"void"``: it was given up, and its keys are free again; or
        the job continues, because a part arrived while it was being closed.
    parts : list of str
        Digests of the parts.
    keys : list
        Keys of these parts.
    base : str
        The snapshot that the parts were made on.
    mark : str
        The time of the newest repository update before the entry was put.
    tries : list of Try
    snapshot : str or None
        The commit, once it is done.
    token : str
        Identifies the process that put the entry.
    """

    number: int
    kind: str
    state: str
    token: str
    parts: list[str] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    base: str = ""
    mark: str = ""
    tries: list[Try] = field(default_factory=list)
    snapshot: str | None = None


def closing(log: list[Entry]) -> str | None:
    """Return ``"finished"`` or ``"cancelled"`` for a closed job, from its log."""
    last = log[-1] if log else None
    return (
        last.kind if last is not None and last.kind != "commit" and last.state == "done" else None
    )


def now() -> str:
    """Return the time in the form that records use."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _unpack(data: bytes, key: str) -> Any:
    try:
        return unpacked(data)
    except ValueError as error:
        raise _damaged(key, error) from None


def _damaged(key: str, error: object) -> FormatError:
    return FormatError(
        f"{key}: not a record of a job: {error}; if nothing else helps, "
        "Repository.jobs.delete(name) forgets the job"
    )


class JobFiles:
    """The objects of one job.

    Parameters
    ----------
    storage : Storage
    name : str
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name, self._folder = name, f"{JOBS}{folder_of(name)}/"
        self._id: str | None = None
        # settled entries do not change
        self._settled: dict[str, Entry] = {}
        # a name is derived from the keys
        self._keys: dict[str, list[Any]] = {}
        #: The keys that `log` has seen committed, as JSON, and their digests.
        self.committed: set[str] = set()
        self.committed_digests: set[str] = set()

    @classmethod
    def names(cls, storage: Storage) -> list[str]:
        """Return the names of all jobs, sorted."""
        keys = (meta.key.removeprefix(JOBS).partition("/") for meta in storage.list(JOBS))
        names = {_name_of(folder) for folder, _, rest in keys if rest == "job"}
        return sorted(name for name in names if name is not None)

    def delete_all(self) -> None:
        """Delete everything, the definition first: without it the job no longer exists."""
        self._storage.delete([self._folder + "job"])
        self._storage.delete([meta.key for meta in self._storage.list(self._folder)])

    def delete_all_of_this(self) -> None:
        """Delete the records of the opened job, but not those of a newer one of its name."""
        self._storage.delete([meta.key for meta in self._storage.list(self._root)])

    def clean(self) -> None:
        """Delete what a closed job does not need: parts and attempts."""
        for folder in ("parts/", "attempts/"):
            self._storage.delete([meta.key for meta in self._storage.list(self._root + folder)])

    # -- what the job is -------------------------------------------------------------------
    @property
    def _root(self) -> str:
        if self._id is None:
            raise InternalError("the definition of the job was not read yet")
        return f"{self._folder}{self._id}/"

    def open(self) -> Definition | None:
        """Return the definition, to which all else belongs; None if there is none."""
        definition = self._stored()
        if definition is not None:
            self._id = definition.id
        return definition

    def exists(self) -> bool:
        """Whether the opened job still exists."""
        stored = self._stored()
        return stored is not None and stored.id == self._id

    def _stored(self) -> Definition | None:
        key = self._folder + "job"
        try:
            data = self._storage.get(key).data
        except ObjectNotFoundError:
            return None
        definition = _made(Definition, _unpack(bytes(data), key), key)
        if not re.fullmatch("[0-9a-f]{32}", str(definition.id)):
            raise _damaged(key, f"{definition.id!r} is not an id")
        if definition.name != self._name and definition.name.casefold() == self._name.casefold():
            raise InvalidInputError(
                f"the job {self._name!r} cannot be told from {definition.name!r}: "
                f"{self._storage.url} ignores case; use another name",
                ErrorKind.INVALID_REF_NAME,
            )
        return definition

    def define(self, definition: Definition) -> bool:
        """Store the definition; return whether it was the first."""
        self._id = definition.id
        try:
            self._storage.put(self._folder + "job", packed(asdict(definition)), if_absent=True)
        except PreconditionFailedError:
            # the response to a first attempt may have been lost
            return self.exists()
        return True

    # -- attempts ----------------------------------------------------------------------------
    def attempt_names(self) -> dict[str, list[Begun]]:
        """Return number and times of all attempts, by digest, oldest first."""
        found: dict[str, list[Begun]] = {}
        for meta in self._storage.list(self._root + "attempts/"):
            folder, _, number = meta.key.rpartition("/")
            known = found.setdefault(folder.rpartition("/")[2], [])
            if number.isdecimal():
                known.append(Begun(int(number), meta.last_modified, meta.last_modified))
            elif number.endswith(_ALIVE) and known and f"{known[-1].number:06d}{_ALIVE}" == number:
                known[-1] = known[-1]._replace(seen=meta.last_modified)
        return {digest: known for digest, known in found.items() if known}

    def is_alive(self, attempt: Attempt) -> None:
        """Record that an attempt is alive, and keep the time when it began."""
        key = self._attempt_key(digest_of(canonical(attempt.key)), attempt.number)
        self._storage.put(key + _ALIVE, b"alive")

    def attempts(self, names: Iterable[tuple[str, int]]) -> list[Attempt]:
        """Return attempts by digest and number, except those that ended well."""
        keys = [self._attempt_key(digest, number) for digest, number in names]
        found = self._read_many(keys)
        return [_made(Attempt, _unpack(data, key), key) for key, data in found]

    def begin(self, attempt: Attempt) -> Attempt:
        """Record that an attempt begins, with a unique number."""
        digest = digest_of(canonical(attempt.key))
        folder = f"{self._root}attempts/{digest}/"
        numbers = [int(n) for m in self._storage.list(folder) if (n := m.key[-6:]).isdecimal()]
        attempt = replace(attempt, number=max(numbers, default=0) + 1)
        for _ in range(_MOST_BESIDE):
            try:
                self._put_attempt(attempt, if_absent=True)
            except PreconditionFailedError:
                attempt = replace(attempt, number=attempt.number + 1)
            else:
                return attempt
        raise StorageError(
            f"{folder} in {self._storage.url}: {_MOST_BESIDE} new objects were refused as if each "
            "existed; see whether this service supports conditional puts"
        )

    def note(self, attempt: Attempt) -> None:
        """Record how an attempt went."""
        self._put_attempt(attempt)

    def forget(self, attempt: Attempt) -> None:
        """Delete an attempt that ended well."""
        key = self._attempt_key(digest_of(canonical(attempt.key)), attempt.number)
        self._storage.delete([key, key + _ALIVE])

    def _put_attempt(self, attempt: Attempt, *, if_absent: bool = False) -> None:
        key = self._attempt_key(digest_of(canonical(attempt.key)), attempt.number)
        self._storage.put(key, packed(asdict(attempt)), if_absent=if_absent)

    def _attempt_key(self, digest: str, number: int) -> str:
        return f"{self._root}attempts/{digest}/{number:06d}"

    def key_of(self, rest: str) -> str:
        """Return the key of a record of the opened job."""
        return f"{self._root}{rest}"

    # -- parts -------------------------------------------------------------------------------
    def part_names(self) -> set[str]:
        """Return the digests of the parts that are there, and not known to be committed."""
        folder = self._root + "parts/"
        return {meta.key.removeprefix(folder) for meta in self._storage.list(folder)}

    def has_part(self, name: str) -> bool:
        """Whether a part is there; if not, it may be committed."""
        try:
            self._storage.get(f"{self._root}parts/{name}", byte_range=(0, 1))
        except ObjectNotFoundError:
            return False
        return True

    def put_part(self, part: Part) -> bool:
        """Store a part; return False if these keys already have another one."""
        header = packed({k: v for k, v in asdict(part).items() if k != "change_set"})
        data = struct.pack("<I", len(header)) + header + part.change_set
        name = self.part_name(part.keys)
        self._keys[name] = part.keys
        try:
            self._storage.put(f"{self._root}parts/{name}", data, if_absent=True)
        except PreconditionFailedError:
            stored = self.parts([name])
            if not stored:
                raise StorageError(
                    f"{self._root}parts/{name} in {self._storage.url}: refused as if it existed, "
                    "and it does not; try again, and if that does not help, see whether this "
                    "service supports conditional puts"
                ) from None
            return stored[0].token == part.token
        return True

    @staticmethod
    def part_name(keys: list[Any]) -> str:
        """Return the name of the part with some keys."""
        if len(keys) == 1:
            return digest_of(canonical(keys[0]))
        return "some-" + digest_of(canonical(keys))

    def parts(self, names: Iterable[str]) -> list[Part]:
        """Return parts by name; missing ones are left out."""
        found = self._read_many([f"{self._root}parts/{name}" for name in names])
        return [_part(data, key) for key, data in found]

    def part_keys(self, names: Iterable[str]) -> list[Any]:
        """Return the keys of parts by name; missing parts are left out."""
        names = list(names)
        for part in self.parts(name for name in names if name not in self._keys):
            self._keys[self.part_name(part.keys)] = part.keys
        return [key for name in names for key in self._keys.get(name, ())]

    def delete_parts(self, names: Iterable[str]) -> None:
        """Delete parts."""
        self._storage.delete([f"{self._root}parts/{name}" for name in names])

    # -- the log -----------------------------------------------------------------------------
    def log(self) -> list[Entry]:
        """Return all entries, oldest first."""
        folder = self._root + "log/"
        keys = [meta.key for meta in self._storage.list(folder)]
        new = self._read_many([key for key in keys if key not in self._settled])
        entries = {key: _entry(data, key) for key, data in new}
        for key, entry in entries.items():
            if entry.state == "pending" or entry.kind != "commit":
                # it may still become another one
                continue
            self._settled[key] = entry
            if entry.state == "done":
                texts = list(map(canonical, entry.keys))
                self.committed.update(texts)
                self.committed_digests.update(map(digest_of, texts))
        found = [self._settled.get(key) or entries[key] for key in keys]
        if [entry.number for entry in found] != list(range(1, len(found) + 1)):
            raise _damaged(folder, "an entry is missing")
        return found

    def closing(self) -> str | None:
        """Return how the job was closed; saves the request that `log` makes for each entry."""
        keys = [meta.key for meta in self._storage.list(self._root + "log/")]
        return closing([self.read_entry(int(keys[-1][-8:]))[0]]) if keys else None

    def read_entry(self, number: int) -> tuple[Entry, str | None]:
        """Return an entry, and its version."""
        key = self._entry_key(number)
        result = self._storage.get(key)
        return _entry(bytes(result.data), key), result.etag

    def append(self, entry: Entry) -> bool:
        """Put a new entry; return False if another one has its number."""
        key = self._entry_key(entry.number)
        try:
            self._storage.put(key, packed(asdict(entry)), if_absent=True)
        except PreconditionFailedError:
            return self.read_entry(entry.number)[0].token == entry.token
        return True

    def change(self, entry: Entry, version: str | None) -> str | None:
        """Replace an unchanged entry, and return the new version.

        Raises
        ------
        PreconditionFailedError
            If somebody else has changed it.
        """
        try:
            return self._storage.put(
                self._entry_key(entry.number), packed(asdict(entry)), if_match=version
            )
        except PreconditionFailedError:
            # the request may have been sent twice, because the first response was lost
            stored, stored_version = self.read_entry(entry.number)
            if stored != entry:
                raise
            return stored_version

    def _entry_key(self, number: int) -> str:
        return f"{self._root}log/{number:08d}"

    # -- many of them ------------------------------------------------------------------------
    def _read_many(self, keys: list[str]) -> list[tuple[str, bytes]]:
        def read(key: str) -> bytes | None:
            try:
                return bytes(self._storage.get(key).data)
            except ObjectNotFoundError:
                return None

        if len(keys) < 2:
            found = [read(key) for key in keys]
        else:
            with Threads(_THREADS) as pool:
                found = list(pool.map(read, keys))
        return [(key, data) for key, data in zip(keys, found, strict=True) if data is not None]


def _made(kind: type[R], values: Any, key: str) -> R:
    try:
        made = kind(**values)
    except TypeError as error:
        raise _damaged(key, error) from None
    for name, wanted in _types(cast(Any, kind)).items():
        if not _fits(getattr(made, name), wanted):
            raise _damaged(key, f"{name} is of another type")
    return made


@functools.cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value from JSON has the declared type of a field."""
    if wanted is Any:
        return True
    if get_origin(wanted) is UnionType:
        return any(_fits(value, each) for each in get_args(wanted))
    if wanted is float and isinstance(value, int):
        # a writer may have stored it as a whole number
        wanted = int
    # elements of other types are converted when the object is made
    elements = {str: str, int: int}.get(get_args(wanted)[0]) if get_args(wanted) else None
    if not isinstance(value, get_origin(wanted) or wanted) or isinstance(value, bool):
        return False
    return elements is None or all(isinstance(each, elements) for each in value)


def _entry(data: bytes, key: str) -> Entry:
    entry = _made(Entry, _unpack(data, key), key)
    return replace(entry, tries=[_made(Try, each, key) for each in entry.tries])


def _part(data: bytes, key: str) -> Part:
    try:
        (size,) = struct.unpack_from("<I", data)
        header = dict(_unpack(data[4 : 4 + size], key))
    except (struct.error, TypeError, ValueError) as error:
        raise _damaged(key, error) from None
    return _made(Part, {**header, "change_set": data[4 + size :]}, key)
