"""Whole builds by engine `hhd`: a stand-in for hhd-dev/rechunk in real containers, in a BTRFS on a loop device.

The versions of one small system are built once, in turn, for all tests that only look; others build for themselves.
After each test nothing may be left of the workspace, its mounts and devices, or the containers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from rechunk_action import inspection, workspace
from rechunk_action.action import deadline
from rechunk_action.engines import hhd, rechunker
from rechunk_action.engines.container import LABEL, Containers, Step
from rechunk_action.errors import (
    EngineFailed,
    EnvironmentLack,
    InputError,
    Overdue,
    RechunkError,
    TooLarge,
    VerificationFailed,
    WorkspaceFull,
)
from rechunk_action.job import HhdOptions
from rechunk_action.oci.image import Image, Json, host_architecture
from rechunk_action.oci.layout import read_image
from rechunk_action.ostree.chunked import read_chunked
from rechunk_action.ostree.view import view_differences
from rechunk_action.pipeline import Built
from rechunk_action.progress import Meter
from rechunk_action.registry.credentials import Credentials
from rechunk_action.registry.image import RegistryBlobs, published_image
from rechunk_action.report import model
from rechunk_action.source.names import parse_name
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.lint import lint
from rechunk_action.verify import tree_differences
from tests import stores
from tests.building import Listener, build, built, new_components, new_layers, places
from tests.containers import builder_path
from tests.disks import disk
from tests.oracles import program, run, scratch
from tests.rechunker import FAULTS, rechunker_image, small_tree
from tests.rechunker.image import damage
from tests.rechunker.tree import CAPABILITY
from tests.registries import FOUND, PASSWORD, USER, htpasswd_registry, plain_registry, repository

pytestmark = pytest.mark.oracle

PLAN = rechunker.PLAN_LABEL
VERSION = "org.opencontainers.image.version"
DESCRIPTION = "org.opencontainers.image.description"
REVISION = "org.opencontainers.image.revision"

MB = 1_000_000

CONFIG: Json = {
    "architecture": host_architecture(),
    "os": "linux",
    "created": "2026-01-02T03:04:05Z",
    "author": "somebody",
    "config": {
        "Cmd": ["/sbin/init"],
        "Env": ["PATH=/usr/bin", "container=oci"],
        "StopSignal": "SIGRTMIN+3",
        "Labels": {
            "from.the.base": "kept",
            "unwanted": "removed",
            "ostree.commit": "stale",
            "ostree.final-diffid": "stale",
            "ostree.linux": "5.0-stale",
            "rechunk.chunks": "stale",
            "rechunk.record": "planted",
            "rechunk.tables": "stale",
            PLAN: '{"version": 2, "layers": [["stale"]]}',
            VERSION: "stale",
        },
    },
}
"""The config of an image on a base that was chunked itself."""

LABELS = (
    "rendered=<version> of <pretty> with bash <version:bash>, after <previous>",
    "two=lines\nof <version>",
    f"{DESCRIPTION}=first <version>\nsecond",
    "unwanted-",
    "given=and",
    "given-",
    "again=1 <version>",
    "again=2 <version>",
    "rechunk.version=planted",
    "ostree.linux=planted",
    f"{PLAN}=planted",
    f"{VERSION}=planted",
)

CHANGELOG = "# <pretty> <version>, after <previous>\n<commits>\n<pkgupd>"
FORMATTERS = ("commits.commit=<subject>;", "pkgupd.update=<package> <old> to <new>;", "pkgupd.add=", "pkgupd.remove=")

# Where mkfs.btrfs is; nothing else of this machine.
ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory on a disk. `scratch` in it is where workspaces are."""
    program("mkfs.btrfs", "btrfs-progs")
    with scratch() as found:
        found.chmod(0o755)
        (found / "scratch").mkdir()
        yield found


@pytest.fixture(autouse=True)
def clean(place: Path) -> Iterator[None]:
    """Nothing may be left, whatever happened."""
    yield
    left = leftovers(place)
    for container in containers_of(place):
        run("docker", "rm", "--force", container)
    for mounted in reversed(workspace._mounted_below(place / "scratch")):
        run("umount", "--lazy", mounted)
    shutil.rmtree(place / "scratch")
    (place / "scratch").mkdir()
    assert left == []


def leftovers(place: Path) -> list[str]:
    """What a build has left behind it: containers, mounts, loop devices, files."""
    found = containers_of(place) + workspace._mounted_below(place / "scratch")
    found += [str(path) for path in (place / "scratch").iterdir()]
    end = time.monotonic() + 2  # whoever looks at new devices may hold one open for a moment
    while (devices := loop_devices(place)) and time.monotonic() < end:
        time.sleep(0.05)
    return found + devices


def containers_of(place: Path) -> list[str]:
    form = "{{.ID}} {{.Label " + json.dumps(hhd.WORKSPACE_LABEL) + "}}"
    listed = run("docker", "ps", "--all", "--filter", f"label={hhd.WORKSPACE_LABEL}", "--format", form).splitlines()
    return [line.split()[0] for line in listed if line.partition(" ")[2].startswith(f"{place}/scratch/")]


def loop_devices(place: Path) -> list[str]:
    files = run("losetup", "--list", "--noheadings", "--raw", "--output", "BACK-FILE").splitlines()
    return [file for file in files if file.startswith(f"{place}/scratch/")]


@dataclass(frozen=True)
class Run:
    """A build, and what went on in it."""

    built: Built
    image: Image
    told: Listener
    steps: Sequence[Step] = field(default_factory=list)
    source: Tree = field(default_factory=dict)
    pruned: Tree = field(default_factory=dict)
    results: Path | None = None
    before: Mapping[str, object] = field(default_factory=dict)
    """The source, before it was built from."""

    @property
    def report(self) -> Json:
        report: Json = msgspec.to_builtins(self.built.report)
        return report

    @property
    def changelog(self) -> str:
        return self.built.report.changelog or ""

    @property
    def layers(self) -> dict[str, str]:
        """Name -> digest."""
        names = [entry["comment"] for entry in self.image.config["history"]]
        return dict(zip(names, (blob.digest for blob in self.image.layers), strict=True))


def made(place: Path, source: Path | str, output: Path, **options: Any) -> Run:
    """A build into a layout, watched. What the rechunker leaves is kept beside the output."""
    told = options.setdefault("progress", Listener())
    steps: list[Step] = []
    source_tree: Tree = {}
    pruned_tree: Tree = {}
    results = output.with_name(f"{output.name}.results")
    before = facts(source) if isinstance(source, Path) else {}
    with pytest.MonkeyPatch.context() as patch:
        carry_out, read, check = Containers.run, rechunker.read_results, rechunker.check_pruned

        def watched(self: Containers, step: Step, **rest: Any) -> None:
            steps.append(step)
            carry_out(self, step, **rest)

        def keep(directory: Path) -> rechunker.Results:
            shutil.copytree(directory, results, symlinks=True)
            return read(directory)

        def remember(source: Tree, pruned: Tree) -> list[str]:
            source_tree.update(source)
            pruned_tree.update(pruned)
            return check(source, pruned)

        patch.setattr(Containers, "run", watched)
        patch.setattr(rechunker, "read_results", keep)
        patch.setattr(rechunker, "check_pruned", remember)
        done = built(source, output, **options_of(place, **options))
    return Run(done, read_image(output, None), told, steps, source_tree, pruned_tree, results, before)


def options_of(place: Path, **options: Any) -> dict[str, Any]:
    plain = {
        "engine": "hhd",
        "max_layers": None,
        "scratch": place / "scratch",
        "environment": ENVIRONMENT,
        "hhd": HhdOptions(image=rechunker_image()),
    }
    return plain | options


def failed(place: Path, source: Path | str, output: Path, **options: Any) -> RechunkError:
    """The failure of a build, which leaves no output."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(RechunkError) as caught:
        build(source, output, **options_of(place, **options))
    assert sorted(output.parent.iterdir()) == before
    return caught.value


def faulty(directory: Path, *faults: str) -> Path:
    """The first version of the system, with faults on purpose."""
    small_tree(directory, 1)
    (directory / FAULTS).write_text("".join(f"{fault}\n" for fault in faults))
    return directory


@pytest.fixture(scope="module")
def tree(place: Path) -> Path:
    return small_tree(place / "tree", 1, selinux=True)


@pytest.fixture(scope="module")
def checkout(place: Path) -> Path:
    """A git checkout of three commits."""
    directory = place / "checkout"
    git = partial(run, program("git", "git"), "-C", directory, "-c", "user.name=a", "-c", "user.email=a@b.c")
    run("git", "init", "--quiet", directory)
    for subject in ("first", "second", "third"):
        git("commit", "--quiet", "--allow-empty", "--message", subject)
    return directory


def commit_at(checkout: Path, revision: str) -> str:
    return run("git", "-C", checkout, "rev-parse", revision).strip()


@pytest.fixture(scope="module")
def first(place: Path, tree: Path, checkout: Path) -> Run:
    """The first version, with all that can be asked for."""
    (place / "config.json").write_text(json.dumps(CONFIG))
    revision = commit_at(checkout, "HEAD~2")
    options = HhdOptions(
        rechunker_image(),
        pretty="Small OS",
        changelog=CHANGELOG,
        revision=revision,
        formatters=FORMATTERS,
        git=checkout,
    )
    labels = (f"{REVISION}={revision}", *LABELS)
    return made(place, tree, place / "first", version="7", config=place / "config.json", labels=labels, hhd=options)


@pytest.fixture(scope="module")
def second(place: Path, first: Run, checkout: Path) -> Run:
    """The second version, as an update of the first; it has the same version, so that none of ours may depend on it."""
    small_tree(place / "tree2", 2, selinux=True)
    revision = commit_at(checkout, "HEAD")
    options = HhdOptions(rechunker_image(), changelog=CHANGELOG, revision=revision, formatters=FORMATTERS, git=checkout)
    previous = f"oci:{place}/first"
    labels = ["after=<previous>"]
    return made(
        place,
        place / "tree2",
        place / "second",
        version="7",
        prev_ref=previous,
        max_layers=5,
        labels=labels,
        hhd=options,
    )


def facts(directory: Path) -> dict[str, tuple[object, ...]]:
    """All that can be told of a tree, times included."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        kept = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_ino, status.st_size)
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        link = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(directory))] = (*kept, status.st_mtime_ns, status.st_ctime_ns, xattrs, content, link)
    return found


class TestAFreshImage:
    def test_is_what_was_pruned(self, first: Run) -> None:
        chunked = read_chunked(first.image, threads=2)
        assert tree_differences(chunked.tree(), first.pruned) == []
        assert view_differences(first.image, chunked.tree(), threads=2) == []
        assert dict(chunked.tree()["usr/bin/ping"].xattrs) == {"security.capability": CAPABILITY}
        assert "security.capability" in dict(chunked.tree()["usr/bin/newuidmap"].xattrs)
        assert chunked.tree()["usr/bin/sudo"].mode == 0o4111

    def test_has_the_config_of_the_built_image(self, first: Run) -> None:
        config = first.image.config
        assert {key: value for key, value in config["config"].items() if key != "Labels"} == {
            key: value for key, value in CONFIG["config"].items() if key != "Labels"
        }
        assert (config["author"], config["created"]) == ("somebody", "2026-01-02T03:04:05Z")

    def test_has_labels_of_its_own_of_the_base_and_of_the_user(self, first: Run, checkout: Path) -> None:
        labels = dict(first.image.labels)
        plan = json.loads(labels.pop(PLAN))
        assert first.image.manifest["annotations"] == first.image.labels
        assert (plan["version"], plan["uniq"], plan["packages"]["bash"]) == (2, "7", "5.2-1.fc42")
        assert labels.pop("rechunk.version") != "planted"
        assert labels.pop("rechunk.record") != "planted"
        assert labels == {
            "again": "2 7",
            "containers.bootc": "1",
            "from.the.base": "kept",
            "rendered": "7 of Small OS with bash 5.2, after ",
            "two": "lines\nof <version>",
            "org.opencontainers.image.created": "2026-01-02T03:04:05Z",
            "ostree.bootable": "true",
            "ostree.commit": read_chunked(first.image, threads=2).checksum.hex(),
            "ostree.final-diffid": first.image.layers[-1].diff_id,
            "ostree.linux": "6.10.0",
            "rechunk.chunks": str(len(first.image.layers)),
            "rechunk.engine": "hhd",
            DESCRIPTION: "first 7\nsecond",
            REVISION: commit_at(checkout, "HEAD~2"),
            VERSION: "7",
        }

    def test_tells_what_is_in_its_layers(self, first: Run) -> None:
        image = first.image
        assert len(image.config["history"]) == len(image.layers) == len(image.config["rootfs"]["diff_ids"])
        assert {entry["created_by"] for entry in image.config["history"]} == {"rechunk-action"}
        names = list(first.layers)
        assert names[0].startswith("ostree export of commit ")
        assert names[1] == "dedi:meta:kernel"
        assert names[-1] == "Reserved for new packages"
        notes = [layer.get("annotations") for layer in image.manifest["layers"]]
        assert notes[:2] == [None, {"ostree.components": "meta:kernel"}]
        assert notes[-1] == {"ostree.components": ""}

    def test_leaves_what_was_built_as_it_is(self, tree: Path, first: Run) -> None:
        assert facts(tree) == first.before

    def test_is_made_without_a_previous_image(self, first: Run) -> None:
        prune, commit, chunk = first.steps
        assert chunk.environment["CLEAR_PLAN"] == "1"
        assert chunk.environment["VERSION"] == "7"
        assert "MAX_LAYERS" not in chunk.environment
        assert first.results is not None
        assert not (first.results / "previous.manifest.json").exists()
        writable = {bind.target for step in first.steps for bind in step.binds if not bind.read_only}
        assert writable == {"/var/tree", "/var/ostree", "/workspace"}
        assert not any(step.network for step in (prune, commit, chunk))

    def test_is_made_in_a_btrfs(self, first: Run) -> None:
        assert not first.told.heard("plain directory")
        assert not first.told.heard("is copied")
        assert [notice for notice in first.told.notices if "(rule " not in notice] == ["fresh plan: first build"]

    def test_is_looked_at_as_it_will_be(self, first: Run) -> None:
        """Of what the source breaks, the rechunker puts all right but one."""
        assert {"boot", "composefs", "var"} <= {finding.rule for finding in lint(first.source, lambda _: b"")}
        assert [finding.rule for finding in first.built.report.findings] == ["composefs"]

    def test_is_reported(self, first: Run, place: Path) -> None:
        report, layers = first.report, first.image.layers
        size = sum(blob.size for blob in layers)
        assert (report["ref"], report["version"], report["digest"]) == (f"oci:{place}/first", "7", first.image.digest)
        assert (report["prev_ref"], report["fresh"], report["reason"]) == (None, True, "first build")
        assert report["layers"] == {"total": len(layers), "kept": 0, "new": len(layers)}
        assert report["bytes"] == {"image": size, "update": size, "kept": 0, "live": size, "dead": 0}
        assert [layer["digest"] for layer in new_layers(report)] == [blob.digest for blob in layers]
        assert sum(new_components(report).values()) == size
        assert next(iter(new_components(report))) == "meta:kernel"
        phases = {"prune", "commit", "check", "chunk", "verify"}
        assert report["disk"].keys() == phases
        assert all(1 * MB < size < 200 * MB for size in report["disk"].values())
        assert report["seconds"].keys() == phases | {"scan", "publish"}

    def test_has_a_changelog(self, first: Run) -> None:
        assert first.changelog == "# Small OS 7, after \n- No commits\n\n- No package changes\n"

    def test_shows_what_the_rechunker_says(self, first: Run) -> None:
        assert "Committing the tree" in first.told.lines
        assert any(line.startswith("Planned ") for line in first.told.lines)


class TestAnUpdate:
    def test_keeps_layers_by_their_digests(self, first: Run, second: Run) -> None:
        kept = {name: digest for name, digest in second.layers.items() if digest in first.layers.values()}
        assert len(kept) > len(second.layers) / 2
        assert all(first.layers[name] == digest for name, digest in kept.items())
        assert "dedi:meta:kernel" not in kept  # its initramfs is another one
        sizes = {blob.digest: blob.size for blob in second.image.layers}
        update = sum(size for digest, size in sizes.items() if digest not in kept.values())
        report = second.report
        assert report["layers"] == {"total": len(sizes), "kept": len(kept), "new": len(sizes) - len(kept)}
        assert report["bytes"]["update"] == sum(new_components(report).values()) == update
        assert report["bytes"]["kept"] == sum(sizes.values()) - update

    def test_tells_which_packages_changed(self, second: Run) -> None:
        changed = {line["name"]: (line["old"], line["new"]) for line in second.report["update"]["packages"]}
        assert changed
        assert all(name.startswith("rpm:") and old != new for name, (old, new) in changed.items())

    def test_is_planned_by_the_previous_plan(self, first: Run, second: Run) -> None:
        before, after = (json.loads(run.image.labels[PLAN])["layers"] for run in (first, second))
        assert after[: len(before)] == before
        environment = second.steps[-1].environment
        assert "CLEAR_PLAN" not in environment
        assert "PREV_REF" not in environment
        assert second.told.heard("--max-layers has no effect on a plan that is there: build with --fresh once")
        assert len(second.image.layers) > 5

    def test_is_told_of_the_previous_image(self, first: Run, second: Run, place: Path) -> None:
        assert second.report["prev_ref"] == f"oci:{place}/first@{first.image.digest}"
        assert (second.report["fresh"], second.report["reason"]) == (False, "")
        assert second.image.labels["rechunk.prev-ref"] == second.report["prev_ref"]

    def test_has_the_version_that_was_asked_for(self, second: Run) -> None:
        assert second.report["version"] == second.image.labels[VERSION] == "7"
        assert json.loads(second.image.labels[PLAN])["uniq"] == "7"
        assert second.results is not None
        assert (second.results / "version.txt").read_text() == "7"

    def test_has_a_changelog_of_packages_and_commits(self, second: Run) -> None:
        changes = ("news 1-1.fc42 to 2-1.fc42", "openssl-libs 3.2.1-1.fc42 to 3.2.2-1.fc42")
        python = "python3 3.13.0-1.fc42 to 3.13.1-1.fc42"
        assert second.changelog == f"#  7, after \nthird;second;\n{';'.join((*changes, python))};"

    def test_is_what_was_pruned(self, second: Run) -> None:
        chunked = read_chunked(second.image, threads=2)
        assert tree_differences(chunked.tree(), second.pruned) == []
        assert view_differences(second.image, chunked.tree(), threads=2) == []


class TestInspection:
    def test_compares_two_of_them_by_packages(self, place: Path, first: Run, second: Run) -> None:
        del first
        old, new = (parse_name(f"oci:{place}/{name}") for name in ("first", "second"))
        with places() as opened:
            found = model.update(*inspection.compare(old, new, opened, Listener(), threads=2, scratch=place))
        assert found.bytes == second.report["bytes"]["update"]
        named = {line.name: line.bytes for line in found.components}
        assert named == new_components(second.report)
        assert {"meta:kernel", "news", "openssl-libs"} <= named.keys()

    def test_verifies_an_image_by_a_checkout_of_its_commit(self, place: Path, second: Run) -> None:
        checked_out = self._checkout(place / "second", place)
        image = parse_name(f"oci:{place}/second")
        with places() as opened:
            verify = partial(
                inspection.verify, image, parse_name(f"dir:{checked_out}"), opened, Listener(), threads=2, scratch=place
            )
            report = verify()
            assert (report["equal"], report["chunked"], report["paths"]) == (True, True, len(second.pruned))
            said = run(sys.executable, "-m", "rechunk_action", "verify", f"oci:{place}/second", f"dir:{checked_out}")
            assert (
                said == f"oci:{place}/second equals dir:{checked_out}: {report['paths']} paths, in its OSTree commit\n"
            )
            (checked_out / "usr/bin/bash").chmod(0o700)
            with pytest.raises(
                VerificationFailed, match=r"1 difference:\n  /usr/bin/bash: mode 0o755, should be 0o700"
            ):
                verify()

    def _checkout(self, layout: Path, place: Path) -> Path:
        """By OSTree's own programs."""
        image = read_image(layout, None)
        blobs = " ".join(blob.digest.partition(":")[2] for blob in image.layers)
        script = f"""
            mkdir /tmp/layers
            for blob in {blobs}; do tar -C /tmp/layers -xzf /layout/blobs/sha256/$blob sysroot/ostree/repo; done
            ostree --repo=/tmp/repo init --mode=bare
            ostree --repo=/tmp/repo pull-local /tmp/layers/sysroot/ostree/repo {image.labels["ostree.commit"]}
            ostree --repo=/tmp/repo checkout --force-copy {image.labels["ostree.commit"]} /place/checked-out
        """
        volumes = [f"--volume={layout}:/layout:ro", f"--volume={place}:/place"]
        run("docker", "run", "--rm", "--network=none", *volumes, rechunker_image(), "bash", "-euc", script)
        return place / "checked-out"

    def test_shows_what_the_rechunker_has_changed(self, place: Path, tree: Path, first: Run) -> None:
        del first
        image, source = parse_name(f"oci:{place}/first"), parse_name(f"dir:{tree}")
        with places() as opened, pytest.raises(VerificationFailed) as caught:
            inspection.verify(image, source, opened, Listener(), threads=2, scratch=place)
        assert f"is not {source} (hhd-dev/rechunk changes a tree before it commits it). " in str(caught.value)
        assert "/etc/passwd: size" in str(caught.value)
        assert "/usr/bin/ping" not in str(caught.value)


class TestSources:
    """Each is left as it was, and each build has another reason to come out fresh."""

    def test_an_image_of_docker(self, place: Path, tree: Path, first: Run, tmp_path: Path) -> None:
        del first
        build(tree, tmp_path / "plain", config=place / "config.json", version="6", compression="gzip")
        name = f"localhost/rechunk-test-source:{os.getpid()}"
        with stores.in_docker(tmp_path / "plain", name) as image_id:
            done = made(place, f"docker-daemon:{name}", tmp_path / "out", prev_ref=f"oci:{tmp_path}/plain")
            assert run("docker", "image", "inspect", "--format", "{{.Id}}", name).strip() == image_id
        assert done.report["reason"] == f"previous image has no plan of hhd-dev/rechunk (label {PLAN})"
        assert done.report["fresh"]
        assert "rechunk.prev-ref" not in done.image.labels
        assert done.image.config["config"]["Cmd"] == ["/sbin/init"]
        assert done.told.heard(f"fresh plan: {done.report['reason']}")
        assert "unpack" in done.report["disk"]

    def test_an_image_of_podman(self, place: Path, tree: Path, first: Run, tmp_path: Path) -> None:
        del first
        build(tree, tmp_path / "plain", config=place / "config.json", compression="gzip")
        with stores.work() as work:
            environment = stores.root_storage(work / "storage")
            stores.store(tmp_path / "plain", "localhost/small:1", environment)
            before = self._facts_of_mounted(environment)
            other = self._without_plan(place / "first", tmp_path / "other")
            done = made(
                place,
                "containers-storage:localhost/small:1",
                tmp_path / "out",
                prev_ref=f"oci:{other}",
                environment=environment,
            )
            assert self._facts_of_mounted(environment) == before
        assert done.report["reason"].startswith("previous image has no plan")
        assert "unpack" not in done.report["disk"]
        assert tree_differences(read_chunked(done.image, threads=2).tree(), done.pruned) == []

    def _facts_of_mounted(self, environment: Mapping[str, str]) -> Mapping[str, object]:
        mounted = Path(stores.podman(environment, "image", "mount", "localhost/small:1").strip())
        found = facts(mounted)
        stores.podman(environment, "image", "unmount", "localhost/small:1")
        return found

    def _without_plan(self, layout: Path, copied: Path) -> Path:
        """An image as rpm-ostree makes them."""
        shutil.copytree(layout, copied)
        image = damage.Layout(copied)
        del image.config["config"]["Labels"][PLAN]
        image.save()
        return copied

    def test_a_tree_that_holds_what_no_image_can(self, place: Path, tmp_path: Path) -> None:
        source = small_tree(place / "awkward", 1)
        os.mkfifo(source / "usr/share/pipe")
        os.setxattr(source / "usr/bin/cat", "user.bad", b"a\nb")
        before = facts(source)
        done = made(place, source, tmp_path / "image", drop_bad_xattrs=True)
        assert facts(source) == before
        assert done.told.heard("left out 1 FIFO")
        assert done.told.heard("left out 1 extended attribute")
        shown = read_chunked(done.image, threads=2).tree()
        assert "usr/share/pipe" not in shown
        assert shown["usr/bin/cat"].xattrs == ()

    def test_chunks_are_kept_by_the_other_engine(self, place: Path, tree: Path, first: Run, tmp_path: Path) -> None:
        report = build(tree, tmp_path / "out", prev_ref=f"oci:{place}/first", config=place / "config.json")
        assert (report["fresh"], report["prev_ref"]) == (False, first.report["ref"] + f"@{first.image.digest}")
        assert report["layers"]["kept"] > len(first.image.layers) / 2
        image = read_image(tmp_path / "out", None)
        assert PLAN not in image.labels
        assert image.labels["ostree.commit"] == read_chunked(image, threads=2).checksum.hex()
        names = parse_name(f"oci:{tmp_path}/out"), parse_name(f"dir:{tree}")
        with places() as opened:
            assert inspection.verify(*names, opened, Listener(), threads=2, scratch=tmp_path)["equal"]

    def test_chunks_of_the_other_engine_have_no_plan(self, place: Path, tree: Path, first: Run, tmp_path: Path) -> None:
        del first
        build(tree, tmp_path / "delta", prev_ref=f"oci:{place}/first", config=place / "config.json")
        done = made(place, tree, tmp_path / "out", prev_ref=f"oci:{tmp_path}/delta", max_update_size=10**9)
        assert done.report["reason"].startswith("previous image has no plan")


class TestPublishing:
    def test_an_update_in_a_private_registry(self, place: Path, first: Run, second: Run, tmp_path: Path) -> None:
        del first, second
        build(place / "tree2", tmp_path / "plain", config=place / "config.json")
        before = facts(tmp_path / "plain")
        with htpasswd_registry() as registry:
            target = f"{registry.host}/owner/image"
            copied = ("skopeo", "copy", "--quiet", "--insecure-policy", f"--dest-creds={USER}:{PASSWORD}")
            run(*copied, "--dest-tls-verify=false", f"oci:{place}/first", f"docker://{target}:1-20261120")
            options = options_of(place, given=Credentials(USER, PASSWORD), given_for=registry.host)
            report = build(f"oci:{tmp_path}/plain", f"docker://{target}", tags=["latest"], **options)
            with repository(registry.host, found=FOUND) as opened:
                beside = {tag for tag in opened.tags() if tag.startswith("sha256-")}
                assert set(opened.tags()) == {"1-20261120", "2-20261126", "latest", *beside}
                assert len(beside) == 1
                image = published_image(opened, "latest", host_architecture())
                previous = published_image(opened, "1-20261120", host_architecture())
                chunked = read_chunked(image, threads=2)
        assert facts(tmp_path / "plain") == before
        assert report["ref"] == f"{target}:2-20261126"
        assert report["prev_ref"] == f"{target}:1-20261120@{previous.digest}"
        assert not report["fresh"]
        held = {blob.digest for blob in previous.layers}
        assert report["layers"]["kept"] == sum(blob.digest in held for blob in image.layers) > len(image.layers) / 2
        assert image.labels == image.manifest["annotations"]
        assert image.labels["rechunk.prev-ref"] == report["prev_ref"]
        assert isinstance(image.blobs, RegistryBlobs)
        assert image.blobs.tables == {}
        assert report["update"]["packages"] is None  # of a previous image that has no record
        assert image.labels["from.the.base"] == "kept"
        assert image.labels[VERSION] == json.loads(image.labels[PLAN])["uniq"] == "2-20261126"
        assert image.config["config"]["StopSignal"] == "SIGRTMIN+3"
        assert chunked.checksum.hex() == image.labels["ostree.commit"]

    def test_nothing_without_push(self, place: Path, tree: Path) -> None:
        with plain_registry() as registry:
            target = f"{registry.host}/owner/image"
            options = options_of(place, hhd=HhdOptions(rechunker_image(), workspace="none"))
            report = build(tree, f"docker://{target}", push=False, verify=False, tags=["latest"], **options)
            with repository(registry.host) as opened:
                assert opened.tags() == []
        assert report["version"] == "1-20261126"
        assert report["layers"]["new"] > 10

    def test_no_update_that_costs_too_much(self, place: Path, first: Run, second: Run, tmp_path: Path) -> None:
        del first, second
        limits: dict[str, Any] = {"prev_ref": f"oci:{place}/first", "max_update_size": 1000}
        error = failed(place, place / "tree2", tmp_path / "image", **limits)
        assert isinstance(error, TooLarge)
        assert "1.0\N{NO-BREAK SPACE}kB are allowed; the most of it is kernel (" in str(error)


DAMAGES = {
    "no_index": "no image",
    "garbage_index": "no image",
    "wrong_digest": "damaged",
    "truncated_blob": "damaged",
    "missing_blob": "damaged",
    "lost_object": "damaged .*needs the file object .*, which no layer holds",
    "changed_object": "damaged .*has the checksum",
    "lost_layer": "no image .*they do not belong together",
    "lost_history": "layers and tells of",
    "wrong_commit": "damaged .*ostree.commit",
    "lost_labels": "damaged .*ostree.final-diffid is missing",
}


class TestWhatIsNotBelieved:
    """An image of the rechunker's, damaged before it is looked at."""

    def check(self, results: Path, pruned: Tree) -> None:
        made = rechunker.read_results(results)
        hhd._verify(made.image, pruned, threads=2, compare=True)

    @pytest.fixture
    def results(self, first: Run, tmp_path: Path) -> Path:
        assert first.results is not None
        return Path(shutil.copytree(first.results, tmp_path / "results", symlinks=True))

    def test_a_sound_image_passes(self, first: Run, results: Path) -> None:
        self.check(results, first.pruned)

    @pytest.mark.parametrize(("name", "said"), DAMAGES.items(), ids=DAMAGES)
    def test_damage_is_found(self, first: Run, results: Path, name: str, said: str) -> None:
        rechunker._repair(results)
        getattr(damage, name)(damage.Layout(results / "image"))
        with pytest.raises(EngineFailed, match=rf"(?s)the rechunker.*{said}.*: run it again, name another container"):
            self.check(results, first.pruned)

    def test_every_damage_is_tried(self) -> None:
        known = {name for name, value in vars(damage).items() if getattr(value, "__module__", "") == damage.__name__}
        assert {name for name in known if name.islower() and not name.startswith("_")} == DAMAGES.keys()

    def test_layers_behind_the_last_chunk_are_found(self, first: Run, results: Path) -> None:
        rechunker._repair(results)
        layout = damage.Layout(results / "image")
        layout.config["config"]["Labels"]["ostree.final-diffid"] = layout.config["rootfs"]["diff_ids"][-2]
        layout.save()
        with pytest.raises(EngineFailed, match=r"damaged .*1 layers on top of its last chunk"):
            self.check(results, first.pruned)

    def test_another_tree_is_found(self, first: Run, results: Path) -> None:
        pruned = {path: entry for path, entry in first.pruned.items() if path != "usr/bin/ping"}
        pruned["usr/bin/sudo"] = structs.replace(pruned["usr/bin/sudo"], mode=0o755)
        with pytest.raises(VerificationFailed, match=r"(?s)2 differences:.*/usr/bin/ping: should.*/usr/bin/sudo"):
            self.check(results, pruned)

    def test_files_beside_the_image_are_left_behind(self, first: Run) -> None:
        assert first.results is not None
        assert {path.name for path in first.results.iterdir()} > {"image", "version.txt", "image.contentmeta.json"}
        layout = Path(str(first.image.blobs))
        kept = {"blobs", "index.json", "oci-layout", "rechunk-records", "rechunk-tables"}
        assert {path.name for path in layout.iterdir()} == kept
        assert list((layout / "rechunk-tables/v1").iterdir()) == []


class TestFaults:
    """What goes wrong is told, and nothing is left."""

    @pytest.mark.parametrize(
        ("faults", "kind", "said"),
        [
            (["prune:exit:7"], EngineFailed, r"step prune failed \(exit status 7\): see why in what it wrote"),
            (["create:killed"], EnvironmentLack, r"step commit was killed .*with more memory"),
            (["create:lost-file:/usr/bin/ping"], VerificationFailed, r"not what was pruned\. .*/usr/bin/ping: missing"),
            (["chunk:flood", "chunk:invalid-utf8", "chunk:exit:1"], EngineFailed, r"chunk failed .*\n  caf\ufffd"),
            (["chunk:lost-object"], EngineFailed, r"image is damaged .*: run it again"),
        ],
    )
    def test_of_steps(
        self, place: Path, tmp_path: Path, faults: list[str], kind: type[RechunkError], said: str
    ) -> None:
        source = faulty(place / f"faulty-{tmp_path.name}", *faults)
        before = facts(source)
        error = failed(place, source, tmp_path / "out")
        assert type(error) is kind
        assert re.search(f"(?s){said}", str(error))
        assert facts(source) == before

    @pytest.mark.parametrize("step", ["prune", "create"])
    def test_of_space_in_the_workspace(
        self, place: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workspace, "RESERVE", 64 * MB)
        source = faulty(place / f"full-{step}", f"{step}:full")
        options = HhdOptions(rechunker_image(), workspace="btrfs", workspace_size=250 * MB)
        error = failed(place, source, tmp_path / "out", hhd=options)
        assert isinstance(error, WorkspaceFull)
        assert "the workspace is nearly full" in str(error)
        assert "give it a larger size" in str(error)

    def test_of_space_below_the_workspace(self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workspace, "RESERVE", 64 * MB)
        source = faulty(place / "full-below", "chunk:full")
        options = HhdOptions(rechunker_image(), workspace="btrfs", workspace_size=1000 * MB)
        with disk(place, "ext4", 150 * MB, "-m", "0") as small:
            error = failed(place, source, tmp_path / "out", hhd=options, scratch=small)
            assert [path.name for path in small.iterdir()] == ["lost+found"]
        assert isinstance(error, WorkspaceFull)
        assert "the disk below the workspace is nearly full" in str(error)

    def test_of_a_workspace_too_small(self, place: Path, tree: Path, tmp_path: Path) -> None:
        error = failed(place, tree, tmp_path / "out", hhd=HhdOptions(rechunker_image(), workspace_size=100 * MB))
        assert isinstance(error, InputError)
        assert "of 0.1 GB is too small for this image: make it 1.0 GB or more (--workspace-size)" in str(error)

    def test_of_time(self, place: Path, tmp_path: Path) -> None:
        source = faulty(place / "deaf", "prune:deaf")
        with deadline(3 / 60):
            error = failed(place, source, tmp_path / "out")
        assert isinstance(error, Overdue)

    def test_of_others_who_remove_containers(self, place: Path, tmp_path: Path) -> None:
        source = faulty(place / "hang", "create:hang")
        with beside(lambda: remove_when_it_runs(place, "commit")):
            error = failed(place, source, tmp_path / "out")
        assert isinstance(error, EnvironmentLack)
        # Which one it is depends on whether docker still tells how it ended.
        assert re.match("step commit(: somebody removed its container| was killed .*docker rm)", str(error))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"meta": "meta: [a]"}, "--meta .* is not like hhd-dev/rechunk's meta.yml"),
            ({"git": ""}, r"--git .* is no checkout .*: it has no directory \.git"),
            ({"changelog": "x" * 140_000}, "changelog takes 140,010 bytes, .*: shorten it"),
        ],
    )
    def test_of_what_was_given_are_told_before_anything_is_done(
        self, place: Path, tree: Path, tmp_path: Path, options: dict[str, Any], said: str
    ) -> None:
        if "meta" in options:
            (tmp_path / "meta.yml").write_text(options["meta"])
            options = {"meta": tmp_path / "meta.yml"}
        elif "git" in options:
            options = {"git": tmp_path}
        told = Listener()
        error = failed(
            place, tree, tmp_path / "out", hhd=HhdOptions(**{"image": rechunker_image()} | options), progress=told
        )
        assert isinstance(error, InputError)
        assert re.search(said, str(error))
        assert told.lines == []

    def test_of_pruning_that_takes_too_much(self, place: Path, tree: Path, tmp_path: Path) -> None:
        with pruned_by('rm "$TREE/usr/bin/ls"; echo other >"$TREE/usr/bin/bash"') as image:
            done = made(place, tree, tmp_path / "image", hhd=HhdOptions(image))
        assert done.told.heard("the rechunker leaves out files that the image has: /usr/bin/ls")
        assert done.told.heard("the rechunker changes what is in files: /usr/bin/bash")

    def test_of_pruning_that_ruins_the_tree(self, place: Path, tree: Path, tmp_path: Path) -> None:
        before = facts(tree)
        with pruned_by('rm -r "$TREE/usr/share/rpm"') as image:
            error = failed(place, tree, tmp_path / "out", hhd=HhdOptions(image))
        assert isinstance(error, EngineFailed)
        assert "the rechunker has not left a system" in str(error)
        assert facts(tree) == before

    def test_of_a_source_that_is_no_system(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "tree/usr/bin").mkdir(parents=True)
        (tmp_path / "tree/usr/bin/sh").touch()
        error = failed(place, tmp_path / "tree", tmp_path / "out")
        assert isinstance(error, InputError)
        assert "neither /etc nor /usr/etc" in str(error)


@contextlib.contextmanager
def pruned_by(script: str) -> Iterator[str]:
    """A container image in which a script of ours follows the first one."""
    name = f"rechunk-test-pruned:{os.getpid()}"
    added = f"RUN sed -i 's/^exit 0$//' $PRUNE && echo {shlex.quote(script)} >>$PRUNE"
    subprocess.run(
        ["docker", "build", "--quiet", f"--tag={name}", "-"],
        input=f"FROM {rechunker_image()}\nARG PRUNE=/sources/rechunk/1_prune.sh\n{added}\n",
        env=os.environ | {"PATH": builder_path(), "DOCKER_BUILDKIT": "1"},
        text=True,
        check=True,
        capture_output=True,
    )
    try:
        yield name
    finally:
        run("docker", "image", "rm", "--force", name)


@contextlib.contextmanager
def beside(action: Callable[[], object]) -> Iterator[None]:
    """Something that happens at the same time."""
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def remove_when_it_runs(place: Path, step: str) -> None:
    container = when_it_runs(place, step)
    run("docker", "rm", "--force", container)


def when_it_runs(place: Path, step: str) -> str:
    """The container of a step, once it has started."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for container in containers_of(place):
            form = "{{.State.Running}} {{index .Config.Labels " + json.dumps(LABEL) + "}}"
            with contextlib.suppress(subprocess.CalledProcessError):
                if run("docker", "inspect", "--format", form, container).split() == ["true", step]:
                    return container
        time.sleep(0.05)
    raise AssertionError(f"no container runs step {step}")


class TestRequestsToStop:
    @pytest.mark.parametrize("phase", ["unpack", "check", "verify", "publish"])
    def test_are_heeded_between_steps(self, place: Path, tree: Path, tmp_path: Path, phase: str) -> None:
        class Stopped(Listener):
            @contextlib.contextmanager
            def phase(self, name: str, title: str, total: int | None = None) -> Iterator[Meter]:
                with super().phase(name, title, total) as meter:
                    if name == phase:
                        raise KeyboardInterrupt
                    yield meter

        source: Path | str = tree
        if phase == "unpack":
            build(tree, tmp_path / "plain")
            source = f"oci:{tmp_path}/plain"
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "out", **options_of(place, progress=Stopped()))
        assert not (tmp_path / "out").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]

    @pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, "prune"), (signal.SIGTERM, "chunk")])
    def test_are_heeded_in_steps(self, place: Path, tmp_path: Path, number: int, step: str) -> None:
        source = faulty(place / f"stopped-{step}", f"{step}:hang")
        with command(place, source, tmp_path / "out") as process:
            when_it_runs(place, step)
            process.send_signal(number)
            _, complaints = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "cancelled; nothing was left behind" in complaints
        assert list(tmp_path.iterdir()) == []

    def test_that_cannot_be_heeded_are_made_up_for_by_the_next_run(self, place: Path, tmp_path: Path) -> None:
        with command(place, faulty(place / "killed", "create:hang"), tmp_path / "killed") as process:
            when_it_runs(place, "commit")
            process.kill()
        (home,) = (place / "scratch").iterdir()
        assert len(containers_of(place)) == 1
        told = Listener()
        failed(place, faulty(place / "next", "prune:exit:1"), tmp_path / "out", progress=told)
        container, workspace_ = (notice for notice in told.notices if "which a run that was killed had left" in notice)
        assert container.startswith("removed container rechunk-")
        assert workspace_.startswith(f"removed {home}, ")


@contextlib.contextmanager
def command(place: Path, source: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    """The build in a process of its own."""
    arguments = [f"dir:{source}", f"oci:{output}", "--engine=hhd", f"--rechunk={rechunker_image()}"]
    with subprocess.Popen(
        [sys.executable, "-m", "rechunk_action", "build", *arguments],
        env={**os.environ, "TMPDIR": f"{place}/scratch"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
