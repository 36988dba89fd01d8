"""Names of images and trees on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rechunk_action.errors import InputError
from rechunk_action.source.names import FORMS, Name, parse_name

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dir:/", Name("dir", "/")),
        ("dir:some/tree", Name("dir", "some/tree")),
        ("dir:/with:colon", Name("dir", "/with:colon")),
        ("dir:/with space\nand line", Name("dir", "/with space\nand line")),
        ("oci:layout", Name("oci", "layout")),
        ("oci:/a/layout", Name("oci", "/a/layout")),
        ("oci:/a/layout:v1", Name("oci", "/a/layout", "v1")),
        ("oci:.:latest", Name("oci", ".", "latest")),
        ("oci:layout:docker.io/library/x:v1", Name("oci", "layout", "docker.io/library/x:v1")),
        ("oci-archive:image.tar:v1", Name("oci-archive", "image.tar", "v1")),
        ("docker://ghcr.io/o/image:v1", Name("docker", "ghcr.io/o/image:v1")),
        (f"docker://localhost:5000/image@{DIGEST}", Name("docker", f"localhost:5000/image@{DIGEST}")),
        ("containers-storage:localhost/image:latest", Name("containers-storage", "localhost/image:latest")),
        ("docker-daemon:image:latest", Name("docker-daemon", "image:latest")),
        ("localhost/image:latest", Name("", "localhost/image:latest")),
        ("localhost:5000/owner/image", Name("", "localhost:5000/owner/image")),
        ("image", Name("", "image")),
        (f"ghcr.io/o/image@{DIGEST}", Name("", f"ghcr.io/o/image@{DIGEST}")),
    ],
)
def test_a_name_has_a_transport_a_place_and_perhaps_a_tag(text: str, name: Name) -> None:
    assert parse_name(text) == name
    assert str(name) == text


def test_a_place_on_disk_is_a_path() -> None:
    assert parse_name("oci:a/./layout:v1").path == Path("a/layout")


def test_a_place_in_a_registry_is_a_reference() -> None:
    reference = parse_name("docker://GHCR.io/Owner/Image:v1").reference
    assert (reference.host, reference.repository, reference.tag) == ("ghcr.io", "owner/image", "v1")


def test_a_name_is_pinned_by_a_digest() -> None:
    assert parse_name("docker://ghcr.io/O/image:v1").pinned(DIGEST) == f"ghcr.io/o/image:v1@{DIGEST}"
    assert parse_name(f"docker://ghcr.io/o/image@{DIGEST}").pinned(DIGEST) == f"ghcr.io/o/image@{DIGEST}"
    assert parse_name("oci:layout:v1").pinned(DIGEST) == f"oci:layout:v1@{DIGEST}"


@pytest.mark.parametrize(
    "text",
    ["", "dir:", "oci:", "/tree", ":", "./image", "DIR:/tree", "ostree:file", "https://ghcr.io/o/image", "a b"],
)
def test_what_is_no_name_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(InputError, match="is no name that can be used here") as error:
        parse_name(text)
    assert all(form in str(error.value) for form in FORMS.values())


def test_only_some_transports_may_be_allowed() -> None:
    with pytest.raises(InputError, match=r"'dir:/tree' is no name that can be used here: write oci:DIR\[:TAG\]$"):
        parse_name("dir:/tree", allowed=("oci",))
    with pytest.raises(InputError, match=r"'image' is no name .*: write oci:DIR\[:TAG\] or docker://HOST/"):
        parse_name("image", allowed=("oci", "docker"))


def test_an_empty_tag_is_refused() -> None:
    with pytest.raises(InputError, match="'oci:layout:' ends in a colon"):
        parse_name("oci:layout:")
    with pytest.raises(InputError, match="is no name that can be used here"):
        parse_name("oci::v1")


def test_a_name_in_a_registry_is_checked_when_it_is_given() -> None:
    with pytest.raises(InputError, match="names no registry"):
        parse_name("docker://image:latest")
