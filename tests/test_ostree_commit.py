"""The OSTree commit of a tree, against the one that `ostree commit` makes of the same files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci.layout import read_image
from rechunk_action.ostree.commit import Committed, commit, origin, prepare
from rechunk_action.ostree.labels import labels
from rechunk_action.ostree.objects import parse_commit, serialise_commit
from rechunk_action.ostree.view import commit_path
from rechunk_action.source import Source
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.image import ImageSource
from rechunk_action.tree.entry import ROOT, Entry, Tree
from rechunk_action.tree.scan import MOUNTED_OVER, PIECE
from tests import trees
from tests.building import scanned
from tests.oracles import program, run, scratch
from tests.ostree_images import commit_tree
from tests.policies import USR_ETC, add_policy
from tests.support import archive, directory, file, hardlink, pack, symlink, write_layout

CREATED = 1_704_067_200
"""The time of `commit_tree`'s commits."""

LINUX = "6.1.0-test"


@pytest.fixture
def place() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


@pytest.fixture
def root(place: Path) -> Path:
    """A tree with all that is awkward, and no policy."""
    root = place / "root"
    for path in ("etc/empty", "usr/bin", f"usr/lib/modules/{LINUX}", "usr/src", "var/lib", "home/me", "sbin", "opt"):
        (root / path).mkdir(parents=True)
    for path in MOUNTED_OVER:
        (root / path).mkdir()
        (root / path / "left out").touch()
    (root / f"usr/lib/modules/{LINUX}/vmlinuz").write_bytes(b"kernel" * PIECE)
    for number in range(250):
        (root / f"usr/src/{'n' * number}.c").write_text("int" * number)
    (root / "usr/bin/sudo").write_bytes(b"program")
    for other in ("usr/bin/local", "usr/src/sudo", "etc/sudo", "usr/bin/sudo2"):  # of three labels
        (root / other).hardlink_to(root / "usr/bin/sudo")
    (root / "usr/bin/sudo").chmod(0o4711)
    (root / "usr/bin/empty").touch(0o600)
    (root / "usr/src/empty").hardlink_to(root / "usr/bin/empty")
    (root / "etc/shadow").write_bytes(b"root:*")
    (root / "etc/shadow").chmod(0)
    os.chown(root / "etc/shadow", 2_100_000, 3_000_000_000)
    (root / "usr/etcetera").write_text("not etc")
    (root / "usr/bin/é\n日本").symlink_to("é" * 200)
    os.chown(root / "usr/bin/é\n日本", 7, 8, follow_symlinks=False)
    (root / "home/me/file").write_text("home")
    (root / "sbin/init").write_text("init")
    (root / "opt").chmod(0o1777)
    os.chown(root / "opt", 1, 2)
    os.setxattr(root / "usr/bin/local", "security.capability", trees.CAPABILITY)
    return root


def committed(source: Source, place: Path, **options: Any) -> Committed:
    view, _ = prepare(source.tree)
    given: dict[str, Any] = {"version": None, "created": CREATED, "threads": 2, "advance": lambda _: None}
    return commit(source, view, labels(source, view, place), **given | options)


def of_directory(root: Path, **options: Any) -> Committed:
    return committed(scanned(DirectorySource(str(root))), root.parent, **options)


def commit_really(
    root: Path, repo: Path, *options: str, policy: Path | None = None
) -> Mapping[str, Mapping[bytes, bytes]]:
    """The objects that real `ostree` makes of a directory, by type and checksum. The directory is changed for it."""
    (root / "etc").rename(root / "usr/etc")
    for path in MOUNTED_OVER & {path.name for path in root.iterdir()}:
        for child in (root / path).iterdir():
            child.unlink()
    if policy:
        add_policy(policy, USR_ETC)
        options += (f"--selinux-policy={policy}",)
    commit_tree(repo, root, "--no-bindings", *options)
    found: dict[str, dict[bytes, bytes]] = {}
    for place in (repo / "objects").rglob("*.*"):
        checksum = bytes.fromhex(place.parent.name + place.stem)
        found.setdefault(place.suffix.removeprefix("."), {})[checksum] = place.read_bytes()
    return found


def assert_same(made: Committed, objects: Mapping[str, Mapping[bytes, bytes]]) -> None:
    [real] = objects["commit"].values()
    assert parse_commit(made.commit) == parse_commit(real)
    assert dict(made.metadata) == {
        checksum: (kind, data) for kind in ("dirtree", "dirmeta") for checksum, data in objects[kind].items()
    }
    assert {entry.digest for entry in made.tree.values() if not entry.is_dir} == objects["file"].keys()


def test_the_objects_are_those_of_ostree(root: Path, place: Path) -> None:
    os.setxattr(root / "usr/bin/local", "user.a", b"v" * 300)
    os.setxattr(root / "home", "user.a", b"1")
    assert_same(of_directory(root), commit_really(root, place / "repo"))


def test_the_objects_are_those_of_ostree_with_labels(root: Path, place: Path) -> None:
    made = of_directory(add_policy(root))
    linked = {
        made.tree[path].digest
        for path in ("usr/bin/sudo", "usr/bin/sudo2", "usr/bin/local", "etc/sudo", "usr/src/sudo")
    }
    assert len(linked) == 4
    assert made.tree["usr/bin/sudo"].digest == made.tree["usr/bin/sudo2"].digest
    assert_same(made, commit_really(root, place / "repo", policy=place / "policy"))


@settings(max_examples=12, deadline=None)
@given(history=trees.generations(least=3, most=6))
def test_the_objects_of_any_tree_are_those_of_ostree(history: list[trees.Files]) -> None:
    with scratch() as place:
        root = place / "root"
        trees.write(history[-1], root)
        (root / f"usr/lib/modules/{LINUX}").mkdir(parents=True)
        (root / f"usr/lib/modules/{LINUX}/vmlinuz").touch()
        made = of_directory(root)
        assert_same(made, commit_really(root, place / "repo"))


def test_a_tree_with_usr_etc_is_the_same_commit(root: Path) -> None:
    made = of_directory(add_policy(root))
    (root / "etc").rename(root / "usr/etc")
    moved = of_directory(root)
    assert moved.checksum == made.checksum
    assert moved.tree.keys() == made.tree.keys()
    (root / "etc").mkdir(0o700)  # an empty one, to be mounted over
    assert of_directory(root).checksum == made.checksum


def test_an_image_is_the_same_commit_as_its_files(place: Path) -> None:
    root = place / "root"
    (root / f"usr/lib/modules/{LINUX}").mkdir(parents=True)
    (root / f"usr/lib/modules/{LINUX}/vmlinuz").write_bytes(b"kernel")
    (root / "usr/bin").mkdir()
    (root / "usr/bin/sh").write_bytes(b"program")
    (root / "usr/bin/empty").touch()
    (root / "usr/lib/sh").hardlink_to(root / "usr/bin/sh")
    (root / "usr/bin/bash").symlink_to("sh")
    (root / "etc").mkdir()
    add_policy(root)
    lower = [
        *map(directory, ("./", "usr", "usr/bin", "usr/lib", "usr/lib/modules", f"usr/lib/modules/{LINUX}")),
        file(f"usr/lib/modules/{LINUX}/vmlinuz", b"kernel"),
        file("usr/bin/sh", b"what is there twice counts as it is there last"),
        file("usr/bin/sh", b"program"),
        file("usr/bin/empty", b"not empty"),
        file("usr/bin/empty"),
        hardlink("usr/lib/sh", "usr/bin/sh"),
        file("usr/lib/gone", b"1"),
        symlink("usr/bin/bash", "sh"),
    ]
    policy = sorted((root / "etc").rglob("*"))
    upper = [directory("usr"), directory("usr/lib"), file("usr/lib/.wh.gone"), directory("etc")]
    for path in policy:
        name = str(path.relative_to(root))
        upper.append(directory(name) if path.is_dir() else file(name, path.read_bytes()))
    layers = [pack(archive(*lower)), pack(archive(*upper))]
    source = scanned(ImageSource(read_image(write_layout(place / "layout", layers), None), place, threads=2))
    assert committed(source, place).checksum == of_directory(root).checksum


def test_ostree_takes_the_commit(root: Path, place: Path) -> None:
    """All of its metadata, in a repository where it has every other object."""
    made = of_directory(root, version="44.1")
    repo, ostree = place / "repo", program("ostree", "ostree")
    real = commit_really(root, repo, "--bootable", "--add-metadata-string=version=44.1")
    name = made.checksum.hex()
    path = repo / f"objects/{name[:2]}/{name[2:]}.commit"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(made.commit)
    run(ostree, f"--repo={repo}", "refs", "--create=ours", name)
    run(ostree, f"--repo={repo}", "fsck")
    shown = {
        key: run(ostree, f"--repo={repo}", "show", f"--print-metadata-key={key}", "ours").strip()
        for key in ("ostree.bootable", "ostree.linux", "version")
    }
    assert shown == {"ostree.bootable": "true", "ostree.linux": f"'{LINUX}'", "version": "'44.1'"}
    assert made.linux == LINUX
    # libostree has the metadata in the order of a hash table.
    parsed = parse_commit(made.commit)
    about: list[tuple[str, str | bool]] = [("ostree.bootable", True), ("ostree.linux", LINUX), ("version", "44.1")]
    assert set(real["commit"].values()) <= {
        serialise_commit(parsed.dirtree, parsed.dirmeta, metadata=dict(order), timestamp=CREATED)
        for order in permutations(about)
    }


def test_the_same_tree_is_the_same_commit(root: Path) -> None:
    made = of_directory(add_policy(root), version="1")
    again = of_directory(root, version="1", threads=5)
    assert (again.commit, list(again.metadata.items())) == (made.commit, list(made.metadata.items()))
    assert {path: entry.digest for path, entry in again.tree.items()} == {
        path: entry.digest for path, entry in made.tree.items()
    }
    others = {of_directory(root, **{"version": "1"} | change).checksum for change in ({"version": "2"}, {"created": 0})}
    assert len(others | {made.checksum}) == 3


def test_an_entry_is_what_its_object_is(root: Path) -> None:
    made = of_directory(add_policy(root))
    assert made.tree["usr/bin/local"].xattrs == (
        ("security.capability", trees.CAPABILITY),
        ("security.selinux", b"system_u:object_r:local_t:s0\0"),
    )
    assert made.tree["usr/src/empty"].xattrs == ()
    assert made.tree["usr/bin"].xattrs == ()  # no client shows the labels of directories but by the commit
    assert {entry.group for entry in made.tree.values()} == {""}
    assert made.attributes.keys() == {path for path, entry in made.tree.items() if not entry.is_dir}
    same = [made.attributes[path] for path in made.attributes if path.startswith("usr/src/n")]
    assert len(set(map(id, same))) == 1


def test_progress_counts_every_name(root: Path) -> None:
    told: list[int] = []
    made = of_directory(root, advance=told.append)
    assert sum(told) == sum(entry.size for entry in made.tree.values())


@pytest.mark.parametrize("content", [b"roo", b"root:*:"])
def test_a_file_that_changes_is_told(root: Path, content: bytes) -> None:
    source = scanned(DirectorySource(str(root)))
    (root / "etc/shadow").write_bytes(content)
    with pytest.raises(InputError, match="/etc/shadow changed while it was read: build from a tree that nothing"):
        committed(source, root.parent)


def test_a_file_that_goes_is_told(root: Path) -> None:
    source = scanned(DirectorySource(str(root)))
    (root / "etc/shadow").unlink()
    with pytest.raises(InputError, match="etc/shadow vanished while the tree was read"):
        committed(source, root.parent)


def tree_of(*paths: str, **more: Entry) -> Tree:
    """Directories where the path ends in a slash, empty files otherwise."""
    tree = {ROOT: Entry("d", 0o755, 0, 0)}
    for path in (f"usr/lib/modules/{LINUX}/vmlinuz", *paths):
        parts = path.rstrip("/").split("/")
        for depth in range(1, len(parts)):
            tree.setdefault("/".join(parts[:depth]), Entry("d", 0o755, 0, 0))
        tree[path.rstrip("/")] = Entry("d" if path.endswith("/") else "f", 0o755, 0, 0)
    return tree | more


def test_a_tree_is_shown_as_containers_see_it() -> None:
    tree = tree_of("usr/etc/a", "usr/etcetera", "etc/", "opt/")
    view, _ = prepare(tree)
    assert view.keys() == tree.keys() - {"usr/etc", "usr/etc/a"} | {"etc/a"}
    assert [origin(path, tree) for path in ("etc/a", "usr/etcetera", "opt")] == ["usr/etc/a", "usr/etcetera", "opt"]
    assert [commit_path(path) for path in ("etc", "etc/a", "etcetera", "")] == ["usr/etc", "usr/etc/a", "etcetera", ""]
    tree = tree_of("usr/etc/", "etc/a")
    view, _ = prepare(tree)
    assert view.keys() == tree.keys() - {"usr/etc"}
    assert origin("etc/a", tree) == "etc/a"
    assert prepare(tree_of())[0].keys() == tree_of().keys()


def test_hard_links_are_files_of_their_own() -> None:
    tree = tree_of(a=Entry("f", 0o644, 0, 0, group="a"), b=Entry("f", 0o644, 0, 0, group="a"))
    view, _ = prepare(tree)
    assert (view["a"].group, view["b"].group, tree["a"].group) == ("", "", "a")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda: tree_of("etc/a", "usr/etc/b"), "both /etc and /usr/etc hold something"),
        (lambda: tree_of("usr/etc/b", etc=Entry("l", 0o777, 0, 0, target="usr/etc")), "/etc is no directory"),
        (lambda: tree_of("usr/etc"), "/usr/etc is no directory"),
        (lambda: {ROOT: Entry("d", 0o755, 0, 0)}, "there is no directory /usr"),
        (lambda: tree_of(usr=Entry("f", 0o755, 0, 0)), "lies below something that is no directory"),
        (lambda: {ROOT: Entry("d", 0, 0, 0), "usr": Entry("d", 0, 0, 0)}, "no kernel, /usr/lib/modules/.*/vmlinuz"),
        (lambda: tree_of("usr/lib/modules/5/vmlinuz"), rf"several kernels, 5, {LINUX}, in /usr/lib/modules"),
    ],
)
def test_a_tree_that_is_no_system_is_refused(change: Callable[[], Tree], problem: str) -> None:
    with pytest.raises((InputError, CorruptImage), match=problem):
        prepare(change())


def test_a_kernel_is_a_file_in_a_directory_of_its_own() -> None:
    prepare(tree_of("usr/lib/modules/a/b/vmlinuz", "usr/lib/modules/vmlinuz", "usr/lib/modules/c/vmlinuz/"))


def test_a_tree_without_a_policy_is_told() -> None:
    assert prepare(tree_of())[1] == ["there is no SELinux policy (/etc/selinux/config): no path gets a label"]
    assert prepare(tree_of("usr/etc/selinux/config"))[1] == []
