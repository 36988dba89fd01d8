"""The page of an image's versions: what it says, and what a browser makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from playwright.sync_api import Browser

from rechunk_action.report import model
from rechunk_action.report.charts import scale, treemap
from rechunk_action.report.model import Facts, History, LayerFacts, history
from rechunk_action.report.page import MOST, page
from tests.browser import Theme, chromium, shown
from tests.reports import BUILD, ESTIMATES, HISTORY, HOSTILE, NAME, VERSIONS, digest, hostile

THEMES: tuple[Theme, ...] = ("light", "dark")


def many(versions: int, layers: int = 100, components: int = 100) -> History:
    """A history of which every version changes one layer, the last one by many packages."""
    held = [LayerFacts(digest=digest(number), bytes=1_000_000 + number, name=f"l{number}") for number in range(layers)]
    found = []
    for number in range(versions):
        last = number == versions - 1
        packages = {f"rpm:package-{part}.x86_64": 1 + number if last else 1 for part in range(components)}
        held[number % layers] = LayerFacts(
            digest=digest(10_000 + number),
            bytes=sum(packages.values()),
            components=packages,
            dead=number if number % 2 else None,
        )
        found.append(
            Facts(
                ref=f"{NAME}:{number}",
                digest=digest(20_000 + number),
                version=f"stable-43.2026{number:04d}.1",
                layers=tuple(held),
                packages=dict.fromkeys(packages, f"{number if last else 0}-1"),
            )
        )
    return history(NAME, found)


PAGES: dict[str, Callable[[], str]] = {
    "no version before": lambda: page(history(NAME, VERSIONS[:1])),
    "one update": lambda: page(history(NAME, VERSIONS[:2])),
    "updates with estimates": lambda: page(HISTORY),
    "a build": lambda: page(HISTORY, BUILD),
    "eight": lambda: page(many(8)),
    "a hundred": lambda: page(many(100)),
    "long": lambda: page(many(400, layers=10)),
    "large": lambda: page(many(2, layers=400, components=3000)),
    "hostile": lambda: page(model.past(hostile()), hostile()),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The files of the pages by name, each made once."""
    directory = tmp_path_factory.mktemp("pages")

    def made(name: str) -> Path:
        found = directory / f"{name}.html"
        if not found.exists():
            found.write_text(PAGES[name](), encoding="utf-8")
        return found

    return made


# What it says.


def test_the_page_begins_with_what_an_update_costs() -> None:
    assert headline(page(history(NAME, VERSIONS[:2]))) == "An update costs 6.5 MB instead of 226.5 MB"


def test_the_page_of_several_updates_begins_with_their_sum() -> None:
    assert headline(page(HISTORY)) == "2 updates cost 40.5 MB instead of 480.5 MB"


def test_the_page_of_a_build_begins_with_the_update_that_was_built() -> None:
    assert headline(page(HISTORY, BUILD)) == "An update costs 34.0 MB instead of 254.0 MB"


def test_the_page_of_a_first_version_begins_with_its_installation() -> None:
    assert headline(page(history(NAME, VERSIONS[:1]))) == "A new installation costs 220.0 MB"


def test_an_update_that_is_nearly_the_whole_image_is_not_praised() -> None:
    other = replace(VERSIONS[1], layers=[replace(layer, digest=digest(77)) for layer in VERSIONS[1].layers[:1]])
    assert headline(page(history(NAME, [VERSIONS[0], other]))) == "An update costs 120.0 MB of 120.0 MB"


def test_a_build_that_was_a_trial_says_so() -> None:
    assert "nothing was published" in text_of(page(HISTORY, replace(BUILD, published=False)))
    assert "nothing was published" not in text_of(page(HISTORY, BUILD))


def test_a_fresh_build_says_why() -> None:
    fresh = replace(BUILD, fresh=True, reason="requested", prev_ref=None)
    assert "The image was laid out anew: requested." in text_of(page(HISTORY, fresh))


def test_superseded_bytes_of_a_build_are_held_against_what_is_allowed() -> None:
    assert "90.8% 120.9 MB; 5% are allowed" in text_of(page(HISTORY, BUILD))


def test_versions_of_packages_are_told() -> None:
    text = text_of(page(HISTORY))
    assert "6.16.1-200 → 6.16.1-200, 6.16.2-200" in text
    assert "vim.x86_64 added 9.1-1" in text
    assert "nano.x86_64 8.1-1 removed" in text


def test_what_is_not_known_is_not_there() -> None:
    bare = [
        replace(facts, packages=None, layers=[LayerFacts(digest=layer.digest, bytes=9) for layer in facts.layers])
        for facts in VERSIONS
    ]
    text = text_of(page(history(NAME, bare)))
    assert "Which packages changed is not known" in text
    assert "How much of them is superseded is not known" in text
    assert "None" not in text
    assert not re.search(r"delta layering|changed files|\b0 bytes", text, re.IGNORECASE)


def test_an_estimate_that_only_some_updates_have_is_not_known_of_the_others_and_in_sum() -> None:
    some = {facts.digest: model.Estimate(changed=7, delta=5, delta_image=9) for facts in VERSIONS[1:2]}
    text = text_of(page(history(NAME, VERSIONS, estimates=some)))
    assert "34.0 MB not known not known" in text
    assert "6.5 MB 7 bytes 5 bytes" in text
    assert "with delta layering, an estimate 5 bytes" not in text


def test_there_is_no_estimate_of_delta_layering_where_that_is_what_was_done() -> None:
    ours = [replace(facts, engine="delta") for facts in VERSIONS]
    found = page(history(NAME, ours, estimates=ESTIMATES))
    text = text_of(found)
    assert "changed files 47.0 MB" in text
    assert "34.0 MB 40.0 MB 254.0 MB" in text
    assert not re.search("delta.layering", text, re.IGNORECASE)
    assert found.count('class="delta') == 0


def test_an_image_of_no_bytes_has_a_page() -> None:
    nothing = [replace(facts, layers=[]) for facts in VERSIONS]
    assert headline(page(history(NAME, nothing))) == "2 updates cost 0 bytes of 0 bytes"


def test_long_tables_end_somewhere_and_say_so() -> None:
    found = page(many(2, layers=400, components=3000))
    assert found.count("<tr>") < 3 * MOST
    assert "2,985 more components" in text_of(found)
    assert "2,000 more are not listed." in text_of(found)


def test_the_same_model_gives_the_same_bytes_in_every_process() -> None:
    code = "from tests.reports import *; from rechunk_action.report.page import page; print(page(HISTORY, BUILD))"
    made = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert made[0] == made[1] == (page(HISTORY, BUILD) + "\n").encode()


# Text stays text.


def test_a_hostile_name_is_shown_as_text_wherever_it_stands() -> None:
    """The document has the elements and attributes of one with harmless names, but for those of a date."""
    found = page(model.past(hostile()), hostile())
    assert elements(found) <= elements(page(HISTORY, BUILD))
    assert "<script>alert(1)</script>" in text_of(found)
    assert "{{7*7}}" in text_of(found)
    assert "\\u202eback" in text_of(found)
    assert not set(HOSTILE) & set("\u202e\u200b\x1b") & set(found)


@given(st.text(st.characters(codec=None), min_size=1))
@settings(max_examples=25, deadline=None)
def test_any_text_gives_a_page_that_is_well_formed_and_can_be_written(text: str) -> None:
    facts = [
        Facts(
            ref=text,
            digest=digest(number),
            version=text,
            created=text,
            layers=[LayerFacts(digest=digest(100 + number), bytes=9, name=text, components={text: 9})],
            packages={text: f"{text}{number}"},
        )
        for number in (1, 2)
    ]
    found = page(history(text, facts, scheme=text), replace(BUILD, ref=text, reason=text, seconds={text: 1.0}))
    found.encode()
    assert elements(found) <= elements(page(HISTORY, BUILD))


def test_every_figure_has_words_and_every_heading_of_a_table_a_scope() -> None:
    root = parsed(page(HISTORY, BUILD))
    figures = [element for element in root.iter() if element.get("role") == "img"]
    assert len(figures) == 5
    assert all(element.get("aria-label") for element in figures)
    assert all(element.get("scope") for element in root.iter(f"{XHTML}th"))
    drawn = [element for element in root.iter(f"{XHTML}svg") if element not in figures]
    assert all(element.get("aria-hidden") == "true" for element in drawn)


# Charts.


@given(st.integers(min_value=0, max_value=10**15))
def test_a_scale_is_round_and_has_room_for_the_largest_value(most: int) -> None:
    values = scale(most)
    assert values[0] == 0
    assert most <= values[-1] <= max(4, 2.5 * most)
    assert 2 <= len(values) <= 6
    assert len({after - before for before, after in pairwise(values)}) == 1
    assert re.fullmatch("(1|2|25|5)0*|[1-9]", str(values[1]))


@given(
    st.lists(st.lists(st.integers(min_value=1, max_value=10**12), min_size=1, max_size=30), min_size=1, max_size=4),
    st.floats(min_value=0.5, max_value=4),
)
def test_a_treemap_gives_each_size_its_share_of_the_chart(groups: list[list[int]], aspect: float) -> None:
    whole = sum(map(sum, groups))
    for group, boxes in zip(groups, treemap(groups, aspect=aspect), strict=True):
        for size, box in zip(group, boxes, strict=True):
            assert box.width * box.height / 10_000 == pytest.approx(size / whole, rel=1e-3, abs=1e-6)
            assert min(box.left, box.top) >= 0
            assert max(box.left + box.width, box.top + box.height) <= 100 + 1e-6


@given(st.lists(st.integers(min_value=1, max_value=10**6), min_size=2, max_size=20))
def test_boxes_of_a_treemap_do_not_cover_each_other(sizes: list[int]) -> None:
    (boxes,) = treemap([sorted(sizes, reverse=True)], aspect=2)
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            beside = one.left + one.width <= other.left + 1e-6 or other.left + other.width <= one.left + 1e-6
            below = one.top + one.height <= other.top + 1e-6 or other.top + other.height <= one.top + 1e-6
            assert beside or below


def test_equal_sizes_become_squares() -> None:
    (boxes,) = treemap([[1] * 16], aspect=1)
    assert all(box.width == pytest.approx(25) and box.height == pytest.approx(25) for box in boxes)


# In a browser.


@pytest.mark.oracle
@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_the_page_without_fault_at_any_width(
    name: str, browser: Browser, file: Callable[[str], Path]
) -> None:
    with shown(browser, file(name)) as seen:
        assert seen.page.get_by_role("heading", level=1).is_visible()
        seen.page.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)")
        for width in (320, 390, 800, 1200):
            seen.page.set_viewport_size({"width": width, "height": 900})
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.faults == []


@pytest.mark.oracle
def test_the_page_is_light_or_dark_as_people_have_it(browser: Browser, file: Callable[[str], Path]) -> None:
    def brightness(theme: Theme) -> int:
        with shown(browser, file("a build"), theme=theme) as seen:
            paper = str(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            return sum(map(int, re.findall(r"\d+", paper)))

    assert brightness("light") > 700
    assert brightness("dark") < 100


@pytest.mark.oracle
@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_told_from_what_is_behind_it(theme: Theme, browser: Browser, file: Callable[[str], Path]) -> None:
    """Contrast by WCAG 2, AA: 4.5 to 1, 3 to 1 for large text."""
    with shown(browser, file("a build"), theme=theme) as seen:
        assert seen.page.evaluate(CONTRAST) == []


@pytest.mark.oracle
def test_the_page_is_whole_without_scripts(browser: Browser, file: Callable[[str], Path]) -> None:
    with shown(browser, file("a build"), scripts=False) as seen:
        assert "instead of" in seen.page.inner_text("h1")
        row = seen.page.get_by_role("row", name="vim.x86_64").first
        assert row.is_visible()
        folded = seen.page.get_by_role("region", name="Layers").get_by_role("row").nth(1)
        assert not folded.is_visible()
        seen.page.locator("summary", has_text="3 layers").click()
        assert folded.is_visible()


@pytest.mark.oracle
def test_hostile_names_are_read_as_they_are(browser: Browser, file: Callable[[str], Path]) -> None:
    with shown(browser, file("hostile")) as seen:
        assert "<script>alert(1)</script> | `x`" in seen.page.inner_text("main")
        assert seen.page.evaluate("document.scripts.length") == 0
        assert seen.faults == []


@pytest.mark.oracle
def test_the_page_forbids_what_it_does_not_have(browser: Browser, tmp_path: Path) -> None:
    """Should a name ever get through as markup, the browser still runs and fetches nothing."""
    found = tmp_path / "page.html"
    bad = "<script>alert(1)</script><img src='http://127.0.0.1:9/' onerror='alert(2)'/>"
    found.write_text(page(HISTORY).replace("<footer>", f"{bad}<footer>"))
    with shown(browser, found) as seen:
        refused = [fault for fault in seen.faults if "Content Security Policy" in fault]
        assert any("script" in fault for fault in refused)
        assert any("127.0.0.1" in fault for fault in refused)
        assert not [fault for fault in seen.faults if fault.startswith(("dialog", "error"))]


@pytest.mark.oracle
def test_what_is_folded_is_printed(browser: Browser, file: Callable[[str], Path]) -> None:
    with shown(browser, file("a build")) as seen:
        seen.page.emulate_media(media="print")
        assert seen.page.get_by_role("region", name="Layers").get_by_role("row").nth(1).is_visible()


XHTML = "{http://www.w3.org/1999/xhtml}"

CONTRAST = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    return .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("svg, style")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(style.color)), light(behind(element))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24;
    const ratio = (a + .05) / (b + .05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${walker.currentNode.data.trim()}: ${ratio}`);
  }
  return found;
}"""


def parsed(document: str) -> ElementTree.Element:
    """Raises `ParseError` when a document is not well-formed."""
    return ElementTree.fromstring(document)  # noqa: S314  # our own


def elements(document: str) -> set[tuple[str, str]]:
    """The kinds of elements in a document, with each of their attributes."""
    return {(element.tag, attribute) for element in parsed(document).iter() for attribute in ("", *element.attrib)}


def text_of(document: str, element: str = "body") -> str:
    """The text in an element, in one line, with spaces between what is apart."""
    found = parsed(document).find(f".//{XHTML}{element}")
    assert found is not None
    return " ".join(" ".join(found.itertext()).split())


def headline(document: str) -> str:
    return text_of(document, "h1")
