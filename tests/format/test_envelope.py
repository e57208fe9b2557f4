from __future__ import annotations

import itertools
import sys
import tracemalloc

import pytest
from hypothesis import given, settings, strategies as st

from icechunk.errors import ErrorKind, FormatError, InternalError
from icechunk.format.encoding import envelope
from icechunk.format.encoding.envelope import HEADER_SIZE, FileType, Scratch, unwrap, wrap
from icechunk.format.layout import backup_key, backup_name, chunk_key, snapshot_key
from tests.format import golden
from tests.format.hostile import damaged, value_or_format_error

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PAYLOAD = bytes(range(256)) * 20
OBJECT = wrap(PAYLOAD, FileType.REPO)
HEADER = OBJECT[:39]
SKIPPABLE = bytes.fromhex("5f2a4d1803000000") + b"xyz"


def without_size(data: bytes) -> bytes:
    compressor = zstd.ZstdCompressor()
    return compressor.compress(data) + compressor.flush()


@given(
    st.binary(max_size=2000),
    st.sampled_from(FileType),
    st.sampled_from((1, 2)),
    st.integers(-300, 300),
)
def test_round_trip(payload: bytes, file_type: FileType, version: int, level: int) -> None:
    data = wrap(payload, file_type, level=level, spec_version=version)
    assert unwrap(data, file_type, "x") == (payload, version)
    assert unwrap(memoryview(data), file_type, "x") == (payload, version)


def test_header_as_in_the_spec() -> None:
    assert OBJECT[:12] == bytes.fromhex("494345f09fa78a4348554e4b")
    assert OBJECT[12:36] == b"ic-py-0.2.0             "
    assert OBJECT[36:39] == b"\x02\x06\x01"


def test_writes_what_every_reader_accepts() -> None:
    frame = OBJECT[39:]
    assert zstd.get_frame_size(frame) == len(frame)
    assert zstd.get_frame_info(frame).decompressed_size == len(PAYLOAD)
    assert frame[4] & 0b100  # checksum


def test_official_object() -> None:
    assert unwrap(golden.REPO_OBJECT, FileType.REPO, "repo") == (golden.REPO_FRESH, 2)


@pytest.mark.parametrize(
    "frames",
    [
        without_size(PAYLOAD),
        OBJECT[39:] + SKIPPABLE,
        SKIPPABLE + OBJECT[39:],
        zstd.compress(PAYLOAD[:100]) + zstd.compress(PAYLOAD[100:]),
        without_size(PAYLOAD[:100]) + SKIPPABLE + zstd.compress(b"") + without_size(PAYLOAD[100:]),
    ],
    ids=["no size", "skippable last", "skippable first", "two frames", "mixed"],
)
def test_reads_all_forms_of_frames(frames: bytes) -> None:
    assert unwrap(HEADER + frames, FileType.REPO, "repo")[0] == PAYLOAD


@pytest.mark.parametrize(
    ("data", "message", "kind"),
    [
        (b"", "not an Icechunk file", ErrorKind.INVALID_FILE_FORMAT),
        (b"x" + OBJECT[1:], "not an Icechunk file", ErrorKind.INVALID_FILE_FORMAT),
        (HEADER[:38], "not an Icechunk file", ErrorKind.INVALID_FILE_FORMAT),
        (HEADER[:36] + b"\x03" + OBJECT[37:], "version 3", ErrorKind.UNSUPPORTED_SPEC_VERSION),
        (HEADER[:36] + b"\x00" + OBJECT[37:], "version 0", ErrorKind.UNSUPPORTED_SPEC_VERSION),
        (HEADER[:37] + b"\x01" + OBJECT[38:], "file type 1", ErrorKind.INVALID_FILE_FORMAT),
        (HEADER[:38] + b"\x00" + PAYLOAD, "compression 0", ErrorKind.INVALID_FILE_FORMAT),
        (OBJECT + b"\x00", "damaged", ErrorKind.DESERIALIZATION),
    ],
)
def test_refuses(data: bytes, message: str, kind: ErrorKind) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        unwrap(data, FileType.REPO, "the/name")
    assert caught.value.kind == kind
    assert str(caught.value).startswith("the/name: ")


def test_every_cut_is_noticed() -> None:
    data = wrap(b"some payload", FileType.SNAPSHOT)
    for size in range(40, len(data)):
        with pytest.raises(FormatError):
            unwrap(data[:size], FileType.SNAPSHOT, "x")


def test_every_wrong_byte_of_the_payload_is_noticed() -> None:
    data = wrap(b"some payload", FileType.SNAPSHOT)
    for at in range(39, len(data)):
        wrong = bytearray(data)
        wrong[at] ^= 0x10
        result = value_or_format_error(lambda w=wrong: unwrap(w, FileType.SNAPSHOT, "x"))
        # bits of the frame header that mean nothing are not in the checksum
        assert result in (None, (b"some payload", 2))


@given(st.data())
def test_damage_gives_a_format_error(data: st.DataObject) -> None:
    wrong = data.draw(damaged(OBJECT))
    value_or_format_error(lambda: unwrap(wrong, FileType.REPO, "x"))


@given(st.binary(max_size=200))
def test_made_up_frames(frames: bytes) -> None:
    value_or_format_error(lambda: unwrap(HEADER + frames, FileType.REPO, "x"))


def bomb(blocks: int) -> bytes:
    """A frame of `blocks` times 128 KiB zeros, without a size; 4 bytes each."""
    block = (1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"\0"
    return bytes.fromhex("28b52ffd") + b"\x00\x38" + block * (blocks - 1) + last


def test_bomb() -> None:
    # Expands correctly, and further than any limit at 4 bytes per 128 KiB.
    assert len(unwrap(HEADER + bomb(8), FileType.REPO, "x")[0]) == 1 << 20
    with pytest.raises(FormatError, match="more than 67108864 bytes"):
        unwrap(HEADER + bomb(1000), FileType.REPO, "x")


def test_memory_is_bounded_by_the_limit() -> None:
    data = HEADER + bomb(100_000)
    tracemalloc.start()
    with pytest.raises(FormatError, match="more than 1000000 bytes"):
        unwrap(data, FileType.REPO, "x", max_size=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_declared_size_is_not_believed() -> None:
    # single segment, 8 bytes of content size: 2**40
    frame = bytes.fromhex("28b52ffd") + b"\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\0\0"
    with pytest.raises(FormatError, match="more than"):
        unwrap(HEADER + frame, FileType.REPO, "x")


def test_too_large_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "MAX_PAYLOAD", 10)
    with pytest.raises(InternalError, match="11 bytes"):
        wrap(bytes(11), FileType.REPO)


@settings(max_examples=20)
@given(st.integers(0, 2**44), st.integers(0, 2**44))
def test_later_backups_list_first(a: int, b: int) -> None:
    name, other = backup_name(a), backup_name(b)
    assert len(name) == len("repo.") + 14 + 1 + 20
    if a < b <= 32_503_680_000_000:
        assert other[:19] < name[:19]
    assert backup_key(name) == "overwritten/" + name


def test_keys() -> None:
    raw = bytes.fromhex("0b1cc8d6787580f0e33a6534")
    assert snapshot_key(raw) == "snapshots/1CECHNKREP0F1RSTCMT0"
    assert chunk_key(raw) == "chunks/1CECHNKREP0F1RSTCMT0"
    assert backup_name(1795351363218).startswith("repo.30708328636782.")


@pytest.mark.parametrize("frames", [1, 3])
def test_memory_that_is_used_again(frames: int) -> None:
    """Payloads larger and smaller than those before, also of several frames, one skippable."""
    scratch = Scratch(1)
    header = wrap(b"", FileType.MANIFEST)[:HEADER_SIZE]
    for size in (10, 300_000, 0, 70_000, 300_001):
        payload = bytes(range(256)) * (size // 256) + b"." * (size % 256)
        cuts = [size * at // frames for at in range(frames + 1)]
        data = header + SKIPPABLE.join(
            zstd.compress(payload[a:b]) for a, b in itertools.pairwise(cuts)
        )
        with scratch.unwrap(data, FileType.MANIFEST, "x") as (found, version):
            assert (bytes(found), version) == unwrap(data, FileType.MANIFEST, "x")
            assert bytes(found) == payload
        for bad in (data[:-1], data[:45], data + b"x"):
            with pytest.raises(FormatError), scratch.unwrap(bad, FileType.MANIFEST, "x"):
                pass
