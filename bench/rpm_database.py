"""Give a Debian tree an RPM database that says what its dpkg database says: hhd-dev/rechunk plans by RPM packages.

Each installed package becomes an RPM header with its name, version, files (where they really are, the kernel in
usr/lib/modules included) and changelog: the dates in there are what hhd-dev/rechunk guesses from how often a package
changes. Headers are written as rpm stores them; then rpm itself rebuilds the database from them, which checks each one
and fills the indexes.

Invariants: the same tree gives the same headers (the file around them is rpm's own), and the tree gets one file,
usr/share/rpm/rpmdb.sqlite, once it is complete.
"""

from __future__ import annotations

import argparse
import email.utils
import gzip
import os
import re
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum

from bench.series import SeriesError, require_root
from rechunk_action.source.directory import DirectorySource
from rechunk_action.tree.entry import Entry, Tree
from rechunk_action.tree.packages import dpkg
from rechunk_action.tree.packages.links import Links

DATABASE = "usr/share/rpm/rpmdb.sqlite"

CHANGES = 60
"""Changelog entries that a header holds: more than a year of them for nearly all packages."""

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "all": "noarch"}
"""Debian's names and rpm's, where they differ."""


class Kind(IntEnum):
    """Types of values in a header."""

    INT16 = 3
    INT32 = 4
    STRING = 6
    BINARY = 7
    STRINGS = 8
    TRANSLATED = 9


class Tag(IntEnum):
    """What a header tells, by the numbers that rpm has for it (rpmtag.h)."""

    REGION = 63
    LANGUAGES = 100
    NAME = 1000
    VERSION = 1001
    RELEASE = 1002
    EPOCH = 1003
    SUMMARY = 1004
    DESCRIPTION = 1005
    BUILD_TIME = 1006
    INSTALL_TIME = 1008
    SIZE = 1009
    LICENSE = 1014
    GROUP = 1016
    OS = 1021
    ARCHITECTURE = 1022
    FILE_SIZES = 1028
    FILE_MODES = 1030
    FILE_DEVICES = 1033
    FILE_TIMES = 1034
    FILE_DIGESTS = 1035
    FILE_TARGETS = 1036
    FILE_FLAGS = 1037
    FILE_USERS = 1039
    FILE_GROUPS = 1040
    SOURCE = 1044
    FILE_VERIFY = 1045
    PROVIDES = 1047
    CHANGE_TIMES = 1080
    CHANGE_AUTHORS = 1081
    CHANGE_TEXTS = 1082
    FILE_ON_DEVICES = 1095
    FILE_NUMBERS = 1096
    FILE_LANGUAGES = 1097
    PROVIDE_FLAGS = 1112
    PROVIDE_VERSIONS = 1113
    FILE_DIRECTORIES = 1116
    FILE_NAMES = 1117
    DIRECTORIES = 1118


Values = Mapping[Tag, tuple[Kind, str | Sequence[int] | Sequence[str]]]


@dataclass(frozen=True)
class Package:
    """An installed package as dpkg tells of it."""

    name: str
    architecture: str
    version: str
    summary: str


@dataclass(frozen=True)
class Change:
    """An entry of a changelog: seconds since 1970, who wrote it, and its first line."""

    time: int
    author: str
    text: str


def add_rpm_database(root: str) -> int:
    """Write the database of a tree. Returns the number of packages in it.

    Raises `SeriesError` when the tree has no dpkg database, or rpm is missing or does not take what was written.
    """
    source = DirectorySource(root, drop_bad_xattrs=True)
    source.scan(None)
    links = Links(source.tree)
    owned = {package.component: package.paths for package in dpkg.packages(links, source.read)}
    if not owned:
        raise SeriesError(f"{root} has no dpkg database: name a tree of Debian or Ubuntu")
    status = source.read("var/lib/dpkg/status").decode()
    headers = [
        _header(
            package,
            {place: source.tree[place] for place in _places(links, owned[component])},
            _changes(package, links, source),
        )
        for package in installed(status)
        if (component := f"dpkg:{package.name}:{package.architecture}") in owned
    ]
    with tempfile.TemporaryDirectory(prefix="rpm-database-") as work:
        _rpm("rpmdb", work, "--initdb")
        with closing(sqlite3.connect(f"{work}/rpmdb.sqlite")) as database, database:
            database.executemany("INSERT INTO Packages(blob) VALUES (?)", [(header,) for header in headers])
        _rpm("rpmdb", work, "--rebuilddb")
        listed = len(_rpm("rpm", work, "-qa").split())
        if listed != len(headers):
            raise SeriesError(f"rpm lists {listed} of the {len(headers)} packages in {root}: see what it says above")
        with closing(sqlite3.connect(f"{work}/rpmdb.sqlite")) as database:
            database.execute("PRAGMA journal_mode=DELETE")  # one file is all that the tree gets
        os.makedirs(os.path.dirname(f"{root}/{DATABASE}"), exist_ok=True)
        shutil.copyfile(f"{work}/rpmdb.sqlite", f"{root}/{DATABASE}.new")
        os.replace(f"{root}/{DATABASE}.new", f"{root}/{DATABASE}")
    return len(headers)


def installed(status: str) -> Iterator[Package]:
    """The packages that are installed by dpkg's file `status`, sorted by name."""
    found = []
    for block in status.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            summary = fields.get("Description", "-")
            found.append(Package(fields["Package"], fields["Architecture"], fields["Version"], summary))
    yield from sorted(found, key=lambda package: (package.name, package.architecture))


def changelog(text: str) -> list[Change]:
    """The entries of a Debian changelog that have a date, the newest first."""
    found = []
    for entry in re.split(r"(?m)^(?=\S+ \()", text):
        signed = re.search(r"^ -- (.*?)  (.*)$", entry, re.MULTILINE)
        item = re.search(r"^  \* (.*)$", entry, re.MULTILINE)
        if signed is None:
            continue
        try:
            time = int(email.utils.parsedate_to_datetime(signed[2]).timestamp())
        except (ValueError, OverflowError):
            continue
        found.append(Change(max(0, time), signed[1], f"- {item[1] if item else 'changes'}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rpm_database", description=__doc__.partition("\n")[0])
    parser.add_argument("tree", nargs="+", help="root tree to write to")
    options = parser.parse_args()
    require_root()
    try:
        for tree in options.tree:
            print(f"{tree}: {add_rpm_database(tree.rstrip('/'))} packages")
    except SeriesError as error:
        sys.exit(f"error: {error}")


def _places(links: Links, paths: Sequence[str]) -> list[str]:
    """Where the files of a package are."""
    moved = (re.sub("^boot/vmlinuz-(.*)", r"usr/lib/modules/\1/vmlinuz", path) for path in paths)
    return sorted({place for path in moved if (place := links.locate(path)) is not None})


def _changes(package: Package, links: Links, source: DirectorySource) -> list[Change]:
    """The newest entries of the changelog that a package carries."""
    for name in ("changelog.Debian", f"changelog.Debian.{package.architecture}", "changelog"):
        path = links.file(f"usr/share/doc/{package.name}/{name}.gz")
        found = changelog(gzip.decompress(source.read(path)).decode(errors="replace")) if path else []
        if found:
            return found[:CHANGES]
    return []


def _header(package: Package, files: Tree, changes: Sequence[Change]) -> bytes:
    epoch, _, rest = package.version.rpartition(":")
    version, _, release = rest.rpartition("-") if "-" in rest else (rest, "", "1")
    time = changes[0].time if changes else 0
    values: dict[Tag, tuple[Kind, str | Sequence[int] | Sequence[str]]] = {
        Tag.LANGUAGES: (Kind.STRINGS, ["C"]),
        Tag.NAME: (Kind.STRING, package.name),
        Tag.VERSION: (Kind.STRING, version),
        Tag.RELEASE: (Kind.STRING, release),
        Tag.SUMMARY: (Kind.TRANSLATED, package.summary),
        Tag.DESCRIPTION: (Kind.TRANSLATED, package.summary),
        Tag.BUILD_TIME: (Kind.INT32, [time]),
        Tag.INSTALL_TIME: (Kind.INT32, [time]),
        Tag.SIZE: (Kind.INT32, [sum(entry.size for entry in files.values())]),
        Tag.LICENSE: (Kind.STRING, "see copyright"),
        Tag.GROUP: (Kind.TRANSLATED, "Unspecified"),
        Tag.OS: (Kind.STRING, "linux"),
        Tag.ARCHITECTURE: (Kind.STRING, ARCHITECTURES.get(package.architecture, package.architecture)),
        Tag.SOURCE: (Kind.STRING, f"{package.name}-{version}-{release}.src.rpm"),
        Tag.PROVIDES: (Kind.STRINGS, [package.name]),
        Tag.PROVIDE_FLAGS: (Kind.INT32, [_EQUAL]),
        Tag.PROVIDE_VERSIONS: (Kind.STRINGS, [f"{epoch}:{version}-{release}" if epoch else f"{version}-{release}"]),
    }
    if epoch:
        values[Tag.EPOCH] = (Kind.INT32, [int(epoch)])
    if changes:
        values[Tag.CHANGE_TIMES] = (Kind.INT32, [change.time for change in changes])
        values[Tag.CHANGE_AUTHORS] = (Kind.STRINGS, [change.author for change in changes])
        values[Tag.CHANGE_TEXTS] = (Kind.STRINGS, [change.text for change in changes])
    if files:
        values |= _file_values(files)
    return _encoded(values)


_EQUAL = 8
"""What a package provides has exactly this version."""


def _file_values(files: Tree) -> Values:
    entries, count = list(files.values()), len(files)
    split = [f"/{path}".rpartition("/") for path in files]
    directories = sorted({f"{directory}/" for directory, _, _ in split})
    number = {directory: index for index, directory in enumerate(directories)}
    return {
        Tag.FILE_SIZES: (Kind.INT32, [entry.size for entry in entries]),
        Tag.FILE_MODES: (Kind.INT16, [_mode(entry) for entry in entries]),
        Tag.FILE_DEVICES: (Kind.INT16, [0] * count),
        Tag.FILE_TIMES: (Kind.INT32, [max(0, entry.mtime) for entry in entries]),
        Tag.FILE_DIGESTS: (Kind.STRINGS, [""] * count),
        Tag.FILE_TARGETS: (Kind.STRINGS, [entry.target for entry in entries]),
        Tag.FILE_FLAGS: (Kind.INT32, [_CONFIGURATION * path.startswith("etc/") for path in files]),
        Tag.FILE_USERS: (Kind.STRINGS, ["root"] * count),
        Tag.FILE_GROUPS: (Kind.STRINGS, ["root"] * count),
        Tag.FILE_VERIFY: (Kind.INT32, [0xFFFFFFFF] * count),
        Tag.FILE_ON_DEVICES: (Kind.INT32, [1] * count),
        Tag.FILE_NUMBERS: (Kind.INT32, list(range(1, count + 1))),
        Tag.FILE_LANGUAGES: (Kind.STRINGS, [""] * count),
        Tag.FILE_DIRECTORIES: (Kind.INT32, [number[f"{directory}/"] for directory, _, _ in split]),
        Tag.FILE_NAMES: (Kind.STRINGS, [name for _, _, name in split]),
        Tag.DIRECTORIES: (Kind.STRINGS, directories),
    }


_CONFIGURATION = 1


def _mode(entry: Entry) -> int:
    return entry.mode | (stat.S_IFLNK if entry.kind == "l" else stat.S_IFREG)


def _encoded(values: Values) -> bytes:
    """A header as a database holds it: an index and the data behind it, all in one region, which a last entry in the
    data closes.
    """
    index, data = [], b""
    for tag, (kind, value) in sorted(values.items()):
        items = [value] if isinstance(value, str) else value
        if form := _NUMBERS.get(kind):
            data += bytes(-len(data) % struct.calcsize(form))
        index.append((tag, kind, len(data), len(items)))
        data += b"".join(struct.pack(f">{form}", item) if form else f"{item}\0".encode() for item in items)
    index.insert(0, (Tag.REGION, Kind.BINARY, len(data), _ENTRY.size))
    data += _ENTRY.pack(Tag.REGION, Kind.BINARY, -_ENTRY.size * len(index), _ENTRY.size)
    return struct.pack(">II", len(index), len(data)) + b"".join(_ENTRY.pack(*entry) for entry in index) + data


_NUMBERS = {Kind.INT16: "H", Kind.INT32: "I"}

_ENTRY = struct.Struct(">IIiI")
"""Tag, type, where its data begins, how many values."""


def _rpm(program: str, database: str, *arguments: str) -> str:
    """Run one of rpm's programs on a database, for its standard output."""
    command = [program, "--define", "_db_backend sqlite", "--dbpath", database, *arguments]
    try:
        return subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True).stdout
    except FileNotFoundError:
        raise SeriesError("rpm is not installed: scripts/system-packages rpm") from None
    except subprocess.CalledProcessError as error:
        raise SeriesError(f"{program} does not take the database ({error}): see what it says above") from None


if __name__ == "__main__":
    main()
