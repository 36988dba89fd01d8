"""An image: manifest, config and layers, wherever its blobs are.

Nothing is believed before its digest and size are checked, and of what is parsed only what has the shape that it should
have. Where the blobs are is a matter of `Blobs`: an image layout on disk, an archive, a registry.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NotRequired, Protocol, TypedDict, cast

import msgspec

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci.compression import bomb_limit
from rechunk_action.oci.table import Blob, Table, read_table
from rechunk_action.progress import UNHEARD, Advance, Meter
from rechunk_action.workers import Workers

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")

MAX_JSON = 4 << 20
"""Bytes that clients read of a manifest or config (containers/image, iolimits.go)."""

NESTED = 8
"""Indexes in each other that are followed: more than anybody has use for."""

MAX_RECORD = 4 << 20
"""Bytes that a stored record may have: far more than thousands of packages in hundreds of layers take."""

Json = dict[str, Any]

Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""Bytes, as a document states them (image-spec, descriptor.md: int64)."""


class Blobs(Protocol):
    """Where the blobs of an image are. As text it names the place, for people."""

    def document(self, descriptor: Json) -> bytes:
        """A manifest, index or config, `MAX_JSON` bytes and one more at the most. What it holds is not checked."""
        ...

    def open(self, blob: Blob) -> AbstractContextManager[BinaryIO]:
        """A layer's blob as a file to read once. Its size is checked, its digest is for the reader to check."""
        ...

    def fetch(self, blob: Blob, target: Path, advance: Advance = UNHEARD) -> None:
        """Put a layer's blob, checked, where no file is yet or the same blob already is. `advance` is told of the bytes
        of one that is on its way for long.
        """
        ...

    def has_table(self, blob: Blob) -> bool:
        """Whether a table is stored for a layer, as far as can be told without asking for it."""
        ...

    def table(self, blob: Blob, format_: str = "") -> Table | None:
        """The stored table of a layer, None where there is none of this format that can be read."""
        ...

    def record(self, digest: str) -> bytes | None:
        """The stored record of that digest, None where there is none that can be read. What it holds is not checked; it
        is `MAX_RECORD` bytes and one more at the most.
        """
        ...


@dataclass(frozen=True)
class Image:
    """One image: parsed manifest and config, and its layers in order."""

    blobs: Blobs
    digest: str
    manifest: Json
    config: Json
    layers: tuple[Blob, ...]

    @property
    def labels(self) -> dict[str, str]:
        return (self.config.get("config") or {}).get("Labels") or {}

    @property
    def digests(self) -> set[str]:
        """The digests of its layers."""
        return {blob.digest for blob in self.layers}

    @property
    def architecture(self) -> str:
        return str(self.config.get("architecture", ""))

    def open(self, blob: Blob) -> AbstractContextManager[BinaryIO]:
        """A layer's blob as a file to read once. Its size is checked, its digest is for the reader to check."""
        return self.blobs.open(blob)


def watched(image: Image, layers: Collection[Blob], meter: Meter) -> Image:
    """The image, of which these layers are about to be opened: `meter` expects them, and is told as they are read."""
    meter.expect(sum(blob.size for blob in layers))
    return replace(image, blobs=_Watched(image.blobs, meter))


def read_layer(image: Image, blob: Blob) -> Table:
    """A layer's table, from its blob. Raises `CorruptImage` when the blob is not what the image says."""
    with image.open(blob) as file:
        return read_table(file, blob, limit=bomb_limit(blob.size))


def read_layers(image: Image, threads: int) -> list[Table]:
    """The tables of all layers, from their blobs, so many at the same time. Raises as `read_layer` does."""
    with Workers(threads) as workers:
        return list(workers.map(partial(read_layer, image), image.layers))


def load_image(blobs: Blobs, descriptor: Json, architecture: str) -> Image:
    """The image that a descriptor names; of an index, the one for this architecture.

    Raises `InputError` when there is none, `CorruptImage` when what is there is damaged.
    """
    for _ in range(NESTED):
        if descriptor.get("mediaType") not in INDEXES:
            break
        descriptor = _for_machine(_document(blobs, descriptor, Index), blobs, architecture)
    if descriptor.get("mediaType") not in MANIFESTS:
        raise InputError(f"{blobs}: {descriptor.get('mediaType')!r} is not the media type of an image")
    manifest = _document(blobs, descriptor, _Manifest)
    config = _document(blobs, manifest["config"], _ImageConfig)
    diff_ids = config["rootfs"]["diff_ids"]
    if len(diff_ids) != len(manifest["layers"]):
        raise CorruptImage(
            f"{blobs}: the manifest has {len(manifest['layers'])} layers and the config {len(diff_ids)}: "
            "they do not belong together; build the image again"
        )
    layers = tuple(
        Blob(checked_digest(layer["digest"]), layer["size"], layer["mediaType"], checked_digest(diff_id))
        for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True)
    )
    return Image(blobs, descriptor["digest"], manifest, config, layers)


def parse(data: bytes, name: str, shape: type) -> Json:
    """A document of which at least what `shape` names is as it should be.

    Whoever reads one reads `MAX_JSON` bytes and one more at the most: raises `CorruptImage` for more, as for what is no
    such document.
    """
    if len(data) > MAX_JSON:
        raise CorruptImage(f"{name} has more than {MAX_JSON:,} bytes, and no client reads that; build the image again")
    try:
        document: Json = msgspec.json.decode(data)  # which, as clients do, takes no text that is not Unicode
        msgspec.convert(document, shape)
    except msgspec.ValidationError as error:
        raise CorruptImage(f"{name} is malformed ({error}); build the image again") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptImage(f"{name} is no JSON ({error}); copy the image again") from None
    return document


def checked_digest(digest: object) -> str:
    """A digest is part of a file name: take no other text for one."""
    text = str(digest)
    if not valid_digest(text):
        raise CorruptImage(f"{text[:80]!r} is no sha256 digest; build the image again")
    return text


def valid_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def host_architecture() -> str:
    """The architecture of this machine, as images name it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


class _Watched:
    """Blobs, and who is told of the bytes that are read of them."""

    def __init__(self, blobs: Blobs, advance: Advance) -> None:
        self._blobs = blobs
        self._advance = advance
        self.document = blobs.document
        self.fetch = blobs.fetch
        self.has_table = blobs.has_table
        self.table = blobs.table
        self.record = blobs.record

    def __str__(self) -> str:
        return str(self._blobs)

    @contextmanager
    def open(self, blob: Blob) -> Iterator[BinaryIO]:
        with self._blobs.open(blob) as file:
            yield cast("BinaryIO", _Watching(file, self._advance))  # which is only read


class _Watching:
    """A file that tells of what is read of it."""

    def __init__(self, file: BinaryIO, advance: Advance) -> None:
        self._file = file
        self._advance = advance

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(n)
        self._advance(len(data))
        return data


class Descriptor(TypedDict):
    """What is read of a descriptor."""

    digest: str
    size: Size
    mediaType: NotRequired[str]
    annotations: NotRequired[dict[str, str] | None]
    platform: NotRequired[dict[str, Any] | None]


class Index(TypedDict):
    """What is read of an image index."""

    manifests: NotRequired[list[Descriptor] | None]


class RunConfig(TypedDict, total=False):
    """What is read of a config, apart from the layers."""

    architecture: str
    created: str
    config: _Run | None
    history: list[dict[str, Any]] | None


class _Run(TypedDict, total=False):
    Labels: dict[str, str] | None


class _Layer(TypedDict):
    digest: str
    size: Size
    mediaType: str
    annotations: NotRequired[dict[str, str] | None]


class _Manifest(TypedDict):
    config: Descriptor
    layers: list[_Layer]


class _Diffs(TypedDict):
    diff_ids: list[str]


class _ImageConfig(RunConfig):
    rootfs: _Diffs


_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _for_machine(index: Json, blobs: Blobs, architecture: str) -> Json:
    offered: Mapping[str, Json] = {
        str((entry.get("platform") or {}).get("architecture")): entry for entry in index.get("manifests") or []
    }
    if architecture not in offered:
        raise InputError(
            f"{blobs} has no image for {architecture}, only for {', '.join(map(repr, sorted(offered))) or 'nothing'}"
        )
    return offered[architecture]


def _document(blobs: Blobs, descriptor: Json, shape: type) -> Json:
    digest = descriptor["digest"]
    data = blobs.document(descriptor)
    if len(data) != descriptor["size"] or digest_of(data) != digest:
        raise CorruptImage(f"{digest} of {blobs} is damaged or not of the stated size; copy the image again")
    return parse(data, f"{digest} of {blobs}", shape)
