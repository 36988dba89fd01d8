"""What a client sees after merging layers, under both of the rules that exist.

Layers are merged in order. In both rules a non-directory replaces whatever is at its path, a directory replaces a
non-directory, a whiteout removes a path with all below it, and an opaque directory hides all that lower layers put
into it. They differ in one thing: when several layers name a directory, overlayfs and the OCI specification take the
metadata of the *last* (image-spec, layer.md), OSTree's checkout that of the *first* since the directory came into
being (libostree, ostree-repo-checkout.c). An image is right only if it comes out the same under both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from rechunk_action.oci.table import Table
from rechunk_action.tree.entry import UNKNOWN_MODE, Entry, Tree, ancestors, link_groups, parent_of

Rule = Literal["first", "last", "described"]
"""Which layer decides a directory's metadata. `described`: the last that really describes it, for reading images whose
layers leave out parents; a client may see those differently."""

RULES: tuple[Rule, Rule] = ("first", "last")

View = dict[str, tuple[int, Entry]]
"""The merged file system: path -> (index of the layer that decides it, its entry)."""


def merge(tables: Sequence[Table], rule: Rule) -> View:
    view: View = {}
    below: dict[str, list[str]] = {}

    def remove_below(path: str) -> None:
        for child in below.pop(path, ()):
            if view.pop(child, None) is not None:
                remove_below(child)

    for index, table in enumerate(tables):
        for path in table.opaque:
            remove_below(path)
            view.pop(path, None)
        for path in table.whiteouts:
            if view.pop(path, None) is not None:
                remove_below(path)
        for path, entry in table.entries.items():
            old = view.get(path)
            if old is None:
                below.setdefault(parent_of(path), []).append(path)
            elif old[1].kind == "d":
                if entry.kind != "d":
                    remove_below(path)
                elif rule == "first" or (rule == "described" and entry.mode == UNKNOWN_MODE):
                    continue
            view[path] = (index, entry)
        for path, target in table.links.items():
            if target in view:
                below.setdefault(parent_of(path), []).append(path)
                provider, entry = view[target]
                entry = msgspec.structs.replace(entry, group=entry.group or target)
                view[target] = view[path] = (provider, entry)
    return view


def unchanged(view: View, tree: Tree) -> set[str]:
    """Paths that the view shows exactly as the tree wants them, hard links included.

    A set of hard links counts only as a whole: what a client shows of it from one layer must be what the tree has.
    """
    same = {path for path, (_, entry) in view.items() if (want := tree.get(path)) is not None and entry.same_as(want)}
    wanted = link_groups(tree.items())
    shown: dict[tuple[int, str], list[str]] = {}
    for path in same:
        index, entry = view[path]
        if entry.group:
            shown.setdefault((index, entry.group), []).append(path)
    linked = [path for paths in (*wanted.values(), *shown.values()) for path in paths if path in same]
    for path in linked:
        index, entry = view[path]
        as_shown = shown[index, entry.group] if entry.group else [path]
        if sorted(as_shown) != wanted.get(tree[path].group, [path]):
            same.discard(path)
    return same


def hides(table: Table, path: str) -> bool:
    """Whether this layer removes or replaces the directory `path`, as lower layers left it."""
    for place in (*ancestors(path), path):
        entry = table.entries.get(place)
        if place in table.whiteouts or place in table.opaque or (entry is not None and entry.kind != "d"):
            return True
    return False
