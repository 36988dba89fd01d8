"""Whole builds, as the command runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rechunk_action import pipeline
from rechunk_action.job import BuildOptions, HhdOptions
from rechunk_action.oci.compression import parse_compression
from rechunk_action.oci.image import Json
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.table import Table, read_table
from rechunk_action.pipeline import Built
from rechunk_action.progress import Meter, Progress
from rechunk_action.source import Source
from rechunk_action.source.names import parse_name
from rechunk_action.source.places import Places
from rechunk_action.tree.scan import Hasher
from tests.registries import HASTE

QUIET = -1

OF_PLACES = ("drop_bad_xattrs", "environment", "given", "given_for")
"""Options that are not the build's: they tell how names are opened."""

S = TypeVar("S", bound=Source)


class Listener(Progress):
    """Keeps what a user is told. `lines` are those of other programs."""

    def __init__(self) -> None:
        super().__init__(level=QUIET)
        self.notices: list[str] = []
        self.lines: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    decision = notice

    def output(self, line: str) -> None:
        self.lines.append(line)

    def heard(self, text: str) -> bool:
        return any(text in notice for notice in self.notices)


class Meddler(Listener):
    """Does something, once, just before a phase of a build begins."""

    def __init__(self, before: str, deed: Callable[[], object]) -> None:
        super().__init__()
        self._before = before
        self._deed = deed
        self.done = False

    @contextmanager
    def phase(self, name: str, title: str, total: int | None = None) -> Iterator[Meter]:
        if name == self._before and not self.done:
            self._deed()
            self.done = True
        with super().phase(name, title, total) as meter:
            yield meter


def build(source: Path | str, output: Path | str, **options: Any) -> Json:
    """Build an image; the report as JSON has it. `source` is a directory or a name, `output` a layout or a name."""
    report: Json = msgspec.to_builtins(built(source, output, **options).report)
    return report


def new_layers(report: Json) -> list[Json]:
    """Those of an update, of a report."""
    return [layer for layer in report["update"]["layers"] if layer["state"] == "new"]


def new_components(report: Json) -> dict[str, int]:
    """Bytes of new layers by component, of a report."""
    return {line["name"]: line["bytes"] for line in report["update"]["components"]}


def built(source: Path | str, output: Path | str, **options: Any) -> Built:
    """Build an image, and tell all of it."""
    given: dict[str, Any] = {
        "prev_ref": None,
        "repository": None,
        "tags": (),
        "fresh": False,
        "engine": "delta",
        "format": "auto",
        "max_layers": 120,
        "max_overhead": 0.05,
        "compression": "zstd",
        "labels": (),
        "version": None,
        "push": True,
        "sign_key": None,
        "max_update_size": None,
        "config": None,
        "created": None,
        "now": datetime(2026, 11, 26, tzinfo=UTC),
        "verify": True,
        "strict": False,
        "threads": 2,
        "scratch": Path(tempfile.gettempdir()),
        "hhd": HhdOptions(),
    }
    given |= {"source": _named(source, "dir"), "output": _named(output, "oci")} | options
    for key in ("source", "output", "prev_ref"):
        given[key] = given[key] and parse_name(given[key])
    given["compression"] = parse_compression(given["compression"])
    progress = given.pop("progress", None) or Progress(level=QUIET)
    of_places = {name: given.pop(name) for name in OF_PLACES if name in given}
    with places(**of_places) as opened:
        return pipeline.build(BuildOptions(**given), opened, progress)


def places(environment: Mapping[str, str] | None = None, **options: Any) -> Places:
    """What opens names: registries are on loopback, and impatience is no fault."""
    given: dict[str, Any] = {"threads": 2, "tls_verify": False, "patience": HASTE}
    return Places(environment or {}, **given | options)


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
