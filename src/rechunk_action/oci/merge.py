"""What a client sees after merging layers, under both of the rules that exist.

Layers are merged in order. In both rules a non-directory replaces whatever is at its path, a directory replaces a
non-directory, a whiteout removes a path with all below it, and an opaque directory hides all that lower layers put
into it. They differ in one thing: when several layers name a directory, overlayfs and the OCI specification take the
metadata of the *last* (image-spec, layer.md), OSTree's checkout that of the *first* since the directory came into
being (libostree, ostree-repo-checkout.c). An image is right only if it comes out the same under both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Literal

import msgspec

from rechunk_action.oci.table import Table
from rechunk_action.tree.entry import ROOT, UNKNOWN_MODE, Entry, Tree, ancestors, link_groups, parent_of

Rule = Literal["first", "last", "described"]
"""Which layer decides a directory's metadata. `described`: the last that really describes it, for reading images whose
layers leave out parents; a client may see those differently."""

RULES: tuple[Rule, Rule] = ("first", "last")

View = dict[str, tuple[int, Entry]]
"""The merged file system: path -> (index of the layer that decides it, its entry)."""


def merge(tables: Sequence[Table], rule: Rule) -> View:
    merger = _Merger(rule)
    for index, table in enumerate(tables):
        merger.add(index, table)
    return merger.view


def wanted_of(table: Table, tree: Tree) -> set[str]:
    """Paths that a layer holds exactly as the tree wants them, hard links aside."""
    return {
        path for path, entry in table.entries.items() if (want := tree.get(path)) is not None and entry.same_as(want)
    }


def unchanged(view: View, tree: Tree, wanted: Sequence[Collection[str]]) -> set[str]:
    """Paths that the view shows exactly as the tree wants them, hard links included.

    `wanted` gives what `wanted_of` says of each merged layer. A set of hard links counts only as a whole: what a client
    shows of it from one layer must be what the tree has.
    """
    same = {path for path, (index, _) in view.items() if path in wanted[index]}
    groups = link_groups(tree.items())
    shown: dict[tuple[int, str], list[str]] = {}
    for path in same:
        index, entry = view[path]
        if entry.group:
            shown.setdefault((index, entry.group), []).append(path)
    linked = [path for paths in (*groups.values(), *shown.values()) for path in paths if path in same]

    @cache  # a set is looked at once, and not for each of its members
    def is_whole(index: int, group: str, wanted_group: str) -> bool:
        return sorted(shown[index, group]) == groups[wanted_group]

    for path in linked:
        index, entry = view[path]
        wanted_group = tree[path].group
        if wanted_group not in groups:
            right = not entry.group or shown[index, entry.group] == [path]
        else:
            right = bool(entry.group) and is_whole(index, entry.group, wanted_group)
        if not right:
            same.discard(path)
    return same


class Replay:
    """Layers merged for a tree: what clients see by each rule, and what of it the tree wants. Worked out once each.

    `wanted` gives what `wanted_of` says of each layer, where the caller knows it already.
    """

    def __init__(self, tables: Sequence[Table], tree: Tree, wanted: Sequence[Collection[str]] | None = None) -> None:
        self.tables = tables
        self.tree = tree
        self._wanted = wanted
        self._views: dict[Rule, View] = {}
        self._unchanged: dict[Rule, set[str]] = {}

    def view(self, rule: Rule) -> View:
        if rule not in self._views:
            self._views[rule] = merge(self.tables, rule)
        return self._views[rule]

    def unchanged(self, rule: Rule) -> set[str]:
        """Paths that clients see exactly as the tree wants them."""
        if self._wanted is None:
            self._wanted = [wanted_of(table, self.tree) for table in self.tables]
        if rule not in self._unchanged:
            self._unchanged[rule] = unchanged(self.view(rule), self.tree, self._wanted)
        return self._unchanged[rule]

    def dead(self) -> list[int]:
        """Compressed bytes of each layer that clients don't see or that the tree does not want.

        Directories are structure: they are live while they exist.
        """
        dead = [
            sum(
                (e.cost for path, e in table.entries.items() if not (e.is_dir and self._has_directory(path))),
                table.dead,
            )
            for table in self.tables
        ]
        view = self.view("last")
        for path in self.unchanged("last"):
            at, entry = view[path]
            if not entry.is_dir:
                dead[at] -= entry.cost
        return dead

    def exposed(self) -> dict[int, list[str]]:
        """Directories, by layer, in which overlayfs would list whiteouts.

        It hides them only where it merges a directory of several layers: one that a single layer names is shown as it
        is, with the whiteouts for what lower layers no longer have.
        """
        found: dict[int, list[str]] = {}
        view = self.view("first")
        for at, table in enumerate(self.tables):
            for path in sorted({parent_of(path) for path in table.whiteouts} - {ROOT}):
                if path in view and view[path][0] == at and not any(path in t.entries for t in self.tables[at + 1 :]):
                    found.setdefault(at, []).append(path)
        return found

    def _has_directory(self, path: str) -> bool:
        entry = self.tree.get(path)
        return entry is not None and entry.is_dir


def hiding(table: Table) -> Callable[[str], bool]:
    """Whether a layer removes or replaces a directory, as lower layers left it."""
    hidden = {*table.whiteouts, *table.opaque}

    def hides(path: str) -> bool:
        for place in (*ancestors(path), path):
            entry = table.entries.get(place)
            if place in hidden or (entry is not None and entry.kind != "d"):
                return True
        return False

    return hides


class _Merger:
    """The layers merged so far, with what lies below each directory, so that a whole subtree can go."""

    def __init__(self, rule: Rule) -> None:
        self.view: View = {}
        self._rule = rule
        self._below: dict[str, list[str]] = {}

    def add(self, index: int, table: Table) -> None:
        """Merge one more layer. What it removes, it removes from lower layers only."""
        for path in table.opaque:
            self._hide(path, table.entries[path])
        self._remove(*table.whiteouts)
        view, below, rule = self.view, self._below, self._rule
        for path, entry in table.entries.items():
            old = view.get(path)
            if old is None:
                below.setdefault(parent_of(path), []).append(path)
            elif old[1].kind == "d":
                if entry.kind != "d":
                    self._remove(*self._below.pop(path, ()))
                elif rule == "first" or (rule == "described" and entry.mode == UNKNOWN_MODE):
                    continue
            view[path] = (index, entry)
        for path, target in table.links.items():
            self._link(path, target)

    def _hide(self, path: str, entry: Entry) -> None:
        """Make a directory opaque. One that is really described keeps that for the rule that asks for it."""
        if self._rule == "described" and entry.mode == UNKNOWN_MODE:
            self._remove(*self._below.pop(path, ()))
        else:
            self._remove(path)

    def _remove(self, *paths: str) -> None:
        """Remove paths with all below them. No recursion: an image may be as deep as it likes."""
        pending = list(paths)
        while pending:
            path = pending.pop()
            if self.view.pop(path, None) is not None:
                pending += self._below.pop(path, ())

    def _link(self, path: str, target: str) -> None:
        """A hard link to a lower layer's file: both are one file from now on."""
        if target in self.view:
            provider, entry = self.view[target]
            self._remove(path)
            self._below.setdefault(parent_of(path), []).append(path)
            entry = msgspec.structs.replace(entry, group=entry.group or target)
            self.view[target] = self.view[path] = (provider, entry)
