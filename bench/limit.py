"""The changed-file limit: what an update costs at least when files are sent whole.

Every regular-file content in NEW that is nowhere in OLD (by SHA-256) is compressed alone with zstd -3 and counted
once. File names, metadata, removals and the bytes of an image's manifest are free, so layers of files can come near
this number but hardly below it: only by compressing files together.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import zstandard

LEVEL = 3

NOT_SHIPPED = frozenset({"proc", "sys", "dev", "run", "tmp", "sysroot"})
"""Top-level directories whose contents are the running system's, not the image's."""


@dataclass(frozen=True)
class Limit:
    """Contents that are new, their bytes, and their bytes when each is compressed alone."""

    files: int
    bytes: int
    compressed: int


def limit(old: str, new: str, threads: int | None = None) -> Limit:
    """The limit of an update from the tree `old` to the tree `new`. `threads`: as many as processors by default."""
    threads = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        known = set(pool.map(_digest, regular_files(old), chunksize=1))
        lock = threading.Lock()

        def cost(path: str) -> tuple[int, int]:
            """Bytes and compressed bytes of a file, when nobody has counted its content."""
            with open(path, "rb") as file:
                content = file.read()
            digest = hashlib.sha256(content).digest()
            with lock:
                if digest in known:
                    return 0, 0
                known.add(digest)
            return len(content), len(zstandard.ZstdCompressor(LEVEL).compress(content))

        costs = [cost for cost in pool.map(cost, regular_files(new)) if cost[1]]
    return Limit(len(costs), sum(size for size, _ in costs), sum(compressed for _, compressed in costs))


def regular_files(root: str) -> Iterator[str]:
    """Paths of all regular files that an image ships."""
    top = os.path.abspath(root)
    for directory, names, _ in os.walk(top):
        if directory == top:
            names[:] = [name for name in names if name not in NOT_SHIPPED]
        with os.scandir(directory) as entries:
            yield from (entry.path for entry in entries if entry.is_file(follow_symlinks=False))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.limit", description=__doc__.partition("\n")[0])
    parser.add_argument("old", help="root tree before the update")
    parser.add_argument("new", help="root tree after it")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    for tree in (options.old, options.new):
        if not os.path.isdir(tree):
            parser.error(f"{tree} is not a directory")
    try:
        found = limit(options.old, options.new)
    except PermissionError as error:
        print(f"error: {error.filename} cannot be read: run this with sudo", file=sys.stderr)
        sys.exit(3)
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{found.compressed / 1e6:.2f} MB compressed ({found.files:,} contents, {found.bytes / 1e6:.2f} MB)")


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


if __name__ == "__main__":
    main()
