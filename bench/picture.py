"""Pictures of a report, as the README shows them: the top of the page of a real series, in light and in dark.

`make bench` leaves such a series behind, nine versions of a Debian server. The command line makes the page, as it does
everywhere, and Chromium takes the pictures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser

from tests.browser import Theme, chromium, shown
from tests.oracles import Missing

WIDTH = 1200
"""Pixels; a README is shown in about 830."""

LARGEST = 300_000
"""Bytes that a picture may cost those who read the README."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.picture", description=__doc__.partition("\n")[0])
    parser.add_argument("image", type=Path, help="OCI layout with the versions of a series")
    parser.add_argument("out", type=Path, help="directory for report-light.png and report-dark.png")
    options = parser.parse_args()
    if not (options.image / "index.json").exists():
        sys.exit(f"error: {options.image} holds no image: run `make bench` first")
    try:
        run(options.image, options.out)
    except Missing as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command has said why


def run(image: Path, out: Path) -> None:
    """Make the page and take its pictures."""
    program = Path(sys.executable).with_name("rechunk-action")
    with tempfile.TemporaryDirectory() as directory, chromium() as browser:
        page = Path(directory, "report.html")
        subprocess.run([program, "history", f"oci:{image}", "--last", "1000", "--html", page], check=True)
        for theme in ("light", "dark"):
            picture = out / f"report-{theme}.png"
            size = _take(browser, page, theme, picture)
            print(f"{picture}: {size / 1000:.0f} kB")
            if size > LARGEST:
                sys.exit(f"error: {picture} is larger than {LARGEST / 1000:.0f} kB")


def _take(browser: Browser, page: Path, theme: Theme, picture: Path) -> int:
    """A picture of all down to the end of the charts; returns its bytes."""
    with shown(browser, page, width=WIDTH, theme=theme) as seen:
        end = seen.page.locator("section").first.bounding_box()
        if end is None:
            raise Missing(f"{page} has no charts: the image needs three versions at least")
        height = end["y"] + end["height"] + 40
        taken = seen.page.screenshot(
            path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height}
        )
    return len(taken)


if __name__ == "__main__":
    main()
