"""Where the marks of a chart go: numbers in, positions out.

Positions are percents of the chart's width and height, from its top left corner. So the page draws shapes as SVG that
stretches, and text as HTML that does not: one chart fits a phone and a wide screen, with labels of one size.

By hand rather than by a library, since a scale and a treemap are all that the charts here take. pygal, the best of
those that write SVG without a browser, was tried: its ids are random, its text grows and shrinks with the drawing and
runs into its neighbours, its treemap is cut into strips, and its tooltips are a script.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

STEPS = 4
"""Steps of a scale, about."""

LEAST = 1e-9
"""Sides of what is left for sizes that vanish beside the others."""


class Box(NamedTuple):
    """A rectangle."""

    left: float
    top: float
    width: float
    height: float


def scale(most: int) -> list[int]:
    """Round values in equal steps, from 0 to at least `most`: the lines of a chart, of which the last is its top."""
    wanted = max(1, most) / STEPS
    magnitude = 10 ** math.floor(math.log10(wanted))
    step = max(1, math.ceil(next(times * magnitude for times in (1, 2, 2.5, 5, 10) if times * magnitude >= wanted)))
    return [step * number for number in range(-(-max(1, most) // step) + 1)]


def treemap(groups: Sequence[Sequence[int]], *, aspect: float) -> list[list[Box]]:
    """A box for each size, of an area that is its share: groups beside each other, and their sizes within them.

    Sizes are positive; the largest first give boxes that are nearest to squares. `aspect` is the chart's width by its
    height.
    """
    chart = Box(0, 0, 100 * aspect, 100)
    outer = _squarified([sum(group) for group in groups], chart)
    return [
        [Box(box.left / aspect, box.top, box.width / aspect, box.height) for box in _squarified(group, around)]
        for group, around in zip(groups, outer, strict=True)
    ]


def _squarified(sizes: Sequence[int], box: Box) -> Iterator[Box]:
    """Cut a box into rows along its shorter side, each as long as that makes its boxes squarer (Bruls et al., 2000)."""
    left, top, width, height = box
    rest, start = sum(sizes), 0
    while start < len(sizes):
        area, side = width * height / rest, min(width, height)
        end = start + 1
        while end < len(sizes) and _worst(sizes[start : end + 1], area, side) <= _worst(sizes[start:end], area, side):
            end += 1
        row = sizes[start:end]
        thickness, at = sum(row) * area / side, 0.0
        for size in row:
            length = side * size / sum(row)
            if width >= height:
                yield Box(left, top + at, thickness, length)
            else:
                yield Box(left + at, top, length, thickness)
            at += length
        if width >= height:
            left, width = left + thickness, max(LEAST, width - thickness)
        else:
            top, height = top + thickness, max(LEAST, height - thickness)
        rest, start = rest - sum(row), end


def _worst(row: Sequence[int], area: float, side: float) -> float:
    """The longest box of a row: its longer side by its shorter one."""
    thickness = sum(row) * area / side
    return max(max(thickness**2 / (size * area), size * area / thickness**2) for size in row)
