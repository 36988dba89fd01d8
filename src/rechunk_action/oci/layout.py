"""OCI image layouts on disk (image-spec, image-layout.md): reading with every byte checked, writing all or nothing.

A new layout is made in a directory beside it, and appears by one rename. An image for an existing one is made in a
directory in it, on the same file system whatever is mounted where; it appears when `index.json` is replaced, last.
Interrupted anywhere, what was there before is still there, whole. What is not visible is taken back; only a run that is
killed while it moves blobs into place leaves some that no image names yet, and the next build of that image uses them.

Several runs may add to a layout at once: each locks it (flock) while it adds, and reads the index only then.

Data is on the disk (fsync) before `index.json` or the layout gets its name: after a loss of power, there is the old or
the new image, whole. A disk that cannot keep what was written often says so only then, so success without would mean
little. It costs what the disk takes to write: 0.3 s for 291 MB.

The tables of an image's layers and its record are kept in the layout too (`rechunk-tables/`, `rechunk-records/`,
outside the index, so that the layout still holds just its images for other tools). Tables only save reading the layers:
a missing or damaged one is made anew. A record that is gone is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci.image import (
    INDEX,
    MAX_JSON,
    MAX_RECORD,
    Image,
    Index,
    Json,
    digest_of,
    host_architecture,
    load_image,
    parse,
)
from rechunk_action.oci.stage import BLOBS, RECORDS, TABLES, Stage, blob_path, record_path, table_path, writing
from rechunk_action.oci.table import MAX_TABLE, Blob, Table, decode_table
from rechunk_action.progress import UNHEARD, Advance, Meter
from rechunk_action.scratch import clear
from rechunk_action.signals import undisturbed
from rechunk_action.tree.scan import unreadable

REF_NAME = "org.opencontainers.image.ref.name"


class LayoutBlobs:
    """The blobs of a layout."""

    def __init__(self, layout: Path) -> None:
        self.layout = layout

    def __str__(self) -> str:
        return str(self.layout)

    def document(self, descriptor: Json) -> bytes:
        with _open(self.layout, descriptor["digest"]) as file:
            return file.read(MAX_JSON + 1)

    @contextlib.contextmanager
    def open(self, blob: Blob) -> Iterator[BinaryIO]:
        with _open(self.layout, blob.digest) as file:
            size = os.fstat(file.fileno()).st_size
            if size != blob.size:
                raise CorruptImage(
                    f"layer {blob.digest} of {self.layout} has {size:,} bytes where the manifest says "
                    f"{blob.size:,}: the layout is damaged; copy the image again"
                )
            yield file

    def fetch(self, blob: Blob, target: Path, advance: Advance = UNHEARD) -> None:
        """A hard link where that can be, else a copy.

        Its digest is checked, unless it was when its table was stored and the blob has not been written to since.
        """
        del advance
        source = blob_path(self.layout, blob.digest).resolve()
        with self.open(blob):
            pass
        linked = target.exists()
        if not linked:
            try:
                target.hardlink_to(source)
                linked = True
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, target)
        if not (linked and _newer(table_path(self.layout, blob.digest), source)):
            with target.open("rb") as kept:
                digest = "sha256:" + hashlib.file_digest(kept, "sha256").hexdigest()
            if digest != blob.digest:
                raise CorruptImage(
                    f"layer {blob.digest} of {self.layout} is damaged: its content has another digest; "
                    "copy the image again"
                )

    def has_table(self, blob: Blob) -> bool:
        return table_path(self.layout, blob.digest).exists()

    def table(self, blob: Blob, format_: str = "") -> Table | None:
        stored = _stored(table_path(self.layout, blob.digest), MAX_TABLE)
        return None if stored is None else decode_table(stored, blob, format_)

    def record(self, digest: str) -> bytes | None:
        return _stored(record_path(self.layout, digest), MAX_RECORD)


def read_image(layout: Path, tag: str | None, *, architecture: str | None = None) -> Image:
    """The image of that tag, or the only one of the layout; of an index, the one for an architecture (this machine's).

    Raises `InputError` when there is no such layout or image, `CorruptImage` when what is there is damaged.
    """
    descriptor = choose(_index(layout), f"oci:{layout}", tag)
    return load_image(LayoutBlobs(layout), descriptor, architecture or host_architecture())


def layout_tags(layout: Path) -> list[str]:
    """The tags of the images in a layout. Raises as `read_image` does."""
    entries: list[Json] = _index(layout).get("manifests") or []
    return [tag for entry in entries if (tag := (entry.get("annotations") or {}).get(REF_NAME))]


def choose(index: Json, name: str, tag: str | None) -> Json:
    """The descriptor of the image of that tag, or of the only one, in the index of a layout with this name.

    Raises `InputError` when there is none.
    """
    manifests: list[Json] = index.get("manifests") or []
    tags = {(entry.get("annotations") or {}).get(REF_NAME): entry for entry in manifests}
    known = ", ".join(sorted(name for name in tags if name)) or "none"
    if tag is not None:
        if tag not in tags:
            raise InputError(f"{name} has no image tagged {tag!r}; its tags are: {known}")
        return tags[tag]
    if len(manifests) != 1:
        raise InputError(f"{name} holds {len(manifests)} images: name one as {name}:TAG; its tags are: {known}")
    return manifests[0]


class LayoutWriter(Stage):
    """Adds one image to a layout, new or existing. Without `commit`, nothing remains."""

    def __init__(self, layout: Path, tag: str | None, notice: Callable[[str], None] = lambda _: None) -> None:
        """Raises `InputError` when the output is taken or cannot be written to."""
        self.layout = layout
        self.tag = tag
        within, beside = (layout, ".rechunk-"), (layout.parent, f".{layout.name}.rechunk-")
        for place, prefix in (within, beside):
            clear(place, prefix, notice)
        exists = layout.exists() or layout.is_symlink()
        if exists:
            _extendable(layout, tag)
        place, prefix = within if exists else beside
        try:
            super().__init__(place, prefix)
        except FileNotFoundError:
            raise InputError(f"{place} does not exist: make the directory, or name another output") from None
        except (PermissionError, NotADirectoryError) as error:
            raise InputError(f"{place} cannot be written to ({error.strerror}): name another output") from None

    def keep(self, image: Image, blob: Blob, table: Table) -> None:
        """Take a layer over from another image, byte for byte, its digest checked."""
        image.blobs.fetch(blob, blob_path(self._stage, blob.digest))
        self.store_table(blob, table)

    def settle(self, version: str | None) -> str | None:
        """The version that the image gets: a layout's tag need not be one, so it is the one that was asked for."""
        return version

    def upload(self, layers: Sequence[Blob], record: bytes, meter: Meter) -> Mapping[str, str]:
        """Store the image's record; all else is here. Returns the labels by which the image finds its tables: none, as
        a layout has each beside its layer.
        """
        del layers, meter
        self._write(record_path(self._stage, digest_of(record)), record)
        return {}

    def commit(self, manifest: Json, version: str | None) -> str:
        """Make the image visible under the writer's tag, by one rename. Returns its name.

        Raises `InputError` when another run has taken the tag since.
        """
        del version
        if self.tag:
            manifest = manifest | {"annotations": {REF_NAME: self.tag}}
        shutil.rmtree(self.scratch)
        self._write(self._stage / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}\n')
        self._write_index({"schemaVersion": 2, "mediaType": INDEX}, manifest)
        for directory, _, names in os.walk(self._stage):
            for name in names:
                _sync(Path(directory, name))
            _sync(Path(directory))
        if not self._appear():
            self._join(manifest)
        return f"oci:{self.layout}" + (f":{self.tag}" if self.tag else "")

    def _write_index(self, index: Json, manifest: Json) -> None:
        index["manifests"] = [*(index.get("manifests") or []), manifest]
        data = json.dumps(index, separators=(",", ":")).encode() + b"\n"
        if len(data) > MAX_JSON:
            raise InputError(
                f"{self.layout} has so many images that its index would have more than {MAX_JSON:,} bytes, and no "
                "client reads that: name another output"
            )
        self._write(self._stage / "index.json", data)

    def _appear(self) -> bool:
        """Become the layout. False where there is one."""
        if self.layout.exists():
            return False
        try:
            self._stage.rename(self.layout)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another run was faster
                return False
            raise
        self._scratch.remove()  # there is none any more, but a lock
        _sync(self.layout.parent)
        return True

    def _join(self, manifest: Json) -> None:
        """Add the image to the layout that there is."""
        with _locked(self.layout):
            self._write_index(_extendable(self.layout, self.tag), manifest)
            index, added = self._stage / "index.json", list[Path]()
            _sync(index)
            with undisturbed():
                try:
                    for directory in (BLOBS, TABLES, RECORDS):
                        target = self.layout / directory
                        target.mkdir(parents=True, exist_ok=True)
                        for file in (self._stage / directory).iterdir():
                            if not (target / file.name).exists():
                                added.append(target / file.name)
                            file.replace(target / file.name)
                        _sync(target)
                    index.replace(self.layout / "index.json")
                finally:
                    if index.exists():
                        for path in added:
                            path.unlink(missing_ok=True)
            _sync(self.layout)


@contextlib.contextmanager
def _locked(layout: Path) -> Iterator[None]:
    """A layout that no other run adds to. Where a file system knows no locks, nothing keeps it from that."""
    descriptor = os.open(layout, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # there are file systems that have nothing to do for it
            raise
    finally:
        os.close(descriptor)


def _newer(file: Path, other: Path) -> bool:
    """Whether a file was written to after another, as `make` tells."""
    try:
        return file.stat().st_mtime_ns >= other.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def _index(layout: Path) -> Json:
    try:
        with (layout / "index.json").open("rb") as file:
            data = file.read(MAX_JSON + 1)
    except FileNotFoundError:
        raise InputError(f"{layout} is no OCI image layout: it has no index.json") from None
    except NotADirectoryError:
        raise InputError(f"{layout} is no OCI image layout: it is a file") from None
    except OSError as error:
        raise unreadable(f"{layout}/index.json", error) from None
    return parse(data, f"{layout}/index.json", Index)


def _stored(path: Path, limit: int) -> bytes | None:
    """So many bytes of a file and one more at the most, None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError:
        return None


def _open(layout: Path, digest: str) -> BinaryIO:
    path = blob_path(layout, digest)
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise CorruptImage(f"{digest} of {layout} is missing: the layout is incomplete; copy the image again") from None
    except OSError as error:
        raise unreadable(str(path), error) from None


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
