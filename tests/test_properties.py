"""What holds for every image, whatever the trees and however they change: random trees over generations.

Layers are planned, written and read back as a build does it, but contents come from memory.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rechunk_action.oci.compression import parse_compression
from rechunk_action.oci.layer import write_layer
from rechunk_action.oci.merge import Replay, merge
from rechunk_action.oci.table import Table
from rechunk_action.plan.plain import PROTECTED, Plan, Published, plan_fresh, plan_update
from rechunk_action.tree.entry import ROOT, Tree, ancestors, link_groups, parent_of
from rechunk_action.verify import differences
from tests.building import build, tables_of
from tests.foreign import foreign_layers
from tests.support import archive, listing, pack
from tests.trees import Files, InMemory, generations, write

pytestmark = pytest.mark.usefixtures("small_components")

ZSTD = parse_compression("zstd:1")

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
many = settings(patient, max_examples=4 * settings().max_examples)
few = settings(patient, max_examples=settings().max_examples // 5)


@dataclass(frozen=True)
class Budget:
    max_layers: int
    max_overhead: float


budgets = st.builds(Budget, st.sampled_from([3, 5, 12, 120]), st.sampled_from([0.0, 0.05, 0.3, 1.0]))


@dataclass(frozen=True)
class Generation:
    """An image: what it was planned from, and its layers as they were read back."""

    tree: Tree
    below: Sequence[Published]
    plan: Plan
    layers: Sequence[Published]

    @property
    def tables(self) -> list[Table]:
        return [layer.table for layer in self.layers]

    @property
    def digests(self) -> list[str]:
        return [layer.blob.digest for layer in self.layers]

    @property
    def new(self) -> list[int]:
        """Positions of the layers that were written."""
        return [at for at, layer in enumerate(self.plan.layers) if not isinstance(layer, int)]


@given(generations(least=2, most=8), budgets)
@many
def test_every_generation_is_right(history: list[Files], budget: Budget) -> None:
    below: Sequence[Published] = []
    for files in history:
        image = publish(InMemory(files), below, budget)
        check_clients_see_the_tree(image)
        check_the_budget_is_kept(image, budget)
        check_kept_layers_keep_their_order(image)
        check_new_layers_state_all_ancestors(image)
        check_new_layers_hold_whole_link_groups(image)
        check_removals_hit_something(image)
        check_removals_are_in_directories_that_other_layers_name(image)
        check_nothing_is_hidden_by_opaque_directories(image)
        below = image.layers


def check_clients_see_the_tree(image: Generation) -> None:
    assert differences(Replay(image.tables, image.tree)) == []


def check_the_budget_is_kept(image: Generation, budget: Budget) -> None:
    dead = sum(Replay(image.tables, image.tree).dead())
    live = sum(layer.blob.size for layer in image.layers) - dead
    assert len(image.layers) <= budget.max_layers
    assert dead <= budget.max_overhead * live


def check_kept_layers_keep_their_order(image: Generation) -> None:
    assert image.plan.kept == sorted(set(image.plan.kept))


def check_new_layers_state_all_ancestors(image: Generation) -> None:
    for at in image.new:
        table = image.tables[at]
        for path in (*table.entries, *table.whiteouts):
            above = [*ancestors(path), *(["usr"] if path == "etc" else [])]
            assert all(table.entries[place].same_as(image.tree[place]) for place in above)


def check_new_layers_hold_whole_link_groups(image: Generation) -> None:
    groups = [set(paths) for paths in link_groups(image.tree.items()).values()]
    for at in image.new:
        assert not image.tables[at].links
        held = image.tables[at].entries.keys()
        assert all(paths <= held or not paths & held for paths in groups)


def check_removals_hit_something(image: Generation) -> None:
    for at in image.new:
        table = image.tables[at]
        shown = merge(image.tables[:at], "last").keys()
        assert shown >= set(table.whiteouts)
        assert not PROTECTED & set(table.whiteouts)
        assert not image.tree.keys() & set(table.whiteouts)


def check_removals_are_in_directories_that_other_layers_name(image: Generation) -> None:
    """Elsewhere, overlayfs merges nothing and shows the removal itself. The root is always merged."""
    named = Counter(path for table in image.tables for path in table.entries)
    above = {parent_of(path) for table in image.tables for path in table.whiteouts} - {ROOT}
    assert all(named[path] > 1 for path in above if path in image.tree and image.tree[path].is_dir)


def check_nothing_is_hidden_by_opaque_directories(image: Generation) -> None:
    assert not any(table.opaque for table in image.tables)


@given(generations(least=2, most=4), budgets)
@many
def test_an_unchanged_tree_keeps_every_layer(history: list[Files], budget: Budget) -> None:
    last = published(history, budget)
    later = {path: replace(node, mtime=node.mtime + 60) for path, node in history[-1].items()}
    again = publish(InMemory(later), last.layers, budget)
    assert again.digests == last.digests
    assert again.new == []


@given(generations(least=1, most=3), budgets, st.randoms(use_true_random=False))
@many
def test_the_same_input_gives_the_same_bytes(history: list[Files], budget: Budget, chance: random.Random) -> None:
    last = published(history, budget)
    shuffled = list(history[-1].items())
    chance.shuffle(shuffled)
    assert publish(InMemory(dict(shuffled)), last.below, budget, threads=2).digests == last.digests


@given(generations(least=2, most=5), budgets, st.data())
@many
def test_layers_of_another_builder_are_adopted(history: list[Files], budget: Budget, data: st.DataObject) -> None:
    layers = [pack(archive(*items)) for items in data.draw(foreign_layers(history))]
    below = [Published(layer.blob, layer.read()) for layer in layers]
    image = publish(InMemory(history[-1]), below, budget)
    check_clients_see_the_tree(image)
    check_the_budget_is_kept(image, budget)


@given(generations(least=3, most=4, edits=4), st.sampled_from(["zstd:1", "gzip:1"]))
@few
def test_a_whole_build_is_right_too(history: list[Files], compression: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        layout = Path(scratch, "image")
        before: Mapping[str, bytes | None] = {}
        for number, files in enumerate(history):
            root = Path(scratch, f"tree-{number}")
            write(files, root)
            prev = f"oci:{layout}:{number - 1}" if number else None
            report = build(root, f"oci:{layout}:{number}", prev_ref=prev, compression=compression, max_layers=12)
            assert report["layers"]["total"] <= 12
            assert differences(Replay(tables_of(layout, str(number)), InMemory(files).tree)) == []
            after = listing(layout / "blobs")
            assert before.items() <= after.items()
            before = after


def published(history: Sequence[Files], budget: Budget) -> Generation:
    """The last generation, after all the others."""
    below: Sequence[Published] = []
    for files in history[:-1]:
        below = publish(InMemory(files), below, budget).layers
    return publish(InMemory(history[-1]), below, budget)


def publish(image: InMemory, below: Sequence[Published], budget: Budget, *, threads: int = 1) -> Generation:
    """An update of the image below, or a fresh one if there is nothing to keep."""
    tree, most = image.tree, budget.max_layers
    plan = plan_update(below, tree, lambda: components(tree), max_layers=most, max_overhead=budget.max_overhead)
    if not plan.kept:
        plan, below = plan_fresh(tree, components(tree), max_layers=most), []
    layers = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, layer in enumerate(plan.layers):
            if isinstance(layer, int):
                layers.append(below[layer])
                continue
            path = Path(scratch, str(number))
            written = write_layer(
                layer, tree, image, path, compression=ZSTD, level=1, threads=threads, newest=2_000_000_000
            )
            assert written.blob.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
            layers.append(Published(written.blob, written.table))
    return Generation(tree, below, plan, layers)


def components(tree: Tree) -> Mapping[str, str]:
    """What is below one directory, or at most two, is a component."""
    return {
        path: "/".join(path.split("/")[:2])
        for path, entry in sorted(tree.items(), key=lambda item: item[0][::-1])
        if not entry.is_dir and "/" in path
    }
