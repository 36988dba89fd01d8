"""Looking at images that are there: whether one is its source, and what an update from one to another costs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from rechunk_action.contents import Contents
from rechunk_action.errors import VerificationFailed
from rechunk_action.oci.config import CHUNKED_LABEL, PLAN_LABEL, VERSION_LABEL
from rechunk_action.oci.image import Image, Json, read_layers, watched
from rechunk_action.oci.merge import Replay
from rechunk_action.ostree.chunked import read_chunked
from rechunk_action.ostree.commit import prepare
from rechunk_action.ostree.view import view_differences, view_path
from rechunk_action.progress import Meter, Progress
from rechunk_action.record import facts
from rechunk_action.report.model import Facts
from rechunk_action.source.names import ON_DISK, Name
from rechunk_action.source.places import Places
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.scan import Hasher
from rechunk_action.verify import differences, summary, tree_differences


def verify(image: Name, source: Name, places: Places, progress: Progress, *, threads: int, scratch: Path) -> Json:
    """Compare an image, as clients show it, with a source. Raises `VerificationFailed` when they differ."""
    with (
        tempfile.TemporaryDirectory(prefix="rechunk-", dir=scratch) as directory,
        places.source(source, Path(directory), progress) as tree,
    ):
        with (
            progress.phase("scan", f"read {source} and {image}") as meter,
            Hasher(threads, meter) as hasher,
        ):
            tree.scan(hasher, meter)
            read = places.image(image, (tree.config or {}).get("architecture"))
            chunked = CHUNKED_LABEL in read.labels
            compared = (_committed if chunked else _merged)(read, tree.tree, threads, meter)
            hasher.finish()
        with progress.phase("verify", "compare") as meter:
            found = compared(meter)
    if found:
        why = " (hhd-dev/rechunk changes a tree before it commits it)" if PLAN_LABEL in read.labels else ""
        raise VerificationFailed(f"{image} is not {source}{why}. " + summary(found))
    return {
        "image": str(image),
        "digest": read.digest,
        "source": str(source),
        "chunked": chunked,
        "paths": len(tree.tree),
        "equal": True,
    }


def compare(
    old: Name, new: Name, places: Places, progress: Progress, *, threads: int, scratch: Path
) -> tuple[Facts, Facts]:
    """What is known of two images, to tell what an update from one to the other costs and what makes it up.

    Of an image with a record, no layer is read. Those without that are on this disk and have plain layers are read
    themselves, each layer once. Of any other nothing is known but what it says of its layers.
    """
    was = places.image(old)
    image = places.image(new, was.architecture)
    before, after = _facts(old, was), _facts(new, image)
    unread = {
        name: found
        for name, found, known in ((old, was, before), (new, image, after))
        if known.packages is None and name.transport in ON_DISK and CHUNKED_LABEL not in found.labels
    }
    if not unread or was.digests == image.digests:
        return before, after
    with (
        tempfile.TemporaryDirectory(prefix="rechunk-", dir=scratch) as directory,
        progress.phase("read", f"read {' and '.join(map(str, unread))}") as meter,
    ):
        meter.expect(sum(blob.size for blob in {blob for found in unread.values() for blob in found.layers}))
        contents = Contents(list(unread.values()), {}, meter, deep=True, threads=threads, scratch=Path(directory))

        def explained(name: Name, known: Facts) -> Facts:
            version = contents.next() if name in unread else None
            return known if version is None else contents.explain(known, version, progress)[0]

        return explained(old, before), explained(new, after)


def _facts(name: Name, image: Image) -> Facts:
    return facts(image, name.pinned(image.digest), image.labels.get(VERSION_LABEL, ""))


def _merged(image: Image, tree: Tree, threads: int, meter: Meter) -> Callable[[Meter], list[str]]:
    """Read an image of plain layers. Returns what tells how it differs, once the tree is known whole; that has a meter
    of its own.
    """
    tables = read_layers(watched(image, image.layers, meter), threads)
    return lambda _: differences(Replay(tables, tree))


def _committed(image: Image, tree: Tree, threads: int, meter: Meter) -> Callable[[Meter], list[str]]:
    """The same for an OSTree-chunked image: its commit has to be the tree, and containers have to see that commit."""
    committed = read_chunked(watched(image, image.layers, meter), threads=threads).tree()

    def found(meter: Meter) -> list[str]:
        wanted, _ = prepare(tree)
        shown = {view_path(path): entry for path, entry in committed.items()}
        seen = view_differences(watched(image, image.layers, meter), committed, threads=threads)
        return tree_differences(shown, wanted) + seen

    return found
