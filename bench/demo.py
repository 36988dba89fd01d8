"""What a client downloads for a real update, by different ways to publish it.

Builds a series of root trees in OUT/series (kept there and used again), publishes each version with rechunk-action
into OUT/image as a publisher would, and sets the bytes of every update beside those of a stateless package packing
(into as many layers as the image has, and into as many as it might have), of the changed-file limit and of the whole
image. OUT/results.json has the numbers, OUT/report.html is the page of all versions.

By default there is one update: the first weeks of security and point updates after the release, joined until they
bring 8 MB of packages. A single week is often one small library; 8 MB is a typical delivery, several packages and no
kernel as a rule. Which weeks these are depends on the distribution's archive alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.limit import limit
from bench.series import SeriesError, build, failures_told, require_root
from bench.stateless import Layer, stateless, update_bytes

MAX_LAYERS = 120
"""Layers that either side may use; rechunk-action's default."""

CONSOLE = Console(highlight=False)


@dataclass(frozen=True)
class Result:
    """One update: bytes to download by each way, and how rechunk-action got there."""

    version: int
    sources: list[str]
    layers: int
    image: int
    rechunked: int
    stateless: int
    stateless_most: int
    limit: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("out", help="directory for trees, images and results; trees in it are used again")
    parser.add_argument("--weeks", type=int, default=1, help="number of updates (default: 1)")
    parser.add_argument("--at-least", type=float, default=8, metavar="MB", help="packages in an update (default: 8)")
    options = parser.parse_args()
    require_root()
    with failures_told():
        run(options.out.rstrip("/"), options.weeks, int(options.at_least * 1e6))


def run(out: str, weeks: int, at_least: int) -> None:
    """Build or find the trees, publish and measure each version, and show the sums."""
    updates = _series(f"{out}/series", weeks, at_least)
    trees = [f"{out}/series/v{number}" for number in range(len(updates) + 1)]
    image = f"oci:{out}/image"
    shutil.rmtree(f"{out}/image", ignore_errors=True)

    _heading("Publish the first version")
    first, _ = _build(trees[0], f"{image}:v0")
    print(f"{first['layers']['total']} layers, {_mb(first['bytes']['image'])}")

    results: list[Result] = []
    for number, (update, old, new) in enumerate(zip(updates, trees, trees[1:], strict=False), 1):
        _heading(f"Publish the update to version {number}: {', '.join(update['sources'])}")
        report, seconds = _build(new, f"{image}:v{number}", "--prev-ref", f"{image}:v{number - 1}")
        layers = report["layers"]
        print(f"{layers['kept']} layers kept, {layers['new']} new, {_mb(report['bytes']['update'])}, {seconds:.1f} s")
        _call("verify", f"{image}:v{number}", f"dir:{new}")
        if len(updates) == 1:
            _call("compare", f"{image}:v0", f"{image}:v1")

        _heading("The same update by a stateless package packing, and the changed files alone")
        cost, most = (update_bytes(_packed(old, n), _packed(new, n)) for n in (layers["total"], MAX_LAYERS))
        floor = limit(old, new).compressed
        print(f"{_mb(cost)} in {layers['total']} layers, {_mb(most)} in {MAX_LAYERS}; the changed files: {_mb(floor)}")
        results.append(
            Result(
                version=number,
                sources=update["sources"],
                layers=layers["total"],
                image=report["bytes"]["image"],
                rechunked=report["bytes"]["update"],
                stateless=cost,
                stateless_most=most,
                limit=floor,
                seconds=seconds,
            )
        )
        with open(f"{out}/results.json", "w", encoding="utf-8") as file:
            json.dump([asdict(result) for result in results], file, indent=1)
    _show(results)

    _heading("What users have been downloading, and by what")
    _call("history", image, "--last", str(len(trees)), "--html", f"{out}/report.html")
    print(f"\n{out}/report.html shows it: open it in a browser.")


def _series(out: str, weeks: int, at_least: int) -> list[dict[str, Any]]:
    """The updates of the series in `out`, which is built unless it is complete."""
    listing = f"{out}/series.json"
    if not os.path.exists(listing):
        _heading("Build real root trees with apt: a release, then its updates (a few minutes, about 1 GB for each)")
        shutil.rmtree(out, ignore_errors=True)
        try:
            build(out, weeks=weeks, at_least=at_least)
        except SeriesError as error:
            if not os.path.exists(f"{out}/v1"):
                raise
            print(f"{error}\nGoing on with the versions before it.", file=sys.stderr)
    else:
        _heading(f"The trees in {out} are complete and used again")
    with open(listing, encoding="utf-8") as file:
        updates: list[dict[str, Any]] = json.load(file)
    if not updates:
        raise SeriesError(f"{out} holds no update: remove the directory and run this again")
    return updates


def _build(tree: str, ref: str, *options: str) -> tuple[dict[str, Any], float]:
    """Run `rechunk-action build`: its report and the seconds it took."""
    started = time.perf_counter()
    output = _call("build", f"dir:{tree}", ref, *options, "--json")
    return json.loads(output), time.perf_counter() - started


def _call(*arguments: str) -> str:
    """Run rechunk-action and show the command as one would type it; returns the output of `--json`, shows any other."""
    print("$ rechunk-action", shlex.join(arguments), flush=True)
    command = [f"{os.path.dirname(sys.executable)}/rechunk-action", *arguments]
    wanted = subprocess.PIPE if "--json" in arguments else None
    return subprocess.run(command, stdout=wanted, text=True, check=True).stdout or ""


@cache
def _packed(tree: str, layers: int) -> list[Layer]:
    print(f"$ python -m bench.stateless {tree} --layers {layers}", flush=True)
    return stateless(tree, layers)


def _show(results: list[Result]) -> None:
    """The sums as a table."""
    floor = sum(result.limit for result in results)
    image = sum(result.image for result in results)
    rows = [
        ("whole image", image),
        ("stateless, as many layers", sum(result.stateless for result in results)),
        (f"stateless, {MAX_LAYERS} layers", sum(result.stateless_most for result in results)),
        ("rechunk-action", sum(result.rechunked for result in results)),
        ("changed-file limit", floor),
    ]
    table = Table("layers by", title=f"Download for {len(results)} update{'s' if len(results) > 1 else ''}")
    for heading in ("download", "of the image", "x limit"):
        table.add_column(heading, justify="right")
    for name, size in rows:
        times = f"{size / floor:.2f}" if floor else "-"
        table.add_row(name, _mb(size), f"{size / image:.1%}", times, style="bold" if name == "rechunk-action" else "")
    print()
    CONSOLE.print(table)
    if len(results) > 1:
        ratio = median(result.rechunked / result.stateless for result in results)
        CONSOLE.print(f"The median update takes {ratio:.2f} of what the packing into as many layers takes.")
    CONSOLE.print(
        "Stateless: files packed by package without knowledge of the previous build, zstd -3. Changed-file limit: each "
        "changed file compressed alone with zstd -3, and nothing else. rechunk-action: its defaults, which compress an "
        "update harder than a first build (see --compression)."
    )


def _heading(text: str) -> None:
    CONSOLE.print(f"\n[bold]{text}[/bold]", soft_wrap=True)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


if __name__ == "__main__":
    main()
