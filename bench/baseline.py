"""What reading a tree costs at least: the time of plain work that every rechunking contains.

- `read`: walk, lstat and SHA-256 of every file with a number of threads, files in the page cache: the floor of a run
  that changes nothing;
- `pack`: `tar | zstd -3 -T2` of the same tree into a file: the floor of a run that writes everything anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

PIECE = 1 << 20
"""Bytes read at once, so that all but a few files take one call."""

Batch = list[tuple[str, int]]


@dataclass(frozen=True)
class Baseline:
    """Seconds of both, with what was read and written."""

    threads: int
    paths: int
    files: int
    bytes: int
    read_seconds: float
    packed_bytes: int
    pack_seconds: float


def baseline(tree: str, threads: int) -> Baseline:
    """Read the tree twice, so that the second time counts with a warm cache; then pack it."""
    read_all(tree, threads)
    started = time.perf_counter()
    paths, files, size = read_all(tree, threads)
    read_seconds = time.perf_counter() - started
    started = time.perf_counter()
    packed = pack(tree)
    return Baseline(threads, paths, files, size, read_seconds, packed, time.perf_counter() - started)


def read_all(tree: str, threads: int) -> tuple[int, int, int]:
    """Walk, lstat and hash: paths, regular files, bytes."""
    paths = files = size = 0

    def found() -> Iterator[Batch]:
        nonlocal paths, files, size
        for seen, batch in _directories(tree):
            paths += seen
            files += len(batch)
            size += sum(length for _, length in batch)
            yield batch

    # Digests are taken and dropped: what they are for is not part of the floor.
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(_hash_batch, found()):
            pass
    return paths, files, size


def pack(tree: str) -> int:
    """Bytes of the tree as `tar | zstd -3 -T2` writes it to a file."""
    with tempfile.NamedTemporaryFile(prefix="baseline-", suffix=".tar.zst") as file:
        script = f"tar --create --numeric-owner --directory {shlex.quote(tree)} . | zstd -q -3 -T2 > {file.name}"
        subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True)
        return os.path.getsize(file.name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.baseline", description=__doc__.partition("\n")[0])
    parser.add_argument("tree", help="root tree to read")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads that hash (default: processors)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if not os.path.isdir(options.tree):
        parser.error(f"{options.tree} is not a directory")
    try:
        found = baseline(options.tree, options.threads)
    except PermissionError as error:
        print(f"error: {error.filename} cannot be read: run this with sudo", file=sys.stderr)
        sys.exit(3)
    except subprocess.CalledProcessError:
        print("error: tar and zstd could not pack the tree; are both installed, and has TMPDIR room?", file=sys.stderr)
        sys.exit(3)
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        print(
            f"{found.paths:,} paths, {found.bytes / 1e6:,.0f} MB\n"
            f"walk + lstat + SHA-256, {found.threads} threads, warm: {found.read_seconds:.2f} s\n"
            f"tar | zstd -3 -T2: {found.pack_seconds:.2f} s ({found.packed_bytes / 1e6:,.0f} MB)"
        )


def _directories(tree: str) -> Iterator[tuple[int, Batch]]:
    """Each directory's number of entries, and its regular files with their sizes."""
    pending = [tree]
    while pending:
        files: Batch = []
        seen = 0
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                seen += 1
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    files.append((entry.path, status.st_size))
                elif stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
        yield seen, files


def _hash_batch(batch: Batch) -> list[bytes]:
    return [_digest(path, size) for path, size in batch]


def _digest(path: str, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if size <= PIECE:
            return hashlib.sha256(os.read(descriptor, PIECE)).digest()
        digest = hashlib.sha256()
        while piece := os.read(descriptor, PIECE):
            digest.update(piece)
        return digest.digest()
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
