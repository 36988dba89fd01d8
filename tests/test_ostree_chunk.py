"""Layers of OSTree-chunked images: what is written is what importers want, and what is read is what containers show."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from msgspec.structs import replace

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci.compression import DEFAULTS
from rechunk_action.oci.image import Image
from rechunk_action.oci.layer import LayerPlan, Written
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.merge import Replay, merge
from rechunk_action.oci.table import Blob, Table, decode_table, encode_table
from rechunk_action.ostree.chunk import FORMAT, read_chunk, read_commit_layer, write_chunk, write_commit_layer
from rechunk_action.ostree.chunked import CommitLayer, last_chunk, read_chunked
from rechunk_action.ostree.commit import LABEL, Committed, commit, origin, prepare
from rechunk_action.ostree.objects import file_hash
from rechunk_action.ostree.view import commit_path, view_differences
from rechunk_action.plan.plain import Plan, Published, plan_fresh, plan_update
from rechunk_action.source.directory import DirectorySource
from rechunk_action.tree.entry import UNKNOWN_MODE, Entry, Tree, ancestors
from rechunk_action.verify import differences, tree_differences
from tests.oracles import program, run, scratch
from tests.ostree_images import array, chunked_layers, commit_tree, object_name, pair, write_chunked
from tests.rechunker.image import chunked as stand_in
from tests.rechunker.image.repository import Commit as StandInCommit
from tests.support import Item, Packed, archive, file, hardlink, pack, packed, symlink, write_layout
from tests.trees import CAPABILITY, Files, Node, generations, write

ZSTD = DEFAULTS["zstd"]

BIN, CONFIG = b"system_u:object_r:bin_t:s0\0", b"system_u:object_r:etc_t:s0\0"

LABELS = {
    "usr/bin/su": BIN,
    "usr/lib/hard": BIN,
    "usr/bin/sh": BIN,
    "etc/passwd": CONFIG,
    "etc/subuid": CONFIG,
    "usr/lib/empty": BIN,
}

LONG = "usr/share/\N{SNOWMAN}" + "x" * 200

SMALL = {"": Node("d", 0o755), "usr": Node("d", 0o755)}


@dataclass
class Built:
    """A tree with its commit, and layers of an image of it."""

    root: Path
    source: DirectorySource = field(init=False)
    committed: Committed = field(init=False)

    def __post_init__(self) -> None:
        self.source = DirectorySource(str(self.root))
        self.source.scan(None)
        tree, _ = prepare(self.source.tree)
        labels = {path: label for path, label in LABELS.items() if path in tree}
        self.committed = commit(self.source, tree, labels, version="1", created=1, threads=2, advance=lambda _: None)

    @property
    def tree(self) -> Tree:
        return self.committed.tree

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        return self.source.pieces(origin(path, self.source.tree), size)

    def chunk(self, *paths: str, whiteouts: Sequence[str] = ()) -> LayerPlan:
        """A plan for these paths, as the planner makes it."""
        stated = {above for path in (*paths, *whiteouts) for above in ancestors(path)}
        return LayerPlan("chunk", sorted(stated), paths, whiteouts)

    def write(self, plan: LayerPlan, place: Path, name: str = "zstd", threads: int = 1) -> Written:
        return write_chunk(
            plan, self.committed, self, place, compression=DEFAULTS[name], level=DEFAULTS[name].level, threads=threads
        )

    def write_first(self, place: Path, name: str = "zstd", threads: int = 1) -> Written:
        return write_commit_layer(self.committed, place, compression=DEFAULTS[name], threads=threads)

    def write_fresh(self, place: Path, layers: int = 3) -> list[Written]:
        """All layers of an image of its own."""
        plan = plan_fresh(self.tree, {}, max_layers=layers)
        chunks = [self.write(new, place / f"chunk-{number}") for number, new in enumerate(plan.new)]
        return [self.write_first(place / "first"), *chunks]

    def image(self, layers: Sequence[Packed], place: Path) -> Image:
        labels = {"ostree.commit": self.committed.checksum.hex(), "ostree.final-diffid": layers[-1].blob.diff_id}
        return read_image(write_layout(place, layers, config={"config": {"Labels": labels}}), "latest")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with scratch() as place:
        yield place


@pytest.fixture(scope="module")
def built(place: Path) -> Built:
    """A tree that has some of everything."""
    root = place / "tree"
    for path in ("usr/bin", "usr/lib/modules/6.1", LONG, "etc/ssh", "tmp", "sysroot"):
        (root / path).mkdir(parents=True)
    (root / "usr/lib/modules/6.1/vmlinuz").write_bytes(b"kernel" * 100_000)
    (root / "usr/bin/su").write_bytes(b"setuid" * 1000)
    (root / "usr/bin/su").chmod(0o4755)
    (root / "usr/bin/sh").write_bytes(b"shell")
    os.setxattr(root / "usr/bin/sh", "security.capability", CAPABILITY)
    os.setxattr(root / "usr/bin/sh", "user.\N{SNOWMAN}", b"\0\xff")
    (root / "usr/bin/bash").symlink_to("sh")
    os.setxattr(root / "usr/bin/bash", "trusted.on-a-link", b"1", follow_symlinks=False)
    (root / "usr/bin/dash").symlink_to("sh")
    (root / "usr/lib/hard").hardlink_to(root / "usr/bin/su")
    (root / "usr/lib/same").write_bytes(b"same")
    (root / "usr/lib/same-too").write_bytes(b"same")
    (root / "usr/lib/owned").write_bytes(b"same")
    os.chown(root / "usr/lib/owned", 2_100_000, 4_000_000_000)
    (root / LONG / "link").symlink_to("y" * 300)
    (root / LONG / ("z" * 200)).write_bytes(b"long")
    (root / "usr/lib/empty").touch(0o644)
    (root / "usr/lib/empty-too").touch(0o644)
    (root / "usr/lib/empty-private").touch(0o600)
    for name in ("subuid", "subgid"):
        (root / "etc" / name).touch(0o644)
    (root / "etc/passwd").write_bytes(b"root")
    (root / "etc/ssh/config").write_bytes(b"same")
    (root / "tmp").chmod(0o1777)
    (root / "etc/ssh").chmod(0o700)
    os.setxattr(root / "usr/lib", "user.on-a-directory", b"v" * 300)
    os.chown(root / "sysroot", 3, 4)
    return Built(root)


def members(layer: Written) -> list[tarfile.TarInfo]:
    data = zstandard.ZstdDecompressor().decompressobj().decompress(layer.path.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        return found.getmembers()


def as_packed(layer: Written) -> Packed:
    return Packed(layer.path.read_bytes(), layer.blob)


def read(layer: Packed, empty: Mapping[str, bytes] | None = None) -> Table:
    return read_chunk(io.BytesIO(layer.data), layer.blob, limit=None, empty=empty)


def read_first(image: Image) -> CommitLayer:
    with image.open(image.layers[0]) as layer:
        return read_commit_layer(layer, image.layers[0], limit=None)


def facts(table: Table) -> Any:
    return msgspec.to_builtins(replace(table, entries=dict(sorted(table.entries.items()))))


# An image that was written


def test_the_image_is_the_tree(built: Built, tmp_path: Path) -> None:
    layers = built.write_fresh(tmp_path)
    image = built.image([*map(as_packed, layers)], tmp_path / "image")
    assert differences(Replay([layer.table for layer in layers], built.tree), ["last"]) == []
    whole = read_chunked(image, threads=2)
    assert {path: checksum for path, checksum, entry in whole.walk() if not entry.is_dir} == {
        commit_path(path): entry.digest for path, entry in built.tree.items() if not entry.is_dir
    }
    assert view_differences(image, whole.tree(), threads=2) == []


def test_the_first_layer_tells_all_paths(built: Built, tmp_path: Path) -> None:
    layers = built.write_fresh(tmp_path)
    first = read_first(built.image([*map(as_packed, layers)], tmp_path / "image"))
    assert first.checksum == built.committed.checksum
    assert first.paths() == {path: entry.digest for path, entry in built.tree.items() if not entry.is_dir}
    assert first.dirtrees.keys() | first.dirmetas.keys() == built.committed.metadata.keys()


@pytest.mark.oracle
def test_ostree_takes_the_layers(built: Built, place: Path, tmp_path: Path) -> None:
    ostree, tar = program("ostree", "ostree"), program("tar", "tar")
    root, checksum = place / "unpacked", built.committed.checksum.hex()
    root.mkdir()
    for layer in built.write_fresh(tmp_path):
        run(tar, f"--directory={root}", "--same-permissions", "--numeric-owner", "--zstd", "-xf", layer.path)
    repo = root / "sysroot/ostree/repo"
    assert "no errors" in run(ostree, f"--repo={repo}", "fsck", "--add-tombstones")
    bare, tree = place / "repo", place / "checkout"
    run(ostree, f"--repo={bare}", "init", "--mode=bare")
    run(ostree, f"--repo={bare}", "pull-local", repo, checksum)
    run(ostree, f"--repo={bare}", "fsck")
    run(ostree, f"--repo={bare}", "checkout", checksum, tree)
    assert tree_differences(Built(tree).tree, built.tree) == []
    shown = DirectorySource(str(root))
    shown.scan(None)
    assert [path for path in shown.tree if path not in built.tree] == []
    assert [path for path in built.tree if path not in shown.tree] == []


@given(generations(least=2, most=3))
@settings(deadline=None, max_examples=10)
def test_an_image_is_updated_like_one_of_plain_layers(history: list[Files]) -> None:
    with scratch() as place:
        previous: list[tuple[Packed, Table]] = []
        for number, files in enumerate(history):
            write(_bootable(files), place / f"tree-{number}")
            built = Built(place / f"tree-{number}")
            first = built.write_first(place / f"first-{number}")
            published = [Published(layer.blob, table) for layer, table in previous]
            if previous:
                plan = plan_update(published, built.tree, dict, max_layers=9, max_overhead=0.2, base=first.table)
            else:
                plan = plan_fresh(built.tree, {}, max_layers=4)
            previous = _carried_out(plan, built, previous, place / f"chunks-{number}")
            tables = [first.table, *(table for _, table in previous)]
            assert differences(Replay(tables, built.tree), ["last"]) == []
            image = built.image([as_packed(first), *(layer for layer, _ in previous)], place / f"image-{number}")
            whole = read_chunked(image, threads=1)  # no object is missing
            assert view_differences(image, whole.tree(), threads=1) == []
            paths = read_first(image).paths()
            for layer, table in previous:
                assert facts(read(layer, paths)) == facts(table) or _relabelled(read(layer, paths), table)


def _carried_out(
    plan: Plan, built: Built, previous: Sequence[tuple[Packed, Table]], place: Path
) -> list[tuple[Packed, Table]]:
    place.mkdir()
    layers = []
    for number, layer in enumerate(plan.layers):
        if isinstance(layer, int):
            layers.append(previous[layer])
        else:
            written = built.write(layer, place / str(number))
            layers.append((as_packed(written), written.table))
    return layers


def _relabelled(now: Table, then: Table) -> bool:
    """Whether all that differs are empty files, of which a later commit tells no more what they were."""
    return all(
        facts(now)["entries"][path] == entry or (entry[0], entry[5]) == ("f", 0)
        for path, entry in facts(then)["entries"].items()
    )


def _bootable(files: Files) -> Files:
    directories = ("sysroot", "usr/lib", "usr/lib/modules", "usr/lib/modules/6.1")
    without = {path: node for path, node in files.items() if not f"{path}/".startswith(("usr/lib/", "sysroot/"))}
    above = {path: Node("d", 0o755) for path in directories}
    return without | above | {"usr/lib/modules/6.1/vmlinuz": Node("f", 0o644, content=1)}


# The first layer


def test_the_first_layer_has_its_parts_in_order(built: Built, tmp_path: Path) -> None:
    found = members(built.write_first(tmp_path / "layer"))
    names = [member.name for member in found]
    directories = sorted(path for path, entry in built.tree.items() if entry.is_dir)
    assert [name.removeprefix(".") for name in names[: len(directories)]] == directories
    assert names[len(directories)] == "sysroot/ostree"
    objects = [name for name, member in zip(names, found, strict=True) if "/objects/" in name and member.isfile()]
    assert objects[0] == object_name(built.committed.checksum.hex(), "commit")
    kinds = [name.rpartition(".")[2] for name in objects[1:]]
    assert kinds == sorted(kinds)
    assert len(objects) == len(set(objects)) == 1 + len(built.committed.metadata)
    sizes = [member.size for member in found if member.name.endswith(".dirtree")]
    assert sizes == sorted(sizes)
    assert {f"sysroot/ostree/repo/objects/{number:02x}" for number in range(256)} <= set(names)


def test_the_table_of_the_first_layer_is_that_of_the_directories(built: Built, tmp_path: Path) -> None:
    table = built.write_first(tmp_path / "layer").table
    assert (table.format, table.problem, table.dead) == (FORMAT, "", 0)
    assert table.entries.keys() == {path for path, entry in built.tree.items() if entry.is_dir}
    assert all(entry.same_as(built.tree[path]) for path, entry in table.entries.items())


def test_objects_of_the_first_layer_take_one_header_each(built: Built, tmp_path: Path) -> None:
    found = members(built.write_first(tmp_path / "layer"))
    objects = [member for member in found if "/objects/" in member.name and member.isfile()]
    assert all(member.offset_data - member.offset == tarfile.BLOCKSIZE for member in objects)
    assert not any(member.pax_headers for member in objects)


def test_a_tree_without_a_place_for_the_disk_is_refused(place: Path, tmp_path: Path) -> None:
    write({path: node for path, node in _bootable(SMALL).items() if path != "sysroot"}, place / "no-sysroot")
    with pytest.raises(InputError, match="there is no directory /sysroot"):
        Built(place / "no-sysroot").write_first(tmp_path / "layer")


# A chunk


def test_a_chunk_has_its_parts_in_order(built: Built, tmp_path: Path) -> None:
    plan = built.chunk("usr/lib/same", "etc/passwd", "usr/lib/same-too", whiteouts=["usr/lib/gone", "gone"])
    found = members(built.write(plan, tmp_path / "layer"))
    same, passwd = (built.tree[path].digest.hex() for path in ("usr/lib/same", "etc/passwd"))
    above = sorted({f"sysroot/ostree/repo/objects/{name[:2]}" for name in (same, passwd)})
    assert [member.name for member in found] == [
        *(".", "etc", "sysroot", "usr", "usr/lib"),
        *("sysroot/ostree", "sysroot/ostree/repo", "sysroot/ostree/repo/objects", *above),
        *("usr/lib/.wh.gone", ".wh.gone"),
        *_names(built, "usr/lib/same", "usr/lib/same-too"),
        *_names(built, "etc/passwd"),
    ]
    assert {member.mtime for member in found} == {0}


def _names(built: Built, *paths: str) -> list[str]:
    """The members for an object with attributes that no object before it has."""
    checksum = built.tree[paths[0]].digest.hex()
    raw = built.committed.attributes[paths[0]]
    attributes = hashlib.sha256(raw).hexdigest()
    kinds = ("file-xattrs-link", "file")
    return [object_name(attributes, "file-xattrs"), *(object_name(checksum, kind) for kind in kinds), *paths]


def test_attributes_are_written_once(built: Built, tmp_path: Path) -> None:
    plan = built.chunk("usr/lib/same", "usr/lib/owned", "usr/bin/dash", "usr/bin/su", "usr/lib/hard")
    names = [member.name for member in members(built.write(plan, tmp_path / "layer"))]
    assert sum(name.endswith(".file-xattrs") for name in names) == 2  # with a label and without
    assert sum(name.endswith(".file") for name in names) == 4  # two of the paths show one object


def test_headers_show_attributes_but_the_label(built: Built, tmp_path: Path) -> None:
    found = members(built.write(built.chunk("usr/bin/sh", "usr/bin/bash"), tmp_path / "layer"))
    shown = {member.name: member.pax_headers for member in found if member.pax_headers}
    sh, bash = (object_name(built.tree[path].digest.hex(), "file") for path in ("usr/bin/sh", "usr/bin/bash"))
    of_files = {name: pax for name, pax in shown.items() if name.endswith(".file")}
    assert of_files.keys() == {sh, bash}
    assert of_files[sh].keys() == {"SCHILY.xattr.security.capability", "SCHILY.xattr.user.\N{SNOWMAN}"}
    assert of_files[bash].keys() == {"SCHILY.xattr.trusted.on-a-link"}


def test_an_entry_is_the_object_that_its_path_shows(built: Built, tmp_path: Path) -> None:
    paths = [path for path, entry in built.tree.items() if not entry.is_dir]
    written = built.write(built.chunk(*paths), tmp_path / "layer")
    table = written.table
    assert (table.format, table.problem, table.dead, table.links) == (FORMAT, "", 0, {})
    assert (LABEL, BIN) in table.entries["usr/bin/su"].xattrs
    assert all(table.entries[path].same_as(built.tree[path]) for path in paths)
    assert not any(entry.group for entry in table.entries.values())
    assert not any(path.startswith("sysroot/") for path in table.entries)
    assert written.blob.diff_id == table.diff_id


def test_files_of_no_size_are_files(built: Built, tmp_path: Path) -> None:
    paths = ["usr/lib/empty", "usr/lib/empty-too", "usr/lib/empty-private", "etc/subuid", "etc/subgid"]
    written = built.write(built.chunk(*paths), tmp_path / "layer")
    assert {member.name for member in members(written) if member.isreg()} >= set(paths)
    layer = as_packed(written)
    assert all(written.table.entries[path].same_as(built.tree[path]) for path in paths)
    # Without the commit, only the one with a mode of its own is known.
    known = {path for path, entry in read(layer).entries.items() if entry.digest}
    assert known == {"usr/lib/empty-private"}
    assert facts(read(layer, {path: built.tree[path].digest for path in paths})) == facts(written.table)


def test_a_layer_of_directories_and_removals_has_no_object(built: Built, tmp_path: Path) -> None:
    written = built.write(LayerPlan("removals", ["", "etc"], whiteouts=["etc/gone"]), tmp_path / "layer")
    assert [member.name for member in members(written)] == [".", "etc", "etc/.wh.gone"]
    assert (written.table.whiteouts, written.table.problem) == (["etc/gone"], "")


@pytest.mark.parametrize("name", ["zstd", "gzip"])
def test_threads_change_nothing(built: Built, tmp_path: Path, name: str) -> None:
    plan = built.chunk(*(path for path, entry in built.tree.items() if not entry.is_dir))
    chunks = [built.write(plan, tmp_path / f"chunk-{threads}", name, threads) for threads in (1, 3)]
    firsts = [built.write_first(tmp_path / f"first-{threads}", name, threads) for threads in (1, 3)]
    for one, other in (chunks, firsts):
        assert one.blob == other.blob
        assert one.path.read_bytes() == other.path.read_bytes()


@pytest.mark.parametrize("content", [b"diff", b"longer", b"", b"s"])
def test_a_file_that_changes_is_told(place: Path, tmp_path: Path, content: bytes) -> None:
    root = place / f"changing-{len(content)}"
    write(_bootable(SMALL), root)
    (root / "usr/file").write_bytes(b"same")
    built = Built(root)
    (root / "usr/file").write_bytes(content)
    with pytest.raises(InputError, match="/usr/file changed while it was read"):
        built.write(built.chunk("usr/file"), tmp_path / "layer")


# Reading what others made


@pytest.fixture(scope="module")
def repo(built: Built, place: Path) -> Path:
    """A repository of OSTree's own with the tree of `built`, where OSTree wants it."""
    root = place / "committed"
    run("/bin/cp", "--archive", built.root, root)
    (root / "etc").rename(root / "usr/etc")
    for path, label in LABELS.items():
        os.setxattr(root / commit_path(path), LABEL, label)
    commit_tree(place / "others", root)
    for stored in (place / "others/objects").rglob("*.file"):
        mode = int.from_bytes(os.getxattr(stored, "user.ostreemeta")[8:12], "big")
        if stat.S_ISLNK(mode):  # some versions of OSTree store a target with a zero byte behind
            stored.write_bytes(stored.read_bytes().rstrip(b"\0"))
    return place / "others"


def commit_of(repo: Path) -> str:
    return (repo / "refs/heads/main").read_text().strip()


def adopted(layout: Path) -> tuple[dict[str, bytes], Tree, list[Table]]:
    """What the commit says of files and links, what the chunks show, and their tables."""
    image = read_image(layout, "latest")
    paths = read_first(image).paths()
    tables = []
    for blob in image.layers[1 : last_chunk(image) + 1]:
        with image.open(blob) as layer:
            tables.append(read_chunk(layer, blob, limit=None, empty=paths))
    return paths, {path: entry for path, (_, entry) in merge(tables, "last").items()}, tables


@pytest.mark.parametrize("own_xattrs", [False, True])
@pytest.mark.parametrize("parents", [False, True])
def test_chunks_of_others_tell_their_objects(
    built: Built, repo: Path, tmp_path: Path, *, parents: bool, own_xattrs: bool
) -> None:
    layout = write_chunked(repo, commit_of(repo), tmp_path / "image", parents=parents, own_xattrs=own_xattrs)
    paths, shown, tables = adopted(layout)
    _assert_shows(shown, built, paths)
    assert [(table.problem, table.dead, table.format) for table in tables] == [("", 0, FORMAT)] * 3
    stated = {entry.mode for table in tables for path, entry in table.entries.items() if path == "usr/lib"}
    assert stated == ({0o755} if parents else {UNKNOWN_MODE})


def test_chunks_of_the_stand_in_tell_their_objects(built: Built, repo: Path, tmp_path: Path) -> None:
    made = StandInCommit(repo, "main")
    plan = stand_in.Plan({checksum: checksum[0] for checksum in made.content}, dict.fromkeys("0123456789abcdef", ""))
    stand_in.write_image(made, plan, tmp_path, tag="latest", labels={}, created="2024-01-01T00:00:00Z", level=1)
    paths, shown, tables = adopted(tmp_path)
    _assert_shows(shown, built, paths)
    assert {(table.problem, table.dead) for table in tables} == {("", 0)}
    assert shown["sysroot"].mode == 0o755  # as each chunk has it


def _assert_shows(shown: Tree, built: Built, paths: Mapping[str, bytes]) -> None:
    files = {path: entry for path, entry in shown.items() if not entry.is_dir}
    assert {path: entry.digest for path, entry in files.items()} == paths
    assert paths == {path: entry.digest for path, entry in built.tree.items() if not entry.is_dir}
    assert all(entry.same_as(built.tree[path]) for path, entry in files.items())


# Reading, rule by rule


@pytest.fixture(scope="module")
def chunk(repo: Path) -> list[Item]:
    """The members of a chunk with all objects, the skeleton of the repository first."""
    (_, chunk) = chunked_layers(repo, commit_of(repo), group=lambda *_: 0)
    return chunk


def test_an_ancestor_that_is_left_out_is_of_unknown_mode(chunk: list[Item]) -> None:
    table = read(pack(archive(*chunk)))
    assert table.entries["usr/bin"].mode == UNKNOWN_MODE
    assert table.entries["sysroot"].mode == 0o755
    without = [item for item in chunk if item.info.name != "sysroot"]
    assert read(pack(archive(*without))).entries["sysroot"].mode == UNKNOWN_MODE


def test_the_cost_of_an_object_is_that_of_its_paths(built: Built, chunk: list[Item]) -> None:
    layer = pack(archive(*chunk), "none")
    table = read(layer)
    assert abs(table.entries["usr/lib/same"].cost - table.entries["usr/lib/same-too"].cost) <= 1
    # Three times attributes, link and file, of which the attributes may be there before, and two links.
    whole = sum(table.entries[path].cost for path in ("usr/lib/same", "usr/lib/same-too", "etc/ssh/config"))
    assert whole >= 7 * 512
    large = table.entries["usr/lib/modules/6.1/vmlinuz"]
    assert large.cost >= large.size
    files = sum(entry.cost for entry in table.entries.values())
    skeleton = [item for item in chunk if item.info.name.startswith("sysroot") and "/objects/" not in item.info.name]
    assert layer.blob.size - 512 * 270 - 1024 * len(skeleton) <= files <= layer.blob.size


def test_an_object_that_no_path_shows_is_dead(chunk: list[Item]) -> None:
    without = [item for item in chunk if item.info.name != "usr/lib/modules/6.1/vmlinuz"]
    table = read(pack(archive(*without), "none"))
    assert "usr/lib/modules/6.1/vmlinuz" not in table.entries
    assert 600_000 < table.dead < 620_000


def test_a_link_to_a_link_shows_the_object(built: Built, chunk: list[Item]) -> None:
    table = read(pack(archive(*chunk, hardlink("usr/again", "./usr/bin/su"), hardlink("usr/more", "usr/again"))))
    assert table.problem == ""
    assert [table.entries[path].digest for path in ("usr/again", "usr/more")] == [built.tree["usr/bin/su"].digest] * 2
    assert table.entries["usr/more"].group == ""


def test_what_a_chunk_removes_is_told(chunk: list[Item]) -> None:
    table = read(pack(archive(*chunk, file("usr/.wh.gone"), file("etc/.wh..wh..opq"))))
    assert (table.whiteouts, table.opaque, table.problem) == (["usr/gone"], ["etc"], "")


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (file("usr/new", b"1"), "'usr/new' is no object of the commit"),
        (symlink("usr/new", "a"), "'usr/new' is no object of the commit"),
        (
            hardlink("usr/new", object_name("0" * 64, "file")),
            f"'usr/new' is a hard link to '{object_name('0' * 64, 'file')}', which is no object in it",
        ),
        (hardlink("usr/new", "usr/elsewhere"), "'usr/new' is a hard link to 'usr/elsewhere', which is no object in it"),
        (hardlink("usr/new", "usr/new"), "'usr/new' is a hard link to 'usr/new', which is no object in it"),
    ],
)
def test_what_is_no_object_makes_a_layer_unfit(chunk: list[Item], item: Item, problem: str) -> None:
    table = read(pack(archive(*chunk, item)))
    assert table.problem.startswith(problem)
    assert table.entries["usr/new"].digest == b""


@pytest.mark.parametrize(
    ("names", "problem"),
    [((b"security.selinux", b"user.a"), ""), ((b"user.a", b"security.selinux"), "attributes in it are not sorted")],
)
def test_attributes_in_the_order_of_old_versions_make_a_layer_unfit(
    chunk: list[Item], names: Sequence[bytes], problem: str
) -> None:
    """As OSTree before version 2025.2 wrote them; importers with a later one refuse the file."""
    raw = array([pair(name, b"1") for name in names])
    hashed = file_hash(Entry("f", 0o644, 0, 0, size=3), raw)
    hashed.update(b"new")
    checksum = hashed.digest().hex()
    made = [
        file(object_name(checksum, "file-xattrs-link"), raw),
        file(object_name(checksum, "file"), b"new"),
        hardlink("usr/new", object_name(checksum, "file")),
    ]
    assert read(pack(archive(*chunk, *made))).problem[: len(problem) or None] == problem


def test_an_empty_file_without_an_object_equals_nothing(built: Built, chunk: list[Item]) -> None:
    table = read(pack(archive(*chunk, file("usr/new", mode=0o6711))), {"usr/new": built.tree["usr/bin/su"].digest})
    assert (table.entries["usr/new"].digest, table.problem) == (b"", "")


def test_several_gzip_members_make_a_layer_unfit(chunk: list[Item]) -> None:
    whole = pack(archive(*chunk), "none")
    halves = pack(whole.data[:1024], "gzip").data + pack(whole.data[1024:], "gzip").data
    assert "more than one gzip member" in read(packed(halves, "gzip", whole.blob.diff_id)).problem


@pytest.mark.parametrize("kind", ["file", "file-xattrs", "file-xattrs-link"])
def test_what_importers_refuse_is_refused(chunk: list[Item], kind: str) -> None:
    at = next(at for at, item in enumerate(chunk) if item.info.name.endswith(f".{kind}"))
    with pytest.raises(CorruptImage, match="cannot be imported: "):
        read(pack(archive(*chunk[:at], *chunk[at + 1 :])))


def test_a_metadata_object_is_refused(chunk: list[Item]) -> None:
    with pytest.raises(CorruptImage, match=r"cannot be imported: 0+\.dirtree is a metadata object"):
        read(pack(archive(*chunk, file(object_name("0" * 64, "dirtree")))))


def test_a_damaged_chunk_is_told_by_its_digest(chunk: list[Item]) -> None:
    layer = pack(archive(*chunk))
    with pytest.raises(CorruptImage, match=f"layer {layer.blob.digest} is damaged"):
        read(Packed(layer.data[:-100], layer.blob))


def test_a_first_layer_has_a_commit(repo: Path) -> None:
    layer = pack(archive(file("a")))
    with pytest.raises(CorruptImage, match="holds no commit"):
        read_commit_layer(io.BytesIO(layer.data), layer.blob, limit=None)


# Tables


def test_a_table_of_one_format_is_not_taken_for_another(built: Built, tmp_path: Path) -> None:
    written = built.write(built.chunk("usr/lib/same"), tmp_path / "layer")
    stored = encode_table(written.table)
    assert decode_table(stored, written.blob) is None
    found = decode_table(stored, written.blob, FORMAT)
    assert found is not None
    assert facts(found) == facts(written.table)
    plain = Table({"": Entry("d", 0o755, 0, 0)}, diff_id="sha256:0")
    blob = Blob("", 0, "", "sha256:0")
    assert decode_table(encode_table(plain), blob, FORMAT) is None
    assert decode_table(encode_table(plain), blob) is not None
