"""Scratch space that is a BTRFS of its own: real ones, on loop devices, and nothing of them stays behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from rechunk_action import workspace as module
from rechunk_action.errors import EnvironmentLack, InputError, Overdue, WorkspaceFull
from rechunk_action.source.programs import own_account
from rechunk_action.workspace import Workspace, clear_stale, workspace
from tests import stores
from tests.disks import disk
from tests.oracles import program, run, scratch

MB = 1_000_000

STRIDE = 7
"""Steps between interrupts: 1 tries them all, in half a minute."""

HOSTILE = [
    "comma,colon:back\\slash",
    " space\tand\nline ",
    "quotes\"'",
    "-o ro",
    "x (deleted)",
    "x//deleted".replace("/", "\\057"),
    "100%s#1",
    "szép\udcff",
]
"""Names that mean something to mount, to mountinfo, or to whoever shows them."""

NO_BTRFS = "grep -v btrfs /proc/filesystems >list; mount --bind list /proc/filesystems && rm list"

RUN = """
import os, signal, sys, time
from pathlib import Path
from rechunk_action import workspace as module
from rechunk_action.errors import RechunkError
from rechunk_action.signals import stop_when_asked

place, kind, *interrupt = sys.argv[1:]

def trace(frame, event, argument):
    if frame.f_code.co_filename == module.__file__:
        if interrupt[1:] == [event, frame.f_code.co_name]:
            os.kill(os.getpid(), getattr(signal, interrupt[0]))
        return trace

stop_when_asked()
if interrupt:
    sys.settrace(trace)
try:
    options = {"size": None, "need": 10**8, "least": 0, "environment": os.environ, "notice": print}
    with module.workspace(Path(place), kind=kind, **options) as space:
        (space.path / "file").write_text("written")
        print("kind:", space.kind, flush=True)
except RechunkError as error:
    print("error:", error)
"""
"""A run in a process of its own. It may get a signal when a function of the module is called or returns."""

MOMENTS = [
    ("return", "_claim"),
    ("call", "_mount"),
    ("return", "_mount_btrfs"),
    ("return", "workspace"),  # into the block
    ("call", "_clear"),
    ("return", "_unmount_below"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk. Nothing may be left in it, nor mounted below it, nor on a loop device."""
    for name, package in [("mkfs.btrfs", "btrfs-progs"), ("mkfs.ext4", "e2fsprogs"), ("setpriv", "util-linux")]:
        program(name, package)
    with scratch() as directory:
        directory.chmod(0o755)
        try:
            yield directory
            assert_clean(directory)
        finally:
            for mounted in reversed(module._mounted_below(directory)):
                run("umount", "--lazy", mounted)


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A disk of 200 MB."""
    with disk(place, "ext4", 200 * MB, "-m", "0") as root:
        yield root
        assert_clean(root)


@pytest.fixture
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESERVE", 32 * MB)


def opened(parent: Path, kind: module.Kind = "btrfs", **options: Any) -> AbstractContextManager[Workspace]:
    defaults: dict[str, Any] = {"size": None, "need": 100 * MB, "least": 0, "environment": os.environ, "notice": fail}
    return workspace(parent, kind=kind, **defaults | options)


def fail(notice: str) -> None:
    raise AssertionError(notice)


def workspaces(parent: Path) -> list[Path]:
    return list(parent.glob("rechunk-workspace-*"))


def loop_devices(below: Path) -> list[str]:
    """Those whose files are below a directory."""
    listed = run("losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE").splitlines()
    return [device for device, file in (line.split(" ", 1) for line in listed) if file.startswith(f"{below}/")]


def copied(device: str) -> bool:
    """Whether somebody has it mounted: who gets mounts of their own (containers, podman) starts with a copy of ours."""
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # of a process that has ended
            if f" {device} " in mounts.read_text(errors="surrogateescape"):
                return True
    return False


def assert_clean(directory: Path) -> None:
    assert module._mounted_below(directory) == []
    assert workspaces(directory) == []
    deadline = time.monotonic() + 2  # whoever looks at new devices (udev) may hold one open for a moment
    while (
        left := [device for device in loop_devices(directory) if not copied(device)]
    ) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def started(place: Path, *interrupt: str, kind: str = "btrfs", wrapper: tuple[str, ...] = ()) -> str:
    """What a run in a process of its own prints. An interrupt is a signal and a moment."""
    command = [*wrapper, sys.executable, "-c", RUN, os.fspath(place), kind, *interrupt]
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    assert "Error" not in done.stderr, done.stderr
    if interrupt:
        assert done.returncode in {-signal.Signals[interrupt[0]], -signal.SIGINT}, done
    return done.stdout


# ---- what it is


def test_it_is_a_compressed_file_system_of_its_own(place: Path) -> None:
    with opened(place, need=2_000 * MB) as space:
        assert (space.kind, space.size) == ("btrfs", 2_000 * MB)
        assert space.path.is_relative_to(place)
        assert os.path.ismount(space.path)
        mount = run("findmnt", "--noheadings", "--raw", "--output", "FSTYPE,OPTIONS", space.path)
        kind, options = mount.split()
        assert kind == "btrfs"
        assert {"rw", "noatime", "compress=zstd:3", "discard"} <= set(options.split(","))
        assert os.statvfs(space.path).f_blocks * os.statvfs(space.path).f_frsize == 2_000 * MB // 4096 * 4096
        assert space.directory("made") == space.path / "made"
        os.setxattr(space.path / "made", "user.ostreemeta", b"\0" * 1000)
        space.check()
    assert not space.path.exists()


def test_a_plain_directory_does_without_root_s_programs(place: Path) -> None:
    with opened(place, "none", environment={"PATH": "/nowhere"}) as space:
        assert space.kind == "directory"
        assert not os.path.ismount(space.path)
        assert 0 < space.size < shutil.disk_usage(place).free
        space.directory("made").joinpath("file").touch()
        space.check()
    assert not space.path.exists()


def test_nobody_else_may_look_into_it(place: Path) -> None:
    with opened(place) as space:
        assert stat.S_IMODE(space.path.parent.stat().st_mode) == 0o700


def test_a_relative_parent_gives_an_absolute_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "link").symlink_to(".")
    with opened(Path("link")) as space:
        assert space.path.parent.parent == place


@pytest.mark.usefixtures("small_reserve")
@pytest.mark.parametrize("kind", ["btrfs", "none"])
def test_what_it_takes_on_the_disk_is_known(small_disk: Path, kind: module.Kind) -> None:
    with opened(small_disk, kind) as space:
        before = space.used()
        with (space.path / "file").open("wb") as file:
            file.write(os.urandom(20 * MB))
            os.fsync(file)
        assert 15 * MB < space.used() - before < 30 * MB
        (space.path / "file").unlink()
        run("sync", "--file-system", space.path)
        assert space.used() - before < 5 * MB


@pytest.mark.parametrize("name", HOSTILE)
def test_its_parent_may_have_any_name(place: Path, name: str) -> None:
    parent = place / name
    parent.mkdir()
    (parent / "tree").mkdir()
    (parent / "tree" / "file").touch()
    with opened(parent) as space:
        assert os.path.ismount(space.path)
        view = space.overlay(parent / "tree", "view")
        assert os.listdir(view) == ["file"]
    assert_clean(parent)


# ---- how large it is


@pytest.mark.usefixtures("small_reserve")
def test_it_is_as_large_as_the_need_the_disk_and_the_most_that_is_sensible(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(**options: Any) -> int:
        with opened(small_disk, **options) as space:
            return space.size

    free = shutil.disk_usage(small_disk).free
    assert size(need=90 * MB) == 90 * MB
    assert size(need=0) == 64 * MB
    assert size(need=0, least=20 * MB) == 84 * MB
    assert size(need=10_000 * MB) == pytest.approx(free - 32 * MB, abs=MB)
    monkeypatch.setattr(module, "LARGEST", 100 * MB)
    assert size(need=10_000 * MB) == 100 * MB


@pytest.mark.usefixtures("small_reserve")
def test_a_size_that_was_asked_for_may_be_larger_than_the_disk(small_disk: Path) -> None:
    notices: list[str] = []
    with opened(small_disk, size=80_000 * MB, notice=notices.append) as space:
        assert space.size == 80_000 * MB
    assert len(notices) == 1
    assert notices[0].startswith(f"the workspace may grow to 80.0 GB, but {small_disk} has only 0.2 GB free: ")


def test_a_size_that_cannot_be_enough_is_told(place: Path) -> None:
    with pytest.raises(InputError, match=r"a workspace of 3\.0 GB is too small .*: make it 4\.0 GB or more"):
        opened(place, size=3_000 * MB, least=3_000 * MB).__enter__()


@pytest.mark.parametrize("kind", ["auto", "btrfs", "none"])
def test_a_disk_with_too_little_space_is_told_before_anything_is_made(small_disk: Path, kind: module.Kind) -> None:
    before = small_disk.stat().st_mtime_ns
    needed = rf"takes at least 3\.0 GB, and {small_disk} has 0\.2 GB free: free some space, or .* \(TMPDIR\)"
    with pytest.raises(EnvironmentLack, match=needed):
        opened(small_disk, kind, least=2_000 * MB).__enter__()
    assert small_disk.stat().st_mtime_ns == before


def test_a_parent_that_is_no_place_for_it_is_told(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(EnvironmentLack, match=r"/missing cannot hold the workspace \(No such file or directory\): put"):
        opened(place / "missing").__enter__()
    with pytest.raises(EnvironmentLack, match=r"/file cannot hold the workspace \(Not a directory\): put"):
        opened(place / "file").__enter__()


@pytest.mark.usefixtures("small_reserve")
def test_a_parent_that_cannot_be_written_to_is_told(small_disk: Path) -> None:
    run("mount", "-o", "remount,ro", small_disk)
    with pytest.raises(EnvironmentLack, match=r" cannot hold the workspace \(Read-only file system\): put it"):
        opened(small_disk).__enter__()


# ---- when space runs out


def filled(directory: Path, check: Callable[[], None]) -> None:
    """Write, and check, until something is raised."""
    with (directory / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(os.urandom(4 * MB))
            os.fsync(file)
            check()


@pytest.mark.usefixtures("small_reserve")
@pytest.mark.parametrize("kind", ["btrfs", "none"])
def test_the_disk_below_is_watched(small_disk: Path, kind: module.Kind) -> None:
    message = rf"the disk below the workspace is nearly full \((2\d|3[01]) MB are free in {small_disk}\): free some"
    with opened(small_disk, kind, size=900 * MB, notice=lambda _: None) as space:
        with pytest.raises(WorkspaceFull, match=message):
            filled(space.path, space.check)
        (space.path / "more").write_bytes(os.urandom(4 * MB))  # there is time to stop


@pytest.mark.usefixtures("small_reserve")
def test_the_workspace_itself_is_watched(place: Path) -> None:
    message = r"the workspace is nearly full \(\d+ MB of its 0\.2 GB are free, and [\d.]+ GB are below .* larger size"
    with opened(place, size=160 * MB) as space, pytest.raises(WorkspaceFull, match=message):
        filled(space.path, space.check)


@pytest.mark.usefixtures("small_reserve")
def test_a_workspace_whose_disk_is_full_is_told_and_removed(small_disk: Path) -> None:
    with opened(small_disk, size=900 * MB, notice=lambda _: None) as space:
        with pytest.raises(OSError, match=rf"Errno ({errno.EIO}|{errno.ENOSPC}|{errno.EROFS})\b"):
            filled(space.path, lambda: None)
        with pytest.raises(WorkspaceFull, match="the disk below the workspace is nearly full"):
            space.check()
    assert_clean(small_disk)


# ---- what a machine can lack


def test_a_missing_mkfs_is_told(place: Path) -> None:
    with pytest.raises(EnvironmentLack, match=r"mkfs.btrfs is not installed: install it \(apt-get install btrfs-progs"):
        opened(place, environment={"PATH": "/nowhere"}).__enter__()


@pytest.mark.parametrize(
    ("wrapper", "told"),
    [
        ("setpriv --bounding-set -sys_admin --inh-caps -sys_admin", "root has no right to mount a BTRFS: run this as"),
        ('unshare -m sh -c \'mount -t tmpfs none /dev && exec "$0" "$@"\'', "there are no loop devices (/dev/loop-c"),
        (
            f'unshare -m sh -c \'{NO_BTRFS} && exec "$0" "$@"\'',
            "has no BTRFS: load its module (modprobe btrfs)",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["btrfs", "auto"])
def test_a_machine_that_can_have_no_btrfs_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, wrapper: str, told: str, kind: str
) -> None:
    monkeypatch.chdir(place)
    said = started(place, kind=kind, wrapper=("sh", "-c", f'exec {wrapper} "$0" "$@"'))
    if kind == "btrfs":
        assert said.startswith("error: ")
        assert told in said
    else:
        notice, made = said.splitlines()
        assert notice.startswith("the workspace is a plain directory and not compressed, since there can be no BTRFS: ")
        assert told in notice
        assert made == "kind: directory"


def test_somebody_without_rights_has_a_directory(place: Path) -> None:
    place.chmod(0o777)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert "nobody has no right to mount a BTRFS" in started(place, kind="btrfs", wrapper=nobody)
    assert started(place, kind="auto", wrapper=nobody).endswith("kind: directory\n")


@pytest.mark.parametrize("command", ["mkfs.btrfs", "mount"])
def test_a_program_that_fails_is_told(place: Path, command: str) -> None:
    fake = place / "bin" / command
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no more devices >&2; exit 32\n")
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    with pytest.raises(EnvironmentLack, match=r"\(no more devices\): "):
        opened(place, environment=environment).__enter__()
    notices: list[str] = []
    with opened(place, "auto", environment=environment, notice=notices.append) as space:
        assert space.kind == "directory"
        assert os.listdir(space.path.parent) == ["root"]
    assert [notice.count("no more devices") for notice in notices] == [1]


def test_a_file_system_without_attributes_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESERVE", 0)  # this file system does not know how large it is
    (place / "memory").mkdir()
    run("mount", "-t", "ramfs", "none", place / "memory")
    with pytest.raises(EnvironmentLack, match=r"files in .*/memory cannot have extended attributes .*\(TMPDIR\)"):
        opened(place / "memory", "none").__enter__()
    assert not os.listdir(place / "memory")
    run("umount", place / "memory")


# ---- ways out


@pytest.mark.parametrize("kind", ["btrfs", "none"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, Overdue])
def test_nothing_stays_behind_when_the_work_fails(place: Path, error: type[BaseException], kind: module.Kind) -> None:
    def work() -> None:
        with opened(place, kind) as space:
            (space.path / "file").touch()
            raise error

    with pytest.raises(error):
        work()
    assert_clean(place)


def test_nothing_stays_behind_when_it_is_interrupted_at_any_step(place: Path) -> None:
    """At a line of the module, one in so many of those that it runs through."""
    steps = itertools.takewhile(lambda step: not went_through(place, step), range(1, 1000, STRIDE))
    assert len(list(steps)) * STRIDE > 100


def went_through(place: Path, step: int) -> bool:
    """Whether a run reaches its end before it is interrupted."""
    left = step

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    def work() -> bool:
        before = sys.gettrace()
        try:
            sys.settrace(trace)
            with opened(place) as space:
                (space.path / "file").touch()
        except KeyboardInterrupt:
            return False
        finally:
            sys.settrace(before)
        return True

    ended = work() and left > 0
    gc.collect()
    assert module._mounted_below(place) == [], f"step {step}"
    assert workspaces(place) == [], f"step {step}"
    return ended


@pytest.mark.parametrize("command", ["mkfs.btrfs", "mount"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_nothing_stays_behind_when_a_program_is_interrupted(place: Path, command: str, when: str) -> None:
    fake = place / command
    real = f'PATH=${{PATH#*:}} {command} "$@"'
    wait = "touch $0.mark; sleep 0.5"
    fake.write_text("#!/bin/sh\n" + "\n".join([wait, real] if when == "before" else [real, wait]))
    fake.chmod(0o755)
    environment = {"PATH": f"{place}:{os.environ['PATH']}"}
    with stores.interrupted(place / f"{command}.mark"), opened(place, environment=environment):
        pass


def test_nothing_stays_behind_when_time_is_up(place: Path) -> None:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Overdue

    fake = place / "mount"
    fake.write_text('#!/bin/sh\nPATH=${PATH#*:} mount "$@"; sleep 60\n')
    fake.chmod(0o755)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(Overdue):
            opened(place, environment={"PATH": f"{place}:{os.environ['PATH']}"}).__enter__()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("moment", MOMENTS, ids=" ".join)
def test_nothing_stays_behind_when_the_process_is_asked_to_end(
    place: Path, number: str, moment: tuple[str, str]
) -> None:
    started(place, number, *moment)
    assert_clean(place)


def test_what_is_mounted_in_it_goes_with_it(place: Path) -> None:
    (place / "tree" / "inner").mkdir(parents=True)
    with opened(place) as space:
        run("mount", "-t", "tmpfs", "none", space.directory("memory"))
        run("mount", "-t", "tmpfs", "none", space.path / "memory")
        run("mount", "--bind", place / "tree", space.directory("bound tree"))
        run("mount", "-t", "tmpfs", "none", space.path / "bound tree" / "inner")
        space.overlay(place / "tree", "view")
    assert_clean(place)
    assert (place / "tree" / "inner").is_dir()


def test_somebody_who_is_still_in_it_does_not_keep_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    with opened(place) as space:
        guest = subprocess.Popen(["sleep", "60"], cwd=space.directory("somewhere"))
    assert not workspaces(place)
    assert loop_devices(place)
    guest.kill()
    guest.wait()
    assert_clean(place)


def test_somebody_who_leaves_in_time_is_waited_for(place: Path) -> None:
    with opened(place) as space:
        guest = subprocess.Popen(["sleep", "0.5"], cwd=space.path)
    assert guest.wait() == 0
    assert_clean(place)


def test_what_cannot_be_unmounted_is_told_and_nothing_is_removed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    fake = place / "umount"
    fake.write_text("#!/bin/sh\necho target is busy >&2; exit 32\n")
    fake.chmod(0o755)
    notices: list[str] = []
    environment = {"PATH": f"{place}:{os.environ['PATH']}"}
    with opened(place, environment=environment, notice=notices.append) as space:
        (space.path / "file").touch()
    assert len(notices) == 1
    assert notices[0].startswith(f"{space.path.parent} could not be removed (umount --lazy ")
    assert notices[0].endswith(f": unmount it (umount --recursive {space.path}) and remove it")
    assert (space.path / "file").exists()
    assert clear_stale(place, environment=os.environ, notice=fail) == [space.path.parent]


# ---- what others have left, and what is theirs


@pytest.mark.parametrize("moment", MOMENTS, ids=" ".join)
def test_a_killed_run_is_cleared_by_the_next(place: Path, moment: tuple[str, str]) -> None:
    started(place, "SIGKILL", *moment)
    [left] = workspaces(place)
    notices: list[str] = []
    with opened(place, notice=notices.append) as space:
        assert workspaces(place) == [space.path.parent]
    assert notices == [f"removed {left}, which a run that was killed had left behind"]


def test_what_a_killed_run_has_left_can_be_cleared_alone(place: Path) -> None:
    started(place, "SIGKILL", "return", "workspace")
    assert module._mounted_below(place)
    left = workspaces(place)
    assert clear_stale(place, environment=os.environ, notice=fail) == left
    assert_clean(place)
    assert clear_stale(place, environment=os.environ, notice=fail) == []


def test_two_at_once_leave_each_other_alone(place: Path) -> None:
    with opened(place) as one:
        (one.path / "file").touch()
        with opened(place) as other:
            assert one.path != other.path
            assert clear_stale(place, environment=os.environ, notice=fail) == []
        assert (one.path / "file").exists()
        assert "kind: btrfs" in started(place)
        assert (one.path / "file").exists()


def test_a_new_workspace_is_never_taken_for_a_stale_one(place: Path) -> None:
    """Another run may look at it before it is locked."""
    done = threading.Event()

    def clear() -> None:
        while not done.is_set():
            clear_stale(place, environment=os.environ, notice=notices.append)

    notices: list[str] = []
    clearing = threading.Thread(target=clear)
    clearing.start()
    try:
        for _ in range(100):
            home, lock = module._claim(place)
            (home / "root").mkdir()
            assert module._clear(home, lock, own_account(os.environ), fail)
    finally:
        done.set()
        clearing.join()
    assert notices == []


def test_what_only_looks_like_a_workspace_of_ours_stays(place: Path) -> None:
    victim = place / "victim"
    victim.mkdir()
    (place / "rechunk-workspace-link").symlink_to(victim)
    (place / "rechunk-workspace-file").touch()
    (place / "rechunk-workspace-theirs").mkdir()
    os.chown(place / "rechunk-workspace-theirs", 65534, 65534)
    before = sorted(place.iterdir())
    assert clear_stale(place, environment=os.environ, notice=fail) == []
    assert sorted(place.iterdir()) == before
    for path in workspaces(place):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_link_in_a_stale_workspace_is_not_followed(place: Path) -> None:
    victim = place / "victim"
    victim.mkdir()
    (victim / "file").touch()
    stale = place / "rechunk-workspace-stale"
    stale.mkdir()
    (stale / "root").symlink_to(victim)
    assert clear_stale(place, environment=os.environ, notice=fail) == [stale]
    assert (victim / "file").exists()


# ---- writable views


def lower_tree(root: Path) -> Path:
    """What is easily lost or changed in a view of a tree."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "etc/deep/er").mkdir(parents=True)
    (root / "usr/bin/su").write_bytes(b"su")
    os.chown(root / "usr/bin/su", 7, 3000)
    (root / "usr/bin/su").chmod(0o4755)
    os.link(root / "usr/bin/su", root / "usr/bin/also su")
    os.setxattr(root / "usr/bin/su", "security.capability", stores.CAPABILITY)
    os.setxattr(root / "etc", "user.component", b"base\0")
    (root / "usr/bin/vi").symlink_to("vim")
    for name in HOSTILE:
        (root / "etc/deep/er" / name).write_text(name, errors="surrogateescape")
    os.chown(root, 5, 6)
    root.chmod(0o1751)
    os.setxattr(root, "user.root", b"1")
    return root


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for path in [directory, *[f"{directory}/{name}" for name in names + files]]:
            status = os.lstat(path)
            xattrs = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }
            content = Path(path).read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[os.path.relpath(path, root)] = (
                *(status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_ino),
                *(status.st_mtime_ns, status.st_ctime_ns, xattrs, content),
            )
    return found


def shown(root: Path) -> dict[str, tuple[object, ...]]:
    """What a view has of a snapshot: not the numbers of inodes, nor times of their own."""
    return {path: (*facts[:3], facts[7], facts[8]) for path, facts in snapshot(root).items()}


def change_all(view: Path) -> None:
    (view / "usr/bin/su").write_bytes(b"other")
    (view / "usr/bin/also su").chmod(0o600)
    os.link(view / "usr/bin/vi", view / "usr/bin/ex")
    os.removexattr(view / "etc", "user.component")
    os.setxattr(view / "usr/bin/also su", "user.new", b"1")
    os.rename(view / "etc", view / "usr/etc")
    (view / "usr/etc/deep/er" / HOSTILE[0]).unlink()
    os.rename(view / "usr/etc/deep/er" / HOSTILE[1], view / "moved")
    shutil.rmtree(view / "usr/bin")
    (view / "usr/bin").mkdir()
    (view / "usr/bin/new").touch()
    view.chmod(0o700)
    os.chown(view, 0, 0)


@pytest.mark.parametrize("kind", ["btrfs", "none"])
@pytest.mark.parametrize("name", ["tree", *HOSTILE[:3]])
def test_a_view_shows_the_tree_and_never_writes_to_it(place: Path, kind: module.Kind, name: str) -> None:
    lower = lower_tree(place / name)
    before = snapshot(lower)
    with opened(place, kind) as space:
        view = space.overlay(lower, "view")
        assert shown(view) == shown(lower)
        change_all(view)
        assert sorted(os.listdir(view)) == ["moved", "usr"]
        assert os.listdir(view / "usr/bin") == ["new"]
        assert len(os.listdir(view / "usr/etc/deep/er")) == len(HOSTILE) - 2
        space.check()
    assert snapshot(lower) == before


def test_a_view_can_be_of_a_mounted_image(place: Path) -> None:
    """As podman mounts them: layers over each other, with whiteouts."""
    bottom = lower_tree(place / "bottom")
    (place / "top/usr").mkdir(parents=True)
    os.mknod(place / "top/usr/bin", 0o600 | stat.S_IFCHR, 0)
    (place / "top/etc").mkdir()
    os.setxattr(place / "top/etc", "trusted.overlay.opaque", b"y")
    (place / "image").mkdir()
    layers = f"lowerdir={place / 'top'}:{bottom}"
    run("mount", "-t", "overlay", "-o", layers, "overlay", place / "image")
    try:
        with opened(place) as space:
            view = space.overlay(place / "image", "view")
            assert shown(view) == shown(place / "image")
            assert sorted(shown(view)) == [".", "etc", "usr"]
            (view / "usr/bin").mkdir()
            (view / "etc/new").touch()
            other = space.overlay(place / "image", "other")
            assert sorted(shown(other)) == [".", "etc", "usr"]
            with pytest.raises(EnvironmentLack, match=r"a writable view of .*/view cannot be mounted in .*: copy the"):
                space.overlay(view, "too deep")
            assert not (space.path / "too deep").exists()
            space.directory("too deep")
        assert sorted(shown(place / "image")) == [".", "etc", "usr"]
    finally:
        run("umount", place / "image")


def test_a_view_of_nothing_is_told(place: Path) -> None:
    with opened(place, "none") as space:
        with pytest.raises(EnvironmentLack, match=r"of /nowhere cannot be mounted in .*No such file"):
            space.overlay("/nowhere", "view")
        assert os.listdir(space.path) == []


def test_no_descriptor_stays_open(place: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with opened(place) as space:
        space.overlay("/etc", "view")
        with contextlib.suppress(EnvironmentLack):
            space.overlay("/nowhere", "other")
    assert len(os.listdir("/proc/self/fd")) == before
