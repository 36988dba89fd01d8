"""What comes from elsewhere is read or refused: no other exception, no memory without bound, no end that does not come.

Valid archives, tables, records, documents and headers are damaged: bits flipped, pieces cut, repeated, mixed, taken
from others, parts replaced; where a checksum would end it there, that is made right again. With
`--hypothesis-profile=long`, that goes on for hours.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import resource
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rechunk_action.errors import RechunkError
from rechunk_action.oci.compression import bomb_limit
from rechunk_action.oci.config import history_comment
from rechunk_action.oci.image import CONFIG, INDEX, MANIFEST, Image, host_architecture
from rechunk_action.oci.layout import LayoutBlobs, read_image
from rechunk_action.oci.merge import RULES, Replay
from rechunk_action.oci.table import Blob, Table, decode_table, encode_table
from rechunk_action.ostree.chunk import read_chunk, read_commit_layer
from rechunk_action.ostree.chunked import last_chunk
from rechunk_action.plan.plain import Published, plan_update
from rechunk_action.record import LABEL as RECORD_LABEL
from rechunk_action.record import LayerRecord, Record, encode_record, facts
from rechunk_action.registry.addresses import join
from rechunk_action.registry.blobs import stated_size
from rechunk_action.registry.challenge import choose, parse_challenges, parse_token
from rechunk_action.registry.client import Repository, _parse_tags
from rechunk_action.registry.session import Answer, Session, _retry_after
from rechunk_action.registry.tables import ARTIFACT, RECORD, TABLE, find_beside
from rechunk_action.tree.entry import Entry
from tests.support import (
    Form,
    archive,
    device,
    digest,
    directory,
    file,
    hardlink,
    item,
    packed,
    symlink,
    write_blob,
    write_index,
)

fuzzed = settings(
    max_examples=3 * settings().max_examples,
    deadline=timedelta(seconds=10),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

MEMORY = 1 << 30
"""Bytes that all of this may take beyond what Python has when it starts. zstd alone may ask for 128 MiB."""


@pytest.fixture(autouse=True, scope="module")
def _little_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


LONGEST = 20_000
"""Characters of a message. A name may have 4,096, each shown with four."""

INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"/",
    b"..",
    b".wh.",
    b"\n",
    b"7" * 11,
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b'"',
)


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds after some accidents."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.integers(1, 40) | st.sampled_from([512, 1024]))
        kind = draw(st.sampled_from(["flip", "put", "cut", "end", "again", "often", "mix", "random"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "put":
            new = draw(st.sampled_from(INTERESTING))
            data[at : at + len(new)] = new
        elif kind == "cut":
            del data[at : at + size]
        elif kind == "end":
            del data[at:]
        elif kind == "again":
            data[at:at] = data[at : at + size]
        elif kind == "often":
            data[at:at] = bytes(data[at : at + size]) * draw(st.integers(2, 200))
        elif kind == "mix":
            other = draw(st.sampled_from(seeds))
            start = draw(st.integers(0, max(0, len(other) - 1)))
            data[at : at + size] = other[start : start + size]
        else:
            data[at : at + size] = draw(st.binary(max_size=40))
    return bytes(data)


def is_handled(act: Callable[[], object]) -> object:
    """The outcome, None where it was refused with a message."""
    try:
        return act()
    except RechunkError as error:
        message = str(error).strip()
    assert 0 < len(message) < LONGEST
    return None


# Archives

PARTS = (
    directory("./", mode=0o711),
    directory("usr", xattrs={"user.a": b"\xff"}),
    file("usr/x", b"content" * 100, xattrs={"security.capability": b"1" * 20}),
    hardlink("usr/link", "usr/x"),
    symlink("usr/s", "x" * 150),
    file("usr/.wh.y"),
    file("usr/.wh..wh..opq"),
    file("usr/" + "n" * 120, b"x" * 513, uid=2**31 - 1, mtime=-1.5),
    device("dev/null"),
    item("global", b"g", b"13 comment=x\n"),
    file("d/" * 100 + "deep"),
)
FORMS: tuple[Form, ...] = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
ARCHIVES = [archive(*PARTS, form=form) for form in FORMS] + [archive(file("a"), form=tarfile.USTAR_FORMAT)]


def sealed(data: bytes) -> bytes:
    """An archive whose headers have the right checksums, as far as they look like headers."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block[:148]) + sum(block[156:]) + 256
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def archives(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    return damaged(seeds).flatmap(lambda data: st.sampled_from([data, sealed(data), sealed(data)]))


@fuzzed
@given(archives(ARCHIVES))
def test_archives(data: bytes) -> None:
    table = is_handled(lambda: packed(data, "none").read(limit=bomb_limit(len(data))))
    if isinstance(table, Table):
        usable(table, packed(data, "none", table.diff_id).blob)


names = st.lists(
    st.sampled_from(["a", "b", "usr", ".", "..", "", ".wh.a", ".wh..wh..opq", ".wh.", "\udce9"]), min_size=1, max_size=4
)
members = st.builds(
    lambda name, kind, target, content: item(name, kind, content if kind == tarfile.REGTYPE else b"", target=target),
    names.map("/".join),
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]),
    names.map("/".join),
    st.binary(max_size=3),
)


@fuzzed
@given(st.lists(members, max_size=12), st.sampled_from(FORMS))
def test_archives_of_anything(items: list[Any], form: Form) -> None:
    data = archive(*items, form=form)
    table = is_handled(lambda: packed(data, "none").read(limit=bomb_limit(len(data))))
    if isinstance(table, Table):
        usable(table, packed(data, "none", table.diff_id).blob)


def usable(table: Table, blob: Blob) -> None:
    """What is read can be stored, if it can be kept, and merged and planned with whatever it holds."""
    if not table.problem:
        again = decode_table(encode_table(table), blob, table.format)
        assert again is not None
        assert msgspec.to_builtins(again, builtin_types=[bytes]) == msgspec.to_builtins(table, builtin_types=[bytes])
    tree = {"": Entry("d", 0o755, 0, 0), "usr": Entry("d", 0o755, 0, 0), "a": Entry("f", 0o644, 0, 0, size=1)}
    merged = Replay([table, table], tree)
    for rule in RULES:
        merged.unchanged(rule)
    merged.exposed()
    plan_update([Published(blob, table)] * 2, tree, dict, max_layers=5, max_overhead=0.05)


ZIPPED = [gzip.compress(ARCHIVES[0], mtime=0), gzip.compress(ARCHIVES[1][:700]) + gzip.compress(ARCHIVES[1][700:])]
PRESSED = [
    zstandard.ZstdCompressor(write_checksum=True).compress(ARCHIVES[0]),
    struct.pack("<II", 0x184D2A50, 5) + b"notes" + zstandard.ZstdCompressor().compress(ARCHIVES[1]),
    zstandard.ZstdCompressor(write_content_size=False).compress(ARCHIVES[1]),
]


@fuzzed
@given(damaged(ZIPPED).map(lambda data: (data, "gzip")) | damaged(PRESSED).map(lambda data: (data, "zstd")))
def test_compressed_blobs(blob: tuple[bytes, str]) -> None:
    data, compression = blob
    is_handled(lambda: packed(data, compression).read(limit=bomb_limit(len(data))))


# Chunks

XATTRS = b"security.selinux\0label\0\x11\x18"


def _object(kind: str, content: bytes) -> Any:
    name = digest(content).partition(":")[2]
    return file(f"sysroot/ostree/repo/objects/{name[:2]}/{name[2:]}.{kind}", content)


def _chunks() -> list[bytes]:
    meta = struct.pack(">III", 0, 0, 0o40755)
    tree = b""
    return [
        archive(_object("commit", bytes(80)), _object("dirmeta", meta), _object("dirtree", tree), directory("sysroot")),
        archive(_object("dirtree", b"a\0" + bytes(32) + b"\x02\x22" + b"\x24"), _object("file-xattrs", XATTRS)),
        archive(
            _object("file-xattrs", XATTRS),
            hardlink(
                "sysroot/ostree/repo/objects/00/" + "0" * 62 + ".file-xattrs-link", "../00/" + "0" * 62 + ".file-xattrs"
            ),
            file("sysroot/ostree/repo/objects/00/" + "0" * 62 + ".file", b"content"),
            hardlink("usr/x", "sysroot/ostree/repo/objects/00/" + "0" * 62 + ".file"),
        ),
    ]


@fuzzed
@given(archives(_chunks() + ARCHIVES))
def test_chunks(data: bytes) -> None:
    layer = packed(data, "none")
    for read in (read_chunk, read_commit_layer):
        is_handled(lambda read=read: read(io.BytesIO(data), layer.blob, limit=bomb_limit(len(data))))  # type: ignore[misc]


# What is stored beside images


@cache
def _layer() -> tuple[Table, Blob]:
    layer = packed(archive(*(part for part in PARTS if part.info.type != tarfile.CHRTYPE)), "none")
    table = layer.read()
    return table, msgspec.structs.replace(layer.blob, diff_id=table.diff_id)


def _pressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@fuzzed
@given(st.data())
def test_tables(data: st.DataObject) -> None:
    table, blob = _layer()
    stored = data.draw(
        damaged([msgspec.msgpack.encode(table)]).map(_pressed)
        | damaged([encode_table(table)])
        | changed(msgspec.to_builtins(table, builtin_types=[bytes])).map(msgspec.msgpack.encode).map(_pressed)
    )
    found = decode_table(stored, blob)
    if found is not None:
        usable(found, blob)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A document of which some part is another one."""
    for _ in range(draw(st.integers(1, 3))):
        document = _changed(draw, document, draw(st.integers(0, 6)))
    return document


def _changed(draw: st.DrawFn, value: Any, depth: int) -> Any:
    if depth and isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value, key=repr)))
        if draw(st.integers(0, 5)) == 0:
            return {name: item for name, item in value.items() if name != key}
        return value | {key: _changed(draw, value[key], depth - 1)}
    if depth and isinstance(value, (list, tuple)) and value:
        at = draw(st.integers(0, len(value) - 1))
        if draw(st.integers(0, 5)) == 0:
            return [*value, *value][: draw(st.integers(0, 2 * len(value)))]
        return [*value[:at], _changed(draw, value[at], depth - 1), *value[at + 1 :]]
    other: st.SearchStrategy[Any] = values
    if isinstance(value, int):
        other |= st.sampled_from([-1, 0, value + 1, 1 << 40, (1 << 63) - 1])
    elif isinstance(value, str):
        other |= st.sampled_from(["/..", "x", "\0", "\n", "/", "\x1b[2J"]).map(lambda end: value + end)
    return draw(other)


# Documents

LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(b"layer"), "size": 5}
RECORDED = encode_record(Record(packages={"a": "1"}, layers=[LayerRecord({"a": 5}, 0)]))
IMAGE_CONFIG: dict[str, Any] = {
    "architecture": host_architecture(),
    "os": "linux",
    "created": "2026-11-26T00:00:00Z",
    "config": {"Labels": {"a": "b", RECORD_LABEL: digest(RECORDED), "ostree.final-diffid": digest(b"layer")}},
    "rootfs": {"type": "layers", "diff_ids": [digest(b"layer")]},
    "history": [{"comment": "layer", "created_by": "x"}],
}


def _encoded(document: object) -> bytes:
    with contextlib.suppress(UnicodeEncodeError):
        return json.dumps(document, ensure_ascii=False).encode()
    return json.dumps(document).encode()


@fuzzed
@given(st.data())
def test_documents(data: st.DataObject) -> None:
    """Of an image in a layout, with its record: one of them is not what it should be, and all digests are right."""
    which = data.draw(st.sampled_from(["config", "manifest", "index", "layout", "record"]))

    def made(name: str, document: Any) -> bytes:
        if which != name:
            return _encoded(document)
        return data.draw(changed(document).map(_encoded) | damaged([_encoded(document)]))

    with tempfile.TemporaryDirectory() as place:
        layout = Path(place)
        record = made("record", {"format": 1, "packages": {"a": "1"}, "layers": [{"components": {"a": 5}, "dead": 0}]})
        record = _pressed(record)
        config = IMAGE_CONFIG | {
            "config": {"Labels": {"ostree.final-diffid": digest(b"layer"), RECORD_LABEL: digest(record)}}
        }
        stored = made("config", config)
        manifest = made(
            "manifest",
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _described(stored, CONFIG),
                "layers": [LAYER | {"annotations": {"org.opencontainers.image.title": "x"}}],
                "annotations": {"a": "b"},
            },
        )
        platform = {"architecture": host_architecture(), "os": "linux"}
        index = made(
            "index", {"schemaVersion": 2, "manifests": [_described(manifest, MANIFEST) | {"platform": platform}]}
        )
        for each in (stored, manifest, index):
            write_blob(layout, each)
        write_index(layout)
        (layout / "rechunk-records/v1").mkdir(parents=True)
        (layout / "rechunk-records/v1" / digest(record).partition(":")[2]).write_bytes(record)
        (layout / "index.json").write_bytes(
            made("layout", {"schemaVersion": 2, "manifests": [_described(index, INDEX)]})
        )
        image = is_handled(lambda: read_image(layout, None))
        if isinstance(image, Image):
            looked_at(image)


def _described(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def looked_at(image: Image) -> None:
    """All that is read of an image without its layers."""
    assert all(isinstance(value, str) for value in image.labels.values())
    known = facts(image, "oci:x", "1")
    msgspec.json.encode(known)
    for index in range(len(image.layers)):
        history_comment(image, index)
    is_handled(lambda: last_chunk(image))


class OneArtifact(Repository):
    """A repository of which no more than a manifest is there."""

    def __init__(self, data: bytes) -> None:
        super().__init__("owner/image", Session("registry.example"))
        self._data = data

    def manifest(self, reference: str) -> Any:
        del reference
        return type("Found", (), {"data": self._data})


ARTIFACT_DOCUMENT = {
    "schemaVersion": 2,
    "artifactType": ARTIFACT,
    "config": LAYER,
    "layers": [LAYER | {"mediaType": TABLE}, LAYER | {"mediaType": RECORD}],
}


@fuzzed
@given(changed(ARTIFACT_DOCUMENT).map(_encoded) | damaged([_encoded(ARTIFACT_DOCUMENT)]))
def test_artifacts(data: bytes) -> None:
    labelled = {"config": {"Labels": {"rechunk.tables": digest(data)}}}
    layers = (Blob(LAYER["digest"], 5, LAYER["mediaType"], LAYER["digest"]),)  # type: ignore[arg-type]
    image = Image(LayoutBlobs(Path()), digest(b""), {}, labelled, layers)
    found = find_beside(OneArtifact(data), image)
    for described in (*found.tables.values(), *filter(None, [found.record])):
        assert (isinstance(described["digest"], str), described["size"] >= 0) == (True, True)


# Answers of registries

CHALLENGES = (
    b'Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:a/b:pull"',
    b'Basic realm="a \\"b\\"", Bearer realm=https://x',
)
LINKS = (b'</v2/a/b/tags/list?n=10&last=x>; rel="next"', b'<https://ghcr.io/v2/[::1>; rel="next", <x>; rel=next')
BODIES = tuple(
    map(
        _encoded,
        (
            {"token": "abc", "expires_in": 300, "access_token": "x", "issued_at": "2026-11-26T00:00:00Z"},
            {"errors": [{"code": "DENIED", "message": "no", "detail": {}}]},
            {"name": "a/b", "tags": ["latest", "1"]},
        ),
    )
)


def headers(seeds: Sequence[bytes]) -> st.SearchStrategy[str]:
    return damaged(seeds).map(lambda data: data.decode("latin-1")) | st.text(max_size=60)


@fuzzed
@given(headers(CHALLENGES))
def test_challenges(header: str) -> None:
    found = parse_challenges(header)
    assert all(isinstance(value, str) for each in found for value in (each.scheme, *each.parameters.values()))
    choose(found)


@fuzzed
@given(damaged(BODIES) | changed(json.loads(BODIES[0])).map(_encoded) | changed(json.loads(BODIES[1])).map(_encoded))
def test_answers(body: bytes) -> None:
    answer = Answer("https://ghcr.io/v2/", 403, {}, body)
    assert all(isinstance(code, str) for code in answer.codes)
    assert isinstance(answer.said, str)
    token = parse_token(body)
    assert token is None or token.value.isascii()
    is_handled(lambda: _parse_tags(answer, "ghcr.io/a/b"))


@fuzzed
@given(headers(LINKS), headers([b"120", b"9" * 5000, b"Wed, 21 Oct 2026 07:28:00 GMT"]))
def test_links_and_times(link: str, after: str) -> None:
    repository = Repository("a/b", Session("ghcr.io"))
    is_handled(lambda: repository._next_page(Answer("https://ghcr.io/v2/a/b/tags/list", 200, {"Link": link}, b"")))
    is_handled(lambda: join("https://ghcr.io/v2/", link))
    assert _retry_after(after) >= 0
    size = stated_size(after)
    assert size is None or size >= 0
