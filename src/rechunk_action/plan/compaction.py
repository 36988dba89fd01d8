"""Which published layers to keep: a log-structured store with a budget.

A kept layer costs nothing to send, but it may hold *dead* bytes: of files that the new image has no longer, or has in
another form. Dropping a layer frees its dead bytes and its place, at the price of sending its *live* bytes again. So:

1. A layer with nothing live is dropped: that is free.
2. While dead bytes exceed the budget (a share of the live image), layers are dropped that free the most dead bytes for
   the live bytes they cost; then those are spared whose dropping the budget turns out not to need.
3. Of too many layers, those with the fewest live bytes are dropped.

What is live depends on which layers are kept: one that goes can bring an older version of a file back. It is asked
anew after every round. The rules know layers and bytes, not file systems.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Liveness:
    """Compressed bytes, live and dead, of each layer that is kept, and the layers in which nothing is live at all."""

    live: Mapping[int, int]
    dead: Mapping[int, int]
    useless: Collection[int]


@dataclass(frozen=True)
class Drop:
    """A layer that is not kept, and why. `live` and `dead` are bytes when it was dropped."""

    index: int
    reason: str
    live: int = 0
    dead: int = 0


@dataclass(frozen=True)
class Compaction:
    """The indexes of the layers to keep, in order, and the drops."""

    keep: list[int]
    drops: list[Drop] = field(default_factory=list)


def compact(
    sizes: Sequence[int],
    liveness: Callable[[Sequence[int]], Liveness],
    *,
    unfit: Mapping[int, str],
    max_overhead: float,
    max_layers: int,
) -> Compaction:
    """Choose the layers to keep, `max_layers` at most, out of layers of these sizes (compressed bytes).

    `unfit` names layers that can't be kept at all, and why. `max_overhead` is the share of dead bytes in the live ones
    of the kept layers (0.05 for 5%): what will be new counts for nothing, so that the budget holds whatever it is.
    """
    drops = [Drop(index, reason, 0, sizes[index]) for index, reason in sorted(unfit.items())]
    keep = [index for index in range(len(sizes)) if index not in unfit]
    while keep:
        state = liveness(keep)
        budget = max_overhead * sum(state.live.values())
        if state.useless:
            round_ = [Drop(index, "nothing in it is live", 0, sizes[index]) for index in keep if index in state.useless]
        elif sum(state.dead.values()) > budget:
            round_ = _over_budget(keep, state, budget)
        elif len(keep) > max_layers:
            least = sorted(keep, key=lambda index: (state.live[index], index))[: len(keep) - max_layers]
            round_ = [Drop(index, "too many layers", state.live[index], state.dead[index]) for index in sorted(least)]
        else:
            break
        drops += round_
        gone = {drop.index for drop in round_}
        keep = [index for index in keep if index not in gone]
    return Compaction(keep, drops)


def _over_budget(keep: Sequence[int], state: Liveness, budget: float) -> list[Drop]:
    """The layers that bring dead bytes back into the budget most cheaply."""
    live, dead = state.live, state.dead
    excess = sum(dead.values()) - budget
    chosen: list[int] = []
    for index in sorted(keep, key=lambda i: (-dead[i] / (live[i] + 1), i)):
        if excess <= 0:
            break
        chosen.append(index)
        excess -= dead[index]
    for index in sorted(chosen, key=lambda i: (-live[i], i)):
        if excess + dead[index] <= 0:
            chosen.remove(index)
            excess += dead[index]
    return [Drop(i, "dead bytes exceed the budget", live[i], dead[i]) for i in sorted(chosen)]
