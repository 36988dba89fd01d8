"""The stand-in for hhd-dev/rechunk: it does what the original's contract says, faults included."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.oracles import program, run
from tests.oracles.compare import differences
from tests.rechunker import FAULTS, rechunk_step, rechunker_image, small_tree
from tests.rechunker.image import damage
from tests.rechunker.image.rechunk import INFO, VERSION, next_version
from tests.rechunker.tree import CAPABILITY

pytestmark = pytest.mark.oracle

DAY = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)

IMPORT = """
mkdir /check/root
for layer in "$@"; do
    tar --directory=/check/root --same-permissions --numeric-owner -xzf "/check/layout/$layer"
done
repo=/check/root/sysroot/ostree/repo
commit=$(find $repo/objects -name '*.commit' | sed 's|.*/objects/||; s|/||; s|[.]commit||')
ostree --repo=$repo fsck --quiet >/dev/null
ostree --repo=/check/repo init --mode=bare
ostree --repo=/check/repo pull-local $repo "$commit" >/dev/null
ostree --repo=/check/repo fsck --quiet >/dev/null
ostree --repo=/check/repo checkout "$commit" /check/tree
echo "$commit"
"""
"""As its importers do, but with OSTree's own programs."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The directories of one run, and the steps in them."""

    place: Path
    options: tuple[str, ...] = ()

    @property
    def tree(self) -> Path:
        return self.place / "tree"

    @property
    def output(self) -> Path:
        return self.place / "workspace"

    @property
    def layout(self) -> Path:
        return self.output / "small"

    def prune(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return rechunk_step(
            "prune",
            {self.tree: "/var/tree", self.output: "/workspace"},
            {"TREE": "/var/tree"} | environment,
            self.options,
        )

    def create(self, **environment: str) -> subprocess.CompletedProcess[str]:
        binds = {self.tree: "/var/tree", self.place / "ostree": "/var/ostree"}
        own = {"TREE": "/var/tree", "REPO": "/var/ostree/repo", "RESET_TIMESTAMP": "1"}
        return rechunk_step("create", binds, own | environment, self.options)

    def chunk(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        binds = {self.output: "/workspace", self.place / "ostree": "/var/ostree"}
        own = {"REPO": "/var/ostree/repo", "OUT_NAME": "small", "OUT_REF": "oci:small"}
        return rechunk_step("chunk", binds, own | environment, (*self.options, *options))

    def text(self, name: str) -> str:
        return (self.output / name).read_text()

    @property
    def manifest(self) -> dict[str, Any]:
        (descriptor,) = json.loads((self.layout / "index.json").read_text())["manifests"]
        return self.document(descriptor)

    @property
    def config(self) -> dict[str, Any]:
        return self.document(self.manifest["config"])

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.config["config"]["Labels"]
        return labels

    @property
    def layers(self) -> dict[str, str]:
        """Name -> digest."""
        names = [entry["created_by"] for entry in self.config["history"]]
        return dict(zip(names, (layer["digest"] for layer in self.manifest["layers"]), strict=True))

    def document(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.blob(descriptor["digest"]).read_text())
        return document

    def blob(self, digest: str) -> Path:
        return self.layout.joinpath("blobs", *digest.split(":"))


def new_work(place: Path, version: int = 1, faults: Sequence[str] = (), *, selinux: bool = False) -> Work:
    work = Work(place)
    work.output.mkdir(parents=True)
    (place / "ostree").mkdir()
    small_tree(work.tree, version, selinux=selinux)
    if faults:
        (work.tree / FAULTS).write_text("".join(f"{fault}\n" for fault in faults))
    return work


def succeed(*results: subprocess.CompletedProcess[str]) -> None:
    for result in results:
        assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Work]:
    """Version 1, made anew, and version 2 after it."""
    first = new_work(tmp_path_factory.mktemp("first"))
    succeed(first.prune(), first.create(), first.chunk(VERSION="1.<date>", LABELS="a=b=c\n\nd=<version>"))
    second = new_work(tmp_path_factory.mktemp("second"), 2)
    shutil.copy(first.output / "small.manifest.json", second.output / "previous.manifest.json")
    succeed(second.prune(), second.create())
    succeed(
        second.chunk(
            VERSION="2",
            VERSION_FN="/workspace/version.txt",
            MAX_LAYERS="3",
            REVISION="abc",
            DESCRIPTION="after <previous>",
            PRETTY="Two",
            CHANGELOG="# <pretty> <version> <relver:kernel-core>\n<pkgupd><commits><unknown>",
            FORMATTERS=r"pkgupd.update=<package>: <old>, <new>\n",
        )
    )
    return first, second


@pytest.fixture(scope="module")
def imported(series: tuple[Work, Work], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Work, str, Path]]:
    """Both images, the commit that OSTree has of each, and a directory: `root` for containers, `tree` the commit's."""
    found = []
    for work in series:
        place = tmp_path_factory.mktemp("imported")
        binds = [f"--volume={place}:/check", f"--volume={work.layout}:/check/layout:ro"]
        blobs = [str(work.blob(digest).relative_to(work.layout)) for digest in work.layers.values()]
        command = ("run", "--rm", "--network=none", *binds, rechunker_image(), "bash", "-euc", IMPORT, "import", *blobs)
        found.append((work, run(program("docker", "docker.io"), *command).strip(), place))
    return found


@pytest.fixture
def chunkable(series: tuple[Work, Work], tmp_path: Path) -> Work:
    """A repository with a commit, ready for the last step."""
    work = Work(tmp_path)
    work.output.mkdir()
    (work.place / "ostree").symlink_to(series[0].place / "ostree")
    return work


def test_a_repository_filled_from_the_layers_has_the_pruned_tree(imported: list[tuple[Work, str, Path]]) -> None:
    for work, commit, place in imported:
        assert commit == work.labels["ostree.commit"]
        assert differences(work.tree, place / "tree", hardlinks=False, root=True) == []


def test_containers_see_the_files(imported: list[tuple[Work, str, Path]]) -> None:
    for work, _, place in imported:
        seen = place / "root"
        paths = {path for path in _paths(seen) if not path.startswith("sysroot/")}
        assert paths == {re.sub("^usr/etc", "etc", path) for path in _paths(work.tree)} | {"var/tmp"}
        for path in paths:
            original = work.tree / re.sub("^etc", "usr/etc", path)
            # Layers state no parent directories, so that their metadata is not the tree's; tar leaves attributes out.
            if (seen / path).is_file() and not (seen / path).is_symlink():
                assert _metadata(seen / path)[:3] == _metadata(original)[:3]
                assert (seen / path).read_bytes() == original.read_bytes()


def _paths(root: Path) -> Iterator[str]:
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            yield os.path.relpath(os.path.join(directory, name), root)


def _metadata(path: Path) -> tuple[int, int, int, dict[str, bytes]]:
    status = path.lstat()
    return status.st_mode, status.st_uid, status.st_gid, {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_the_image_says_what_the_contract_says(series: tuple[Work, Work]) -> None:
    work = series[0]
    names = list(work.layers)
    assert names[0] == f"ostree export of commit {work.labels['ostree.commit']}"
    assert names[1:-1] == sorted(names[1:-1])
    assert {"dedi:meta:kernel", "unpackaged"} <= set(names)
    assert names[-1] == "Reserved for new packages"
    assert work.config["config"] == {"Labels": work.labels}
    assert work.manifest["annotations"] == work.labels
    assert work.config["rootfs"]["diff_ids"][-1] == work.labels["ostree.final-diffid"]
    day = datetime.now(UTC).strftime("%y%m%d")
    assert {name: value for name, value in work.labels.items() if name != INFO and len(value) < 20} == {
        "a": "b=c",
        "d": f"1.{day}",
        VERSION: f"1.{day}",
        "ostree.bootable": "true",
        "ostree.linux": "6.10.0",
        "containers.bootc": "1",
    }
    components = [layer.get("annotations", {}).get("ostree.components") for layer in work.manifest["layers"]]
    assert components[0] is None
    assert components[names.index("dedi:meta:kernel")] == "meta:kernel"
    for layer in work.manifest["layers"]:
        with tarfile.open(work.blob(layer["digest"])) as tar:
            assert {member.mtime for member in tar} == {0}


def test_what_the_original_leaves_beside_the_image(series: tuple[Work, Work]) -> None:
    first, second = series
    inspected = json.loads(first.text("small.manifest.json"))
    assert inspected["Labels"] == first.labels
    assert inspected["Layers"] == list(first.layers.values())
    content = json.loads(first.text("small.contentmeta.json"))
    assert content["version"] == 1
    assert set(content["mapping"].values()) | {"Reserved for new packages"} == {*list(first.layers)[1:]}
    assert first.text("small.changelog.txt") == ""
    assert not (first.output / "version.txt").exists()
    assert second.text("version.txt") == "2"
    for path in first.output.rglob("small*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666


def test_a_previous_plan_is_kept_whatever_number_of_layers_is_asked_for(series: tuple[Work, Work]) -> None:
    first, second = series
    before, after = json.loads(first.labels[INFO]), json.loads(second.labels[INFO])
    assert after["version"] == 2
    assert after["uniq"] == "2"
    assert after["revision"] == "abc"
    assert after["layers"][: len(before["layers"])] == before["layers"]
    assert after["packages"]["openssl-libs"] == "3.2.2-1.fc42"
    changed = {name for name, digest in second.layers.items() if first.layers.get(name) != digest}
    assert len(changed) < len(second.layers) / 2
    assert len(second.layers) > 3


def test_texts_are_filled(series: tuple[Work, Work]) -> None:
    _, second = series
    assert second.labels["org.opencontainers.image.revision"] == "abc"
    assert second.labels["org.opencontainers.image.description"] == f"after {series[0].labels[VERSION]}"
    assert second.text("small.changelog.txt") == (
        "# Two 2 6.10.0-1.fc42\n"
        "news: 1-1.fc42, 2-1.fc42\n"
        "openssl-libs: 3.2.1-1.fc42, 3.2.2-1.fc42\n"
        "python3: 3.13.0-1.fc42, 3.13.1-1.fc42\n"
        "- No commits\n<unknown>"
    )


@pytest.fixture(scope="module")
def again(series: tuple[Work, Work], tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Version 1 another time, with another version, into an output that exists."""
    work = Work(tmp_path_factory.mktemp("again"))
    (work.place / "ostree").symlink_to(series[0].place / "ostree")
    stray = work.layout / "blobs/sha256/0"
    stray.parent.mkdir(parents=True)
    stray.touch()
    succeed(work.chunk(VERSION="3", LABELS=f"{VERSION}=mine"))
    return work


def test_labels_come_last_and_override_the_version(again: Work) -> None:
    assert again.labels[VERSION] == "mine"
    assert json.loads(again.labels[INFO])["uniq"] == "3"


def test_the_same_commit_gives_the_same_layers(series: tuple[Work, Work], again: Work) -> None:
    assert again.layers == series[0].layers


def test_blobs_of_an_output_that_exists_stay(again: Work) -> None:
    assert again.blob("sha256:0").exists()


def test_a_plan_is_cleared_but_for_the_texts(series: tuple[Work, Work], chunkable: Work) -> None:
    shutil.copy(series[0].output / "small.manifest.json", chunkable.output / "previous.manifest.json")
    succeed(chunkable.chunk(CLEAR_PLAN="1", MAX_LAYERS="5", CHANGELOG="<previous>"))
    assert len(chunkable.layers) == 5 + 2
    assert chunkable.text("small.changelog.txt") == series[0].labels[VERSION]


def test_a_description_of_packages_replaces_the_built_in_one(chunkable: Work) -> None:
    meta = "version: 1\nmax_layers: 4\nmeta:\n  fonts:\n    packages: ['*-fonts']\n    dedicated: true\n"
    (chunkable.output / "_meta_in.yml").write_text(meta)
    succeed(chunkable.chunk())
    assert len(chunkable.layers) == 4 + 2
    assert "dedi:meta:fonts" in chunkable.layers


@pytest.mark.parametrize("previous", ["", '{"Labels": {"a": "b"}, "RepoTags": ["3"]}'])
def test_a_previous_image_that_cannot_be_read_or_has_no_plan_is_silently_none(
    series: tuple[Work, Work], chunkable: Work, previous: str
) -> None:
    (chunkable.output / "previous.manifest.json").write_text(previous)
    result = chunkable.chunk(VERSION="3")
    succeed(result)
    assert "Error loading previous manifest" in result.stdout
    assert chunkable.layers == series[0].layers
    assert chunkable.labels[VERSION] == "3"


def test_a_previous_image_that_cannot_be_reached_is_no_failure_even_where_it_should_be(chunkable: Work) -> None:
    no_waits = "--volume=/bin/true:/usr/bin/sleep:ro"
    result = chunkable.chunk(no_waits, PREV_REF="localhost:1/none", PREV_REF_FAIL="1")
    succeed(result)
    assert result.stdout.count("Failed to read localhost:1/none") == 5
    assert chunkable.text("previous.manifest.json") == ""


def test_a_commit_without_a_package_database_fails(tmp_path: Path) -> None:
    work = new_work(tmp_path)
    shutil.rmtree(work.tree / "usr/share/rpm")
    succeed(work.create())
    result = work.chunk()
    assert result.returncode == 1
    assert "Traceback" in result.stdout
    assert "FileNotFoundError" in result.stdout


def test_labels_are_of_the_policy_in_the_tree(tmp_path: Path) -> None:
    work = new_work(tmp_path, selinux=True)
    succeed(work.prune(), work.create(), work.chunk())
    with tarfile.open(work.blob(work.layers["unpackaged"])) as tar:
        attributes = [member for member in tar if member.name.endswith(".file-xattrs")]
        texts = [file.read() for member in attributes if (file := tar.extractfile(member))]
    assert any(b"system_u:object_r:etc_t:s0" in text for text in texts)
    assert all(b"security.selinux" in text for text in texts)


def test_the_tree_is_pruned(series: tuple[Work, Work], tmp_path: Path) -> None:
    tree = series[0].tree
    before = small_tree(tmp_path / "tree", 1)
    assert (tree / "ostree").readlink() == Path("sysroot/ostree")
    for directory in ("sysroot", "var", "run", "tmp", "proc", "sys", "dev", "boot"):
        assert list((tree / directory).iterdir()) == []
    gone = ("etc", "usr/lib/.build-id", ".dockerenv", "usr/etc/.pwd.lock", "usr/etc/passwd-", "usr/etc/group-")
    assert not any(os.path.lexists(tree / path) for path in gone)
    # Every line with "root" or "wheel" in it is lost.
    names = [line.partition(":")[0] for line in (tree / "usr/lib/passwd").read_text().splitlines()]
    assert names == ["bin", "bin", "daemon", "polkitd", "sssd"]
    names = [line.partition(":")[0] for line in (tree / "usr/lib/group").read_text().splitlines()]
    assert names == ["bin", "bin", "daemon", "polkitd", "sssd", "input", "render"]
    assert (tree / "usr/etc/passwd").read_text() == "root:x:0:0:root:/root:/bin/bash\n"
    assert (tree / "usr/etc/group").read_text() == "root:x:0:\nwheel:x:10:\n"
    assert _metadata(tree / "usr/lib/sssd/db/cache") == _metadata(before / "var/lib/sssd/db/cache")
    assert (tree / "usr/share/factory/var/log/build.log").exists()
    database = "rpmdb.sqlite"
    base, own = tree / "usr/lib/sysimage/rpm-ostree-base-db" / database, tree / "usr/share/rpm" / database
    assert base.samefile(own)
    assert stat.S_IMODE((tree / "usr/etc/ssh/sshd_config").stat().st_mode) == 0o600
    assert os.getxattr(tree / "usr/bin/ping", "security.capability") == CAPABILITY
    assert "security.capability" in os.listxattr(tree / "usr/bin/newuidmap")
    assert "security.capability" not in os.listxattr(before / "usr/bin/newuidmap")


def test_a_second_pruning_appends_users_again(tmp_path: Path) -> None:
    work = new_work(tmp_path)
    succeed(work.prune())
    (work.tree / "etc").mkdir()
    (work.tree / "etc/passwd").write_text("bin:x:1:1::/:/sbin/nologin\n")
    succeed(work.prune())
    users = [line.partition(":")[0] for line in (work.tree / "usr/lib/passwd").read_text().splitlines()]
    assert users.count("bin") == 3


def test_usr_etc_is_merged_into_etc(tmp_path: Path) -> None:
    work = new_work(tmp_path)
    (work.tree / "usr/etc").mkdir()
    (work.tree / "usr/etc/hostname").write_text("other\n")
    succeed(work.prune())
    assert (work.tree / "usr/etc/hostname").read_text() == "other\n"
    assert (work.tree / "usr/etc/shadow").exists()


def test_pruning_what_is_not_there_empties_the_workspace_instead_and_succeeds(tmp_path: Path) -> None:
    work = new_work(tmp_path)
    for name in ("ostree", "sysroot", "tmp"):
        (work.output / name).mkdir()
        (work.output / name / "precious").touch()
    result = work.prune(TREE="/nowhere")
    succeed(result)
    assert "/nowhere: No such file or directory" in result.stdout
    assert list(work.output.rglob("precious")) == []


@pytest.mark.parametrize(
    ("step", "environment"),
    [
        ("prune", {}),
        ("chunk", {"OUT_REF": "oci:small"}),
        ("chunk", {"OUT_NAME": "small"}),
        ("create", {"TREE": "/nowhere", "REPO": "/tmp/repo"}),
    ],
)
def test_a_step_without_what_it_needs_fails(step: str, environment: dict[str, str]) -> None:
    assert rechunk_step(step, {}, environment).returncode == 1


@pytest.mark.parametrize("step", ["prune", "create", "chunk"])
def test_only_the_superuser_may_do_anything(step: str) -> None:
    result = rechunk_step(step, {}, {}, ["--user=1000"])
    assert result.returncode == 1
    assert "Run as superuser" in result.stdout


NEEDS = {
    "prune": ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP"),
    "create": ("DAC_OVERRIDE",),
    "chunk": ("DAC_OVERRIDE",),
}


def test_few_capabilities_are_enough(series: tuple[Work, Work], tmp_path: Path) -> None:
    work = new_work(tmp_path)
    for step, needs in NEEDS.items():
        options = ("--cap-drop=ALL", "--security-opt=no-new-privileges", *(f"--cap-add={name}" for name in needs))
        limited = dataclasses.replace(work, options=options)
        succeed({"prune": limited.prune, "create": limited.create, "chunk": limited.chunk}[step]())
    assert differences(series[0].tree, work.tree) == []
    kept = [name for name in work.layers if name.startswith(("dedi", "rechunk", "unpackaged"))]
    assert {name: work.layers[name] for name in kept} == {name: series[0].layers[name] for name in kept}


@pytest.mark.parametrize("needed", NEEDS["prune"])
def test_a_capability_less_changes_the_tree_and_is_no_failure(
    series: tuple[Work, Work], tmp_path: Path, needed: str
) -> None:
    work = new_work(tmp_path)
    others = [f"--cap-add={name}" for name in NEEDS["prune"] if name != needed]
    succeed(dataclasses.replace(work, options=("--cap-drop=ALL", *others)).prune())
    assert differences(series[0].tree, work.tree) != []


@pytest.mark.parametrize(
    ("tags", "label", "version"),
    [
        ([], "40.260228", "40.260301"),
        ([], "40.260301", "40.260301.1"),
        (["40.260301"], "", "40.260301.1"),
        (["40.260301"], "40.260301.1", "40.260301.1"),
        (["40.260301.1"], "40.260301", "40.260301.2"),
        ([f"40.260301.{number}" for number in range(1, 10)], "40.260301", "40.260301.9"),
    ],
)
def test_versions(tags: list[str], label: str, version: str) -> None:
    assert next_version("40.<date>", {"RepoTags": tags, "Labels": {VERSION: label}}, DAY) == version


def test_a_version_of_one_digit_behind_a_dot_loses_it() -> None:
    assert next_version("4.0.1", {"RepoTags": ["4.0.1", "4.0.2"]}, DAY) == "4.0.3"
    assert next_version("4.0", {"Labels": {VERSION: "4.0"}}, DAY) == "4.0.1"
    assert next_version("", {}, DAY) == ""


@pytest.mark.parametrize(
    ("fault", "status"),
    [("exit:7", 7), ("killed", 137), ("hang", 124), ("deaf", 137)],
)
def test_steps_end_as_asked_for(tmp_path: Path, fault: str, status: int) -> None:
    (tmp_path / FAULTS).parent.mkdir(parents=True)
    (tmp_path / FAULTS).write_text(f"create:exit:1\nprune:{fault}\n")
    wrapper = ("timeout", "--kill-after=0.5", "1")
    assert rechunk_step("prune", {tmp_path: "/tree"}, {"TREE": "/tree"}, wrapper=wrapper).returncode == status


def test_steps_print_what_is_asked_for(tmp_path: Path) -> None:
    prints = [f"create:{fault}" for fault in ("flood", "long-line", "invalid-utf8", "workflow-commands")]
    work = new_work(tmp_path, faults=[*prints, "chunk:exit:9"])
    result = work.create()
    succeed(result)
    lines = result.stdout.splitlines()
    assert {"line 1", "line 100000", "caf\\xe9 \\xff\\xfe", "::error::planted"} <= set(lines)
    assert max(map(len, lines)) == 1_000_000
    assert work.chunk().returncode == 9


def test_a_step_fills_its_directory(tmp_path: Path) -> None:
    (tmp_path / FAULTS).parent.mkdir(parents=True)
    (tmp_path / FAULTS).write_text("create:full\n")
    environment = {"TREE": "/tree", "REPO": "/var/ostree/repo"}
    result = rechunk_step("create", {tmp_path: "/tree"}, environment, ["--tmpfs=/var/ostree:size=1m"])
    assert result.returncode == 1
    assert "No space left on device" in result.stdout


def test_a_commit_may_lack_a_file(series: tuple[Work, Work], tmp_path: Path) -> None:
    work = new_work(tmp_path, faults=["create:lost-file:/usr/bin/sudo", "chunk:lost-history"])
    succeed(work.prune(), work.create(), work.chunk())
    mapping = json.loads(work.text("small.contentmeta.json"))["mapping"]
    assert len(mapping) == len(
        json.loads(series[0].text("small.contentmeta.json"))["mapping"]
    )  # and the file of faults
    assert len(work.config["history"]) == len(work.manifest["layers"]) - 1


DAMAGES = (
    *("no_index", "garbage_index", "wrong_digest", "truncated_blob", "missing_blob", "lost_object"),
    *("changed_object", "lost_layer", "lost_history", "wrong_commit", "lost_labels"),
)


@pytest.mark.parametrize("name", DAMAGES)
def test_an_image_may_be_damaged(series: tuple[Work, Work], tmp_path: Path, name: str) -> None:
    damaged = Work(tmp_path)
    shutil.copytree(series[0].layout, damaged.layout)
    getattr(damage, name)(damage.Layout(damaged.layout))
    assert _files(damaged.layout) != _files(series[0].layout)


def test_every_damage_is_known() -> None:
    described = {name for name, value in vars(damage).items() if callable(value) and re.match("[a-z]", name)}
    assert {name for name in described if getattr(damage, name).__module__ == damage.__name__} == set(DAMAGES)


def _files(layout: Path) -> dict[str, bytes]:
    return {str(path.relative_to(layout)): path.read_bytes() for path in layout.rglob("*") if path.is_file()}
