"""Packages of Fedora, SUSE and their kin: a binary database that only `rpm` itself reads in all its formats.

`rpm` writes beside the database that it reads, so it is given a copy, and nothing of the caller's configuration but
`PATH`. Its answer is made of records, each ended by two slashes and a newline. Paths in the database are absolute and
normalised, so they hold no double slash and no name can fake the end of a record; a record that starts with a slash
is a path of the package before it.

A package is named by name and architecture: those of several architectures are several packages. Some, kernels above
all, are installed in several versions at once; these, and only these, have the version in their name.

A ghost is a path that the package owns but does not bring: what lies there was made on the machine (a cache, the
database itself) and changes on its own. It is nobody's here.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.tree.packages.links import Links
from rechunk_action.tree.packages.package import Package

HOMES = ("usr/share/rpm", "usr/lib/sysimage/rpm", "var/lib/rpm")
"""Where the database may be: that of OSTree images, today's, and the old one. One is often a link to another."""

SQLITE = "rpmdb.sqlite"

FORMATS = ((SQLITE, f"{SQLITE}-wal"), ("Packages.db", "Index.db"), ("Packages",))
"""The files that `rpm` needs to list all packages, by format: first the one that must exist. Newest format first, as
converted databases keep the old file."""

RECORD_END = "//\n"
QUERY = r"%{NAME}\t%{ARCH}\t%{VERSION}-%{RELEASE}//\n[%{FILENAMES}\t%{FILEFLAGS:fflags}//\n]"
GHOST = "g"

TIMEOUT = 300
"""Seconds: a desktop's database takes about two."""


def packages(links: Links, read: Callable[[str], bytes]) -> list[Package]:
    """The packages of the first database found."""
    database = _database(links)
    if not database:
        return []
    with tempfile.TemporaryDirectory(prefix="rechunk-rpm-") as copy:
        for name, path in database.items():
            with open(f"{copy}/{name}", "wb") as file:
                file.write(read(path))
        origin = next(iter(database.values()))
        listed = _parse(_query(copy, origin))
        if not listed and not (SQLITE in database and _is_empty(f"{copy}/{SQLITE}")):
            # An rpm that does not know the format starts a new database beside it, and finds that empty.
            raise EnvironmentLack(
                f"rpm finds no packages in the database /{origin}: it does not know this database's format; "
                "install an rpm as new as the image's, with support for its format"
            )
    return _named(listed)


class _Record(NamedTuple):
    name: str
    architecture: str
    version: str
    paths: list[str]


def _database(links: Links) -> dict[str, str]:
    """The files of the first database found, name -> path."""
    for home in HOMES:
        for names in FORMATS:
            files = {name: path for name in names if (path := links.file(f"{home}/{name}")) is not None}
            if names[0] in files:
                return files
    return {}


def _query(database: str, origin: str) -> str:
    """What `rpm` says about all packages in the directory `database`, a copy of `origin`."""
    command = ["rpm", "--dbpath", database, "-qa", "--nosignature", "--nodigest", "--queryformat", QUERY]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": database, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError:
        raise EnvironmentLack(
            f"The image has an rpm database (/{origin}), but there is no program `rpm` to read it; install `rpm`"
        ) from None
    except subprocess.TimeoutExpired:
        raise InputError(f"rpm did not read the database /{origin} within {TIMEOUT} seconds; is it damaged?") from None
    complaints = done.stderr.decode("utf-8", "replace").splitlines()
    # A package that it cannot read is skipped with a complaint, and still the exit status is 0.
    if done.returncode != 0 or any(line.startswith("error:") for line in complaints):
        reason = complaints[-1] if complaints else f"exit status {done.returncode}"
        raise InputError(f"rpm cannot read the database /{origin} of the image: {reason}; is it damaged?")
    return done.stdout.decode("utf-8", "replace")


def _is_empty(database: str) -> bool:
    """Whether an SQLite database was made, but never used: then it is no wonder that `rpm` finds no packages."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            return not connection.execute("SELECT 1 FROM Packages LIMIT 1").fetchall()
        except sqlite3.Error:
            return False


def _parse(answer: str) -> list[_Record]:
    found: list[_Record] = []
    paths: list[str] = []
    for record in answer.split(RECORD_END)[:-1]:
        if record.startswith("/"):
            path, _, flags = record.rpartition("\t")
            if GHOST not in flags:
                paths.append(path[1:])
        else:
            name, _, rest = record.partition("\t")
            architecture, _, version = rest.partition("\t")
            paths = []
            found.append(_Record(name, architecture, version, paths))
    return found


def _named(listed: list[_Record]) -> list[Package]:
    installed = Counter((record.name, record.architecture) for record in listed)
    found = []
    for name, architecture, version, paths in listed:
        full = name if installed[name, architecture] == 1 else f"{name}-{version}"
        found.append(Package(f"rpm:{full}.{architecture}", f"rpm:{name}.{architecture}", version, paths))
    return found
