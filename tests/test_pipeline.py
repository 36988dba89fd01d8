"""Whole builds: what they make of sources, and what they keep of previous images, whoever made those."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from rechunk_action.engines import layering
from rechunk_action.errors import CorruptImage, InputError, VerificationFailed
from rechunk_action.oci.image import Image, host_architecture
from rechunk_action.oci.layout import REF_NAME, read_image
from rechunk_action.oci.merge import Replay
from rechunk_action.oci.stage import TABLES, blob_path
from rechunk_action.plan.plain import Plan, plan_fresh
from rechunk_action.source.directory import DirectorySource
from rechunk_action.tree.scan import Hasher
from rechunk_action.verify import differences
from tests.building import build, new_layers, scanned, tables_of
from tests.oracles import overlay, scratch
from tests.support import (
    archive,
    as_nobody,
    directory,
    file,
    hardlink,
    listing,
    pack,
    symlink,
    write_blob,
    write_layout,
)
from tests.trees import CONTENTS

pytestmark = pytest.mark.usefixtures("small_components")

LONG_AGO = 1_600_000_000
OTHER = {"amd64": "arm64", "arm64": "amd64"}[host_architecture()]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small system."""
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "srv/empty").mkdir(mode=0o700, parents=True)
    (root / "etc/os-release").write_text("ID=small\n")
    (root / "usr/bin/tool").write_bytes(CONTENTS[4])
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "usr/bin/alias").hardlink_to(root / "usr/bin/tool")
    (root / "usr/data").write_bytes(CONTENTS[5])
    (root / "bin").symlink_to("usr/bin")
    os.setxattr(root / "usr/data", "user.mark", b"\0\xff")
    for place in root.rglob("*"):
        os.utime(place, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    return root


@pytest.fixture
def first(tree: Path) -> Path:
    """The image of that system."""
    layout = tree.parent / "image"
    build(tree, f"oci:{layout}:1")
    return layout


def change(tree: Path) -> None:
    (tree / "etc/os-release").write_text("ID=changed\n")
    (tree / "srv/empty").rmdir()


def check(layout: Path, tag: str | None, tree: Path) -> Image:
    """An image that merges to the tree."""
    with Hasher(1, lambda _: None) as hasher:
        source = scanned(DirectorySource(str(tree)), hasher)
        hasher.finish()
    assert differences(Replay(tables_of(layout, tag), source.tree)) == []
    return read_image(layout, tag)


def digests(image: Image) -> list[str]:
    return [blob.digest for blob in image.layers]


class TestFreshImages:
    def test_the_image_is_the_tree(self, tree: Path, first: Path) -> None:
        image = check(first, "1", tree)
        assert image.architecture == host_architecture()
        assert image.config["os"] == "linux"

    def test_config_and_history_count_the_layers(self, first: Path) -> None:
        image = read_image(first, "1")
        assert len(image.config["history"]) == len(image.config["rootfs"]["diff_ids"]) == len(image.layers)
        assert not any(entry.get("empty_layer") for entry in image.config["history"])

    def test_labels_tell_what_was_done_and_are_repeated_as_annotations(self, tree: Path, tmp_path: Path) -> None:
        report = build(tree, tmp_path / "image", version="42.1", labels=["a=b=c", "containers.bootc-", "none-"])
        image = read_image(tmp_path / "image", None)
        assert image.manifest["annotations"] == image.labels
        assert image.labels | {"rechunk.version": "", "rechunk.record": ""} == {
            "a": "b=c",
            "org.opencontainers.image.created": "2020-09-13T12:26:40Z",
            "org.opencontainers.image.version": "42.1",
            "rechunk.chunks": str(len(image.layers)),
            "rechunk.engine": "delta",
            "rechunk.record": "",
            "rechunk.version": "",
        }
        assert report["version"] == "42.1"

    def test_the_same_tree_gives_the_same_image(self, tree: Path, first: Path, tmp_path: Path) -> None:
        again = build(tree, tmp_path / "again", threads=1)
        assert again["digest"] == read_image(first, "1").digest

    def test_a_copy_gives_the_same_image_with_the_same_time(self, tree: Path, tmp_path: Path) -> None:
        one = build(tree, tmp_path / "one", created=LONG_AGO - 5)
        subprocess.run(["cp", "--archive", "--no-preserve=timestamps", tree, tmp_path / "copy"], check=True)
        os.remove(tmp_path / "copy/usr/bin/alias")
        (tmp_path / "copy/usr/bin/alias").hardlink_to(tmp_path / "copy/usr/bin/tool")
        assert build(tmp_path / "copy", tmp_path / "two", created=LONG_AGO - 5)["digest"] == one["digest"]

    def test_threads_do_not_change_a_large_layer(self, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/large").write_bytes(CONTENTS[5] * 500)
        images = [build(tmp_path / "tree", tmp_path / f"image{threads}", threads=threads) for threads in (1, 2, 3)]
        assert len({image["digest"] for image in images}) == 1

    def test_gzip_layers_have_one_member(self, tree: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "image", compression="gzip")
        image = read_image(tmp_path / "image", None)
        for blob in image.layers:
            assert blob.media_type == "application/vnd.oci.image.layer.v1.tar+gzip"
            decoder = zlib.decompressobj(wbits=31)
            decoder.decompress(blob_path(tmp_path / "image", blob.digest).read_bytes())
            assert (decoder.eof, decoder.unused_data) == (True, b"")

    def test_unverified_images_are_images_too(self, tree: Path, tmp_path: Path) -> None:
        report = build(tree, tmp_path / "image", verify=False)
        assert "verify" not in report["seconds"]
        check(tmp_path / "image", None, tree)

    def test_a_wrong_plan_is_not_published(self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def forgetful(*arguments: Any, **options: Any) -> Plan:
            return Plan(plan_fresh(*arguments, **options).layers[:-1])

        (tree / "usr/data").write_bytes(CONTENTS[5] * 200)  # large enough for a layer of its own
        monkeypatch.setattr(layering, "plan_fresh", forgetful)
        with pytest.raises(VerificationFailed, match="missing"):
            build(tree, tmp_path / "image")
        assert os.listdir(tmp_path) == ["tree"]

    def test_a_layout_takes_another_image_beside_the_first(self, tree: Path, first: Path) -> None:
        before = listing(first / "blobs")
        (tree / "new").write_text("x")
        build(tree, f"oci:{first}:2")
        assert before.items() <= listing(first / "blobs").items()
        check(first, "2", tree)
        tags = [
            entry["annotations"][REF_NAME] for entry in json.loads((first / "index.json").read_bytes())["manifests"]
        ]
        assert tags == ["1", "2"]


class TestUpdates:
    def test_layers_are_kept_byte_for_byte(self, tree: Path, first: Path, tmp_path: Path) -> None:
        change(tree)
        report = build(tree, tmp_path / "update", prev_ref=f"oci:{first}:1")
        old, new = read_image(first, "1"), check(tmp_path / "update", None, tree)
        assert digests(new)[: len(old.layers)] == digests(old)
        kept = {
            name: data for name, data in listing(first / "blobs/sha256").items() if f"sha256:{name}" in digests(old)
        }
        assert kept.items() <= listing(tmp_path / "update/blobs/sha256").items()
        assert report["layers"] == {"total": len(old.layers) + 1, "kept": len(old.layers), "new": 1}
        assert report["bytes"]["update"] == new.layers[-1].size

    def test_the_previous_image_is_named_by_digest(self, tree: Path, first: Path, tmp_path: Path) -> None:
        report = build(tree, tmp_path / "update", prev_ref=f"oci:{first}:1")
        pinned = f"oci:{first}:1@{read_image(first, '1').digest}"
        assert report["prev_ref"] == read_image(tmp_path / "update", None).labels["rechunk.prev-ref"] == pinned

    def test_an_unchanged_tree_costs_nothing(self, tree: Path, first: Path, tmp_path: Path) -> None:
        (tree / "usr/data").touch()
        report = build(tree, tmp_path / "update", prev_ref=f"oci:{first}:1")
        assert digests(read_image(tmp_path / "update", None)) == digests(read_image(first, "1"))
        assert (report["fresh"], report["bytes"]["update"], new_layers(report), report["dropped"]) == (False, 0, [], [])

    def test_kept_layers_keep_what_history_says_of_them(self, tree: Path, first: Path, tmp_path: Path) -> None:
        change(tree)
        build(tree, tmp_path / "update", prev_ref=f"oci:{first}:1")
        old, new = read_image(first, "1"), read_image(tmp_path / "update", None)
        comments = [[entry["comment"] for entry in image.config["history"]] for image in (old, new)]
        assert comments[1][: len(comments[0])] == comments[0]

    def test_what_is_dropped_is_not_in_the_output(self, tree: Path, first: Path, tmp_path: Path) -> None:
        (tree / "usr/data").write_bytes(CONTENTS[5][::-1])
        report = build(tree, tmp_path / "update", prev_ref=f"oci:{first}:1")
        assert report["dropped"]
        image = check(tmp_path / "update", None, tree)
        named = {*digests(image), image.digest, image.manifest["config"]["digest"]}
        assert {f"sha256:{name}" for name in os.listdir(tmp_path / "update/blobs/sha256")} == named

    @pytest.mark.parametrize(
        "damage", [shutil.rmtree, lambda tables: [path.write_bytes(b"x") for path in tables.iterdir()]]
    )
    def test_stored_tables_are_not_needed(self, tree: Path, first: Path, tmp_path: Path, damage: Any) -> None:
        change(tree)
        want = build(tree, tmp_path / "update", prev_ref=f"oci:{first}:1")
        damage(first / TABLES)
        assert build(tree, tmp_path / "again", prev_ref=f"oci:{first}:1")["digest"] == want["digest"]

    def test_updates_over_many_versions(self, tree: Path, first: Path) -> None:
        for number in range(2, 8):
            (tree / "usr/data").write_bytes(CONTENTS[5] + bytes([number]))
            (tree / f"usr/bin/tool{number}").write_bytes(CONTENTS[3])
            report = build(tree, f"oci:{first}:{number}", prev_ref=f"oci:{first}:{number - 1}", max_layers=4)
            assert report["layers"]["total"] <= 4
            check(first, str(number), tree)


class TestReasonsForFreshImages:
    def test_asked_for(self, tree: Path, first: Path, tmp_path: Path) -> None:
        report = build(tree, tmp_path / "anew", prev_ref=f"oci:{first}:1", fresh=True)
        assert (report["fresh"], report["reason"], report["prev_ref"]) == (True, "requested", None)
        assert "rechunk.prev-ref" not in read_image(tmp_path / "anew", None).labels

    def test_first_build(self, tree: Path, tmp_path: Path) -> None:
        report = build(tree, tmp_path / "image")
        assert (report["fresh"], report["reason"]) == (True, "first build")

    def test_an_ostree_chunked_image(self, tree: Path, tmp_path: Path) -> None:
        labels = {"config": {"Labels": {"ostree.final-diffid": "sha256:0", "ostree.commit": "0"}}}
        write_layout(tmp_path / "chunked", [pack(archive(file("x")))], config=labels)
        report = build(tree, tmp_path / "image", prev_ref=f"oci:{tmp_path / 'chunked'}", format="plain")
        assert (report["fresh"], report["reason"]) == (True, "the format changes from ostree to plain")

    def test_nothing_in_common(self, tree: Path, tmp_path: Path) -> None:
        write_layout(tmp_path / "other", [pack(archive(directory("./"), file("x", CONTENTS[3])))])
        report = build(tree, tmp_path / "image", prev_ref=f"oci:{tmp_path / 'other'}")
        assert (report["fresh"], report["layers"]["kept"]) == (True, 0)
        assert "previous image" in report["reason"]
        assert [drop["reason"] for drop in report["dropped"]] == ["nothing in it is live"]


class TestUnusablePreviousImages:
    def test_another_architecture(self, tree: Path, tmp_path: Path) -> None:
        write_layout(tmp_path / "other", [pack(archive(file("x")))], config={"architecture": OTHER})
        with pytest.raises(InputError, match=OTHER):
            build(tree, tmp_path / "image", prev_ref=f"oci:{tmp_path / 'other'}")
        assert sorted(os.listdir(tmp_path)) == ["other", "tree"]

    @pytest.mark.parametrize("with_tables", [True, False])
    @pytest.mark.parametrize(
        "damage",
        [
            lambda blob: os.truncate(blob, blob.stat().st_size // 2),
            lambda blob: blob.write_bytes(blob.read_bytes()[:-9] + b"corrupted"),
            lambda blob: blob.unlink(),
        ],
        ids=["truncated", "corrupted", "missing"],
    )
    def test_damaged_layers(self, tree: Path, first: Path, damage: Any, with_tables: bool) -> None:
        blob = read_image(first, "1").layers[0]
        damage(blob_path(first, blob.digest))
        if not with_tables:
            shutil.rmtree(first / TABLES)
        with pytest.raises(CorruptImage, match=blob.digest):
            build(tree, f"oci:{tree.parent / 'update'}", prev_ref=f"oci:{first}:1")
        assert sorted(os.listdir(tree.parent)) == ["image", "tree"]


class TestImagesAsSources:
    def test_the_result_is_that_of_the_tree(self, tree: Path, first: Path, tmp_path: Path) -> None:
        build(f"oci:{first}:1", tmp_path / "again")
        assert digests(check(tmp_path / "again", None, tree)) == digests(read_image(first, "1"))

    def test_an_update_is_that_of_the_tree(self, tree: Path, first: Path, tmp_path: Path) -> None:
        change(tree)
        build(tree, f"oci:{first}:fresh", fresh=True)
        build(tree, tmp_path / "from-tree", prev_ref=f"oci:{first}:1")
        build(f"oci:{first}:fresh", tmp_path / "from-image", prev_ref=f"oci:{first}:1")
        assert digests(read_image(tmp_path / "from-image", None)) == digests(check(tmp_path / "from-tree", None, tree))

    def test_its_config_is_taken_over(self, tmp_path: Path) -> None:
        run = {"Env": ["A=b"], "Entrypoint": ["/init"], "Labels": {"a": "b", "ostree.commit": "0", "rechunk.old": "x"}}
        config = {"config": run, "created": "2020-01-02T03:04:05.678Z", "author": "me", "variant": "v2"}
        write_layout(tmp_path / "built", [pack(archive(directory("usr"), file("usr/x", b"1")))], config=config)
        build(f"oci:{tmp_path / 'built'}", tmp_path / "image")
        image = read_image(tmp_path / "image", None)
        assert (image.config["config"]["Env"], image.config["config"]["Entrypoint"]) == (["A=b"], ["/init"])
        assert (image.config["author"], image.config["variant"]) == ("me", "v2")
        assert image.config["created"] == "2020-01-02T03:04:05Z"
        assert image.labels["a"] == "b"
        assert not {"ostree.commit", "rechunk.old"} & image.labels.keys()

    def test_no_rights_are_needed(self, tree: Path, first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first.parent.chmod(0o777)
        monkeypatch.chdir(first.parent)
        with as_nobody():
            build("oci:image:1", "oci:again")
        check(first.parent / "again", None, tree)


@pytest.mark.parametrize("layout", [lambda config: config, lambda config: [config]], ids=["podman", "docker"])
def test_inspect_output_serves_as_config(tree: Path, tmp_path: Path, layout: Any) -> None:
    inspected = {"Architecture": host_architecture(), "Os": "linux", "Config": {"Cmd": ["sh"], "Labels": {"a": "b"}}}
    (tmp_path / "inspect.json").write_text(json.dumps(layout(inspected)))
    build(tree, tmp_path / "image", config=tmp_path / "inspect.json")
    image = read_image(tmp_path / "image", None)
    assert image.config["config"]["Cmd"] == ["sh"]
    assert image.labels["a"] == "b"


@pytest.mark.parametrize("created", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-01-02T03:04:05Z"])
def test_the_time_of_the_config_is_that_of_the_image(tree: Path, tmp_path: Path, created: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "created": created}))
    build(tree, tmp_path / "image", config=tmp_path / "config.json")
    assert read_image(tmp_path / "image", None).config["created"] == created


class TestImagesOfOtherTools:
    """They are adopted: their layers are kept where clients agree about them."""

    def test_layers_without_parents_and_with_docker_types(self, tree: Path, tmp_path: Path) -> None:
        base = pack(
            archive(
                directory("usr"),
                directory("usr/bin"),
                file("usr/data", CONTENTS[5], xattrs={"user.mark": b"\0\xff"}),
                file("usr/old", b"1"),
                symlink("bin", "nowhere"),
            ),
            "gzip",
        )
        top = pack(
            archive(
                file("usr/.wh.old"),
                file("usr/bin/tool", CONTENTS[4], mode=0o4755),
                hardlink("usr/bin/alias", "usr/bin/tool"),
                file("etc/os-release", b"ID=old\n"),
            ),
            "gzip",
        )
        layout = write_layout(tmp_path / "docker", [base, top])
        rename_layer_types(layout, "application/vnd.docker.image.rootfs.diff.tar.gzip")
        report = build(tree, tmp_path / "image", prev_ref=f"oci:{layout}", max_overhead=1)
        image = check(tmp_path / "image", None, tree)
        assert report["layers"]["kept"] == 2
        assert {base.blob, top.blob} <= set(image.layers)

    def test_a_hard_link_into_another_layer_costs_that_layer(self, tree: Path, tmp_path: Path) -> None:
        base = pack(
            archive(directory("./"), directory("usr"), file("usr/data", CONTENTS[5], xattrs={"user.mark": b"\0\xff"}))
        )
        top = pack(archive(directory("usr"), hardlink("usr/more", "usr/data")))
        layout = write_layout(tmp_path / "docker", [base, top])
        report = build(tree, tmp_path / "image", prev_ref=f"oci:{layout}", max_overhead=1)
        check(tmp_path / "image", None, tree)
        assert [(drop["layer"], "hard link" in drop["reason"]) for drop in report["dropped"]] == [(1, True)]
        assert report["layers"]["kept"] == 1

    @pytest.mark.oracle
    def test_an_image_that_podman_built(self, tree: Path, tmp_path: Path) -> None:
        subprocess.run(["tar", "-C", tree, "--xattrs", "-cf", tmp_path / "tree.tar", "usr", "etc", "srv"], check=True)
        (tmp_path / "Containerfile").write_text(
            "FROM scratch\nADD tree.tar /\nCOPY tree/etc/os-release /etc/more\nLABEL a=b\n"
        )
        with scratch() as work:
            podman("build", "--quiet", "--layers", "--tag", "built", tmp_path, at=work)
            podman("push", "--quiet", "built", f"oci:{tmp_path / 'built'}:1", at=work)
        base = read_image(tmp_path / "built", "1")
        report = build(tree, tmp_path / "image", prev_ref=f"oci:{tmp_path / 'built'}:1")
        image = check(tmp_path / "image", None, tree)
        assert len(base.layers) == 2
        assert digests(base)[0] in digests(image)
        assert report["bytes"]["update"] < report["bytes"]["kept"]

    @pytest.mark.oracle
    def test_podman_takes_the_update(self, tree: Path, first: Path) -> None:
        change(tree)
        (tree / "usr").chmod(0o711)
        build(tree, f"oci:{first}:2", prev_ref=f"oci:{first}:1")
        with overlay.merged(first, "2") as merged:
            assert (merged / "etc/os-release").read_text() == "ID=changed\n"
            assert (merged / "usr").stat().st_mode & 0o7777 == 0o711
            assert not (merged / "srv/empty").exists()


def rename_layer_types(layout: Path, media_type: str) -> None:
    """Give all layers of a layout's one image another type."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(blob_path(layout, index["manifests"][0]["digest"]).read_bytes())
    for layer in manifest["layers"]:
        layer["mediaType"] = media_type
    packed = json.dumps(manifest).encode()
    index["manifests"][0] |= {"digest": write_blob(layout, packed), "size": len(packed)}
    (layout / "index.json").write_text(json.dumps(index))


def podman(*arguments: str | Path, at: Path) -> None:
    """Run podman with a storage of its own."""
    places = ("--root", at / "storage", "--runroot", at / "run", "--tmpdir", at / "tmp", "--storage-driver", "overlay")
    subprocess.run(["podman", *places, *arguments], check=True, stdout=subprocess.DEVNULL)
