"""The OSTree commit of a tree, made without a repository and without a copy of its contents.

It is the commit that `ostree commit --bootable` makes of the same files with the same labels, object for object. An
object is named by what is in it, so all it takes is to hash each file once; the rest is serialised here.

A commit has `usr/etc` where a container shows `etc`, and everything else is in the same place. Trees are given by what
containers show, the *view*; `origin` tells where the source has it.

Invariants:
- The same tree, labels and time make the same commit: no clock is read, and threads change nothing.
- There are no hard links. Each name of a file is a file of its own, of the same object where it has the same label.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.ostree.objects import (
    Metadatum,
    Xattrs,
    file_hash,
    serialise_commit,
    serialise_dirmeta,
    serialise_dirtree,
    serialise_xattrs,
)
from rechunk_action.ostree.view import commit_path, is_in, view_path
from rechunk_action.source import Source
from rechunk_action.tree.entry import ROOT, Tree, link_groups, parent_of
from rechunk_action.tree.lint import MODULES, kernels

LABEL = "security.selinux"
"""The attribute that holds a label."""

MetadataKind = Literal["dirtree", "dirmeta"]


@dataclass(frozen=True)
class Committed:
    """A commit and all of its objects, but for the contents of files.

    `checksum` is that of the commit object `commit`. `metadata` has the other objects that are stored as they are, by
    checksum. `tree` is the view: the digest of a file or link is the checksum of its content object, and its attributes
    are all that the object has, the label included; `attributes` has them serialised. Directories show no label, which
    is in their dirmeta objects alone. `linux` is the kernel's version.
    """

    checksum: bytes
    commit: bytes
    metadata: Mapping[bytes, tuple[MetadataKind, bytes]]
    tree: Tree
    attributes: Mapping[str, bytes]
    linux: str


def prepare(tree: Tree) -> tuple[Tree, list[str]]:
    """The view of a source's tree, and what to tell the user of it.

    Raises `InputError` for a tree that no system can be booted from, or that has two directories for `/etc`.
    """
    moved = _moves_etc(tree)
    view = {}
    for path, entry in tree.items():
        if path != ROOT and not ((parent := tree.get(parent_of(path))) and parent.is_dir):
            raise CorruptImage(f"/{path} lies below something that is no directory: build the image again")
        if is_in(path, _ETC if moved else _USR_ETC):
            continue
        view[view_path(path)] = replace(entry, group="")
    if "usr" not in view or not view["usr"].is_dir:
        raise InputError("there is no directory /usr: name the root file system of the image")
    _kernel(view)
    return view, list(_notices(view))


def origin(path: str, tree: Tree) -> str:
    """Where the tree of the source has a file or link of the view."""
    return path if path in tree else commit_path(path)


def commit(
    source: Source,
    tree: Tree,
    labels: Mapping[str, bytes],
    *,
    version: str | None,
    created: int,
    threads: int,
    advance: Callable[[int], None],
) -> Committed:
    """The commit of a source, which has been scanned.

    `tree` is its view, `labels` those of its paths, `created` the commit's time in seconds since 1970 (commits have
    none before that: it is 1970 then). `threads` files are read at the same time; `advance` is told of bytes as they
    are hashed, once for each name that a file has.

    Raises `InputError` when a file is not what it was when the source was scanned, and what the source raises.
    """
    linux = _kernel(tree)
    attributes, view = {}, {}
    serialised: dict[Xattrs, tuple[Xattrs, bytes]] = {}  # of a hundred thousand files, most have the same few
    for path, entry in tree.items():
        label = labels.get(path)
        pairs = (*entry.xattrs, (LABEL, label)) if label is not None else entry.xattrs
        if pairs not in serialised:
            serialised[pairs] = tuple(sorted(pairs)), serialise_xattrs(pairs)
        xattrs, attributes[path] = serialised[pairs]
        view[path] = entry if entry.is_dir else replace(entry, xattrs=xattrs)
    checksums = _checksums(source, view, attributes, threads, advance)
    files = {path: entry for path, entry in view.items() if not entry.is_dir}
    for path, entry in files.items():
        entry.digest = checksums[path]
    metadata: dict[bytes, tuple[MetadataKind, bytes]] = {}
    dirtree, dirmeta = _directories(view, attributes, metadata)
    about: dict[str, Metadatum] = {"ostree.bootable": True, "ostree.linux": linux}
    if version is not None:
        about["version"] = version
    data = serialise_commit(dirtree, dirmeta, metadata=about, timestamp=max(0, created))
    own = {path: attributes[path] for path in files}
    return Committed(hashlib.sha256(data).digest(), data, metadata, view, own, linux)


_ETC, _USR_ETC = "etc", "usr/etc"


def _moves_etc(tree: Tree) -> bool:
    """Whether the source has its configuration in `usr/etc`."""
    there = [path for path in (_ETC, _USR_ETC) if path in tree]
    for path in there:
        if not tree[path].is_dir:
            raise InputError(
                f"/{path} is no directory, and systems want their configuration there: build the image again"
            )
    if len(there) < len((_ETC, _USR_ETC)):
        return there == [_USR_ETC]
    parents = {parent_of(path) for path in tree}
    if _ETC in parents and _USR_ETC in parents:
        raise InputError(
            "both /etc and /usr/etc hold something, and systems have one of them: move what is in /usr/etc to /etc"
        )
    return _USR_ETC in parents


def _kernel(tree: Tree) -> str:
    """The version of the kernel that a system boots."""
    versions = kernels(tree)
    if not versions:
        raise InputError(f"there is no kernel, /{MODULES}/*/vmlinuz: an image that is booted needs one")
    if len(versions) > 1:
        raise InputError(f"there are several kernels, {', '.join(versions)}, in /{MODULES}: leave one there")
    return versions[0]


def _notices(tree: Tree) -> Iterator[str]:
    if "etc/selinux/config" not in tree:
        yield "there is no SELinux policy (/etc/selinux/config): no path gets a label"


def _checksums(
    source: Source, tree: Tree, attributes: Mapping[str, bytes], threads: int, advance: Callable[[int], None]
) -> dict[str, bytes]:
    """The checksum of each file and link of the view."""
    found = {
        path: file_hash(entry, attributes[path]).digest()
        for path, entry in tree.items()
        if not entry.is_dir and not entry.size
    }
    linked = link_groups(source.tree.items())
    sizes: dict[str, int] = {}

    def take(first: str, pieces: Iterator[bytes | memoryview]) -> None:
        names = [view_path(path) for path in linked.get(source.tree[first].group, [first])]
        # Names of one file may have different labels: then they are different objects.
        hashes = {attributes[path]: file_hash(tree[path], attributes[path]) for path in names}
        size = 0
        for piece in pieces:
            size += len(piece)
            for each in hashes.values():
                each.update(piece)
            advance(len(piece) * len(names))
        sizes[first] = size
        digests = {raw: each.digest() for raw, each in hashes.items()}
        for path in names:
            found[path] = digests[attributes[path]]

    source.hand_out(take, threads)
    # Not before: what is handed out twice counts as it comes last.
    for path, size in sizes.items():
        if size != source.tree[path].size:
            raise InputError(f"/{path} changed while it was read: build from a tree that nothing writes to")
    return found


def _directories(
    tree: Tree, attributes: Mapping[str, bytes], metadata: dict[bytes, tuple[MetadataKind, bytes]]
) -> tuple[bytes, bytes]:
    """Add the objects of all directories to the metadata. The checksums of those of the root."""

    def add(kind: MetadataKind, data: bytes) -> bytes:
        checksum = hashlib.sha256(data).digest()
        metadata[checksum] = kind, data
        return checksum

    files: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    below: dict[str, list[tuple[str, bytes, bytes]]] = defaultdict(list)
    places = {commit_path(path): path for path in tree}
    for place in sorted(places, reverse=True):  # what is in a directory comes before it
        path = places[place]
        entry = tree[path]
        parent, _, name = place.rpartition("/")
        if entry.is_dir:
            dirtree = add("dirtree", serialise_dirtree(files.pop(place, ()), below.pop(place, ())))
            below[parent].append((name, dirtree, add("dirmeta", serialise_dirmeta(entry, attributes[path]))))
        else:
            files[parent].append((name, entry.digest))
    [(_, *root)] = below[ROOT]
    return root[0], root[1]
