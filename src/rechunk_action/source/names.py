"""How images and trees are named on the command line, after containers-transports(5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rechunk_action.errors import InputError

TRANSPORTS = ("dir", "oci")


@dataclass(frozen=True)
class Name:
    """`transport:path[:tag]`. `dir:` is a root file system here, `oci:` an image layout."""

    transport: str
    path: Path
    tag: str | None = None

    def __str__(self) -> str:
        return f"{self.transport}:{self.path}" + (f":{self.tag}" if self.tag else "")


def parse_name(text: str, *, allowed: tuple[str, ...] = TRANSPORTS) -> Name:
    """Raises `InputError` for a name that is not one of the allowed transports."""
    transport, colon, rest = text.partition(":")
    if not colon or transport not in allowed or not rest or (transport == "oci" and rest.startswith(":")):
        forms = {"dir": "dir:PATH", "oci": "oci:DIR[:TAG]"}
        raise InputError(f"{text!r} is no name that can be used here: write {' or '.join(forms[t] for t in allowed)}")
    if transport == "dir":
        return Name(transport, Path(rest))
    path, colon, tag = rest.partition(":")
    if colon and not tag:
        raise InputError(f"{text!r} ends in a colon: write oci:DIR:TAG, or oci:DIR without a tag")
    return Name(transport, Path(path), tag or None)
