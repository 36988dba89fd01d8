"""Plans: what a new image is made of, out of a tree and the layers already published.

Published layers are kept byte for byte where `compaction` says so. What they show and the tree does not want is
removed by whiteouts; what the tree wants and they don't show goes into new layers on top. Directories need more care,
since clients disagree on which layer decides their metadata: every new layer states all ancestors of what it holds, a
directory with wrong metadata is stated again on top for those who take the last word, and a *fix layer*, inserted just
before the layer that would have the first word, tells the others.

An OSTree-chunked image is planned the same way. Its chunks make the view that containers have, in which a path is
there only together with its object: when the view is right, every object is in some layer. Its first layer, which is
always new, names all directories (`base`), and only those who take the last word look at any.

Pure: tables in, plan out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rechunk_action.oci.layer import LayerPlan
from rechunk_action.oci.merge import Replay, hiding, wanted_of
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
    drops: Sequence[Drop] = ()

    @property
    def kept(self) -> list[int]:
        return [layer for layer in self.layers if isinstance(layer, int)]

    @property
    def new(self) -> list[LayerPlan]:
        return [layer for layer in self.layers if isinstance(layer, LayerPlan)]


def plan_fresh(tree: Tree, owner: Mapping[str, str], *, max_layers: int) -> Plan:
    """Lay out a whole tree anew."""
    groups = group_all(tree, owner, layers=_most(max_layers, FRESH_SHARE))
    stated = {above for group in groups for path in group.paths for above in ancestors(path)}
    childless = [path for path, entry in tree.items() if entry.is_dir and path not in stated]
    return Plan(_layers(groups, childless, [], tree))


def plan_update(
    previous: Sequence[Published],
    tree: Tree,
    components: Components,
    *,
    max_layers: int,
    max_overhead: float,
    base: Table | None = None,
) -> Plan:
    """Keep what can be kept of the previous image, and add the rest.

    `base` is what a layer below all others says of the directories, where the format has one; it counts as no layer.
    """
    tables = [layer.table for layer in previous]
    sizes = [layer.blob.size for layer in previous]
    wanted = [wanted_of(table, tree) for table in tables]
    unfit = {index: table.problem for index, table in enumerate(tables) if table.problem}
    if base is None:
        unfit |= _holding_protected(tables, tree) | _beyond_repair(tables, wanted, tree)
    below = [] if base is None else [base]
    wanted_below = [wanted_of(table, tree) for table in below]

    @lru_cache(maxsize=1)
    def replay(keep: tuple[int, ...]) -> Replay:
        kept, of_kept = [tables[index] for index in keep], [wanted[index] for index in keep]
        return Replay([*below, *kept], tree, [*wanted_below, *of_kept])

    def liveness(keep: Sequence[int]) -> Liveness:
        shown = replay(tuple(keep))
        dead = dict(zip(keep, shown.dead()[len(below) :], strict=True))
        view, at = shown.view("last"), [None] * len(below) + list(keep)
        useful = {at[view[path][0]] for path in shown.unchanged("last") if not tree[path].is_dir}
        return Liveness(
            live={index: sizes[index] - dead[index] for index in keep},
            dead=dead,
            useless={i for i in keep if i not in useful and not _true_structure(tables[i], wanted[i], tree)},
        )

    room = max_layers
    while True:
        kept = compact(sizes, liveness, unfit=unfit, max_overhead=max_overhead, max_layers=room)
        groups, directories, whiteouts = _changes(replay(tuple(kept.keep)), components, max_layers)
        new = _layers(groups, directories, whiteouts, tree)
        layers: list[int | LayerPlan] = [*kept.keep, *new]
        if base is None:
            layers = _with_fixes(kept.keep, new, tables, tree)
        plan = Plan(layers, kept.drops)
        excess = len(plan.layers) - max_layers
        if excess <= 0 or not kept.keep:
            return plan
        room = max(0, len(kept.keep) - excess)


def _changes(shown: Replay, components: Components, max_layers: int) -> tuple[list[Group], list[str], list[str]]:
    """What new layers must hold: files, directories to state, paths to remove."""
    tree, view, same = shown.tree, shown.view("last"), shown.unchanged("last")
    wrong = [path for path in tree if path not in same]
    files = [path for path in wrong if not tree[path].is_dir]
    directories = [path for path in wrong if tree[path].is_dir]
    whiteouts = [
        path
        for path in view
        if path not in tree and (parent := tree.get(parent_of(path))) is not None and parent.is_dir
    ]
    layers = _most(max_layers, 1 - FRESH_SHARE)
    groups = group_changes(files, tree, components(), layers=layers) if files else []
    return groups, directories, sorted(whiteouts)


def _most(max_layers: int, share: float) -> int:
    """Layers that groups of files may take, when an image may have so many."""
    return max(min(MIN_GROUPS, max_layers), int(max_layers * share))


def _layers(
    groups: Sequence[Group], directories: Iterable[str], whiteouts: Sequence[str], tree: Tree
) -> list[LayerPlan]:
    """New layers for these groups; the last also states the directories and removes what is to be removed."""
    directories = list(directories)
    if not groups and (directories or whiteouts):
        groups = [Group("directories and removals", [])]
    plans = [LayerPlan(group.name, _stated(group.paths, tree), group.paths) for group in groups[:-1]]
    for group in groups[-1:]:
        stated = _stated([*group.paths, *whiteouts, *directories], tree, directories)
        plans.append(LayerPlan(group.name, stated, group.paths, whiteouts))
    return plans


def _stated(paths: Iterable[str], tree: Tree, directories: Iterable[str] = ()) -> list[str]:
    """All ancestors of some paths, and some directories, parents first.

    To OSTree's importer `usr` is an ancestor of `etc`, which it imports as `usr/etc`.
    """
    stated = set(directories)
    for path in paths:
        above = parent_of(path)
        while above not in stated:
            stated.add(above)
            above = parent_of(above)
    if "etc" in stated and "usr" in tree and tree["usr"].is_dir:
        stated.add("usr")
    return sorted(stated)


def _with_fixes(
    kept: Sequence[int], new: Sequence[LayerPlan], tables: Sequence[Table], tree: Tree
) -> list[int | LayerPlan]:
    """The kept and the new layers in order, with fix layers where a client would err.

    That is one that takes the first word on a directory, and overlayfs where it has to merge a directory of one layer.
    """
    layers: list[int | LayerPlan] = [*kept, *new]
    ordered = [*(tables[index] for index in kept), *(plan.table(tree) for plan in new)]
    shown = Replay(ordered, tree)
    fixes = shown.exposed()
    for path, (at, entry) in shown.view("first").items():
        want = tree.get(path)
        if path != ROOT and want is not None and want.is_dir and not entry.same_as(want):
            fixes.setdefault(at, []).append(path)
    merged = _earliest(fixes, ordered)
    for at in sorted(merged, reverse=True):
        layers.insert(at, LayerPlan("directory metadata", _stated(merged[at], tree, merged[at])))
    return layers


def _earliest(fixes: Mapping[int, Sequence[str]], tables: Sequence[Table]) -> dict[int, list[str]]:
    """Gather fixes in as few places as possible.

    A directory can be told before any layer up to the one that now decides it, as long as no layer in between removes
    it. Places are tried from the bottom of the image up.
    """
    merged: dict[int, list[str]] = {}
    hides = [hiding(table) for table in tables]
    for at in sorted(fixes):
        for path in fixes[at]:
            lowest = at
            while lowest > 0 and not hides[lowest - 1](path):
                lowest -= 1
            place = next((place for place in sorted(merged, reverse=True) if lowest <= place <= at), at)
            merged.setdefault(place, []).append(path)
    return merged


def _true_structure(table: Table, wanted: Collection[str], tree: Tree) -> bool:
    """Whether a layer holds directories and removals alone, all as the tree wants them: cheap to keep."""
    return not any(path in tree for path in table.whiteouts) and all(
        entry.is_dir and path in wanted for path, entry in table.entries.items()
    )


def _beyond_repair(tables: Sequence[Table], wanted: Sequence[Collection[str]], tree: Tree) -> dict[int, str]:
    """Layers with a directory that needs a fix and hides from clients what a fix layer would say of it."""
    unfit = {}
    for index, table in enumerate(tables):
        hides = hiding(table)
        opaque = [path for path, entry in table.entries.items() if entry.is_dir and hides(path)] if table.opaque else []
        with_removals = {parent_of(path) for path in table.whiteouts}
        for path in opaque:
            if path in tree and tree[path].is_dir and (path not in wanted[index] or path in with_removals):
                unfit[index] = f"it makes {path!r} opaque, which hides how it should be now"
    return unfit


def _holding_protected(tables: Sequence[Table], tree: Tree) -> dict[int, str]:
    """Layers that hold a path which must go and must not be removed by a whiteout, or that remove such a path."""
    unfit = {}
    for path in sorted(PROTECTED):
        for index, table in enumerate(tables):
            if path not in tree and path in table.entries:
                unfit[index] = f"{path} is gone, and clients cannot take its removal"
            elif path in table.whiteouts or (path == "usr" and path in table.opaque):
                unfit[index] = f"it removes what {path} held, and clients disagree about what that is"
    return unfit
