"""What containers show of an OSTree-chunked image: `podman run` and `FROM` know nothing of the commit.

For them, each layer has hard links to its objects at the paths of the commit, `etc` in place of `usr/etc`. A file of no
size is there as one of its own. Every file and link has to be the commit's, and none may be left over. Directories
are not compared: images of the format's first version leave them out of their chunks, and each client makes up its own.
Neither are attributes: such images have them beside the objects alone.
"""

from __future__ import annotations

from msgspec.structs import replace

from rechunk_action.oci.image import Image, read_layers
from rechunk_action.oci.merge import merge
from rechunk_action.tree.entry import Tree
from rechunk_action.verify import tree_differences

_REPOSITORY = "sysroot/ostree/"


def view_path(path: str) -> str:
    """Where containers see a path of the commit."""
    return path.removeprefix("usr/") if is_in(path, "usr/etc") else path


def commit_path(path: str) -> str:
    """Where the commit has a path of the view."""
    return f"usr/{path}" if is_in(path, "etc") else path


def is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def view_differences(image: Image, tree: Tree, *, threads: int) -> list[str]:
    """How the view of containers differs from the commit's tree, a sentence each. Empty when it does not.

    Reads all layers, `threads` at the same time. Raises `CorruptImage` for one that is damaged.
    """
    tables = read_layers(image, threads)
    shown = {
        commit_path(path): replace(entry, xattrs=())
        for path, (_, entry) in merge(tables, "last").items()
        if entry.kind != "d" and not path.startswith(_REPOSITORY)
    }
    wanted = {path: replace(entry, xattrs=()) for path, entry in tree.items() if entry.kind != "d"}
    found = [f"layer {number}: {table.problem}" for number, table in enumerate(tables, 1) if table.problem]
    return found + [f"{text} (in containers)" for text in tree_differences(shown, wanted)]
