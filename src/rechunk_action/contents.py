"""The versions of an image as clients see them, out of the tables of their layers.

Stored tables are taken where there are some. Other layers are read, if that is asked for, each once however many
versions have it: for its table, and for the package databases in it, which wait in scratch space.

Versions are asked for one after the other, and a table is held for as long as a version that is still to come has its
layer: so what is in memory is two versions, however many there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.oci.compression import bomb_limit
from rechunk_action.oci.config import CHUNKED_LABEL
from rechunk_action.oci.image import Image, watched
from rechunk_action.oci.table import Blob, Table, read_table
from rechunk_action.ostree.chunk import FORMAT, read_chunk, read_commit_layer
from rechunk_action.ostree.chunked import CommitLayer, last_chunk
from rechunk_action.ostree.view import view_path
from rechunk_action.plan.plain import Published
from rechunk_action.plan.simulation import Version, version_of
from rechunk_action.progress import Meter, Progress
from rechunk_action.record import bytes_by_component
from rechunk_action.registry.image import LOST
from rechunk_action.report.model import Facts
from rechunk_action.source.image import Spool, metadata_sink
from rechunk_action.stored import REQUESTS
from rechunk_action.tree.components import components
from rechunk_action.tree.packages import installed, read_packages
from rechunk_action.tree.packages.package import Package
from rechunk_action.workers import Workers

Part = tuple[Blob, str]
"""A layer, and the format of its table."""


class Contents:
    """Gives the versions of some images, in this order.

    `stored` has an image for each layer that has a table stored with one; without `deep`, no other layer is read.
    `meter` is told of what is read of layers, and `scratch` is a directory.
    """

    def __init__(
        self,
        images: Sequence[Image],
        stored: Mapping[Blob, Image],
        meter: Meter,
        *,
        deep: bool,
        threads: int,
        scratch: Path,
    ) -> None:
        self._coming = iter(enumerate(images))
        self._last = {blob: number for number, image in enumerate(images) for blob in image.layers}
        self._stored = stored
        self._meter = meter
        self._deep = deep
        self._threads = threads
        self._held: dict[Part, Table] = {}
        self._spool = Spool(scratch)
        self._numbers = {blob: number for number, blob in enumerate(blob for image in images for blob in image.layers)}

    def next(self) -> Version | None:
        """The next version, None when it has layers without tables.

        What lies on the chunks of an OSTree-chunked image is part of what clients see, and no update can keep it.
        Raises `CorruptImage` and `NotInRegistry` when a layer cannot be read.
        """
        number, image = next(self._coming)
        chunks = last_chunk(image) + 1 if CHUNKED_LABEL in image.labels else 0
        parts = [(blob, FORMAT if index < chunks else "") for index, blob in enumerate(image.layers)]
        try:
            if not self._hold(image, {part for part in parts if part not in self._held}):
                return None
            layers = [Published(part[0], self._held[part]) for part in parts]
        finally:
            self._held = {part: table for part, table in self._held.items() if self._last[part[0]] > number}
        if not chunks:
            return version_of(layers)
        on_top = [Published(layer.blob, replace(layer.table, problem=_ON_TOP)) for layer in layers[chunks:]]
        return version_of([*layers[1:chunks], *on_top], first=layers[0])

    def explain(self, facts: Facts, version: Version, progress: Progress) -> tuple[Facts, Version]:
        """What is known of a version, with packages and components where its package databases were read, and the
        version with the components of its files.
        """
        try:
            packages = self._packages(version)
            if packages is None:
                return facts, version
            owner = components(version.tree, packages)
        except (InputError, EnvironmentLack) as error:
            progress.notice(f"the packages of {facts.ref} are not known, and layers are taken for them: {error}")
            return facts, version
        layers = [
            told if told.components else replace(told, components=bytes_by_component(layer.blob, layer.table, owner))
            for told, layer in zip(facts.layers, version.layers, strict=True)
        ]
        known = installed(packages) if facts.packages is None else facts.packages
        return replace(facts, layers=layers, packages=known), dataclasses.replace(version, owner=owner)

    def _packages(self, version: Version) -> list[Package] | None:
        """The packages of a version, None where its databases were not read, as those in chunks never are.

        Raises `InputError` for a damaged database, `EnvironmentLack` when a program is missing that reads it.
        """

        def read(path: str) -> bytes:
            layer, there = version.places[path]
            place = self._numbers[layer.blob], there
            if version.tree[path].size and place not in self._spool.spans:
                raise _NotRead
            return b"".join(self._spool.pieces(place)) if version.tree[path].size else b""

        try:
            return None if version.first else read_packages(version.tree, read)
        except _NotRead:
            return None

    def _hold(self, image: Image, parts: Collection[Part]) -> bool:
        """Get the tables of some layers. Returns whether all are to be had."""
        if not self._deep and any(blob not in self._stored for blob, _ in parts):
            return False
        with Workers(max(self._threads, REQUESTS)) as workers:
            self._take(parts, workers.map(self._find, parts))
        missing = [part for part in parts if part not in self._held]
        if missing and self._deep:
            self._read(image, missing)
        return self._deep or not missing

    def _find(self, part: Part) -> Table | None:
        """The stored table of a layer."""
        blob, format_ = part
        table = self._stored[blob].blobs.table(blob, format_) if blob in self._stored else None
        return None if table is None or table.problem == LOST else table

    def _read(self, image: Image, parts: Collection[Part]) -> None:
        """Read the tables of some layers of an image from their blobs."""
        image = watched(image, [], self._meter)  # which expects them already
        first = image.layers[0]
        commit = _read_commit(image) if any(format_ for _, format_ in parts) else None
        empty = commit.paths() if commit else {}

        def read(part: Part) -> Table:
            blob, format_ = part
            if commit and blob == first:
                return _directories(commit)
            limit = bomb_limit(blob.size)
            with image.open(blob) as file:
                if format_:
                    return read_chunk(file, blob, limit=limit, empty=empty)
                return read_table(file, blob, limit=limit, sink=metadata_sink(self._spool, self._numbers[blob]))

        with Workers(self._threads) as workers:
            self._take(parts, workers.map(read, parts))

    def _take(self, parts: Collection[Part], tables: Iterable[Table | None]) -> None:
        self._held |= {part: table for part, table in zip(parts, tables, strict=True) if table is not None}


class _NotRead(Exception):
    """A content that was not kept when its layer was read, or whose layer was not read."""


_ON_TOP = "it lies on top of the chunks"


def _read_commit(image: Image) -> CommitLayer:
    first = image.layers[0]
    with image.open(first) as file:
        return read_commit_layer(file, first, limit=bomb_limit(first.size))


def _directories(commit: CommitLayer) -> Table:
    """The directories of a commit, as containers see them."""
    found = {view_path(path): entry for path, _, entry in commit.places() if entry is not None}
    return Table(found, format=FORMAT)
