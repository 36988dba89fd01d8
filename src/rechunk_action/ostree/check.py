"""Whether an OSTree-chunked image is a tree: what importers make of its commit, and what containers show of it.

Independent of what wrote the layers: the commit is parsed out of the first layer as it was written, and what the other
layers hold is known by their tables, which are made by reading them with every object's checksum verified.

- The commit is the one that was made, and describes the tree, path by path, with the same objects and directories.
- Every object of the commit is in some layer: a new client has none of them.
- The view of containers, who take the last word on a path, is the tree as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from rechunk_action import verify
from rechunk_action.oci.merge import Replay
from rechunk_action.ostree.chunked import CommitLayer
from rechunk_action.ostree.commit import Committed
from rechunk_action.ostree.view import view_path


def differences(first: CommitLayer, merged: Replay, committed: Committed) -> list[str]:
    """How the image differs from what was committed, a sentence each. Empty when it does not.

    `first` is the first layer as it reads, `merged` are the tables of all layers, merged for the tree of the commit.
    """
    return [*_of_commit(first, merged, committed), *verify.differences(merged, ("last",))]


def _of_commit(first: CommitLayer, merged: Replay, committed: Committed) -> Iterator[str]:
    if first.checksum != committed.checksum:
        yield f"the commit is {first.checksum.hex()[:12]}, should be {committed.checksum.hex()[:12]}"
    tree = committed.tree
    there = {entry.digest for table in merged.tables for entry in table.entries.values() if not entry.is_dir}
    missing = set(tree)
    for place, checksum, directory in first.places():
        path = view_path(place)
        wanted = tree.get(path)
        missing.discard(path)
        if wanted is None:
            yield f"/{path}: should not be in the commit"
        elif directory is not None:
            if not directory.same_as(wanted):
                yield f"/{path}: is another directory in the commit"
        elif wanted.is_dir or checksum != wanted.digest:
            yield f"/{path}: is object {checksum.hex()[:12]} in the commit, should be {wanted.digest.hex()[:12]}"
        elif checksum not in there:
            yield f"/{path}: its object {checksum.hex()[:12]} is in no layer"
    yield from (f"/{path}: is not in the commit" for path in sorted(missing))
