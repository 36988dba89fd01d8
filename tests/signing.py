"""Signatures as others make them and ask for them: Debian 13's cosign, and podman under a policy.

    pair = key_pair(directory, password="...")      a key pair, as `cosign generate-key-pair` makes one
    verified(image, pair), signed(image, pair)      what cosign says of an image's signature, and of adding one
    pulled(directory, image, pair)                  what podman says when it may pull only what the pair has signed
    key_text(password)                              a private key as cosign would have written it, for want of a cosign

Both run in containers: Debian 12 has no cosign, and its podman was built without such signatures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from nacl.secret import SecretBox

from tests.containers import action_image, base
from tests.oracles import Missing, program, run

COSIGN = "rechunk-test-cosign:trixie"
INSTALL = "apt-get update -qq && apt-get install -qq -y --no-install-recommends ca-certificates cosign && apt-get clean"

Said = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class KeyPair:
    """The files of a key pair, and the password of its private key."""

    private: Path
    public: Path
    password: str

    @property
    def text(self) -> str:
        return self.private.read_text()


def key_pair(directory: Path, *, password: str) -> KeyPair:
    directory.mkdir(exist_ok=True)
    cosign(directory, "generate-key-pair", password=password).check_returncode()
    return KeyPair(directory / "cosign.key", directory / "cosign.pub", password)


def verified(image: str, pair: KeyPair) -> Said:
    """What cosign says of an image's signature. No log of signatures has heard of ours."""
    options = ("--key", pair.public.name, "--insecure-ignore-tlog", "--allow-http-registry")
    return cosign(pair.public.parent, "verify", *options, image)


def signed(image: str, pair: KeyPair) -> Said:
    """Have cosign sign an image, in the form that clients read."""
    options = ("--yes", "--key", pair.private.name, "--tlog-upload=false", "--allow-http-registry")
    return cosign(pair.private.parent, "sign", *options, image, password=pair.password)


def cosign(directory: Path, *arguments: str, password: str = "") -> Said:
    environment = ("--env", f"COSIGN_PASSWORD={password}")
    return _run(directory, _cosign_image(), *arguments, options=(*environment, "--entrypoint", "cosign"))


def pulled(directory: Path, image: str, pair: KeyPair) -> Said:
    """Have podman pull an image as a user whose policy asks for a signature by that pair, and takes nothing else."""
    registry, _, _ = image.partition("/")
    home = directory / "home/.config/containers"
    (home / "registries.d").mkdir(parents=True, exist_ok=True)
    (directory / "key.pub").write_bytes(pair.public.read_bytes())
    signed_by = {"type": "sigstoreSigned", "keyPath": "/here/key.pub", "signedIdentity": {"type": "matchRepository"}}
    policy = {"default": [{"type": "reject"}], "transports": {"docker": {registry: [signed_by]}}}
    (home / "policy.json").write_text(json.dumps(policy))
    attached = f"docker:\n  {registry}:\n    use-sigstore-attachments: true\n"
    (home / "registries.d/test.yaml").write_text(attached)
    rights = ("--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined", "--tmpfs=/run", "--env=HOME=/here/home")
    command = ("--storage-driver=vfs", "pull", "--quiet", "--tls-verify=false", image)
    return _run(directory, action_image(), *command, options=(*rights, "--entrypoint=podman"))


def key_text(
    password: str,
    key: PrivateKeyTypes | None = None,
    *,
    kdf: str = "scrypt",
    cipher: str = "nacl/secretbox",
    cost: int = 1 << 10,
    label: str = "ENCRYPTED SIGSTORE PRIVATE KEY",
) -> str:
    """Without a key, it has a new one; `kdf` and `cipher` are but what it says of itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    salt, nonce = os.urandom(32), os.urandom(SecretBox.NONCE_SIZE)
    box = SecretBox(hashlib.scrypt(password.encode(), salt=salt, n=min(cost, 1 << 10), r=8, p=1, dklen=32))
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    stored = {
        "kdf": {"name": kdf, "params": {"N": cost, "r": 8, "p": 1}, "salt": _base64(salt)},
        "cipher": {"name": cipher, "nonce": _base64(nonce)},
        "ciphertext": _base64(box.encrypt(der, nonce).ciphertext),
    }
    lines = textwrap.wrap(_base64(json.dumps(stored).encode()), 64)
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _run(directory: Path, image: str, *arguments: str, options: tuple[str, ...]) -> Said:
    command = ("--network=host", f"--volume={directory}:/here", "--workdir=/here", *options, image, *arguments)
    docker = program("docker", "docker.io")
    return subprocess.run([docker, "run", "--rm", *command], check=False, text=True, capture_output=True)


@cache
def _cosign_image() -> str:
    """Made once, and kept by docker."""
    docker = program("docker", "docker.io")
    if not run(docker, "image", "ls", "--quiet", COSIGN):
        container = run(docker, "create", "--network=host", base(), "sh", "-euc", INSTALL).strip()
        try:
            run(docker, "start", "--attach", container)
            run(docker, "commit", container, COSIGN)
        except subprocess.CalledProcessError as error:
            raise Missing(f"cosign cannot be installed in a container: {error.stdout}{error.stderr}") from error
        finally:
            run(docker, "rm", "--force", container)
    return COSIGN
