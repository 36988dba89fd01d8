"""Which published layers are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.plan.compaction import Compaction, Liveness, compact


def compacted(
    *layers: tuple[int, int], max_overhead: float = 1e9, max_layers: int = 99, unfit: Mapping[int, str] | None = None
) -> Compaction:
    """Compact layers that are each given by their live and their dead bytes."""

    def liveness(keep: Sequence[int]) -> Liveness:
        live, dead = ({index: layers[index][part] for index in keep} for part in (0, 1))
        return Liveness(live, dead, {index for index in keep if not live[index]})

    sizes = [sum(layer) for layer in layers]
    return compact(sizes, liveness, unfit=unfit or {}, max_overhead=max_overhead, max_layers=max_layers)


def test_layers_within_the_budgets_are_all_kept() -> None:
    assert compacted((100, 5), (10, 0), (1, 0), max_overhead=0.05, max_layers=3) == Compaction([0, 1, 2])


def test_a_layer_with_nothing_live_goes_even_within_the_budget() -> None:
    done = compacted((100, 0), (0, 1), (5, 0), max_overhead=1.0)
    assert done.keep == [0, 2]
    assert [(drop.index, drop.reason) for drop in done.drops] == [(1, "nothing in it is live")]


def test_the_layers_that_free_most_for_their_live_bytes_go_first() -> None:
    done = compacted((1000, 50), (100, 50), (10, 50), max_overhead=0.1)
    assert done.keep == [0, 1]
    assert [(drop.index, drop.live, drop.dead) for drop in done.drops] == [(2, 10, 50)]


def test_layers_are_spared_that_the_budget_does_not_need() -> None:
    # Layers 1 and 2 come first by their ratio, but are not enough; once 3 goes too, their dead bytes fit in.
    assert compacted((1000, 0), (1, 10), (1, 20), (400, 200), max_overhead=0.05).keep == [0, 1, 2]


def test_a_smaller_budget_drops_more() -> None:
    layers = [(1000, 30), (100, 20), (10, 10)]
    kept = [compacted(*layers, max_overhead=budget).keep for budget in (0.06, 0.05, 0.03, 0.0)]
    assert kept == [[0, 1, 2], [0, 1], [0], []]


def test_without_a_budget_for_dead_bytes_only_whole_layers_stay() -> None:
    assert compacted((1000, 1), (10, 0), (1, 1), max_overhead=0).keep == [1]


def test_of_too_many_layers_those_with_the_fewest_live_bytes_go() -> None:
    done = compacted((100, 0), (3, 0), (50, 0), (2, 0), (70, 0), max_layers=3)
    assert done.keep == [0, 2, 4]
    assert {(drop.index, drop.reason) for drop in done.drops} == {(1, "too many layers"), (3, "too many layers")}


def test_of_layers_that_are_alike_the_lower_goes() -> None:
    assert compacted((5, 0), (5, 0), (5, 0), max_layers=2).keep == [1, 2]


def test_an_unfit_layer_goes_with_its_reason() -> None:
    done = compacted((100, 0), (50, 0), unfit={0: "it is broken"})
    assert done.keep == [1]
    assert [(drop.index, drop.reason) for drop in done.drops] == [(0, "it is broken")]


def test_an_unfit_layer_is_never_asked_for() -> None:
    def liveness(keep: Sequence[int]) -> Liveness:
        assert 1 not in keep
        return Liveness(dict.fromkeys(keep, 1), dict.fromkeys(keep, 0), ())

    assert compact([1, 1, 1], liveness, unfit={1: "broken"}, max_overhead=0, max_layers=9).keep == [0, 2]


def test_what_comes_back_to_life_is_seen() -> None:
    # Layer 1 hides a part of layer 0; without it, layer 0 is whole.
    def liveness(keep: Sequence[int]) -> Liveness:
        hidden = 50 if 1 in keep else 0
        live, dead = {0: 1000 - hidden, 1: 10}, {0: hidden, 1: 90}
        return Liveness({index: live[index] for index in keep}, {index: dead[index] for index in keep}, ())

    assert compact([1000, 100], liveness, unfit={}, max_overhead=0.06, max_layers=9).keep == [0]


def test_nothing_published_is_nothing_kept() -> None:
    assert compacted() == Compaction([])


@pytest.mark.parametrize("max_layers", [0, 1, 5])
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=12),
    st.floats(0, 2),
    st.dictionaries(st.integers(0, 3), st.just("unfit")),
)
def test_budgets_hold_and_every_layer_is_kept_or_dropped_once(
    max_layers: int, layers: list[tuple[int, int]], max_overhead: float, unfit: dict[int, str]
) -> None:
    unfit = {index: reason for index, reason in unfit.items() if index < len(layers)}
    done = compacted(*layers, max_overhead=max_overhead, max_layers=max_layers, unfit=unfit)
    assert len(done.keep) <= max_layers
    assert sum(layers[i][1] for i in done.keep) <= max_overhead * sum(layers[i][0] for i in done.keep)
    assert sorted([*done.keep, *(drop.index for drop in done.drops)]) == list(range(len(layers)))
    assert done.keep == sorted(done.keep)
