"""Which files share a layer, so that what changes together lies together.

A layer dies as a whole or costs its live rest: so a large component gets a layer of its own, which its next version
replaces without touching anything else. Small components are laid side by side by age, since what was built long ago
tends to stay: cold layers stay whole, and hot ones die young together. A component's age is its newest file's mtime, a
property of the tree and of no clock. What no component claims is mostly made during the build (caches, databases) and
changes with every build: it has its own layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rechunk_action.tree.entry import Tree, link_groups

ALONE = 8_000_000
"""Bytes, uncompressed, from which a component has a layer of its own."""

BIN = 4 * ALONE
"""Bytes, uncompressed, of small components that an update puts into one layer."""

MIN_GROUPS = 3
"""One large component, one bin, the unclaimed. Without the first, there are two."""

UNCLAIMED = "unclaimed"
"""Name of the group of all files that no component claims."""


@dataclass(frozen=True)
class Group:
    """Files for one layer: `name` for people, `paths` in the order of the archive."""

    name: str
    paths: Sequence[str]


def group_all(tree: Tree, owner: Mapping[str, str], *, layers: int) -> list[Group]:
    """Spread all files of a tree over at most so many layers (at least 2), a third for small components."""
    paths = [path for path, entry in tree.items() if not entry.is_dir]
    return _group(paths, tree, owner, layers, bins=layers // 3)


def group_changes(paths: Iterable[str], tree: Tree, owner: Mapping[str, str], *, layers: int) -> list[Group]:
    """Spread an update's files over few layers, at most so many (at least 2)."""
    paths = list(paths)
    return _group(paths, tree, owner, layers, bins=min(layers // 3, _size(paths, tree) // BIN))


def _group(paths: Iterable[str], tree: Tree, owner: Mapping[str, str], layers: int, bins: int) -> list[Group]:
    """Large components alone, the largest first, then the small ones in bins, then the unclaimed."""
    components = _components(paths, tree, owner)
    unclaimed = components.pop(UNCLAIMED, [])
    size = {name: _size(paths, tree) for name, paths in components.items()}
    bins = max(1, bins)
    large = sorted((name for name in components if size[name] >= ALONE), key=lambda name: (-size[name], name))
    groups = [Group(name, ordered(components.pop(name))) for name in large[: layers - bins - 1]]
    groups += _bins(components, size, tree, bins)
    if unclaimed:
        groups.append(Group(UNCLAIMED, ordered(unclaimed)))
    return groups


def ordered(paths: Iterable[str]) -> list[str]:
    """The order of files in an archive: like beside like, so that the compressor finds repetition."""
    return sorted(paths, key=lambda path: (path.rpartition(".")[2] if "." in path.rpartition("/")[2] else "", path))


def _components(paths: Iterable[str], tree: Tree, owner: Mapping[str, str]) -> dict[str, list[str]]:
    """Component -> its paths. Hard links of one file stay together: a layer cannot link into another."""
    first = {path: members[0] for members in link_groups(tree.items()).values() for path in members}
    components: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        components[owner.get(first.get(path, path), UNCLAIMED)].append(path)
    return components


def _bins(components: Mapping[str, Sequence[str]], size: Mapping[str, int], tree: Tree, count: int) -> list[Group]:
    """Cut the components, oldest first, into so many groups of about the same size."""
    age = {name: max(tree[path].mtime for path in paths) for name, paths in components.items()}
    names = sorted(components, key=lambda name: (age[name], name))
    share = sum(size[name] for name in names) / count
    cut: list[list[str]] = [[] for _ in range(count)]
    done = 0.0
    for name in names:
        cut[min(count - 1, int(done / share) if share else 0)].append(name)
        done += size[name]
    return [
        Group(
            names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}",
            ordered(path for name in names for path in components[name]),
        )
        for names in cut
        if names
    ]


def _size(paths: Iterable[str], tree: Tree) -> int:
    return sum(tree[path].size for path in paths)
