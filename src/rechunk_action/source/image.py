"""`oci:DIR[:TAG]`: the tree of an image on disk, merged from its layers without unpacking them. Needs no rights.

The layers are read once for their tables and digests; what is needed of the contents is copied into scratch space:
package databases at once, as planning needs them, other files when a plan asks for them. Nothing is unpacked as files,
so no name, owner or link of the image can do anything to this machine.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from rechunk_action.errors import CorruptImage
from rechunk_action.oci.compression import bomb_limit
from rechunk_action.oci.image import Image, Json, watched
from rechunk_action.oci.merge import merge
from rechunk_action.oci.table import Sink, Table, read_table
from rechunk_action.progress import UNHEARD, Meter
from rechunk_action.source import Taker
from rechunk_action.source.notices import left_out
from rechunk_action.tree.entry import UNKNOWN_MODE, Entry, Tree
from rechunk_action.tree.lint import READ as READ_BY_LINT
from rechunk_action.tree.packages import DATABASES
from rechunk_action.tree.release import OS_RELEASE
from rechunk_action.tree.scan import MOUNTED_OVER, PIECE, Faults, Hasher
from rechunk_action.workers import Workers

Place = tuple[int, str]
"""Where a content is: index of the layer, path in it."""


class ImageSource:
    """An image as a source. `scratch` is a directory for contents, the caller's to remove."""

    tree: Tree
    notices: list[str]

    def __init__(self, image: Image, scratch: Path, *, threads: int, drop_bad_xattrs: bool = False) -> None:
        self.config: Json | None = image.config
        self.directory: str | None = None
        self._image = image
        self._threads = threads
        self._drop_bad_xattrs = drop_bad_xattrs
        self._spool = Spool(scratch)
        self._places: dict[str, Place] = {}

    def scan(self, hasher: Hasher | None, meter: Meter = UNHEARD) -> None:
        """Reading the layers tells the digests, too: there is nothing to do for a hasher."""
        del hasher
        tables = self._read_layers(lambda index: metadata_sink(self._spool, index), meter=meter)
        faults = Faults(drop_bad_xattrs=self._drop_bad_xattrs)
        self.tree, skipped = self._merge(tables, faults)
        faults.check()
        self.notices = left_out(skipped, faults.dropped)

    def prepare(self, paths: Collection[str], meter: Meter = UNHEARD) -> None:
        wanted = {self._places[path] for path in paths if self.tree[path].size} - self._spool.spans.keys()
        if not wanted:
            return
        layers = {index for index, _ in wanted}

        def sink_for(index: int) -> Sink | None:
            if index not in layers:
                return None

            def sink(path: str, entry: Entry, pieces: Iterator[memoryview]) -> None:
                if (index, path) in wanted:
                    self._spool.add((index, path), entry.size, pieces)

            return sink

        self._read_layers(sink_for, only=layers, meter=meter)

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        del size
        return self._spool.pieces(self._places[path])

    def hand_out(self, take: Taker, threads: int = 1) -> None:
        del threads
        first = {place: path for path, place in sorted(self._places.items(), reverse=True) if self.tree[path].size}

        def sink_for(index: int) -> Sink:
            def sink(path: str, entry: Entry, pieces: Iterator[memoryview]) -> None:
                del entry
                if (index, path) in first:
                    take(first[index, path], pieces)

            return sink

        self._read_layers(sink_for)

    def read(self, path: str) -> bytes:
        if not self.tree[path].size:
            return b""
        self.prepare([path])
        return b"".join(self._spool.pieces(self._places[path]))

    def recheck(self, threads: int = 1) -> None:
        """Nothing to do: layers are held against their digests whenever they are read."""

    def _read_layers(
        self, sink_for: Callable[[int], Sink | None], *, only: Collection[int] | None = None, meter: Meter = UNHEARD
    ) -> list[Table]:
        layers = self._image.layers
        indexes = range(len(layers)) if only is None else sorted(only)
        image = watched(self._image, [layers[index] for index in indexes], meter)

        def read(index: int) -> Table:
            blob = layers[index]
            with image.open(blob) as file:
                return read_table(file, blob, limit=bomb_limit(blob.size), sink=sink_for(index))

        with Workers(self._threads) as workers:
            return list(workers.map(read, indexes))

    def _merge(self, tables: list[Table], faults: Faults) -> tuple[Tree, Counter[str]]:
        """The tree that the layers make, and what no image of ours can hold."""
        tree: Tree = {}
        skipped: Counter[str] = Counter()
        groups: dict[Place, list[str]] = {}
        for path, (index, entry) in merge(tables, "described").items():
            if path.partition("/")[0] in MOUNTED_OVER and "/" in path:
                continue
            if entry.kind == "x":
                skipped["special file"] += 1
                continue
            faults.name(path, entry.target)
            place = (index, entry.group or path)
            tree[path] = Entry(
                entry.kind,
                entry.mode if entry.mode != UNKNOWN_MODE else 0o755,
                entry.uid,
                entry.gid,
                0 if entry.is_dir else entry.mtime,
                entry.size,
                entry.digest,
                entry.target,
                faults.xattrs(path, entry.xattrs),
            )
            if entry.kind == "f":
                self._places[path] = place
                groups.setdefault(place, []).append(path)
        for paths in groups.values():
            for path in paths if len(paths) > 1 else ():
                tree[path].group = min(paths)
        if len(tree) <= 1:
            raise CorruptImage(f"{self._image.blobs} holds an image without any file: build it again")
        return tree, skipped


_KEPT = (*DATABASES, *READ_BY_LINT, "etc/selinux/", "usr/etc/selinux/")


class Spool:
    """Contents in one nameless file, each in a span of its own. Threads may add at the same time."""

    def __init__(self, scratch: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # lives as long as the spool
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._end = 0
        self.spans: dict[Place, tuple[int, int]] = {}

    def add(self, place: Place, size: int, pieces: Iterator[memoryview]) -> None:
        with self._lock:
            at = self._end
            self._end += size
            self.spans[place] = (at, size)
        for piece in pieces:
            at += os.pwrite(self._file.fileno(), piece, at)

    def pieces(self, place: Place) -> Iterator[bytes]:
        start, size = self.spans[place]
        for at in range(start, start + size, PIECE):
            yield os.pread(self._file.fileno(), min(PIECE, start + size - at), at)


def metadata_sink(spool: Spool, index: int) -> Sink:
    """Keeps what planning reads: package databases, the file that names the system, its policy, how it boots."""

    def sink(path: str, entry: Entry, pieces: Iterator[memoryview]) -> None:
        if path.startswith(_KEPT) or path in OS_RELEASE:
            spool.add((index, path), entry.size, pieces)

    return sink
