"""The views for a terminal, and for what reads standard output instead of one.

Each line is printed whole, however wide a terminal is, and columns are aligned with spaces: a pipe gets the same text
as a person, who gets it in colour. Names are no markup of rich's.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rechunk_action.report.model import Build, History, Totals, Update, VersionLine, label_of
from rechunk_action.report.size import format_size
from rechunk_action.report.words import changes, count, percent, shown, versions

LARGEST = 5
"""Components and older versions that explain a build."""

_SIZE = 10
"""Characters of a size, aligned."""


def show_build(report: Build, out: Console) -> None:
    """What was built, what it costs, and what makes that up."""
    layers, size = report.layers, report.bytes
    _say(out, f"{shown(report.ref)} {'is ready' if report.published else 'would be'}: {shown(report.digest)}", "bold")
    if report.findings:
        _say(out, f"breaks {count(len(report.findings), 'rule')} for images that boot: see the notices")
    if report.fresh:
        reason = shown(report.reason)
        _say(out, f"fresh layout ({reason}): {count(layers.total, 'layer')}, {format_size(size.image)}")
        return
    new = count(layers.new, "new layer")
    _say(out, f"update: {format_size(size.update)} in {new}; {count(layers.kept, 'layer')} kept")
    superseded = f"{percent(size.dead, size.live)} superseded"
    _say(out, f"image:  {format_size(size.image)} in {count(layers.total, 'layer')}; {superseded}")
    _components(report.update, out, "the new layers hold", LARGEST)
    if report.history is not None:
        _skips(report.history, out, LARGEST)


def show_update(update: Update, out: Console, *, most: int) -> None:
    """An update in the words of clients, then its components, `most` at the most.

    `bootc upgrade --check` and `rpm-ostree upgrade --preview` print these three lines: all layers of the new image,
    those that the old one has alone, those that only the new one has (ostree-ext, container/mod.rs: ManifestDiff). The
    last is what a client downloads.
    """
    for title, part in (
        ("Total new layers:", update.total),
        ("Removed layers:", update.removed),
        ("Added layers:", update.added),
    ):
        _say(out, f"{title:<17} {part.layers:<4}  Size: {format_size(part.bytes)}")
    _components(update, out, "the added layers hold", most)
    if found := changes(update):
        _say(out, f"\nPackages: {found}")


def show_history(history: History, out: Console) -> None:
    """What the users of an image have been downloading: by version, in sum, and coming from older ones."""
    like = f" like {shown(history.scheme)}" if history.scheme else ""
    _say(out, f"{shown(history.name)}: {count(len(history.versions), 'version')}{like}", "bold")
    _say(out, "")
    changed = any(line.estimate is not None for line in history.versions)
    delta = changed and not history.layered
    heading = [
        "Version",
        "Made",
        "Image",
        "Layers",
        "Kept",
        "Update",
        *(["Changed"] if changed else []),
        *(["Delta"] if delta else []),
        "Largest",
    ]
    _columns(out, heading, [_version(line, changed=changed, delta=delta) for line in history.versions])
    if history.totals.updates:
        _totals(history.totals, out, delta=delta)
    _components(history.last, out, "the last update holds", LARGEST)
    _skips(history, out)


def _totals(totals: Totals, out: Console, *, delta: bool) -> None:
    _say(out, "\nAll updates together:")
    _size(out, totals.bytes, count(totals.updates, "update"))
    _size(out, totals.images, "as whole images")
    if totals.changed is not None:
        _size(out, totals.changed, "the changed files")
    if delta and totals.delta is not None:
        _size(out, totals.delta, "with delta layering, as estimated")


def _version(line: VersionLine, *, changed: bool, delta: bool) -> list[str]:
    sizes: list[int | None] = [line.update]
    if changed:
        sizes.append(line.estimate.changed if line.estimate else None)
    if delta:
        sizes.append(line.estimate.delta if line.estimate else None)
    return [
        shown(line.image.name),
        shown(line.image.created)[:10],
        format_size(line.image.bytes),
        f"{line.image.layers}",
        f"{line.kept}",
        *("-" if size is None else format_size(size) for size in sizes),
        shown(label_of(line.largest[0].name)) if line.largest else "",
    ]


def _components(update: Update, out: Console, what: str, most: int) -> None:
    named, rest = update.components[:most], update.components[most:]
    if named:
        _say(out, f"\nWhat {what}:")
    for line in named:
        _size(out, line.bytes, shown(label_of(line.name)), versions(line))
    if rest:
        _size(out, sum(line.bytes for line in rest), count(len(rest), "more component"))


def _skips(history: History, out: Console, most: int | None = None) -> None:
    """What is to be downloaded coming from versions older than the last one, at the most so many of them."""
    skips = history.skips[1:][:most]
    if skips:
        _say(out, "\nWho comes from an older version downloads:")
    for skip in skips:
        _size(out, skip.bytes, shown(skip.version))


def _size(out: Console, size: int, name: str, more: str = "") -> None:
    line = Text.assemble(f"{format_size(size):>{_SIZE}}  ", name, (f"  {more}" if more else "", "dim"))
    out.print(line, soft_wrap=True)


def _columns(out: Console, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under a heading. The first and the last column are names, those between are numbers."""
    widths = [max(map(cell_len, column)) for column in zip(heading, *rows, strict=True)]
    for number, row in enumerate([heading, *rows]):
        spaces = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        between = [space + text for space, text in zip(spaces[1:-1], row[1:-1], strict=True)]
        _say(out, "  ".join([row[0] + spaces[0], *between, row[-1]]).rstrip(), "" if number else "bold")


def _say(out: Console, line: str, style: str = "") -> None:
    out.print(Text(line, style), soft_wrap=True)
