"""The container that the action runs in, made for tests: once for a version, and kept by docker between runs.

Its base is not pulled but made of Debian's packages, under the name that the Dockerfile has for it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.oracles import Missing, program, run

ROOT = Path(__file__).parent.parent
BASE = "debian:trixie-slim"
STAND_IN = "rechunk-test-stand-in:2"
"""Runs the text of the input `description` as a shell script, instead of rechunk-action."""


@cache
def base() -> str:
    """The image that the Dockerfile starts from."""
    docker = program("docker", "docker.io")
    if run(docker, "image", "ls", "--quiet", BASE):
        return BASE
    # The machine's own mirror; without one, mmdebstrap takes Debian's.
    uris = run(program("apt-get", "apt"), "indextargets", "--format", "$(REPO_URI)").split()
    mirrors = [uri for uri in uris if uri.rstrip("/").endswith("/debian")][:1]
    debstrap = program("mmdebstrap", "mmdebstrap debian-archive-keyring")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        root = Path(directory, "root.tar")
        # Memory, where TMPDIR may be, is often mounted noexec, and a system cannot be installed there.
        run("env", "--unset=TMPDIR", debstrap, "--quiet", "--variant=minbase", "trixie", root, *mirrors)
        run(docker, "import", root, BASE)
    return BASE


@cache
def stand_in() -> str:
    """A container image that starts in no time."""
    docker = program("docker", "docker.io")
    if not run(docker, "image", "ls", "--quiet", STAND_IN):
        container = run(docker, "create", base(), "true").strip()
        entry = 'ENTRYPOINT ["sh", "-c", "eval \\"$INPUT_DESCRIPTION\\""]'
        run(docker, "commit", "--change", entry, container, STAND_IN)
        run(docker, "rm", container)
    return STAND_IN


@cache
def action_image() -> str:
    """The container image of the action as it is here, for RECHUNK_ACTION_IMAGE. Built by the action's own script."""
    base()
    script = 'source scripts/run-action && container_image >&2 && echo "$image"'
    built = subprocess.run(
        ["bash", "-euc", script],
        cwd=ROOT,
        env=os.environ | {"PATH": builder_path()},
        check=False,
        text=True,
        capture_output=True,
    )
    if built.returncode != 0:
        raise Missing(f"the action's container image cannot be built: {built.stderr}")
    return built.stdout.strip()


@cache
def builder_path() -> str:
    """PATH, where the first docker is one that builds: since version 23, that takes a plugin (docker-buildx)."""
    for directory in ["/usr/bin", *os.environ["PATH"].split(os.pathsep)]:
        docker = Path(directory, "docker")
        if docker.exists() and _builds(docker):
            return os.pathsep.join((directory, os.environ["PATH"]))
    raise Missing("no docker here builds images: apt-get install docker.io (or docker-buildx)")


def _builds(docker: Path) -> bool:
    version = run(docker, "version", "--format", "{{.Client.Version}}")
    plugin = subprocess.run([docker, "buildx", "version"], check=False, capture_output=True)
    return int(version.partition(".")[0]) < 23 or plugin.returncode == 0
