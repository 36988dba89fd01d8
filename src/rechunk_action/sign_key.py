"""The private key that images are signed with: that of a cosign key pair, encrypted under a password.

`cosign generate-key-pair` writes it as PEM around a JSON document (secure-systems-lab/go-securesystemslib, encrypted):
scrypt makes a key of the password, and nacl/secretbox has encrypted a PKCS #8 key with that. The key pair is one of
ECDSA P-256.

The key is text in a variable or a file, and decrypted nowhere but in memory. No message holds any of it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from rechunk_action.errors import InputError

PASSWORD = "COSIGN_PASSWORD"  # noqa: S105  # the name of the variable
"""The variable that cosign reads a key's password from."""

MEMORY = 256 << 20
"""Bytes that scrypt may take: four times what keys of cosign take."""


def read_key(place: str, environment: Mapping[str, str]) -> EllipticCurvePrivateKey:
    """The key in a place that is named as for cosign: `env://VARIABLE`, or the path of a file. The password is in the
    environment. Raises `InputError`.
    """
    scheme, _, variable = place.partition("env://")
    name = f"--sign-key {place}"
    if scheme:
        try:
            text = Path(place).read_text(encoding="utf-8")
        except OSError as fault:
            raise InputError(
                f"{name} cannot be read ({fault.strerror}): name a file, or a variable (env://VARIABLE)"
            ) from None
        except UnicodeDecodeError:
            raise InputError(f"{name} {_NO_KEY}") from None
    else:
        text = environment.get(variable, "")
        if not text:
            raise InputError(f"{name} names a variable that is not set: put the text of cosign.key into it")
    return decrypted(text, environment.get(PASSWORD, ""), name=name, password_name=PASSWORD)


def decrypted(text: str, password: str, *, name: str, password_name: str) -> EllipticCurvePrivateKey:
    """The key in the text of a file `cosign.key`. Messages call the two by their names. Raises `InputError`."""
    found = _PEM.search(text)
    if not found:
        unencrypted = "is not encrypted: have `cosign import-key-pair` make a key pair of it, and take its private key"
        raise InputError(f"{name} {unencrypted if _UNENCRYPTED.search(text) else _NO_KEY}")
    try:
        stored = msgspec.json.decode(base64.b64decode(found[2]), type=_Stored)
        if (stored.kdf.name, stored.cipher.name) != ("scrypt", "nacl/secretbox"):
            raise InputError(f"{name} is not encrypted as cosign does it (scrypt, nacl/secretbox): {_ANOTHER}")
        key = load_der_private_key(_opened(stored, password), None)
    except (ValueError, msgspec.MsgspecError):
        raise InputError(f"{name} is damaged: give all of the file cosign.key, byte for byte") from None
    except CryptoError:
        raise InputError(f"{name} cannot be opened with the password in {password_name}: correct one of them") from None
    if not (isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)):
        raise InputError(f"{name} is no key of ECDSA P-256: {_ANOTHER}")
    return key


def _opened(stored: _Stored, password: str) -> bytes:
    """Raises `CryptoError` for a wrong password, `ValueError` for what nobody has encrypted."""
    cost, salt = stored.kdf.params, stored.kdf.salt
    secret = os.fsencode(password)  # the bytes that the environment has
    key = hashlib.scrypt(secret, salt=salt, n=cost.N, r=cost.r, p=cost.p, maxmem=MEMORY, dklen=SecretBox.KEY_SIZE)
    return SecretBox(key).decrypt(stored.ciphertext, stored.cipher.nonce)


_PEM = re.compile(r"-----BEGIN (ENCRYPTED (?:SIGSTORE|COSIGN) PRIVATE KEY)-----\s(.*?)-----END \1-----", re.DOTALL)
_UNENCRYPTED = re.compile(r"-----BEGIN (?:RSA |EC )?PRIVATE KEY-----")
_NO_KEY = "holds no private key of cosign: give all of the file cosign.key, with its first and last line"
_ANOTHER = "make a key pair with `cosign generate-key-pair`"


_Cost = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]


class _Params(msgspec.Struct):
    N: _Cost
    r: _Cost
    p: _Cost


class _Kdf(msgspec.Struct):
    name: str
    params: _Params
    salt: bytes


class _Cipher(msgspec.Struct):
    name: str
    nonce: bytes


class _Stored(msgspec.Struct):
    """Bytes are base64, as in Go's JSON."""

    kdf: _Kdf
    cipher: _Cipher
    ciphertext: bytes
