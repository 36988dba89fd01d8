"""What a server asks for before it answers, and the tokens that it gives: read here, and sent elsewhere."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Challenge:
    """One way of authentication that a server offers. Names are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The header `WWW-Authenticate` (RFC 9110, 11.6.1); what cannot be read of it is passed over."""
    challenges: list[Challenge] = []
    for part in _CHALLENGE_PART.finditer(header):
        if scheme := part["scheme"]:
            challenges.append(Challenge(scheme.lower(), {}))
        elif challenges:
            value = part["plain"] if part["quoted"] is None else re.sub(r"\\(.)", r"\1", part["quoted"])
            last = challenges[-1]
            challenges[-1] = replace(last, parameters={**last.parameters, part["name"].lower(): value})
    return challenges


NO_CHALLENGE = Challenge("", {})


def choose(challenges: Iterable[Challenge]) -> Challenge:
    """A token rather than the password: it can do less."""
    known = {challenge.scheme: challenge for challenge in challenges}
    return known.get("bearer") or known.get("basic") or NO_CHALLENGE


@dataclass(frozen=True)
class Token:
    """What lets requests through until about `renew_at`, on the monotonic clock (seconds)."""

    value: str
    renew_at: float


def parse_token(body: bytes) -> Token | None:
    """The token in an answer, None where there is none that could be used."""
    try:
        document = json.loads(body)
        value = document.get("token") or document.get("access_token") or ""
        life = float(document.get("expires_in") or _SHORTEST_LIFE)
    except (ValueError, OverflowError, TypeError, AttributeError, RecursionError):
        return None
    # A token that expires on its way costs an answer of 401 and a new one, no more.
    return Token(value, time.monotonic() + life * 0.8) if isinstance(value, str) and _TOKEN.fullmatch(value) else None


_WORD = r"[\w!#$%&'*+.^`|~-]+"
_CHALLENGE_PART = re.compile(
    rf'(?P<name>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+))|(?P<scheme>{_WORD})'
)
_TOKEN = re.compile(r"[!-~]+")  # visible, so that it can be a header
_SHORTEST_LIFE = 60.0  # seconds, where the server says nothing (docker's token specification)
