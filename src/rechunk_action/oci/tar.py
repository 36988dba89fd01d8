"""Tar headers as image clients read them: the bytes of one entry, and the stream back into members.

Written: GNU headers with GNU long names (`L`, `K`), because PAX names pass by OSTree's `/etc` handling and fail in the
C locale of older clients; PAX records only for extended attributes (`SCHILY.xattr.*`). Owners are numeric, no times
but mtime, no sparse files. Thousands of short files with long names are better off with POSIX headers (`split_header`).
Read: what any builder writes (ustar, GNU, PAX). Refused: what clients take in different ways (Go's archive/tar, Rust's
tar, libarchive), since the image that one of them makes of it is not the one that was compared.

A name in a header is relative and has no `./`; the root directory is `./`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rechunk_action.errors import CorruptImage

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two zero blocks: the end of an archive. Some clients take an archive without them for truncated."""

REGULAR, HARDLINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"

XATTR = "SCHILY.xattr."
"""Prefix of the PAX records that hold extended attributes."""

MAX_EXTENDED = 1 << 20
"""Bytes that a long name or a set of PAX records may have; Linux allows 64 KiB for one attribute."""

MAX_PATH = 4096
"""Bytes that a name or the target of a link may have: more than Linux can open (PATH_MAX)."""


class Stream(Protocol):
    """What a tar archive is read from: `read` gives exactly n bytes, fewer only at the end of the archive."""

    def read(self, n: int, /) -> bytes: ...


@dataclass(slots=True)
class Member:
    """One entry of an archive. `name` and `linkname` are as written; `offset` is where its header starts."""

    name: bytes
    typeflag: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    linkname: bytes
    offset: int
    xattrs: dict[str, bytes] = field(default_factory=dict)
    sparse: bool = False


def header(
    name: str,
    typeflag: bytes,
    *,
    mode: int,
    uid: int,
    gid: int,
    mtime: int = 0,
    size: int = 0,
    linkname: str = "",
    xattrs: Iterable[tuple[str, bytes]] = (),
) -> bytes:
    """The header blocks of one entry, with the long-name and attribute records before it."""
    raw_name, raw_link = name.encode(), linkname.encode()
    records = b""
    if xattrs:
        body = b"".join(_pax_record(XATTR.encode() + key.encode() + b"=" + value) for key, value in xattrs)
        records += _block(b"./PaxHeaders/xattrs", b"x", size=len(body)) + _padded(body)
    if len(raw_link) > 100:
        records += _block(b"././@LongLink", b"K", size=len(raw_link) + 1) + _padded(raw_link + b"\0")
    if len(raw_name) > 100:
        records += _block(b"././@LongLink", b"L", size=len(raw_name) + 1) + _padded(raw_name + b"\0")
    return records + _block(
        _cut(raw_name), typeflag, mode=mode, uid=uid, gid=gid, size=size, mtime=mtime, linkname=_cut(raw_link)
    )


def split_header(directory: str, name: str, *, size: int) -> bytes:
    """The header of a file of root's (0644) that has its directory (at most 155 bytes) in a field of its own, as POSIX
    has it: where it does not fit with the name (100 bytes), there is no record to write for it.
    """
    return _block(name.encode(), REGULAR, size=size, prefix=directory.encode())


def padding(size: int) -> bytes:
    """The zero bytes between `size` bytes of content and the next header."""
    return bytes(-size % BLOCK)


def members(stream: Stream) -> Iterator[Member]:
    """Read an archive's entries in order.

    After each one the caller must read exactly `size` bytes of content and the padding behind it.

    Raises `CorruptImage` for a damaged or truncated archive.
    """
    offset = start = 0
    extended: dict[bytes, bytes] = {}
    while True:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise CorruptImage(f"the archive ends in mid-entry at byte {offset + len(block)}: it is truncated")
        offset += BLOCK
        if block == _ZERO:
            if extended:
                raise CorruptImage(f"the extended header before byte {offset} is for no entry")
            return
        member = _parse(block, start)
        flag = member.typeflag
        if flag in b"xgLK":
            if block[257:262] != b"ustar":
                raise CorruptImage(f"the header at byte {start} is extended by its type and old by its format")
            if not 0 <= member.size <= MAX_EXTENDED:
                raise CorruptImage(f"an extended header of {member.size} bytes at byte {start} is too large to be true")
            body = _exactly(stream, member.size + (-member.size % BLOCK))[: member.size]
            offset += member.size + (-member.size % BLOCK)
            if flag == b"g":
                _check_common(_parse_pax(body))
            elif flag in extended:
                raise CorruptImage(f"two extended headers before byte {offset} are of the same type, {flag.decode()}")
            else:
                extended[flag] = body
            continue
        if extended:
            _extend(member, extended)
            extended = {}
        _check(member)
        yield member
        offset += member.size + (-member.size % BLOCK)
        start = offset


_ZERO = bytes(BLOCK)

_HEADER_ONLY = b"123456"
"""Links, devices, directories and FIFOs: whatever size their headers state, no content follows."""


def _block(
    name: bytes,
    typeflag: bytes,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    linkname: bytes = b"",
    prefix: bytes = b"",
) -> bytes:
    head = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % mode,
            _number(uid, 8),
            _number(gid, 8),
            _number(size, 12),
            _number(mtime, 12),
            b"        ",
            typeflag,
            linkname.ljust(100, b"\0"),
            b"ustar\x0000".ljust(88, b"\0") + prefix if prefix else b"ustar  \0",
        )
    ).ljust(BLOCK, b"\0")
    return b"%b%06o\0 %b" % (head[:148], sum(head), head[156:])


def _number(value: int, width: int) -> bytes:
    """Octal, or GNU's base-256 for what does not fit (large owners, times before 1970)."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return (value % (1 << 8 * width) | 1 << (8 * width - 1)).to_bytes(width, "big")


def _cut(name: bytes) -> bytes:
    """The 100 bytes for the header field, cut between characters: importers read the field as UTF-8."""
    if len(name) <= 100:
        return name
    end = 100
    while name[end] & 0xC0 == 0x80:
        end -= 1
    return name[:end]


def _padded(body: bytes) -> bytes:
    return body + padding(len(body))


def _pax_record(body: bytes) -> bytes:
    """A length, a space, the body and a newline. The length counts all of them, its own digits too."""
    size = len(body) + 2
    while len(str(size)) + len(body) + 2 != size:
        size = len(str(size)) + len(body) + 2
    return b"%d %b\n" % (size, body)


def _parse(block: bytes, offset: int) -> Member:
    try:
        stated = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        stated = -1
    if stated != sum(block[:148]) + sum(block[156:]) + 256:
        raise CorruptImage(f"there is no tar header at byte {offset}: its checksum is wrong")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].partition(b"\0")[0]
        if prefix and (block[263:265] != b"00" or (len(prefix) > _STAR_PREFIX and block[508:] == b"tar\0")):
            raise CorruptImage(f"the tar header at byte {offset} is of a format that few clients know")
        name = prefix + b"/" + name if prefix else name
    typeflag = block[156:157]
    if typeflag in (b"\0", b"7"):
        typeflag = DIRECTORY if typeflag == b"\0" and name.endswith(b"/") else REGULAR
    return Member(
        name=name,
        typeflag=typeflag,
        mode=_parse_number(block[100:108], offset) & 0o7777,
        uid=_parse_number(block[108:116], offset),
        gid=_parse_number(block[116:124], offset),
        size=_parse_number(block[124:136], offset),
        mtime=_parse_number(block[136:148], offset),
        linkname=block[157:257].partition(b"\0")[0],
        offset=offset,
        sparse=typeflag == b"S",
    )


def _parse_number(digits: bytes, offset: int) -> int:
    if digits[0] & 0x80:
        value = int.from_bytes(digits, "big") - (1 << (8 * len(digits) - 1))
        return value - (1 << (8 * len(digits) - 1)) if digits[0] == 0xFF else value
    octal = digits.strip(b" \0") or b"0"
    if not _OCTAL.fullmatch(octal):
        raise CorruptImage(f"the tar header at byte {offset} holds {digits!r} where a number belongs")
    return int(octal, 8)


def _extend(member: Member, extended: Mapping[bytes, bytes]) -> None:
    """Apply the extended headers before an entry, by type."""
    records = _parse_pax(extended.get(b"x", b""))
    for flag, key, attribute in ((b"L", "path", "name"), (b"K", "linkpath", "linkname")):
        if flag in extended:
            long = extended[flag].partition(b"\0")[0]
            if key in records or not long:
                what = "two long names" if long else "a long name that is empty"
                raise CorruptImage(f"the entry at byte {member.offset} has {what}")
            setattr(member, attribute, long)
    for key, value in records.items():
        if key.startswith(XATTR):
            member.xattrs[key[len(XATTR) :]] = value
        elif key == "path":
            member.name = value
        elif key == "linkpath":
            member.linkname = value
        elif key in _NUMBERS:
            if not _DECIMAL.fullmatch(value):
                raise CorruptImage(f"a PAX header gives {value[:80]!r} for {key}")
            setattr(member, key, int(value.partition(b".")[0]))
        elif key.startswith("GNU.sparse."):
            member.sparse = True


def _parse_pax(body: bytes) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + _LENGTH)
        if space < 0 or not body[at:space].isdigit():
            raise CorruptImage("a PAX header does not start its record with a length")
        end = at + int(body[at:space])
        raw, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not at < space < end <= len(body) or body[end - 1 : end] != b"\n" or not equals:
            raise CorruptImage("a PAX header holds a malformed record")
        key = raw.decode("utf-8", "surrogateescape")
        if _matters(key) and (key in records or not (value or key.startswith(XATTR))):
            raise CorruptImage(f"a PAX header gives {key[:80]!r} {'twice' if key in records else 'no value'}")
        records[key] = value
        at = end
    return records


def _check_common(records: Mapping[str, bytes]) -> None:
    """Most clients pass by records that are for all entries of an archive."""
    for key in filter(_matters, records):
        raise CorruptImage(f"a PAX header gives {key[:80]!r} for all entries, which few clients heed")


def _matters(key: str) -> bool:
    """Whether a record tells what a file is."""
    return key in ("path", "linkpath", "size", "uid", "gid") or key.startswith((XATTR, "GNU.sparse."))


_OCTAL = re.compile(rb"[0-7]+")
_DECIMAL = re.compile(rb"-?[0-9]{1,20}(?:\.[0-9]*)?")
_NUMBERS = ("size", "uid", "gid", "mtime")
_LENGTH = 20
"""Digits that the length of a record has at most, and more."""

_STAR_PREFIX = 131
"""Bytes of the prefix in star's variant, which has times behind it."""


def _check(member: Member) -> None:
    """Refuse what no file system has, before someone reads that many bytes or stores such a number."""
    if len(member.name) > MAX_PATH or len(member.linkname) > MAX_PATH:
        raise CorruptImage(f"the entry at byte {member.offset} has a name or target that is longer than any path")
    if member.typeflag in _HEADER_ONLY:
        member.size = 0
    if not (0 <= member.size < 1 << 63 and -1 << 63 <= member.mtime < 1 << 63):
        raise CorruptImage(f"{member.name!r} has a size of {member.size} bytes or a time of {member.mtime} seconds")
    if not (0 <= member.uid < 1 << 32 and 0 <= member.gid < 1 << 32):
        raise CorruptImage(f"{member.name!r} belongs to {member.uid}:{member.gid}, which no user or group can be")
    if b"\0" in member.name or b"\0" in member.linkname:
        raise CorruptImage(f"{member.name!r} has a zero byte in its name or target")
    if member.typeflag == REGULAR and member.name.endswith(b"/"):
        raise CorruptImage(f"{member.name!r} is a file by its type and a directory by its name")


def _exactly(stream: Stream, n: int) -> bytes:
    data = stream.read(n)
    if len(data) != n:
        raise CorruptImage("the archive ends inside an extended header: it is truncated")
    return data
