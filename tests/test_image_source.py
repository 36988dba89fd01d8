"""The tree of an image on disk, merged from its layers without unpacking them."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rechunk_action.errors import CorruptImage, InputError, UnsupportedTree
from rechunk_action.oci import compression
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.stage import blob_path
from rechunk_action.source.image import ImageSource
from rechunk_action.tree.entry import Entry, new_digest
from rechunk_action.tree.scan import PIECE, Hasher, scan
from tests.building import scanned
from tests.support import (
    Item,
    Packed,
    archive,
    as_nobody,
    device,
    digest,
    directory,
    file,
    hardlink,
    item,
    listing,
    pack,
    packed,
    symlink,
    write_layout,
)

Open = Callable[..., ImageSource]

LARGE = hashlib.shake_128(b"seed").digest(PIECE + 1000)


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens an image of the layers given."""

    def of(*layers: Packed, threads: int = 2, **options: Any) -> ImageSource:
        (tmp_path / "scratch").mkdir()
        image = read_image(write_layout(tmp_path / "layout", layers), None)
        return scanned(ImageSource(image, tmp_path / "scratch", threads=threads, **options))

    return of


def layer(*items: Item) -> Packed:
    return pack(archive(*items))


def content(source: ImageSource, path: str) -> bytes:
    return b"".join(source.pieces(path, source.tree[path].size))


def paths(source: ImageSource) -> set[str]:
    return set(source.tree) - {""}


def whole(entry: Entry) -> tuple[object, ...]:
    return (
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.digest,
        entry.target,
        entry.xattrs,
        entry.group,
    )


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A tree on disk with some of everything."""
    root = tmp_path / "real"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "empty").mkdir(mode=0o700)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "tmp" / "left-out").touch()
    (root / "usr" / "bin" / "su").write_bytes(LARGE)
    os.chown(root / "usr" / "bin" / "su", 7, 3_000_000)
    (root / "usr" / "bin" / "su").chmod(0o4711)
    (root / "usr" / "bin" / "empty").touch()
    (root / "usr" / "bin" / ("é" * 120)).write_bytes(b"long name")
    os.setxattr(root / "usr" / "bin" / "su", "user.binary", b"\0\xff")
    os.setxattr(root / "usr", "user.component", b"base")
    os.link(root / "usr" / "bin" / "su", root / "usr" / "also su")
    (root / "usr" / "link").symlink_to("/missing")
    (root / "bin").symlink_to("usr/bin")
    os.utime(root / "usr" / "bin" / "su", (5, 5))
    return root


def gnu_tar(root: Path, method: str = "zstd") -> Packed:
    command = ["tar", "--create", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=posix", "."]
    return pack(subprocess.run(command, cwd=root, check=True, capture_output=True).stdout, method)


@pytest.mark.parametrize("method", ["none", "gzip", "zstd"])
def test_an_image_is_the_tree_it_was_made_from(opened: Open, real: Path, method: str) -> None:
    below = layer(
        directory("gone"), file("gone/x"), file("tmp"), directory("bin"), file("bin/su"), file("usr/link", b"1")
    )
    source = opened(below, layer(directory("./"), file(".wh.gone")), gnu_tar(real, method))
    with Hasher(1, lambda _: None) as hasher:
        wanted = scan(str(real), hasher=hasher).tree
        hasher.finish()
    assert source.tree.keys() == wanted.keys()
    assert {path: whole(entry) for path, entry in source.tree.items()} == {
        path: whole(entry) for path, entry in wanted.items()
    }


@pytest.mark.parametrize("threads", [1, 4])
def test_contents_come_back_once_they_were_asked_for(opened: Open, real: Path, threads: int) -> None:
    extra = [file("extra/a", b"a" * 5000), file("extra/b", b"b" * 5000), hardlink("extra/c", "extra/a")]
    source = opened(gnu_tar(real), layer(*extra), threads=threads)
    wanted = ["usr/bin/su", "usr/also su", f"usr/bin/{'é' * 120}", "extra/a", "extra/c"]
    source.prepare([*wanted, "usr/bin/empty"])
    source.prepare(wanted[:1])
    assert [content(source, path) for path in wanted] == [LARGE, LARGE, b"long name", b"a" * 5000, b"a" * 5000]


def test_the_uppermost_content_comes_back(opened: Open) -> None:
    source = opened(layer(file("a", b"first"), file("b", b"b")), layer(file("a", b"second")), layer(file("c", b"c")))
    source.prepare(["a", "b", "c"])
    assert [content(source, path) for path in "abc"] == [b"second", b"b", b"c"]


def test_the_last_content_of_a_path_comes_back(opened: Open) -> None:
    source = opened(layer(file("a", b"first"), file("b", b"b"), file("a", b"second")))
    source.prepare(["a"])
    assert (content(source, "a"), source.tree["a"].digest) == (b"second", new_digest(b"second").digest())


def test_scratch_space_holds_no_names_of_the_image(opened: Open, tmp_path: Path) -> None:
    source = opened(layer(file("etc/passwd", b"1")))
    source.prepare(["etc/passwd"])
    assert listing(tmp_path / "scratch") == {}


def test_objects_of_an_ostree_chunked_image_are_found(opened: Open) -> None:
    objects = "sysroot/ostree/repo/objects"
    source = opened(
        layer(
            directory("sysroot"),
            file(f"{objects}/aa/1.file", b"shell", mode=0o755),
            file(f"{objects}/bb/2.file", b"shared"),
            hardlink("usr/bin/sh", f"{objects}/aa/1.file"),
            hardlink("usr/one", f"{objects}/bb/2.file"),
        ),
        layer(hardlink("usr/two", f"{objects}/bb/2.file"), hardlink("usr/bin/dash", f"{objects}/aa/1.file")),
    )
    assert paths(source) == {"sysroot", "usr", "usr/bin", "usr/bin/sh", "usr/bin/dash", "usr/one", "usr/two"}
    assert [source.tree[path].group for path in ("usr/bin/sh", "usr/one", "usr/two")] == [
        "usr/bin/dash",
        "usr/one",
        "usr/one",
    ]
    assert source.tree["usr/bin/sh"].mode == 0o755
    source.prepare(["usr/bin/dash", "usr/two"])
    assert (content(source, "usr/bin/dash"), content(source, "usr/two")) == (b"shell", b"shared")


def test_links_that_an_upper_layer_parts_are_no_group(opened: Open) -> None:
    source = opened(layer(file("a", b"1"), hardlink("b", "a"), hardlink("c", "a")), layer(file("a", b"2")))
    assert [source.tree[path].group for path in "abc"] == ["", "b", "b"]
    source.prepare("abc")
    assert [content(source, path) for path in "abc"] == [b"2", b"1", b"1"]


@pytest.mark.parametrize(
    "path", ["var/lib/dpkg/status", "usr/share/rpm/rpmdb.sqlite", "etc/other", "etc/empty", "linked"]
)
def test_package_databases_can_be_read_at_once(opened: Open, path: str) -> None:
    contents = {
        "var/lib/dpkg/status": b"Package: x",
        "usr/share/rpm/rpmdb.sqlite": LARGE,
        "etc/other": b"other",
        "etc/empty": b"",
    }
    below = [file(name, b"old") for name in contents]
    upper = [file(name, data) for name, data in contents.items()]
    source = opened(layer(*below), layer(*upper, hardlink("linked", "var/lib/dpkg/status")))
    assert source.read(path) == contents.get(path, b"Package: x")


def test_what_layers_do_not_describe_is_made_up(opened: Open) -> None:
    source = opened(layer(directory("etc", mode=0o700), file("usr/bin/x")), layer(file("etc/y")))
    assert {path: (entry.mode, entry.uid) for path, entry in source.tree.items() if entry.is_dir} == {
        "": (0o755, 0),
        "etc": (0o700, 0),
        "usr": (0o755, 0),
        "usr/bin": (0o755, 0),
    }


def test_devices_are_left_out_and_told(opened: Open) -> None:
    source = opened(layer(file("x"), device("var/one"), item("var/two", b"6"), device("dev/null")))
    assert paths(source) == {"x", "var", "dev"}
    assert [notice.partition(":")[0] for notice in source.notices] == ["left out 2 special files"]


def test_contents_of_the_running_system_are_left_out(opened: Open) -> None:
    source = opened(layer(file("run/x"), file("tmp/.wh..wh..opq"), file("proc/1/mem"), file("usr/run/x")))
    assert paths(source) == {"run", "tmp", "proc", "usr", "usr/run", "usr/run/x"}


@pytest.mark.parametrize("entry", [file("caf\udce9"), symlink("link", "\udcff"), hardlink("caf\udce9", "x")])
def test_names_that_are_not_utf8_are_refused(opened: Open, entry: Item) -> None:
    with pytest.raises(UnsupportedTree, match="is not valid UTF-8"):
        opened(layer(file("x"), entry))


@pytest.mark.parametrize("value", [b"", b"\n"])
def test_attributes_that_importers_cannot_read_are_refused(opened: Open, value: bytes) -> None:
    with pytest.raises(UnsupportedTree, match=r"attribute user\.bad of 'x'"):
        opened(layer(file("x", xattrs={"user.bad": value})))


def test_attributes_that_importers_cannot_read_are_left_out_on_request(opened: Open) -> None:
    source = opened(layer(file("x", xattrs={"user.bad": b"\n", "user.good": b"1"})), drop_bad_xattrs=True)
    assert source.tree["x"].xattrs == (("user.good", b"1"),)
    assert [notice.partition(":")[0] for notice in source.notices] == [
        "left out 1 extended attribute that importers cannot read, as asked"
    ]


def test_a_layer_of_several_gzip_members_is_read_to_its_end(opened: Open) -> None:
    data = archive(file("a", b"1" * 3000), file("b", b"2"))
    source = opened(packed(gzip.compress(data[:2000]) + gzip.compress(data[2000:]), "gzip", digest(data)))
    assert paths(source) == {"a", "b"}


@pytest.mark.parametrize("layers", [[], [layer()], [layer(directory("./"))], [layer(file("a")), layer(file(".wh.a"))]])
def test_an_image_without_any_file_is_told(opened: Open, layers: list[Packed]) -> None:
    with pytest.raises(CorruptImage, match="an image without any file"):
        opened(*layers)


def test_a_damaged_layer_is_told(opened: Open, tmp_path: Path) -> None:
    layers = [layer(file("a", LARGE)), layer(file("b"))]
    write_layout(tmp_path / "layout", layers)
    damaged = bytearray(layers[0].data)
    damaged[len(damaged) // 2] ^= 1
    image = read_image(tmp_path / "layout", None)
    blob_path(tmp_path / "layout", layers[0].blob.digest).write_bytes(damaged)
    with pytest.raises(CorruptImage, match=f"layer {layers[0].blob.digest} is damaged"):
        scanned(ImageSource(image, tmp_path, threads=2))


def test_a_bomb_is_told(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "BOMB_FLOOR", 1 << 20)
    with pytest.raises(CorruptImage, match="bomb"):
        opened(layer(file("zeros", bytes(10 << 20))))


def test_a_layer_of_an_unknown_type_is_told(opened: Open) -> None:
    odd = layer(file("a"))
    blob = type(odd.blob)(odd.blob.digest, odd.blob.size, odd.blob.media_type.replace("zstd", "xz"), odd.blob.diff_id)
    with pytest.raises(InputError, match=r"layers of type .*\+xz cannot be read"):
        opened(Packed(odd.data, blob))


def test_an_image_is_read_without_any_rights(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_layout(tmp_path / "layout", [gnu_tar(real)])
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    with as_nobody():
        source = scanned(ImageSource(read_image(Path("layout"), None), Path(), threads=2))
        source.prepare(["usr/bin/su"])
    assert (source.tree["usr/bin/su"].mode, source.tree["usr/bin/su"].gid) == (0o4711, 3_000_000)
    assert content(source, "usr/bin/su") == LARGE


def test_the_config_of_the_image_comes_with_it(opened: Open) -> None:
    source = opened(layer(file("a")))
    assert source.config is not None
    assert source.config["config"] == {"Labels": {"containers.bootc": "1"}}
