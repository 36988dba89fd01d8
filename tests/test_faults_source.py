"""Faults while a tree is read: it changes, it cannot be read, its clocks are strange. Nothing wrong is ever published.

What changes does so at a moment that is told from within: when a phase begins, or when a file is given to the hasher.
What cannot be read is made so by the kernel (strace puts an error into one call on one path), by a disk with a hole, or
by a lack of rights.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.inspection import verify
from rechunk_action.oci.image import host_architecture
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.stage import blob_path
from rechunk_action.progress import Progress
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.names import parse_name
from rechunk_action.tree import scan as module
from rechunk_action.tree.entry import Entry
from rechunk_action.tree.scan import MOUNTED_OVER, PIECE, Hasher, file_pieces
from tests.building import QUIET, Listener, Meddler, build, places, tables_of
from tests.disks import disk, mounted
from tests.oracles import program, run, scratch
from tests.policies import add_policy
from tests.registries import plain_registry
from tests.support import NOBODY, as_nobody, listing
from tests.trees import CONTENTS

SMALL: Mapping[str, Any] = {"threads": 1, "scratch": Path(tempfile.gettempdir())}
LONG_AGO = 1_600_000_000
STEADY = "build from a tree that nothing writes to"

Deed = Callable[[Path], object]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return system(tmp_path / "tree")


def system(root: Path) -> Path:
    """A small system, which both formats take."""
    for path in ("usr/bin", "usr/lib/modules/6.1", "srv/empty", "etc", "var", *MOUNTED_OVER):
        (root / path).mkdir(parents=True)
    (root / "usr/lib/modules/6.1/vmlinuz").write_bytes(CONTENTS[5])
    (root / "etc/os-release").write_text('ID=small\nVERSION_ID="42"\n')
    (root / "usr/bin/tool").write_bytes(CONTENTS[4])
    (root / "usr/bin/alias").hardlink_to(root / "usr/bin/tool")
    (root / "usr/data").write_bytes(CONTENTS[3])
    (root / "usr/large").write_bytes(bytes(2 * PIECE + 5))
    (root / "usr/none").touch()
    (root / "usr/link").symlink_to("data")
    os.setxattr(root / "usr/data", "user.mark", b"\0\xff")
    add_policy(root)
    for place in root.rglob("*"):
        os.utime(place, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    return root


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has files count as old: as those which nobody has touched for some seconds."""
    monkeypatch.setattr(module, "COARSE", -(10**12))


def same_size(path: Path) -> None:
    """Other bytes in the same place."""
    with path.open("r+b") as file:
        file.write(b"!")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def both(*deeds: Deed) -> Deed:
    """One after the other."""

    def do(root: Path) -> None:
        for deed in deeds:
            deed(root)

    return do


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Another file in the place of one, as programs do that know how."""
    new = path.with_name("new")
    make(new)
    new.replace(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


CHANGES: Mapping[str, tuple[str, Deed]] = {
    "content": ("usr/data", same_size),
    "content of a large file": ("usr/large", same_size),
    "content of linked files": ("usr/bin/alias", same_size),
    "content of an empty file": ("usr/none", append),
    "growth": ("usr/data", append),
    "loss": ("usr/data", lambda path: os.truncate(path, 1)),
    "emptiness": ("usr/data", lambda path: os.truncate(path, 0)),
    "another file": ("usr/data", lambda path: replace(path, lambda new: new.write_bytes(CONTENTS[2]))),
    "a link for a file": ("usr/data", lambda path: replace(path, lambda new: new.symlink_to("large"))),
    "a FIFO for a file": ("usr/data", lambda path: replace(path, os.mkfifo)),
    "a socket for a file": ("usr/data", lambda path: replace(path, make_socket)),
    "a directory for a file": ("usr/none", both(Path.unlink, Path.mkdir)),
    "a file for a directory": ("srv/empty", both(Path.rmdir, Path.touch)),
    "target": ("usr/link", lambda path: replace(path, lambda new: new.symlink_to("none"))),
    "mode": ("usr/data", lambda path: path.chmod(0o4755)),
    "owner": ("usr/data", lambda path: os.chown(path, 5, 5)),
    "owner of a link": ("usr/link", lambda path: os.chown(path, 5, 5, follow_symlinks=False)),
    "mode of a directory": ("srv/empty", lambda path: path.chmod(0o700)),
    "mode of the root": ("", lambda path: path.chmod(0o700)),
    "mode of a mount point": ("run", lambda path: path.chmod(0o700)),
    "new attribute": ("usr/none", lambda path: os.setxattr(path, "user.new", b"1")),
    "other attribute": ("usr/data", lambda path: os.setxattr(path, "user.mark", b"1")),
    "no attribute": ("usr/data", lambda path: os.removexattr(path, "user.mark")),
    "hard link": ("usr/bin/more", lambda path: path.hardlink_to(path.with_name("tool"))),
    "a file that appears": ("etc/new", Path.touch),
    "a directory that appears": ("srv/empty/new", Path.mkdir),
    "a link that appears": ("new", lambda path: path.symlink_to("usr")),
    "a file that vanishes": ("usr/none", Path.unlink),
    "a directory that vanishes": ("srv/empty", Path.rmdir),
    "a mount point that vanishes": ("tmp", Path.rmdir),
}
"""Paths of a tree, which the error names, and what is done to them."""

NO_CHANGES: Mapping[str, tuple[str, Deed]] = {
    "reading": ("usr/data", Path.read_bytes),
    "reading a directory": ("usr", os.listdir),
    "a time of access": ("usr/data", lambda path: os.utime(path, (1, LONG_AGO))),
    "a time": ("usr/none", os.utime),
    "a mode and back": ("usr/data", both(lambda path: path.chmod(0o600), lambda path: path.chmod(0o644))),
    "a hard link elsewhere": ("usr/data", lambda path: outside(path).hardlink_to(path)),
    "another hard link elsewhere": ("usr/bin/tool", lambda path: outside(path).hardlink_to(path)),
    "an equal file": ("usr/data", lambda path: replace(path, lambda new: shutil.copy2(path, new))),
    "a file that came and went": ("etc/new", both(Path.touch, Path.unlink)),
    "a file in /run": ("run/new", Path.touch),
    "a FIFO that appears": ("etc/new", os.mkfifo),
}
"""Paths of a tree, and what is done to them and makes no other image."""


def outside(path: Path) -> Path:
    """A place on the same file system that is in no tree."""
    return next(above for above in path.parents if above.name == "tree").with_name("outside")


KINDS = [("plain", False), ("plain", True), ("ostree", False), ("ostree", True)]
"""Formats, and whether the image is an update."""

MOMENTS = [
    ("plain", False, "verify"),
    ("plain", True, "plan"),
    ("plain", True, "verify"),
    ("ostree", False, "plan"),
    ("ostree", True, "verify"),
]
"""Kinds, and the phase before which a tree changes: when it was scanned, when all layers are there."""


@pytest.mark.usefixtures("settled")
class TestATreeThatChanges:
    @pytest.mark.parametrize(("format_", "update", "moment"), MOMENTS)
    @pytest.mark.parametrize("change", CHANGES)
    def test_after_it_was_scanned_makes_no_image(
        self, tree: Path, change: str, format_: str, moment: str, *, update: bool
    ) -> None:
        path, deed = CHANGES[change]
        output = tree.parent / "output"
        options: dict[str, Any] = {"format": format_}
        if update:
            build(tree, f"oci:{output}:1", **options)
            append(tree / "etc/os-release")
            options["prev_ref"] = f"oci:{output}:1"
        before = listing(output) if update else None
        meddler = Meddler(moment, lambda: deed(tree / path))
        with pytest.raises(InputError, match=rf"{path} (changed|vanished|appeared) .*: {STEADY}$"):
            build(tree, f"oci:{output}:2", progress=meddler, **options)
        assert meddler.done
        assert (listing(output) if output.exists() else None) == before

    @pytest.mark.parametrize(("format_", "update"), KINDS)
    @pytest.mark.parametrize("change", NO_CHANGES)
    def test_in_nothing_that_an_image_holds_makes_the_same_image(
        self, tree: Path, change: str, format_: str, *, update: bool
    ) -> None:
        path, deed = NO_CHANGES[change]
        output = tree.parent / "output"
        made = build(tree, f"oci:{output}:1", format=format_)
        options = {"prev_ref": f"oci:{output}:1"} if update else {}
        meddler = Meddler("verify", lambda: deed(tree / path))
        again = build(tree, f"oci:{output}:2", format=format_, progress=meddler, **options)
        assert meddler.done
        assert again["layers"]["total"] == made["layers"]["total"]
        tables = [[sorted(table.entries) for table in tables_of(output, tag)] for tag in ("1", "2")]
        assert tables[0] == tables[1] or format_ == "ostree"

    @pytest.mark.parametrize(("format_", "update", "moment"), MOMENTS)
    def test_in_which_files_are_links_of_each_other_makes_no_image(
        self, tree: Path, format_: str, moment: str, *, update: bool
    ) -> None:
        output = tree.parent / "output"
        options: dict[str, Any] = {"format": format_}
        if update:
            build(tree, f"oci:{output}:1", **options)
            options["prev_ref"] = f"oci:{output}:1"
        tool, alias = tree / "usr/bin/tool", tree / "usr/bin/alias"
        meddler = Meddler(moment, lambda: replace(tool, lambda new: shutil.copy2(alias, new)))
        with pytest.raises(InputError, match=rf"/usr/bin/(tool|alias) changed while it was read: {STEADY}$"):
            build(tree, f"oci:{output}:2", progress=meddler, **options)

    def test_before_its_files_are_read_is_in_the_image_as_it_is_then(self, tree: Path) -> None:
        output = tree.parent / "output"
        build(tree, output, progress=Meddler("plan", lambda: same_size(tree / "usr/data")))
        verify(parse_name(f"oci:{output}"), parse_name(f"dir:{tree}"), places(), Progress(level=QUIET), **SMALL)

    def test_and_keeps_its_times_makes_no_image(self, tree: Path) -> None:
        def change() -> None:
            same_size(tree / "usr/data")
            os.utime(tree / "usr/data", (LONG_AGO, LONG_AGO))

        with pytest.raises(InputError, match=f"/usr/data changed while it was read: {STEADY}"):
            build(tree, tree.parent / "output", progress=Meddler("verify", change))

    def test_before_a_registry_has_it_leaves_the_registry_as_it_is(self, tree: Path) -> None:
        with plain_registry() as registry:
            name = f"docker://{registry.host}/a/b"
            build(tree, f"{name}:1.0")
            kept = {path: content for path, content in listing(registry.storage).items() if "tags" in path}
            append(tree / "etc/os-release")
            with pytest.raises(InputError, match=f"/usr/data changed while it was read: {STEADY}"):
                build(
                    tree,
                    f"{name}:1.1",
                    tags=["latest"],
                    progress=Meddler("verify", lambda: same_size(tree / "usr/data")),
                )
            assert {path: content for path, content in listing(registry.storage).items() if "tags" in path} == kept


@dataclass
class Scanned:
    """A source and what is to be done before each of its files is hashed."""

    source: DirectorySource
    root: Path
    deeds: dict[str, Callable[[], object]] = field(default_factory=dict)

    def read(self) -> None:
        with _Hooked(self) as hasher:
            self.source.scan(hasher)
            hasher.finish()

    def recheck(self) -> None:
        self.source.recheck()


class _Hooked(Hasher):
    def __init__(self, scanned: Scanned) -> None:
        super().__init__(1, lambda _: None)
        self._scanned = scanned

    def add(self, full: str, *entries: Entry) -> None:
        super().add(full, *entries)
        deed = self._scanned.deeds.pop(str(Path(full).relative_to(self._scanned.root)), None)
        if deed:
            deed()


@pytest.fixture
def scanned(tree: Path) -> Scanned:
    return Scanned(DirectorySource(str(tree)), tree)


class TestATreeThatChangesDuringTheScan:
    @pytest.mark.parametrize("name", ["data", "large"])
    @pytest.mark.parametrize(
        ("deed", "how"),
        [
            (append, "changed while it was read"),
            (lambda path: os.truncate(path, path.stat().st_size - 1), "changed while it was read"),
            (lambda path: os.truncate(path, 0), "changed while it was read"),
            (Path.unlink, "vanished while the tree was read"),
            (lambda path: replace(path, os.mkfifo), "changed while it was read"),
            (lambda path: replace(path, make_socket), r"changed while it was read \(No such device or address\)"),
            (
                lambda path: replace(path, lambda new: new.symlink_to("/etc/passwd")),
                r"changed while it was read \(Too many levels of symbolic links\)",
            ),
            (both(Path.unlink, Path.mkdir), r"changed while it was read \(Is a directory\)"),
        ],
        ids=["grows", "shrinks", "empty", "gone", "FIFO", "socket", "link", "directory"],
    )
    def test_before_a_file_is_hashed_is_told(self, scanned: Scanned, name: str, deed: Deed, how: str) -> None:
        path = scanned.root / "usr" / name
        scanned.deeds = {f"usr/{name}": lambda: deed(path)}
        with pytest.raises(InputError, match=f"^{path} {how}: {STEADY}$"):
            scanned.read()

    def test_while_a_large_file_is_read_is_told(self, tree: Path) -> None:
        path = tree / "usr/large"
        for deed in (append, lambda path: os.truncate(path, PIECE + 1)):
            pieces = file_pieces(str(path), path.stat().st_size)
            assert len(next(pieces)) == PIECE
            deed(path)
            with pytest.raises(InputError, match=f"^{path} changed while it was read: {STEADY}"):
                list(pieces)

    def test_a_file_that_grows_without_end_is_read_as_far_as_it_was(self) -> None:
        with pytest.raises(InputError, match=r"^/dev/zero changed while it was read"):
            list(file_pieces("/dev/zero", 2 * PIECE + 1))

    def test_a_file_that_was_hashed_is_told(self, scanned: Scanned) -> None:
        scanned.read()
        scanned.recheck()
        same_size(scanned.root / "usr/data")
        with pytest.raises(InputError, match=f"^{scanned.root}/usr/data changed while it was read: {STEADY}$"):
            scanned.recheck()

    def test_a_directory_that_vanishes_before_it_is_listed_is_told(self, scanned: Scanned) -> None:
        scanned.deeds = {"etc/os-release": lambda: shutil.rmtree(scanned.root / "etc/selinux")}
        with pytest.raises(
            InputError, match=f"^{scanned.root}/etc/selinux.* vanished while the tree was read: {STEADY}$"
        ):
            scanned.read()

    def test_a_link_in_the_place_of_a_directory_leads_nowhere(self, scanned: Scanned) -> None:
        outside = scanned.root.parent / "outside"
        shutil.copytree(scanned.root / "etc/selinux", outside)

        def divert() -> None:
            shutil.rmtree(scanned.root / "etc/selinux")
            (scanned.root / "etc/selinux").symlink_to(outside)

        scanned.deeds = {"etc/os-release": divert}
        with pytest.raises(
            InputError, match=rf"^{scanned.root}/etc/selinux.* changed while it was read \(Not a directory"
        ):
            scanned.read()

    def test_a_file_that_appears_in_a_directory_that_was_listed_is_told(self, scanned: Scanned) -> None:
        new = scanned.root / "usr/new"
        scanned.deeds = {"usr/lib/modules/6.1/vmlinuz": lambda: new.write_bytes(b"1")}
        scanned.read()
        if str(new.relative_to(scanned.root)) in scanned.source.tree:
            pytest.fail("the directory was listed late, and this test tells nothing")
        with pytest.raises(InputError, match=f"^{new} appeared while the tree was read: {STEADY}$"):
            scanned.recheck()

    def test_within_a_tick_of_the_clock_is_told(self, tmp_path: Path) -> None:
        """Of two writes within a tick, many kernels and file systems note one time."""
        place = tmp_path / "memory"
        place.mkdir()
        run("mount", "-t", "ramfs", "none", place)
        try:
            alike = 0
            for number in range(20):
                root = place / str(number)
                root.mkdir()
                (root / "file").write_bytes(b"1")
                noted = (root / "file").stat().st_ctime_ns
                source = Scanned(DirectorySource(str(root)), root)
                source.read()
                (root / "file").write_bytes(b"2")
                alike += noted == (root / "file").stat().st_ctime_ns
                with pytest.raises(InputError, match="file changed while it was read"):
                    source.recheck()
            assert alike  # else this test tells nothing
        finally:
            run("umount", place)

    def test_attributes_that_nobody_can_read_are_refused_when_they_come_late(self, scanned: Scanned) -> None:
        scanned.read()
        os.setxattr(scanned.root / "usr/data", "user.late", b"\n")
        with pytest.raises(InputError, match=r"attribute user\.late of 'usr/data'"):
            scanned.recheck()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk, with nothing mounted in it at the end."""
    with scratch() as directory:
        try:
            yield directory
        finally:
            for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
                if line.split()[1].startswith(f"{directory}/"):
                    run("umount", "--lazy", line.split()[1])


class TestFileSystems:
    """A tree is steady on each of them, however often the kernel has forgotten it and its inodes."""

    @pytest.mark.parametrize("lower", ["here", "tmpfs"])
    @pytest.mark.parametrize("upper", ["none", "here", "tmpfs"])
    @pytest.mark.parametrize("options", ["xino=off", "xino=off,metacopy=on,redirect_dir=on"])
    def test_overlayfs(self, place: Path, lower: str, upper: str, options: str) -> None:
        for name, kind in (("lower", lower), ("upper", upper)):
            (place / name).mkdir()
            if kind == "tmpfs":
                run("mount", "-t", "tmpfs", "none", place / name)
        system(place / "lower/tree")
        root = place / "merged"
        for name in ("merged", "empty", "upper/files", "upper/work"):
            (place / name).mkdir()
        below = f"lowerdir={place / 'lower/tree'}"
        above = f"upperdir={place / 'upper/files'},workdir={place / 'upper/work'}"
        where = f"{below}:{place / 'empty'}" if upper == "none" else f"{below},{above}"
        run("mount", "-t", "overlay", "overlay", "-o", f"{where},{options}", root)
        if upper != "none":
            append(root / "etc/os-release")
            (root / "usr/none").unlink()
        self._check_steady(root)
        if upper == "none":
            return
        source = Scanned(DirectorySource(str(root)), root)
        source.read()
        (root / "usr/large").open("r+b").close()  # copied up, and the same
        (root / "usr/data").chmod(0o644)
        source.recheck()
        same_size(root / "usr/large")
        with pytest.raises(InputError, match="usr/large changed while it was read"):
            source.recheck()

    @pytest.mark.parametrize("kind", ["btrfs", "ext4", "xfs"])
    def test_others(self, place: Path, kind: str) -> None:
        with disk(place, kind, 400 << 20) as here:
            root = system(here / "tree")
            self._check_steady(root)
            source = Scanned(DirectorySource(str(root)), root)
            source.read()
            same_size(root / "usr/data")
            with pytest.raises(InputError, match="usr/data changed while it was read"):
                source.recheck()

    def test_mounted_for_reading(self, tree: Path, place: Path) -> None:
        root = place / "mount"
        root.mkdir()
        run("mount", "--bind", "-o", "ro", tree, root)
        build(root, place / "output")
        assert [path for path in tables_of(place / "output")[0].entries if path == "usr/data"]

    def _check_steady(self, root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "COARSE", -(10**12))
            source = Scanned(DirectorySource(str(root)), root)
            source.read()
        forget()
        for path in root.rglob("*"):
            if path.is_file():
                path.read_bytes()
        source.recheck()


def forget() -> None:
    """Have the kernel forget names and inodes that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


ERRORS = {
    "EIO": (2, r"cannot be read \(Input/output error\): check the source and build again"),
    "EACCES": (3, "no right to read .*: run as root"),
    "EPERM": (3, "no right to read .*: run as root"),
    "ESTALE": (2, rf"changed while it was read \(Stale file handle\): {STEADY}"),
    "ENOENT": (2, f"vanished while the tree was read: {STEADY}"),
    "ELOOP": (2, rf"changed while it was read \(Too many levels of symbolic links\): {STEADY}"),
    "ENOTDIR": (2, rf"changed while it was read \(Not a directory\): {STEADY}"),
    "ENOTCONN": (2, r"cannot be read \(Transport endpoint is not connected\): check the source and build again"),
}
"""Exit code and message of each error."""

BROKEN = [
    *[
        (call, "usr/data", error)
        for call in ("openat", "newfstatat", "llistxattr", "lgetxattr")
        for error in ("EIO", "EACCES", "ESTALE")
    ],
    *[("openat", "usr/data", error) for error in ("EPERM", "ENOENT", "ELOOP", "ENOTDIR", "ENOTCONN")],
    *[("openat", "srv/empty", error) for error in ("EIO", "EACCES", "ESTALE", "ENOENT", "ENOTDIR")],
    *[("read", "usr/data", error) for error in ("EIO", "ESTALE", "ENOTCONN")],
    *[("read", "usr/large", error) for error in ("EIO", "ESTALE")],
    *[("getdents64", "usr", error) for error in ("EIO", "ESTALE")],
    *[("readlink", "usr/link", error) for error in ("EIO", "ESTALE", "ENOENT")],
]
"""Calls of the system on paths of a tree, and how each fails."""


class TestWhatCannotBeRead:
    @pytest.mark.parametrize("update", [False, True], ids=["fresh", "update"])
    @pytest.mark.parametrize(("call", "path", "error"), BROKEN)
    def test_is_named_and_leaves_nothing(self, tree: Path, call: str, path: str, error: str, *, update: bool) -> None:
        output = tree.parent / "output"
        options = []
        if update:
            build(tree, f"oci:{output}:1")
            append(tree / "usr/data")
            options = ["--prev-ref", f"oci:{output}:1"]
        before = listing(output) if update else None
        temporary = tree.parent / "temporary"
        temporary.mkdir()
        done = subprocess.run(
            [
                *(program("strace", "strace"), "-f", "-qq", "-o", "/dev/null", "-P", tree / path),
                *("-e", f"trace={call}", "-e", f"inject={call}:error={error}"),
                *(sys.executable, "-m", "rechunk_action", "build", f"dir:{tree}", f"oci:{output}:2", *options),
            ],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
            timeout=120,
        )
        code, message = ERRORS[error]
        assert (done.returncode, done.stdout) == (code, "")
        [told] = [line for line in done.stderr.splitlines() if str(tree / path) in line and "strace" not in line]
        assert "Traceback" not in done.stderr
        assert re.search(f"{tree / path}.* {message}|{message.replace('.*', str(tree / path))}", told), told
        assert (listing(output) if output.exists() else None) == before
        assert listing(temporary) == {}

    @pytest.mark.parametrize("update", [False, True], ids=["fresh", "update"])
    def test_on_a_disk_that_rots_is_named(self, tree: Path, place: Path, *, update: bool) -> None:
        """The first half of the file can be read, by a call that says nothing of the other half."""
        output, content = tree.parent / "output", os.urandom(PIECE // 2)
        options = {}
        with disk(place, "btrfs", 200 << 20) as here:
            run("cp", "--archive", tree, here / "tree")
            (here / "tree/var/half").write_bytes(content)
            if update:
                build(here / "tree", f"oci:{output}:1")
                options["prev_ref"] = f"oci:{output}:1"
        before = listing(output) if update else None
        with (place / "image").open("r+b") as image, mmap.mmap(image.fileno(), 0) as held:
            at = held.find(content[PIECE // 4 :])
            held[at] ^= 1
        with mounted(place / "disk", "-o", "loop,ro", place / "image") as here:
            with (here / "tree/var/half").open("rb", buffering=0) as half:
                assert len(half.read(PIECE)) == PIECE // 4
            with pytest.raises(
                InputError, match=rf"^{here}/tree/var/half cannot be read \(Input/output error\): check"
            ):
                build(here / "tree", f"oci:{output}:2", **options)
        assert (listing(output) if output.exists() else None) == before

    @pytest.mark.parametrize("update", [False, True], ids=["fresh", "update"])
    @pytest.mark.parametrize("path", ["usr/data", "srv/empty"])
    def test_without_rights_is_named_and_leaves_nothing(self, place: Path, path: str, *, update: bool) -> None:
        root, home = system(place / "tree"), place / "home"
        home.mkdir()
        os.chown(home, NOBODY, NOBODY)
        place.chmod(0o755)
        options = {}
        with as_nobody():
            if update:
                build(root, f"oci:{home / 'output'}:1", scratch=home)
                options = {"prev_ref": f"oci:{home / 'output'}:1"}
        before = listing(home)
        (root / path).chmod(0)
        with as_nobody(), pytest.raises(EnvironmentLack, match=f"^no right to read {root / path}: run as root"):
            build(root, f"oci:{home / 'output'}:2", scratch=home, **options)
        assert listing(home) == before


STRANGE = [-(2**40), -(2**33), -(2**31), -1, 0, 2**31 - 1, 2**31, 4_102_444_800, 2**32, 2**33, 8**11, 2**40]
"""Seconds since 1970: times before it, in 2038, 2100 and 2106, and what a header or timestamp has no digits for."""


class TestClocks:
    def test_that_have_given_files_any_time_make_good_images(self, place: Path) -> None:
        root = place / "memory"
        root.mkdir()
        run("mount", "-t", "tmpfs", "none", root)  # ext4 has no time before 1901, nor after 2446
        system(root / "tree")
        for number, seconds in enumerate(STRANGE):
            path = root / f"tree/usr/{number}"
            path.write_bytes(b"1")
            os.utime(path, (0, seconds))
            assert path.stat().st_mtime == seconds
        output = place / "output"
        build(root / "tree", f"oci:{output}:1")
        image = read_image(output, "1")
        assert image.config["created"] == "9999-12-31T23:59:59Z"
        found: dict[str, float] = {}
        for layer in image.layers:
            archive = place / "archive"
            archive.write_bytes(
                zstandard.ZstdDecompressor().decompressobj().decompress(blob_path(output, layer.digest).read_bytes())
            )
            with tarfile.open(archive) as opened:
                found |= {member.name: member.mtime for member in opened}
            assert run("tar", "--list", "--verbose", "--file", archive)
        assert [found[f"usr/{number}"] for number in range(len(STRANGE))] == STRANGE
        report = build(root / "tree", f"oci:{output}:2", prev_ref=f"oci:{output}:1")
        assert report["layers"]["new"] == 0
        verify(
            parse_name(f"oci:{output}:2"), parse_name(f"dir:{root / 'tree'}"), places(), Progress(level=QUIET), **SMALL
        )

    @pytest.mark.parametrize("seconds", STRANGE)
    @pytest.mark.parametrize("format_", ["plain", "ostree"])
    def test_date_an_image_by_its_newest_file(self, place: Path, seconds: int, format_: str) -> None:
        root = place / "memory"
        root.mkdir()
        run("mount", "-t", "tmpfs", "none", root)
        for path in (system(root / "tree"), *(root / "tree").rglob("*")):
            os.utime(path, (0, seconds), follow_symlinks=False)
        build(root / "tree", place / "output", format=format_)
        created = read_image(place / "output", None).config["created"]
        assert created == datetime.fromtimestamp(min(max(0, seconds), LAST), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @pytest.mark.parametrize(
        "now", ["1970-01-01 00:00:10", "2037-12-31 12:00:00", "2040-06-01 12:00:00", "2106-02-08 12:00:00"]
    )
    def test_of_the_machine_change_no_byte_of_an_image(self, tree: Path, now: str) -> None:
        append(tree / "etc/os-release")
        os.utime(tree / "etc/os-release", (LONG_AGO, LONG_AGO))
        made = {}
        for clock in (datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"), now):
            output = tree.parent / f"output {clock}"
            told = [at(clock, "build", f"dir:{tree}", f"oci:{output}:1")]
            told += [at(clock, "build", f"dir:{tree}", f"oci:{output}:2", "--prev-ref", f"oci:{output}:1")]
            assert told[1]["layers"]["new"] == 0
            made[clock] = [build["digest"] for build in told]
        one, other = made.values()
        assert one[0] == other[0]

    @pytest.mark.parametrize("wrong", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2040, 6, 1, tzinfo=UTC)])
    def test_that_go_wrong_for_one_build_harm_none(self, tree: Path, wrong: datetime) -> None:
        """The newest version is the one of the highest number, so an update may be one of another image: it is told."""
        with plain_registry() as registry:
            name = f"docker://{registry.host}/a/b"
            told = Listener()
            for number, now in enumerate((RIGHT, wrong, RIGHT + timedelta(days=1), RIGHT + timedelta(days=2))):
                (tree / f"usr/{number}").write_bytes(b"%d" % number)
                report = build(tree, name, now=now, tags=["latest"], progress=told)
                assert report["version"] == f"42-{now:%Y%m%d}"
                assert report["fresh"] == (number == 0)
                ref = parse_name(f"{name}@{report['digest']}")
                verify(ref, parse_name(f"dir:{tree}"), places(), Progress(level=QUIET), **SMALL)
        assert told.heard("is older than")

    @pytest.mark.parametrize("now", ["1970-01-01 00:00:10", "2040-06-01 12:00:00"])
    def test_of_the_machine_stop_no_registry(self, tree: Path, now: str) -> None:
        with plain_registry() as registry:
            name = f"docker://{registry.host}/a/b"
            first = at(now, "build", f"dir:{tree}", name, "--tls-verify=false")
            append(tree / "etc/os-release")
            second = at(now, "build", f"dir:{tree}", name, "--tls-verify=false")
        day = now.partition(" ")[0].replace("-", "")
        assert [first["version"], second["version"]] == [f"42-{day}", f"42-{day}.1"]
        assert second["prev_ref"].endswith(first["digest"])

    @pytest.mark.parametrize(
        "created",
        [
            "0001-01-01T00:00:00Z",
            "0001-01-01T00:00:00+14:00",
            "1969-12-31T23:59:59Z",
            "9999-12-31T23:59:59-12:00",
            "2106-02-07T06:28:16Z",
        ],
    )
    @pytest.mark.parametrize("format_", ["plain", "ostree"])
    def test_of_the_builder_may_say_anything(self, tree: Path, created: str, format_: str) -> None:
        config = tree.parent / "config.json"
        config.write_text(json.dumps({"created": created, "architecture": host_architecture()}))
        build(tree, tree.parent / "output", config=config, format=format_)
        shown = read_image(tree.parent / "output", None).config["created"]
        assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", shown)


LAST = 253_402_300_799
RIGHT = datetime(2026, 11, 28, tzinfo=UTC)


def at(clock: str, *command: str) -> Any:
    """What the command reports when the machine's clock says that. Times of files stay as they are."""
    done = subprocess.run(
        [
            program("faketime", "faketime"),
            "-m",
            "-f",
            f"@{clock}",
            sys.executable,
            "-m",
            "rechunk_action",
            *command,
            "--json",
        ],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"NO_FAKE_STAT": "1", "DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"},
        timeout=120,
    )
    return json.loads(done.stdout)
