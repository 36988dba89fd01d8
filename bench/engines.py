"""Engines on the same series: what updates cost their users, and what making them costs.

Each version is built with each engine as an update of the engine's own image of the version before, into image layouts
on disk, one engine right after the other, since a machine's speed drifts. Every build is a process of its own, start-up
and verification included. Trees without an RPM database get one in a copy (bench/rpm_database.py), since engine `hhd`
plans by it; all engines get the same tree. Engine `delta` counts twice, once for each format that it makes.

- Bytes are those of the layers that users of the version before do not have. The limit is bench/limit.py's.
- Seconds of the rechunker are those of its three scripts, in their containers; the rest is ours.
- Memory is the build's peak resident set, as the kernel reports it; that of the rechunker's containers does not count.
- Disk is what the build has allocated at its peak, as `du` finds it twice a second: workspace and new layers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.limit import limit
from bench.rpm_database import DATABASE, add_rpm_database
from bench.series import failures_told, require_root
from bench.timing import PROGRAM, run, trees_of


@dataclass(frozen=True)
class Column:
    """A way to build: its name, the arguments that choose it, and the phases of it that are the rechunker's."""

    name: str
    arguments: Sequence[str]
    rechunker: Sequence[str] = ()


COLUMNS = (
    Column("delta", ("--engine", "delta", "--format", "plain")),
    Column("delta-ostree", ("--engine", "delta", "--format", "ostree")),
    Column("hhd", ("--engine", "hhd"), rechunker=("prune", "commit", "chunk")),
)


@dataclass(frozen=True)
class Built:
    """A version as an engine has built it. `update` is what users download, `limit` is None for the first version.

    Sizes are in bytes, times in seconds, `phases` are the times of all that was done.
    """

    version: str
    engine: str
    update: int
    limit: int | None
    layers: int
    seconds: float
    rechunker: float
    memory: int
    disk: int
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> float:
        """Seconds that are not the rechunker's."""
        return self.seconds - self.rechunker


def main() -> None:
    names = [column.name for column in COLUMNS]
    parser = argparse.ArgumentParser(prog="python -m bench.engines", description=__doc__.partition("\n")[0])
    parser.add_argument("series", help="directory with trees v0, v1, ...")
    parser.add_argument("--engines", default=",".join(names), help=f"engines to compare (default: {','.join(names)})")
    parser.add_argument("--rechunk", metavar="IMAGE", help="container image of the rechunker (default: the pinned one)")
    parser.add_argument("--weeks", type=int, default=99, help="at most this many updates")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    wanted = options.engines.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no engine {', '.join(sorted(unknown))}: choose of {', '.join(names)}")
    require_root()
    trees = trees_of(os.path.abspath(options.series), parser)[: options.weeks + 1]
    with failures_told():
        found = measure(trees, [column for column in COLUMNS if column.name in wanted], options.rechunk)
    print(json.dumps([asdict(each) for each in found], indent=1) if options.json else table(found))


def measure(trees: Sequence[str], columns: Sequence[Column], rechunk: str | None = None) -> list[Built]:
    """Build every tree by every column. `rechunk` is the rechunker's container image, None for the pinned one.

    Raises `SeriesError` for a tree that cannot be prepared, `CalledProcessError` for a build that fails.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="engines-", dir=os.path.dirname(trees[0])) as room:
        before = ""
        for number, tree in enumerate(trees):
            after = _prepared(tree, f"{room}/{os.path.basename(tree)}")
            floor = limit(before, after).compressed if before else None
            found += [_build(number, after, column, f"{room}/{column.name}", floor, rechunk) for column in columns]
            if before.startswith(room):
                shutil.rmtree(before)
            before = after
    return found


def table(found: Sequence[Built]) -> str:
    """The figures as Markdown, with the sums of all updates."""
    lines = [
        "| version | engine | users download | limit | layers | seconds | rechunker | ours | peak memory | disk |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*lines, *map(_row, found), *map(_row, sums(found))])


def sums(found: Sequence[Built]) -> list[Built]:
    """Each engine's updates together: bytes and seconds add up, of layers, memory and disk the most counts."""
    return [
        Built(
            "**updates**",
            engine,
            update=sum(each.update for each in updates),
            limit=sum(each.limit or 0 for each in updates),
            layers=max(each.layers for each in updates),
            seconds=sum(each.seconds for each in updates),
            rechunker=sum(each.rechunker for each in updates),
            memory=max(each.memory for each in updates),
            disk=max(each.disk for each in updates),
        )
        for engine in dict.fromkeys(each.engine for each in found)
        if (updates := [each for each in found if each.engine == engine and each.limit is not None])
    ]


def _row(built: Built) -> str:
    floor = "" if built.limit is None else f"{built.limit / 1e6:,.2f} MB"
    return (
        f"| {built.version} | {built.engine} | {built.update / 1e6:,.2f} MB | {floor} | {built.layers} "
        f"| {built.seconds:.1f} | {built.rechunker:.1f} | {built.ours:.1f} "
        f"| {built.memory / 1e6:.0f} MB | {built.disk / 1e6:,.0f} MB |"
    )


def _prepared(tree: str, copy: str) -> str:
    """A tree with an RPM database: this one, or a copy."""
    if os.path.exists(f"{tree}/{DATABASE}"):
        return tree
    subprocess.run(["cp", "--archive", "--reflink=auto", tree, copy], check=True)
    add_rpm_database(copy)
    return copy


def _build(number: int, tree: str, column: Column, place: str, floor: int | None, rechunk: str | None) -> Built:
    """Build a version in a directory of the engine's own, where its image of the version before is."""
    os.makedirs(f"{place}/scratch", exist_ok=True)
    print(f"{tree}: {column.name}", file=sys.stderr, flush=True)
    image = f"oci:{place}/image"
    command = [PROGRAM, "build", f"dir:{tree}", f"{image}:v{number}", *column.arguments, f"--version=1.{number}"]
    if number:
        command += ["--prev-ref", f"{image}:v{number - 1}"]
    if rechunk and column.rechunker:
        command += ["--rechunk", rechunk]
    with _disk(place) as disk:
        done = run([*command, "--quiet", "--json"], os.environ | {"TMPDIR": f"{place}/scratch"})
    report: dict[str, Any] = json.loads(done.output)
    phases: dict[str, float] = report["seconds"]
    return Built(
        f"v{number}",
        column.name,
        update=report["bytes"]["update"],
        limit=floor,
        layers=report["layers"]["total"],
        seconds=done.seconds,
        rechunker=sum(phases[name] for name in column.rechunker),
        memory=done.memory,
        disk=max(disk),
        phases=phases,
    )


@contextmanager
def _disk(place: str) -> Iterator[list[int]]:
    """Bytes that are allocated below a directory in addition to those before, again and again until this is left."""
    before, found, over = _allocated(place), [0], threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS):
            found.append(_allocated(place) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found.append(_allocated(place) - before)


SECONDS = 0.5
"""Between two looks at the disk."""


def _allocated(place: str) -> int:
    """Bytes below a directory, on its own file system: what is mounted there lies in a file that counts."""
    # Files come and go meanwhile, of which du complains.
    command = ["du", "--summarize", "--one-file-system", "--block-size=1", place]
    shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
    return int(shown.split()[0])


if __name__ == "__main__":
    main()
