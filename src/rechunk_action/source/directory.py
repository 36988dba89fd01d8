"""`dir:PATH`: a root file system that is mounted or unpacked somewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from rechunk_action.oci.image import Json
from rechunk_action.source.notices import left_out
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.scan import Hasher, file_pieces, scan


class DirectorySource:
    """A directory as a source. Nothing is written to it."""

    tree: Tree
    notices: list[str]

    def __init__(self, path: str, *, config: Json | None = None, drop_bad_xattrs: bool = False) -> None:
        self._root = path.rstrip("/") or "/"
        self._drop_bad_xattrs = drop_bad_xattrs
        self.config = config

    def scan(self, hasher: Hasher | None) -> None:
        found = scan(self._root, drop_bad_xattrs=self._drop_bad_xattrs, hasher=hasher)
        self.tree = found.tree
        self.notices = left_out(found.skipped, found.dropped_xattrs)

    def prepare(self, paths: Collection[str]) -> None:
        """Nothing to do: every file can be opened."""

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        del size
        return file_pieces(f"{self._root}/{path}")

    def read(self, path: str) -> bytes:
        return b"".join(file_pieces(f"{self._root}/{path}"))
