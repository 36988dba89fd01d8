"""Paths are looked up as the kernel would, with the tree's root as the root."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.tree.packages.links import MAX_LINKS, Links
from tests.small_image import SmallImage


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "./usr//lib/", "../../usr/lib", "usr/bin/../lib"])
def test_a_linked_parent_is_resolved(target: str) -> None:
    image = SmallImage({"usr/lib/x": "", "usr/bin/y": ""}, links={"lib": target})
    assert Links(image.tree).locate("lib/x") == "usr/lib/x"


def test_links_may_lead_through_links() -> None:
    image = SmallImage({"c/x": ""}, links={"a": "b/up", "b/up": "../c"})
    assert Links(image.tree).locate("a/x") == "c/x"


def test_a_link_itself_is_not_followed() -> None:
    image = SmallImage({"usr/bin/dash": ""}, links={"bin": "usr/bin", "usr/bin/sh": "dash"})
    assert Links(image.tree).locate("bin/sh") == "usr/bin/sh"


@pytest.mark.parametrize("path", ["", ".", "..", "usr", "usr/", "usr/.", "usr/bin/..", "linked", "nothing", "no/x"])
def test_a_directory_or_nothing_is_not_located(path: str) -> None:
    image = SmallImage({"usr/bin/x": ""}, links={"lib": "usr"})
    assert Links(image.tree).locate(path) is None


def test_a_leading_slash_does_not_matter() -> None:
    image = SmallImage({"usr/bin/x": "", "y": ""})
    assert [Links(image.tree).locate(path) for path in ("/usr/bin/x", "//y")] == ["usr/bin/x", "y"]


def test_nothing_lies_below_a_file() -> None:
    image = SmallImage({"file": "", "x": ""})
    links = Links(image.tree)
    assert [links.locate(path) for path in ("file/x", "file/../x", "file/./x")] == [None, None, None]


def test_a_loop_of_links_leads_nowhere() -> None:
    image = SmallImage({}, links={"a": "b", "b": "a", "self": "self/self"})
    links = Links(image.tree)
    assert [links.locate(path) for path in ("a/x", "b/x", "self/x")] == [None, None, None]


def test_a_long_chain_ends_where_the_kernel_gives_up() -> None:
    chain = {f"link{i}": f"link{i + 1}" for i in range(MAX_LINKS)}
    image = SmallImage({"end/x": ""}, links={**chain, f"link{MAX_LINKS}": "end"})
    links = Links(image.tree)
    assert links.locate("link1/x") == "end/x"
    assert links.locate("link0/x") is None


def test_directories_and_files_are_followed_to_their_end() -> None:
    image = SmallImage({"usr/lib/db/status": ""}, links={"var/db": "../usr/lib/db", "var/status": "db/status"})
    links = Links(image.tree)
    assert (links.directory("var/db"), links.file("var/status")) == ("usr/lib/db", "usr/lib/db/status")
    assert (links.directory("var/status"), links.file("var/db")) == (None, None)


# Three links and at most three parts make at most 39 steps over links: less than the bound, which realpath has not.
spelled = st.tuples(
    st.sampled_from(["", "/"]), st.lists(st.sampled_from([*"abcfxyz", ".", ".."]), min_size=1, max_size=3)
)


@given(st.tuples(spelled, spelled, spelled), spelled)
def test_a_walk_ends_where_realpath_ends(
    targets: tuple[tuple[str, list[str]], ...], path: tuple[str, list[str]]
) -> None:
    links = {place: start + "/".join(names) for place, (start, names) in zip(("x", "a/y", "c/z"), targets, strict=True)}
    asked = "/".join(path[1])
    image = SmallImage({"a/f": "", "a/b/f": "", "c/f": ""}, links=links)
    lookup = Links(image.tree)
    found = lookup.directory(asked) if lookup.file(asked) is None else lookup.file(asked)

    with tempfile.TemporaryDirectory() as made:
        root = os.path.realpath(made)
        for name, entry in sorted(image.tree.items()):
            if entry.kind == "d":
                os.makedirs(f"{root}/{name}", exist_ok=True)
            elif entry.kind == "f":
                open(f"{root}/{name}", "w").close()
            else:
                os.symlink(root + entry.target if entry.target.startswith("/") else entry.target, f"{root}/{name}")
        try:
            os.stat(f"{root}/{asked}")  # the kernel's word: realpath lets "file/." and "file/.." pass
            real = os.path.realpath(f"{root}/{asked}")
        except OSError:
            real = ""

    if f"{real}/".startswith(f"{root}/"):
        assert found == real[len(root) + 1 :]
    elif not any(".." in names for _, names in (*targets, path)):
        assert found is None  # with "..", realpath may have left the root, which a tree does not let it
