"""Sizes as people read them, and as the tools that they know write them."""

from __future__ import annotations

KILO = 1000


def format_size(size: int) -> str:
    """Bytes as glib's `g_format_size` writes them: powers of 1000, one decimal, a no-break space."""
    if size < KILO:
        return f"{size}\N{NO-BREAK SPACE}byte{'' if size == 1 else 's'}"
    scaled = float(size)
    for unit in ("kB", "MB", "GB", "TB"):
        scaled /= KILO
        if scaled < KILO or unit == "TB":
            break
    return f"{scaled:.1f}\N{NO-BREAK SPACE}{unit}"
