"""Many generations of one image: what updates cost as kept layers grow old, and whether anything grows with them.

A small Debian server is unpacked from a release (`bench.debs`). Then, generation by generation, some source packages go
to their versions in that release's updates, in the next release, in its updates, in testing and in unstable, and every
fourth generation has a newer kernel: 60 steps, each with real packages. Every generation is built as the update of the
one before, by the command and with its defaults, and read back whole by `verify`.

Beside it are counted, from generation to generation and for users who take only every so many:

- the limit (`bench.limit`): contents that the user's version lacks, each compressed alone with zstd -3;
- a stateless packing (`bench.stateless`) into as many layers as an image may have.

No initramfs, caches or databases: those need maintainer scripts. What dpkg keeps of packages changes every time.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import zstandard

from bench.charts import lines
from bench.debs import Deb, Packages, create, file_of, install, installed, sources_of
from bench.limit import LEVEL, regular_files
from bench.series import (
    PACKAGES,
    RELEASE,
    UPDATED,
    failures_told,
    host_archive,
    kernel_order,
    require_root,
    sources_list,
)
from bench.stateless import stateless
from bench.timing import PROGRAM, run
from rechunk_action.engines.layering import MAX_LAYERS, MAX_OVERHEAD
from rechunk_action.report.markdown import table

STAGES = (
    ("bookworm", RELEASE),
    ("bookworm", UPDATED),
    ("trixie", RELEASE),
    ("trixie", UPDATED),
    ("forky", RELEASE),
    ("sid", RELEASE),
)
"""What the packages are taken from, one after the other."""

KERNELS = ("bookworm", "trixie")
KERNEL = r"^linux-image-[0-9.]+(-[0-9]+|\+deb13(\.[0-9]+)?)-amd64$"
KERNEL_EVERY = 4

SKIPS = (1, 2, 4, 13)
"""Generations between two updates of a user."""

Sizes = Mapping[str, int]
"""Bytes by digest: of layers as they are downloaded, or of contents, each compressed alone."""


@dataclass(frozen=True)
class Step:
    """What one generation changes: packages that come, and names of those that go."""

    sources: Sequence[str]
    debs: Sequence[Deb]
    gone: Sequence[str]
    kernel: Deb | None


@dataclass(frozen=True)
class Generation:
    """A generation that was built and verified. Sizes are in bytes, times in seconds; `again` are live bytes that were
    in dropped layers, and had to be sent again.
    """

    sources: Sequence[str]
    layers: Sizes
    packed: Sizes
    contents: Sizes
    live: int
    dead: int
    again: int
    planning: float
    processor: float
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.generations", description=__doc__.partition("\n")[0])
    parser.add_argument("out", help="directory for packages, tree, image and results; packages in it are used again")
    parser.add_argument("--count", type=int, default=60, help="generations after the first (default: 60)")
    parser.add_argument("--format", choices=("plain", "ostree"), default="plain", help="of the image (default: plain)")
    parser.add_argument("--show", action="store_true", help="show the results that are there, and measure nothing")
    options = parser.parse_args()
    results = f"{options.out}/generations-{options.format}"
    if not options.show:
        require_root()
        with failures_told():
            measure(options.out.rstrip("/"), options.count, options.format, results)
    print(shown([_read(path) for path in sorted(glob.glob(f"{results}/*.json"))]))


def measure(out: str, count: int, layout: str, results: str) -> None:
    """Make and build all generations, and keep what is found of each."""
    os.makedirs(f"{out}/debs", exist_ok=True)
    steps = planned(out, count)
    tree, image = f"{out}/tree", f"{out}/image"
    for place in (tree, image, f"{image}-old", results):
        shutil.rmtree(place, ignore_errors=True)
    os.mkdir(results)
    create(tree)
    before: Generation | None = None
    known: dict[str, int] = {}
    for number, step in enumerate(steps):
        install(tree, [f"{out}/debs/{file_of(deb)}" for deb in step.debs], instead=step.gone)
        if step.kernel:
            _replace_kernel(tree, f"{out}/debs/{file_of(step.kernel)}")
        found = _build(tree, image, step, layout, known)
        with open(f"{results}/{number:03}.json", "w", encoding="utf-8") as file:
            json.dump(asdict(found), file)
        print(f"{number}: {_line(before, found)}", file=sys.stderr, flush=True)
        before = found


def planned(out: str, count: int) -> list[Step]:
    """The first generation and what changes it so many times, with all packages fetched."""
    archive = host_archive(platform.freedesktop_os_release())
    wanted = ("?essential", "?priority(required)", *PACKAGES)
    stages = []
    for number, (suite, pockets) in enumerate(STAGES):
        packages = Packages(f"{out}/apt-{number}", sources_list(archive, suite, pockets))
        stages.append(packages.resolve(wanted))
        packages.fetch(stages[-1], f"{out}/debs")
    packages = Packages(
        f"{out}/apt-kernels", [line for suite in KERNELS for line in sources_list(archive, suite, UPDATED)]
    )
    kernels = sorted(packages.matching(KERNEL), key=lambda deb: kernel_order(deb.name))
    places = [number * (len(kernels) - 1) // max(1, count // KERNEL_EVERY) for number in range(count // KERNEL_EVERY)]
    kernels = [kernels[place] for place in (*places, -1)]
    packages.fetch(kernels, f"{out}/debs")
    first = Step([], stages[0], [], kernels[0])
    return [first, *_steps(stages, kernels, count)]


def _steps(stages: Sequence[Sequence[Deb]], kernels: Sequence[Deb], count: int) -> list[Step]:
    """All changes from stage to stage, in as many steps, about as many source packages in each."""
    changes: list[tuple[str, list[Deb], list[str]]] = []
    for old, new in pairwise(stages):
        before, after = sources_of(old), sources_of(new)
        there = {deb.name for deb in new}
        differing = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        # Neither the alphabet nor apt may decide what comes together.
        for name in sorted(differing, key=lambda name: hashlib.sha256(name.encode()).digest()):
            gone = [deb.name for deb in before.get(name, ()) if deb.name not in there]
            changes.append((name, [deb for deb in after.get(name, ()) if deb not in old], gone))
    cuts = [number * len(changes) // count for number in range(count + 1)]
    steps = []
    for number, (start, end) in enumerate(pairwise(cuts), 1):
        part = changes[start:end]
        kernel = kernels[number // KERNEL_EVERY] if number % KERNEL_EVERY == 0 else None
        steps.append(
            Step(
                [name for name, _, _ in part],
                [deb for _, debs, _ in part for deb in debs],
                [name for _, _, gone in part for name in gone],
                kernel,
            )
        )
    return steps


def _replace_kernel(tree: str, deb: str) -> None:
    """Another kernel in the place of the one that is there, where bootable containers have it."""
    old = [name for name in installed(tree) if name.startswith("linux-image-")]
    install(tree, [deb], instead=old)
    for name in old:
        shutil.rmtree(f"{tree}/usr/lib/modules/{name.removeprefix('linux-image-')}", ignore_errors=True)
    (kernel,) = glob.glob(f"{tree}/boot/vmlinuz-*")
    shutil.move(kernel, f"{tree}/usr/lib/modules/{kernel.partition('vmlinuz-')[2]}/vmlinuz")
    for file in glob.glob(f"{tree}/boot/*"):
        os.unlink(file)


def _build(tree: str, image: str, step: Step, layout: str, known: dict[str, int]) -> Generation:
    """Build the tree as the update of the image that is there, which it replaces, and verify what came of it."""
    before = f"{image}-old"
    shutil.rmtree(before, ignore_errors=True)
    update = os.path.exists(image)
    if update:
        os.rename(image, before)
    previous = ["--prev-ref", f"oci:{before}"] if update else []
    names = [f"dir:{tree}", f"oci:{image}", "--format", layout]
    done = run([PROGRAM, "build", *names, *previous, "--quiet", "--json"])
    run([PROGRAM, "verify", f"oci:{image}", f"dir:{tree}", "--quiet"])
    report: Any = json.loads(done.output)
    return Generation(
        sources=[*step.sources, *([step.kernel.source] if step.kernel else [])],
        layers={layer["digest"]: layer["bytes"] for layer in report["update"]["layers"] if layer["state"] != "removed"},
        packed={layer.digest: layer.size for layer in stateless(tree, MAX_LAYERS)},
        contents=_contents(tree, known),
        live=report["bytes"]["live"],
        dead=report["bytes"]["dead"],
        again=sum(drop["live"] for drop in report["dropped"]),
        planning=report["seconds"]["plan"],
        processor=done.processor,
        memory=done.memory,
    )


def _contents(tree: str, known: dict[str, int]) -> dict[str, int]:
    """Contents of a tree with the bytes of each when it is compressed alone, which is done once for all trees."""

    def look(path: str) -> tuple[str, int]:
        with open(path, "rb") as file:
            content = file.read()
        digest = hashlib.sha256(content).hexdigest()
        return digest, known.get(digest) or len(zstandard.ZstdCompressor(LEVEL).compress(content))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(pool.map(look, regular_files(tree)))
    known |= found
    return found


def shown(generations: Sequence[Generation]) -> str:
    """What was found, as Markdown: tables, and charts that GitHub draws."""
    steps = list(pairwise(generations))
    ours = [lacking(old.layers, new.layers) for old, new in steps]
    least = [lacking(old.contents, new.contents) for old, new in steps]
    packed = [lacking(old.packed, new.packed) for old, new in steps]
    return "\n\n".join(
        [
            table(("", "first", "median", "worst", "last"), list(_figures(generations, ours, least)), numbers=4),
            table(
                ("takes", "updates", "rechunk-action", "stateless", "limit", "rechunk-action / limit"),
                [
                    *(_sums(_name(every), _skipping(generations, every)) for every in SKIPS),
                    _sums("those without a new kernel", [(old, new) for old, new in steps if not _has_kernel(new)]),
                ],
                numbers=5,
            ),
            _cumulative(ours, packed, least),
            _layers(generations),
            _superseded(generations),
        ]
    )


def lacking(old: Sizes, new: Sizes) -> int:
    """Bytes of what the new version has and the old one lacks."""
    return sum(size for digest, size in new.items() if digest not in old)


def visited(count: int, every: int) -> list[int]:
    """Generations that a user has who takes every so many of them, and the last."""
    return [*range(0, count, every), count]


def _figures(generations: Sequence[Generation], ours: Sequence[int], least: Sequence[int]) -> Iterator[Sequence[str]]:
    updates = generations[1:]
    ratios = [size / floor for size, floor in zip(ours, least, strict=True) if floor]
    running = [sum(ours[:end]) / sum(least[:end]) for end in range(1, len(ours) + 1)]
    for name, values, form in (
        ("update, MB", [size / 1e6 for size in ours], ",.2f"),
        ("limit, MB", [size / 1e6 for size in least], ",.2f"),
        ("update / limit", ratios, ".2f"),
        ("update / limit, of all until then", running, ".2f"),
        ("sent again by compaction, MB", [each.again / 1e6 for each in updates], ",.2f"),
        ("layers", [len(each.layers) for each in updates], "d"),
        ("superseded, % of live bytes", [100 * each.dead / each.live for each in updates], ".2f"),
        ("planning, s", [each.planning for each in updates], ".2f"),
        ("processor, s", [each.processor for each in updates], ".1f"),
        ("peak memory, MB", [each.memory / 1e6 for each in updates], ".0f"),
    ):
        middle = statistics.median_high(values)
        yield name, *(f"{value:{form}}" for value in (values[0], middle, max(values), values[-1]))


def _skipping(generations: Sequence[Generation], every: int) -> Sequence[tuple[Generation, Generation]]:
    return list(pairwise(generations[number] for number in visited(len(generations) - 1, every)))


def _name(every: int) -> str:
    return "every generation" if every == 1 else f"every {every} generations"


def _has_kernel(generation: Generation) -> bool:
    return "linux-signed-amd64" in generation.sources


def _sums(name: str, taken: Sequence[tuple[Generation, Generation]]) -> Sequence[str]:
    ours = sum(lacking(old.layers, new.layers) for old, new in taken)
    packed = sum(lacking(old.packed, new.packed) for old, new in taken)
    least = sum(lacking(old.contents, new.contents) for old, new in taken)
    return name, f"{len(taken)}", *(f"{size / 1e6:,.0f} MB" for size in (ours, packed, least)), f"{ours / least:.2f}"


def _cumulative(ours: Sequence[int], packed: Sequence[int], least: Sequence[int]) -> str:
    named = {"rechunk-action": ours, "stateless": packed, "limit": least}
    sums = {name: [size / 1e6 for size in accumulate(sizes)] for name, sizes in named.items()}
    return lines("Downloaded until then", "generation", range(1, len(ours) + 1), "MB", sums)


def _layers(generations: Sequence[Generation]) -> str:
    title = f"Layers of the image ({MAX_LAYERS} allowed)"
    counts = [len(each.layers) for each in generations]
    return lines(title, "generation", range(len(counts)), "layers", {"layers": counts})


def _superseded(generations: Sequence[Generation]) -> str:
    title = f"Superseded bytes, in percent of live ones ({MAX_OVERHEAD} allowed)"
    shares = [100 * each.dead / each.live for each in generations]
    return lines(title, "generation", range(len(shares)), "%", {"superseded": shares})


def _line(before: Generation | None, found: Generation) -> str:
    """A generation in short, for who waits."""
    size = lacking(before.layers if before else {}, found.layers)
    least = lacking(before.contents if before else {}, found.contents)
    return (
        f"{size / 1e6:,.2f} MB, limit {least / 1e6:,.2f} MB; {len(found.layers)} layers, "
        f"{100 * found.dead / found.live:.2f}% superseded ({', '.join(found.sources)})"
    )


def _read(path: str) -> Generation:
    with open(path, encoding="utf-8") as file:
        return Generation(**json.load(file))


if __name__ == "__main__":
    main()
