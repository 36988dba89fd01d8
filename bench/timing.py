"""How long rechunk-action takes beside the plain work that no tool can avoid, and how much memory.

Times are taken in pairs, one right after the other in the same run with a warm page cache, since a machine's speed
drifts; the ratio of each pair counts, and of all pairs the median:

- every update of a series, `build --prev-ref` of version n on version n-1, beside walk + lstat + SHA-256 of the same
  tree with as many threads (`bench.baseline.read_all`). The build is a process of its own, start-up included; it
  verifies what it wrote;
- a fresh build of the first version beside `tar | zstd -3 -T2` (`bench.baseline.pack`).

Memory is the build's peak resident set, as the kernel reports it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, takewhile

from bench import measured
from bench.baseline import pack, read_all
from bench.series import failures_told

THREADS = len(os.sched_getaffinity(0))

PROGRAM = f"{os.path.dirname(sys.executable)}/rechunk-action"


@dataclass(frozen=True)
class Timing:
    """Medians of one build and of the plain work beside it, in seconds; `ratio` is the median of the pairs' ratios,
    `memory` the largest peak in bytes.
    """

    name: str
    seconds: float
    plain: float
    ratio: float
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.timing", description=__doc__.partition("\n")[0])
    parser.add_argument("series", help="directory with trees v0, v1, ...")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs for each figure (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    trees = trees_of(options.series, parser)
    with failures_told():
        timings = measure(trees, options.pairs)
    if options.json:
        print(json.dumps([asdict(timing) for timing in timings], indent=1))
        return
    print("| build | seconds | plain work | ratio | peak memory |\n|---|--:|--:|--:|--:|")
    for timing in timings:
        print(
            f"| {timing.name} | {timing.seconds:.2f} | {timing.plain:.2f} | {timing.ratio:.2f} "
            f"| {timing.memory / 1e6:.0f} MB |"
        )
    updates = [timing.ratio for timing in timings[1:]]
    print(f"\nMedian ratio of the updates: {statistics.median(updates):.2f}")


def trees_of(series: str, parser: argparse.ArgumentParser) -> list[str]:
    trees = list(takewhile(os.path.isdir, (f"{series}/v{number}" for number in count())))
    if len(trees) < 2:  # noqa: PLR2004  # a version and its update
        parser.error(f"{series} holds no series: build one with python -m bench.series")
    return trees


def measure(trees: list[str], pairs: int) -> list[Timing]:
    """Time the fresh build of the first tree, then the update to each further one."""
    with tempfile.TemporaryDirectory(prefix="timing-", dir=os.path.dirname(trees[0])) as out:
        fresh = Build(out, trees[0], "v0")
        timings = [fresh.beside(lambda: pack(trees[0]), pairs)]
        for number, tree in enumerate(trees[1:], 1):
            update = Build(out, tree, f"v{number}", "--prev-ref", f"oci:{out}/v{number - 1}")
            timings.append(update.beside(partial(read_all, tree, THREADS), pairs))
        return timings


class Build:
    """A build that can be run again and again."""

    def __init__(self, out: str, tree: str, name: str, *options: str) -> None:
        self._name = name
        self._image = f"{out}/{name}"
        self._command = [PROGRAM, "build", f"dir:{tree}", f"oci:{self._image}", *options, "--quiet", "--json"]

    def beside(self, plain: Callable[[], object], pairs: int) -> Timing:
        """Time pairs of the plain work and this build, after one of each that does not count."""
        plain()
        self.run()
        runs = [(_timed(plain), self.run()) for _ in range(pairs)]
        return Timing(
            self._name,
            seconds=statistics.median(build.seconds for _, build in runs),
            plain=statistics.median(seconds for seconds, _ in runs),
            ratio=statistics.median(build.seconds / plain for plain, build in runs),
            memory=max(build.memory for _, build in runs),
        )

    def run(self) -> Run:
        """Build anew."""
        shutil.rmtree(self._image, ignore_errors=True)
        return run(self._command)


@dataclass(frozen=True)
class Run:
    """A command that has ended well: the seconds it took, those of processors (of what it called, too), its peak memory
    in bytes, and its standard output.
    """

    seconds: float
    processor: float
    memory: int
    output: bytes


def run(command: list[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command. Its exit status, when not zero, raises `CalledProcessError`; only then what it says is shown."""
    told, tell = os.pipe()
    with open(told, "rb") as told_of:
        with subprocess.Popen(
            [sys.executable, "-S", measured.__file__, str(tell), *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[tell],
        ) as process:
            os.close(tell)
            output, said = process.communicate()
        found = json.loads(told_of.read() or b"{}")
    if status := process.returncode or found["status"]:
        sys.stderr.write(said.decode(errors="replace"))
        raise subprocess.CalledProcessError(status, command)
    return Run(found["seconds"], found["processor"], found["memory"], output)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
