"""Whole builds, as the command runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rechunk_action import pipeline
from rechunk_action.oci.compression import parse_compression
from rechunk_action.oci.layout import Json, read_image
from rechunk_action.oci.table import Table, read_table
from rechunk_action.pipeline import BuildOptions
from rechunk_action.progress import Progress
from rechunk_action.source.names import parse_name

QUIET = -1


def build(source: Path | str, output: Path | str, **options: Any) -> Json:
    """Build an image; the report. `source` is a directory or a name, `output` a layout or a name."""
    given: dict[str, Any] = {
        "prev_ref": None,
        "fresh": False,
        "max_layers": 120,
        "max_overhead": 0.05,
        "compression": "zstd",
        "labels": (),
        "version": None,
        "config": None,
        "created": None,
        "verify": True,
        "drop_bad_xattrs": False,
        "threads": 2,
    }
    given |= {"source": _named(source, "dir"), "output": _named(output, "oci")} | options
    for key in ("source", "output", "prev_ref"):
        given[key] = given[key] and parse_name(given[key])
    given["compression"] = parse_compression(given["compression"])
    return pipeline.build(BuildOptions(**given), Progress(level=QUIET))


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
