"""S3, Google Cloud Storage and Azure Blob Storage, through obstore.

obstore retries requests that fail for a moment, with backoff and jitter. If the answer to a
conditional put is lost and the put is retried, it reports that its condition does not hold,
as it would if somebody else had been faster. The caller can tell the two apart by looking
at what is stored.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Final, Unpack, cast

import obstore
from obstore.exceptions import NotModifiedError
from obstore.store import ObjectStore

from icechunk.base.methods import in_thread
from icechunk.base.texts import labelled
from icechunk.base.threads import map_in_threads
from icechunk.base.visible import in_a_line
from icechunk.config import StorageSettings
from icechunk.errors import (
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.storage.allowance import Allowance
from icechunk.storage.base import (
    BytesLike,
    GetOptions,
    GetResult,
    ObjectMeta,
    Storage,
    check_folder,
    check_key,
    refuse_write,
    same_version,
)
from icechunk.storage.failures import refused, translate
from icechunk.storage.places import Place, S3Place, quoted
from icechunk.storage.reading import Line, Read, joined
from icechunk.storage.waiting import Request, Runtime, answer, patient

#: What object stores allow at most.
_MAX_PARTS: Final = 10_000
#: An answer has to begin within this time unless the settings say otherwise, in seconds.
_SECONDS: Final = 30.0
#: And may take this long, in seconds; longer only while at least a kilobyte a second arrives.
_ANSWER: Final = 180.0
#: And longer for data sent over a line that may be slow or shared: bytes per second.
_SLOW: Final = 1 << 15
#: Chunks may have a storage class of their own, which depends on their folder.
_CHUNKS: Final = "chunks/"


_log = logging.getLogger(__name__)


class ObjectStorage(Storage):
    """Objects below a prefix of an object store.

    Made by the functions of `from_config`.

    Parameters
    ----------
    place : Place
    settings : StorageSettings, optional
    read_only : bool, default False
        Refuse to write.

    Examples
    --------
    >>> type(icechunk.s3_storage(bucket="data", prefix="weather", anonymous=True)).__name__
    'ObjectStorage'
    """

    copies_by_reading = True
    is_remote = True

    def __init__(
        self,
        place: Place,
        settings: StorageSettings | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        self._describe(place, settings or StorageSettings(), read_only)
        # so that errors show here, and not at the first request
        _ = self._reader
        if place.write_headers != place.read_headers:
            _ = self._writer

    def _describe(self, place: Place, settings: StorageSettings, read_only: bool) -> None:
        self._place = place
        self._settings = settings
        self._read_only = read_only
        self.supports_writes = not read_only
        self._effective = settings.effective()
        self._line = Line()

    @cached_property
    def _reader(self) -> ObjectStore:
        return self._place.open(self._effective, write=False)

    @cached_property
    def _writer(self) -> ObjectStore:
        # a client of its own: a write may take longer than an answer
        if not self.supports_writes:
            return self._reader
        return self._place.open(self._effective, write=True)

    @cached_property
    def _missing_credentials(self) -> str | None:
        return self._place.missing_credentials()

    @property
    def checks_conditions(self) -> bool:  # type: ignore[override]
        """False: nobody knows until it is tried. True if the caller asked for no conditions."""
        return not self._effective.use_conditional_update

    def _request(self, operation: str, key: str, sent: int = 0) -> Request:
        milliseconds = self._effective.timeouts.operation_timeout_ms
        seconds = _SECONDS if milliseconds is None else milliseconds / 1000
        return Request(operation, key, self.url, seconds + sent / _SLOW)

    def _allowance(self) -> Allowance:
        milliseconds = self._effective.timeouts.operation_timeout_ms
        seconds = _ANSWER if milliseconds is None else milliseconds / 1000
        return Allowance(seconds, seconds, strict=False)

    # -- reading -------------------------------------------------------------------
    def get(self, key: str, **options: Unpack[GetOptions]) -> GetResult:
        """Fetch an object or a range of it, a large range in parallel parts."""
        self._check_usable()
        _log.debug("get %s %s from %s", in_a_line(key), options.get("byte_range") or "", self.url)
        read = Read(self._place, key, line=self._line, **options)
        parts = read.parts(self._effective)
        return joined(key, map_in_threads(self._fetch, parts, len(parts)))

    async def get_async(self, key: str, **options: Unpack[GetOptions]) -> GetResult:
        """Fetch as `get` does, without blocking the event loop."""
        self._check_usable()
        _log.debug("get %s %s from %s", in_a_line(key), options.get("byte_range") or "", self.url)
        read = Read(self._place, key, line=self._line, **options)
        parts = read.parts(self._effective)
        import asyncio  # not needed for requests that are not asynchronous

        return joined(key, await asyncio.gather(*map(self._fetch_async, parts)))

    def get_if_changed(self, key: str, etag: str | None) -> GetResult | None:
        """Fetch an object, or return None if the service says that it is still `etag`."""
        self._check_usable()
        _log.debug("get %s, unless it is %s, from %s", in_a_line(key), etag, self.url)
        read = Read(self._place, key, line=self._line)
        if etag is not None:
            read.options["if_none_match"] = quoted(self._place.etag(etag))
        try:
            result = self._fetch(read)
        except NotModifiedError:
            return None
        # not every server knows the condition
        unchanged = etag is not None and result.etag is not None and same_version(result.etag, etag)
        return None if unchanged else result

    def _fetch(self, read: Read) -> GetResult:
        outcome: GetResult | Exception | None = None
        while outcome is None:
            request = self._request("read", read.key)
            try:
                meta, data = self._receive(read, request)
            except CancelledError:
                raise
            except Exception as error:
                outcome = read.failed(error, request.came_slowly)
            else:
                outcome = read.answered(meta, data)
        # not in the handler: the exception of obstore may show more than it should
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _receive(self, read: Read, request: Request) -> tuple[Any, Any]:
        options = cast(Any, read.options)
        response = answer(
            request, partial(obstore.get_async, self._reader, read.key, options=options)
        )
        request.allowance = self._allowance()
        return response.meta, read.body(response, request.allowance).read(partial(answer, request))

    async def _fetch_async(self, read: Read) -> GetResult:
        outcome: GetResult | Exception | None = None
        while outcome is None:
            request = self._request("read", read.key)
            try:
                async with patient(request) as waiting:
                    response = await obstore.get_async(
                        self._reader, read.key, options=cast(Any, read.options)
                    )
                    request.allowance = self._allowance()
                    body = read.body(response, request.allowance)
                    meta, data = response.meta, await body.read_async(waiting.goes_on)
            except Exception as error:
                outcome = read.failed(error, request.came_slowly)
            else:
                outcome = read.answered(meta, data)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def head(self, key: str) -> ObjectMeta:
        """Return what the service says of an object.

        Raises
        ------
        StorageError
            If there is no such object, or no answer.
        """
        self._check_usable()
        try:
            head = partial(obstore.head_async, self._reader, check_key(key))
            return self._described(answer(self._request("read", key), head))
        except (CancelledError, StorageError, InvalidInputError):
            raise
        except Exception as error:
            failure = translate(error, "read", key, self._place)
        raise failure

    def _described(self, meta: Any) -> ObjectMeta:
        version = self._place.version(meta)
        return ObjectMeta(meta["path"], meta["size"], version, meta["last_modified"])

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield the objects of a folder; see `Storage.list`."""
        return iter(self.list_up_to(None, prefix))

    def list_up_to(self, limit: int | None, prefix: str = "") -> builtins.list[ObjectMeta]:
        """Return the objects of a folder as `list` does, if they are not too many.

        Raises
        ------
        StorageError
            If there are more than `limit`.
        """
        self._check_usable()
        _log.debug("list %s in %s", prefix or "all objects", self.url)
        check_folder(prefix)
        found: dict[str, ObjectMeta] = {}
        failure = None
        try:
            pages = [obstore.list(self._reader, prefix or None, chunk_size=1000)]
            while True:
                request = self._request("list", prefix or "objects")
                batch = answer(request, lambda: pages[0].__anext__(), pages.clear)
                found.update((meta["path"], self._described(meta)) for meta in batch)
                if limit is not None and len(found) > limit:
                    raise StorageError(f"{self.url}/{prefix}: more than {limit} objects")
        except StopAsyncIteration:
            pass
        except (CancelledError, StorageError):
            raise
        except Exception as error:
            failure = translate(error, "list", prefix or "objects", self._place)
        if failure is not None:
            raise failure
        # not every service sorts, and some sort folder by folder
        return [found[key] for key in sorted(found)]

    # -- writing ---------------------------------------------------------------------
    def put(
        self,
        key: str,
        data: BytesLike,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str | None:
        """Write an object whole, a large one in parts; see `Storage.put`."""
        view = self._writable(key, data)
        if self._unprotected(if_absent, if_match):
            self._compare(key, if_match)
            if_absent, if_match = False, None
        options = self._put_options(key, view, if_absent, if_match)
        try:
            put = partial(obstore.put_async, self._writer, key, view, **options)
            return self._place.version(answer(self._request("write", key, len(view)), put))
        except (CancelledError, StorageError):
            raise
        except Exception as error:
            failure = self._put_failure(error, key, if_match)
        raise failure

    async def put_async(
        self,
        key: str,
        data: BytesLike,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str | None:
        """Write as `put` does, without blocking the event loop."""
        view = self._writable(key, data)
        if self._unprotected(if_absent, if_match):
            await in_thread(self._compare, key, if_match)
            if_absent, if_match = False, None
        options = self._put_options(key, view, if_absent, if_match)
        try:
            async with patient(self._request("write", key, len(view))):
                done = await obstore.put_async(self._writer, key, view, **options)
            return self._place.version(done)
        except StorageError:
            raise
        except Exception as error:
            failure = self._put_failure(error, key, if_match)
        raise failure

    def _writable(self, key: str, data: BytesLike) -> memoryview:
        self._check_usable()
        check_key(key)
        if not self.supports_writes:
            raise refuse_write(self, key)
        view = memoryview(data).cast("B")
        _log.debug("put %s, %d bytes, to %s", in_a_line(key), len(view), self.url)
        return view

    def _unprotected(self, if_absent: bool, if_match: str | None) -> bool:
        """Whether the settings say that the service cannot check this condition."""
        settings = self._effective
        return (if_absent and not settings.use_conditional_create) or (
            if_match is not None and not settings.use_conditional_update
        )

    def _compare(self, key: str, if_match: str | None) -> None:
        """Check a condition before the put: another writer may still come in between."""
        try:
            self._fetch(Read(self._place, key, (0, 0), if_match))
        except ObjectNotFoundError:
            if if_match is None:
                return
            raise PreconditionFailedError(f"{key}: not replaced, it does not exist") from None
        if if_match is None:
            raise PreconditionFailedError(f"{key}: the object exists already in {self.url}")

    def _put_options(
        self, key: str, view: memoryview, if_absent: bool, if_match: str | None
    ) -> dict[str, Any]:
        settings = self._effective
        options: dict[str, Any] = {"use_multipart": False}
        if if_absent:
            options["mode"] = "create"
        elif if_match is not None:
            options["mode"] = self._place.put_mode(if_match)
        elif len(view) >= max(settings.minimum_size_for_multipart_upload, 1):
            options["use_multipart"] = True
            options["chunk_size"] = max(
                settings.ideal_concurrent_request_size, -(-len(view) // _MAX_PARTS)
            )
            options["max_concurrency"] = settings.max_concurrent_requests_for_object
        storage_class = (
            settings.chunks_storage_class
            if key.startswith(_CHUNKS)
            else settings.metadata_storage_class
        )
        if storage_class is not None:
            options["attributes"] = {"Storage-Class": storage_class}
        return options

    def _put_failure(self, error: Exception, key: str, if_match: str | None) -> IcechunkError:
        if if_match is not None and isinstance(error, FileNotFoundError):
            return PreconditionFailedError(f"{key}: not replaced, it does not exist in {self.url}")
        return translate(error, "write", key, self._place)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, many in one request where the service can; see `Storage.delete`."""
        doomed = [check_key(key) for key in keys]
        self._check_usable()
        if doomed and not self.supports_writes:
            raise refuse_write(self, doomed[0])
        _log.debug("delete %d objects of %s", len(doomed), self.url)
        if not self._delete(doomed):
            # one was missing, and nobody knows how far the request got
            for key in doomed:
                self._delete([key])

    def _delete(self, keys: builtins.list[str]) -> bool:
        """Delete objects; return False if the service said that one is missing."""
        if not keys:
            return True
        try:
            delete = partial(obstore.delete_async, self._writer, keys)
            answer(self._request("delete", keys[0]), delete)
            return True
        except FileNotFoundError:
            return False
        except (CancelledError, StorageError):
            raise
        except Exception as error:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            failure = translate(error, "delete", keys[0] + more, self._place)
        raise failure

    def copy(self, source: str, target: str, *, if_match: str | None = None) -> None:
        """Copy one object; on the server, unless a condition must hold."""
        if if_match is not None:
            # obstore copies unconditionally
            self.put(target, self.get(source, if_match=if_match).data)
            return
        self._check_usable()
        check_key(source)
        check_key(target)
        if not self.supports_writes:
            raise refuse_write(self, target)
        _log.debug("copy %s to %s in %s", in_a_line(source), in_a_line(target), self.url)
        try:
            copy = partial(obstore.copy_async, self._writer, source, target)
            answer(self._request("copy", source), copy)
            return
        except (CancelledError, StorageError):
            raise
        except Exception as error:
            failure = translate(error, "copy", source, self._place)
        raise failure

    # -- the storage itself ------------------------------------------------------------
    def with_settings(self, settings: StorageSettings) -> ObjectStorage:
        """Return the same place with other retries, timeouts and concurrency."""
        return ObjectStorage(self._place, settings, read_only=self._read_only)

    def with_user_agent(self, user_agent: str) -> ObjectStorage:
        """Return the same place, with requests that say who makes them."""
        place = replace(self._place, user_agent=user_agent)
        return ObjectStorage(place, self._settings, read_only=self._read_only)

    def as_read_only(self) -> ObjectStorage:
        """Return the same place, refusing to write."""
        return ObjectStorage(self._place, self._settings, read_only=True)

    @property
    def url(self) -> str:
        """The location as a URL, without credentials."""
        return self._place.url

    @property
    def endpoint(self) -> str | None:
        """The endpoint that was passed for S3."""
        return self._place.options.endpoint_url if isinstance(self._place, S3Place) else None

    def __repr__(self) -> str:
        return labelled("icechunk.Storage", self._place.lines())

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._place, self._settings, self._read_only)

    def _check_usable(self) -> None:
        if Runtime.lost:
            raise StorageError(
                f"{self.url} cannot be used in a process that was forked after its parent had "
                "used an object store: start processes with 'spawn' or 'forkserver'"
            )
        if self._missing_credentials is not None:
            # the client would look for them at an address where nobody answers
            raise refused(self._missing_credentials, ErrorKind.INVALID_CREDENTIALS)
        Runtime.started = True


def _unpickle(place: Place, settings: StorageSettings, read_only: bool) -> ObjectStorage:
    storage = ObjectStorage.__new__(ObjectStorage)
    # the clients are made on first use: an error here would end the process that
    # receives the storage
    storage._describe(place, settings, read_only)
    return storage
