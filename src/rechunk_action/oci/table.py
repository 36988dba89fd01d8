"""The table of a layer: what it says about each path, read from the blob itself.

A table is all that planning needs of a published layer. It is always made by reading the blob, whoever wrote it, so
that it tells what a client will see and not what a builder meant. Every ancestor of a path is in the table; one that
the archive leaves out is there as a directory of unknown mode, because each client makes up its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, BinaryIO

import msgspec
import zstandard
from blake3 import blake3

from rechunk_action.errors import Bomb, CorruptImage
from rechunk_action.oci import tar
from rechunk_action.oci.compression import Reader, expanded
from rechunk_action.oci.tar import Member
from rechunk_action.tree.entry import (
    EMPTY_DIGEST,
    IGNORED_XATTRS,
    ROOT,
    UNKNOWN_MODE,
    Entry,
    Kind,
    ancestors,
    is_utf8,
    new_digest,
    parent_of,
)

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"

UNPACKED_BY_NOBODY = ("dev", "proc", "run", "sys", "tmp")
"""Directories whose children OSTree's importer drops (ostree-ext, tar/write.rs): a device node does no harm there."""


MAX_KEPT = 1 << 30
"""Bytes of memory, roughly, that what is known of a layer may take: those of two million paths."""

PATH_SIZE = 450
"""Bytes of memory for a path and its entry, its name aside."""

MAX_NAME = 255
"""Bytes that a name may have on Linux."""

MAX_REPLACED = 100
"""Directories that one layer may put something else in the place of. No builder does that, and each takes a look at all
that the layer holds.
"""

MAX_PROBLEM, PROBLEMS = 500, 3
"""Characters of a problem, and problems of a layer, that are told."""


class Blob(msgspec.Struct, frozen=True):
    """A layer blob as its manifest and config describe it: compressed digest and size (bytes), and the digest of the
    archive inside (`""` where it is not known yet).
    """

    digest: str
    size: int
    media_type: str
    diff_id: str = ""


class Table(msgspec.Struct, array_like=True):
    """What one layer holds.

    `whiteouts` are the paths that it removes, `opaque` the directories whose lower content it hides, `links` the hard
    links to a file of a lower layer (path -> target). `problem` says why clients would disagree about the layer or
    refuse it, `""` when they don't: such a layer can be read, but not be kept in an update. `diff_id` is the digest
    of the archive. `format` is `""` for a plain layer; a layer of another format has entries of another meaning.
    `dead` is the share of the layer's compressed bytes of what it holds and no path shows.
    """

    entries: dict[str, Entry]
    whiteouts: list[str] = []
    opaque: list[str] = []
    links: dict[str, str] = {}
    problem: Annotated[str, msgspec.Meta(max_length=PROBLEMS * (MAX_PROBLEM + 2))] = ""
    diff_id: str = ""
    format: str = ""
    dead: Annotated[int, msgspec.Meta(ge=0)] = 0


class Kept:
    """Counts the memory that a description takes while it is read: that of a layer, or what `of` names."""

    def __init__(self, of: str = "it") -> None:
        self._of = of
        self._size = 0

    def add(self, size: int) -> None:
        """Bytes, roughly. Raises `Bomb` when they are more than those of any image."""
        self._size += size
        if self._size > MAX_KEPT:
            raise Bomb(
                f"what {self._of} describes takes more than {MAX_KEPT:,} bytes of memory, which no image does: it "
                "looks like a decompression bomb and is not read further"
            )


Sink = Callable[[str, Entry, Iterator[memoryview]], None]
"""Is shown a regular file's content while its layer is read: path, entry, pieces. It may leave pieces unread."""


def read_table(
    file: BinaryIO,
    blob: Blob,
    *,
    limit: int | None,
    sink: Sink | None = None,
    known: Mapping[str, Entry] | None = None,
) -> Table:
    """Read a layer once, from compressed bytes to table, checking size, digest and diff ID.

    `known` holds the contents' digests by path where the caller took them while the blob was written: then they are
    not taken again, since the checksum inside the blob ties what is read to what was written.

    Raises `CorruptImage` when the blob is not what `blob` says, expands past `limit` bytes, or is no tar archive.
    """
    builder = TableBuilder(Reader(file, blob.media_type, limit=limit), sink, known)
    read_checked(builder.reader, blob, builder.read, "is no archive that clients can read")
    return builder.table()


def read_checked(reader: Reader, blob: Blob, read: Callable[[], None], refusal: str) -> None:
    """Call `read`, which reads a layer's archive to its end, and check size, digest and diff ID.

    Raises `CorruptImage` when the blob is not what `blob` says, or when `read` does. `refusal` says in a few words what
    follows for such a layer.
    """
    fault: CorruptImage | None = None
    try:
        read()
    except Bomb as error:
        raise CorruptImage(f"layer {blob.digest}: {error}") from None
    except CorruptImage as error:
        fault = error  # a damaged blob explains any fault better than the fault itself
    reader.drain()
    if (reader.input_size, reader.digest) != (blob.size, blob.digest):
        raise CorruptImage(
            f"layer {blob.digest} is damaged: {blob.size:,} bytes were expected, and {reader.input_size:,} bytes "
            f"with digest {reader.digest} are there; fetch the image again"
        )
    if fault is not None:
        raise CorruptImage(f"layer {blob.digest} {refusal}: {fault}; rebuild the image")
    if blob.diff_id and blob.diff_id != reader.diff_id:
        raise CorruptImage(
            f"layer {blob.digest} expands to {reader.diff_id}, but the image's config says {blob.diff_id}: "
            "manifest and config do not belong together; rebuild the image"
        )


def encode_table(table: Table) -> bytes:
    """A table as it is stored."""
    return zstandard.ZstdCompressor(3, write_checksum=True).compress(_ENCODER.encode(table))


def decode_table(stored: bytes, blob: Blob, format_: str = "") -> Table | None:
    """A stored table, None where it is damaged, that of another layer or format, or one that no layer has.

    That it tells what is in the layer is believed: only reading the blob would show it.
    """
    try:
        table = _DECODER.decode(expanded(stored, MAX_TABLE))
    except (MemoryError, RecursionError, UnicodeDecodeError, zstandard.ZstdError, msgspec.MsgspecError):
        return None
    return table if (table.diff_id, table.format) == (blob.diff_id, format_) and _is_sound(table, blob) else None


MAX_TABLE = 256 << 20
"""Bytes that a stored table may expand to: some hundred for each of two million paths."""


def _is_sound(table: Table, blob: Blob) -> bool:
    """Whether a table has the form of those that are made by reading a layer, which is what can be merged."""
    entries = table.entries

    def holds_directory(path: str) -> bool:
        return (entry := entries.get(path)) is not None and entry.is_dir

    return (
        holds_directory(ROOT)
        and all(_is_name(path) and holds_directory(parent_of(path)) for path in (*entries, *table.whiteouts) if path)
        and all(map(holds_directory, table.opaque))
        and not (table.links and not table.problem)
        and ROOT not in table.whiteouts
        # Costs are rounded, each for itself, those that are dead as well.
        and sum(entry.cost for entry in entries.values()) + table.dead // 2 <= blob.size + len(entries)
    )


def _is_name(path: str) -> bool:
    return path.rpartition("/")[2] not in ("", ".", "..") and "\0" not in path


_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Table)


class TableBuilder:
    """Turns the members of one archive into a table."""

    def __init__(self, reader: Reader, sink: Sink | None = None, known: Mapping[str, Entry] | None = None) -> None:
        self.reader = reader
        self._sink = sink
        self._known = known
        self._entries: dict[str, Entry] = {ROOT: Entry("d", UNKNOWN_MODE, 0, 0)}
        self._whiteouts: list[str] = []
        self._opaque: list[str] = []
        self._hardlinks: dict[str, tuple[str, Entry]] = {}
        self._spans: list[tuple[Entry, int, int]] = []
        self._problems: list[str] = []
        self._kept = Kept()
        self._linked_to: set[str] = set()
        self._replaced = 0

    def read(self) -> None:
        reader = self.reader
        for member in tar.members(reader):
            end = reader.consumed + member.size + (-member.size % tar.BLOCK)
            self._read_member(member, end)
            reader.skip(end - reader.consumed)
        reader.finish()
        if reader.problem:
            self._unfit(reader.problem)

    def table(self) -> Table:
        self._spread_cost()
        links = self._resolve_hardlinks()
        for path in self._whiteouts:
            if path in self._entries:
                self._unfit(f"it both removes and holds {path!r}")
        problem = "; ".join(self._problems)
        return Table(self._entries, self._whiteouts, self._opaque, links, problem, self.reader.diff_id)

    def _unfit(self, problem: str) -> None:
        """Note why the layer cannot be kept."""
        if len(self._problems) < PROBLEMS:
            self._problems.append(problem[:MAX_PROBLEM])

    def _read_member(self, member: Member, end: int) -> None:
        """Take in a member. What is left unread of it, up to `end`, is skipped."""
        path = normalised(member.name)
        self._kept.add(PATH_SIZE + len(path) + len(member.linkname))
        self._check(path, member)
        self._state_parents(path)
        name = path.rpartition("/")[2]
        if name.startswith(WHITEOUT):
            self._add_whiteout(path, name)
            return
        entry = self._add(path, member)
        if entry.size:
            self._read_content(path, entry)
        self._spans.append((entry, member.offset, end))

    def _check(self, path: str, member: Member) -> None:
        if path == ROOT and member.typeflag != tar.DIRECTORY:
            raise CorruptImage(f"{member.name!r} would replace the root directory")
        if member.sparse:
            raise CorruptImage(f"{path!r} is a sparse entry, which not every client can read")
        if not is_utf8(path):
            self._unfit(f"{path!r} is not UTF-8")
        if len(member.name) > MAX_NAME and max(map(len, member.name.split(b"/"))) > MAX_NAME:
            self._unfit(f"{path!r} has a name that no file system can hold")

    def _state_parents(self, path: str) -> None:
        entries = self._entries
        parent = entries.get(parent_of(path))
        if parent is not None and parent.kind == "d":
            return
        for above in ancestors(path):
            entry = entries.get(above)
            if above in self._hardlinks or (entry is not None and entry.kind != "d"):
                raise CorruptImage(f"{path!r} would be written through {above!r}, which is no directory")
            if entry is None:
                self._kept.add(PATH_SIZE + len(above))
            # OSTree overwrites what it knew of *all* ancestors when it makes up one (ostree-repo-libarchive.c).
            entries[above] = Entry("d", UNKNOWN_MODE, 0, 0)
            if above.rpartition("/")[2].startswith(WHITEOUT):
                self._unfit(f"{above!r} is named like a removal and holds something")

    def _add_whiteout(self, path: str, name: str) -> None:
        parent = parent_of(path)
        if name == OPAQUE:
            self._opaque.append(parent)
        elif not name.startswith(OPAQUE[:8]):  # the rest of ".wh..wh." is AUFS's own
            hidden = name[len(WHITEOUT) :]
            if hidden in ("", ".", ".."):
                self._unfit(f"{path!r} does not say what it removes")
            else:
                self._whiteouts.append(f"{parent}/{hidden}" if parent else hidden)

    def _add(self, path: str, member: Member) -> Entry:
        entry = Entry(
            _KINDS.get(member.typeflag, "x"), member.mode, member.uid, member.gid, member.mtime, xattrs=_xattrs(member)
        )
        self._kept.add(sum(PATH_SIZE + len(key) + len(value) for key, value in entry.xattrs))
        before = self._hardlinks[path][1] if path in self._hardlinks else self._entries.get(path)
        if before is not None and path in self._linked_to:
            self._unfit(f"{path!r} is replaced after a hard link to it, which leads to what was there before")
        if before is not None and before.kind != entry.kind:
            self._unfit(f"{path!r} occurs twice, with different types")
            if before.is_dir:
                self._forget_below(path)
        if member.typeflag == tar.HARDLINK:
            target = normalised(member.linkname)
            self._linked_to.add(target)
            self._hardlinks[path] = (target, entry)
            self._entries.pop(path, None)
            return entry
        if entry.kind == "f":
            entry.size = member.size
            entry.digest = EMPTY_DIGEST
        elif entry.kind == "l":
            entry.mode = 0o777
            entry.target = member.linkname.decode("utf-8", "surrogateescape")
        elif entry.kind == "x" and path.partition("/")[0] not in UNPACKED_BY_NOBODY:
            self._unfit(f"{path!r} is a device or FIFO, which OSTree refuses")
        if not is_utf8(entry.target):
            self._unfit(f"the target of {path!r} is not UTF-8")
        for key, value in entry.xattrs:
            if not value or b"\n" in value or not is_utf8(key):
                self._unfit(f"{path!r} has an attribute {key[:MAX_NAME]} that importers cannot read")
        self._hardlinks.pop(path, None)
        self._entries[path] = entry
        return entry

    def _forget_below(self, path: str) -> None:
        """What a directory held goes when something else takes its place."""
        self._replaced += 1
        if self._replaced > MAX_REPLACED:
            raise CorruptImage(f"it replaces more than {MAX_REPLACED} directories, {path!r} among them")
        for place in [place for place in (*self._entries, *self._hardlinks) if place.startswith(f"{path}/")]:
            self._entries.pop(place, None)
            self._hardlinks.pop(place, None)
        self._whiteouts[:] = [place for place in self._whiteouts if not place.startswith(f"{path}/")]
        self._opaque[:] = [place for place in self._opaque if not f"{place}/".startswith(f"{path}/")]

    def _read_content(self, path: str, entry: Entry) -> None:
        pieces = self.reader.chunks(entry.size)
        if self._known is not None:
            entry.digest = self._known[path].digest
            self.reader.skip(entry.size)
            return
        content = new_digest()
        if self._sink is None:
            for piece in pieces:
                content.update(piece)
        else:
            hashed = _hashing(pieces, content)
            self._sink(path, entry, hashed)
            for _ in hashed:  # what the sink had no use for
                pass
        entry.digest = content.digest()

    def _resolve_hardlinks(self) -> dict[str, str]:
        lower: dict[str, str] = {}
        ends = self._ends()
        for path, (_, link) in self._hardlinks.items():
            target = ends[path]
            first = self._entries.get(target)
            if first is None or first.kind == "d":
                lower[path] = target
                self._unfit(f"{path!r} is a hard link to {target!r} of another layer")
                continue
            if first.kind == "f":
                first.group = target
            self._entries[path] = msgspec.structs.replace(first, cost=link.cost)
        return lower

    def _ends(self) -> dict[str, str]:
        """What each hard link leads to in the end: one of them, where they lead in a circle."""
        ends: dict[str, str] = {}
        for path in self._hardlinks:
            way: dict[str, None] = {}
            while path in self._hardlinks and path not in ends and path not in way:
                way[path] = None
                path = self._hardlinks[path][0]  # noqa: PLW2901  # goes along
            ends.update(dict.fromkeys(way, ends.get(path, path)))
        return ends

    def _spread_cost(self) -> None:
        """Give each entry its share of the compressed bytes, by where it lies in the archive."""
        pieces = iter(self.reader.pieces)
        u0 = c0 = 0
        u1, c1 = next(pieces)

        def compressed(at: int) -> float:
            nonlocal u0, c0, u1, c1
            while at > u1:
                u0, c0 = u1, c1
                u1, c1 = next(pieces, (at, c1))
            return c1 if u1 == u0 else c0 + (c1 - c0) * (at - u0) / (u1 - u0)

        for entry, start, end in self._spans:
            entry.cost = round(-compressed(start) + compressed(end))


_KINDS: dict[bytes, Kind] = {tar.REGULAR: "f", tar.HARDLINK: "f", tar.SYMLINK: "l", tar.DIRECTORY: "d"}


def normalised(name: bytes) -> str:
    """A path relative to the root, without `.` and doubled slashes."""
    path = name.decode("utf-8", "surrogateescape")
    path = path.removeprefix("./")
    path = path.rstrip("/")
    if path.startswith("/") or "./" in path or "//" in path or path.endswith("."):
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise CorruptImage(f"{path!r} tries to leave the image's root")
        path = "/".join(parts)
    return path


def _xattrs(member: Member) -> tuple[tuple[str, bytes], ...]:
    return tuple(sorted(pair for pair in member.xattrs.items() if not pair[0].startswith(IGNORED_XATTRS)))


def _hashing(pieces: Iterator[memoryview], content: blake3) -> Iterator[memoryview]:
    for piece in pieces:
        content.update(piece)
        yield piece
