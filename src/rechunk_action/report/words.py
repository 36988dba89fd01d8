"""What the text views share: names as text, versions, counts, and what an update mostly is.

Names come out of images, so that anything may be in them. Each is shown on one line, in the order in which its
characters stand, with nothing that cannot be seen.
"""

from __future__ import annotations

from rechunk_action.report.model import ComponentLine, PackageLine, Update

LONGEST = 200
"""Characters of a name that are shown: more than a pinned reference has, less than a builder's command."""

NAMED = 3
"""Components that can be called the most of an update; more would be a list, and there is a table for that."""


def shown(text: str, longest: int = LONGEST) -> str:
    r"""A name as one line of visible text. Control characters, newlines, zero-width ones and those that turn the
    direction of writing are spelled out (`\u202e`); what is longer than `longest` characters is cut.
    """
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def versions(line: ComponentLine | PackageLine) -> str:
    """The versions of a package, before and after, as far as they are known."""
    old, new = (None if version is None else shown(version) for version in (line.old, line.new))
    return f"{old} → {new}" if old and new and old != new else new or old or ""


def count(number: int, noun: str) -> str:
    """`1 layer`, `1,200 layers`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"


def mostly(update: Update) -> list[ComponentLine]:
    """The largest components, as many as make up more than half of an update; none where that takes more than a few."""
    sizes = 0
    for number, line in enumerate(update.components[:NAMED], 1):
        sizes += line.bytes
        if 2 * sizes > update.bytes:
            return list(update.components[:number])
    return []


def changes(update: Update) -> str:
    """How many packages are others, new or gone: `12 changed, 2 added, 1 removed`; `""` where that is not known."""
    if update.packages is None:
        return ""
    added = sum(line.old is None for line in update.packages)
    removed = sum(line.new is None for line in update.packages)
    counted = [(len(update.packages) - added - removed, "changed"), (added, "added"), (removed, "removed")]
    return ", ".join(f"{number:,} {what}" for number, what in counted if number) or "none changed"
