"""What a user is told of a source: what an image cannot hold and was left out."""

from __future__ import annotations

from collections import Counter


def left_out(skipped: Counter[str], dropped_xattrs: int) -> list[str]:
    """One sentence for each kind of thing that was left out. Sockets are not worth one: they mean nothing at rest."""
    notices = [
        f"left out {count:,} {kind}{'s' if count > 1 else ''}: OSTree clients refuse an image that holds one"
        for kind, count in sorted(skipped.items())
        if kind != "socket"
    ]
    if dropped_xattrs:
        plural = "s" if dropped_xattrs > 1 else ""
        notices.append(f"left out {dropped_xattrs:,} extended attribute{plural} that importers cannot read, as asked")
    return notices
