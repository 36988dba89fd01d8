"""Whole builds, as the command runs them."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rechunk_action import pipeline
from rechunk_action.oci.compression import parse_compression
from rechunk_action.oci.image import Json
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.table import Table, read_table
from rechunk_action.pipeline import BuildOptions
from rechunk_action.progress import Progress
from rechunk_action.source import Source
from rechunk_action.source.names import parse_name
from rechunk_action.source.places import Places
from rechunk_action.tree.scan import Hasher
from tests.registries import HASTE

QUIET = -1

S = TypeVar("S", bound=Source)


def build(source: Path | str, output: Path | str, **options: Any) -> Json:
    """Build an image; the report. `source` is a directory or a name, `output` a layout or a name."""
    given: dict[str, Any] = {
        "prev_ref": None,
        "repository": None,
        "tags": (),
        "fresh": False,
        "max_layers": 120,
        "max_overhead": 0.05,
        "compression": "zstd",
        "labels": (),
        "version": None,
        "push": True,
        "max_update_size": None,
        "config": None,
        "created": None,
        "now": datetime(2026, 11, 26, tzinfo=UTC),
        "verify": True,
        "threads": 2,
        "scratch": Path(tempfile.gettempdir()),
    }
    given |= {"source": _named(source, "dir"), "output": _named(output, "oci")} | options
    for key in ("source", "output", "prev_ref"):
        given[key] = given[key] and parse_name(given[key])
    given["compression"] = parse_compression(given["compression"])
    drop_bad_xattrs = given.pop("drop_bad_xattrs", False)
    progress = given.pop("progress", None) or Progress(level=QUIET)
    with places(drop_bad_xattrs=drop_bad_xattrs) as opened:
        return pipeline.build(BuildOptions(**given), opened, progress).report


def places(**options: Any) -> Places:
    """What opens names: registries are on loopback, and impatience is no fault."""
    given: dict[str, Any] = {"threads": 2, "tls_verify": False, "patience": HASTE}
    return Places({}, **given | options)


def tables_of(layout: Path, tag: str | None = None) -> list[Table]:
    """What the layers of an image hold, read from the blobs."""
    image = read_image(layout, tag)
    tables = []
    for blob in image.layers:
        with image.open(blob) as file:
            tables.append(read_table(file, blob, limit=None))
    return tables


def _named(place: Path | str, transport: str) -> str:
    return place if isinstance(place, str) else f"{transport}:{place}"


def scanned(source: S, hasher: Hasher | None = None) -> S:
    """A source that knows its tree. Without a hasher, files get their digests when they are read."""
    source.scan(hasher)
    return source
