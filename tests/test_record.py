"""The record beside an image: what it tells, where it is kept, and what becomes of one that cannot be trusted."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action import inspection
from rechunk_action.errors import TooLarge
from rechunk_action.oci.image import MAX_RECORD, Image, digest_of, host_architecture
from rechunk_action.oci.layout import LayoutBlobs, read_image
from rechunk_action.oci.stage import RECORDS, record_path
from rechunk_action.oci.table import Blob, Table
from rechunk_action.record import (
    LABEL,
    STRUCTURE,
    LayerRecord,
    Record,
    bytes_by_component,
    encode_record,
    facts,
    read_record,
)
from rechunk_action.registry.image import RegistryBlobs, published_image
from rechunk_action.registry.tables import LABEL as TABLES_LABEL
from rechunk_action.registry.tables import RECORD
from rechunk_action.report import model
from rechunk_action.source.names import parse_name
from rechunk_action.tree.entry import Entry
from tests.building import Listener, build, places
from tests.faulty_proxy import ALWAYS, FaultyProxy
from tests.ostree_images import commit_tree, write_chunked
from tests.registries import repository
from tests.support import Packed, archive, directory, file, pack, write_layout

pytestmark = pytest.mark.usefixtures("small_components")

BLOBS = (Blob("sha256:" + "a" * 64, 70, ""), Blob("sha256:" + "b" * 64, 30, ""))
RECORD_OF_BLOBS = Record(
    packages={"rpm:bash.x86_64": "5.2-1"},
    layers=[LayerRecord({"rpm:bash.x86_64": 60, STRUCTURE: 10}, 0), LayerRecord({"file:usr/x": 30}, 12)],
)


REST = {"components": {"b": 30}, "dead": 0}


class OneRecord(LayoutBlobs):
    """Blobs of which there is nothing but a record."""

    def __init__(self, stored: bytes | None) -> None:
        super().__init__(Path("nowhere"))
        self._stored = stored

    def record(self, digest: str) -> bytes | None:
        del digest
        return self._stored


def image_with(stored: bytes | None, label: str | None = None) -> Image:
    """An image with these bytes for its record."""
    labels = {LABEL: digest_of(stored or b"") if label is None else label}
    return Image(OneRecord(stored), "sha256:", {"layers": [{}, {}]}, {"config": {"Labels": labels}}, BLOBS)


def stored(document: Any, *, level: int = 3) -> bytes:
    return zstandard.ZstdCompressor(level).compress(msgspec.json.encode(document))


def changed(**changes: Any) -> Any:
    return msgspec.to_builtins(RECORD_OF_BLOBS) | changes


class TestARecord:
    def test_is_read_as_it_was_written(self) -> None:
        assert read_record(image_with(encode_record(RECORD_OF_BLOBS))) == RECORD_OF_BLOBS

    @pytest.mark.parametrize(
        "bad",
        [
            None,
            b"",
            b"junk",
            encode_record(RECORD_OF_BLOBS)[:-3],
            stored(changed(format=2)),
            stored(changed(layers=[])),
            stored(changed(layers=[{"components": {"a": 69}, "dead": 0}, REST])),
            stored(changed(layers=[{"components": {"a": 71, "b": -1}, "dead": 0}, REST])),
            stored(changed(layers=[{"components": {"a": 70}, "dead": -1}, REST])),
            stored(changed(packages={"a": 1})),
            stored(changed(packages=None)),
            stored([]),
            zstandard.ZstdCompressor().compress(b'{"packages": {"a": "\xff"}}'),
            zstandard.ZstdCompressor().compress(b"[" * 100_000),
            zstandard.ZstdCompressor().compress(b'{"more": ' + b"[" * 100_000),
            zstandard.ZstdCompressor().compress(b" " * (9 << 20)),
            zstandard.ZstdCompressor(write_content_size=False).compress(b" " * (9 << 20)),
        ],
    )
    def test_that_is_none_or_another_images_is_not_taken(self, bad: bytes | None) -> None:
        assert read_record(image_with(bad)) is None

    @pytest.mark.parametrize("label", ["", "sha256:x", "sha256:../../etc/passwd", "sha256:" + "0" * 64])
    def test_that_the_image_does_not_name_is_not_taken(self, label: str) -> None:
        assert read_record(image_with(encode_record(RECORD_OF_BLOBS), label)) is None

    @given(st.data())
    def test_that_is_damaged_is_not_taken(self, data: st.DataObject) -> None:
        """Whatever the label says: it may be that of the damaged one."""
        whole = encode_record(RECORD_OF_BLOBS)
        at = data.draw(st.integers(0, len(whole) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
        found = read_record(image_with(whole[:at] + bytes([byte]) + whole[at + 1 :]))
        assert found in (None, RECORD_OF_BLOBS)

    def test_names_may_be_any_text(self) -> None:
        names = {"rpm:<script>": "`x`\n|", "\u202e": "::set-output"}
        record = msgspec.structs.replace(RECORD_OF_BLOBS, packages=names)
        found = read_record(image_with(encode_record(record)))
        assert found
        assert found.packages == names

    def test_is_told_by_facts(self) -> None:
        known = facts(image_with(encode_record(RECORD_OF_BLOBS)), "oci:x", "1")
        assert (known.ref, known.version, known.packages) == ("oci:x", "1", RECORD_OF_BLOBS.packages)
        assert [(layer.bytes, layer.components, layer.dead) for layer in known.layers] == [
            (70, RECORD_OF_BLOBS.layers[0].components, 0),
            (30, RECORD_OF_BLOBS.layers[1].components, 12),
        ]

    def test_cannot_say_that_more_is_superseded_than_there_is(self) -> None:
        layers = [LayerRecord(layer.components, 1 << 60) for layer in RECORD_OF_BLOBS.layers]
        known = facts(image_with(encode_record(Record(packages={}, layers=layers))), "oci:x", "1")
        assert [layer.dead for layer in known.layers] == [70, 30]

    def test_without_it_facts_tell_what_the_manifest_does(self) -> None:
        known = facts(image_with(None), "oci:x", "1")
        assert known.packages is None
        assert [(layer.bytes, layer.components, layer.dead) for layer in known.layers] == [
            (70, {}, None),
            (30, {}, None),
        ]


class TestComponents:
    @given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60)), max_size=8), st.integers(0, 500))
    def test_add_up_to_the_layer(self, costs: Sequence[tuple[str, int]], more: int) -> None:
        """Rounded costs of entries may be a few bytes more than there are."""
        entries = {"": Entry("d", 0o755, 0, 0, cost=3)}
        entries |= {f"{name}{number}": Entry("f", 0, 0, 0, cost=cost) for number, (name, cost) in enumerate(costs)}
        size = max(0, sum(entry.cost for entry in entries.values()) - 3) + more
        owner = {path: path[0] for path in entries if path.startswith("a")}
        found = bytes_by_component(Blob("", size, ""), Table(entries), owner)
        assert sum(found.values()) == size
        assert all(part > 0 for part in found.values())
        assert found.keys() <= {STRUCTURE, "a", "unclaimed"}
        assert list(found.values()) == sorted(found.values(), reverse=True)

    @pytest.mark.parametrize(("size", "found"), [(111, {"a": 70, "b": 30, STRUCTURE: 11}), (97, {"a": 67, "b": 30})])
    def test_have_what_belongs_to_no_file_apart(self, size: int, found: Mapping[str, int]) -> None:
        entries = {path: Entry("f", 0, 0, 0, cost=cost) for path, cost in (("a", 70), ("b", 30))}
        assert bytes_by_component(Blob("", size, ""), Table(entries), {"a": "a", "b": "b"}) == found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A system with three packages, two of them large enough for a layer each."""
    root = tmp_path / "tree"
    for name in ("one", "two", "small"):
        install(root, name, "1.0", 3_000 if name != "small" else 300)
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text('ID=small\nVERSION_ID="42"\n')
    return root


def install(root: Path, name: str, version: str, size: int = 3_000) -> None:
    """A package of a file with contents that belong to the version."""
    local = root / "var/lib/pacman/local"
    local.mkdir(parents=True, exist_ok=True)
    remove(root, name)
    (local / f"{name}-{version}").mkdir()
    (local / f"{name}-{version}/desc").write_text(f"%NAME%\n{name}\n\n%VERSION%\n{version}\n\n")
    (local / f"{name}-{version}/files").write_text(f"%FILES%\nusr/{name}\n\n")
    (root / "usr").mkdir(exist_ok=True)
    (root / f"usr/{name}").write_bytes(hashlib.shake_128(f"{name} {version}".encode()).digest(size))


def remove(root: Path, name: str) -> None:
    for folder in (root / "var/lib/pacman/local").glob(f"{name}-*"):
        shutil.rmtree(folder)
    (root / f"usr/{name}").unlink(missing_ok=True)


def packages_of(report: Mapping[str, Any]) -> dict[str, tuple[str | None, str | None]] | None:
    found = report["update"]["packages"]
    return None if found is None else {line["name"]: (line["old"], line["new"]) for line in found}


def layers_of(image: Image) -> Sequence[LayerRecord]:
    record = read_record(image)
    assert record
    return record.layers


class TestABuild:
    def test_keeps_a_record_beside_its_image(self, tree: Path, tmp_path: Path) -> None:
        report = build(tree, f"oci:{tmp_path}/image:1")
        image = read_image(tmp_path / "image", "1")
        known = facts(image, report["ref"], report["version"])
        assert msgspec.to_builtins(model.update(None, known)) == report["update"]
        assert known.packages == {f"alpm:{name}": "1.0" for name in ("one", "small", "two")}
        assert {name for layer in known.layers for name in layer.components} >= {"alpm:one", "alpm:two"}

    def test_of_the_same_tree_makes_the_same_record(self, tree: Path, tmp_path: Path) -> None:
        for number in (1, 2):
            build(tree, tmp_path / f"image{number}")
        first, second = (sorted((tmp_path / f"image{number}" / RECORDS).iterdir()) for number in (1, 2))
        assert [path.name for path in first] == [path.name for path in second]
        assert len(first) == 1

    def test_tells_which_packages_changed(self, tree: Path, tmp_path: Path) -> None:
        build(tree, f"oci:{tmp_path}/image:1")
        install(tree, "one", "1.1")
        install(tree, "new", "7", 300)
        remove(tree, "small")
        report = build(tree, f"oci:{tmp_path}/image:2", prev_ref=f"oci:{tmp_path}/image:1")
        assert packages_of(report) == {
            "alpm:new": (None, "7"),
            "alpm:one": ("1.0", "1.1"),
            "alpm:small": ("1.0", None),
        }
        largest = report["update"]["components"][0]
        assert (largest["name"], largest["old"], largest["new"]) == ("alpm:one", "1.0", "1.1")

    def test_carries_forward_what_is_known_of_kept_layers(self, tree: Path, tmp_path: Path) -> None:
        """A package that is gone has no owner in today's tree, and its dead bytes are still its own."""
        build(tree, f"oci:{tmp_path}/image:1", max_layers=3)
        remove(tree, "small")
        for number in range(2, 6):
            install(tree, "two", f"1.{number}")
            options = {"prev_ref": f"oci:{tmp_path}/image:{number - 1}", "max_overhead": 1}
            report = build(tree, f"oci:{tmp_path}/image:{number}", **options)
            old, new = (read_image(tmp_path / "image", tag) for tag in (str(number - 1), str(number)))
            known = dict(zip((blob.digest for blob in old.layers), layers_of(old), strict=True))
            for blob, layer in zip(new.layers, layers_of(new), strict=True):
                assert sum(layer.components.values()) == blob.size
                if blob.digest in known:
                    assert layer.components == known[blob.digest].components
            assert sum(layer.dead for layer in layers_of(new)) == report["bytes"]["dead"] > 0
            assert any("alpm:small" in layer.components for layer in layers_of(new))

    def test_goes_on_from_an_image_without_one(self, tree: Path, tmp_path: Path) -> None:
        """Then packages are compared from the next update on."""
        want = build(tree, f"oci:{tmp_path}/image:1")
        shutil.rmtree(tmp_path / "image" / RECORDS)
        install(tree, "one", "1.1")
        report = build(tree, f"oci:{tmp_path}/image:2", prev_ref=f"oci:{tmp_path}/image:1")
        assert not report["fresh"]
        assert report["layers"]["kept"] >= want["layers"]["total"] - 2
        assert packages_of(report) is None
        install(tree, "one", "1.2")
        report = build(tree, f"oci:{tmp_path}/image:3", prev_ref=f"oci:{tmp_path}/image:2")
        assert packages_of(report) == {"alpm:one": ("1.1", "1.2")}

    def test_adopts_an_image_of_another_builder(self, tree: Path, tmp_path: Path) -> None:
        items = [
            directory("usr"),
            *(file(f"usr/{name}", (tree / f"usr/{name}").read_bytes()) for name in ("one", "two")),
        ]
        write_layout(tmp_path / "foreign", [pack(archive(*items))])
        build(tree, tmp_path / "image", prev_ref=f"oci:{tmp_path}/foreign")
        kept, *_ = layers_of(read_image(tmp_path / "image", None))
        assert kept.components.keys() >= {"alpm:one", "alpm:two"}

    def test_of_chunks_names_the_first_layer_as_a_whole(self, tree: Path, tmp_path: Path) -> None:
        (tree / "sysroot").mkdir()
        (tree / "usr/lib/modules/6.1").mkdir(parents=True)
        (tree / "usr/lib/modules/6.1/vmlinuz").write_bytes(b"kernel")
        build(tree, f"oci:{tmp_path}/image:1", format="ostree")
        install(tree, "one", "1.1")
        report = build(tree, f"oci:{tmp_path}/image:2", prev_ref=f"oci:{tmp_path}/image:1")
        image = read_image(tmp_path / "image", "2")
        first, *chunks = layers_of(image)
        assert first.components == {"OSTree commit and directories": image.layers[0].size}
        assert any("alpm:one" in chunk.components for chunk in chunks)
        assert packages_of(report) == {"alpm:one": ("1.0", "1.1")}

    def test_that_is_too_large_tells_of_what(self, tree: Path, tmp_path: Path) -> None:
        build(tree, f"oci:{tmp_path}/image:1")
        install(tree, "one", "1.1")
        with pytest.raises(TooLarge) as caught:
            build(tree, f"oci:{tmp_path}/image:2", prev_ref=f"oci:{tmp_path}/image:1", max_update_size=1000)
        update = caught.value.update
        assert update.bytes > 1000
        assert (update.new.digest, update.components[0].name) == ("", "alpm:one")
        assert update.packages == [model.PackageLine(name="alpm:one", old="1.0", new="1.1")]


class TestALayout:
    def test_holds_the_record_of_each_image(self, tree: Path, tmp_path: Path) -> None:
        for number in (1, 2):
            build(tree, f"oci:{tmp_path}/image:{number}", fresh=True, version=str(number))
            install(tree, "one", "2")
        for tag in ("1", "2"):
            assert read_record(read_image(tmp_path / "image", tag))
        assert len(list((tmp_path / "image" / RECORDS).iterdir())) == 2

    def test_hands_out_no_more_than_a_record_may_have(self, tree: Path, tmp_path: Path) -> None:
        build(tree, tmp_path / "image")
        image = read_image(tmp_path / "image", None)
        path = record_path(tmp_path / "image", image.labels[LABEL])
        path.write_bytes(b"\0" * (MAX_RECORD + 100))
        assert len(image.blobs.record(image.labels[LABEL]) or b"") == MAX_RECORD + 1
        assert read_record(image) is None


def image_at(target: str, tag: str) -> Image:
    host, _, name = target.partition("/")
    with repository(host, name) as opened:
        image = published_image(opened, tag, host_architecture())
        assert isinstance(image.blobs, RegistryBlobs)
        record = image.blobs.record(image.labels.get(LABEL, ""))
        return replace(image, blobs=OneRecord(record))


def compared(old: str, new: str) -> model.Update:
    with places() as opened:
        names = parse_name(old), parse_name(new)
        return model.update(*inspection.compare(*names, opened, Listener(), threads=2, scratch=Path("/tmp")))


class TestARegistry:
    def test_keeps_the_record_with_the_tables(self, tree: Path, target: str) -> None:
        report = build(tree, f"docker://{target}")
        image = image_at(target, report["version"])
        host, _, name = target.partition("/")
        with repository(host, name) as opened:
            artifact = opened.manifest(image.labels[TABLES_LABEL])
            tagged = [tag for tag in opened.tags() if tag.startswith("sha256-")]
            assert artifact
            assert [opened.manifest(tag) for tag in tagged] == [artifact]
        *tables, record = msgspec.json.decode(artifact.data)["layers"]
        assert len(tables) == len(image.layers)
        assert (record["mediaType"], record["digest"]) == (RECORD, image.labels[LABEL])
        assert (
            msgspec.to_builtins(model.update(None, facts(image, report["ref"], report["version"]))) == report["update"]
        )

    def test_takes_the_record_forward(self, tree: Path, target: str) -> None:
        first = build(tree, f"docker://{target}")
        install(tree, "one", "1.1")
        second = build(tree, f"docker://{target}", version="42-20261127")
        assert packages_of(second) == {"alpm:one": ("1.0", "1.1")}
        assert second["update"]["old"]["version"] == first["version"]

    @pytest.mark.parametrize("damage", ["lost", "short", "other"])
    def test_that_damaged_it_is_no_reason_to_fail(
        self, tree: Path, target: str, line: FaultyProxy, damage: str
    ) -> None:
        report = build(tree, f"docker://{target}")
        install(tree, "one", "1.1")
        answer = {"lost": (404, b""), "short": (200, b"x"), "other": (200, b"\0" * 5000)}
        status, body = answer[damage]
        path = f"blobs/{image_at(target, report['version']).labels[LABEL]}"
        line.fault("answer", method="GET", path=path, status=status, body=body, times=ALWAYS)
        told = Listener()
        again = build(tree, f"docker://{target}", version="42-20261127", progress=told)
        line.forget()
        assert (again["fresh"], packages_of(again)) == (False, None)
        assert again["layers"]["kept"] > 0
        assert not told.heard("no table")
        assert read_record(image_at(target, "42-20261127"))

    def test_tells_what_an_update_costs_without_reading_a_layer(
        self, tree: Path, target: str, line: FaultyProxy
    ) -> None:
        build(tree, f"docker://{target}", version="1.0")
        install(tree, "one", "1.1")
        want = build(tree, f"docker://{target}", version="1.1")["update"]
        line.forget()
        found = compared(f"docker://{target}:1.0", f"docker://{target}:1.1")
        assert msgspec.to_builtins(found.components) == want["components"]
        assert msgspec.to_builtins(found.packages) == want["packages"]
        assert len(line.exchanges) <= 2 * 4 + 1  # manifest, config, artifact, record; and a look at who may read
        layers = {blob.digest for tag in ("1.0", "1.1") for blob in image_at(target, tag).layers}
        assert not [each.path for each in line.exchanges if any(digest in each.path for digest in layers)]


class TestTheHistoryInAReport:
    def test_has_the_versions_before_this_one(self, tree: Path, target: str) -> None:
        assert build(tree, f"docker://{target}", version="1.0")["history"] is None
        install(tree, "one", "1.1")
        build(tree, f"docker://{target}", version="1.1", tags=("latest",))
        install(tree, "one", "1.2")
        report = build(tree, f"docker://{target}", version="1.2", tags=("latest",))
        found = report["history"]
        assert [line["image"]["version"] for line in found["versions"]] == ["1.0", "1.1", "1.2"]
        assert found["last"]["bytes"] == report["bytes"]["update"]
        assert found["versions"][-1]["image"]["digest"] == report["digest"]
        assert [skip["behind"] for skip in found["skips"]] == [1, 2]

    def test_has_what_would_be_published(self, tree: Path, target: str) -> None:
        build(tree, f"docker://{target}", version="1.0")
        install(tree, "one", "1.1")
        report = build(tree, f"docker://{target}", version="1.1", push=False)
        assert not report["published"]
        assert [line["image"]["version"] for line in report["history"]["versions"]] == ["1.0", "1.1"]

    def test_is_no_reason_to_fail(self, tree: Path, target: str, line: FaultyProxy) -> None:
        for number in (1, 2):
            install(tree, "one", f"1.{number}")
            build(tree, f"docker://{target}", version=f"1.{number}")
        install(tree, "one", "1.3")
        digest = image_at(target, "1.1").manifest["config"]["digest"]
        line.fault("answer", path=f"blobs/{digest}", status=500, times=ALWAYS)
        told = Listener()
        report = build(tree, f"docker://{target}", version="1.3", progress=told)
        line.forget()
        assert (report["history"], report["published"]) == (None, True)
        assert told.heard("tells nothing of older versions")


class TestComparing:
    def test_images_without_records_are_read(self, tree: Path, tmp_path: Path) -> None:
        build(tree, f"oci:{tmp_path}/image:1")
        install(tree, "one", "1.1")
        want = build(tree, f"oci:{tmp_path}/image:2", prev_ref=f"oci:{tmp_path}/image:1")["update"]
        shutil.rmtree(tmp_path / "image" / RECORDS)
        found = compared(f"oci:{tmp_path}/image:1", f"oci:{tmp_path}/image:2")
        assert msgspec.to_builtins(found.components) == want["components"]
        assert msgspec.to_builtins(found.packages) == want["packages"]

    def test_an_image_that_another_begins_with_is_read_too(self, tmp_path: Path) -> None:
        """Nothing in it has to be downloaded, but its packages tell which ones are new."""

        def package(name: str) -> Packed:
            desc = f"%NAME%\n{name}\n\n%VERSION%\n1.0\n\n"
            return pack(archive(file(f"var/lib/pacman/local/{name}-1.0/desc", desc.encode())))

        write_layout(tmp_path / "old", [package("one")])
        write_layout(tmp_path / "new", [package("one"), package("two")])
        found = compared(f"oci:{tmp_path}/old", f"oci:{tmp_path}/new")
        assert found.packages == [model.PackageLine(name="alpm:two", old=None, new="1.0")]

    def test_chunks_of_others_are_told_by_their_names(self, tree: Path, tmp_path: Path) -> None:
        repo = tmp_path / "repo"
        for number in (1, 2):
            install(tree, "one", f"1.{number}")
            commit = commit_tree(repo, tree)
            write_chunked(repo, commit, tmp_path / f"image{number}")
        found = compared(f"oci:{tmp_path}/image1", f"oci:{tmp_path}/image2")
        assert found.packages is None
        assert sum(line.bytes for line in found.components) == found.bytes > 0
