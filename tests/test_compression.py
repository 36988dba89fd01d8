"""Blobs as streams: deterministic one way, checked and bounded the other."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import struct
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import Bomb, CorruptImage, InputError
from rechunk_action.oci.compression import (
    BOMB_FLOOR,
    BOMB_RATIO,
    DEFAULTS,
    INPUT_PIECE,
    MEDIA_TYPES,
    PIECE,
    Compression,
    Reader,
    bomb_limit,
    parse_compression,
)
from tests import support
from tests.support import digest, patient, peak_memory

METHODS = ["none", "gzip", "zstd"]
RANDOM = hashlib.shake_128(b"seed").digest(400_000)
TEXT = b"".join(b"%d bottles\n" % number for number in range(80_000))


def compressed(name: str, data: bytes, *, level: int = 1, threads: int = 1) -> bytes:
    compressor = Compression(name, level, level).compressor(level, threads)
    return compressor.compress(data) + compressor.flush()


def reader(data: bytes, method: str, *, limit: int | None = None) -> Reader:
    return Reader(io.BytesIO(data), support.MEDIA_TYPES[method], limit=limit)


@pytest.mark.parametrize("data", [b"", b"a", TEXT, RANDOM], ids=["empty", "one", "text", "random"])
def test_gzip_output_is_one_member(data: bytes) -> None:
    blob = compressed("gzip", data, level=6)
    member = zlib.decompressobj(31)
    assert member.decompress(blob) == data
    assert member.eof
    assert member.unused_data == b""


def test_gzip_output_holds_no_time_and_no_name() -> None:
    assert compressed("gzip", TEXT)[3:8] == bytes(5)


def test_zstd_output_is_one_frame_with_a_checksum() -> None:
    blob = compressed("zstd", TEXT)
    assert zstandard.get_frame_parameters(blob).has_checksum
    frame = zstandard.ZstdDecompressor().decompressobj()
    assert frame.decompress(blob) == TEXT
    assert frame.unused_data == b""


def test_zstd_output_does_not_depend_on_threads() -> None:
    data = TEXT * 24  # enough for several jobs
    assert len({compressed("zstd", data, threads=threads) for threads in (0, 1, 2, 4)}) == 1


@pytest.mark.parametrize("name", ["zstd", "gzip"])
def test_output_is_the_same_every_time(name: str) -> None:
    assert compressed(name, TEXT, level=9) == compressed(name, TEXT, level=9)


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("zstd", DEFAULTS["zstd"]),
        ("gzip", DEFAULTS["gzip"]),
        ("zstd:19", Compression("zstd", 19, 19)),
        ("gzip:1", Compression("gzip", 1, 1)),
    ],
)
def test_compression_is_named_by_method_and_level(given: str, means: Compression) -> None:
    assert parse_compression(given) == means


@pytest.mark.parametrize(
    "given", ["", "xz", "zst", "zstd:0", "zstd:20", "zstd:-1", "zstd:3.5", "gzip:10", "gzip:0", "gzip:x", "zstd:²"]
)
def test_other_compressions_are_refused(given: str) -> None:
    with pytest.raises(InputError, match=r"use (zstd or gzip|1 to (9|19))"):
        parse_compression(given)


@pytest.mark.parametrize("name", ["zstd", "gzip"])
def test_new_layers_have_an_oci_media_type(name: str) -> None:
    assert MEDIA_TYPES[DEFAULTS[name].media_type] == name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [b"", b"a", TEXT, RANDOM], ids=["empty", "one", "text", "random"])
def test_a_reader_takes_both_digests(data: bytes, method: str) -> None:
    blob = support.compress(data, method)
    read = reader(blob, method)
    assert read.read(len(data) + 1) == data
    read.finish()
    read.drain()
    assert (read.digest, read.input_size, read.diff_id) == (digest(blob), len(blob), digest(data))
    assert (read.consumed, read.problem) == (len(data), "")


@patient
@given(sizes=st.lists(st.integers(0, 2 * PIECE), max_size=8), method=st.sampled_from(METHODS))
def test_a_reader_hands_out_what_is_asked_for(sizes: list[int], method: str) -> None:
    read = reader(BLOBS[method], method)
    at = 0
    for number, size in enumerate(sizes):
        if number % 3 == 0:
            assert read.read(size) == TEXT[at : at + size]
        elif number % 3 == 1:
            assert b"".join(read.chunks(size)) == TEXT[at : at + size]
        else:
            read.skip(size)
        at = min(at + size, len(TEXT))
        assert read.consumed == at


BLOBS = {method: support.compress(TEXT, method) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_positions_map_output_to_input(method: str) -> None:
    blob = support.compress(RANDOM, method)
    read = reader(blob, method)
    read.finish()
    assert read.pieces[0] == (0, 0)
    assert read.pieces[-1] == (len(RANDOM), len(blob))
    for before, after in itertools.pairwise(read.pieces):
        assert before[0] < after[0] <= before[0] + PIECE
        assert before[1] <= after[1]
    if method != "none":
        assert all(abs(output - position) < 10 * INPUT_PIECE for output, position in read.pieces)


def test_every_media_type_of_layers_is_read() -> None:
    for media_type, method in MEDIA_TYPES.items():
        read = Reader(io.BytesIO(BLOBS[method]), media_type, limit=None)
        assert read.read(len(TEXT)) == TEXT


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "application/vnd.oci.image.layer.v1.tar+xz",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.empty.v1+json",
    ],
)
def test_other_media_types_are_refused(media_type: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Reader(io.BytesIO(), media_type, limit=None)


@pytest.mark.parametrize("split", [1, 1000, INPUT_PIECE, len(TEXT) - 1])
def test_several_gzip_members_are_read_and_told(split: int) -> None:
    read = reader(gzip.compress(TEXT[:split]) + gzip.compress(TEXT[split:]), "gzip")
    assert read.read(len(TEXT) + 1) == TEXT
    assert "more than one gzip member" in read.problem


def test_an_empty_gzip_member_at_the_end_is_told() -> None:
    read = reader(gzip.compress(TEXT) + gzip.compress(b""), "gzip")
    read.finish()
    assert "more than one gzip member" in read.problem


@pytest.mark.parametrize("size", [1, 511, 3 * INPUT_PIECE])
def test_zero_bytes_behind_a_gzip_member_are_padding(size: int) -> None:
    read = reader(gzip.compress(TEXT) + bytes(size), "gzip")
    assert read.read(len(TEXT) + 1) == TEXT
    assert read.problem == ""


def test_garbage_behind_a_gzip_member_is_damage() -> None:
    read = reader(gzip.compress(TEXT) + b"garbage" * 10, "gzip")
    with pytest.raises(CorruptImage, match="gzip"):
        read.finish()


def test_zstd_frames_follow_each_other() -> None:
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"notes"
    blob = skippable + compressed("zstd", TEXT[:999]) + skippable + compressed("zstd", TEXT[999:]) + skippable
    read = reader(blob, "zstd")
    assert read.read(len(TEXT) + 1) == TEXT
    assert (read.problem, read.input_size) == ("", len(blob))


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_a_flipped_bit_is_found(method: str) -> None:
    blob = bytearray(BLOBS[method])
    blob[len(blob) // 2] ^= 4
    read = reader(bytes(blob), method)
    with pytest.raises(CorruptImage, match=method):
        read.finish()


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_what_is_not_compressed_is_damage(method: str) -> None:
    with pytest.raises(CorruptImage, match=method):
        reader(TEXT, method).finish()


@pytest.mark.parametrize("kept", [0, 1, 9, 1000, len(BLOBS["gzip"]) - 9, len(BLOBS["gzip"]) - 1])
def test_truncated_gzip_is_damage(kept: int) -> None:
    with pytest.raises(CorruptImage, match="truncated"):
        reader(BLOBS["gzip"][:kept], "gzip").finish()


@pytest.mark.parametrize("kept", [0, 1, 9, 1000, len(BLOBS["zstd"]) // 2, len(BLOBS["zstd"]) - 5])
def test_truncated_zstd_gives_no_other_bytes(kept: int) -> None:
    read = reader(BLOBS["zstd"][:kept], "zstd").read(len(TEXT))
    assert TEXT.startswith(read)


@patient
@given(st.data())
def test_damage_is_never_another_exception(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(["gzip", "zstd"]))
    blob = bytearray(support.compress(TEXT[:3000], method))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    read = reader(bytes(blob), method, limit=1 << 20)
    try:
        content = read.read(10_000)
        read.finish()
    except CorruptImage:
        return
    assert method == "zstd" or content == TEXT[:3000]


def zeros_in_gzip() -> bytes:
    zeros = Compression("gzip", 6, 6).compressor(6, 1)
    return b"".join(zeros.compress(bytes(1 << 20)) for _ in range(1024)) + zeros.flush()


def zeros_in_zstd() -> bytes:
    zeros = zstandard.ZstdCompressor(1).compressobj()
    return b"".join(zeros.compress(bytes(1 << 20)) for _ in range(1024)) + zeros.flush()


@pytest.mark.parametrize(("bomb", "method"), [(zeros_in_gzip, "gzip"), (zeros_in_zstd, "zstd")])
def test_a_gigabyte_of_zeros_is_refused_in_little_memory(bomb: Callable[[], bytes], method: str) -> None:
    blob = bomb()
    limit = bomb_limit(len(blob))
    assert limit < 1 << 30
    read = reader(blob, method, limit=limit)
    with peak_memory() as peak, pytest.raises(Bomb, match="bomb"):
        read.skip(1 << 30)
    assert peak.size < 8 * PIECE
    assert read.pieces[-1][0] <= limit + PIECE


def test_a_zstd_frame_may_not_ask_for_gigabytes_of_window() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=False)
    greedy = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = greedy.compress(TEXT) + greedy.flush()
    with pytest.raises(CorruptImage, match="memory"):
        reader(blob, "zstd").finish()


def test_the_bomb_limit_leaves_room_for_real_layers() -> None:
    assert bomb_limit(1) == BOMB_FLOOR
    assert bomb_limit(1 << 30) == BOMB_RATIO << 30
