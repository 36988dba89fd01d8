"""`oci-archive:FILE[:TAG]`: an image layout in a tar archive, and what `docker save` writes. Read in place.

An archive is indexed once, by reading its headers; a blob is a span of the file. Nothing is unpacked, so names and
links in it can do nothing: a name is only ever looked up.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypedDict

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci.image import (
    CONFIG,
    MANIFEST,
    MAX_JSON,
    Image,
    Index,
    Json,
    checked_digest,
    digest_of,
    host_architecture,
    load_image,
    parse,
)
from rechunk_action.oci.layout import choose
from rechunk_action.oci.table import Blob, Table
from rechunk_action.progress import UNHEARD, Advance
from rechunk_action.tree.scan import unreadable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOBS = "blobs/sha256/"

_TYPES = {b"\x1f\x8b": "+gzip", b"\x28\xb5\x2f\xfd": "+zstd"}
"""What media types call a compression, by what a compressed file starts with."""

_COPIED = 1 << 20


class Span(NamedTuple):
    """Where the content of a member is in its archive."""

    offset: int
    size: int


class ArchiveBlobs:
    """The blobs of an archive by their digests: spans of the file, and documents that are not in it."""

    def __init__(self, archive: Path, spans: Mapping[str, Span], documents: Mapping[str, bytes] | None = None) -> None:
        self._archive = archive
        self._spans = spans
        self._documents = documents or {}

    def __str__(self) -> str:
        return str(self._archive)

    def document(self, descriptor: Json) -> bytes:
        digest = checked_digest(descriptor["digest"])
        if digest in self._documents:
            return self._documents[digest]
        return _head(self._archive, self._span(digest), MAX_JSON + 1)

    @contextmanager
    def open(self, blob: Blob) -> Iterator[BinaryIO]:
        span = self._span(blob.digest)
        if span.size != blob.size:
            raise CorruptImage(
                f"layer {blob.digest} of {self} has {span.size:,} bytes where the manifest says {blob.size:,}: "
                "the archive is damaged; save the image again"
            )
        with _open(self._archive) as file:
            yield io.BufferedReader(_Part(file, span))

    def fetch(self, blob: Blob, target: Path, advance: Advance = UNHEARD) -> None:
        content = hashlib.sha256()
        with self.open(blob) as file, target.open("wb") as copy:
            while data := file.read(_COPIED):
                content.update(data)
                copy.write(data)
                advance(len(data))
        if "sha256:" + content.hexdigest() != blob.digest:
            raise CorruptImage(
                f"layer {blob.digest} of {self} is damaged: its content has another digest; save the image again"
            )

    def has_table(self, blob: Blob) -> bool:
        """An archive holds none."""
        del blob
        return False

    def table(self, blob: Blob, format_: str = "") -> Table | None:
        del blob, format_
        return None

    def record(self, digest: str) -> bytes | None:
        """Nor any record."""
        del digest
        return None

    def _span(self, digest: str) -> Span:
        if digest not in self._spans:
            raise CorruptImage(f"{digest} of {self} is missing: the archive is incomplete; save the image again")
        return self._spans[digest]


def archive_image(path: Path, tag: str | None, architecture: str) -> Image:
    """The image of that tag, or the only one of an archived layout.

    Raises `InputError` when there is no such archive or image, `CorruptImage` when what is there is damaged.
    """
    members = _members(path)
    if "index.json" not in members:
        raise InputError(f"{path} holds no OCI image layout: save the image as an oci-archive, and name that")
    index = parse(_head(path, members["index.json"], MAX_JSON + 1), f"index.json of {path}", Index)
    spans = {_digest_in(name): span for name, span in members.items() if name.startswith(BLOBS)}
    return load_image(ArchiveBlobs(path, spans), choose(index, f"oci-archive:{path}", tag), architecture)


def saved_image(path: Path) -> Image:
    """The only image of what `docker save` has written.

    Every version of docker writes `manifest.json`, which names the config and the layers that are there. (The OCI index
    beside it, since docker 25, may name other architectures, too.) A manifest is made up from it, so that what holds
    for any image is checked here, too: layers that are not named by a digest are known by their diff IDs.
    """
    members = _members(path)
    saved = _saved(path, members)
    config = _head(path, _member(path, members, saved["Config"]), MAX_JSON + 1)
    diff_ids = parse(config, f"the config of {path}", _Config)["rootfs"]["diff_ids"]
    spans: dict[str, Span] = {}
    layers = []
    for name, diff_id in zip_longest(saved["Layers"], diff_ids):
        if name is None or diff_id is None:
            raise CorruptImage(
                f"{path} has {len(saved['Layers'])} layers, and its config has {len(diff_ids)}: "
                "they do not belong together; save the image again"
            )
        span = _member(path, members, name)
        digest = _digest_in(name) if name.startswith(BLOBS) else diff_id
        spans[digest] = span
        layers.append({"mediaType": _media_type(path, span), "digest": digest, "size": span.size})
    manifest = {"schemaVersion": 2, "config": _descriptor(config, CONFIG), "layers": layers}
    made_up = json.dumps(manifest).encode()
    blobs = ArchiveBlobs(path, spans, {digest_of(data): data for data in (config, made_up)})
    return load_image(blobs, _descriptor(made_up, MANIFEST), host_architecture())


class _Saved(TypedDict):
    """What is read of an image in `manifest.json`: names of members."""

    Config: str
    Layers: list[str]


class _Diffs(TypedDict):
    diff_ids: list[str]


class _Config(TypedDict):
    rootfs: _Diffs


class _Part(io.RawIOBase):
    """A span of a file as a file of its own."""

    def __init__(self, file: io.FileIO, span: Span) -> None:
        super().__init__()
        self._file = file
        self._left = span.size
        file.seek(span.offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        return count


def _members(path: Path) -> dict[str, Span]:
    """The regular files of an archive, hard and symbolic links to them included, by their names."""
    found: dict[str, Span] = {}
    links: dict[str, str] = {}
    with _open(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    name = posixpath.normpath(member.name)
                    if member.isreg() and not member.issparse():
                        found[name] = Span(member.offset_data, member.size)
                    elif member.issym():
                        links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                    elif member.islnk():
                        links[name] = posixpath.normpath(member.linkname)
        except tarfile.TarError as error:
            file.seek(0)
            start = file.read(4)
            if any(start.startswith(magic) for magic in _TYPES):
                raise InputError(
                    f"{path} is compressed: decompress it (gzip -d, zstd -d) and name the result"
                ) from None
            raise CorruptImage(f"{path} is no tar archive, or a damaged one ({error}): save the image again") from None
    return found | {name: found[target] for name, target in links.items() if target in found}


def _saved(path: Path, members: Mapping[str, Span]) -> Json:
    """What `manifest.json` says of the only image."""
    data = _head(path, _member(path, members, "manifest.json"), MAX_JSON + 1)
    images: Any = parse(data, f"manifest.json of {path}", list[_Saved])
    if len(images) != 1:
        raise InputError(f"{path} holds {len(images)} images: save one alone")
    saved: Json = images[0]
    return saved


def _member(path: Path, members: Mapping[str, Span], name: str) -> Span:
    if name not in members:
        raise CorruptImage(f"{name} of {path} is missing: the archive is incomplete; save the image again")
    return members[name]


def _digest_in(name: str) -> str:
    """The digest that a blob's name states."""
    return "sha256:" + name.removeprefix(BLOBS)


def _descriptor(document: bytes, media_type: str) -> Json:
    return {"mediaType": media_type, "digest": digest_of(document), "size": len(document)}


def _media_type(path: Path, span: Span) -> str:
    start = _head(path, span, 4)
    found = [suffix for magic, suffix in _TYPES.items() if start.startswith(magic)]
    return "application/vnd.oci.image.layer.v1.tar" + "".join(found)


def _head(path: Path, span: Span, size: int) -> bytes:
    """The first bytes of a span."""
    with _open(path) as file:
        file.seek(span.offset)
        return file.read(min(span.size, size))


def _open(path: Path) -> io.FileIO:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: name the archive that holds the image") from None
    except OSError as error:
        raise unreadable(str(path), error) from None
