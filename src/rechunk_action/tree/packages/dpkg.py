"""Packages of Debian and its kin: a list of paths for each, in plain text.

`info/NAME.list`, or `info/NAME:ARCH.list` where several architectures may be installed side by side, holds a
package's paths; `status` holds its architecture and version. Everything else in `info` that bears the package's name
was installed with it and is its own too. A diversion moves a path aside for all packages but the one that asked for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from rechunk_action.tree.packages.links import Links
from rechunk_action.tree.packages.package import Package

HOMES = ("var/lib/dpkg", "usr/lib/sysimage/dpkg")
"""dpkg's own place, and where images whose `/var` must be empty put it."""


def packages(links: Links, read: Callable[[str], bytes]) -> list[Package]:
    """The packages of the first database found."""
    for home in HOMES:
        status = links.file(f"{home}/status")
        info = links.directory(f"{home}/info")
        if status is not None and info is not None:
            break
    else:
        return []

    architectures, versions = _status(_text(read(status)))
    diversions_file = links.file(f"{home}/diversions")
    diversions = _diversions(_text(read(diversions_file))) if diversions_file is not None else {}

    metadata: dict[str, list[str]] = defaultdict(list)
    start = len(info) + 1
    for path in links.below(info):
        metadata[path[start:].rpartition(".")[0]].append(path)

    found = []
    for package, own in metadata.items():
        name, _, architecture = package.partition(":")
        architecture = architecture or architectures.get(name, "")
        listing = links.file(f"{info}/{package}.list")
        if listing is None or not architecture:
            continue
        paths = _text(read(listing)).split("\n")
        if diversions:
            paths = [_diverted(path, name, diversions) for path in paths]
        component = f"dpkg:{name}:{architecture}"
        version = versions.get((name, architecture), "")
        found.append(Package(component, component, version, [path[1:] for path in paths] + own))
    return found


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _status(status: str) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Package -> architecture, and the version of each package of an architecture that is installed.

    Of a package with several architectures only one is kept: the names of its lists tell them anyway.
    """
    architectures: dict[str, str] = {}
    versions: dict[tuple[str, str], str] = {}
    for paragraph in status.split("\n\n"):
        fields = {}
        for line in paragraph.split("\n"):
            field, _, value = line.partition(":")
            if field in _READ:
                fields[field] = value.strip()
        name, architecture = fields.get("Package", ""), fields.get("Architecture", "")
        if architecture:
            architectures[name] = architecture
        if not fields.get("Status", "").endswith(_GONE):
            versions[name, architecture] = fields.get("Version", "")
    return architectures, versions


_READ = ("Package", "Status", "Architecture", "Version")
_GONE = ("config-files", "not-installed")
"""States of packages of which no more than their settings are left (dpkg(1))."""


def _diversions(text: str) -> dict[str, tuple[str, str]]:
    """Path -> where it is diverted to, and the package that is not diverted. The file has three lines for each."""
    lines = text.split("\n")
    return {path: (aside, package) for path, aside, package in zip(lines[::3], lines[1::3], lines[2::3], strict=False)}


def _diverted(path: str, package: str, diversions: dict[str, tuple[str, str]]) -> str:
    aside, exempt = diversions.get(path, (path, package))
    return path if package == exempt else aside
