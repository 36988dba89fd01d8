"""Faults of the system, put into a running program: one call fails, or the program is killed just before it.

    run = traced(command, below=[output, scratch])                      what it calls on files there, in order
    run = traced(command, below=[output, scratch], fault=Fault(17, "ENOSPC"))     its 17th such call fails
    run = traced(command, below=[...], fault=Fault(17, "ENOSPC", "write"))     the first `write` from there on
    run = traced(command, below=[...], fault=Fault(17, "KILL"))         it is killed instead

Calls are counted over all threads of the program, which `strace --inject` counts one by one. A fault is one of the
kernel's errors, `KILL`, or `SHORT`: half of what was to be written is, as on a disk that gets full. With the first call
on it that fails, a connection is lost.

The kernel stops the program at those calls alone (seccomp, ptrace), so that everything else runs as fast as ever. This
module is also the tracer, a program of its own: `python -m tests.injection --help`. It knows the calls of x86-64.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Call:
    """A call of the program: its name, and the file, or `socket`."""

    name: str
    place: str


@dataclass(frozen=True)
class Fault:
    """What happens to the call of this number, from 1 on: an error's name, `KILL` or `SHORT`.

    With the `name` of a call, it happens to the first of that name from there on: threads do not always come in the
    same order, and opening a file, say, cannot fail as a connection does.
    """

    number: int
    kind: str
    name: str = ""


@dataclass(frozen=True)
class Run:
    """A program that has ended. `calls` are those that could have been broken, the one that was being the last."""

    code: int
    out: str
    err: str
    calls: Sequence[Call]


def traced(
    command: Sequence[str | Path],
    *,
    below: Sequence[Path],
    network: bool = False,
    fault: Fault | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Run:
    """Run a program to its end. Its calls are those that change something in directories, and with `network` those
    that send or receive.
    """
    with tempfile.NamedTemporaryFile(prefix="calls-", suffix=".json") as log:
        options = ["--log", log.name, *(f"--below={path}" for path in below), *["--network"] * network]
        if fault:
            options += ["--fault", str(fault.number), fault.kind, fault.name]
        done = subprocess.run(
            [sys.executable, __file__, *options, "--", *command],
            check=False,
            text=True,
            capture_output=True,
            cwd=directory,
            env=dict(environment) if environment is not None else None,
            timeout=120,
        )
        told = json.loads(Path(log.name).read_bytes() or b"null")
    if told is None:
        raise RuntimeError(f"the tracer failed: {done.stderr}")
    return Run(told["code"], done.stdout, done.stderr, [Call(*call) for call in told["calls"]])


# The tracer

_BY_FILE = {
    "write": 1,
    "close": 3,
    "pwrite64": 18,
    "writev": 20,
    "sendfile": 40,
    "fsync": 74,
    "fdatasync": 75,
    "ftruncate": 77,
    "fchmod": 91,
    "fallocate": 285,
}
"""Calls whose first argument is an open file."""

_BY_PATH = {"truncate": 76, "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "chmod": 90}
"""Calls whose first argument is a path."""

_BY_PLACE = {"mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265, "fchmodat": 268, "renameat2": 316}
"""Calls whose first two arguments are a directory and a path in it."""

_OTHERS = {"open": 2, "openat": 257, "symlink": 88, "copy_file_range": 326}

_NETWORK = {"connect": 42, "sendto": 44, "recvfrom": 45}

_NAMES = {
    number: name for calls in (_BY_FILE, _BY_PATH, _BY_PLACE, _OTHERS, _NETWORK) for name, number in calls.items()
}

_TRACEME, _CONT, _GETREGS, _SETREGS, _SETOPTIONS = 0, 7, 12, 13, 0x4200
_EVENT_SECCOMP = 7
_OPTIONS = 0x100000 | 0x80 | 0x10 | 0x8 | 0x4 | 0x2  # kill with us; seccomp; exec, clone, vfork, fork
_WALL = 0x40000000
_REGISTERS = 27
_PIDFD_GETFD = 438
_RAX, _RDX, _RSI, _RDI, _CALL = 10, 12, 13, 14, 15
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a program with one fault of the system in it.")
    parser.add_argument("--log", type=Path, required=True, help="file for what was called, as JSON")
    parser.add_argument("--below", type=os.path.realpath, action="append", default=[], help="count calls in DIRECTORY")
    parser.add_argument("--network", action="store_true", help="count what sends and receives")
    parser.add_argument("--fault", nargs=3, metavar=("NUMBER", "KIND", "NAME"), help="17 ENOSPC write, 17 KILL ''")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    fault = Fault(int(given.fault[0]), *given.fault[1:]) if given.fault else None
    tracer = _Tracer([path.rstrip("/") + "/" for path in given.below], fault, network=given.network)
    code = tracer.run(given.command)
    calls = [(call.name, call.place) for call in tracer.calls]
    given.log.write_text(json.dumps({"code": code, "calls": calls}))


class _Tracer:
    def __init__(self, below: Sequence[str], fault: Fault | None, *, network: bool) -> None:
        self.calls: list[Call] = []
        self._below = below
        self._fault = fault
        self._network = network

    def run(self, command: Sequence[str]) -> int:
        """Run a program. Returns its exit status, that of a signal below zero."""
        main = os.fork()
        if main == 0:
            _become(command)
        os.waitpid(main, 0)
        _ptrace(_SETOPTIONS, main, _OPTIONS)
        _ptrace(_CONT, main, 0)
        known = {main}
        while True:
            task, status = os.waitpid(-1, _WALL)
            if not os.WIFSTOPPED(status):
                if task == main:
                    return os.waitstatus_to_exitcode(status)
                continue
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == _EVENT_SECCOMP:
                self._called(main, task)
            # A task's first stop is how it comes to be traced, and no signal to it.
            started = task not in known and number == signal.SIGSTOP
            known.add(task)
            _resume(task, 0 if event or started else number)

    def _called(self, main: int, task: int) -> None:
        registers = (ctypes.c_ulong * _REGISTERS)()
        _ptrace(_GETREGS, task, registers)
        name = _NAMES[registers[_CALL]]
        place = self._place(task, name, registers)
        if place is None:
            return
        self.calls.append(Call(name, place))
        fault = self._fault
        if fault is None or len(self.calls) < fault.number or fault.name not in ("", name):
            return
        self._fault, kind = None, fault.kind
        if kind == "KILL":
            os.kill(main, signal.SIGKILL)
            return
        if kind == "SHORT":
            registers[_RDX] = max(1, registers[_RDX] // 2)
        else:
            registers[_CALL] = ctypes.c_ulong(-1).value
            registers[_RAX] = ctypes.c_ulong(-getattr(errno, kind)).value
            if name in _NETWORK:
                _disconnect(main, registers[_RDI])
        _ptrace(_SETREGS, task, registers)

    def _place(self, task: int, name: str, registers: ctypes.Array[ctypes.c_ulong]) -> str | None:
        """What the call is for, if it counts."""
        first, second, third = registers[_RDI], registers[_RSI], registers[_RDX]
        if name in _NETWORK:
            return "socket" if self._network else None
        if name in _BY_FILE:
            place = _opened(task, first)
        elif name == "copy_file_range":
            place = _opened(task, third)
        elif name == "symlink":
            place = _named(task, _AT_FDCWD, second)
        elif name in _BY_PATH:
            place = _named(task, _AT_FDCWD, first)
        else:
            at, path, flags = (_AT_FDCWD, first, second) if name == "open" else (first, second, third)
            if name in ("open", "openat") and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return None
            place = _named(task, ctypes.c_int(at).value, path)
        if name == "close" and place.endswith(" (deleted)"):  # nothing that anybody could miss
            return None
        return place if place.startswith(tuple(self._below)) else None


def _become(command: Sequence[str]) -> NoReturn:
    """Be the program, stopped by the kernel at each of the calls."""
    _ptrace(_TRACEME, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    program = _filter(list(_NAMES))
    code = ctypes.create_string_buffer(program)
    rules = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    if _libc.prctl(38, 1, 0, 0, 0) or _libc.prctl(22, 2, ctypes.byref(rules), 0, 0):  # no new privileges; seccomp
        raise OSError(ctypes.get_errno(), "no filter")
    os.execvp(command[0], list(command))  # noqa: S606  # its arguments are those of a test


def _filter(numbers: Sequence[int]) -> bytes:
    """A program for the kernel (BPF): stop at these calls, allow all others."""
    load, equal, answer = 0x20, 0x15, 0x06
    stop, allow = 0x7FF00000, 0x7FFF0000
    length = len(numbers)
    code = [(load, 0, 0, 4), (equal, 0, length + 1, 0xC000003E), (load, 0, 0, 0)]
    code += [(equal, length - at, 0, number) for at, number in enumerate(numbers)]
    code += [(answer, 0, 0, allow), (answer, 0, 0, stop)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _opened(task: int, file: int) -> str:
    try:
        return os.readlink(f"/proc/{task}/fd/{ctypes.c_int(file).value}")
    except OSError:
        return ""


def _named(task: int, directory: int, address: int) -> str:
    with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        # Not past the end of a page: the next one may not be there.
        name = memory.read(4096 - address % 4096)
        if b"\0" not in name:
            name += memory.read(4096)
    name, _, _ = name.partition(b"\0")
    above = os.readlink(f"/proc/{task}/cwd") if directory == _AT_FDCWD else _opened(task, directory)
    return os.path.normpath(os.path.join(above, os.fsdecode(name)))


def _disconnect(process: int, file: int) -> None:
    """End the connection of a process on both sides, so that it does not wait for what would never come."""
    handle = os.pidfd_open(process)
    try:
        with socket.socket(fileno=_libc.syscall(_PIDFD_GETFD, handle, ctypes.c_int(file), 0)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # there is none yet
    finally:
        os.close(handle)


def _ptrace(request: int, task: int, data: object) -> None:
    if _libc.ptrace(request, task, None, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _resume(task: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have been killed
        _ptrace(_CONT, task, number)


if __name__ == "__main__":
    main()
