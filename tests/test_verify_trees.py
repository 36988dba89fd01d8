"""How two trees differ, in words."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.tree.entry import Entry, Tree
from rechunk_action.verify import tree_differences
from tests.trees import Files, InMemory, generations


def _tree() -> Tree:
    return {
        "": Entry("d", 0o755, 0, 0),
        "usr": Entry("d", 0o755, 0, 0),
        "usr/a": Entry("f", 0o644, 0, 0, mtime=1, size=1, digest=b"\1" * 32),
        "usr/link": Entry("l", 0o777, 0, 0, target="a"),
    }


@pytest.mark.parametrize(
    ("path", "change", "told"),
    [
        ("", {"mode": 0o700}, "/: mode 0o700, should be 0o755"),
        ("usr", {"uid": 1, "gid": 2}, "/usr: owner '1:2', should be '0:0'"),
        ("usr/a", {"mode": 0o4755}, "/usr/a: mode 0o4755, should be 0o644"),
        ("usr/a", {"digest": b"\2" * 32}, "/usr/a: content '020202020202', should be '010101010101'"),
        ("usr/a", {"xattrs": (("user.a", b"1"),)}, "/usr/a: attributes {'user.a': b'1'}, should be {}"),
        ("usr/link", {"target": "b"}, "/usr/link: target 'b', should be 'a'"),
        ("usr/link", {"kind": "f", "target": ""}, "/usr/link: type 'f', should be 'l'; target '', should be 'a'"),
    ],
)
def test_each_difference_is_told(path: str, change: dict[str, object], told: str) -> None:
    shown = _tree()
    for key, value in change.items():
        setattr(shown[path], key, value)
    assert tree_differences(shown, _tree()) == [told]


def test_paths_of_one_tree_alone_are_told_in_order() -> None:
    shown, wanted = _tree(), _tree()
    del shown["usr/a"]
    wanted.pop("")
    shown["b"] = Entry("d", 0o755, 0, 0)
    assert tree_differences(shown, wanted) == ["/: should not be there", "/b: should not be there", "/usr/a: missing"]


def test_times_and_hard_links_are_not_compared() -> None:
    shown = _tree()
    shown["usr/a"].mtime = 2
    shown["usr/a"].group = "usr/a"
    assert tree_differences(shown, _tree()) == []


@given(history=generations(least=2, most=2), reverse=st.booleans())
def test_trees_are_equal_if_nothing_is_told(history: list[Files], *, reverse: bool) -> None:
    first, second = (InMemory(files).tree for files in (history[::-1] if reverse else history))
    assert tree_differences(first, copy.deepcopy(first)) == []
    told = tree_differences(first, second)
    changed = [
        path
        for path in first.keys() | second.keys()
        if path not in first or path not in second or not first[path].same_as(second[path])
    ]
    assert [line.split(": ")[0] for line in told] == [f"/{path}".split(": ")[0] for path in sorted(changed)]
