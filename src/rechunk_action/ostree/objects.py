"""OSTree's objects: what a commit is made of, and the name of a file.

An object is named by a SHA-256. That of a commit, dirtree or dirmeta covers its bytes, that of a file a header with
owner, mode, target and attributes, and its content. All four are GVariants: a container is its children one after the
other, then a table of where the children of no fixed size end. The table's numbers are little-endian and as wide as it
takes to count the container (1, 2, 4 or 8 bytes). An array lists the ends of all its elements; a tuple those of all but
its last child, the first one at the very end. The numbers in the objects themselves are big-endian.

Nothing that is parsed is trusted: what is not laid out exactly like that raises `CorruptImage`. Parsing takes time in
proportion to the bytes and no recursion, since nothing nests deeper than its type says.

What is serialised is what libostree would write, byte for byte: names are sorted, and those of attributes too. (Before
version 2025.2, it put the SELinux label behind the other attributes; later ones refuse such files on import.)
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import msgspec

from rechunk_action.errors import CorruptImage
from rechunk_action.tree.entry import IGNORED_XATTRS, Entry

Xattrs = tuple[tuple[str, bytes], ...]
"""Extended attributes as an `Entry` has them: sorted pairs of name and value, without those that no image shows."""


Metadatum = str | bool | Sequence[str]
"""A value in a commit's metadata."""


class Commit(msgspec.Struct, frozen=True):
    """A commit, as far as it matters here: the checksums of its root directory's dirtree and dirmeta."""

    dirtree: bytes
    dirmeta: bytes


class DirTree(msgspec.Struct, frozen=True, gc=False):
    """What a directory holds, sorted by name: files and links with their checksums, directories with those of their
    dirtree and dirmeta.
    """

    files: tuple[tuple[str, bytes], ...]
    directories: tuple[tuple[str, bytes, bytes], ...]


def parse_commit(data: bytes) -> Commit:
    """Metadata, parent, related objects, subject, body, timestamp, dirtree and dirmeta: `(a{sv}aya(say)sstayay)`."""
    *_, body, dirtree, dirmeta = _ends(data, 6)
    timestamp = body + -body % 8
    start = timestamp + 8
    if start > dirtree:
        raise CorruptImage("its parts overlap")
    return Commit(_checksum(data[start:dirtree]), _checksum(data[dirtree:dirmeta]))


def parse_dirtree(data: bytes) -> DirTree:
    """Files and links, then directories: `(a(say)a(sayay))`."""
    split, end = _ends(data, 1)
    files, directories = [], []
    for element in _elements(data[:split]):
        name, checksum = _ends(element, 1)
        files.append((_name(element[:name]), _checksum(element[name:checksum])))
    for element in _elements(data[split:end]):
        name, dirtree, dirmeta = _ends(element, 2)
        checksums = _checksum(element[name:dirtree]), _checksum(element[dirtree:dirmeta])
        directories.append((_name(element[:name]), *checksums))
    for names in ([file[0] for file in files], [directory[0] for directory in directories]):
        if any(name >= following for name, following in pairwise(names)):
            raise CorruptImage("its names are not sorted")
    if not {file[0] for file in files}.isdisjoint(directory[0] for directory in directories):
        raise CorruptImage("a name stands for both a file and a directory")
    return DirTree(tuple(files), tuple(directories))


def parse_dirmeta(data: bytes) -> Entry:
    """Owner, group, mode and attributes, `(uuua(ayay))`, as the directory that they describe."""
    if len(data) < _OWNERS.size:
        raise CorruptImage("it is cut short")
    uid, gid, mode = _OWNERS.unpack_from(data)
    if not stat.S_ISDIR(mode):
        raise CorruptImage(f"its mode {mode:#o} is not that of a directory")
    return Entry("d", stat.S_IMODE(mode), uid, gid, xattrs=parse_xattrs(data[_OWNERS.size :]))


def parse_xattrs(data: bytes, *, ignored: tuple[str, ...] = IGNORED_XATTRS) -> Xattrs:
    """Names, with a zero byte behind, and values: `a(ayay)`. Those with an ignored prefix are left out."""
    found = []
    for element in _elements(data):
        name, value = _ends(element, 1)
        pair = _text(element[:name]), element[name:value]
        if not pair[0].startswith(ignored):
            found.append(pair)
    return tuple(sorted(found))


def serialise_commit(
    dirtree: bytes,
    dirmeta: bytes,
    *,
    metadata: Mapping[str, Metadatum],
    timestamp: int,
    subject: str = "",
    body: str = "",
) -> bytes:
    """A commit without a parent of the root directory with these checksums. `timestamp` is in seconds since 1970."""
    parts = [
        _array([_metadatum(*item) for item in metadata.items()], align=8),
        b"",
        b"",
        _string(subject),
        _string(body),
    ]
    ends = list(accumulate(map(len, parts)))
    data = b"".join(parts)
    data += bytes(-len(data) % 8) + _TIMESTAMP.pack(timestamp) + dirtree
    return _framed(data + dirmeta, [len(data), *reversed(ends)])


def serialise_dirtree(files: Iterable[tuple[str, bytes]], directories: Iterable[tuple[str, bytes, bytes]]) -> bytes:
    """What a directory holds, in any order: names of files and links with their checksums, directories with those of
    their dirtree and dirmeta.
    """
    found = _array([_tuple(_string(name), checksum) for name, checksum in sorted(files)])
    below = _array([_tuple(_string(name), dirtree, dirmeta) for name, dirtree, dirmeta in sorted(directories)])
    return _tuple(found, below)


def serialise_dirmeta(entry: Entry, xattrs: bytes) -> bytes:
    """A directory's own metadata. `xattrs` are all its attributes, serialised."""
    return _OWNERS.pack(entry.uid, entry.gid, stat.S_IFDIR | entry.mode) + xattrs


def serialise_xattrs(pairs: Iterable[tuple[str, bytes]]) -> bytes:
    """Extended attributes, names and values in any order."""
    return _array([_tuple(_string(name), value) for name, value in sorted(pairs)])


class Hash(Protocol):
    """One of `hashlib`'s."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


def file_hash(entry: Entry, xattrs: bytes) -> Hash:
    """The checksum of a file or symbolic link, but for the content, with which it has to be updated.

    `xattrs` are all its attributes, as `parse_xattrs` reads them.
    """
    mode = stat.S_IFLNK | 0o777 if entry.kind == "l" else stat.S_IFREG | entry.mode
    fixed = _HEADER.pack(entry.uid, entry.gid, mode, 0) + entry.target.encode() + b"\0"
    header = _framed(fixed + xattrs, [len(fixed)])  # (uuuusa(ayay))
    return hashlib.sha256(_SIZE.pack(len(header)) + header)


_OWNERS = struct.Struct(">III")
_HEADER = struct.Struct(">IIII")
_SIZE = struct.Struct(">I4x")
_TIMESTAMP = struct.Struct(">Q")

_WIDTHS = (1, 2, 4, 8)

_CHECKSUM_SIZE = 32

_MAX_NAME = 255
"""Bytes that a name may have on Linux."""


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _metadatum(name: str, value: Metadatum) -> bytes:
    """`{sv}`: a name, and behind it a variant, which is a value and its type."""
    if isinstance(value, bool):
        variant = bytes([value]) + b"\0b"
    elif isinstance(value, str):
        variant = _string(value) + b"\0s"
    else:
        variant = _array([_string(text) for text in value]) + b"\0as"
    key = _string(name)
    return _framed(key + bytes(-len(key) % 8) + variant, [len(key)])


def _tuple(*parts: bytes) -> bytes:
    """A tuple of children that have no fixed size and no alignment."""
    ends = list(accumulate(map(len, parts)))
    return _framed(b"".join(parts), ends[-2::-1])


def _array(elements: Sequence[bytes], align: int = 1) -> bytes:
    data, ends = bytearray(), []
    for element in elements:
        data += bytes(-len(data) % align) + element
        ends.append(len(data))
    return _framed(bytes(data), ends)


def _framed(data: bytes, ends: Sequence[int]) -> bytes:
    """A container: its children, and the table of where they end."""
    width = next(width for width in _WIDTHS if len(data) + width * len(ends) < 1 << 8 * width)
    return data + b"".join([end.to_bytes(width, "little") for end in ends])


def _width(size: int) -> int:
    """Bytes of each number in the table of a container of this size."""
    return next(width for width in _WIDTHS if size < 1 << 8 * width)


def _ends(data: bytes, count: int) -> list[int]:
    """Where the children of a tuple end whose ends are in its table, so many, and where the last child does."""
    width = _width(len(data))
    table = len(data) - count * width
    if table < 0:
        raise CorruptImage("it is cut short")
    ends = [int.from_bytes(data[at : at + width], "little") for at in range(len(data) - width, table - 1, -width)]
    ends.append(table)
    if any(end > following for end, following in pairwise(ends)):
        raise CorruptImage("its parts overlap")
    return ends


def _elements(data: bytes) -> Iterator[bytes]:
    """The elements of an array, none of them of fixed size."""
    if not data:
        return
    width = _width(len(data))
    table = int.from_bytes(data[-width:], "little")
    if table > len(data) - width or (len(data) - table) % width:
        raise CorruptImage("it is cut short")
    start = 0
    for at in range(table, len(data), width):
        end = int.from_bytes(data[at : at + width], "little")
        if not start <= end <= table:
            raise CorruptImage("its parts overlap")
        yield data[start:end]
        start = end


def _checksum(data: bytes) -> bytes:
    if len(data) != _CHECKSUM_SIZE:
        raise CorruptImage(f"a checksum in it has {len(data)} bytes")
    return data


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise CorruptImage("a text in it is not UTF-8") from None
    if text.find("\0") != len(text) - 1:
        raise CorruptImage("a text in it does not end where it should")
    return text[:-1]


def _name(data: bytes) -> str:
    name = _text(data)
    if name in ("", ".", "..") or "/" in name or len(data) > _MAX_NAME + 1:
        raise CorruptImage(f"{name[:_MAX_NAME]!r} cannot be the name of a file")
    return name
