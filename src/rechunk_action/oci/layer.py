"""Writing a layer: from a list of paths to a compressed, reproducible blob.

Inside a layer every ancestor directory comes first, then whiteouts, then files, so that parents exist before their
children and what is removed is removed before anything is added. Same input gives the same bytes: owners are numbers,
directories carry no time, files keep theirs (in whole seconds, at most `newest`). A directory's time would change with
every build without telling anyone anything, and OSTree clients show none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from msgspec.structs import replace

from rechunk_action.errors import InputError
from rechunk_action.oci import tar
from rechunk_action.oci.compression import Compression, Compressor
from rechunk_action.oci.stage import writing
from rechunk_action.oci.table import WHITEOUT, Blob, Table, read_table
from rechunk_action.progress import UNHEARD, Advance
from rechunk_action.tree.entry import Entry, Tree, new_digest

GATHER = 1 << 19
"""Bytes gathered before the compressor is called: few calls, and little memory."""


class Contents(Protocol):
    """Where the contents of a tree's files are read."""

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """The content of a regular file, in order."""
        ...


@dataclass(frozen=True)
class LayerPlan:
    """What a new layer will hold: `name` for people, `directories` with every ancestor, `whiteouts` to write, and
    `paths` of files and symbolic links in the order of the archive.
    """

    name: str
    directories: Sequence[str]
    paths: Sequence[str] = ()
    whiteouts: Sequence[str] = ()

    def table(self, tree: Tree) -> Table:
        """The table that the layer will have."""
        entries = {path: tree[path] for path in (*self.directories, *self.paths)}
        return Table(entries, list(self.whiteouts))

    def archive_size(self, tree: Tree) -> int:
        """Bytes of the archive, to within its extended headers."""
        files = (entry for path in self.paths if (entry := tree[path]).kind == "f" and entry.group in ("", path))
        content = sum(entry.size + -entry.size % tar.BLOCK for entry in files)
        return content + tar.BLOCK * (len(self.directories) + len(self.paths) + len(self.whiteouts) + 2)


@dataclass(frozen=True)
class Written:
    """A new layer on disk. `table` was read back from the blob."""

    blob: Blob
    table: Table
    path: Path


def write_layer(
    plan: LayerPlan,
    tree: Tree,
    contents: Contents,
    path: Path,
    *,
    compression: Compression,
    level: int,
    threads: int,
    newest: int | None,
    advance: Advance = UNHEARD,
) -> Written:
    """Write one layer to `path` and read it back. `advance` is told of bytes of the archive as they are compressed.

    Files of `tree` that have a digest are checked against it twice, while they are read and in the written blob. Those
    that have none get theirs as they are read, so that each file is read once.

    `newest` clamps the files' mtimes (seconds since 1970). Raises `InputError` when a file changes while it is read.
    """
    known = None if all(entry.digest for path in plan.paths if (entry := tree[path]).kind == "f") else tree
    blob = compress(_archive(plan, tree, contents, newest), path, compression, level, threads, advance=advance)
    with path.open("rb") as written:
        table = read_table(written, blob, limit=None, known=known)
    return Written(replace(blob, diff_id=table.diff_id), table, path)


def compress(
    archive: Iterable[bytes],
    path: Path,
    compression: Compression,
    level: int,
    threads: int,
    *,
    advance: Advance = UNHEARD,
) -> Blob:
    """Write the pieces of an archive to a new file, compressed. The blob's diff ID is left open."""
    with path.open("xb") as file:
        out = _Output(file, compression.compressor(level, threads), advance)
        for piece in archive:
            out.write(piece)
        digest, size = out.close()
    return Blob(digest, size, compression.media_type)


def structure(directories: Iterable[str], whiteouts: Iterable[str], tree: Tree) -> Iterator[bytes]:
    """What an archive starts with: the headers of directories, parents first, then of what it removes."""
    for path in directories:
        yield header(f"{path}/" if path else "./", tar.DIRECTORY, tree[path])
    for path in whiteouts:
        parent, slash, name = path.rpartition("/")
        yield tar.header(f"{parent}{slash}{WHITEOUT}{name}", tar.REGULAR, mode=0, uid=0, gid=0)


def header(name: str, typeflag: bytes, entry: Entry, *, mtime: int = 0, size: int = 0, linkname: str = "") -> bytes:
    """The header of one entry in an archive."""
    return tar.header(
        name,
        typeflag,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime=mtime,
        size=size,
        linkname=linkname,
        xattrs=() if typeflag == tar.HARDLINK else entry.xattrs,
    )


class _Output:
    """Compresses into a file, with the blob's digest and size."""

    def __init__(self, file: BinaryIO, compressor: Compressor, advance: Advance) -> None:
        self._file = file
        self._path = Path(file.name)
        self._compressor = compressor
        self._advance = advance
        self._hash = hashlib.sha256()
        self._size = 0
        self._gathered: list[bytes] = []
        self._waiting = 0

    def write(self, data: bytes) -> None:
        self._gathered.append(data)
        self._waiting += len(data)
        if self._waiting >= GATHER:
            self._compress()

    def close(self) -> tuple[str, int]:
        self._compress()
        self._add(b"".join(self._gathered))
        self._store(self._compressor.flush())
        with writing(self._path):
            self._file.flush()
        return "sha256:" + self._hash.hexdigest(), self._size

    def _compress(self) -> None:
        """Compress what was gathered, in pieces of one size: zlib-ng's bytes depend on where its input is cut."""
        data = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
        whole = len(data) - len(data) % GATHER
        self._gathered, self._waiting = [data[whole:]], len(data) - whole
        for at in range(0, whole, GATHER):
            self._add(memoryview(data)[at : at + GATHER])

    def _add(self, data: bytes | memoryview) -> None:
        self._store(self._compressor.compress(data))
        self._advance(len(data))

    def _store(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        with writing(self._path):
            self._file.write(data)


def _archive(plan: LayerPlan, tree: Tree, contents: Contents, newest: int | None) -> Iterator[bytes]:
    yield from structure(plan.directories, plan.whiteouts, tree)
    first_of: dict[str, str] = {}
    for path in plan.paths:
        entry = tree[path]
        mtime = entry.mtime if newest is None else min(entry.mtime, newest)
        if entry.kind == "l":
            yield header(path, tar.SYMLINK, entry, mtime=mtime, linkname=entry.target)
        elif entry.group in first_of:
            first = first_of[entry.group]
            entry.digest = tree[first].digest
            yield header(path, tar.HARDLINK, entry, mtime=mtime, linkname=first)
        else:
            if entry.group:
                first_of[entry.group] = path
            yield header(path, tar.REGULAR, entry, mtime=mtime, size=entry.size)
            if entry.size:
                yield from _content(path, entry, contents)
    yield tar.END


def _content(path: str, entry: Entry, contents: Contents) -> Iterator[bytes]:
    content = new_digest()
    size = 0
    for piece in contents.pieces(path, entry.size):
        content.update(piece)
        size += len(piece)
        yield piece
    digest = content.digest()
    if size != entry.size or (entry.digest or digest) != digest:
        raise InputError(f"{path} changed while it was read: build from a tree that nothing writes to")
    entry.digest = digest
    yield tar.padding(size)
