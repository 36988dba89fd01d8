"""An honest stateless package packing, to compare with: what image tools do that know nothing of the previous build.

Files are grouped by package, as the tree's own package database tells. The largest packages have a layer each, up to
a share of the budget; small ones are spread over the other layers by a hash of their names, so that a package stays
where it was whatever happens to the others. What no package owns has one layer, except large files, which count as
packages. This is chunkah's design without its prediction of which packages will change, and gives away nothing else:

- archives are deterministic: owners are numbers, paths are sorted, a directory's mtime (which any change below it
  moves) is 0, and a file keeps its own mtime, as packages ship it;
- layers are compressed with zstd -3.

An update then costs the layers of the new version whose digests the old version does not have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import BinaryIO, cast

import zstandard

from rechunk_action.errors import RechunkError
from rechunk_action.tree.components import components
from rechunk_action.tree.entry import ROOT, Entry, Tree, ancestors
from rechunk_action.tree.packages import read_packages
from rechunk_action.tree.scan import scan

LEVEL = 3

ALONE = 0.8
"""Share of the layers that hold one package each."""

LARGE_FILE = 1 << 20
"""Bytes from which a file that no package owns counts as a package."""

UNCLAIMED = "unclaimed"


@dataclass(frozen=True)
class Layer:
    """A layer as a registry sees it: digest and bytes of the compressed archive."""

    digest: str
    size: int


def stateless(root: str, layers: int) -> list[Layer]:
    """Pack a tree into at most so many layers."""

    def read(path: str) -> bytes:
        with open(f"{root}/{path}", "rb") as file:
            return file.read()

    tree = scan(root, drop_bad_xattrs=True).tree
    owner = claims(tree, components(tree, read_packages(tree, read)))
    sizes: dict[str, int] = defaultdict(int)
    for path, name in owner.items():
        sizes[name] += tree[path].size
    place = assign(sizes, layers)
    paths: dict[int, list[str]] = defaultdict(list)
    for path, name in owner.items():
        paths[place[name]].append(path)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda index: _write(root, tree, paths[index]), sorted(paths)))


def update_bytes(old: Iterable[Layer], new: Iterable[Layer]) -> int:
    """Bytes that a client with the old version has to fetch for the new one."""
    known = {layer.digest for layer in old}
    return sum(layer.size for layer in new if layer.digest not in known)


def claims(tree: Tree, packaged: Mapping[str, str]) -> dict[str, str]:
    """The group of every path that a layer has to name: all but directories that others imply.

    Hard links of one file stay together, since a layer cannot link into another.
    """
    implied = {parent for path in tree for parent in ancestors(path)} | {ROOT}
    found: dict[str, str] = {}
    for path, entry in tree.items():
        if path in implied:
            continue
        first = entry.group or path
        name = packaged.get(first)
        if name is None:
            name = f"file:{first}" if entry.size >= LARGE_FILE else UNCLAIMED
        found[path] = name
    return found


def assign(sizes: Mapping[str, int], layers: int) -> dict[str, int]:
    """The layer of each group, by its name and rank in size alone."""
    packages = sorted(sizes.keys() - {UNCLAIMED}, key=lambda name: (-sizes[name], name))
    budget = max(1, layers - (UNCLAIMED in sizes))
    alone = budget if len(packages) <= budget else int(ALONE * budget)
    place = {name: index for index, name in enumerate(packages[:alone])}
    for name in packages[alone:]:
        digest = hashlib.sha256(name.encode()).digest()
        place[name] = alone + int.from_bytes(digest[:8], "big") % (budget - alone)
    if UNCLAIMED in sizes:
        place[UNCLAIMED] = min(budget, layers - 1)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stateless", description=__doc__.partition("\n")[0])
    parser.add_argument("tree", help="root tree to pack")
    parser.add_argument("--layers", type=int, default=120, help="at most this many (default: 120)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.layers < 1:
        parser.error("--layers: an image has at least one layer")
    try:
        found = stateless(options.tree, options.layers)
    except RechunkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    total = sum(layer.size for layer in found)
    if options.json:
        print(json.dumps({"layers": [asdict(layer) for layer in found], "bytes": total}))
    else:
        print(f"{len(found)} layers, {total / 1e6:.1f} MB")


def _write(root: str, tree: Tree, paths: Sequence[str]) -> Layer:
    """The layer of these paths and their parent directories."""
    named = set(paths)
    for path in paths:
        named.update(ancestors(path))
    named.discard(ROOT)
    sink = _Sink()
    first: dict[str, str] = {}
    with (
        zstandard.ZstdCompressor(LEVEL).stream_writer(cast("BinaryIO", sink)) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(named):
            entry = tree[path]
            info = _info(path, entry)
            original = first.setdefault(entry.group, path) if entry.group else path
            if original != path:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, original, 0
                archive.addfile(info)
            elif entry.kind == "f":
                with open(f"{root}/{path}", "rb") as file:
                    archive.addfile(info, file)
            else:
                archive.addfile(info)
    return Layer(f"sha256:{sink.hash.hexdigest()}", sink.size)


def _info(path: str, entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE}[entry.kind]
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.mtime = 0 if entry.is_dir else entry.mtime
    info.size = entry.size if entry.kind == "f" else 0
    info.linkname = entry.target
    info.pax_headers = {f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in entry.xattrs}
    return info


class _Sink:
    """Takes the digest and the length of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return len(data)

    def flush(self, *_: object) -> None:
        """Nothing is held back."""


if __name__ == "__main__":
    main()
