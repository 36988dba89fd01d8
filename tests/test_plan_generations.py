"""What holds however many generations an image has: budgets, what updates cost, and the work that planning takes.

The planner alone, over 60 generations: of trees that hold what is hard for clients, and of packages, of which few
change often and most hardly ever. Sizes are what files take; work is counted in paths, so that it depends on no clock.
With `--hypothesis-profile=long`, that goes on for hours.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rechunk_action.engines.layering import MAX_LAYERS, MAX_OVERHEAD
from rechunk_action.oci import merge
from rechunk_action.oci.merge import Replay
from rechunk_action.oci.table import Table
from rechunk_action.plan import grouping
from rechunk_action.plan.simulation import Simulation, Version, changed
from rechunk_action.tree.entry import Entry, Tree, ancestors, new_digest
from rechunk_action.verify import differences
from tests.trees import Files, InMemory, generations

GENERATIONS = 60
KERNEL_EVERY = 4

SETTLED = 20
"""Updates after which an image has used up its budget of superseded bytes, so that planning is to compact as well."""

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
few = settings(patient, max_examples=max(1, settings().max_examples // 10))


@pytest.fixture(autouse=True, scope="module")
def _to_scale() -> Iterator[None]:
    """Components have layers of their own from the same share of an image on as real ones, about a hundredth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "ALONE", 8_000)
        patch.setattr(grouping, "BIN", 32_000)
        yield


@dataclass
class Package:
    """A package's files: path -> what takes the place of its content, and its size. `age` is when it was built."""

    heat: float
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    age: int = 0


class Image:
    """An image of packages, some large and most small, some hot and most cold."""

    def __init__(self, seed: int, packages: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311  # not for secrets
        self._count = 0
        self._packages = {f"p{number}": Package(self._chance.random() ** 4) for number in range(packages)}
        self._kernel = Package(0)
        for name, package in self._packages.items():
            self._rebuild(name, package, 0)
        self._rebuild_kernel(0)

    def versions(self, count: int) -> Iterator[Version]:
        """The image as it is, and after each of so many updates."""
        yield self._version(0)
        for number in range(1, count + 1):
            names = list(self._packages)
            heat = [self._packages[name].heat for name in names]
            for name in sorted(set(self._chance.choices(names, heat, k=self._chance.randint(1, 5)))):
                self._rebuild(name, self._packages[name], number)
            if number % KERNEL_EVERY == 0:
                self._rebuild_kernel(number)
            yield self._version(number)

    def _rebuild(self, name: str, package: Package, number: int) -> None:
        """Most files of a package change with its version, some stay, one comes or goes."""
        if not package.files:
            size = int(self._chance.lognormvariate(7, 1))
            places = [f"usr/lib/{name}/{file}" for file in range(self._chance.randint(1, 12))]
            package.files = {path: self._content(size) for path in places}
        for path, (_, size) in package.files.items():
            if self._chance.random() < 0.7:
                package.files[path] = self._content(max(1, int(size * self._chance.uniform(0.9, 1.1))))
        path = f"usr/share/{name}/{self._chance.randrange(9)}"
        if path in package.files:
            del package.files[path]
        else:
            package.files[path] = self._content(100)
        package.age = number

    def _rebuild_kernel(self, number: int) -> None:
        share = sum(size for package in self._packages.values() for _, size in package.files.values()) // 120
        files = {f"usr/lib/modules/{number}/{name}": self._content(share) for name in range(40)}
        self._kernel = Package(0, files, number)

    def _content(self, size: int) -> tuple[int, int]:
        self._count += 1
        return self._count, size

    def _version(self, number: int) -> Version:
        """What changes with every update, as a package manager's database does, belongs to no package."""
        packages = {
            **self._packages,
            "kernel": self._kernel,
            "": Package(0, {"var/lib/status": (-number, 500)}, number),
        }
        tree: Tree = {}
        owner = {}
        for name, package in packages.items():
            for path, (content, size) in package.files.items():
                digest = new_digest(b"%d" % content).digest()
                tree[path] = Entry("f", 0o644, 0, 0, package.age, size=size, digest=digest, cost=size)
                if name:
                    owner[path] = name
        for path in [*tree]:
            for above in ancestors(path):
                tree.setdefault(above, Entry("d", 0o755, 0, 0))
        contents = {entry.digest: entry.cost for entry in tree.values() if entry.kind == "f"}
        return Version(tree, {}, contents, [], None, owner)


class Work:
    """Counts paths that are merged, which is what planning consists of."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done = 0
        add = merge._Merger.add

        def counted(merger: merge._Merger, index: int, table: Table) -> None:
            self.done += len(table.entries) + len(table.whiteouts)
            add(merger, index, table)

        patch.setattr(merge._Merger, "add", counted)


@given(generations(least=8, most=8, edits=3), st.data())
@few
def test_nothing_is_lost_and_budgets_are_kept_over_generations(history: list[Files], data: st.DataObject) -> None:
    max_layers, max_overhead = data.draw(st.sampled_from([(3, 0.05), (12, 0.05), (120, 0.05), (120, 0.3)]))
    visited = data.draw(st.lists(st.integers(0, 7), min_size=GENERATIONS, max_size=GENERATIONS))
    versions = [version_of_files(files) for files in history]
    simulation = Simulation(versions[0], max_layers=max_layers, max_overhead=max_overhead)
    for number in visited:
        simulation.update(versions[number])
        check(simulation, versions[number], max_layers, max_overhead)


def version_of_files(files: Files) -> Version:
    tree = InMemory(files).tree
    for entry in tree.values():
        entry.cost = entry.size
    owner = {path: path.partition("/")[0] for path, entry in tree.items() if not entry.is_dir}
    return Version(tree, {}, {}, [], None, owner)


def check(simulation: Simulation, version: Version, max_layers: int, max_overhead: float) -> None:
    shown = Replay([layer.table for layer in simulation.layers], version.tree)
    assert differences(shown) == []
    assert len(simulation.layers) <= max_layers
    dead = sum(shown.dead())
    live = sum(layer.blob.size for layer in simulation.layers) - dead
    assert dead <= max_overhead * live


@given(st.integers(0, 2**32))
@few
def test_nothing_is_sent_that_neither_changed_nor_was_in_a_layer_that_went(seed: int) -> None:
    steps = list(updates(seed))
    assert all(step.changed <= step.update <= step.changed + step.again for step in steps)
    assert sum(step.update for step in steps) <= 1.2 * sum(step.changed for step in steps)


def test_sixty_updates_together_cost_a_tenth_more_than_what_changed_at_the_most() -> None:
    steps = [step for seed in range(4) for step in updates(seed)]
    assert sum(step.update for step in steps) <= 1.1 * sum(step.changed for step in steps)


@given(st.integers(0, 2**32))
@few
def test_planning_takes_no_longer_as_generations_go_by(seed: int) -> None:
    work = [step.work / step.paths for step in updates(seed, packages=40)]
    assert max(work) <= 12
    assert statistics.mean(work[-20:]) <= 1.3 * statistics.mean(work[SETTLED : SETTLED + 20])


@given(st.integers(0, 2**32))
@few
def test_planning_takes_as_much_longer_as_an_image_is_larger(seed: int) -> None:
    small, large = (
        statistics.mean(step.work / step.paths for step in updates(seed, packages=packages, count=12))
        for packages in (25, 200)
    )
    assert large <= 1.3 * small


@dataclass(frozen=True)
class Measured:
    """An update: what it costs, what has changed, what was live in layers that went (all in bytes), how many paths were
    merged to plan it, and how many the image has.
    """

    update: int
    changed: int
    again: int
    work: int
    paths: int


def updates(seed: int, *, packages: int = 120, count: int = GENERATIONS) -> Iterator[Measured]:
    """Updates of an image with the budgets that are the default, each of them checked."""
    versions = Image(seed, packages).versions(count)
    before = next(versions)
    simulation = Simulation(before, max_layers=MAX_LAYERS, max_overhead=MAX_OVERHEAD / 100)
    simulation.update(before)
    for version in versions:
        with pytest.MonkeyPatch.context() as patch:
            counted = Work(patch)
            step = simulation.update(version)
            work = counted.done
        check(simulation, version, MAX_LAYERS, MAX_OVERHEAD / 100)
        again = sum(drop.live for drop in step.drops)
        yield Measured(step.update, changed(before, version), again, work, len(version.tree))
        before = version
