"""The measurements themselves: what they count, and that they are fair."""

from __future__ import annotations

import os
import tomllib
from datetime import date
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bench import baseline, series
from bench.limit import Limit, limit
from bench.series import Archive, Update, by_week, joined, kernel_order, newest_entry, sources_list
from bench.stateless import UNCLAIMED, Layer, assign, claims, stateless, update_bytes
from rechunk_action.tree.entry import Entry, Tree


class TestSeries:
    def test_sources_are_ordered_by_week_and_stay_together(self) -> None:
        updates = by_week(
            [
                ("openssl.deb", "openssl", date(2026, 3, 4), 30),
                ("perl.deb", "perl", date(2026, 2, 3), 10),
                ("libssl.deb", "openssl", date(2026, 3, 2), 20),
                ("git.deb", "git", date(2026, 3, 3), 5),
            ]
        )
        assert updates == [
            Update(["2026-W06"], ["perl"], ["perl.deb"], 10),
            Update(["2026-W10"], ["git", "openssl"], ["git.deb", "libssl.deb", "openssl.deb"], 55),
        ]

    def test_source_is_as_late_as_its_latest_package(self) -> None:
        updates = by_week([("a.deb", "s", date(2026, 1, 6), 1), ("b.deb", "s", date(2026, 6, 2), 1)])
        assert [update.weeks for update in updates] == [["2026-W23"]]

    def test_source_without_a_date_comes_last(self) -> None:
        updates = by_week([("x.deb", "x", None, 1), ("a.deb", "a", date(2026, 1, 6), 1)])
        assert [update.sources for update in updates] == [["a", "x"]]

    def test_nothing_pending_is_no_update(self) -> None:
        assert by_week([]) == []

    def test_turn_of_the_year_keeps_its_order(self) -> None:
        updates = by_week([("b.deb", "b", date(2027, 1, 4), 1), ("a.deb", "a", date(2027, 1, 1), 1)])
        assert [update.weeks for update in updates] == [["2026-W53"], ["2027-W01"]]

    def test_weeks_are_joined_until_they_bring_enough(self) -> None:
        weeks = [Update([str(size)], [f"s{size}"], [f"{size}.deb"], size) for size in (1, 4, 9, 2)]
        assert [update.weeks for update in joined(weeks, 5)] == [["1", "4"], ["9"], ["2"]]
        assert [update.bytes for update in joined(weeks, 5)] == [5, 9, 2]
        assert joined(weeks, 0) == weeks

    def test_joining_does_not_change_its_input(self) -> None:
        weeks = [Update(["1"], ["s"], ["a.deb"], 1), Update(["2"], ["s"], ["b.deb"], 1)]
        assert joined(weeks, 9) == [Update(["1", "2"], ["s"], ["a.deb", "b.deb"], 2)]
        assert weeks[0].weeks == ["1"]

    def test_newest_entry_is_the_first(self) -> None:
        text = (
            "xz (5.4.1-1) bookworm; urgency=high\n\n  * Fix.\n\n"
            " -- A B <a@example.org>  Tue, 08 Sep 2026 22:15:01 +0200\n\n"
            " -- A B <a@example.org>  Mon, 09 Jan 2023 10:00:00 +0100\n"
        )
        assert newest_entry(text) == date(2026, 9, 8)

    @pytest.mark.parametrize("text", ["", "no signature", " -- A <a@example.org>  some day"])
    def test_changelog_without_a_date(self, text: str) -> None:
        assert newest_entry(text) is None

    def test_kernels_are_ordered_by_number(self) -> None:
        releases = ["6.1.0-9-amd64", "6.1.0-56-amd64", "5.10.0-100-amd64"]
        assert max(releases, key=kernel_order) == "6.1.0-56-amd64"

    def test_sources_list_names_each_pocket(self) -> None:
        archive = Archive("ubuntu", "http://a/ubuntu", "http://a/ubuntu", "http://s/ubuntu")
        assert sources_list(archive, "noble", ["release", "security"]) == [
            "deb http://a/ubuntu noble main universe",
            "deb http://s/ubuntu noble-security main universe",
        ]

    def test_list_of_mirrors_becomes_its_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mirrors = tmp_path / "mirrors.txt"
        mirrors.write_text("http://near/ubuntu/\tpriority:1\nhttp://far/ubuntu/\tpriority:2\n")
        listed = f"noble mirror+file:{mirrors}\nnoble-security http://s/ubuntu/\nnoble-security http://other/\n"
        monkeypatch.setattr(series, "_run", lambda *_: listed)
        archive = series.host_archive({"ID": "ubuntu", "VERSION_CODENAME": "noble"})
        assert archive == Archive("ubuntu", "http://near/ubuntu", "http://near/ubuntu", "http://s/ubuntu")

    def test_output_in_use_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "v0").mkdir()
        with pytest.raises(series.SeriesError, match="not empty"):
            series.build(str(tmp_path))

    def test_needs_root(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(SystemExit) as ended:
            series.require_root()
        assert ended.value.code == 3
        assert "sudo" in capsys.readouterr().err


class TestLimit:
    def test_counts_each_new_content_once(self, tmp_path: Path) -> None:
        old = make_tree(tmp_path / "old", {"usr/same": b"same" * 100, "usr/was": b"moved" * 100})
        content = b"new" * 1000
        new = make_tree(
            tmp_path / "new",
            {"usr/same": b"same" * 100, "usr/is": b"moved" * 100, "usr/a": content, "usr/b": content},
        )
        compressed = len(zstandard.ZstdCompressor(3).compress(content))
        assert limit(old, new) == Limit(files=1, bytes=3000, compressed=compressed)

    def test_empty_file_counts_as_little_as_its_frame(self, tmp_path: Path) -> None:
        old = make_tree(tmp_path / "old", {"a": b"x"})
        new = make_tree(tmp_path / "new", {"a": b""})
        assert limit(old, new).compressed < 20

    def test_leaves_out_what_no_image_ships(self, tmp_path: Path) -> None:
        old = make_tree(tmp_path / "old", {"usr/a": b"x"})
        new = make_tree(tmp_path / "new", {"usr/a": b"x", "run/new": b"1", "sysroot/new": b"2", "dev/new": b"3"})
        assert limit(old, new) == Limit(0, 0, 0)
        deeper = make_tree(tmp_path / "deeper", {"usr/run/new": b"1"})
        assert limit(old, deeper).files == 1

    def test_links_are_not_followed(self, tmp_path: Path) -> None:
        old = make_tree(tmp_path / "old", {"a": b"x"})
        new = make_tree(tmp_path / "new", {"a": b"x"})
        (tmp_path / "outside").write_bytes(b"other")
        (tmp_path / "new" / "link").symlink_to(tmp_path / "outside")
        assert limit(old, new).files == 0


sizes = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(0, 1000), min_size=1, max_size=60)


class TestStateless:
    @given(sizes=sizes, unclaimed=st.booleans(), layers=st.integers(2, 40))
    def test_stays_within_the_budget(self, sizes: dict[str, int], unclaimed: bool, layers: int) -> None:
        if unclaimed:
            sizes[UNCLAIMED] = 10_000
        place = assign(sizes, layers)
        assert place.keys() == sizes.keys()
        assert all(0 <= index < layers for index in place.values())
        if unclaimed:
            assert [name for name, index in place.items() if index == place[UNCLAIMED]] == [UNCLAIMED]

    @given(sizes=sizes)
    def test_enough_layers_give_each_package_its_own(self, sizes: dict[str, int]) -> None:
        place = assign(sizes, len(sizes))
        assert len(set(place.values())) == len(sizes)

    @given(sizes=sizes, layers=st.integers(1, 40))
    def test_a_small_package_moves_no_other(self, sizes: dict[str, int], layers: int) -> None:
        before = assign(sizes, layers)
        after = assign(sizes | {"zzz": -1}, layers)
        if len(sizes) > layers:
            assert {name: after[name] for name in sizes} == before

    def test_one_layer_takes_all(self) -> None:
        assert assign({"a": 2, "b": 1, UNCLAIMED: 3}, 1) == {"a": 0, "b": 0, UNCLAIMED: 0}

    def test_large_files_of_no_package_are_groups(self) -> None:
        tree: Tree = {
            "": Entry("d", 0o755, 0, 0),
            "a": Entry("d", 0o755, 0, 0),
            "a/large": Entry("f", 0o644, 0, 0, size=5 << 20, group="a/large"),
            "a/linked": Entry("f", 0o644, 0, 0, size=5 << 20, group="a/large"),
            "a/owned": Entry("f", 0o644, 0, 0, size=5 << 20),
            "a/small": Entry("f", 0o644, 0, 0, size=5),
            "empty": Entry("d", 0o755, 0, 0),
        }
        assert claims(tree, {"a/owned": "dpkg:p:all"}) == {
            "a/large": "file:a/large",
            "a/linked": "file:a/large",
            "a/owned": "dpkg:p:all",
            "a/small": UNCLAIMED,
            "empty": UNCLAIMED,
        }

    def test_layers_depend_on_nothing_that_an_update_moves(self, tmp_path: Path) -> None:
        files = {"usr/a": b"a" * 5000, "usr/b": b"b", "etc/c": b""}
        one = make_tree(tmp_path / "one", files)
        os.link(f"{one}/usr/a", f"{one}/usr/linked")
        os.symlink("a", f"{one}/usr/symbolic")
        before = stateless(one, 4)
        os.utime(f"{one}/usr", (5, 5))
        assert stateless(one, 4) == before
        Path(one, "etc/c").write_bytes(b"changed")
        os.utime(f"{one}/etc/c", (1, 1))
        after = stateless(one, 4)
        assert update_bytes(before, after) == sum(layer.size for layer in after if layer not in before) > 0

    def test_update_costs_the_layers_that_are_new(self) -> None:
        old = [Layer("sha256:a", 5), Layer("sha256:b", 7)]
        assert update_bytes(old, [Layer("sha256:b", 7), Layer("sha256:c", 11)]) == 11


def test_baseline_counts_what_it_read(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", {"usr/bin/a": b"1234", "b": bytes(baseline.PIECE + 1)})
    (tmp_path / "tree" / "link").symlink_to("b")
    assert baseline.read_all(tree, threads=2) == (5, 2, baseline.PIECE + 5)
    assert baseline._digest(f"{tree}/b", baseline.PIECE + 1) == baseline._digest(f"{tree}/b", 1 << 30)


def test_locked_requirements_are_those_of_the_project() -> None:
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())
    wanted = {"run": project["project"]["dependencies"], **project["dependency-groups"]}
    for name, lines in wanted.items():
        assert (root / "requirements" / f"{name}.in").read_text().splitlines() == lines, "run: make lock"


def make_tree(root: Path, files: dict[str, bytes]) -> str:
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        os.utime(target, (1, 1))
    return str(root)
