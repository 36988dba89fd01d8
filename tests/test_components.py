"""Which component a file gets, and who has the first word."""

from __future__ import annotations

import pytest

from rechunk_action.errors import InputError
from rechunk_action.tree.components import LARGE_FILE, components
from rechunk_action.tree.entry import Entry
from rechunk_action.tree.packages import read_packages
from tests.small_image import SmallImage

DPKG = {
    "var/lib/dpkg/status": "Package: tool\nArchitecture: amd64\n",
    "var/lib/dpkg/info/tool.list": "/.\n/usr/bin/tool\n/opt/app/plugin\n",
}


def directory(label: bytes) -> Entry:
    return Entry("d", 0o755, 0, 0, xattrs=(("user.component", label),))


def large_file(group: str = "") -> Entry:
    return Entry("f", 0o644, 0, 0, size=LARGE_FILE, group=group)


def found_in(image: SmallImage) -> dict[str, str]:
    return components(image.tree, read_packages(image.tree, image.read))


def test_what_nothing_claims_is_absent() -> None:
    image = SmallImage({"etc/hostname": "x"}, links={"etc/localtime": "../usr/share/zoneinfo/UTC"})
    assert found_in(image) == {}


def test_an_empty_tree_has_no_components() -> None:
    assert components({}, []) == {}


def test_directories_have_no_component() -> None:
    image = SmallImage({"opt/app/bin": "x"})
    image.tree["opt"] = directory(b"app")
    assert found_in(image) == {"opt/app/bin": "xattr:app"}


def test_a_label_names_the_component() -> None:
    image = SmallImage({})
    image.add("usr/bin/x", Entry("f", 0o755, 0, 0, xattrs=(("security.selinux", b"t"), ("user.component", b"mine"))))
    assert found_in(image) == {"usr/bin/x": "xattr:mine"}


def test_the_nearest_label_above_counts() -> None:
    image = SmallImage({"a/one": "", "a/b/two": "", "a/b/c/three": "", "ab/four": ""}, links={"a/b/link": "two"})
    image.tree["a"] = directory(b"outer")
    image.tree["a/b"] = directory(b"inner")
    image.tree["a/b/c/three"] = Entry("f", 0o644, 0, 0, xattrs=(("user.component", b"own"),))
    assert found_in(image) == {
        "a/one": "xattr:outer",
        "a/b/two": "xattr:inner",
        "a/b/link": "xattr:inner",
        "a/b/c/three": "xattr:own",
    }


def test_a_label_of_the_root_reaches_everything() -> None:
    image = SmallImage({"x": "", "a/b/y": ""})
    image.tree[""] = directory(b"all")
    assert found_in(image) == {"x": "xattr:all", "a/b/y": "xattr:all"}


def test_a_label_does_not_depend_on_the_trees_order() -> None:
    image = SmallImage({"a/b/c/x": "", "a/y": ""})
    image.tree["a"] = directory(b"a")
    backwards = dict(reversed(image.tree.items()))
    assert components(backwards, []) == found_in(image)


def test_a_label_that_is_no_text_is_refused() -> None:
    image = SmallImage({"opt/x": ""})
    image.tree["opt"] = directory(b"\xff")
    with pytest.raises(InputError, match=r"user\.component of /opt is not UTF-8"):
        found_in(image)


def test_a_label_beats_a_package_and_a_package_beats_size() -> None:
    image = SmallImage({**DPKG, "opt/app/plugin": "x"})
    image.add("usr/bin/tool", large_file())
    image.tree["opt/app"] = directory(b"app")
    found = found_in(image)
    assert found["opt/app/plugin"] == "xattr:app"
    assert found["usr/bin/tool"] == "dpkg:tool:amd64"


def test_a_large_file_is_a_component_of_its_own() -> None:
    image = SmallImage({"small": "x"})
    image.add("usr/lib/model", large_file())
    assert found_in(image) == {"usr/lib/model": "file:usr/lib/model"}


def test_hard_links_of_a_large_file_are_one_component() -> None:
    image = SmallImage({})
    image.add("b", large_file(group="a"))
    image.add("a", large_file(group="a"))
    assert found_in(image) == {"a": "file:a", "b": "file:a"}


def test_several_databases_may_stand_in_one_image() -> None:
    image = SmallImage(
        {
            **DPKG,
            "var/lib/pacman/local/other-1-1/desc": "%NAME%\nother\n\n",
            "var/lib/pacman/local/other-1-1/files": "%FILES%\nusr/bin/other\nusr/bin/tool\n\n",
            "usr/bin/tool": "",
            "usr/bin/other": "",
        }
    )
    found = found_in(image)
    assert found["usr/bin/tool"] == "dpkg:tool:amd64"
    assert found["usr/bin/other"] == "alpm:other"
