"""OSTree-chunked images: what is read of them is the tree that was committed, and each rule of theirs is kept."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci import compression, table
from rechunk_action.oci.layout import read_image
from rechunk_action.ostree.chunked import MAX_METADATA, MAX_XATTRS, Chunked, read_chunked
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.scan import Hasher, scan
from rechunk_action.verify import tree_differences
from tests.oracles import scratch
from tests.ostree_images import (
    array,
    chunked_layers,
    commit_of,
    commit_tree,
    dirtree_of,
    object_name,
    pair,
    write_chunked,
    write_image,
)
from tests.support import Item, archive, device, digest, file, hardlink, pack, peak_memory, symlink, write_layout
from tests.trees import CAPABILITY, Files, generations, write

LABEL = b"system_u:object_r:bin_t:s0\0"
DIRMETA = bytes(8) + (0o40755).to_bytes(4, "big")
"""The dirmeta object of a directory of root's without attributes."""

Layers = list[list[Item]]


@pytest.fixture(scope="module")
def repo() -> Iterator[SimpleNamespace]:
    """A repository with a commit of a tree that has some of everything."""
    with scratch() as place:
        _make_awkward(place / "tree")
        yield SimpleNamespace(
            place=place, repo=place / "repo", tree=place / "tree", commit=commit_tree(place / "repo", place / "tree")
        )


def _make_awkward(tree: Path) -> None:
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/etc/ssh").mkdir(parents=True)
    (tree / "usr/lib" / "/".join(["deep"] * 60)).mkdir(parents=True)
    (tree / "usr/bin/su").write_bytes(b"setuid" * 1000)
    (tree / "usr/bin/su").chmod(0o4755)
    (tree / "usr/bin/ping").write_bytes(b"capable")
    os.setxattr(tree / "usr/bin/ping", "security.capability", CAPABILITY)
    os.setxattr(tree / "usr/bin/ping", "user.\N{SNOWMAN}", b"\0\xff")
    for path in ("usr/bin/ping", "usr/bin", "usr/bin/su"):
        os.setxattr(tree / path, "security.selinux", LABEL)
    os.setxattr(tree / "usr", "user.on-a-directory", b"v" * 300)
    (tree / "usr/bin/ping4").symlink_to("ping")
    (tree / "usr/bin/é\n日本").symlink_to("../" * 50 + "é")
    os.setxattr(tree / "usr/bin/ping4", "trusted.on-a-link", b"1", follow_symlinks=False)
    (tree / "usr/lib/hard").hardlink_to(tree / "usr/bin/su")
    (tree / "usr/lib/same").write_bytes(b"capable")
    (tree / "usr/lib/large").write_bytes(bytes(3_000_000))
    (tree / "usr/lib/owned").write_bytes(b"capable")
    os.chown(tree / "usr/lib/owned", 2_100_000, 4_000_000_000)
    (tree / "usr/lib/empty").touch(0o600)
    (tree / "usr/lib/empty-too").touch(0)
    (tree / "usr/etc/ssh/config").write_text("etc")
    (tree / "tmp").mkdir()
    (tree / "tmp").chmod(0o1777)
    tree.chmod(0o711)
    os.chown(tree / "usr/etc", 3, 4)


def _scanned(tree: Path) -> Tree:
    with Hasher(2, lambda _: None) as hasher:
        found = scan(str(tree), hasher=hasher).tree
        hasher.finish()
    return found


def _read(layout: Path) -> Chunked:
    return read_chunked(read_image(layout, "latest"), threads=2)


# What is read


@pytest.mark.parametrize("own_xattrs", [False, True])
@pytest.mark.parametrize("parents", [False, True])
def test_the_tree_is_the_one_that_was_committed(
    repo: SimpleNamespace, tmp_path: Path, *, parents: bool, own_xattrs: bool
) -> None:
    layout = write_chunked(repo.repo, repo.commit, tmp_path / "image", parents=parents, own_xattrs=own_xattrs)
    read = _read(layout)
    assert tree_differences(read.tree(), _scanned(repo.tree)) == []
    assert read.checksum.hex() == repo.commit
    assert read.tree()["usr/bin/ping"].xattrs == (("security.capability", CAPABILITY), ("user.\N{SNOWMAN}", b"\0\xff"))


@pytest.mark.parametrize("packed", ["none", "gzip", "zstd"])
def test_an_image_is_read_whatever_its_compression(repo: SimpleNamespace, tmp_path: Path, packed: str) -> None:
    layers = chunked_layers(repo.repo, repo.commit)
    layout = write_image(tmp_path / "image", layers, repo.commit, compression=packed)
    assert tree_differences(_read(layout).tree(), _scanned(repo.tree)) == []


def test_a_single_layer_may_hold_all(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = [[*itertools.chain(*chunked_layers(repo.repo, repo.commit))]]
    read = _read(write_image(tmp_path / "image", layers, repo.commit))
    assert tree_differences(read.tree(), _scanned(repo.tree)) == []


def test_each_layer_tells_its_objects(repo: SimpleNamespace, tmp_path: Path) -> None:
    large = hashlib.sha256(bytes(3_000_000)).hexdigest()
    layout = write_chunked(repo.repo, repo.commit, tmp_path / "image", group=lambda _, paths: "usr/lib/large" in paths)
    read = _read(layout)
    assert [len(layer) for layer in read.layers[::2]] == [0, 1]
    assert {checksum.hex() for layer in read.layers for checksum in layer} == _stored(repo.repo, "file")
    (checksum, entry), *_ = read.layers[2].items()
    assert ("usr/lib/large", checksum, entry) in read.walk()
    assert entry.size == 3_000_000
    assert large != checksum.hex()  # which is more than the content's


def test_paths_come_parents_first(repo: SimpleNamespace, tmp_path: Path) -> None:
    seen: set[str] = set()
    for path, *_ in _read(write_chunked(repo.repo, repo.commit, tmp_path / "image")).walk():
        assert not path or path.rpartition("/")[0] in seen
        seen.add(path)
    assert len(seen) == len(_scanned(repo.tree))


def test_paths_of_one_object_have_entries_of_their_own(repo: SimpleNamespace, tmp_path: Path) -> None:
    tree = _read(write_chunked(repo.repo, repo.commit, tmp_path / "image")).tree()
    tree["usr/bin/su"].cost = 1
    assert tree["usr/lib/hard"].cost == 0


@settings(deadline=None, max_examples=10)
@given(history=generations(least=1, most=1))
def test_random_trees_are_read_as_they_are(history: list[Files]) -> None:
    with scratch() as place:
        write(history[0], place / "tree")
        commit = commit_tree(place / "repo", place / "tree")
        for own_xattrs in (False, True):
            with tempfile.TemporaryDirectory(dir=place) as layout:
                write_chunked(place / "repo", commit, Path(layout), own_xattrs=own_xattrs)
                assert tree_differences(_read(Path(layout)).tree(), _scanned(place / "tree")) == []


def test_an_object_may_be_in_two_layers(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers.append(_members_of(layers[1], "file"))
    assert tree_differences(_written(repo, tmp_path, layers).tree(), _scanned(repo.tree)) == []


def test_an_object_that_the_commit_does_not_need_does_no_harm(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[2] += _dead_file()
    assert tree_differences(_written(repo, tmp_path, layers).tree(), _scanned(repo.tree)) == []


def test_what_is_outside_of_the_repository_is_passed_by(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[1] += [file("usr/.wh.x"), hardlink("a", "nowhere"), file("sysroot/ostree/repo/refs/heads/b", b"1")]
    layers[0].insert(0, file("sysroot/ostree/repo/refs/heads/b", b"1"))
    assert tree_differences(_written(repo, tmp_path, layers).tree(), _scanned(repo.tree)) == []


def test_detached_metadata_of_the_commit_is_passed_by(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[0].insert(_index(layers[0], "commit") + 1, file(object_name(repo.commit, "commitmeta"), b"signatures"))
    assert tree_differences(_written(repo, tmp_path, layers).tree(), _scanned(repo.tree)) == []


def test_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    with scratch() as place:
        (place / "tree").mkdir()
        (place / "tree/large").write_bytes(os.urandom(1 << 20) * 24)
        commit = commit_tree(place / "repo", place / "tree")
        layout = write_chunked(place / "repo", commit, tmp_path / "image")
        with peak_memory() as peak:
            _read(layout)
    assert peak.size < 8 << 20


# The rules of the first layer


def test_the_commit_comes_first(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[0].insert(_index(layers[0], "commit"), layers[0].pop(_index(layers[0], "dirtree")))
    _refused(repo, tmp_path, layers, r"its first object is \w+\.dirtree, where importers want the commit")


def test_there_is_a_commit(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[0] = [item for item in layers[0] if "/objects/" not in item.info.name or item.info.isdir()]
    _refused(repo, tmp_path, layers, "holds no commit")


def test_there_is_one_commit_only(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[0].append(layers[0][_index(layers[0], "commit")])
    _refused(repo, tmp_path, layers, "second commit")


@pytest.mark.parametrize("kind", ["dirtree", "dirmeta"])
def test_a_metadata_object_in_a_chunk_is_refused(repo: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    layers = _layers(repo)
    layers[1].append(layers[0].pop(_index(layers[0], kind)))
    _refused(repo, tmp_path, layers, rf"{kind} is a metadata object, and importers want those in the first layer")


@pytest.mark.parametrize("kind", ["dirtree", "dirmeta"])
def test_a_metadata_object_is_there_once(repo: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    layers = _layers(repo)
    layers[0].append(layers[0][_index(layers[0], kind)])
    _refused(repo, tmp_path, layers, rf"{kind} is an object twice")


@pytest.mark.parametrize("kind", ["commit", "dirtree", "dirmeta", "file-xattrs"])
def test_an_object_is_held_against_its_name(repo: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    layers = _layers(repo)
    members = layers[1 if kind == "file-xattrs" else 0]
    at = _index(members, kind)
    members[at] = file(members[at].info.name, members[at].content + b"\0")
    _refused(repo, tmp_path, layers, rf"\w+\.{kind} has the checksum \w+ by its content")


@pytest.mark.parametrize("kind", ["commit", "dirtree", "dirmeta"])
def test_an_object_that_cannot_be_parsed_is_refused(repo: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    layers = _layers(repo)
    at = _index(layers[0], kind)
    layers[0][at] = _object(b"\1\2\3", kind)
    _refused(repo, tmp_path, layers, rf"\w+\.{kind} is malformed \(")


def test_a_metadata_object_is_a_file(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    at = _index(layers[0], "dirtree")
    layers[0][at] = symlink(layers[0][at].info.name, "x")
    _refused(repo, tmp_path, layers, "is no regular file")


def test_a_metadata_object_has_the_size_that_importers_read(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[0].append(_object(bytes(MAX_METADATA + 1), "dirtree"))
    _refused(repo, tmp_path, layers, "has 10,485,761 bytes, and importers read 10,485,760 at the most")


# The rules of all layers


def test_a_file_is_in_its_layer_once(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[1] += _members_of(layers[1], "file")[-2:]
    _refused(repo, tmp_path, layers, r"\w+\.file is there twice")


def test_attributes_come_before_the_file(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[1].append(layers[1].pop(_index(layers[1], "file-xattrs")))
    _refused(repo, tmp_path, layers, r"the attributes \w+ of \w+\.file do not come before it in its layer")


def test_a_link_to_the_attributes_comes_before_the_file(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    del layers[1][_index(layers[1], "file-xattrs-link")]
    _refused(repo, tmp_path, layers, r"\w+\.file does not come directly behind its \.file-xattrs-link")


def test_a_link_to_the_attributes_is_for_the_file_that_follows(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    at = _index(layers[1], "file-xattrs-link")
    layers[1][at] = _renamed(layers[1][at], object_name("0" * 64, "file-xattrs-link"))
    _refused(repo, tmp_path, layers, r"\w+\.file does not come directly behind its \.file-xattrs-link")


def test_one_link_to_attributes_is_followed_by_one_file(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    at = _index(layers[1], "file-xattrs-link")
    layers[1].insert(at, layers[1][at])
    _refused(repo, tmp_path, layers, "comes before the file that the one before it is for")


def test_a_link_to_attributes_leads_to_some(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    at = _index(layers[1], "file-xattrs-link")
    layers[1][at] = hardlink(layers[1][at].info.name, "sysroot/elsewhere")
    _refused(repo, tmp_path, layers, "is a hard link to b'sysroot/elsewhere', which are no attributes")


def test_attributes_have_the_size_that_importers_read(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[1].append(_object(bytes(MAX_XATTRS + 1), "file-xattrs"))
    _refused(repo, tmp_path, layers, "has 1,048,577 bytes, and importers read 1,048,576 at the most")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"uid": 7}, id="owner"),
        pytest.param({"gid": 7}, id="group"),
        pytest.param({"mode": 0o755}, id="mode"),
    ],
)
def test_a_file_is_held_against_its_name(repo: SimpleNamespace, tmp_path: Path, change: dict[str, int]) -> None:
    layers = _layers(repo)
    number, at = _place_of(layers, b"setuid" * 1000)
    for key, value in change.items():
        setattr(layers[number][at].info, key, value)
    _refused(repo, tmp_path, layers, r"\w+\.file has the checksum \w+ by its content, owner, mode and attributes")


def test_contents_are_held_against_the_name(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    number, at = _place_of(layers, b"setuid" * 1000)
    layers[number][at] = Item(layers[number][at].info, b"SETUID" * 1000)
    _refused(repo, tmp_path, layers, r"\w+\.file has the checksum \w+ by its content, owner, mode and attributes")


def test_attributes_are_held_against_the_name(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = [list(layer) for layer in chunked_layers(repo.repo, repo.commit, own_xattrs=True)]
    at = _index(layers[1], "file-xattrs-link")
    layers[1][at] = file(layers[1][at].info.name, _labelled(b"other_t\0"))
    _refused(repo, tmp_path, layers, r"\w+\.file has the checksum \w+ by its content, owner, mode and attributes")


def test_a_content_object_is_a_file_or_a_link(repo: SimpleNamespace, tmp_path: Path) -> None:
    for wrong in (device, lambda name: hardlink(name, "a"), lambda name: symlink(name, "")):
        layers = _layers(repo)
        at = _index(layers[1], "file")
        layers[1][at] = wrong(layers[1][at].info.name)
        _refused(repo, tmp_path, layers, "is neither a regular file nor a symbolic link")


def test_the_target_of_a_link_is_utf8(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    at = _index(layers[1], "file")
    layers[1][at] = symlink(layers[1][at].info.name, "\udcff")
    _refused(repo, tmp_path, layers, "the target of .* is not UTF-8")


@pytest.mark.parametrize("name", ["objects/x", "objects/00/short.file", f"objects/00/{'G' * 62}.file", "objects/a/b.c"])
def test_an_object_is_named_like_one(repo: SimpleNamespace, tmp_path: Path, name: str) -> None:
    layers = _layers(repo)
    layers[1].append(file(f"sysroot/ostree/repo/{name}"))
    _refused(repo, tmp_path, layers, "is not named like an object")


def test_an_object_has_a_known_type(repo: SimpleNamespace, tmp_path: Path) -> None:
    layers = _layers(repo)
    layers[1].append(file(object_name("0" * 64, "tombstone-commit")))
    _refused(repo, tmp_path, layers, "is of a type that importers do not know")


# The commit against the objects


@pytest.mark.parametrize("kind", ["file", "dirtree", "dirmeta"])
def test_every_object_of_the_commit_is_in_a_layer(repo: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    layers = _layers(repo)
    number, at = (
        _place_of(layers, b"capable") if kind == "file" else (0, len(layers[0]) - 1 - _index(layers[0][::-1], kind))
    )
    name = layers[number][at].info.name
    if kind == "file":
        del layers[number][at - 1]
        at -= 1
    del layers[number][at]
    checksum = "".join(name.removesuffix(f".{kind}").rsplit("/", 2)[1:])
    _refused(repo, tmp_path, layers, rf"/.* needs the {kind} object {checksum}, which no layer holds")


def test_a_commit_may_be_as_deep_as_it_likes(tmp_path: Path) -> None:
    objects = {}
    below = dirtree_of()
    for _ in range(3_000):
        objects[hashlib.sha256(below).digest()] = below
        below = dirtree_of(directories=[(b"d", hashlib.sha256(below).digest(), hashlib.sha256(DIRMETA).digest())])
    read = _read(_of_objects(tmp_path / "image", below, objects.values()))
    assert len(read.tree()) == 3_001


def test_a_commit_that_names_directories_again_and_again_is_a_bomb(tmp_path: Path) -> None:
    objects = {}
    below = dirtree_of()
    for _ in range(40):
        checksum, meta = hashlib.sha256(below).digest(), hashlib.sha256(DIRMETA).digest()
        objects[checksum] = below
        below = dirtree_of(directories=[(b"a", checksum, meta), (b"b", checksum, meta)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "MAX_KEPT", 1 << 20)
        with pytest.raises(CorruptImage, match=r"what commit [0-9a-f]{64} describes takes more than 1,048,576 bytes"):
            _read(_of_objects(tmp_path / "image", below, objects.values()))


# Labels and layers


def test_another_image_is_told_from_a_chunked_one(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "image", [pack(archive(file("a")), "gzip")])
    with pytest.raises(InputError, match=r"no OSTree-chunked image, since its label ostree\.final-diffid is missing"):
        _read(layout)


def test_the_label_of_the_last_chunk_names_a_layer(repo: SimpleNamespace, tmp_path: Path) -> None:
    labels = {"ostree.final-diffid": "sha256:" + "0" * 64}
    _refused(repo, tmp_path, _layers(repo), "names sha256:0+, which is none of its layers", labels=labels)


def test_the_label_of_the_last_chunk_names_one_layer(repo: SimpleNamespace, tmp_path: Path) -> None:
    empty = [file("sysroot/ostree/repo/config")]
    layers = _layers(repo)
    layers = [*layers[:2], empty, *layers[2:], empty]
    _refused(repo, tmp_path, layers, "names layers 3 and 6 alike, and importers take the first")


def test_layers_on_top_of_the_chunks_are_counted(repo: SimpleNamespace, tmp_path: Path) -> None:
    layout = write_image(tmp_path / "image", [*_layers(repo), [file("a")], [file("b")]], repo.commit, final=-3)
    with pytest.raises(InputError, match="has 2 layers on top of its last chunk") as raised:
        _read(layout)
    assert not isinstance(raised.value, CorruptImage)


@pytest.mark.parametrize("label", ["0" * 64, ""])
def test_the_label_of_the_commit_is_right(repo: SimpleNamespace, tmp_path: Path, label: str) -> None:
    wanted = rf"ostree\.commit of .* says '{label}', but its first layer holds commit {repo.commit}"
    _refused(repo, tmp_path, _layers(repo), wanted, labels={"ostree.commit": label})


# Blobs


def test_a_damaged_layer_is_told_by_its_digest(repo: SimpleNamespace, tmp_path: Path) -> None:
    layout = write_chunked(repo.repo, repo.commit, tmp_path / "image")
    blob = read_image(layout, "latest").layers[1]
    path = layout / "blobs/sha256" / blob.digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptImage, match=f"layer {blob.digest} is damaged: .* with digest sha256:"):
        _read(layout)


def test_a_diff_id_that_does_not_match_is_told(repo: SimpleNamespace, tmp_path: Path) -> None:
    image = read_image(write_chunked(repo.repo, repo.commit, tmp_path / "image"), "latest")
    first, second, *others = image.layers
    wrong = dataclasses.replace(image, layers=(first, replace(second, diff_id="sha256:" + "0" * 64), *others))
    with pytest.raises(CorruptImage, match=r"config says sha256:0+: manifest and config do not belong together"):
        read_chunked(wrong, threads=1)


def test_a_layer_of_several_gzip_members_is_refused(repo: SimpleNamespace, tmp_path: Path) -> None:
    image = read_image(write_chunked(repo.repo, repo.commit, tmp_path / "image"), "latest")
    data = archive(*_layers(repo)[1])
    halves = gzip.compress(data[:1024]) + gzip.compress(data[1024:])
    (tmp_path / "image/blobs/sha256" / digest(halves).removeprefix("sha256:")).write_bytes(halves)
    first, second, *others = image.layers
    changed = replace(second, digest=digest(halves), size=len(halves))
    with pytest.raises(CorruptImage, match="cannot be imported: it has more than one gzip member"):
        read_chunked(dataclasses.replace(image, layers=(first, changed, *others)), threads=1)


@pytest.mark.parametrize("inside", ["file", "dirtree"])
def test_an_archive_that_ends_inside_an_object_is_refused(repo: SimpleNamespace, tmp_path: Path, inside: str) -> None:
    layers = _layers(repo)
    if inside == "file":
        number, at = _place_of(layers, b"setuid" * 1000)
    else:
        number, at = 0, _index(layers[0], inside)
    members = layers[number][: at + 1]
    cut = archive(*members)[: -1024 - 512 - (len(members[-1].content) // 2 if inside == "file" else 0)]
    if inside == "dirtree":
        cut += members[-1].content[:10]
    image = read_image(write_image(tmp_path / "image", layers, repo.commit), "latest")
    layer = pack(cut, "gzip")
    (tmp_path / "image/blobs/sha256" / layer.blob.digest.removeprefix("sha256:")).write_bytes(layer.data)
    changed = [*image.layers]
    changed[number] = layer.blob
    if number == len(changed) - 1:
        changed[number] = replace(layer.blob, diff_id=image.layers[number].diff_id)
    with pytest.raises(CorruptImage, match=rf"the archive ends inside \w+\.{inside}: it is truncated"):
        read_chunked(dataclasses.replace(image, layers=tuple(changed)), threads=1)


def test_a_decompression_bomb_is_not_read(repo: SimpleNamespace, tmp_path: Path) -> None:
    layout = write_chunked(repo.repo, repo.commit, tmp_path / "image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "BOMB_FLOOR", 100_000)
        patch.setattr(compression, "BOMB_RATIO", 1)
        with pytest.raises(CorruptImage, match="it looks like a decompression bomb"):
            _read(layout)


@pytest.mark.parametrize("own_xattrs", [False, True])
def test_directories_and_attributes_may_not_take_all_memory(
    repo: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, own_xattrs: bool
) -> None:
    layout = write_chunked(repo.repo, repo.commit, tmp_path / "image", own_xattrs=own_xattrs)
    _read(layout)
    monkeypatch.setattr(table, "MAX_KEPT", 5000)
    with pytest.raises(CorruptImage, match=r"layer sha256:.*: what it describes takes more than 5,000 bytes of memory"):
        _read(layout)


# How images are made wrong


def _layers(repo: SimpleNamespace) -> Layers:
    return list(chunked_layers(repo.repo, repo.commit))


def _written(repo: SimpleNamespace, tmp_path: Path, layers: Sequence[Sequence[Item]], **options: Any) -> Chunked:
    with tempfile.TemporaryDirectory(dir=tmp_path) as layout:
        return _read(write_image(Path(layout), layers, repo.commit, **options))


def _refused(repo: SimpleNamespace, tmp_path: Path, layers: Layers, message: str, **options: Any) -> None:
    with pytest.raises(CorruptImage, match=message):
        _written(repo, tmp_path, layers, **options)


def _index(members: Sequence[Item], kind: str) -> int:
    """The place of the first object of this kind."""
    return next(at for at, item in enumerate(members) if item.info.name.endswith(f".{kind}"))


def _place_of(layers: Layers, content: bytes) -> tuple[int, int]:
    return next(
        (number, at)
        for number, members in enumerate(layers)
        for at, item in enumerate(members)
        if item.content == content and item.info.name.endswith(".file")
    )


def _members_of(members: Sequence[Item], kind: str) -> list[Item]:
    """All that a file of a layer takes: attributes, link and the file itself, for the last file in it."""
    at = max(at for at, item in enumerate(members) if item.info.name.endswith(f".{kind}"))
    xattrs = next(item for item in members if item.info.name == members[at - 1].info.linkname)
    return [xattrs, members[at - 1], members[at]]


def _object(data: bytes, kind: str) -> Item:
    return file(object_name(hashlib.sha256(data).hexdigest(), kind), data)


def _renamed(item: Item, name: str) -> Item:
    renamed = copy.deepcopy(item)
    renamed.info.name = name
    return renamed


def _labelled(label: bytes) -> bytes:
    return array([pair(b"security.selinux", label)])


def _dead_file() -> list[Item]:
    """A file that no commit needs, with the attributes that it has to have in its layer."""
    header = (
        bytes(8) + (0o100644).to_bytes(4, "big") + bytes(4) + b"\0" + bytes([17])
    )  # owner, mode, device, target, attributes
    name = hashlib.sha256(len(header).to_bytes(4, "big") + bytes(4) + header + b"dead").hexdigest()
    return [file(object_name(name, "file-xattrs-link")), file(object_name(name, "file"), b"dead")]


def _of_objects(layout: Path, root: bytes, dirtrees: Iterable[bytes]) -> Path:
    """An image of directories alone."""
    made = commit_of(hashlib.sha256(root).digest(), hashlib.sha256(DIRMETA).digest())
    members = [_object(made, "commit"), _object(DIRMETA, "dirmeta"), _object(root, "dirtree")]
    members += [_object(data, "dirtree") for data in dirtrees]
    return write_image(layout, [members], hashlib.sha256(made).hexdigest())


def _stored(repo: Path, kind: str) -> set[str]:
    """The objects of a repository by the names that `ostree` gave them."""
    return {path.parent.name + path.stem for path in (repo / "objects").rglob(f"*.{kind}")}
