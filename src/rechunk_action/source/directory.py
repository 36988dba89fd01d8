"""`dir:PATH`: a root file system that is mounted or unpacked somewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rechunk_action.oci.image import Json
from rechunk_action.progress import UNHEARD, Meter
from rechunk_action.source import Taker
from rechunk_action.source.notices import left_out
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.recheck import recheck
from rechunk_action.tree.scan import Hasher, Scan, file_pieces, scan
from rechunk_action.workers import Workers, checkpoint

_BATCH, _BATCH_SIZE = 64, 4 << 20
"""Files, and bytes, from which on no more are given to one task."""


class DirectorySource:
    """A directory as a source. Nothing is written to it, by us or by anybody, until the image is there."""

    tree: Tree
    notices: list[str]
    _found: Scan

    def __init__(self, path: str, *, config: Json | None = None, drop_bad_xattrs: bool = False) -> None:
        self.directory: str | None = path
        self._root = path.rstrip("/") or "/"
        self._drop_bad_xattrs = drop_bad_xattrs
        self.config = config

    def scan(self, hasher: Hasher | None, meter: Meter = UNHEARD) -> None:
        found = scan(self._root, drop_bad_xattrs=self._drop_bad_xattrs, hasher=hasher)
        if hasher:
            meter.expect(hasher.size)
        self._found, self.tree = found, found.tree
        self.notices = left_out(found.skipped, found.dropped_xattrs)
        if found.skipped or found.dropped_xattrs:
            self.directory = None

    def prepare(self, paths: Collection[str], meter: Meter = UNHEARD) -> None:
        """Nothing to do: every file can be opened."""

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        return file_pieces(f"{self._root}/{path}", size)

    def hand_out(self, take: Taker, threads: int = 1) -> None:
        def read(batch: Sequence[str]) -> None:
            for path in batch:
                checkpoint()
                take(path, self.pieces(path, self.tree[path].size))

        with Workers(threads) as workers:
            for _ in workers.map(read, self._batches()):
                pass

    def _batches(self) -> Iterator[list[str]]:
        """The files to hand out. Small ones go together, so that threads rarely wait for each other."""
        batch, size = [], 0
        for path, entry in self.tree.items():
            if entry.kind == "f" and entry.size and entry.group in ("", path):
                batch.append(path)
                size += entry.size
                if size > _BATCH_SIZE or len(batch) == _BATCH:
                    yield batch
                    batch, size = [], 0
        yield batch

    def read(self, path: str) -> bytes:
        return b"".join(self.pieces(path, self.tree[path].size))

    def recheck(self, threads: int = 1) -> None:
        recheck(self._root, self._found, drop_bad_xattrs=self._drop_bad_xattrs, threads=threads)
