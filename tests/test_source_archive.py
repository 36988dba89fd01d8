"""Images in tar archives: archived layouts, and what docker saves, as each generation of it does."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard

from rechunk_action.errors import CorruptImage, EnvironmentLack, InputError
from rechunk_action.oci.image import INDEX, host_architecture
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.table import Blob
from rechunk_action.source.archive import archive_image, saved_image
from rechunk_action.source.image import ImageSource
from tests import stores
from tests.oracles import program, run
from tests.stores import content, tree_of
from tests.support import as_nobody, digest, pack, write_index, write_json, write_layout

HERE = host_architecture()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, with a layer that is there twice."""
    layers = stores.layers()
    return write_layout(tmp_path_factory.mktemp("layout"), [*layers, layers[-1]], config=stores.CONFIG)


@pytest.fixture(scope="module")
def wanted(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """The tree of the image in the layout."""
    return tree_of(ImageSource(read_image(layout, None), tmp_path_factory.mktemp("scratch"), threads=2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.tar"


def write(path: Path, members: Mapping[str, bytes | str]) -> Path:
    """An archive of files, and of symbolic links where a name stands for text."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def members_of(layout: Path) -> dict[str, bytes]:
    return {str(file.relative_to(layout)): file.read_bytes() for file in layout.rglob("*") if file.is_file()}


def saved_by(generation: str, layout: Path) -> dict[str, bytes | str]:
    """What this generation of docker would write of the image of a layout."""
    image = read_image(layout, None)
    config = members_of(layout)[blob_name(image.manifest["config"]["digest"])]
    layers = []
    for blob in image.layers:
        with image.open(blob) as file:
            layers.append(gzip.decompress(file.read()))
    if generation == "containerd":  # blobs as they came from a registry; the index names what is not there, too
        missing = {"mediaType": image.manifest["mediaType"], "digest": digest(b"elsewhere"), "size": 9}
        index = json.dumps({"manifests": [{"mediaType": INDEX, "digest": digest(b"index"), "size": 5}, missing]})
        names = [blob_name(blob.digest) for blob in image.layers]
        manifest = listed(blob_name(digest(config)), names)
        return {**members_of(layout), "index.json": index.encode(), "manifest.json": manifest}
    if generation == "docker 25":
        names = [blob_name(digest(data)) for data in layers]
        return {
            blob_name(digest(config)): config,
            **dict(zip(names, layers, strict=True)),
            "index.json": b"{}",
            "manifest.json": listed(blob_name(digest(config)), names),
        }
    if generation == "podman":
        names = [f"{digest(data)[7:]}.tar" for data in layers]
        return {
            **dict(zip(names, layers, strict=True)),
            f"{digest(config)[7:]}.json": config,
            "manifest.json": listed(f"{digest(config)[7:]}.json", names),
        }
    names = [f"{number:064x}/layer.tar" for number in range(len(layers))]
    return {
        f"{digest(config)[7:]}.json": config,
        **dict(zip(names, layers, strict=True)),
        names[-1]: f"../{names[-2]}",
        "manifest.json": listed(f"{digest(config)[7:]}.json", names),
        "repositories": b"{}",
    }


def listed(config: str, layers: list[str]) -> bytes:
    return json.dumps([{"Config": config, "RepoTags": ["made/image:1"], "Layers": layers}]).encode()


def blob_name(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_archived_layout_is_its_image(
    layout: Path, wanted: dict[str, tuple[object, ...]], tmp_path: Path, form: int, prefix: str
) -> None:
    path = tmp_path / "image.tar"
    with tarfile.open(path, "w", format=form) as archive:
        archive.add(layout, prefix or "/")
    image = archive_image(path, "latest", HERE)
    assert (image.digest, image.layers) == (read_image(layout, None).digest, read_image(layout, None).layers)
    source = ImageSource(image, tmp_path, threads=4)
    assert tree_of(source) == wanted
    assert content(source, "usr/bin/su") == stores.SU
    assert str(image.blobs) == str(path)


@pytest.mark.oracle
def test_skopeos_archive_is_its_image(
    layout: Path, wanted: dict[str, tuple[object, ...]], path: Path, tmp_path: Path
) -> None:
    skopeo = program("skopeo", "skopeo")
    run(skopeo, "copy", "--insecure-policy", f"oci:{layout}:latest", f"oci-archive:{path}:v1")
    for tag in ("v1", None):
        image = archive_image(path, tag, HERE)
        assert image.config == read_image(layout, None).config
        assert tree_of(ImageSource(image, tmp_path, threads=2)) == wanted


def test_layers_are_read_side_by_side(layout: Path, path: Path) -> None:
    image = archive_image(write(path, members_of(layout)), None, HERE)

    def read(blob: Blob) -> str:
        with image.open(blob) as first, image.open(blob) as second:
            pieces = [first.read(100), second.read(), first.read()]
        assert pieces[0] + pieces[2] == pieces[1]
        return digest(pieces[1])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, image.layers)) == [blob.digest for blob in image.layers]


def test_a_blob_is_copied_out(layout: Path, path: Path, tmp_path: Path) -> None:
    image = archive_image(write(path, members_of(layout)), None, HERE)
    image.blobs.fetch(image.layers[0], tmp_path / "blob")
    assert digest((tmp_path / "blob").read_bytes()) == image.layers[0].digest
    assert image.blobs.table(image.layers[0]) is None


def test_a_damaged_blob_is_not_copied_out(layout: Path, path: Path, tmp_path: Path) -> None:
    members = members_of(layout)
    image = read_image(layout, None)
    members[blob_name(image.layers[0].digest)] = bytes(image.layers[0].size)
    image = archive_image(write(path, members), None, HERE)
    with pytest.raises(CorruptImage, match=f"layer {image.layers[0].digest} .* is damaged"):
        image.blobs.fetch(image.layers[0], tmp_path / "blob")


def test_the_image_of_the_right_tag_and_architecture_is_taken(path: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    images = []
    for name in ("arm64", "amd64"):
        write_layout(layout, [pack(b"")], config={"architecture": name})
        [image] = json.loads((layout / "index.json").read_bytes())["manifests"]
        images.append(image | {"platform": {"architecture": name}})
    both = write_json(layout, {"schemaVersion": 2, "mediaType": INDEX, "manifests": images}, INDEX)
    write_index(layout, both | {"annotations": {"org.opencontainers.image.ref.name": "both"}}, images[0])
    write(path, members_of(layout))
    assert [archive_image(path, "both", name).architecture for name in ("arm64", "amd64")] == ["arm64", "amd64"]
    with pytest.raises(InputError, match="no image tagged 'other'"):
        archive_image(path, "other", HERE)


@pytest.mark.parametrize("generation", ["docker 20.10", "docker 25", "containerd", "podman"])
def test_what_docker_saves_is_its_image(
    layout: Path, wanted: dict[str, tuple[object, ...]], path: Path, tmp_path: Path, generation: str
) -> None:
    image = saved_image(write(path, saved_by(generation, layout)))
    source = ImageSource(image, tmp_path, threads=4)
    assert tree_of(source) == wanted
    assert content(source, "usr/bin/su") == stores.SU
    assert source.config == read_image(layout, None).config


def test_zstd_layers_of_a_saved_image_are_known_by_their_first_bytes(path: Path, tmp_path: Path) -> None:
    layer = stores.layers("zstd")[0]
    config = json.dumps({"rootfs": {"diff_ids": [layer.blob.diff_id]}}).encode()
    name = blob_name(layer.blob.digest)
    image = saved_image(write(path, {name: layer.data, "c": config, "manifest.json": listed("c", [name])}))
    assert image.layers == (layer.blob,)


@pytest.mark.parametrize("read", [lambda path: archive_image(path, None, HERE), saved_image])
class TestArchivesThatCannotBeRead:
    def test_nothing_there(self, path: Path, read: Any) -> None:
        with pytest.raises(InputError, match=r"image\.tar does not exist"):
            read(path)

    def test_a_directory(self, tmp_path: Path, read: Any) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path)

    def test_no_right(self, path: Path, layout: Path, read: Any) -> None:
        write(path, members_of(layout)).chmod(0o600)
        with as_nobody(), pytest.raises(EnvironmentLack, match="run as root"):
            read(path)

    @pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
    def test_a_compressed_archive(self, path: Path, layout: Path, read: Any, compress: Any) -> None:
        path.write_bytes(compress(write(path, members_of(layout)).read_bytes()))
        with pytest.raises(InputError, match="is compressed: decompress it"):
            read(path)

    @pytest.mark.parametrize("data", [b"", b"no archive at all" * 100])
    def test_no_archive(self, path: Path, read: Any, data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises(CorruptImage, match="is no tar archive, or a damaged one"):
            read(path)

    def test_one_that_is_cut_short(self, path: Path, layout: Path, tmp_path: Path, read: Any) -> None:
        data = write(path, members_of(layout)).read_bytes()
        for size in range(512, len(data) - 20_000, len(data) // 50):
            path.write_bytes(data[:size])
            with pytest.raises(InputError, match=r"a damaged one|is missing|holds no OCI"):
                tree_of(ImageSource(read(path), tmp_path, threads=1))

    def test_another_archive(self, path: Path, read: Any) -> None:
        with pytest.raises(InputError, match=r"holds no OCI image layout|manifest\.json of .* is missing"):
            read(write(path, {"etc/passwd": b"root"}))


def test_a_missing_blob_is_told(layout: Path, path: Path, tmp_path: Path) -> None:
    image = read_image(layout, None)
    members = members_of(layout)
    del members[blob_name(image.layers[1].digest)]
    found = archive_image(write(path, members), None, HERE)
    with pytest.raises(CorruptImage, match=f"{image.layers[1].digest} .* is missing: the archive is incomplete"):
        tree_of(ImageSource(found, tmp_path, threads=1))


def test_a_blob_of_another_size_is_told(layout: Path, path: Path, tmp_path: Path) -> None:
    image = read_image(layout, None)
    found = archive_image(write(path, members_of(layout) | {blob_name(image.layers[1].digest): b"1"}), None, HERE)
    with pytest.raises(CorruptImage, match=f"{image.layers[1].digest} .* has 1 bytes where"):
        tree_of(ImageSource(found, tmp_path, threads=1))


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "md5:1", ""])
def test_a_digest_is_no_path(layout: Path, path: Path, digest: str) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0]["digest"] = digest
    write(path, members_of(layout) | {"index.json": json.dumps(index).encode()})
    with pytest.raises(CorruptImage, match="is no sha256 digest"):
        archive_image(path, None, HERE)


@pytest.mark.parametrize("link", ["a", "1/a", "1/2/a"])
def test_a_link_stands_for_a_layer_wherever_it_is(path: Path, link: str) -> None:
    layer = pack(b"", "none")
    config = json.dumps({"rootfs": {"diff_ids": [layer.blob.diff_id]}}).encode()
    members = {"c": config, "0/layer": layer.data, "manifest.json": listed("c", [link])}
    image = saved_image(write(path, members | {link: "../" * link.count("/") + "0/layer"}))
    assert image.layers == (layer.blob,)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../etc/passwd", "layer", ""])
def test_links_lead_nowhere_out_of_an_archive(path: Path, target: str) -> None:
    config = json.dumps({"rootfs": {"diff_ids": [digest(b"")]}}).encode()
    write(path, {"c": config, "layer": target, "manifest.json": listed("c", ["layer"])})
    with pytest.raises(CorruptImage, match=r"layer of .* is missing"):
        saved_image(path)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "holds 0 images"),
        ([{"Config": "c", "Layers": []}] * 2, "holds 2 images"),
        ([{"Config": "c"}], "malformed"),
        ({"Config": "c", "Layers": []}, "malformed"),
        ([{"Config": "d", "Layers": ["l"]}], "d of .* is missing"),
        ([{"Config": "c", "Layers": ["../l"]}], r"\.\./l of .* is missing"),
        ([{"Config": "c", "Layers": []}], "has 0 layers, and its config has 1"),
        ([{"Config": "c", "Layers": ["l", "l"]}], "has 2 layers, and its config has 1"),
        ([{"Config": "l", "Layers": ["l"]}], "the config of .* is no JSON"),
    ],
)
def test_a_saved_image_that_does_not_fit_together_is_told(path: Path, images: object, said: str) -> None:
    config = json.dumps({"rootfs": {"diff_ids": [digest(b"")]}}).encode()
    write(path, {"c": config, "l": b"no JSON", "manifest.json": json.dumps(images).encode()})
    with pytest.raises(InputError, match=said):
        saved_image(path)


def test_a_saved_layer_that_is_not_that_of_the_config_is_told(layout: Path, path: Path, tmp_path: Path) -> None:
    members = saved_by("docker 20.10", layout)
    first = next(name for name in members if name.endswith("layer.tar"))
    data = members[first]
    assert isinstance(data, bytes)
    members[first] = data[:-1] + b"x"
    with pytest.raises(CorruptImage, match="is damaged"):
        tree_of(ImageSource(saved_image(write(path, members)), tmp_path, threads=1))
