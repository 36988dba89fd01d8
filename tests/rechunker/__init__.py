"""A stand-in for the container of hhd-dev/rechunk, and a tree to put through it.

`image/` honours the original's contract: its scripts, their variables, mounts, files, exit statuses, order and faults.
The planner inside is a small one of our own, and so is the writer of OSTree-chunked images. Faults on purpose are asked
for by a file in the tree, which image/faults.sh describes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.containers import base, builder_path
from tests.oracles import Missing, program, run
from tests.rechunker.tree import small_tree

__all__ = ["FAULTS", "SCRIPTS", "rechunk_step", "rechunker_image", "small_tree"]

IMAGE = Path(__file__).parent / "image"
SCRIPTS = {"prune": "1_prune.sh", "create": "2_create.sh", "chunk": "3_chunk.sh"}
FAULTS = "usr/share/rechunker-faults"
"""A file of a tree: faults to commit, a line each. image/faults.sh lists them."""


@cache
def rechunker_image() -> str:
    """The container image, built once for its sources, and kept by docker between runs."""
    docker = program("docker", "docker.io")
    sources = hashlib.sha256()
    for file in sorted(path for path in IMAGE.iterdir() if path.is_file()):
        sources.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    image = f"rechunk-test-rechunker:{sources.hexdigest()[:16]}"
    if not run(docker, "image", "ls", "--quiet", image):
        base()
        built = subprocess.run(
            ["docker", "build", "--quiet", "--tag", image, IMAGE],
            env=os.environ | {"PATH": builder_path(), "DOCKER_BUILDKIT": "1"},
            check=False,
            text=True,
            capture_output=True,
        )
        if built.returncode != 0:
            raise Missing(f"the stand-in for hhd-dev/rechunk cannot be built: {built.stderr}")
    return image


def rechunk_step(
    step: str,
    binds: Mapping[Path, str],
    environment: Mapping[str, str],
    options: Sequence[str] = (),
    wrapper: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run one of `SCRIPTS` as the original's action does, without a network. Standard error is in standard output.

    `binds` is directory -> where the container sees it, `options` are docker's, `wrapper` is a program that is to run
    the script.
    """
    volumes = [f"--volume={directory}:{target}" for directory, target in binds.items()]
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    return subprocess.run(
        [
            *(program("docker", "docker.io"), "run", "--rm", "--user=0:0", "--network=none", *options),
            *(*volumes, *variables, rechunker_image(), *wrapper, f"/sources/rechunk/{SCRIPTS[step]}"),
        ],
        check=False,
        text=True,
        errors="backslashreplace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
