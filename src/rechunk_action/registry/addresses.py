"""Addresses that servers give: what they lead to, and whether it is private. They are not to be believed."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urljoin, urlsplit

from rechunk_action.errors import RegistryError


def join(base: str, target: str) -> str:
    """An address that a server gave, relative or not."""
    try:
        return urljoin(base, target)
    except ValueError:
        raise RegistryError(f"{host_of(base)} gave an address that cannot be used: {target[:200]!r}") from None


def is_loopback(host: str) -> bool:
    """Whether `host`, with or without a port, is this machine."""
    name = _split(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what may be sent to one address may be sent to all of the same origin."""
    parts = _split(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def host_of(url: str) -> str:
    """The host and port of a URL, for a message: the rest may be a signature."""
    return _split(url).netloc.rpartition("@")[2]


def is_private(url: str) -> bool:
    """Whether others cannot listen."""
    return _split(url).scheme == "https" or (_split(url).scheme == "http" and is_loopback(host_of(url)))


def _split(url: str) -> SplitResult:
    """The parts of a URL; all are empty where it is malformed."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return urlsplit("")
    return parts
