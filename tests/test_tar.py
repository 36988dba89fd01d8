"""Headers that any tar reads, and a reader for what any tar writes."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rechunk_action.errors import CorruptImage
from rechunk_action.oci.tar import (
    BLOCK,
    DIRECTORY,
    END,
    HARDLINK,
    MAX_EXTENDED,
    REGULAR,
    SYMLINK,
    Member,
    header,
    members,
    padding,
)
from tests.support import Form, Item, archive, device, directory, file, hardlink, item, patient, symlink, text

GIB = 1 << 30

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0/")


@st.composite
def names(draw: st.DrawFn) -> str:
    """Names of all lengths, most of them around the ends of the fields that hold them."""
    start = draw(st.text(letters, min_size=1, max_size=12))
    size = draw(st.sampled_from([0, 99, 100, 101, 102, 155, 156, 255, 256, 257, 511, 512, 513, 4000]))
    filler = draw(st.sampled_from(["a", "é", "€", "𝄞", "dir/"]))
    name = start + filler * ((size - len(start.encode())) // len(filler.encode()))
    name += "x" * (size - len(name.encode()))
    return name + "y" if name.endswith("/") else name


owners = st.integers(0, 2**32 - 1) | st.sampled_from([8**7 - 1, 8**7, 2**31, 2**32 - 2, 2**32 - 1])
times = st.integers(-(2**40), 2**40) | st.sampled_from([-1, 0, 8**11 - 1, 8**11])
modes = st.integers(0, 0o7777)
attributes = st.dictionaries(
    st.text("abc.é", min_size=1, max_size=10).map("user.".__add__), st.binary(max_size=300), max_size=4
)


def read_all(data: bytes) -> list[tuple[Member, bytes]]:
    stream = io.BytesIO(data)
    found = []
    for member in members(stream):
        found.append((member, stream.read(member.size)))
        stream.read(len(padding(member.size)))
    return found


def read_one(data: bytes) -> Member:
    [(member, _)] = read_all(data)
    return member


def python_reads(data: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as opened:
        [info] = opened.getmembers()
    return info


def python_xattrs(info: tarfile.TarInfo) -> dict[str, bytes]:
    return {
        key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
        for key, value in info.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }


@patient
@given(names(), modes, owners, owners, times, st.binary(max_size=2000), attributes)
def test_a_file_reads_back_the_same(
    name: str, mode: int, uid: int, gid: int, mtime: int, content: bytes, xattrs: dict[str, bytes]
) -> None:
    head = header(
        name, REGULAR, mode=mode, uid=uid, gid=gid, mtime=mtime, size=len(content), xattrs=sorted(xattrs.items())
    )
    data = head + content + padding(len(content)) + END
    [(member, read)] = read_all(data)
    assert (member.name.decode(), member.typeflag, read) == (name, REGULAR, content)
    assert (member.mode, member.uid, member.gid, member.mtime) == (mode, uid, gid, mtime)
    assert member.xattrs == xattrs
    info = python_reads(data)
    assert (info.name, info.size, info.isreg()) == (name, len(content), True)
    assert (info.mode, info.uid, info.gid, info.mtime) == (mode, uid, gid, mtime)
    assert python_xattrs(info) == xattrs


@patient
@given(name=names(), target=names(), flag=st.sampled_from([SYMLINK, HARDLINK]))
def test_a_link_reads_back_the_same(name: str, target: str, flag: bytes) -> None:
    data = header(name, flag, mode=0o777, uid=0, gid=0, linkname=target) + END
    member = read_one(data)
    assert (member.name.decode(), member.linkname.decode(), member.typeflag) == (name, target, flag)
    info = python_reads(data)
    assert (info.name, info.linkname, info.type) == (name, target, flag)


@patient
@given(name=names())
def test_a_directory_reads_back_the_same(name: str) -> None:
    data = header(f"{name}/", DIRECTORY, mode=0o1777, uid=0, gid=0) + END
    assert read_one(data).name.decode() == f"{name}/"
    info = python_reads(data)
    assert (info.name, info.isdir(), info.mode) == (name.rstrip("/"), True, 0o1777)


@pytest.mark.parametrize("size", [8 * GIB - 1, 8 * GIB, 8 * GIB + 1, 1 << 50])
def test_sizes_past_8_gib_fit(size: int) -> None:
    head = header("disk.img", REGULAR, mode=0o644, uid=0, gid=0, size=size)
    assert tarfile.TarInfo.frombuf(head, "utf-8", "strict").size == size
    assert next(members(io.BytesIO(head))).size == size


@patient
@given(name=names(), target=names())
def test_header_fields_are_cut_between_characters(name: str, target: str) -> None:
    last = header(name, HARDLINK, mode=0, uid=0, gid=0, linkname=target)[-BLOCK:]
    for field, whole in ((last[:100], name), (last[157:257], target)):
        cut = field.rstrip(b"\0")
        assert whole.startswith(cut.decode())
        assert len(cut) > 96 or cut.decode() == whole


@pytest.mark.parametrize(("size", "records"), [(99, 0), (100, 0), (101, 2), (511, 2), (512, 3)], ids=str)
def test_only_names_past_100_bytes_take_a_record(size: int, records: int) -> None:
    assert len(header("a" * size, REGULAR, mode=0, uid=0, gid=0)) == (1 + records) * BLOCK
    assert len(header("a", SYMLINK, mode=0, uid=0, gid=0, linkname="a" * size)) == (1 + records) * BLOCK


def test_long_names_use_gnu_records() -> None:
    data = header("é" * 80, HARDLINK, mode=0, uid=0, gid=0, linkname="€" * 80)
    flags = [data[at + 156 : at + 157] for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    assert flags == [b"K", b"L", HARDLINK]


def test_pax_records_hold_attributes_only() -> None:
    data = header("n" * 300, REGULAR, mode=0, uid=2**32 - 1, gid=0, mtime=-5, size=9 * GIB, xattrs=[("user.a", b"1")])
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as opened:
        assert next(iter(opened)).pax_headers == {"SCHILY.xattr.user.a": "1"}
    without = header("n" * 300, REGULAR, mode=0, uid=2**32 - 1, gid=0, mtime=-5, size=9 * GIB)
    assert b"x" not in {without[at + 156 : at + 157] for at in range(0, len(without), BLOCK)}


@pytest.mark.parametrize("size", [*range(80, 100), *range(970, 1000), 9_970, 65_536])
def test_attribute_records_count_their_own_length(size: int) -> None:
    data = header("a", REGULAR, mode=0, uid=0, gid=0, xattrs=[("user.a", b"=" * size), ("user.b", b"\n\0\xff")]) + END
    assert read_one(data).xattrs == {"user.a": b"=" * size, "user.b": b"\n\0\xff"}
    assert python_xattrs(python_reads(data)) == {"user.a": b"=" * size, "user.b": b"\n\0\xff"}


def test_gnu_tar_unpacks_what_we_write(tmp_path: Path) -> None:
    awkward = ["plain", "with space", "new\nline", "back\\slash", "ünïcödé", "é" * 120, "-dash", "*star*"]
    data = header("./", DIRECTORY, mode=0o750, uid=0, gid=0) + header("d/", DIRECTORY, mode=0o1777, uid=7, gid=8)
    for name in awkward:
        data += header(f"d/{name}", REGULAR, mode=0o4755, uid=2**32 - 2, gid=3_000_000, mtime=-86_400, size=3)
        data += b"abc" + padding(3)
    data += header("d/symlink", SYMLINK, mode=0o777, uid=1, gid=2, linkname="ö" * 200)
    data += header("d/link", HARDLINK, mode=0o644, uid=0, gid=0, linkname=f"d/{'é' * 120}")
    data += header("d/attributes", REGULAR, mode=0o644, uid=0, gid=0, xattrs=[("user.binary", b"\0\xff=1")]) + END
    (tmp_path / "a.tar").write_bytes(data)
    (tmp_path / "out").mkdir()
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "../a.tar"],
        cwd=tmp_path / "out",
        check=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    found = tmp_path / "out" / "d"
    assert {path.name for path in found.iterdir()} == {*awkward, "symlink", "link", "attributes"}
    for name in awkward:
        status = (found / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o4755, 2**32 - 2, 3_000_000)
        assert (int(status.st_mtime), (found / name).read_bytes()) == (-86_400, b"abc")
    assert str((found / "symlink").readlink()) == "ö" * 200
    assert (found / "link").samefile(found / ("é" * 120))
    assert os.getxattr(found / "attributes", "user.binary") == b"\0\xff=1"
    assert (found.stat().st_mode & 0o7777, found.parent.stat().st_mode & 0o7777) == (0o1777, 0o750)


@st.composite
def foreign_items(draw: st.DrawFn, form: Form) -> Item:
    """Members as `tarfile` writes them, within what the format can hold."""
    small = form == tarfile.USTAR_FORMAT
    owner = st.integers(0, 8**7 - 1 if small else 2**32 - 1)
    mtime = st.integers(0 if small else -(2**33), 2**33 - 1)
    name = draw(st.text(letters, min_size=1, max_size=30) if small else names())
    kind = draw(st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]))
    return item(
        name if name.strip("./") else "name",
        kind,
        draw(st.binary(max_size=1500)) if kind == tarfile.REGTYPE else b"",
        mode=draw(modes),
        uid=draw(owner),
        gid=draw(owner),
        mtime=draw(mtime),
        target=draw(st.text(letters, min_size=1, max_size=20)) if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "",
        xattrs=draw(attributes) if form == tarfile.PAX_FORMAT else None,
    )


@patient
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(st.data())
def test_reads_what_python_writes(form: Form, data: st.DataObject) -> None:
    items = data.draw(st.lists(foreign_items(form), max_size=3))
    read = read_all(archive(*items, form=form))
    assert len(read) == len(items)
    for (member, content), written in zip(read, items, strict=True):
        info = written.info
        assert text(member.name).rstrip("/") == info.name
        assert (text(member.linkname), member.typeflag, content) == (info.linkname, info.type, written.content)
        assert (member.mode, member.uid, member.gid, member.mtime) == (info.mode, info.uid, info.gid, info.mtime)
        assert {f"SCHILY.xattr.{key}": text(value) for key, value in member.xattrs.items()} == info.pax_headers


def test_reads_ustar_prefixes() -> None:
    name = f"{'p' * 120}/{'n' * 90}"
    assert read_one(archive(file(name), form=tarfile.USTAR_FORMAT)).name.decode() == name


def test_reads_fractions_of_a_second() -> None:
    assert read_one(archive(file("a", mtime=1.75))).mtime == 1


def test_reads_names_that_are_not_utf8() -> None:
    assert read_one(archive(file("caf\udce9"))).name == b"caf\xe9"


def test_global_records_that_matter_to_no_client_are_passed_by() -> None:
    common = tarfile.TarInfo.create_pax_global_header({"mtime": "77", "comment": "0a1b"})
    data = common + archive(file("a"), file("b", mtime=5.5))
    assert [member.mtime for member, _ in read_all(data)] == [0, 5]


@pytest.mark.parametrize("flag", [b"\0", b"7"])
def test_old_and_contiguous_files_are_files(flag: bytes) -> None:
    assert read_one(archive(item("a", flag, b"abc"), form=tarfile.GNU_FORMAT)).typeflag == REGULAR


def test_an_old_name_with_a_slash_is_a_directory() -> None:
    assert read_one(archive(item("a/", b"\0"), form=tarfile.GNU_FORMAT)).typeflag == DIRECTORY


@pytest.mark.parametrize("kind", [HARDLINK, SYMLINK, b"3", b"4", DIRECTORY, b"6"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_only_files_have_content(kind: bytes, form: Form) -> None:
    described = item("a", kind, target="b")
    described.info.size = 513
    described.info.pax_headers = {"size": "513"}
    read = read_all(archive(described, file("next", b"x"), form=form))
    assert [(member.name.rstrip(b"/"), content) for member, content in read] == [(b"a", b""), (b"next", b"x")]


def test_a_long_name_ends_at_its_first_zero_byte() -> None:
    data = archive(file("n" * 150), form=tarfile.GNU_FORMAT)
    assert read_one(data.replace(b"n" * 150, b"n" * 120 + b"\0" + b"n" * 29)).name == b"n" * 120


def test_sparse_entries_are_known_as_such() -> None:
    assert read_one(archive(item("a", b"S"))).sparse
    described = file("a")
    described.info.pax_headers = {"GNU.sparse.major": "1"}
    assert read_one(archive(described)).sparse


ARCHIVE = archive(
    directory("usr", xattrs={"user.a": b"\xff\n"}),
    file("usr/" + "n" * 120, b"content" * 200, xattrs={"user.b": b"1" * 600}),
    symlink("usr/link", "t" * 120),
    hardlink("usr/hard", "usr/" + "n" * 120),
    device("dev/null"),
)
GNU_ARCHIVE = archive(
    file("l" * 300, b"x" * 513, uid=2**31), symlink("k", "t" * 300, mtime=-1), form=tarfile.GNU_FORMAT
)


@pytest.mark.parametrize("data", [ARCHIVE, GNU_ARCHIVE], ids=["pax", "gnu"])
def test_an_archive_cut_at_any_block_is_damaged(data: bytes) -> None:
    read_all(data)
    for end in range(0, len(data) - len(END) + 1, BLOCK):
        with pytest.raises(CorruptImage, match="truncated"):
            read_all(data[:end])


def test_an_archive_cut_inside_a_block_is_damaged() -> None:
    for end in (1, 511, 513, len(ARCHIVE) - len(END) + 1):
        with pytest.raises(CorruptImage, match="truncated"):
            read_all(ARCHIVE[:end])


def test_a_wrong_checksum_is_damage() -> None:
    data = bytearray(archive(file("a"), file("b")))
    data[BLOCK + 100] ^= 1
    with pytest.raises(CorruptImage, match="no tar header at byte 512"):
        read_all(bytes(data))


def test_what_is_no_archive_is_damaged() -> None:
    with pytest.raises(CorruptImage, match="no tar header at byte 0"):
        read_all(b"<html>" * 1000)


@pytest.mark.parametrize(
    "body",
    [
        b"no length",
        b"12",
        b"-5 a=b\n",
        b"0 a=b\n",
        b"99 path=a\n",
        b"8 path=a\n",
        b"11 path=abcd",
        b"8 path\n\n",
        b"\xff path=a\n",
        b"9" * 5000 + b" a=b\n",
        b"+9 path=a\n",
        b"1_0 path=a\n",
    ],
)
def test_malformed_pax_records_are_damage(body: bytes) -> None:
    with pytest.raises(CorruptImage, match="PAX"):
        read_all(_with_pax(body))


@pytest.mark.parametrize(
    "record",
    [b"size=-1", b"size=x", b"size=1_0", b"size=", b"mtime=", b"uid=0x1", b"path=a\0b", b"linkpath=a\0b", b"path="],
)
def test_pax_values_out_of_range_are_damage(record: bytes) -> None:
    with pytest.raises(CorruptImage):
        read_all(_with_pax(b"%d %b\n" % (len(record) + 4 + (len(record) > 95), record)))


@pytest.mark.parametrize(
    ("digits", "says"),
    [
        (b"-0000000017", "where a number belongs"),
        (b"+17", "where a number belongs"),
        (b"0o17", "where a number belongs"),
        (b"1_7", "where a number belongs"),
        (b"\xff" * 12, "has a size of -1 bytes"),
        (b"\xc0" + bytes(11), "has a size of [0-9]{20,} bytes"),
        (b"zzzzzzzzzzz", "where a number belongs"),
    ],
)
def test_a_size_out_of_range_is_damage(digits: bytes, says: str) -> None:
    block = bytearray(archive(file("a"))[:BLOCK])
    block[124:136] = digits.ljust(12, b"\0")
    with pytest.raises(CorruptImage, match=says):
        read_all(_checked(block) + ARCHIVE)


@pytest.mark.parametrize(("start", "end"), [(108, 116), (116, 124), (136, 148)], ids=["uid", "gid", "mtime"])
def test_numbers_that_no_system_has_are_damage(start: int, end: int) -> None:
    block = bytearray(archive(file("a"))[:BLOCK])
    block[start:end] = b"\xbf" + bytes(end - start - 1)
    with pytest.raises(CorruptImage):
        read_all(_checked(block) + END)


def test_an_extended_header_must_be_of_sane_size() -> None:
    huge = item("a", b"x")
    huge.info.size = MAX_EXTENDED + 1
    with pytest.raises(CorruptImage, match="too large"):
        read_all(archive(huge, form=tarfile.GNU_FORMAT))


def _extended(flag: bytes, body: bytes) -> Item:
    return item("extended", flag, body)


PAX_NAME, PAX_TARGET = _extended(b"x", b"12 path=pax\n"), _extended(b"x", b"16 linkpath=pax\n")


@pytest.mark.parametrize(
    "items",
    [
        [_extended(b"L", b"gnu\0"), PAX_NAME, file("a")],
        [PAX_NAME, _extended(b"L", b"gnu\0"), file("a")],
        [_extended(b"K", b"gnu\0"), PAX_TARGET, symlink("a", "b")],
        [PAX_NAME, PAX_NAME, file("a")],
        [_extended(b"L", b"gnu\0"), _extended(b"L", b"gnu\0"), file("a")],
        [_extended(b"x", b"9 path=a\n9 path=b\n"), file("a")],
        *([_extended(b"g", record), file("a")] for record in (b"9 path=b\n", b"9 size=1\n", b"8 uid=1\n")),
        [_extended(b"g", b"24 SCHILY.xattr.user.a=1\n"), file("a")],
        [_extended(b"L", b"\0"), directory("a")],
        [file("a/", b"1")],
        [file("a"), PAX_NAME],
    ],
)
def test_what_clients_read_in_different_ways_is_refused(items: list[Item]) -> None:
    with pytest.raises(CorruptImage):
        read_all(archive(*items, form=tarfile.GNU_FORMAT))


def test_an_extended_header_of_an_old_format_is_refused() -> None:
    data = archive(_extended(b"L", b"name\0"), file("a"), form=tarfile.GNU_FORMAT)
    with pytest.raises(CorruptImage, match="old by its format"):
        read_all(_checked(data[:257] + bytes(8) + data[265:BLOCK]) + data[BLOCK:])


@pytest.mark.parametrize(("at", "new"), [(263, b"01"), (508, b"tar\0")])
def test_a_prefix_of_another_format_is_refused(at: int, new: bytes) -> None:
    data = archive(file(f"{'p' * 140}/{'n' * 90}"), form=tarfile.USTAR_FORMAT)
    with pytest.raises(CorruptImage, match="of a format that few clients know"):
        read_all(_checked(data[:at] + new + data[at + len(new) : BLOCK]) + data[BLOCK:])


@pytest.mark.parametrize("items", [[file("d/" * 2048 + "a")], [symlink("a", "d/" * 2049)]])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_that_no_system_can_open_is_refused(items: list[Item], form: Form) -> None:
    with pytest.raises(CorruptImage, match="longer than any path"):
        read_all(archive(*items, form=form))


@patient
@given(data=st.sampled_from([ARCHIVE, GNU_ARCHIVE]), draw=st.data())
def test_damage_is_never_another_exception(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) // BLOCK - 1)) * BLOCK
        field = at + draw.draw(st.sampled_from([0, 100, 108, 116, 124, 136, 148, 156, 157, 257, 345]))
        new = draw.draw(st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 12, b"-1 ", b"7" * 11]))
        damaged[field : field + len(new)] = new
        if draw.draw(st.booleans()):
            damaged[at : at + BLOCK] = _checked(damaged[at : at + BLOCK])
    try:
        read = read_all(bytes(damaged))
    except CorruptImage:
        return
    assert all(member.size >= 0 for member, _ in read)


def _with_pax(body: bytes) -> bytes:
    pax = item("pax", b"x", body)
    return archive(pax, file("a"), form=tarfile.GNU_FORMAT)


def _checked(block: bytes | bytearray) -> bytes:
    """A header with the right checksum."""
    total = sum(block[:148]) + sum(block[156:]) + 256
    return bytes(block[:148]) + b"%06o\0 " % total + bytes(block[156:])
