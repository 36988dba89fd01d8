"""Rules of clients that no other test shows, each in a test of its own; docs/reliability.md lists all and their tests.

Clients of OSTree and of overlayfs are in `tests/oracles`, and other tests build on them. Here are docker and umoci,
which unpack an image by themselves, and skopeo, which copies one.
"""

from __future__ import annotations

import ast
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from rechunk_action.oci.image import Image, Json
from rechunk_action.oci.layout import read_image
from tests.building import build, new_layers
from tests.oracles import program, run
from tests.oracles.compare import differences
from tests.stores import in_docker
from tests.test_real_clients import Made, difficult_series, portable
from tests.trees import Files, write

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("small_components")

OF_THE_RUNTIME = (".dockerenv", "dev", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "proc", "run", "sys")
"""What docker puts into a container."""


@contextmanager
def unpacked_by_docker(image: Made) -> Iterator[Path]:
    docker, name = program("docker", "docker.io"), f"client-rules-{os.getpid()}:latest"
    with scratch() as work, in_docker(image.layout, name, tag=image.tag):
        container = run(docker, "create", name, "true").strip()
        try:
            run(docker, "export", "--output", work / "root.tar", container)
        finally:
            run(docker, "rm", container)
        (work / "root").mkdir()
        run("tar", "-C", work / "root", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xf", work / "root.tar")
        yield work / "root"


@contextmanager
def unpacked_by_umoci(image: Made) -> Iterator[Path]:
    with scratch() as work:
        run(program("umoci", "umoci"), "unpack", "--image", f"{image.layout}:{image.tag}", work / "bundle")
        yield work / "bundle/rootfs"


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rules-", dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[list[Made]]:
    """Series of images over all that clients easily get wrong. Layers are gzip, which every version of them takes."""
    return [published(history, tmp_path_factory.mktemp("series")) for history in difficult_series()]


def published(history: list[Files], place: Path) -> list[Made]:
    made: list[Made] = []
    for number, files in enumerate(history, 1):
        source, layout = place / f"tree{number}", place / "image"
        write({path: portable(node) for path, node in files.items()}, source)
        prev = f"oci:{layout}:{made[-1].tag}" if made else None
        build(source, f"oci:{layout}:{number}", prev_ref=prev, max_layers=20, max_overhead=0.5, compression="gzip")
        made.append(Made(layout, str(number), source))
    return made


@pytest.mark.oracle
class TestImages:
    """What is built is what each client makes of it."""

    def test_are_the_tree_for_docker(self, series: list[list[Made]]) -> None:
        for *_, last in series:
            with unpacked_by_docker(last) as root:
                # Of attributes, docker's export has capabilities alone.
                assert differences(last.source, root, xattrs=False, ignore=OF_THE_RUNTIME) == []

    def test_are_the_tree_for_umoci(self, series: list[list[Made]]) -> None:
        for image in (image for history in series for image in history):
            with unpacked_by_umoci(image) as root:
                assert differences(image.source, root) == []

    def test_are_copied_byte_for_byte_by_skopeo(self, series: list[list[Made]]) -> None:
        with scratch() as work:
            for *_, last in series:
                copied = copy(last, work / last.source.parent.name)
                assert copied.digest == read_image(last.layout, last.tag).digest

    def test_may_have_as_many_layers_as_docker_takes(self, tmp_path: Path) -> None:
        most, tree = 120, tmp_path / "tree"
        (tree / "etc").mkdir(parents=True)
        (tree / "usr").mkdir()
        for number in range(most):
            (tree / f"usr/{number}").write_bytes(os.urandom(31_000))
            os.setxattr(tree / f"usr/{number}", "user.component", f"{number}".encode())
        report = build(tree, f"oci:{tmp_path / 'image'}:1", max_layers=400, compression="gzip:1")
        assert report["layers"]["total"] == most
        with unpacked_by_docker(Made(tmp_path / "image", "1", tree)) as root:
            assert differences(tree, root, xattrs=False, ignore=OF_THE_RUNTIME) == []


def copy(image: Made, layout: Path) -> Image:
    """The image as skopeo copies it into another layout."""
    source, target = (f"oci:{place}:{image.tag}" for place in (image.layout, layout))
    run(program("skopeo", "skopeo"), "copy", "--insecure-policy", source, target)
    return read_image(layout, image.tag)


class TestLayers:
    @pytest.mark.parametrize("compression", ["gzip", "zstd"])
    def test_hold_sparse_files_whole(self, tmp_path: Path, compression: str) -> None:
        tree = tmp_path / "tree"
        (tree / "usr").mkdir(parents=True)
        with (tree / "usr/sparse").open("wb") as file:
            file.seek(5 << 20)
            file.write(b"end")
        assert (tree / "usr/sparse").stat().st_blocks * 512 < 1 << 20
        build(tree, tmp_path / "image", compression=compression)
        [member] = [info for info in members(read_image(tmp_path / "image", None)) if info.name == "usr/sparse"]
        assert (member.type, member.size, member.pax_headers) == (tarfile.REGTYPE, (5 << 20) + 3, {})

    def test_of_zstd_hold_no_table_of_chunks(self, tmp_path: Path) -> None:
        """zstd:chunked, which old clients hang on, has skippable frames besides the one with the archive."""
        (tmp_path / "tree/usr").mkdir(parents=True)
        (tmp_path / "tree/usr/data").write_bytes(os.urandom(100_000))
        build(tmp_path / "tree", tmp_path / "image")
        image = read_image(tmp_path / "image", None)
        for blob, layer in zip(image.layers, image.manifest["layers"], strict=True):
            with image.open(blob) as opened:
                data = opened.read()
            decoder = zstandard.ZstdDecompressor().decompressobj()
            decoder.decompress(data)
            assert (decoder.eof, decoder.unused_data) == (True, b"")
            assert "annotations" not in layer

    def test_are_known_by_their_blobs(self, tmp_path: Path) -> None:
        """Clients before bootc 1.15 fetch an archive again that they have in another compression."""
        (tmp_path / "tree/usr").mkdir(parents=True)
        (tmp_path / "tree/usr/data").write_bytes(os.urandom(100_000))
        tags = [("1", "gzip"), ("2", "zstd")]
        for tag, compression in tags:
            build(tmp_path / "tree", f"oci:{tmp_path / 'image'}:{tag}", fresh=True, compression=compression)
        gzip, zstd = (read_image(tmp_path / "image", tag) for tag, _ in tags)
        assert [blob.diff_id for blob in gzip.layers] == [blob.diff_id for blob in zstd.layers]
        report = build(tmp_path / "tree", f"oci:{tmp_path / 'image'}:3", prev_ref=f"oci:{tmp_path / 'image'}:1")
        assert report["layers"]["new"] == 0
        assert read_image(tmp_path / "image", "3").digests == gzip.digests
        assert not gzip.digests & zstd.digests

    def test_that_were_dropped_cost_their_size_when_they_come_back(self, tmp_path: Path) -> None:
        """Clients have thrown them away meanwhile."""
        tree, layout = tmp_path / "tree", tmp_path / "image"
        (tree / "usr").mkdir(parents=True)
        (tree / "usr/stays").write_bytes(os.urandom(50_000))
        file = tree / "usr/data"
        contents = [os.urandom(50_000) for _ in range(2)]
        digests: list[set[str]] = []
        report: Json = {}
        for number, content in enumerate([*contents, contents[0]], 1):
            file.write_bytes(content)
            os.utime(file, (1, 1))
            prev = f"oci:{layout}:{number - 1}" if number > 1 else None
            report = build(tree, f"oci:{layout}:{number}", prev_ref=prev, max_overhead=0.0, compression="zstd:3")
            digests.append(read_image(layout, str(number)).digests)
        came_back = digests[0] & digests[2] - digests[1]
        assert came_back == {layer["digest"] for layer in new_layers(report)}
        assert report["bytes"]["update"] == sum(layer["bytes"] for layer in new_layers(report)) > 50_000


def members(image: Image) -> Iterator[tarfile.TarInfo]:
    """The members of all layers, as Python reads them."""
    for blob in image.layers:
        with image.open(blob) as file:
            data = file.read()
            if blob.media_type.endswith("zstd"):
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                yield from archive


class TestTheList:
    """docs/reliability.md has every rule, and for each a test that is there."""

    def test_names_tests_that_are_there(self) -> None:
        text = (ROOT / "docs/reliability.md").read_text().partition("## Clients\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (?!Rule|---).*", text, re.MULTILINE)
        assert len(rows) > 40
        for row in rows:
            named = re.findall(r"`([\w/]+)::(\w+)`", row)
            assert named, row
            for file, name in named:
                assert name in defined(ROOT / f"tests/{file}.py"), row


def defined(file: Path) -> set[str]:
    """The names of all functions in a file."""
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}
