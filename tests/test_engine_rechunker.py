"""What is given to hhd-dev/rechunk's container, and what is made of what it leaves: all but running it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rechunk_action.engines import rechunker
from rechunk_action.engines.container import Bind
from rechunk_action.errors import EngineFailed, InputError
from rechunk_action.job import HhdOptions
from rechunk_action.oci.image import Image, Json
from rechunk_action.oci.layout import read_image
from rechunk_action.tree.entry import Entry, Tree, ancestors
from tests.oracles import run
from tests.rechunker import rechunker_image
from tests.support import archive, directory, file, pack, patient, write_index, write_json, write_layout

PLAN = rechunker.PLAN_LABEL
VERSION = "org.opencontainers.image.version"
DESCRIPTION = "org.opencontainers.image.description"

SYSTEM = (
    "etc/hostname",
    "etc/selinux/config",
    "usr/lib/modules/6.1/vmlinuz",
    "usr/share/rpm/rpmdb.sqlite",
    "usr/bin/sh",
)


def tree(*paths: str, **changed: Entry) -> Tree:
    """A tree of small files. Those that end in a slash are directories."""
    found: Tree = {}
    for path in paths:
        found |= {above: Entry("d", 0o755, 0, 0) for above in ancestors(path)}
        if not path.endswith("/"):
            found[path] = Entry("f", 0o644, 0, 0, mtime=1, size=1)
    return found | {path.replace("__", "/"): entry for path, entry in changed.items()}


class TestTreesThatAreTaken:
    def test_a_system_is(self) -> None:
        assert rechunker.check_tree(tree(*SYSTEM)) == []

    def test_etc_may_be_where_ostree_has_it(self) -> None:
        assert rechunker.check_tree(tree(*(f"usr/{path}" if path.startswith("etc") else path for path in SYSTEM))) == []

    @pytest.mark.parametrize(
        ("lost", "named"),
        [
            ("usr/", "no directory /usr"),
            ("etc/", "neither /etc nor /usr/etc"),
            ("usr/share/rpm/", "no /usr/share/rpm/rpmdb.sqlite"),
            ("usr/lib/modules/", "no kernel"),
        ],
    )
    def test_what_is_none_is_refused(self, lost: str, named: str) -> None:
        with pytest.raises(InputError, match=rf"(?s){named}.*: .*(engine delta|name another source)"):
            rechunker.check_tree(tree(*(path for path in SYSTEM if not path.startswith(lost))))

    @pytest.mark.parametrize("path", ["usr/lib/modules/vmlinuz", "usr/lib/modules/6/extra/vmlinuz", "boot/vmlinuz"])
    def test_a_kernel_has_one_place(self, path: str) -> None:
        with pytest.raises(InputError, match="no kernel"):
            rechunker.check_tree(tree(*(path if "vmlinuz" in each else each for each in SYSTEM)))

    def test_an_empty_etc_is_none(self) -> None:
        with pytest.raises(InputError, match="neither /etc nor /usr/etc"):
            rechunker.check_tree(tree("etc/", *(path for path in SYSTEM if not path.startswith("etc/"))))

    def test_a_link_is_no_directory(self) -> None:
        with pytest.raises(InputError, match="no directory /usr"):
            rechunker.check_tree(tree("etc/hostname", usr=Entry("l", 0o777, 0, 0, target="system")))

    def test_labels_are_missed(self) -> None:
        (notice,) = rechunker.check_tree(tree(*(path for path in SYSTEM if "selinux" not in path)))
        assert "no SELinux policy" in notice


class TestPrunedTrees:
    BEFORE = (
        *SYSTEM,
        *("boot/grub.cfg", "dev/", "ostree/x", "run/lock/x", "sysroot/x", "tmp/x", "usr/lib/.build-id/1", ".dockerenv"),
        *("etc/passwd-", "etc/.pwd.lock", "var/lib/games/scores", "var/log/build.log", "var/empty/", "bootloader"),
    )
    AFTER = (
        *("usr/etc/hostname", "usr/etc/selinux/config", *SYSTEM[2:], "bootloader"),
        *("usr/lib/games/scores", "usr/share/factory/var/log/build.log", "usr/share/factory/var/empty/"),
    )

    def test_what_moves_is_not_lost(self) -> None:
        assert rechunker.check_pruned(tree(*self.BEFORE), tree(*self.AFTER)) == []

    @pytest.mark.parametrize("lost", ["bootloader", "usr/etc/hostname", "usr/lib/games/scores", "usr/bin/sh"])
    def test_what_is_lost_is_told_by_its_name_in_the_image(self, lost: str) -> None:
        found = rechunker.check_pruned(tree(*self.BEFORE), tree(*(path for path in self.AFTER if path != lost)))
        was = lost.replace("usr/etc", "etc").replace("usr/lib/games", "var/lib/games")
        assert found == [f"the rechunker leaves out files that the image has: /{was}"]

    def test_of_many_the_first_are_told(self) -> None:
        many = [f"usr/many/{number:04}" for number in range(1234)]
        (notice,) = rechunker.check_pruned(tree(*SYSTEM, *many), tree(*self.AFTER))
        assert notice.endswith(
            "/usr/many/0000, /usr/many/0001, /usr/many/0002, /usr/many/0003, /usr/many/0004 and 1,229 more"
        )

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (Entry("f", 0, 0, 0, mtime=1, size=1), Entry("f", 0, 0, 0, mtime=1, size=2)),
            (Entry("f", 0, 0, 0, mtime=1, size=1), Entry("f", 0, 0, 0, mtime=2, size=1, digest=b"read")),
            (Entry("f", 0, 0, 0, mtime=1, size=1, digest=b"a"), Entry("f", 0, 0, 0, mtime=1, size=1, digest=b"b")),
            (Entry("l", 0, 0, 0, target="a"), Entry("l", 0, 0, 0, target="b")),
            (Entry("f", 0, 0, 0), Entry("l", 0, 0, 0, target="b")),
            (Entry("f", 0, 0, 0), Entry("d", 0, 0, 0)),
        ],
    )
    def test_what_changes_is_told(self, before: Entry, after: Entry) -> None:
        system = tree(*self.BEFORE, usr__bin__sh=before)
        found = rechunker.check_pruned(system, tree(*self.AFTER, usr__bin__sh=after))
        assert found == ["the rechunker changes what is in files: /usr/bin/sh"]

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (Entry("f", 0o644, 0, 0, mtime=1, size=1), Entry("f", 0o755, 7, 8, mtime=1, size=1, digest=b"read")),
            (
                Entry("f", 0, 0, 0, mtime=1, digest=b"a"),
                Entry("f", 0, 0, 0, mtime=2, digest=b"a", xattrs=(("a", b"b"),)),
            ),
        ],
    )
    def test_modes_owners_and_attributes_may_change(self, before: Entry, after: Entry) -> None:
        system = tree(*self.BEFORE, usr__bin__sh=before)
        assert rechunker.check_pruned(system, tree(*self.AFTER, usr__bin__sh=after)) == []

    def test_users_and_groups_are_rewritten(self) -> None:
        new = Entry("f", 0o644, 0, 0, mtime=2, size=2)
        names = ("etc/passwd", "etc/group", "usr/lib/passwd", "usr/lib/group")
        changed = {name.replace("/", "__"): new for name in ("usr/etc/passwd", "usr/etc/group", *names[2:])}
        assert rechunker.check_pruned(tree(*self.BEFORE, *names), tree(*self.AFTER, **changed)) == []

    def test_of_two_files_with_one_place_one_is_lost(self) -> None:
        """Pruning merges usr/etc over etc, and var/lib over usr/lib."""
        other = Entry("f", 0o644, 0, 0, mtime=2, size=2)
        system = tree(*self.BEFORE, "usr/lib/games/scores", usr__etc__hostname=other, var__lib__games__scores=other)
        pruned = tree(*self.AFTER, usr__etc__hostname=other, usr__lib__games__scores=other)
        assert rechunker.check_pruned(system, pruned) == [
            "the rechunker changes what is in files: /etc/hostname, /usr/lib/games/scores"
        ]

    @pytest.mark.parametrize(
        "ruin", [(), SYSTEM, [path for path in AFTER if "rpm" not in path], ["usr/etc/", *SYSTEM[2:]]]
    )
    def test_a_ruin_is_an_error(self, ruin: Sequence[str]) -> None:
        with pytest.raises(EngineFailed, match=r"has not left a system: .* see what step prune says above"):
            rechunker.check_pruned(tree(*self.BEFORE), tree(*ruin))


def image(place: Path, labels: Json | None = None, **config: Any) -> Image:
    layers = [pack(archive(directory("usr")), "gzip"), pack(archive(directory("usr"), file("usr/a")), "gzip")]
    write_layout(place, layers, config={"config": {"Labels": labels, "Env": ["A=1"]}} | config)
    return read_image(place, None)


class TestThePreviousManifest:
    @pytest.mark.oracle
    @pytest.mark.parametrize("labels", [None, {PLAN: '{"a": "é\\n"}', VERSION: "7", "": "", "quotes": "\"'<&>"}])
    def test_is_what_skopeo_shows(self, tmp_path: Path, labels: Json | None) -> None:
        of = image(tmp_path / "image", labels, created="2026-01-01T00:00:00Z")
        index = json.loads((tmp_path / "image/index.json").read_text())["manifests"][0]
        document = of.manifest
        document["layers"][1]["annotations"] = {"ostree.components": "a,b"}
        write_index(tmp_path / "image", index | write_json(tmp_path / "image", document, index["mediaType"]))
        skopeo = ("docker", "run", "--rm", f"--volume={tmp_path}:/here:ro", rechunker_image(), "skopeo")
        shown = json.loads(run(*skopeo, "inspect", "oci:/here/image"))
        ours = rechunker.previous_manifest(read_image(tmp_path / "image", None), None)
        # Of a registry it would tell the tags, too: there are none that the rechunker has to avoid.
        assert {**shown, "Name": ours["Name"], "Labels": shown["Labels"] or {}} == ours | {"RepoTags": []}

    def test_knows_no_version_that_ours_could_collide_with(self, tmp_path: Path) -> None:
        of = image(tmp_path / "image", {PLAN: "{}", VERSION: "7"})
        assert rechunker.previous_manifest(of, "7")["Labels"] == {PLAN: "{}"}
        assert rechunker.previous_manifest(of, "8")["Labels"] == of.labels
        assert rechunker.previous_manifest(of, None)["Labels"] == of.labels
        assert rechunker.previous_manifest(of, "7")["RepoTags"] == []

    def test_is_laid_out_with_the_file_of_meta_packages(self, tmp_path: Path) -> None:
        (tmp_path / "meta").write_bytes(b"meta: {}\n# \xff")
        (tmp_path / "results").mkdir()
        rechunker.supply(tmp_path / "results", {"Labels": {"a": "é\ud800"}}, tmp_path / "meta")
        assert json.loads((tmp_path / "results/previous.manifest.json").read_text()) == {"Labels": {"a": "é\ud800"}}
        assert (tmp_path / "results/_meta_in.yml").read_bytes() == b"meta: {}\n# \xff"

    def test_is_not_there_for_a_first_build(self, tmp_path: Path) -> None:
        rechunker.supply(tmp_path, None, None)
        assert list(tmp_path.iterdir()) == []


class TestPlans:
    @pytest.mark.parametrize(
        ("plan", "known"),
        [
            (
                '{"version": 2, "uniq": "", "packages": {}, "layers": [["dedi:meta:kernel"], []], "revision": null}',
                True,
            ),
            ('{"version": 1, "uniq": "", "packages": {}}', True),
            (None, False),
            ("", False),
            ("null", False),
            ("{}", False),
            ("[]", False),
            ("garbage", False),
            ('{"version": 2, "layers": {"a": "b"}}', False),
            ('{"version": 2, "layers": [["a"]', False),
        ],
    )
    def test_are_looked_at_before_they_are_relied_on(self, tmp_path: Path, plan: str | None, known: bool) -> None:
        labels = {} if plan is None else {PLAN: plan}
        assert rechunker.has_plan(image(tmp_path / "image", labels)) is known


def chunked(given_: HhdOptions | None = None, **changes: Any) -> dict[str, str]:
    """The environment of the step that makes the image."""
    plain: dict[str, Any] = {"version": None, "labels": (), "max_layers": None, "fresh": False}
    step = rechunker.chunk("image", Path("/repo"), Path("/results"), given_ or HhdOptions(), **plain | changes)
    return dict(step.environment)


class TestSteps:
    def test_get_what_they_need_and_nothing_else(self, tmp_path: Path) -> None:
        prune = rechunker.prune("image", tmp_path)
        assert (prune.environment, prune.binds) == ({"TREE": "/var/tree"}, (Bind(tmp_path, "/var/tree"),))
        commit = rechunker.commit("image", tmp_path, tmp_path / "ostree")
        assert commit.environment == {"TREE": "/var/tree", "REPO": "/var/ostree/repo", "RESET_TIMESTAMP": "1"}
        git = HhdOptions(git=tmp_path / "checkout")
        chunk = rechunker.chunk(
            "image", tmp_path, tmp_path / "r", git, version=None, labels=(), max_layers=None, fresh=True
        )
        assert list(chunk.binds) == [
            Bind(tmp_path, "/var/ostree", read_only=True),
            Bind(tmp_path / "r", "/workspace"),
            Bind(tmp_path / "checkout/.git", "/var/git/.git", read_only=True),
        ]
        assert commit.binds[0] == Bind(tmp_path, "/var/tree", read_only=True)
        assert set(prune.capabilities) == {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP"}
        assert set(commit.capabilities) == set(chunk.capabilities) == {"DAC_OVERRIDE"}
        for step in (prune, commit, chunk):
            assert not step.network
            assert step.image == "image"

    def test_what_was_not_given_is_not_set(self) -> None:
        plain = {"REPO": "/var/ostree/repo", "OUT_NAME": "image", "OUT_REF": "oci:image"}
        assert chunked() == plain | {"VERSION_FN": "/workspace/version.txt", "PYTHONUNBUFFERED": "1"}

    def test_what_was_given_is(self) -> None:
        hhd = HhdOptions(
            pretty="Pretty",
            changelog="# <version>\n\n<pkgupd>",
            revision="abc",
            formatters=["pkgupd.add=<package>", "mine=a=b"],
            git=Path("checkout"),
            skip_compression=True,
        )
        found = chunked(hhd, version="7", max_layers=9, fresh=True, labels=["a=b=c", f"{DESCRIPTION}=one\ntwo"])
        assert {key: value for key, value in found.items() if key not in chunked()} == {
            "VERSION": "7",
            "MAX_LAYERS": "9",
            "CLEAR_PLAN": "1",
            "SKIP_COMPRESSION": "1",
            "PRETTY": "Pretty",
            "CHANGELOG": "# <version>\n\n<pkgupd>",
            "REVISION": "abc",
            "FORMATTERS": "pkgupd.add=<package>\nmine=a=b",
            "GIT_DIR": "/var/git",
            "LABELS": "a=b=c",
            "DESCRIPTION": "one\ntwo",
        }

    def test_a_checkout_may_be_named_from_here(self) -> None:
        git = HhdOptions(git=Path("checkout"))
        step = rechunker.chunk("i", Path("/r"), Path("/s"), git, version=None, labels=(), max_layers=None, fresh=True)
        assert step.binds[-1].source == Path.cwd() / "checkout/.git"

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("changelog", {"given_": HhdOptions(changelog="é" * 70_000)}),
            ("labels", {"labels": [f"{number}={'x' * 1000}" for number in range(140)]}),
            ("description", {"labels": [f"{DESCRIPTION}={'x' * 140_000}"]}),
        ],
    )
    def test_what_no_program_can_be_given_is_refused(self, name: str, options: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=f"^{name} takes 1[0-9][0-9],[0-9]{{3}} bytes, and 131,071 .*: shorten it"):
            chunked(**options)

    def test_the_limit_is_that_of_linux(self) -> None:
        longest = "x" * (rechunker.MAX_VALUE - len("CHANGELOG="))
        environment = chunked(HhdOptions(changelog=longest))
        assert subprocess.run(["true"], env=environment, check=True).returncode == 0
        with pytest.raises(InputError):
            chunked(HhdOptions(changelog=longest + "x"))
        with pytest.raises(OSError, match="Argument list too long"):
            subprocess.run(["true"], env={"CHANGELOG": longest + "x"}, check=True)


class TestLabels:
    def test_that_take_one_line_are_told(self) -> None:
        labels = ["a=1", "b=two\nlines", "c-", "a=2", f"{VERSION}=9", f"{PLAN}={{}}", "d=", f"{DESCRIPTION}=x"]
        found = chunked(labels=labels)
        assert found["LABELS"] == "a=2\nd="
        assert found["DESCRIPTION"] == "x"

    def test_come_back_filled_in(self, tmp_path: Path) -> None:
        labels = ["a=1 <version>", "a=2 <version>", "b=two\nlines", "c=<pretty>", "c-", f"{VERSION}=9", "lost=x"]
        made = image(tmp_path / "image", {"a": "2 7", "c": "Pretty", "ostree.linux": "6", PLAN: "{}", VERSION: "7"})
        filled, own = rechunker.filled([*labels, f"{PLAN}=mine"], made)
        assert filled == {"a=2 <version>": "a=2 7", "c=<pretty>": "c=Pretty"}
        assert own == {"ostree.linux": "6", PLAN: "{}"}


META = (
    "version: 1\nmax_layers: 9\nlayer_max_ratio: 1.3\nmeta:\n  fonts:\n    packages: ['*-fonts']\n    dedicated: no\n"
)


class TestMetaPackages:
    @pytest.mark.parametrize("text", [META, "meta: {}", "meta: {a: {}}\nmore: 1", "meta: {a: {files: [/b]}}"])
    def test_as_the_rechunker_has_them_are_taken(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "meta.yml").write_text(text)
        rechunker.check_meta(tmp_path / "meta.yml")

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("", "object"),
            ("meta:", "object"),
            ("- a", "object"),
            ("meta: [a]", "object"),
            ("packages: {}", "meta"),
            ("meta: {a: }", "object"),
            ("meta: {a: [b]}", "object"),
            ("meta: {a: {packages: b}}", "array"),
            ("meta: {a: {packages: }}", "array"),
            ("meta: {a: {files: [1]}}", "str"),
            ("meta: {a: {dedicated: maybe}}", "bool"),
            ("meta: {1: {}}", "str"),
            ("meta: {}\nmax_layers: many", "int"),
            ("meta: {}\nmax_layers: 0", "max_layers"),
            ("meta: {}\nmax_layers: true", "int"),
            ("meta: {}\nlayer_max_ratio: no", "float"),
            ("a: b: c", "no YAML"),
            ("meta: !!python/object:os.system {}", "no YAML"),
            ("\x00", "no YAML"),
            ("[" * 10_000, "no YAML"),
        ],
    )
    def test_that_it_would_fail_on_are_refused(self, tmp_path: Path, text: str, named: str) -> None:
        (tmp_path / "meta.yml").write_text(text)
        with pytest.raises(InputError, match=rf"--meta /.*meta\.yml .*{named}.*: correct it"):
            rechunker.check_meta(tmp_path / "meta.yml")

    @pytest.mark.parametrize("name", ["missing.yml", "."])
    def test_that_cannot_be_read_are_told(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match=r"(?s)--meta .*: name a file that is there"):
            rechunker.check_meta(tmp_path / name)

    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    @settings(patient)
    def test_of_any_bytes_are_taken_or_refused(self, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        self._taken_or_refused(tmp_path_factory, data)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["meta", "packages", "files", "dedicated", "max_layers", "a"]), inner)
            ),
            max_leaves=10,
        )
    )
    @settings(patient)
    def test_of_any_shape_are_taken_or_refused(self, tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
        self._taken_or_refused(tmp_path_factory, yaml.safe_dump(document).encode())

    def _taken_or_refused(self, factory: pytest.TempPathFactory, data: bytes) -> None:
        path = factory.getbasetemp() / "meta.yml"
        path.write_bytes(data)
        try:
            rechunker.check_meta(path)
        except InputError as error:
            assert "correct it" in str(error)  # noqa: PT017  # it may also be taken
        else:
            assert isinstance(yaml.safe_load(data)["meta"], dict)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What the rechunker leaves, modes included."""
    place = tmp_path / "results"
    place.mkdir()
    image(place / "image", {"a": "b"})
    (place / "image.changelog.txt").write_text("# Changes\n")
    for path in [place / "image", *(place / "image").rglob("*"), place / "image.changelog.txt"]:
        path.chmod(0o666)
    return place


class TestResults:
    def test_are_image_and_changelog(self, results: Path) -> None:
        found = rechunker.read_results(results)
        assert (found.image.labels, found.changelog, found.layout) == ({"a": "b"}, "# Changes\n", results / "image")

    def test_get_modes_that_directories_and_files_should_have(self, results: Path) -> None:
        (results / "image/blobs/setuid").touch()
        (results / "image/blobs/setuid").chmod(0o4777)
        rechunker.read_results(results)
        modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in results.rglob("*")}
        assert modes == {(True, 0o755), (False, 0o644)}

    @pytest.mark.parametrize("said", [b"", None, b"caf\xe9"])
    def test_may_have_any_changelog(self, results: Path, said: bytes | None) -> None:
        (results / "image.changelog.txt").unlink()
        if said is not None:
            (results / "image.changelog.txt").write_bytes(said)
        assert rechunker.read_results(results).changelog == (said or b"").decode(errors="replace")

    @pytest.mark.parametrize(
        "ruin",
        [
            lambda layout: (layout / "index.json").unlink(),
            lambda layout: (layout / "index.json").write_text("{"),
            lambda layout: (layout / "index.json").write_text("[]"),
            write_index,
            lambda layout: write_index(layout, *2 * [index_of(layout)]),
            lambda layout: write_index(layout, index_of(layout) | {"mediaType": "text/plain"}),
            lambda layout: write_index(layout, index_of(layout) | {"digest": "sha256:../../../../etc/passwd"}),
            lambda layout: write_index(layout, index_of(layout) | {"size": 1}),
            lambda layout: layout.rename(layout.with_name("elsewhere")),
            lambda layout: change(layout, lambda image: image.manifest["layers"].pop()),
            lambda layout: change(layout, lambda image: image.config["history"].pop()),
            lambda layout: change(layout, lambda image: image.config.pop("history")),
            lambda layout: change(layout, lambda image: image.config["history"].append({"comment": "more"})),
            lambda layout: change(layout, lambda image: image.config.pop("rootfs")),
            lambda layout: change(layout, lambda image: image.config["config"].update(Labels=["a"])),
            lambda layout: change(layout, lambda image: image.manifest["layers"][0].update(annotations="a")),
            lambda layout: change(layout, lambda image: image.manifest["layers"][0].update(annotations={"a": 1})),
            lambda layout: change(layout, lambda image: image.manifest["layers"][0].update(digest="../../x")),
            lambda layout: change(layout, lambda image: image.manifest["layers"][0].update(size="1")),
        ],
    )
    def test_that_are_no_image_are_an_error(self, results: Path, ruin: Callable[[Path], object]) -> None:
        (results / "image").chmod(0o755)
        ruin(results / "image")
        with pytest.raises(EngineFailed, match=r"(?s)the rechunker.*: run it again, name another container image"):
            rechunker.read_results(results)

    @pytest.mark.parametrize(
        "place",
        ["image.changelog.txt", "image/index.json", "image/blobs/sha256", "image/extra", "extra", "image"],
    )
    def test_never_lead_to_a_file_of_this_machine(self, results: Path, tmp_path: Path, place: str) -> None:
        (results / "image").chmod(0o755)
        secret = tmp_path / "secret"
        (results / place).rename(secret) if (results / place).exists() else secret.write_text("secret")
        secret.chmod(0o600)
        (results / place).symlink_to(secret)
        with pytest.raises(EngineFailed, match=f"{place}, which is neither file nor directory: run it again"):
            rechunker.read_results(results)
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600

    def test_never_keep_us_waiting(self, results: Path) -> None:
        os.mkfifo(results / "pipe")
        with pytest.raises(EngineFailed, match="/pipe, which is neither"):
            rechunker.read_results(results)
        (results / "pipe").unlink()
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(results / "socket"))
            with pytest.raises(EngineFailed, match="/socket, which is neither"):
                rechunker.read_results(results)


def index_of(layout: Path) -> Json:
    descriptor: Json = json.loads((layout / "index.json").read_text())["manifests"][0]
    return descriptor


def change(layout: Path, changed: Callable[[Image], object]) -> None:
    """Change manifest and config of an image, everything else fitting."""
    descriptor = index_of(layout)
    found = read_image(layout, None)
    changed(found)
    found.manifest["config"] |= write_json(layout, found.config, found.manifest["config"]["mediaType"])
    write_index(layout, descriptor | write_json(layout, found.manifest, descriptor["mediaType"]))
