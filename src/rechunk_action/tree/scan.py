"""A directory on disk as a tree: one walk, contents hashed by other threads while it goes on.

What an image cannot carry never gets past here. Some things are left out, since they are not part of an image:
sockets, devices and FIFOs, and the contents of directories that a running system mounts over. Others are refused,
because leaving them out would lose something silently: names that are not UTF-8, names that mean "removed" to
clients, attribute values that break importers (ostree-ext splits PAX records at newlines and loses empty values).

Something may write to the directory meanwhile. Of a file, exactly the bytes are read that the walk saw it have; what
else changes shows when the tree is looked at again (`tree/recheck`), for which each path leaves a sign.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from array import array
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

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Without O_NONBLOCK, a FIFO that has come in the place of a file would be a wait without end."""

_BATCH = 64
"""Files hashed by one task at most."""

COARSE = 2_000_000_000
"""Nanoseconds within which two changes may bear the same time: kernels tell of ticks, file systems even of seconds."""

NO_SIGN = 0
"""The sign of what changed just before it was looked at: it may change again without another time to show for it."""


Seen = tuple[str, os.stat_result, str]
"""A path, its status, and the path to open."""


@dataclass
class Scan:
    """A tree and what was left out of it: `skipped` counts devices, FIFOs and sockets, `dropped_xattrs` the attributes
    that were given up on request. `signs` has a number for each path, in the order of the tree: its ctime, hashed. The
    kernel notes each change to a file there, to its names and attributes, too, and no program can set it; reading
    changes nothing.
    """

    tree: Tree
    skipped: Counter[str] = field(default_factory=Counter)
    dropped_xattrs: int = 0
    signs: array[int] = field(default_factory=lambda: array("q"))


def scan(root: str, *, drop_bad_xattrs: bool = False, hasher: Hasher | None = None) -> Scan:
    """Walk a directory. Contents are read by the hasher, which the caller has to finish; without one they are not, and
    every file of some size has an empty digest.

    Raises `InputError` when the directory is missing, unreadable or empty, `UnsupportedTree` for what no client takes.
    """
    _check_root(root)
    found = describe(_walk(root), drop_bad_xattrs=drop_bad_xattrs, hasher=hasher)
    if len(found.tree) == 1:
        raise InputError(f"{root} is an empty directory: name the root file system of the image")
    return found


def describe(seen: Iterable[Seen], *, drop_bad_xattrs: bool, hasher: Hasher | None) -> Scan:
    """What paths are, parents first. Raises what `scan` does."""
    found = Scan({})
    faults = Faults(drop_bad_xattrs=drop_bad_xattrs)
    inodes: dict[tuple[int, int], list[tuple[str, str]]] = {}
    settled = time.time_ns() - COARSE
    for path, status, full in seen:
        try:
            entry = _entry(full, status, faults, path)
        except OSError as error:
            raise unread(full, error) from None
        if entry is None:
            found.skipped[_KIND_NAMES.get(stat.S_IFMT(status.st_mode), "unknown object")] += 1
            continue
        found.tree[path] = entry
        # Of what bears a time to come, a clock is wrong, and no change of now will bear that time.
        ctime = status.st_ctime_ns
        found.signs.append(NO_SIGN if settled < ctime <= time.time_ns() else hash(ctime))
        if entry.kind == "f" and status.st_nlink > 1:
            inodes.setdefault((status.st_dev, status.st_ino), []).append((path, full))
        elif hasher and entry.kind == "f" and entry.size:
            hasher.add(full, entry)
    for names in inodes.values():
        linked = [found.tree[path] for path, _ in names]
        for entry in linked if len(linked) > 1 else ():
            entry.group = min(names)[0]
        if hasher and linked[0].size:
            hasher.add(names[0][1], *linked)
    faults.check()
    found.dropped_xattrs = faults.dropped
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
            size = entries[0].size
            if size > PIECE:
                digest = _hash_large(full, size, self._advance)
            else:
                digest = _hash_small(full, size)
                small += size
            for entry in entries:
                entry.digest = digest
        self._advance(small)


def file_pieces(full: str, size: int) -> Iterator[bytes]:
    """The content of a file that has so many bytes, read in order. Raises `InputError` when it has not."""
    if not size:
        return
    descriptor = _open(full)
    try:
        left = size
        while left:
            checkpoint()
            # One more than there should be shows that there is more, and that there is no more, in the same call.
            data = os.read(descriptor, min(PIECE, left + 1))
            left -= len(data)
            if not data or left < 0:
                raise changed(full)
            yield data
    except OSError as error:
        raise unread(full, error) from None
    finally:
        os.close(descriptor)


def changed(full: str, how: str = "changed while it was read") -> InputError:
    """What to tell the user when a tree does not stay as it is."""
    return InputError(f"{full} {how}: build from a tree that nothing writes to")


def unread(full: str, error: OSError) -> InputError | EnvironmentLack:
    """What to tell the user when a path of a tree, which was there and of some type, cannot be read."""
    if error.errno == errno.ENOENT:
        return changed(full, "vanished while the tree was read")
    if error.errno in _NO_LONGER:
        return changed(full, f"changed while it was read ({error.strerror})")
    return unreadable(full, error)


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


_NO_LONGER = frozenset(
    {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EAGAIN, errno.ESTALE}
)
"""Errors of a path that was something else when it was opened."""

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


def _walk(root: str) -> Iterator[Seen]:
    """Every path below root, parents first. Links are followed to the root only."""
    yield ROOT, os.stat(root), f"{root}/"
    pending = [(ROOT, root)]
    while pending:
        path, full = pending.pop()
        prefix = f"{path}/" if path else ""
        try:
            directory = os.open(full, _LIST | (os.O_NOFOLLOW if path else 0))
            try:
                yield from _children(directory, prefix, f"{full}/", pending)
            finally:
                os.close(directory)
        except OSError as error:
            raise unread(full, error) from None


def _children(directory: int, prefix: str, above: str, pending: list[tuple[str, str]]) -> Iterator[Seen]:
    """What is in a directory. Directories in it are added to those that are pending."""
    with os.scandir(directory) as children:
        for child in children:
            below, full = prefix + child.name, above + child.name
            try:
                status = child.stat(follow_symlinks=False)
            except OSError as error:
                raise unread(full, error) from None
            yield below, status, full
            if stat.S_ISDIR(status.st_mode) and below not in MOUNTED_OVER:
                pending.append((below, full))


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


def _hash_large(full: str, size: int, advance: Advance) -> bytes:
    content = new_digest()
    for piece in file_pieces(full, size):
        content.update(piece)
        advance(len(piece))
    return content.digest()


def _hash_small(full: str, size: int) -> bytes:
    descriptor = _open(full)
    try:
        data = os.read(descriptor, PIECE)  # one call: most of a small file's cost is calls
    except OSError as error:
        raise unread(full, error) from None
    finally:
        os.close(descriptor)
    return new_digest(data if len(data) == size else b"".join(file_pieces(full, size))).digest()


def _open(full: str) -> int:
    try:
        return os.open(full, _READ)
    except OSError as error:
        raise unread(full, error) from None


def _listed(faults: Sequence[str]) -> str:
    more = f" (and {len(faults) - _LISTED:,} more)" if len(faults) > _LISTED else ""
    return ", ".join(faults[:_LISTED]) + more
