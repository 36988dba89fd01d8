"""A machine that notices nothing: real virtual machines install our images, upgrade over the network, and roll back.

`journey` is what each goes through, `test_vm` judges it. `tree` makes what they boot, `disk` installs it, and `machine`
boots the disk. `make test-vm` runs it all.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

SAID = 3000
"""Characters of what a program has said, in an error."""


class CommandFailed(Exception):
    """A program of this machine failed; the message ends with what it said last."""


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a program for its standard output."""
    done = subprocess.run(
        command, env=environment or os.environ, check=False, text=True, errors="backslashreplace", capture_output=True
    )
    if done.returncode != 0:
        raise CommandFailed(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-SAID:]}")
    return done.stdout
