"""Which files share a layer."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from rechunk_action.plan.grouping import ALONE, BIN, UNCLAIMED, Group, group_all, group_changes, ordered
from rechunk_action.tree.entry import Entry, Tree

MANY = 120
SMALL = 1000


def tree_of(sizes: Mapping[str, int], times: Mapping[str, int] | None = None) -> Tree:
    return {path: Entry("f", 0o644, 0, 0, (times or {}).get(path, 0), size) for path, size in sizes.items()}


def contents(groups: list[Group]) -> list[list[str]]:
    return [list(group.paths) for group in groups]


def test_a_large_component_is_alone() -> None:
    tree = tree_of({"big": ALONE, "a": SMALL, "b": SMALL})
    groups = group_all(tree, {"big": "rpm:big", "a": "rpm:a", "b": "rpm:b"}, layers=3)
    assert [(group.name, list(group.paths)) for group in groups] == [
        ("rpm:big", ["big"]),
        ("rpm:a to rpm:b", ["a", "b"]),
    ]


def test_a_component_is_large_by_all_its_files() -> None:
    tree = tree_of({"a": ALONE - 1, "b": 1, "c": ALONE - 1})
    groups = group_all(tree, {"a": "one", "b": "one", "c": "two"}, layers=MANY)
    assert [group.name for group in groups] == ["one", "two"]


def test_the_largest_are_alone_where_places_are_few() -> None:
    tree = tree_of({"a": ALONE, "b": 3 * ALONE, "c": 2 * ALONE})
    groups = group_all(tree, {path: path for path in tree}, layers=4)
    assert [group.name for group in groups] == ["b", "c", "a"]


def test_what_nobody_claims_is_last_and_by_itself() -> None:
    tree = tree_of({"a": ALONE, "cache": SMALL, "b": SMALL})
    groups = group_all(tree, {"a": "a", "b": "b"}, layers=MANY)
    assert [(group.name, list(group.paths)) for group in groups][-1] == (UNCLAIMED, ["cache"])


def test_old_and_new_components_lie_apart() -> None:
    tree = tree_of(dict.fromkeys("abcd", SMALL), {"a": 400, "b": 100, "c": 300, "d": 200})
    assert contents(group_all(tree, {path: path for path in tree}, layers=6)) == [["b", "d"], ["a", "c"]]


def test_a_component_is_as_old_as_its_newest_file() -> None:
    tree = tree_of(dict.fromkeys(["a1", "a2", "b", "c"], SMALL), {"a1": 0, "a2": 9, "b": 5, "c": 5})
    groups = group_all(tree, {"a1": "a", "a2": "a", "b": "b", "c": "c"}, layers=6)
    assert contents(groups) == [["b", "c"], ["a1", "a2"]]


def test_small_layers_are_about_even() -> None:
    chance = random.Random(1)  # noqa: S311  # not for secrets
    tree = tree_of({f"f{number}": chance.randrange(ALONE // 20) for number in range(1000)})
    groups = group_all(tree, {path: path for path in tree}, layers=30)
    sizes = [sum(tree[path].size for path in group.paths) for group in groups]
    assert len(groups) == 10
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.parametrize("layers", [3, 4, 5, 12, 60])
def test_no_more_layers_than_asked_for(layers: int) -> None:
    sizes = {f"large{n}": ALONE + n for n in range(30)} | {f"small{n}": SMALL for n in range(100)} | {"stray": SMALL}
    tree = tree_of(sizes)
    owner = {path: path for path in tree if path != "stray"}
    for groups in (group_all(tree, owner, layers=layers), group_changes(tree, tree, owner, layers=layers)):
        assert len(groups) <= layers
        assert sorted(path for group in groups for path in group.paths) == sorted(tree)


def test_hard_links_stay_together_whoever_claims_them() -> None:
    tree = tree_of({"a": SMALL, "b": SMALL, "c": SMALL})
    tree["a"].group = tree["c"].group = "a"
    groups = group_all(tree, {"a": "one", "b": "two", "c": "two"}, layers=MANY)
    assert contents(groups) == [["a", "c"], ["b"]]


def test_the_order_of_the_tree_does_not_matter() -> None:
    tree = tree_of({f"d/{number}.{number % 3}": number * 300_000 for number in range(40)})
    owner = {path: f"p{len(path)}{path[-3]}" for path in tree}
    backwards = dict(reversed(tree.items()))
    assert group_all(tree, owner, layers=9) == group_all(backwards, dict(reversed(owner.items())), layers=9)
    assert group_changes(tree, tree, owner, layers=9) == group_changes(backwards, backwards, owner, layers=9)


def test_an_update_of_small_components_is_one_layer() -> None:
    tree = tree_of(dict.fromkeys("abc", SMALL))
    groups = group_changes(["b", "a"], tree, {path: path for path in tree}, layers=MANY)
    assert contents(groups) == [["a", "b"]]


def test_a_large_update_of_small_components_is_split() -> None:
    tree = tree_of({f"f{number}": ALONE - 1 for number in range(10)})
    groups = group_changes(tree, tree, {path: path for path in tree}, layers=MANY)
    assert len(groups) == 10 * (ALONE - 1) // BIN


def test_nothing_is_no_layer() -> None:
    assert group_all({}, {}, layers=MANY) == []
    assert group_changes([], {}, {}, layers=MANY) == []


def test_like_lies_beside_like() -> None:
    assert ordered(["b.so", "a.py", "z", "b.py", ".x/y", "a.so"]) == [".x/y", "z", "a.py", "b.py", "a.so", "b.so"]


def test_empty_components_of_one_age_are_one_layer() -> None:
    tree = tree_of({"a": 0, "b": 0})
    assert contents(group_all(tree, {"a": "a", "b": "b"}, layers=MANY)) == [["a", "b"]]
