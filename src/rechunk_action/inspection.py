"""Looking at images that are there: whether one is its source, and what an update from one to another costs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from rechunk_action.errors import VerificationFailed
from rechunk_action.oci.config import CHUNKED_LABEL, PLAN_LABEL, layer_name
from rechunk_action.oci.image import Image, Json, read_layers
from rechunk_action.oci.merge import Replay
from rechunk_action.ostree.chunked import read_chunked
from rechunk_action.ostree.commit import prepare
from rechunk_action.ostree.view import view_differences, view_path
from rechunk_action.progress import Progress
from rechunk_action.report.compare import Comparison, bytes_by_component
from rechunk_action.report.compare import compare as compare_layers
from rechunk_action.source.image import ImageSource
from rechunk_action.source.names import ON_DISK, Name
from rechunk_action.source.places import Places
from rechunk_action.stored import with_tables
from rechunk_action.tree.components import components
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
            progress.phase("scan", f"read {source} and {image}") as advance,
            Hasher(threads, advance) as hasher,
        ):
            tree.scan(hasher)
            read = places.image(image, (tree.config or {}).get("architecture"))
            chunked = CHUNKED_LABEL in read.labels
            compared = (_committed if chunked else _merged)(read, tree.tree, threads)
            hasher.finish()
        with progress.phase("verify", "compare"):
            found = compared()
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


def compare(old: Name, new: Name, places: Places, progress: Progress, *, threads: int, scratch: Path) -> Comparison:
    """What an update from one image to another costs, and what makes it up.

    That is told by component where the new image is on this disk and has plain layers, else by what the image says of
    each layer, so that manifests are all that is read.
    """
    was = places.image(old)
    image = places.image(new, was.architecture)
    known = was.digests
    added = [blob for blob in image.layers if blob.digest not in known]
    if new.transport not in ON_DISK or CHUNKED_LABEL in image.labels:
        return compare_layers(was.layers, image.layers, _bytes_by_layer(image, known))
    by_component: dict[str, int] = {}
    if added:
        with (
            tempfile.TemporaryDirectory(prefix="rechunk-", dir=scratch) as directory,
            progress.phase("read", f"read {new}"),
        ):
            source = ImageSource(image, Path(directory), threads=threads, drop_bad_xattrs=True)
            source.scan(None)
            owner = components(source.tree, source.read)
        read = with_tables(image, added, threads, progress)
        by_component = bytes_by_component([(layer.blob, layer.table) for layer in read], owner)
    return compare_layers(was.layers, image.layers, by_component)


def _merged(image: Image, tree: Tree, threads: int) -> Callable[[], list[str]]:
    """Read an image of plain layers. Returns what tells how it differs, once the tree is known whole."""
    tables = read_layers(image, threads)
    return lambda: differences(Replay(tables, tree))


def _committed(image: Image, tree: Tree, threads: int) -> Callable[[], list[str]]:
    """The same for an OSTree-chunked image: its commit has to be the tree, and containers have to see that commit."""
    committed = read_chunked(image, threads=threads).tree()

    def found() -> list[str]:
        wanted, _ = prepare(tree)
        shown = {view_path(path): entry for path, entry in committed.items()}
        return tree_differences(shown, wanted) + view_differences(image, committed, threads=threads)

    return found


def _bytes_by_layer(image: Image, known: Collection[str]) -> dict[str, int]:
    """Bytes of the layers that are not known by what the image says of them, the largest first."""
    found: Counter[str] = Counter()
    for index, blob in enumerate(image.layers):
        if blob.digest not in known:
            found[layer_name(image, index) or f"layer {index + 1}"] += blob.size
    return dict(found.most_common())
