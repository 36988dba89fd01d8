"""Engines on the same series: the RPM database that trees get for it, what counts, and what is left behind."""

from __future__ import annotations

import gzip
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import engines
from bench.engines import COLUMNS, Built, measure, sums, table
from bench.rpm_database import DATABASE, Change, Package, add_rpm_database, changelog, installed
from bench.series import SeriesError
from tests.oracles import program, run
from tests.rechunker import rechunker_image, small_tree

STATUS = """\
Package: tool
Status: install ok installed
Architecture: amd64
Version: 1:2.0-rc1-3+deb12u1
Description: does things
 Version: not a field

Package: linux-image-6.1.0-9-amd64
Status: hold ok installed
Architecture: amd64
Version: 6.1.27-1

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1.0

Package: data
Status: install ok installed
Architecture: all
Version: 5
"""

CHANGELOG = """\
tool (1:2.0-rc1-3+deb12u1) bookworm; urgency=high

  * Fix it.

 -- A B <a@example.org>  Tue, 08 Sep 2026 22:15:01 +0200

tool (1:2.0-rc1-3) unstable; urgency=low

  [ C ]
  * Package it.

 -- C D <c@example.org>  Mon, 09 Jan 2023 10:00:00 +0000
"""


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A tree with packages as dpkg installs them, and a kernel where images have it."""
    tree = tmp_path / "debian"
    files: dict[str, bytes] = {
        "var/lib/dpkg/status": STATUS.encode(),
        "var/lib/dpkg/info/tool.list": b"/.\n/lib/tool.so\n/usr/bin/tool\n/usr/share/doc/tool\n/etc/gone\n",
        "var/lib/dpkg/info/linux-image-6.1.0-9-amd64.list": b"/boot/vmlinuz-6.1.0-9-amd64\n",
        "var/lib/dpkg/info/data.list": b"/usr/share/data\n",
        "usr/lib/tool.so": b"12345",
        "usr/bin/tool": b"#!/bin/sh\n",
        "usr/lib/modules/6.1.0-9-amd64/vmlinuz": b"kernel",
        "usr/share/data": b"data",
        "usr/share/doc/tool/changelog.Debian.gz": gzip.compress(CHANGELOG.encode(), mtime=0),
    }
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    (tree / "lib").symlink_to("usr/lib")
    return tree


def ask(tree: Path, *question: str) -> list[str]:
    """What rpm says of the database, less what lies in dpkg's."""
    answer = run(program("rpm", "rpm"), "--dbpath", (tree / DATABASE).parent, *question)
    return [line for line in answer.splitlines() if not line.startswith("/var/lib/dpkg/")]


@pytest.mark.oracle
class TestRpmDatabase:
    def test_says_what_dpkg_says(self, debian: Path) -> None:
        assert add_rpm_database(str(debian)) == 3
        assert sorted(ask(debian, "-qa", "--queryformat", "%{EPOCHNUM} %{NAME} %{VERSION} %{RELEASE} %{ARCH}\n")) == [
            "0 data 5 1 noarch",
            "0 linux-image-6.1.0-9-amd64 6.1.27 1 x86_64",
            "1 tool 2.0-rc1 3+deb12u1 x86_64",
        ]

    def test_files_are_where_the_tree_has_them(self, debian: Path) -> None:
        add_rpm_database(str(debian))
        assert ask(debian, "-ql", "tool") == ["/usr/bin/tool", "/usr/lib/tool.so"]
        assert ask(debian, "-ql", "linux-image-6.1.0-9-amd64") == ["/usr/lib/modules/6.1.0-9-amd64/vmlinuz"]
        sizes = ask(debian, "-q", "tool", "--queryformat", "[%{FILENAMES} %{FILESIZES} %{FILEMODES:perms}\n]")
        assert sizes == ["/usr/bin/tool 10 -rw-r--r--", "/usr/lib/tool.so 5 -rw-r--r--"]

    def test_changelogs_keep_their_dates(self, debian: Path) -> None:
        add_rpm_database(str(debian))
        assert ask(debian, "-q", "tool", "--queryformat", "[%{CHANGELOGTIME} %{CHANGELOGTEXT}\n]") == [
            "1788898501 - Fix it.",
            "1673258400 - Package it.",
        ]
        assert ask(debian, "-q", "data", "--queryformat", "[%{CHANGELOGTIME}\n]") == []

    def test_same_tree_gives_the_same_headers(self, debian: Path, tmp_path: Path) -> None:
        again = tmp_path / "again"
        shutil.copytree(debian, again, symlinks=True)
        headers = []
        for tree in (debian, again):
            add_rpm_database(str(tree))
            with closing(sqlite3.connect(tree / DATABASE)) as database:
                headers.append(database.execute("SELECT blob FROM Packages ORDER BY hnum").fetchall())
            assert [path.name for path in (tree / DATABASE).parent.iterdir()] == ["rpmdb.sqlite"]
        assert headers[0] == headers[1]

    def test_tree_without_packages_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "usr").mkdir()
        with pytest.raises(SeriesError, match="no dpkg database"):
            add_rpm_database(str(tmp_path))


def test_only_what_is_installed_counts() -> None:
    assert list(installed(STATUS)) == [
        Package("data", "all", "5", "-"),
        Package("linux-image-6.1.0-9-amd64", "amd64", "6.1.27-1", "-"),
        Package("tool", "amd64", "1:2.0-rc1-3+deb12u1", "does things"),
    ]


def test_changelog_has_an_entry_for_each_signature() -> None:
    assert changelog(CHANGELOG) == [
        Change(1788898501, "A B <a@example.org>", "- Fix it."),
        Change(1673258400, "C D <c@example.org>", "- Package it."),
    ]
    assert changelog("") == changelog("x (1) a; b=c\n\n -- A <a@example.org>  some day\n") == []


@given(text=st.text(), date=st.text("0123456789:+ ,MonJa", max_size=40))
def test_changelog_takes_any_text(text: str, date: str) -> None:
    assert len(changelog(f"x (1) a; b=c\n -- A <a>  {date}\n\n{text}")) <= 1 + text.count(" -- ")


@pytest.mark.oracle
def test_engines_build_the_same_series(tmp_path: Path) -> None:
    trees = [str(small_tree(tmp_path / f"v{number}", number + 1)) for number in range(2)]
    found = measure(trees, COLUMNS, rechunker_image())
    names = [column.name for column in COLUMNS]
    assert [(each.version, each.engine) for each in found] == [(v, name) for v in ("v0", "v1") for name in names]
    for each in found:
        assert each.layers > 1
        assert each.memory > 10_000_000
        assert each.disk > 0
        assert each.phases
        assert (each.limit is None) == (each.version == "v0")
        assert 0 <= each.rechunker < each.seconds
        assert (each.rechunker > 0) == (each.engine == "hhd")
    fresh, update = ([each.update for each in found if each.version == version] for version in ("v0", "v1"))
    assert all(0 < new < whole for whole, new in zip(fresh, update, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v0", "v1"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.oracle
def test_trees_are_not_written_to(debian: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert engines._prepared(str(debian), str(copy)) == str(copy)
    assert (copy / DATABASE).exists()
    assert not (debian / DATABASE).exists()
    assert engines._prepared(str(copy), "") == str(copy)


UPDATE = Built(
    "v1", "hhd", 45_280_000, 4_980_000, 40, seconds=60.5, rechunker=50.5, memory=93_000_000, disk=972_000_000
)


def test_table_tells_the_rechunkers_time_from_ours() -> None:
    row = table([UPDATE]).splitlines()[2]
    assert row == "| v1 | hhd | 45.28 MB | 4.98 MB | 40 | 60.5 | 50.5 | 10.0 | 93 MB | 972 MB |"


def test_first_version_is_no_update() -> None:
    first = Built("v0", "hhd", 300, None, 50, seconds=9, rechunker=8, memory=7, disk=6)
    second = Built("v2", "hhd", 1, 2, 41, seconds=3, rechunker=2, memory=100_000_000, disk=4)
    assert sums([first, UPDATE, second]) == [
        Built("**updates**", "hhd", 45_280_001, 4_980_002, 41, 63.5, 52.5, memory=100_000_000, disk=972_000_000)
    ]
    assert sums([first]) == []


def test_engine_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["engines", str(tmp_path), "--engines", "delta,other"])
    with pytest.raises(SystemExit) as ended:
        engines.main()
    assert ended.value.code == 2
    assert "no engine other" in capsys.readouterr().err
