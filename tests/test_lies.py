"""What is stored beside a previous image may lie. Each way to lie has no effect, costs no more than reading a layer, or
is told; what only `verify` finds is shown as well, and that it finds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric import ec

from rechunk_action import inspection
from rechunk_action.errors import VerificationFailed
from rechunk_action.oci.image import CONFIG, MANIFEST, Image, Json, digest_of, host_architecture
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.stage import table_path
from rechunk_action.oci.table import Blob, Table, decode_table, encode_table
from rechunk_action.progress import Progress
from rechunk_action.record import LABEL as RECORD_LABEL
from rechunk_action.record import encode_record, read_record
from rechunk_action.registry.client import Repository
from rechunk_action.registry.image import RegistryBlobs, published_image
from rechunk_action.registry.tables import LABEL, RECORD, TABLE, tables_manifest, tables_tag
from rechunk_action.source.names import parse_name
from rechunk_action.tree.entry import Entry
from tests.building import Listener, build, places
from tests.registries import Registry, plain_registry, repository
from tests.support import Item, archive, directory, file, pack, write_layout

pytestmark = pytest.mark.usefixtures("small_components")

GOOD, EVIL = b"good" * 1000, b"evil" * 1000
VERSION = "42-20261126"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A system of several components."""
    root = tmp_path / "tree"
    for part in range(3):
        (root / f"usr/lib/part{part}").mkdir(parents=True)
        (root / f"usr/lib/part{part}/data").write_bytes(hashlib.shake_128(bytes([part])).digest(20_000))
    (root / "usr/tool").write_bytes(GOOD)
    (root / "etc").mkdir()
    (root / "usr/lib/os-release").write_text('ID=small\nVERSION_ID="42"\n')
    return root


def is_tree(name: str, tree: Path) -> bool:
    """What `verify` says of an image."""
    with places() as opened:
        image, source = parse_name(name), parse_name(f"dir:{tree}")
        try:
            inspection.verify(image, source, opened, Progress(level=-1), threads=2, scratch=tree.parent)
        except VerificationFailed:
            return False
    return True


# Tables


def _stored(table: object) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(msgspec.msgpack.encode(table))


def _changed(**changes: Any) -> Callable[[Table, Table], bytes]:
    return lambda table, _: encode_table(msgspec.structs.replace(table, **changes))


def _with(path: str, **changes: Any) -> Callable[[Table, Table], bytes]:
    """The table with another entry at a path."""
    entry = msgspec.structs.replace(Entry("f", 0o644, 0, 0), **changes)
    return lambda table, _: encode_table(msgspec.structs.replace(table, entries=table.entries | {path: entry}))


def _without(path: str) -> Callable[[Table, Table], bytes]:
    def made(table: Table, _: Table) -> bytes:
        return encode_table(
            msgspec.structs.replace(table, entries={p: e for p, e in table.entries.items() if p != path})
        )

    return made


NOT_TAKEN: Mapping[str, Callable[[Table, Table], bytes]] = {
    "of another layer": lambda _, other: encode_table(other),
    "of another diff ID": _changed(diff_id="sha256:" + "0" * 64),
    "of no diff ID": _changed(diff_id=""),
    "of another format": _changed(format="ostree"),
    "cut short": lambda table, _: encode_table(table)[:-5],
    "with a bit flipped": lambda table, _: (data := encode_table(table))[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "that is nothing": lambda *_: b"",
    "that is none": lambda *_: _stored({"entries": 1}),
    "with a name that is not UTF-8": lambda *_: zstandard.ZstdCompressor().compress(b"\x91\x81\xa1\xff\x94\xa1d\0\0\0"),
    "nested without end": lambda *_: zstandard.ZstdCompressor().compress(
        b"\x99\x80\x90\x90\x80\xa0\xa0\xa0\0" + b"\x91" * 99999
    ),
    "without a root": _without(""),
    "without a directory": _without("usr"),
    "with a file for the root": _with(""),
    "below a file": _with("usr/tool/below"),
    "outside of the root": _with("usr/.."),
    "with a doubled slash": _with("usr//x"),
    "with a zero byte": _with("usr/a\0b"),
    "with a negative cost": lambda table, _: _stored(_costing(table, -1)),
    "that costs more than the layer": lambda table, _: _stored(_costing(table, 1 << 40)),
    "with a cost beyond 64 bits": lambda table, _: _stored(_costing(table, (1 << 64) - 1)),
    "with negative dead bytes": _changed(dead=-1),
    "with more dead bytes than the layer": _changed(dead=1 << 40),
    "that hides what is not there": _changed(opaque=["usr/nowhere"]),
    "that removes the root": _changed(whiteouts=[""]),
    "that removes from nowhere": _changed(whiteouts=["nowhere/x"]),
    "with links that clients refuse": _changed(links={"usr/x": "usr/y"}),
    "with a problem of any length": _changed(problem="x" * 5000),
}


def _costing(table: Table, cost: int) -> Any:
    fields = msgspec.to_builtins(table, builtin_types=[bytes])
    return [{path: [*entry[:-1], cost] for path, entry in fields[0].items()}, *fields[1:]]


@dataclass
class Layouts:
    """An image of two layers in a layout, and builds that update it."""

    tree: Path
    place: Path
    told: Listener = field(default_factory=Listener)

    def blob(self, number: int) -> Blob:
        return read_image(self.place, "1").layers[number]

    def table(self, number: int) -> Table:
        found = decode_table(table_path(self.place, self.blob(number).digest).read_bytes(), self.blob(number))
        assert found
        return found

    def store(self, number: int, data: bytes) -> None:
        table_path(self.place, self.blob(number).digest).write_bytes(data)

    def update(self) -> Json:
        (self.tree / "etc/motd").write_text("changed")
        name = f"oci:{self.place}"
        return build(self.tree, f"{name}:2", prev_ref=f"{name}:1", progress=self.told)

    def updated_right(self) -> bool:
        return is_tree(f"oci:{self.place}:2", self.tree)


@pytest.fixture
def layouts(tree: Path, tmp_path: Path) -> Layouts:
    build(tree, f"oci:{tmp_path}/image:1", max_layers=2)
    return Layouts(tree, tmp_path / "image")


@pytest.mark.parametrize("lie", NOT_TAKEN)
def test_a_table_that_cannot_be_that_of_the_layer_costs_a_look_at_the_layer(layouts: Layouts, lie: str) -> None:
    number = next(number for number in (0, 1) if "usr/tool" in layouts.table(number).entries)
    layouts.store(number, NOT_TAKEN[lie](layouts.table(number), layouts.table(1 - number)))
    report = layouts.update()
    assert layouts.told.heard("1 of 2 layers have no table stored")
    assert report["layers"]["kept"] == 2
    assert layouts.updated_right()


def test_a_true_table_saves_the_look(layouts: Layouts) -> None:
    for number in (0, 1):
        layouts.store(number, encode_table(layouts.table(number)))
    layouts.update()
    assert not layouts.told.heard("no table stored")
    assert layouts.updated_right()


HARMLESS: Mapping[str, Callable[[Table, Table], bytes]] = {
    "that lacks a file": _without("usr/tool"),
    "with a file of another content": _with("usr/tool", size=4000, digest=bytes(32)),
    "with a file of another mode": _with("usr/tool", mode=0o4755),
    "with a file that is not there": _with("usr/more", size=1, digest=bytes(32), cost=1),
    "that costs nothing": lambda table, _: _stored(_costing(table, 0)),
    "with a problem": _changed(problem="it is said to be bad"),
    "that removes": _changed(whiteouts=["usr/lib/gone"]),
}


@pytest.mark.parametrize("lie", HARMLESS)
def test_a_table_that_tells_less_or_worse_than_there_is_costs_bytes_alone(layouts: Layouts, lie: str) -> None:
    """What the tree has is written again then."""
    number = next(number for number in (0, 1) if "usr/tool" in layouts.table(number).entries)
    layouts.store(number, HARMLESS[lie](layouts.table(number), layouts.table(1 - number)))
    layouts.update()
    assert layouts.updated_right()


def _is_evil(*members: Item) -> Sequence[Item]:
    return [directory("usr"), *members]


@pytest.mark.parametrize(
    "members",
    [
        _is_evil(file("usr/tool", EVIL)),
        _is_evil(file("usr/tool", GOOD, mode=0o4755)),
        _is_evil(file("usr/tool", GOOD), file("usr/backdoor", EVIL)),
        _is_evil(file("usr/tool", GOOD), file("usr/lib/.wh.os-release")),
    ],
    ids=["content", "mode", "file", "removal"],
)
@pytest.mark.parametrize("believed", [True, False])
def test_a_table_that_tells_what_the_tree_wants_is_found_out_by_verify(
    tree: Path, tmp_path: Path, members: list[Item], *, believed: bool
) -> None:
    """Of a layer that holds something else. Who reads the layer is not deceived."""
    layout = write_layout(tmp_path / "image", [pack(archive(*members))], tag="1")
    layouts = Layouts(tree, layout)
    told = pack(archive(directory("usr"), file("usr/tool", GOOD))).read()
    path = table_path(layout, layouts.blob(0).digest)
    path.parent.mkdir(parents=True)
    if believed:
        path.write_bytes(encode_table(msgspec.structs.replace(told, diff_id=layouts.blob(0).diff_id)))
    report = layouts.update()
    assert not believed or report["layers"]["kept"] == 1
    assert layouts.updated_right() is not believed


def test_a_layer_that_cannot_be_kept_is_not_taken_over(tree: Path, tmp_path: Path) -> None:
    """It has no table that could be stored."""
    bad = pack(archive(directory("usr"), file("usr/caf\udce9"), file("usr/tool", GOOD)))
    layouts = Layouts(tree, write_layout(tmp_path / "image", [bad], tag="1"))
    report = layouts.update()
    assert (report["fresh"], report["layers"]["kept"]) == (True, 0)
    assert layouts.updated_right()


# The artifact in a registry


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with plain_registry() as running:
        yield running


@dataclass
class Published:
    """An image that was published, and that somebody else publishes once more with other things beside it."""

    tree: Path
    repository: Repository
    told: Listener = field(default_factory=Listener)

    @property
    def image(self) -> Image:
        return published_image(self.repository, VERSION, host_architecture())

    @property
    def artifact(self) -> Json:
        found = self.repository.manifest(self.image.labels[LABEL])
        assert found
        document: Json = msgspec.json.decode(found.data)
        return document

    def republish(self, artifact: Json, labels: Mapping[str, str] | None = None) -> None:
        """As the publisher could: with another artifact beside the same layers."""
        image = self.image
        stored = msgspec.json.encode(artifact)
        self.repository.put_manifest(digest_of(stored), stored, MANIFEST)
        config = deepcopy(image.config)
        config["config"]["Labels"] |= {LABEL: digest_of(stored), **(labels or {})}
        data = msgspec.json.encode(config)
        described = {"mediaType": CONFIG, "digest": self.repository.upload_bytes(data), "size": len(data)}
        manifest = msgspec.json.encode(image.manifest | {"config": described})
        self.repository.put_manifest(VERSION, manifest, MANIFEST)
        self.repository.put_manifest(tables_tag(described), stored, MANIFEST)

    def descriptor(self, data: bytes) -> Json:
        return {"digest": self.repository.upload_bytes(data), "size": len(data)}

    def update(self, **options: Any) -> Json:
        (self.tree / "etc/motd").write_text("changed")
        return build(self.tree, f"docker://{self.repository}", progress=self.told, **options)

    def updated_right(self, report: Json) -> bool:
        return is_tree(f"docker://{report['ref']}", self.tree)


@pytest.fixture
def published(registry: Registry, tree: Path, request: pytest.FixtureRequest) -> Iterator[Published]:
    name = f"test/l{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    with repository(registry.host, name) as opened:
        build(tree, f"docker://{opened}", max_layers=2)
        yield Published(tree, opened)


ARTIFACTS: Mapping[str, Callable[[Json], Json]] = {
    "in another order": lambda it: it | {"layers": [it["layers"][1], it["layers"][0], *it["layers"][2:]]},
    "too few": lambda it: it | {"layers": it["layers"][1:]},
    "too many": lambda it: it | {"layers": [it["layers"][0], *it["layers"]]},
    "none": lambda it: it | {"layers": []},
    "of another type": lambda it: it | {"artifactType": "application/vnd.other"},
    "of another version": lambda it: it | {"layers": [blob | {"mediaType": TABLE + "2"} for blob in it["layers"]]},
    "of another size": lambda it: it | {"layers": [blob | {"size": blob["size"] + 1} for blob in it["layers"]]},
    "of a negative size": lambda it: it | {"layers": [blob | {"size": -1} for blob in it["layers"]]},
    "of a terabyte": lambda it: it | {"layers": [blob | {"size": 1 << 40} for blob in it["layers"]]},
}


class TestAnArtifact:
    @pytest.mark.parametrize("lie", ARTIFACTS)
    def test_that_does_not_fit_the_image_costs_a_look_at_its_layers(self, published: Published, lie: str) -> None:
        published.republish(ARTIFACTS[lie](published.artifact))
        report = published.update()
        assert published.told.heard("2 of 2 layers have no table stored")
        assert report["layers"]["kept"] == 2
        assert published.updated_right(report)

    @pytest.mark.parametrize("digest", ["", "latest", "sha256:x", "../../../../v2/", "sha256:" + "0" * 64])
    def test_that_is_named_wrong_is_none(self, published: Published, digest: str) -> None:
        published.republish(published.artifact, {LABEL: digest})
        report = published.update()
        assert published.told.heard("2 of 2 layers have no table stored")
        assert published.updated_right(report)

    def test_that_another_tag_keeps_is_not_asked_for(self, published: Published) -> None:
        """The tag keeps it from being collected, and tells nothing."""
        tag = tables_tag(published.image.manifest["config"])
        published.repository.put_manifest(tag, msgspec.json.encode(published.artifact | {"layers": []}), MANIFEST)
        report = published.update()
        assert not published.told.heard("no table stored")
        assert published.updated_right(report)

    def test_with_the_record_of_another_image_tells_nothing(self, published: Published) -> None:
        record = read_record(published.image)
        assert record
        other = encode_record(msgspec.structs.replace(record, layers=record.layers[1:]))
        tables = [blob for blob in published.artifact["layers"] if blob["mediaType"] != RECORD]
        published.republish(tables_manifest(tables, published.descriptor(other)), {RECORD_LABEL: digest_of(other)})
        assert read_record(published.image) is None
        assert published.updated_right(published.update())


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class TestASignedImage:
    """Somebody who can write to the repository, and has no key, publishes a layer and a table that lies about it."""

    def test_does_not_rest_on_what_nobody_has_signed(
        self, published: Published, key: ec.EllipticCurvePrivateKey
    ) -> None:
        self._put_a_trap(published)
        report = published.update(sign_key=key)
        assert published.told.heard("is not signed by this key, so nothing that is stored beside it is believed")
        assert published.updated_right(report)

    def test_believes_what_its_key_has_signed(self, published: Published, key: ec.EllipticCurvePrivateKey) -> None:
        published.update(sign_key=key)
        (published.tree / "etc/more").write_text("changed again")
        published.told = Listener()
        report = published.update(sign_key=key)
        assert not published.told.heard("no table stored")
        assert published.updated_right(report)

    def test_does_not_take_the_signature_of_another_key(
        self, published: Published, key: ec.EllipticCurvePrivateKey
    ) -> None:
        published.update(sign_key=ec.generate_private_key(ec.SECP256R1()))
        published.update(sign_key=key)
        assert published.told.heard("is not signed by this key")

    def test_without_a_key_whoever_publishes_is_believed(self, published: Published) -> None:
        """They could have published any image. `verify` tells."""
        self._put_a_trap(published)
        assert not published.updated_right(published.update())

    def _put_a_trap(self, published: Published) -> None:
        image = published.image
        assert isinstance(image.blobs, RegistryBlobs)
        tables = {blob.digest: image.blobs.table(blob) for blob in image.layers}
        trap = pack(archive(directory("usr"), file("usr/tool", EVIL)))
        published.repository.upload_bytes(trap.data)
        told = pack(archive(directory("usr"), file("usr/tool", GOOD))).read()
        told = msgspec.structs.replace(told, diff_id=trap.blob.diff_id)
        blobs = [*image.layers, trap.blob]
        stored = [encode_table(table) for table in (*tables.values(), told) if table]
        artifact = tables_manifest([published.descriptor(table) for table in stored], published.artifact["layers"][-1])
        config = deepcopy(image.config)
        config["rootfs"]["diff_ids"] = [blob.diff_id for blob in blobs]
        config["history"] = [{"comment": "layer"} for _ in blobs]
        data = msgspec.json.encode(config)
        manifest = deepcopy(image.manifest)
        manifest["layers"].append(
            {"mediaType": trap.blob.media_type, "digest": trap.blob.digest, "size": trap.blob.size}
        )
        manifest["config"] = {"mediaType": CONFIG, "digest": published.repository.upload_bytes(data), "size": len(data)}
        published.repository.put_manifest(VERSION, msgspec.json.encode(manifest), MANIFEST)
        published.republish(artifact)
