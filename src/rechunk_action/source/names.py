"""How images and trees are named on the command line, after containers-transports(5).

Two forms are ours: `dir:PATH` is a root file system, and a name without a transport is an image that is looked for in
the stores of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rechunk_action.errors import InputError
from rechunk_action.registry.reference import Reference, parse_reference

FORMS = {
    "dir": "dir:PATH",
    "oci": "oci:DIR[:TAG]",
    "oci-archive": "oci-archive:FILE[:TAG]",
    "docker-archive": "docker-archive:FILE",
    "docker": "docker://HOST/REPOSITORY[:TAG]",
    "containers-storage": "containers-storage:IMAGE",
    "docker-daemon": "docker-daemon:IMAGE",
    "": "IMAGE",
}
"""Each transport, as it is written. `""` is an image's name alone."""

ON_DISK = ("dir", "oci", "oci-archive")


@dataclass(frozen=True)
class Name:
    """`transport:place[:tag]`. `place` is a path, or the name that a store or registry has for an image."""

    transport: str
    place: str
    tag: str | None = None

    @property
    def path(self) -> Path:
        return Path(self.place)

    @property
    def reference(self) -> Reference:
        """Of a `docker://` name."""
        return parse_reference(self.place)

    def pinned(self, digest: str) -> str:
        """The name with a digest. That of a registry's image is as `podman pull` takes it, without a transport."""
        if self.transport != "docker":
            return f"{self}@{digest}"
        reference = self.reference
        return f"{reference.name}{f':{reference.tag}' if reference.tag else ''}@{digest}"

    def __str__(self) -> str:
        if self.transport == "docker":
            return f"docker://{self.place}"
        return (f"{self.transport}:" if self.transport else "") + self.place + (f":{self.tag}" if self.tag else "")


def parse_name(text: str, *, allowed: Sequence[str] = tuple(FORMS)) -> Name:
    """Raises `InputError` for a name that is not one of the allowed transports, or malformed."""
    transport, colon, rest = text.partition(":")
    if "" in allowed and not (colon and transport in FORMS) and _IMAGE.fullmatch(text):
        return Name("", text)
    if not colon or transport not in allowed or not rest or (transport in ON_DISK and rest.startswith(":")):
        forms = [FORMS[transport] for transport in allowed]
        *others, last = forms
        raise InputError(
            f"{text!r} is no name that can be used here: write {', '.join(others)}{' or ' if others else ''}{last}"
        )
    if transport == "docker":
        place = rest.removeprefix("//")
        parse_reference(place)
        return Name(transport, place)
    if transport in ("dir", "docker-archive", "containers-storage", "docker-daemon"):
        return Name(transport, rest)
    path, colon, tag = rest.partition(":")
    if colon and not tag:
        raise InputError(f"{text!r} ends in a colon: write {transport}:{path}:TAG, or leave the tag out")
    return Name(transport, path, tag or None)


_IMAGE = re.compile(
    r"(?!ostree:|sif:|tarball:)"  # transports of other tools
    r"(?:(?:localhost|[\w-]+(?:\.[\w-]+)+)(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
"""An image's name as podman and docker take it, with or without a registry, tag or digest."""
