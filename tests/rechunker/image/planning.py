"""Which layer each object goes to: large packages alone, the rest spread evenly, and all as in the image before.

An item is a package, or a group of packages and files that a *meta* file describes. Items of the plan before stay in
their layers, whatever the number of layers that is wanted now; new ones go where the least is. What is in /etc is
nobody's. Sizes are those of files in bytes.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .chunked import Plan

DEDICATED = 100_000
"""The least size of a group that gets a layer of its own, where it asks for one. The original has 10 MB."""

UNPACKAGED = "unpackaged"

META: dict[str, Any] = {
    "version": 1,
    "max_layers": 69,
    "meta": {
        "kernel": {"packages": ["kernel", "kernel-*"], "files": ["/usr/lib/modules/*/initramfs.img"]},
        "rpm": {"packages": ["rpm"], "files": ["/usr/share/rpm/*", "/usr/lib/sysimage/*"]},
        "python": {"packages": ["python3*"], "dedicated": False},
    },
}


@dataclass
class Item:
    size: int = 0
    files: list[str] = field(default_factory=list)


def items(sizes: Mapping[str, int], owners: Mapping[str, str], meta: Mapping[str, Any]) -> dict[str, Item]:
    """The items by name. `sizes` is path -> size, `owners` path -> package; paths are absolute."""
    found: dict[str, Item] = defaultdict(Item)
    for path, size in sizes.items():
        name = UNPACKAGED if path.startswith(("/etc/", "/usr/etc/")) else _item(path, owners.get(path), meta["meta"])
        found[name].files.append(path)
        found[name].size += size
    return found


def layers(
    found: Mapping[str, Item], meta: Mapping[str, Any], count: int, previous: Sequence[Sequence[str]]
) -> list[list[str]]:
    """The items of each layer, but for what is unpackaged: it has one of its own, and `count` includes that."""
    if not previous:
        planned = [[_dedi(name)] for name in sorted(found) if _dedicated(name, found[name], meta["meta"])]
    else:
        planned = [[item for item in layer if _plain(item) in found] for layer in previous]
    planned += [[] for _ in range((count + 1 if previous else count - 1) - len(planned))]
    placed = {_plain(item) for layer in planned for item in layer}
    open_layers = [layer for layer in planned if not any(item.startswith("dedi:") for item in layer)]
    fill = {id(layer): sum(found[item].size for item in layer) for layer in open_layers}
    for name in sorted(found.keys() - placed - {UNPACKAGED}, key=lambda name: (-found[name].size, name)):
        emptiest = min(open_layers, key=lambda layer: fill[id(layer)])
        emptiest.append(name)
        fill[id(emptiest)] += found[name].size
    return planned if previous else [layer for layer in planned if layer]


def plan(found: Mapping[str, Item], planned: Iterable[Sequence[str]], checksums: Mapping[str, str]) -> Plan:
    """The plan for objects; `checksums` is path -> object."""
    components: dict[str, str] = {}
    mapping: dict[str, str] = {}
    for number, layer in enumerate([*planned, [UNPACKAGED]]):
        dedicated = len(layer) == 1 and (layer[0] == UNPACKAGED or layer[0].startswith("dedi:"))
        name = layer[0] if dedicated else f"rechunk_layer{number:03}"
        components[name] = ",".join(map(_plain, layer))
        for item in map(_plain, layer):
            for path in found[item].files if item in found else ():
                mapping.setdefault(checksums[path], name)
    return Plan(mapping, components)


def _item(path: str, owner: str | None, metas: Mapping[str, Any]) -> str:
    for name, meta in metas.items():
        patterns = meta.get("packages", ())
        if owner is not None and any(fnmatch.fnmatchcase(owner, pattern) for pattern in patterns):
            return f"meta:{name}"
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in meta.get("files", ())):
            return f"meta:{name}"
    return owner or UNPACKAGED


def _dedicated(name: str, item: Item, metas: Mapping[str, Any]) -> bool:
    meta = metas.get(name.removeprefix("meta:"))
    return meta is not None and meta.get("dedicated", True) and item.size >= DEDICATED


def _dedi(name: str) -> str:
    return f"dedi:{name}"


def _plain(item: str) -> str:
    return item.removeprefix("dedi:")
