"""What a new image is made of."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from rechunk_action.oci.merge import Replay
from rechunk_action.oci.table import Table
from rechunk_action.plan.grouping import ALONE
from rechunk_action.plan.plain import PROTECTED, Plan, Published, plan_fresh, plan_update
from rechunk_action.tree.entry import Entry, Tree
from rechunk_action.verify import differences
from tests.support import Item, archive, directory, file, hardlink, pack, symlink, table

ROOT, USR = directory("./"), directory("usr")
OLD, NEW, OTHER = (random.Random(seed).randbytes(4000) for seed in range(3))  # noqa: S311  # not for secrets


def layer(*items: Item) -> Published:
    packed = pack(archive(ROOT, *items))
    return Published(packed.blob, packed.read())


def tree_of(*items: Item) -> Tree:
    return table(ROOT, *items).entries


def updated(
    previous: Sequence[Published],
    tree: Tree,
    *,
    owner: Mapping[str, str] | None = None,
    max_layers: int = 99,
    max_overhead: float = 99,
) -> Plan:
    """An update that is checked to be the tree, and to be within the number of layers."""
    plan = plan_update(previous, tree, lambda: owner or {}, max_layers=max_layers, max_overhead=max_overhead)
    assert differences(Replay(tables(plan, previous, tree), tree)) == []
    assert len(plan.layers) <= max_layers
    return plan


def told(*directories: str) -> tuple[list[str], list[str], list[str]]:
    """How a layer is described that only states directories."""
    return (["", *directories], [], [])


def tables(plan: Plan, previous: Sequence[Published], tree: Tree) -> list[Table]:
    return [previous[item].table if isinstance(item, int) else item.table(tree) for item in plan.layers]


def described(plan: Plan) -> list[Any]:
    """Kept layers by number, new ones by what they hold: directories, removals, files."""
    return [
        item
        if isinstance(item, int)
        else (list(item.directories), [f"-{path}" for path in item.whiteouts], list(item.paths))
        for item in plan.layers
    ]


BASE = layer(USR, file("usr/a", OLD), file("usr/b", OTHER), directory("usr/d"), file("usr/d/x", OLD))


def test_an_unchanged_tree_keeps_every_layer_and_adds_none() -> None:
    previous = [BASE, layer(USR, file("usr/a", NEW))]
    tree = tree_of(USR, file("usr/a", NEW), file("usr/b", OTHER), directory("usr/d"), file("usr/d/x", OLD))
    assert described(updated(previous, tree)) == [0, 1]


def test_an_unchanged_tree_keeps_every_layer_where_there_is_no_room_for_another() -> None:
    assert described(updated([BASE], BASE.table.entries, max_layers=1, max_overhead=0)) == [0]


def test_an_unchanged_tree_keeps_layers_that_only_remove_or_only_describe() -> None:
    previous = [layer(USR), BASE, layer(USR, file("usr/.wh.a")), layer(USR, directory("usr/d"))]
    tree = tree_of(USR, file("usr/b", OTHER), directory("usr/d"), file("usr/d/x", OLD))
    assert described(updated(previous, tree)) == [0, 1, 2, 3]


def test_only_what_changed_is_new_with_all_directories_above() -> None:
    tree = tree_of(USR, file("usr/a", OLD), file("usr/b", OTHER), directory("usr/d"), file("usr/d/x", NEW))
    assert described(updated([BASE], tree)) == [0, (["", "usr", "usr/d"], [], ["usr/d/x"])]


@pytest.mark.parametrize(
    "changed",
    [
        file("usr/a", NEW),
        file("usr/a", OLD, mode=0o755),
        file("usr/a", OLD, uid=1),
        file("usr/a", OLD, gid=1),
        file("usr/a", OLD, xattrs={"user.a": b"1"}),
        symlink("usr/a", "b"),
    ],
)
def test_every_change_that_a_client_sees_is_new(changed: Item) -> None:
    tree = tree_of(USR, changed, file("usr/b", OTHER), directory("usr/d"), file("usr/d/x", OLD))
    assert described(updated([BASE], tree)) == [0, (["", "usr"], [], ["usr/a"])]


def test_a_new_time_is_nothing_new() -> None:
    tree = {path: msgspec.structs.replace(entry, mtime=77) for path, entry in BASE.table.entries.items()}
    assert described(updated([BASE], tree)) == [0]


def test_a_removed_subtree_is_one_removal() -> None:
    tree = tree_of(USR, file("usr/b", OTHER))
    assert described(updated([BASE], tree)) == [0, (["", "usr"], ["-usr/a", "-usr/d"], [])]


def test_a_directory_that_becomes_a_file_needs_no_removals() -> None:
    tree = tree_of(USR, file("usr/a", OLD), file("usr/b", OTHER), file("usr/d", NEW))
    assert described(updated([BASE], tree)) == [0, (["", "usr"], [], ["usr/d"])]


def test_a_file_that_becomes_a_directory_needs_no_removal() -> None:
    tree = tree_of(
        USR, directory("usr/a"), file("usr/a/y", NEW), file("usr/b", OTHER), directory("usr/d"), file("usr/d/x", OLD)
    )
    assert described(updated([BASE], tree)) == [0, (["", "usr", "usr/a"], [], ["usr/a/y"])]


def test_a_removed_path_that_comes_back_is_new_again() -> None:
    previous = [BASE, layer(USR, file("usr/.wh.d"), file("usr/c", NEW))]
    tree = {**BASE.table.entries, "usr/c": previous[1].table.entries["usr/c"]}
    assert described(updated(previous, tree)) == [0, 1, (["", "usr", "usr/d"], [], ["usr/d/x"])]


def test_a_version_that_comes_back_is_found_below_the_layer_that_hides_it() -> None:
    plan = updated([BASE, layer(USR, file("usr/a", NEW))], BASE.table.entries)
    assert (plan.kept, plan.new) == ([0], [])
    assert [drop.index for drop in plan.drops] == [1]


def test_removals_of_a_dropped_layer_are_made_again() -> None:
    previous = [BASE, layer(USR, file("usr/.wh.a"), file("usr/c", OLD))]
    tree = tree_of(USR, file("usr/b", OTHER), directory("usr/d"), file("usr/d/x", OLD))
    assert described(updated(previous, tree)) == [0, (["", "usr"], ["-usr/a"], [])]


class TestHardLinks:
    LINKED = layer(USR, file("usr/a", OLD), hardlink("usr/b", "usr/a"), file("usr/z", OTHER))

    def test_unchanged_links_stay(self) -> None:
        assert described(updated([self.LINKED], self.LINKED.table.entries)) == [0]

    def test_one_more_link_brings_the_whole_group_again(self) -> None:
        tree = tree_of(
            USR, file("usr/a", OLD), hardlink("usr/b", "usr/a"), hardlink("usr/c", "usr/a"), file("usr/z", OTHER)
        )
        assert described(updated([self.LINKED], tree)) == [0, (["", "usr"], [], ["usr/a", "usr/b", "usr/c"])]

    def test_a_link_less_is_a_removal(self) -> None:
        tree = tree_of(USR, file("usr/b", OLD), file("usr/z", OTHER))
        assert described(updated([self.LINKED], tree)) == [0, (["", "usr"], ["-usr/a"], [])]

    def test_links_that_part_are_new_files(self) -> None:
        tree = tree_of(USR, file("usr/a", OLD), file("usr/b", OLD), file("usr/z", OTHER))
        assert described(updated([self.LINKED], tree)) == [0, (["", "usr"], [], ["usr/a", "usr/b"])]

    def test_equal_files_that_become_links_are_new(self) -> None:
        previous = [layer(USR, file("usr/a", OLD), file("usr/b", OLD), file("usr/z", OTHER))]
        assert described(updated(previous, self.LINKED.table.entries)) == [0, (["", "usr"], [], ["usr/a", "usr/b"])]

    def test_links_across_components_share_a_layer(self) -> None:
        tree = tree_of(USR, file("usr/a", NEW), hardlink("usr/b", "usr/a"), file("usr/z", OTHER))
        tree |= {path: msgspec.structs.replace(tree[path], size=ALONE) for path in ("usr/a", "usr/b")}
        plan = updated([self.LINKED], tree, owner={"usr/a": "one", "usr/b": "two"})
        assert described(plan) == [0, (["", "usr"], [], ["usr/a", "usr/b"])]


class TestDirectories:
    """A directory's metadata, of which OSTree believes the first layer that names it, and overlayfs the last."""

    def test_a_change_is_told_before_the_first_layer_that_names_it_and_on_top(self) -> None:
        tree = {**BASE.table.entries, "usr/d": Entry("d", 0o700, 0, 0)}
        assert described(updated([BASE], tree)) == [told("usr", "usr/d"), 0, told("usr", "usr/d")]

    def test_a_change_rides_on_a_layer_that_is_made_anyway(self) -> None:
        tree = {**BASE.table.entries, "usr/d": Entry("d", 0o700, 0, 0), "usr/a": Entry("l", 0o777, 0, 0, target="b")}
        assert described(updated([BASE], tree))[1:] == [0, (["", "usr", "usr/d"], [], ["usr/a"])]

    def test_a_layer_that_told_so_before_is_not_repeated(self) -> None:
        tree = {**BASE.table.entries, "usr/d": Entry("d", 0o700, 0, 0)}
        fix = layer(USR, directory("usr/d", mode=0o700))
        assert described(updated([fix, BASE, fix], tree)) == [0, 1, 2]

    def test_a_layer_that_tells_what_is_no_longer_so_goes(self) -> None:
        fix = layer(USR, directory("usr/d", mode=0o700))
        plan = updated([fix, BASE, fix], BASE.table.entries)
        assert (plan.kept, plan.new) == ([1], [])

    def test_a_directory_that_was_removed_in_between_is_told_after_that(self) -> None:
        again = layer(USR, directory("usr/d"), file("usr/d/y", NEW))
        previous = [BASE, layer(USR, file("usr/.wh.d"), file("usr/c", OLD)), again]
        tree = tree_of(
            *(USR, file("usr/a", OLD), file("usr/b", OTHER), file("usr/c", OLD)),
            *(directory("usr/d", mode=0o700), file("usr/d/y", NEW)),
        )
        assert described(updated(previous, tree)) == [0, 1, told("usr", "usr/d"), 2, told("usr", "usr/d")]

    def test_changes_in_many_layers_are_told_in_one_place(self) -> None:
        previous = [layer(directory(name), file(f"{name}/x", OLD)) for name in "abc"]
        tree = tree_of(*(item for name in "abc" for item in (directory(name, uid=7), file(f"{name}/x", OLD))))
        assert described(updated(previous, tree)) == [told("a", "b", "c"), 0, 1, 2, told("a", "b", "c")]

    def test_the_root_is_told_on_top_only(self) -> None:
        tree = {**BASE.table.entries, "": Entry("d", 0o700, 0, 0)}
        assert described(updated([BASE], tree)) == [0, ([""], [], [])]

    def test_an_empty_directory_is_stated(self) -> None:
        tree = {**BASE.table.entries, "usr/e": Entry("d", 0o755, 0, 0)}
        assert described(updated([BASE], tree)) == [0, (["", "usr", "usr/e"], [], [])]

    def test_usr_is_stated_with_etc(self) -> None:
        # OSTree's importer takes etc for usr/etc, and makes up a usr where a layer states none.
        tree = {**BASE.table.entries, **tree_of(directory("etc"), file("etc/x", NEW))}
        assert described(updated([BASE], tree)) == [0, (["", "etc", "usr"], [], ["etc/x"])]

    def test_removals_in_a_directory_that_one_layer_is_left_to_name_stay_hidden(self) -> None:
        # overlayfs shows a directory of a single layer as it is, with the whiteouts in it.
        previous = [
            layer(USR, file("usr/a", OLD)),
            layer(directory("d"), file("d/1.0", OLD)),
            layer(directory("d"), file("d/.wh.1.0"), file("d/1.1", NEW)),
        ]
        tree = tree_of(USR, file("usr/a", OLD), directory("d"), file("d/1.1", NEW))
        assert described(updated(previous, tree)) == [0, (["", "d"], [], []), 2]


class TestForeignLayers:
    """Layers that another tool wrote."""

    def test_parents_that_a_layer_leaves_out_are_told_by_others(self) -> None:
        packed = pack(archive(file("usr/d/x", OLD)))
        previous = [Published(packed.blob, packed.read())]
        tree = tree_of(USR, directory("usr/d"), file("usr/d/x", OLD))
        assert described(updated(previous, tree)) == [told("usr", "usr/d"), 0, told("usr", "usr/d")]

    def test_a_layer_that_clients_understand_differently_goes_with_the_reason(self) -> None:
        previous = [BASE, layer(USR, hardlink("usr/c", "usr/a"))]
        plan = updated(previous, {**BASE.table.entries, **tree_of(USR, file("usr/c", OLD))})
        assert plan.kept == [0]
        assert [(drop.index, drop.reason) for drop in plan.drops] == [(1, previous[1].table.problem)]
        assert "hard link" in plan.drops[0].reason

    def test_an_opaque_directory_is_kept(self) -> None:
        previous = [BASE, layer(USR, directory("usr/d"), file("usr/d/.wh..wh..opq"), file("usr/d/y", NEW))]
        tree = tree_of(USR, file("usr/a", OLD), file("usr/b", OTHER), directory("usr/d"), file("usr/d/y", NEW))
        assert described(updated(previous, tree)) == [0, 1]

    def test_an_opaque_directory_that_has_changed_cannot_be_kept(self) -> None:
        previous = [BASE, layer(USR, directory("usr/d"), file("usr/d/.wh..wh..opq"), file("usr/d/y", NEW))]
        tree = tree_of(
            USR, file("usr/a", OLD), file("usr/b", OTHER), directory("usr/d", mode=0o700), file("usr/d/y", NEW)
        )
        plan = updated(previous, tree)
        assert plan.kept == [0]
        assert "opaque" in plan.drops[0].reason

    @pytest.mark.parametrize("removal", [".wh.etc", "usr/.wh..wh..opq"])
    def test_a_layer_cannot_be_kept_that_removes_what_clients_rename(self, removal: str) -> None:
        # OSTree's importer takes etc for usr/etc: it stays when etc is removed, and goes when usr is emptied.
        previous = [layer(USR, file("usr/b", OTHER)), layer(USR, file(removal), file("usr/a", OLD))]
        tree = tree_of(USR, file("usr/a", OLD), file("usr/b", OTHER))
        assert updated(previous, tree).kept == [0]


@pytest.mark.parametrize("path", sorted(PROTECTED))
def test_a_path_that_clients_need_is_never_removed(path: str) -> None:
    held = layer(*(directory(above) for above in ("usr", path) if path.startswith(above)), file(f"{path}/x", NEW))
    rest = layer(file("a", OLD))
    plan = updated([held, rest], tree_of(file("a", OLD)))
    assert plan.layers == [1]
    assert path in plan.drops[0].reason


def test_below_a_path_that_clients_need_removals_are_made() -> None:
    previous = [layer(directory("etc"), file("etc/x", OLD), USR, file("usr/a", OLD))]
    tree = tree_of(directory("etc"), USR, file("usr/a", OLD))
    assert described(updated(previous, tree)) == [0, (["", "etc", "usr"], ["-etc/x"], [])]


class TestBudgets:
    def test_dead_bytes_over_the_budget_cost_the_layer(self) -> None:
        tree = tree_of(USR, file("usr/a", OLD), file("usr/b", NEW), directory("usr/d"), file("usr/d/x", OLD))
        assert updated([BASE], tree, max_overhead=0.6).kept == [0]
        assert updated([BASE], tree, max_overhead=0.3).kept == []

    def test_directories_that_are_repeated_are_not_dead(self) -> None:
        previous = [layer(USR, file(f"usr/{name}", name.encode())) for name in "abc"]
        tree = tree_of(USR, *(file(f"usr/{name}", name.encode()) for name in "abc"))
        assert updated(previous, tree, max_overhead=0).kept == [0, 1, 2]

    def test_room_is_made_for_new_layers_and_for_fixes(self) -> None:
        previous = [layer(directory(name), file(f"{name}/x", OLD + name.encode())) for name in "abcd"]
        tree = {path: entry for published in previous for path, entry in published.table.entries.items()}
        tree |= {"d": Entry("d", 0o700, 0, 0), "b/x": Entry("l", 0o777, 0, 0, target="y")}
        assert len(updated(previous, tree, max_layers=4).kept) >= 1

    def test_large_components_share_layers_where_places_are_few(self) -> None:
        new = tree_of(USR, *(file(f"usr/{number}", b"%d" % number) for number in range(40)))
        new = {path: enlarged(entry) for path, entry in new.items()}
        plan = updated([BASE], {**BASE.table.entries, **new}, owner={path: path for path in new}, max_layers=12)
        assert len(plan.new) < 6


def enlarged(entry: Entry) -> Entry:
    return entry if entry.is_dir else msgspec.structs.replace(entry, size=ALONE)


def test_components_are_asked_for_only_where_files_are_new() -> None:
    def components() -> Mapping[str, str]:
        raise AssertionError

    tree = tree_of(USR, file("usr/b", OTHER), directory("usr/d"), file("usr/d/x", OLD))
    assert plan_update([BASE], tree, components, max_layers=9, max_overhead=9).kept == [0]


def test_nothing_published_is_nothing_kept() -> None:
    assert updated([], BASE.table.entries).kept == []


OWNER = {"usr/a": "one", "usr/d/x": "two"}


class TestFresh:
    def test_every_path_is_there_once(self) -> None:
        tree = {**BASE.table.entries, "usr/e": Entry("d", 0o755, 0, 0)}
        plan = plan_fresh(tree, OWNER, max_layers=9)
        assert differences(Replay(tables(plan, [], tree), tree)) == []
        assert sorted(path for layer in plan.new for path in layer.paths) == ["usr/a", "usr/b", "usr/d/x"]
        assert plan.kept == []

    def test_a_tree_without_files_is_a_layer(self) -> None:
        tree = tree_of(USR, directory("usr/d"))
        assert described(plan_fresh(tree, {}, max_layers=3)) == [(["", "usr", "usr/d"], [], [])]

    def test_the_order_of_the_tree_does_not_matter(self) -> None:
        backwards = dict(reversed(BASE.table.entries.items()))
        assert plan_fresh(backwards, OWNER, max_layers=9) == plan_fresh(BASE.table.entries, OWNER, max_layers=9)

    @pytest.mark.parametrize("max_layers", [3, 4, 7, 20])
    def test_there_is_room_for_updates(self, max_layers: int) -> None:
        tree = tree_of(USR, *(file(f"usr/{number}", b"1") for number in range(99)))
        tree = {path: enlarged(entry) for path, entry in tree.items()}
        plan = plan_fresh(tree, {path: path for path in tree}, max_layers=max_layers)
        assert len(plan.layers) <= max(3, max_layers // 2)


def test_the_same_input_gives_the_same_plan() -> None:
    tree = {**BASE.table.entries, "usr/d": Entry("d", 0o700, 0, 0), "usr/e": Entry("l", 0o777, 0, 0, target="b")}
    assert updated([BASE], tree) == updated([BASE], dict(reversed(tree.items())))
