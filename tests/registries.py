"""Registries on loopback for tests: Debian's docker-registry itself, and what may stand before one.

    with plain_registry() as registry: ...          open to all
    with htpasswd_registry() as registry: ...       one user, Basic authentication
    with token_registry() as registry: ...          tokens as GHCR wants them, made by a `TokenGate` before a plain one
    with FaultyProxy(registry.host) as proxy: ...   any of them over a line that fails when it is told to

Each `.host` is 127.0.0.1:PORT, and speaks plain HTTP. Processes and files are gone when a context is left.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rechunk_action.registry.client import Repository
from rechunk_action.registry.credentials import ANONYMOUS, Credentials, Found
from rechunk_action.registry.patience import Patience
from rechunk_action.registry.session import Session
from tests.faulty_proxy import Exchange, Fault, FaultyProxy
from tests.oracles import program

USER, PASSWORD = "dkub", "the-very-secret-one"
FOUND = Found(Credentials(USER, PASSWORD), "the credentials of the test")

HASTE = Patience(pause=0.01, timeouts=(2.0, 1.0))
"""Patience for registries that are here, and break on purpose."""


@dataclass(frozen=True)
class Registry:
    """A running registry. `storage` is where it keeps all it has, `log` what it says."""

    host: str
    storage: Path
    log: Path


@contextmanager
def plain_registry() -> Iterator[Registry]:
    with _registry("") as registry:
        yield registry


@contextmanager
def htpasswd_registry() -> Iterator[Registry]:
    """Takes `USER` and `PASSWORD`, and nobody else."""
    with tempfile.TemporaryDirectory(prefix="htpasswd-") as directory:
        users = Path(directory) / "users"
        command = [program("htpasswd", "apache2-utils"), "-nbB", USER, PASSWORD]
        users.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
        with _registry(f"auth: {{htpasswd: {{realm: the-test, path: {users}}}}}") as registry:
            yield registry


@contextmanager
def token_registry(*, public: bool = True) -> Iterator[TokenGate]:
    """Anyone may pull when it is `public`; `USER` may do everything."""
    with plain_registry() as registry, TokenGate(registry.host, public=public) as gate:
        yield gate


@contextmanager
def repository(
    host: str, name: str = "owner/image", *, found: Found = ANONYMOUS, patience: Patience = HASTE
) -> Iterator[Repository]:
    """Our client of a registry on loopback."""
    with Session(host, found, tls_verify=False, patience=patience) as session:
        yield Repository(name, session)


class TokenGate(FaultyProxy):
    """A registry's token authentication, GHCR's way: 401 and a challenge without a token, 403 with one that is good for
    something else. `life` is the seconds that a token has, from its first use on, however busy the machine is.
    """

    def __init__(self, upstream: str, *, public: bool) -> None:
        super().__init__(upstream)
        self.public = public
        self.life = 300.0
        self._granted: dict[str, _Grant] = {}

    @property
    def tokens(self) -> list[str]:
        """The tokens that were given out, and are good."""
        return list(self._granted)

    def revoke(self) -> None:
        """All tokens that were given out."""
        self._granted.clear()

    def intercept(self, exchange: Exchange) -> Fault | None:
        url = urlsplit(exchange.path)
        if url.path == "/token":
            return self._token(exchange, parse_qs(url.query).get("scope", []))
        scheme, _, token = exchange.headers.get("Authorization", "").partition(" ")
        grant = self._granted.get(token)
        if scheme != "Bearer" or grant is None or not grant.lives():
            return self._challenge("invalid_token" if token else "")
        name = re.match(r"/v2/(.+)/(?:tags|manifests|blobs)/", url.path)
        wanted = "pull" if exchange.method in ("GET", "HEAD") else "push"
        if name and wanted not in grant.rights.get(name[1], set()):
            return _error(403, "DENIED", "permission_denied: the token does not match expected scopes")
        return None

    def _token(self, exchange: Exchange, scopes: list[str]) -> Fault:
        sent = exchange.headers.get("Authorization", "")
        known = sent == "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if sent and not known:
            return _error(401, "UNAUTHORIZED", f"authentication required, not {sent}")
        allowed = {"pull", "push"} if known else {"pull"} if self.public else set[str]()
        grant = _Grant(self.life)
        for scope in " ".join(scopes).split():
            _, name, actions = scope.split(":")
            grant.rights[name] = allowed & set(actions.split(","))
        token = secrets.token_urlsafe(16)
        self._granted[token] = grant
        body = json.dumps({"token": token, "expires_in": self.life}).encode()
        return Fault("answer", 200, {"Content-Type": "application/json"}, body)

    def _challenge(self, error: str) -> Fault:
        answer = _error(401, "UNAUTHORIZED", "authentication required")
        challenge = f'Bearer realm="http://{self.host}/token",service="the, test",scope="repository:user/image:pull"'
        answer.headers["www-authenticate"] = challenge + (f',error="{error}"' if error else "")
        return answer


@dataclass
class _Grant:
    life: float
    rights: dict[str, set[str]] = field(default_factory=dict)
    end: float | None = None

    def lives(self) -> bool:
        """Whether a use of it, which is now, is not too late."""
        if self.end is None:
            self.end = time.monotonic() + self.life
        return time.monotonic() <= self.end


def _error(status: int, code: str, message: str) -> Fault:
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Fault("answer", status, {"Content-Type": "application/json"}, body)


@contextmanager
def _registry(auth: str) -> Iterator[Registry]:
    """A registry that chooses its port, which it tells in its log."""
    with tempfile.TemporaryDirectory(prefix="registry-") as directory:
        home = Path(directory)
        storage, log, config = home / "storage", home / "log", home / "config.yml"
        config.write_text(
            "version: 0.1\n"
            "log: {level: info, formatter: text, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}}}\n"
            "http: {addr: '127.0.0.1:0', secret: the-test}\n"
            f"{auth}\n"
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program("docker-registry", "docker-registry"), "serve", config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        with process:
            try:
                yield Registry(_address(process, log), storage, log)
            finally:
                process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.01)
    raise RuntimeError(f"the registry does not start: {log.read_text()}")
