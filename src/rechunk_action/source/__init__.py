"""The built image: a tree, its contents, and the configuration that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from rechunk_action.oci.image import Json
from rechunk_action.progress import UNHEARD, Meter
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.scan import Hasher

Taker = Callable[[str, Iterator[bytes | memoryview]], None]
"""Takes the content of a file: its path, and what is in it, in pieces."""


class Source(Protocol):
    """Where a build reads from. `config` is the OCI config of the built image, None where there is none.

    `tree` and `notices` (for the user: what was left out and why) are there once `scan` has returned. `directory` is
    where this machine has just that tree as files then, None where there is no such place.
    """

    config: Json | None
    directory: str | None
    tree: Tree
    notices: list[str]

    def scan(self, hasher: Hasher | None, meter: Meter = UNHEARD) -> None:
        """Find out what is in the tree. `meter` expects what is read for that, by the hasher too, which tells of that
        part itself.

        Every file has its digest once `hasher`, which the caller has to finish, has finished. Without a hasher, a file
        that costs a read gets its digest when it is read for another reason.
        """
        ...

    def prepare(self, paths: Collection[str], meter: Meter = UNHEARD) -> None:
        """Bring the contents of these files within reach of `pieces`. `meter` is for what is read for that."""
        ...

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        """The content of a file that `prepare` was told of."""
        ...

    def hand_out(self, take: Taker, threads: int = 1) -> None:
        """Read every file that is not empty, once for each set of hard links, by the first of their names, in the order
        that costs least. What an archive holds twice is handed out twice: what comes last counts. `take` may be called
        by several threads at once: `threads` of them, or as many as the source was told to read with.
        """
        ...

    def read(self, path: str) -> bytes:
        """The content of a file that planning needs, such as a package database, before any `prepare`."""
        ...

    def recheck(self, threads: int = 1) -> None:
        """Look whether the tree is still what `scan` has found, when all has been read of it.

        Raises `InputError` that names what changed.
        """
        ...
