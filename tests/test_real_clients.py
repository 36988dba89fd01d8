"""Images over generations of small, difficult trees, merged by real clients: what they show is the tree.

All images go through a client at once, since starting one is what takes time.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rechunk_action.tree.entry import ancestors
from tests.building import build
from tests.foreign import foreign_layers
from tests.oracles import ostree, overlay
from tests.oracles.compare import differences
from tests.support import Item, archive, pack, write_layout
from tests.trees import FIXED, Files, Node, generations, write

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("small_components")]

SERIES = 10

T = TypeVar("T")


@dataclass(frozen=True)
class Made:
    """An image and the directory that it was made from."""

    layout: Path
    tag: str
    source: Path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """Series of images, each an update of the one before."""
    series = [*difficult_series(), *examples(generations(least=4, most=6, edits=10))]
    made = [
        image
        for number, history in enumerate(series)
        # Budgets that make some series drop layers, and others keep all that they can.
        for image in published(history, tmp_path_factory.mktemp("series"), max_overhead=(0.1, 0.5, 5)[number % 3])
    ]
    for history, layers in examples(of_other_builders()):
        place = tmp_path_factory.mktemp("foreign")
        write_layout(place / "image", [pack(archive(*items, form=tarfile.GNU_FORMAT)) for items in layers], tag="0")
        made += published(history, place, max_overhead=5, prev="0")
    return made


def published(history: list[Files], place: Path, *, max_overhead: float, prev: str | None = None) -> Iterator[Made]:
    """The images of a series, in one layout."""
    layout = place / "image"
    for number, files in enumerate(history, 1):
        source, tag = place / f"tree{number}", str(number)
        write({path: portable(node) for path, node in files.items()}, source)
        named = f"oci:{layout}:{prev}" if prev else None
        build(source, f"oci:{layout}:{tag}", prev_ref=named, max_layers=20, max_overhead=max_overhead)
        yield Made(layout, tag, source)
        prev = tag


def portable(node: Node) -> Node:
    """Without attributes that take more rights to set than a container's root has."""
    return replace(node, xattrs=tuple(pair for pair in node.xattrs if not pair[0].startswith("trusted.")))


def test_ostree_clients_see_the_trees(images: list[Made]) -> None:
    with ostree.merged_many([(image.layout, image.tag) for image in images]) as trees:
        # Equal files are one file in an OSTree repository, so hard links say nothing.
        found = {
            image.source: differences(image.source, tree, hardlinks=False)
            for image, tree in zip(images, trees, strict=True)
        }
    assert {source: texts for source, texts in found.items() if texts} == {}


def test_overlay_clients_see_the_trees(images: list[Made]) -> None:
    with overlay.merged_many([(image.layout, image.tag) for image in images]) as trees:
        found = {image.source: differences(image.source, tree) for image, tree in zip(images, trees, strict=True)}
    assert {source: texts for source, texts in found.items() if texts} == {}


def examples(strategy: st.SearchStrategy[T]) -> list[T]:
    """A few examples, the same each time."""
    found: list[T] = []

    @given(strategy)
    @settings(
        max_examples=SERIES,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def collect(example: T) -> None:
        found.append(example)

    collect()
    return found


@st.composite
def of_other_builders(draw: st.DrawFn) -> tuple[list[Files], list[list[Item]]]:
    """Two versions of a tree, and layers of another builder for the versions before them."""
    history = draw(generations(least=4, most=5, edits=8))
    # In the form of archive that holds all names for all clients, there are no attributes.
    plain: list[Files] = [{path: replace(node, xattrs=()) for path, node in files.items()} for files in history]
    return plain[-2:], draw(foreign_layers(plain[:-2]))


A, B, C = (
    Node("f", mode, owner, content=3 + mode % 2) for mode, owner in ((0o644, (0, 0)), (0o4755, (7, 8)), (0, (5, 5)))
)
LINK = Node("l", 0o777, (3, 4), target="nowhere")


def directory(mode: int = 0o755, owner: int = 0) -> Node:
    return Node("d", mode, (owner, owner))


def tree(nodes: dict[str, Node]) -> Files:
    """A tree with these paths, and the directories above them."""
    above = {place: directory() for path in nodes for place in ancestors(path)}
    return {path: directory() for path in FIXED} | above | nodes


def difficult_series() -> list[list[Files]]:
    """What clients are known to disagree about, or to be easily wrong with."""
    series: list[list[dict[str, Node]]] = [
        directories_that_change(),
        types_that_change(),
        names_around_removals(),
        subtrees_that_come_back(),
        links_that_come_and_go(),
        directories_left_to_one_layer(),
    ]
    return [[tree(version) for version in versions] for versions in series]


def directories_that_change() -> list[dict[str, Node]]:
    marked = replace(directory(0o711, 9), xattrs=(("user.mark", b"\0\xff"),))
    return [
        {"usr/d/a": A, "usr/d/e/b": B, "opt": directory(0o700)},
        {"usr/d": directory(0o700), "usr/d/a": A, "usr/d/e/b": B, "opt": directory(0o700)},
        {"usr": directory(0o711, 5), "usr/d": marked, "usr/d/a": A, "usr/d/e/b": B, "opt": directory()},
        {"usr": directory(0o711, 5), "usr/d": marked, "usr/d/a": C, "usr/d/e": directory(0o1777), "usr/d/e/b": B},
        {"usr/d/a": C, "usr/d/e/b": B, "etc": directory(0o700, 6), "etc/x": A},
        {"usr": directory(0o700, 1), "usr/d": marked, "usr/d/e/b": A, "etc": directory(0o711, 7), "etc/x": B},
    ]


def types_that_change() -> list[dict[str, Node]]:
    return [
        {"usr/x/y/z": A, "usr/k": B, "usr/l": LINK, "lib": replace(LINK, target="usr/x")},
        {"usr/x": A, "usr/k/y": B, "usr/l/y": A, "lib/y": B},
        {"usr/x": LINK, "usr/k": LINK, "usr/l": A, "lib": A},
        {
            "usr/x/y": A,
            "usr/k": directory(0o700, 2),
            "usr/l": replace(LINK, target="k"),
            "lib": replace(LINK, target="usr/k"),
        },
        {"usr/x/y/z": A, "usr/k": B, "usr/l": LINK, "lib": replace(LINK, target="usr/x")},
    ]


def names_around_removals() -> list[dict[str, Node]]:
    """In a directory's sorted list, some of these names come before and some after `.wh.NAME`."""
    names = [
        "-x",
        "+x",
        ".bashrc",
        ".a",
        ".wh",
        ".wi",
        ".x",
        "0",
        "A",
        "~",
        "a",
        "a-",
        "a.b",
        "line\nbreak",
        "é",
        "n" * 200,
    ]
    full = {f"{place}/{name}": A for place in ("usr/d", "etc", "top") for name in names}
    odd, even = ({path: node for at, (path, node) in enumerate(full.items()) if at % 2 == rest} for rest in (1, 0))
    return [full, odd, full, even, dict.fromkeys(odd, B), full]


def subtrees_that_come_back() -> list[dict[str, Node]]:
    full = {"usr/s/a/b/c": A, "usr/s/a/d": B, "usr/s": directory(0o750, 3), "srv/t/a": C}
    return [
        full,
        {"usr/keep": A},
        full,
        {"usr/s/a/b/c": A, "usr/s/a": directory(0o700, 4), "srv": LINK},
        {"usr/keep": B},
        full | {"usr/s/a": directory(0o1777), "usr/keep": A},
    ]


def links_that_come_and_go() -> list[dict[str, Node]]:
    one, two = replace(A, inode=1), replace(B, inode=2)
    return [
        {"usr/a": one, "usr/b": one, "etc/c": one, "usr/z": A},
        {"usr/a": one, "etc/c": one, "usr/z": one},
        {"usr/a": two, "usr/b": two, "etc/c": A, "usr/d/e": two},
        {"usr/b": two, "usr/d/e": two, "etc/c": one, "etc/-": one},
        {"usr/b": replace(two, mode=0o600), "usr/d/e": replace(two, mode=0o600), "etc/c": A, "etc/-": A},
        {"usr/a": one, "usr/b": one, "etc/c": one, "usr/z": A},
    ]


def directories_left_to_one_layer() -> list[dict[str, Node]]:
    """A layer with a removal outlives the layer below that had what it removes, and is the only one left with `opt`."""
    one, other = replace(A, content=1), replace(A, content=2)
    return [{"usr/x": one, "opt/1": one}, {"usr/x": one, "opt/2": one}, {"usr/x": other, "opt/2": one}]
