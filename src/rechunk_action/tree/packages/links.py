"""Where a path leads inside a tree, symbolic links followed.

Package databases list paths as they were packaged: `/lib/x`, although `/lib` has become a link to `usr/lib`. A tree
holds real paths only: all above one of its keys are directories. So a path that is a key is at its place already, and
any other is walked as the kernel would, with the tree's root as the root directory: an absolute target starts there,
and `..` does not leave it.
"""

from __future__ import annotations

from collections.abc import Iterator

from rechunk_action.tree.entry import ROOT, Tree, parent_of

MAX_LINKS = 40
"""Links that one walk follows before it is taken for a loop: Linux's own limit."""


class Links:
    """Looks up paths in one tree, which must not change meanwhile. Leading slashes do not matter to it."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._parents: dict[str, str | None] = {}

    def locate(self, path: str) -> str | None:
        """The real path of the file or symbolic link that `path` names; None for a directory or nothing.

        The last component is not followed: who lists a link owns the link.
        """
        place = path if path in self._tree else self._beside(path)
        if place is None:
            return None
        entry = self._tree.get(place)
        return None if entry is None or entry.kind == "d" else place

    def directory(self, path: str) -> str | None:
        """The real path of the directory that `path` leads to."""
        place = self._walk(path)
        return place if place is not None and self._tree[place].kind == "d" else None

    def file(self, path: str) -> str | None:
        """The real path of the regular file that `path` leads to."""
        place = self._walk(path)
        return place if place is not None and self._tree[place].kind == "f" else None

    def below(self, directory: str) -> Iterator[str]:
        """All paths of the tree below the directory with this real path."""
        start = f"{directory}/"
        return (path for path in self._tree if path.startswith(start))

    def _beside(self, path: str) -> str | None:
        """`path` with the real path of its parent; None if there is no such parent, or no name at the path's end."""
        parent, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            return None
        # Neighbours share their parent, so most walks are saved.
        if parent not in self._parents:
            self._parents[parent] = self._walk(parent)
        place = self._parents[parent]
        if place is None:
            return None
        return f"{place}/{name}" if place else name

    def _walk(self, path: str) -> str | None:
        """The real path of what `path` leads to, its last component followed too."""
        at = ROOT
        followed = 0
        ahead = path.split("/")[::-1]
        while ahead:
            part = ahead.pop()
            if part in ("", "."):
                continue
            if part == "..":
                at = parent_of(at)
                continue
            here = at
            at = f"{at}/{part}" if at else part
            entry = self._tree.get(at)
            if entry is None or (entry.kind == "f" and ahead):
                return None
            if entry.kind == "l":
                followed += 1
                if followed > MAX_LINKS:
                    return None
                ahead += entry.target.split("/")[::-1]
                at = ROOT if entry.target.startswith("/") else here
        return at
