"""What an update from one image to another costs, in the words that clients use, and what made it so.

`bootc upgrade --check` and `rpm-ostree upgrade --preview` print three lines: all layers of the new image, those that
the old one has alone, those that only the new one has (ostree-ext, container/mod.rs: ManifestDiff), with sizes as glib
formats them. The last is what a client downloads. Behind it stand the components whose files these layers hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rechunk_action.oci.table import Blob, Table
from rechunk_action.plan.grouping import UNCLAIMED

KILO = 1000

STRUCTURE = "directories and removals"


@dataclass(frozen=True)
class Comparison:
    """Layers and bytes of an update. `components` gives compressed bytes, the largest first."""

    total: int
    total_bytes: int
    removed: int
    removed_bytes: int
    added: int
    added_bytes: int
    components: Mapping[str, int]


def compare(old: Iterable[Blob], new: Iterable[Blob], components: Mapping[str, int]) -> Comparison:
    """Count as clients do: layers are known by digest, each once, but the total size counts a repeated one again."""
    old = list(old)
    new = list(new)
    was = {blob.digest: blob.size for blob in old}
    is_ = {blob.digest: blob.size for blob in new}
    removed = was.keys() - is_.keys()
    added = is_.keys() - was.keys()
    return Comparison(
        total=len(is_),
        total_bytes=sum(blob.size for blob in new),
        removed=len(removed),
        removed_bytes=sum(was[digest] for digest in removed),
        added=len(added),
        added_bytes=sum(is_[digest] for digest in added),
        components=components,
    )


def bytes_by_component(layers: Iterable[tuple[Blob, Table]], owner: Mapping[str, str]) -> dict[str, int]:
    """Compressed bytes of some layers by the component of the files in them, the largest first."""
    found: Counter[str] = Counter()
    for blob, table in layers:
        placed = 0
        for path, entry in table.entries.items():
            name = STRUCTURE if entry.is_dir else owner.get(path, UNCLAIMED)
            found[name] += entry.cost
            placed += entry.cost
        found[STRUCTURE] += max(0, blob.size - placed)
    return {name: size for name, size in sorted(found.items(), key=lambda item: (-item[1], item[0])) if size}


def lines(comparison: Comparison, most: int) -> list[str]:
    """The comparison as clients print it, then the components, `most` at the most."""
    text = [
        f"Total new layers: {comparison.total:<4}  Size: {format_size(comparison.total_bytes)}",
        f"Removed layers:   {comparison.removed:<4}  Size: {format_size(comparison.removed_bytes)}",
        f"Added layers:     {comparison.added:<4}  Size: {format_size(comparison.added_bytes)}",
    ]
    named = list(comparison.components.items())
    if named:
        text += ["", "What the added layers hold:"]
        text += [f"{format_size(size):>10}  {name}" for name, size in named[:most]]
    if len(named) > most:
        rest = sum(size for _, size in named[most:])
        text.append(f"{format_size(rest):>10}  {len(named) - most} more components")
    return text


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
