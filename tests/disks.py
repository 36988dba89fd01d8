"""Disks of a test's own: file systems in files, or in memory, that are gone when the test is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.oracles import program, run

_PACKAGES = {"btrfs": "btrfs-progs", "xfs": "xfsprogs"}


@contextmanager
def mounted(place: Path, *options: str | Path) -> Iterator[Path]:
    """Something mounted in a directory, and gone when the context is left."""
    place.mkdir(exist_ok=True)
    run("mount", *options, place)
    try:
        yield place
    finally:
        run("umount", place)


@contextmanager
def disk(place: Path, kind: str, size: int, *options: str) -> Iterator[Path]:
    """A new file system of so many bytes. It is at `place / "disk"`, its bytes stay in `place / "image"`."""
    image = place / "image"
    image.touch()
    os.truncate(image, size)
    run(program(f"mkfs.{kind}", _PACKAGES.get(kind, "e2fsprogs")), "-q", *options, image)
    with mounted(place / "disk", "-o", "loop", image) as root:
        yield root
