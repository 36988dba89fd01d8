"""The importer of bootc and rpm-ostree, and OSTree-chunked images: it fetches what an update says that it costs, and
has the commit of the image, which is the tree.

Each series of images goes into a repository of its own, one after the other, as a system's updates do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rechunk_action.oci.layout import read_image
from tests.clients import image
from tests.oracles import program, run, scratch
from tests.oracles.compare import differences
from tests.test_clients import published, updates
from tests.test_real_clients import Made

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("small_components")]

# What the importer makes of a commit is one of its own, with the same contents and the image's manifest.
SCRIPT = r"""
cd /work
contents() { ostree show --repo=repo "$1" | sed -n 's/^ContentChecksum: *//p'; }
ostree init --repo=repo --mode=bare
ostree config --repo=repo set core.fsync false
ostree config --repo=repo set core.min-free-space-percent 0
while [ $# -gt 0 ]; do
    ostree-ext container image pull repo "ostree-unverified-image:oci:/image:$1" --quiet >"said-$1"
    made=$(sed -n 's/^Wrote: .* => //p' "said-$1")
    { contents "$2"; contents "$made"; } >"contents-$1"
    ostree checkout --repo=repo -H "$made" "tree-$1"
    shift 2
done
ostree fsck --repo=repo --quiet
"""


@dataclass(frozen=True)
class Imported:
    """What the importer has of an image. Of its layers, how many were there already, and how many were needed; it tells
    when it needs some.
    """

    tree: Path
    layers: tuple[int, int] | None
    wanted_contents: str
    contents: str


def test_difficult_trees_are_imported(tmp_path: Path) -> None:
    made = published(tmp_path / "made", format="ostree")
    for layout in dict.fromkeys(one.layout for one in made):
        check([one for one in made if one.layout == layout])


def test_a_real_series_is_imported(bootable: list[Path], tmp_path: Path) -> None:
    check(updates(bootable, tmp_path / "image", format="ostree"))


def check(series: list[Made]) -> None:
    had: set[str] = set()
    with imported(series) as results:
        for one, got in zip(series, results, strict=True):
            layers = {blob.digest for blob in read_image(one.layout, one.tag).layers}
            new = len(layers - had)
            assert got.layers == ((len(layers) - new, new) if new else None)
            assert got.contents == got.wanted_contents
            assert differences(one.source, got.tree, hardlinks=False, root=True) == []
            had |= layers


@contextmanager
def imported(series: list[Made]) -> Iterator[list[Imported]]:
    """What the importer makes of one image after the other, in one repository."""
    docker, client = program("docker", "docker.io"), image("ostree-ext")
    [layout] = {one.layout for one in series}
    given = [text for one in series for text in (one.tag, read_image(layout, one.tag).labels["ostree.commit"])]
    with scratch() as work:
        places = (f"--volume={work}:/work", f"--volume={layout}:/image:ro")
        run(docker, "run", "--rm", "--network=none", *places, client, "sh", "-euc", SCRIPT, "sh", *given)
        yield [_imported(work, one.tag) for one in series]


def _imported(work: Path, tag: str) -> Imported:
    said, tree = (work / f"said-{tag}").read_text(), work / f"tree-{tag}"
    layers = re.search(r"layers already present: (\d+); layers needed: (\d+)", said)
    wanted, got = (work / f"contents-{tag}").read_text().splitlines()
    (tree / "usr/etc").rename(tree / "etc")
    return Imported(tree, layers and (int(layers[1]), int(layers[2])), wanted, got)
