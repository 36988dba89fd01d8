"""OSTree-chunked images: the commit that their layers carry, object by object.

The first layer holds the commit, then its directories (dirtree and dirmeta objects); the layers behind it, the chunks,
hold files. What stands outside of `sysroot/ostree/repo` only makes the view that containers have; importers pass it by,
and so does this module. It reads as they do (ostree-ext, tar/import.rs) and refuses what they refuse. Beyond that, it
holds every object against its name, and the commit against the objects: a client that has an older image would not
notice a missing one.

A content object is an `Entry`, the file or link that it makes wherever the commit names it. Its checksum stands for all
attributes; the entry has those that an image shows.

What reads the objects of a single layer (`ObjectReader`) serves the tables of chunks, too.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci import tar
from rechunk_action.oci.compression import Reader, bomb_limit
from rechunk_action.oci.config import CHUNKED_LABEL
from rechunk_action.oci.image import Image
from rechunk_action.oci.table import PATH_SIZE, Blob, Kept, read_checked
from rechunk_action.oci.tar import Member
from rechunk_action.ostree.objects import (
    Commit,
    DirTree,
    Xattrs,
    file_hash,
    parse_commit,
    parse_dirmeta,
    parse_dirtree,
    parse_xattrs,
    serialise_xattrs,
)
from rechunk_action.ostree.view import view_path
from rechunk_action.tree.entry import ROOT, Entry, Tree, new_digest
from rechunk_action.workers import Workers

COMMIT_LABEL = "ostree.commit"

MAX_METADATA, MAX_XATTRS = 10 << 20, 1 << 20
"""Bytes that importers read of a metadata object, and of a file's attributes (ostree-ext, tar/import.rs)."""

PARSED = 10
"""Bytes of memory, at most, for a byte of a metadata object or of attributes. Of 150,000 paths they are 10 MB."""

Contents = Mapping[bytes, Entry]
"""The content objects of a layer by checksum."""

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class CommitLayer:
    """What the first layer holds: the commit, and its directories by checksum."""

    checksum: bytes
    commit: Commit
    dirtrees: Mapping[bytes, DirTree]
    dirmetas: Mapping[bytes, Entry]

    def paths(self) -> dict[str, bytes]:
        """The checksums of all files and links, by the paths that containers see.

        Raises `CorruptImage` when a directory is missing, or when there are more paths than any image has.
        """
        return {view_path(path): checksum for path, checksum, directory in self.places() if directory is None}

    def places(self) -> Iterator[tuple[str, bytes, Entry | None]]:
        """Every path of the commit, parents first, with the checksum of its object: a file's or link's, or that of the
        dirmeta, which comes along. Raises as `paths` does.
        """
        kept = Kept(f"commit {self.checksum.hex()}")  # which may name the same directories again and again
        pending = [(ROOT, self.commit.dirtree, self.commit.dirmeta)]
        while pending:
            path, dirtree, dirmeta = pending.pop()
            yield path, dirmeta, _found(self.dirmetas, dirmeta, "dirmeta", path)
            directory = _found(self.dirtrees, dirtree, "dirtree", path)
            prefix = f"{path}/" if path else ""
            kept.add((len(prefix) + PATH_SIZE) * (len(directory.files) + len(directory.directories)))
            for name, checksum in directory.files:
                yield prefix + name, checksum, None
            pending += [(prefix + name, below, meta) for name, below, meta in reversed(directory.directories)]


@dataclass(frozen=True)
class Chunked(CommitLayer):
    """The commit of an image, and where its objects are.

    `layers` has the content objects of each layer, in the image's order. What it holds more than the commit names is
    dead.
    """

    layers: Sequence[Contents]

    def tree(self) -> Tree:
        """The file system that the commit describes, by its own paths (`usr/etc` is `usr/etc`).

        There are no hard links in it and no times: OSTree keeps neither.
        """
        return {path: copy.copy(entry) for path, _, entry in self.walk()}

    def walk(self) -> Iterator[tuple[str, bytes, Entry]]:
        """Every path of the commit, parents first, with its object: a file or link, or a directory's dirmeta.

        Raises `CorruptImage` when one is in no layer, or when there are more paths than any image has.
        """
        contents = {checksum: entry for layer in self.layers for checksum, entry in layer.items()}
        for path, checksum, directory in self.places():
            yield path, checksum, directory or _found(contents, checksum, "file", path)


def read_chunked(image: Image, *, threads: int) -> Chunked:
    """Read all layers of an image once, `threads` at the same time, and check them.

    Raises `InputError` when the image is not OSTree-chunked or has other layers on top of the chunks, `CorruptImage`
    when importers would refuse it or an object of the commit is missing.
    """
    derived = len(image.layers) - 1 - last_chunk(image)
    if derived:
        raise InputError(
            f"{image.blobs} has {derived} layers on top of its last chunk, as a container build on an OSTree-chunked "
            "image makes them: name the image that it was built on, or chunk this one anew"
        )
    with Workers(threads) as workers:
        layers = list(workers.map(partial(_read_layer, image), range(len(image.layers))))
    first = commit_layer(layers[0], image.layers[0])
    label = image.labels.get(COMMIT_LABEL, "")
    if label != first.checksum.hex():
        raise CorruptImage(
            f"the label {COMMIT_LABEL} of {image.blobs} says {label!r}, but its first layer holds commit "
            f"{first.checksum.hex()}: config and layers do not belong together; build the image again"
        )
    contents = [layer.contents for layer in layers]
    chunked = Chunked(first.checksum, first.commit, first.dirtrees, first.dirmetas, contents)
    for _ in chunked.walk():  # every object is there
        pass
    return chunked


def last_chunk(image: Image) -> int:
    """The index of the last layer that is part of the commit, as importers find it (ostree-ext, container/store.rs).

    Raises `InputError` when the image is not OSTree-chunked, `CorruptImage` when its label names no layer, or two.
    """
    final = image.labels.get(CHUNKED_LABEL)
    if final is None:
        raise InputError(
            f"{image.blobs} holds no OSTree-chunked image, since its label {CHUNKED_LABEL} is missing: "
            "name one that hhd-dev/rechunk or rpm-ostree made"
        )
    places = [number for number, blob in enumerate(image.layers) if blob.diff_id == final]
    if not places:
        raise CorruptImage(
            f"the label {CHUNKED_LABEL} of {image.blobs} names {final}, which is none of its layers; "
            "build the image again"
        )
    if len(places) > 1:
        raise CorruptImage(
            f"the label {CHUNKED_LABEL} of {image.blobs} names layers {places[0] + 1} and {places[1] + 1} alike, and "
            "importers take the first for the last chunk: build the image again without empty layers"
        )
    return places[0]


@dataclass
class Objects:
    """The objects of one layer."""

    commit: tuple[bytes, Commit] | None = None
    contents: dict[bytes, Entry] = field(default_factory=dict)
    dirtrees: dict[bytes, DirTree] = field(default_factory=dict)
    dirmetas: dict[bytes, Entry] = field(default_factory=dict)


def commit_layer(objects: Objects, blob: Blob) -> CommitLayer:
    """The objects of a first layer. Raises `CorruptImage` when it holds no commit."""
    if objects.commit is None:
        raise CorruptImage(f"layer {blob.digest} holds no commit; build the image again")
    return CommitLayer(*objects.commit, objects.dirtrees, objects.dirmetas)


REFUSAL = "cannot be imported"
"""What follows for a layer that breaks a rule."""


def _found(objects: Mapping[bytes, _Parsed], checksum: bytes, kind: str, path: str) -> _Parsed:
    """An object of the commit. Raises `CorruptImage` when no layer holds it."""
    there = objects.get(checksum)
    if there is None:
        raise CorruptImage(
            f"/{path} needs the {kind} object {checksum.hex()}, which no layer holds: only clients that have it "
            "already could take this image; build it again"
        )
    return there


def _read_layer(image: Image, index: int) -> Objects:
    blob = image.layers[index]
    with image.open(blob) as file:
        reader = Reader(file, blob.media_type, limit=bomb_limit(blob.size))
        objects = ObjectReader(reader, first=index == 0)
        read_checked(reader, blob, objects.read, REFUSAL)
    return objects.found


_REPOSITORY = b"sysroot/ostree/repo/"
_OBJECT = re.compile(rb"objects/([0-9a-f]{2})/([0-9a-f]{62})\.([a-z-]+)")
_XATTRS_LINK = re.compile(rb"(?:.*/)?([0-9a-f]{2})/([0-9a-f]{62})\.file-xattrs", re.DOTALL)


class ObjectReader:
    """Turns the members of one archive into objects.

    `by_checksum`: of a content object's entry, the digest is the checksum and the attributes are all that it has.
    """

    def __init__(self, reader: Reader, *, first: bool, by_checksum: bool = False) -> None:
        self.found = Objects()
        self._reader = reader
        self._first = first
        self._by_checksum = by_checksum
        self.unsorted = False
        """Whether some attributes are not in OSTree's order; known where the entries have all."""
        self._kept = Kept()
        self._xattrs: dict[bytes, tuple[bytes, Xattrs]] = {}
        self._link: tuple[bytes, bytes] | None = None
        """The file that comes next, and its attributes, by their checksums."""

    def read(self) -> None:
        """All of the archive. Raises `CorruptImage` for what importers would refuse, and for a wrong checksum."""
        reader = self._reader
        for member in tar.members(reader):
            end = reader.consumed + member.size + (-member.size % tar.BLOCK)
            if in_repository(member):
                self.add(member)
            reader.skip(end - reader.consumed)
        reader.finish()
        if reader.problem:
            raise CorruptImage(reader.problem)

    def add(self, member: Member) -> Entry | None:
        """Take in a member that is in the repository; the content object that it is. It may be left unread."""
        path = member.name[len(_REPOSITORY) :]
        if path.startswith(b"refs/") or path.rpartition(b"/")[2] == b"config":
            return None
        match = _OBJECT.fullmatch(path)
        if match is None:
            if path.startswith(b"objects/"):
                raise CorruptImage(f"{member.name!r} is not named like an object")
            return None
        checksum, kind = bytes.fromhex((match[1] + match[2]).decode()), match[3].decode()
        name = f"{checksum.hex()}.{kind}"
        if self._first and self.found.commit is None and kind != "commit":
            raise CorruptImage(f"its first object is {name}, where importers want the commit")
        if kind == "file":
            return self._add_file(checksum, name, member)
        if kind == "file-xattrs":
            self._add_xattrs(checksum, name, member)
        elif kind == "file-xattrs-link":
            self._add_link(checksum, name, member)
        elif kind not in ("commit", "commitmeta", "dirtree", "dirmeta"):
            raise CorruptImage(f"{name} is of a type that importers do not know")
        elif not self._first:
            raise CorruptImage(f"{name} is a metadata object, and importers want those in the first layer alone")
        elif kind != "commitmeta":  # which is named by its commit, and no part of it
            self._add_metadata(checksum, kind, member)
        return None

    def _add_metadata(self, checksum: bytes, kind: str, member: Member) -> None:
        name = f"{checksum.hex()}.{kind}"
        layer = self.found
        data = self._checked(checksum, name, member, MAX_METADATA)
        if checksum in layer.dirtrees or checksum in layer.dirmetas or (kind == "commit" and layer.commit):
            raise CorruptImage(f"{name} is an object twice, or a second commit")
        if kind == "commit":
            layer.commit = checksum, _parse(parse_commit, data, name)
        elif kind == "dirtree":
            layer.dirtrees[checksum] = _parse(parse_dirtree, data, name)
        else:
            layer.dirmetas[checksum] = _parse(parse_dirmeta, data, name)

    def _add_xattrs(self, checksum: bytes, name: str, member: Member) -> None:
        data = self._checked(checksum, name, member, MAX_XATTRS)
        self._xattrs[checksum] = data, self._parse_xattrs(data, name)

    def _add_link(self, checksum: bytes, name: str, member: Member) -> None:
        """A hard link to the attributes of the file that comes next, or a file that holds them itself."""
        if self._link is not None:
            raise CorruptImage(f"{name} comes before the file that the one before it is for")
        if member.typeflag == tar.HARDLINK:
            match = _XATTRS_LINK.fullmatch(member.linkname)
            if match is None:
                raise CorruptImage(f"{name} is a hard link to {member.linkname!r}, which are no attributes")
            self._link = checksum, bytes.fromhex((match[1] + match[2]).decode())
            return
        data = self._small(name, member, MAX_XATTRS)
        key = hashlib.sha256(data).digest()
        if key not in self._xattrs:
            self._xattrs[key] = data, self._parse_xattrs(data, name)
        self._link = checksum, key

    def _add_file(self, checksum: bytes, name: str, member: Member) -> Entry:
        link, self._link = self._link, None
        if link is None or link[0] != checksum:
            raise CorruptImage(f"{name} does not come directly behind its .file-xattrs-link")
        if link[1] not in self._xattrs:
            raise CorruptImage(f"the attributes {link[1].hex()} of {name} do not come before it in its layer")
        if checksum in self.found.contents:
            raise CorruptImage(f"{name} is there twice")
        self._kept.add(PATH_SIZE + len(member.linkname))
        raw, xattrs = self._xattrs[link[1]]
        entry = _entry(name, member, xattrs)
        hashed = file_hash(entry, raw)
        content = None if self._by_checksum else new_digest()
        read = 0
        for piece in self._reader.chunks(entry.size):
            hashed.update(piece)
            if content is not None:
                content.update(piece)
            read += len(piece)
        if read < entry.size:
            raise CorruptImage(f"the archive ends inside {name}: it is truncated")
        if hashed.digest() != checksum:
            raise CorruptImage(
                f"{name} has the checksum {hashed.digest().hex()} by its content, owner, mode and attributes"
            )
        if content is None:
            entry.digest = checksum
        elif entry.kind == "f":
            entry.digest = content.digest()
        self.found.contents[checksum] = entry
        return entry

    def _parse_xattrs(self, data: bytes, name: str) -> Xattrs:
        if not self._by_checksum:
            return _parse(parse_xattrs, data, name)
        xattrs = _parse(partial(parse_xattrs, ignored=()), data, name)
        self.unsorted |= serialise_xattrs(xattrs) != data
        return xattrs

    def _checked(self, checksum: bytes, name: str, member: Member, limit: int) -> bytes:
        data = self._small(name, member, limit)
        found = hashlib.sha256(data).digest()
        if found != checksum:
            raise CorruptImage(f"{name} has the checksum {found.hex()} by its content")
        return data

    def _small(self, name: str, member: Member, limit: int) -> bytes:
        """A member's content, when it is a file of no more than `limit` bytes.

        Raises `Bomb` when the layer's small members take more memory together than those of any image.
        """
        if member.typeflag != tar.REGULAR or member.sparse:
            raise CorruptImage(f"{name} is no regular file")
        if member.size > limit:
            raise CorruptImage(f"{name} has {member.size:,} bytes, and importers read {limit:,} at the most")
        self._kept.add(PARSED * member.size)
        data = self._reader.read(member.size)
        if len(data) < member.size:
            raise CorruptImage(f"the archive ends inside {name}: it is truncated")
        return data


def in_repository(member: Member) -> bool:
    """Whether importers look at a member. The others make the view of containers."""
    return member.typeflag != tar.DIRECTORY and member.name.startswith(_REPOSITORY)


def _parse(parse: Callable[[bytes], _Parsed], data: bytes, name: str) -> _Parsed:
    try:
        return parse(data)
    except CorruptImage as error:
        raise CorruptImage(f"{name} is malformed ({error})") from None


def _entry(name: str, member: Member, xattrs: Xattrs) -> Entry:
    if member.typeflag == tar.REGULAR and not member.sparse:
        return Entry("f", member.mode, member.uid, member.gid, size=member.size, xattrs=xattrs)
    if member.typeflag != tar.SYMLINK or not member.linkname:
        raise CorruptImage(f"{name} is neither a regular file nor a symbolic link")
    try:
        target = member.linkname.decode()
    except UnicodeDecodeError:
        raise CorruptImage(f"the target of {name} is not UTF-8") from None
    return Entry("l", 0o777, member.uid, member.gid, target=target, xattrs=xattrs)
