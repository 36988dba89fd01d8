"""Markdown as GitHub shows it, and the tables that several documents have.

Names are text, whatever is in them. Two stages read a document: the parser, for which everything that could be markup
is written as a character reference; and what GitHub looks for in the text that comes out of it, where references are
gone: users (`@`), issues (`#1`, `GH-1`), addresses, emoji. There, a zero-width space keeps apart what would be one.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from rechunk_action.report.model import History, Update, label_of
from rechunk_action.report.size import format_size
from rechunk_action.report.words import changes, shown, versions

MAX_ROWS = 500
"""Rows of a table: more than an image has layers that clients take."""


def escape(text: str) -> str:
    """A name as nothing but text, on one line, in a sentence, a heading or a table."""
    apart = _JOINED.sub(lambda match: f"{match[0]}\N{ZERO WIDTH SPACE}", shown(text))
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", html.escape(apart, quote=False)).replace(
        "$", "<span>&#36;</span>"
    )


_JOINED = re.compile(r"[@#]|:(?=//|[\w+-]+:)|\bwww(?=\.)|\bgh(?=-\d)", re.IGNORECASE | re.ASCII)
"""What makes a mention, a link or a picture of the text behind it."""

_MARKUP = re.compile(r"[\\`*_\[\]#|~\N{ZERO WIDTH SPACE}]")
"""What begins markup within a line. GitHub's `$` is a matter of its own: it needs a tag to be text."""


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 1) -> str:
    """A table of Markdown cells; the last `numbers` columns are numbers. Rows beyond MAX_ROWS are counted."""
    plain = len(heading) - numbers
    lines = [heading, ["---"] * plain + ["--:"] * numbers, *rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        lines.append([f"{len(rows) - MAX_ROWS:,} more", *[""] * (len(heading) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def details(title: str, text: str) -> str:
    """Text that is there for who opens it."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>" if text else ""


def fitted(parts: Mapping[str, str], limit: int) -> str:
    """The parts that are not empty, by their titles, in at most `limit` bytes. One that would not fit is left out
    whole, and a last line says so.
    """
    room = limit - len(_left_out(parts).encode())
    kept, left = "", []
    for title, part in parts.items():
        if len((kept + part).encode()) + 2 > room:
            left.append(title)
        elif part:
            kept += f"{part}\n\n"
    return kept + _left_out(left) if left else kept


def components(update: Update, most: int) -> str:
    """The components of an update, the largest `most` by name; `""` where it has none."""
    rows = [(escape(label_of(line.name)), escape(versions(line)), line.bytes) for line in update.components[:most]]
    if rest := update.components[most:]:
        rows.append((f"{len(rest):,} more", "", sum(line.bytes for line in rest)))
    versioned = any(version for _, version, _ in rows)
    heading = ("Component", "Version", "Size") if versioned else ("Component", "Size")
    cells = [(name, *([version] if versioned else []), format_size(size)) for name, version, size in rows]
    return table(heading, cells) if rows else ""


def packages(update: Update) -> str:
    """What became of packages: those that changed, then new ones, then those that are gone; `""` without any."""
    lines = sorted(update.packages or (), key=lambda line: (line.new is None, line.old is None))
    rows = [(escape(label_of(line.name)), escape(line.old or ""), escape(line.new or "")) for line in lines]
    return table(("Package", "Before", "Now"), rows, numbers=0) if rows else ""


def folded_packages(update: Update) -> str:
    return details(f"Packages: {changes(update)}", packages(update))


def skips(history: History | None) -> str:
    """What the newest version costs who comes from which older one; `""` where nobody is known to be further back than
    one version.
    """
    if history is None or len(history.skips) < 2:  # noqa: PLR2004  # the first is the update itself
        return ""
    rows = [(escape(skip.version), f"{skip.behind}", format_size(skip.bytes)) for skip in history.skips]
    rows.append(("_a new installation_", "", format_size(history.last.total.bytes)))
    return table(("Coming from", "Versions back", "Download"), rows, numbers=2)


def _left_out(titles: Iterable[str]) -> str:
    return f"_Left out, as there is no room for it here: {', '.join(titles)}._\n\n"
