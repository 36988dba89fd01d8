"""A tree as files: a copy that may be changed, of a source that may not.

Every parent of a path was made here as a directory, and nothing is opened that exists already, so no link or name of
an image leads anywhere else. What a change to a file would undo is set last: owner, then mode and attributes (a new
owner takes capabilities away), and directories after all that is in them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from rechunk_action.errors import CorruptImage
from rechunk_action.source import Source
from rechunk_action.tree.entry import ROOT, Entry, Tree, link_groups, parent_of


def unpack(source: Source, directory: Path, advance: Callable[[int], None]) -> None:
    """Write the tree of a source, which has been scanned, into an empty directory. Takes root.

    `advance` is told of bytes as they are written. Raises `CorruptImage` for a tree that no file system can hold, what
    the source raises, and `OSError`.
    """
    tree, root = source.tree, str(directory)
    _check(tree)

    def take(path: str, pieces: Iterable[bytes | memoryview]) -> None:
        full = f"{root}/{path}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(full)  # it has been handed out before
        with open(full, "xb", opener=_new) as file:
            for piece in pieces:
                file.write(piece)
                advance(len(piece))
        _describe(full, tree[path])

    directories = sorted(path for path, entry in tree.items() if entry.is_dir and path != ROOT)
    for path in directories:
        os.mkdir(f"{root}/{path}", 0o700)
    for path, entry in tree.items():
        if entry.kind == "f" and not entry.size and entry.group in ("", path):
            take(path, ())
    source.hand_out(take)
    for paths in link_groups(tree.items()).values():
        for path in paths[1:]:
            os.link(f"{root}/{paths[0]}", f"{root}/{path}")
    for path, entry in tree.items():
        if entry.kind == "l":
            os.symlink(entry.target, f"{root}/{path}")
            _describe(f"{root}/{path}", entry)
    for path in [*reversed(directories), ROOT]:
        _describe(f"{root}/{path}", tree[path])


def _check(tree: Tree) -> None:
    for path in tree:
        if path != ROOT and not tree[parent_of(path)].is_dir:
            raise CorruptImage(f"/{path} lies below something that is no directory: build the image again")


def _new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _describe(full: str, entry: Entry) -> None:
    """Give a new file, link or directory its owner, mode, attributes and time."""
    os.chown(full, entry.uid, entry.gid, follow_symlinks=False)
    if entry.kind != "l":
        os.chmod(full, entry.mode)
    for name, value in entry.xattrs:
        try:
            os.setxattr(full, name, value, follow_symlinks=False)
        except PermissionError:
            if entry.kind != "l":  # which carry few kinds, and no client shows those of others
                raise
    os.utime(full, (entry.mtime, entry.mtime), follow_symlinks=False)
