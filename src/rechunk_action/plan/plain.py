"""Plans for plain layers: what a new image is made of, out of a tree and the layers already published.

Published layers are kept byte for byte where `compaction` says so. What they show and the tree does not want is
removed by whiteouts; what the tree wants and they don't show goes into new layers on top. Directories need more care,
since clients disagree on which layer decides their metadata: every new layer states all ancestors of what it holds, a
directory with wrong metadata is stated again on top for those who take the last word, and a *fix layer*, inserted just
before the layer that would have the first word, tells the others.

Pure: tables in, plan out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rechunk_action.oci.layer import LayerPlan
from rechunk_action.oci.merge import View, hides, merge, unchanged, wanted_of
from rechunk_action.oci.table import Blob, Table
from rechunk_action.plan.compaction import Drop, Liveness, compact
from rechunk_action.plan.grouping import MIN_GROUPS, Group, group_all, group_changes
from rechunk_action.tree.entry import ROOT, Tree, ancestors, parent_of

PROTECTED = frozenset({"etc", "usr", "usr/etc", "sysroot", "ostree"})
"""Paths that must not be removed by a whiteout: OSTree's importer renames, keeps or needs them (ostree-ext)."""

FRESH_SHARE = 0.5
"""Share of the layers that a fresh image may use; the rest is for its updates."""

Components = Callable[[], Mapping[str, str]]
"""Tells the component of each path that has one. Asked only when there is something to sort by it."""


@dataclass(frozen=True)
class Published:
    """A layer of the previous image."""

    blob: Blob
    table: Table


@dataclass(frozen=True)
class Plan:
    """The layers of the new image in order: an index into the previous image's layers, or a new layer."""

    layers: Sequence[int | LayerPlan]
    drops: Sequence[Drop] = field(default=())

    @property
    def kept(self) -> list[int]:
        return [layer for layer in self.layers if isinstance(layer, int)]

    @property
    def new(self) -> list[LayerPlan]:
        return [layer for layer in self.layers if isinstance(layer, LayerPlan)]


def plan_fresh(tree: Tree, owner: Mapping[str, str], *, max_layers: int) -> Plan:
    """Lay out a whole tree anew."""
    groups = group_all(tree, owner, layers=max(MIN_GROUPS, int(max_layers * FRESH_SHARE)))
    stated = {above for group in groups for path in group.paths for above in ancestors(path)}
    childless = [path for path, entry in tree.items() if entry.is_dir and path not in stated]
    return Plan(_layers(groups, childless, []))


def plan_update(
    previous: Sequence[Published],
    tree: Tree,
    components: Components,
    *,
    max_layers: int,
    max_overhead: float,
) -> Plan:
    """Keep what can be kept of the previous image, and add the rest."""
    tables = [layer.table for layer in previous]
    sizes = [layer.blob.size for layer in previous]
    wanted = [wanted_of(table, tree) for table in tables]
    unfit = {index: table.problem for index, table in enumerate(tables) if table.problem}
    unfit |= _holding_protected(tables, tree)

    def show(keep: Sequence[int]) -> tuple[View, set[str]]:
        view = merge([tables[index] for index in keep], "last")
        return view, unchanged(view, tree, [wanted[index] for index in keep])

    def liveness(keep: Sequence[int]) -> Liveness:
        view, same = show(keep)
        dead = dict(zip(keep, _dead([tables[index] for index in keep], view, same, tree), strict=True))
        useful = {keep[view[path][0]] for path in same if not tree[path].is_dir}
        return Liveness(
            live={index: sizes[index] - dead[index] for index in keep},
            dead=dead,
            useless={i for i in keep if i not in useful and not _true_directories(tables[i], wanted[i])},
        )

    room = max_layers
    while True:
        kept = compact(sizes, liveness, unfit=unfit, max_overhead=max_overhead, max_layers=room)
        groups, directories, whiteouts = _changes(*show(kept.keep), tree, components, max_layers)
        plan = Plan(_with_fixes(kept.keep, _layers(groups, directories, whiteouts), tables, tree), kept.drops)
        excess = len(plan.layers) - max_layers
        if excess <= 0 or not kept.keep:
            return plan
        room = max(0, len(kept.keep) - excess)


def live_and_dead(layers: Sequence[Published], tree: Tree) -> tuple[int, int]:
    """Compressed bytes of an image that clients see, and those that they download for nothing."""
    tables = [layer.table for layer in layers]
    view = merge(tables, "last")
    dead = sum(_dead(tables, view, unchanged(view, tree, [wanted_of(table, tree) for table in tables]), tree))
    return sum(layer.blob.size for layer in layers) - dead, dead


def _dead(tables: Sequence[Table], view: View, same: Collection[str], tree: Tree) -> list[int]:
    """Compressed bytes of each layer that clients don't see or that the tree does not want.

    Directories are structure: they are live while they exist.
    """
    dead = [sum(entry.cost for entry in table.entries.values()) for table in tables]
    for path, (at, entry) in view.items():
        if path in same or (entry.is_dir and (want := tree.get(path)) is not None and want.is_dir):
            dead[at] -= entry.cost
    return dead


def _changes(
    view: View, same: Collection[str], tree: Tree, components: Components, max_layers: int
) -> tuple[list[Group], list[str], list[str]]:
    """What new layers must hold: files, directories to state, paths to remove."""
    wrong = [path for path in tree if path not in same]
    files = [path for path in wrong if not tree[path].is_dir]
    directories = [path for path in wrong if tree[path].is_dir]
    whiteouts = [
        path
        for path in view
        if path not in tree and (parent := tree.get(parent_of(path))) is not None and parent.is_dir
    ]
    most = max(MIN_GROUPS, int(max_layers * (1 - FRESH_SHARE)))
    groups = group_changes(files, tree, components(), layers=most) if files else []
    return groups, directories, sorted(whiteouts)


def _layers(groups: Sequence[Group], directories: Iterable[str], whiteouts: Sequence[str]) -> list[LayerPlan]:
    """New layers for these groups; the last also states the directories and removes what is to be removed."""
    directories = list(directories)
    if not groups and (directories or whiteouts):
        groups = [Group("directories and removals", [])]
    plans = [LayerPlan(group.name, _stated(group.paths), group.paths) for group in groups[:-1]]
    for group in groups[-1:]:
        stated = _stated([*group.paths, *whiteouts, *directories], directories)
        plans.append(LayerPlan(group.name, stated, group.paths, whiteouts))
    return plans


def _stated(paths: Iterable[str], directories: Iterable[str] = ()) -> list[str]:
    """All ancestors of some paths, and some directories, parents first."""
    stated = set(directories)
    for path in paths:
        above = parent_of(path)
        while above not in stated:
            stated.add(above)
            above = parent_of(above)
    return sorted(stated)


def _with_fixes(
    kept: Sequence[int], new: Sequence[LayerPlan], tables: Sequence[Table], tree: Tree
) -> list[int | LayerPlan]:
    """The kept and the new layers in order, with fix layers where a client that takes the first word would err."""
    layers: list[int | LayerPlan] = [*kept, *new]
    ordered = [*(tables[index] for index in kept), *(plan.table(tree) for plan in new)]
    fixes: dict[int, list[str]] = {}
    for path, (at, entry) in merge(ordered, "first").items():
        want = tree.get(path)
        if path != ROOT and want is not None and want.is_dir and not entry.same_as(want):
            fixes.setdefault(at, []).append(path)
    merged = _earliest(fixes, ordered)
    for at in sorted(merged, reverse=True):
        layers.insert(at, LayerPlan("directory metadata", _stated(merged[at], merged[at])))
    return layers


def _earliest(fixes: Mapping[int, Sequence[str]], tables: Sequence[Table]) -> dict[int, list[str]]:
    """Gather fixes in as few places as possible.

    A directory can be told before any layer up to the one that now decides it, as long as no layer in between removes
    it. Places are tried from the bottom of the image up.
    """
    merged: dict[int, list[str]] = {}
    for at in sorted(fixes):
        for path in fixes[at]:
            lowest = at
            while lowest > 0 and not hides(tables[lowest - 1], path):
                lowest -= 1
            place = next((place for place in sorted(merged, reverse=True) if lowest <= place <= at), at)
            merged.setdefault(place, []).append(path)
    return merged


def _true_directories(table: Table, wanted: Collection[str]) -> bool:
    """Whether a layer holds directories alone, all as the tree wants them: cheap to keep, and often a fix layer."""
    return not table.whiteouts and all(entry.is_dir and path in wanted for path, entry in table.entries.items())


def _holding_protected(tables: Sequence[Table], tree: Tree) -> dict[int, str]:
    """Layers that hold a path which must go and must not be removed by a whiteout."""
    unfit = {}
    for path in sorted(PROTECTED):
        if path not in tree:
            for index, table in enumerate(tables):
                if path in table.entries:
                    unfit[index] = f"{path} is gone, and clients cannot take its removal"
    return unfit
