"""An image's signature in its repository, in the form that podman, bootc, rpm-ostree and cosign read.

That form is cosign's (sigstore/cosign, specs/SIGNATURE_SPEC.md; containers/image reads it as a "sigstore attachment").
The tag `sha256-HEX.sig`, made of the image's digest, names a manifest whose layers are signatures: the blob is what was
signed, a short JSON document with repository and digest, and an annotation holds the signature, ECDSA P-256 over
SHA-256. cosign 3 has another form, which clients do not find yet.

Invariants:
- What others have signed stays: a signature is added to those that are there. One that is there already is not added
  again, since all that is signed is repository and digest.
- A signature counts once it has been read back and verified, as a client finds it: by the tag, with the public key.

Why no other program signs: skopeo does, but wants key, password and login as files, asks for every layer and puts the
image's manifest once more, and adds a signature with each run; cosign would add 70 MB to the action's container.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import NotRequired, TypedDict

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from rechunk_action.errors import CorruptImage, NotInRegistry, RegistryError
from rechunk_action.oci.image import CONFIG, MANIFEST, Json, checked_digest, digest_of, parse
from rechunk_action.registry.client import Repository

SIGNED = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"


def sign(repository: Repository, digest: str, key: EllipticCurvePrivateKey) -> None:
    """Sign the image of that digest, which is in the repository.

    Raises `RegistryError` when the registry does not take the signature, or does not hand it out afterwards.
    """
    if is_signed(repository, digest, key.public_key()):
        return
    payload = signed_payload(str(repository), digest)
    signature = base64.b64encode(key.sign(payload, ECDSA(SHA256()))).decode()
    ours = {"mediaType": SIGNED, "digest": digest_of(payload), "size": len(payload)}
    manifest = _manifest(repository, digest)
    manifest["layers"] = [*manifest["layers"], {**ours, "annotations": {SIGNATURE: signature}}]
    config = _encoded(_config([layer["digest"] for layer in manifest["layers"]]))
    manifest["config"] = {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)}
    for blob in (payload, config):
        repository.upload_bytes(blob)
    repository.put_manifest(signature_tag(digest), _encoded(manifest), MANIFEST)
    if not is_signed(repository, digest, key.public_key()):
        raise RegistryError(f"{repository} has taken the signature of {digest}, and does not have it: try again")


def is_signed(repository: Repository, digest: str, key: EllipticCurvePublicKey) -> bool:
    """Whether the image of that digest has a signature for this repository that this key verifies."""
    payload = signed_payload(str(repository), digest)
    for layer in _manifest(repository, digest)["layers"]:
        if (layer["mediaType"], layer["digest"]) == (SIGNED, digest_of(payload)) and _verifies(layer, payload, key):
            try:
                return repository.fetch_blob(layer["digest"], len(payload), len(payload)) == payload
            except NotInRegistry:
                return False
    return False


def signature_tag(digest: str) -> str:
    """The tag of the signatures of an image."""
    return checked_digest(digest).replace(":", "-") + ".sig"


def signed_payload(repository: str, digest: str) -> bytes:
    """What is signed: that this digest is an image of this repository (HOST/NAME)."""
    return _encoded(
        {
            "critical": {
                "identity": {"docker-reference": repository},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    )


def _verifies(layer: Json, payload: bytes, key: EllipticCurvePublicKey) -> bool:
    try:
        signature = base64.b64decode(layer.get("annotations", {}).get(SIGNATURE, ""), validate=True)
        key.verify(signature, payload, ECDSA(SHA256()))
    except (binascii.Error, ValueError, InvalidSignature):
        return False
    return True


def _manifest(repository: Repository, digest: str) -> Json:
    """The manifest of an image's signatures, an empty one where there is none."""
    tag = signature_tag(digest)
    found = repository.manifest(tag)
    if found is None:
        return {"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}
    try:
        return parse(found.data, tag, _Manifest)
    except CorruptImage as fault:
        raise RegistryError(
            f"{repository}:{tag} is where signatures belong, and holds something else ({fault}): delete that tag"
        ) from None


def _config(digests: list[str]) -> Json:
    """What makes an image of signatures, for tools that read them as one."""
    return {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": digests}}


def _encoded(document: Json) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class _Layer(TypedDict):
    mediaType: str
    digest: str
    annotations: NotRequired[dict[str, str]]


class _Manifest(TypedDict):
    layers: list[_Layer]
