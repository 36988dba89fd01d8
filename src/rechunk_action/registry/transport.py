"""The connections beneath a session: what of requests is wanted, and what its errors mean."""

from __future__ import annotations

import contextlib
import socket
import ssl
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

from rechunk_action import __version__
from rechunk_action.errors import RegistryError, RegistryUnavailable
from rechunk_action.registry.addresses import host_of, is_loopback

CONNECTIONS = 16
"""Connections to a host that are kept for another request: as many as threads that work in parallel."""


class Http(requests.Session):
    """What of requests is wanted here: no redirects, since their bodies and addresses are not to be believed; no user
    from ~/.netrc, which is taken where there is no authentication; no cookies; no proxy on the way to loopback.
    """

    def __init__(self, silence: float) -> None:
        """`silence`: seconds that a connection may be silent, while it sends, too (urllib3 has those of connecting)."""
        super().__init__()
        self._opened: WeakSet[Any] = WeakSet()
        self.auth = lambda request: request
        self.headers.clear()
        self.headers.update({"User-Agent": f"rechunk-action/{__version__}", "Accept-Encoding": "identity"})
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("https://", "http://"):
            adapter = HTTPAdapter(pool_maxsize=CONNECTIONS)
            adapter.poolmanager.pool_classes_by_scheme = {
                "http": _tracked(HTTPConnectionPool, silence, self._opened),
                "https": _tracked(HTTPSConnectionPool, silence, self._opened),
            }
            self.mount(scheme, adapter)

    def hang_up(self) -> None:
        """Break all connections: who waits for an answer is to stop, and would not notice otherwise."""
        for connection in list(self._opened):
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def get_redirect_target(self, resp: requests.Response) -> None:
        del resp

    def merge_environment_settings(self, url: str | bytes | None, *settings: Any) -> Any:  # noqa: ANN401  # as there
        merged = super().merge_environment_settings(url, *settings)
        if is_loopback(host_of(str(url))):
            merged["proxies"] = {}
        return merged


def _tracked(pool: type[HTTPConnectionPool], silence: float, opened: WeakSet[Any]) -> type[HTTPConnectionPool]:
    """A pool whose connections can be found while they are open."""

    class Connection(pool.ConnectionCls):  # type: ignore[name-defined,misc]  # a class of the pool's choice
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(silence)
            opened.add(self)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")


def system_error(error: BaseException) -> OSError | None:
    """The system's error at the root of one of requests or urllib3."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and not isinstance(inner, requests.RequestException):
            return inner
        inner = inner.__cause__ or inner.__context__
    return None


def hopeless(cause: OSError, host: str) -> RegistryError | None:
    """The error of a connection that will fail again, whenever it is tried."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return RegistryError(
            f"the certificate of {host} is not trusted ({cause.verify_message}): name the certificate of "
            "who issued it in REQUESTS_CA_BUNDLE; --tls-verify=false is for registries on loopback"
        )
    if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
        return RegistryError(
            f"{host} does not speak TLS: add --tls-verify=false if it is a registry on loopback, and see whether "
            "the port is right otherwise"
        )
    if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
        return RegistryUnavailable(f"there is no host {host}: see whether the reference and the network are right")
    if isinstance(cause, ConnectionRefusedError) and is_loopback(host):
        return RegistryUnavailable(f"nothing listens at {host}: start the registry, or see whether the port is right")
    return None
