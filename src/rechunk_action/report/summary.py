"""A build as a page of Markdown: GitHub's job summary, and a changelog for a release.

Pure: a report in, text out. Names come out of images, so they are shown as text, whatever is in them. A summary stays
within the bytes that GitHub shows; what does not fit is counted.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rechunk_action.report.compare import format_size

MAX_SUMMARY = 1_000_000
"""Bytes of a step's summary: GitHub drops one of more than 1 MiB, and the fuller it is the less reliably it is kept."""

MAX_ROWS = 500
"""Layers that a table lists: more than clients take."""

TOP = 15
"""Components that are listed by name."""

_LONGEST = 120

Report = Mapping[str, Any]


def summary(report: Report, *, where: str) -> str:
    """What a maintainer wants to see of a build. `where` is the image's name or directory, `""` where there is none."""
    parts = [_headline(report, where), _facts(report), _components(report), _layers(report), _times(report)]
    text = ""
    for part in filter(None, parts):
        if len((text + part).encode()) <= MAX_SUMMARY:
            text += f"{part}\n\n"
    return text


def changelog(report: Report) -> str:
    """What a user wants to know of a version."""
    parts = [f"## {escape(report['version'] or report['ref'])}", _sentence(report), _components(report)]
    return "\n\n".join(filter(None, parts)) + "\n"


def escape(text: object) -> str:
    """Text that is nothing but text in a table: no markup, no cell or line that ends early, no mention of a user."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", html.escape(line, quote=False))


_MARKUP = re.compile(r"[\\`*_\[\]#|~@]|(?<=:)/(?=/)")
"""What begins markup, a mention or a link within a line."""


def _headline(report: Report, where: str) -> str:
    title = f"## {escape(where or report['ref'])}\n\n{_sentence(report)}"
    return title if where else f"{title}\n\n_Nothing was published: this was a trial._"


def _sentence(report: Report) -> str:
    size = report["bytes"]
    if report["fresh"]:
        return f"**Users download {format_size(size['image'])}**: a fresh image ({escape(report['reason'])})."
    return f"**Users download {format_size(size['update'])}** instead of {format_size(size['image'])}."


def _facts(report: Report) -> str:
    layers, size = report["layers"], report["bytes"]
    dropped = f", {len(report['dropped'])} dropped" if report["dropped"] else ""
    rows = [
        ("Digest", f"`{report['digest']}`"),
        ("Update of", escape(report["prev_ref"])) if report["prev_ref"] else None,
        ("Layers", f"{layers['total']}: {layers['kept']} kept, {layers['new']} new{dropped}"),
        ("Image", format_size(size["image"])),
        ("Superseded", f"{format_size(size['dead'])} ({100 * size['dead'] / max(1, size['live']):.1f}%)"),
    ]
    return _table(("", ""), [row for row in rows if row])


def _components(report: Report) -> str:
    found = list(report["components"].items())
    rows = [(escape(name), format_size(part)) for name, part in found[:TOP]]
    if len(found) > TOP:
        rest = sum(part for _, part in found[TOP:])
        rows.append((f"{len(found) - TOP:,} more", format_size(rest)))
    return "### What is new\n\n" + _table(("Component", "Size"), rows) if rows else ""


def _layers(report: Report) -> str:
    rows = [("new", escape(layer["name"]), format_size(layer["bytes"])) for layer in report["new"]]
    rows += [
        (f"dropped: {escape(drop['reason'])}", f"layer {drop['layer'] + 1}", format_size(drop["live"] + drop["dead"]))
        for drop in report["dropped"]
    ]
    rows.append(("kept", f"{report['layers']['kept']} layers", format_size(report["bytes"]["kept"])))
    table = _table(("", "Layer", "Size"), rows[:MAX_ROWS])
    return f"<details><summary>Layers</summary>\n\n{table}\n\n</details>"


def _times(report: Report) -> str:
    """What each phase took: time, and of the disk at its peak where that was looked at."""
    disk = report["disk"]
    heading = ("Phase", "Disk", "Time") if disk else ("Phase", "Time")
    rows = [
        (escape(name), *([format_size(disk[name]) if name in disk else ""] if disk else []), f"{seconds:.1f} s")
        for name, seconds in report["seconds"].items()
    ]
    return f"<details><summary>Time{' and disk' if disk else ''}</summary>\n\n{_table(heading, rows)}\n\n</details>"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * (len(heading) - 1) + ["--:"], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
