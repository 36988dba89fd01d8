"""HTTP as registries speak it: authentication, redirects, faults that pass, and bounds for all of them.

Invariants:
- A fault is never an answer. What may pass (a broken connection, 429, 5xx) is a `Fault` and tried again, for as long
  as `Patience` has it; then, and for everything that cannot pass, an error of the `RegistryError` family is raised.
- Credentials go to the token server that the registry names, over TLS or loopback; authorization goes to the registry
  alone. Redirects are followed here, and not by requests, so that nothing else adds it again.
- No secret is in a message: neither errors of requests nor headers are quoted, and a server's words are searched.

Threads may share a session. Nothing of the `requests.Session` changes once it is made (cookies are refused), urllib3's
pools are made for threads, and tokens are behind a lock, so that one thread renews a token for all.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self, TypeVar

import requests
import urllib3

from rechunk_action.errors import AccessDenied, InputError, RegistryError
from rechunk_action.registry.addresses import host_of, is_loopback, is_private, join, origin
from rechunk_action.registry.challenge import NO_CHALLENGE, Token, choose, parse_challenges, parse_token
from rechunk_action.registry.credentials import ANONYMOUS, Found
from rechunk_action.registry.patience import Fault, Patience, Waits
from rechunk_action.registry.reference import API_HOSTS
from rechunk_action.registry.transport import Http, hopeless, system_error
from rechunk_action.workers import checkpoint, stoppers

MAX_ANSWER = 4 << 20
"""Bytes that are read of an answer, but for blobs: what clients read of a manifest (containers/image, iolimits.go)."""

MAX_REDIRECTS = 5

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Access:
    """The right that a request needs: to pull from a repository, or to push to it and pull from `source` as well."""

    repository: str
    push: bool = False
    source: str | None = None

    @property
    def scopes(self) -> list[str]:
        scopes = [f"repository:{self.repository}:pull{',push' if self.push else ''}"]
        return scopes + ([f"repository:{self.source}:pull"] if self.source else [])


@dataclass(frozen=True)
class Answer:
    """An answer that was read to its end. `headers` are found in any case of letters."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def codes(self) -> list[str]:
        """The distribution API's error codes; none where the answer is not a registry's."""
        return [str(error.get("code")) for error in _errors(self.body)]

    @property
    def said(self) -> str:
        """The server's words: the distribution API's errors, or a text."""
        errors = _errors(self.body)
        if errors:
            return "; ".join(f"{error.get('code')}: {error.get('message')}" for error in errors[:3])
        return "" if "html" in self.headers.get("Content-Type", "") else self.body.decode(errors="replace")


class Session:
    """Requests to the registry of one host, with one user's credentials. A context manager that closes connections."""

    def __init__(
        self, host: str, found: Found = ANONYMOUS, *, tls_verify: bool = True, patience: Patience | None = None
    ) -> None:
        """Without `tls_verify`, plain HTTP: for registries on loopback alone, else `InputError`."""
        if not tls_verify and not is_loopback(host):
            raise InputError(
                f"--tls-verify=false is for registries on loopback, which {host} is not: leave it out, and name "
                "the certificate of who issued the registry's in REQUESTS_CA_BUNDLE"
            )
        self.host = host
        self.patience = patience or Patience()
        self.base = f"{'https' if tls_verify else 'http'}://{API_HOSTS.get(host, host)}"
        self._found = found
        self._challenge = NO_CHALLENGE
        self._tokens: dict[Access, Token] = {}
        self._lock = threading.Lock()
        self._http = Http(self.patience.timeouts[1])

    def __enter__(self) -> Self:
        stoppers.append(self._http.hang_up)
        return self

    def __exit__(self, *_: object) -> None:
        stoppers.remove(self._http.hang_up)
        self._http.close()

    def request(
        self,
        method: str,
        target: str,
        access: Access,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """A request that may be repeated, until it is answered. Its answer may be any status but those of faults.

        Raises `AccessDenied`, `RegistryUnavailable`, or `RegistryError`.
        """
        return self.patiently(lambda: self.attempt(method, target, access, headers=headers, body=body))

    def attempt(
        self,
        method: str,
        target: str,
        access: Access,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
    ) -> Answer:
        """As `request`, but a fault raises `Fault`. A `body` that is no bytes has a length, and can be read again."""
        with self.open(method, target, access, headers=headers, body=body) as response:
            return self.answer(response)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        target: str,
        access: Access,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
    ) -> Iterator[requests.Response]:
        """As `attempt`, its answer unread. `target` is a path of the registry, or a URL that it gave."""
        with contextlib.closing(self._authenticated(method, target, access, headers or {}, body)) as response:
            yield response

    def answer(self, response: requests.Response) -> Answer:
        """An open answer, read to its end."""
        with self._faults(response.url):
            body = response.raw.read(MAX_ANSWER + 1, decode_content=True)
        if len(body) > MAX_ANSWER:
            raise RegistryError(
                f"{host_of(response.url)} sends more than {MAX_ANSWER:,} bytes where no more than a document is due: "
                "see whether the reference is right"
            )
        return Answer(response.url, response.status_code, response.headers, body)

    def read(self, response: requests.Response, size: int) -> bytes:
        """So many bytes of an answer, as they came over the line; fewer at its end. Raises `Fault`."""
        with self._faults(response.url):
            data: bytes = response.raw.read(size, decode_content=False)
            return data

    def patiently(self, attempt: Callable[[], _Result]) -> _Result:
        """What an attempt comes to once it meets no `Fault`."""
        waits = self.waits()
        while True:
            checkpoint()
            try:
                return attempt()
            except Fault as fault:
                waits.after(fault)

    def waits(self) -> Waits:
        return Waits(self.patience)

    def owns(self, url: str) -> bool:
        """Whether a URL is the registry's own, where authorization may be sent."""
        return origin(url) == origin(self.base)

    def unexpected(self, answer: Answer, what: str) -> RegistryError:
        return RegistryError(
            f"{self.host} answered {answer.status} to {what}{self._quote(answer)}: "
            "try again, and ask those who run the registry if it stays so"
        )

    def _authenticated(
        self,
        method: str,
        target: str,
        access: Access,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
    ) -> requests.Response:
        """What the registry answers once it has what authentication it asks for.

        A token may have expired (401), or was made before a right was given (403): each is asked for anew once.
        """
        url = join(self.base, target)
        self._require_private(url)
        renewed: set[int] = set()
        while True:
            authorization = self._authorization(access) if self.owns(url) else {}
            response = self._follow(method, url, {**headers, **authorization}, body)
            status = response.status_code
            if status not in _DENIALS or not self.owns(response.url):
                return response
            with contextlib.closing(response):
                answer = self.answer(response)
            if status in renewed or not self._renew(answer, access, authorization):
                raise self._denied(answer, access)
            renewed.add(status)

    def _follow(
        self, method: str, url: str, headers: dict[str, str], body: bytes | Iterable[bytes] | None
    ) -> requests.Response:
        """The answer at the end of redirects. Those of a GET alone are followed: the storage behind a registry may
        refuse a HEAD, and what is sent is not for others.
        """
        for _ in range(MAX_REDIRECTS + 1):
            with self._faults(url):
                response = self._http.request(
                    method,
                    url,
                    headers=headers,
                    data=body,
                    stream=True,
                    timeout=self.patience.timeouts,
                )
            if method != "GET" or not response.is_redirect:
                # Storage denies what a signed URL no longer allows: the registry gives a new one.
                return self._without(_FAULTS if self.owns(url) else (*_FAULTS, *_DENIALS), response)
            with contextlib.closing(response):
                self.answer(response)  # to its end, so that the connection can be used again
            onward = join(url, response.headers["Location"])
            self._require_private(onward)
            if origin(onward) != origin(url):
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = onward
        raise RegistryError(f"{self.host} redirects more than {MAX_REDIRECTS} times: ask those who run the registry")

    def _require_private(self, url: str) -> None:
        if not is_private(url):
            raise RegistryError(
                f"{self.host} refers to {host_of(url)} without TLS, which is refused: ask those who run the registry"
            )

    def _without(self, faults: Collection[int], response: requests.Response) -> requests.Response:
        """The response, unless its status is among the faults: then it is read and raised."""
        if response.status_code not in faults:
            return response
        with contextlib.closing(response):
            answer = self.answer(response)
        text = f"{host_of(response.url)} answered {answer.status}{self._quote(answer)}"
        raise Fault(text, _retry_after(answer.headers.get("Retry-After", "")))

    def _authorization(self, access: Access) -> dict[str, str]:
        """The header that the registry wants, as far as is known; a token that is about to expire is renewed."""
        with self._lock:
            if self._challenge.scheme == "basic":
                return self._basic()
            if self._challenge.scheme != "bearer":
                return {}
            token = self._tokens.get(access)
            if token is None or token.renew_at < time.monotonic():
                token = self._tokens[access] = self.patiently(lambda: self._exchange(access))
            return {"Authorization": f"Bearer {token.value}"}

    def _basic(self) -> dict[str, str]:
        user = self._found.credentials
        if user is None or not user.password:
            return {}
        encoded = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
        return {"Authorization": f"Basic {encoded}"}

    def _renew(self, answer: Answer, access: Access, sent: Mapping[str, str]) -> bool:
        """Whether the next try has another authorization than the one that was `sent`."""
        with self._lock:
            if answer.status == HTTPStatus.UNAUTHORIZED:
                self._challenge = choose(parse_challenges(answer.headers.get("WWW-Authenticate", "")))
            if self._challenge.scheme == "bearer":
                token = self._tokens.get(access)
                if token is not None and sent == {"Authorization": f"Bearer {token.value}"}:
                    del self._tokens[access]
                return True
            return self._challenge.scheme == "basic" and self._basic() not in ({}, sent)

    def _exchange(self, access: Access) -> Token:
        """A token from the server that the registry named (distribution-spec and docker's token specification)."""
        realm = self._challenge.parameters.get("realm", "")
        if not is_private(realm):
            raise RegistryError(
                f"{self.host} wants credentials sent to {realm[:200]!r}, which is not https, and gets none: "
                "see whether the reference is right"
            )
        service = self._challenge.parameters.get("service", "")
        user = self._found.credentials
        asked: list[tuple[str, str]] = [("service", service)] if service else []
        with self._faults(realm):
            if user is not None and user.identity_token:
                asked += [("grant_type", "refresh_token"), ("refresh_token", user.identity_token)]
                asked += [("client_id", "rechunk-action"), ("scope", " ".join(access.scopes))]
                response = self._token_request("POST", realm, data=asked)
            else:
                asked += [("scope", scope) for scope in access.scopes]
                response = self._token_request("GET", realm, params=asked, headers=self._basic())
        with contextlib.closing(self._without(_FAULTS, response)):
            answer = self.answer(response)
        if answer.status in _DENIALS:
            raise self._denied(answer, access)
        if answer.status != HTTPStatus.OK:
            raise self.unexpected(answer, f"the request for a token at {host_of(realm)}")
        token = parse_token(answer.body)
        if token is None:
            raise RegistryError(f"{host_of(realm)} answered with no token that could be used: try again")
        return token

    def _token_request(self, method: str, realm: str, **options: Any) -> requests.Response:  # noqa: ANN401
        return self._http.request(method, realm, stream=True, timeout=self.patience.timeouts, **options)

    def _denied(self, answer: Answer, access: Access) -> AccessDenied:
        act = "pushing to" if access.push else "pulling from"
        return AccessDenied(
            f"{self.host} denies {act} {self.host}/{access.repository} with {self._found.where}"
            f"{self._quote(answer)}: {_remedy(self.host, self._found, push=access.push)}"
        )

    def _quote(self, answer: Answer) -> str:
        """The server's words in brackets and on one line, without any secret that it may have echoed."""
        said = answer.said
        for secret in self._secrets():
            said = said.replace(secret, "***")
        said = " ".join("".join(c if c.isprintable() else " " for c in said).split())[:300]
        return f" ({said})" if said else ""

    def _secrets(self) -> Iterator[str]:
        user = self._found.credentials
        if user is not None:
            yield from filter(None, (user.password, user.identity_token))
        yield from (value.partition(" ")[2] for value in self._basic().values())
        yield from (token.value for token in list(self._tokens.values()))

    @contextlib.contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        """Errors of requests and urllib3 as ours. They are not quoted: they know whole requests, secrets included."""
        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._fault(error, host_of(url)) from None

    def _fault(self, error: Exception, host: str) -> Fault | RegistryError:
        if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
            return Fault(f"{host} did not answer in time")
        if isinstance(error, ValueError):
            return RegistryError(f"{self.host} gave an address that cannot be used: ask those who run the registry")
        cause = system_error(error)
        if cause is None:
            return Fault(f"{host} hung up")
        return hopeless(cause, host) or Fault(f"the connection to {host} failed ({cause.strerror or cause})")


_DENIALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_FAULTS = (429, 500, 502, 503, 504)


def _retry_after(header: str) -> float:
    """Seconds from now: the header holds a number or a date."""
    seconds = header.strip()
    if seconds.isdecimal():
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _remedy(host: str, found: Found, *, push: bool) -> str:
    if found.given and host != "ghcr.io":
        return "check the user name and the password, and whether that user may do it"
    if host == "ghcr.io":
        return (
            f"in a workflow, give the job `permissions: packages: {'write' if push else 'read'}` and, for a package "
            "of another repository, add this one under the package's 'Manage Actions access'; elsewhere, run "
            "`podman login ghcr.io`"
        )
    return f"run `podman login {host}` as a user who may do that"


def _errors(body: bytes) -> list[dict[str, Any]]:
    """The errors in an answer of the distribution API."""
    try:
        errors = json.loads(body)["errors"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
