"""Publishing to a real registry: what is sent, what becomes visible, and what happens when something breaks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from rechunk_action import inspection, pipeline
from rechunk_action.errors import AccessDenied, CorruptImage, InputError, RegistryError, RegistryUnavailable, TooLarge
from rechunk_action.oci.config import image_manifest
from rechunk_action.oci.image import CONFIG, INDEX, MANIFEST, Image, digest_of, host_architecture
from rechunk_action.oci.layout import read_image
from rechunk_action.progress import Meter, Progress
from rechunk_action.publish import RegistryWriter
from rechunk_action.registry.client import Repository
from rechunk_action.registry.image import RegistryBlobs, published_image
from rechunk_action.registry.tables import LABEL
from rechunk_action.registry.versions import DEFAULT_TEMPLATE, Template, scheme_of
from rechunk_action.source.names import parse_name
from tests.building import Listener, build, places
from tests.faulty_proxy import ALWAYS, Exchange, Fault, Line
from tests.registries import PASSWORD, USER, repository, token_registry
from tests.support import archive, file, pack, write_layout

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("small_components")]

NAME = "owner/image"
OTHER_TRAFFIC = 64_000
"""Bytes that a publish may send beside layers and their tables: manifests and a config."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A system of several components."""
    root = tmp_path / "tree"
    for part in range(6):
        (root / f"usr/lib/part{part}").mkdir(parents=True)
        (root / f"usr/lib/part{part}/data").write_bytes(hashlib.shake_128(bytes([part])).digest(20_000))
    (root / "etc").mkdir()
    (root / "usr/lib/os-release").write_text('ID=small\nVERSION_ID="42"\n')
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    return root


def change(tree: Path, text: str = "changed") -> None:
    (tree / "etc/motd").write_text(text)


def publish(tree: Path, target: str, **options: Any) -> dict[str, Any]:
    return build(tree, f"docker://{target}", **options)


@contextlib.contextmanager
def client(target: str) -> Iterator[Repository]:
    """Our client, past the line that may break."""
    host, _, name = target.partition("/")
    with repository(host, name) as opened:
        yield opened


def image_at(target: str, tag: str) -> Image:
    """An image with all that it names, checked byte for byte."""
    with client(target) as opened:
        image = published_image(opened, tag, host_architecture())
        for blob in image.layers:
            with opened.open_blob(blob.digest, blob.size) as data:
                while data.read(1 << 20):
                    pass
        return image


def tags_of(target: str) -> set[str]:
    with client(target) as opened:
        return set(opened.tags())


def versions_of(target: str) -> set[str]:
    return {tag for tag in tags_of(target) if not tag.startswith("sha256-")}


def verified(target: str, tag: str, tree: Path) -> bool:
    """Whether an image is the tree, read anew from all its layers."""
    with places() as opened:
        name, source = parse_name(f"docker://{target}:{tag}"), parse_name(f"dir:{tree}")
        report = inspection.verify(name, source, opened, Progress(level=-1), threads=2, scratch=tree.parent)
    return bool(report["equal"])


class TestAFirstBuild:
    def test_has_a_version_of_the_image_and_the_date_and_all_tags(self, tree: Path, target: str) -> None:
        told = Listener()
        report = publish(tree, target, tags=("latest", "42"), progress=told)
        assert (report["version"], report["ref"]) == ("42-20261126", f"{target}:42-20261126")
        assert (report["fresh"], report["reason"], report["prev_ref"]) == (True, "first build", None)
        assert told.heard("has no tags yet")
        assert versions_of(target) == {"42-20261126", "latest", "42"}
        assert {image_at(target, tag).digest for tag in versions_of(target)} == {report["digest"]}
        assert verified(target, "latest", tree)

    @pytest.mark.parametrize("push", [False, True])
    def test_says_that_it_publishes_only_where_it_does(self, tree: Path, target: str, push: bool) -> None:
        said = io.StringIO()
        publish(tree, target, push=push, progress=Progress(said))
        assert ("publish to" in said.getvalue(), versions_of(target) != set()) == (push, push)

    def test_labels_say_what_it_is(self, tree: Path, target: str) -> None:
        publish(tree, target, labels=("a=b",))
        labels = image_at(target, "42-20261126").labels
        assert labels["org.opencontainers.image.version"] == "42-20261126"
        assert labels["a"] == "b"
        assert "rechunk.prev-ref" not in labels

    def test_takes_the_version_that_it_is_given(self, tree: Path, target: str) -> None:
        assert publish(tree, target, version="7.1")["version"] == "7.1"
        assert publish(tree, f"{target}:7.2")["version"] == "7.2"
        assert versions_of(target) == {"7.1", "7.2"}

    def test_has_one_tag_for_its_tables_that_is_no_version(self, tree: Path, target: str) -> None:
        publish(tree, target, tags=("latest",))
        [extra] = tags_of(target) - versions_of(target)
        assert Template(DEFAULT_TEMPLATE).key(extra) is None
        assert scheme_of("1").key(extra) is None

    def test_is_pulled_by_a_real_client(self, tree: Path, target: str, tmp_path: Path) -> None:
        report = publish(tree, target, tags=("latest",))
        copy = ["skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"]
        subprocess.run([*copy, f"docker://{target}:latest", f"oci:{tmp_path}/pulled:1"], check=True)
        assert read_image(tmp_path / "pulled", "1").digest == report["digest"]


class TestAnUpdate:
    def test_keeps_what_is_published_and_sends_what_is_new(self, tree: Path, target: str, line: Line) -> None:
        first = publish(tree, target, tags=("latest",))
        change(tree)
        line.forget()
        report = publish(tree, target, tags=("latest",), now=_day(27))
        assert (report["version"], report["fresh"]) == ("42-20261127", False)
        assert report["prev_ref"] == f"{target}:42-20261126@{first['digest']}"
        assert report["layers"]["kept"] == first["layers"]["total"]
        old, new = image_at(target, "42-20261126"), image_at(target, "latest")
        assert new.layers[: len(old.layers)] == old.layers
        assert new.labels["rechunk.prev-ref"] == report["prev_ref"]
        assert verified(target, "latest", tree)

    def test_neither_fetches_nor_sends_a_kept_layer(self, tree: Path, target: str, line: Line) -> None:
        publish(tree, target)
        kept = {blob.digest for blob in image_at(target, "42-20261126").layers}
        change(tree)
        line.forget()
        publish(tree, target)
        touched = {each.path for each in line.exchanges if each.method != "HEAD"}
        assert kept
        assert not [path for path in touched for digest in kept if digest in path]

    def test_sends_new_blobs_new_tables_and_little_else(self, tree: Path, target: str, line: Line) -> None:
        publish(tree, target, tags=("latest",))
        old_tables = set(_tables(target, "latest").values())
        change(tree)
        line.forget()
        report = publish(tree, target, tags=("latest",))
        sent = sum(each.received for each in line.exchanges)
        new_tables = set(_tables(target, "latest").values()) - old_tables
        assert len(new_tables) == report["layers"]["new"]
        assert sent <= report["bytes"]["update"] + sum(size for _, size in new_tables) + OTHER_TRAFFIC

    def test_has_the_same_layers_as_an_update_on_disk(self, tree: Path, target: str, tmp_path: Path) -> None:
        publish(tree, target)
        build(tree, f"oci:{tmp_path}/image:1")
        change(tree)
        publish(tree, target)
        build(tree, f"oci:{tmp_path}/image:2", prev_ref=f"oci:{tmp_path}/image:1")
        assert image_at(target, "42-20261126.1").layers == read_image(tmp_path / "image", "2").layers

    def test_of_the_same_day_gets_the_next_name(self, tree: Path, target: str) -> None:
        versions = []
        for number in range(12):
            change(tree, str(number))
            report = publish(tree, target)
            versions.append(report["version"])
            assert report["fresh"] == (number == 0)
        assert versions == ["42-20261126", *(f"42-20261126.{number}" for number in range(1, 12))]

    def test_of_what_did_not_change_has_no_new_layer(self, tree: Path, target: str) -> None:
        publish(tree, target)
        report = publish(tree, target)
        assert (report["layers"]["new"], report["bytes"]["update"]) == (0, 0)

    def test_can_be_fresh(self, tree: Path, target: str) -> None:
        publish(tree, target)
        report = publish(tree, target, fresh=True)
        assert (report["version"], report["reason"]) == ("42-20261126.1", "requested")
        assert "rechunk.prev-ref" not in image_at(target, "42-20261126.1").labels

    def test_of_a_named_image_takes_that(self, tree: Path, target: str) -> None:
        first = publish(tree, target)
        change(tree)
        publish(tree, target)
        report = publish(tree, target, prev_ref=f"docker://{target}:42-20261126")
        assert report["prev_ref"] == f"{target}:42-20261126@{first['digest']}"

    def test_of_a_named_image_that_is_not_there_is_an_error(self, tree: Path, target: str) -> None:
        with pytest.raises(RegistryError, match="has no image 41-20261126"):
            publish(tree, target, prev_ref=f"docker://{target}:41-20261126")
        assert tags_of(target) == set()

    def test_into_a_layout_fetches_what_is_kept(self, tree: Path, target: str, tmp_path: Path) -> None:
        publish(tree, target)
        change(tree)
        report = build(tree, f"oci:{tmp_path}/image", repository=parse_name(f"docker://{target}").reference)
        assert report["layers"]["kept"] > 0
        assert verified_layout(tmp_path / "image", tree)

    def test_of_a_layout_sends_what_is_kept(self, tree: Path, target: str, tmp_path: Path) -> None:
        build(tree, f"oci:{tmp_path}/image:1")
        change(tree)
        report = publish(tree, target, prev_ref=f"oci:{tmp_path}/image:1")
        assert report["layers"]["kept"] > 0
        assert verified(target, "42-20261126", tree)

    def test_in_another_repository_mounts_what_is_kept(self, tree: Path, target: str, line: Line) -> None:
        publish(tree, target)
        change(tree)
        line.forget()
        report = publish(tree, f"{target}-testing", repository=parse_name(f"docker://{target}").reference)
        assert report["layers"]["kept"] > 0
        assert len(line.asked("POST", r"mount=.*&from=test")) == report["layers"]["kept"]
        assert sum(each.received for each in line.exchanges) < report["bytes"]["update"] + OTHER_TRAFFIC
        assert verified(f"{target}-testing", "42-20261126", tree)


def verified_layout(layout: Path, tree: Path) -> bool:
    with places() as opened:
        name, source = parse_name(f"oci:{layout}"), parse_name(f"dir:{tree}")
        report = inspection.verify(name, source, opened, Progress(level=-1), threads=2, scratch=tree.parent)
    return bool(report["equal"])


class TestThePreviousImage:
    @pytest.fixture
    def published(self, tree: Path, target: str) -> str:
        """Versions that were published in another order than they have, and tags that are none."""
        for version in ("42-20261109", "9-20261201", "42-20261110.2", "42-20261110", "latest-20261231"):
            change(tree, version)
            publish(tree, target, version=version, tags=("latest", "20261231"))
        return target

    def decision(self, target: str, tags: tuple[str, ...] = ()) -> Any:
        with places() as opened:
            reference = parse_name(f"docker://{target}").reference
            return pipeline.previous_image(reference, None, tags, opened)

    def test_is_the_newest_version_by_its_numbers(self, published: str) -> None:
        decision = self.decision(published)
        assert (decision.tag, decision.digest) == ("42-20261110.2", image_at(published, "42-20261110.2").digest)
        assert decision.reason == "the newest of 4 versions like {version_id}-{date:%Y%m%d}"

    def test_is_no_tag_that_moves(self, published: str) -> None:
        assert self.decision(published, ("42-20261110.2",)).tag == "42-20261110"

    def test_is_none_where_no_tag_is_a_version(self, tree: Path, target: str) -> None:
        publish(tree, target, version="1.0", tags=("latest",))
        decision = self.decision(target)
        assert decision.tag is None
        assert "none of the 3 tags" in decision.reason

    def test_is_never_lost_by_a_fault(self, tree: Path, published: str, line: Line) -> None:
        line.fault("answer", method="GET", path="tags/list", status=500, times=ALWAYS)
        with pytest.raises(RegistryUnavailable):
            publish(tree, published)
        line.forget()
        line.fault("answer", method="GET", path="tags/list", status=403, times=ALWAYS)
        with pytest.raises(AccessDenied):
            publish(tree, published)

    def test_is_not_ruled_out_by_a_404_that_is_not_the_registrys(self, tree: Path, target: str, line: Line) -> None:
        line.fault("answer", path="tags/list", status=404, body=b"<html>", times=ALWAYS)
        with pytest.raises(RegistryError, match="answered 404"):
            publish(tree, target)

    def test_of_an_index_is_that_of_the_architecture(self, tree: Path, target: str) -> None:
        publish(tree, target)
        with client(target) as opened:
            found = opened.resolve("42-20261126")
            assert found is not None
            ours = {"mediaType": MANIFEST, "digest": found.digest, "size": found.size}
            entries: list[dict[str, Any]] = [ours | {"platform": {"architecture": host_architecture()}}]
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
            opened.put_manifest("42-20261127", json.dumps(index).encode(), INDEX)
            entries[0]["platform"]["architecture"] = "s390x"
            opened.put_manifest("43-20261127", json.dumps(index).encode(), INDEX)
        report = publish(tree, target, prev_ref=f"docker://{target}:42-20261127")
        assert report["prev_ref"].endswith(found.digest)
        with pytest.raises(InputError, match=f"no image for {host_architecture()}, only for 's390x'"):
            publish(tree, target)

    def test_of_another_stream_of_versions_is_told(self, tree: Path, target: str) -> None:
        publish(tree, target)
        (tree / "usr/lib/os-release").write_text("VERSION_ID=41\n")
        told = Listener()
        assert publish(tree, target, progress=told)["version"] == "41-20261126"
        assert told.heard("version 41-20261126 is older than 42-20261126")

    def test_of_one_day_are_one_stream(self, tree: Path, target: str) -> None:
        told = Listener()
        versions = [publish(tree, target, progress=told)["version"] for _ in range(3)]
        assert versions == ["42-20261126", "42-20261126.1", "42-20261126.2"]
        assert not told.heard("is older than")

    def test_may_be_of_any_builder(self, tree: Path, target: str, tmp_path: Path) -> None:
        write_layout(tmp_path / "other", [pack(archive(file("usr/lib/other", b"x" * 999)), "gzip")], tag="1")
        copy = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
        subprocess.run([*copy, f"oci:{tmp_path}/other:1", f"docker://{target}:42-20261101"], check=True)
        told = Listener()
        report = publish(tree, target, progress=told)
        assert told.heard("1 of 1 layers have no table stored")
        assert not told.heard("no previous image")
        assert verified(target, report["version"], tree)


class TestTables:
    def test_of_kept_layers_are_not_sent_again(self, tree: Path, target: str) -> None:
        publish(tree, target)
        change(tree)
        publish(tree, target)
        before, after = _tables(target, "42-20261126"), _tables(target, "42-20261126.1")
        assert after.items() >= before.items()

    @pytest.mark.parametrize("damage", ["no manifest", "no blobs", "other bytes", "short", "another image's"])
    def test_that_are_damaged_are_made_anew(self, tree: Path, target: str, line: Line, damage: str) -> None:
        publish(tree, target)
        change(tree)
        publish(tree, target, version="1.0", fresh=True)
        artifact = image_at(target, "42-20261126").labels[LABEL]
        tables = [digest for digest, _ in _tables(target, "42-20261126").values()]
        if damage == "no manifest":
            line.fault("answer", path=f"manifests/{artifact}", status=404, times=ALWAYS)
        elif damage == "another image's":
            other = image_at(target, "1.0").labels[LABEL]
            with client(target) as opened:
                found = opened.manifest(other)
                assert found
            line.fault("answer", path=f"manifests/{artifact}", status=200, body=found.data, times=ALWAYS)
        for digest in tables:
            details: dict[str, Any] = {"path": f"blobs/{digest}", "method": "GET", "times": ALWAYS}
            if damage == "no blobs":
                line.fault("answer", status=404, **details)
            elif damage == "other bytes":
                line.fault("corrupt", **details)
            elif damage == "short":
                line.fault("answer", status=200, body=b"x", **details)
        told = Listener()
        report = publish(tree, target, progress=told)
        line.forget()
        assert told.heard("have no table stored")
        assert report["layers"]["kept"] > 0
        assert verified(target, report["version"], tree)

    def test_that_cannot_be_read_now_are_an_error(self, tree: Path, target: str, line: Line) -> None:
        publish(tree, target)
        line.fault("answer", path=image_at(target, "42-20261126").labels[LABEL], status=500, times=ALWAYS)
        with pytest.raises(RegistryUnavailable):
            publish(tree, target)

    def test_are_no_reason_to_read_layers(self, tree: Path, target: str) -> None:
        publish(tree, target)
        told = Listener()
        publish(tree, target, progress=told)
        assert not told.heard("no table")


class TestFinishedLayers:
    """Of an image without tables: an engine has them as files."""

    def test_are_published_with_a_record_alone(self, target: str, tmp_path: Path) -> None:
        here = pack(archive(file("a", b"1")))
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, self._writer(target, tmp_path) as writer:
            elsewhere = pack(archive(file("b", b"2")))
            places = {here: tmp_path / "layer", elsewhere: Path(memory, "layer")}
            assert places[here].parent.stat().st_dev != places[elsewhere].parent.stat().st_dev
            for layer, place in places.items():
                place.write_bytes(layer.data)
                writer.adopt(place, layer.blob.digest)
            assert not places[here].exists()  # moved: it was on the same file system
            assert places[elsewhere].exists()
            layers = [layer.blob for layer in places]
            meter = Meter()
            labels = writer.upload(layers, b"record", meter)
            assert meter.done == meter.total == sum(blob.size for blob in layers)
            config = {
                "architecture": host_architecture(),
                "config": {"Labels": labels},
                "rootfs": {"diff_ids": [blob.diff_id for blob in layers]},
            }
            stored = writer.store_json(config, CONFIG)
            manifest = image_manifest(stored, [(blob, {}) for blob in layers], {})
            assert writer.commit(writer.store_json(manifest, MANIFEST), "7") == f"{target}:7"
        assert versions_of(target) == {"7"}
        assert _tables(target, "7") == {}
        with client(target) as opened:
            image = published_image(opened, "7", host_architecture())
            assert image.blobs.record(digest_of(b"record")) == b"record"
        assert [blob.digest for blob in image_at(target, "7").layers] == [blob.digest for blob in layers]

    @contextlib.contextmanager
    def _writer(self, target: str, scratch: Path) -> Iterator[RegistryWriter]:
        with client(target) as opened, RegistryWriter(opened, (), scratch=scratch, notice=print) as writer:
            yield writer


class TestTheLimitOfAnUpdate:
    def test_holds_when_nothing_can_be_kept(self, tree: Path, target: str) -> None:
        publish(tree, target)
        for blob in image_at(target, "42-20261126").layers:
            with client(target) as opened:
                opened.session.request("DELETE", opened.path(f"blobs/{blob.digest}"), opened._push)
        told = Listener()
        with pytest.raises(TooLarge, match="costs users"):
            publish(tree, target, max_update_size=1000, progress=told)
        assert told.heard("layers: what is in them is written again")
        assert publish(tree, target, fresh=True, max_update_size=1000)["fresh"]


class TestALostLayer:
    def test_is_written_again(self, tree: Path, target: str) -> None:
        first = publish(tree, target)
        lost = image_at(target, "42-20261126").layers[0]
        with client(target) as opened:
            opened.session.request("DELETE", opened.path(f"blobs/{lost.digest}"), opened._push)
            assert not opened.has_blob(lost.digest, lost.size)
        report = publish(tree, target)
        assert [drop["reason"] for drop in report["dropped"]] == ["the registry does not have it any more"]
        assert report["layers"]["kept"] == first["layers"]["total"] - 1
        assert verified(target, report["version"], tree)

    def test_is_not_asked_for_by_a_build_into_a_layout(self, tree: Path, target: str, tmp_path: Path) -> None:
        publish(tree, target)
        lost = image_at(target, "42-20261126").layers[0]
        with client(target) as opened:
            opened.session.request("DELETE", opened.path(f"blobs/{lost.digest}"), opened._push)
        report = build(tree, f"oci:{tmp_path}/image", prev_ref=f"docker://{target}:42-20261126")
        assert report["layers"]["kept"] > 0
        assert verified_layout(tmp_path / "image", tree)


class TestTwoRunsAtOnce:
    def test_both_publish_and_the_second_says_so(self, tree: Path, target: str) -> None:
        publish(tree, target, tags=("latest",))
        other = tree.with_name("other")
        shutil.copytree(tree, other, symlinks=True)
        change(tree, "ours")
        change(other, "theirs")
        reports = []

        class Meanwhile(Listener):
            """Lets another run begin and end while this one is about to publish."""

            def phase(self, name: str, title: str, total: int | None = None) -> Any:
                if name == "verify":
                    reports.append(publish(other, target, tags=("latest",)))
                return super().phase(name, title, total)

        told = Meanwhile()
        report = publish(tree, target, tags=("latest",), progress=told)
        assert (reports[0]["version"], report["version"]) == ("42-20261126.1", "42-20261126.2")
        assert told.heard(f"{target}:latest was moved to {reports[0]['digest']} while this image was built")
        assert image_at(target, "latest").digest == report["digest"]
        assert verified(target, "42-20261126.1", other)
        assert verified(target, "42-20261126.2", tree)
        change(tree, "next")
        assert publish(tree, target)["prev_ref"].startswith(f"{target}:42-20261126.2@")

    @pytest.mark.parametrize("moment", ["PUT manifests/sha256:", "PUT manifests/latest"])
    def test_a_version_that_another_run_puts_is_left_to_it(
        self, tree: Path, target: str, line: Line, moment: str
    ) -> None:
        """Just before this run puts the same version, or just after."""
        publish(tree, target)
        change(tree)
        method, path = moment.split()
        appeared: list[str] = []
        with client(target) as opened:
            other = opened.manifest("42-20261126")
            assert other is not None

            def appear(exchange: Exchange) -> None:
                if (exchange.method, path in exchange.path, appeared) == (method, True, []):
                    appeared.append(opened.put_manifest("42-20261127", other.data, other.media_type))

            line.watch = appear
            report = publish(tree, target, tags=("latest",), now=_day(27))
        assert (report["version"], len(appeared)) == ("42-20261127.1", 1)
        assert image_at(target, "42-20261127").digest == other.digest
        for tag in ("42-20261127.1", "latest"):
            image = image_at(target, tag)
            assert (image.digest, image.labels["org.opencontainers.image.version"]) == (
                report["digest"],
                "42-20261127.1",
            )


class TestAccess:
    def test_to_a_registry_that_wants_tokens(self, tree: Path) -> None:
        with token_registry() as gate:
            target = f"{gate.host}/{NAME}"
            given = {"RECHUNK_USERNAME": USER, "RECHUNK_TOKEN": PASSWORD}
            for day in (26, 27):
                done = run(tree, target, given, "--version", f"42-202611{day}", "--tag", "latest")
                assert (done.returncode, PASSWORD in done.stdout + done.stderr) == (0, False)
                gate.revoke()
            refused = run(tree, target, given | {"RECHUNK_TOKEN": "wrong"})
            assert refused.returncode == RegistryError.exit_code
            assert f"denies pushing to {target} with the given credentials of '{USER}'" in refused.stderr
            denied = run(tree, target, {})
            assert denied.returncode == RegistryError.exit_code
            assert f"denies pushing to {target} with no credentials" in denied.stderr

    def test_a_token_that_expires_on_the_way_is_renewed(self, tree: Path) -> None:
        with token_registry() as gate:
            given = {"RECHUNK_USERNAME": USER, "RECHUNK_TOKEN": PASSWORD}
            gate.life = 0.05
            assert run(tree, f"{gate.host}/{NAME}", given).returncode == 0

    def test_who_may_not_push_leaves_nothing(self, tree: Path) -> None:
        with token_registry() as gate:
            assert run(tree, f"{gate.host}/{NAME}", {}).returncode == RegistryError.exit_code
        assert [path.name for path in tree.parent.iterdir()] == ["tree"]

    def test_of_another_registry_get_nothing_of_what_was_given(self, tree: Path) -> None:
        with token_registry(public=False) as other, token_registry() as gate:
            given = {"RECHUNK_USERNAME": USER, "RECHUNK_TOKEN": PASSWORD}
            run(tree, f"{gate.host}/{NAME}", given, "--repository", f"{other.host}/{NAME}")
            assert not [each for each in other.exchanges if "Basic" in each.headers.get("Authorization", "")]

    def test_who_may_not_push_knows_before_anything_is_built(self, tree: Path) -> None:
        with token_registry() as gate, pytest.raises(AccessDenied, match="denies pushing"):
            publish(tree.parent / "missing", f"{gate.host}/{NAME}")

    def test_credentials_are_for_the_registry_that_is_published_to(self, tree: Path) -> None:
        with token_registry(public=False) as other, token_registry() as gate:
            given = {"RECHUNK_USERNAME": USER, "RECHUNK_TOKEN": PASSWORD}
            done = run(tree, f"{gate.host}/{NAME}", given, "--prev-ref", f"docker://{other.host}/{NAME}:1")
            assert f"denies pulling from {other.host}/{NAME} with no credentials" in done.stderr
            assert not [each for each in other.exchanges if "Basic" in each.headers.get("Authorization", "")]


def run(tree: Path, target: str, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, to its end."""
    with start(tree, target, environment, *options) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(tree: Path, target: str, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rechunk_action", "build", f"dir:{tree}", f"docker://{target}", *options]
    known = {"PATH": "/usr/bin:/bin", "HOME": str(tree.parent), "TMPDIR": str(tree.parent)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, "--tls-verify=false"], env=known | environment, text=True, stdout=pipe, stderr=pipe
    )


PASSING = [
    Fault("hang up"),
    Fault("cut the request"),
    Fault("lose the answer"),
    Fault("cut the answer"),
    Fault("corrupt"),
    Fault("corrupt the request"),
    Fault("delay", seconds=0.05),
    Fault("answer", status=500),
    Fault("answer", status=429, headers={"Retry-After": "0"}),
    Fault("answer", status=404),
]

STAYING = [Fault("hang up"), Fault("lose the answer")]


class TestFaults:
    """Every request of a publish in turn goes wrong: no tag ever points at something incomplete, and the next run
    simply works.

    Without `--long`, each fault meets some of the requests, and each request some of the faults.
    """

    @pytest.fixture(autouse=True)
    def look_back_on_one_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The requests for another one would be the same."""
        monkeypatch.setattr(pipeline, "OLDER", 1)

    @pytest.fixture
    def every(self, request: pytest.FixtureRequest) -> int:
        return 1 if request.config.getoption("--long") else 3

    @pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind} {fault.status}")
    def test_that_pass(self, tree: Path, target: str, line: Line, fault: Fault, every: int) -> None:
        self.break_requests(tree, target, line, fault, count(1 + PASSING.index(fault) % every, every), once=True)

    @pytest.mark.parametrize("fault", STAYING, ids=lambda fault: fault.kind)
    def test_that_stay(self, tree: Path, target: str, line: Line, fault: Fault, every: int) -> None:
        """To the registry, a run that is killed is one that says nothing any more."""
        self.break_requests(tree, target, line, fault, count(1 + STAYING.index(fault) % every, every), once=False)

    @pytest.mark.parametrize(
        "step",
        ["blobs/uploads/.*digest=", "manifests/sha256-", "manifests/sha256:", "manifests/42-", "manifests/latest"],
    )
    def test_a_kill_leaves_tags_that_work(self, tree: Path, target: str, line: Line, step: str) -> None:
        publish(tree, target, tags=("latest",))
        change(tree)
        line.fault("delay", method="PUT", path=step, seconds=30)
        with start(tree, target, {}, "--tag", "latest") as process:
            while not line.asked("PUT", step):
                time.sleep(0.01)
            process.kill()
        line.forget()
        assert all(is_whole(target, tag) for tag in versions_of(target))
        report = publish(tree, target, tags=("latest",))
        assert (report["fresh"], image_at(target, "latest").digest) == (False, report["digest"])

    def test_a_cancel_does_not_wait_for_the_registry(self, tree: Path, target: str, line: Line) -> None:
        (tree / "large").write_bytes(os.urandom(6 << 20))
        line.fault("delay", method="HEAD", path="blobs/", seconds=5, times=ALWAYS)
        with start(tree, target, {}) as process:
            while not line.asked("HEAD", "blobs/"):
                time.sleep(0.01)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert (process.returncode, time.monotonic() - started < 3) == (130, True)
        assert "cancelled" in err

    def break_requests(
        self, tree: Path, target: str, line: Line, fault: Fault, numbers: Iterator[int], *, once: bool
    ) -> None:
        for part in range(1, 6):
            shutil.rmtree(tree / f"usr/lib/part{part}")
        publish(tree, target, tags=("latest",))
        whole: set[str] = set()
        for number in numbers:
            change(tree, f"{fault.kind} {number}")
            line.forget()
            if once:
                line.fault(fault.kind, at=number, status=fault.status, headers=fault.headers)
            else:
                line.break_at(number, fault)
            failed = False
            try:
                publish(tree, target, tags=("latest",))
            except (RegistryError, CorruptImage):
                failed = True
            reached = len(line.exchanges) >= number
            line.forget()
            for tag in {"latest", *(versions_of(target) - whole)}:
                assert is_whole(target, tag)
            whole |= versions_of(target)
            if failed:
                again = publish(tree, target, tags=("latest",))
                assert (again["fresh"], is_whole(target, again["version"])) == (False, True)
            if not reached:
                break
        assert number > 20
        assert verified(target, "latest", tree)


def is_whole(target: str, tag: str) -> bool:
    """Whether all that an image names is there."""
    with client(target) as opened:
        image = published_image(opened, tag, host_architecture())
        return all(opened.has_blob(blob.digest, blob.size) for blob in image.layers)


def _tables(target: str, tag: str) -> dict[str, tuple[str, int]]:
    """The stored tables of an image, digest and size by the layers' digests."""
    with client(target) as opened:
        blobs = published_image(opened, tag, host_architecture()).blobs
    assert isinstance(blobs, RegistryBlobs)
    return {layer: (table["digest"], table["size"]) for layer, table in blobs.tables.items()}


def _day(day: int) -> datetime:
    return datetime(2026, 11, day, tzinfo=UTC)
