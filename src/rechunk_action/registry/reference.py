"""Names of images in registries: `docker://HOST/REPOSITORY[:TAG][@DIGEST]`.

A name without a host means Docker Hub to some tools and `localhost` to others; here it is an error. Repositories are
lower case, as registries want them: workflows build names from owners who write themselves with capitals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rechunk_action.errors import InputError
from rechunk_action.oci.image import valid_digest

API_HOSTS = {"docker.io": "registry-1.docker.io"}
"""Hosts whose registry is served by another one."""


@dataclass(frozen=True)
class Reference:
    """An image, or with neither tag nor digest a repository, in a registry."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"docker://{self.name}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """What stands behind `docker://`. Raises `InputError`."""
    name, at, digest = text.partition("@")
    host, slash, path = name.partition("/")
    repository, colon, tag = path.partition(":")
    repository = repository.lower()
    if not slash or not _looks_like_host(host):
        raise InputError(f"{text!r} names no registry: write docker://HOST/REPOSITORY, as in docker://ghcr.io/{text}")
    if not _HOST.fullmatch(host):
        raise InputError(f"{host!r} is no host name: write docker://HOST/REPOSITORY, without https://")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _LONGEST_REPOSITORY:
        raise InputError(
            f"{repository!r} is no name of a repository: letters, digits and single '.', '_' or '-' between them, "
            f"in parts divided by '/', {_LONGEST_REPOSITORY} characters at most"
        )
    if colon and not valid_tag(tag):
        raise InputError(
            f"{tag!r} is no tag: at most 128 letters, digits, '.', '_' and '-', of which the first is no '.' or '-'"
        )
    if at and not valid_digest(digest):
        raise InputError(f"{digest!r} is no digest: write @sha256: and 64 hexadecimal digits in lower case")
    if host == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host.lower(), repository, tag or None, digest or None)


def valid_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_REPOSITORY = re.compile(r"{0}(?:/{0})*".format(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"))
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LONGEST_REPOSITORY = 255


def _looks_like_host(text: str) -> bool:
    """Docker's rule: a first part that is none of these is a namespace of Docker Hub."""
    return "." in text or ":" in text or text.lower() == "localhost"
