"""The example of a whole workflow, run twice on this machine as GitHub would: a first build, and an update of it.

What the action tells is shown as GitHub shows it, as the page of the job; OUT/summary.md and OUT/changelog.md have it
as Markdown. The image is a small Debian with an application of 20 MB, of which the update changes one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from bench.series import SeriesError, require_root
from bench.workflows import Done, Site
from rechunk_action.report.size import format_size
from tests.containers import action_image, base
from tests.oracles import Missing, program

EXAMPLE = "bazzite-dkub.yml"

CONSOLE = Console(highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.demo_action", description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="directory for what the action tells")
    out: Path = parser.parse_args().out
    try:
        require_root()
        _require_docker()
        run(out)
    except (SeriesError, Missing) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {error}: {error.stderr or ''}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(out: Path) -> None:
    """Run the workflow twice, and show what it tells."""
    _heading("Make a base image, and the action's container (once: a minute or two)")
    image = action_image()
    # podman wants short paths, on a disk.
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/var/tmp") as directory:
        place = Path(directory)
        with Site(place / "site", _archive(place), {"RECHUNK_ACTION_IMAGE": image}) as site:
            application = site.files / "usr/lib/application"
            application.mkdir(parents=True)
            for part in range(20):
                (application / f"part{part}").write_bytes(os.urandom(1_000_000))
            _show(_run(site, "The first build"))
            (application / "part0").write_bytes(os.urandom(1_000_000))
            update = _run(site, "The next build, in which one file is another")
            _show(update)
            out.mkdir(exist_ok=True)
            for name in ("summary.md", "changelog.md", "manifest.json"):
                shutil.copy(site.told / name, out)
    CONSOLE.print(f"\nWhat the job's page shows is in {out}/summary.md, what users may read in {out}/changelog.md.")


def overhead(done: Done) -> float:
    """Seconds that the action took beside its report's phases: to find the image, start the container, clean up."""
    steps = re.findall(r"Success - Main (?:Rechunk|Clean up) \[(?:(\d+)m)?([\d.]+)(ms|s)\]", done.log)
    phases = re.findall(r"(?m)^\| \w+ \| ([\d.]+) s \|$", done.summary)
    taken = sum(int(minutes or 0) * 60 + float(rest) / (1000 if unit == "ms" else 1) for minutes, rest, unit in steps)
    return taken - sum(map(float, phases))


def _require_docker() -> None:
    docker = program("docker", "docker.io")
    if subprocess.run([docker, "version"], check=False, capture_output=True).returncode != 0:
        raise Missing("no docker daemon answers: start it (systemctl start docker), and run this again")


def _archive(place: Path) -> Path:
    """The base image's root file system as an archive."""
    container = subprocess.run(["docker", "create", base(), "true"], check=True, text=True, stdout=subprocess.PIPE)
    name = container.stdout.strip()
    archive = place / "base.tar"
    subprocess.run(["docker", "export", "--output", archive, name], check=True)
    subprocess.run(["docker", "rm", name], check=True, stdout=subprocess.DEVNULL)
    return archive


def _run(site: Site, title: str) -> Done:
    _heading(f"{title}: act runs examples/{EXAMPLE}")
    started = time.monotonic()
    done = site.run(EXAMPLE)
    if done.status != 0:
        sys.exit(f"{done.log}\nerror: the workflow failed; its log is above")
    for line in done.log.splitlines():
        if step := re.search(r"(?:Success|Failure) - Main (.*)", line):
            print(f"  {step[1]}")
    print(f"  in all {time.monotonic() - started:.1f} s; the action's phases, and {overhead(done):.1f} s around them")
    return done


def _show(done: Done) -> None:
    text = re.sub(r"&#(\d+);", lambda match: chr(int(match[1])), done.summary)
    CONSOLE.print(Markdown(re.sub(r"<details><summary>(.*?)</summary>", r"### \1", text).replace("</details>", "")))
    size = format_size(int(done.outputs["update-size"]))
    CONSOLE.print(f"[bold]Users download {size} for {done.outputs['version']}.[/bold]")


def _heading(text: str) -> None:
    CONSOLE.print(f"\n[bold]{text}[/bold]", soft_wrap=True)


if __name__ == "__main__":
    main()
