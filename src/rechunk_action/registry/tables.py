"""The tables of an image's layers and its record, kept beside the image in its repository.

They are an artifact of their own: a manifest with one blob a layer, in the image's order, and one for the record. An
engine that makes no tables leaves the record alone there. The image's config names that manifest by digest, so whoever
trusts the image (its digest, its signature) can trust what is in it: nobody can put others in their place. A layer's
table is stored once and named again by every image that keeps the layer.

Registries collect what no tag leads to, so the manifest has one: `sha256-` with the digest of the image's config. Tools
know names like that from signatures, and no version looks like them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from rechunk_action.errors import CorruptImage
from rechunk_action.oci.image import MANIFEST, Image, Json, Size, checked_digest, digest_of, parse
from rechunk_action.registry.client import Repository

LABEL = "rechunk.tables"
"""Of the image: the digest of the manifest of its tables and its record."""

ARTIFACT = "application/vnd.rechunk.tables.v1"
TABLE = "application/vnd.rechunk.table.v1.msgpack+zstd"
RECORD = "application/vnd.rechunk.record.v1.json+zstd"
"""Media types. A version changes whenever a table, or the record, would be read differently."""

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
"""What an artifact without a config has for one (image-spec, manifest.md)."""

MAX_STORED = 256 << 20
"""Bytes that a stored table may have, compressed: far more than any layer's needs."""


class Beside(NamedTuple):
    """Descriptors of what is stored beside an image: its layers' tables, by the layers' digests, and its record."""

    tables: Mapping[str, Json]
    record: Json | None


NOTHING = Beside({}, None)


def tables_manifest(tables: Sequence[Json], record: Json) -> Json:
    """The artifact's manifest, from the descriptors of the tables, in the order of the image's layers or none at all,
    and that of the record.
    """
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
        "layers": [
            {"mediaType": media_type, "digest": blob["digest"], "size": blob["size"]}
            for media_type, blob in (*((TABLE, table) for table in tables), (RECORD, record))
        ],
    }


def tables_tag(config: Json) -> str:
    """The tag that keeps the tables of the image with this config (a descriptor)."""
    return checked_digest(config["digest"]).replace(":", "-") + ".rechunk"


def find_beside(repository: Repository, image: Image) -> Beside:
    """What is stored beside an image: nothing where it is not to be had."""
    digest = image.labels.get(LABEL)
    try:
        manifest = repository.manifest(checked_digest(digest)) if digest else None
        if manifest is None:
            return NOTHING
        document = parse(manifest.data, f"{digest} of {repository}", _Manifest)
    except CorruptImage:
        return NOTHING
    if document.get("artifactType") != ARTIFACT:
        return NOTHING
    blobs = document["layers"]
    tables = [blob for blob in blobs if blob["mediaType"] == TABLE]
    records = [blob for blob in blobs if blob["mediaType"] == RECORD]
    whole = len(tables) == len(image.layers)
    return Beside(
        {layer.digest: table for layer, table in zip(image.layers, tables, strict=True)} if whole else {},
        records[0] if records else None,
    )


class _Blob(TypedDict):
    mediaType: str
    digest: str
    size: Size


class _Manifest(TypedDict):
    layers: list[_Blob]
