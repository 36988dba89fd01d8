"""The built image: a tree, its contents, and the configuration that goes with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from rechunk_action.oci.layout import Json
from rechunk_action.tree.entry import Tree


class Source(Protocol):
    """Where a build reads from. `config` is the OCI config of the built image, None where there is none; `notices`
    are for the user: what was left out and why.
    """

    tree: Tree
    config: Json | None
    notices: list[str]

    def prepare(self, paths: Collection[str]) -> None:
        """Bring the contents of these files within reach of `pieces`."""
        ...

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """The content of a file that `prepare` was told of."""
        ...

    def read(self, path: str) -> bytes:
        """The content of a package database's file, before any `prepare`."""
        ...
