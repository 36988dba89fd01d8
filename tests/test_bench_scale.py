"""Measurements of large trees and many generations: trees of unpacked packages, what is counted, what is drawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bench.charts import lines
from bench.debs import create, install, installed
from bench.generations import lacking, visited
from bench.scale import PACKAGE, make, size_of
from bench.timing import run

MakeDeb = Callable[..., str]


@pytest.fixture
def deb(tmp_path: Path) -> MakeDeb:
    """Makes a package of some files."""

    def make_deb(name: str, version: str, files: Mapping[str, str]) -> str:
        place = tmp_path / "packages" / f"{name}-{version}"
        for path, text in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text)
        (place / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.com>\n"
        (place / "DEBIAN/control").write_text(f"{control}Description: a package\n of a test\n")
        file = tmp_path / f"{name}-{version}.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", place, file], check=True, capture_output=True)
        return str(file)

    return make_deb


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create(str(tmp_path / "root"))
    return tmp_path / "root"


class TestTreesOfPackages:
    def test_an_update_takes_away_what_the_new_version_lacks(self, root: Path, deb: MakeDeb) -> None:
        install(str(root), [deb("a", "1", {"usr/share/a/old": "1", "usr/share/a/more/x": "1", "usr/share/b": "1"})])
        install(str(root), [deb("a", "2", {"usr/share/a/new": "2", "usr/share/b": "2"})])
        assert sorted(path.name for path in (root / "usr/share").rglob("*")) == ["a", "b", "new"]
        assert (root / "usr/share/b").read_text() == "2"
        assert installed(str(root)) == {"a": "2"}

    def test_a_file_that_another_package_has_by_now_stays(self, root: Path, deb: MakeDeb) -> None:
        install(str(root), [deb("a", "1", {"usr/bin/x": "a", "usr/bin/y": "a"})])
        install(str(root), [deb("b", "1", {"usr/bin/x": "b"})])
        install(str(root), [], instead=["a"])
        assert [path.name for path in (root / "usr/bin").iterdir()] == ["x"]
        assert installed(str(root)) == {"b": "1"}

    def test_a_path_is_the_same_with_and_without_usr(self, root: Path, deb: MakeDeb) -> None:
        install(str(root), [deb("a", "1", {"lib/x": "1", "sbin/y": "1"})])
        assert (root / "lib").is_symlink()
        install(str(root), [deb("a", "2", {"usr/lib/x": "2"})])
        assert (root / "usr/lib/x").read_text() == "2"
        assert not list((root / "usr/sbin").iterdir())

    def test_what_dpkg_keeps_tells_who_owns_what(self, root: Path, deb: MakeDeb) -> None:
        install(str(root), [deb("a", "1:1", {"usr/share/a b": "1"})])
        assert "/usr/share/a b" in (root / "var/lib/dpkg/info/a.list").read_text().splitlines()
        status = (root / "var/lib/dpkg/status").read_text()
        assert status.startswith("Package: a\nStatus: install ok installed\nVersion: 1:1\n")


class TestSyntheticTrees:
    def test_the_same_numbers_give_the_same_files(self, tmp_path: Path) -> None:
        for name in ("one", "other"):
            create(str(tmp_path / name))
            make(str(tmp_path / name), range(2), 0)
        assert _contents(tmp_path / "one") == _contents(tmp_path / "other")

    def test_an_update_changes_the_files_of_its_packages_alone(self, tmp_path: Path) -> None:
        create(str(tmp_path))
        make(str(tmp_path), range(3), 0)
        before = _contents(tmp_path)
        make(str(tmp_path), [1], 1)
        after = _contents(tmp_path)
        differing = [path for path in before if before[path] != after[path]]
        assert len(differing) == PACKAGE
        assert all(path.startswith("usr/share/package-1/") for path in differing)

    def test_paths_and_bytes_are_counted_once_each(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/file").write_bytes(b"12345")
        (tmp_path / "link").symlink_to("a")
        assert size_of(str(tmp_path)) == (4, 5)


class TestCounting:
    def test_a_user_downloads_what_is_lacking(self) -> None:
        assert lacking({"a": 1, "b": 2}, {"b": 2, "c": 4, "d": 8}) == 12

    def test_who_skips_generations_has_the_last_one_in_the_end(self) -> None:
        assert visited(60, 13) == [0, 13, 26, 39, 52, 60]
        assert visited(60, 4)[-2:] == [56, 60]

    def test_memory_is_not_that_of_who_measures(self) -> None:
        large = bytearray(200_000_000)
        assert run([sys.executable, "-S", "-c", "pass"]).memory < len(large) // 4

    def test_a_failure_is_told(self) -> None:
        with pytest.raises(subprocess.CalledProcessError, match="status 3"):
            run(["sh", "-c", "exit 3"])


class TestCharts:
    def test_a_chart_is_a_block_of_mermaid(self) -> None:
        drawn = lines("t", "x", ["a", "b"], "MB", {"one": [1, 2.5], "two": [0, 3]}).splitlines()
        assert drawn[0] == "```mermaid"
        assert drawn[-7:] == [
            "xychart-beta",
            '  title "t: one blue, two orange"',
            '  x-axis "x" ["a", "b"]',
            '  y-axis "MB" 0 --> 3.15',
            "  line [1, 2.5]",
            "  line [0, 3]",
            "```",
        ]

    def test_numbers_need_no_labels(self) -> None:
        drawn = lines("t", "x", range(61), "MB", {"one": [1.0] * 61}).splitlines()
        assert '  title "t"' in drawn
        assert '  x-axis "x" 0 --> 60' in drawn


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
