"""Paths, and what makes two entries the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.tree.entry import Entry, ancestors, is_utf8, link_groups, parent_of

ENTRY = Entry("f", 0o644, 1, 2, mtime=3, size=4, digest=b"5" * 32, target="", xattrs=(("user.a", b"6"),))


@pytest.mark.parametrize(
    ("path", "above"),
    [("", []), ("a", [""]), ("a/b", ["", "a"]), ("usr/lib/x.d/y", ["", "usr", "usr/lib", "usr/lib/x.d"])],
)
def test_ancestors_are_all_directories_above(path: str, above: list[str]) -> None:
    assert ancestors(path) == above
    assert parent_of(path) == (above[-1] if above else "")


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "l"},
        {"mode": 0o600},
        {"uid": 9},
        {"gid": 9},
        {"size": 9},
        {"digest": b"9" * 32},
        {"target": "9"},
        {"xattrs": ()},
        {"xattrs": (("user.a", b"9"),)},
    ],
    ids=str,
)
def test_every_part_of_an_identity_counts(changed: dict[str, Any]) -> None:
    assert not ENTRY.same_as(msgspec.structs.replace(ENTRY, **changed))


@pytest.mark.parametrize("changed", [{}, {"mtime": 9}, {"group": "a"}, {"cost": 9}], ids=str)
def test_times_groups_and_costs_are_no_identity(changed: dict[str, Any]) -> None:
    assert ENTRY.same_as(msgspec.structs.replace(ENTRY, **changed))


@given(st.binary())
def test_names_know_whether_they_were_utf8(name: bytes) -> None:
    try:
        name.decode()
    except UnicodeDecodeError:
        assert not is_utf8(name.decode("utf-8", "surrogateescape"))
    else:
        assert is_utf8(name.decode("utf-8", "surrogateescape"))


def test_link_groups_have_at_least_two_members() -> None:
    def linked(group: str) -> Entry:
        return msgspec.structs.replace(ENTRY, group=group)

    entries = {"b": linked("a"), "a": linked("a"), "alone": linked("alone"), "none": ENTRY, "other": ENTRY}
    assert link_groups(entries.items()) == {"a": ["a", "b"]}
