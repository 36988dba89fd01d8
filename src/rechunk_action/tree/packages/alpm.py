"""Packages of Arch Linux and its kin: a folder of plain text for each.

`local/NAME-VERSION/` holds `desc`, which tells name and version, and `files`, which lists the paths. Both are made of
sections: a line `%TITLE%`, the values, an empty line. The folder's files were installed with the package and are its
own too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import takewhile

from rechunk_action.tree.packages.links import Links
from rechunk_action.tree.packages.package import Package

HOMES = ("var/lib/pacman/local", "usr/lib/sysimage/lib/pacman/local")
"""pacman's own place, and where images whose `/var` must be empty put it."""


def packages(links: Links, read: Callable[[str], bytes]) -> list[Package]:
    """The packages of the first database found."""
    home = next(filter(None, map(links.directory, HOMES)), None)
    if home is None:
        return []

    folders: dict[str, list[str]] = defaultdict(list)
    start = len(home) + 1
    for path in links.below(home):
        folders[path[start:].partition("/")[0]].append(path)

    def text(folder: str, name: str) -> str:
        path = links.file(f"{home}/{folder}/{name}")
        return "" if path is None else read(path).decode("utf-8", "replace")

    found = []
    for folder, own in folders.items():
        about = text(folder, "desc")
        names, versions = _section(about, "NAME"), _section(about, "VERSION")
        if names:
            component = f"alpm:{names[0]}"
            paths = _section(text(folder, "files"), "FILES") + own
            found.append(Package(component, component, "".join(versions[:1]), paths))
    return found


def _section(text: str, title: str) -> list[str]:
    """The values of a section, none if it is missing."""
    _, _, values = f"\n{text}".partition(f"\n%{title}%\n")
    return list(takewhile(bool, values.split("\n")))
