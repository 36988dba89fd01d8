"""An update as a comment on the pull request that makes it: what merging costs users, mostly of what, and whether that
is more than they are to pay.

The first line is a marker that nobody sees. By it, the next run finds the comment and writes this one in its place.
"""

from __future__ import annotations

from urllib.parse import quote

from rechunk_action.report.markdown import components, details, escape, fitted, folded_packages, skips, table
from rechunk_action.report.model import ComponentLine, History, Update, label_of
from rechunk_action.report.size import format_size
from rechunk_action.report.words import NAMED, count, mostly

MAX_COMMENT = 60_000
"""Bytes: GitHub takes 65,536 characters."""

TOP = 10
"""Components that are listed by name."""


def marker(repository: str) -> str:
    """The line that tells whose comment it is. Nothing in the name can end it, or be taken for another one's."""
    return f"<!-- rechunk-action: {quote(repository, safe='/:@')} -->"


def comment(update: Update, *, repository: str, limit: int | None, history: History | None) -> str:
    """The comment on an update of the image in a repository.

    `limit` is what the update may cost in bytes, None where that is not limited, as for a fresh image that was asked
    for. `history` ends with this update, None where there is none to be found.
    """
    parts = {
        "headline": f"{marker(repository)}\n{_sentence(update)}{_over(update, limit)}",
        "what is new": components(update, TOP),
        "older versions": details("Who comes from an older version", skips(history)),
        "packages": folded_packages(update),
        "layers": _layers(update),
        "name": f"<sub>{escape(repository)}: {_versions(update)}</sub>",
    }
    return fitted(parts, MAX_COMMENT)


def _sentence(update: Update) -> str:
    size = f"**{format_size(update.bytes)}**"
    if update.old is None:
        return f"Merging this makes a fresh image: your users download all of it, {size}."
    if not update.bytes:
        return "Merging this costs your users **nothing**: they have all layers."
    most = mostly(update)
    why = f": mostly {_names(most)}" if most else f", in {count(len(update.components), 'component')}"
    return f"Merging this costs your users {size}{why}."


def _over(update: Update, limit: int | None) -> str:
    """By how much an update is over its limit, and what has to shrink for it to be within; `""` for one that is."""
    if limit is None or update.bytes <= limit:
        return ""
    over = update.bytes - limit
    largest = ", ".join(
        f"{escape(label_of(line.name))} ({format_size(line.bytes)})" for line in update.components[:NAMED]
    )
    return (
        f"\n\n> [!CAUTION]\n> That is {format_size(over)} more than the {format_size(limit)} that are allowed. "
        f"The largest: {largest}."
    )


def _names(lines: list[ComponentLine]) -> str:
    names = [escape(label_of(line.name)) for line in lines]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _layers(update: Update) -> str:
    rows = [(line.state, escape(line.name), format_size(line.bytes)) for line in update.layers if line.state != "kept"]
    title = f"Layers: {update.total.layers - update.added.layers} kept, {update.added.layers} new"
    return details(title, table(("", "Layer", "Size"), rows)) if rows else ""


def _versions(update: Update) -> str:
    new = f"an image of {format_size(update.new.bytes)} in {count(update.new.layers, 'layer')}"
    return f"{new}, as an update of {escape(update.old.name)}" if update.old else new
