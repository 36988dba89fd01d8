"""Chromium, in which a page is looked at as people see it.

It has no network, and whatever a page does beside being shown is a fault: a request, a word on the console, a dialog.
A machine without Chromium raises `Missing`, which says what to install.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from tests.oracles import Missing, program

Theme = Literal["light", "dark"]


@dataclass
class Shown:
    """A page that is shown, and what it did beside that."""

    page: Page
    faults: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The distribution's browser; Playwright brings none that is pinned."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_program())
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def shown(
    browser: Browser, file: Path, *, width: int = 1200, theme: Theme = "light", scripts: bool = True
) -> Iterator[Shown]:
    """A file in a window of that width, in CSS pixels. `scripts` is whether the browser would run any."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, java_script_enabled=scripts, offline=True
    )
    try:
        seen = Shown(context.new_page())
        address = file.absolute().as_uri()

        def dismiss(dialog: Dialog) -> None:
            seen.faults.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        seen.page.on("console", lambda message: seen.faults.append(f"console: {message.text}"))
        seen.page.on("pageerror", lambda error: seen.faults.append(f"error: {error}"))
        seen.page.on("dialog", dismiss)
        seen.page.on(
            "request",
            lambda request: None if request.url == address else seen.faults.append(f"request: {request.url}"),
        )
        seen.page.goto(address)
        yield seen
    finally:
        context.close()


def _program() -> str:
    try:
        return program("chromium", "chromium")
    except Missing:
        return program("google-chrome", "chromium")
