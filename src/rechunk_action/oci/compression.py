"""Compressed layer blobs as streams: one-pass writers and readers with bounded memory.

Output is deterministic: a pinned library, a fixed level, never a thread count of zero (zstd's bytes differ there).
A gzip blob is one member, since clients read only the first and drop the rest silently. A zstd frame carries its
checksum, a gzip member its CRC: what reads back without error is what was compressed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import zstandard
from zlib_ng import zlib_ng

from rechunk_action.errors import Bomb, CorruptImage, InputError
from rechunk_action.workers import checkpoint

MEDIA_TYPES = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
"""Layer media types that clients accept (bootc's `decompressor` and docker's), and how each is compressed."""

PIECE = 1 << 18
"""Bytes that a reader hands out at once: a bound on memory, whatever a blob claims to expand to."""

INPUT_PIECE = 1 << 14
"""Compressed bytes read at once. Small, so that a position in the output maps closely to one in the blob."""

BOMB_RATIO, BOMB_FLOOR = 400, 512 << 20
"""A blob that expands past both (times its size, bytes) is refused. Real layers stay below 50, but for one that holds
little else than a sparse file: those are rarely larger than the floor."""


@dataclass(frozen=True)
class Compression:
    """How new layers are compressed. `update_level` serves the small layers of an update."""

    name: str
    level: int
    update_level: int

    @property
    def media_type(self) -> str:
        return f"application/vnd.oci.image.layer.v1.tar+{self.name}"

    def compressor(self, level: int, threads: int) -> Compressor:
        """A one-pass compressor. `threads` changes the speed, not the bytes, and serves zstd alone."""
        if self.name == "gzip":
            return zlib_ng.compressobj(level, zlib_ng.DEFLATED, _ONE_GZIP_MEMBER)
        return zstandard.ZstdCompressor(level, threads=max(1, threads), write_checksum=True).compressobj()


_ONE_GZIP_MEMBER = 31  # zlib's wbits: a 32 KiB window in a gzip wrapper


class Compressor(Protocol):
    """Both libraries' one-pass compressors."""

    def compress(self, data: bytes | memoryview, /) -> bytes: ...
    def flush(self) -> bytes: ...


ZSTD_LEVELS, GZIP_LEVELS = range(1, 20), range(1, 10)
DEFAULTS = {"zstd": Compression("zstd", 3, 9), "gzip": Compression("gzip", 6, 9)}
"""Levels by measurement: see docs/architecture.md, "Compression levels"."""


def parse_compression(text: str) -> Compression:
    """`zstd`, `gzip`, or one of them with a level for all layers (`zstd:9`)."""
    name, _, level = text.partition(":")
    levels = {"zstd": ZSTD_LEVELS, "gzip": GZIP_LEVELS}.get(name)
    if levels is None:
        raise InputError(f"compression {text!r} is unknown: use zstd or gzip, with a level if you like (zstd:9)")
    if not level:
        return DEFAULTS[name]
    if not level.isdecimal() or int(level) not in levels:
        raise InputError(f"{name} has no level {level!r}: use {levels[0]} to {levels[-1]}")
    return Compression(name, int(level), int(level))


class Reader:
    """A blob, decompressed as it is read, with both digests taken on the way.

    `pieces` (pairs of output and input positions) tells how compressed bytes spread over the output.
    """

    def __init__(self, blob: BinaryIO, media_type: str, *, limit: int | None) -> None:
        """`limit`: bytes of output at most, None for no limit. Raises `InputError` for an unknown media type."""
        method = MEDIA_TYPES.get(media_type)
        if method is None:
            raise InputError(f"layers of type {media_type} cannot be read; rebuild the image with gzip or zstd layers")
        self._raw = _CountingFile(blob)
        self._data = _DATA[method](self._raw)
        self._hash = hashlib.sha256()
        self._limit = limit
        self._buffer = memoryview(b"")
        self._at = 0
        self._filled = 0
        self._more = False
        self.pieces: list[tuple[int, int]] = [(0, 0)]

    def read(self, n: int) -> bytes:
        """Exactly n bytes, fewer only at the end."""
        end = self._at + n
        if end <= len(self._buffer):
            data = bytes(self._buffer[self._at : end])
            self._at = end
            return data
        return b"".join(self.chunks(n))

    def chunks(self, n: int) -> Iterator[memoryview]:
        """The next n bytes as they come, fewer only at the end."""
        while n:
            if self._at == len(self._buffer) and not self._fill():
                return
            piece = self._buffer[self._at : self._at + n]
            self._at += len(piece)
            n -= len(piece)
            yield piece

    def skip(self, n: int) -> None:
        for _ in self.chunks(n):
            pass

    def finish(self) -> None:
        """Decompress what is left behind the archive, so that the diff ID covers it."""
        for piece in self.chunks(1 << 63):
            self._more = self._more or bytes(piece).count(0) < len(piece)

    def drain(self) -> None:
        """Read what is left of the blob, so that its digest covers all of it."""
        while self._raw.read(PIECE):
            pass

    @property
    def consumed(self) -> int:
        """Bytes of output handed out so far."""
        return self._filled - len(self._buffer) + self._at

    @property
    def diff_id(self) -> str:
        """Digest of the decompressed archive, as far as it is read."""
        return "sha256:" + self._hash.hexdigest()

    @property
    def digest(self) -> str:
        """Digest of the blob, as far as it is read."""
        return self._raw.digest

    @property
    def input_size(self) -> int:
        return self._raw.position

    @property
    def problem(self) -> str:
        """Why clients would read another archive, as far as it is read; `""` when they would not."""
        return self._data.problem or ("it has more behind its end, which some clients read" if self._more else "")

    def _fill(self) -> bool:
        data = self._data.read(PIECE)
        if not data:
            return False
        self._hash.update(data)
        self._filled += len(data)
        mark = (self._filled, self._raw.position)
        if len(self.pieces) > 1 and self._filled - self.pieces[-2][0] <= INPUT_PIECE:
            self.pieces[-1] = mark  # a blob of tiny members or frames would have a mark for each
        else:
            self.pieces.append(mark)
        if self._limit is not None and self._filled > self._limit:
            raise Bomb(
                f"it expands to more than {self._limit:,} bytes, which no layer of its size should; "
                "it looks like a decompression bomb and is not read further"
            )
        self._buffer, self._at = memoryview(data), 0
        return True


def expanded(data: bytes, limit: int) -> bytes:
    """A zstd frame in memory, such as a program of ours has stored, decompressed.

    Raises `ZstdError` when it is damaged, has anything behind it, does not tell its size, or tells one of more than
    `limit` bytes.
    """
    # What is told is all that the library believes: a limit of its own counts only where nothing is told.
    if not 0 <= zstandard.frame_content_size(data) <= limit:
        raise zstandard.ZstdError("not of a size that is right")
    return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)


def bomb_limit(size: int) -> int:
    """Bytes that a blob of `size` bytes from an unknown builder may expand to."""
    return max(BOMB_FLOOR, BOMB_RATIO * size)


class _CountingFile:
    """A file that counts and hashes what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.position = 0

    def read(self, n: int = -1) -> bytes:
        checkpoint()
        data = self._file.read(n)
        self._hash.update(data)
        self.position += len(data)
        return data

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


class _Plain:
    """A blob that is not compressed."""

    def __init__(self, raw: _CountingFile) -> None:
        self.problem = ""
        self.read = raw.read


class _Zstd:
    """All frames of a zstd blob, as clients read them."""

    def __init__(self, raw: _CountingFile) -> None:
        self.problem = ""
        decompressor = zstandard.ZstdDecompressor()
        self._reader = decompressor.stream_reader(raw, read_size=INPUT_PIECE, read_across_frames=True)  # type: ignore[arg-type]

    def read(self, n: int) -> bytes:
        try:
            return self._reader.read(n)
        except zstandard.ZstdError as error:
            raise CorruptImage(f"the zstd data is damaged ({error})") from None


class _Gzip:
    """All members of a gzip blob. Docker reads them all; OSTree's importer drops all but the first without a word."""

    def __init__(self, raw: _CountingFile) -> None:
        self.problem = ""
        self._raw = raw
        self._inflate = zlib_ng.decompressobj(_ONE_GZIP_MEMBER)
        self._ahead = b""

    def read(self, n: int) -> bytes:
        try:
            while not self._inflate.eof or self._next_member():
                data = self._ahead or self._inflate.unconsumed_tail or self._raw.read(INPUT_PIECE)
                self._ahead = b""
                output = self._inflate.decompress(data, n)
                if output:
                    return output
                if not data and not self._inflate.eof:
                    raise CorruptImage("the gzip data ends too early: the blob is truncated")
        except zlib_ng.error as error:  # type: ignore[misc]  # the stubs call it a function
            raise CorruptImage(f"the gzip data is damaged ({error})") from None
        return b""

    def _next_member(self) -> bool:
        """Turn to the member behind this one and its padding, if there is one."""
        self._ahead = self._inflate.unused_data.lstrip(b"\0")
        while not self._ahead:
            data = self._raw.read(INPUT_PIECE)
            if not data:
                return False
            self._ahead = data.lstrip(b"\0")
        self._inflate = zlib_ng.decompressobj(_ONE_GZIP_MEMBER)
        self.problem = "it has more than one gzip member, of which some clients read only the first"
        return True


class _Data(Protocol):
    """What a blob holds. `problem` is the one of `Reader`."""

    problem: str

    def read(self, n: int, /) -> bytes: ...


_DATA: dict[str, Callable[[_CountingFile], _Data]] = {"none": _Plain, "gzip": _Gzip, "zstd": _Zstd}
