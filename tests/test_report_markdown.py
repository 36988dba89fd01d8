"""What is written for GitHub: names are text there, and the numbers are the model's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from msgspec.structs import replace

from rechunk_action.report.changelog import MAX_CHANGELOG, changelog
from rechunk_action.report.comment import MAX_COMMENT, comment, marker
from rechunk_action.report.markdown import MAX_ROWS, escape, fitted, table
from rechunk_action.report.model import Build, ComponentLine, Facts, LayerFacts, Update, history, update
from rechunk_action.report.summary import MAX_SUMMARY, chart, refused, summary
from rechunk_action.report.words import shown, versions
from tests.reports import BUILD, HISTORY, HOSTILE, NAME, UPDATE, VERSIONS, digest, hostile

APART = "\N{ZERO WIDTH SPACE}"
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])

LINKED = re.compile(r"@\w|#\d|\bgh-\d|://|\bwww\.|:[\w+-]+:", re.IGNORECASE | re.ASCII)
"""What GitHub makes more of than text, once markup has become a page."""

awkward = st.text(st.sampled_from("ab1_-.:/@#`*~[]()<>&|\\!$\"' \n\r\t{}%\u202e\u200b\u2028é漢\x1b\udc80")) | st.text()


def said(report: Build) -> str:
    """A document, as one reads it: spaces are spaces."""
    return summary(report).replace("\N{NO-BREAK SPACE}", " ")


def tokens(text: str) -> Iterator[Token]:
    for token in PARSER.parse(text):
        yield token
        yield from token.children or ()


def texts(document: str) -> list[str]:
    """The text of each cell, heading and paragraph, of which none may have any markup but a name's."""
    found = []
    for token in PARSER.parse(document):
        if token.type == "inline":
            assert {child.type for child in token.children or ()} <= {"text", "html_inline"}
            assert {child.content for child in token.children or () if child.type == "html_inline"} <= {
                "<span>",
                "</span>",
            }
            found.append("".join(child.content for child in token.children or () if child.type == "text"))
    return found


class TestANameIsText:
    @pytest.mark.parametrize("form", ["| a |\n|---|\n| {} |", "## {}", "a {} b"])
    @given(awkward)
    def test_wherever_it_is(self, form: str, name: str) -> None:
        *_, found = texts(form.format(escape(name)))
        wanted = form.replace("| a |\n|---|\n|", "").strip("#| ").format(shown(name))
        assert found.replace(APART, "").strip(" ") == wanted.strip(" ")
        assert not LINKED.search(found)

    @given(awkward)
    def test_on_one_line_of_what_can_be_seen(self, name: str) -> None:
        assert shown(name).isprintable()

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a\u202eb", r"a\u202eb"),
            ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
            ("\x1b[31m", r"\x1b[31m"),
            ("a\r\nb", r"a\r\nb"),
            ("\udc80", r"\udc80"),
            ("x" * 201, "x" * 199 + "…"),
            ("bash 5.2 é漢", "bash 5.2 é漢"),
        ],
    )
    def test_in_its_own_order(self, name: str, text: str) -> None:
        assert shown(name) == text

    @pytest.mark.parametrize(
        ("name", "source"),
        [
            ("rpm:bash.x86-64", "rpm:bash.x86-64"),
            ("a_b", "a&#95;b"),
            ("@owner", "@&#8203;owner"),
            ("#1", "&#35;&#8203;1"),
            ("GH-1 gh-1", "GH&#8203;-1 gh&#8203;-1"),
            ("WWW.e.com", "WWW&#8203;.e.com"),
            ("https://e.com", "https:&#8203;//e.com"),
            ("$x$", "<span>&#36;</span>x<span>&#36;</span>"),
            ("&amp;", "&amp;amp;"),
        ],
    )
    def test_by_references_and_what_keeps_apart(self, name: str, source: str) -> None:
        assert escape(name) == source

    @pytest.mark.parametrize(
        "document",
        [summary, changelog, lambda build: _comment(build.update), lambda build: refused(build.ref, build.update, 1)],
    )
    def test_in_every_document(self, document: Callable[[Build], str]) -> None:
        text = document(hostile())
        found = list(tokens(text))
        assert not {token.type for token in found} & {"link_open", "code_block", "blockquote_open", "image", "s_open"}
        ours = re.compile(
            r"</?(details|summary|sub|span)>|<!-- rechunk-action: [^<>]* -->\n?"
            r"|(Packages|Layers|Rules for images that boot): [\w ,]+"
        )
        for token in found:
            if token.type in ("html_block", "html_inline"):
                assert ours.sub("", token.content).strip() in (
                    "",
                    "Layers",
                    "Time and disk",
                    "Who comes from an older version",
                )
        assert not re.search(r"^\s*::|\x1b|\r|\u202e|<script", text, re.MULTILINE)
        read = "".join(token.content for token in found if token.type == "text").replace(APART, "")
        assert shown(HOSTILE) in read
        cells = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        assert set(cells) <= {3, 4}


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (None, None, ""),
        ("1", None, "1"),
        (None, "2", "2"),
        ("1", "1", "1"),
        ("1", "2", "1 → 2"),
        ("", "2", "2"),
        ("\x1b", "\u202e", r"\x1b → \u202e"),
    ],
)
def test_versions_are_told_as_far_as_they_are_known(old: str | None, new: str | None, text: str) -> None:
    assert versions(ComponentLine(name="c", bytes=1, old=old, new=new)) == text


class TestATable:
    def test_has_a_last_column_of_numbers(self) -> None:
        assert table(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | --: |\n| x | 1 |"
        assert table(("a", "b"), [], numbers=0) == "| a | b |\n| --- | --- |"

    def test_counts_the_rows_that_are_too_many(self) -> None:
        lines = table(("a", "b"), [("x", "1")] * (MAX_ROWS + 1200)).splitlines()
        assert (len(lines), lines[-1]) == (2 + MAX_ROWS + 1, "| 1,200 more |  |")


class TestPartsThatFit:
    @given(st.lists(st.integers(0, 90), max_size=9), st.integers(120, 400))
    def test_are_there_and_the_others_are_named(self, sizes: list[int], limit: int) -> None:
        parts = {f"part {number}": "é" * size + f"{number}" for number, size in enumerate(sizes)}
        text = fitted(parts, limit)
        there, _, left = text.partition("_Left out")
        assert len(text.encode()) <= limit
        assert [title for title, part in parts.items() if part not in there.split("\n\n")] == re.findall(
            r"part \d", left
        )

    def test_are_left_out_whole(self) -> None:
        parts = {"one": "1" * 50, "two": "2" * 500, "three": "3" * 50}
        assert (
            fitted(parts, 250) == f"{'1' * 50}\n\n{'3' * 50}\n\n_Left out, as there is no room for it here: two._\n\n"
        )
        assert "Left out" not in fitted(parts, 1000)


class TestSummary:
    def test_says_what_users_download(self) -> None:
        text = said(BUILD)
        assert text.startswith("## ghcr.io/me/image:43.20261103\n\n**Users download 34.0 MB** instead of 254.0 MB.\n")
        assert "trial" not in text
        assert "this was a trial" in said(replace(BUILD, published=False))

    def test_says_why_an_image_is_fresh(self) -> None:
        fresh = replace(BUILD, fresh=True, reason="first build", prev_ref=None, update=update(None, VERSIONS[2]))
        text = said(fresh)
        assert "**Users download 254.0 MB**: a fresh image (first build)." in text
        assert "Update of" not in text
        assert "Packages" not in text

    def test_holds_the_image_against_its_budget(self) -> None:
        text = said(BUILD)
        assert "| Layers | 3: 2 kept, 1 new, 1 dropped (120 allowed) |" in text
        assert "| Superseded | 120.9 MB: 90.8% (5% allowed) |" in text
        assert "| Update allowed | 50.0 MB |" in text
        free = said(replace(BUILD, budget=replace(BUILD.budget, layers=None, update=None)))
        assert "| Layers | 3: 2 kept, 1 new, 1 dropped |" in free
        assert "Update allowed" not in free

    def test_tells_what_may_keep_systems_from_booting(self) -> None:
        assert (
            "<details><summary>Rules for images that boot: 1 broken</summary>\n\n"
            "| Rule | Path |  |\n| --- | --- | --- |\n"
            "| var | /var/lib/a | 2 files (1,000 bytes) in /var: ship them in /usr |\n"
        ) in said(BUILD)
        assert "that boot" not in said(replace(BUILD, findings=[]))

    def test_says_what_is_new(self) -> None:
        assert (
            "| Component | Version | Size |\n| --- | --- | --: |\n"
            "| kernel-core.x86&#95;64 | 6.16.1-200 → 6.16.1-200, 6.16.2-200 | 31.0 MB |\n"
            "| vim.x86&#95;64 | 9.1-1 | 2.0 MB |\n"
            "| /usr/share/a.img |  | 1.0 MB |\n"
        ) in said(BUILD)

    def test_has_no_column_for_versions_that_are_not_known(self) -> None:
        lines = [replace(line, old=None, new=None) for line in UPDATE.components]
        text = said(replace(BUILD, update=replace(UPDATE, components=lines)))
        assert "| Component | Size |\n| --- | --: |\n| kernel-core.x86&#95;64 | 31.0 MB |" in text

    def test_lists_packages(self) -> None:
        assert (
            "<details><summary>Packages: 1 changed, 1 added, 1 removed</summary>\n\n"
            "| Package | Before | Now |\n| --- | --- | --- |\n"
            "| kernel-core.x86&#95;64 | 6.16.1-200 | 6.16.1-200, 6.16.2-200 |\n"
            "| vim.x86&#95;64 |  | 9.1-1 |\n"
            "| nano.x86&#95;64 | 8.1-1 |  |\n"
        ) in said(BUILD)

    def test_says_what_older_versions_download(self) -> None:
        text = said(BUILD)
        assert "| 43.20261101 | 2 | 34.0 MB |\n| _a new installation_ |  | 254.0 MB |" in text
        two = replace(BUILD, history=history(NAME, VERSIONS[1:]))
        assert "older version" not in said(two)

    def test_lists_layers_and_times(self) -> None:
        text = said(BUILD)
        assert (
            "| kept | 2 layers | 220.0 MB |\n| new | kernel, vim | 34.0 MB |\n"
            "| dropped: nothing in it is live | layer 3 | 6.5 MB |\n"
        ) in text
        assert "| Phase | Time |\n| --- | --: |\n| scan | 1.2 s |\n| write | 60.0 s |" in text
        took = said(replace(BUILD, disk={"write": 700_000_000}))
        assert (
            "| Phase | Disk | Time |\n| --- | --: | --: |\n| scan |  | 1.2 s |\n| write | 700.0 MB | 60.0 s |" in took
        )

    def test_stays_within_what_github_shows(self) -> None:
        text = summary(_large())
        assert len(text.encode()) <= MAX_SUMMARY
        assert "Users download" in text
        assert "_Left out, as there is no room for it here: packages, layers._" in text
        assert "1,985 more" in text


class TestChart:
    def test_has_a_bar_for_each_update(self) -> None:
        assert chart(HISTORY).splitlines() == [
            "```mermaid",
            "xychart-beta horizontal",
            '  x-axis ["43.20261102", "43.20261103"]',
            '  y-axis "MB to download" 0 --> 34.000',
            "  bar [6.500, 34.000]",
            "```",
        ]

    def test_is_none_of_one_update(self) -> None:
        assert chart(history(NAME, VERSIONS[1:])) == chart(None) == ""

    @given(st.lists(awkward | st.sampled_from(['"]\nbar [1]', "%%{init: {}}%%", "```", "", "a", "-"]), min_size=3))
    def test_cannot_be_broken_by_names(self, names: list[str]) -> None:
        """Mermaid's own parser takes labels of these characters; `""` it does not take, and two bars of one name are
        one to it.
        """
        found = chart(history(NAME, [Facts(ref=name, digest=digest(number)) for number, name in enumerate(names)]))
        fence, kind, axis, scale, bars, end = found.split("\n")
        assert (fence, kind, end) == ("```mermaid", "xychart-beta horizontal", "```")
        listed = re.fullmatch(r'  x-axis \["([^"]*(?:", "[^"]*)*)"\]', axis)
        assert listed
        labels = listed[1].split('", "')
        assert all(re.fullmatch(r"[A-Za-z0-9._+~:/@-]{1,24}(?: \(\d+\))?", label) for label in labels)
        assert len(set(labels)) == len(labels) == len(names) - 1 == bars.count("0.000")
        assert scale == '  y-axis "MB to download" 0 --> 0.001'


class TestChangelog:
    def test_says_what_a_version_costs_and_brings(self) -> None:
        text = changelog(BUILD).replace("\N{NO-BREAK SPACE}", " ")
        assert text.startswith(
            "## 43.20261103\n\nDownloads 34.0 MB coming from 43.20261102 (254.0 MB for a new installation).\n"
        )
        assert "| 43.20261101 | 2 | 34.0 MB |" in text
        assert "### Packages\n\n1 changed, 1 added, 1 removed\n\n| Package |" in text
        assert "### What the download holds\n\n| Component |" in text
        assert text.endswith("|\n")

    def test_of_a_fresh_image_compares_with_nothing(self) -> None:
        fresh = replace(BUILD, fresh=True, update=update(None, VERSIONS[2]), history=None, version="")
        text = changelog(fresh).replace("\N{NO-BREAK SPACE}", " ")
        assert text.startswith("## ghcr.io/me/image:43.20261103\n\nA fresh image: it downloads 254.0 MB.\n\n### What")
        assert "Packages" not in text

    def test_fits_into_the_notes_of_a_release(self) -> None:
        text = changelog(_large())
        assert len(text.encode()) <= MAX_CHANGELOG
        assert "_Left out, as there is no room for it here: packages._" in text


class TestComment:
    def test_says_what_merging_costs_and_why(self) -> None:
        lines = _comment().splitlines()
        assert lines[:2] == [
            "<!-- rechunk-action: ghcr.io/me/image -->",
            "Merging this costs your users **34.0 MB**: mostly kernel-core.x86&#95;64.",
        ]
        assert "CAUTION" not in _comment(limit=34_000_000)

    def test_names_as_many_components_as_make_up_more_than_half(self) -> None:
        def mostly(*sizes: int) -> str:
            lines = [ComponentLine(name=f"c{number}", bytes=size) for number, size in enumerate(sizes)]
            return _comment(replace(UPDATE, components=lines, bytes=sum(sizes))).splitlines()[1].partition("**: ")[2]

        assert mostly(51, 49) == "mostly c0."
        assert mostly(50, 50) == "mostly c0 and c1."
        assert mostly(20, 20, 20, 20) == "mostly c0, c1 and c2."
        assert mostly(10, 10, 10, 10, 10, 10) == ""

    def test_counts_components_where_none_stand_out(self) -> None:
        lines = [ComponentLine(name=f"c{number}", bytes=1) for number in range(1200)]
        found = _comment(replace(UPDATE, components=lines, bytes=1200))
        assert "Merging this costs your users **1.2 kB**, in 1,200 components." in found

    def test_says_by_how_much_it_is_too_large_and_by_what(self) -> None:
        assert (
            "> [!CAUTION]\n> That is 14.0 MB more than the 20.0 MB that are allowed. The largest: "
            "kernel-core.x86&#95;64 (31.0 MB), vim.x86&#95;64 (2.0 MB), /usr/share/a.img (1.0 MB)."
        ) in _comment(limit=20_000_000)

    def test_says_that_nothing_is_to_download(self) -> None:
        text = _comment(update(VERSIONS[2], VERSIONS[2]))
        assert "Merging this costs your users **nothing**: they have all layers." in text
        assert "| Component |" not in text

    def test_says_that_an_image_is_fresh(self) -> None:
        text = _comment(update(None, VERSIONS[2]))
        assert "Merging this makes a fresh image: your users download all of it, **254.0 MB**." in text

    def test_fits(self) -> None:
        text = comment(_large().update, repository=NAME, limit=1, history=None)
        assert len(text) <= len(text.encode()) <= MAX_COMMENT
        assert "_Left out, as there is no room for it here: packages, layers._" in text

    @given(awkward)
    def test_is_marked_by_one_line_that_nobody_sees(self, repository: str) -> None:
        found = marker(repository.encode(errors="replace").decode())
        [token] = PARSER.parse(found)
        assert token.type == "html_block"
        assert re.fullmatch(r"<!-- rechunk-action: [^<>\s]* -->", found)

    def test_ends_with_what_it_is_about(self) -> None:
        text = _comment()
        assert "| 43.20261101 | 2 | 34.0 MB |" in text
        assert (
            "<details><summary>Layers: 2 kept, 1 new</summary>\n\n|  | Layer | Size |\n| --- | --- | --: |\n"
            "| new | kernel, vim | 34.0 MB |\n| removed | python3 | 6.5 MB |\n\n</details>"
        ) in text
        assert text.endswith(
            "<sub>ghcr.io/me/image: an image of 254.0 MB in 3 layers, as an update of 43.20261102</sub>\n\n"
        )
        named = comment(UPDATE, repository="<b>`x`", limit=None, history=None)
        assert "<sub>&lt;b&gt;&#96;x&#96;: an image" in named

    def test_is_marked_for_one_repository(self) -> None:
        names = ["ghcr.io/a/b", "ghcr.io/a/b-", "ghcr.io/a/b -->", "ghcr.io/a/b%20", "ghcr.io/a/b "]
        assert len({marker(name) for name in names}) == len(names)


def _comment(step: Update = UPDATE, limit: int | None = None) -> str:
    return comment(step, repository=NAME, limit=limit, history=HISTORY).replace("\N{NO-BREAK SPACE}", " ")


def _large() -> Build:
    """A build with more of everything than fits anywhere."""
    names = [f"rpm:{number} {'$' * 400}" for number in range(2000)]
    held = [
        LayerFacts(digest=digest(number), bytes=1, name=name, components={name: 1}) for number, name in enumerate(names)
    ]
    new = Facts(ref="i:2", digest=digest(5000), layers=held, packages=dict.fromkeys(names, HOSTILE))
    return replace(BUILD, update=update(Facts(ref="i:1", digest=digest(5001), packages={}), new))
