"""Charts that GitHub draws from text in Markdown: Mermaid's, which anybody can read, compare and change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COLORS = {"blue": "#2f6fdb", "orange": "#d9822b", "grey": "#7f8790"}
"""Of lines, in this order: they are told apart on white and on black."""


def lines(
    title: str, across: str, places: range | Sequence[str], up: str, series: Mapping[str, Sequence[float]]
) -> str:
    """Lines over common places: consecutive numbers, or labels. What is up starts at zero.

    Mermaid shows no legend: where there are several lines, the title tells which has what color.
    """
    legend = ", ".join(f"{name} {color}" for name, color in zip(series, COLORS, strict=False))
    told = f"{title}: {legend}" if len(series) > 1 else title
    labels = ", ".join(f'"{place}"' for place in places)
    axis = f"{places.start} --> {places.stop - 1}" if isinstance(places, range) else f"[{labels}]"
    most = max(value for values in series.values() for value in values)
    return "\n".join(
        [
            "```mermaid",
            "---",
            "config:",
            "  themeVariables:",
            "    xyChart:",
            f'      plotColorPalette: "{", ".join(COLORS.values())}"',
            "---",
            "xychart-beta",
            f'  title "{told}"',
            f'  x-axis "{across}" {axis}',
            f'  y-axis "{up}" 0 --> {1.05 * most:.6g}',
            *(f"  line [{', '.join(f'{value:.4g}' for value in values)}]" for values in series.values()),
            "```",
        ]
    )
