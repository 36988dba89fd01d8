"""Charts that GitHub draws from text in Markdown: Mermaid's, which anybody can read, compare and change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

POINTS = 20
"""Labels below a chart for which there is room."""


@dataclass(frozen=True)
class Chart:
    """Lines or bars over common positions. Mermaid shows no legend: `title` has to say which is which."""

    title: str
    across: str
    labels: Sequence[str]
    up: str
    most: float

    def lines(self, *series: Sequence[float]) -> str:
        """A line for each series."""
        return self._drawn("line", series)

    def bars(self, *series: Sequence[float]) -> str:
        """Bars, those of the later series in front of those of the earlier ones."""
        return self._drawn("bar", series)

    def _drawn(self, mark: str, series: Sequence[Sequence[float]]) -> str:
        names = ", ".join(f'"{label}"' for label in self.labels)
        drawn = [f"  {mark} [{', '.join(f'{value:.4g}' for value in values)}]" for values in series]
        return "\n".join(
            [
                "```mermaid",
                "xychart-beta",
                f'  title "{self.title}"',
                f'  x-axis "{self.across}" [{names}]',
                f'  y-axis "{self.up}" 0 --> {self.most:.4g}',
                *drawn,
                "```",
            ]
        )


def spread(count: int) -> list[int]:
    """Positions out of so many for which there is room, the first and the last among them."""
    shown = min(count, POINTS)
    return [round(number * (count - 1) / max(1, shown - 1)) for number in range(shown)]
