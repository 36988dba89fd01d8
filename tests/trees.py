"""Random small trees, and random changes of them over generations, as pure data.

They are small, but every generation is likely to hold what is hard for image clients: names that are prefixes of each
other or sort around `.wh.`, hard links that come and go, paths that change their type, directories that change their
mode or owner, subtrees that vanish and come back. `usr` and `etc` are always directories, as in every image.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hypothesis import strategies as st

from rechunk_action.tree.entry import Entry, Tree, new_digest, parent_of

CONTENTS = tuple(random.Random(size).randbytes(size) for size in (0, 1, 400, 3_000, 20_000, 60_000))  # noqa: S311
"""Few and incompressible, so that a file's share of a layer can be told."""

FIXED = ("", "usr", "etc")
"""Directories that every generation has."""

MAX_DEPTH = 4

NAMES = (
    *("a", "a-b", "a.b", "b", "-x", "+x", ".bashrc", ".wh", ".w", ".xh", "wh.a", "ostree"),
    *("sp ace", "line\nbreak", "é", "日本", "\\", "=", "n" * 200, "ü" * 100, "x" * 99 + "ü"),
)

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""`cap_net_raw+ep`, as the kernel stores it."""


@dataclass(frozen=True)
class Node:
    """A directory, file or symbolic link. `content` is an index into `CONTENTS`; files of the same `inode`, if it is
    not 0, are hard links of each other."""

    kind: Literal["d", "f", "l"]
    mode: int
    owner: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    mtime: int = 0
    content: int = 0
    target: str = ""
    inode: int = 0


Files = Mapping[str, Node]
"""Path -> node, all parents included; the root is `""`."""


class InMemory:
    """Files as a build sees them: their tree and their contents."""

    def __init__(self, files: Files) -> None:
        self._files = files
        first: dict[int, str] = {}
        linked = defaultdict(list)
        for path in sorted(files):
            if files[path].inode:
                first.setdefault(files[path].inode, path)
                linked[files[path].inode].append(path)
        self.tree: Tree = {}
        for path, node in files.items():
            self.tree[path] = _entry(node)
            if len(linked[node.inode]) > 1 and node.inode:
                self.tree[path].group = first[node.inode]

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        del size
        yield CONTENTS[self._files[path].content]

    def read(self, path: str) -> bytes:
        return CONTENTS[self._files[path].content]


def write(files: Files, root: Path) -> None:
    """Write the files as a directory. Needs root's rights, for owners and attributes."""
    root.mkdir(exist_ok=True)
    inodes: dict[int, Path] = {}
    for path in sorted(files):
        node, place = files[path], root / path
        if node.inode in inodes:
            place.hardlink_to(inodes[node.inode])
            continue
        if node.kind == "l":
            place.symlink_to(node.target)
        elif node.kind == "f":
            place.write_bytes(CONTENTS[node.content])
        elif path:
            place.mkdir()
        os.chown(place, *node.owner, follow_symlinks=False)
        if node.kind != "l":
            place.chmod(node.mode)
        for name, value in node.xattrs:
            os.setxattr(place, name, value, follow_symlinks=False)
        if node.kind != "d":
            os.utime(place, (node.mtime, node.mtime), follow_symlinks=False)
        if node.inode:
            inodes[node.inode] = place


def generations(*, least: int, most: int, edits: int = 6) -> st.SearchStrategy[list[Files]]:
    """Successive versions of a tree, so many of them, each some edits away from the one before."""
    return _generations(least, most, edits)


@st.composite
def _generations(draw: st.DrawFn, least: int, most: int, edits: int) -> list[Files]:
    files: dict[str, Node] = {path: Node("d", 0o755) for path in FIXED}
    for _ in range(draw(st.integers(3, 12))):
        files = _add(draw, files, [])
    history: list[Files] = [files]
    for _ in range(draw(st.integers(least, most)) - 1):
        for _ in range(draw(st.integers(0, edits))):
            files = draw(st.sampled_from(_EDITS))(draw, files, history)
        history.append(files)
    return history


_OWNERS = st.sampled_from([(0, 0), (0, 0), (7, 8), (1000, 1000), (2_100_000, 3_000_000_000)])
_DIRECTORY_MODES = st.sampled_from([0o755, 0o700, 0o711, 0o1777, 0o2755])
_FILE_MODES = st.sampled_from([0o644, 0o755, 0o4755, 0o2711, 0o600, 0])
_TIMES = st.sampled_from([0, 1, 1_000_000_000, 1_700_000_000])
_CONTENT = st.integers(0, len(CONTENTS) - 1)
_TARGETS = st.sampled_from(["a", "../a", "/usr/a", "nowhere", "é/日本", "t" * 150, "x" * 99 + "ü", "."])
_VALUES = st.sampled_from([b"1", b"2", b"\0\xff=\x80", b"v" * 300])


@st.composite
def _xattrs(draw: st.DrawFn, kind: str) -> tuple[tuple[str, bytes], ...]:
    found: dict[str, bytes] = {}
    if draw(st.integers(0, 3)) == 0:
        # The kernel lets user attributes be on files and directories only.
        found["trusted.t" if kind == "l" else "user.a"] = draw(_VALUES)
        if draw(st.booleans()):
            found["trusted.other"] = draw(_VALUES)
        if kind == "f" and draw(st.booleans()):
            found["security.capability"] = CAPABILITY
    return tuple(sorted(found.items()))


def _new(draw: st.DrawFn, kind: Literal["d", "f", "l"]) -> Node:
    owner, xattrs, mtime = draw(_OWNERS), draw(_xattrs(kind)), draw(_TIMES)
    if kind == "d":
        return Node("d", draw(_DIRECTORY_MODES), owner, xattrs)
    if kind == "l":
        return Node("l", 0o777, owner, xattrs, mtime, target=draw(_TARGETS))
    return Node("f", draw(_FILE_MODES), owner, xattrs, mtime, content=draw(_CONTENT))


_Edit = Callable[[st.DrawFn, dict[str, Node], list[Files]], dict[str, Node]]


def _add(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    place = _free_place(draw, files)
    return files | {place: _new(draw, draw(st.sampled_from("ffdl")))} if place else files


def _remove(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    path = _any(draw, files)
    return _without(files, path) if path else files


def _retype(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    path = _any(draw, files)
    if not path:
        return files
    new = _without(files, path) | {path: _new(draw, draw(st.sampled_from("dfl")))}
    return _add_below(draw, new, path)


def _change_metadata(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    return _changed_metadata(draw, files, draw(st.sampled_from(sorted(files))))


def _change_directory(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    return _changed_metadata(draw, files, draw(st.sampled_from(_directories(files))))


def _change_content(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    path = _any(draw, files, "f")
    return _with(files, path, replace(files[path], content=draw(_CONTENT), mtime=draw(_TIMES))) if path else files


def _upgrade(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    """Other files under other names in a directory, as a package's new version brings them."""
    directory = draw(st.sampled_from(_directories(files)))
    inside = [path for path, node in files.items() if path and parent_of(path) == directory and node.kind != "d"]
    for path in inside:
        files = _without(files, path)
    places = [f"{directory}/{name}".removeprefix("/") for name in draw(st.lists(st.sampled_from(NAMES), max_size=3))]
    return files | {place: _new(draw, draw(st.sampled_from("fl"))) for place in places if place not in files}


def _touch(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    path = _any(draw, files, "fl")
    return _with(files, path, replace(files[path], mtime=draw(_TIMES))) if path else files


def _rename(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    path = _any(draw, files)
    place = _free_place(draw, files)
    if not path or not place or f"{place}/".startswith(f"{path}/"):
        return files
    moved = {place + at[len(path) :]: node for at, node in _subtree(files, path).items()}
    return _without(files, path) | moved


def _link(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    """One more hard link of a file, at a new place or instead of another file."""
    path = _any(draw, files, "f")
    place = _any(draw, files, "f") if draw(st.booleans()) else _free_place(draw, files)
    if not path or not place or place == path:
        return files
    inode = files[path].inode or 1 + max(node.inode for node in files.values())
    return files | {at: replace(files[path], inode=inode) for at in (path, place)}


def _split(draw: st.DrawFn, files: dict[str, Node], _: list[Files]) -> dict[str, Node]:
    linked = sorted(path for path, node in files.items() if node.inode)
    if not linked:
        return files
    path = draw(st.sampled_from(linked))
    return files | {path: replace(files[path], inode=0)}


def _bring_back(draw: st.DrawFn, files: dict[str, Node], history: list[Files]) -> dict[str, Node]:
    """A path, with all below it, as it was in an earlier generation."""
    then = draw(st.sampled_from(history))
    gone = sorted(
        path
        for path, node in then.items()
        if path not in FIXED and node != files.get(path) and _is_directory(files.get(parent_of(path)))
    )
    if not gone:
        return files
    path = draw(st.sampled_from(gone))
    # Its hard links of each other come back, not those to what is elsewhere.
    last = max(node.inode for node in files.values())
    back = {at: replace(node, inode=node.inode and node.inode + last) for at, node in _subtree(then, path).items()}
    return _without(files, path) | back


_EDITS: tuple[_Edit, ...] = (
    *(_add, _add, _remove, _remove, _upgrade, _upgrade, _retype, _rename, _bring_back, _bring_back),
    *(_change_directory, _change_directory, _change_metadata, _change_content, _touch, _link, _link, _split),
)


def _changed_metadata(draw: st.DrawFn, files: dict[str, Node], path: str) -> dict[str, Node]:
    new = _new(draw, files[path].kind)
    part = draw(st.sampled_from(("mode", "owner", "xattrs")))
    if part == "mode":
        return _with(files, path, replace(files[path], mode=new.mode))
    if part == "owner":
        return _with(files, path, replace(files[path], owner=new.owner))
    return _with(files, path, replace(files[path], xattrs=new.xattrs))


def _add_below(draw: st.DrawFn, files: dict[str, Node], path: str) -> dict[str, Node]:
    if files[path].kind != "d" or not draw(st.booleans()):
        return files
    return files | {f"{path}/{draw(st.sampled_from(NAMES))}": _new(draw, draw(st.sampled_from("fl")))}


def _with(files: dict[str, Node], path: str, node: Node) -> dict[str, Node]:
    """The files with one changed, and its hard links with it."""
    inode = files[path].inode
    return {at: node if at == path or (inode and old.inode == inode) else old for at, old in files.items()}


def _without(files: dict[str, Node], path: str) -> dict[str, Node]:
    gone = _subtree(files, path)
    return {at: node for at, node in files.items() if at not in gone}


def _subtree(files: Files, path: str) -> dict[str, Node]:
    return {at: node for at, node in files.items() if at == path or at.startswith(f"{path}/")}


def _any(draw: st.DrawFn, files: dict[str, Node], kinds: str = "dfl") -> str:
    """A path that may go, `""` if there is none."""
    found = sorted(path for path, node in files.items() if node.kind in kinds and path not in FIXED)
    return draw(st.sampled_from(found)) if found else ""


def _free_place(draw: st.DrawFn, files: dict[str, Node]) -> str:
    parent = draw(st.sampled_from([path for path in _directories(files) if path.count("/") < MAX_DEPTH]))
    name = draw(st.sampled_from(NAMES))
    path = f"{parent}/{name}" if parent else name
    return "" if path in files else path


def _directories(files: Files) -> list[str]:
    return sorted(path for path, node in files.items() if node.kind == "d")


def _is_directory(node: Node | None) -> bool:
    return node is not None and node.kind == "d"


def _entry(node: Node) -> Entry:
    entry = Entry(node.kind, node.mode, *node.owner, node.mtime, target=node.target, xattrs=node.xattrs)
    if node.kind == "f":
        content = CONTENTS[node.content]
        entry.size, entry.digest = len(content), new_digest(content).digest()
    return entry
