"""Layouts on disk: every byte checked on the way in, all or nothing on the way out."""

from __future__ import annotations

import copy
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import CorruptImage, EnvironmentLack, InputError, RechunkError
from rechunk_action.oci import table
from rechunk_action.oci.config import image_config, image_manifest
from rechunk_action.oci.image import CONFIG, MANIFEST, MAX_JSON, Image, host_architecture
from rechunk_action.oci.layout import REF_NAME, LayoutWriter, read_image
from rechunk_action.oci.stage import blob_path, table_path
from tests.support import (
    Packed,
    archive,
    as_nobody,
    digest,
    file,
    listing,
    pack,
    patient,
    write_blob,
    write_index,
    write_json,
    write_layout,
)

INDEX = "application/vnd.oci.image.index.v1+json"
ONE, TWO = pack(archive(file("one", b"1" * 2000))), pack(archive(file("two", b"2" * 2000)), "gzip")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", [ONE, TWO], tag="v1")


def add_image(writer: LayoutWriter, *layers: Packed) -> dict[str, Any]:
    """What a build does with finished layers. Returns the manifest's descriptor."""
    for layer in layers:
        (writer.scratch / "layer").write_bytes(layer.data)
        writer.adopt(writer.scratch / "layer", layer.blob.digest)
        writer.store_table(layer.blob, layer.read())
    blobs = [layer.blob for layer in layers]
    config = image_config(
        None, labels={}, history=["" for _ in blobs], diff_ids=[blob.diff_id for blob in blobs], created=0
    )
    stored = writer.store_json(config, CONFIG)
    return writer.store_json(image_manifest(stored, [(blob, {}) for blob in blobs], {}), MANIFEST)


def build(layout: Path, tag: str | None, *layers: Packed) -> None:
    with LayoutWriter(layout, tag) as writer:
        writer.commit(add_image(writer, *layers), None)


def change_index(layout: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    change(index)
    (layout / "index.json").write_text(json.dumps(index))


# Reading


@pytest.mark.parametrize("tag", ["v1", None])
def test_an_image_is_read(layout: Path, tag: str | None) -> None:
    image = read_image(layout, tag)
    assert image.layers == (ONE.blob, TWO.blob)
    assert (image.labels, image.architecture) == ({"containers.bootc": "1"}, host_architecture())
    with image.open(TWO.blob) as opened:
        assert opened.read() == TWO.data


def test_an_untagged_image_is_read(tmp_path: Path) -> None:
    assert read_image(write_layout(tmp_path / "layout", [ONE], tag=None), None).layers == (ONE.blob,)


def test_a_missing_tag_names_those_that_exist(layout: Path) -> None:
    build(layout, "v2", ONE)
    with pytest.raises(InputError, match="no image tagged 'v3'; its tags are: v1, v2"):
        read_image(layout, "v3")


def test_one_of_several_images_must_be_named(layout: Path) -> None:
    build(layout, "v2", ONE)
    with pytest.raises(InputError, match=f"2 images: name one as oci:{layout}:TAG; its tags are: v1, v2"):
        read_image(layout, None)
    assert [len(read_image(layout, tag).layers) for tag in ("v1", "v2")] == [2, 1]


def test_a_layout_without_images_is_told(tmp_path: Path) -> None:
    write_index(tmp_path / "layout")
    with pytest.raises(InputError, match=r"0 images: .* its tags are: none"):
        read_image(tmp_path / "layout", None)


@pytest.mark.parametrize("path", ["missing", "", "a-file", "a-file/below"])
def test_what_is_no_layout_is_told(tmp_path: Path, path: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(InputError, match="is no OCI image layout"):
        read_image(tmp_path / path, None)


def nested(layout: Path, architectures: list[str], *, depth: int = 1) -> None:
    """Put the image of a layout into an index of several architectures."""
    [image] = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifests = [image | {"platform": {"architecture": name, "os": "linux"}} for name in architectures]
    for _ in range(depth):
        inner = write_json(layout, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX)
        manifests = [inner | {"platform": {"architecture": host_architecture()}}]
    write_index(layout, manifests[0] | {"annotations": {REF_NAME: "v1"}})


@pytest.mark.parametrize("depth", [1, 3])
def test_an_index_gives_the_image_of_this_machine(layout: Path, depth: int) -> None:
    nested(layout, ["s390x", host_architecture(), "unknown"], depth=depth)
    assert read_image(layout, "v1").layers == (ONE.blob, TWO.blob)


def test_an_index_without_this_machine_names_the_others(layout: Path) -> None:
    nested(layout, ["s390x", "riscv64"])
    with pytest.raises(InputError, match=f"no image for {host_architecture()}, only for 'riscv64', 's390x'"):
        read_image(layout, None)


def test_indexes_in_each_other_come_to_an_end(layout: Path) -> None:
    nested(layout, [host_architecture()], depth=30)
    with pytest.raises(InputError, match=r"index\.v1\+json' is not the media type of an image"):
        read_image(layout, None)


def test_what_an_index_says_is_shown_as_text(layout: Path) -> None:
    nested(layout, ["x\n\x1b[31m\u202e"])
    with pytest.raises(InputError, match=r"only for 'x\\n\\x1b\[31m\\u202e'"):
        read_image(layout, None)


def test_an_artifact_is_no_image(layout: Path) -> None:
    change_index(layout, lambda index: index["manifests"][0].update(mediaType="application/vnd.example"))
    with pytest.raises(InputError, match=r"'application/vnd\.example' is not the media type of an image"):
        read_image(layout, None)


def test_docker_media_types_are_read(layout: Path) -> None:
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    change_index(layout, lambda index: index["manifests"][0].update(mediaType=docker))
    assert len(read_image(layout, None).layers) == 2


# Damage


def manifest_of(layout: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_image(layout, None).manifest
    return found


@pytest.mark.parametrize("change", [-1, 1, 1 << 40])
def test_a_manifest_that_lies_about_a_layers_size_is_found(layout: Path, change: int) -> None:
    manifest = manifest_of(layout)
    manifest["layers"][0]["size"] += change
    write_index(layout, write_json(layout, manifest, MANIFEST))
    image = read_image(layout, None)
    with (
        pytest.raises(CorruptImage, match=f"layer {ONE.blob.digest} .* where the manifest says"),
        image.open(image.layers[0]),
    ):
        pass


def test_a_truncated_layer_is_found(layout: Path) -> None:
    os.truncate(blob_path(layout, ONE.blob.digest), 5)
    with (
        pytest.raises(CorruptImage, match="has 5 bytes where the manifest says"),
        read_image(layout, None).open(ONE.blob),
    ):
        pass


def test_a_missing_layer_is_found(layout: Path) -> None:
    blob_path(layout, TWO.blob.digest).unlink()
    with pytest.raises(CorruptImage, match=f"{TWO.blob.digest} .* is missing"), read_image(layout, None).open(TWO.blob):
        pass


def test_what_goes_wrong_while_a_layer_is_read_is_not_the_layers_fault(layout: Path) -> None:
    with pytest.raises(FileNotFoundError), read_image(layout, None).open(ONE.blob):
        (layout / "elsewhere").read_bytes()


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_a_missing_manifest_or_config_is_found(layout: Path, part: str) -> None:
    image = read_image(layout, None)
    blob_path(layout, image.digest if part == "manifest" else image.manifest["config"]["digest"]).unlink()
    with pytest.raises(CorruptImage, match="is missing: the layout is incomplete"):
        read_image(layout, None)


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_a_damaged_manifest_or_config_is_found(layout: Path, part: str) -> None:
    image = read_image(layout, None)
    path = blob_path(layout, image.digest if part == "manifest" else image.manifest["config"]["digest"])
    path.write_bytes(path.read_bytes().replace(b"sha256:", b"sha257:", 1))
    with pytest.raises(CorruptImage, match="is damaged or not of the stated size"):
        read_image(layout, None)


def test_a_wrong_size_of_the_manifest_is_found(layout: Path) -> None:
    change_index(layout, lambda index: index["manifests"][0].update(size=1))
    with pytest.raises(CorruptImage, match="not of the stated size"):
        read_image(layout, None)


def test_a_manifest_larger_than_clients_read_is_refused(layout: Path) -> None:
    write_index(layout, write_json(layout, manifest_of(layout) | {"more": "x" * MAX_JSON}, MANIFEST))
    with pytest.raises(CorruptImage, match="not of the stated size"):
        read_image(layout, None)


def test_an_index_larger_than_clients_read_is_refused(layout: Path) -> None:
    change_index(layout, lambda index: index.update(more="x" * MAX_JSON))
    with pytest.raises(CorruptImage, match=r"index\.json has more than 4,194,304 bytes"):
        read_image(layout, None)


def test_an_index_that_is_larger_than_memory_is_refused(layout: Path) -> None:
    os.truncate(layout / "index.json", 1 << 40)
    with pytest.raises(CorruptImage, match=r"index\.json has more than 4,194,304 bytes"):
        read_image(layout, None)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"7", b"null", b'"text"', b"[" * 100_000])
def test_malformed_json_is_found(layout: Path, text: bytes) -> None:
    write_index(layout, {"mediaType": MANIFEST, "digest": write_blob(layout, text), "size": len(text)})
    with pytest.raises(CorruptImage, match=r"no JSON|malformed"):
        read_image(layout, None)
    (layout / "index.json").write_bytes(text)
    with pytest.raises(CorruptImage, match=r"index\.json is (no JSON|malformed)"):
        read_image(layout, None)


@pytest.mark.parametrize("size", [-1, 1 << 63, 10**400])
def test_what_is_no_size_is_found(layout: Path, size: int) -> None:
    """A registry would be read without end for a negative one, and sizes are for people to see."""
    for part in ("config", "layers"):
        manifest = manifest_of(layout)
        (manifest["config"] if part == "config" else manifest["layers"][0])["size"] = size
        descriptor = write_json(layout, manifest, MANIFEST)
        whole = (layout / "index.json").read_bytes()
        write_index(layout, descriptor)
        with pytest.raises(CorruptImage, match=r"malformed .*size"):
            read_image(layout, None)
        (layout / "index.json").write_bytes(whole)
    change_index(layout, lambda index: index["manifests"][0].update(size=size))
    with pytest.raises(CorruptImage, match=r"malformed .*size"):
        read_image(layout, None)


def test_text_that_is_not_unicode_is_found(layout: Path) -> None:
    """Half a surrogate pair could not be printed, nor written again."""
    notes = {"annotations": {"a": "\ud800"}}
    write_index(layout, write_json(layout, manifest_of(layout) | notes, MANIFEST))
    with pytest.raises(CorruptImage, match="no JSON"):
        read_image(layout, None)


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha512:" + "0" * 64, "sha256:" + "A" * 64, "sha256:../../" + "0" * 58]
)
def test_a_digest_is_never_part_of_another_path(layout: Path, digest: str) -> None:
    change_index(layout, lambda index: index["manifests"][0].update(digest=digest))
    with pytest.raises(CorruptImage, match="is no sha256 digest"):
        read_image(layout, None)


def test_a_layers_digest_is_never_part_of_another_path(layout: Path) -> None:
    manifest = manifest_of(layout)
    manifest["layers"][0]["digest"] = "sha256:../../../../etc/passwd"
    write_index(layout, write_json(layout, manifest, MANIFEST))
    with pytest.raises(CorruptImage, match="is no sha256 digest"):
        read_image(layout, None)


def test_a_config_of_another_image_is_found(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [ONE, TWO], config={"rootfs": {"diff_ids": [ONE.blob.diff_id]}})
    with pytest.raises(CorruptImage, match="2 layers and the config 1: they do not belong together"):
        read_image(layout, None)


def places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, as the keys that lead to it."""
    yield above
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*above, key))


def with_junk(document: Any, place: tuple[Any, ...], junk: Any) -> Any:
    if not place:
        return junk
    changed = copy.copy(document)
    changed[place[0]] = with_junk(document[place[0]], place[1:], junk)
    return changed


JUNK: list[object] = [None, 0, -1, 1.5, True, "", "text", [], {}, [None], [[]], [{}], {"a": 1}, {"annotations": []}]


@patient
@given(data=st.data(), part=st.sampled_from(["index", "nested", "manifest", "config"]), junk=st.sampled_from(JUNK))
def test_junk_anywhere_is_never_another_exception(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, part: str, junk: object
) -> None:
    layout = write_layout(tmp_path_factory.mktemp("junk") / "layout", [ONE], tag="v1")
    image = read_image(layout, None)
    index = json.loads((layout / "index.json").read_bytes())
    document = {"index": index, "nested": index, "manifest": image.manifest, "config": image.config}[part]
    changed = with_junk(document, data.draw(st.sampled_from(list(places(document)))), junk)
    if part == "nested":
        write_index(layout, write_json(layout, changed, INDEX))
    elif part == "config":
        write_index(
            layout, write_json(layout, image.manifest | {"config": write_json(layout, changed, CONFIG)}, MANIFEST)
        )
    elif part == "manifest":
        write_index(layout, write_json(layout, changed, MANIFEST))
    else:
        (layout / "index.json").write_text(json.dumps(changed))
    for tag in ("v1", None):
        try:
            read = read_image(layout, tag)
            assert isinstance(read.labels, dict)
            for blob in read.layers:
                with read.open(blob):
                    pass
        except RechunkError:
            pass
    try:
        build(layout, "v2", ONE)
    except RechunkError:
        return
    assert read_image(layout, "v2").layers == (ONE.blob,)


def test_a_layout_that_may_not_be_read_says_what_to_do(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.parent.chmod(0o755)
    monkeypatch.chdir(layout.parent)
    image = read_image(Path("layout"), None)
    for path in (blob_path(layout, ONE.blob.digest), blob_path(layout, image.digest), layout / "index.json"):
        path.chmod(0o600)
    with as_nobody():
        with pytest.raises(EnvironmentLack, match=r"no right to read .*: run as root"), image.open(ONE.blob):
            pass
        with pytest.raises(EnvironmentLack, match=r"no right to read layout/index\.json"):
            read_image(Path("layout"), None)


# Stored tables


def test_a_stored_table_saves_reading_the_layer(tmp_path: Path) -> None:
    build(tmp_path / "layout", None, ONE)
    stored = read_image(tmp_path / "layout", None).blobs.table(ONE.blob)
    assert msgspec.to_builtins(stored) == msgspec.to_builtins(ONE.read())


def test_a_layer_without_a_stored_table_has_none(layout: Path) -> None:
    assert read_image(layout, None).blobs.table(ONE.blob) is None


def test_the_table_of_another_archive_is_not_taken(tmp_path: Path) -> None:
    build(tmp_path / "layout", None, ONE, TWO)
    table_path(tmp_path / "layout", TWO.blob.digest).replace(table_path(tmp_path / "layout", ONE.blob.digest))
    assert read_image(tmp_path / "layout", None).blobs.table(ONE.blob) is None


@patient
@given(st.data())
def test_a_damaged_table_is_not_taken(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    layout = tmp_path_factory.mktemp("table") / "layout"
    build(layout, None, ONE)
    path = table_path(layout, ONE.blob.digest)
    stored = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del stored[data.draw(st.integers(0, len(stored) - 1)) :]
    else:
        at = data.draw(st.integers(0, len(stored) - 1))
        stored[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path.write_bytes(stored)
    table = read_image(layout, None).blobs.table(ONE.blob)
    assert table is None or msgspec.to_builtins(table) == msgspec.to_builtins(ONE.read())


def test_a_table_that_is_larger_than_memory_is_not_taken(tmp_path: Path) -> None:
    build(tmp_path / "layout", "v1", ONE)
    os.truncate(table_path(tmp_path / "layout", ONE.blob.digest), 1 << 40)
    assert read_image(tmp_path / "layout", None).blobs.table(ONE.blob) is None


def test_a_table_that_claims_to_be_huge_is_not_taken(tmp_path: Path) -> None:
    build(tmp_path / "layout", None, ONE)
    huge = bytes.fromhex("28b52ffd e4 0000000000000010 0000")
    table_path(tmp_path / "layout", ONE.blob.digest).write_bytes(huge)
    assert read_image(tmp_path / "layout", None).blobs.table(ONE.blob) is None


def test_a_table_that_expands_to_more_than_any_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "layout", None, ONE)
    image = read_image(tmp_path / "layout", None)
    monkeypatch.setattr(table, "MAX_TABLE", 50)
    assert image.blobs.table(ONE.blob) is None


# Writing


def test_a_new_layout_is_complete(tmp_path: Path) -> None:
    build(tmp_path / "layout", "v1", ONE, TWO)
    image = read_image(tmp_path / "layout", "v1")
    assert image.layers == (ONE.blob, TWO.blob)
    for layer in (ONE, TWO):
        assert blob_path(tmp_path / "layout", layer.blob.digest).read_bytes() == layer.data
    assert json.loads((tmp_path / "layout" / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]
    assert {path.name for path in (tmp_path / "layout").iterdir()} == {
        "blobs",
        "index.json",
        "oci-layout",
        "rechunk-records",
        "rechunk-tables",
    }


def test_a_new_layout_can_be_read_by_all(tmp_path: Path) -> None:
    build(tmp_path / "layout", None, ONE)
    assert (tmp_path / "layout").stat().st_mode & 0o777 == 0o755


def test_every_name_of_a_blob_is_its_digest(tmp_path: Path) -> None:
    build(tmp_path / "layout", None, ONE)
    blobs = list((tmp_path / "layout" / "blobs" / "sha256").iterdir())
    assert len(blobs) == 3
    assert all(digest(path.read_bytes()) == f"sha256:{path.name}" for path in blobs)


def test_the_index_names_manifest_and_tag(tmp_path: Path) -> None:
    build(tmp_path / "layout", "v1", ONE)
    index = json.loads((tmp_path / "layout" / "index.json").read_bytes())
    [manifest] = index["manifests"]
    assert (index["schemaVersion"], manifest["mediaType"], manifest["annotations"]) == (2, MANIFEST, {REF_NAME: "v1"})


def test_a_tag_is_added_to_a_layout(layout: Path) -> None:
    before = listing(layout)
    build(layout, "v2", ONE)
    after = listing(layout)
    assert after.items() >= {path: data for path, data in before.items() if path != "index.json"}.items()
    assert read_image(layout, "v1").layers == (ONE.blob, TWO.blob)
    assert read_image(layout, "v2").layers == (ONE.blob,)


def test_an_image_more_than_an_index_has_room_for_is_refused(layout: Path) -> None:
    room = MAX_JSON - len((layout / "index.json").read_bytes()) - 100
    change_index(layout, lambda index: index.update(more="x" * room))
    before = listing(layout)
    with pytest.raises(InputError, match=r"so many images .* name another output"):
        build(layout, "v2", ONE)
    assert listing(layout) == before


def test_a_tag_is_added_to_an_empty_layout(tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (tmp_path / "layout" / "index.json").write_text('{"schemaVersion": 2, "manifests": null}')
    build(tmp_path / "layout", "v1", ONE)
    assert read_image(tmp_path / "layout", "v1").layers == (ONE.blob,)


@pytest.mark.parametrize(
    ("there", "tag", "says"),
    [
        ("v1", "v1", "already holds an image tagged 'v1'"),
        ("v1", None, "already holds an image"),
        (None, "v1", "already holds an image"),
        (None, None, "already holds an image"),
    ],
)
def test_a_taken_tag_is_refused(tmp_path: Path, there: str | None, tag: str | None, says: str) -> None:
    layout = write_layout(tmp_path / "layout", [ONE], tag=there)
    before = listing(tmp_path)
    with pytest.raises(InputError, match=f"{says}: name another output or tag"):
        LayoutWriter(layout, tag)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("x")], ids=["file", "directory", "link"]
)
def test_an_output_that_is_something_else_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "output")
    with pytest.raises(InputError, match="exists and is no OCI image layout"):
        LayoutWriter(tmp_path / "output", "v1")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_layout_without_an_index_is_refused(layout: Path) -> None:
    (layout / "index.json").unlink()
    with pytest.raises(InputError, match=r"has no index\.json"):
        LayoutWriter(layout, "v2")


def test_an_output_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="missing does not exist: make the directory"):
        LayoutWriter(tmp_path / "missing" / "output", None)
    with pytest.raises(InputError, match="cannot be written to"):
        LayoutWriter(tmp_path / "file" / "output", None)


def test_an_output_that_may_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with as_nobody(), pytest.raises(InputError, match=r"\. cannot be written to .Permission denied"):
        LayoutWriter(Path("output"), None)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_nothing_is_left_without_a_commit(tmp_path: Path, error: type[BaseException], existing: bool) -> None:
    if existing:
        write_layout(tmp_path / "layout", [ONE], tag="v1")
    before = listing(tmp_path)
    writer = LayoutWriter(tmp_path / "layout", "v2")
    add_image(writer, ONE, TWO)
    with pytest.raises(error), writer:
        raise error
    assert listing(tmp_path) == before


@pytest.mark.parametrize("step", range(5))
def test_an_interrupted_commit_leaves_the_old_image(layout: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    index = (layout / "index.json").read_bytes()
    replace = Path.replace
    done: list[Path] = []

    def interrupted(path: Path, target: Path) -> Path:
        if len(done) == step:
            raise KeyboardInterrupt
        done.append(path)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), LayoutWriter(layout, "v2") as writer:
        writer.commit(add_image(writer, pack(archive(file("new")))), None)
    monkeypatch.undo()
    assert (layout / "index.json").read_bytes() == index
    assert read_image(layout, None).layers == (ONE.blob, TWO.blob)
    assert [path.name for path in layout.parent.iterdir()] == ["layout"]
    build(layout, "v2", pack(archive(file("new"))))


def test_a_config_larger_than_clients_read_is_refused(tmp_path: Path) -> None:
    with LayoutWriter(tmp_path / "layout", None) as writer, pytest.raises(InputError, match="use fewer labels"):
        writer.store_json({"label": "x" * MAX_JSON}, CONFIG)


def test_stored_json_is_the_same_every_time(tmp_path: Path) -> None:
    with LayoutWriter(tmp_path / "layout", None) as writer:
        assert writer.store_json({"a": "é", "b": 1}, CONFIG) == writer.store_json({"b": 1, "a": "é"}, CONFIG)


# Keeping layers


def keep(image: Image, output: Path) -> None:
    with LayoutWriter(output, "new") as writer:
        for blob, layer in zip(image.layers, (ONE, TWO), strict=True):
            writer.keep(image, blob, layer.read())
        config = writer.store_json(image.config, CONFIG)
        manifest = image_manifest(config, [(blob, {}) for blob in image.layers], {})
        writer.commit(writer.store_json(manifest, MANIFEST), None)


@pytest.mark.parametrize("same", [True, False], ids=["same layout", "another layout"])
def test_kept_blobs_stay_byte_for_byte(layout: Path, same: bool) -> None:
    output = layout if same else layout.parent / "output"
    keep(read_image(layout, None), output)
    image = read_image(output, "new")
    assert image.layers == (ONE.blob, TWO.blob)
    for layer in (ONE, TWO):
        assert blob_path(output, layer.blob.digest).read_bytes() == layer.data
        assert msgspec.to_builtins(image.blobs.table(layer.blob)) == msgspec.to_builtins(layer.read())


def test_kept_blobs_take_no_space_where_links_can_be(layout: Path) -> None:
    keep(read_image(layout, None), layout.parent / "output")
    assert blob_path(layout, ONE.blob.digest).samefile(blob_path(layout.parent / "output", ONE.blob.digest))


def test_kept_blobs_are_copied_where_links_cannot_be(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(path: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link", str(path), None, str(target))

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    keep(read_image(layout, None), layout.parent / "output")
    kept = blob_path(layout.parent / "output", ONE.blob.digest)
    assert kept.read_bytes() == ONE.data
    assert not kept.samefile(blob_path(layout, ONE.blob.digest))


def test_kept_blobs_are_files_even_where_the_layout_has_links(layout: Path) -> None:
    blob = blob_path(layout, ONE.blob.digest)
    blob.rename(layout / "elsewhere")
    blob.symlink_to("../../elsewhere")
    keep(read_image(layout, None), layout.parent / "output")
    kept = blob_path(layout.parent / "output", ONE.blob.digest)
    assert not kept.is_symlink()
    assert kept.read_bytes() == ONE.data


@pytest.mark.parametrize("at", [0, -1])
def test_a_kept_blob_with_a_flipped_byte_is_found(layout: Path, at: int) -> None:
    image = read_image(layout, None)
    damaged = bytearray(TWO.data)
    damaged[at] ^= 1
    blob_path(layout, TWO.blob.digest).write_bytes(damaged)
    before = listing(layout.parent)
    with pytest.raises(CorruptImage, match=f"layer {TWO.blob.digest} of {layout} is damaged: its content has another"):
        keep(image, layout.parent / "output")
    assert listing(layout.parent) == before


def test_a_kept_blob_of_another_size_is_found(layout: Path) -> None:
    image = read_image(layout, None)
    os.truncate(blob_path(layout, TWO.blob.digest), 9)
    with pytest.raises(CorruptImage, match="has 9 bytes where the manifest says"):
        keep(image, layout.parent / "output")


def test_layers_that_are_not_used_go_again(layout: Path) -> None:
    image = read_image(layout, None)
    output = layout.parent / "output"
    with LayoutWriter(output, None) as writer:
        for layer in (ONE, TWO):
            writer.keep(image, layer.blob, layer.read())
        writer.limit({TWO.blob.digest})
        writer.commit(add_image(writer, TWO), None)
    assert not blob_path(output, ONE.blob.digest).exists()
    assert not table_path(output, ONE.blob.digest).exists()
    assert read_image(output, None).layers == (TWO.blob,)


def test_every_architecture_has_the_name_that_images_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, name in {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}.items():
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert host_architecture() == name


def test_a_layer_may_occur_twice(tmp_path: Path) -> None:
    assert read_image(write_layout(tmp_path / "layout", [ONE, ONE]), None).layers == (ONE.blob, ONE.blob)
