"""OCI image layouts on disk (image-spec, image-layout.md): reading with every byte checked, writing all or nothing.

Reading: nothing is believed before its digest and size are checked. Writing: blobs are made in a directory beside the
layout; a new layout appears by one rename, an image in an existing one by replacing `index.json` last. Interrupted
anywhere, what was there before is still there, whole.

The tables of an image's layers are kept in the layout too (`rechunk-tables/`, outside the index, so that the layout
still holds just its images for other tools). They only save reading the layers: a missing or damaged one is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, Self, TypedDict

import msgspec
import zstandard

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci.table import Blob, Table
from rechunk_action.tree.scan import unreadable

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
REF_NAME = "org.opencontainers.image.ref.name"

MAX_JSON = 4 << 20
"""Bytes that clients read of a manifest or config (containers/image, iolimits.go)."""

BLOBS = "blobs/sha256"
TABLES = "rechunk-tables/v1"
"""Directories of a layout. The tables' version changes whenever one would be read differently."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Image:
    """One image of a layout: parsed manifest and config, and its layers in order."""

    layout: Path
    digest: str
    manifest: Json
    config: Json
    layers: tuple[Blob, ...]

    @property
    def labels(self) -> dict[str, str]:
        return (self.config.get("config") or {}).get("Labels") or {}

    @property
    def architecture(self) -> str:
        return str(self.config.get("architecture", ""))

    @contextlib.contextmanager
    def open(self, blob: Blob) -> Iterator[BinaryIO]:
        """A layer's blob as a file; its size is checked, its digest is for the reader to check."""
        with _open(self.layout, blob.digest) as file:
            size = os.fstat(file.fileno()).st_size
            if size != blob.size:
                raise CorruptImage(
                    f"layer {blob.digest} of {self.layout} has {size:,} bytes where the manifest says "
                    f"{blob.size:,}: the layout is damaged; copy the image again"
                )
            yield file


def read_image(layout: Path, tag: str | None) -> Image:
    """The image of that tag, or the only one of the layout.

    Raises `InputError` when there is no such layout or image, `CorruptImage` when what is there is damaged.
    """
    descriptor = _choose(_index(layout), layout, tag)
    while descriptor.get("mediaType") in _INDEXES:
        descriptor = _for_this_machine(_json_blob(layout, descriptor, _Index), layout)
    if descriptor.get("mediaType") not in _MANIFESTS:
        raise InputError(f"{layout}: {descriptor.get('mediaType')!r} is not the media type of an image")
    manifest = _json_blob(layout, descriptor, _Manifest)
    config = _json_blob(layout, manifest["config"], _ImageConfig)
    diff_ids = config["rootfs"]["diff_ids"]
    if len(diff_ids) != len(manifest["layers"]):
        raise CorruptImage(
            f"{layout}: the manifest has {len(manifest['layers'])} layers and the config {len(diff_ids)}: "
            "they do not belong together; build the image again"
        )
    layers = tuple(
        Blob(_checked_digest(layer["digest"]), layer["size"], layer["mediaType"], _checked_digest(diff_id))
        for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True)
    )
    return Image(layout, descriptor["digest"], manifest, config, layers)


def load_table(image: Image, blob: Blob) -> Table | None:
    """The stored table of a layer, None where there is none that can be read."""
    try:
        stored = table_path(image.layout, blob.digest).read_bytes()
        table = _TABLE.decode(zstandard.ZstdDecompressor().decompress(stored, max_output_size=1 << 30))
    except (OSError, MemoryError, zstandard.ZstdError, msgspec.MsgspecError):
        return None
    return table if table.diff_id == blob.diff_id else None


def blob_path(layout: Path, digest: str) -> Path:
    return layout / BLOBS / _checked_digest(digest).partition(":")[2]


def table_path(layout: Path, digest: str) -> Path:
    return layout / TABLES / _checked_digest(digest).partition(":")[2]


class LayoutWriter:
    """Adds one image to a layout, new or existing. Use as a context manager: without `commit`, nothing remains."""

    def __init__(self, layout: Path, tag: str | None) -> None:
        """Raises `InputError` when the output is taken or cannot be written to."""
        self.layout = layout
        self.tag = tag
        self._index: Json = {"schemaVersion": 2, "mediaType": _INDEXES[0], "manifests": []}
        if layout.exists() or layout.is_symlink():
            self._index = _extendable(layout, tag)
        beside = layout.parent
        try:
            self._stage = Path(tempfile.mkdtemp(prefix=f".{layout.name}.", dir=beside))
            self._stage.chmod(0o755)
        except FileNotFoundError:
            raise InputError(f"{beside} does not exist: make the directory, or name another output") from None
        except (PermissionError, NotADirectoryError) as error:
            raise InputError(f"{beside} cannot be written to ({error.strerror}): name another output") from None
        for directory in (BLOBS, TABLES, "scratch"):
            (self._stage / directory).mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._stage, ignore_errors=True)

    @property
    def scratch(self) -> Path:
        """A directory for what is not finished yet. It goes with the writer."""
        return self._stage / "scratch"

    def adopt(self, path: Path, digest: str) -> None:
        """Take a finished file of the scratch space as a blob."""
        path.rename(blob_path(self._stage, digest))

    def keep(self, image: Image, blob: Blob, table: Table) -> None:
        """Take a layer over from another image, byte for byte.

        Its digest is checked, unless it was when its table was stored and the blob has not been written to since.
        """
        source = blob_path(image.layout, blob.digest).resolve()
        target = blob_path(self._stage, blob.digest)
        with image.open(blob):
            pass
        linked = target.exists()
        if not linked:
            try:
                target.hardlink_to(source)
                linked = True
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, target)
        if not (linked and _newer(table_path(image.layout, blob.digest), source)):
            with target.open("rb") as kept:
                digest = "sha256:" + hashlib.file_digest(kept, "sha256").hexdigest()
            if digest != blob.digest:
                raise CorruptImage(
                    f"layer {blob.digest} of {image.layout} is damaged: its content has another digest; "
                    "copy the image again"
                )
        self.store_table(blob, table)

    def limit(self, digests: Collection[str]) -> None:
        """Give up the blobs and tables of all other layers."""
        names = {digest.partition(":")[2] for digest in digests}
        for directory in (BLOBS, TABLES):
            for file in (self._stage / directory).iterdir():
                if file.name not in names:
                    file.unlink()

    def store_table(self, blob: Blob, table: Table) -> None:
        stored = zstandard.ZstdCompressor(3, write_checksum=True).compress(msgspec.msgpack.encode(table))
        table_path(self._stage, blob.digest).write_bytes(stored)

    def store_json(self, document: Json, media_type: str) -> Json:
        """Store a manifest or config; returns its descriptor."""
        data = json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        if len(data) > MAX_JSON:
            raise InputError(f"a {media_type} of {len(data):,} bytes is more than clients read: use fewer labels")
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        blob_path(self._stage, digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def commit(self, manifest: Json) -> None:
        """Make the image visible under the writer's tag, by one rename."""
        if self.tag:
            manifest = manifest | {"annotations": {REF_NAME: self.tag}}
        self._index["manifests"] = [*(self._index.get("manifests") or []), manifest]
        (self._stage / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}\n')
        index = self._stage / "index.json"
        index.write_text(json.dumps(self._index, separators=(",", ":")) + "\n")
        shutil.rmtree(self.scratch)
        if not self.layout.exists():
            self._stage.rename(self.layout)
            return
        for directory in (BLOBS, TABLES):
            (self.layout / directory).mkdir(parents=True, exist_ok=True)
            for file in (self._stage / directory).iterdir():
                file.replace(self.layout / directory / file.name)
        index.replace(self.layout / "index.json")


def _newer(file: Path, other: Path) -> bool:
    """Whether a file was written to after another, as `make` tells."""
    try:
        return file.stat().st_mtime_ns >= other.stat().st_mtime_ns
    except FileNotFoundError:
        return False


_TABLE = msgspec.msgpack.Decoder(Table)

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def host_architecture() -> str:
    """The architecture of this machine, as images name it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


class _Descriptor(TypedDict):
    digest: str
    size: int
    mediaType: NotRequired[str]
    annotations: NotRequired[dict[str, str] | None]
    platform: NotRequired[dict[str, Any] | None]


class _Index(TypedDict):
    manifests: NotRequired[list[_Descriptor] | None]


class _Layer(TypedDict):
    digest: str
    size: int
    mediaType: str


class _Manifest(TypedDict):
    config: _Descriptor
    layers: list[_Layer]


class _Diffs(TypedDict):
    diff_ids: list[str]


class _Run(TypedDict, total=False):
    Labels: dict[str, str] | None


class RunConfig(TypedDict, total=False):
    """What is read of a config, apart from the layers."""

    architecture: str
    created: str
    config: _Run | None
    history: list[dict[str, Any]] | None


class _ImageConfig(RunConfig):
    rootfs: _Diffs


def _index(layout: Path) -> Json:
    try:
        data = (layout / "index.json").read_bytes()
    except FileNotFoundError:
        raise InputError(f"{layout} is no OCI image layout: it has no index.json") from None
    except NotADirectoryError:
        raise InputError(f"{layout} is no OCI image layout: it is a file") from None
    except OSError as error:
        raise unreadable(f"{layout}/index.json", error) from None
    return _parse(data, f"{layout}/index.json", _Index)


def _choose(index: Json, layout: Path, tag: str | None) -> Json:
    manifests: list[Json] = index.get("manifests") or []
    tags = {(entry.get("annotations") or {}).get(REF_NAME): entry for entry in manifests}
    known = ", ".join(sorted(name for name in tags if name)) or "none"
    if tag is not None:
        if tag not in tags:
            raise InputError(f"{layout} has no image tagged {tag!r}; its tags are: {known}")
        return tags[tag]
    if len(manifests) != 1:
        raise InputError(f"{layout} holds {len(manifests)} images: name one as oci:{layout}:TAG; its tags are: {known}")
    return manifests[0]


def _for_this_machine(index: Json, layout: Path) -> Json:
    offered: Mapping[str, Json] = {
        str((entry.get("platform") or {}).get("architecture")): entry for entry in index.get("manifests") or []
    }
    machine = host_architecture()
    if machine not in offered:
        raise InputError(f"{layout} has no image for {machine}, only for {', '.join(sorted(offered)) or 'nothing'}")
    return offered[machine]


def _json_blob(layout: Path, descriptor: Json, shape: type) -> Json:
    digest = descriptor["digest"]
    with _open(layout, digest) as file:
        data = file.read(MAX_JSON + 1)
    if len(data) != descriptor["size"] or "sha256:" + hashlib.sha256(data).hexdigest() != digest:
        raise CorruptImage(f"{digest} of {layout} is damaged or not of the stated size; copy the image again")
    return _parse(data, f"{digest} of {layout}", shape)


def _open(layout: Path, digest: str) -> BinaryIO:
    path = blob_path(layout, digest)
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise CorruptImage(f"{digest} of {layout} is missing: the layout is incomplete; copy the image again") from None
    except OSError as error:
        raise unreadable(str(path), error) from None


def _parse(data: bytes, name: str, shape: type) -> Json:
    """A document of which at least what `shape` names is as it should be."""
    try:
        document: Json = json.loads(data)
        msgspec.convert(document, shape)
    except msgspec.ValidationError as error:
        raise CorruptImage(f"{name} is malformed ({error}); build the image again") from None
    except (ValueError, RecursionError) as error:
        raise CorruptImage(f"{name} is no JSON ({error}); copy the image again") from None
    return document


_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _checked_digest(digest: object) -> str:
    """A digest is part of a file name: take no other text for one."""
    text = str(digest)
    if not _DIGEST.fullmatch(text):
        raise CorruptImage(f"{text[:80]!r} is no sha256 digest; build the image again")
    return text


def _extendable(layout: Path, tag: str | None) -> Json:
    """The index of an existing layout that an image may be added to."""
    if not (layout / "oci-layout").is_file():
        raise InputError(f"{layout} exists and is no OCI image layout: name another output, or remove it")
    index = _index(layout)
    tags = [(entry.get("annotations") or {}).get(REF_NAME) for entry in index.get("manifests") or []]
    if tag is None or tag in tags or None in tags:
        taken = f"an image tagged {tag!r}" if tag in tags and tag else "an image"
        raise InputError(f"{layout} already holds {taken}: name another output or tag, or remove it")
    return index
