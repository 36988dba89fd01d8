"""Names of images in registries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import InputError
from rechunk_action.registry.reference import Reference, parse_reference, valid_tag

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("ghcr.io/dkolb/image", Reference("ghcr.io", "dkolb/image")),
        ("ghcr.io/dkolb/image:42.1", Reference("ghcr.io", "dkolb/image", "42.1")),
        (f"ghcr.io/dkolb/image@{DIGEST}", Reference("ghcr.io", "dkolb/image", None, DIGEST)),
        (f"ghcr.io/dkolb/image:a@{DIGEST}", Reference("ghcr.io", "dkolb/image", "a", DIGEST)),
        ("localhost/a", Reference("localhost", "a")),
        ("localhost:5000/a/b__c/d-e.f:Tag_1", Reference("localhost:5000", "a/b__c/d-e.f", "Tag_1")),
        ("[::1]:5000/a", Reference("[::1]:5000", "a")),
        ("docker.io/debian", Reference("docker.io", "library/debian")),
        ("docker.io/library/debian", Reference("docker.io", "library/debian")),
    ],
)
def test_parts_of_a_reference(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference


def test_a_reference_is_written_as_it_is_read() -> None:
    text = f"ghcr.io/dkolb/image:a@{DIGEST}"
    assert str(parse_reference(text)) == f"docker://{text}"
    assert parse_reference(text).name == "ghcr.io/dkolb/image"


def test_owners_with_capitals_become_lower_case_and_tags_keep_theirs() -> None:
    assert parse_reference("GHCR.io/DKolb/Image:Latest") == Reference("ghcr.io", "dkolb/image", "Latest")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "docker://HOST/REPOSITORY"),
        ("dkolb/image", "docker://ghcr.io/dkolb/image"),
        ("image:tag", "docker://HOST/REPOSITORY"),
        ("https://ghcr.io/dkolb/image", "without https://"),
        ("-ghcr.io/image", "no host name"),
        ("ghcr.io:port/image", "no host name"),
        ("ghcr.io/", "no name of a repository"),
        ("ghcr.io/a//b", "no name of a repository"),
        ("ghcr.io/../b", "no name of a repository"),
        ("ghcr.io/a b", "no name of a repository"),
        ("ghcr.io/" + "a" * 256, "255 characters"),
        ("ghcr.io/a:", "'' is no tag"),
        ("ghcr.io/a:.b", "'.b' is no tag"),
        ("ghcr.io/a:b/c", "'b/c' is no tag"),
        ("ghcr.io/a:" + "b" * 129, "at most 128"),
        ("ghcr.io/a@", "is no digest"),
        ("ghcr.io/a@sha256:abc", "64 hexadecimal digits"),
        ("ghcr.io/a@" + DIGEST.upper(), "lower case"),
        (f"ghcr.io/a@{DIGEST}\n", "is no digest"),
    ],
)
def test_what_is_no_reference_is_refused_with_a_remedy(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_reference(text)
    assert says in str(caught.value)


@given(st.text(st.characters(codec="utf-8")) | st.from_regex(r"[a-z.:/@\[\]-]{0,30}", fullmatch=True))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InputError:
        return
    assert parse_reference(str(reference).removeprefix("docker://")) == reference


def test_tags_have_128_characters_at_most() -> None:
    assert valid_tag("4" * 128)
    assert not valid_tag("4" * 129)
    assert not valid_tag("42\n")
