"""A virtual machine that boots a disk as a boot loader would, and does what it is told over a serial port.

    with boot(disk, home) as guest:                the newest boot loader entry of the disk
        guest.run("ostree admin status")           a shell's command in the guest; what it prints
        guest.check_health()                       no unit has failed, none is still starting
        guest.fetch("usr", "etc", place=place)        directories as the guest sees them
        guest.reboot()                             shuts down in order; boot the disk again to go on
        guest.cut_power()                          or at once, in the middle of anything

Whatever is not as it should be raises `GuestFailed`, with the last lines of the console. The machine is gone when the
context is left, and when this process dies.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.oracles import program
from tests.vm import run
from tests.vm.disk import dump, newest_entry

BOOT = 900.0
COMMAND = 300.0
SHUTDOWN = 300.0
"""Seconds after which the guest counts as hung. Software emulation on a busy machine takes a quarter of them."""

PATIENCE = (
    "no_timer_check",
    f"systemd.default_timeout_start_sec={BOOT:.0f}",
    f"systemd.default_device_timeout_sec={BOOT:.0f}",
)
"""Of the kernel: a busy machine is no fault of the guest's. The first is what the kernel does by itself under KVM."""

SPARED = (
    *("e2scrub_reap", "getty@tty1", "ldconfig", "modprobe@drm", "modprobe@efi_pstore", "serial-getty@ttyS0"),
    "systemd-journal-catalog-update",
)
FRUGAL = ("8250.nr_uarts=1", *(f"systemd.mask={service}.service" for service in SPARED))
"""What nobody misses here, but software emulation would do at length."""

PROBE = 15.0
"""Seconds in which a kernel has found no root file system, in hardware."""

QEMU = ("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot")

LINES = 40
"""Of the console, in an error."""

HOST = "10.0.2.2"
"""How a guest reaches this machine's loopback."""

MARK = "VM-TEST: "


class GuestFailed(Exception):
    """The guest did not do what it had to."""


class Guest:
    """A running machine."""

    def __init__(self, process: subprocess.Popen[bytes], agent: socket.socket, home: Path) -> None:
        self._process = process
        self._agent = agent
        self._home = home
        self._heard = b""

    def run(self, command: str, *, timeout: float = COMMAND) -> str:
        """Run a line of shell in the guest, for all that it prints. A failure of it is one of the guest."""
        self._agent.sendall(command.encode() + b"\n")
        output, status = self.wait_for("exit ", f"{command!r} in the guest", timeout)
        if status != "0":
            raise self.failed(f"{command!r} ended with {status} in the guest:\n{output}")
        return output

    def check_health(self) -> None:
        state = self.run("systemctl is-system-running --wait || true", timeout=BOOT).strip()
        if state != "running":
            units = self.run("systemctl --failed --no-legend --plain")
            raise self.failed(f"the guest's system is {state}; failed units:\n{units}")

    def fetch(self, *paths: str, place: Path) -> Path:
        """Copy directories of the guest, as it sees them, into a new one; not what is mounted in them."""
        files = shlex.join(path.lstrip("/") for path in paths)
        attributes = "--xattrs --xattrs-include='*'"
        self.run(
            f"tar --numeric-owner {attributes} --one-file-system -C / -cf /dev/virtio-ports/files {files}", timeout=BOOT
        )
        place.mkdir()
        run("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", self._home / "files", "-C", place)
        os.truncate(self._home / "files", 0)
        return place

    def reboot(self) -> None:
        """Shut down in order. What boots next is up to who boots it."""
        self._agent.sendall(b"systemctl reboot\n")
        try:
            self._process.wait(SHUTDOWN)
        except subprocess.TimeoutExpired:
            raise self.failed(f"the guest does not shut down within {SHUTDOWN:.0f} seconds") from None

    def processor_time(self) -> float:
        """Seconds of processors that the machine has taken so far: they say more than a clock on a busy machine."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cut_power(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait_for(self, mark: str, what: str, timeout: float) -> tuple[str, str]:
        """What the guest prints before a line with our mark, and the rest of that line."""
        until = time.monotonic() + timeout
        wanted = (MARK + mark).encode()
        while True:
            before, found, after = self._heard.partition(wanted)
            if found and b"\n" in after:
                line, _, self._heard = after.partition(b"\n")
                return before.decode(errors="replace"), line.decode()
            self._agent.settimeout(max(0.01, until - time.monotonic()))
            try:
                received = self._agent.recv(1 << 16)
            except TimeoutError:
                raise self.failed(f"{what} takes more than {timeout:.0f} seconds") from None
            if not received:
                raise self.failed(f"the machine has ended; waited for {what}")
            self._heard += received

    def failed(self, what: str) -> GuestFailed:
        console = (self._home / "console").read_text(errors="replace").splitlines()
        return GuestFailed("\n".join([what, "The last lines of its console:", *console[-LINES:]]))


@contextmanager
def boot(disk: Path, home: Path, *, arguments: str = "") -> Iterator[Guest]:
    """Boot the newest entry of a disk, with more arguments for the kernel. `home` is for the machine's files."""
    entry = newest_entry(disk)
    kernel, initrd = dump(disk, entry.linux, home / "kernel"), dump(disk, entry.initrd, home / "initrd")
    command: tuple[str | Path, ...] = (
        *("setpriv", "--pdeathsig", "KILL", program(QEMU[0], "qemu-system-x86"), *QEMU[1:]),
        *("-m", "2048", *acceleration(kernel)),
        *("-kernel", kernel, "-initrd", initrd, "-append", " ".join((entry.options, *PATIENCE, *FRUGAL, arguments))),
        # What the guest has written is safe from its end, if not from this machine's.
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
        *("-nic", "user,model=virtio-net-pci"),
        *("-serial", f"file:{home / 'console'}"),
        *("-device", "virtio-serial", "-chardev", f"socket,id=agent,path={home / 'agent'},server=on,wait=on"),
        *("-device", "virtserialport,chardev=agent,name=agent"),
        *("-chardev", f"file,id=files,path={home / 'files'},append=on"),
        *("-device", "virtserialport,chardev=files,name=files"),
    )
    (home / "agent").unlink(missing_ok=True)
    with (
        (home / "qemu.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
        socket.socket(socket.AF_UNIX) as agent,
    ):
        try:
            _connect(agent, home, process)
            guest = Guest(process, agent, home)
            guest.wait_for("ready", "the guest to boot", BOOT)
            yield guest
        finally:
            process.kill()


@cache
def acceleration(kernel: Path) -> tuple[str, ...]:
    """How qemu runs a guest: in hardware where that works, else in software, which takes many times as long.

    A machine that is a virtual one itself may have /dev/kvm, and no KVM that boots a kernel. Where one boots, it misses
    its root file system, and ends.
    """
    hardware = ("-accel", "kvm", "-cpu", "host", "-smp", "2")
    # With a thread for each of several processors, qemu 7.2 has crashed kernels while they changed their own code.
    # Programs that are told of fast string instructions (erms, fsrm) use them, and qemu does those byte by byte.
    software = ("-accel", "tcg", "-cpu", "max,-erms,-fsrm", "-smp", "1")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return software
    command = (*QEMU, "-m", "512", *hardware, "-kernel", kernel, "-append", "panic=-1")
    try:
        tried = subprocess.run(command, check=False, timeout=PROBE, capture_output=True)
    except subprocess.TimeoutExpired:
        return software
    return software if tried.returncode else hardware


def _connect(agent: socket.socket, home: Path, process: subprocess.Popen[bytes]) -> None:
    """qemu waits for somebody at the socket, and somebody has to wait for the socket."""
    until = time.monotonic() + COMMAND
    while time.monotonic() < until and process.poll() is None:
        try:
            agent.connect(str(home / "agent"))
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
        else:
            return
    raise GuestFailed(f"qemu does not start: {(home / 'qemu.log').read_text()}")
