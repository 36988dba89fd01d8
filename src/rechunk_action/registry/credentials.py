"""Who we are to a registry: what `podman login` and `docker login` left behind.

Files are read as containers-auth.json(5) has it, most specific key first; a program that docker keeps secrets in is
asked the way docker asks it. A secret is handed on and never shown: it is in no representation, message or argument.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import pwd
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rechunk_action.errors import EnvironmentLack, InputError, RegistryError

_TOKEN_USER = "<token>"  # noqa: S105  # the user name by which docker's helpers say that the secret is a token


@dataclass(frozen=True)
class Credentials:
    """A user's name and password, or an identity token (OAuth2's refresh token) instead of the password."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Found:
    """Credentials, and where they are from, in words for a message."""

    credentials: Credentials | None
    where: str
    given: bool = False


ANONYMOUS = Found(None, "no credentials")


def find_credentials(
    host: str,
    repository: str,
    *,
    given: Credentials | None,
    environment: Mapping[str, str],
    uid: int | None = None,
) -> Found:
    """The first that match: those given, then those in the files of docker and podman.

    Raises `InputError` for a damaged file, `EnvironmentLack` or `RegistryError` for a helper that cannot be asked.
    """
    if given is not None:
        return Found(given, f"the given credentials of {given.username!r}", given=True)
    for path in auth_files(environment, os.geteuid() if uid is None else uid):
        config = _read(path)
        if config is not None and (found := _in_file(config, path, host, repository)) is not None:
            return found
    return ANONYMOUS


def auth_files(environment: Mapping[str, str], uid: int) -> Iterator[Path]:
    """Where credentials may be, in order; what is not there is left to the reader, but for a file that was named.

    Under sudo, the files of the user who called it come after root's own: that is who has logged in.
    """
    if named := environment.get("REGISTRY_AUTH_FILE"):
        if not Path(named).exists():
            raise InputError(f"{named} does not exist: correct or unset REGISTRY_AUTH_FILE")
        yield Path(named)
    home = Path(environment.get("HOME") or _home(uid) or "/")
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / _PODMAN
    yield Path(f"/run/containers/{uid}/auth.json")
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / _PODMAN
    caller = environment.get("SUDO_UID", "")
    if uid == 0 and caller.isdecimal() and (caller_home := _home(int(caller))):
        yield Path("/run/user") / caller / _PODMAN
        yield Path(caller_home) / ".docker/config.json"
        yield Path(caller_home) / ".config" / _PODMAN


_PODMAN = "containers/auth.json"


def _home(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): make it readable, or name another in REGISTRY_AUTH_FILE"
        ) from None
    try:
        return _object(json.loads(data), path, "the file")
    except (ValueError, RecursionError):  # whose words may quote the file
        raise _malformed(path, "it is no JSON") from None


def _in_file(config: Mapping[str, Any], path: Path, host: str, repository: str) -> Found | None:
    """Docker's order: a helper of that host, entries, the store of all other hosts."""
    helpers = _object(config.get("credHelpers") or {}, path, "credHelpers")
    for key, helper in helpers.items():
        if _host(key) == host and (credentials := _ask(helper, key, path)):
            return Found(credentials, f"docker-credential-{helper}, which {path} names")
    entries = _object(config.get("auths") or {}, path, "auths")
    for wanted in _keys(host, repository):
        for key, entry in entries.items():
            if wanted in (key, _host(key)) and (credentials := _entry(_object(entry, path, key), path, key)):
                return Found(credentials, f"{path} (user {credentials.username!r})")
    if store := config.get("credsStore"):
        server = next((key for key in entries if _host(key) == host), _HUB if host == "docker.io" else host)
        if credentials := _ask(store, server, path):
            return Found(credentials, f"docker-credential-{store}, which {path} names")
    return None


_HUB = "https://index.docker.io/v1/"


def _keys(host: str, repository: str) -> Iterator[str]:
    parts = [host, *repository.split("/")]
    return ("/".join(parts[:end]) for end in range(len(parts), 0, -1))


def _host(key: str) -> str | None:
    """The host of a key that names no more than a host: `ghcr.io`, or as docker used to write it `https://host/v1/`."""
    bare = re.sub(r"^https?://|(?<=\w)/(?:v[12]/?)?$", "", key)
    if "/" in bare:
        return None
    return "docker.io" if bare in ("index.docker.io", "registry-1.docker.io") else bare


def _entry(entry: Mapping[str, Any], path: Path, key: str) -> Credentials | None:
    username, password, token = (str(entry.get(name) or "") for name in ("username", "password", "identitytoken"))
    if encoded := entry.get("auth"):
        try:
            decoded = base64.b64decode(str(encoded), validate=True).decode()
        except (binascii.Error, ValueError):
            raise _malformed(path, f"'auth' of {key} is not base64") from None
        username, colon, password = decoded.partition(":")
        if not colon:
            raise _malformed(path, f"'auth' of {key} is not a user and a password")
    # Docker pads with zeros what it encodes.
    return Credentials(username, password.rstrip("\0"), token) if username or token else None


def _ask(helper: object, server: str, path: Path) -> Credentials | None:
    """What a credential helper has for a server (docker-credential-helpers' protocol: server in, JSON out)."""
    if not isinstance(helper, str) or not re.fullmatch(r"[\w.-]+", helper):
        raise _malformed(path, f"the helper of {server} is not a program's name")
    program = f"docker-credential-{helper}"
    try:
        ran = subprocess.run([program, "get"], input=server, text=True, capture_output=True, timeout=60, check=False)
    except FileNotFoundError:
        raise EnvironmentLack(
            f"{program} is not installed, and {path} says that it has the credentials of {server}: install it, or "
            f"log in with podman, or take it out of the file"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        # The words of the second would quote the program's output.
        raise RegistryError(_failed(program, server, type(error).__name__)) from None
    if ran.returncode != 0:
        said = ran.stdout.strip() or ran.stderr.strip()
        if "credentials not found" in said:
            return None
        shown = "" if "{" in said else " ".join(said.split())[:200]
        raise RegistryError(_failed(program, server, f"exit status {ran.returncode} {shown}".strip()))
    try:
        answer = json.loads(ran.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, TypeError, KeyError):
        raise RegistryError(_failed(program, server, "its answer is not a user and a secret")) from None
    return Credentials(username, "", secret) if username == _TOKEN_USER else Credentials(username, secret)


def _failed(program: str, server: str, how: str) -> str:
    return f"{program} failed to tell the credentials of {server} ({how}): run `{program} get` to see why"


def _object(value: object, path: Path, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(path, f"{name} is not an object")
    return value


def _malformed(path: Path, why: str) -> InputError:
    return InputError(f"{path} is malformed ({why}): correct it, or log in again with podman or docker")
