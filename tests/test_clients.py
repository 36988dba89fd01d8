"""Clients that merge images by themselves, updates as well as fresh ones: podman of a user without rights, which does
it in two ways, and with OSTree-chunked images docker and umoci. What they show is the tree.

`test_real_clients.py` has many more trees, for OSTree and for overlayfs as root mounts it; `test_client_rules.py` has
docker and umoci with plain images. Clients whose code has to be built first are in `tests/clients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests import stores
from tests.building import build
from tests.conftest import sample
from tests.oracles import program, run
from tests.oracles.compare import differences
from tests.test_client_rules import OF_THE_RUNTIME, unpacked_by_docker, unpacked_by_umoci
from tests.test_real_clients import A, Made, difficult_series, directory, portable
from tests.trees import Files, write

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("small_components")]

BOOTABLE: Files = {
    "sysroot": directory(),
    **{path: directory() for path in ("usr/lib", "usr/lib/modules", "usr/lib/modules/1")},
    "usr/lib/modules/1/vmlinuz": A,
}
"""What an OSTree commit has to have."""

# Everything is looked at first: fuse-overlayfs counts a file's links as it meets them, and tar trusts the count.
PACK = """
for name; do
    place=$(podman image mount "$name")
    find "$place" -ls >/dev/null
    tar -C "$place" --numeric-owner --xattrs --xattrs-include=* -cf "$HOME/$name.tar" .
done
podman image unmount --all
"""
UNPACK = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "-xf")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that every user may enter."""
    with stores.work() as place:
        yield place


@pytest.fixture(scope="module")
def plain(place: Path, request: pytest.FixtureRequest) -> Sequence[Made]:
    return sample(published(place / "plain", format="plain"), request)


@pytest.fixture(scope="module")
def chunked(place: Path, request: pytest.FixtureRequest) -> Sequence[Made]:
    return sample(published(place / "ostree", format="ostree"), request)


def published(place: Path, **options: Any) -> list[Made]:
    """Series of images over all that clients easily get wrong. Layers are kept for as long as can be."""
    place.mkdir()
    made = []
    for series, history in enumerate(difficult_series()):
        sources = []
        for number, files in enumerate(history, 1):
            sources.append(place / f"tree{series}-{number}")
            write({path: portable(node) for path, node in {**BOOTABLE, **files}.items()}, sources[-1])
        made += updates(sources, place / f"image{series}", max_overhead=5, **options)
    return made


def updates(sources: list[Path], layout: Path, **options: Any) -> list[Made]:
    """The images of trees, each an update of the one before. Layers are gzip, which every version of clients takes."""
    made: list[Made] = []
    for number, source in enumerate(sources):
        prev = f"oci:{layout}:{made[-1].tag}" if made else None
        build(source, f"oci:{layout}:{number}", prev_ref=prev, compression="gzip", **options)
        made.append(Made(layout, str(number), source))
    return made


class TestUsersOfPodman:
    """Their layers are merged by the kernel's overlayfs in a namespace of theirs, or by fuse-overlayfs."""

    @pytest.mark.parametrize("fuse", [False, True])
    def test_see_the_trees(self, plain: Sequence[Made], chunked: Sequence[Made], place: Path, *, fuse: bool) -> None:
        with stores.user(place / f"user-{fuse}", "overlay") as user:
            if fuse:
                merge_with(program("fuse-overlayfs", "fuse-overlayfs"), user)
            assert differing(plain, shown_to(user, plain)) == {}
            # Equal files are one file in an OSTree commit.
            assert differing(chunked, shown_to(user, chunked), hardlinks=False) == {}


class TestChunkedImages:
    def test_are_the_trees_for_docker(self, chunked: Sequence[Made]) -> None:
        # Of attributes, docker's export has capabilities alone.
        shown = one_by_one(unpacked_by_docker, chunked)
        assert differing(chunked, shown, hardlinks=False, xattrs=False, ignore=OF_THE_RUNTIME) == {}

    def test_are_the_trees_for_umoci(self, chunked: Sequence[Made]) -> None:
        assert differing(chunked, one_by_one(unpacked_by_umoci, chunked), hardlinks=False) == {}


def merge_with(mounter: str, user: stores.User) -> None:
    config = Path(user.account.pw_dir, ".config/containers/storage.conf")
    with config.open("a") as file:
        file.write(f'[storage.options.overlay]\nmount_program = "{mounter}"\n')


def shown_to(user: stores.User, images: Sequence[Made]) -> Iterator[Path]:
    names = user.run("podman", "pull", "--quiet", *[f"oci:{image.layout}:{image.tag}" for image in images]).split()
    user.run("podman", "unshare", "sh", "-euc", PACK, "sh", *names)
    for name in names:
        with stores.work() as root:
            run("tar", "-C", root, *UNPACK, Path(user.account.pw_dir, f"{name}.tar"))
            yield root


def one_by_one(unpacked: Callable[[Made], AbstractContextManager[Path]], images: Sequence[Made]) -> Iterator[Path]:
    for image in images:
        with unpacked(image) as root:
            yield root


def differing(images: Sequence[Made], shown: Iterable[Path], **options: Any) -> dict[Path, list[str]]:
    """What is not the tree, by the tree."""
    found = {
        image.source: differences(image.source, root, **options) for image, root in zip(images, shown, strict=True)
    }
    return {source: texts for source, texts in found.items() if texts}
