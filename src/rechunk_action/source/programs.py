"""Programs of this machine, called by name.

A program is in a process group of its own: a Ctrl-C at the terminal reaches us alone, and what we started ends with us,
its children too. It reads nothing, and what it complains of is in the error.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rechunk_action.errors import EnvironmentLack

GRACE = 5
"""Seconds that a program has to end in."""

_SHOWN = 500
"""Characters of a program's complaints that an error repeats."""

_REMEDIES = {
    "no space left": "free some space, or put the output on a larger disk",
    "permission denied": "run this as root (sudo), or as the user whose storage it is",
    "not permitted": "run this as root (sudo), or as the user whose storage it is",
}
"""What to do, by what programs complain of."""


@dataclass(frozen=True)
class Account:
    """Whom a program runs as, and its environment. `switch` is how `subprocess` changes to another user."""

    name: str
    environment: Mapping[str, str]
    switch: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uid(self) -> int:
        return int(self.switch.get("user", os.geteuid()))


def own_account(environment: Mapping[str, str]) -> Account:
    try:
        return Account(pwd.getpwuid(os.geteuid()).pw_name, environment)
    except KeyError:  # in a container, users need no name
        return Account(f"user {os.geteuid()}", environment)


def other_account(entry: pwd.struct_passwd, environment: Mapping[str, str]) -> Account:
    """Another user's account, as a login would set it up: nothing of ours that could lead its programs astray."""
    login = {
        "PATH": environment.get("PATH", os.defpath),
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
    }
    runtime = Path(f"/run/user/{entry.pw_uid}")
    if runtime.is_dir():
        login["XDG_RUNTIME_DIR"] = str(runtime)
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    switch = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
    return Account(entry.pw_name, login, switch)


class Program:
    """A running program. A context manager: left before the program has ended, it ends it."""

    def __init__(self, account: Account, *command: str) -> None:
        """Raises `EnvironmentLack` when there is no such program."""
        self._command = command
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",  # another user may have no right to be where we are
                env=account.environment,
                process_group=0,
                **account.switch,
            )
        except (FileNotFoundError, PermissionError):  # the latter when a part of PATH is closed to the user
            raise EnvironmentLack(
                f"{command[0]} is not installed: install it (apt-get install {command[0]}) and run this again"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)
        self._process.__exit__(None, None, None)

    def status(self) -> int:
        """Its exit status, once it has ended."""
        self._output, self._complaints = self._process.communicate()
        return self._process.returncode

    def output(self) -> bytes:
        """What it wrote, once it has ended. Raises `EnvironmentLack` when it failed."""
        if self.status() != 0:
            raise self.failure()
        return self._output

    @property
    def complaints(self) -> str:
        """What it wrote for people, or the end of that."""
        text = self._complaints.decode(errors="replace").strip()
        return text if len(text) <= _SHOWN else f"... {text[-_SHOWN:]}"

    def failure(self) -> EnvironmentLack:
        """What to tell the user of a program that failed."""
        complaints = self.complaints
        remedies = [remedy for words, remedy in _REMEDIES.items() if words in complaints.lower()]
        remedy = remedies[0] if remedies else "run it by hand to see what this machine lacks"
        return EnvironmentLack(f"{shlex.join(self._command)} failed ({complaints or 'without a word'}): {remedy}")

    def end(self, first: signal.Signals | None = None) -> int:
        """Its exit status, after a moment in which it may end by itself, or because of a first signal."""
        for number in (first, signal.SIGKILL):
            if self._process.poll() is None and number is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(GRACE)
        return self._process.wait()


def run(account: Account, *command: str) -> bytes:
    """Run a program for its output. Raises `EnvironmentLack` when it is missing or fails."""
    with Program(account, *command) as program:
        return program.output()
