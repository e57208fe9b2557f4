"""A million mutated files through every decoder; ``make mutations`` runs it whole.

Real files are taken apart, damaged where no checksum protects them, and packed again: the
payload is compressed anew, so that the damage reaches the decoder. Whatever comes out is
read to its last field. Only an error of this package, with a message, or a value may come of
it, within bounds of time and memory.

    python -m tests.format.mutations --count 1000000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

from icechunk import (
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
    VirtualChunkContainer,
    local_filesystem_store,
)
from icechunk.changes.codec import MAGIC, VERSION, decode_change_set
from icechunk.changes.zarr_metadata import parse_node_metadata
from icechunk.errors import FormatError, IcechunkError
from icechunk.format.encoding import flexbuf
from icechunk.format.encoding.envelope import FileType, read_header, unwrap, wrap
from icechunk.format.manifest import decode_manifest, read_location_compression
from icechunk.format.repo_info import decode_repo_info
from icechunk.format.snapshot import decode_snapshot
from icechunk.format.transaction_log import decode_transaction_log
from icechunk.format.v1 import parse_config, parse_ref
from icechunk.repository import jobs_records
from icechunk_dask.archives.classic_header import read_classic_header
from tests.archives.classic_files import Var, classic

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).parents[1] / "data"
#: Seconds of one decoding, and bytes that the process may grow by.
MAX_SECONDS = 2.0
MAX_BYTES = 500_000_000
# small counts, signs, and what overflows when it is added or multiplied
_WORDS = (0, 1, 2, 4, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1)
_TEXTS = (b"null", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"true", b"NaN", b"99999999999999999999")


# -- damage ----------------------------------------------------------------------------
def damaged(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return data with one to three changes of it: cut, overwritten, moved, joined."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = max(len(out), 1)
        at = rng.randrange(size)
        how = rng.randrange(9)
        if how == 0:
            del out[at:]
        elif how == 1:
            out[at : at + 1] = bytes((rng.randrange(256),))
        elif how == 2:
            out[at : at + 1] = bytes(((out[at] if out else 0) ^ 1 << rng.randrange(8),))
        elif how == 3:
            word = at // 4 * 4
            value = rng.choice(_WORDS) if rng.random() < 0.5 else rng.randrange(size + 8)
            out[word : word + 4] = struct.pack("<I", value)
        elif how == 4:
            wide = at // 8 * 8
            out[wide : wide + 8] = struct.pack(
                "<q", rng.choice((-1, 0, 2**63 - 1, -(2**63), 2**40))
            )
        elif how == 5:
            source, length = rng.randrange(size), rng.randint(1, 64)
            out[at : at + length] = out[source : source + length]
        elif how == 6:
            out[at:at] = out[at : at + rng.randint(1, 40)] or b"\0"
        elif how == 7:
            del out[at : at + rng.randint(1, 16)]
        else:
            other = rng.choice(others)
            out = out[:at] + other[rng.randrange(max(len(other), 1)) :]
    return bytes(out)


def damaged_text(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return a document of JSON with a value replaced, or bytes damaged."""
    if rng.random() < 0.3:
        return damaged(rng, data, others)
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        document = _replaced(rng, document)
    return json.dumps(document).encode()


def _replaced(rng: random.Random, value: Any) -> Any:
    """Return a value with something inside of it of another kind, or gone."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _replaced(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _replaced(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and rng.random() < 0.5:
        return rng.choice((value + 1, -value, value * 2**33, 0, -1))
    return rng.choice(
        (None, True, -1, 2**70, 1.5, "", "x", "\x00", [], {}, [None], {"a": 1}, value)
    )


# -- kinds of files --------------------------------------------------------------------
@dataclass
class Kind:
    """Files of one kind: what is damaged of them, and how they are read.

    Attributes
    ----------
    name : str
    payloads : list of bytes
        What is damaged: of compressed files the inside.
    read : callable
        Gets a damaged payload; decodes it to its last field.
    damage : callable
    allowed : type
        The error that may come of it.
    """

    name: str
    payloads: list[bytes]
    read: Callable[[bytes], Any]
    damage: Callable[[random.Random, bytes, Sequence[bytes]], bytes] = damaged
    allowed: type[Exception] = FormatError


def _read_snapshot(data: bytes) -> Any:
    snapshot = decode_snapshot(data, "x")
    snapshot.get("/nowhere")
    nodes = list(snapshot.nodes())
    for node in nodes:
        snapshot.get_by_id(node.id)
    return dict(snapshot.metadata), snapshot.manifest_files, list(snapshot.children("/"))


def _read_manifest(data: bytes) -> Any:
    manifest = decode_manifest(data, "x")
    for refs in manifest.arrays.values():
        _read_refs(refs)
    read_location_compression(data, "x")
    return manifest.nbytes


def _read_refs(refs: Any) -> None:
    for row in range(0, len(refs), max(len(refs) // 20, 1)):
        refs.find(refs.coords[row].tolist())
    if len(refs) < 5000:
        repr(refs.take(np.arange(len(refs))))
        for row in range(min(len(refs), 50)):
            for heap in ("locations", "etags"):
                column = getattr(refs, heap, None)
                if column is not None and len(column):
                    column[min(row, len(column) - 1)]


def _read_log(data: bytes) -> Any:
    log = decode_transaction_log(data, "x")
    for ranks in log.updated_chunks.values():
        for coords in ranks:
            coords.sum()
    return repr(log)


def _read_repo(data: bytes) -> Any:
    info = decode_repo_info(data, "x")
    for id in info.branches.values():
        list(info.ancestry(id))
    for entry in info.snapshots.values():
        dict(entry.metadata)
    if info.config is not None:
        RepositoryConfig.from_dict(flexbuf.loads(info.config, "x"))
    return dict(info.metadata), info.updates, info.status


def _read_changes(data: bytes) -> Any:
    changes = decode_change_set(data)
    for edits in changes.chunks.values():
        _read_refs(edits.refs())
    return changes


def _pack_changes(payload: bytes) -> bytes:
    return MAGIC + bytes([VERSION]) + zstd.compress(payload)


def _packed(kind: FileType, version: int, read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    return lambda payload: read(bytes(wrap(payload, kind, level=1, spec_version=version)))


def kinds() -> list[Kind]:
    """Return every kind, with files of both spec versions by both clients."""
    files = [*_recorded(), *_ours()]
    readers: dict[str, tuple[FileType, Callable[[bytes], Any]]] = {
        "snapshots": (FileType.SNAPSHOT, _read_snapshot),
        "manifests": (FileType.MANIFEST, _read_manifest),
        "transactions": (FileType.TRANSACTION_LOG, _read_log),
        "repo": (FileType.REPO, _read_repo),
    }
    found: dict[str, Kind] = {}
    for key, data in files:
        folder = key.split("/")[0]
        if folder in ("overwritten", "repo"):
            folder = "repo"
        if folder in readers:
            file_type, read = readers[folder]
            version = read_header(data, key).spec_version
            payload, _ = unwrap(data, file_type, key)
            name = f"{folder} v{version}"
            kind = found.setdefault(name, Kind(name, [], _packed(file_type, version, read)))
            kind.payloads.append(bytes(payload))
            whole = found.setdefault(f"stored {folder}", Kind(f"stored {folder}", [], read))
            whole.payloads.append(data)
        elif key.startswith("refs/") and data:
            _add(found, "refs", data, lambda d: parse_ref(d, "x"))
        elif key == "config.yaml":
            _add(
                found,
                "config.yaml",
                data,
                lambda d: RepositoryConfig.from_dict(parse_config(d, "x")),
            )
        elif key.startswith("jobs/"):
            _add_job_record(found, key, data)
    for config in _configs(found):
        _add(found, "config", config, lambda d: RepositoryConfig.from_dict(flexbuf.loads(d, "x")))
    for payload in _change_sets():
        _add(found, "change sets", payload, lambda d: _read_changes(_pack_changes(d)))
        _add_text(found, "change set headers", payload)
    for document in _documents(found):
        kind = _add(found, "zarr.json", document, lambda d: parse_node_metadata(d, "/a"))
        kind.damage, kind.allowed = damaged_text, IcechunkError
    for file in _classic():
        kind = _add(
            found, "classic NetCDF", file, lambda d: read_classic_header(io.BytesIO(d), "x")
        )
        kind.allowed = IcechunkError
    # configs, references and records may name what this version does not know
    for name in ("config", "config.yaml", "repo v2", "stored repo"):
        found[name].allowed = IcechunkError
    return list(found.values())


def _add(found: dict[str, Kind], name: str, data: bytes, read: Callable[[bytes], Any]) -> Kind:
    kind = found.setdefault(name, Kind(name, [], read))
    kind.payloads.append(data)
    return kind


def _add_text(found: dict[str, Kind], name: str, payload: bytes) -> None:
    """Damage the header of a change set where it means something, and keep the columns."""
    (size,) = struct.unpack_from("<I", payload)
    header, rest = payload[4 : 4 + size], payload[4 + size :]

    def read(damaged_header: bytes) -> Any:
        return _read_changes(
            _pack_changes(struct.pack("<I", len(damaged_header)) + damaged_header + rest)
        )

    # the columns are those of this header: a kind for each
    found[f"{name} {len(found)}"] = Kind(name, [header], read, damaged_text)


def _add_job_record(found: dict[str, Kind], key: str, data: bytes) -> None:
    folder = next((name for name in ("attempts", "parts", "log") if f"/{name}/" in key), "job")
    if folder == "parts":
        (size,) = struct.unpack_from("<I", data)
        text, rest = zstd.decompress(data[4 : 4 + size]), data[4 + size :]

        def read(header: bytes) -> Any:
            packed = zstd.compress(header)
            return jobs_records._part(struct.pack("<I", len(packed)) + packed + rest, "x")

        found[f"job parts {len(found)}"] = Kind("job parts", [text], read, damaged_text)
        return
    made: dict[str, Callable[[bytes], Any]] = {
        "attempts": lambda d: jobs_records._made(
            jobs_records.Attempt, jobs_records._unpack(zstd.compress(d), "x"), "x"
        ),
        "log": lambda d: jobs_records._entry(zstd.compress(d), "x"),
    }
    define = jobs_records.Definition
    kind = _add(
        found,
        f"job {folder}",
        zstd.decompress(data),
        made.get(
            folder,
            lambda d: jobs_records._made(define, jobs_records._unpack(zstd.compress(d), "x"), "x"),
        ),
    )
    kind.damage = damaged_text


# -- real files ------------------------------------------------------------------------
def _recorded() -> Iterator[tuple[str, bytes]]:
    """Yield what official clients wrote."""
    for version in ("v1", "v2", "migrated"):
        root = DATA / version / "repository"
        for path in sorted(root.rglob("*")):
            key = path.relative_to(root).as_posix()
            if path.is_file() and not key.startswith("chunks/"):
                yield key, path.read_bytes()


def _ours() -> Iterator[tuple[str, bytes]]:
    """Yield what this project writes, of both versions, and the records of a job."""
    container = VirtualChunkContainer("file:///data/", local_filesystem_store("/data"))
    config = RepositoryConfig(virtual_chunk_containers={"file:///data/": container})
    for version in (1, 2):
        storage = MemoryStorage()
        repository = Repository.create(storage, config, spec_version=version)
        session = repository.writable_session("main")
        _fill(session)
        session.commit("first", {"who": "me", "n": [1, None, {"x": 2.5}]})
        repository.create_tag("t", session.snapshot_id)
        if version == 2:
            rearranging = repository.rearrange_session("main")
            rearranging.move("/p/q", "/p/r")
            rearranging.commit("moved")
            repository.set_metadata({"title": "x"})
            job = repository.jobs.create("j", keys=[1, 2, 3], message="m")
            job.run(_write, keys=[1])
            job.publish()
            job.run(_write, keys=[2])
            with contextlib.suppress(IcechunkError):
                job.run(_fail, keys=[3])
        for meta in list(storage.list()):
            if not meta.key.startswith("chunks/"):
                yield meta.key, bytes(storage.get(meta.key).data)


def _fill(session: Session) -> None:
    """Write groups and arrays, with chunks of every kind."""
    group = zarr.open_group(session.store, mode="a")
    group.create_array("v", shape=(400,), chunks=(1,), dtype="i4", compressors=None)
    group.create_array("p/q", shape=(6, 6), chunks=(2, 3), dtype="f8")[:] = 1
    wide = group.create_array("p/w", shape=(4, 9000), chunks=(1, 900), dtype="f8", compressors=None)
    wide[:2] = 2
    for chunk in range(400):
        session.store.set_virtual_ref(
            f"v/c/{chunk}",
            f"file:///data/a/long/name/of/a/file-{chunk:05}.nc",
            offset=chunk * 4,
            length=4,
            checksum=f"etag-{chunk}" if chunk % 2 else None,
            validate_container=False,
        )


def _write(store: Any, key: int) -> None:
    zarr.open_array(store, path="p/w")[key] = key


def _fail(store: Any, key: int) -> None:
    raise ValueError("no")


def _change_sets() -> list[bytes]:
    """Return change sets, decompressed."""
    repository = Repository.create(MemoryStorage())
    session = repository.writable_session("main")
    _fill(session)
    found = [session.change_set_bytes()]
    session.commit("first")
    session = repository.writable_session("main")
    session.store.set_sync("v/c/3", default_buffer_prototype().buffer.from_bytes(b"1234"))
    zarr.open_array(session.store, path="p/w").attrs["a"] = 1
    session.delete_nodes("/p/q")
    found.append(session.change_set_bytes())
    return [bytes(zstd.decompress(each[len(MAGIC) + 1 :])) for each in found]


def _configs(found: dict[str, Kind]) -> list[bytes]:
    stored = [decode_repo_info(data, "x").config for data in found["stored repo"].payloads]
    return sorted({bytes(config) for config in stored if config is not None})


def _documents(found: dict[str, Kind]) -> list[bytes]:
    """Return documents of arrays and groups."""
    documents = {
        bytes(node.user_data)
        for data in found["stored snapshots"].payloads
        for node in decode_snapshot(data, "x").nodes()
    }
    return sorted(documents)


def _classic() -> list[bytes]:
    return [
        classic(
            {"t": None, "x": 3},
            {
                "a": Var(("t", "x"), np.arange(6, dtype="i4").reshape(2, 3), {"units": "m"}),
                "b": Var(("x",), np.arange(3.0), {"scale": np.array([1.5, 2.5])}),
            },
            version=version,
        )
        for version in (1, 2, 5)
    ]


# -- the run ---------------------------------------------------------------------------
@dataclass
class Tally:
    """What came of the files of one kind."""

    files: int = 0
    values: int = 0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)


def check(kind: Kind, count: int, seed: int) -> Tally:
    """Read so many mutated files of a kind."""
    tally = Tally()
    for number in range(count):
        # a seed of its own: one file can be made again
        rng = random.Random(f"{kind.name} {seed} {number}")
        wrong = kind.damage(rng, rng.choice(kind.payloads), kind.payloads)
        began = time.thread_time()
        try:
            kind.read(wrong)
            tally.values += 1
        except kind.allowed as error:
            if not str(error):
                tally.problems.append(f"{kind.name} {seed} {number}: an error without words")
        except Exception as error:
            tally.problems.append(f"{kind.name} {seed} {number}: {type(error).__name__}: {error}")
        taken = time.thread_time() - began
        if taken > MAX_SECONDS:
            tally.problems.append(f"{kind.name} {seed} {number}: {taken:.1f} s")
        tally.slowest = max(tally.slowest, taken)
        tally.files += 1
    return tally


def memory() -> int:
    """Return the most that this process ever held, in bytes."""
    factor = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor


def main() -> int:
    """Run from the command line; the exit code says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only kinds whose name begins so")
    options = parser.parse_args()
    chosen = [kind for kind in kinds() if kind.name.startswith(options.kind or "")]
    before = memory()
    problems = 0
    files = 0
    for kind in chosen:
        tally = check(kind, -(-options.count // len(chosen)), options.seed)
        files += tally.files
        problems += len(tally.problems)
        print(
            f"{kind.name:24} {tally.files:8,} files {tally.values:8,} values "
            f"slowest {tally.slowest:.3f} s, grown by {(memory() - before) >> 20} MB",
            flush=True,
        )
        for problem in tally.problems[:5]:
            print("   ", problem)
    if memory() - before > MAX_BYTES:
        problems += 1
    print(f"{files:,} files, {problems} problems")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
