"""The versions of an image as a page: one HTML document that needs nothing else.

No network, no script, no font of its own: it can be kept as an artifact, attached to a release, sent by mail and
printed, and a policy in its head forbids the rest. It is well-formed XML as well, so that a parser which forgives
nothing can check it. The same model gives the same bytes; no clock is read.

Jinja2 renders it, and escapes whatever is put in. Before that, `_shown` has seen every value: what does not show by
itself, and could hide or reorder its neighbours, is written by its number. So a name is text, wherever it stands.

What is not known is left out, or said to be not known; it is never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import accumulate
from statistics import median
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rechunk_action import __version__
from rechunk_action.report.charts import Box, scale, treemap
from rechunk_action.report.model import (
    Build,
    ComponentLine,
    History,
    LayerLine,
    Update,
    VersionLine,
    kind_of,
    label_of,
)
from rechunk_action.report.size import format_size
from rechunk_action.report.words import changes, count, mostly, percent, shown, versions

CELLS = 60
"""Components that the map of an update shows by themselves."""

ASPECT = 2.2
"""Width of a map by its height, on a screen of middling width."""

NAMES = 100
"""Characters of versions' names that a chart has room for."""

SHORT = 16
"""Characters of such a name."""

TEXTS = 12
"""Columns that a chart writes values above, at the most."""

MOST = 1000
"""Rows of a table, the folded ones included."""


class Sort(NamedTuple):
    """What a component is: one, and many."""

    one: str
    many: str


SORTS = {
    "package": Sort("package", "packages"),
    "file": Sort("large file", "large files"),
    "group": Sort("group", "groups that the image names"),
    "rest": Sort("", "all else"),
}

_SORT_OF = {"rpm": "package", "dpkg": "package", "alpm": "package", "file": "file", "xattr": "group", "meta": "group"}


def page(history: History, build: Build | None = None) -> str:
    """The page of an image's versions; `build` is the one that made the newest of them, where there is one to tell of.

    It begins with all updates together, or with the last one where that was just built.
    """
    many = build is None and history.totals.updates > 1
    text = (
        _environment()
        .get_template("page.html")
        .render(
            program=f"rechunk-action {__version__}",
            history=history,
            build=build,
            many=many,
            ways=_ways(history, many=many),
            median=_median(history.versions),
            plots=_plots(history),
            sorts=_sorts(history.last),
            parts=_parts(history.last),
            layers=_layers(history.last),
        )
    )
    return text.lstrip()


@cache
def _environment() -> Environment:
    """What templates are rendered with; they are compiled once."""
    environment = Environment(
        loader=PackageLoader("rechunk_action.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "at": lambda position: f"{position:.2f}",
        "changes": changes,
        "counted": count,
        "date": _date,
        "label": label_of,
        "mostly": mostly,
        "number": lambda number: f"{number:,}",
        "percent": percent,
        "size": lambda size: Markup(format_size(size)),  # noqa: S704  # digits and a unit, with a no-break space
        "sort": _sort_of,
        "versions": versions,
    }
    environment.globals |= {"MOST": MOST, "SORTS": SORTS}
    return environment


class Way(NamedTuple):
    """A way to get from version to version, and what it costs in bytes; `mark` is how charts draw it."""

    name: str
    mark: str
    bytes: int


@dataclass(frozen=True)
class Slot:
    """What of a chart's width belongs to a version. `name` is `""` where there is no room for it; `paid` is what all
    updates up to this one have cost, in bytes.
    """

    version: VersionLine
    left: float
    width: float
    name: str
    paid: int

    def x(self, share: float) -> float:
        """A place within."""
        return self.left + share * self.width


@dataclass(frozen=True)
class Chart:
    """A scale of values, the last of which is at the top, over the versions from left to right."""

    scale: Sequence[int]
    slots: Sequence[Slot]

    def top(self, value: int) -> float:
        """How far a value is from the top."""
        return 100 - 100 * value / self.scale[-1]

    def points(self, values: Iterable[int]) -> list[tuple[float, float]]:
        """A line through the middles of the slots."""
        return [(slot.x(0.5), self.top(value)) for slot, value in zip(self.slots, values, strict=True)]


@dataclass(frozen=True)
class Plots:
    """What a history looks like: bytes of each update, their sums, and layers.

    `texts` are the slots of updates whose sizes are written above them, and above which value. `changed` and `delta`
    are sums by version, of changed files and of delta layering, None unless known of every update.
    """

    updates: Chart
    sums: Chart
    layers: Chart
    texts: Sequence[tuple[Slot, int]]
    changed: Sequence[int] | None
    delta: Sequence[int] | None


class Cell(NamedTuple):
    """A box of a map, and what it stands for."""

    box: Box
    group: str
    line: ComponentLine | LayerLine


def _ways(history: History, *, many: bool) -> list[Way]:
    """What all updates cost, or the last one, beside what they would cost by other ways; nothing without an update."""
    last, totals, estimate = history.last, history.totals, history.versions[-1].estimate
    if many:
        found = [totals.images, totals.bytes, None if history.layered else totals.delta, totals.changed]
    elif last.old is not None:
        delta = estimate.delta if estimate and not history.layered else None
        found = [last.new.bytes, last.bytes, delta, estimate.changed if estimate else None]
    else:
        return []
    names = {
        "whole images" if many else "the whole image": "old",
        "updates" if many else "the update": "update",
        "with delta layering, an estimate": "delta",
        "changed files": "limit",
    }
    ways = zip(names.items(), found, strict=True)
    return [Way(name, mark, size) for (name, mark), size in ways if size is not None]


def _plots(history: History) -> Plots:
    lines = history.versions
    paid = list(accumulate(line.update or 0 for line in lines))
    known = [line.estimate for line in lines[1:] if line.estimate is not None]
    changed = delta = None
    if len(known) == len(lines) - 1:
        changed = list(accumulate((estimate.changed for estimate in known), initial=0))
        if not history.layered:
            delta = list(accumulate((estimate.delta for estimate in known), initial=0))
    names = [_short(line.image.name) for line in lines]
    every = -(-len(names) // (NAMES // (max(map(len, names)) + 2)))
    slots = [
        Slot(
            version=line,
            left=100 * number / len(lines),
            width=100 / len(lines),
            name=names[number] if (len(lines) - 1 - number) % every == 0 else "",
            paid=total,
        )
        for number, (line, total) in enumerate(zip(lines, paid, strict=True))
    ]
    texts = [
        (slot, max(line.update, line.estimate.changed if line.estimate else 0))
        for line, slot in zip(lines, slots, strict=True)
        if line.update is not None
    ]
    highest = max(_highest(line) for line in lines)
    sums = [total[-1] for total in (paid, changed, delta) if total]
    return Plots(
        updates=Chart(scale(highest + highest // 8), slots),  # the texts are above the columns
        sums=Chart(scale(max(sums)), slots),
        layers=Chart(scale(max(line.image.layers for line in lines)), slots),
        texts=texts if len(lines) <= TEXTS else [],
        changed=changed,
        delta=delta,
    )


def _short(name: str) -> str:
    """The end of a name, by which versions differ."""
    return name if len(name) <= SHORT else "…" + name[1 - SHORT :]


def _highest(line: VersionLine) -> int:
    """What the chart of updates has to have room for."""
    estimate = line.estimate
    return max(line.update or 0, *((estimate.changed, estimate.delta) if estimate else (0,)))


def _median(versions: Sequence[VersionLine]) -> int | None:
    """What the middle one of several updates costs."""
    sizes = [line.update for line in versions if line.update is not None]
    return round(median(sizes)) if len(sizes) > 1 else None


def _parts(update: Update) -> list[Cell]:
    """A map of what an update holds: by sort the largest components, and all others in one cell."""
    shown: dict[str, list[ComponentLine]] = {sort: [] for sort in SORTS}
    rest: dict[str, list[int]] = {sort: [] for sort in SORTS}
    for line in update.components[:CELLS]:
        shown[_sort_of(line.name)].append(line)
    for line in update.components[CELLS:]:
        rest[_sort_of(line.name)].append(line.bytes)
    return _map(
        {
            sort: [*lines, *(ComponentLine(name=f"{len(sizes):,} more", bytes=sum(sizes)) for sizes in [rest[sort]])]
            for sort, lines in shown.items()
        }
    )


def _layers(update: Update) -> list[Cell]:
    """A map of the new image's layers, by state."""
    largest = sorted(update.layers, key=lambda layer: -layer.bytes)
    return _map({state: [layer for layer in largest if layer.state == state] for state in ("kept", "new")})


def _sorts(update: Update) -> dict[str, int]:
    """Bytes of an update by sort."""
    return {sort: sum(line.bytes for line in update.components if _sort_of(line.name) == sort) for sort in SORTS}


def _map(groups: Mapping[str, Sequence[ComponentLine | LayerLine]]) -> list[Cell]:
    filled = {group: found for group, lines in groups.items() if (found := [line for line in lines if line.bytes])}
    boxes = treemap([[line.bytes for line in lines] for lines in filled.values()], aspect=ASPECT)
    return [
        Cell(box, group, line)
        for (group, lines), within in zip(filled.items(), boxes, strict=True)
        for line, box in zip(lines, within, strict=True)
    ]


def _sort_of(component: str) -> str:
    return _SORT_OF.get(kind_of(component), "rest")


def _shown(value: object) -> object:
    """A value as it goes into the page."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _date(timestamp: str) -> str:
    """The day of an RFC 3339 timestamp, `""` of anything else."""
    try:
        return datetime.fromisoformat(timestamp).date().isoformat()
    except ValueError:
        return ""
