"""What it costs to publish: the time beside the same build on disk, the bytes that are sent, and memory.

Every version of a series is imported into podman's storage, in a place of its own, and published from there to a
registry on loopback (Debian's), as a workflow does it: the first version fresh, each other as the update of what is
published. Right after it, the same build from the same storage goes into an image layout on disk. Both are processes of
their own, start-up and verification included.

- Seconds are medians, `beyond` is that of the pairs' differences: what the registry costs, on both sides of the line,
  since it hashes and stores on the processors that the build has.
- Bytes are those of all request bodies, counted between client and registry in a pair of its own before the others,
  which nobody times. New layers and their tables have to be sent; the rest is manifests and a config.
- Memory is the publishing process's peak resident set, or that of a podman that it called, as the kernel reports it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench.series import require_root
from bench.timing import PROGRAM, Run, run, trees_of
from rechunk_action.oci.image import host_architecture
from rechunk_action.registry.image import RegistryBlobs, published_image
from tests.faulty_proxy import FaultyProxy
from tests.oracles import Missing
from tests.registries import plain_registry, repository

IMAGE = "localhost/series"


@dataclass(frozen=True)
class Publishing:
    """One version: medians in seconds, `memory` and what is sent in bytes. `layers` and `tables` are the new ones."""

    name: str
    seconds: float
    on_disk: float
    beyond: float
    memory: int
    sent: int
    layers: int
    tables: int

    @property
    def rest(self) -> int:
        """Bytes that were sent beside layers and tables."""
        return self.sent - self.layers - self.tables


@dataclass(frozen=True)
class Place:
    """Where the versions are published one after the other, and where the same builds go on disk."""

    host: str
    name: str
    layout: str

    def publish(self, number: int, environment: Mapping[str, str]) -> Run:
        return _build(f"docker://{self.host}/{self.name}:1.{number}", environment, "--tls-verify=false")

    def build(self, number: int, environment: Mapping[str, str]) -> Run:
        previous = ["--prev-ref", f"oci:{self.layout}:v{number - 1}"] if number else []
        return _build(f"oci:{self.layout}:v{number}", environment, *previous)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__.partition("\n")[0])
    parser.add_argument("series", help="directory with trees v0, v1, ...")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs for each figure (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    require_root()
    trees = trees_of(os.path.abspath(options.series), parser)  # podman wants absolute paths
    try:
        found = measure(trees, options.pairs)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command has said why
    except Missing as lack:
        print(f"error: {lack}", file=sys.stderr)
        sys.exit(3)
    if options.json:
        print(json.dumps([asdict(each) | {"rest": each.rest} for each in found], indent=1))
    else:
        print(table(found))


def measure(trees: list[str], pairs: int) -> list[Publishing]:
    """Publish every tree as the update of the one before, in pairs with the same build on disk."""
    with (
        _storage(os.path.dirname(trees[0])) as (room, environment),
        plain_registry() as registry,
        FaultyProxy(registry.host) as line,
    ):
        counted = Place(line.host, "counted/image", f"{room}/counted")
        timed = [Place(registry.host, f"timed{pair}/image", f"{room}/timed{pair}") for pair in range(pairs)]
        found = []
        for number, tree in enumerate(trees):
            with _imported(tree, environment):
                line.forget()
                report = json.loads(counted.publish(number, environment).output)
                sent = sum(exchange.received for exchange in line.exchanges)
                counted.build(number, environment)
                runs = [(place.publish(number, environment), place.build(number, environment)) for place in timed]
            found.append(
                Publishing(
                    f"v{number}",
                    seconds=statistics.median(publish.seconds for publish, _ in runs),
                    on_disk=statistics.median(build.seconds for _, build in runs),
                    beyond=statistics.median(publish.seconds - build.seconds for publish, build in runs),
                    memory=max(publish.memory for publish, _ in runs),
                    sent=sent,
                    layers=sum(layer["bytes"] for layer in _new_layers(report)),
                    tables=_new_tables(registry.host, counted.name, report),
                )
            )
        return found


def table(found: list[Publishing]) -> str:
    """The figures as Markdown."""
    lines = [
        "| version | publish | build on disk | beyond | sent | new layers | their tables | the rest | peak memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {each.name} | {each.seconds:.2f} s | {each.on_disk:.2f} s | {each.beyond:+.2f} s "
        f"| {each.sent / 1e6:,.2f} MB | {each.layers / 1e6:,.2f} MB | {each.tables / 1e3:,.0f} kB "
        f"| {each.rest / 1e3:,.1f} kB | {each.memory / 1e6:.0f} MB |"
        for each in found
    ]
    return "\n".join(lines)


@contextmanager
def _storage(beside: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A directory for all that is large, and the environment in which podman keeps its images there."""
    with (
        tempfile.TemporaryDirectory(prefix="publish-", dir=beside) as room,
        tempfile.TemporaryDirectory(prefix="pub-") as short,  # podman wants short names for what runs
    ):
        config = f"{short}/storage.conf"
        with open(config, "w", encoding="utf-8") as file:
            file.write(f'[storage]\ndriver = "overlay"\ngraphroot = "{room}/images"\nrunroot = "{short}/run"\n')
        try:
            yield room, os.environ | {"CONTAINERS_STORAGE_CONF": config, "TMPDIR": room}
        finally:
            # podman may have mounted its storage on itself.
            subprocess.run(["umount", "--quiet", f"{room}/images/overlay"], check=False)


@contextmanager
def _imported(tree: str, environment: Mapping[str, str]) -> Iterator[None]:
    """The image of a tree. There is room for one at a time."""
    archive = f"tar --create --numeric-owner --xattrs --xattrs-include='*' --directory {shlex.quote(tree)} ."
    script = f"{archive} | podman import --quiet - {IMAGE} > /dev/null"
    print(f"{tree}: import, publish, build", file=sys.stderr, flush=True)
    subprocess.run(["bash", "-o", "pipefail", "-c", script], env=environment, check=True)
    try:
        yield
    finally:
        removal = ["podman", "image", "rm", "--force", IMAGE]
        subprocess.run(removal, env=environment, check=True, stdout=subprocess.DEVNULL)


def _build(output: str, environment: Mapping[str, str], *options: str) -> Run:
    return run([PROGRAM, "build", f"containers-storage:{IMAGE}", output, *options, "--quiet", "--json"], environment)


def _new_layers(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [layer for layer in report["update"]["layers"] if layer["state"] == "new"]


def _new_tables(host: str, name: str, report: Mapping[str, Any]) -> int:
    """Bytes of the tables that are stored for the new layers."""
    with repository(host, name) as opened:
        blobs = published_image(opened, report["version"], host_architecture()).blobs
    stored = blobs.tables if isinstance(blobs, RegistryBlobs) else {}
    return sum(stored[layer["digest"]]["size"] for layer in _new_layers(report))


if __name__ == "__main__":
    main()
