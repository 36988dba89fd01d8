"""What delta layering would have cost, had an image been published so: the planner, replayed over its versions.

The first version stays as it was published. Each later one is planned as an update of what the simulation has come to,
within the same budget of superseded bytes and of layers, and everything that a real update has to send is counted: what
changed, what compaction writes again, and all that is in layers that no update can keep.

An estimate: a new layer is taken to be as large as its files are in the image in which they were really published. So
sizes are those of that image's compression, and what a layer takes beside its files counts for nothing.

Pure: tables in, bytes (compressed) out. What is held of past versions is what the simulated layers hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from rechunk_action.oci.layer import LayerPlan
from rechunk_action.oci.merge import merge
from rechunk_action.oci.table import Blob, Table
from rechunk_action.plan.compaction import Drop
from rechunk_action.plan.plain import Published, plan_fresh, plan_update
from rechunk_action.tree.entry import UNKNOWN_MODE, Tree
from rechunk_action.tree.scan import MOUNTED_OVER


@dataclass(frozen=True)
class Step:
    """An update, and the image that it leads to, in bytes. `drops` are layers that could not be kept."""

    update: int
    image: int
    drops: Sequence[Drop]


@dataclass(frozen=True)
class Version:
    """A version as it was published: what clients see of it, with each entry's share of the published layers.

    `places` tells the layer that shows a file or link, and its path there. `contents` has what each content takes, by
    its digest, once however many paths have it. `layers` are those that an update might keep; `first` is one below them
    that every image has anew, None where the format has none. `owner` has the component of each path that has one.
    """

    tree: Tree
    places: Mapping[str, tuple[Published, str]]
    contents: Mapping[bytes, int]
    layers: Sequence[Published]
    first: Published | None
    owner: Mapping[str, str]


def version_of(layers: Sequence[Published], *, first: Published | None = None) -> Version:
    """A version by its layers: for an OSTree-chunked image, its chunks, and the `first` one with the commit.

    What shares a layer is taken to belong together, until somebody knows better.
    """
    merged = [*([] if first is None else [first]), *layers]
    tables = [layer.table for layer in merged]
    tree: Tree = {}
    places: dict[str, tuple[Published, str]] = {}
    owner: dict[str, str] = {}
    contents: dict[bytes, int] = {}
    linked: dict[tuple[int, str], list[str]] = defaultdict(list)
    for path, (at, entry) in merge(tables, "described").items():
        if entry.kind == "x" or ("/" in path and path.partition("/")[0] in MOUNTED_OVER):
            continue
        mode = 0o755 if entry.mode == UNKNOWN_MODE else entry.mode
        tree[path] = replace(entry, mode=mode, group="")
        if entry.is_dir:
            continue
        places[path] = merged[at], entry.group or path
        owner[path] = f"layer {at}"
        if entry.group:
            linked[at, entry.group].append(path)
        if entry.digest:
            known = contents.get(entry.digest, 0)
            # The paths of an object divide what it takes; copies of a content take it each.
            contents[entry.digest] = known + entry.cost if tables[at].format else max(known, entry.cost)
    for paths in linked.values():
        for path in paths if len(paths) > 1 else ():
            tree[path].group = min(paths)
    return Version(tree, places, contents, layers, first, owner)


def changed(old: Version, new: Version) -> int:
    """Bytes of the contents that a version has and the one before has not, each once."""
    return sum(size for digest, size in new.contents.items() if digest not in old.contents)


class Simulation:
    """An image that grows by delta layering, from a version that was published in any way."""

    def __init__(self, version: Version, *, max_layers: int, max_overhead: float) -> None:
        """`max_overhead` is a share of the live bytes, as the planner has it."""
        self.layers = version.layers
        self._max_layers = max_layers
        self._max_overhead = max_overhead

    def update(self, version: Version) -> Step:
        """Plan the next version, of the same format, and go on from there."""
        tree, first = version.tree, version.first
        base = Table({path: entry for path, entry in tree.items() if entry.is_dir}) if first else None
        max_layers = self._max_layers - bool(first)
        plan = plan_update(
            self.layers,
            tree,
            lambda: version.owner,
            max_layers=max_layers,
            max_overhead=self._max_overhead,
            base=base,
        )
        drops = plan.drops
        if not plan.kept:
            plan = plan_fresh(tree, version.owner, max_layers=max_layers)
        kept = _size([self.layers[index] for index in plan.kept])
        self.layers = [self.layers[item] if isinstance(item, int) else _written(item, tree) for item in plan.layers]
        image = _size(self.layers) + (first.blob.size if first else 0)
        return Step(image - kept, image, drops)


def _written(plan: LayerPlan, tree: Tree) -> Published:
    """A new layer, by what its entries take elsewhere."""
    table = plan.table(tree)
    return Published(Blob("", sum(entry.cost for entry in table.entries.values()), ""), table)


def _size(layers: Sequence[Published]) -> int:
    return sum(layer.blob.size for layer in layers)
