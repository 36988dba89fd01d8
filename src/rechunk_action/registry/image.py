"""Images in a registry: read by digest, layer by layer, only as far as someone asks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from rechunk_action.errors import CorruptImage, NotInRegistry
from rechunk_action.oci.image import INDEXES, MANIFESTS, MAX_JSON, MAX_RECORD, Image, Json, load_image
from rechunk_action.oci.table import Blob, Table, decode_table
from rechunk_action.progress import UNHEARD, Advance
from rechunk_action.registry.client import Manifest, Repository
from rechunk_action.registry.tables import MAX_STORED, NOTHING, find_beside
from rechunk_action.tree.entry import ROOT, UNKNOWN_MODE, Entry

LOST = "the registry does not have it any more"
"""The problem of a layer that is gone."""


class RegistryBlobs:
    """The blobs of a repository. `beside` tells what is stored beside the image, as far as it is known."""

    def __init__(self, repository: Repository, manifest: Manifest) -> None:
        """`manifest` is one that was read already."""
        self.repository = repository
        self.beside = NOTHING
        self._manifest = manifest

    def __str__(self) -> str:
        return str(self.repository)

    @property
    def tables(self) -> Mapping[str, Json]:
        """The descriptors of the layers' stored tables, by the layers' digests."""
        return self.beside.tables

    def document(self, descriptor: Json) -> bytes:
        digest, size = descriptor["digest"], descriptor["size"]
        if digest == self._manifest.digest:
            return self._manifest.data
        if descriptor.get("mediaType") not in (*MANIFESTS, *INDEXES):
            return self.repository.fetch_blob(digest, size, MAX_JSON)
        manifest = self.repository.manifest(digest)
        if manifest is None:
            raise CorruptImage(f"{self} no longer has the manifest {digest}: push the image again, or name another one")
        return manifest.data

    def open(self, blob: Blob) -> AbstractContextManager[BinaryIO]:
        return self.repository.open_blob(blob.digest, blob.size)

    def fetch(self, blob: Blob, target: Path, advance: Advance = UNHEARD) -> None:
        if not target.exists():
            self.repository.download(blob.digest, blob.size, target, advance)

    def has_table(self, blob: Blob) -> bool:
        return blob.digest in self.tables

    def table(self, blob: Blob, format_: str = "") -> Table | None:
        """A layer that the registry has lost gets a table that says so: it cannot be kept, and its files are written
        again.
        """
        try:
            there = self.repository.has_blob(blob.digest, blob.size)
        except CorruptImage:  # of another size
            there = False
        if not there:
            return Table({ROOT: Entry("d", UNKNOWN_MODE, 0, 0)}, problem=LOST, diff_id=blob.diff_id, format=format_)
        stored = self.tables.get(blob.digest)
        if stored is None:
            return None
        try:
            encoded = self.repository.fetch_blob(stored["digest"], stored["size"], MAX_STORED)
            return decode_table(encoded, blob, format_)
        except (CorruptImage, NotInRegistry):
            return None

    def record(self, digest: str) -> bytes | None:
        stored = self.beside.record
        if stored is None or stored["digest"] != digest:
            return None
        try:
            return self.repository.fetch_blob(digest, stored["size"], MAX_RECORD)
        except (CorruptImage, NotInRegistry):
            return None


def published_image(repository: Repository, tag_or_digest: str, architecture: str) -> Image:
    """An image with what is stored beside it. Of an index, the one for this architecture.

    Raises `InputError` when there is none, `RegistryError` when the registry cannot tell, `CorruptImage` when what it
    hands out is damaged.
    """
    found = repository.manifest(tag_or_digest)
    if found is None:
        raise NotInRegistry(f"{repository} has no image {tag_or_digest}: check the name; `skopeo list-tags` lists them")
    blobs = RegistryBlobs(repository, found)
    descriptor = {"digest": found.digest, "size": len(found.data), "mediaType": found.media_type}
    image = load_image(blobs, descriptor, architecture)
    blobs.beside = find_beside(repository, image)
    return image
