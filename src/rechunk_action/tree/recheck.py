"""Whether a directory is still the tree that was scanned.

A tree that something writes to while it is read becomes an image of no moment: half of it before a change, half after.
So before an image appears, each path is looked at once more. One that bears the sign it had at the walk was not changed
between; that takes microseconds, where contents take seconds. What bears another sign is scanned again, and has to come
out the same: neither a file that was merely touched nor a hard link from somewhere else is an alarm.

So an image holds the tree as it is when all of it was read. What file systems do not tell stays unseen: writes through
a mapping of a file that the kernel has not noted yet, those of other machines that a network file system has not heard
of yet.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from rechunk_action.progress import UNHEARD
from rechunk_action.tree.entry import Entry, Tree
from rechunk_action.tree.scan import MOUNTED_OVER, Hasher, Scan, Seen, changed, describe, unread


def recheck(root: str, found: Scan, *, drop_bad_xattrs: bool, threads: int) -> None:
    """Raises `InputError` naming the first path that is not as it was found."""
    suspects = list(_suspects(root, found))
    with Hasher(threads, UNHEARD) as hasher:
        again = describe(suspects, drop_bad_xattrs=drop_bad_xattrs, hasher=hasher)
        hasher.finish()
    for path, _, full in suspects:
        if path not in again.tree or not _same(found.tree[path], again.tree[path]):
            raise changed(full)
        if found.tree[path].is_dir and path not in MOUNTED_OVER:
            _check_names(path, full, found.tree)


def _suspects(root: str, found: Scan) -> Iterator[Seen]:
    for path, known in zip(found.tree, found.signs, strict=True):
        full = f"{root}/{path}"
        try:
            status = os.lstat(full)
        except OSError as error:
            raise unread(full, error) from None
        if hash(status.st_ctime_ns) != known:
            yield path, status, full


def _same(known: Entry, now: Entry) -> bool:
    """Whether a path is what it was. A content that nobody has a digest of is known by its time."""
    if not known.digest and known.mtime == now.mtime:
        now.digest = known.digest
    return known.same_as(now) and known.group == now.group


def _check_names(path: str, full: str, tree: Tree) -> None:
    """Look for names that a directory did not have. Those that it no longer has were looked for as paths."""
    prefix = f"{path}/" if path else ""
    try:
        with os.scandir(full) as children:
            for child in children:
                if prefix + child.name not in tree and _may_be_held(child.stat(follow_symlinks=False)):
                    raise changed(child.path, "appeared while the tree was read")
    except OSError as error:
        raise unread(full, error) from None


def _may_be_held(status: os.stat_result) -> bool:
    """Whether a tree holds things of that type."""
    return stat.S_IFMT(status.st_mode) in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK)
