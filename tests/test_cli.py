"""The command, as users and scripts meet it: what it prints where, how it ends, and what it leaves behind."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rechunk_action import __version__
from rechunk_action.cli import main
from rechunk_action.oci.layout import read_image
from rechunk_action.options import _SizeType
from rechunk_action.signals import STOPPING
from tests.support import as_nobody
from tests.trees import CONTENTS

NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["rechunk-action", *map(str, arguments)])
        before = {number: signal.getsignal(number) for number in STOPPING}
        try:
            with pytest.raises(SystemExit) as end:
                main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            gc.enable()
        code = end.value.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, for names to be relative to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return tmp_path


@pytest.fixture
def tree(here: Path) -> Path:
    """A small system: `dir:tree`."""
    root = here / "tree"
    (root / "usr/lib").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/name").write_text("small\n")
    (root / "usr/lib/data").write_bytes(CONTENTS[5])
    return root


@pytest.fixture
def image(run: Run, tree: Path) -> Path:
    """The image of that system: `oci:image:1`."""
    assert run("build", "dir:tree", "oci:image:1").code == 0
    return tree.parent / "image"


class TestHelp:
    @pytest.mark.parametrize("command", [[], ["build"], ["verify"], ["compare"], ["prev-ref"]])
    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_every_command_explains_itself(self, run: Run, command: list[str], flag: str) -> None:
        done = run(*command, flag)
        assert (done.code, done.err) == (0, "")
        assert "Usage: rechunk-action" in done.out

    def test_every_option_is_explained(self, run: Run) -> None:
        text = run("build", "--help").out
        options = ["--prev-ref", "--fresh", "--max-layers", "--max-overhead", "--compression", "--label", "--version"]
        options += ["--config", "--source-date-epoch", "--no-verify", "--json", "--threads", "--drop-bad-xattrs"]
        for option in options:
            assert re.search(rf"{option}\b[^\n]*\s+[A-Z]", text), option

    def test_version(self, run: Run) -> None:
        assert run("--version").out == f"rechunk-action {__version__}\n"


class TestEngines:
    @pytest.mark.usefixtures("tree")
    def test_are_told_apart_by_what_they_read(self, run: Run) -> None:
        done = run("build", "dir:tree", "oci:image", "--pretty=a", "--formatter=a=b", "--max-overhead=3")
        assert done.code == 0
        assert "--pretty has no meaning for engine delta: only engine hhd reads it" in done.err
        assert "--formatter has no meaning for engine delta" in done.err
        assert done.err.count("no meaning") == 2

    @pytest.mark.usefixtures("tree")
    def test_say_what_they_do_not_read_before_anything_else(self, run: Run) -> None:
        done = run(
            "build", "dir:tree", "oci:image", "--engine=hhd", "--compression=zstd:1", "--rechunk=x", "--pretty=a"
        )
        assert done.code == 2
        first, *_, last = done.err.splitlines()
        assert first == "notice: --compression has no meaning for engine hhd: only engine delta reads it"
        assert last.startswith(
            "rechunk-action: the image has no /usr/share/rpm/rpmdb.sqlite, and hhd-dev/rechunk plans by"
        )
        assert done.err.count("no meaning") == 1

    @pytest.mark.parametrize(
        ("text", "size"), [("0", 0), ("800M", 800 * 10**6), ("50g", 50 * 10**9), (" 2TB ", 2 * 10**12), ("1kB", 1000)]
    )
    def test_take_sizes_as_people_write_them(self, text: str, size: int) -> None:
        assert _SizeType().convert(text, None, None) == size

    @pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1 G", "1GiB", "1e9", "1" * 16])
    def test_take_no_others(self, run: Run, text: str) -> None:
        done = run("build", "dir:tree", "oci:image", f"--workspace-size={text}")
        assert done.code == 2
        assert f"{text!r} is no size: write it as in 50G or 800M" in done.err


class TestBuild:
    def test_a_fresh_image_is_told(self, run: Run, tree: Path) -> None:
        done = run("build", "dir:tree", "oci:image:1")
        digest = read_image(tree.parent / "image", "1").digest
        first, second = done.out.splitlines()
        assert first == f"oci:image:1 is ready: {digest}"
        assert re.fullmatch(rf"fresh layout \(first build\): \d+ layers?, 60\.\d{NBSP}kB", second)

    @pytest.mark.usefixtures("image")
    def test_an_update_is_told(self, run: Run, tree: Path) -> None:
        (tree / "etc/new").write_text("x")
        done = run("build", "dir:tree", "oci:image:2", "--prev-ref", "oci:image:1")
        lines = done.out.splitlines()
        assert re.fullmatch(rf"update: \d+{NBSP}bytes in 1 new layers?; 1 layers? kept", lines[1])
        assert re.fullmatch(rf"image:  60\.\d{NBSP}kB in 2 layers; 0\.0% superseded", lines[2])

    @pytest.mark.usefixtures("tree")
    def test_what_goes_on_is_told_on_standard_error(self, run: Run) -> None:
        done = run("build", "dir:tree", "oci:image")
        assert "write layers: " in done.err
        assert "\x1b" not in done.err

    def test_quiet_says_nothing_but_warnings(self, run: Run, tree: Path) -> None:
        assert run("build", "dir:tree", "oci:image:1", "--quiet").err == ""
        os.mkfifo(tree / "usr/fifo")
        assert re.fullmatch(r"notice: left out 1 FIFO: .*\n", run("build", "dir:tree", "oci:image:2", "-q").err)

    @pytest.mark.usefixtures("image")
    def test_verbose_says_why(self, run: Run, tree: Path) -> None:
        for number in (2, 3):
            (tree / "etc/name").write_text(str(number))
            done = run("build", "dir:tree", f"oci:image:{number}", "--prev-ref", f"oci:image:{number - 1}")
            assert "dropped" not in done.err
        (tree / "etc/name").write_text("4")
        done = run("build", "dir:tree", "oci:image:4", "--prev-ref", "oci:image:3", "--verbose")
        assert "layer 2 dropped: nothing in it is live" in done.err
        assert "new layer: unclaimed (1 files, 0 removals)" in done.err

    def test_labels_version_and_config(self, run: Run, tree: Path) -> None:
        Path("config.json").write_text(json.dumps({"config": {"Labels": {"a": "1", "b": "2"}, "Cmd": ["sh"]}}))
        options = ["--label", "a=9", "--label", "b-", "--label", "c=", "--version", "42"]
        report = run("build", "dir:tree", "oci:image", "--config", "config.json", *options, "--json").json
        image = read_image(tree.parent / "image", None)
        given = {key: value for key, value in image.labels.items() if len(key) == 1}
        assert given == {"a": "9", "c": ""}
        assert image.config["config"]["Cmd"] == ["sh"]
        assert report["version"] == image.labels["org.opencontainers.image.version"] == "42"

    def test_the_environment_gives_the_time(self, run: Run, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
        one = run("build", "dir:tree", "oci:one", "--json").json
        for path in tree.rglob("*"):
            os.utime(path, (200_000, 200_000))
        assert run("build", "dir:tree", "oci:two", "--json").json["digest"] == one["digest"]
        assert read_image(Path("one"), None).config["created"] == "1970-01-02T00:00:00Z"

    @pytest.mark.usefixtures("tree")
    def test_compression(self, run: Run) -> None:
        run("build", "dir:tree", "oci:image", "--compression", "gzip:1")
        assert {blob.media_type[-4:] for blob in read_image(Path("image"), None).layers} == {"gzip"}

    def test_attributes_that_importers_cannot_read_are_left_out_when_asked(self, run: Run, tree: Path) -> None:
        os.setxattr(tree / "etc/name", "user.text", b"two\nlines")
        refused = run("build", "dir:tree", "oci:image")
        assert refused.code == 2
        assert "user.text" in refused.err
        assert "etc/name" in refused.err
        done = run("build", "dir:tree", "oci:image", "--drop-bad-xattrs")
        assert done.code == 0
        assert "left out 1 extended attribute" in done.err

    def test_rules_for_images_that_boot_are_told_and_hold_when_asked(self, run: Run, tree: Path) -> None:
        for version in ("6.1", "6.\x1b[31m2\n"):
            (tree / f"usr/lib/modules/{version}").mkdir(parents=True)
            (tree / f"usr/lib/modules/{version}/vmlinuz").touch()
        refused = run("build", "dir:tree", "oci:image", "--strict")
        assert refused.code == 2
        first, *rules = refused.err.splitlines()[1:]
        assert first.startswith(f"rechunk-action: the image breaks {len(rules)} rules for images that boot, which")
        [kernels] = [line for line in rules if line.endswith("(rule kernel)")]
        assert kernels.startswith(r"- 2 kernels, 6.\x1b[31m2\n, 6.1: bootc refuses")
        assert not Path("image").exists()
        done = run("build", "dir:tree", "oci:image")
        assert done.code == 0
        assert [line for line in done.err.splitlines() if line.endswith("(rule kernel)")] == [f"notice: {kernels[2:]}"]
        assert f"breaks {len(rules)} rules for images that boot: see the notices" in done.out


class TestJson:
    FIELDS = frozenset(
        {
            *("schema", "ref", "digest", "version", "prev_ref", "fresh", "published", "reason", "layers", "bytes"),
            *("budget", "update", "history", "dropped", "findings", "changelog", "seconds", "disk"),
        }
    )

    def test_a_fresh_build(self, run: Run, tree: Path) -> None:
        done = run("build", "dir:tree", "oci:image:1", "--json", "--version", "7")
        report = done.json
        assert report.keys() == self.FIELDS
        image = read_image(tree.parent / "image", "1")
        sizes = sum(blob.size for blob in image.layers)
        assert (report["ref"], report["digest"], report["version"]) == ("oci:image:1", image.digest, "7")
        assert (report["prev_ref"], report["fresh"], report["reason"]) == (None, True, "first build")
        assert report["layers"] == {"total": len(image.layers), "kept": 0, "new": len(image.layers)}
        assert report["bytes"] == {"image": sizes, "update": sizes, "kept": 0, "dead": 0, "live": sizes}
        assert report["seconds"].keys() == {"scan", "plan", "write", "verify", "publish"}

    def test_an_update(self, run: Run, tree: Path, image: Path) -> None:
        (tree / "etc/name").write_text("other\n")
        report = run("build", "dir:tree", "oci:image:2", "--prev-ref", "oci:image:1", "--json").json
        old, new = (read_image(image, tag) for tag in ("1", "2"))
        assert report.keys() == self.FIELDS
        assert (report["prev_ref"], report["fresh"], report["reason"]) == (f"oci:image:1@{old.digest}", False, "")
        assert report["layers"] == {"total": 2, "kept": 1, "new": 1}
        size = report["bytes"]
        assert (size["update"], size["kept"]) == (new.layers[1].size, old.layers[0].size)
        assert size["image"] == size["kept"] + size["update"] == size["live"] + size["dead"]
        assert 0 < size["dead"] < 2000
        kept, added = report["update"]["layers"]
        assert (kept["state"], kept["digest"], kept["dead"]) == ("kept", old.layers[0].digest, size["dead"])
        assert added == {
            "state": "new",
            "digest": new.layers[1].digest,
            "bytes": new.layers[1].size,
            "name": "unclaimed",
            "dead": 0,
        }

    @pytest.mark.usefixtures("image")
    def test_a_dropped_layer_is_told_with_the_reason(self, run: Run, tree: Path) -> None:
        (tree / "etc/name").write_text("other\n")
        options = ("--prev-ref", "oci:image:1", "--json")
        run("build", "dir:tree", "oci:image:2", *options)
        (tree / "etc/name").write_text("third\n")
        report = run("build", "dir:tree", "oci:image:3", "--prev-ref", "oci:image:2", "--json").json
        assert [(drop["layer"], drop["reason"]) for drop in report["dropped"]] == [(1, "nothing in it is live")]

    @pytest.mark.usefixtures("tree", "image")
    def test_asking_for_a_fresh_image(self, run: Run) -> None:
        report = run("build", "dir:tree", "oci:image:2", "--prev-ref", "oci:image:1", "--fresh", "--json").json
        assert (report["fresh"], report["reason"]) == (True, "requested")

    def test_verify(self, run: Run, image: Path) -> None:
        report = run("verify", "oci:image:1", "dir:tree", "--json").json
        digest = read_image(image, "1").digest
        said = {"image": "oci:image:1", "digest": digest, "source": "dir:tree", "paths": 6, "equal": True}
        assert report == said | {"chunked": False}

    @pytest.mark.usefixtures("image")
    def test_compare(self, run: Run, tree: Path) -> None:
        (tree / "etc/name").write_text("other\n")
        update = run("build", "dir:tree", "oci:image:2", "--prev-ref", "oci:image:1", "--json").json["bytes"]
        report = run("compare", "oci:image:1", "oci:image:2", "--json").json
        assert report.keys() == {"schema", "update"}
        found = report["update"]
        assert {line["name"] for line in found["components"]} == {"unclaimed", "directories and removals"}
        assert (found["total"], found["removed"], found["added"]) == (
            {"layers": 2, "bytes": update["image"]},
            {"layers": 0, "bytes": 0},
            {"layers": 1, "bytes": update["update"]},
        )


class TestVerify:
    @pytest.mark.usefixtures("image")
    def test_equal(self, run: Run) -> None:
        done = run("verify", "oci:image:1", "dir:tree")
        assert done.code == 0
        assert done.out == "oci:image:1 equals dir:tree: 6 paths, under both merge rules\n"

    @pytest.mark.usefixtures("image")
    def test_an_image_may_be_compared_with_an_image(self, run: Run) -> None:
        assert run("verify", "oci:image:1", "oci:image:1").code == 0

    @pytest.mark.usefixtures("image")
    def test_different(self, run: Run, tree: Path) -> None:
        (tree / "etc/name").chmod(0o600)
        done = run("verify", "oci:image:1", "dir:tree")
        assert (done.code, done.out) == (5, "")
        assert "2 differences" in done.err
        assert "/etc/name: mode 0o644, should be 0o600 (as overlay merges)" in done.err

    @pytest.mark.usefixtures("image")
    def test_of_many_differences_the_first_are_listed_and_all_are_counted(self, run: Run, tree: Path) -> None:
        for number in range(30):
            (tree / f"etc/{number:02}").touch()
        done = run("verify", "oci:image:1", "dir:tree", "--quiet")
        assert done.code == 5
        assert "60 differences" in done.err
        assert [line[:9] for line in done.err.splitlines()[1:-1]] == [f"  /etc/{number:02}" for number in range(20)]
        assert done.err.endswith("... and 40 more\n")


class TestCompare:
    def test_it_speaks_as_bootc_does(self, run: Run, tree: Path, image: Path) -> None:
        (tree / "usr/lib/data").write_bytes(CONTENTS[4])
        run("build", "dir:tree", "oci:image:2", "--prev-ref", "oci:image:1")
        sizes = [sum(blob.size for blob in read_image(image, tag).layers) for tag in ("2", "1", "2")]
        units = [f"{size / 1000:.1f}{NBSP}kB" for size in sizes]
        assert run("compare", "oci:image:1", "oci:image:2").out.splitlines()[:3] == [
            f"Total new layers: 1     Size: {units[0]}",
            f"Removed layers:   1     Size: {units[1]}",
            f"Added layers:     1     Size: {units[2]}",
        ]

    @pytest.mark.usefixtures("image")
    def test_it_names_what_made_the_update(self, run: Run, tree: Path) -> None:
        (tree / "usr/lib/tool").write_bytes(CONTENTS[4])
        os.setxattr(tree / "usr/lib/tool", "user.component", b"tool")
        run("build", "dir:tree", "oci:image:2", "--prev-ref", "oci:image:1")
        lines = run("compare", "oci:image:1", "oci:image:2").out.splitlines()
        assert lines[4] == "What the added layers hold:"
        assert re.fullmatch(rf" +\d+\.\d{NBSP}kB  tool", lines[5])

    @pytest.mark.usefixtures("image")
    def test_an_image_and_itself(self, run: Run) -> None:
        done = run("compare", "oci:image:1", "oci:image:1")
        assert f"Added layers:     0     Size: 0{NBSP}bytes" in done.out
        assert "hold" not in done.out


class TestBadInput:
    """Ends with 2, says what is wrong, and leaves nothing behind."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Commands:"),
            (["frobnicate"], "No such command"),
            (["build", "dir:tree"], "Missing argument 'OUTPUT'"),
            (["build", "dir:tree", "oci:new", "--nope"], "No such option"),
            (["build", "./tree", "oci:new"], "'./tree' is no name that can be used here: write dir:PATH, oci:DIR"),
            (["build", "docker://tree", "oci:new"], "'tree' names no registry: write docker://HOST/REPOSITORY"),
            (["build", "dir:tree", "dir:new"], "write oci:DIR[:TAG] or docker://HOST/REPOSITORY[:TAG]"),
            (["build", "dir:tree", "docker://localhost:1/o/i:latest"], "'latest' is no version"),
            (["build", "dir:tree", "docker://localhost:1/o/i:1", "--version", "2"], "names another version"),
            (["build", "dir:tree", f"docker://localhost:1/o/i@sha256:{'0' * 64}"], "leave it out"),
            (["build", "dir:tree", "docker://example.com/o/i", "--tls-verify=false"], "for registries on loopback"),
            (["build", "dir:tree", "oci:new", "--tag", "latest"], "--tag points a tag of a registry"),
            (["build", "dir:tree", "oci:new", "--tag", "-x"], "'-x' is no valid tag"),
            (["build", "dir:tree", "oci:new", "--version", "{x}"], "no {date:...}"),
            (["build", "dir:tree", "oci:new", "--repository", "ghcr.io/o/i:1"], "leave out the tag"),
            (["prev-ref", "image"], "names no registry"),
            (["build", "dir:tree", "dir:new"], "write oci:DIR"),
            (["build", "dir:tree", "oci:new:"], "ends in a colon"),
            (["build", "dir:missing", "oci:new"], "missing does not exist"),
            (["build", "dir:tree/etc/name", "oci:new"], "is not a directory"),
            (["build", "dir:empty", "oci:new"], "is an empty directory"),
            (["build", "oci:missing", "oci:new"], "is no OCI image layout"),
            (["build", "oci:image:2", "oci:new"], "has no image tagged '2'; its tags are: 1"),
            (["build", "dir:tree", "oci:tree"], "exists and is no OCI image layout"),
            (["build", "dir:tree", "oci:tree/etc/name"], "exists and is no OCI image layout"),
            (["build", "dir:tree", "oci:image"], "already holds an image"),
            (["build", "dir:tree", "oci:image:1"], "already holds an image tagged '1'"),
            (["build", "dir:tree", "oci:no/where"], "no does not exist"),
            (["build", "dir:tree", "oci:new", "--prev-ref", "oci:image:2"], "has no image tagged '2'"),
            (["build", "dir:tree", "oci:new", "--prev-ref", "dir:tree"], "write oci:DIR"),
            (["build", "dir:tree", "oci:new", "--label", "nothing"], "neither KEY=VALUE nor KEY-"),
            (["build", "dir:tree", "oci:new", "--label", "=value"], "neither KEY=VALUE nor KEY-"),
            (["build", "dir:tree", "oci:new", "--label", "ostree.final-diffid=x"], "OSTree-chunked"),
            (["build", "dir:tree", "oci:new", "--compression", "xz"], "use zstd or gzip"),
            (["build", "dir:tree", "oci:new", "--compression", "zstd:99"], "has no level '99'"),
            (["build", "dir:tree", "oci:new", "--max-layers", "2"], "3<=x<=400"),
            (["build", "dir:tree", "oci:new", "--max-overhead", "-1"], "0<=x<=100"),
            (["build", "dir:tree", "oci:new", "--threads", "0"], "1<=x<=64"),
            (["build", "dir:tree", "oci:new", "--source-date-epoch", "yesterday"], "not a valid integer"),
            (["build", "dir:tree", "oci:new", "--source-date-epoch", "99999999999999"], "not in the range"),
            (["build", "dir:tree", "oci:new", "--config", "missing"], "missing"),
            (["build", "dir:tree", "oci:new", "--config", "tree/etc/name"], "is no JSON"),
            (["verify", "oci:image:1", "dir:missing"], "missing does not exist"),
            (["verify", "oci:missing", "dir:tree"], "is no OCI image layout"),
            (["compare", "oci:image:1", "oci:missing"], "is no OCI image layout"),
        ],
    )
    @pytest.mark.usefixtures("image")
    def test_it_is_told(self, run: Run, here: Path, arguments: list[str], message: str) -> None:
        (here / "empty").mkdir()
        before = sorted(here.rglob("*"))
        done = run(*arguments)
        assert (done.code, done.out) == (2, "")
        assert message in " ".join(done.err.split())
        assert "Traceback" not in done.err
        assert sorted(here.rglob("*")) == before

    def test_a_name_that_clients_cannot_take_is_told(self, run: Run, tree: Path, here: Path) -> None:
        Path(os.fsdecode(os.fsencode(tree / "etc") + b"/caf\xe9")).touch()
        done = run("build", "dir:tree", "oci:new")
        assert done.code == 2
        assert r"caf\xe9" in done.err
        assert os.listdir(here) == ["tree"]


class TestEnvironmentLacks:
    """Ends with 3, says what to do, and leaves nothing behind."""

    @pytest.fixture
    def small_disk(self, here: Path) -> Iterator[Path]:
        """A file system that an image of some size does not fit on."""
        disk = here / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
        yield disk
        subprocess.run(["umount", disk], check=True)

    def test_disk_space(self, run: Run, tree: Path, small_disk: Path) -> None:
        (tree / "usr/lib/large").write_bytes(b"".join(CONTENTS[5] + bytes([number]) for number in range(200)))
        done = run("build", "dir:tree", "oci:disk/image", "--compression", "gzip:1")
        assert done.code == 3
        assert "the disk is full" in done.err
        assert os.listdir(small_disk) == []

    def test_disk_space_for_kept_layers(self, run: Run, tree: Path, small_disk: Path) -> None:
        (tree / "usr/lib/large").write_bytes(os.urandom(2 << 20))
        run("build", "dir:tree", "oci:image")
        done = run("build", "dir:tree", "oci:disk/image", "--prev-ref", "oci:image")
        assert done.code == 3
        assert os.listdir(small_disk) == []

    @pytest.mark.usefixtures("image")
    def test_disk_space_for_a_page(self, run: Run, small_disk: Path) -> None:
        page = small_disk / "page"
        page.write_text("the page of the build before")
        (small_disk / "large").write_bytes(bytes((1 << 20) - 8192))
        done = run("compare", "oci:image:1", "oci:image:1", "--html", page)
        assert done.code == 3
        assert "all is done but the page" in done.err
        assert page.read_text() == "the page of the build before"
        assert sorted(os.listdir(small_disk)) == ["large", "page"]
        assert "Removed layers" in done.out

    @pytest.mark.usefixtures("tree")
    def test_a_disk_that_can_be_written_to(self, run: Run, small_disk: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        done = run("build", "dir:tree", "oci:disk/image")
        assert done.code == 3
        assert "Read-only file system" in done.err

    def test_rights(self, run: Run, tree: Path, here: Path) -> None:
        (tree / "etc/name").chmod(0o600)
        here.chmod(0o777)
        with as_nobody():
            done = run("build", "dir:tree", "oci:image")
        assert done.code == 3
        assert "run as root" in done.err
        assert os.listdir(here) == ["tree"]


class TestProcess:
    """The command as a process of its own."""

    COMMAND = (sys.executable, "-m", "rechunk_action")

    @pytest.mark.usefixtures("tree")
    def test_it_is_a_module(self) -> None:
        done = subprocess.run(
            [*self.COMMAND, "build", "dir:tree", "oci:image", "--json"], capture_output=True, check=True
        )
        assert json.loads(done.stdout)["digest"] == read_image(Path("image"), None).digest
        assert b"write layers" in done.stderr

    @pytest.mark.usefixtures("image")
    def test_it_is_a_program(self, tree: Path) -> None:
        program = Path(sys.executable).parent / "rechunk-action"
        (tree / "more").touch()
        done = subprocess.run([program, "verify", "oci:image:1", "dir:tree"], capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (5, b"")

    @pytest.mark.usefixtures("image")
    def test_it_speaks_to_what_knows_no_unicode(self) -> None:
        command = [*self.COMMAND, "compare", "oci:image:1", "oci:image:1"]
        done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert rb"Size: 0\xa0bytes" in done.stdout
        assert b"Traceback" not in done.stderr

    @pytest.mark.usefixtures("tree")
    def test_stopping_it_when_the_image_is_there_says_so(self, here: Path) -> None:
        os.mkfifo(here / "page")
        command = [*self.COMMAND, "build", "dir:tree", "oci:image", "--html", "page"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                process.stdout.readline()
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 130
        assert said.endswith(b"rechunk-action: cancelled when the image was complete: oci:image is there\n")

    @pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM])
    def test_stopping_it_leaves_nothing(self, tree: Path, here: Path, request_to_stop: signal.Signals) -> None:
        with (tree / "usr/lib/endless").open("wb") as file:
            file.truncate(1 << 40)
        with subprocess.Popen([*self.COMMAND, "build", "dir:tree", "oci:image"], stderr=subprocess.PIPE) as process:
            try:
                while not list(here.glob(".image.*/scratch/layer-*")):
                    assert process.poll() is None
                process.send_signal(request_to_stop)
                _, said = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 130
        assert said.endswith(b"rechunk-action: cancelled; nothing was left behind\n")
        assert os.listdir(here) == ["tree"]
