"""OSTree-chunked images written from an OSTree repository, as ostree-ext writes them, and in wrong ways if asked.

commit = commit_tree(repo, tree)                     `ostree commit` into a bare-user repository
write_chunked(repo, commit, layout, group=...)       its image, in an OCI layout

layers = list(chunked_layers(repo, commit, ...))     or in two steps: the members of each layer, to be changed,
write_image(layout, layers, commit)                  and the image that they make
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rechunk_action.oci.image import CONFIG, MANIFEST, host_architecture
from rechunk_action.oci.layout import REF_NAME
from rechunk_action.ostree.objects import parse_commit, parse_dirmeta, parse_dirtree, parse_xattrs
from tests.oracles import program, run
from tests.support import (
    Item,
    archive,
    descriptor,
    directory,
    file,
    hardlink,
    pack,
    symlink,
    write_blob,
    write_index,
    write_json,
)

REPOSITORY = "sysroot/ostree/repo"

Group = Callable[[str, Sequence[str]], int]
"""The number of the chunk that a content object is in, by its checksum and its paths."""


def three_chunks(checksum: str, paths: Sequence[str]) -> int:
    del paths
    return int(checksum, 16) % 3


def commit_tree(repo: Path, tree: Path, *options: str, mode: str = "bare-user", branch: str = "main") -> str:
    """Commit a directory, into a new repository if there is none. The commit's checksum."""
    ostree = program("ostree", "ostree")
    if not repo.exists():
        run(ostree, f"--repo={repo}", "init", f"--mode={mode}")
        run(ostree, f"--repo={repo}", "config", "set", "core.fsync", "false")
    times = "--timestamp=2024-01-01 00:00:00 +0000"
    return run(ostree, f"--repo={repo}", "commit", f"--branch={branch}", f"--tree=dir={tree}", times, *options).strip()


def write_chunked(
    repo: Path,
    commit: str,
    layout: Path,
    *,
    group: Group = three_chunks,
    parents: bool = False,
    own_xattrs: bool = False,
    labels: Mapping[str, str] | None = None,
) -> Path:
    """The image of a commit (checksum) in a bare-user repository. `labels` are put over the format's own.

    `parents`: format version 2, in which chunks state the directories above their paths. `own_xattrs`: as written by
    later versions of ostree-ext, with a copy of the attributes before each file instead of a hard link.
    """
    layers = chunked_layers(repo, commit, group=group, parents=parents, own_xattrs=own_xattrs)
    return write_image(layout, layers, commit, labels=labels)


def chunked_layers(
    repo: Path, commit: str, *, group: Group = three_chunks, parents: bool = False, own_xattrs: bool = False
) -> Iterator[list[Item]]:
    """The members of each layer, one layer after the other: the one of the commit, then the chunks."""
    walked = _walk(repo, commit)
    yield _first_layer(repo, commit, walked)
    chunks: dict[int, list[str]] = {}
    for checksum, paths in walked.files.items():
        chunks.setdefault(group(checksum, paths), []).append(checksum)
    for number in sorted(chunks):
        yield [*_skeleton(), *_chunk(repo, walked, sorted(chunks[number]), parents=parents, own_xattrs=own_xattrs)]


def write_image(
    layout: Path,
    layers: Iterable[Sequence[Item]],
    commit: str,
    *,
    final: int = -1,
    labels: Mapping[str, str] | None = None,
    compression: str = "gzip",
) -> Path:
    """An OCI layout with the image (`latest`) of these layers. `final` is the index of the last chunk."""
    blobs, diff_ids, names = [], [], []
    for number, members in enumerate(layers):
        layer = pack(archive(*members), compression)
        write_blob(layout, layer.data)
        names.append(f"chunk {number}" if number else f"ostree export of commit {commit}")
        blobs.append(descriptor(layer) | ({"annotations": {"ostree.components": names[-1]}} if number else {}))
        diff_ids.append(layer.blob.diff_id)
    labels = {
        "containers.bootc": "1",
        "ostree.bootable": "true",
        "ostree.commit": commit,
        "ostree.final-diffid": diff_ids[final],
        **(labels or {}),
    }
    config = {
        "architecture": host_architecture(),
        "os": "linux",
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": name} for name in names],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write_json(layout, config, CONFIG),
        "layers": blobs,
        "annotations": labels,
    }
    write_index(layout, write_json(layout, manifest, MANIFEST) | {"annotations": {REF_NAME: "latest"}})
    return layout


def dirtree_of(
    files: Sequence[tuple[bytes, bytes]] = (), directories: Sequence[tuple[bytes, bytes, bytes]] = ()
) -> bytes:
    elements = [_tuple(name + b"\0", checksum) for name, checksum in files]
    below = [_tuple(name + b"\0", tree, meta) for name, tree, meta in directories]
    return _tuple(array(elements), array(below))


def commit_of(tree: bytes, meta: bytes) -> bytes:
    """Nothing but what a commit has to have."""
    # Metadata, parent and related are empty, subject and body too; the timestamp is aligned.
    body = b"\0\0".ljust(8, b"\0") + bytes(8) + tree + meta
    return body + bytes([48, 2, 1, 0, 0, 0])


def pair(name: bytes, value: bytes) -> bytes:
    """An extended attribute: a `.file-xattrs` object is an array of those."""
    return _tuple(name + b"\0", value)


def array(elements: Sequence[bytes]) -> bytes:
    ends, end = [], 0
    for element in elements:
        end += len(element)
        ends.append(end)
    return _framed(b"".join(elements), ends)


def object_name(checksum: str, kind: str) -> str:
    """The name of an object inside of a layer."""
    return f"{REPOSITORY}/{_object(checksum, kind)}"


@dataclass(frozen=True)
class _Walked:
    """A commit's metadata objects (checksum, kind) and content objects, each with its paths, in the order of a walk."""

    metadata: list[tuple[str, str]]
    directories: dict[str, str]
    files: dict[str, list[str]]


def _walk(repo: Path, checksum: str) -> _Walked:
    commit = parse_commit(_read(repo, checksum, "commit"))
    metadata = {(commit.dirmeta.hex(), "dirmeta"): None}
    directories: dict[str, str] = {}
    files: dict[str, list[str]] = {}
    pending = [("", commit.dirtree, commit.dirmeta)]
    while pending:
        path, dirtree, dirmeta = pending.pop()
        metadata |= {(dirtree.hex(), "dirtree"): None, (dirmeta.hex(), "dirmeta"): None}
        directories[path] = dirmeta.hex()
        parsed = parse_dirtree(_read(repo, dirtree.hex(), "dirtree"))
        for name, content in parsed.files:
            files.setdefault(content.hex(), []).append(f"{path}/{name}".removeprefix("/"))
        pending += [(f"{path}/{name}".removeprefix("/"), below, meta) for name, below, meta in parsed.directories]
    return _Walked(list(metadata), directories, files)


def _first_layer(repo: Path, commit: str, walked: _Walked) -> list[Item]:
    members = [_directory(repo, "./", walked.directories[""]), *_skeleton()]
    members += [
        file(object_name(checksum, kind), _read(repo, checksum, kind))
        for checksum, kind in [(commit, "commit"), *walked.metadata]
    ]
    members += [
        _directory(repo, f"./{_shown(path)}", dirmeta)
        for path, dirmeta in walked.directories.items()
        if path and path.partition("/")[0] != "sysroot"
    ]
    return members


def _skeleton() -> list[Item]:
    """The repository's directories and its config: all of it in every layer."""
    directories = ["sysroot", "sysroot/ostree", REPOSITORY, f"{REPOSITORY}/objects"]
    directories += [f"{REPOSITORY}/objects/{number:02x}" for number in range(256)]
    directories += [f"{REPOSITORY}/{name}" for name in ("extensions", "refs", "refs/heads", "state", "tmp")]
    config = b"[core]\nrepo_version=1\nmode=bare-split-xattrs\n"
    return [*map(directory, directories), file(f"{REPOSITORY}/config", config)]


def _chunk(repo: Path, walked: _Walked, checksums: Iterable[str], *, parents: bool, own_xattrs: bool) -> Iterator[Item]:
    written: set[str] = set()
    for checksum in checksums:
        content, uid, gid, mode, raw = _content(repo, checksum)
        link = object_name(checksum, "file-xattrs-link")
        if own_xattrs:
            yield file(link, raw)
        else:
            name = hashlib.sha256(raw).hexdigest()
            if name not in written:
                yield file(object_name(name, "file-xattrs"), raw)
                written.add(name)
            yield hardlink(link, object_name(name, "file-xattrs"), mode=0o644)
        place = object_name(checksum, "file")
        xattrs = dict(parse_xattrs(raw))
        if stat.S_ISLNK(mode):
            yield symlink(place, os.fsdecode(content.rstrip(b"\0")), uid=uid, gid=gid, xattrs=xattrs)
        else:
            yield file(place, content, uid=uid, gid=gid, mode=stat.S_IMODE(mode), xattrs=xattrs)
        for path in walked.files[checksum]:
            if parents:
                yield from _parents(repo, walked, path, written)
            if stat.S_ISREG(mode) and not content:
                yield file(_shown(path), uid=uid, gid=gid, mode=stat.S_IMODE(mode))
            else:
                yield hardlink(_shown(path), place, uid=uid, gid=gid, mode=stat.S_IMODE(mode))


def _parents(repo: Path, walked: _Walked, path: str, written: set[str]) -> Iterator[Item]:
    parts = path.split("/")
    for depth in range(1, len(parts)):
        above = "/".join(parts[:depth])
        if f"/{above}" not in written:
            written.add(f"/{above}")
            yield _directory(repo, _shown(above), walked.directories[above])


def _directory(repo: Path, name: str, dirmeta: str) -> Item:
    entry = parse_dirmeta(_read(repo, dirmeta, "dirmeta"))
    return directory(name, mode=entry.mode, uid=entry.uid, gid=entry.gid)


def _shown(path: str) -> str:
    """Where containers see a path of the commit."""
    return path.removeprefix("usr/") if path == "usr/etc" or path.startswith("usr/etc/") else path


def _content(repo: Path, checksum: str) -> tuple[bytes, int, int, int, bytes]:
    """A content object of a bare-user repository: content or target, owner, group, mode with its type, attributes."""
    place = repo / _object(checksum, "file")
    meta = os.getxattr(place, "user.ostreemeta")
    return place.read_bytes(), *struct.unpack_from(">III", meta), meta[12:]


def _read(repo: Path, checksum: str, kind: str) -> bytes:
    return (repo / _object(checksum, kind)).read_bytes()


def _object(checksum: str, kind: str) -> str:
    return f"objects/{checksum[:2]}/{checksum[2:]}.{kind}"


def _tuple(*parts: bytes) -> bytes:
    ends = [sum(map(len, parts[:count])) for count in range(1, len(parts))]
    return _framed(b"".join(parts), ends[::-1])


def _framed(body: bytes, ends: Sequence[int]) -> bytes:
    width = next(width for width in (1, 2, 4, 8) if len(body) + width * len(ends) < 1 << 8 * width)
    return body + b"".join(end.to_bytes(width, "little") for end in ends)
