"""Trees of real Debian packages that are unpacked and not installed: no maintainer script runs.

So packages of any release can be in one tree, and a thousand of them take minutes: for measurements that take large
trees or many versions, where `bench.series` would take hours. The host's apt resolves, fetches and checks, with a state
of its own for each list of sources. As in any tree, dpkg's database tells which package owns what.

Invariants: a package's files go when it goes or its next version lacks them, unless another package has them. /bin,
/lib, /lib64 and /sbin are links from the start, and paths below them are the same files, however a package spells them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

MERGED = ("bin", "lib", "lib64", "sbin")
PLACES = ("boot", "dev", "etc", "proc", "run", "sys", "sysroot", "tmp")
"""Directories that an image needs, for systems to mount something there."""

BATCH = 100
"""Packages that are fetched before they are unpacked, so that the disk need not hold all of them."""

HOME = "var/lib/dpkg"

OPTIONS = (
    *("-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"),
    *("-o", "Acquire::Languages=none", "-o", "Dir::Etc::sourceparts=/dev/null"),
    *("-o", "Dir::Etc::preferences=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null"),
)

Name = str
Version = str


@dataclass(frozen=True)
class Deb:
    """A package as apt knows it. Its source is told without a version."""

    name: Name
    version: Version
    source: str


class Packages:
    """What some sources have. `place` is where apt keeps what it knows of them."""

    def __init__(self, place: str, sources: Iterable[str]) -> None:
        """`sources` are lines of a sources.list."""
        self._place = place
        os.makedirs(f"{place}/lists/partial", exist_ok=True)
        os.makedirs(f"{place}/cache/archives/partial", exist_ok=True)
        for name, text in (("status", ""), ("sources.list", "".join(f"{line}\n" for line in sources))):
            with open(f"{place}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
        self._apt("apt-get", "update")

    def resolve(self, wanted: Iterable[str]) -> list[Deb]:
        """These packages and all that they need, by name."""
        told = self._apt("apt-get", "install", "--simulate", *wanted)
        return self._known(re.findall(r"^Inst (\S+) ", told, re.MULTILINE))

    def matching(self, pattern: str) -> list[Deb]:
        """All packages whose names match."""
        names = self._apt("apt-cache", "search", "--names-only", pattern)
        return self._known(line.split()[0] for line in names.splitlines())

    def fetch(self, debs: Iterable[Deb], into: str) -> None:
        """Files of these packages, those that are there already left alone."""
        missing = [deb for deb in debs if not os.path.exists(f"{into}/{file_of(deb)}")]
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=into) as fresh:
                self._apt("apt-get", "download", *(f"{deb.name}={deb.version}" for deb in batch), place=fresh)
                by_name = {name.split("_")[0]: name for name in os.listdir(fresh)}
                for deb in batch:
                    os.rename(f"{fresh}/{by_name[deb.name]}", f"{into}/{file_of(deb)}")

    def _known(self, names: Iterable[Name]) -> list[Deb]:
        """Packages in the version that apt would install."""
        wanted = set(names)
        found = []
        for paragraph in self._apt("apt-cache", "dumpavail").split("\n\n"):
            if paragraph.partition("\n")[0].removeprefix("Package: ") in wanted:
                fields = _fields(paragraph)
                source = fields.get("Source", fields["Package"]).split()[0]
                found.append(Deb(fields["Package"], fields["Version"], source))
        return sorted(found, key=lambda deb: deb.name)

    def _apt(self, *command: str, place: str = ".") -> str:
        dirs = {"State": "", "State::lists": "lists", "State::status": "status", "Cache": "cache"}
        own = [f"-oDir::{name}={self._place}/{below}" for name, below in dirs.items()]
        own.append(f"-oDir::Etc::sourcelist={self._place}/sources.list")
        return run(command[0], *OPTIONS, *own, *command[1:], place=place)


def file_of(deb: Deb) -> str:
    """What a package's file is called here."""
    return f"{deb.name}_{deb.version.replace(':', '%3a')}.deb"


def create(root: str) -> None:
    """An empty tree for packages, shaped like a bootable-container image."""
    os.makedirs(f"{root}/{HOME}/info")
    for name in PLACES:
        os.mkdir(f"{root}/{name}")
    os.symlink("sysroot/ostree", f"{root}/ostree")
    for name in MERGED:
        os.makedirs(f"{root}/usr/{name}")
        os.symlink(f"usr/{name}", f"{root}/{name}")
    with open(f"{root}/{HOME}/status", "w", encoding="utf-8"):
        pass


def install(root: str, files: Iterable[str], *, instead: Iterable[Name] = ()) -> None:
    """Unpack packages into a tree, in the place of their older versions and of the packages `instead`.

    As dpkg does it: what is new is there before anything goes.
    """
    status = _status(root)
    gone = set(instead)
    before: set[str] = set()
    for name in gone:
        before |= _forget(root, name)
        status.pop(name, None)
    for file in files:
        control = run("dpkg-deb", "--field", file)
        fields = _fields(control)
        name = fields["Package"]
        before |= _forget(root, name)
        _unpack(root, file, name)
        status[name] = control.strip().replace("\n", "\nStatus: install ok installed\n", 1)
    _write_status(root, status)
    for path in sorted(before - _owned(root), reverse=True):
        with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            os.unlink(root + path)
            continue
        with suppress(OSError):  # of others, or not empty
            os.rmdir(root + path)


def installed(root: str) -> dict[Name, Version]:
    """Packages of a tree and their versions."""
    return {name: _fields(paragraph)["Version"] for name, paragraph in _status(root).items()}


def run(*command: str, place: str = ".") -> str:
    """What a command says. Its own words tell why it failed."""
    return subprocess.run(command, cwd=place, check=True, text=True, stdout=subprocess.PIPE).stdout


def _unpack(root: str, file: str, name: Name) -> None:
    """A package's files, and what dpkg keeps of it."""
    with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", file), stdout=subprocess.PIPE) as archive:
        paths = subprocess.run(
            (
                *("tar", "--extract", "--verbose", "--numeric-owner", "--preserve-permissions"),
                *("--keep-directory-symlink", "--quoting-style=literal", "--directory", root),
            ),
            stdin=archive.stdout,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout.decode()
    if archive.returncode:
        raise subprocess.CalledProcessError(archive.returncode, archive.args)
    info = f"{root}/{HOME}/info"
    with open(f"{info}/{name}.list", "w", encoding="utf-8") as listing:
        listing.writelines(path.removeprefix(".").rstrip("/") + "\n" for path in paths.splitlines() if path != "./")
    with tempfile.TemporaryDirectory(dir=info) as control:
        run("dpkg-deb", "--control", file, control)
        for member in os.listdir(control):
            if member != "control":  # which is in the status
                shutil.move(f"{control}/{member}", f"{info}/{name}.{member}")


def _forget(root: str, name: Name) -> set[str]:
    """Remove what dpkg keeps of a package that is there, and return its paths."""
    info = f"{root}/{HOME}/info"
    if not os.path.exists(f"{info}/{name}.list"):
        return set()
    paths = _listed(f"{info}/{name}.list")
    for member in os.listdir(info):
        if member.rpartition(".")[0] == name:
            os.unlink(f"{info}/{member}")
    return paths


def _owned(root: str) -> set[str]:
    """Paths of all packages."""
    info = f"{root}/{HOME}/info"
    return set().union(*(_listed(f"{info}/{name}") for name in os.listdir(info) if name.endswith(".list")))


def _listed(listing: str) -> set[str]:
    with open(listing, encoding="utf-8") as file:
        return {_MERGED.sub("/usr/", line.rstrip("\n"), count=1) for line in file}


_MERGED = re.compile(rf"^/(?=({'|'.join(MERGED)})/)")


def _status(root: str) -> dict[Name, str]:
    """What dpkg tells of each package."""
    with open(f"{root}/{HOME}/status", encoding="utf-8") as file:
        paragraphs = file.read().split("\n\n")
    return {_fields(paragraph)["Package"]: paragraph.strip() for paragraph in paragraphs if paragraph.strip()}


def _write_status(root: str, status: Mapping[Name, str]) -> None:
    with open(f"{root}/{HOME}/status", "w", encoding="utf-8") as file:
        file.writelines(f"{status[name]}\n\n" for name in sorted(status))


def _fields(paragraph: str) -> dict[str, str]:
    """The fields of a control paragraph that take one line."""
    return dict(re.findall(r"^([\w-]+): *(.*)$", paragraph, re.MULTILINE))


def sources_of(debs: Sequence[Deb]) -> dict[str, list[Deb]]:
    """Packages by their sources."""
    found: dict[str, list[Deb]] = {}
    for deb in debs:
        found.setdefault(deb.source, []).append(deb)
    return found
