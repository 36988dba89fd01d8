"""Layers as other tools write them: without parents, with opaque directories, with hard links into lower layers."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from rechunk_action.tree.entry import ancestors, parent_of
from tests.support import Item, directory, file, hardlink, symlink
from tests.trees import CONTENTS, Files, Node


@st.composite
def foreign_layers(draw: st.DrawFn, history: list[Files]) -> list[list[Item]]:
    """A layer for each generation, of what changed in it."""
    return [_layer(draw, old, new) for old, new in itertools.pairwise([{}, *history])]


def _layer(draw: st.DrawFn, old: Files, new: Files) -> list[Item]:
    changed = {path for path, node in new.items() if node != old.get(path)}
    items = []
    for path in sorted(path for path, node in new.items() if path and node.kind == "d" and path in old):
        if draw(st.integers(0, 9)) == 0:
            items.append(file(f"{path}/.wh..wh..opq"))
            changed |= {below for below in new if below.startswith(f"{path}/")}
    for path in sorted(old.keys() - new.keys()):
        if parent_of(path) in new and new[parent_of(path)].kind == "d":
            parent, slash, name = path.rpartition("/")
            items.append(file(f"{parent}{slash}.wh.{name}"))
    first = {node.inode: path for path, node in sorted(new.items(), reverse=True) if node.inode}
    # What is a link to a file that is written here has to be one again.
    changed |= {path for path, node in new.items() if first.get(node.inode) in changed}
    if draw(st.booleans()):
        changed |= {above for path in changed for above in ancestors(path)}
    return items + [_item(path, new[path], first.get(new[path].inode, path)) for path in sorted(changed)]


def _item(path: str, node: Node, first: str) -> Item:
    attributes = {"uid": node.owner[0], "gid": node.owner[1], "xattrs": dict(node.xattrs), "mtime": node.mtime}
    if node.kind == "d":
        return directory(path or "./", mode=node.mode, **attributes)
    if node.kind == "l":
        return symlink(path, node.target, **attributes)
    if first != path:
        return hardlink(path, first, mode=node.mode, **attributes)
    return file(path, CONTENTS[node.content], mode=node.mode, **attributes)
