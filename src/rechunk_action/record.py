"""What is kept beside an image when it is built, since nobody could tell it later from the manifest: the versions of
the packages in it, what its layers hold, and what of that is superseded. With it, a report of published images reads no
layer.

The image's config names its record by digest, so whoever trusts the image can trust the record, as with the tables of
its layers. A record that is missing, damaged, or that of another image counts as none, and costs a report no more than
details. Clients never fetch it.

The same image gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import zstandard

from rechunk_action.oci.compression import expanded
from rechunk_action.oci.config import ENGINE_LABEL, layer_name
from rechunk_action.oci.image import Image, Size, digest_of, valid_digest
from rechunk_action.oci.table import Blob, Table
from rechunk_action.plan.grouping import UNCLAIMED
from rechunk_action.report.model import Facts, LayerFacts

LABEL = "rechunk.record"
"""Of the image: the digest of its record."""

FORMAT = 1
"""Changes when a record would be read differently."""

MAX_EXPANDED = 8 << 20
"""Bytes that a stored record may expand to: far more than one of thousands of packages does, and little enough for the
records of many versions to be held at once.
"""

STRUCTURE = "directories and removals"
"""The component of what a layer holds beside files and links."""


class LayerRecord(msgspec.Struct, frozen=True):
    """Of one layer: its bytes by component, which add up to its size, and those that no client sees any more."""

    components: Mapping[str, Size]
    dead: Size


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept. `packages` are versions by name, as in `Facts`; `layers` are in the image's order."""

    format: int = FORMAT
    packages: Mapping[str, str]
    layers: Sequence[LayerRecord]


def encode_record(record: Record) -> bytes:
    """A record as it is stored: JSON, compressed with zstd."""
    return zstandard.ZstdCompressor(_LEVEL, write_checksum=True).compress(msgspec.json.encode(record))


def read_record(image: Image) -> Record | None:
    """The record beside an image, None where there is none that can be read and belongs to it.

    Raises `RegistryError` when a registry cannot tell.
    """
    digest = image.labels.get(LABEL, "")
    stored = image.blobs.record(digest) if valid_digest(digest) else None
    if stored is None or digest_of(stored) != digest:
        return None
    try:
        record = msgspec.json.decode(expanded(stored, MAX_EXPANDED), type=Record)
    except (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    sizes = [sum(layer.components.values()) for layer in record.layers]
    return record if record.format == FORMAT and sizes == [blob.size for blob in image.layers] else None


def facts(image: Image, ref: str, version: str) -> Facts:
    """What is known of an image, by its manifest, its config and its record. `ref` and `version` are its names.

    Without a record, its packages are not known: to look for them in its layers would mean to fetch these for a report.

    Raises `RegistryError` when a registry cannot tell.
    """
    record = read_record(image)
    held = record.layers if record else [None] * len(image.layers)
    return Facts(
        ref=ref,
        digest=image.digest,
        version=version,
        created=str(image.config.get("created") or ""),
        engine=image.labels.get(ENGINE_LABEL, ""),
        layers=[
            LayerFacts(
                digest=blob.digest,
                bytes=blob.size,
                name=layer_name(image, index),
                components=layer.components if layer else {},
                dead=min(layer.dead, blob.size) if layer else None,
            )
            for index, (blob, layer) in enumerate(zip(image.layers, held, strict=True))
        ],
        packages=record.packages if record else None,
    )


def bytes_by_component(blob: Blob, table: Table, owner: Mapping[str, str]) -> dict[str, int]:
    """The compressed bytes of a layer by what they belong to, the largest first. They add up to the layer's size.

    `owner` has the component of each path that has one.
    """
    found: Counter[str] = Counter()
    for path, entry in table.entries.items():
        found[STRUCTURE if entry.is_dir else owner.get(path, UNCLAIMED)] += entry.cost
    rest = blob.size - found.total()
    found[STRUCTURE if rest >= 0 else max(found, key=found.__getitem__)] += rest  # the costs of entries are rounded
    return {name: size for name, size in sorted(found.items(), key=lambda item: (-item[1], item[0])) if size}


_LEVEL = 12
