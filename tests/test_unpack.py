"""A source unpacked as files: the copy is the tree, and nothing is written outside of it."""

from __future__ import annotations

import contextlib
import copy
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings

from rechunk_action.errors import CorruptImage
from rechunk_action.oci.layout import read_image
from rechunk_action.source import Source
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.image import ImageSource
from rechunk_action.source.unpack import unpack
from tests import stores, trees
from tests.building import build, scanned
from tests.oracles import scratch
from tests.rechunker import small_tree
from tests.support import Item, archive, directory, file, hardlink, listing, pack, patient, symlink, write_layout
from tests.trees import CAPABILITY, CONTENTS, Node

HARD: dict[str, Node] = {
    "": Node("d", 0o711, (7, 8)),
    "etc": Node("d", 0o755),
    "usr": Node("d", 0o755),
    "usr/capable": Node("f", 0o755, (7, 8), (("security.capability", CAPABILITY), ("user.a", b"\0\xff=\x80")), 5, 2),
    "usr/closed": Node("d", 0, (7, 8), (("user.a", b"1"),)),
    "usr/closed/file": Node("f", 0, (7, 8), content=3),
    "usr/closed/setgid": Node("d", 0o2755, (0, 3_000_000_000)),
    "usr/closed/setgid/below": Node("d", 0o2755, (0, 8)),
    "usr/empty": Node("f", 0o4755, (7, 8), (("security.capability", CAPABILITY),), mtime=1_700_000_000),
    "usr/linked empty": Node("f", 0o644, inode=1),
    "usr/linked empty too": Node("f", 0o644, inode=1),
    "usr/linked": Node("f", 0o6711, (2_100_000, 8), mtime=9, content=4, inode=2),
    "usr/closed/linked": Node("f", 0o6711, (2_100_000, 8), mtime=9, content=4, inode=2),
    "usr/link": Node("l", 0o777, (7, 8), (("trusted.t", b"v" * 300),), mtime=77, target="../../outside"),
    "usr/link to all": Node("l", 0o777, target="/"),
    "usr/" + "n" * 255: Node("f", 0o644, content=1),
    "usr/line\nbreak": Node("d", 0o1777),
    "usr/line\nbreak/.wh é": Node("f", 0o644, content=1),
    "usr/-x": Node("f", 0o600, mtime=2_000_000_000, content=5),
}
"""What a copy easily loses: rights and times that writing undoes, attributes that a new owner takes away, links."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk, where files may have all attributes."""
    with scratch() as found:
        yield found


def image_of(tree: Path, place: Path) -> ImageSource:
    """The image of a tree."""
    build(tree, place / "image")
    return ImageSource(read_image(place / "image", None), place, threads=2)


def check_copy(source: Source, copy: Path, *, again: int = 0) -> None:
    """What is unpacked is the tree, times included, and progress is told of its bytes; so many of them come twice."""
    done: list[int] = []
    wanted = stores.tree_of(source)
    copy.mkdir()
    unpack(source, copy, done.append)
    assert stores.tree_of(DirectorySource(str(copy))) == wanted
    files = {path: entry for path, entry in source.tree.items() if entry.kind == "f" and entry.group in ("", path)}
    assert sum(done) == sum(entry.size for entry in files.values()) + again


def hard_tree(place: Path) -> Path:
    tree = place / "tree"
    trees.write(HARD, tree)
    deep = tree / "usr"
    for _ in range(12):
        deep /= "d" * 250
        deep.mkdir()
    (deep / "file").write_bytes(CONTENTS[1])
    return tree


def test_a_tree_of_files_is_copied(place: Path) -> None:
    check_copy(DirectorySource(str(hard_tree(place))), place / "copy")


def test_a_tree_of_layers_is_unpacked(place: Path) -> None:
    check_copy(image_of(hard_tree(place), place), place / "copy")


def test_a_system_is_unpacked(place: Path) -> None:
    check_copy(image_of(small_tree(place / "tree", 1), place), place / "copy")


@given(trees.generations(least=1, most=4))
@settings(patient, max_examples=25)
def test_any_tree_is_unpacked(history: list[trees.Files]) -> None:
    with scratch() as place:
        trees.write(history[-1], place / "tree")
        check_copy(DirectorySource(str(place / "tree")), place / "copy")
        check_copy(image_of(place / "tree", place), place / "other copy")


def test_what_a_layer_replaces_is_not_there(place: Path) -> None:
    lower = archive(
        directory("usr"),
        file("usr/was a file", b"x"),
        directory("usr/was a directory"),
        file("usr/was a directory/file", b"x"),
        symlink("usr/was a link", "/"),
        file("usr/first", b"12345", mtime=1),
        hardlink("usr/second", "usr/first", mtime=1),
    )
    upper = archive(
        directory("usr/was a file"),
        file("usr/was a file/file", b"y"),
        symlink("usr/was a directory", "nowhere"),
        directory("usr/was a link"),
        file("usr/was a link/etc", b"y"),
        file("usr/first", b"678", mtime=2),
        file("usr/.wh.gone"),
    )
    source = image(place, lower, upper)
    check_copy(source, place / "copy")
    assert not (place / "copy/usr/first").samefile(place / "copy/usr/second")
    assert (place / "copy/usr/second").read_bytes() == b"12345"


def image(place: Path, *archives: bytes) -> ImageSource:
    write_layout(place / "layers", [pack(each) for each in archives])
    return ImageSource(read_image(place / "layers", None), place, threads=2)


def test_of_what_a_layer_holds_twice_the_last_counts(place: Path) -> None:
    twice = [file("usr/a", b"first"), file("usr/b", b"first"), file("usr/b", b"other", mode=0o600), file("usr/a")]
    check_copy(image(place, archive(directory("usr"), *twice)), place / "copy", again=len(b"first"))
    assert (place / "copy/usr/a").read_bytes() == b""
    assert (place / "copy/usr/b").read_bytes() == b"other"


def test_parents_that_no_layer_describes_are_made(place: Path) -> None:
    check_copy(image(place, archive(file("usr/a/b/c", b"x"))), place / "copy")
    assert stat.S_IMODE((place / "copy/usr/a").stat().st_mode) == 0o755


LEADING_OUT = {
    "a link as parent": [symlink("usr/link", ".."), file("usr/link/written", b"x")],
    "an absolute link as parent": [symlink("usr/link", "/PLACE"), file("usr/link/written", b"x")],
    "a link in the place of a directory": [directory("usr/d"), symlink("usr/d", "/PLACE"), file("usr/d/written", b"x")],
    "a file as parent": [file("usr/file", b"x"), file("usr/file/written", b"x")],
    "parents of the root": [file("../written", b"x")],
    "parents inside": [file("usr/../../written", b"x")],
    "an absolute name": [file("/PLACE/written", b"x")],
    "a hard link to what is outside": [hardlink("usr/written", "../precious"), file("usr/written/x", b"x")],
    "an absolute hard link": [hardlink("usr/written", "/PLACE/precious")],
    "a hard link through a link": [symlink("usr/link", "/PLACE"), hardlink("usr/written", "usr/link/precious")],
    "a hard link to a link": [symlink("usr/a", "/PLACE/precious"), hardlink("usr/b", "usr/a"), file("usr/b", b"x")],
    "a name in two layers": [file("usr/x", b"x"), symlink("usr/x", "/PLACE/precious"), file("usr/x", b"y")],
}


@pytest.mark.parametrize("items", LEADING_OUT.values(), ids=LEADING_OUT.keys())
@pytest.mark.parametrize("layers", [1, 2])
def test_nothing_is_written_outside(place: Path, items: list[Item], layers: int) -> None:
    (place / "precious").write_bytes(b"precious")
    items = copy.deepcopy(items)
    for each in items:
        each.info.name = each.info.name.replace("/PLACE", str(place))
        each.info.linkname = each.info.linkname.replace("/PLACE", str(place))
    cut = len(items) if layers == 1 else 1
    archives = [archive(directory("usr"), *items[:cut]), archive(*items[cut:])]
    (place / "copy").mkdir()
    source = image(place, *archives)
    before = outside(place)
    with contextlib.suppress(CorruptImage):
        source.scan(None)
        unpack(source, place / "copy", lambda _: None)
    assert outside(place) == before


def outside(place: Path) -> dict[str, bytes | None]:
    """All but the copy."""
    return {path: content for path, content in listing(place).items() if path.partition("/")[0] != "copy"}


def test_a_file_that_could_not_be_written_whole_is_told(place: Path) -> None:
    """A disk takes what it has room for, and complains with the next piece, which the last one has not."""
    (place / "tree").mkdir()
    (place / "tree/file").write_bytes(bytes(3000))
    (place / "copy").mkdir()
    source = scanned(DirectorySource(str(place / "tree")))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            unpack(source, place / "copy", lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_tree_that_no_file_system_can_hold_is_refused_before_anything_is_written(place: Path) -> None:
    source = scanned(DirectorySource(str(hard_tree(place))))
    source.tree["usr/capable/below"] = source.tree["usr/empty"]
    (place / "copy").mkdir()
    with pytest.raises(CorruptImage, match="/usr/capable/below lies below something that is no directory"):
        unpack(source, place / "copy", lambda _: None)
    assert list((place / "copy").iterdir()) == []


@pytest.mark.parametrize("there", ["usr/-x", "usr/closed"])
def test_what_is_there_already_is_not_followed(place: Path, there: str) -> None:
    source = scanned(DirectorySource(str(hard_tree(place))))
    (place / "copy/usr").mkdir(parents=True)
    (place / "precious").mkdir()
    (place / "copy" / there).symlink_to(place / "precious/file")
    with contextlib.suppress(FileExistsError):
        unpack(source, place / "copy", lambda _: None)
    assert list((place / "precious").iterdir()) == []


def test_nobody_else_sees_a_file_before_it_has_its_owner(place: Path) -> None:
    source = scanned(DirectorySource(str(hard_tree(place))))
    seen: set[int] = set()

    def look(_: int) -> None:
        seen.add(stat.S_IMODE((place / "copy/usr/-x").stat().st_mode))

    source.tree = {path: entry for path, entry in source.tree.items() if path in ("", "usr", "etc", "usr/-x")}
    (place / "copy").mkdir()
    unpack(source, place / "copy", look)
    assert seen == {0o600}
