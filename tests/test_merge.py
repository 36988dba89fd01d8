"""What clients see after merging layers, by both of their rules."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.oci.merge import RULES, Replay, Rule, hiding, merge, unchanged, wanted_of
from rechunk_action.oci.table import Table
from rechunk_action.tree.entry import UNKNOWN_MODE, Entry, Kind, Tree, ancestors, parent_of
from tests.support import Item, directory, file, hardlink, patient, symlink, table

both = pytest.mark.parametrize("rule", RULES)


def test_a_file_of_many_names_is_looked_at_once() -> None:
    """And not once for each of them, which would take a minute."""
    names = {f"{number}": Entry("f", 0o644, 0, 0, group="0") for number in range(20_000)}
    tree = {"": Entry("d", 0o755, 0, 0)} | names
    shown = Replay([Table(tree)], tree)
    start = time.process_time()
    assert shown.unchanged("last") == tree.keys()
    assert time.process_time() - start < 5


def contents(tables: Sequence[Table], rule: Rule) -> dict[str, tuple[int, str, int]]:
    """Path -> layer, kind and mode."""
    return {path: (index, entry.kind, entry.mode) for path, (index, entry) in merge(tables, rule).items()}


def paths(tables: Sequence[Table], rule: Rule) -> set[str]:
    return set(merge(tables, rule)) - {""}


@both
def test_one_layer_is_what_it_holds(rule: Rule) -> None:
    layer = table(directory("./"), directory("usr"), file("usr/x"), symlink("usr/l", "x"))
    assert {path: entry for path, (_, entry) in merge([layer], rule).items()} == layer.entries


@both
def test_no_layers_show_nothing(rule: Rule) -> None:
    assert merge([], rule) == {}


@both
@pytest.mark.parametrize("upper", [file("a", b"new", mode=0o600, uid=1, xattrs={"user.a": b"1"}), symlink("a", "b")])
@pytest.mark.parametrize("lower", [file("a", b"old", xattrs={"user.b": b"2"}), symlink("a", "c")])
def test_a_file_or_link_replaces_another(rule: Rule, lower: Item, upper: Item) -> None:
    tables = [table(lower), table(upper)]
    assert merge(tables, rule)["a"] == (1, tables[1].entries["a"])


@both
@pytest.mark.parametrize("upper", [file("a"), symlink("a", "b")])
def test_a_file_or_link_replaces_a_directory_with_all_below(rule: Rule, upper: Item) -> None:
    lower = table(directory("a"), directory("a/b"), file("a/b/c"), file("ab"))
    assert paths([lower, table(upper)], rule) == {"a", "ab"}


@both
@pytest.mark.parametrize("lower", [file("a"), symlink("a", "b")])
def test_a_directory_replaces_a_file_or_link(rule: Rule, lower: Item) -> None:
    upper = table(directory("./"), directory("a", mode=0o700), file("a/x"))
    shown = contents([table(lower), upper], rule)
    assert (shown["a"], shown["a/x"]) == ((1, "d", 0o700), (1, "f", 0o644))


def test_the_first_layer_decides_a_directory_for_ostree_the_last_for_overlay() -> None:
    tables = [table(directory("./"), directory("d", mode=mode), file(f"d/{mode}")) for mode in (0o755, 0o700, 0o711)]
    assert contents(tables, "first")["d"] == (0, "d", 0o755)
    assert contents(tables, "last")["d"] == (2, "d", 0o711)
    assert paths(tables, "first") == paths(tables, "last") == {"d", "d/493", "d/448", "d/457"}


def test_a_directory_that_was_replaced_begins_anew() -> None:
    layers = [table(directory("./"), directory("d", mode=0o700)), table(file("d")), table(directory("d", mode=0o711))]
    assert contents(layers, "first")["d"] == (2, "d", 0o711)


def test_a_directory_that_was_removed_begins_anew() -> None:
    layers = [table(directory("d", mode=0o700)), table(file(".wh.d")), table(directory("d", mode=0o711))]
    assert contents(layers, "first")["d"] == (2, "d", 0o711)


def test_an_opaque_directory_begins_anew() -> None:
    layers = [table(directory("d", mode=0o700), file("d/x")), table(directory("d", mode=0o711), file("d/.wh..wh..opq"))]
    assert contents(layers, "first")["d"] == (1, "d", 0o711)


def test_parents_that_are_left_out_have_no_known_mode() -> None:
    layers = [table(directory("./"), directory("d", mode=0o700)), table(file("d/x"))]
    assert contents(layers, "first")["d"] == (0, "d", 0o700)
    assert contents(layers, "last")["d"] == (1, "d", UNKNOWN_MODE)


def test_the_last_description_counts_when_an_image_is_read() -> None:
    layers = [
        table(directory("./", mode=0o711), directory("d", mode=0o700)),
        table(directory("./", mode=0o755), directory("d", mode=0o750)),
        table(file("d/x")),
    ]
    shown = contents(layers, "described")
    assert (shown[""], shown["d"], shown["d/x"]) == ((1, "d", 0o755), (1, "d", 0o750), (2, "f", 0o644))


def test_an_opaque_directory_keeps_its_description_when_an_image_is_read() -> None:
    layers = [
        table(directory("./"), directory("d", mode=0o700), file("d/x")),
        table(file("d/.wh..wh..opq"), file("d/y")),
    ]
    shown = contents(layers, "described")
    assert shown["d"] == (0, "d", 0o700)
    assert set(shown) == {"", "d", "d/y"}


@both
def test_a_whiteout_removes_a_file_or_a_whole_directory(rule: Rule) -> None:
    lower = table(file("f"), directory("d"), directory("d/e"), file("d/e/f"), symlink("l", "d"), file("stays"))
    upper = table(file(".wh.f"), file(".wh.d"), file(".wh.l"), file(".wh.was-never-there"))
    assert paths([lower, upper], rule) == {"stays"}


@both
def test_a_whiteout_does_not_follow_links(rule: Rule) -> None:
    lower = table(directory("d"), file("d/x"), symlink("l", "d"))
    assert paths([lower, table(file(".wh.l"))], rule) == {"d", "d/x"}


@both
def test_what_was_removed_can_come_back(rule: Rule) -> None:
    layers = [table(file("a", b"1")), table(file(".wh.a")), table(file("a", b"2"))]
    assert merge(layers, rule)["a"] == (2, layers[2].entries["a"])


@both
def test_an_opaque_directory_hides_only_lower_layers(rule: Rule) -> None:
    lower = table(directory("d"), directory("d/sub"), file("d/sub/x"), file("d/y"), file("other"))
    upper = table(directory("d"), file("d/new"), file("d/.wh..wh..opq"))
    assert paths([lower, upper], rule) == {"d", "d/new", "other"}
    assert paths([lower, upper, table(file("d/newer"))], rule) == {"d", "d/new", "d/newer", "other"}


@both
def test_an_opaque_root_hides_everything(rule: Rule) -> None:
    lower = table(directory("./"), directory("d"), file("d/x"), file("y"))
    assert paths([lower, table(directory("./"), file(".wh..wh..opq"), file("z"))], rule) == {"z"}


@both
def test_an_opaque_directory_replaces_a_file(rule: Rule) -> None:
    assert paths([table(file("d")), table(directory("d"), file("d/.wh..wh..opq"))], rule) == {"d"}


@both
def test_a_hard_link_to_a_lower_layer_joins_its_file(rule: Rule) -> None:
    layers = [table(file("a", b"content")), table(hardlink("b", "a"))]
    view = merge(layers, rule)
    assert view["a"] == view["b"]
    assert (view["b"][0], view["b"][1].group) == (0, "a")
    assert layers[0].entries["a"].group == ""


@both
def test_a_hard_link_to_a_lower_layer_joins_a_group(rule: Rule) -> None:
    layers = [table(file("a", b"content"), hardlink("b", "a")), table(hardlink("c", "b"))]
    view = merge(layers, rule)
    assert [view[path][1].group for path in "abc"] == ["a"] * 3


@both
def test_a_hard_link_to_nothing_shows_nothing(rule: Rule) -> None:
    assert paths([table(file("x")), table(hardlink("b", "a"))], rule) == {"x"}


@both
def test_a_hard_link_to_a_lower_layer_replaces_a_directory(rule: Rule) -> None:
    layers = [table(file("a"), directory("d"), file("d/x")), table(hardlink("d", "a")), table(file(".wh.d"))]
    assert paths(layers[:2], rule) == {"a", "d"}
    assert paths(layers, rule) == {"a"}


@both
def test_links_of_one_group_part_when_one_is_replaced(rule: Rule) -> None:
    layers = [table(file("a", b"1"), hardlink("b", "a")), table(file("a", b"2"))]
    view = merge(layers, rule)
    assert (view["a"][0], view["b"][0]) == (1, 0)


# Against a file system of nested dictionaries


@dataclass
class Node:
    """A directory, a file or a link: what it is, and what it holds when it is a directory."""

    kind: Kind
    mode: int
    children: dict[str, Node] = field(default_factory=dict)


def naive(layers: Sequence[Table], rule: Rule) -> dict[str, tuple[str, int]]:
    """Each layer unpacked in turn, path by path, as the rule says."""
    root = Node("d", UNKNOWN_MODE)
    stated = False
    for layer in layers:
        for path in layer.opaque:
            if path:
                _remove(root, path)
            else:
                root, stated = Node("d", UNKNOWN_MODE), False
        for path in layer.whiteouts:
            _remove(root, path)
        for path, entry in layer.entries.items():
            if not path:
                if not stated or rule == "last":
                    root.mode = entry.mode
                stated = True
                continue
            siblings = _find(root, parent_of(path)).children
            name = path.rpartition("/")[2]
            old = siblings.get(name)
            if old is None or entry.kind != "d" or old.kind != "d":
                siblings[name] = Node(entry.kind, entry.mode)
            elif rule == "last":
                old.mode = entry.mode
    found: dict[str, tuple[str, int]] = {}
    if stated:
        _walk("", root, found)
    return found


def _find(root: Node, path: str) -> Node:
    for name in path.split("/") if path else ():
        root = root.children[name]
    return root


def _remove(root: Node, path: str) -> None:
    with contextlib.suppress(KeyError):
        _find(root, parent_of(path)).children.pop(path.rpartition("/")[2], None)


def _walk(path: str, node: Node, found: dict[str, tuple[str, int]]) -> None:
    found[path] = node.kind, node.mode
    for name, child in node.children.items():
        _walk(f"{path}/{name}" if path else name, child, found)


kinds: list[Kind] = ["d", "f", "l"]
names = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)


@st.composite
def layers(draw: st.DrawFn) -> Table:
    """A layer as a reader makes it: all ancestors there, nothing below a file, nothing both held and removed."""
    wanted = draw(st.dictionaries(names, st.tuples(st.sampled_from(kinds), st.integers(0, 0o7777)), max_size=6))
    entries = {"": Entry("d", draw(st.sampled_from([UNKNOWN_MODE, 0o755, 0o711])), 0, 0)}
    for path in sorted(wanted):
        kind, mode = wanted[path]
        above = ancestors(path)
        if all(place not in entries or entries[place].kind == "d" for place in above):
            for place in above:
                entries.setdefault(place, Entry("d", draw(st.sampled_from([UNKNOWN_MODE, mode])), 0, 0))
            entries[path] = Entry(kind, mode, 0, 0)
    removed = [
        path
        for path in sorted(draw(st.sets(names, max_size=4)))
        if path not in entries and parent_of(path) in entries and entries[parent_of(path)].kind == "d"
    ]
    opaque = [path for path, entry in entries.items() if entry.kind == "d" and draw(st.integers(0, 9)) == 0]
    return Table(entries, removed, opaque)


@patient
@given(tables=st.lists(layers(), max_size=5), rule=st.sampled_from(RULES))
def test_merging_is_unpacking_one_layer_after_the_other(tables: list[Table], rule: Rule) -> None:
    shown = {path: (entry.kind, entry.mode) for path, (_, entry) in merge(tables, rule).items()}
    assert shown == naive(tables, rule)


@patient
@given(tables=st.lists(layers(), max_size=4), rule=st.sampled_from(RULES))
def test_every_path_comes_from_the_layer_that_is_named(tables: list[Table], rule: Rule) -> None:
    for path, (index, entry) in merge(tables, rule).items():
        assert tables[index].entries[path] is entry


# What of a tree is there already


def show(tree: Tree, *tables: Table) -> set[str]:
    return unchanged(merge(tables, "last"), tree, [wanted_of(layer, tree) for layer in tables])


def test_what_is_equal_is_unchanged() -> None:
    layer = table(directory("./"), directory("d"), file("d/a", b"1"), file("d/b", b"2"), symlink("l", "d"))
    tree = dict(layer.entries) | {"d/b": table(file("d/b", b"3")).entries["d/b"]}
    assert show(tree, layer) == {"", "d", "d/a", "l"}


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": 0o600},
        {"uid": 1},
        {"gid": 1},
        {"content": b"2"},
        {"xattrs": {"user.a": b"1"}},
    ],
    ids=str,
)
def test_every_part_of_an_identity_counts(changed: dict[str, Any]) -> None:
    tree = table(directory("./"), file("a", **{"content": b"1"} | changed)).entries
    assert show(tree, table(directory("./"), file("a", b"1"))) == {""}


def test_times_do_not_count() -> None:
    assert show(table(file("a", mtime=5)).entries, table(file("a", mtime=6))) == {"", "a"}


def test_a_path_shown_by_another_layer_is_compared_with_that() -> None:
    tree = table(directory("./"), file("a", b"1")).entries
    assert show(tree, table(file("a", b"1")), table(directory("./"), file("a", b"2"))) == {""}


@pytest.mark.parametrize(
    ("shown", "wanted", "same"),
    [
        ("a b", "a b", "a b c"),
        ("a b c", "a b", ""),
        ("a b", "a b c", ""),
        ("", "a b", "c"),
        ("a b", "", "c"),
    ],
)
def test_hard_links_count_as_a_whole(shown: str, wanted: str, same: str) -> None:
    def layer(linked: list[str]) -> Table:
        first, *others = linked or ["a"]
        alone = [path for path in "abc" if path not in linked and path != first]
        return table(
            directory("./"),
            file(first, b"1"),
            *(hardlink(path, first) for path in others),
            *(file(path, b"1") for path in alone),
        )

    assert show(layer(wanted.split()).entries, layer(shown.split())) - {""} == set(same.split())


def test_hard_links_from_two_layers_are_none() -> None:
    tree = table(directory("./"), file("a", b"1"), hardlink("b", "a")).entries
    assert show(tree, table(file("a", b"1"), hardlink("b", "a")), table(directory("./"), file("b", b"1"))) == {""}


# What is dead, and what overlayfs would show of removals


def test_what_nobody_sees_is_dead() -> None:
    below = table(directory("./"), directory("d"), file("d/a", b"1" * 5000), file("d/b", b"2" * 700), directory("gone"))
    upper = table(directory("./"), directory("d"), file("d/a", b"3" * 9000), file(".wh.gone"))
    tree = {path: entry for path, (_, entry) in merge([below, upper], "last").items()}
    assert Replay([below, upper], tree).dead() == [below.entries["d/a"].cost + below.entries["gone"].cost, 0]


def test_what_the_tree_does_not_want_is_dead() -> None:
    layer = table(directory("./"), file("a", b"1" * 5000), file("b", b"2"))
    assert Replay([layer], {"": layer.entries[""], "b": layer.entries["b"]}).dead() == [layer.entries["a"].cost]


def test_removals_are_exposed_in_a_directory_of_one_layer() -> None:
    tables = [
        table(directory("both"), file("both/x"), directory("lower"), file("lower/.wh.x")),
        table(directory("both"), file("both/.wh.x"), directory("upper"), file("upper/.wh.x"), file(".wh.top")),
    ]
    assert Replay(tables, {}).exposed() == {0: ["lower"], 1: ["upper"]}


@pytest.mark.parametrize(
    ("upper", "hidden"),
    [
        ([file(".wh.d")], True),
        ([directory("d"), file("d/.wh..wh..opq")], True),
        ([file(".wh..wh..opq")], True),
        ([file("d")], True),
        ([symlink("d", "e")], True),
        ([directory("d", mode=0o700), file("d/.wh.e"), file("d/x")], False),
        ([file("other"), file(".wh.dd")], False),
    ],
)
def test_what_hides_a_directory(upper: list[Item], hidden: bool) -> None:
    layer = table(*upper)
    assert hiding(layer)("d") is hidden
    if hidden:
        assert hiding(layer)("d/below")
