"""One path of a file system: what it is, and when two of them are the same.

An image client sees a path's type, mode, owner, extended attributes, link target, content and the set of paths that
are hard links of it. These make up an entry's identity. Its mtime does not: OSTree stores none, and a build that only
touches a file must not ship it again.

Paths are relative to the root, without a leading slash; the root directory itself is `""`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec
from blake3 import blake3

Kind = Literal["d", "f", "l", "x"]
"""Directory, regular file, symbolic link: all that a layer can carry to every client. `x` is anything else (a device,
a FIFO): it occurs in layers of other builders, never in a tree of ours."""

ROOT = ""

UNKNOWN_MODE = -1
"""Mode of a directory that a layer needs but does not describe: each client makes up its own."""


new_digest = blake3
"""What contents are known by: BLAKE3, which is up to twice as fast as SHA-256 and as hard to deceive. It
stays between a tree and its tables; what a registry or a client sees is named by SHA-256, as OCI has it."""

EMPTY_DIGEST = new_digest().digest()

IGNORED_XATTRS = ("security.selinux", "trusted.overlay.", "user.overlay.")
"""Attributes, by prefix, that no image carries: clients label from the tree's own SELinux policy, and the others are
overlayfs's notes to itself."""


class Entry(msgspec.Struct, array_like=True, gc=False, eq=False):
    """A directory, file or symbolic link.

    `mode` holds the permission bits (0o7777), `xattrs` sorted pairs of name and value, `target` a symbolic link's
    text, `size` bytes. `digest` is that of the content (`new_digest`, 32 bytes): empty for what is not a regular file,
    and for a file whose content has not been read yet. `group` names the first path of a set of hard links, `""` when
    the file has one name. `cost` is the share of its layer's compressed bytes, 0 outside a layer.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int = 0
    size: Annotated[int, msgspec.Meta(ge=0)] = 0
    digest: bytes = b""
    target: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    group: str = ""
    cost: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def is_dir(self) -> bool:
        return self.kind == "d"

    def same_as(self, other: Entry) -> bool:
        """Whether the two have one identity, hard-link groups aside: those belong to a tree, not to an entry."""
        return (
            self.digest == other.digest
            and self.size == other.size
            and self.mode == other.mode
            and self.kind == other.kind
            and self.uid == other.uid
            and self.gid == other.gid
            and self.target == other.target
            and self.xattrs == other.xattrs
        )


Tree = dict[str, Entry]
"""A merged file system: path -> entry, every parent directory included."""


def parent_of(path: str) -> str:
    return path.rpartition("/")[0]


def ancestors(path: str) -> list[str]:
    """All proper ancestors of a path, the root first. The root has none."""
    if path == ROOT:
        return []
    found = [ROOT]
    end = path.find("/")
    while end != -1:
        found.append(path[:end])
        end = path.find("/", end + 1)
    return found


def is_utf8(text: str) -> bool:
    """Whether a name decoded with `surrogateescape` was valid UTF-8."""
    return text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text)


def link_groups(entries: Iterable[tuple[str, Entry]]) -> Mapping[str, list[str]]:
    """Sorted members of each hard-link group with at least two of them, by the group's name."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path, entry in entries:
        if entry.group:
            groups[entry.group].append(path)
    return {name: sorted(paths) for name, paths in groups.items() if len(paths) > 1}
