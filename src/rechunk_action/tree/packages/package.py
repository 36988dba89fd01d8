"""A package, whatever the kind of its database."""

from __future__ import annotations

from typing import NamedTuple


class Package(NamedTuple):
    """A package in a database.

    `component` names what its files belong to, `name` the package in whatever version: they differ where several
    versions of one package are installed. `version` is `""` where the package is not installed (any more) or tells
    none. `paths` are as the database spells them, less the leading slash.
    """

    component: str
    name: str
    version: str
    paths: list[str]
