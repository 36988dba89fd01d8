"""A directory on disk as a tree: one walk, contents hashed by other threads while it goes on.

What an image cannot carry never gets past here. Some things are left out, since they are not part of an image:
sockets, devices and FIFOs, and the contents of directories that a running system mounts over. Others are refused,
because leaving them out would lose something silently: names that are not UTF-8, names that mean "removed" to
clients, attribute values that break importers (ostree-ext splits PAX records at newlines and loses empty values).
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from rechunk_action.errors import EnvironmentLack, InputError, UnsupportedTree
from rechunk_action.progress import Advance
from rechunk_action.tree.entry import EMPTY_DIGEST, IGNORED_XATTRS, ROOT, Entry, Tree, is_utf8, new_digest
from rechunk_action.workers import Task, Workers, checkpoint

MOUNTED_OVER = frozenset({"proc", "sys", "dev", "run", "tmp", "sysroot"})
"""Top-level directories whose contents belong to the running system and not to the image."""

PIECE = 1 << 20
"""Bytes read at once: most files take one system call."""

_LISTED = 3

_BATCH = 64
"""Files hashed by one task at most."""


@dataclass
class Scan:
    """A tree and what was left out of it: `skipped` counts devices, FIFOs and sockets, `dropped_xattrs` the attributes
    that were given up on request.
    """

    tree: Tree
    skipped: Counter[str] = field(default_factory=Counter)
    dropped_xattrs: int = 0


def scan(root: str, *, drop_bad_xattrs: bool = False, hasher: Hasher | None = None) -> Scan:
    """Walk a directory. Contents are read by the hasher, which the caller has to finish; without one they are not, and
    every file of some size has an empty digest.

    Raises `InputError` when the directory is missing, unreadable or empty, `UnsupportedTree` for what no client takes.
    """
    _check_root(root)
    found = Scan({})
    faults = Faults(drop_bad_xattrs=drop_bad_xattrs)
    inodes: dict[tuple[int, int], list[str]] = {}
    for path, status, full in _walk(root):
        try:
            entry = _entry(full, status, faults, path)
        except OSError as error:
            raise unreadable(full, error) from None
        if entry is None:
            found.skipped[_KIND_NAMES.get(stat.S_IFMT(status.st_mode), "unknown object")] += 1
            continue
        found.tree[path] = entry
        if entry.kind == "f" and status.st_nlink > 1:
            inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
        elif hasher and entry.kind == "f" and entry.size:
            hasher.add(full, entry)
    for paths in inodes.values():
        linked = [found.tree[path] for path in paths]
        for entry in linked if len(linked) > 1 else ():
            entry.group = min(paths)
        if hasher and linked[0].size:
            hasher.add(f"{root}/{paths[0]}", *linked)
    faults.check()
    found.dropped_xattrs = faults.dropped
    if len(found.tree) == 1:
        raise InputError(f"{root} is an empty directory: name the root file system of the image")
    return found


class Hasher:
    """Fills in the digests of files, each read once, in batches on other threads. A context manager."""

    def __init__(self, threads: int, advance: Advance) -> None:
        """`advance` is told of bytes as they are done."""
        self._workers = Workers(threads)
        self._advance = advance
        self._batches: list[Task[None]] = []
        self._batch: list[tuple[str, Sequence[Entry]]] = []
        self._waiting = 0
        self.size = 0
        """Bytes of all files that were given to it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers.__exit__(*exception)

    def add(self, full: str, *entries: Entry) -> None:
        """Hash a file, with several entries where it has hard links, when its turn comes.

        Small files go together, so that threads rarely wait for each other.
        """
        self._batch.append((full, entries))
        self._waiting += entries[0].size
        self.size += entries[0].size
        if self._waiting > 4 * PIECE or len(self._batch) >= _BATCH:
            self._submit()

    def finish(self) -> None:
        """Wait until every digest is filled in. Raises what went wrong."""
        self._submit()
        for batch in self._batches:
            batch.result()

    def _submit(self) -> None:
        self._batches.append(self._workers.submit(self._hash, self._batch))
        self._batch, self._waiting = [], 0

    def _hash(self, batch: Sequence[tuple[str, Sequence[Entry]]]) -> None:
        small = 0
        for full, entries in batch:
            checkpoint()
            if entries[0].size > PIECE:
                digest = _hash_large(full, self._advance)
            else:
                digest = _hash_small(full)
                small += entries[0].size
            for entry in entries:
                entry.digest = digest
        self._advance(small)


def file_pieces(full: str) -> Iterator[bytes]:
    """A file's content, read in order."""
    descriptor = _open(full)
    try:
        while data := os.read(descriptor, PIECE):
            checkpoint()
            yield data
    except OSError as error:
        raise unreadable(full, error) from None
    finally:
        os.close(descriptor)


def unreadable(path: str, error: OSError) -> InputError | EnvironmentLack:
    """What to tell the user when a part of the source cannot be read."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return EnvironmentLack(f"no right to read {path}: run as root, as an image's files belong to many users")
    return InputError(f"{path} cannot be read ({error.strerror}): check the source and build again")


class Faults:
    """Collects what a tree holds that no client can take, to report it at once."""

    def __init__(self, *, drop_bad_xattrs: bool) -> None:
        self._drop = drop_bad_xattrs
        self._names: list[str] = []
        self._xattrs: list[str] = []
        self.dropped = 0

    def name(self, path: str, target: str = "") -> None:
        """Take note of a name (and a link's target) that cannot be written."""
        if path.isascii() and target.isascii() and ".wh." not in path:
            return  # nearly all
        name = path.rpartition("/")[2]
        if not is_utf8(path) or not is_utf8(target):
            self._names.append(f"{os.fsencode(path)!r} is not valid UTF-8")
        elif name.startswith(".wh."):
            self._names.append(f"{path!r} has the prefix .wh., which tells clients to remove a file")

    def xattrs(self, path: str, pairs: Iterable[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
        """The attributes that can be written, sorted by name."""
        good = []
        for key, value in pairs:
            if value and b"\n" not in value and is_utf8(key) and "=" not in key:
                good.append((key, value))
            else:
                self._xattrs.append(f"attribute {key} of {path!r}")
        return tuple(sorted(good))

    def check(self) -> None:
        """Raises `UnsupportedTree` naming the first paths at fault."""
        if self._names:
            raise UnsupportedTree(
                f"{_listed(self._names)}: image clients cannot take such names; rename or remove them"
            )
        if self._xattrs and not self._drop:
            raise UnsupportedTree(
                f"{_listed(self._xattrs)}: importers fail on a value that holds a newline byte and lose an empty one; "
                "remove the attribute (setfattr -x), or leave such attributes out with --drop-bad-xattrs"
            )
        self.dropped = len(self._xattrs)


_KIND_NAMES = {
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


def _check_root(root: str) -> None:
    try:
        mode = os.stat(root).st_mode
    except FileNotFoundError:
        raise InputError(f"{root} does not exist: name the root file system of the image") from None
    except OSError as error:
        raise unreadable(root, error) from None
    if not stat.S_ISDIR(mode):
        raise InputError(f"{root} is not a directory: name the root file system of the image")


def _walk(root: str) -> Iterator[tuple[str, os.stat_result, str]]:
    """Every path below root, parents first: relative path, status, path to open."""
    yield ROOT, os.stat(root), root
    pending = [(ROOT, root)]
    while pending:
        path, full = pending.pop()
        prefix = f"{path}/" if path else ""
        try:
            with os.scandir(full) as children:
                for child in children:
                    status = child.stat(follow_symlinks=False)
                    below = prefix + child.name
                    yield below, status, child.path
                    if stat.S_ISDIR(status.st_mode) and below not in MOUNTED_OVER:
                        pending.append((below, child.path))
        except OSError as error:
            raise unreadable(full, error) from None


def _entry(full: str, status: os.stat_result, faults: Faults, path: str) -> Entry | None:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        size = status.st_size
        entry = Entry("f", mode & 0o7777, status.st_uid, status.st_gid, int(status.st_mtime), size)
        if not size:
            entry.digest = EMPTY_DIGEST
    elif stat.S_ISDIR(mode):
        entry = Entry("d", mode & 0o7777, status.st_uid, status.st_gid)
    elif stat.S_ISLNK(mode):
        entry = Entry("l", 0o777, status.st_uid, status.st_gid, int(status.st_mtime), target=os.readlink(full))
    else:
        return None
    faults.name(path, entry.target)
    names = os.listxattr(full, follow_symlinks=False)
    if names:
        entry.xattrs = faults.xattrs(path, _xattrs(full, names))
    return entry


def _xattrs(full: str, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        if not name.startswith(IGNORED_XATTRS):
            yield name, os.getxattr(full, name, follow_symlinks=False)


def _hash_large(full: str, advance: Advance) -> bytes:
    content = new_digest()
    for piece in file_pieces(full):
        content.update(piece)
        advance(len(piece))
    return content.digest()


def _hash_small(full: str) -> bytes:
    descriptor = _open(full)
    try:
        return new_digest(os.read(descriptor, PIECE)).digest()  # one call: most of a small file's cost is calls
    except OSError as error:
        raise unreadable(full, error) from None
    finally:
        os.close(descriptor)


def _open(full: str) -> int:
    try:
        return os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(full, error) from None


def _listed(faults: Sequence[str]) -> str:
    more = f" (and {len(faults) - _LISTED:,} more)" if len(faults) > _LISTED else ""
    return ", ".join(faults[:_LISTED]) + more
