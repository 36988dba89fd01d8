"""What a tree says of itself: os-release(5)."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from rechunk_action.tree.entry import Tree
from rechunk_action.tree.packages.links import Links

OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
"""Where the file is, the first before the second."""


def os_release(tree: Tree, read: Callable[[str], bytes]) -> dict[str, str]:
    """The file's fields by name; none when the tree has no such file. Lines that a shell would not take are skipped."""
    links = Links(tree)
    path = next((found for place in OS_RELEASE if (found := links.file(place)) is not None), None)
    fields = {}
    for line in read(path).decode(errors="replace").splitlines() if path else ():
        key, equals, text = line.strip().partition("=")
        if not equals or key.startswith("#"):
            continue
        try:
            fields[key] = " ".join(shlex.split(text))
        except ValueError:
            continue
    return fields
