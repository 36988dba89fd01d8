"""Which package owns each file, as told by the package databases that a tree holds.

One module reads one kind of database. Its `packages` returns the paths that each package lists, by the package's
component name, and nothing when the tree has no such database. A path is as the database spells it, less the leading
slash: it may go through symbolic links, name a directory, or name nothing at all. What it comes to is decided here,
once for all of them.

Databases are decoded with replacement characters: a name that is not UTF-8 then names nothing in the tree.
"""

from __future__ import annotations

from collections.abc import Callable

from rechunk_action.tree.entry import Tree
from rechunk_action.tree.packages import alpm, dpkg, rpm
from rechunk_action.tree.packages.links import Links

DATABASES = tuple(f"{home}/" for database in (rpm, dpkg, alpm) for home in database.HOMES)
"""Where the files that `owners` reads are, by prefix, symbolic links aside."""


def owners(tree: Tree, read: Callable[[str], bytes]) -> dict[str, str]:
    """Path -> component of the package that owns it, for files and symbolic links.

    Of several packages the first owns the file: rpm before dpkg before alpm, then by name.
    """
    links = Links(tree)
    owner: dict[str, str] = {}
    for packages in (rpm.packages, dpkg.packages, alpm.packages):
        for component, paths in sorted(packages(links, read).items()):
            for path in paths:
                place = links.locate(path)
                if place is not None:
                    owner.setdefault(place, component)
    return owner
