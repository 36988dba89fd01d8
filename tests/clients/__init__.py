"""Clients that are published as Rust crates, built for tests: once for what is pinned here, and kept by docker.

    image("ostree-ext")          a container image of Debian 13 with it, and with ostree and skopeo
    binary("ostree-ext", into)   the program as a file, for any Debian 13 that has ostree and skopeo

- `ostree-ext` is the importer of bootc and rpm-ostree as of its last crate, 0.15.3 (rpm-ostree 2024.9 and 2025.1 have
  it): it takes OSTree-chunked images alone. Its commands are those of `ostree container`, as in `ostree-ext container
  image pull REPO ostree-unverified-image:oci:DIR:TAG`.
- `cfsctl` is the code of bootc's composefs backend: `cfsctl --repo=REPO oci pull oci:DIR:TAG`.

Both are libraries with a command line; what is ours is to call it. Everything is pinned: crates.lock holds the version
and the checksum of every crate, and nothing is built of any other. A first build takes minutes of processor time.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

from tests.containers import base, builder_path
from tests.oracles import Missing, program, run

HERE = Path(__file__).parent

Client = Literal["cfsctl", "ostree-ext"]


@cache
def image(client: Client) -> str:
    docker, name = program("docker", "docker.io"), f"rechunk-test-{client}:{_version(client)}"
    if not run(docker, "image", "ls", "--quiet", name):
        base()
        command = ["docker", "build", "--build-arg", f"CLIENT={client}", "--tag", name, str(HERE)]
        if authorities := os.environ.get("SSL_CERT_FILE"):
            command += ["--secret", f"id=ca,src={authorities}"]
        # Other builders do not hand images over to docker.
        environment = os.environ | {"PATH": builder_path(), "DOCKER_BUILDKIT": "1", "BUILDX_BUILDER": "default"}
        built = subprocess.run(command, check=False, env=environment, text=True, capture_output=True)
        if built.returncode != 0:
            raise Missing(f"the client {client} cannot be built: {built.stderr}")
    return name


def binary(client: Client, into: Path) -> Path:
    docker = program("docker", "docker.io")
    container = run(docker, "create", image(client)).strip()
    try:
        run(docker, "cp", f"{container}:/usr/bin/{client}", into)
    finally:
        run(docker, "rm", container)
    return into / client


def _version(client: Client) -> str:
    """One for all that a client is built of."""
    made_of = [HERE / name for name in ("Dockerfile", "Cargo.toml", "crates.lock", f"{client}.rs")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in made_of)).hexdigest()[:16]
