"""Packages of Arch Linux and its kin: a folder of plain text for each.

`local/NAME-VERSION/` holds `desc`, which tells the name, and `files`, which lists the paths. Both are made of
sections: a line `%TITLE%`, the values, an empty line. The folder's files were installed with the package and are its
own too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import takewhile

from rechunk_action.tree.packages.links import Links

HOMES = ("var/lib/pacman/local", "usr/lib/sysimage/lib/pacman/local")
"""pacman's own place, and where images whose `/var` must be empty put it."""


def packages(links: Links, read: Callable[[str], bytes]) -> dict[str, list[str]]:
    """Component -> the paths it lists, for each package of the first database found."""
    home = next(filter(None, map(links.directory, HOMES)), None)
    if home is None:
        return {}

    folders: dict[str, list[str]] = defaultdict(list)
    start = len(home) + 1
    for path in links.below(home):
        folders[path[start:].partition("/")[0]].append(path)

    found: dict[str, list[str]] = {}
    for folder, own in folders.items():
        names = _section(read, links.file(f"{home}/{folder}/desc"), "NAME")
        if names:
            found[f"alpm:{names[0]}"] = _section(read, links.file(f"{home}/{folder}/files"), "FILES") + own
    return found


def _section(read: Callable[[str], bytes], path: str | None, title: str) -> list[str]:
    """The values of a section, none if the file or the section is missing."""
    if path is None:
        return []
    text = read(path).decode("utf-8", "replace")
    _, _, values = f"\n{text}".partition(f"\n%{title}%\n")
    return list(takewhile(bool, values.split("\n")))
