"""What the users of an image have been downloading, over all versions of it, whoever made them."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rechunk_action.errors import AccessDenied, InputError
from rechunk_action.history import history, published
from rechunk_action.oci.image import CONFIG, INDEX, MANIFEST, digest_of, host_architecture
from rechunk_action.oci.layout import REF_NAME
from rechunk_action.registry.client import Repository
from rechunk_action.registry.image import published_image
from rechunk_action.registry.tables import ARTIFACT, LABEL, NOTHING, RECORD, find_beside
from rechunk_action.registry.versions import scheme_of
from rechunk_action.report.model import Facts, History
from rechunk_action.report.size import format_size
from rechunk_action.source.names import parse_name
from tests.building import Listener, build, places
from tests.faulty_proxy import ALWAYS, FaultyProxy
from tests.ostree_images import chunked_layers, commit_tree, write_image
from tests.registries import repository, token_registry
from tests.reports import HOSTILE
from tests.support import (
    Item,
    Packed,
    archive,
    directory,
    file,
    pack,
    write_index,
    write_layout,
)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("small_components")]

HERE = host_architecture()
LIKE = scheme_of("v1")


@pytest.fixture
def remote(line: FaultyProxy, request: pytest.FixtureRequest) -> Iterator[Repository]:
    """A repository of the test's own."""
    line.forget()
    with repository(line.host, f"test/t{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}") as mine:
        yield mine


def noise(seed: int, size: int = 4_000) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311  # not for secrets


def layer(*seeds: int) -> Packed:
    """A layer of a file for each number, which tells its content. Not compressed, so that shares of it are exact."""
    return pack(archive(directory("usr"), *(file(f"usr/{seed}", noise(seed)) for seed in seeds)), "none")


def push(
    remote: Repository, tag: str, *layers: Packed, labels: Mapping[str, str] | None = None, architecture: str = HERE
) -> dict[str, Any]:
    """An image of these layers under a tag; its descriptor."""
    for each in layers:
        remote.upload_bytes(each.data)
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2026-11-26T00:00:00Z",
            "config": {"Labels": dict(labels or {})},
            "rootfs": {"type": "layers", "diff_ids": [each.blob.diff_id for each in layers]},
            "history": [{"created_by": f"RUN {number}"} for number in range(len(layers))],
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": remote.upload_bytes(config), "size": len(config)},
            "layers": [
                {"mediaType": each.blob.media_type, "digest": each.blob.digest, "size": each.blob.size}
                for each in layers
            ],
        }
    ).encode()
    return {
        "mediaType": MANIFEST,
        "digest": remote.put_manifest(tag, manifest, MANIFEST),
        "size": len(manifest),
        "platform": {"architecture": architecture, "os": "linux"},
    }


def past(name: object, told: Listener | None = None, **options: Any) -> History:
    """The history of a repository or layout."""
    given: dict[str, Any] = {"version": None, "last": 10, "deep": False, "threads": 2, "scratch": Path("/var/tmp")}
    given |= options
    name = name if isinstance(name, str) else f"docker://{name}"
    with places() as opened:
        return history(parse_name(name), given.pop("version"), opened, told or Listener(), **given)


def newest(remote: Repository, last: int, **options: Any) -> list[Facts]:
    """The newest versions in a repository."""
    given: dict[str, Any] = {"architecture": HERE, "notice": Listener().notice}
    return published(remote, LIKE, last=last, **given | options)


def named(versions: list[Facts]) -> list[str]:
    return [facts.version for facts in versions]


class TestPublished:
    def test_the_newest_versions_come_oldest_first(self, remote: Repository) -> None:
        for number in (10, 2, 9, 1):
            push(remote, f"v{number}", layer(number))
        push(remote, "latest", layer(10))
        push(remote, "v11-testing", layer(11))
        push(remote, "v3", layer(3))
        found = newest(remote, 3, moving=["v3"])
        assert named(found) == ["v2", "v9", "v10"]
        assert [facts.ref for facts in found] == [f"{remote}:{facts.version}" for facts in found]
        assert [facts.layers[0].digest for facts in found] == [layer(number).blob.digest for number in (2, 9, 10)]

    def test_there_may_be_none(self, remote: Repository) -> None:
        assert newest(remote, 3) == []
        push(remote, "latest", layer(1))
        assert newest(remote, 3) == []

    def test_several_tags_of_an_image_are_one_version(self, remote: Repository) -> None:
        for tag, seed in (("v1", 1), ("v2", 2), ("v2.1", 2), ("v3", 3)):
            push(remote, tag, layer(seed))
        assert named(newest(remote, 3)) == ["v1", "v2.1", "v3"]

    def test_what_is_no_image_of_ours_is_left_out_and_told(self, remote: Repository, line: FaultyProxy) -> None:
        for number in range(1, 6):
            push(remote, f"v{number}", layer(number), architecture="riscv64" if number == 4 else HERE)
        remote.put_manifest("v6", json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode(), INDEX)
        line.fault("answer", status=404, path="/manifests/v3$", times=ALWAYS)
        notices: list[str] = []
        found = newest(remote, 2, notice=notices.append)
        assert named(found) == ["v2", "v5"]
        assert [re.sub("127[^ ]+", "HOST", notice) for notice in notices] == [
            f"version v6 is left out: HOST has no image for {HERE}, only for nothing",
            f"version v4 is left out: it is for riscv64, and not for {HERE}",
            "version v3 is left out: HOST has no image v3: check the name; `skopeo list-tags` lists them",
        ]

    def test_of_an_index_the_image_for_the_architecture_is_the_version(self, remote: Repository) -> None:
        for number in (1, 2):
            others = [push(remote, "other", layer(9), architecture="riscv64")]
            mine = push(remote, "mine", layer(number))
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*others, mine]}
            remote.put_manifest(f"v{number}", json.dumps(index).encode(), INDEX)
        found = newest(remote, 9)
        assert [facts.layers[0].digest for facts in found] == [layer(1).blob.digest, layer(2).blob.digest]
        assert [facts.layers[0].digest for facts in newest(remote, 9, architecture="riscv64")] == [layer(9).blob.digest]

    def test_no_layer_is_read_and_few_requests_are_sent(self, remote: Repository, line: FaultyProxy) -> None:
        for number in range(8):
            push(remote, f"v{number}", layer(number))
        before = len(line.exchanges)
        newest(remote, 5)
        sent = line.exchanges[before:]
        assert len(sent) <= 1 + 3 * 5
        assert not any(layer(number).blob.digest in exchange.path for exchange in sent for number in range(8))

    def test_a_private_repository_is_no_empty_one(self) -> None:
        with token_registry(public=False) as gate, repository(gate.host) as remote, pytest.raises(AccessDenied):
            newest(remote, 3)


@dataclass
class Layout:
    """A layout of several images."""

    place: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"oci:{self.place}"

    def add(self, tag: str, write: Callable[[Path], object]) -> None:
        """An image that is written alone into a layout."""
        write(self.place)
        (entry,) = json.loads((self.place / "index.json").read_bytes())["manifests"]
        self.entries.append(entry | {"annotations": {REF_NAME: tag}})
        write_index(self.place, *self.entries)

    def add_plain(self, tag: str, *layers: Packed) -> None:
        self.add(tag, lambda place: write_layout(place, layers))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


class TestWhichTags:
    def test_the_stream_with_the_most_versions_is_chosen_and_the_others_are_told(self, remote: Repository) -> None:
        for tag in ("43.20261110", "43.20261111", "43.20261112", "43", "latest", "stable-43.20261110", "sha256-0.sig"):
            push(remote, tag, layer(len(tag) + int(tag[-1]) if tag[-1].isdecimal() else 0))
        told = Listener()
        found = past(remote, told)
        assert [line.image.version for line in found.versions] == ["43.20261110", "43.20261111", "43.20261112"]
        assert found.scheme == "43.20261112"
        assert told.heard("versions: 3 tags like 43.20261112; --version chooses others: stable-43.20261110 (1), 43 (1)")
        assert found.name == str(remote)

    def test_a_version_of_another_stream_chooses_that(self, remote: Repository) -> None:
        for number in range(3):
            push(remote, f"43.2026111{number}", layer(number))
            push(remote, f"stable-43.2026111{number}", layer(10 + number))
        found = past(remote, version="stable-43.20261110", last=2)
        assert [line.image.version for line in found.versions] == ["stable-43.20261111", "stable-43.20261112"]

    def test_in_a_layout_any_tags_will_do_in_their_natural_order(self, layout: Layout) -> None:
        for seed, tag in enumerate(("new", "a10x", "a9", HOSTILE, "a9y")):
            layout.add_plain(tag, layer(seed))
        told = Listener()
        found = past(layout.name, told)
        assert [line.image.version for line in found.versions] == [HOSTILE, "a9", "a9y", "a10x", "new"]
        assert found.scheme == ""
        assert told.heard("versions: all 5 tags")

    def test_numbers_of_any_length_are_numbers(self, layout: Layout) -> None:
        tags = ["x9", "y0010", "z" + "9" * 5000, "z1" + "0" * 5000]
        for seed, tag in enumerate(reversed(tags)):
            layout.add_plain(tag, layer(seed))
        assert [line.image.version for line in past(layout.name).versions] == tags

    @pytest.mark.parametrize(
        ("tags", "version", "why"),
        [
            ([], None, "has no tags, or is not there"),
            (["latest"], None, "none of its tags has a number"),
            (["v1", "x2", "latest"], None, r"x2 \(1\), v1 \(1\)"),
            (["v1", "v2", "w1"], "w1", r"fewer than 2 versions like w1, .*v2 \(2\), w1 \(1\)"),
        ],
    )
    def test_where_there_is_nothing_to_compare_the_tags_are_told(
        self, remote: Repository, tags: list[str], version: str | None, why: str
    ) -> None:
        for number, tag in enumerate(tags):
            push(remote, tag, layer(number))
        with pytest.raises(InputError, match=why):
            past(remote, version=version)

    def test_versions_that_cannot_be_read_are_none(self, remote: Repository, line: FaultyProxy) -> None:
        for number in (1, 2):
            push(remote, f"v{number}", layer(number))
        line.fault("answer", status=404, path="/manifests/v1$", times=ALWAYS)
        with pytest.raises(InputError, match="of 2 versions, 1 could be read"):
            past(remote)

    def test_a_newest_one_that_is_damaged_is_left_out_as_others_are(
        self, remote: Repository, line: FaultyProxy
    ) -> None:
        for number in (1, 2, 3):
            push(remote, f"v{number}", layer(number))
        body = b'{"manifests": [{"digest": 5}]}'
        headers = {"Content-Type": INDEX}
        line.fault("answer", path="manifests/v3$", status=200, headers=headers, body=body, times=ALWAYS)
        told = Listener()
        assert [line.image.version for line in past(remote, told).versions] == ["v1", "v2"]
        assert told.heard("version v3 is left out")

    @pytest.mark.parametrize("size", [-1, 10**400])
    def test_a_record_of_no_size_is_none(self, remote: Repository, line: FaultyProxy, size: int) -> None:
        """A registry would be read without end for a negative one."""
        record = {"mediaType": RECORD, "digest": layer(1).blob.digest, "size": size}
        body = json.dumps({"artifactType": ARTIFACT, "layers": [record]}).encode()
        image = push(remote, "v1", layer(1), labels={LABEL: digest_of(body)})
        line.fault("answer", path=digest_of(body), status=200, headers={"Content-Type": MANIFEST}, body=body, times=2)
        assert find_beside(remote, published_image(remote, image["digest"], HERE)) == NOTHING
        assert line.asked(path=digest_of(body))

    @pytest.mark.parametrize(
        "name", ["oci:/x:tag", "docker://localhost/x:tag", f"docker://localhost/x@sha256:{'0' * 64}"]
    )
    def test_the_name_of_one_image_is_refused(self, name: str) -> None:
        with pytest.raises(InputError, match="leave out the tag"):
            past(name)

    def test_an_image_for_no_machine_of_this_kind_is_shown_all_the_same(self, remote: Repository) -> None:
        for number in (1, 2):
            image = push(remote, "mine", layer(number), architecture="riscv64")
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [image]}
            remote.put_manifest(f"v{number}", json.dumps(index).encode(), INDEX)
            push(remote, f"w{number}", layer(number), architecture="riscv64")
        assert len(past(remote, version="v1").versions) == 2
        assert len(past(remote, version="w1").versions) == 2


class TestEstimates:
    def test_what_was_published_by_delta_layering_costs_what_it_is_said_to(
        self, line: FaultyProxy, remote: Repository, tmp_path: Path
    ) -> None:
        tree = tmp_path / "tree"
        (tree / "usr").mkdir(parents=True)
        for number in range(30):
            (tree / f"usr/{number}").write_bytes(noise(number, 20_000))
        for version in range(6):
            for number in range(version * 3, version * 3 + version):
                (tree / f"usr/{number}").write_bytes(noise(100 * version + number, 20_000))
            (tree / "usr/stamp").write_bytes(noise(1_000 + version, 5_000))
            build(tree, f"docker://{remote}", version=f"v{version}")
        before = len(line.exchanges)
        newest(remote, 5)
        assert len(line.exchanges) - before <= 1 + 4 * 5
        before = len(line.exchanges)
        found = past(remote)
        blobs = [exchange.path for exchange in line.exchanges[before:] if exchange.method == "GET"]
        for step in found.versions[1:]:
            assert step.estimate is not None
            assert step.update is not None
            assert step.estimate.changed <= step.update
            assert step.estimate.delta == pytest.approx(step.update, rel=0.05)
            assert step.estimate.delta_image == pytest.approx(step.image.bytes, rel=0.02)
        # Some of it is what compaction wrote again.
        assert found.totals.changed is not None
        assert found.totals.bytes > found.totals.changed + 30_000
        assert not any(made.digest in path for path in blobs for made in found.last.layers)

    def test_layers_of_others_are_read_if_that_is_asked_for_and_each_once(
        self, remote: Repository, line: FaultyProxy
    ) -> None:
        base = layer(*range(100, 150))
        tops = [layer(10 + number, 20) for number in range(3)]
        for number, top in enumerate(tops):
            push(remote, f"v{number}", base, top)
        told = Listener()
        assert past(remote, told).totals.delta is None
        assert told.heard("--deep reads them")
        before = len(line.exchanges)
        found = past(remote, told, deep=True)
        sent = [exchange.path for exchange in line.exchanges[before:]]
        assert [sum(made.blob.digest in path for path in sent) for made in (base, *tops)] == [1, 1, 1, 1]
        size = format_size(sum(made.blob.size for made in (base, *tops)))
        assert told.heard(f"4 layers have no table stored, {size} in all: reading them")
        for number, step in enumerate(found.versions[1:], 1):
            assert step.estimate is not None
            assert step.update == tops[number].blob.size
            assert step.estimate.changed == len(archive(file("x", noise(0)))) - 1_024
            assert step.estimate.changed <= step.estimate.delta <= step.update
        assert found.totals.delta == sum(step.estimate.delta for step in found.versions if step.estimate)

    def test_a_layer_that_cannot_be_read_leaves_two_updates_without_an_estimate(self, remote: Repository) -> None:
        broken = pack(b"no archive at all" * 100)
        for number in range(5):
            push(remote, f"v{number}", broken if number == 2 else layer(number))
        told = Listener()
        found = past(remote, told, deep=True)
        assert [step.estimate is not None for step in found.versions] == [False, True, False, False, True]
        assert found.totals.delta is None
        assert told.heard(f"no estimate for updates from and to {remote}:v2: layer {broken.blob.digest}")

    def test_an_image_of_nothing_is_a_version_too(self, layout: Layout) -> None:
        for version, layers in enumerate(([layer(1)], [], [layer(1), pack(archive(), "none")])):
            layout.add_plain(f"v{version}", *layers)
        found = past(layout.name, deep=True)
        assert [step.estimate and step.estimate.changed > 4_000 for step in found.versions] == [None, False, True]

    def test_package_databases_tell_what_belongs_together_and_which_packages_changed(self, layout: Layout) -> None:
        def system(version: int, *rest: Item) -> Packed:
            names = {"kernel": "usr/vmlinuz", "tools": "usr/tool"}
            status = "".join(
                f"Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: {version}\n\n"
                for name in names
            )
            lists = [file(f"var/lib/dpkg/info/{name}.list", f"/{path}\n".encode()) for name, path in names.items()]
            return pack(archive(file("var/lib/dpkg/status", status.encode()), *lists, *rest), "none")

        for version in range(4):
            tool = file("usr/tool", noise(version // 2, 35_000))
            layout.add_plain(f"v{version}", system(version, file("usr/vmlinuz", noise(9 + version, 35_000)), tool))
        found = past(layout.name, deep=True)
        assert [(change.name, change.old, change.new) for change in found.last.packages or ()] == [
            ("dpkg:kernel:all", "2", "3"),
            ("dpkg:tools:all", "2", "3"),
        ]
        largest = {line.name: line.bytes for line in found.last.components}
        assert largest["dpkg:kernel:all"] == pytest.approx(35_000, rel=0.1)
        assert found.last.bytes == sum(largest.values())
        # From the second update on, each has a layer of its own, which its next version replaces.
        deltas = [step.estimate.delta for step in found.versions if step.estimate]
        assert deltas == pytest.approx([75_000, 75_000, 39_000], rel=0.1)

    def test_a_damaged_package_database_costs_no_estimate(self, layout: Layout) -> None:
        for version in range(2):
            database = file("usr/share/rpm/rpmdb.sqlite", noise(9))
            layout.add_plain(f"v{version}", layer(version), pack(archive(database), "none"))
        told = Listener()
        found = past(layout.name, told, deep=True)
        assert found.versions[1].estimate is not None
        assert found.last.packages is None
        assert told.heard(f"the packages of {layout.name}:v1 are not known, and layers are taken for them: ")

    def test_chunks_are_estimated_as_chunks(self, layout: Layout, tmp_path: Path) -> None:
        repo, tree = tmp_path / "repo", tmp_path / "tree"
        for above in ("usr/etc", "sysroot"):
            (tree / above).mkdir(parents=True)
        for number in range(20):
            (tree / f"usr/{number}").write_bytes(noise(number, 20_000))
        commits = []
        for version in range(3):
            (tree / "usr/etc/changed").write_bytes(noise(100 + version, 20_000))
            commit = commit_tree(repo, tree)
            layers = [*chunked_layers(repo, commit), *([[file("opt", noise(7))]] if version < 2 else [])]
            commits.append(len(archive(*layers[0])))
            write = partial(write_image, layers=layers, commit=commit, final=3, compression="none")
            layout.add(f"v{version}", write)
        layout.add_plain("v3", layer(1))
        layout.add_plain("v4", layer(1, 2))
        told = Listener()
        found = past(layout.name, told, deep=True)
        first, *rest = [step.estimate for step in found.versions]
        # What lies on top of the chunks of the first version is part of the first update, and of no other.
        for estimate, on_top in zip(rest[:2], (4_000, 0), strict=True):
            assert estimate is not None
            assert 20_000 < estimate.changed < 28_000
            assert estimate.delta == pytest.approx(estimate.changed + commits[-1] + on_top, abs=3_000)
        assert first is rest[2] is None
        assert rest[3] is not None


def test_the_command_shows_prints_and_writes_a_history(layout: Layout, tmp_path: Path) -> None:
    for number in range(3):
        layout.add_plain(f"v{number}", layer(number), layer(9))
    page = tmp_path / "page.html"
    shown = command(layout.name, "--html", page)
    assert "3 versions" in shown.stdout
    assert "--deep" in shown.stderr
    assert page.read_text().startswith("<!DOCTYPE html>")
    document = json.loads(command(layout.name, "--json", "--deep", "--last", "2", "--version", "v7", "-q").stdout)
    assert document["schema"] == 1
    assert [version["image"]["version"] for version in document["history"]["versions"]] == ["v1", "v2"]
    assert document["history"]["versions"][1]["estimate"]["changed"] > 4_000
    assert command(layout.name, "--last", "1", code=2).stdout == ""


def command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "rechunk_action", "history", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done
