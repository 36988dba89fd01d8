"""Fedora's and SUSE's packages: every database here was written by `rpm` itself."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from rechunk_action.errors import EnvironmentLack, InputError, RechunkError
from rechunk_action.tree.packages import installed, owners, read_packages
from tests.small_image import SmallImage

SPEC = """\
Name: {name}
Version: {version}
Release: 1.fc42
Summary: A test
License: MIT
%description
%install
{install}
%files
{files}
"""
HOME = "usr/share/rpm"

pytestmark = pytest.mark.oracle


class Package(NamedTuple):
    name: str
    files: Sequence[str]
    version: str = "1.0"
    architecture: str = "noarch"
    ghosts: Sequence[str] = ()

    @property
    def listed(self) -> list[str]:
        return [*self.files, *self.ghosts]


def build(directory: Path, package: Package) -> Path:
    """The package's rpm file."""
    spec = directory / f"{package.name}.spec"
    spec.write_text(
        SPEC.format(
            name=package.name,
            version=package.version,
            install="\n".join(f'install -D /dev/null "%{{buildroot}}{path}"' for path in package.listed),
            files="\n".join([f'"{path}"' for path in package.files] + [f'%ghost "{path}"' for path in package.ghosts]),
        )
    )
    built = directory / f"{package.name}-{package.version}.{package.architecture}.rpm"
    defines = {
        "_topdir": str(directory),
        "_rpmdir": str(directory),
        "_build_name_fmt": built.name,
        "__os_install_post": "%{nil}",
    }
    options = [option for name, value in defines.items() for option in ("--define", f"{name} {value}")]
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", "--target", package.architecture, *options, str(spec)],
        check=True,
        capture_output=True,
    )
    return built


def install(database: Path, *packages: Package) -> None:
    """Write the packages into the database, and nowhere else."""
    # Debian's rpm installs nothing without this option, which the others do not have.
    debian = subprocess.run(["rpm", "--force-debian", "--version"], capture_output=True, check=False).returncode == 0
    options = ["--justdb", "--nodeps", "--noscripts", "--nosignature", "--ignorearch", "--ignoreos", "--force"]
    for package in packages:
        built = build(database.parent, package)
        force = ["--force-debian"] if debian else []
        command = ["rpm", "--dbpath", str(database), "-i", *options, *force, str(built)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """An empty database, as `rpm` makes it."""
    made = tmp_path / "database"
    subprocess.run(["rpm", "--dbpath", str(made), "--initdb"], check=True, capture_output=True)
    return made


def image_with(database: Path, *paths: str, home: str = HOME, links: dict[str, str] | None = None) -> SmallImage:
    """An image with these files, and the database in its place."""
    contents: dict[str, str | bytes] = {f"{home}/{file.name}": file.read_bytes() for file in database.iterdir()}
    return SmallImage({**contents, **dict.fromkeys(paths, "")}, links)


def owned(image: SmallImage) -> dict[str, str]:
    return owners(image.tree, read_packages(image.tree, image.read))


def edit(database: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in the database's only package: `rpmbuild` makes no bad names, but they can be met."""
    with closing(sqlite3.connect(database / "rpmdb.sqlite")) as connection:
        ((blob,),) = connection.execute("SELECT blob FROM Packages").fetchall()
        connection.execute("UPDATE Packages SET blob = ?", (blob.replace(old, new),))
        connection.commit()


def test_a_file_belongs_to_the_package_that_lists_it(database: Path) -> None:
    install(database, Package("tool", ["/usr/bin/tool", "/lib/link/x"]), Package("data", ["/usr/share/d"]))
    image = image_with(database, "usr/bin/tool", "usr/lib/link/x", "usr/share/d", "etc/y", links={"lib": "usr/lib"})
    assert owned(image) == {
        "usr/bin/tool": "rpm:tool.noarch",
        "usr/lib/link/x": "rpm:tool.noarch",
        "usr/share/d": "rpm:data.noarch",
    }


def test_two_kernels_of_one_name_stay_two(database: Path) -> None:
    kernels = [Package("kernel-core", [f"/lib/modules/{v}/vmlinuz"], v, "x86_64") for v in ("6.1.2", "6.1.3")]
    install(database, *kernels, Package("kernel-tools", ["/usr/bin/perf"], "6.1.3", "x86_64"))
    image = image_with(database, "lib/modules/6.1.2/vmlinuz", "lib/modules/6.1.3/vmlinuz", "usr/bin/perf")
    assert owned(image) == {
        "lib/modules/6.1.2/vmlinuz": "rpm:kernel-core-6.1.2-1.fc42.x86_64",
        "lib/modules/6.1.3/vmlinuz": "rpm:kernel-core-6.1.3-1.fc42.x86_64",
        "usr/bin/perf": "rpm:kernel-tools.x86_64",
    }


def test_versions_of_one_package_are_told_together(database: Path) -> None:
    kernels = [Package("kernel-core", [], version, "x86_64") for version in ("6.1.3", "6.1.2")]
    install(database, *kernels, Package("tool", ["/usr/bin/tool"]), Package("glibc", [], "2", "i686"))
    image = image_with(database)
    assert installed(read_packages(image.tree, image.read)) == {
        "rpm:glibc.i686": "2-1.fc42",
        "rpm:kernel-core.x86_64": "6.1.2-1.fc42, 6.1.3-1.fc42",
        "rpm:tool.noarch": "1.0-1.fc42",
    }


def test_a_package_of_two_architectures_is_two(database: Path) -> None:
    both = "/usr/share/doc/glibc"
    install(
        database,
        Package("glibc", ["/usr/lib64/libc.so.6", both], architecture="x86_64"),
        Package("glibc", ["/usr/lib/libc.so.6", both], architecture="i686"),
    )
    image = image_with(database, "usr/lib64/libc.so.6", "usr/lib/libc.so.6", both[1:])
    assert owned(image) == {
        "usr/lib64/libc.so.6": "rpm:glibc.x86_64",
        "usr/lib/libc.so.6": "rpm:glibc.i686",
        "usr/share/doc/glibc": "rpm:glibc.i686",
    }


def test_a_ghost_is_nobodys(database: Path) -> None:
    install(database, Package("rpm", ["/usr/bin/rpm"], ghosts=[f"/{HOME}/rpmdb.sqlite", "/etc/cache"]))
    assert owned(image_with(database, "usr/bin/rpm", "etc/cache")) == {"usr/bin/rpm": "rpm:rpm.noarch"}


def test_a_package_without_files_is_no_error(database: Path) -> None:
    install(database, Package("meta", []))
    assert owned(image_with(database, "usr/x")) == {}


@pytest.mark.parametrize("name", ["a b", "it's", "größe", "tab\tin", "line\nin", "slash\n"])
def test_a_name_may_hold_anything(database: Path, name: str) -> None:
    placeholder = "N" * len(name.encode())
    install(database, Package("tool", [f"/usr/share/{placeholder}/file"]))
    edit(database, placeholder.encode(), name.encode())
    path = f"usr/share/{name}/file"
    assert owned(image_with(database, path)) == {path: "rpm:tool.noarch"}


def test_a_name_that_is_not_utf8_is_passed_over(database: Path) -> None:
    install(database, Package("tool", ["/usr/cafN", "/usr/x"]))
    edit(database, b"cafN", b"caf\xe9")
    assert owned(image_with(database, "usr/cafN", "usr/café", "usr/x")) == {"usr/x": "rpm:tool.noarch"}


@pytest.mark.parametrize("home", ["usr/share/rpm", "usr/lib/sysimage/rpm", "var/lib/rpm"])
def test_the_database_is_found_where_distributions_keep_it(database: Path, home: str) -> None:
    install(database, Package("tool", ["/usr/x"]))
    assert owned(image_with(database, "usr/x", home=home)) == {"usr/x": "rpm:tool.noarch"}


def test_the_database_is_found_behind_links(database: Path) -> None:
    install(database, Package("tool", ["/usr/x"]))
    links = {"var/lib/rpm": "../../usr/db", "usr/lib/sysimage/rpm": "/var/lib/rpm"}
    assert owned(image_with(database, "usr/x", home="usr/db", links=links)) == {"usr/x": "rpm:tool.noarch"}


def test_the_old_file_of_a_converted_database_is_left_alone(database: Path) -> None:
    install(database, Package("tool", ["/usr/x"]))
    assert owned(image_with(database, "usr/x", f"{HOME}/Packages")) == {"usr/x": "rpm:tool.noarch"}


def test_a_package_that_is_only_in_the_write_ahead_log_is_seen(database: Path) -> None:
    install(database, Package("tool", ["/usr/x"]))
    with closing(sqlite3.connect(database / "rpmdb.sqlite")) as writer:
        row = writer.execute("SELECT hnum, blob FROM Packages").fetchone()
        writer.execute("DELETE FROM Packages")
        writer.commit()
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        writer.execute("INSERT INTO Packages VALUES (?, ?)", row)
        writer.commit()
        image = image_with(database, "usr/x")  # while it is open: closing moves the log into the database
    assert image.read(f"{HOME}/rpmdb.sqlite-wal")
    assert owned(image) == {"usr/x": "rpm:tool.noarch"}


def test_a_directory_without_a_database_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert owned(SmallImage({f"{HOME}/README": "", "usr/x": ""})) == {}


def test_a_database_that_was_never_used_has_no_packages(database: Path) -> None:
    assert owned(image_with(database, "usr/x")) == {}


def test_without_rpm_the_error_tells_what_to_install(
    database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentLack, match=r"/usr/share/rpm/rpmdb\.sqlite.*install `rpm`"):
        owned(image_with(database))


def test_the_users_rpm_macros_are_not_asked(database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(database, Package("tool", ["/usr/x"]))
    (tmp_path / ".rpmmacros").write_text("%__dbi_txn %{error:broken}\n%_dbpath /nowhere\n%{error:broken}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert owned(image_with(database, "usr/x")) == {"usr/x": "rpm:tool.noarch"}


def test_a_damaged_database_is_refused() -> None:
    with pytest.raises(InputError, match=r"/usr/share/rpm/rpmdb\.sqlite.*cannot open Packages"):
        owned(SmallImage({f"{HOME}/rpmdb.sqlite": "no database"}))


def test_a_package_that_rpm_skips_is_an_error(database: Path) -> None:
    install(database, Package("tool", ["/usr/x"]), Package("other", ["/usr/y"]))
    with closing(sqlite3.connect(database / "rpmdb.sqlite")) as connection:
        connection.execute("UPDATE Packages SET blob = x'0011' WHERE hnum = 1")
        connection.commit()
    with pytest.raises(InputError, match="skipping"):
        owned(image_with(database, "usr/x", "usr/y"))


def test_a_format_that_rpm_does_not_know_is_not_an_image_without_packages() -> None:
    # An rpm that does know this format calls the file damaged instead.
    with pytest.raises(RechunkError, match=r"/usr/share/rpm/Packages\.db"):
        owned(SmallImage({f"{HOME}/Packages.db": b"RpmP" + bytes(4092)}))
