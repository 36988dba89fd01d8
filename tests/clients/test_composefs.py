"""composefs, as bootc's composefs backend uses it, and images of both formats: what it merges of one is the tree.

It merges layers entry by entry, in the order of the archives, and the last one has its way with everything. Trees are
compared as dumps of its own, one of the image and one of the tree: paths, modes, owners, attributes, link targets, and
contents by their fs-verity digests. Nothing is mounted, so no kernel has to know composefs.

Not compared are modification times, which are no part of a file's identity for us: a build that touches files without
changing them keeps those that are published.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.clients import image
from tests.oracles import program, run, scratch
from tests.oracles.compare import UNSHIPPED
from tests.test_clients import published, updates
from tests.test_real_clients import Made, images  # noqa: F401 (the fixture)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("small_components")]

# Without --insecure, the repository's file system would have to have fs-verity.
SCRIPT = """
cd /work
cfsctl --repo=repo init --insecure
while [ $# -gt 0 ]; do
    cfsctl --repo=repo oci pull "oci:$2" "$1" >&2
    cfsctl --repo=repo oci dump --xattrs=keep-user-xattrs "$1" >"$1.image"
    cfsctl --repo=repo --no-repo create-dumpfile --xattrs=keep-user-xattrs "$3" >"$1.tree"
    shift 3
done
cfsctl --repo=repo oci fsck
"""


def test_trees_are_merged(images: list[Made]) -> None:  # noqa: F811 (the fixture)
    assert differing(images, hardlinks=True) == {}


def test_trees_in_chunks_are_merged(tmp_path: Path) -> None:
    assert differing(published(tmp_path / "made", format="ostree"), hardlinks=False) == {}


@pytest.mark.parametrize("made_as", ["plain", "ostree"])
def test_a_real_series_is_merged(bootable: list[Path], made_as: str) -> None:
    made = updates(bootable, bootable[0].parent / f"image-{made_as}", format=made_as)
    assert differing(made, hardlinks=made_as == "plain") == {}


def differing(made: Sequence[Made], *, hardlinks: bool) -> dict[Path, list[str]]:
    """What is not the tree, by the tree. Equal files of an OSTree commit are one, so that `hardlinks` say nothing."""
    docker, client = program("docker", "docker.io"), image("cfsctl")
    common = os.path.commonpath([path for one in made for path in (one.layout, one.source)])
    given = [[f"image{number}", f"{one.layout}:{one.tag}", str(one.source)] for number, one in enumerate(made)]
    found = {}
    with scratch() as work:
        volumes = (f"--volume={work}:/work", f"--volume={common}:{common}:ro")
        arguments = [argument for triple in given for argument in triple]
        run(docker, "run", "--rm", "--network=none", *volumes, client, "sh", "-euc", SCRIPT, "sh", *arguments)
        for (name, *_), one in zip(given, made, strict=True):
            got, want = (entries(work / f"{name}.{kind}", hardlinks=hardlinks) for kind in ("image", "tree"))
            found[one.source] = [
                f"{path}: {want.get(path)} -> {got.get(path)}"
                for path in sorted(got.keys() | want.keys())
                if got.get(path) != want.get(path)
            ]
    return {source: texts for source, texts in found.items() if texts}


def entries(dump: Path, *, hardlinks: bool) -> dict[str, tuple[str, ...]]:
    """What is shipped, by its path."""
    found: dict[str, tuple[str, ...]] = {}
    for line in dump.read_text().splitlines():
        path, size, mode, links, uid, gid, device, _mtime, *rest = line.split(" ")
        if mode.startswith("@"):  # a hard link to a path that is above
            found[path] = (mode, rest[0]) if hardlinks else found[rest[0]]
        else:
            # Links of a directory are those that it has below, shipped or not.
            counted = links if hardlinks and not mode.startswith("4") else ""
            found[path] = (size, mode, counted, uid, gid, device, *rest)
    return {path: entry for path, entry in found.items() if _is_shipped(path)}


def _is_shipped(path: str) -> bool:
    top, _, below = path.removeprefix("/").partition("/")
    return not below or os.fsencode(top) not in UNSHIPPED
