"""Which packages a tree holds, and which of them owns each file, as told by the package databases in it.

One module reads one kind of database. Its `packages` returns those of the first database found, none when the tree has
no such database. A path of theirs is as the database spells it, less the leading slash: it may go through symbolic
links, name a directory, or name nothing at all. What it comes to is decided here, once for all of them.

Databases are decoded with replacement characters: a name that is not UTF-8 then names nothing in the tree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from rechunk_action.tree.entry import Tree
from rechunk_action.tree.packages import alpm, dpkg, rpm
from rechunk_action.tree.packages.links import Links
from rechunk_action.tree.packages.package import Package

DATABASES = tuple(f"{home}/" for database in (rpm, dpkg, alpm) for home in database.HOMES)
"""Where the files that `read_packages` reads are, by prefix, symbolic links aside."""


def read_packages(tree: Tree, read: Callable[[str], bytes]) -> list[Package]:
    """The packages of all databases: rpm before dpkg before alpm, then by component. `read` gives a file's content."""
    links = Links(tree)
    return [
        package
        for packages in (rpm.packages, dpkg.packages, alpm.packages)
        for package in sorted(packages(links, read), key=lambda package: package.component)
    ]


def owners(tree: Tree, packages: Iterable[Package]) -> dict[str, str]:
    """Path -> component of the package that owns it, for files and symbolic links. Of several, the first owns it."""
    links = Links(tree)
    owner: dict[str, str] = {}
    for package in packages:
        for path in package.paths:
            place = links.locate(path)
            if place is not None:
                owner.setdefault(place, package.component)
    return owner


def installed(packages: Iterable[Package]) -> dict[str, str]:
    """Name -> version of the packages that are installed, sorted by name; several versions are joined with commas."""
    versions: dict[str, set[str]] = defaultdict(set)
    for package in packages:
        if package.version:
            versions[package.name].add(package.version)
    return {name: ", ".join(sorted(found)) for name, found in sorted(versions.items())}
