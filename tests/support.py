"""Archives, layers and layouts made without the package under test, as small as a test needs them."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zstandard
from hypothesis import settings

from rechunk_action.oci.image import CONFIG, MANIFEST, host_architecture
from rechunk_action.oci.layout import REF_NAME
from rechunk_action.oci.table import Blob, Table, read_table

NOBODY = 65534

MEDIA_TYPES = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}

Form = Literal[0, 1, 2]
"""One of `tarfile`'s formats: USTAR, GNU, PAX."""

patient = settings(deadline=None)
"""For examples that read and write files or archives: their time says nothing on a busy machine."""


@dataclass(frozen=True)
class Item:
    """A member of an archive, for Python's own `tarfile` to write."""

    info: tarfile.TarInfo
    content: bytes = b""


def item(
    name: str,
    kind: bytes,
    content: bytes = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: float = 0,
    target: str = "",
    xattrs: Mapping[str, bytes] | None = None,
) -> Item:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, gid, mtime
    info.linkname, info.size = target, len(content)
    info.pax_headers = {f"SCHILY.xattr.{key}": text(value) for key, value in (xattrs or {}).items()}
    return Item(info, content)


def file(name: str, content: bytes = b"", **attributes: Any) -> Item:
    return item(name, tarfile.REGTYPE, content, **attributes)


def directory(name: str, **attributes: Any) -> Item:
    return item(name, tarfile.DIRTYPE, **{"mode": 0o755} | attributes)


def symlink(name: str, target: str, **attributes: Any) -> Item:
    return item(name, tarfile.SYMTYPE, target=target, **{"mode": 0o777} | attributes)


def hardlink(name: str, target: str, **attributes: Any) -> Item:
    return item(name, tarfile.LNKTYPE, target=target, **attributes)


def device(name: str) -> Item:
    return item(name, tarfile.CHRTYPE)


def archive(*items: Item, form: Form = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive that ends after its two zero blocks."""
    blocks = []
    for each in items:
        header = each.info.tobuf(form, "utf-8", "surrogateescape")
        blocks += [header, each.content, bytes(-len(each.content) % 512)]
    return b"".join(blocks) + bytes(1024)


def text(raw: bytes) -> str:
    """Bytes as `tarfile` takes them."""
    return raw.decode("utf-8", "surrogateescape")


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def compress(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    return zstandard.ZstdCompressor(3, write_checksum=True).compress(data) if compression == "zstd" else data


@dataclass(frozen=True)
class Packed:
    """A layer: its bytes, and what a manifest says of them."""

    data: bytes
    blob: Blob

    def read(self, **options: Any) -> Table:
        return read_table(io.BytesIO(self.data), self.blob, **{"limit": None} | options)


def pack(data: bytes, compression: str = "zstd") -> Packed:
    """An archive as a layer."""
    return packed(compress(data, compression), compression, digest(data))


def packed(data: bytes, compression: str, diff_id: str = "") -> Packed:
    """A blob as a layer."""
    return Packed(data, Blob(digest(data), len(data), MEDIA_TYPES[compression], diff_id))


def table(*items: Item) -> Table:
    """What our reader makes of an archive."""
    return pack(archive(*items), "none").read()


def write_blob(layout: Path, data: bytes) -> str:
    name = digest(data)
    path = layout / "blobs" / "sha256" / name.partition(":")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def write_json(layout: Path, document: object, media_type: str) -> dict[str, Any]:
    data = json.dumps(document).encode()
    return {"mediaType": media_type, "digest": write_blob(layout, data), "size": len(data)}


def descriptor(layer: Packed) -> dict[str, Any]:
    return {"mediaType": layer.blob.media_type, "digest": layer.blob.digest, "size": layer.blob.size}


def write_layout(
    layout: Path, layers: Sequence[Packed], *, tag: str | None = "latest", config: Mapping[str, Any] | None = None
) -> Path:
    """A layout with one image. Layers come as they are, right or wrong."""
    for layer in layers:
        write_blob(layout, layer.data)
    document = {
        "architecture": host_architecture(),
        "os": "linux",
        "config": {"Labels": {"containers.bootc": "1"}},
        "rootfs": {"type": "layers", "diff_ids": [layer.blob.diff_id for layer in layers]},
        "history": [{"comment": f"layer {number}"} for number in range(len(layers))],
        **(config or {}),
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write_json(layout, document, CONFIG),
        "layers": [descriptor(layer) for layer in layers],
    }
    write_index(layout, write_json(layout, manifest, MANIFEST) | ({"annotations": {REF_NAME: tag}} if tag else {}))
    return layout


def write_index(layout: Path, *manifests: object) -> None:
    layout.mkdir(exist_ok=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


def listing(root: Path) -> dict[str, bytes | None]:
    """Every path below a directory, with the contents of files."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


class Peak:
    """Bytes that Python's allocator handed out at most."""

    size = 0


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    peak = Peak()
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, for as long as it takes."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
