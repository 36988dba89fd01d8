"""The layers of OSTree-chunked images: chunks as tables, so that they are planned like plain layers, and new ones.

A chunk holds content objects and, in the view that containers have of the commit (`etc` in place of `usr/etc`), a hard
link from each path to its object. Its table tells the view. An entry is the object that its path shows: its digest is
the object's checksum, its attributes are all that the object has, the SELinux label included.

Invariants:
- An entry has a digest only when its object is in the same layer. So when a view is the commit's path by path, every
  object of the commit is in some layer, and a client that has none of them gets them all.
- The repository is no part of the view: neither it nor what is above it, but for `sysroot`, is in a table.
- A new chunk states the directories that are above its paths and objects, parents first, then what it removes, then
  each object once, behind its attributes and before its paths. The same input gives the same bytes; no times are told.
- Hard links are OSTree's matter: paths of one object are no group.

A file of no size is no hard link in the view: container builds write into those, to `/etc/machine-id` or `/etc/subuid`,
and where layers are unpacked without overlayfs, they would write into the object and all paths that share it. Real
encoders write them as files for the same reason. Which object such a file shows is told by its owner and mode if just
one object of the layer fits, else by the commit.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from rechunk_action.errors import InputError
from rechunk_action.oci import tar
from rechunk_action.oci.compression import GZIP_LEVELS, Compression, Reader
from rechunk_action.oci.layer import Contents, LayerPlan, Written, compress, header, structure
from rechunk_action.oci.table import Blob, Table, TableBuilder, normalised, read_checked
from rechunk_action.oci.tar import Member
from rechunk_action.ostree.chunked import REFUSAL, CommitLayer, ObjectReader, commit_layer, in_repository
from rechunk_action.ostree.commit import LABEL, Committed
from rechunk_action.ostree.objects import file_hash
from rechunk_action.progress import UNHEARD, Advance
from rechunk_action.tree.entry import UNKNOWN_MODE, Entry, Tree, parent_of

FORMAT = "ostree"
"""Format of the tables of chunks."""


def read_chunk(file: BinaryIO, blob: Blob, *, limit: int | None, empty: Mapping[str, bytes] | None = None) -> Table:
    """Read a chunk once, from compressed bytes to table, checking its size, digest, diff ID and every object.

    `empty` has the checksums of the commit's objects by the paths of the view: it tells the object of an empty file
    where the layer does not. One whose object is not known to be in the layer has no digest, and equals nothing.

    Raises `CorruptImage` when the blob is not what `blob` says, expands past `limit` bytes, or importers would refuse
    the layer.
    """
    builder = _ChunkBuilder(Reader(file, blob.media_type, limit=limit), empty or {}, first=False)
    read_checked(builder.reader, blob, builder.read, REFUSAL)
    return builder.table()


def read_commit_layer(file: BinaryIO, blob: Blob, *, limit: int | None) -> CommitLayer:
    """Read the first layer of an image for its commit and directories. Checks and raises as `read_chunk` does."""
    reader = Reader(file, blob.media_type, limit=limit)
    objects = ObjectReader(reader, first=True)
    read_checked(reader, blob, objects.read, REFUSAL)
    return commit_layer(objects.found, blob)


def check_tree(tree: Tree) -> None:
    """Raises `InputError` for a tree without `/sysroot`."""
    if not ((sysroot := tree.get(_SYSROOT)) and sysroot.is_dir):
        raise InputError(f"there is no directory /{_SYSROOT}, where systems have what is on their disk: make it")


def write_chunk(
    plan: LayerPlan,
    committed: Committed,
    contents: Contents,
    path: Path,
    *,
    compression: Compression,
    level: int,
    threads: int,
    advance: Advance = UNHEARD,
) -> Written:
    """Write the objects that some paths of the view show to a new layer, `path`, and read it back. `advance` is told of
    bytes of the archive as they are compressed.

    `contents` are asked for by the paths of the view. Every object is held against its checksum twice, while it is read
    and in the written blob. Raises `InputError` when a file changes while it is read.
    """
    tree = committed.tree
    blob = compress(_chunk(plan, committed, contents), path, compression, level, threads, advance=advance)
    with path.open("rb") as written:
        table = read_chunk(written, blob, limit=None, empty={place: tree[place].digest for place in plan.paths})
    return Written(replace(blob, diff_id=table.diff_id), table, path)


def write_commit_layer(committed: Committed, path: Path, *, compression: Compression, threads: int) -> Written:
    """Write the first layer of an image, with all directories of the view, to `path`, and read it back.

    Every update sends it whole, so it is compressed well, whatever the level of other layers.

    Raises `InputError` for a tree without `/sysroot`.
    """
    check_tree(committed.tree)
    blob = compress(_commit_layer(committed), path, compression, _BEST[compression.name], threads)
    with path.open("rb") as written:
        builder = _ChunkBuilder(Reader(written, blob.media_type, limit=None), {}, first=True)
        read_checked(builder.reader, blob, builder.read, REFUSAL)
    table = builder.table()
    return Written(replace(blob, diff_id=table.diff_id), table, path)


_BEST = {"zstd": 17, "gzip": GZIP_LEVELS[-1]}
"""Checksums are most of it and nothing makes them smaller. Of zstd's levels, 9 is 2% larger than 19, and 17 is 1%, for
two fifths of the time (0.9 s for 21,000 paths).
"""

_SYSROOT = "sysroot"
_REPOSITORY = "sysroot/ostree/repo"
_OBJECTS = f"{_REPOSITORY}/objects"

_OBJECT = re.compile(rf"{_OBJECTS}/([0-9a-f]{{2}})/([0-9a-f]{{62}})\.file")

_DIRECTORY = Entry("d", 0o755, 0, 0)
_FILE = Entry("f", 0o644, 0, 0)

_SKELETON = (
    "sysroot/ostree",
    _REPOSITORY,
    _OBJECTS,
    *(f"{_OBJECTS}/{number:02x}" for number in range(256)),
    *(f"{_REPOSITORY}/{name}" for name in ("extensions", "refs", "refs/heads", "refs/mirrors", "refs/remotes")),
    *(f"{_REPOSITORY}/{name}" for name in ("state", "tmp", "tmp/cache")),
)
_CONFIG = b"[core]\nrepo_version=1\nmode=bare-split-xattrs\n"


class _ChunkBuilder(TableBuilder):
    """Turns the members of a layer into objects, and what containers see of them into a table."""

    def __init__(self, reader: Reader, empty: Mapping[str, bytes], *, first: bool) -> None:
        super().__init__(reader)
        self._objects = ObjectReader(reader, first=first, by_checksum=True)
        self._empty = empty
        self._start: int | None = None
        """Where what an object takes starts, once some of it is there."""

    def table(self) -> Table:
        if self._objects.unsorted:
            self._unfit("attributes in it are not sorted, and OSTree since version 2025.2 takes no such files")
        table = super().table()
        shown = {entry.digest for entry in table.entries.values()}
        hidden = [entry.cost for checksum, entry in self._objects.found.contents.items() if checksum not in shown]
        return replace(table, format=FORMAT, dead=sum(hidden))

    def _read_member(self, member: Member, end: int) -> None:
        if in_repository(member):
            self._entries.setdefault(_SYSROOT, Entry("d", UNKNOWN_MODE, 0, 0))
            if self._start is None:
                self._start = member.offset
            entry = self._objects.add(member)
            if entry is not None:
                self._spans.append((entry, self._start, end))
                self._start = None
            return
        self._start = None
        if not f"{normalised(member.name)}/".startswith("sysroot/ostree/"):
            super()._read_member(member, end)

    def _read_content(self, path: str, entry: Entry) -> None:
        """What is no object is not looked into."""

    def _resolve_hardlinks(self) -> dict[str, str]:
        """Put the objects in the place of the links to them, and of the empty files that show them."""
        objects = self._objects.found.contents
        shown: dict[bytes, dict[str, int]] = defaultdict(dict)
        fitting = defaultdict(list)
        for checksum, entry in objects.items():
            if entry.kind == "f" and not entry.size:
                fitting[entry.uid, entry.gid, entry.mode].append(checksum)
        for path, entry in self._entries.items():
            if entry.kind == "d" or path in self._hardlinks:
                continue
            entry.digest = b""
            if entry.kind == "f" and not entry.size:
                found = fitting[entry.uid, entry.gid, entry.mode]
                checksum = found[0] if len(found) == 1 else self._empty.get(path, b"")
                if checksum in found:
                    shown[checksum][path] = entry.cost
            else:
                self._unfit(f"{path!r} is no object of the commit, as what is put on top of chunks is")
        ends = self._ends()
        for path, (_, link) in self._hardlinks.items():
            target = ends[path]
            match = _OBJECT.fullmatch(target)
            checksum = bytes.fromhex(match[1] + match[2]) if match else b""
            self._entries[path] = link
            if checksum in objects:
                shown[checksum][path] = link.cost
            else:
                self._unfit(f"{path!r} is a hard link to {target!r}, which is no object in it")
        for checksum, costs in shown.items():
            cost, rest = divmod(objects[checksum].cost + sum(costs.values()), len(costs))
            for number, path in enumerate(costs):
                self._entries[path] = replace(objects[checksum], cost=cost + (number < rest))
        return {}


def _chunk(plan: LayerPlan, committed: Committed, contents: Contents) -> Iterator[bytes]:
    tree = committed.tree
    objects: dict[bytes, list[str]] = {}
    for path in plan.paths:
        objects.setdefault(tree[path].digest, []).append(path)
    above = [parent_of(_object(checksum, "file")) for checksum in objects]
    if above:
        yield from structure(sorted({*plan.directories, _SYSROOT}), [], tree)
        yield from _directories(["sysroot/ostree", _REPOSITORY, _OBJECTS, *sorted(set(above))])
    else:
        yield from structure(plan.directories, [], tree)
    yield from structure([], plan.whiteouts, tree)
    written: set[str] = set()
    for checksum, paths in objects.items():
        entry, raw = tree[paths[0]], committed.attributes[paths[0]]
        xattrs = _object(hashlib.sha256(raw).digest(), "file-xattrs")
        if xattrs not in written:
            written.add(xattrs)
            yield from _small(xattrs, raw)
        yield header(_object(checksum, "file-xattrs-link"), tar.HARDLINK, _FILE, linkname=xattrs)
        # Importers take the attributes from the file before; those in the header are for containers.
        shown = replace(entry, xattrs=tuple(pair for pair in entry.xattrs if pair[0] != LABEL))
        place = _object(checksum, "file")
        if entry.kind == "l":
            yield header(place, tar.SYMLINK, shown, linkname=entry.target)
        else:
            yield header(place, tar.REGULAR, shown, size=entry.size)
            yield from _content(paths[0], entry, raw, contents)
        empty = entry.kind == "f" and not entry.size
        for path in paths:
            yield header(path, tar.REGULAR, shown) if empty else header(path, tar.HARDLINK, shown, linkname=place)
    yield tar.END


def _content(path: str, entry: Entry, raw: bytes, contents: Contents) -> Iterator[bytes]:
    hashed = file_hash(entry, raw)
    size = 0
    for piece in contents.pieces(path, entry.size) if entry.size else ():
        hashed.update(piece)
        size += len(piece)
        yield piece
    if (size, hashed.digest()) != (entry.size, entry.digest):
        raise InputError(f"/{path} changed while it was read: build from a tree that nothing writes to")
    yield tar.padding(size)


def _commit_layer(committed: Committed) -> Iterator[bytes]:
    tree = committed.tree
    yield from structure(sorted(path for path, entry in tree.items() if entry.is_dir), [], tree)
    yield from _directories(_SKELETON)
    yield from _small(f"{_REPOSITORY}/config", _CONFIG)
    yield from _small(_object(committed.checksum, "commit"), committed.commit)
    # Those of a size are alike: headers beside headers, checksums beside checksums take 1.4% off.
    for kind in ("dirmeta", "dirtree"):
        objects = [(len(data), checksum, data) for checksum, (of, data) in committed.metadata.items() if of == kind]
        for _, checksum, data in sorted(objects):
            yield from _small(_object(checksum, kind), data)
    yield tar.END


def _directories(paths: Iterable[str]) -> Iterator[bytes]:
    for path in paths:
        yield header(f"{path}/", tar.DIRECTORY, _DIRECTORY)


def _small(path: str, data: bytes) -> Iterator[bytes]:
    """A file of root's. By far most of the first layer's have long names, and records for them would be 2% of it."""
    yield tar.split_header(*path.rsplit("/", 1), size=len(data))
    yield data
    yield tar.padding(len(data))


def _object(checksum: bytes, kind: str) -> str:
    name = checksum.hex()
    return f"{_OBJECTS}/{name[:2]}/{name[2:]}.{kind}"
