"""The raw disk of a guest: an ext4 file system with an OSTree system on it, and what a boot loader reads from there.

    install(disk, tree, client, image)       by the programs of the tree itself, as an installer does
    entry = newest_entry(disk)               what boots
    dump(disk, entry.linux, place)           a file of it

Nothing is mounted but in namespaces that end with the command: the file system is made from a directory, and read as a
boot loader reads it, which does not have the kernel's code and replays no journal.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.series import NAMESPACES
from tests.oracles import program
from tests.vm import run

SIZE = "4G"

ARGUMENTS = ("root=LABEL=guest", "rw", "console=ttyS0", "panic=-1", "systemd.show_status=error")
"""Of the kernel. What fails is shown on the console, and a kernel that cannot go on ends the machine."""

ENTRIES = "/boot/loader/entries"

INSTALL = r"""
cd "$0"
mount --bind "$1" sysroot
mount --bind /dev dev
mount --types proc proc proc
for place in run tmp var; do mount --types tmpfs tmpfs "$place"; done
mkdir var/tmp
shift
exec chroot . sh -euc '
ostree admin init-fs --modern /sysroot
ostree admin os-init --sysroot=/sysroot debian
config() { ostree config --repo=/sysroot/ostree/repo set "$@"; }
config sysroot.bootloader none
config sysroot.bootprefix true
config sysroot.readonly true
config core.fsync false
"$@"
config core.fsync true' sh "$@"
"""
"""In the tree `$0`, with the directory `$1` as its /sysroot: make that a system, then run what follows."""


@dataclass(frozen=True)
class Entry:
    """A boot loader entry: what to boot, as the Boot Loader Specification has it."""

    version: int
    linux: str
    initrd: str
    options: str


def install(disk: Path, tree: Path, client: str, image: str) -> None:
    """A new disk with a system that has the image deployed."""
    sysroot = disk.with_suffix(".sysroot")
    sysroot.mkdir(mode=0o755)
    arguments = [f"--karg={argument}" for argument in ARGUMENTS]
    command = (client, "deploy", "/sysroot", image, *arguments)
    run(*NAMESPACES, "env", "--unset=TMPDIR", "sh", "-euc", INSTALL, tree, sysroot, *command)
    run(program("mke2fs", "e2fsprogs"), "-q", "-t", "ext4", "-L", "guest", "-d", sysroot, disk, SIZE)
    # On a disk, a deployment cannot be removed otherwise; in memory, no file system knows of this.
    subprocess.run(["chattr", "-i", *sysroot.glob("ostree/deploy/*/deploy/*.0")], check=False, capture_output=True)
    shutil.rmtree(sysroot)


def newest_entry(disk: Path) -> Entry:
    listed = re.findall(r"^/\d+/\d+/\d+/\d+/(\S+\.conf)/", _debugfs(disk, f"ls -p {ENTRIES}"), re.MULTILINE)
    entries = [parse_entry(_debugfs(disk, f"cat {ENTRIES}/{name}")) for name in listed]
    return max(entries, key=lambda entry: entry.version)


def parse_entry(text: str) -> Entry:
    fields = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return Entry(int(fields["version"]), fields["linux"], fields["initrd"], fields["options"])


def dump(disk: Path, path: str, place: Path) -> Path:
    """Copy a file from the disk."""
    _debugfs(disk, f"dump {path} {place}")
    return place


def _debugfs(disk: Path, request: str) -> str:
    # Without bitmaps (-c), which no boot loader reads: after a power cut, they are wrong until a kernel has been there.
    return run(program("debugfs", "e2fsprogs"), "-c", "-R", request, disk)
