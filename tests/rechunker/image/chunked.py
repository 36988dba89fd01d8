"""A commit as an OSTree-chunked image, in an OCI layout.

Each layer starts with the skeleton of a repository, of mode bare-split-xattrs. The first holds all metadata objects,
and the directories that containers see; then comes a layer for each part of the plan, with content objects, and hard
links to them where containers see the files; last one with the skeleton alone, reserved. `usr/etc` is seen as `etc`. A
layout that exists is added to, and its image is replaced.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import stat
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .repository import Commit, Metadata

REPOSITORY = "sysroot/ostree/repo"
OBJECTS = f"{REPOSITORY}/objects"
RESERVED = "Reserved for new packages"

_SKELETON = (
    *("sysroot", "sysroot/ostree", REPOSITORY, OBJECTS),
    *(f"{OBJECTS}/{number:02x}" for number in range(256)),
    *(f"{REPOSITORY}/{name}" for name in ("extensions", "refs", "refs/heads", "refs/mirrors", "refs/remotes")),
    *(f"{REPOSITORY}/{name}" for name in ("state", "tmp", "tmp/cache")),
)
_CONFIG = b"[core]\nrepo_version=1\nmode=bare-split-xattrs\n"
_DIRECTORY = Metadata(0, 0, stat.S_IFDIR | 0o755, b"")
_FILE = Metadata(0, 0, stat.S_IFREG | 0o644, b"")


@dataclass(frozen=True)
class Plan:
    """`mapping` is content object -> name of its layer, `components` layer -> what it is made of."""

    mapping: Mapping[str, str]
    components: Mapping[str, str]


def write_image(
    commit: Commit, plan: Plan, layout: Path, *, tag: str, labels: Mapping[str, str], created: str, level: int
) -> None:
    """`created` is a time in RFC 3339, `level` gzip's. What OSTree's clients ask for is added to the labels."""
    writer = _Writer(layout, level)
    views = _views(commit)
    chunks = defaultdict(list)
    for checksum in commit.content:
        chunks[plan.mapping[checksum]].append(checksum)
    layers = [
        writer.layer(f"ostree export of commit {commit.checksum}", None, _commit_layer(commit)),
        *(writer.layer(name, plan.components[name], _chunk(commit, chunks[name], views)) for name in sorted(chunks)),
        writer.layer(RESERVED, "", _skeleton()),
    ]
    ours = {
        "ostree.commit": commit.checksum,
        "ostree.final-diffid": layers[-1].diff_id,
        "ostree.bootable": "true",
        "containers.bootc": "1",
    }
    config = {
        "created": created,
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": {"Labels": {**labels, **ours}},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": created, "created_by": layer.name} for layer in layers],
    }
    writer.image(config, layers, tag)


Member = tuple[tarfile.TarInfo, Path | bytes]


@dataclass(frozen=True)
class _Layer:
    name: str
    diff_id: str
    descriptor: dict[str, Any]


class _Writer:
    def __init__(self, layout: Path, level: int) -> None:
        self._layout = layout
        self._level = level
        (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def layer(self, name: str, components: str | None, members: Iterator[Member]) -> _Layer:
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for info, content in members:
                tar.addfile(info, io.BytesIO(content if isinstance(content, bytes) else content.read_bytes()))
        packed = gzip.compress(plain.getvalue(), self._level, mtime=0)
        descriptor = self._blob("application/vnd.oci.image.layer.v1.tar+gzip", packed)
        if components is not None:
            descriptor["annotations"] = {"ostree.components": components}
        return _Layer(name, f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}", descriptor)

    def image(self, config: dict[str, Any], layers: list[_Layer], tag: str) -> None:
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self._blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode()),
            "layers": [layer.descriptor for layer in layers],
            "annotations": config["config"]["Labels"],
        }
        descriptor = self._blob(manifest["mediaType"], json.dumps(manifest).encode())
        descriptor["platform"] = {"architecture": config["architecture"], "os": config["os"]}
        if tag:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
        index = {"schemaVersion": 2, "manifests": [descriptor]}
        (self._layout / "index.json").write_text(json.dumps(index))

    def _blob(self, media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self._layout / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _skeleton() -> Iterator[Member]:
    for name in _SKELETON:
        yield _header(name, _DIRECTORY), b""
    yield _file(f"{REPOSITORY}/config", _CONFIG)


def _commit_layer(commit: Commit) -> Iterator[Member]:
    root = commit.directories[0]
    yield _header(".", commit.directory(root.meta)), b""
    yield from _skeleton()
    yield _object(commit, commit.checksum, "commit")
    written: set[str] = set()
    for directory in commit.directories:
        for checksum, kind in ((directory.meta, "dirmeta"), (directory.tree, "dirtree")):
            if kind == "dirtree" and directory.path not in ("", "sysroot"):
                yield _header(_view(directory.path), commit.directory(directory.meta)), b""
            if checksum not in written:
                written.add(checksum)
                yield _object(commit, checksum, kind)
    if all(directory.path != "var/tmp" for directory in commit.directories):
        yield _header("var/tmp", Metadata(0, 0, stat.S_IFDIR | 0o1777, b"")), b""


def _chunk(commit: Commit, checksums: list[str], views: Mapping[str, list[str]]) -> Iterator[Member]:
    yield from _skeleton()
    written: set[str] = set()
    for checksum in checksums:
        metadata, path = commit.file(checksum), commit.path(checksum, "file")
        xattrs = _place(hashlib.sha256(metadata.attributes).hexdigest(), "file-xattrs")
        if xattrs not in written:
            written.add(xattrs)
            yield _file(xattrs, metadata.attributes)
        yield _link(_header(_place(checksum, "file-xattrs-link"), _FILE), xattrs), b""
        info = _header(_place(checksum, "file"), metadata)
        if info.issym():
            info.linkname = os.fsdecode(path.read_bytes())
            yield info, b""
        else:
            info.size = path.stat().st_size
            yield info, path
        for view in views[checksum]:
            seen = _header(view, metadata)
            # A hard link to an empty file invites programs to write into the object.
            yield (_link(seen, info.name) if info.issym() or info.size else seen), b""


def _object(commit: Commit, checksum: str, kind: str) -> Member:
    return _file(_place(checksum, kind), commit.path(checksum, kind).read_bytes())


def _file(name: str, content: bytes) -> Member:
    info = _header(name, _FILE)
    info.size = len(content)
    return info, content


def _link(info: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
    info.type, info.linkname, info.pax_headers = tarfile.LNKTYPE, target, {}
    return info


def _header(name: str, metadata: Metadata) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.uid, info.gid, info.mode = metadata.uid, metadata.gid, stat.S_IMODE(metadata.mode)
    info.type = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}.get(
        stat.S_IFMT(metadata.mode), tarfile.REGTYPE
    )
    info.pax_headers = {
        f"SCHILY.xattr.{os.fsdecode(key)}": os.fsdecode(value)
        for key, value in sorted(metadata.xattrs.items())
        if key != b"security.selinux"
    }
    return info


def _place(checksum: str, kind: str) -> str:
    return f"{OBJECTS}/{checksum[:2]}/{checksum[2:]}.{kind}"


def _views(commit: Commit) -> Mapping[str, list[str]]:
    views: dict[str, list[str]] = defaultdict(list)
    for path, checksum in sorted(commit.files.items()):
        views[checksum].append(_view(path))
    return views


def _view(path: str) -> str:
    """Where a container sees a path of the commit."""
    return path.removeprefix("usr/") if f"{path}/".startswith("usr/etc/") else path
