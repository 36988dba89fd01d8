"""A directory on disk as a tree: what it says of each path, what it leaves out, and what it refuses."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rechunk_action.errors import EnvironmentLack, InputError, UnsupportedTree
from rechunk_action.source.directory import DirectorySource
from rechunk_action.tree.entry import EMPTY_DIGEST, Entry, new_digest
from rechunk_action.tree.scan import MOUNTED_OVER, PIECE, Hasher, Scan, file_pieces, scan
from tests.building import scanned
from tests.support import as_nobody

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""`cap_net_raw+ep`, as the kernel stores it."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def hashed(root: Path, threads: int = 2) -> tuple[Scan, list[int]]:
    """A scan with digests, and the bytes that were told of."""
    told: list[int] = []
    with Hasher(threads, told.append) as hasher:
        found = scan(str(root), hasher=hasher)
        hasher.finish()
    return found, told


def facts(entry: Entry) -> tuple[str, int, int, int, int]:
    return entry.kind, entry.mode, entry.uid, entry.gid, entry.size


def test_metadata_is_that_of_the_files(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir" / "program").write_bytes(b"12345")
    os.chown(root / "dir" / "program", 1000, 3_000_000)
    (root / "dir" / "program").chmod(0o6755)
    os.utime(root / "dir" / "program", (7, 8.75))
    os.chown(root / "dir", 2**32 - 2, 5)
    (root / "dir").chmod(0o1777)
    root.chmod(0o711)
    tree = scan(str(root)).tree
    assert list(tree) == ["", "dir", "dir/program"]
    assert facts(tree[""]) == ("d", 0o711, 0, 0, 0)
    assert facts(tree["dir"]) == ("d", 0o1777, 2**32 - 2, 5, 0)
    assert facts(tree["dir/program"]) == ("f", 0o6755, 1000, 3_000_000, 5)
    assert (tree["dir/program"].mtime, tree["dir"].mtime) == (8, 0)


def test_parents_come_before_their_children(root: Path) -> None:
    for path in ("z/y/x", "a/b/c", "z/a"):
        (root / path).mkdir(parents=True)
    seen: set[str] = set()
    for path in scan(str(root)).tree:
        assert not path or path.rpartition("/")[0] in seen
        seen.add(path)


def test_empty_directories_and_files_are_there(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "empty").touch()
    tree = scan(str(root)).tree
    assert tree["a/b"].is_dir
    assert (tree["a/empty"].size, tree["a/empty"].digest) == (0, EMPTY_DIGEST)


@pytest.mark.parametrize(
    "target", ["missing", "/etc/passwd", "..", "../../outside", "loop", "dir", ".", "a b\nc", "é" * 1000]
)
def test_symbolic_links_are_read_and_not_followed(root: Path, target: str) -> None:
    (root / "dir").mkdir()
    (root / "dir" / "x").touch()
    (root / "loop").symlink_to(target)
    os.chown(root / "loop", 5, 6, follow_symlinks=False)
    os.utime(root / "loop", (1, 2), follow_symlinks=False)
    tree = scan(str(root)).tree
    assert set(tree) == {"", "dir", "dir/x", "loop"}
    link = tree["loop"]
    assert (link.kind, link.target, link.mode, link.uid, link.gid, link.mtime) == ("l", target, 0o777, 5, 6, 2)


@pytest.mark.parametrize(
    "name", ["sp ace", "new\nline", "tab\t", "back\\slash", "ünï", "日本", "-", "n" * 255, ".wh", "wh.", "..."]
)
def test_names_of_all_kinds_are_kept(root: Path, name: str) -> None:
    (root / name).mkdir()
    (root / name / name).write_bytes(b"1")
    assert set(scan(str(root)).tree) == {"", name, f"{name}/{name}"}


@pytest.mark.parametrize(
    "make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("x")], ids=["file", "dir", "link"]
)
def test_names_that_are_not_utf8_are_refused(root: Path, make: Callable[[Path], object]) -> None:
    (root / "etc").mkdir()
    make(root / "etc" / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UnsupportedTree, match=r"b'etc/caf\\xe9' is not valid UTF-8: .* rename or remove"):
        scan(str(root))


def test_link_targets_that_are_not_utf8_are_refused(root: Path) -> None:
    (root / "link").symlink_to(os.fsdecode(b"\xff"))
    with pytest.raises(UnsupportedTree, match="b'link' is not valid UTF-8"):
        scan(str(root))


@pytest.mark.parametrize("name", [".wh.x", ".wh.", ".wh..wh..opq"])
def test_names_that_mean_removed_are_refused(root: Path, name: str) -> None:
    (root / "etc").mkdir()
    (root / "etc" / name).touch()
    with pytest.raises(UnsupportedTree, match=r"'etc/\.wh\..* has the prefix \.wh\."):
        scan(str(root))


def test_many_faults_are_told_at_once(root: Path) -> None:
    for number in range(5):
        (root / f".wh.{number}").touch()
    with pytest.raises(UnsupportedTree, match=r"\.wh\..*\.wh\..*\.wh\..* \(and 2 more\)"):
        scan(str(root))


# Extended attributes


def test_capabilities_and_other_attributes_are_kept(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "ping").write_bytes(b"x")
    (root / "link").symlink_to("ping")
    os.setxattr(root / "ping", "security.capability", CAPABILITY)
    os.setxattr(root / "ping", "user.binary", b"\0\xff=")
    os.setxattr(root / "dir", "user.component", b"name")
    os.setxattr(root / "link", "trusted.x", b"1", follow_symlinks=False)
    os.setxattr(root, "user.root", b"1")
    tree = scan(str(root)).tree
    assert tree["ping"].xattrs == (("security.capability", CAPABILITY), ("user.binary", b"\0\xff="))
    assert [tree[path].xattrs for path in ("dir", "link", "")] == [
        (("user.component", b"name"),),
        (("trusted.x", b"1"),),
        (("user.root", b"1"),),
    ]


def test_attributes_that_no_image_carries_are_not_seen(root: Path) -> None:
    (root / "file").touch()
    with contextlib.suppress(OSError):  # a kernel with a policy refuses labels it does not know
        os.setxattr(root / "file", "security.selinux", b"system_u:object_r:etc_t:s0\0")
    os.setxattr(root / "file", "trusted.overlay.opaque", b"y\n")
    os.setxattr(root / "file", "user.overlay.origin", b"")
    assert scan(str(root)).tree["file"].xattrs == ()


@pytest.mark.parametrize("value", [b"", b"\n", b"a\nb"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_attributes_that_importers_cannot_read_are_refused(root: Path, value: bytes, kind: str) -> None:
    (root / "etc").mkdir()
    (root / "etc" / "x").touch() if kind == "file" else (root / "etc" / "x").mkdir()
    os.setxattr(root / "etc" / "x", "user.bad", value)
    with pytest.raises(UnsupportedTree, match=r"attribute user\.bad of 'etc/x': .* --drop-bad-xattrs"):
        scan(str(root))


def test_attributes_that_importers_cannot_read_are_left_out_on_request(root: Path) -> None:
    (root / "x").touch()
    os.setxattr(root / "x", "user.empty", b"")
    os.setxattr(root / "x", "user.newline", b"\n")
    os.setxattr(root / "x", "user.good", b"1")
    found = scan(str(root), drop_bad_xattrs=True)
    assert found.tree["x"].xattrs == (("user.good", b"1"),)
    assert found.dropped_xattrs == 2


def test_the_wish_to_drop_attributes_drops_no_names(root: Path) -> None:
    (root / ".wh.x").touch()
    with pytest.raises(UnsupportedTree):
        scan(str(root), drop_bad_xattrs=True)


# What is left out


def test_devices_fifos_and_sockets_are_left_out_and_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "var").mkdir()
    (root / "var" / "file").touch()
    os.mknod(root / "var" / "char", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "var" / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(root / "var" / "block", stat.S_IFBLK, os.makedev(7, 0))
    os.mkfifo(root / "var" / "fifo")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("var/socket")
    found = scan(str(root))
    assert set(found.tree) == {"", "var", "var/file"}
    assert found.skipped == {"device": 3, "FIFO": 1, "socket": 1}
    assert [notice.partition(":")[0] for notice in scanned(DirectorySource(str(root))).notices] == [
        "left out 1 FIFO",
        "left out 3 devices",
    ]


def test_dropped_attributes_are_a_notice(root: Path) -> None:
    (root / "x").touch()
    os.setxattr(root / "x", "user.empty", b"")
    [notice] = scanned(DirectorySource(str(root), drop_bad_xattrs=True)).notices
    assert notice.startswith("left out 1 extended attribute that importers cannot read")


def test_contents_of_the_running_system_are_left_out(root: Path) -> None:
    for name in MOUNTED_OVER:
        (root / name / "below").mkdir(parents=True)
        (root / name / ".wh.x").touch()
    (root / "usr" / "run" / "tmp").mkdir(parents=True)
    assert set(scan(str(root)).tree) == {"", *MOUNTED_OVER, "usr", "usr/run", "usr/run/tmp"}


def test_a_link_instead_of_a_mount_point_is_kept(root: Path) -> None:
    (root / "var" / "tmp").mkdir(parents=True)
    (root / "var" / "tmp" / "x").touch()
    (root / "tmp").symlink_to("var/tmp")
    tree = scan(str(root)).tree
    assert (tree["tmp"].target, "var/tmp/x" in tree) == ("var/tmp", True)


# Hard links


def test_hard_links_are_a_group_named_after_the_first(root: Path) -> None:
    (root / "z").mkdir()
    (root / "z" / "one").write_bytes(b"content")
    for name in ("b", "a", "z/a"):
        os.link(root / "z" / "one", root / name)
    (root / "alone").write_bytes(b"content")
    tree = hashed(root)[0].tree
    assert {path for path, entry in tree.items() if entry.group == "a"} == {"a", "b", "z/a", "z/one"}
    assert tree["alone"].group == ""
    assert {tree[path].digest for path in ("a", "b", "z/a", "z/one")} == {new_digest(b"content").digest()}


def test_a_link_from_outside_makes_no_group(root: Path) -> None:
    (root / "a").write_bytes(b"1")
    os.link(root / "a", root.parent / "outside")
    assert scan(str(root)).tree["a"].group == ""


def test_a_link_from_what_is_left_out_makes_no_group(root: Path) -> None:
    (root / "sysroot").mkdir()
    (root / "sysroot" / "object").write_bytes(b"1")
    os.link(root / "sysroot" / "object", root / "a")
    assert scan(str(root)).tree["a"].group == ""


def test_hard_links_of_empty_files_are_a_group(root: Path) -> None:
    (root / "a").touch()
    os.link(root / "a", root / "b")
    tree = scan(str(root)).tree
    assert [(tree[path].group, tree[path].digest) for path in "ab"] == [("a", EMPTY_DIGEST)] * 2


def test_symbolic_links_are_never_a_group(root: Path) -> None:
    (root / "a").symlink_to("x")
    os.link(root / "a", root / "b", follow_symlinks=False)
    tree = scan(str(root)).tree
    assert [(tree[path].kind, tree[path].group) for path in "ab"] == [("l", "")] * 2


# What cannot be scanned


def test_a_missing_root_is_told(root: Path) -> None:
    with pytest.raises(InputError, match="missing does not exist: name the root file system"):
        scan(str(root / "missing"))


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_root_that_is_a_file_is_told(root: Path, path: str) -> None:
    (root / "file").touch()
    with pytest.raises(InputError, match=r"is not a directory|cannot be read \(Not a directory\)"):
        scan(str(root / path))


def test_an_empty_root_is_told(root: Path) -> None:
    with pytest.raises(InputError, match="is an empty directory"):
        scan(str(root))


def test_a_root_of_nothing_but_devices_is_empty(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with pytest.raises(InputError, match="is an empty directory"):
        scan(str(root))


def test_a_root_may_be_a_link(root: Path) -> None:
    (root / "x").touch()
    (root.parent / "link").symlink_to(root)
    os.setxattr(root, "user.root", b"1")
    tree = scan(str(root.parent / "link")).tree
    assert set(tree) == {"", "x"}
    assert tree[""].xattrs == (("user.root", b"1"),)


def test_deep_trees_are_walked(root: Path) -> None:
    deep = "/".join(["d" * 9] * 380)
    (root / deep).mkdir(parents=True)
    (root / deep / "file").touch()
    assert f"{deep}/file" in scan(str(root)).tree


def test_paths_that_are_too_long_to_open_are_told(root: Path) -> None:
    directory = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=directory)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        scan(str(root))


@pytest.fixture
def open_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root that others can reach too, as `root`."""
    root.parent.chmod(0o755)
    root.chmod(0o755)
    monkeypatch.chdir(root.parent)
    return root


def test_an_unreadable_directory_is_told(open_root: Path) -> None:
    (open_root / "secret").mkdir(mode=0o700)
    with as_nobody(), pytest.raises(EnvironmentLack, match="no right to read root/secret: run as root"):
        scan("root")


def test_an_unreadable_root_is_told(open_root: Path) -> None:
    (open_root / "x").touch()
    open_root.chmod(0o700)
    with as_nobody(), pytest.raises(EnvironmentLack, match="no right to read root: run as root"):
        scan("root")


def test_an_unreadable_file_is_told(open_root: Path) -> None:
    (open_root / "secret").write_bytes(b"1")
    (open_root / "secret").chmod(0o600)
    with as_nobody(), pytest.raises(EnvironmentLack, match="no right to read root/secret: run as root"):
        hashed(Path("root"))


def test_an_unreadable_attribute_is_told(open_root: Path) -> None:
    (open_root / "secret").touch(0o600)
    os.setxattr(open_root / "secret", "user.a", b"1")
    with as_nobody(), pytest.raises(EnvironmentLack, match="no right to read root/secret: run as root"):
        scan("root")


def test_a_tree_that_may_be_read_needs_no_root(open_root: Path) -> None:
    (open_root / "x").write_bytes(b"1")
    with as_nobody():
        assert hashed(Path("root"))[0].tree["x"].digest == new_digest(b"1").digest()


# Contents


@pytest.mark.parametrize("threads", [1, 3])
def test_every_content_is_hashed_once(root: Path, threads: int) -> None:
    contents = {f"f{number}": b"%d" % number * number for number in range(1, 200)}
    contents |= {"large": bytes(3 * PIECE + 7), "exact": bytes(PIECE), "more": bytes(PIECE + 1)}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    os.link(root / "large", root / "linked")
    found, told = hashed(root, threads)
    assert {path: found.tree[path].digest for path in contents} == {
        path: new_digest(content).digest() for path, content in contents.items()
    }
    assert sum(told) == sum(map(len, contents.values()))


def test_contents_are_not_read_without_need(root: Path) -> None:
    (root / "x").write_bytes(b"1")
    assert scan(str(root)).tree["x"].digest == b""


def test_a_file_that_vanishes_is_told(root: Path) -> None:
    with Hasher(1, lambda _: None) as hasher:
        hasher.add(str(root / "gone"), Entry("f", 0o644, 0, 0, size=1))
        with pytest.raises(
            InputError, match="gone vanished while the tree was read: build from a tree that nothing writes to"
        ):
            hasher.finish()


@pytest.mark.parametrize("size", [1, 2 * PIECE])
def test_a_disk_that_fails_is_told(size: int) -> None:
    broken = "/proc/self/mem"  # gives EIO at its start
    with Hasher(1, lambda _: None) as hasher:
        hasher.add(broken, Entry("f", 0o644, 0, 0, size=size))
        with pytest.raises(InputError, match=r"mem cannot be read \(Input/output error"):
            hasher.finish()


def test_contents_are_never_read_through_a_link(root: Path) -> None:
    (root / "link").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match=r"link changed while it was read \(Too many levels of symbolic links\)"):
        next(file_pieces(str(root / "link"), 1))


def test_an_empty_file_is_not_opened(root: Path) -> None:
    assert list(file_pieces(str(root / "missing"), 0)) == []


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_contents_of_any_size_are_read_whole(root: Path, size: int) -> None:
    content = os.urandom(size)
    (root / "file").write_bytes(content)
    assert b"".join(file_pieces(str(root / "file"), size)) == content


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE + 1, 2 * PIECE - 1])
@pytest.mark.parametrize("more", [-1, 1])
def test_a_file_of_another_size_is_told(root: Path, size: int, more: int) -> None:
    (root / "file").write_bytes(bytes(size + more))
    with pytest.raises(InputError, match="file changed while it was read: build from a tree that nothing writes to"):
        list(file_pieces(str(root / "file"), size))


def test_a_directory_source_hands_out_contents(root: Path) -> None:
    content = os.urandom(PIECE + 100)
    (root / "dir").mkdir()
    (root / "dir" / "x").write_bytes(content)
    source = scanned(DirectorySource(f"{root}//"))
    source.prepare(["dir/x"])
    assert b"".join(source.pieces("dir/x", len(content))) == source.read("dir/x") == content
    assert (source.config, source.notices, source.tree["dir/x"].digest) == (None, [], b"")
