"""Which files change together.

A component is such a set: the files of a package, the files that the image's author gave one name, or a single large
file. Layers that are cut along components stay whole until the component itself changes. The first of these that
speaks for a file or symbolic link decides:

1. the extended attribute `user.component`, the file's own or that of the nearest directory above it which has one;
2. the package databases that the tree holds;
3. its size: a file of `LARGE_FILE` bytes or more, with all its hard links, is a component of its own.

What none of them speaks for belongs to no component. A name is the same in the next version of the image, says what
it was taken from (`xattr:`, `rpm:`, `dpkg:`, `alpm:`, `file:`), and depends on nothing but the tree.
"""

from __future__ import annotations

from collections.abc import Iterable

from rechunk_action.errors import InputError
from rechunk_action.tree.entry import Entry, Tree, parent_of
from rechunk_action.tree.packages import owners
from rechunk_action.tree.packages.package import Package

LARGE_FILE = 8_000_000
"""Bytes from which a file is worth a layer of its own: each layer costs a client a request and an image one of a few
hundred places, which is little beside 8 MB that nothing else's change sends again."""

ATTRIBUTE = "user.component"


def components(tree: Tree, packages: Iterable[Package]) -> dict[str, str]:
    """The component of each file and symbolic link that has one, in the tree's order. `packages` are the tree's own."""
    labels = _labels(tree)
    packaged = owners(tree, packages)
    found: dict[str, str] = {}
    for path, entry in tree.items():
        if entry.is_dir:
            continue
        component = labels.get(path) or packaged.get(path)
        if component is not None:
            found[path] = component
        elif entry.kind == "f" and entry.size >= LARGE_FILE:
            found[path] = f"file:{entry.group or path}"
    return found


def _labels(tree: Tree) -> dict[str, str]:
    """The component that `user.component` gives to each path, directories included."""
    labels = {path: _label(path, value) for path, entry in tree.items() if (value := _attribute(entry)) is not None}
    if not labels:
        return labels
    # A parent sorts before its children, so a directory hands on what it has inherited itself.
    for path in sorted(path for path, entry in tree.items() if entry.is_dir):
        _inherit(labels, path)
    for path, entry in tree.items():
        if not entry.is_dir:
            _inherit(labels, path)
    return labels


def _attribute(entry: Entry) -> bytes | None:
    for name, value in entry.xattrs:
        if name == ATTRIBUTE:
            return value
    return None


def _label(path: str, value: bytes) -> str:
    try:
        return f"xattr:{value.decode()}"
    except UnicodeDecodeError:
        raise InputError(
            f"The extended attribute {ATTRIBUTE} of /{path} is not UTF-8 text: {value!r}; set it to a component's name"
        ) from None


def _inherit(labels: dict[str, str], path: str) -> None:
    label = labels.get(parent_of(path))
    if label is not None:
        labels.setdefault(path, label)
