"""The overlay client: layers merged by the kernel's overlayfs, pulled and mounted by the real `podman`.

Each call has a storage of its own, so that nothing of the machine's images is seen or touched; no container is run.
podman checks digests on the way, as it does for every user.

Invariants:
- Whatever happens, nothing stays mounted and the storage is removed.
- Images of one call share the storage: a layer that several share is pulled once.

podman wants a runroot of fewer than 50 characters: keep `TMPDIR` short.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import Image, Refused, program, run, scratch


@contextmanager
def merged(layout: Path, ref: str | None = None) -> Iterator[Path]:
    """The merged tree of one image."""
    with merged_many([(layout, ref)]) as trees:
        yield trees[0]


@contextmanager
def merged_many(images: Sequence[Image]) -> Iterator[list[Path]]:
    """The merged trees of many images, in their order, from one storage."""
    podman = program("podman", "podman")
    with scratch() as work:
        # podman makes an image's name of the path that it is pulled from, and not every path is a name.
        sources = []
        for number, (layout, ref) in enumerate(images):
            (work / f"layout{number}").symlink_to(layout.resolve())
            sources.append(f"oci:layout{number}" + (f":{ref}" if ref else ""))
        # An interrupted pull leaves its downloads in TMPDIR, so that is in here, too. Naming the driver makes podman
        # ignore the options of the machine's storage.conf.
        places = ("--root", work / "storage", "--runroot", work / "run", "--tmpdir", work / "tmp")
        storage = ("env", f"--chdir={work}", f"TMPDIR={work}", podman, *places, "--storage-driver", "overlay")
        try:
            yield _mount(storage, sources)
        finally:
            _unmount_below(work)


def _mount(storage: Sequence[str | Path], sources: Sequence[str]) -> list[Path]:
    try:
        images = run(*storage, "pull", "--quiet", *sources).split()
        mounts = json.loads(run(*storage, "image", "mount", "--format", "json", *images))
    except subprocess.CalledProcessError as error:
        raise Refused(f"podman: {error.stderr}") from error
    places = {mount["id"]: Path(mount["mountpoint"]) for mount in mounts}
    return [places[image] for image in images]


def _unmount_below(directory: Path) -> None:
    """Unmount the images, and podman's storage, which it mounts on itself; the last mounted first."""
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for place in reversed([place for place in places if place.startswith(f"{directory}/")]):
        # Lazily: a reader that still has a file open must not keep the storage from being removed.
        run("umount", "--lazy", place)
