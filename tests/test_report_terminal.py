"""What the command prints of reports: the same lines into a pipe and onto a terminal, and nothing that a name says."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from rechunk_action.report.model import Facts, LayerFacts, history, update
from rechunk_action.report.terminal import show_build, show_history, show_update
from rechunk_action.report.words import shown
from tests.reports import BUILD, ESTIMATES, HISTORY, HOSTILE, NAME, UPDATE, VERSIONS, digest, hostile

NBSP = "\N{NO-BREAK SPACE}"
SGR = re.compile(r"\x1b\[[\d;]*m")


def printed(show: Callable[[Console], None], *, terminal: bool = False, width: int = 80) -> str:
    """What a view prints, with spaces for no-break ones."""
    file = io.StringIO()
    colours: Literal["auto", "truecolor"] = "truecolor" if terminal else "auto"
    show(Console(file=file, force_terminal=terminal, color_system=colours, width=width))
    return file.getvalue().replace(NBSP, " ")


class TestABuild:
    def test_is_told(self) -> None:
        assert printed(lambda out: show_build(BUILD, out)) == (
            f"ghcr.io/me/image:43.20261103 is ready: {digest(1003)}\n"
            "breaks 1 rule for images that boot: see the notices\n"
            "update: 34.0 MB in 1 new layer; 2 layers kept\n"
            "image:  254.0 MB in 3 layers; 90.8% superseded\n"
            "\n"
            "What the new layers hold:\n"
            "   31.0 MB  kernel-core.x86_64  6.16.1-200 → 6.16.1-200, 6.16.2-200\n"
            "    2.0 MB  vim.x86_64  9.1-1\n"
            "    1.0 MB  /usr/share/a.img\n"
            "\n"
            "Who comes from an older version downloads:\n"
            "   34.0 MB  43.20261101\n"
        )

    def test_that_is_fresh_says_why(self) -> None:
        step = update(None, VERSIONS[2])
        fresh = replace(BUILD, fresh=True, reason="first build", published=False, findings=[], update=step)
        assert printed(lambda out: show_build(fresh, out)) == (
            f"ghcr.io/me/image:43.20261103 would be: {digest(1003)}\nfresh layout (first build): 3 layers, 254.0 MB\n"
        )

    def test_that_costs_nothing_holds_nothing(self) -> None:
        same = replace(BUILD, findings=[], update=update(VERSIONS[2], VERSIONS[2]), history=None)
        assert printed(lambda out: show_build(same, out)).count("\n") == 3

    def test_lists_the_largest(self) -> None:
        names = {f"c{number}": 10 + number for number in range(9)}
        new = Facts(ref="i", digest="", layers=[LayerFacts(digest=digest(9), bytes=126, components=names)])
        lines = printed(lambda out: show_build(replace(BUILD, update=update(VERSIONS[0], new)), out)).splitlines()
        assert lines[6:12] == [
            *(f"  {size} bytes  c{size - 10}" for size in (18, 17, 16, 15, 14)),
            "  46 bytes  4 more components",
        ]


class TestAnUpdate:
    def test_is_told_in_the_words_of_clients(self) -> None:
        file = io.StringIO()
        show_update(UPDATE, Console(file=file), most=10)
        assert file.getvalue().splitlines()[:3] == [
            f"Total new layers: 3     Size: 254.0{NBSP}MB",
            f"Removed layers:   1     Size: 6.5{NBSP}MB",
            f"Added layers:     1     Size: 34.0{NBSP}MB",
        ]

    def test_is_explained(self) -> None:
        assert printed(lambda out: show_update(UPDATE, out, most=2)).splitlines()[3:] == [
            "",
            "What the added layers hold:",
            "   31.0 MB  kernel-core.x86_64  6.16.1-200 → 6.16.1-200, 6.16.2-200",
            "    2.0 MB  vim.x86_64  9.1-1",
            "    1.0 MB  1 more component",
            "",
            "Packages: 1 changed, 1 added, 1 removed",
        ]

    def test_says_nothing_of_packages_that_are_not_known(self) -> None:
        assert "Packages" not in printed(lambda out: show_update(replace(UPDATE, packages=None), out, most=2))
        assert "Packages: none changed" in printed(lambda out: show_update(replace(UPDATE, packages=[]), out, most=2))


class TestAHistory:
    def test_is_a_table_and_its_sums(self) -> None:
        assert printed(lambda out: show_history(HISTORY, out)) == (
            "ghcr.io/me/image: 3 versions like {version_id}.{date:%Y%m%d}\n"
            "\n"
            "Version            Made     Image  Layers  Kept   Update  Changed    Delta  Largest\n"
            "43.20261101  2026-11-01  220.0 MB       2     0        -        -        -  kernel-core.x86_64\n"
            "43.20261102  2026-11-02  226.5 MB       3     2   6.5 MB   7.0 MB   6.6 MB  python3.x86_64\n"
            "43.20261103  2026-11-03  254.0 MB       3     2  34.0 MB  40.0 MB  35.0 MB  kernel-core.x86_64\n"
            "\n"
            "All updates together:\n"
            "   40.5 MB  2 updates\n"
            "  480.5 MB  as whole images\n"
            "   47.0 MB  the changed files\n"
            "   41.6 MB  with delta layering, as estimated\n"
            "\n"
            "What the last update holds:\n"
            "   31.0 MB  kernel-core.x86_64  6.16.1-200 → 6.16.1-200, 6.16.2-200\n"
            "    2.0 MB  vim.x86_64  9.1-1\n"
            "    1.0 MB  /usr/share/a.img\n"
            "\n"
            "Who comes from an older version downloads:\n"
            "   34.0 MB  43.20261101\n"
        )

    def test_has_no_estimate_of_delta_layering_where_that_is_what_was_done(self) -> None:
        ours = [replace(version, engine="delta") for version in VERSIONS]
        text = printed(lambda out: show_history(history(NAME, ours, estimates=ESTIMATES), out))
        assert "Update  Changed  Largest\n" in text
        assert "   47.0 MB  the changed files\n" in text
        assert not re.search("Delta|delta", text)

    def test_has_no_columns_for_what_is_not_known(self) -> None:
        text = printed(lambda out: show_history(history(NAME, VERSIONS), out))
        assert "Update  Largest\n" in text
        assert not re.search("Changed|Delta|delta|changed", text)

    def test_of_one_version_has_no_sums(self) -> None:
        text = printed(lambda out: show_history(history(NAME, VERSIONS[:1]), out))
        assert text.startswith("ghcr.io/me/image: 1 version\n")
        assert not re.search("together|older", text)

    def test_is_aligned_by_what_names_take_of_a_line(self) -> None:
        images = [Facts(ref="", digest=digest(number), version=name) for number, name in enumerate(["漢字", "abcdefg"])]
        text = printed(lambda out: show_history(history(NAME, images), out)).splitlines()
        assert text[3].startswith("漢字     ")
        assert text[4].startswith("abcdefg  ")


@pytest.fixture(params=["build", "update", "history"])
def view(request: pytest.FixtureRequest) -> Callable[[Console], None]:
    build = hostile()
    assert build.history
    past = build.history
    views: dict[str, Callable[[Console], None]] = {
        "build": lambda out: show_build(build, out),
        "update": lambda out: show_update(build.update, out, most=10),
        "history": lambda out: show_history(past, out),
    }
    return views[request.param]


class TestEveryView:
    def test_shows_names_as_text(self, view: Callable[[Console], None]) -> None:
        text = printed(view)
        assert shown(HOSTILE) in text
        assert all(line.isprintable() for line in text.splitlines())
        assert not re.search(r"^\s*::", text, re.MULTILINE)

    def test_takes_none_for_styles_or_pictures(self) -> None:
        name = "[bold red]a[/] [link=x]b[/link] :tada: [/]"
        step = update(None, Facts(ref="i", digest="", layers=[LayerFacts(digest=digest(1), bytes=1, name=name)]))
        assert f"  {name}\n" in printed(lambda out: show_update(step, out, most=1))

    def test_is_the_same_on_a_terminal_of_any_width(self, view: Callable[[Console], None]) -> None:
        plain = printed(view)
        coloured = printed(view, terminal=True, width=20)
        assert "\x1b[1m" in coloured or "\x1b[2m" in coloured
        assert SGR.sub("", coloured) == plain == printed(view, width=20)


@given(st.text())
def test_any_name_is_one_line(name: str) -> None:
    step = update(None, Facts(ref=name, digest=name, version=name, layers=[LayerFacts(digest=name, bytes=1)]))
    text = printed(lambda out: show_history(history(name, [Facts(ref=name, digest=name, version=name)]), out))
    assert len(text.splitlines()) == 4
    assert len(printed(lambda out: show_update(step, out, most=1)).splitlines()) == 6


def test_rich_is_loaded_only_where_something_is_shown() -> None:
    check = "import sys, rechunk_action.cli; sys.exit('rich' in sys.modules or 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
