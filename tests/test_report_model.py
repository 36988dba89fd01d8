"""The model of reports: its numbers hold together, whatever the images are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rechunk_action.report.model import (
    Build,
    Estimate,
    Facts,
    LayerFacts,
    PackageLine,
    Sum,
    Update,
    history,
    kind_of,
    label_of,
    past,
    update,
)
from tests.reports import BUILD, ESTIMATES, HISTORY, KERNEL, NAME, PYTHON, UPDATE, VERSIONS, digest, layer

NAMES = st.sampled_from(["rpm:a.x86_64", "rpm:b.x86_64", "file:usr/c", "unclaimed"])
PACKAGES = st.none() | st.dictionaries(NAMES, st.sampled_from(["1", "2"]))


@st.composite
def layers(draw: st.DrawFn) -> LayerFacts:
    """One of a few layers, always the same for its digest. Some say what is in them, some are empty."""
    number = draw(st.integers(0, 12))
    sizes = {name: number * share for share, name in enumerate(["rpm:a.x86_64", "file:usr/c", f"{number}"])}
    known = number % 3 > 0
    dead = draw(st.none() | st.integers(0, 9))
    components = sizes if known else {}
    return LayerFacts(
        digest=digest(number), bytes=sum(sizes.values()), name=f"{number}", components=components, dead=dead
    )


@st.composite
def images(draw: st.DrawFn, number: int = 0) -> Facts:
    held = draw(st.lists(layers(), max_size=8))
    return Facts(ref=f"i:{number}", digest=digest(100 + number), layers=held, packages=draw(PACKAGES))


class TestAnUpdate:
    def test_costs_the_layers_that_are_not_there(self) -> None:
        assert (UPDATE.bytes, UPDATE.added) == (34_000_000, Sum(1, 34_000_000))
        assert (UPDATE.removed, UPDATE.total) == (Sum(1, 6_500_000), Sum(3, 254_000_000))
        assert [(line.state, line.name) for line in UPDATE.layers] == [
            ("kept", "kernel, modules"),
            ("kept", "everything else"),
            ("new", "kernel, vim"),
            ("removed", "python3"),
        ]

    def test_says_what_became_of_packages(self) -> None:
        assert UPDATE.packages == [
            PackageLine(name=KERNEL, old="6.16.1-200", new="6.16.1-200, 6.16.2-200"),
            PackageLine(name="rpm:nano.x86_64", old="8.1-1", new=None),
            PackageLine(name="rpm:vim.x86_64", old=None, new="9.1-1"),
        ]

    def test_knows_the_versions_of_what_it_holds(self) -> None:
        assert [(line.name, line.old, line.new) for line in UPDATE.components] == [
            (KERNEL, "6.16.1-200", "6.16.1-200, 6.16.2-200"),
            ("rpm:vim.x86_64", None, "9.1-1"),
            ("file:usr/share/a.img", None, None),
        ]

    def test_does_not_take_what_is_not_known_for_nothing(self) -> None:
        bare = Facts(ref="i", digest=digest(1), layers=[LayerFacts(digest=digest(2), bytes=5)])
        found = update(bare, VERSIONS[0])
        assert (found.packages, found.old and found.old.dead) == (None, None)
        assert [line.name for line in update(None, bare).components] == [digest(2)]

    def test_names_what_it_holds_by_size_and_by_its_layers_where_nothing_better_is_known(self) -> None:
        held = [
            LayerFacts(digest=digest(number), bytes=size, name=name)
            for number, (name, size) in enumerate([("b", 2), ("c", 5), ("a", 2), ("c", 1), ("nothing", 0)])
        ]
        found = update(None, Facts(ref="i", digest=digest(9), layers=held))
        assert [(line.name, line.bytes) for line in found.components] == [("c", 6), ("a", 2), ("b", 2)]

    @given(images())
    def test_of_who_has_none_is_the_image(self, image: Facts) -> None:
        found = update(None, image)
        assert (found.old, found.packages, found.removed) == (None, None, Sum(0, 0))
        assert found.bytes == sum({layer.digest: layer.bytes for layer in image.layers}.values())
        assert {line.state for line in found.layers} <= {"new"}

    @given(images())
    def test_to_the_same_image_costs_nothing(self, image: Facts) -> None:
        found = update(image, image)
        assert (found.bytes, found.components, found.packages or []) == (0, [], [])

    @given(images(), images())
    def test_adds_up(self, old: Facts, new: Facts) -> None:
        found = update(old, new)
        assert found.bytes == found.added.bytes == sum(line.bytes for line in found.components)
        assert found.bytes == sum({line.digest: line.bytes for line in found.layers if line.state == "new"}.values())
        assert found.total.bytes == found.new.bytes == sum(layer.bytes for layer in new.layers)
        assert found.total.layers - found.added.layers == len(
            {line.digest for line in found.layers if line.state == "kept"}
        )
        assert 0 not in {line.bytes for line in found.components}

    @given(images(), images())
    def test_is_undone_by_its_reverse(self, old: Facts, new: Facts) -> None:
        there, back = update(old, new), update(new, old)
        assert (there.added, there.removed) == (back.removed, back.added)
        assert {(line.name, line.old, line.new) for line in there.packages or ()} == {
            (line.name, line.new, line.old) for line in back.packages or ()
        }

    @given(images())
    def test_counts_a_repeated_layer_as_clients_do(self, image: Facts) -> None:
        once, twice = (update(None, Facts(ref="i", digest="", layers=[*image.layers] * times)) for times in (1, 2))
        assert (once.bytes, once.total.layers) == (twice.bytes, twice.total.layers)
        assert twice.total.bytes == 2 * once.total.bytes


class TestAHistory:
    def test_sums_its_updates(self) -> None:
        totals = HISTORY.totals
        assert (totals.updates, totals.bytes, totals.images) == (2, 40_500_000, 480_500_000)
        assert (totals.changed, totals.delta) == (47_000_000, 41_600_000)

    def test_sums_no_estimates_unless_it_has_all(self) -> None:
        one = history(NAME, VERSIONS[:2], estimates=ESTIMATES).totals
        assert (one.updates, one.changed, one.delta) == (1, 7_000_000, 6_600_000)
        totals = history(NAME, VERSIONS, estimates={digest(1002): ESTIMATES[digest(1002)]}).totals
        assert (totals.changed, totals.delta) == (None, None)
        first = {digest(1001): Estimate(changed=1, delta=1, delta_image=1)}
        alone = history(NAME, VERSIONS[:1], estimates=first).totals
        assert (alone.updates, alone.changed, alone.delta) == (0, None, None)

    def test_tells_whether_delta_layering_made_its_updates(self) -> None:
        first, *later = VERSIONS
        ours = [replace(version, engine="delta") for version in later]
        assert history(NAME, [first, *ours]).layered
        assert not history(NAME, [first, ours[0], later[1]]).layered
        anew = replace(ours[1], layers=[layer(9, "everything", {KERNEL: 1})])
        assert not history(NAME, [first, ours[0], anew]).layered

    def test_says_what_the_most_of_each_version_is(self) -> None:
        assert [line.largest[0].name for line in HISTORY.versions] == [KERNEL, PYTHON, KERNEL]
        assert [(line.kept, line.new) for line in HISTORY.versions] == [(0, 2), (2, 1), (2, 1)]

    @given(st.lists(images(), min_size=1, max_size=4))
    def test_leads_from_every_version_to_the_newest(self, versions: Sequence[Facts]) -> None:
        found = history("i", versions)
        assert [skip.behind for skip in found.skips] == list(range(1, len(versions)))
        assert [skip.bytes for skip in found.skips[:1]] == [found.last.bytes][: len(found.skips)]
        assert [line.update for line in found.versions[1:]] == [update(*pair).bytes for pair in pairwise(versions)]
        for skip, old in zip(found.skips, reversed(versions[:-1]), strict=True):
            assert skip.bytes == update(old, versions[-1]).bytes <= found.last.total.bytes
        assert found.totals.bytes == sum(line.update or 0 for line in found.versions)


class TestThePastOfABuild:
    def test_is_its_history(self) -> None:
        assert past(BUILD) == HISTORY

    def test_ends_with_its_own_update_whatever_that_is_one_of(self) -> None:
        own = update(VERSIONS[0], VERSIONS[2])
        assert past(replace(BUILD, update=own)) == replace(HISTORY, last=own)

    @pytest.mark.parametrize("old", [VERSIONS[1], None])
    def test_is_its_own_update_where_nothing_else_is_known(self, old: Facts | None) -> None:
        build = _with(update(old, VERSIONS[2]))
        known = history(BUILD.ref, [VERSIONS[1], VERSIONS[2]] if old else [VERSIONS[2]])
        found = past(build)
        assert (found.skips, found.totals, found.last) == (known.skips, known.totals, known.last)
        assert [(line.image, line.update, line.kept, line.new) for line in found.versions] == [
            (line.image, line.update, line.kept, line.new) for line in known.versions
        ]


@pytest.mark.parametrize(
    ("component", "kind", "label"),
    [
        ("rpm:bash.x86_64", "rpm", "bash.x86_64"),
        ("dpkg:bash:amd64", "dpkg", "bash:amd64"),
        ("file:usr/a", "file", "/usr/a"),
        ("unclaimed", "", "files of no package"),
        ("RUN:x", "", "RUN:x"),
        (":x", "", ":x"),
        ("rpm", "", "rpm"),
        ("", "", ""),
    ],
)
def test_components_have_a_kind_and_a_name_for_people(component: str, kind: str, label: str) -> None:
    assert (kind_of(component), label_of(component)) == (kind, label)


def _with(step: Update) -> Build:
    return replace(BUILD, update=step, history=None)
