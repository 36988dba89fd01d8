"""A build as GitHub's job summary: what a maintainer wants to see of it, the most important first.

Pure: a report in, Markdown out. A summary stays within the bytes that GitHub shows.
"""

from __future__ import annotations

import re

from rechunk_action.report.markdown import components, details, escape, fitted, folded_packages, skips, table
from rechunk_action.report.model import Build, History, Update
from rechunk_action.report.size import format_size
from rechunk_action.report.words import percent

MAX_SUMMARY = 1_000_000
"""Bytes of a step's summary: GitHub drops one of more than 1 MiB, and the fuller it is the less reliably it is kept."""

TOP = 15
"""Components that are listed by name."""


def summary(report: Build) -> str:
    """The summary of a build."""
    parts = {
        "headline": _headline(report),
        "facts": _facts(report),
        "findings": _findings(report),
        "what is new": _under("What is new", components(report.update, TOP)),
        "older versions": _under("Who comes from an older version", skips(report.history)),
        "chart": _under("Updates until now", chart(report.history)),
        "packages": folded_packages(report.update),
        "layers": _layers(report),
        "times": _times(report),
    }
    return fitted(parts, MAX_SUMMARY)


def refused(image: str, update: Update, limit: int) -> str:
    """The summary of a build that came to nothing, as the update costs more than `limit`, in bytes."""
    costs = f"users would download **{format_size(update.bytes)}**, and {format_size(limit)} are allowed"
    parts = {
        "headline": f"## {escape(image)}\n\n**Nothing was published**: {costs}.",
        "what is new": _under("What is new", components(update, TOP)),
        "packages": folded_packages(update),
    }
    return fitted(parts, MAX_SUMMARY)


def chart(history: History | None) -> str:
    """A Mermaid chart of what each version of a history cost, `""` where there are fewer than two updates."""
    updates = [line for line in history.versions if line.update is not None] if history else []
    if len(updates) < 2:  # noqa: PLR2004  # one bar says nothing
        return ""
    labels: dict[str, int] = {}
    for line in updates:
        labels[_label(line.image.name, labels)] = line.update or 0
    names = ", ".join(f'"{label}"' for label in labels)
    sizes = ", ".join(f"{size / 1_000_000:.3f}" for size in labels.values())
    return (
        "```mermaid\n"
        "xychart-beta horizontal\n"
        f"  x-axis [{names}]\n"
        f'  y-axis "MB to download" 0 --> {max(1000, *labels.values()) / 1_000_000:.3f}\n'
        f"  bar [{sizes}]\n"
        "```"
    )


def _label(name: str, taken: dict[str, int]) -> str:
    """A label that no other bar has. Mermaid knows no way to quote every character, so that few are let in."""
    label = _UNSAFE.sub("-", name)[-_LONGEST:] or "-"
    return label if label not in taken else f"{label} ({len(taken) + 1})"


_UNSAFE = re.compile(r"[^A-Za-z0-9._+~:/@-]+")
_LONGEST = 24


def _headline(report: Build) -> str:
    trial = "" if report.published else "\n\n_Nothing was published: this was a trial._"
    return f"## {escape(report.ref)}\n\n{_sentence(report)}{trial}"


def _sentence(report: Build) -> str:
    size = report.bytes
    if report.fresh:
        return f"**Users download {format_size(size.image)}**: a fresh image ({escape(report.reason)})."
    return f"**Users download {format_size(size.update)}** instead of {format_size(size.image)}."


def _facts(report: Build) -> str:
    layers, size, budget = report.layers, report.bytes, report.budget
    dropped = f", {len(report.dropped)} dropped" if report.dropped else ""
    layers_allowed = f" ({budget.layers} allowed)" if budget.layers is not None else ""
    rows = [
        ("Digest", f"`{report.digest}`"),
        ("Update of", escape(report.prev_ref)) if report.prev_ref else None,
        ("Update allowed", format_size(budget.update)) if budget.update is not None else None,
        ("Layers", f"{layers.total}: {layers.kept} kept, {layers.new} new{dropped}{layers_allowed}"),
        ("Image", format_size(size.image)),
        (
            "Superseded",
            f"{format_size(size.dead)}: {percent(size.dead, size.live)} ({100 * budget.overhead:g}% allowed)",
        ),
    ]
    return table(("", ""), [row for row in rows if row])


def _findings(report: Build) -> str:
    rows = [(escape(finding.rule), escape(finding.path), escape(finding.text)) for finding in report.findings]
    title = f"Rules for images that boot: {len(rows)} broken"
    return details(title, table(("Rule", "Path", ""), rows, numbers=0)) if rows else ""


def _layers(report: Build) -> str:
    new = [line for line in report.update.layers if line.state == "new"]
    rows = [("new", escape(line.name), format_size(line.bytes)) for line in new]
    rows += [
        (f"dropped: {escape(drop.reason)}", f"layer {drop.layer + 1}", format_size(drop.live + drop.dead))
        for drop in report.dropped
    ]
    kept = ("kept", f"{report.layers.kept} layers", format_size(report.bytes.kept))
    return details("Layers", table(("", "Layer", "Size"), [kept, *rows]))


def _times(report: Build) -> str:
    """What each phase took: time, and of the disk at its peak where that was looked at."""
    disk = report.disk
    heading = ("Phase", "Disk", "Time") if disk else ("Phase", "Time")
    rows = [
        (escape(name), *([format_size(disk[name]) if name in disk else ""] if disk else []), f"{seconds:.1f} s")
        for name, seconds in report.seconds.items()
    ]
    return details("Time and disk" if disk else "Time", table(heading, rows, numbers=2 if disk else 1))


def _under(title: str, text: str) -> str:
    return f"### {title}\n\n{text}" if text else ""
