"""Real image clients as oracles: the tree that an OCI image becomes once a client has merged its layers.

Two merge rules exist, and an image must come out the same under both. `ostree` runs the one of bootc and rpm-ostree,
`overlay` the one of podman and docker. Both modules offer the same:

    with merged(layout, ref) as tree: ...            one image of an OCI layout directory
    with merged_many([(layout, ref), ...]) as trees: ...   many images for the price of one start

and `compare.differences(want, tree)` says in words where a merged tree is not the one that was wanted.

Invariants:
- Nothing of the package under test is imported: an oracle shares no code with what it judges.
- The merging is done by the client itself; what is done here is to hand it the layers.
- A merged tree is for reading, and gone when the context is left, on every way out.
- A client that refuses an image raises `Refused` with the client's own words; a machine that lacks something raises
  `Missing`, which says what to install. Neither is ever a skipped test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Image = tuple[Path, str | None]
"""An OCI layout directory, and the name of the image in it; None when it holds just one."""


class Refused(Exception):
    """The client does not take this image."""


class Missing(Exception):
    """This machine lacks what the oracle needs."""


def program(name: str, package: str) -> str:
    """The path of a program, the distribution's own before any other of that name."""
    found = shutil.which(name, path=os.pathsep.join(("/usr/bin", os.environ.get("PATH", os.defpath))))
    if found is None:
        raise Missing(f"{name} is not installed: apt-get install {package}")
    return found


def run(*command: str | Path) -> str:
    """Run a program for its standard output. Its exit status, when not zero, raises `CalledProcessError`."""
    return subprocess.run(command, check=True, text=True, errors="backslashreplace", capture_output=True).stdout


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one merge: in `TMPDIR` or else on disk, since a merge is as large as the image's files."""
    if os.geteuid() != 0:
        raise Missing("root is needed to set owners and extended attributes: run these tests with sudo")
    with tempfile.TemporaryDirectory(prefix="oracle-", dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        yield Path(directory).resolve()
