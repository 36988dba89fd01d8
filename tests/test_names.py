"""Names of images and trees on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rechunk_action.errors import InputError
from rechunk_action.source.names import Name, parse_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dir:/", Name("dir", Path("/"))),
        ("dir:some/tree", Name("dir", Path("some/tree"))),
        ("dir:/with:colon", Name("dir", Path("/with:colon"))),
        ("dir:/with space\nand line", Name("dir", Path("/with space\nand line"))),
        ("oci:layout", Name("oci", Path("layout"))),
        ("oci:/a/layout", Name("oci", Path("/a/layout"))),
        ("oci:/a/layout:v1", Name("oci", Path("/a/layout"), "v1")),
        ("oci:.:latest", Name("oci", Path(), "latest")),
        ("oci:layout:docker.io/library/x:v1", Name("oci", Path("layout"), "docker.io/library/x:v1")),
    ],
)
def test_a_name_has_a_transport_a_path_and_perhaps_a_tag(text: str, name: Name) -> None:
    assert parse_name(text) == name


@pytest.mark.parametrize("text", ["dir:/tree", "oci:/layout", "oci:layout:v1", "oci:layout:a:b"])
def test_a_name_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_name(text)) == text


@pytest.mark.parametrize(
    "text", ["", "dir", "/tree", "dir:", "oci:", ":", "docker://x/y:z", "DIR:/tree", "oci-archive:x"]
)
def test_what_is_no_name_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(InputError, match=r"write dir:PATH or oci:DIR\[:TAG\]"):
        parse_name(text)


def test_only_some_transports_may_be_allowed() -> None:
    with pytest.raises(InputError, match=r"'dir:/tree' is no name that can be used here: write oci:DIR\[:TAG\]$"):
        parse_name("dir:/tree", allowed=("oci",))


def test_an_empty_tag_is_refused() -> None:
    with pytest.raises(InputError, match="'oci:layout:' ends in a colon"):
        parse_name("oci:layout:")
    with pytest.raises(InputError, match="is no name that can be used here"):
        parse_name("oci::v1")
