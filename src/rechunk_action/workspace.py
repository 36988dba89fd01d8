"""Scratch space of its own for an engine: a BTRFS in a sparse file, or a plain directory where that cannot be had.

BTRFS compresses what trees and repositories hold, and a file system of its own goes away at once, however many files
are in it. Sibling containers bind it, or directories in it, by its path.

    PARENT/rechunk-workspace-*/     locked (flock) for as long as its owner lives
        image                       the sparse file
        root/                       the workspace: where the file is mounted, or a directory

Invariants:
- On every way out everything is unmounted, the loop device goes with its mount, and the files are removed. What a
  killed run could not remove, the next one in the same parent does: a lock that can be taken has no living owner.
- Nothing is removed while something is mounted below it, so that removing never reaches into another tree.
- Space is short in two places: in the workspace, and below it, where a sparse file finds out only when blocks are
  written, and its BTRFS is lost by then. `Workspace.check` looks at both, and `RESERVE` bytes are kept free in both.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from rechunk_action.errors import EnvironmentLack, InputError, WorkspaceFull
from rechunk_action.scratch import claim, lock_stale
from rechunk_action.signals import undisturbed
from rechunk_action.source.programs import Account, Program, own_account, run

RESERVE = 500_000_000
"""Bytes that stay free: room for what is on its way to the disk when space runs out."""

LARGEST = 50_000_000_000
"""Bytes that a workspace may grow to when nobody asks for another size."""

Kind = Literal["auto", "btrfs", "none"]

Notice = Callable[[str], None]
End = Callable[[Path], None]

_PREFIX = "rechunk-workspace-"

_OPTIONS = "loop,compress=zstd,noatime,discard"
"""`loop` ties the device to the mount. `discard` gives the space of removed files back to the disk below."""

_OVERLAY = "redirect_dir=on,metacopy=off,index=off"
"""The same on every machine, whatever its kernel was built with: a directory can be renamed, and no file in the upper
tree depends on one in the lower.
"""

_PATIENCE = 2
"""Seconds that a busy mount has, before it is detached from its place."""

_SYS_ADMIN = 21
"""The capability to mount, as a bit's number."""


class Workspace:
    """Scratch space. `path` is its root, `size` the bytes it may grow to."""

    path: Path
    kind: Literal["btrfs", "directory"]
    size: int

    def __init__(self, home: Path, account: Account, size: int | None) -> None:
        """`size` is that of the BTRFS in it; a directory has none of its own."""
        self.path = home / "root"
        self.kind = "directory" if size is None else "btrfs"
        self._parent = home.parent
        self._image = home / "image"
        self._account = account
        self._free_before = _free(self._parent)
        self.size = max(0, self._free_before - RESERVE) if size is None else size

    def used(self) -> int:
        """Bytes it takes on the disk now. For a directory, what the disk has less than before, whoever took it."""
        if self.kind == "btrfs":
            return self._image.stat().st_blocks * 512
        return max(0, self._free_before - _free(self._parent))

    def check(self) -> None:
        """Raises `WorkspaceFull` when space has nearly run out. Cheap enough to be asked every second."""
        below = _free(self._parent)
        if below < RESERVE:
            raise WorkspaceFull(
                f"the disk below the workspace is nearly full ({below / 1e6:.0f} MB are free in {self._parent}): "
                "free some space there, or put the workspace on a larger disk (TMPDIR)"
            )
        within = _free(self.path)
        if within < RESERVE:
            raise WorkspaceFull(
                f"the workspace is nearly full ({within / 1e6:.0f} MB of its {self.size / 1e9:.1f} GB are free, and "
                f"{below / 1e9:.1f} GB are below it, in {self._parent}): give it a larger size (--workspace-size)"
            )

    def directory(self, name: str) -> Path:
        """A new directory in it."""
        directory = self.path / name
        directory.mkdir()
        return directory

    def overlay(self, lower: str | os.PathLike[str], name: str) -> Path:
        """A writable view of a tree, which itself is never written to, mounted in a new directory.

        Raises `EnvironmentLack` when it cannot be mounted; nothing is left of it then.
        """
        view = self.directory(name)
        layers = self.directory(f"{name}.overlay")
        upper, work = layers / "upper", layers / "work"
        try:
            upper.mkdir()
            work.mkdir()
            _copy_attributes(lower, upper)
            with ExitStack() as opened:
                # By descriptor, since commas and colons in a path would end the option that it is in.
                places = {"lowerdir": lower, "upperdir": upper, "workdir": work}
                options = [f"{option}={_descriptor(path, opened)}" for option, path in places.items()]
                _mount(self._account, "overlay", ",".join([*options, _OVERLAY]), "overlay", view)
        except OSError as error:
            shutil.rmtree(layers)
            view.rmdir()
            raise EnvironmentLack(
                f"a writable view of {os.fspath(lower)} cannot be mounted in {self.path} ({error}): "
                "copy the tree, or put the workspace (TMPDIR) on a local disk with ext4, XFS or BTRFS"
            ) from None
        return view


@contextmanager
def workspace(
    parent: Path,
    *,
    kind: Kind,
    size: int | None,
    need: int,
    least: int,
    environment: Mapping[str, str],
    notice: Notice,
    end: End = lambda _: None,
) -> Iterator[Workspace]:
    """Scratch space in a directory, and gone with all that is in it when it is left.

    `need` is how many bytes the work may take at most, `least` how many it takes in any case: with fewer it is not
    begun. `size` is how large the BTRFS is; None makes it as large as the need, `LARGEST` and the disk allow. `auto`
    makes do with a directory, and says why, where there can be no BTRFS; with `btrfs` that is an error. What runs that
    were killed have left in `parent` is removed (`clear_stale`, which `end` is for).

    Raises `EnvironmentLack` when the machine lacks what is needed, `InputError` when the size is too small for `least`.
    """
    parent = parent.resolve()
    for cleared in clear_stale(parent, environment=environment, notice=notice, end=end):
        notice(f"removed {cleared}, which a run that was killed had left behind")
    size = _size(parent, size, need, least, notice)
    account = own_account(environment)
    leave: Callable[[], object] | None = None
    try:
        with undisturbed():
            home, lock = _claim(parent)
            owner = _Owner()
            # When an interrupt cuts this function short just before it leaves, leaving is made up for by the end of
            # the owner, or of the program.
            leave = weakref.finalize(owner, _clear, home, lock, account, notice)
        yield _set_up(home, kind, size, account, notice)
    finally:
        if leave is not None:
            with undisturbed():
                leave()


def clear_stale(
    parent: Path,
    *,
    environment: Mapping[str, str],
    notice: Notice,
    end: End = lambda _: None,
) -> list[Path]:
    """Remove the workspaces that runs of this user have left behind because they were killed. Returns where they were.

    `end` is called with each, to end what may still work in there. What cannot be removed gets a notice.
    """
    account = own_account(environment)
    cleared = []
    for home in sorted(parent.resolve().glob(f"{_PREFIX}*")):
        with undisturbed():
            lock = lock_stale(home)
            if lock is None:
                continue
            end(home)
            if _clear(home, lock, account, notice):
                cleared.append(home)
    return cleared


class _Owner:
    """Lives as long as the workspace is wanted."""


def _size(parent: Path, asked: int | None, need: int, least: int, notice: Notice) -> int:
    """How large a BTRFS may grow."""
    try:
        free = _free(parent)
    except OSError as error:
        raise _unusable(parent, error) from None
    smallest = least + 2 * RESERVE  # what stays free, and what BTRFS keeps for itself
    if free < smallest:
        raise EnvironmentLack(
            f"the workspace takes at least {smallest / 1e9:.1f} GB, and {parent} has {free / 1e9:.1f} GB free: "
            "free some space, or put the workspace on another disk (TMPDIR)"
        )
    if asked is None:
        return max(smallest, min(need, LARGEST, free - RESERVE))
    if asked < smallest:
        raise InputError(
            f"a workspace of {asked / 1e9:.1f} GB is too small for this image: make it {smallest / 1e9:.1f} GB or more "
            "(--workspace-size)"
        )
    if asked > free - RESERVE:
        notice(
            f"the workspace may grow to {asked / 1e9:.1f} GB, but {parent} has only {free / 1e9:.1f} GB free: "
            "the run stops when the disk is nearly full"
        )
    return asked


def _set_up(home: Path, kind: Kind, size: int, account: Account, notice: Notice) -> Workspace:
    (home / "root").mkdir()
    if kind != "none":
        try:
            _mount_btrfs(home, size, account)
        except EnvironmentLack as lack:
            if kind == "btrfs":
                raise
            notice(f"the workspace is a plain directory and not compressed, since there can be no BTRFS: {lack}")
            (home / "image").unlink(missing_ok=True)
        else:
            return Workspace(home, account, size)
    _check_xattrs(home)
    return Workspace(home, account, None)


def _mount_btrfs(home: Path, size: int, account: Account) -> None:
    _check_btrfs(account)
    image = home / "image"
    try:
        image.touch(exist_ok=False)
        os.truncate(image, size)
    except OSError as error:
        raise _unusable(home.parent, error) from None
    # One copy of metadata is enough for what does not outlive this run.
    run(account, "mkfs.btrfs", "--quiet", "--metadata", "single", str(image))
    try:
        _mount(account, "btrfs", _OPTIONS, image, home / "root")
    except OSError as error:
        raise EnvironmentLack(
            f"a BTRFS in {home.parent} cannot be mounted ({error}): see that a loop device is free (losetup --all); in "
            "a container, bind the host's /dev and allow its loop devices"
        ) from None


def _check_btrfs(account: Account) -> None:
    """Raises `EnvironmentLack` for what would keep a BTRFS from being made and mounted."""
    if not _may_mount():
        raise EnvironmentLack(
            f"{account.name} has no right to mount a BTRFS: run this as root (sudo); in a container, with the "
            "capability SYS_ADMIN"
        )
    if shutil.which("mkfs.btrfs", path=account.environment.get("PATH", os.defpath)) is None:
        raise EnvironmentLack("mkfs.btrfs is not installed: install it (apt-get install btrfs-progs)")
    if not _knows_btrfs():
        # The kernel looks for its module when something is to be mounted, wherever we are; this can only fail.
        with Program(account, "mount", "-t", "btrfs", "/dev/null", "/mnt") as probe:
            probe.status()
    if not _knows_btrfs():
        raise EnvironmentLack(
            f"the kernel ({os.uname().release}) has no BTRFS: load its module (modprobe btrfs), or install it "
            "(apt-get install linux-modules-extra-$(uname -r))"
        )
    if not Path("/dev/loop-control").exists():
        raise EnvironmentLack(
            "there are no loop devices (/dev/loop-control is missing): load their module (modprobe loop); "
            "in a container, bind the host's /dev"
        )


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> _SYS_ADMIN & 1)


def _knows_btrfs() -> bool:
    return "btrfs" in Path("/proc/filesystems").read_text(encoding="utf-8").split()


def _check_xattrs(home: Path) -> None:
    """Raises `EnvironmentLack` when files cannot have the attributes in which an ostree repository keeps owners."""
    try:
        os.setxattr(home / "root", "user.rechunk", b"1")
        os.removexattr(home / "root", "user.rechunk")
    except OSError as error:
        raise EnvironmentLack(
            f"files in {home.parent} cannot have extended attributes of users ({error.strerror}), which the workspace "
            "needs: put it on a disk with ext4, XFS or BTRFS (TMPDIR)"
        ) from None


def _copy_attributes(source: str | os.PathLike[str], target: Path) -> None:
    """The root of an overlay shows the attributes of its upper directory."""
    status = os.stat(source)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):  # what an upper directory means by these, a lower one does not
            os.setxattr(target, name, os.getxattr(source, name))


def _descriptor(path: str | os.PathLike[str], opened: ExitStack) -> str:
    """A directory as a path in plain characters, for as long as it is open."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    opened.callback(os.close, descriptor)
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _mount(account: Account, kind: str, options: str, source: str | Path, target: Path) -> None:
    """Raises `OSError` with the words of `mount` when it fails."""
    with Program(account, "mount", "-t", kind, "-o", options, str(source), str(target)) as mounting:
        if mounting.status() != 0:
            raise OSError(" ".join(mounting.complaints.split()))


def _claim(parent: Path) -> tuple[Path, int]:
    """A new workspace's directory, and its lock."""
    try:
        return claim(parent, _PREFIX)
    except OSError as error:
        raise _unusable(parent, error) from None


def _clear(home: Path, lock: int, account: Account, notice: Notice) -> bool:
    """Remove a workspace and its lock. Whether that went well; if not, a notice says what to do."""
    try:
        _unmount_below(home, account)
        shutil.rmtree(home)
    except (OSError, EnvironmentLack) as error:
        notice(f"{home} could not be removed ({error}): unmount it (umount --recursive {home / 'root'}) and remove it")
        return False
    else:
        return True
    finally:
        os.close(lock)


def _unmount_below(home: Path, account: Account) -> None:
    """Unmount what is mounted below a directory, the newest first."""
    deadline = time.monotonic() + _PATIENCE
    while places := _mounted_below(home):
        late = time.monotonic() > deadline
        with Program(account, "umount", *["--lazy"] * late, "--", places[-1]) as unmounting:
            if unmounting.status() != 0:
                if late:
                    raise unmounting.failure()
                time.sleep(0.1)


def _mounted_below(home: Path) -> list[str]:
    """Where something is mounted below a directory, the oldest first."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    places = [_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4]) for line in lines]
    return [os.fsdecode(place) for place in places if place.startswith(os.fsencode(home) + b"/")]


_ESCAPED = re.compile(rb"\\([0-7]{3})")


def _free(path: Path) -> int:
    """Bytes that are free on the file system of a path."""
    return shutil.disk_usage(path).free


def _unusable(parent: Path, error: OSError) -> EnvironmentLack:
    return EnvironmentLack(
        f"{parent} cannot hold the workspace ({error.strerror}): put it in a directory on a local disk that may be "
        "written to (TMPDIR)"
    )
