"""Two directory trees, path by path: is what a client made of an image what was wanted?

What counts is what a program in the tree can see: type, mode, owner, extended attributes, link target, content, and
which paths are hard links of each other. Modification times do not count, since OSTree stores none.

Invariants:
- Neither tree is trusted or changed; symbolic links are not followed; names are bytes, any bytes.
- What an image leaves out by design is no difference: the contents of `UNSHIPPED` directories, and device nodes,
  FIFOs and sockets of the wanted tree.
- A directory that only one tree has is one difference, whatever is below it.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

UNSHIPPED = frozenset({b"proc", b"sys", b"dev", b"run", b"tmp", b"sysroot"})
"""Top-level directories that are filled on the running machine; the directories themselves are shipped."""

KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}
SHIPPED = (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK)
BLOCK = 1 << 20

Links = defaultdict[tuple[int, int], list[bytes]]


def differences(
    want: Path,
    got: Path,
    *,
    hardlinks: bool = True,
    xattrs: bool = True,
    root: bool = False,
    ignore_xattrs: Collection[str] = ("security.selinux",),
    ignore: Collection[str] = (),
) -> list[str]:
    """One line for each difference, none when `got` is what was wanted.

    `hardlinks` and `xattrs` can be left out for a client that does not deliver them. The `root` directory's own mode,
    owner and attributes are left out unless asked for: no client delivers them. `ignore` names paths ("etc/hostname")
    left out with all that is below.
    """
    ignored = {os.fsencode(path) for path in ignore}
    trees = os.fsencode(want), os.fsencode(got)
    links: tuple[Links, Links] = defaultdict(list), defaultdict(list)
    found: list[str] = []

    def compare(path: bytes, a: os.stat_result, b: os.stat_result) -> None:
        here, there = (os.path.join(tree, path) for tree in trees)
        said = [f"{name} {x} -> {y}" for name, x, y in _attributes(a, b) if x != y]
        if xattrs:
            said += _xattr_differences(_xattrs(here, ignore_xattrs), _xattrs(there, ignore_xattrs))
        kinds = {stat.S_IFMT(a.st_mode), stat.S_IFMT(b.st_mode)}
        if kinds == {stat.S_IFLNK} and (x := os.readlink(here)) != (y := os.readlink(there)):
            said.append(f"target {_show(x)} -> {_show(y)}")
        if kinds == {stat.S_IFREG}:
            if a.st_size == b.st_size and not _same_content(here, there):
                said.append("content")
            links[0][a.st_dev, a.st_ino].append(path)
            links[1][b.st_dev, b.st_ino].append(path)
        found.extend(f"{_show(path)}: {text}" for text in said)

    if root:
        compare(b"", *(os.lstat(tree) for tree in trees))
    pending = [b""]
    while pending:
        directory = pending.pop()
        wanted, present = (dict(_entries(tree, directory, ignored)) for tree in trees)
        wanted = {path: a for path, a in wanted.items() if stat.S_IFMT(a.st_mode) in SHIPPED}
        for path in sorted(wanted.keys() | present.keys()):
            a, b = wanted.get(path), present.get(path)
            if a is None or b is None:
                found.append(f"{_show(path)}: {'missing' if b is None else 'not wanted'}")
                continue
            compare(path, a, b)
            if stat.S_ISDIR(a.st_mode) and stat.S_ISDIR(b.st_mode) and path not in UNSHIPPED:
                pending.append(path)
    if hardlinks:
        groups, others = ({tuple(paths) for paths in side.values() if len(paths) > 1} for side in links)
        found += [f"{_show_group(group)}: no longer hard links of each other" for group in sorted(groups - others)]
        found += [f"{_show_group(group)}: not wanted as hard links" for group in sorted(others - groups)]
    return found


def _entries(tree: bytes, directory: bytes, ignored: set[bytes]) -> Iterator[tuple[bytes, os.stat_result]]:
    with os.scandir(os.path.join(tree, directory)) as found:
        for entry in found:
            path = os.path.join(directory, entry.name)
            if path not in ignored:
                yield path, entry.stat(follow_symlinks=False)


def _attributes(a: os.stat_result, b: os.stat_result) -> Iterator[tuple[str, object, object]]:
    yield "type", KINDS[stat.S_IFMT(a.st_mode)], KINDS[stat.S_IFMT(b.st_mode)]
    yield "mode", f"{stat.S_IMODE(a.st_mode):04o}", f"{stat.S_IMODE(b.st_mode):04o}"
    yield "uid", a.st_uid, b.st_uid
    yield "gid", a.st_gid, b.st_gid
    if stat.S_ISREG(a.st_mode) and stat.S_ISREG(b.st_mode):
        yield "size", a.st_size, b.st_size


def _xattrs(path: bytes, ignored: Collection[str]) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name not in ignored}


def _xattr_differences(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    return [f"xattr {name} {a.get(name)!r} -> {b.get(name)!r}" for name in sorted(a | b) if a.get(name) != b.get(name)]


def _same_content(a: bytes, b: bytes) -> bool:
    with open(a, "rb") as x, open(b, "rb") as y:
        while (block := x.read(BLOCK)) == y.read(BLOCK):
            if not block:
                return True
    return False


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace") or "/"


def _show_group(paths: tuple[bytes, ...]) -> str:
    return " = ".join(map(_show, paths))
