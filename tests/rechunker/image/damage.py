"""Damage to a finished image: `damage.py NAME LAYOUT`. But for what a function is about, digests and sizes fit."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

OBJECTS = "sysroot/ostree/repo/objects/"


class Layout:
    """The image of a layout: `manifest` and `config` are changed freely, and written again by `save`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._index = json.loads(self.index.read_text())
        self.manifest: dict[str, Any] = json.loads(self.blob(self._index["manifests"][0]).read_text())
        self.config: dict[str, Any] = json.loads(self.blob(self.manifest["config"]).read_text())

    @property
    def index(self) -> Path:
        return self.directory / "index.json"

    def blob(self, descriptor: dict[str, Any]) -> Path:
        return self.directory.joinpath("blobs", *descriptor["digest"].split(":"))

    def put(self, descriptor: dict[str, Any], content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        descriptor.update(digest=f"sha256:{digest}", size=len(content))
        self.blob(descriptor).write_bytes(content)

    def edit(self, number: int, edited: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
        """Change what is in a layer."""
        descriptor = self.manifest["layers"][number]
        with tarfile.open(self.blob(descriptor)) as tar:
            members = [(member, file.read() if (file := _file(tar, member)) else b"") for member in tar]
        edited(members)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for member, content in members:
                tar.addfile(member, io.BytesIO(content))
        self.config["rootfs"]["diff_ids"][number] = f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}"
        self.put(descriptor, gzip.compress(packed.getvalue(), mtime=0))

    def save(self) -> None:
        self.put(self.manifest["config"], json.dumps(self.config).encode())
        self.put(self._index["manifests"][0], json.dumps(self.manifest).encode())
        self.index.write_text(json.dumps(self._index))


def no_index(layout: Layout) -> None:
    """There is no index.json."""
    layout.index.unlink()


def garbage_index(layout: Layout) -> None:
    """index.json is cut short."""
    layout.index.write_text(layout.index.read_text()[:20])


def wrong_digest(layout: Layout) -> None:
    """A layer's blob has as many bytes as it should, and one of them is another."""
    blob = layout.blob(layout.manifest["layers"][1])
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)


def truncated_blob(layout: Layout) -> None:
    """A layer's blob is cut short."""
    blob = layout.blob(layout.manifest["layers"][1])
    blob.write_bytes(blob.read_bytes()[:-100])


def missing_blob(layout: Layout) -> None:
    """A layer's blob is not there."""
    layout.blob(layout.manifest["layers"][1]).unlink()


def lost_object(layout: Layout) -> None:
    """No layer has an object of the commit, nor its names for containers."""

    def edited(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        lost = next(member.name for member, content in members if member.name.endswith(".file") and content)
        members[:] = [pair for pair in members if not pair[0].name.startswith(lost) and pair[0].linkname != lost]

    layout.edit(1, edited)
    layout.save()


def changed_object(layout: Layout) -> None:
    """The content of an object is another than its checksum says."""

    def edited(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        number = next(n for n, (member, content) in enumerate(members) if member.name.endswith(".file") and content)
        member, content = members[number]
        members[number] = member, bytes([content[0] ^ 1]) + content[1:]

    layout.edit(1, edited)
    layout.save()


def lost_layer(layout: Layout) -> None:
    """The manifest lacks a layer that the config has."""
    del layout.manifest["layers"][1]
    layout.save()


def lost_history(layout: Layout) -> None:
    """The history lacks a layer."""
    del layout.config["history"][1]
    layout.save()


def wrong_commit(layout: Layout) -> None:
    """The label names a commit that the image does not hold."""
    for labels in (layout.config["config"]["Labels"], layout.manifest["annotations"]):
        labels["ostree.commit"] = hashlib.sha256(labels["ostree.commit"].encode()).hexdigest()
    layout.save()


def lost_labels(layout: Layout) -> None:
    """The image has no labels."""
    del layout.config["config"]["Labels"], layout.manifest["annotations"]
    layout.save()


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    return tar.extractfile(member) if member.isreg() else None


if __name__ == "__main__":
    name, directory = sys.argv[1:]
    globals()[name.replace("-", "_")](Layout(Path(directory)))
