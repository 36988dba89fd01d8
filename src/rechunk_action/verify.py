"""Whether an image, merged as clients merge it, equals a tree.

Both merge rules must give exactly the tree. Ignored is only what clients cannot show: mtimes, and under OSTree's rule
the metadata of the root directory, which its importer makes up (0755, root). An image that carries an OSTree commit is
not merged: there, the commit's tree is what clients show, its root directory included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rechunk_action.oci.merge import RULES, Replay, Rule
from rechunk_action.tree.entry import ROOT, UNKNOWN_MODE, Entry, Tree, link_groups

SHOWN = 20
"""Differences that an error lists; their number is always told."""

_CLIENTS = {"first": "OSTree", "last": "overlay"}


def differences(replay: Replay, rules: Sequence[Rule] = RULES) -> list[str]:
    """How the merged layers differ from the tree, a sentence each, sorted by path. Empty when they are equal."""
    found = [f"layer {number}: {table.problem}" for number, table in enumerate(replay.tables, 1) if table.problem]
    for rule in rules:
        found += (f"{text} (as {_CLIENTS[rule]} merges)" for text in _differences(replay, rule))
    for at, paths in sorted(replay.exposed().items()):
        found += (f"/{path}: overlayfs would list the removals of layer {at + 1} as files" for path in paths)
    return found


def summary(found: Sequence[str]) -> str:
    """Differences as an error tells them: the first ones, and how many there are."""
    more = f"\n  ... and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    lines = "".join(f"\n  {text}" for text in found[:SHOWN])
    return f"{len(found):,} difference{'s' if len(found) > 1 else ''}:{lines}{more}"


def tree_differences(shown: Tree, wanted: Tree) -> list[str]:
    """How one tree differs from another, a sentence each, sorted by path. Empty when they are equal.

    Not compared are hard links and mtimes, of which OSTree keeps neither.
    """
    found = []
    for path in sorted(shown.keys() | wanted.keys()):
        is_, should = shown.get(path), wanted.get(path)
        if is_ is None or should is None or not is_.same_as(should):
            found.append(f"/{path}: " + _difference(is_, should, ()))
    return found


def _differences(replay: Replay, rule: Rule) -> Iterator[str]:
    tree, view, same = replay.tree, replay.view(rule), replay.unchanged(rule)
    if rule == "first":
        same = same | {ROOT}
    if len(same) == len(tree) == len(view):
        return
    groups = link_groups(tree.items())
    for path in sorted(tree.keys() | view.keys()):
        if path in same:
            continue
        shown = view[path][1] if path in view else None
        wanted = tree.get(path)
        yield f"/{path}: " + _difference(shown, wanted, groups.get(wanted.group, [path]) if wanted else [])


def _difference(shown: Entry | None, wanted: Entry | None, links: Sequence[str]) -> str:
    if shown is None:
        return "missing"
    if wanted is None:
        return "should not be there"
    facts = [
        f"{name} {_text(is_)}, should be {_text(should)}"
        for name, is_, should in (
            ("type", shown.kind, wanted.kind),
            ("mode", shown.mode, wanted.mode),
            ("owner", f"{shown.uid}:{shown.gid}", f"{wanted.uid}:{wanted.gid}"),
            ("size", shown.size, wanted.size),
            ("content", shown.digest.hex()[:12], wanted.digest.hex()[:12]),
            ("target", shown.target, wanted.target),
            ("attributes", dict(shown.xattrs), dict(wanted.xattrs)),
        )
        if is_ != should
    ]
    if not facts:
        facts.append("hard links are not exactly " + ", ".join(f"/{link}" for link in links[:3]))
    return "; ".join(fact.replace(_text(UNKNOWN_MODE), "unstated") for fact in facts)


_MODES = 0o7777


def _text(value: object) -> str:
    return f"{value:#o}" if isinstance(value, int) and value <= _MODES else repr(value)
