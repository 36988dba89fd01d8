"""What a layer is found to hold, whoever wrote it, and what makes it unfit."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import struct
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import CorruptImage, InputError
from rechunk_action.oci import table as tables
from rechunk_action.oci.compression import Compression
from rechunk_action.oci.merge import merge
from rechunk_action.oci.table import MAX_PROBLEM, MAX_REPLACED, PROBLEMS, Blob, decode_table, read_table
from rechunk_action.oci.tar import BLOCK, END, HARDLINK, REGULAR, header
from rechunk_action.tree.entry import EMPTY_DIGEST, UNKNOWN_MODE, Entry, new_digest
from tests.support import (
    MEDIA_TYPES,
    Item,
    archive,
    device,
    digest,
    directory,
    file,
    hardlink,
    item,
    pack,
    packed,
    patient,
    peak_memory,
    symlink,
    table,
)

RANDOM = hashlib.shake_128(b"seed").digest(3_000_000)


def digest_of(data: bytes) -> bytes:
    return new_digest(data).digest()


def facts(entry: Entry) -> tuple[str, int, int, int]:
    return entry.kind, entry.mode, entry.uid, entry.gid


def test_every_kind_of_entry_is_read() -> None:
    read = table(
        directory("./", mode=0o711, uid=1, gid=2),
        directory("usr", mode=0o1777),
        file("usr/x", b"content", mode=0o4755, uid=3, gid=4, mtime=99, xattrs={"user.a": b"\xff", "security.b": b"1"}),
        file("usr/empty"),
        symlink("usr/link", "../x", mode=0o644),
    )
    assert list(read.entries) == ["", "usr", "usr/x", "usr/empty", "usr/link"]
    assert facts(read.entries[""]) == ("d", 0o711, 1, 2)
    assert facts(read.entries["usr"]) == ("d", 0o1777, 0, 0)
    x = read.entries["usr/x"]
    assert facts(x) == ("f", 0o4755, 3, 4)
    assert (x.mtime, x.size, x.digest) == (99, 7, digest_of(b"content"))
    assert x.xattrs == (("security.b", b"1"), ("user.a", b"\xff"))
    assert (read.entries["usr/empty"].size, read.entries["usr/empty"].digest) == (0, EMPTY_DIGEST)
    assert (facts(read.entries["usr/link"]), read.entries["usr/link"].target) == (("l", 0o777, 0, 0), "../x")
    assert (read.whiteouts, read.opaque, read.links, read.problem) == ([], [], {}, "")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_layer_is_read_whatever_its_compression(compression: str) -> None:
    data = archive(file("a", b"content"))
    read = pack(data, compression).read()
    assert (read.entries["a"].digest, read.diff_id) == (digest_of(b"content"), digest(data))


def test_a_table_survives_storing() -> None:
    read = table(file("a/b", b"1", xattrs={"user.a": b"\0"}), file("a/.wh.c"), hardlink("d", "a/b"))
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(read), type=type(read))
    assert msgspec.to_builtins(stored) == msgspec.to_builtins(read)


def test_a_table_that_was_stored_before_there_were_formats_is_one_of_plain_layers() -> None:
    layer = pack(archive(file("a/b", b"1")))
    fields = msgspec.msgpack.encode(msgspec.to_builtins(layer.read(), builtin_types=[bytes])[:6])
    stored = zstandard.ZstdCompressor().compress(fields)
    found = decode_table(stored, layer.blob)
    assert found is not None
    assert msgspec.to_builtins(found) == msgspec.to_builtins(layer.read())
    assert decode_table(stored, layer.blob, "ostree") is None


# What the manifest says of the blob


def test_a_digest_that_does_not_match_is_damage() -> None:
    layer = pack(archive(file("a", b"content")))
    wrong = dataclasses.replace(layer, blob=msgspec.structs.replace(layer.blob, digest="sha256:" + "0" * 64))
    with pytest.raises(CorruptImage, match=f"layer sha256:0+ is damaged: .* with digest {layer.blob.digest}"):
        wrong.read()


def test_a_size_that_does_not_match_is_damage() -> None:
    layer = pack(archive(file("a", b"content")))
    wrong = dataclasses.replace(layer, blob=msgspec.structs.replace(layer.blob, size=layer.blob.size + 1))
    with pytest.raises(CorruptImage, match=f"{layer.blob.size + 1} bytes were expected, and {layer.blob.size} bytes"):
        wrong.read()


def test_a_diff_id_that_does_not_match_is_told() -> None:
    layer = pack(archive(file("a", b"content")))
    wrong = dataclasses.replace(layer, blob=msgspec.structs.replace(layer.blob, diff_id="sha256:" + "0" * 64))
    with pytest.raises(CorruptImage, match=r"config says sha256:0+: manifest and config do not belong together"):
        wrong.read()


def test_the_diff_id_covers_what_follows_the_archive() -> None:
    data = archive(file("a")) + bytes(1 << 20)
    assert pack(data, "gzip").read().diff_id == digest(data)


def test_a_blob_is_read_to_its_end_whatever_it_holds() -> None:
    with pytest.raises(CorruptImage, match="no archive that clients can read: there is no tar header at byte 0"):
        packed(RANDOM, "none").read()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_blob_is_called_damaged(compression: str, share: float) -> None:
    whole = pack(archive(file("a", RANDOM[:50_000])), compression)
    cut = dataclasses.replace(whole, data=whole.data[: int(len(whole.data) * share)])
    with pytest.raises(CorruptImage, match=r"is damaged: .* fetch the image again"):
        cut.read()


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_blob_truncated_when_it_was_made_is_no_archive(compression: str) -> None:
    whole = pack(archive(file("a", RANDOM[:50_000])), compression).data
    with pytest.raises(CorruptImage, match=r"no archive that clients can read: .* truncated"):
        packed(whole[: len(whole) // 2], compression).read()


def test_an_unknown_media_type_is_refused() -> None:
    with pytest.raises(InputError, match=r"\+xz cannot be read"):
        read_table(io.BytesIO(), Blob("", 0, MEDIA_TYPES["none"] + "+xz"), limit=None)


def test_a_bomb_is_refused_unread() -> None:
    zeros = Compression("zstd", 1, 1).compressor(1, 1)
    head = header("zeros", REGULAR, mode=0o644, uid=0, gid=0, size=100 << 20)
    data = zeros.compress(head) + b"".join(zeros.compress(bytes(1 << 20)) for _ in range(100)) + zeros.compress(END)
    layer = packed(data + zeros.flush(), "zstd")
    with peak_memory() as peak, pytest.raises(CorruptImage, match=f"layer {layer.blob.digest}: .* bomb"):
        layer.read(limit=1 << 20)
    assert peak.size < 4 << 20


def test_several_gzip_members_are_read_and_make_a_layer_unfit() -> None:
    data = archive(file("a", b"1" * 2000), file("b", b"2" * 2000))
    layer = packed(gzip.compress(data[:1000]) + gzip.compress(data[1000:]), "gzip", digest(data))
    read = layer.read()
    assert set(read.entries) == {"", "a", "b"}
    assert "more than one gzip member" in read.problem


def test_frames_that_zstd_skips_are_no_problem() -> None:
    notes = struct.pack("<II", 0x184D2A50, 5) + b"notes"
    layer = packed(notes + pack(archive(file("a"))).data + notes, "zstd")
    assert layer.read().problem == ""


# Names


@pytest.mark.parametrize("name", ["usr/x", "./usr/x", "/usr/x", "usr//x", "usr/./x", "//usr/./x", "././usr/x"])
def test_names_are_normalised(name: str) -> None:
    assert list(table(directory("usr"), file(name)).entries) == ["", "usr", "usr/x"]


@pytest.mark.parametrize("name", ["./", ".", "/", "//", "./."])
def test_the_root_has_many_names(name: str) -> None:
    assert facts(table(directory(name, mode=0o700)).entries[""]) == ("d", 0o700, 0, 0)


@pytest.mark.parametrize("name", ["..", "../x", "a/../../b", "/../x", "a/..", "./../x", "a/../b"])
def test_names_may_not_leave_the_root(name: str) -> None:
    with pytest.raises(CorruptImage, match="tries to leave the image's root"):
        table(file(name))


@pytest.mark.parametrize("target", ["../x", "a/../../b"])
def test_hard_links_may_not_leave_the_root(target: str) -> None:
    with pytest.raises(CorruptImage, match="tries to leave the image's root"):
        table(file("x"), hardlink("a", target))


@pytest.mark.parametrize("target", ["../../../etc/passwd", "/etc/passwd", ".."])
def test_symbolic_links_may_point_anywhere(target: str) -> None:
    assert table(symlink("a", target)).entries["a"].target == target


def test_names_that_only_look_like_dots_stay() -> None:
    names = ["...", "..a", "a..", ".hidden", "b./c", "d../e", "trailing."]
    assert set(table(*map(file, names)).entries) >= set(names)


@pytest.mark.parametrize("below", [file("link/x"), directory("link/d"), file("link/a/b/c"), file("link/.wh.x")])
def test_nothing_is_written_through_a_symbolic_link(below: Item) -> None:
    with pytest.raises(CorruptImage, match="would be written through 'link', which is no directory"):
        table(symlink("link", "/etc"), below)


def test_nothing_is_written_below_a_file() -> None:
    with pytest.raises(CorruptImage, match="would be written through 'a/f', which is no directory"):
        table(directory("a"), file("a/f"), file("a/f/x"))


@pytest.mark.parametrize("entry", [file("."), symlink("./", "x"), hardlink("/", "x"), device(".")])
def test_only_a_directory_can_be_the_root(entry: Item) -> None:
    with pytest.raises(CorruptImage, match="root directory"):
        table(file("x"), entry)


@pytest.mark.parametrize(
    "entry",
    [
        file("caf\udce9"),
        directory("caf\udce9"),
        symlink("a", "caf\udce9"),
        hardlink("caf\udce9", "x"),
        file(".wh.caf\udce9"),
        file("caf\udce9/x"),
    ],
)
def test_names_that_are_not_utf8_make_a_layer_unfit(entry: Item) -> None:
    assert "not UTF-8" in table(file("x"), entry).problem


@pytest.mark.parametrize("name", ["n" * 256, "d/" + "é" * 128, "d/" + "n" * 256 + "/x"])
def test_a_name_that_no_file_system_can_hold_makes_a_layer_unfit(name: str) -> None:
    assert "has a name that no file system can hold" in table(file(name)).problem
    assert table(file(name.replace("nn", "n", 1).replace("éé", "é", 1))).problem == ""


# Links


def test_a_hard_link_is_the_file_it_names() -> None:
    read = table(file("b", b"content", mode=0o755, xattrs={"user.a": b"1"}), hardlink("a", "./b", mode=0o600))
    assert read.entries["a"].same_as(read.entries["b"])
    assert read.entries["a"].group == read.entries["b"].group == "b"


def test_a_hard_link_may_come_before_its_file() -> None:
    read = table(hardlink("a", "b"), file("b", b"content"))
    assert read.entries["a"].same_as(read.entries["b"])
    assert (read.entries["a"].group, read.problem) == ("b", "")


def test_hard_links_may_name_each_other() -> None:
    read = table(hardlink("a", "b"), hardlink("b", "c"), file("c", b"content"), hardlink("d", "a"))
    assert {read.entries[path].group for path in "abcd"} == {"c"}
    assert {read.entries[path].digest for path in "abcd"} == {digest_of(b"content")}


def test_a_hard_link_to_a_symbolic_link_is_one() -> None:
    read = table(symlink("b", "target"), hardlink("a", "b"))
    assert (read.entries["a"].kind, read.entries["a"].target, read.problem) == ("l", "target", "")


def test_a_file_has_a_group_only_with_others() -> None:
    assert table(file("a", b"x")).entries["a"].group == ""


@pytest.mark.parametrize(
    "items",
    [
        [hardlink("a", "below")],
        [hardlink("a", "b"), hardlink("b", "below")],
        [directory("below"), hardlink("a", "below")],
    ],
)
def test_a_hard_link_to_another_layer_makes_a_layer_unfit(items: list[Item]) -> None:
    read = table(*items)
    assert read.links["a"] == "below"
    assert "'a' is a hard link to 'below' of another layer" in read.problem


@pytest.mark.parametrize("items", [[hardlink("a", "a")], [hardlink("a", "b"), hardlink("b", "a")]])
def test_hard_links_in_a_circle_make_a_layer_unfit(items: list[Item]) -> None:
    assert "of another layer" in table(*items).problem


def test_a_hard_link_leads_to_what_was_there_before() -> None:
    """Clients link a file that is there, and do not look again."""
    read = table(file("b", b"evil"), hardlink("a", "b"), file("b", b"good"))
    assert "'b' is replaced after a hard link to it" in read.problem
    read = table(file("c", b"evil"), hardlink("b", "c"), hardlink("a", "b"), file("b", b"good"))
    assert "'b' is replaced after a hard link to it" in read.problem


@pytest.mark.parametrize("before", [[], [file("a")], [directory("a")]])
def test_nothing_is_written_below_a_hard_link(before: list[Item]) -> None:
    with pytest.raises(CorruptImage, match="would be written through 'a', which is no directory"):
        table(file("b"), *before, hardlink("a", "b"), file("a/x"))


# Twice the same path


def test_the_last_of_two_files_counts() -> None:
    read = table(file("a", b"first"), file("a", b"second", mode=0o600))
    assert (read.entries["a"].digest, read.entries["a"].mode) == (digest_of(b"second"), 0o600)
    assert read.problem == ""


def test_a_file_after_a_hard_link_counts() -> None:
    read = table(file("b", b"first"), hardlink("a", "b"), file("a", b"second"))
    assert (read.entries["a"].digest, read.entries["a"].group) == (digest_of(b"second"), "")


def test_a_hard_link_after_a_file_counts() -> None:
    read = table(file("b", b"first"), file("a", b"second"), hardlink("a", "b"))
    assert (read.entries["a"].digest, read.entries["a"].group) == (digest_of(b"first"), "b")


def test_a_directory_may_be_described_again() -> None:
    read = table(directory("a", mode=0o700), file("a/x"), directory("a", mode=0o711))
    assert (read.entries["a"].mode, read.problem) == (0o711, "")


@pytest.mark.parametrize(
    ("items", "left"),
    [
        ([file("a"), symlink("a", "b")], {"", "a"}),
        ([file("a"), directory("a"), file("a/x")], {"", "a", "a/x"}),
        ([directory("a"), file("a/x"), hardlink("a/y", "a/x"), file("ab"), symlink("a", "b")], {"", "a", "ab"}),
        ([directory("a"), file("a/x"), file("y"), hardlink("a", "y")], {"", "a", "y"}),
    ],
)
def test_a_path_of_two_types_makes_a_layer_unfit(items: list[Item], left: set[str]) -> None:
    read = table(*items)
    assert "'a' occurs twice, with different types" in read.problem
    assert set(read.entries) == left


@pytest.mark.parametrize("instead", [hardlink("a", "elsewhere"), symlink("a", "c")])
def test_what_takes_the_place_of_an_opaque_directory_hides_nothing(instead: Item) -> None:
    read = table(file("a/x"), file("a/.wh..wh..opq"), instead)
    assert read.opaque == []
    assert set(merge([read], "last")) <= {"", "a"}


def test_a_path_of_two_types_is_told_when_one_is_a_hard_link() -> None:
    assert "with different types" in table(file("b"), hardlink("a", "b"), directory("a")).problem
    assert "with different types" in table(file("b"), directory("a"), hardlink("a", "b")).problem


def test_removals_in_a_directory_go_with_it() -> None:
    read = table(file(".wh.x"), file("a/.wh.x"), file("a/b/.wh..wh..opq"), symlink("a", "c"))
    assert (read.whiteouts, read.opaque, set(read.entries)) == (["x"], [], {"", "a"})


# What clients refuse


@pytest.mark.parametrize("kind", [b"3", b"4", b"6"])
def test_devices_and_fifos_make_a_layer_unfit(kind: bytes) -> None:
    read = table(directory("var"), item("var/x", kind))
    assert read.entries["var/x"].kind == "x"
    assert "'var/x' is a device or FIFO" in read.problem


@pytest.mark.parametrize("top", ["dev", "proc", "run", "sys", "tmp"])
def test_devices_do_no_harm_where_nobody_unpacks_them(top: str) -> None:
    assert table(directory(top), device(f"{top}/null")).problem == ""


@pytest.mark.parametrize("value", [b"", b"a\nb", b"\n"])
def test_attributes_that_importers_cannot_read_make_a_layer_unfit(value: bytes) -> None:
    read = table(file("a", xattrs={"user.x": value}))
    assert "'a' has an attribute user.x that importers cannot read" in read.problem


def test_attribute_names_that_are_not_utf8_make_a_layer_unfit() -> None:
    raw = b"SCHILY.xattr.user.\xff=1"
    body = b"%d %b\n" % (len(raw) + 4, raw)
    assert "an attribute" in table(item("pax", b"x", body), file("a")).problem


def test_attributes_that_no_image_carries_are_not_seen() -> None:
    ignored = {"security.selinux": b"label\0", "trusted.overlay.opaque": b"y", "user.overlay.origin": b"\n"}
    read = table(file("a", xattrs=ignored | {"security.capability": b"\1", "trusted.other": b"2"}))
    assert read.entries["a"].xattrs == (("security.capability", b"\1"), ("trusted.other", b"2"))
    assert read.problem == ""


@pytest.mark.parametrize("record", ["GNU.sparse.major", "GNU.sparse.map"])
def test_sparse_entries_are_refused(record: str) -> None:
    sparse = file("a", b"content")
    sparse.info.pax_headers = {record: "1"}
    with pytest.raises(CorruptImage, match="'a' is a sparse entry"):
        table(sparse)
    with pytest.raises(CorruptImage, match="'a' is a sparse entry"):
        table(item("a", b"S"))


# Removals


def test_whiteouts_name_what_they_remove() -> None:
    read = table(directory("usr"), file("usr/.wh.gone"), file(".wh.top"))
    assert (read.whiteouts, read.opaque, read.problem) == (["usr/gone", "top"], [], "")
    assert set(read.entries) == {"", "usr"}


def test_opaque_directories_are_known() -> None:
    read = table(directory("usr"), file("usr/.wh..wh..opq"), file("usr/x"))
    assert (read.opaque, read.whiteouts, read.problem) == (["usr"], [], "")


def test_notes_of_aufs_are_no_removals() -> None:
    read = table(file(".wh..wh.aufs"), directory(".wh..wh.orph"), directory(".wh..wh.plnk"))
    assert (read.whiteouts, set(read.entries), read.problem) == ([], {""}, "")


@pytest.mark.parametrize(
    "items", [[file(".wh.a"), file("a")], [file("a"), file(".wh.a")], [file(".wh.a"), file("a/b")]]
)
def test_a_path_both_removed_and_held_makes_a_layer_unfit(items: list[Item]) -> None:
    assert "it both removes and holds 'a'" in table(*items).problem


@pytest.mark.parametrize("name", [".wh.", "usr/.wh.", ".wh..", "usr/.wh...", "usr/.wh.."])
def test_a_whiteout_must_say_what_it_removes(name: str) -> None:
    read = table(directory("usr"), file(name))
    assert read.whiteouts == []
    assert "does not say what it removes" in read.problem


def test_nothing_can_lie_below_a_whiteout() -> None:
    assert "'usr/.wh.x' is named like a removal" in table(file("usr/.wh.x/y")).problem


# Parents


def test_missing_parents_are_directories_of_unknown_mode() -> None:
    read = table(file("a/b/c"))
    assert [read.entries[path].mode for path in ("", "a", "a/b")] == [UNKNOWN_MODE] * 3


def test_a_missing_parent_makes_all_above_it_unknown() -> None:
    stated = [directory("./", mode=0o711), directory("a", mode=0o711), directory("z", mode=0o700)]
    read = table(*stated, file("a/b/c"))
    assert [read.entries[path].mode for path in ("", "a", "a/b")] == [UNKNOWN_MODE] * 3
    assert read.entries["z"].mode == 0o700


def test_a_parent_described_afterwards_is_known() -> None:
    read = table(file("a/b"), directory("a", mode=0o700), directory("./", mode=0o711), file("a/c"))
    assert [read.entries[path].mode for path in ("", "a")] == [0o711, 0o700]


def test_whiteouts_need_parents_too() -> None:
    assert table(directory("./"), file("a/.wh.b")).entries["a"].mode == UNKNOWN_MODE


# What takes long, or much


def _member(name: str, target: str = "") -> bytes:
    return header(name, HARDLINK if target else REGULAR, mode=0o644, uid=0, gid=0, linkname=target)


def _files(count: int) -> Iterator[bytes]:
    yield from (_member(f"d/{number}") for number in range(count))


def _removals(count: int) -> Iterator[bytes]:
    yield from (_member(f"d/.wh.{number}") for number in range(count))


def _chain(count: int) -> Iterator[bytes]:
    yield from (_member(str(number), str(number + 1)) for number in range(count))
    yield _member(str(count))


def _circle(count: int) -> Iterator[bytes]:
    yield from (_member(str(number), str((number + 1) % count)) for number in range(count))


@pytest.mark.parametrize("members", [_files, _removals, _chain, _circle])
def test_ten_times_as_much_takes_no_more_than_ten_times_as_long(members: Callable[[int], Iterator[bytes]]) -> None:
    """Twice that is allowed for: what is quadratic takes a hundred times as long."""

    def took(count: int) -> float:
        layer = pack(b"".join(members(count)) + END, "none")
        start = time.process_time()
        layer.read()
        return time.process_time() - start

    assert took(20_000) < 20 * max(0.02, took(2_000))


def test_a_layer_may_not_replace_directories_again_and_again() -> None:
    """Each time, all that is there is looked at."""
    again = [file("a/x"), symlink("a", "b"), directory("a")]
    assert "with different types" in table(*again * MAX_REPLACED).problem
    with pytest.raises(CorruptImage, match="it replaces more than 100 directories, 'a' among them"):
        table(*again * (MAX_REPLACED + 1))


@pytest.mark.parametrize(
    "items",
    [
        [file(f"{number}") for number in range(300)],
        [file(f".wh.{number}") for number in range(300)],
        [hardlink(f"{number}", "x") for number in range(300)],
        [file("same") for _ in range(300)],
        [symlink(f"{number}", "x" * 4000) for number in range(30)],
        [file(f"{number}/" + "d/" * 1000 + "x") for number in range(1)],
        [file("x", xattrs={f"user.{number}": b"1" for number in range(300)})],
        [file("x", xattrs={"user.a": b"1" * 100_000})],
    ],
    ids=["files", "removals", "links", "again", "targets", "directories", "attributes", "values"],
)
def test_what_is_kept_of_a_layer_has_a_limit(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    table(*items)
    monkeypatch.setattr(tables, "MAX_KEPT", 100_000)
    with pytest.raises(CorruptImage, match=r"layer sha256:.*: what it describes takes more than 100,000 bytes of mem"):
        table(*items)


def test_a_problem_is_told_in_few_words() -> None:
    read = table(*(device("d/" * 500 + str(number)) for number in range(100)))
    assert read.problem.count("is a device") <= PROBLEMS
    assert len(read.problem) < PROBLEMS * (MAX_PROBLEM + 2)


@pytest.mark.parametrize("rest", [archive(file("b")), bytes(512) + b"x"])
def test_what_follows_the_end_of_the_archive_makes_a_layer_unfit(rest: bytes) -> None:
    """Some clients read on behind zero blocks."""
    data = archive(file("a")) + rest
    assert "it has more behind its end" in pack(data).read().problem
    assert "it has more behind its end" in pack(archive(file("a"))[:-512] + rest).read().problem


# Costs


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_costs_share_out_the_blob(compression: str) -> None:
    layer = pack(
        archive(
            directory("usr"),
            file("usr/random", RANDOM),
            file("usr/zeros", bytes(3_000_000)),
            *(file(f"usr/{number}", RANDOM[number * 900 : number * 900 + 800]) for number in range(500)),
            file("usr/half", RANDOM[:1_000_000]),
            hardlink("usr/link", "usr/half"),
        ),
        compression,
    )
    entries = layer.read().entries
    total = sum(entry.cost for entry in entries.values())
    assert 0.98 * layer.blob.size < total <= layer.blob.size + len(entries)
    assert 0.97 < entries["usr/random"].cost / 3_000_000 < 1.03
    assert entries["usr/zeros"].cost < (150_000 if compression != "none" else 3_100_000)
    assert entries["usr/link"].cost <= 2 * BLOCK
    assert all(entry.cost >= 0 for entry in entries.values())


def test_a_directory_costs_its_headers() -> None:
    assert table(directory("usr"), file("x", bytes(5000))).entries["usr"].cost == BLOCK


# Contents on the way


def test_a_sink_is_shown_each_content() -> None:
    shown: dict[str, bytes] = {}

    def sink(path: str, entry: Entry, pieces: Iterator[memoryview]) -> None:
        assert entry.size
        shown[path] = b"".join(pieces)

    data = archive(file("a", b"1"), file("empty"), hardlink("link", "a"), symlink("s", "a"), file("large", RANDOM))
    pack(data).read(sink=sink)
    assert shown == {"a": b"1", "large": RANDOM}


def test_a_sink_may_leave_pieces_unread() -> None:
    data = archive(file("a", RANDOM), file("b", RANDOM[:1000]))

    def sink(path: str, entry: Entry, pieces: Iterator[memoryview]) -> None:
        next(pieces)

    read = pack(data).read(sink=sink)
    assert [read.entries[path].digest for path in "ab"] == [digest_of(RANDOM), digest_of(RANDOM[:1000])]


def test_known_digests_are_not_taken_again() -> None:
    known = {"a": Entry("f", 0, 0, 0, digest=b"known")}
    assert pack(archive(file("a", b"1"))).read(known=known).entries["a"].digest == b"known"


PARTS = archive(
    directory("usr", xattrs={"user.a": b"1"}),
    file("usr/x", b"content" * 100),
    hardlink("usr/link", "usr/x"),
    symlink("usr/s", "x" * 150),
    file("usr/.wh.y"),
    file("usr/.wh..wh..opq"),
)


@patient
@given(st.data())
def test_a_damaged_archive_is_never_another_exception(data: st.DataObject) -> None:
    damaged = bytearray(PARTS)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(PARTS) - BLOCK)) // BLOCK * BLOCK
        field = at + data.draw(st.sampled_from([0, 1, 5, 100, 108, 116, 124, 136, 156, 157, 257]))
        new = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 12, b"-1 ", b"../x\0", b".wh."]))
        damaged[field : field + len(new)] = new
        block = damaged[at : at + BLOCK]
        damaged[at + 148 : at + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    try:
        read = packed(bytes(damaged), "none").read()
    except CorruptImage:
        return
    assert read.problem or msgspec.msgpack.encode(read)
