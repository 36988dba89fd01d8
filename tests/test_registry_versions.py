"""Versions as tags: which are, which is the newest, and what the next one is called."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import InputError
from rechunk_action.registry.reference import valid_tag
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Template, scheme_of, streams, successor

NOW = datetime(2026, 11, 26, 23, 59, tzinfo=UTC)
MOVING = ["latest", "stable", "42", "testing-2", "20261126", "sha256-" + "0" * 64, "sha256-" + "0" * 64 + ".rechunk"]


@pytest.fixture
def template() -> Template:
    return Template(DEFAULT_TEMPLATE)


def test_a_version_is_made_of_the_os_release_and_the_date(template: Template) -> None:
    assert template.render({"VERSION_ID": "42"}, NOW) == "42-20261126"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("{date:%Y%m%d}", "20261126"),
        ("{date}", "20261126"),
        ("{id}-{version_id}.{date:%Y-%m-%d_%H%M}", "bazzite-42.2026-11-26_2359"),
        ("stable-{date:%y.%j}", "stable-26.330"),
    ],
)
def test_templates_may_be_written_in_many_ways(text: str, version: str) -> None:
    template = Template(text)
    assert template.render({"ID": "bazzite", "VERSION_ID": "42"}, NOW) == version
    assert template.key(version) is not None
    assert template.newest([version, *MOVING]) == version


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{version_id}", "no {date"),
        ("{version_id", "malformed"),
        ("{0}-{date}", "is no field"),
        ("{version_id!r}-{date}", "is no field"),
        ("{a.b}-{date}", "is no field"),
        ("{date:%A}", "cannot be found again"),
        ("{date:now}", "cannot be found again"),
        ("{date:%Y%}", "cannot be found again"),
    ],
)
def test_a_template_that_cannot_be_used_is_told(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Template(text)


@pytest.mark.parametrize(
    ("release", "why"),
    [
        ({}, "no VERSION_ID; .*it has none"),
        ({"ID": "arch", "VERSION_ID": ""}, "no VERSION_ID; .*one of its fields: id, version_id"),
        ({"VERSION_ID": "rolling"}, "no later build could find again"),
        ({"VERSION_ID": "4 2"}, "no later build could find again"),
    ],
)
def test_an_os_release_that_gives_no_version_is_told(template: Template, release: dict[str, str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        template.render(release, NOW)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("42-20261125", "42-20261126"),
        ("42-20261126", "42-20261126.1"),
        ("42-20261126.9", "42-20261126.10"),
        ("42-20261126.3", "42-20261127"),
        ("42-20261126", "43-20261101"),
        ("9-20261126", "10-20261126"),
        ("9.9-20261126", "9.10-20261126"),
        ("9-20261126", "9.1-20250101"),
    ],
)
def test_versions_are_ordered_by_their_numbers(template: Template, older: str, newer: str) -> None:
    assert template.newest([older, newer, *MOVING]) == template.newest([newer, older]) == newer


def test_what_is_no_version_is_never_the_newest(template: Template) -> None:
    others = ["42-2026112", "42-20261126-debug", "x42-20261126", "42-20261126.", "42-20261126.1.2", "42-2026112\u0665"]
    assert template.newest([*MOVING, *others]) is None
    assert template.newest([]) is None


@pytest.mark.parametrize(
    ("version", "like"),
    [
        ("42.20261126", "43.20261127"),
        ("42.20261126", "42.20261125.3"),
        ("42.20261126.1", "42.20261125"),
        ("stable-20261126", "stable-20270101"),
        ("v1.2.3", "v1.10.0"),
    ],
)
def test_a_version_of_a_maintainer_tells_what_its_like_is(version: str, like: str) -> None:
    scheme = scheme_of(version)
    assert scheme.newest([version, like]) in (version, like)
    assert scheme.key(version) is not None
    assert scheme.key(like) is not None
    assert scheme.newest(MOVING) is None
    assert str(scheme) == version


@pytest.mark.parametrize("version", ["latest", "", "-1", "a b", "1" * 129, "sha256-" + "0" * 64])
def test_a_tag_that_is_no_version_is_told(version: str) -> None:
    with pytest.raises(InputError, match=r"is no valid tag|is no version"):
        scheme_of(version)


def test_a_moving_tag_as_a_version_says_how_it_is_given() -> None:
    with pytest.raises(InputError, match="--tag latest"):
        scheme_of("latest")


@pytest.mark.parametrize(
    ("version", "taken", "next_"),
    [
        ("42-20261126", [], "42-20261126"),
        ("42-20261126", ["42-20261125"], "42-20261126"),
        ("42-20261126", ["42-20261126"], "42-20261126.1"),
        ("42-20261126", ["42-20261126", "42-20261126.1", "42-20261126.4"], "42-20261126.5"),
        ("42-20261126", ["42-20261126", "42-20261126.debug", "x42-20261126.7"], "42-20261126.1"),
        ("42-20261126.1", ["42-20261126.1"], "42-20261126.2"),
        ("v1.2.3", ["v1.2.3"], "v1.2.3.1"),
    ],
)
def test_the_next_build_of_a_version_is_above_all_others(version: str, taken: list[str], next_: str) -> None:
    assert successor(version, taken) == next_


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 99))
def test_each_build_of_a_series_is_the_newest_and_finds_the_one_before(days: list[int], release: int) -> None:
    template = Template(DEFAULT_TEMPLATE)
    published: list[str] = []
    for day in sorted(days):
        before = template.newest([*published, *MOVING])
        assert before == (published[-1] if published else None)
        now = datetime.combine(date(2026, 12, 20), datetime.min.time(), UTC) + timedelta(days=day)
        version = successor(template.render({"VERSION_ID": str(release)}, now), published)
        assert version not in published
        assert valid_tag(version)
        published.append(version)
    assert template.newest(reversed(published)) == published[-1]


BAZZITE = [
    *(f"43.202611{day}" for day in range(10, 22)),
    *("43.20261121.1", "43.20261121.2", "42.20260901"),
    *(f"stable-43.202611{day}" for day in range(12, 20)),
    *("testing-43.20261122", "stable", "latest", "43", "42", "41", "stable-43"),
    *("sha256-" + "0" * 64 + ".sig", "sha256-" + "1" * 64, "nightly-é"),
]


def test_tags_that_differ_in_their_numbers_alone_are_one_stream() -> None:
    found = streams(reversed(BAZZITE))
    assert [(str(stream.scheme), len(stream.tags)) for stream in found] == [
        ("43.20261121.2", 15),
        ("stable-43.20261119", 8),
        ("43", 3),
        ("testing-43.20261122", 1),
        ("stable-43", 1),
    ]
    assert found[0].tags[0] == "42.20260901"
    assert list(found[0].tags[-3:]) == ["43.20261121", "43.20261121.1", "43.20261121.2"]


def test_of_streams_with_as_many_versions_the_default_templates_comes_first_then_the_one_that_is_ahead() -> None:
    tags = ["v9.1", "v9.2", "12.5-20261126", "13-20261127", "x1.1", "x99.1"]
    assert [str(stream.scheme) for stream in streams(tags)] == [DEFAULT_TEMPLATE, "x99.1", "v9.2"]


def test_there_may_be_no_stream() -> None:
    assert streams(["latest", "sha256-" + "0" * 64, "", "²"]) == []


@given(st.lists(st.from_regex(r"[a-c0-9._-]{1,12}|(v|)4[0-3][.-]2026112[0-9](\.[0-9])?", fullmatch=True), unique=True))
def test_every_tag_with_a_number_is_in_one_stream_and_a_version_of_it(tags: list[str]) -> None:
    found = streams(tags)
    assert sorted(tag for stream in found for tag in stream.tags) == sorted(
        tag for tag in tags if valid_tag(tag) and any(map(str.isdigit, tag))
    )
    for stream in found:
        assert stream.scheme.ordered(reversed(stream.tags)) == list(stream.tags)


def test_what_is_no_tag_is_no_version() -> None:
    """A layout may have such names; Python turns no text of so many digits into a number."""
    assert scheme_of("v1").ordered(["v2", "v" + "1" * 5000, "v3\n"]) == ["v2"]
