"""The layers of an image with their tables: what is stored beside them is taken, the rest is read from the blobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rechunk_action.oci.image import Image, read_layer, watched
from rechunk_action.oci.table import Blob, Table
from rechunk_action.plan.plain import Published
from rechunk_action.progress import UNHEARD, Meter, Progress
from rechunk_action.registry.image import LOST
from rechunk_action.report.size import format_size
from rechunk_action.workers import Workers

REQUESTS = 8
"""Small requests to a registry at once."""


def with_tables(
    image: Image,
    layers: Sequence[Blob],
    threads: int,
    progress: Progress,
    *,
    meter: Meter = UNHEARD,
    format_: str = "",
    read: Callable[[Image, Blob], Table] | None = None,
) -> list[Published]:
    """Some layers of an image with their tables: stored ones where they are there, else read from the blobs, which
    `meter` follows.

    Layers of a format of its own are read in a way of their own.
    """
    with Workers(max(threads, REQUESTS)) as workers:
        stored = list(workers.map(lambda blob: image.blobs.table(blob, format_), layers))
    missing = [blob for blob, table in zip(layers, stored, strict=True) if table is None]
    lost = sum(table is not None and table.problem == LOST for table in stored)
    if lost:
        progress.notice(f"{image.blobs} has lost {lost} of {len(layers)} layers: what is in them is written again")
    if missing:
        size = format_size(sum(blob.size for blob in missing))
        progress.notice(
            f"{len(missing)} of {len(layers)} layers have no table stored with {image.blobs}: reading {size} for them"
        )
    with Workers(threads) as workers:
        made = workers.map(partial(read or read_layer, watched(image, missing, meter)), missing)
        return [Published(blob, table or next(made)) for blob, table in zip(layers, stored, strict=True)]
