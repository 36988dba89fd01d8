"""The built image: a tree, its contents, and the configuration that goes with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from rechunk_action.oci.image import Json
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.scan import Hasher


class Source(Protocol):
    """Where a build reads from. `config` is the OCI config of the built image, None where there is none.

    `tree` and `notices` (for the user: what was left out and why) are there once `scan` has returned.
    """

    config: Json | None
    tree: Tree
    notices: list[str]

    def scan(self, hasher: Hasher | None) -> None:
        """Find out what is in the tree.

        Every file has its digest once `hasher`, which the caller has to finish, has finished. Without a hasher, a file
        that costs a read gets its digest when it is read for another reason.
        """
        ...

    def prepare(self, paths: Collection[str]) -> None:
        """Bring the contents of these files within reach of `pieces`."""
        ...

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """The content of a file that `prepare` was told of."""
        ...

    def read(self, path: str) -> bytes:
        """The content of a file that planning needs, such as a package database, before any `prepare`."""
        ...
