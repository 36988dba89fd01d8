"""A tree with contents, as small as a test needs it."""

from __future__ import annotations

from collections.abc import Mapping

from rechunk_action.tree.entry import Entry, Tree, ancestors


class SmallImage:
    """Files and links by path; the directories above them come by themselves."""

    def __init__(self, files: Mapping[str, str | bytes], links: Mapping[str, str] | None = None) -> None:
        self.tree: Tree = {}
        self._contents: dict[str, bytes] = {}
        for path, content in files.items():
            self._contents[path] = content.encode() if isinstance(content, str) else content
            self.add(path, Entry("f", 0o644, 0, 0, size=len(self._contents[path])))
        for path, target in (links or {}).items():
            self.add(path, Entry("l", 0o777, 0, 0, target=target))

    def add(self, path: str, entry: Entry) -> None:
        for above in ancestors(path):
            self.tree.setdefault(above, Entry("d", 0o755, 0, 0))
        self.tree[path] = entry

    def read(self, path: str) -> bytes:
        return self._contents[path]
