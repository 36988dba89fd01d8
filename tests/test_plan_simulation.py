"""What delta layering would have cost: the planner, replayed over versions that others have published."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rechunk_action.oci.merge import Replay
from rechunk_action.oci.table import Blob, Table
from rechunk_action.plan.plain import Published
from rechunk_action.plan.simulation import Simulation, Step, Version, changed, version_of
from rechunk_action.tree.entry import Entry, Tree, link_groups
from rechunk_action.verify import differences, tree_differences
from tests.foreign import foreign_layers
from tests.support import Item, archive, device, directory, file, hardlink, pack, symlink
from tests.trees import Files, InMemory, generations

pytestmark = pytest.mark.usefixtures("small_components")

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

A, B, C = (random.Random(seed).randbytes(4_000 + seed) for seed in range(3))  # noqa: S311  # not for secrets


def layer(*items: Item) -> Published:
    return read([directory("./"), *items])


def version(*items: Item) -> Version:
    """A version that was published as one layer."""
    return version_of([layer(*items)])


def steps(*versions: Version, max_layers: int = 99, max_overhead: float = 0.05) -> list[Step]:
    simulation = Simulation(versions[0], max_layers=max_layers, max_overhead=max_overhead)
    return [simulation.update(version) for version in versions[1:]]


def takes(version: Version, *paths: str) -> int:
    """Compressed bytes of some paths, where they were published."""
    return sum(version.tree[path].cost for path in paths)


@dataclass(frozen=True)
class Budget:
    max_layers: int
    max_overhead: float


budgets = st.builds(Budget, st.sampled_from([3, 5, 12, 120]), st.sampled_from([0.0, 0.05, 0.3, 1.0]))


@st.composite
def published(draw: st.DrawFn, history: list[Files]) -> list[Version]:
    """Each generation as others publish it: in one layer, or in a layer on those of the one before."""
    before: Files = {}
    layers: list[Published] = []
    found = []
    for files in history:
        on_top = draw(st.booleans()) and bool(layers)
        made = read(draw(foreign_layers([before, files] if on_top else [files]))[-1])
        layers = [*layers, made] if on_top else [made]
        found.append(version_of(layers))
        before = files
    return found


def read(items: Sequence[Item]) -> Published:
    packed = pack(archive(*items))
    return Published(packed.blob, packed.read())


@given(generations(least=2, most=5), st.data())
@patient
def test_a_version_is_what_clients_see_of_its_layers(history: list[Files], data: st.DataObject) -> None:
    for files, version in zip(history, data.draw(published(history)), strict=True):
        tree = InMemory(files).tree
        # Of directories, such layers do not say everything; clients make up the rest.
        assert tree_differences(files_of(version.tree), files_of(tree)) == []
        assert version.tree.keys() == tree.keys()
        assert link_groups(version.tree.items()) == link_groups(tree.items())
        assert version.contents.keys() == {entry.digest for entry in tree.values() if entry.kind == "f"}
        assert version.owner.keys() == version.places.keys() == files_of(tree).keys()


def test_what_runtimes_mount_over_and_what_nobody_described_is_as_clients_have_it() -> None:
    found = version(directory("run"), file("run/x", A), file("proc", B), file("a/b", C), hardlink("c", "a/b"))
    assert found.tree.keys() == {"", "run", "proc", "a", "a/b", "c"}
    assert found.tree["a"].mode == 0o755
    assert {found.tree[path].group for path in ("a/b", "c")} == {"a/b"}
    assert found.tree["proc"].group == ""
    assert {path: place for path, (_, place) in found.places.items()} == {"proc": "proc", "a/b": "a/b", "c": "a/b"}


def files_of(tree: Tree) -> Tree:
    return {path: entry for path, entry in tree.items() if not entry.is_dir}


@given(generations(least=2, most=6), budgets, st.data())
@patient
def test_every_simulated_image_is_the_version_and_within_its_budget(
    history: list[Files], budget: Budget, data: st.DataObject
) -> None:
    first, *later = data.draw(published(history))
    simulation = Simulation(first, max_layers=budget.max_layers, max_overhead=budget.max_overhead)
    for version in later:
        held = {entry.digest for layer in simulation.layers for entry in layer.table.entries.values()}
        step = simulation.update(version)
        replayed = Replay([layer.table for layer in simulation.layers], version.tree)
        assert differences(replayed) == []
        assert len(simulation.layers) <= budget.max_layers
        dead = sum(replayed.dead())
        assert dead <= budget.max_overhead * (step.image - dead)
        assert step.image == sum(layer.blob.size for layer in simulation.layers)
        assert sum(size for digest, size in version.contents.items() if digest not in held) <= step.update <= step.image


def test_the_first_update_of_a_foreign_image_costs_what_changed() -> None:
    old = version(directory("usr"), file("usr/a", A), file("usr/b", B))
    new = version(directory("usr"), file("usr/a", A), file("usr/b", C))
    (step,) = steps(old, new, max_overhead=1)
    assert changed(old, new) == takes(new, "usr/b")
    assert step.update == takes(new, "", "usr", "usr/b")
    assert step.image == old.layers[0].blob.size + step.update


def test_superseded_bytes_are_written_again_when_the_budget_says_so() -> None:
    old = version(file("a", A), file("b", B))
    new = version(file("a", A), file("b", C))
    (step,) = steps(old, new, max_overhead=0.05)
    assert step.update == step.image == takes(new, "", "a", "b")
    assert [(drop.reason, drop.live > 0) for drop in step.drops] == [("dead bytes exceed the budget", True)]


def test_a_layer_that_no_update_can_keep_costs_all_that_is_in_it_once() -> None:
    files = file("a", A), file("b", B)
    old, new = version(*files, device("sda")), version(*files)
    first, second = steps(old, new, new)
    assert first.update == first.image == takes(new, "", "a", "b")
    assert "sda" in first.drops[0].reason
    assert second == Step(0, first.image, [])


def test_what_shares_a_layer_belongs_together_and_dies_together() -> None:
    def image(*contents: bytes) -> Version:
        return version_of([layer(file(f"usr/{number}", content)) for number, content in enumerate(contents)])

    large = [random.Random(seed).randbytes(40_000) for seed in range(10)]  # noqa: S311  # as above
    update = steps(image(*large[:2]), image(*large[2:4]), image(large[4], large[3]))[-1]
    assert [drop.reason for drop in update.drops] == ["nothing in it is live"]


def test_nothing_that_stays_is_counted_as_changed() -> None:
    old = version(file("a", A), file("b", B), symlink("l", "a"))
    new = version(file("other", A, mode=0o755), file("b", B), symlink("l", "b"), file("empty"))
    assert changed(old, new) == takes(new, "empty")
    assert changed(new, new) == 0


def test_copies_and_hard_links_of_a_content_count_once() -> None:
    new = version(file("a", A), hardlink("b", "a"), file("c", A), hardlink("d", "c"))
    assert new.tree["b"].group == "a"
    assert new.tree["d"].group == "c"
    assert changed(version(file("x", B)), new) == max(takes(new, "a"), takes(new, "c"))


def chunks(*chunks: dict[str, tuple[int, bytes]], commit: int = 100) -> Version:
    """An OSTree-chunked version: chunks of paths, each with the bytes that it takes and its object."""
    paths = {path for chunk in chunks for path in chunk}
    tree: Tree = {above: Entry("d", 0o755, 0, 0) for path in paths for above in ("", path.rpartition("/")[0])}
    layers = []
    for number, chunk in enumerate(chunks):
        entries = {path: Entry("f", 0o644, 0, 0, digest=of, cost=cost) for path, (cost, of) in chunk.items()}
        size = sum(entry.cost for entry in entries.values())
        layers.append(Published(Blob(f"chunk {number}", size, ""), Table(entries, format="ostree")))
    return version_of(layers, first=Published(Blob("commit", commit, ""), Table(tree, format="ostree")))


def test_the_commit_of_a_chunked_image_is_sent_with_every_update() -> None:
    old = chunks({"usr/a": (1_000, b"1"), "usr/b": (20, b"2")}, {"usr/c": (500, b"3")})
    new = chunks({"usr/a": (1_000, b"1"), "usr/b": (30, b"4")}, {"usr/c": (500, b"3")}, commit=110)
    (step,) = steps(old, new)
    assert (step.update, step.image) == (30 + 110, 1_020 + 500 + 30 + 110)
    assert changed(old, new) == 30
    assert steps(old, old)[0].update == 100


def test_the_paths_of_an_object_make_up_together_what_it_takes() -> None:
    new = chunks({"usr/a": (500, b"1"), "usr/b": (500, b"1")})
    assert changed(chunks({"usr/x": (1, b"0")}), new) == 1_000


def test_the_commit_counts_as_a_layer() -> None:
    versions = [chunks({f"usr/{n}": (1_000, b"%d" % (n if n >= at else -n)) for n in range(9)}) for at in range(9)]
    simulation = Simulation(versions[0], max_layers=4, max_overhead=9)
    counts = set()
    for version in versions[1:]:
        simulation.update(version)
        counts.add(len(simulation.layers))
    assert max(counts) == 3


def test_where_nothing_can_be_kept_the_image_is_laid_out_anew() -> None:
    parts = [file(f"usr/{number}", random.Random(number).randbytes(4_000)) for number in range(30)]  # noqa: S311
    simulation = Simulation(version(*parts, device("sda")), max_layers=99, max_overhead=1)
    simulation.update(version_of([layer(part) for part in parts]))
    assert len(simulation.layers) > 10
