"""The tables of an image's layers, kept beside the image in its repository.

They are an artifact of their own: a manifest with one blob a layer, in the image's order. The image's config names that
manifest by digest, so whoever trusts the image (its digest, its signature) can trust the tables: nobody can put others
in their place. A layer's table is stored once and named again by every image that keeps the layer.

Registries collect what no tag leads to, so the manifest has one: `sha256-` with the digest of the image's config. Tools
know names like that from signatures, and no version looks like them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from rechunk_action.errors import CorruptImage
from rechunk_action.oci.image import MANIFEST, Image, Json, checked_digest, digest_of, parse
from rechunk_action.registry.client import Repository

LABEL = "rechunk.tables"
"""Of the image: the digest of the manifest of its tables."""

ARTIFACT = "application/vnd.rechunk.tables.v1"
TABLE = "application/vnd.rechunk.table.v1.msgpack+zstd"
"""Media types. Their version changes whenever a table would be read differently."""

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
"""What an artifact without a config has for one (image-spec, manifest.md)."""

MAX_STORED = 256 << 20
"""Bytes that a stored table may have, compressed: far more than any layer's needs."""


def tables_manifest(tables: Sequence[Json]) -> Json:
    """The artifact's manifest, from the descriptors of the tables in the order of the image's layers."""
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
        "layers": [{"mediaType": TABLE, "digest": table["digest"], "size": table["size"]} for table in tables],
    }


def tables_tag(config: Json) -> str:
    """The tag that keeps the tables of the image with this config (a descriptor)."""
    return checked_digest(config["digest"]).replace(":", "-") + ".rechunk"


def find_tables(repository: Repository, image: Image) -> Mapping[str, Json]:
    """The descriptors of the stored tables of an image, by their layers' digests. None where they are not to be had."""
    digest = image.labels.get(LABEL)
    try:
        manifest = repository.manifest(checked_digest(digest)) if digest else None
        if manifest is None:
            return {}
        document = parse(manifest.data, f"{digest} of {repository}", _Manifest)
    except CorruptImage:
        return {}
    tables = document["layers"]
    if document.get("artifactType") != ARTIFACT or len(tables) != len(image.layers):
        return {}
    return {layer.digest: table for layer, table in zip(image.layers, tables, strict=True)}


class _Table(TypedDict):
    digest: str
    size: int


class _Manifest(TypedDict):
    layers: list[_Table]
