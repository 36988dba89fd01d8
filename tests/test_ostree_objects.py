"""OSTree's objects, as real `ostree` writes them and as nobody should."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import CorruptImage
from rechunk_action.ostree.objects import (
    Commit,
    DirTree,
    Metadatum,
    file_hash,
    parse_commit,
    parse_dirmeta,
    parse_dirtree,
    parse_xattrs,
    serialise_commit,
    serialise_dirmeta,
    serialise_dirtree,
    serialise_xattrs,
)
from rechunk_action.tree.entry import Entry
from tests.oracles import program, run, scratch
from tests.ostree_images import array, commit_tree, dirtree_of, pair
from tests.support import archive, directory, file, patient, symlink

PARSERS: dict[str, Callable[[bytes], object]] = {
    "commit": parse_commit,
    "dirtree": parse_dirtree,
    "dirmeta": parse_dirmeta,
    "file-xattrs": parse_xattrs,
}
LONG = 70_000
"""Bytes of an attribute that make offsets of four bytes."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


@pytest.fixture(scope="module")
def objects(place: Path) -> dict[str, list[bytes]]:
    """The metadata objects of a real repository, by kind, large directories and attributes among them."""
    tree = place / "tree"
    (tree / "many").mkdir(parents=True)
    for number in range(2_000):
        (tree / "many" / f"{number:04}").write_text(str(number % 10))
    (tree / "many" / "directory").mkdir()
    (tree / "é\n日本").symlink_to("é")
    os.setxattr(tree, "user.a", b"1")
    os.setxattr(tree, "user.b", b"v" * 300)
    commit_tree(place / "repo", tree, "--add-metadata-string=version=1", "--body=body\nof two lines")
    found: dict[str, list[bytes]] = {"file-xattrs": []}
    for path in sorted((place / "repo/objects").rglob("*.*")):
        found.setdefault(path.suffix.removeprefix("."), []).append(path.read_bytes())
    found["file-xattrs"] = [data[12:] for data in found["dirmeta"]]
    return found


def test_the_objects_of_a_commit_are_read(objects: dict[str, list[bytes]]) -> None:
    trees = {hashlib.sha256(data).digest(): parse_dirtree(data) for data in objects["dirtree"]}
    metas = {hashlib.sha256(data).digest(): parse_dirmeta(data) for data in objects["dirmeta"]}
    commit = parse_commit(objects["commit"][0])
    root = trees[commit.dirtree]
    assert [name for name, _ in root.files] == ["é\n日本"]
    assert [name for name, *_ in root.directories] == ["many"]
    many = trees[root.directories[0][1]]
    assert [name for name, _ in many.files] == [f"{number:04}" for number in range(2_000)]
    assert len({checksum for _, checksum in many.files}) == 10
    assert trees[many.directories[0][1]] == DirTree((), ())
    assert metas[commit.dirmeta].xattrs == (("user.a", b"1"), ("user.b", b"v" * 300))
    assert (metas[commit.dirmeta].kind, metas[commit.dirmeta].mode) == ("d", 0o755)


def test_the_checksum_of_a_file_is_that_of_ostree(place: Path) -> None:
    """Attributes come from an archive here, since no file system takes them as long as that."""
    values = [b"", b"1", b"\0\xff\n=", *(b"v" * size for size in (150, 200, 230, 260, 60_000, LONG))]
    members = [directory("./")]
    entries: dict[str, tuple[Entry, bytes, bytes]] = {}
    for number, value in enumerate(values):
        content = b"x" * number
        entry = Entry("f", 0o4755, number, 3_000_000_000, size=number)
        members.append(
            file(f"./{number}", content, mode=0o4755, uid=number, gid=3_000_000_000, xattrs={"user.b": value})
        )
        entries[f"/{number}"] = entry, content, array([pair(b"user.b", value)])
    members += [file("./plain", b"plain"), symlink("./link", "é" * 120)]
    entries["/plain"] = Entry("f", 0o644, 0, 0), b"plain", b""
    entries["/link"] = Entry("l", 0o777, 0, 0, target="é" * 120), b"", b""
    (place / "tree.tar").write_bytes(archive(*members))
    repo, ostree = place / "archive", program("ostree", "ostree")
    run(ostree, f"--repo={repo}", "init", "--mode=archive")
    run("env", "LC_ALL=C.UTF-8", ostree, f"--repo={repo}", "commit", "--branch=b", f"--tree=tar={place}/tree.tar")
    listed = run(ostree, f"--repo={repo}", "ls", "--checksum", "--recursive", "b").splitlines()
    named = {line.split()[5]: line.split()[4] for line in listed if not line.startswith("d")}
    assert named.keys() == entries.keys()
    for path, (entry, content, xattrs) in entries.items():
        hashed = file_hash(entry, xattrs)
        hashed.update(content)
        assert hashed.digest().hex() == named[path], path


@pytest.mark.parametrize("size", [0, 1, 100, 246, 247, 248, 249, 250, 300, 65_000, 65_529, 65_530, 65_531, LONG])
def test_attributes_of_any_size_are_read(size: int) -> None:
    assert parse_xattrs(array([pair(b"user.a", b"v" * size)])) == (("user.a", b"v" * size),)


def test_attributes_that_no_image_shows_are_left_out_and_the_others_sorted() -> None:
    names = (b"user.b", b"security.selinux", b"user.overlay.opaque", b"security.capability")
    assert parse_xattrs(array([pair(name, b"1") for name in names])) == (
        ("security.capability", b"1"),
        ("user.b", b"1"),
    )


def test_what_is_read_is_serialised_as_it_was(objects: dict[str, list[bytes]]) -> None:
    for data in objects["dirtree"]:
        tree = parse_dirtree(data)
        assert serialise_dirtree(tree.files[::-1], tree.directories[::-1]) == data
    for data in objects["dirmeta"]:
        entry = parse_dirmeta(data)
        assert serialise_dirmeta(entry, serialise_xattrs(entry.xattrs[::-1])) == data
    [data] = objects["commit"]
    commit = parse_commit(data)
    made = serialise_commit(
        commit.dirtree,
        commit.dirmeta,
        metadata={"version": "1", "ostree.ref-binding": ["main"]},
        body="body\nof two lines",
        timestamp=1_704_067_200,
    )
    assert made == data


@pytest.mark.parametrize("options", [("--subject=é",), ("--bootable",), ("--body=" + "b" * 70_000, "--no-bindings")])
def test_a_commit_is_that_of_ostree(tmp_path: Path, options: tuple[str, ...]) -> None:
    kernel = tmp_path / "usr/lib/modules/6.1/vmlinuz"
    kernel.parent.mkdir(parents=True)
    kernel.touch()
    with scratch() as place:
        name = commit_tree(place / "repo", tmp_path, "--add-metadata-string=version=" + "1" * 300, *options)
        data = (place / f"repo/objects/{name[:2]}/{name[2:]}.commit").read_bytes()
    commit = parse_commit(data)
    metadata: dict[str, Metadatum] = {"version": "1" * 300, "ostree.ref-binding": ["main"]}
    given: dict[str, str] = {}
    for option in options:
        if option == "--bootable":
            metadata |= {"ostree.bootable": True, "ostree.linux": "6.1"}
        elif option == "--no-bindings":
            del metadata["ostree.ref-binding"]
        else:
            key, _, value = option.removeprefix("--").partition("=")
            given[key] = value
    made = {
        serialise_commit(commit.dirtree, commit.dirmeta, metadata=dict(order), timestamp=1_704_067_200, **given)
        for order in permutations(metadata.items())  # libostree has them in the order of a hash table at times
    }
    assert data in made


names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..")
)
checksums = st.binary(min_size=32, max_size=32)
attributes = st.dictionaries(st.sampled_from(["user.a", "user.é", "security.capability", "x"]), st.binary(max_size=400))


@given(files=st.dictionaries(names, checksums), directories=st.dictionaries(names, st.tuples(checksums, checksums)))
def test_a_dirtree_is_read_as_it_was_serialised(
    files: dict[str, bytes], directories: dict[str, tuple[bytes, bytes]]
) -> None:
    below = [(name, *both) for name, both in directories.items() if name not in files]
    data = serialise_dirtree(files.items(), below)
    assert parse_dirtree(data) == DirTree(tuple(sorted(files.items())), tuple(sorted(below)))


@given(xattrs=attributes, mode=st.integers(0, 0o7777), owner=st.integers(0, (1 << 32) - 1))
def test_a_dirmeta_is_read_as_it_was_serialised(xattrs: dict[str, bytes], mode: int, owner: int) -> None:
    entry = Entry("d", mode, owner, owner // 2, xattrs=tuple(sorted(xattrs.items())))
    raw = serialise_xattrs(xattrs.items())
    assert parse_xattrs(raw) == entry.xattrs
    assert parse_dirmeta(serialise_dirmeta(entry, raw)).same_as(entry)


@given(
    metadata=st.dictionaries(st.text(max_size=300), st.text(max_size=300) | st.booleans() | st.lists(st.text())),
    texts=st.tuples(st.text(), st.text()),
    roots=st.tuples(checksums, checksums),
)
def test_a_commit_is_read_as_it_was_serialised(
    metadata: dict[str, Metadatum], texts: tuple[str, str], roots: tuple[bytes, bytes]
) -> None:
    data = serialise_commit(*roots, metadata=metadata, timestamp=(1 << 64) - 1, subject=texts[0], body=texts[1])
    assert parse_commit(data) == Commit(*roots)


@pytest.mark.parametrize("kind", PARSERS)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_read_or_refused(kind: str, data: bytes) -> None:
    _read_or_refused(kind, data)


@pytest.mark.parametrize("kind", PARSERS)
@patient
@given(data=st.data())
def test_damaged_objects_are_read_or_refused(kind: str, objects: dict[str, list[bytes]], data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(sorted({each[:3_000] for each in objects[kind]}))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        at = len(damaged) - at if data.draw(st.booleans()) else at  # the table is at the end
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    _read_or_refused(kind, bytes(damaged))


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize("byte", [0, 1, 0x7F, 0xFF])
def test_large_objects_of_nothing_are_refused_at_once(kind: str, byte: int) -> None:
    start = time.monotonic()
    _read_or_refused(kind, bytes([byte]) * (10 << 20))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"\xff", b"n" * 256])
def test_a_name_that_no_file_can_have_is_refused(name: bytes) -> None:
    with pytest.raises(CorruptImage):
        parse_dirtree(dirtree_of(files=[(name, bytes(32))]))
    with pytest.raises(CorruptImage):
        parse_dirtree(dirtree_of(directories=[(name, bytes(32), bytes(32))]))


def test_a_name_may_be_as_long_as_linux_has_it() -> None:
    assert parse_dirtree(dirtree_of(files=[(b"n" * 255, bytes(32))])).files == (("n" * 255, bytes(32)),)


def test_names_have_to_be_sorted_and_unique() -> None:
    for names in ((b"b", b"a"), (b"a", b"a")):
        with pytest.raises(CorruptImage, match="not sorted"):
            parse_dirtree(dirtree_of(files=[(name, bytes(32)) for name in names]))
        with pytest.raises(CorruptImage, match="not sorted"):
            parse_dirtree(dirtree_of(directories=[(name, bytes(32), bytes(32)) for name in names]))
    with pytest.raises(CorruptImage, match="both a file and a directory"):
        parse_dirtree(dirtree_of(files=[(b"a", bytes(32))], directories=[(b"a", bytes(32), bytes(32))]))


def test_a_checksum_has_its_size() -> None:
    with pytest.raises(CorruptImage, match="a checksum in it has 31 bytes"):
        parse_dirtree(dirtree_of(files=[(b"a", bytes(31))]))


def test_a_dirmeta_is_of_a_directory() -> None:
    with pytest.raises(CorruptImage, match="0o100755 is not that of a directory"):
        parse_dirmeta(struct.pack(">III", 0, 0, 0o100755))
    with pytest.raises(CorruptImage, match="cut short"):
        parse_dirmeta(bytes(11))


def _read_or_refused(kind: str, data: bytes) -> None:
    with contextlib.suppress(CorruptImage):
        PARSERS[kind](data)
