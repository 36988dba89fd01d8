"""How time and memory grow with an image: the same work on trees of 25,000 files and of ten times as many.

Every tree is built fresh, updated, and verified, in both formats. Each of these is a process of its own; builds verify
what they wrote. Seconds of processors count, since what else a machine does makes all others longer; memory is the peak
resident set.

Synthetic trees (`--files`) have packages of a hundred files, of sizes like a desktop's but none that is very large, so
that it is files that grow; their update changes one package in fifty. `--debian` takes a real one: a desktop with
office, browsers, compilers and documentation, updated to the newest security fixes (`bench.debs`). It takes 30 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from bench.charts import lines
from bench.debs import BATCH, HOME, Deb, Packages, create, file_of, install
from bench.series import RELEASE, UPDATED, failures_told, host_archive, require_root, sources_list
from bench.timing import PROGRAM, run
from rechunk_action.report.markdown import table

FILES = (25_000, 50_000, 100_000, 250_000)
FORMATS = ("plain", "ostree")

PACKAGE = 100
"""Files of a synthetic package."""

CHANGED = 50
"""Of so many synthetic packages, an update changes one."""

MEDIAN, SPREAD, LARGEST = 1_500, 1.7, 2_000_000
"""Bytes of synthetic files, log-normal as those of real trees are."""

SUITE = "trixie"

DESKTOP = (
    *("?essential", "?priority(required)", "systemd-sysv", "openssh-server", "gnome-core", "kde-plasma-desktop"),
    *("kdepim", "dolphin", "okular", "libreoffice", "chromium", "firefox-esr", "thunderbird", "gimp", "inkscape"),
    *("linux-image-amd64", "linux-headers-amd64", "openjdk-21-jdk", "g++", "g++-aarch64-linux-gnu", "llvm-19-dev"),
    *("clang-19", "libclang-19-dev", "golang", "rustc", "libboost-all-dev", "qt6-base-dev", "qt6-declarative-dev"),
    *("python3-scipy", "python3-sklearn", "python3-pandas", "python3-doc", "octave", "r-recommended"),
    *("papirus-icon-theme", "breeze-icon-theme", "oxygen-icon-theme", "texlive-latex-extra", "texlive-fonts-extra"),
)


@dataclass(frozen=True)
class Measured:
    """One run: paths and bytes of the tree, and of the layers that users download; seconds; peak memory in bytes."""

    tree: str
    paths: int
    bytes: int
    format: str
    work: str
    seconds: float
    processor: float
    memory: int
    download: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("out", help="directory for trees, images and results")
    parser.add_argument("--files", type=int, nargs="*", default=FILES, help="sizes of synthetic trees")
    parser.add_argument("--debian", action="store_true", help="measure a real tree, and no synthetic ones")
    parser.add_argument("--show", action="store_true", help="show the results that are there, and measure nothing")
    options = parser.parse_args()
    out = options.out.rstrip("/")
    results = f"{out}/scale-{'debian' if options.debian else 'synthetic'}.json"
    if not options.show:
        require_root()
        os.makedirs(out, exist_ok=True)
        found: list[Measured] = []
        with failures_told():
            for one in debian(out) if options.debian else synthetic(out, options.files):
                found.append(one)
                print(_line(one), file=sys.stderr, flush=True)
                with open(results, "w", encoding="utf-8") as file:
                    json.dump([asdict(each) for each in found], file, indent=1)
    with open(results, encoding="utf-8") as file:
        print(shown([Measured(**each) for each in json.load(file)]))


def synthetic(out: str, sizes: Sequence[int]) -> Iterator[Measured]:
    """Measure trees of so many files."""
    for files in sizes:
        tree = f"{out}/synthetic"
        shutil.rmtree(tree, ignore_errors=True)
        create(tree)
        packages = range(files // PACKAGE)
        make(tree, packages, 0)
        os.makedirs(f"{tree}/usr/lib/modules/1")
        with open(f"{tree}/usr/lib/modules/1/vmlinuz", "wb") as kernel:  # which commits of OSTree need
            kernel.write(b"kernel")
        for layout in FORMATS:
            changes = packages[::CHANGED]
            yield from _measured(f"{files:,} files", out, tree, layout, lambda: make(tree, changes, 1))  # noqa: B023
            make(tree, changes, 0)
        shutil.rmtree(tree)


def make(tree: str, packages: Sequence[int], version: int) -> None:
    """Write packages of a synthetic tree. The same number and version give the same files."""
    pool = random.Random(0).randbytes(1 << 24)  # noqa: S311  # not for secrets
    # Half of each byte is chance, so that files compress to about half.
    pool = pool.translate(bytes(value & 15 | 64 for value in range(256)))
    for number in packages:
        chance = random.Random(f"{number} {version}")  # noqa: S311  # as above
        name = f"package-{number}"
        paths = [f"usr/share/{name}/{file // 10}/{file}" for file in range(PACKAGE)]
        for file, path in enumerate(paths):
            if file % 10 == 0:
                os.makedirs(os.path.dirname(f"{tree}/{path}"), exist_ok=True)
            size = min(LARGEST, int(chance.lognormvariate(0, SPREAD) * MEDIAN))
            start = chance.randrange(len(pool) - LARGEST)
            with open(f"{tree}/{path}", "wb") as written:
                written.write(f"{path} {version}\n".encode() + pool[start : start + size])
        with open(f"{tree}/{HOME}/info/{name}.list", "w", encoding="utf-8") as listing:
            listing.writelines(f"/{path}\n" for path in paths)
    names = sorted(name.removesuffix(".list") for name in os.listdir(f"{tree}/{HOME}/info"))
    with open(f"{tree}/{HOME}/status", "w", encoding="utf-8") as status:
        status.writelines(
            f"Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n" for name in names
        )


def debian(out: str) -> Iterator[Measured]:
    """Measure a real tree, as it was released and with the updates since."""
    archive = host_archive(platform.freedesktop_os_release())
    before = Packages(f"{out}/apt-old", sources_list(archive, SUITE, RELEASE))
    after = Packages(f"{out}/apt-new", sources_list(archive, SUITE, UPDATED))
    old, new = before.resolve(DESKTOP), after.resolve(DESKTOP)
    tree, debs = f"{out}/debian", f"{out}/debs"
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(debs, exist_ok=True)
    create(tree)
    newer, older = [deb for deb in new if deb not in old], [deb for deb in old if deb not in new]
    after.fetch(newer, debs)
    before.fetch(older, debs)
    _install(before, [deb for deb in old if deb in new], tree, debs)

    def go(to: Sequence[Deb], instead: Sequence[Deb]) -> None:
        gone = {deb.name for deb in instead} - {deb.name for deb in to}
        install(tree, [f"{debs}/{file_of(deb)}" for deb in to], instead=sorted(gone))

    for layout in FORMATS:
        go(older, newer)
        yield from _measured(f"Debian {SUITE}", out, tree, layout, lambda: go(newer, older))


def _install(packages: Packages, debs: Sequence[Deb], tree: str, place: str) -> None:
    """Packages that are needed once: the disk need not hold all of them beside the tree."""
    for start in range(0, len(debs), BATCH):
        batch = debs[start : start + BATCH]
        files = [f"{place}/{file_of(deb)}" for deb in batch]
        packages.fetch(batch, place)
        install(tree, files)
        for file in files:
            os.unlink(file)
        print(f"{start + len(batch):,} of {len(debs):,} packages", file=sys.stderr, flush=True)


def _measured(name: str, out: str, tree: str, layout: str, change: Callable[[], None]) -> Iterator[Measured]:
    """Build a tree, change it, build the update, and verify that. Images are removed in the end."""
    old, new = f"{out}/image", f"{out}/image-new"

    def measured(work: str, *arguments: str) -> Measured:
        done = run([PROGRAM, *arguments, "--quiet"])
        told: Any = json.loads(done.output) if "--json" in arguments else None
        download = told["bytes"]["update"] if told else 0
        return Measured(name, *size_of(tree), layout, work, done.seconds, done.processor, done.memory, download)

    with ExitStack() as stack:
        for image in (old, new):
            shutil.rmtree(image, ignore_errors=True)
            stack.callback(shutil.rmtree, image, ignore_errors=True)
        yield measured("fresh", "build", f"dir:{tree}", f"oci:{old}", "--format", layout, "--json")
        change()
        yield measured("update", "build", f"dir:{tree}", f"oci:{new}", "--prev-ref", f"oci:{old}", "--json")
        yield measured("verify", "verify", f"oci:{new}", f"dir:{tree}")


def size_of(tree: str) -> tuple[int, int]:
    """Paths of a tree, and bytes of its regular files."""
    paths = size = 0
    for directory, below, names in os.walk(tree):
        files = [f"{directory}/{name}" for name in names]
        paths += 1 + len(files) + sum(os.path.islink(f"{directory}/{name}") for name in below)
        size += sum(os.lstat(file).st_size for file in files if not os.path.islink(file))
    return paths, size


def shown(found: Sequence[Measured]) -> str:
    """What was found, as Markdown: a table, lines through it, and charts that GitHub draws."""
    parts = [
        table(
            ("tree", "format", "", "paths", "size", "download", "seconds", "processor", "peak memory"),
            [
                (
                    *(each.tree, each.format, each.work, f"{each.paths:,}", f"{each.bytes / 1e9:.2f} GB"),
                    f"{each.download / 1e6:,.1f} MB" if each.download else "",
                    *(f"{each.seconds:,.1f} s", f"{each.processor:,.1f} s", f"{each.memory / 1e6:,.0f} MB"),
                )
                for each in found
            ],
            numbers=6,
        )
    ]
    if len({each.paths for each in found}) > 2:  # noqa: PLR2004  # a line goes through any two points
        runs: dict[tuple[str, str], list[Measured]] = {}
        for each in found:
            runs.setdefault((each.format, each.work), []).append(each)
        parts.append(
            table(
                (
                    "format",
                    "",
                    "processor: fixed",
                    "per 100,000 paths",
                    "r²",
                    "memory: fixed",
                    "per 100,000 paths",
                    "r²",
                ),
                [
                    (*key, *_fitted(alike, "processor", 1, "s"), *_fitted(alike, "memory", 1e6, "MB"))
                    for key, alike in runs.items()
                ],
                numbers=6,
            )
        )
        parts.append(_chart(found, "processor", "Processor seconds", "s", 1))
        parts.append(_chart(found, "memory", "Peak memory", "MB", 1e6))
    return "\n\n".join(parts)


def _fitted(found: Sequence[Measured], what: str, unit: float, name: str) -> Iterator[str]:
    """A straight line through what was measured: where it starts, how it rises, and how well it fits."""
    paths = [each.paths / 100_000 for each in found]
    values = [getattr(each, what) / unit for each in found]
    slope, start = statistics.linear_regression(paths, values)
    yield from (f"{start:.1f} {name}", f"{slope:.1f} {name}", f"{statistics.correlation(paths, values) ** 2:.4f}")


def _chart(found: Sequence[Measured], what: str, title: str, name: str, unit: float) -> str:
    """What a path takes, by the size of the tree: level where all is linear, falling where there is a fixed part."""
    plain = [each for each in found if each.format == "plain"]
    labels = [f"{each.paths:,}" for each in plain if each.work == "fresh"]
    series = {
        work: [getattr(each, what) / unit / each.paths * 100_000 for each in plain if each.work == work]
        for work in ("fresh", "update", "verify")
    }
    return lines(f"{title} per 100,000 paths", "paths", labels, name, series)


def _line(one: Measured) -> str:
    return f"{one.tree}, {one.format}, {one.work}: {one.processor:.1f} s, {one.memory / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
