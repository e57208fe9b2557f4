"""The files of an archive: their names, versions and kinds."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
from fsspec.utils import glob_translate

from icechunk import InvalidInputError
from icechunk.base.public_url import public_url
from icechunk.errors import IcechunkError, StorageError
from icechunk.kerchunk.locations import normalizer
from icechunk.virtual.outside import Found, OutsideFiles, is_web
from icechunk_dask.archives.range_files import AHEAD, RangeFile

__all__ = ["GONE", "UNKNOWN", "Source", "Sources", "Version", "is_local", "kind_of", "location_of"]

#: Where an HDF5 file may begin (HDF5 file format specification, "Superblock").
_HDF5_STARTS: Final = (0, 512, 1024, 2048, 4096)
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_CLASSIC: Final = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
#: A GRIB message may follow some bytes of a bulletin header.
_GRIB_HEADER: Final = 512
_MAGIC: Final = frozenset("*?[")
_NANO: Final = 1_000_000_000
#: From this many files on, their folder is listed instead of asking for each file.
_LISTED: Final = 4
#: Local files up to this size are hashed whole, larger ones at their ends and places between.
_WHOLE: Final = 1 << 20
_END: Final = 1 << 16
_PLACES, _PLACE = 16, 1 << 12
#: Maximum objects in such a listing: this many, or this many per file if that is more.
_FREELY_LISTED: Final = 10_000
_PER_FILE: Final = 10
#: Maximum objects in a listing for a pattern, matching or not.
_MOST_LISTED: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Version:
    """What tells versions of a file apart.

    Attributes
    ----------
    size : int
        In bytes, -1 if unknown.
    modified : int
        Nanoseconds since the epoch, 0 if unknown. Servers report whole seconds.
    etag : str
        Empty if there is none.
    touched : int
        When anything about a local file last changed, such as its permissions, name or time,
        in nanoseconds since the epoch; 0 if unknown.
    digest : int
        A hash of bytes of a local file, 0 if unknown; see `Source.digest`.
    """

    size: int = -1
    modified: int = 0
    etag: str = ""
    touched: int = 0
    digest: int = 0

    @property
    def last_modified(self) -> int:
        """The whole second after which the file was not modified; 0 if unknown.

        Rounded up, so an unchanged file is never taken for a changed one.
        """
        return -(-self.modified // _NANO)

    def differs(self, other: Version) -> bool:
        """Whether two versions cannot have the same bytes; unknown values never differ."""
        if self.etag and other.etag:
            return self.etag != other.etag
        sizes = self.size != other.size and min(self.size, other.size) >= 0
        return sizes or (self.modified != other.modified and min(self.modified, other.modified) > 0)

    def is_doubtful(self, other: Version) -> bool:
        """Whether the file was touched in between in a way that size and time do not show."""
        return self.touched != other.touched and min(self.touched, other.touched) > 0


UNKNOWN: Final = Version()
#: The version of a file that no longer exists. It differs from all known versions.
GONE: Final = Version(0)


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes
    ----------
    url : str
        As it was given.
    path : str
        The path of a local file; the URL of any other.
    files : OutsideFiles
        For reading a file that is not local.
    """

    url: str
    path: str
    files: OutsideFiles

    @property
    def is_local(self) -> bool:
        """Whether the file is on this machine."""
        return is_local(self.url)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.is_local and os.path.isdir(self.path)

    def link_out(self) -> str | None:
        """Return a file below a folder that is elsewhere, by a link; None if there is none."""
        inside = os.path.join(os.path.realpath(self.path), "")
        for name, _ in _files_below(self.path):
            if not os.path.realpath(os.path.join(self.path, name)).startswith(inside):
                return name
        return None

    def opened(self) -> BinaryIO:
        """Open the file for reading.

        Raises
        ------
        InvalidInputError
            If a local path is a folder, a pipe or a device.
        StorageError
            If a remote file does not exist, or its server does not report its size.
        """
        if self.is_local:
            if self.is_folder:
                raise InvalidInputError(_instead_of_folder(self.path))
            # a pipe would block the caller
            file = open(self.path, "rb", opener=_at_once)  # noqa: SIM115 (returned open)
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.close()
                raise InvalidInputError(f"{self.path} is no file: it may be a pipe or a device")
            return file
        ahead = self.files.block_size or AHEAD
        found = self.files.start(self.url, ahead)
        storage, key = self.files.place(self.url)
        size = found.size or 0
        remote = RangeFile(storage, key, size, found.etag, ahead=ahead, start=found.data)
        return cast(BinaryIO, remote)

    def version(self) -> Version:
        """Return the current version of the file."""
        if self.is_local:
            found = os.stat(self.path)
            if stat.S_ISDIR(found.st_mode):
                return _version_of_folder(self.path)
            return Version(found.st_size, found.st_mtime_ns, touched=found.st_ctime_ns)
        return _version(self.files.head(self.url))

    def digest(self) -> int:
        """Return a hash of the bytes of a local file; 0 for any other file.

        It covers all bytes of a small file, and those at the ends and at places in between of a
        large one. For a folder, such as a Zarr store, it covers names, sizes and times of files.
        """
        if not self.is_local:
            return 0
        hashed = hashlib.blake2b(digest_size=4)
        if os.path.isdir(self.path):
            entries = (f"{n}\0{s.st_size} {s.st_mtime_ns}\n" for n, s in _files_below(self.path))
            hashed.update("".join(sorted(entries)).encode(errors="surrogateescape"))
            return int.from_bytes(hashed.digest(), "little") or 1
        with self.opened() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size <= _WHOLE:
                hashed.update(file.read())
            else:
                hashed.update(file.read(_END))
                for number in range(1, _PLACES):
                    file.seek(size * number // _PLACES)
                    hashed.update(file.read(_PLACE))
                file.seek(size - _END)
                hashed.update(file.read(_END))
        return int.from_bytes(hashed.digest(), "little") or 1

    def has_changed(self, known: Version, now: Version) -> bool:
        """Whether the bytes of the file have changed.

        Parameters
        ----------
        known : Version
            The earlier version, with its digest.
        now : Version
        """
        if known.differs(now):
            return True
        if not known.digest or not known.is_doubtful(now):
            return False
        try:
            return self.digest() != known.digest
        except OSError:
            return True


@dataclass(frozen=True)
class Sources:
    """Finds and opens files. It is sent to workers.

    Attributes
    ----------
    options : dict
        For reading remote files, as `OutsideFiles` takes them.
    prefixes : tuple of str
        Below which other files may lie: those that a file names, as HDF5 virtual datasets do,
        and those that web servers redirect to.
    """

    options: dict[str, Any]
    prefixes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # the options may hold secrets
        return "Sources()"

    @property
    def _files(self) -> OutsideFiles:
        return OutsideFiles(self.options, self.prefixes)

    def open(self, url: str) -> Source:
        """Return a file, without checking that it exists.

        Raises
        ------
        InvalidInputError
            If it is below one of the prefixes, but a link leads out of there; or if files of its
            kind are not supported.
        """
        if not is_local(url):
            self._files.place(url)
            return Source(url, url, self._files)
        path = _local_path(url)
        self._check_links(path)
        return Source(url, path, self._files)

    def check_allowed(self, location: str) -> None:
        """Check that a file may be read because another one names it.

        Parameters
        ----------
        location : str
            As in references.

        Raises
        ------
        InvalidInputError
            If it lies below none of the prefixes.
        """
        if not any(location.startswith(prefix) for prefix in self.prefixes):
            raise InvalidInputError(
                f"it refers to {public_url(location)}, which is not among the authorised"
            )

    def _check_links(self, path: str) -> None:
        """Refuse files that were not authorised, and that virtual chunks could not read either."""
        location, real = location_of(path), os.path.realpath(path)
        matching = [p for p in self.prefixes if p.startswith("file:") and location.startswith(p)]
        roots = [os.path.realpath(url2pathname(urlsplit(prefix).path)) for prefix in matching]
        if matching and not any(os.path.commonpath([root, real]) == root for root in roots):
            raise InvalidInputError(
                f"{path} leads out of {matching[0]} by a link, to {real}: pass that path, with a "
                "virtual chunk container for it"
            )

    def expand(
        self,
        urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        folders: bool = False,
    ) -> list[str]:
        """Return URLs with globs replaced by the files that match, each once.

        Parameters
        ----------
        urls : str, path or iterable of them
        folders : bool
            Whether a folder may be given: for parsers of formats that are folders.

        Raises
        ------
        InvalidInputError
            If a pattern matches nothing, if the only URL is that of a folder, or if something
            is no URL or path.
        """
        alone = isinstance(urls, str | bytes | os.PathLike)
        given: Any = [urls] if alone else urls
        if not isinstance(given, Iterable):
            raise InvalidInputError(f"{urls!r} is neither a URL or path nor a list of them")
        found: list[str] = []
        for url in given:
            text = _text(url)
            if not is_local(text):
                # unsupported files are refused before anything else
                self._files.check(text)
            if self._is_pattern(text):
                found.extend(self._matching(text))
                continue
            if alone and not folders and self._is_folder(text):
                raise InvalidInputError(_instead_of_folder(text))
            found.append(text)
        if not found:
            raise InvalidInputError("there are no urls")
        return list(dict.fromkeys(found))

    def _is_pattern(self, url: str) -> bool:
        if not _MAGIC & set(url) or is_web(url):
            return False
        # a file name may contain such characters
        return not (is_local(url) and os.path.exists(_local_path(url)))

    def _is_folder(self, url: str) -> bool:
        return url.endswith("/") or (is_local(url) and os.path.isdir(_local_path(url)))

    def _matching(self, pattern: str) -> list[str]:
        if is_local(pattern):
            fs = fsspec.filesystem("file")
            scheme = pattern.partition("://")[0] + "://" if "://" in pattern else ""
            wanted = _local_path(pattern)
            named = [scheme + path for path in fs.glob(wanted) if not fs.isdir(path)]
            named = [path for path in named if not _is_hidden(path, wanted)]
        else:
            named = self._matching_outside(pattern)
        if not named:
            braces = "; braces mean nothing in patterns: pass a list" if "{" in pattern else ""
            raise InvalidInputError(f"no file matches {public_url(pattern)}{braces}")
        return sorted(named)

    def _matching_outside(self, pattern: str) -> list[str]:
        """Return the matches in an object store; everything below a folder is listed."""
        first = min(pattern.index(letter) for letter in _MAGIC & set(pattern))
        folder = pattern[:first].rpartition("/")[0] + "/"
        if folder.endswith("://"):
            raise InvalidInputError(f"{public_url(pattern)}: the name of a bucket is no pattern")
        failure = None
        try:
            listed = self._files.listed(folder, _MOST_LISTED) or []
        except StorageError as exc:
            failure = str(exc)
        if failure is not None:
            raise InvalidInputError(
                f"{public_url(pattern)}: its files cannot be listed: {failure}; a list of URLs "
                "needs no listing"
            )
        matches = re.compile(glob_translate(pattern)).match
        return [url for url, _ in listed if matches(url)]

    def has_changed(self, url: str, known: Version, now: Version) -> bool:
        """Whether the bytes of a file have changed; see `Source.has_changed`."""
        if not known.differs(now) and not known.is_doubtful(now):
            return False  # true of most files, which need not be opened
        return self.open(url).has_changed(known, now)

    def with_digests(self, versions: Mapping[str, Version]) -> dict[str, Version]:
        """Return versions of files, with digests of the local ones."""
        return {
            url: replace(version, digest=_quiet_digest(self.open(url)))
            if is_local(url) and version not in (GONE, UNKNOWN)
            else version
            for url, version in versions.items()
        }

    def versions(self, urls: Sequence[str]) -> dict[str, Version]:
        """Return the versions of files, as far as they are known.

        Many files of one remote folder are looked up in its listing.
        """
        found: dict[str, Version] = {}
        folders: dict[str, list[str]] = {}
        for url in urls:
            if is_local(url):
                # a path needs no fsspec filesystem
                path = _local_path(url) if "://" in url else url
                found[url] = _quietly(Source(url, path, self._files))
            else:
                folders.setdefault(url.rpartition("/")[0] + "/", []).append(url)
        for folder, names in folders.items():
            listed: dict[str, Found] = {}
            if len(names) >= _LISTED:
                try:
                    limit = max(_FREELY_LISTED, _PER_FILE * len(names))
                    listed = dict(self._files.listed(folder, limit) or ())
                except IcechunkError:
                    # the listing may be large, or not allowed
                    listed = {}
            for url in names:
                entry = listed.get(url)
                found[url] = _quietly(self.open(url)) if entry is None else _version(entry)
        return found


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def is_local(url: str) -> bool:
    """Whether a URL or path is on this machine."""
    return "://" not in url or url.startswith(("file://", "local://"))


def _text(url: Any) -> str:
    """Return a URL or path as text."""
    if not isinstance(url, str | os.PathLike) or not isinstance(os.fspath(url), str):
        raise InvalidInputError(
            f"{url!r} is no URL or path of a file; pass a string, a path, or a flat list of them"
        )
    text = os.fspath(url)
    if not text.strip():
        raise InvalidInputError(f"{text!r} is no URL or path of a file")
    return text


#: Documents at the root of a Zarr store.
_OF_ZARR: Final = ("zarr.json", ".zgroup", ".zmetadata")


def _instead_of_folder(url: str) -> str:
    shown = public_url(url)
    if is_web(url):
        return f"{shown} is a folder, and web servers do not list theirs; pass URLs of files"
    if is_local(url) and any(os.path.exists(os.path.join(url, name)) for name in _OF_ZARR):
        return (
            f"{shown} is a Zarr store: ingest copies it with the engine 'zarr', and virtualize "
            "refers to it with a parser of VirtualiZarr"
        )
    return f"{shown} is a folder; pass a pattern such as {shown.rstrip('/') + '/*.nc'!r}"


def _is_hidden(path: str, pattern: str) -> bool:
    """Whether a wildcard stands for the dot of a hidden name, which it does not in shells."""
    return _dots(path) > _dots(os.path.normpath(pattern))


def _dots(path: str) -> int:
    return sum(name.startswith(".") for name in path.split("/"))


def _local_path(url: str) -> str:
    return str(fsspec.core.url_to_fs(url)[1])


def _quietly(source: Source) -> Version:
    try:
        return source.version()
    except FileNotFoundError:
        return GONE
    except Exception:  # reading the file will report the problem
        return UNKNOWN


def _quiet_digest(source: Source) -> int:
    try:
        return source.digest()
    except (OSError, InvalidInputError):  # reading the file will report it
        return 0


def _version_of_folder(path: str) -> Version:
    """Return the version of all files below a folder: their total size, and the newest times."""
    size = modified = touched = 0
    for _, found in _files_below(path):
        size += found.st_size
        modified = max(modified, found.st_mtime_ns)
        touched = max(touched, found.st_ctime_ns)
    return Version(size, modified, touched=touched)


def _files_below(path: str) -> Iterator[tuple[str, os.stat_result]]:
    for folder, _, names in os.walk(path):
        for name in names:
            whole = os.path.join(folder, name)
            with suppress(OSError):  # a link to nothing holds nothing
                yield os.path.relpath(whole, path), os.stat(whole)


def _version(found: Found) -> Version:
    modified = 0
    if found.last_modified is not None:
        modified = round(found.last_modified.timestamp() * _NANO)
    size = -1 if found.size is None else found.size
    return Version(size, modified, (found.etag or "").strip('"'))


def location_of(url: str) -> str:
    """Return a URL or path in the form used in references."""
    return normalizer()(url)


#: First bytes of compressed files and archives.
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


def kind_of(file: Any) -> str:
    """Return ``"classic"``, ``"hdf5"`` or ``"grib"``, from the content of a file.

    Raises
    ------
    ValueError
        If it is of none of these kinds.
    """
    head = file.read(_GRIB_HEADER)
    if head[:4] in _CLASSIC:
        return "classic"
    for start in _HDF5_STARTS:
        file.seek(start)
        if file.read(8) == _HDF5:
            return "hdf5"
    if b"GRIB" in head:
        return "grib"
    if not head:
        raise ValueError("it is empty")
    packed = next((name for start, name in _PACKED.items() if head.startswith(start)), None)
    if packed is not None:
        raise ValueError(f"it is packed with {packed}: unpack it first")
    raise ValueError(f"it is not a NetCDF, HDF5 or GRIB file; it begins with {head[:8]!r}")
