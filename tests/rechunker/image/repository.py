"""A commit in an OSTree repository of mode bare-user, read from its files.

Metadata objects are GVariants. All that is read of them is made of strings, arrays and tuples: items one after the
other, with the offsets of their ends behind them, those of a tuple last to first and without that of its last item.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CHECKSUM = 32
_HEADER = struct.Struct(">III")


@dataclass(frozen=True)
class Metadata:
    """Owner, mode and extended attributes; `attributes` is the GVariant that they came in."""

    uid: int
    gid: int
    mode: int
    attributes: bytes

    @property
    def xattrs(self) -> dict[bytes, bytes]:
        pairs = (_members(pair, 2) for pair in _items(self.attributes))
        return {name.removesuffix(b"\0"): value for name, value in pairs}


@dataclass(frozen=True)
class Directory:
    path: str
    tree: str
    meta: str


class Commit:
    """The commit that a branch names. `files` is path -> checksum, `directories` starts with the root, `""`."""

    def __init__(self, repository: Path, branch: str) -> None:
        self._repository = repository
        self.checksum = (repository / "refs/heads" / branch).read_text().strip()
        self.files: dict[str, str] = {}
        self.directories: list[Directory] = []
        commit = self.path(self.checksum, "commit").read_bytes()
        # The last two of eight members; six, those of variable size but the last, have an offset each.
        end = len(commit) - 6 * _offset_size(commit)
        tree, meta = commit[end - 2 * CHECKSUM : end - CHECKSUM], commit[end - CHECKSUM : end]
        self._walk("", tree.hex(), meta.hex())

    def path(self, checksum: str, kind: str) -> Path:
        """Where an object is; the contents of a file, the target of a symbolic link."""
        return self._repository / "objects" / checksum[:2] / f"{checksum[2:]}.{kind}"

    def file(self, checksum: str) -> Metadata:
        return _metadata(os.getxattr(self.path(checksum, "file"), "user.ostreemeta"))

    def directory(self, checksum: str) -> Metadata:
        return _metadata(self.path(checksum, "dirmeta").read_bytes())

    @cached_property
    def content(self) -> list[str]:
        """The checksums of all files and symbolic links, in order."""
        return sorted(set(self.files.values()))

    def _walk(self, path: str, tree: str, meta: str) -> None:
        self.directories.append(Directory(path, tree, meta))
        files, directories = _members(self.path(tree, "dirtree").read_bytes(), 2)
        for name, checksum in _entries(files, 2):
            self.files[f"{path}/{name}".removeprefix("/")] = checksum[0]
        for name, (below, its_meta) in _entries(directories, 3):
            self._walk(f"{path}/{name}".removeprefix("/"), below, its_meta)


def _entries(array: bytes, members: int) -> Iterator[tuple[str, list[str]]]:
    for item in _items(array):
        name, *checksums = _members(item, members)
        yield os.fsdecode(name.removesuffix(b"\0")), [checksum.hex() for checksum in checksums]


def _metadata(variant: bytes) -> Metadata:
    uid, gid, mode = _HEADER.unpack_from(variant)
    return Metadata(uid, gid, mode, variant[_HEADER.size :])


def _members(tuple_: bytes, count: int) -> list[bytes]:
    size = _offset_size(tuple_)
    end = len(tuple_) - (count - 1) * size
    ends = [int.from_bytes(tuple_[at : at + size], "little") for at in range(end, len(tuple_), size)]
    return _cut(tuple_, [*reversed(ends), end])


def _items(array: bytes) -> list[bytes]:
    if not array:
        return []
    size = _offset_size(array)
    end = int.from_bytes(array[-size:], "little")
    return _cut(array, [int.from_bytes(array[at : at + size], "little") for at in range(end, len(array), size)])


def _cut(data: bytes, ends: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _offset_size(container: bytes) -> int:
    return next(size for size in (1, 2, 4, 8) if len(container) < 1 << 8 * size)
