"""Whole builds with OSTree chunks: what they make of trees, of images of other tools, and of what is damaged.

An image is always checked by what did not make it: its commit is rebuilt from its layers and compared with the prepared
source, and so is what containers show.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rechunk_action import inspection
from rechunk_action.engines import chunked as engine
from rechunk_action.engines.chunked import FIRST
from rechunk_action.errors import CorruptImage, InputError, TooLarge, VerificationFailed
from rechunk_action.oci.image import Image, Json, host_architecture
from rechunk_action.oci.layer import LayerPlan, Written
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.stage import TABLES, blob_path, table_path
from rechunk_action.oci.table import Table, decode_table, encode_table
from rechunk_action.ostree.chunk import FORMAT, read_chunk, read_commit_layer, write_chunk, write_commit_layer
from rechunk_action.ostree.chunked import Chunked, read_chunked
from rechunk_action.ostree.commit import LABEL, Committed, commit, prepare
from rechunk_action.ostree.objects import parse_commit
from rechunk_action.ostree.view import view_differences, view_path
from rechunk_action.registry.image import published_image
from rechunk_action.report import model
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.names import parse_name
from rechunk_action.tree.entry import Tree
from rechunk_action.tree.scan import MOUNTED_OVER, Hasher
from rechunk_action.verify import tree_differences
from tests.building import Listener, build, new_components, new_layers, places, scanned
from tests.faulty_proxy import FaultyProxy
from tests.oracles import compare, overlay, program, run, scratch
from tests.ostree_images import (
    Group,
    chunked_layers,
    commit_tree,
    object_name,
    three_chunks,
    write_chunked,
    write_image,
)
from tests.policies import CONTEXTS, POLICY, USR_ETC, add_policy
from tests.rechunker.image import chunked as stand_in
from tests.rechunker.image.repository import Commit as StandInCommit
from tests.registries import plain_registry, repository
from tests.support import Item, directory, file, hardlink, listing
from tests.trees import CAPABILITY, CONTENTS, Files, Node, generations, write

pytestmark = pytest.mark.usefixtures("small_components")

LINUX = "6.1.0-test"
KERNEL = f"usr/lib/modules/{LINUX}/vmlinuz"
LONG_AGO = 1_600_000_000
PLAN = "dev.hhd.rechunk.info"
VERSION = "org.opencontainers.image.version"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


@pytest.fixture(scope="module")
def system(place: Path) -> Path:
    """A system with some of everything, and a policy. Nobody changes it."""
    root = place / "system"
    for path in (
        "usr/bin",
        f"usr/lib/modules/{LINUX}",
        "usr/lib/tool",
        "usr/share/doc",
        "etc/ssh",
        "opt",
        *MOUNTED_OVER,
    ):
        (root / path).mkdir(parents=True)
    (root / KERNEL).write_bytes(CONTENTS[5][::-1])
    (root / "usr/lib/os-release").write_text('ID=small\nVERSION_ID="42"\n')
    for number, name in enumerate(("one", "two", "three", "four")):
        (root / f"usr/bin/{name}").write_bytes(bytes([number]) + CONTENTS[4])
        (root / f"usr/share/doc/{name}").write_bytes(CONTENTS[3] + bytes([number]))
    (root / "usr/bin/one").chmod(0o4755)
    (root / "usr/lib/hard").hardlink_to(root / "usr/bin/two")
    os.setxattr(root / "usr/bin/three", "security.capability", CAPABILITY)
    (root / "usr/bin/sh").symlink_to("one")
    for name in ("same", "same-too"):
        (root / f"usr/lib/tool/{name}").write_bytes(CONTENTS[3])
    (root / "usr/lib/tool/empty").touch(0o644)
    (root / "usr/lib/tool/empty-too").touch(0o644)
    (root / "etc/subuid").touch(0o644)
    (root / "etc/passwd").write_text("root")
    (root / "etc/ssh/config").write_text("Port 22")
    (root / "etc/ssh").chmod(0o700)
    (root / "tmp").chmod(0o1777)
    os.chown(root / "opt", 7, 8)
    add_policy(root)
    for found in root.rglob("*"):
        os.utime(found, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    return root


@pytest.fixture
def tree(system: Path, place: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A copy to change."""
    root = Path(place, f"copy-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}")
    run("/bin/cp", "--archive", system, root)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def first(system: Path, place: Path) -> Path:
    """The image of the system, made by us."""
    build(system, f"oci:{place / 'first'}:1", format="ostree")
    return place / "first"


def update(tree: Path, previous: Path | str, output: Path | str, **options: Any) -> Json:
    """An update in the format of the previous image."""
    prev_ref = previous if isinstance(previous, str) else f"oci:{previous}"
    return build(tree, output, prev_ref=prev_ref, **options)


def prepared(root: Path) -> Tree:
    with Hasher(1, lambda _: None) as hasher:
        source = scanned(DirectorySource(str(root)), hasher)
        hasher.finish()
    return prepare(source.tree)[0]


def check(layout: Path, tag: str | None, root: Path) -> Image:
    """An image that is the tree, for importers and for containers."""
    image = read_image(layout, tag)
    check_image(image, prepared(root))
    return image


def check_image(image: Image, tree: Tree) -> Chunked:
    chunked = read_chunked(image, threads=1)
    assert tree_differences({view_path(path): entry for path, entry in chunked.tree().items()}, tree) == []
    assert view_differences(image, chunked.tree(), threads=1) == []
    diff_ids = [blob.diff_id for blob in image.layers]
    assert len(set(diff_ids)) == len(diff_ids) == len(image.config["history"])
    assert image.labels["ostree.final-diffid"] == diff_ids[-1]
    assert image.labels["ostree.commit"] == chunked.checksum.hex()
    assert image.manifest["annotations"] == image.labels
    return chunked


def chunks_of(layout: Path, tag: str | None = None) -> list[str]:
    """The digests of all layers but the first."""
    return [blob.digest for blob in read_image(layout, tag).layers[1:]]


def blobs_of(layout: Path, tag: str | None = None) -> dict[str, bytes]:
    """The layers, byte for byte, by their digests."""
    return {blob.digest: blob_path(layout, blob.digest).read_bytes() for blob in read_image(layout, tag).layers}


def tables_of(layout: Path, tag: str | None = None) -> list[Table]:
    """The tables of the chunks, read from the blobs."""
    image = read_image(layout, tag)
    with image.open(image.layers[0]) as opened:
        paths = read_commit_layer(opened, image.layers[0], limit=None).paths()
    tables = []
    for blob in image.layers[1:]:
        with image.open(blob) as opened:
            tables.append(read_chunk(opened, blob, limit=None, empty=paths))
    return tables


def unpack_repository(layout: Path, tag: str | None, root: Path) -> Path:
    """The repository that importers fill from an image's layers."""
    for blob in read_image(layout, tag).layers:
        data = blob_path(layout, blob.digest).read_bytes()
        unpacked = gzip.decompress(data) if blob.media_type.endswith("gzip") else decompress(data)
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as layer:
            for member in layer:
                if member.name.startswith("sysroot/ostree/"):
                    layer.extract(member, root, numeric_owner=True, filter="fully_trusted")
    return root / "sysroot/ostree/repo"


def decompress(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def assert_ostree_takes(layout: Path, tag: str | None, tree: Path, work: Path) -> None:
    """Real OSTree finds every object, and checks out the tree."""
    ostree = program("ostree", "ostree")
    commit = read_image(layout, tag).labels["ostree.commit"]
    repo, bare = unpack_repository(layout, tag, work / "unpacked"), work / "bare"
    assert "no errors" in run(ostree, f"--repo={repo}", "fsck", "--add-tombstones")
    run(ostree, f"--repo={bare}", "init", "--mode=bare")
    run(ostree, f"--repo={bare}", "pull-local", repo, commit)
    assert "no errors" in run(ostree, f"--repo={bare}", "fsck")
    run(ostree, f"--repo={bare}", "checkout", commit, work / "checkout")
    (work / "checkout/usr/etc").rename(work / "checkout/etc")
    assert compare.differences(tree, work / "checkout", hardlinks=False, root=True) == []


def commit_really(root: Path, work: Path, *options: str) -> tuple[Path, str]:
    """The repository and the commit that real `ostree` makes of a tree with the test's policy."""
    copy, policy = work / "committed", work / "policy"
    run("/bin/cp", "--archive", root, copy)
    (copy / "etc").rename(copy / "usr/etc")
    add_policy(policy, USR_ETC)
    repo = work / "repo"
    commit = commit_tree(repo, copy, "--no-bindings", f"--selinux-policy={policy}", *options)
    for stored in (repo / "objects").rglob("*.file"):
        mode = int.from_bytes(os.getxattr(stored, "user.ostreemeta")[8:12], "big")
        if mode >> 12 == 0o12:  # some versions of OSTree store a target with a zero byte behind
            stored.write_bytes(stored.read_bytes().rstrip(b"\0"))
    return repo, commit


@pytest.fixture(scope="module")
def repo(system: Path, place: Path) -> tuple[Path, str]:
    """OSTree's own repository with the system, and the commit."""
    (place / "ostree").mkdir()
    return commit_really(system, place / "ostree")


# What changes


def edit_remove(root: Path) -> None:
    (root / "usr/bin/four").unlink()
    shutil.rmtree(root / "usr/share/doc")


def edit_rename(root: Path) -> None:
    (root / "usr/bin/four").rename(root / "usr/bin/fourth")
    (root / "usr/share/doc").rename(root / "usr/share/docs")


def edit_file_to_directory(root: Path) -> None:
    (root / "usr/bin/four").unlink()
    (root / "usr/bin/four/below").mkdir(parents=True)
    (root / "usr/bin/four/below/file").write_text("x")


def edit_directory_to_file(root: Path) -> None:
    shutil.rmtree(root / "usr/share/doc")
    (root / "usr/share/doc").write_text("no directory")
    shutil.rmtree(root / "etc/ssh")
    (root / "etc/ssh").symlink_to("nowhere")


def edit_swap_links_and_files(root: Path) -> None:
    (root / "usr/bin/sh").unlink()
    (root / "usr/bin/sh").write_text("a shell")
    (root / "usr/bin/four").unlink()
    (root / "usr/bin/four").symlink_to("one")


def edit_link_to_directory(root: Path) -> None:
    (root / "usr/bin/sh").unlink()
    (root / "usr/bin/sh").mkdir()
    (root / "usr/bin/sh/ell").touch()


def edit_owner(root: Path) -> None:
    os.chown(root / "usr/bin/two", 3_000_000_000, 2_100_000)
    os.chown(root / "usr/bin/sh", 1, 2, follow_symlinks=False)


def edit_mode(root: Path) -> None:
    (root / "usr/bin/two").chmod(0o6711)
    (root / "etc/passwd").chmod(0)


def edit_attributes(root: Path) -> None:
    os.removexattr(root / "usr/bin/three", "security.capability")
    os.setxattr(root / "usr/bin/two", "security.capability", CAPABILITY)


def edit_labels(root: Path) -> None:
    (root / f"{CONTEXTS}.local").write_text("/usr/bin/two -- system_u:object_r:new_t:s0\n")


def edit_directories(root: Path) -> None:
    (root / "usr/share").chmod(0o711)
    os.chown(root / "etc/ssh", 5, 6)
    os.setxattr(root / "usr/lib/tool", "security.capability", CAPABILITY)
    (root / "usr/share/empty").mkdir()
    (root / "opt").rmdir()


def edit_sysroot(root: Path) -> None:
    (root / "sysroot").chmod(0o711)
    os.chown(root / "sysroot", 3, 4)
    (root / ".").chmod(0o711)


def edit_empty_files(root: Path) -> None:
    (root / "usr/lib/tool/empty").chmod(0o600)
    (root / "usr/lib/tool/empty-too").write_text("not empty")
    (root / "etc/passwd").write_text("")
    (root / "etc/subgid").touch()


def edit_hard_links(root: Path) -> None:
    (root / "usr/lib/hard").unlink()
    (root / "usr/lib/hard").hardlink_to(root / "usr/bin/one")
    (root / "usr/lib/more").hardlink_to(root / "usr/bin/two")


def edit_copies(root: Path) -> None:
    """What a kept chunk has is needed elsewhere, too."""
    (root / "usr/copy").write_bytes((root / "usr/bin/two").read_bytes())
    (root / "usr/copy").chmod(0o644)
    (root / "usr/lib/tool/same").unlink()


def edit_etc(root: Path) -> None:
    (root / "etc").rename(root / "usr/etc")


def edit_more(root: Path) -> None:
    (root / "usr/new").mkdir()
    for number in range(40):
        (root / f"usr/new/{number}").write_bytes(CONTENTS[3][number:])
    long = root / "usr/new" / ("ü" * 100) / ("n" * 200)
    long.mkdir(parents=True)
    (long / "line\nbreak").write_text("x")
    (long / "link").symlink_to("y" * 300)


def edit_nearly_all(root: Path) -> None:
    for path in (*(root / "usr/bin").iterdir(), *(root / "usr/share/doc").iterdir()):
        path.unlink()
        path.write_bytes(path.name.encode() * 5000)


EDITS = (
    *(edit_remove, edit_rename, edit_file_to_directory, edit_directory_to_file, edit_swap_links_and_files),
    *(edit_link_to_directory, edit_owner, edit_mode, edit_attributes, edit_labels, edit_directories, edit_sysroot),
    *(edit_empty_files, edit_hard_links, edit_copies, edit_etc, edit_more, edit_nearly_all),
)

by_name = attrgetter("__name__")


class TestUpdates:
    """Of an image of ours."""

    @pytest.mark.parametrize("edit", EDITS, ids=by_name)
    def test_are_the_tree(self, tree: Path, first: Path, tmp_path: Path, edit: Callable[[Path], None]) -> None:
        edit(tree)
        report = update(tree, f"oci:{first}:1", f"oci:{tmp_path}/image:2", max_overhead=1)
        check(tmp_path / "image", "2", tree)
        assert not report["fresh"]
        before, after = blobs_of(first, "1"), blobs_of(tmp_path / "image", "2")
        kept = before.items() & after.items()
        assert len(kept) == report["layers"]["kept"] > 0
        again = update(tree, f"oci:{tmp_path}/image:2", f"oci:{tmp_path}/image:3", max_overhead=1)
        assert chunks_of(tmp_path / "image", "3") == chunks_of(tmp_path / "image", "2")
        assert again["dropped"] == []

    @pytest.mark.oracle
    @pytest.mark.parametrize("edit", [edit_remove, edit_file_to_directory, edit_directory_to_file], ids=by_name)
    def test_are_the_tree_in_containers(
        self, tree: Path, first: Path, tmp_path: Path, edit: Callable[[Path], None]
    ) -> None:
        edit(tree)
        update(tree, f"oci:{first}:1", f"oci:{tmp_path}/image:2", max_overhead=1)
        with overlay.merged(tmp_path / "image", "2") as merged:
            assert compare.differences(tree, merged, hardlinks=False) == []

    @pytest.mark.oracle
    def test_are_taken_by_ostree_and_skopeo(self, tree: Path, first: Path, place: Path, tmp_path: Path) -> None:
        layout, previous = tmp_path / "image", f"oci:{first}:1"
        for number, edit in enumerate((edit_rename, edit_owner, edit_directories, edit_copies, edit_empty_files)):
            edit(tree)
            update(tree, previous, f"oci:{layout}:{number}", max_overhead=1)
            previous = f"oci:{layout}:{number}"
        run(program("skopeo", "skopeo"), "--insecure-policy", "copy", "--quiet", previous, f"oci:{tmp_path}/copy")
        assert read_image(tmp_path / "copy", None).digest == read_image(layout, "4").digest
        (place / "taken").mkdir()
        assert_ostree_takes(layout, "4", tree, place / "taken")

    @pytest.mark.oracle
    def test_are_the_commit_that_ostree_makes(self, tree: Path, first: Path, place: Path, tmp_path: Path) -> None:
        edit_mode(tree)
        edit_hard_links(tree)
        update(tree, f"oci:{first}:1", f"oci:{tmp_path}/image:2")
        (place / "really").mkdir()
        repo, commit = commit_really(tree, place / "really")
        real = parse_commit((repo / f"objects/{commit[:2]}/{commit[2:]}.commit").read_bytes())
        assert read_chunked(read_image(tmp_path / "image", "2"), threads=1).commit == real

    def test_of_nothing_have_the_same_layers(self, tree: Path, first: Path, tmp_path: Path) -> None:
        report = update(tree, f"oci:{first}:1", tmp_path / "image")
        assert read_image(tmp_path / "image", None).layers == read_image(first, "1").layers
        assert (report["layers"]["new"], report["bytes"]["update"], new_components(report)) == (0, 0, {})

    def test_of_the_time_alone_have_a_new_first_layer(self, tree: Path, first: Path, tmp_path: Path) -> None:
        report = update(tree, f"oci:{first}:1", tmp_path / "image", created=LONG_AGO + 1, version="2")
        assert chunks_of(tmp_path / "image") == chunks_of(first, "1")
        layer = read_image(tmp_path / "image", None).layers[0]
        assert [(new["name"], new["digest"], new["bytes"]) for new in new_layers(report)] == [
            (FIRST, layer.digest, layer.size)
        ]
        assert report["layers"]["new"] == 1
        assert new_components(report) == {FIRST: layer.size}
        assert report["bytes"]["update"] == layer.size

    def test_send_a_renamed_file_again(self, tree: Path, first: Path, tmp_path: Path) -> None:
        """For importers it need not be, but a hard link cannot lead into another layer."""
        (tree / "etc/passwd").rename(tree / "etc/users")
        update(tree, f"oci:{first}:1", tmp_path / "image", max_overhead=1)
        layers = read_chunked(read_image(tmp_path / "image", None), threads=1).layers
        assert len(layers[-1]) == 1
        assert any(layers[-1].keys() <= layer.keys() for layer in layers[:-1])
        assert tables_of(tmp_path / "image")[-1].whiteouts == ["etc/passwd"]

    def test_drop_a_chunk_that_dies(self, tree: Path, first: Path, tmp_path: Path) -> None:
        big = tree / "usr/lib/big"
        big.write_bytes(CONTENTS[5] + CONTENTS[4])
        update(tree, f"oci:{first}:1", f"oci:{tmp_path}/image:2")
        (alone,) = set(chunks_of(tmp_path / "image", "2")) - set(chunks_of(first, "1"))
        big.write_bytes((CONTENTS[5] + CONTENTS[4])[::-1])
        report = update(tree, f"oci:{tmp_path}/image:2", f"oci:{tmp_path}/image:3")
        at = [blob.digest for blob in read_image(tmp_path / "image", "2").layers].index(alone)
        assert [(drop["layer"], drop["reason"]) for drop in report["dropped"]] == [(at, "nothing in it is live")]
        check(tmp_path / "image", "3", tree)

    @pytest.mark.parametrize("max_overhead", [0, 0.05, 0.5])
    def test_keep_the_budget(self, tree: Path, first: Path, tmp_path: Path, max_overhead: float) -> None:
        previous = f"oci:{first}:1"
        for number in range(2, 6):
            (tree / f"usr/bin/{['one', 'two', 'three', 'four'][number - 2]}").write_bytes(CONTENTS[4][number:])
            output = f"oci:{tmp_path}/image:{number}"
            report = update(tree, previous, output, max_overhead=max_overhead)
            previous = output
            check(tmp_path / "image", str(number), tree)
            assert report["bytes"]["dead"] <= max_overhead * report["bytes"]["live"]

    @pytest.mark.parametrize("max_layers", [3, 4, 6])
    def test_keep_the_limit_of_layers(self, tree: Path, first: Path, tmp_path: Path, max_layers: int) -> None:
        previous = f"oci:{first}:1"
        for number in range(2, 6):
            (tree / f"usr/lib/new{number}").write_bytes(CONTENTS[4][number:])
            output = f"oci:{tmp_path}/image:{number}"
            report = update(tree, previous, output, max_layers=max_layers, max_overhead=1)
            previous = output
            assert report["layers"]["total"] == len(check(tmp_path / "image", str(number), tree).layers) <= max_layers
        build(tree, tmp_path / "fresh", format="ostree", max_layers=max_layers)
        assert len(check(tmp_path / "fresh", None, tree).layers) <= max_layers

    def test_that_cost_too_much_say_what_of_it(self, tree: Path, first: Path, tmp_path: Path) -> None:
        edit_nearly_all(tree)
        (tree / "usr/lib/big").write_bytes(CONTENTS[5])
        with pytest.raises(TooLarge, match=r"the most of it is /usr/lib/big \("):
            update(tree, f"oci:{first}:1", tmp_path / "image", max_update_size=1000)
        assert os.listdir(tmp_path) == []


class TestFreshImages:
    def test_are_the_tree(self, system: Path, first: Path) -> None:
        check(first, "1", system)

    def test_have_an_object_once(self, tree: Path, tmp_path: Path) -> None:
        """Whatever components its paths belong to."""
        for name in ("a", "b"):
            (tree / "usr/lib" / name).mkdir()
            (tree / "usr/lib" / name / "same").write_bytes(CONTENTS[4])
            os.setxattr(tree / "usr/lib" / name, "user.component", name.encode())
        build(tree, tmp_path / "image", format="ostree")
        layers = read_chunked(read_image(tmp_path / "image", None), threads=1).layers
        objects = [checksum for layer in layers for checksum in layer]
        assert len(objects) == len(set(objects))

    def test_are_the_same_for_the_same_tree(self, tree: Path, first: Path, tmp_path: Path) -> None:
        again = build(tree, tmp_path / "again", format="ostree", threads=1)
        assert again["digest"] == read_image(first, "1").digest

    def test_are_the_same_from_an_image(self, tree: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "plain")
        build(f"oci:{tmp_path}/plain", tmp_path / "image", format="ostree", created=LONG_AGO)
        build(tree, tmp_path / "want", format="ostree", created=LONG_AGO)
        assert read_image(tmp_path / "image", None).layers == read_image(tmp_path / "want", None).layers

    def test_may_be_gzip(self, tree: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "image", format="ostree", compression="gzip")
        assert {blob.media_type.rpartition("+")[2] for blob in check(tmp_path / "image", None, tree).layers} == {"gzip"}

    def test_are_of_the_previous_format_unless_another_is_asked_for(
        self, tree: Path, first: Path, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"prev_ref": f"oci:{first}:1", "fresh": True}
        assert build(tree, tmp_path / "auto", **options)["reason"] == "requested"
        check(tmp_path / "auto", None, tree)
        build(tree, tmp_path / "plain", **options, format="plain")
        assert not {"ostree.final-diffid", "ostree.commit"} & read_image(tmp_path / "plain", None).labels.keys()

    @pytest.mark.parametrize(("was", "becomes"), [("plain", "ostree"), ("ostree", "plain")])
    def test_change_the_format_with_a_notice(self, tree: Path, tmp_path: Path, was: str, becomes: str) -> None:
        build(tree, f"oci:{tmp_path}/image:1", format=was)
        told = Listener()
        report = update(tree, f"oci:{tmp_path}/image:1", f"oci:{tmp_path}/image:2", format=becomes, progress=told)
        assert (report["fresh"], report["reason"]) == (True, f"the format changes from {was} to {becomes}")
        assert told.heard(f"the format changes from {was} to {becomes}: every user downloads the whole image once")
        assert ("ostree.commit" in read_image(tmp_path / "image", "2").labels) == (becomes == "ostree")

    def test_are_plain_where_nothing_was(self, tree: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "image")
        assert "ostree.commit" not in read_image(tmp_path / "image", None).labels

    def test_of_any_time(self, tree: Path, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"config": {}, "created": "0001-01-01T00:00:00Z"}))
        build(tree, tmp_path / "image", format="ostree", config=tmp_path / "config.json")
        assert check(tmp_path / "image", None, tree).config["created"] == "0001-01-01T00:00:00Z"


def by_directory(checksum: str, paths: Sequence[str]) -> int:
    del checksum
    return sum(map(ord, paths[0].rpartition("/")[0])) % 5


def one_chunk(checksum: str, paths: Sequence[str]) -> int:
    del checksum, paths
    return 0


class TestImagesOfOtherTools:
    """They are adopted: their chunks stay byte for byte."""

    @pytest.mark.parametrize("group", [one_chunk, three_chunks, by_directory])
    @pytest.mark.parametrize(("parents", "own_xattrs"), [(False, False), (True, False), (True, True)])
    def test_are_updated(
        self, tree: Path, repo: tuple[Path, str], tmp_path: Path, group: Group, *, parents: bool, own_xattrs: bool
    ) -> None:
        layout = write_chunked(*repo, tmp_path / "image", group=group, parents=parents, own_xattrs=own_xattrs)
        theirs, before = chunks_of(layout, "latest"), blobs_of(layout, "latest")
        edits = (lambda _: None, edit_swap_links_and_files, edit_copies, edit_remove)
        previous = "latest"
        for number, edit in enumerate(edits):
            edit(tree)
            report = update(tree, f"oci:{layout}:{previous}", f"oci:{layout}:{number}", max_overhead=1)
            image = check(layout, str(number), tree)
            previous = str(number)
            assert [blob.digest for blob in image.layers[1:]][: len(theirs)] == theirs
            assert report["layers"]["kept"] >= len(theirs)
            assert before.items() >= blobs_of(layout, "latest").items()
        # The tree was theirs before, but for the root directory (and others), which their chunks do not state.
        assert tables_of(layout, "0")[-1].entries.keys() >= {""}
        assert len(chunks_of(layout, "0")) == len(theirs) + 1

    @pytest.mark.oracle
    @pytest.mark.parametrize("parents", [False, True])
    def test_are_updated_for_real_clients(
        self, tree: Path, repo: tuple[Path, str], place: Path, tmp_path: Path, *, parents: bool
    ) -> None:
        layout = write_chunked(*repo, tmp_path / "image", group=by_directory, parents=parents)
        previous = "latest"
        for number, edit in enumerate((edit_directory_to_file, edit_rename, edit_owner)):
            edit(tree)
            update(tree, f"oci:{layout}:{previous}", f"oci:{layout}:{number}", max_overhead=1)
            previous = str(number)
        with overlay.merged(layout, previous) as merged:
            assert compare.differences(tree, merged, hardlinks=False) == []
        work = place / f"taken-{parents}"
        work.mkdir()
        assert_ostree_takes(layout, previous, tree, work)

    def test_of_the_rechunker_are_updated(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        made = StandInCommit(repo[0], "main")
        plan = stand_in.Plan({name: "ab"[int(name, 16) % 2] for name in made.content}, {"a": "bash", "b": "sudo,git"})
        layout = tmp_path / "image"
        given = {PLAN: "{}", "from.the.base": "no"}
        stand_in.write_image(made, plan, layout, tag="latest", labels=given, created="2024-01-01T00:00:00Z", level=1)
        *theirs, reserved = chunks_of(layout, "latest")
        told, previous = Listener(), "latest"
        for number, edit in enumerate((edit_mode, edit_more, edit_etc)):
            edit(tree)
            report = update(tree, f"oci:{layout}:{previous}", f"oci:{layout}:{number}", max_overhead=1, progress=told)
            previous = str(number)
            image = check(layout, previous, tree)
            assert chunks_of(layout, previous)[:2] == theirs
            assert reserved not in chunks_of(layout, previous)
            assert PLAN not in image.labels
            assert not report["fresh"]
        names = [entry["comment"] for entry in read_image(layout, previous).config["history"]]
        assert names[:3] == [FIRST, "a", "b"]
        assert len([notice for notice in told.notices if PLAN in notice]) == 1

    def test_lose_a_layer_that_is_there_twice(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        """It must not become the last chunk, which is the first layer that has its diff ID."""
        first, most, four = chunked_layers(*repo, group=lambda _, paths: int("usr/bin/four" in paths), parents=True)
        empty = [directory("./"), *skeleton_of(most)]
        layout = write_image(tmp_path / "image", [first, most, empty, empty, four], repo[1])
        (tree / "usr/bin/four").unlink()
        report = update(tree, f"oci:{layout}:latest", f"oci:{layout}:2", max_overhead=1)
        image = check(layout, "2", tree)
        assert [(drop["layer"], drop["reason"]) for drop in report["dropped"]] == [
            (2, "a later layer is the same"),
            (4, "nothing in it is live"),
        ]
        assert chunks_of(layout, "latest")[:3:2] == [blob.digest for blob in image.layers[1:3]]

    def test_lose_layers_of_a_container_build(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        built_on = [
            [file("usr/bin/added", CONTENTS[3]), file("etc/passwd", b"other")],
            [file("usr/bin/.wh.four")],
        ]
        layout = write_image(tmp_path / "image", [*chunked_layers(*repo, parents=True), *built_on], repo[1], final=-3)
        theirs = chunks_of(layout, "latest")
        (tree / "usr/bin/added").write_bytes(CONTENTS[3])
        (tree / "etc/passwd").write_text("other")
        (tree / "usr/bin/four").unlink()
        told = Listener()
        report = update(tree, f"oci:{layout}:latest", f"oci:{layout}:2", max_overhead=1, progress=told)
        check(layout, "2", tree)
        assert told.heard("has 2 layers of a container build on its chunks: what is in there is written anew")
        assert chunks_of(layout, "2")[:3] == theirs[:3]
        assert not set(theirs[3:]) & set(chunks_of(layout, "2"))
        assert report["layers"]["kept"] == 3

    def test_without_chunks_are_replaced(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        """As `ostree container encapsulate` has made them at first: all in one layer."""
        first, chunk = chunked_layers(*repo, group=one_chunk)
        objects = chunk[len(skeleton_of(chunk)) :]
        layout = write_image(tmp_path / "image", [[*first, *objects]], repo[1])
        report = update(tree, f"oci:{layout}:latest", f"oci:{layout}:2")
        assert (report["fresh"], report["reason"]) == (True, "nothing of the previous image can be kept")
        check(layout, "2", tree)


def skeleton_of(chunk: Sequence[Item]) -> list[Item]:
    """What is not for an object."""
    return list(itertools.takewhile(lambda item: ".file" not in item.info.name, chunk))


class TestDamagedPreviousImages:
    def damaged(self, repo: tuple[Path, str], layout: Path, change: Callable[[list[Item]], list[Item]]) -> Path:
        first, chunk = chunked_layers(*repo, group=one_chunk, parents=True)
        return write_image(layout, [first, change(chunk)], repo[1])

    def test_without_an_object_and_its_path(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        (lost,) = self.checksums(repo, "usr/bin/four")

        def change(chunk: list[Item]) -> list[Item]:
            names = [object_name(lost, kind) for kind in ("file", "file-xattrs-link")]
            return [item for item in chunk if item.info.name not in (*names, "usr/bin/four")]

        layout = self.damaged(repo, tmp_path / "image", change)
        with pytest.raises(CorruptImage, match="which no layer holds"):
            read_chunked(read_image(layout, "latest"), threads=1)
        report = update(tree, f"oci:{layout}:latest", f"oci:{layout}:2")
        assert report["layers"]["kept"] == 1
        check(layout, "2", tree)

    def test_with_a_path_that_shows_no_object(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        (lost,) = self.checksums(repo, "usr/bin/four")

        def change(chunk: list[Item]) -> list[Item]:
            names = [object_name(lost, kind) for kind in ("file", "file-xattrs-link")]
            return [item for item in chunk if item.info.name not in names]

        layout = self.damaged(repo, tmp_path / "image", change)
        report = update(tree, f"oci:{layout}:latest", f"oci:{layout}:2")
        assert (report["fresh"], report["layers"]["kept"]) == (True, 0)
        assert [drop["layer"] for drop in report["dropped"]] == [1]
        assert "is a hard link to" in report["dropped"][0]["reason"]
        check(layout, "2", tree)

    def test_with_a_file_that_is_no_object(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        layout = self.damaged(repo, tmp_path / "image", lambda chunk: [*chunk, file("usr/more", b"1")])
        report = update(tree, f"oci:{layout}:latest", f"oci:{layout}:2")
        assert "is no object of the commit" in report["dropped"][0]["reason"]
        check(layout, "2", tree)

    def test_with_another_object_at_a_path(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        """The commit is right and the view is not: both are, after an update."""
        (other,) = self.checksums(repo, "usr/bin/three")

        def change(chunk: list[Item]) -> list[Item]:
            without = [item for item in chunk if item.info.name != "usr/bin/four"]
            return [*without, hardlink("usr/bin/four", object_name(other, "file"))]

        layout = self.damaged(repo, tmp_path / "image", change)
        update(tree, f"oci:{layout}:latest", f"oci:{layout}:2", max_overhead=1)
        check(layout, "2", tree)

    def test_with_a_broken_object(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        def change(chunk: list[Item]) -> list[Item]:
            at = next(at for at, item in enumerate(chunk) if item.content == CONTENTS[3])
            return [*chunk[:at], Item(chunk[at].info, CONTENTS[3][::-1]), *chunk[at + 1 :]]

        layout = self.damaged(repo, tmp_path / "image", change)
        with pytest.raises(CorruptImage, match=r"cannot be imported: .* has the checksum"):
            update(tree, f"oci:{layout}:latest", f"oci:{layout}:2")

    def test_of_another_commit_than_the_label_says(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        """Nothing hangs on it: chunks are known by their objects."""
        layout = write_chunked(*repo, tmp_path / "image", labels={"ostree.commit": "0" * 64}, parents=True)
        report = update(tree, f"oci:{layout}:latest", f"oci:{layout}:2")
        assert report["layers"]["kept"] == 3
        check(layout, "2", tree)

    @pytest.mark.parametrize("final", ["sha256:" + "0" * 64, "", "none of them"])
    def test_whose_last_chunk_is_no_layer(self, tree: Path, repo: tuple[Path, str], tmp_path: Path, final: str) -> None:
        layout = write_chunked(*repo, tmp_path / "image", labels={"ostree.final-diffid": final})
        with pytest.raises(CorruptImage, match="which is none of its layers"):
            update(tree, f"oci:{layout}:latest", f"oci:{layout}:2")
        report = update(tree, f"oci:{layout}:latest", f"oci:{layout}:2", fresh=True)
        assert (report["fresh"], report["reason"]) == (True, "requested")
        check(layout, "2", tree)

    def test_whose_last_chunk_is_two_layers(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        first, *chunks = chunked_layers(*repo)
        layout = write_image(tmp_path / "image", [first, *chunks, chunks[-1]], repo[1])
        with pytest.raises(CorruptImage, match="names layers 4 and 5 alike"):
            update(tree, f"oci:{layout}:latest", f"oci:{layout}:2")

    def checksums(self, repo: tuple[Path, str], *paths: str) -> list[str]:
        made = StandInCommit(repo[0], "main")
        return [made.files[path] for path in paths]


class TestTreesThatAreNoSystem:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda root: (root / KERNEL).unlink(), "there is no kernel"),
            (lambda root: (root / "usr/etc/more").mkdir(parents=True), "both /etc and /usr/etc hold something"),
            (lambda root: (root / "sysroot").rmdir(), "there is no directory /sysroot"),
            (lambda root: (root / CONTEXTS).unlink(), "SELinux policy 'test', but .* is missing"),
        ],
    )
    @pytest.mark.parametrize("previous", [False, True])
    def test_are_refused(
        self, tree: Path, first: Path, tmp_path: Path, change: Any, said: str, *, previous: bool
    ) -> None:
        change(tree)
        prev_ref = f"oci:{first}:1" if previous else None
        with pytest.raises(InputError, match=said):
            build(tree, tmp_path / "image", format="ostree", prev_ref=prev_ref)
        assert os.listdir(tmp_path) == []

    def test_a_tree_without_a_policy_is_told(self, tree: Path, tmp_path: Path) -> None:
        for name in POLICY:
            (tree / name).unlink()
        told = Listener()
        build(tree, tmp_path / "image", format="ostree", progress=told)
        assert told.heard("there is no SELinux policy (/etc/selinux/config): no path gets a label")
        check(tmp_path / "image", None, tree)


class TestLabels:
    def test_tell_the_format_and_what_was_done(self, tree: Path, first: Path, tmp_path: Path) -> None:
        stale = {PLAN: "{}", "ostree.linux": "5", "ostree.commit": "0", "ostree.final-diffid": "0", "a": "b"}
        (tmp_path / "config.json").write_text(json.dumps({"config": {"Labels": stale}}))
        labels = ("given=1", "ostree.linux=planted", "containers.bootc-", "version=planted")
        options: dict[str, Any] = {"version": "42.7", "labels": labels, "config": tmp_path / "config.json"}
        update(tree, f"oci:{first}:1", tmp_path / "image", **options, created=LONG_AGO)
        image = check(tmp_path / "image", None, tree)
        assert image.labels | {"rechunk.version": "", "rechunk.record": ""} == {
            "a": "b",
            "containers.bootc": "1",
            "given": "1",
            "org.opencontainers.image.created": "2020-09-13T12:26:40Z",
            VERSION: "42.7",
            "ostree.bootable": "true",
            "ostree.commit": read_chunked(image, threads=1).checksum.hex(),
            "ostree.final-diffid": image.layers[-1].diff_id,
            "ostree.linux": LINUX,
            "rechunk.chunks": str(len(image.layers)),
            "rechunk.engine": "delta",
            "rechunk.prev-ref": f"oci:{first}:1@{read_image(first, '1').digest}",
            "rechunk.record": "",
            "rechunk.version": "",
            "version": "42.7",
        }

    @pytest.mark.oracle
    def test_are_what_the_commit_tells(self, tree: Path, place: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "image", format="ostree", version="42.7")
        repo = unpack_repository(tmp_path / "image", None, place / "labels")
        commit = read_image(tmp_path / "image", None).labels["ostree.commit"]
        ask = partial(run, program("ostree", "ostree"), f"--repo={repo}", "show")
        told = {key: ask(f"--print-metadata-key={key}", commit).strip() for key in ("version", "ostree.linux")}
        assert told == {"version": "'42.7'", "ostree.linux": f"'{LINUX}'"}


class TestDrift:
    def told(self, tree: Path, first: Path, tmp_path: Path, **options: Any) -> list[str]:
        listener = Listener()
        update(tree, f"oci:{first}:1", tmp_path / "image", progress=listener, **options)
        return [notice for notice in listener.notices if "than in the previous image" in notice]

    def test_of_owners(self, tree: Path, first: Path, tmp_path: Path) -> None:
        os.chown(tree / "usr/bin/one", 5, 6)
        (tree / "usr/bin/one").chmod(0o4755)
        (said,) = self.told(tree, first, tmp_path)
        assert said == (
            "other owner than in the previous image, at the same size: 1 file, such as /usr/bin/one (0:0, now 5:6); "
            "users download them again: see whether the build means that"
        )

    def test_of_modes(self, tree: Path, first: Path, tmp_path: Path) -> None:
        for name in ("one", "three", "four"):
            (tree / f"usr/bin/{name}").chmod(0o700)
        (said,) = self.told(tree, first, tmp_path)
        assert said.startswith("other mode than in the previous image, at the same size: 3 files, such as /usr/bin/")
        assert ", now 0700)" in said

    def test_of_labels(self, tree: Path, first: Path, tmp_path: Path) -> None:
        edit_labels(tree)
        (said,) = self.told(tree, first, tmp_path)
        assert said.startswith(
            "other attributes than in the previous image, at the same size: 1 file, such as /usr/bin/two "
            f"({LABEL}=system_u:object_r:bin_t:s0, now {LABEL}=system_u:object_r:new_t:s0);"
        )

    def test_of_attributes_that_are_no_text(self, tree: Path, first: Path, tmp_path: Path) -> None:
        os.removexattr(tree / "usr/bin/three", "security.capability")
        (said,) = self.told(tree, first, tmp_path)
        assert f"/usr/bin/three (security.capability=0x{CAPABILITY.hex()}, now none);" in said

    def test_of_all_labels_at_once(self, tree: Path, first: Path, tmp_path: Path) -> None:
        """Nothing can be kept then, and this is why."""
        text = (tree / CONTEXTS).read_text()
        (tree / CONTEXTS).write_text(text.replace(":object_r:", ":object_s:"))
        (said,) = self.told(tree, first, tmp_path)
        assert int(said.partition("size: ")[2].partition(" files")[0]) > 10
        assert read_image(tmp_path / "image", None).labels.get("rechunk.prev-ref") is None

    @pytest.mark.parametrize("edit", [edit_copies, edit_remove, edit_more, edit_nearly_all], ids=by_name)
    def test_is_not_told_of_contents(
        self, tree: Path, first: Path, tmp_path: Path, edit: Callable[[Path], None]
    ) -> None:
        edit(tree)
        assert self.told(tree, first, tmp_path) == []

    def test_is_not_told_of_what_is_not_known(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        """Of an empty file whose object is not in its layer, the view tells no label."""
        first, chunk = chunked_layers(*repo, group=one_chunk, parents=True)
        layout = write_image(tmp_path / "other", [first, [*chunk, file("usr/lib/unknown", mode=0o6711)]], repo[1])
        (tree / "usr/lib/unknown").touch()
        told = Listener()
        update(tree, f"oci:{layout}:latest", tmp_path / "image", progress=told)
        assert not told.heard("than in the previous image")
        check(tmp_path / "image", None, tree)


class TestVerification:
    """Nothing is published that is not the tree, whoever erred."""

    @pytest.fixture
    def changed(self, tree: Path) -> Path:
        (tree / "usr/new").write_text("new")
        return tree

    def failure(self, tree: Path, first: Path, tmp_path: Path) -> str:
        with pytest.raises(VerificationFailed) as caught:
            update(tree, f"oci:{first}:1", tmp_path / "image", max_overhead=1)
        assert os.listdir(tmp_path) == []
        return str(caught.value)

    def test_finds_an_object_that_is_in_no_layer(
        self, changed: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forgetful(plan: LayerPlan, *rest: Any, **options: Any) -> Written:
            paths = [path for path in plan.paths if path != "usr/new"]
            return write_chunk(dataclasses.replace(plan, paths=paths), *rest, **options)

        monkeypatch.setattr(engine, "write_chunk", forgetful)
        said = self.failure(changed, first, tmp_path)
        assert "/usr/new: its object " in said
        assert "is in no layer" in said
        assert "/usr/new: missing (as overlay merges)" in said

    def test_finds_another_object_at_a_path(
        self, changed: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def confused(plan: LayerPlan, *rest: Any, **options: Any) -> Written:
            written = write_chunk(plan, *rest, **options)
            written.table.entries["usr/bin/four"] = written.table.entries["usr/new"]
            return written

        monkeypatch.setattr(engine, "write_chunk", confused)
        assert "/usr/bin/four: " in self.failure(changed, first, tmp_path)

    def test_finds_another_commit(
        self, changed: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def other(_: Committed, *rest: Any, **options: Any) -> Written:
            source = scanned(DirectorySource(str(changed)))
            given: dict[str, Any] = {"version": None, "created": 0, "threads": 1, "advance": lambda _: None}
            made = commit(source, prepare(source.tree)[0], {}, **given)
            return write_commit_layer(made, *rest, **options)

        monkeypatch.setattr(engine, "write_commit_layer", other)
        said = self.failure(changed, first, tmp_path)
        assert "the commit is " in said
        assert "/usr/new: is object " in said

    def test_finds_the_same_tree_in_another_commit(
        self, changed: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def other(committed: Committed, *rest: Any, **options: Any) -> Written:
            data = committed.commit.replace(b"ostree.linux", b"ostree.xunil")
            another = dataclasses.replace(committed, checksum=hashlib.sha256(data).digest(), commit=data)
            return write_commit_layer(another, *rest, **options)

        monkeypatch.setattr(engine, "write_commit_layer", other)
        assert "1 difference:\n  the commit is " in self.failure(changed, first, tmp_path)

    def test_can_be_left_out(self, changed: Path, first: Path, tmp_path: Path) -> None:
        report = update(changed, f"oci:{first}:1", tmp_path / "image", verify=False)
        assert "verify" not in report["seconds"]
        check(tmp_path / "image", None, changed)


class TestStoredTables:
    def test_are_those_of_the_blobs(self, first: Path) -> None:
        image = read_image(first, "1")
        for blob, table in zip(image.layers[1:], tables_of(first, "1"), strict=True):
            stored = image.blobs.table(blob, FORMAT)
            assert stored is not None
            assert msgspec.to_builtins(stored) == msgspec.to_builtins(table)
            assert image.blobs.table(blob) is None
        assert image.blobs.table(image.layers[0], FORMAT) is not None

    @pytest.mark.parametrize("damage", ["gone", "garbage", "of another layer", "of another format"])
    def test_that_are_not_right_are_made_anew(self, tree: Path, first: Path, tmp_path: Path, damage: str) -> None:
        layout = Path(shutil.copytree(first, tmp_path / "copy"))
        want = update(tree, f"oci:{first}:1", tmp_path / "want", created=1)
        paths = [table_path(layout, digest) for digest in chunks_of(layout, "1")]
        contents = [path.read_bytes() for path in paths]
        for path, other in zip(paths, [*contents[1:], contents[0]], strict=True):
            if damage == "gone":
                path.unlink()
            elif damage == "garbage":
                path.write_bytes(b"x")
            elif damage == "of another layer":
                path.write_bytes(other)
            else:
                blob = next(blob for blob in read_image(layout, "1").layers if blob.digest.endswith(path.name))
                table = decode_table(path.read_bytes(), blob, FORMAT)
                assert table is not None
                path.write_bytes(encode_table(replace(table, format="")))
        told = Listener()
        report = update(tree, f"oci:{layout}:1", tmp_path / "image", created=1, progress=told)
        assert told.heard("have no table stored")
        assert report["digest"] != want["digest"]  # which names another previous image
        assert read_image(tmp_path / "image", None).layers == read_image(tmp_path / "want", None).layers
        assert report["layers"]["kept"] == want["layers"]["kept"]

    def test_that_lie_are_found_by_reading_all_again(self, tree: Path, first: Path, tmp_path: Path) -> None:
        """Whoever can write them can write the image: a build believes them, `verify` does not."""
        layout = Path(shutil.copytree(first, tmp_path / "copy"))
        (tree / "usr/bin/four").write_bytes(CONTENTS[4][::-1])
        update(tree, f"oci:{first}:1", tmp_path / "right")
        right = {path: entry for table in tables_of(tmp_path / "right") for path, entry in table.entries.items()}
        image = read_image(layout, "1")
        for blob in image.layers[1:]:
            table = image.blobs.table(blob, FORMAT)
            assert table is not None
            if "usr/bin/four" in table.entries:
                table.entries["usr/bin/four"] = right["usr/bin/four"]
                table_path(layout, blob.digest).write_bytes(encode_table(table))
        update(tree, f"oci:{layout}:1", f"oci:{layout}:2")
        with pytest.raises(CorruptImage, match="which no layer holds"):
            verify(f"oci:{layout}:2", tree)

    def test_of_plain_layers_are_not_used(self, tree: Path, tmp_path: Path) -> None:
        build(tree, f"oci:{tmp_path}/image:1")
        image = read_image(tmp_path / "image", "1")
        assert all(image.blobs.table(blob) and not image.blobs.table(blob, FORMAT) for blob in image.layers)

    def test_of_a_layout_lie_beside_the_first(self, tree: Path, first: Path, tmp_path: Path) -> None:
        told = Listener()
        update(tree, f"oci:{first}:1", tmp_path / "image", progress=told)
        assert not told.heard("no table")
        names = {blob.digest.partition(":")[2] for blob in read_image(tmp_path / "image", None).layers}
        assert set(os.listdir(tmp_path / "image" / TABLES)) == names


class TestPublishing:
    @pytest.mark.oracle
    def test_an_update_reads_and_sends_no_chunk_that_is_there(self, tree: Path, line: FaultyProxy) -> None:
        target = f"docker://{line.host}/test/updates"
        first = build(tree, target, format="ostree", tags=["latest"])
        assert first["version"] == "42-20261126"
        edit_rename(tree)
        with repository(line.host, "test/updates") as opened:
            kept = {blob.digest for blob in published_image(opened, "latest", host_architecture()).layers}
        line.forget()
        told = Listener()
        report = build(tree, target, tags=["latest"], progress=told)
        assert report["version"] == "42-20261126.1"
        assert not report["fresh"]
        assert not told.heard("no table")
        touched = {each.path for each in line.exchanges if each.method != "HEAD"}
        assert not [path for path in touched for digest in kept if digest in path]
        with repository(line.host, "test/updates") as opened:
            image = published_image(opened, "latest", host_architecture())
            check_image(image, prepared(tree))
            assert image.labels["version"] == image.labels[VERSION] == "42-20261126.1"
            for blob in image.layers:
                assert image.blobs.table(blob, FORMAT) is not None
                assert image.blobs.table(blob) is None
        assert verify(f"{target}:42-20261126.1", tree)["chunked"]

    @pytest.mark.oracle
    def test_an_image_of_another_tool_is_read_once(
        self, tree: Path, repo: tuple[Path, str], line: FaultyProxy, tmp_path: Path
    ) -> None:
        layout = write_chunked(*repo, tmp_path / "image", parents=True)
        target = f"{line.host}/test/adopted"
        copy = (program("skopeo", "skopeo"), "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false")
        run(*copy, f"oci:{layout}:latest", f"docker://{target}:42-20260101")
        chunks = chunks_of(layout, "latest")
        for number in range(2):
            (tree / "usr/new").write_bytes(CONTENTS[3][number:])
            line.forget()
            told = Listener()
            report = build(tree, f"docker://{target}", progress=told)
            assert report["layers"]["kept"] >= 3
            assert told.heard("have no table stored") == (number == 0)
            read = {each.path.rpartition("/")[2] for each in line.exchanges if each.method == "GET"}
            assert read & {*chunks} == ({*chunks} if number == 0 else set())
            with repository(line.host, "test/adopted") as opened:
                check_image(published_image(opened, report["version"], host_architecture()), prepared(tree))

    @pytest.mark.oracle
    def test_a_lost_chunk_is_written_again(self, tree: Path) -> None:
        with plain_registry() as registry:
            target = f"docker://{registry.host}/test/lost"
            build(tree, target, format="ostree")
            with repository(registry.host, "test/lost") as opened:
                lost = published_image(opened, "42-20261126", host_architecture()).layers[1]
            name = lost.digest.partition(":")[2]
            link = f"docker/registry/v2/repositories/test/lost/_layers/sha256/{name}"
            shutil.rmtree(registry.storage / link)
            shutil.rmtree(registry.storage / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}")
            told = Listener()
            report = build(tree, target, progress=told)
            assert told.heard("has lost 1 of")
            assert [drop["layer"] for drop in report["dropped"]] == [1]
            with repository(registry.host, "test/lost") as opened:
                check_image(published_image(opened, report["version"], host_architecture()), prepared(tree))

    @pytest.mark.oracle
    def test_nothing_without_push(self, tree: Path, line: FaultyProxy) -> None:
        build(tree, f"docker://{line.host}/test/trial", format="ostree", push=False)
        with repository(line.host, "test/trial") as opened:
            assert opened.tags() == []


def verify(image: str, source: Path) -> Json:
    with places() as opened:
        name, tree = parse_name(image), parse_name(f"dir:{source}")
        return inspection.verify(name, tree, opened, Listener(), threads=2, scratch=source.parent)


class TestInspection:
    def test_is_there_for_the_command(self, tree: Path, tmp_path: Path) -> None:
        command = partial(run, sys.executable, "-m", "rechunk_action")
        output = f"oci:{tmp_path}/image"
        report = json.loads(command("build", f"dir:{tree}", output, "--format", "ostree", "--json", "--quiet"))
        assert new_layers(report)[0]["name"] == FIRST
        said = command("verify", output, f"dir:{tree}")
        paths = len(scanned(DirectorySource(str(tree))).tree)
        assert said == f"{output} equals dir:{tree}: {paths} paths, in its OSTree commit\n"

    def test_verifies_an_image_by_what_was_built(self, tree: Path, first: Path) -> None:
        assert verify(f"oci:{first}:1", tree)["equal"]
        (tree / "etc/passwd").chmod(0o600)
        (tree / "usr/bin/four").unlink()
        with pytest.raises(VerificationFailed, match=r"2 differences:\n  /etc/passwd: mode .*\n  /usr/bin/four: sh"):
            verify(f"oci:{first}:1", tree)

    def test_verifies_an_image_by_a_checkout(self, tree: Path, first: Path) -> None:
        """With its labels, which are not compared: a tree that was built has none."""
        edit_etc(tree)
        os.setxattr(tree / "usr/bin/four", LABEL, b"system_u:object_r:etc_t:s0\0")
        assert verify(f"oci:{first}:1", tree)["equal"]

    def test_finds_what_containers_see_wrongly(self, tree: Path, repo: tuple[Path, str], tmp_path: Path) -> None:
        first, chunk = chunked_layers(*repo, group=one_chunk, parents=True)
        layout = write_image(tmp_path / "image", [first, [*chunk, file("usr/more", b"1")]], repo[1])
        with pytest.raises(VerificationFailed, match=r"1 difference:\n  /usr/more: should not .*\(in containers\)"):
            verify(f"oci:{layout}:latest", tree)

    def test_compares_two_images_by_their_components(self, tree: Path, first: Path, tmp_path: Path) -> None:
        (tree / "usr/new").write_bytes(CONTENTS[3])
        report = update(tree, f"oci:{first}:1", tmp_path / "image")
        with places() as opened:
            old, new = parse_name(f"oci:{first}:1"), parse_name(f"oci:{tmp_path}/image")
            found = model.update(*inspection.compare(old, new, opened, Listener(), threads=1, scratch=tmp_path))
        assert found.bytes == report["bytes"]["update"]
        named = {line.name: line.bytes for line in found.components}
        assert named == new_components(report)
        assert FIRST in named


# Any tree


def bootable(files: Files) -> Files:
    """The files of a tree as those of a system."""
    ours = ("sysroot", "usr/lib", "usr/lib/modules", f"usr/lib/modules/{LINUX}")
    others = {path: node for path, node in files.items() if not f"{path}/".startswith(("usr/lib/", "sysroot/"))}
    return others | {path: Node("d", 0o755) for path in ours} | {KERNEL: Node("f", 0o644, content=1)}


few = settings(deadline=None, max_examples=max(10, settings().max_examples // 5))


@given(
    generations(least=2, most=5),
    st.sampled_from([3, 4, 6, 120]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.booleans(),
)
@few
def test_every_generation_is_the_tree(history: list[Files], max_layers: int, max_overhead: float, stored: bool) -> None:
    with scratch() as place:
        layout = place / "image"
        before: dict[str, bytes | None] = {}
        for number, files in enumerate(map(bootable, history)):
            root = place / f"tree-{number}"
            write(files, root)
            report = build(
                root,
                f"oci:{layout}:{number}",
                prev_ref=f"oci:{layout}:{number - 1}" if number else None,
                format="auto" if number else "ostree",
                compression="zstd:1",
                max_layers=max_layers,
                max_overhead=max_overhead,
                threads=1,
            )
            check(layout, str(number), root)
            assert report["layers"]["total"] <= max_layers
            assert report["bytes"]["dead"] <= max_overhead * report["bytes"]["live"]
            after = listing(layout / "blobs")
            assert before.items() <= after.items()
            before = after
            if not stored:
                shutil.rmtree(layout / TABLES)


@given(
    generations(least=2, most=4), st.sampled_from([one_chunk, three_chunks, by_directory]), st.booleans(), st.booleans()
)
@settings(few, max_examples=max(5, settings().max_examples // 10))
def test_any_image_of_ostree_is_adopted(history: list[Files], group: Group, parents: bool, own_xattrs: bool) -> None:
    with scratch() as place:
        write(bootable(history[0]), place / "tree-0")
        (place / "work").mkdir()
        repo, commit = commit_really(place / "tree-0", place / "work")
        layout = write_chunked(repo, commit, place / "image", group=group, parents=parents, own_xattrs=own_xattrs)
        previous = "latest"
        for number, files in enumerate(map(bootable, history[1:]), 1):
            root = place / f"tree-{number}"
            write(files, root)
            update(root, f"oci:{layout}:{previous}", f"oci:{layout}:{number}", threads=1, max_overhead=0.3)
            check(layout, str(number), root)
            previous = str(number)
