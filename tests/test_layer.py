"""New layers: what is written, in which order, and that the same goes in as comes out."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from rechunk_action.errors import InputError
from rechunk_action.oci.compression import DEFAULTS
from rechunk_action.oci.layer import GATHER, LayerPlan, Written, write_layer
from rechunk_action.oci.tar import END
from rechunk_action.progress import UNHEARD, Advance
from rechunk_action.source.directory import DirectorySource
from rechunk_action.tree.entry import EMPTY_DIGEST, Entry, Tree, new_digest
from tests.building import scanned
from tests.support import digest, peak_memory

RANDOM = hashlib.shake_128(b"seed").digest(3 * GATHER // 2)
TEXT = b"".join(b"%d bottles\n" % number for number in range(100_000))


class Held:
    """Contents in memory, handed out in pieces of some size."""

    def __init__(self, contents: Mapping[str, bytes], piece: int = 1 << 20) -> None:
        self.contents = contents
        self.piece = piece
        self.asked: list[str] = []

    def pieces(self, path: str, size: int) -> Iterator[bytes]:
        del size
        self.asked.append(path)
        content = self.contents[path]
        for at in range(0, len(content), self.piece):
            yield content[at : at + self.piece]


def file(content: bytes, **attributes: Any) -> Entry:
    return Entry("f", **{"mode": 0o644, "uid": 0, "gid": 0} | attributes, size=len(content), digest=digest_of(content))


def directory(mode: int = 0o755) -> Entry:
    return Entry("d", mode, 0, 0, mtime=77)


def digest_of(content: bytes) -> bytes:
    return new_digest(content).digest()


CONTENTS = {"usr/a": b"a" * 600, "usr/b": RANDOM, "usr/empty": b"", "usr/link": b"a" * 600, "usr/text": TEXT}


def tree() -> Tree:
    return {
        "": directory(0o711),
        "etc": directory(),
        "usr": directory(0o1755),
        "usr/a": file(
            CONTENTS["usr/a"], mode=0o4755, uid=70_000, mtime=5, xattrs=(("user.a", b"\xff"),), group="usr/a"
        ),
        "usr/b": file(RANDOM, mtime=-5),
        "usr/empty": file(b"", mtime=1 << 33),
        "usr/link": file(CONTENTS["usr/a"], mode=0o4755, uid=70_000, xattrs=(("user.a", b"\xff"),), group="usr/a"),
        "usr/symlink": Entry("l", 0o777, 1, 2, mtime=6, target="a"),
        "usr/text": file(TEXT),
    }


FILES = ["usr/a", "usr/b", "usr/empty", "usr/link", "usr/symlink", "usr/text"]
PLAN = LayerPlan("name", ["", "etc", "usr"], FILES, ["etc/gone", "top"])


def write(
    path: Path,
    plan: LayerPlan = PLAN,
    *,
    wanted: Tree | None = None,
    contents: Held | None = None,
    compression: str = "zstd",
    threads: int = 1,
    newest: int | None = None,
    advance: Advance = UNHEARD,
) -> Written:
    return write_layer(
        plan,
        tree() if wanted is None else wanted,
        contents or Held(CONTENTS),
        path,
        compression=DEFAULTS[compression],
        level=DEFAULTS[compression].level,
        threads=threads,
        newest=newest,
        advance=advance,
    )


def unpacked(written: Written) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(written.path.read_bytes())


def members(written: Written) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(unpacked(written)), mode="r:") as opened:
        return {info.name: info for info in opened.getmembers()}


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_a_layer_reads_back_as_planned(tmp_path: Path, compression: str) -> None:
    written = write(tmp_path / "layer", compression=compression)
    planned = PLAN.table(tree())
    assert written.table.whiteouts == planned.whiteouts
    assert written.table.entries.keys() == planned.entries.keys()
    assert all(entry.same_as(planned.entries[path]) for path, entry in written.table.entries.items())
    assert {path for path, entry in written.table.entries.items() if entry.group} == {"usr/a", "usr/link"}
    assert written.table.problem == ""


def test_a_blob_is_described_as_it_is(tmp_path: Path) -> None:
    written = write(tmp_path / "layer")
    data = written.path.read_bytes()
    assert (written.blob.digest, written.blob.size) == (digest(data), len(data))
    assert written.blob.diff_id == written.table.diff_id == digest(unpacked(written))
    assert written.blob.media_type == "application/vnd.oci.image.layer.v1.tar+zstd"


def test_directories_come_first_then_removals_then_files(tmp_path: Path) -> None:
    assert list(members(write(tmp_path / "layer"))) == [".", "etc", "usr", "etc/.wh.gone", ".wh.top", *FILES]


def test_an_archive_ends_in_two_zero_blocks(tmp_path: Path) -> None:
    data = unpacked(write(tmp_path / "layer"))
    assert data.endswith(END)
    assert len(data) % 512 == 0


def test_headers_say_what_the_tree_says(tmp_path: Path) -> None:
    found = members(write(tmp_path / "layer"))
    assert [found[path].mode for path in (".", "usr", "usr/a", "usr/symlink")] == [0o711, 0o1755, 0o4755, 0o777]
    assert [(found[path].uid, found[path].gid) for path in ("usr/a", "usr/symlink")] == [(70_000, 0), (1, 2)]
    assert (found["usr/symlink"].linkname, found["usr/link"].linkname) == ("a", "usr/a")
    assert {info.uname + info.gname for info in found.values()} == {""}


def test_directories_carry_no_time_and_files_keep_theirs(tmp_path: Path) -> None:
    found = members(write(tmp_path / "layer"))
    assert {path: info.mtime for path, info in found.items() if info.mtime} == {
        "usr/a": 5,
        "usr/b": -5,
        "usr/empty": 1 << 33,
        "usr/symlink": 6,
    }


def test_no_file_is_younger_than_allowed(tmp_path: Path) -> None:
    found = members(write(tmp_path / "layer", newest=5))
    assert [found[path].mtime for path in ("usr/a", "usr/b", "usr/empty", "usr/symlink")] == [5, -5, 5, 5]


def test_a_whiteout_is_an_empty_file_of_nobody(tmp_path: Path) -> None:
    whiteout = members(write(tmp_path / "layer"))["etc/.wh.gone"]
    assert (whiteout.isreg(), whiteout.size, whiteout.mode, whiteout.uid, whiteout.mtime) == (True, 0, 0, 0, 0)


def test_a_hard_link_repeats_neither_content_nor_attributes(tmp_path: Path) -> None:
    contents = Held(CONTENTS)
    found = members(write(tmp_path / "layer", contents=contents))
    assert (found["usr/link"].islnk(), found["usr/link"].size) == (True, 0)
    assert ("SCHILY.xattr.user.a" in found["usr/a"].pax_headers, found["usr/link"].pax_headers) == (True, {})
    assert contents.asked == ["usr/a", "usr/b", "usr/text"]


def test_the_first_link_in_order_holds_the_content(tmp_path: Path) -> None:
    found = members(write(tmp_path / "layer", LayerPlan("", ["", "usr"], ["usr/link", "usr/a"])))
    assert (found["usr/link"].isreg(), found["usr/a"].linkname) == (True, "usr/link")


def test_a_member_of_a_group_can_stand_alone(tmp_path: Path) -> None:
    written = write(tmp_path / "layer", LayerPlan("", ["", "usr"], ["usr/link"]))
    assert members(written)["usr/link"].isreg()
    assert written.table.entries["usr/link"].group == ""


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_same_input_gives_the_same_bytes(tmp_path: Path, compression: str) -> None:
    cuts = (1 << 20, 70_000, GATHER, GATHER - 1, 1 << 24)
    written = [
        write(tmp_path / str(cut), contents=Held(CONTENTS, cut), compression=compression, threads=threads).blob
        for cut, threads in zip(cuts, (1, 2, 4, 1, 3), strict=True)
    ]
    assert len(set(written)) == 1


def test_missing_digests_are_taken_on_the_way(tmp_path: Path) -> None:
    unread = tree()
    for path in FILES:
        unread[path].digest = b""
    unread["usr/empty"].digest = EMPTY_DIGEST
    written = write(tmp_path / "layer", wanted=unread)
    assert {path: unread[path].digest for path in CONTENTS} == {
        path: digest_of(data) for path, data in CONTENTS.items()
    }
    assert {path: written.table.entries[path].digest for path in CONTENTS} == {
        path: unread[path].digest for path in CONTENTS
    }
    assert written.blob == write(tmp_path / "again").blob


@pytest.mark.parametrize(
    "now", [RANDOM[:-1], RANDOM + b"1", b"", b"1" + RANDOM[1:]], ids=["less", "more", "none", "other"]
)
def test_a_file_that_changes_is_told(tmp_path: Path, now: bytes) -> None:
    with pytest.raises(InputError, match="usr/b changed while it was read"):
        write(tmp_path / "layer", contents=Held(CONTENTS | {"usr/b": now}))


@pytest.mark.parametrize("now", [RANDOM[:-1], RANDOM + b"1"], ids=["less", "more"])
def test_a_file_of_unknown_content_may_not_change_its_size(tmp_path: Path, now: bytes) -> None:
    unread = tree()
    unread["usr/b"].digest = b""
    with pytest.raises(InputError, match="usr/b changed while it was read"):
        write(tmp_path / "layer", wanted=unread, contents=Held(CONTENTS | {"usr/b": now}))


def test_the_size_of_an_archive_is_known_beforehand(tmp_path: Path) -> None:
    linked = tree()
    linked["usr/b"].group = "usr/b"
    linked["usr/c"] = linked["usr/b"]
    plan = LayerPlan("", ["", "usr"], ["usr/b", "usr/c", "usr/text", "usr/symlink"], ["usr/gone"])
    assert plan.archive_size(linked) == len(unpacked(write(tmp_path / "layer", plan, wanted=linked)))


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_bytes_are_told_as_they_are_compressed(tmp_path: Path, compression: str) -> None:
    told: list[int] = []
    contents = {"large": b"a" * (3 * GATHER + 7)}
    wanted = {"": directory(), "large": file(contents["large"])}
    plan = LayerPlan("", [""], ["large"])
    write(
        tmp_path / "layer", plan, wanted=wanted, contents=Held(contents), compression=compression, advance=told.append
    )
    assert sum(told) == plan.archive_size(wanted)
    assert max(told) == GATHER


def test_a_layer_may_hold_nothing_but_directories(tmp_path: Path) -> None:
    written = write(tmp_path / "layer", LayerPlan("", ["", "usr"]))
    assert {path: entry.mode for path, entry in written.table.entries.items()} == {"": 0o711, "usr": 0o1755}


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large").touch()
    os.truncate(tmp_path / "tree" / "large", 300 << 20)
    source = scanned(DirectorySource(str(tmp_path / "tree")))
    with peak_memory() as peak:
        written = write_layer(
            LayerPlan("", [""], ["large"]),
            source.tree,
            source,
            tmp_path / "layer",
            compression=DEFAULTS["zstd"],
            level=1,
            threads=1,
            newest=None,
        )
    assert peak.size < 10 << 20
    assert (written.table.entries["large"].size, written.table.entries["large"].digest) == (
        300 << 20,
        source.tree["large"].digest,
    )
