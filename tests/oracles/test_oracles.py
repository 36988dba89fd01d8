"""The oracles judged: they show what is known of the clients, and they see it when an image is wrong.

Images are made by hand, entry by entry, so that a layer can hold what the package under test would never write.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import zstandard

from . import Missing, Refused, ostree, overlay, scratch
from .compare import differences

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep


class Entry(NamedTuple):
    """One entry of a layer, and one path of a tree."""

    name: str
    kind: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    content: bytes = b""
    target: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()


def directory(name: str, mode: int = 0o755, uid: int = 0, gid: int = 0, **xattrs: bytes) -> Entry:
    return Entry(name, tarfile.DIRTYPE, mode, uid, gid, xattrs=_named(xattrs))


def file(name: str, content: bytes = b"", mode: int = 0o644, uid: int = 0, gid: int = 0, **xattrs: bytes) -> Entry:
    return Entry(name, tarfile.REGTYPE, mode, uid, gid, content, xattrs=_named(xattrs))


def symlink(name: str, target: str) -> Entry:
    return Entry(name, tarfile.SYMTYPE, 0o777, target=target)


def hardlink(name: str, target: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(name, tarfile.LNKTYPE, mode, uid, gid, target=target)


def whiteout(name: str) -> Entry:
    parent, slash, last = name.rpartition("/")
    return file(f"{parent}{slash}.wh.{last}")


def _named(xattrs: dict[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name.replace("_", "."), value) for name, value in xattrs.items())


class Case(NamedTuple):
    """Layers, and what each client makes of them; without `overlay`, both make the same."""

    layers: Sequence[Sequence[Entry]]
    ostree: Sequence[Entry]
    overlay: Sequence[Entry] | None = None
    compression: str = "gzip"


ROOT = directory("./")
LONG = "a-name-that-does-not-fit-into-the-field-of-a-tar-header/" * 2 + "ő" * 60
LINKED = (
    directory("etc"),
    directory("usr"),
    file("etc/a", b"same", 0o4755, 5, 6),
    hardlink("usr/b", "etc/a", 0o4755, 5, 6),
    file("c", b"same"),
)

CASES = {
    "a file over a file brings content, mode and owner": Case(
        [[ROOT, file("f", b"old", 0o600, 1, 2)], [ROOT, file("f", b"new", 0o4755, 3, 4)]],
        [file("f", b"new", 0o4755, 3, 4)],
    ),
    "a whiteout removes a file": Case(
        [[ROOT, directory("d"), file("d/gone"), file("d/here")], [ROOT, directory("d"), whiteout("d/gone")]],
        [directory("d"), file("d/here")],
    ),
    "a whiteout removes a directory with all that is in it": Case(
        [[ROOT, directory("d"), directory("d/e"), file("d/e/f"), file("g")], [ROOT, whiteout("d")]],
        [file("g")],
    ),
    "a removed path comes back": Case(
        [[ROOT, file("f", b"1")], [ROOT, whiteout("f")], [ROOT, file("f", b"3")]],
        [file("f", b"3")],
    ),
    "an opaque directory hides what lower layers have in it": Case(
        [[ROOT, directory("d"), file("d/old")], [ROOT, directory("d"), file("d/.wh..wh..opq"), file("d/new")]],
        [directory("d"), file("d/new")],
    ),
    "a directory replaces a file": Case(
        [[ROOT, file("x")], [ROOT, directory("x", 0o750), file("x/f")]],
        [directory("x", 0o750), file("x/f")],
    ),
    "a directory replaces a symbolic link to a directory": Case(
        [[ROOT, directory("d"), symlink("x", "d")], [ROOT, directory("x"), file("x/f")]],
        [directory("d"), directory("x"), file("x/f")],
    ),
    "a file replaces a directory": Case(
        [[ROOT, directory("x"), file("x/f")], [ROOT, file("x", b"now a file")]],
        [file("x", b"now a file")],
    ),
    "a symbolic link replaces a directory": Case(
        [[ROOT, directory("x"), file("x/f"), directory("d")], [ROOT, symlink("x", "d")]],
        [directory("d"), symlink("x", "d")],
    ),
    "of a directory's metadata, OSTree takes the lowest and overlay the last": Case(
        [[ROOT, directory("d", 0o755, 1, 1, user_x=b"1")], [ROOT, directory("d", 0o700, 2, 2, user_x=b"2")]],
        [directory("d", 0o755, 1, 1, user_x=b"1")],
        [directory("d", 0o700, 2, 2, user_x=b"2")],
    ),
    "restated at the bottom and on top, a directory's metadata reaches both": Case(
        [[ROOT, directory("d", 0o700)], [ROOT, directory("d", 0o755), file("d/f")], [ROOT, directory("d", 0o700)]],
        [directory("d", 0o700), file("d/f")],
    ),
    "a layer that lists /etc alone makes up an OSTree client's /usr": Case(
        [[ROOT, directory("etc"), file("etc/f")], [ROOT, directory("usr", 0o711)]],
        [directory("etc"), file("etc/f"), directory("usr", 0o755)],
        [directory("etc"), file("etc/f"), directory("usr", 0o711)],
    ),
    "a whiteout of /etc does not reach an OSTree client": Case(
        [[ROOT, directory("usr"), directory("etc"), file("etc/f")], [ROOT, whiteout("etc")]],
        [directory("usr"), directory("etc"), file("etc/f")],
        [directory("usr")],
    ),
    "an image's own /usr/etc stays": Case(
        [[ROOT, directory("usr"), directory("usr/etc"), file("usr/etc/f")]],
        [directory("usr"), directory("usr/etc"), file("usr/etc/f")],
    ),
    "hard links inside a layer": Case(
        [[ROOT, *LINKED]],
        LINKED,
    ),
    "of a hard link's own metadata, OSTree takes nothing and overlay the last": Case(
        [[ROOT, file("a", b"x", 0o755, 5, 6), hardlink("b", "a", 0o600, 7, 8)]],
        [file("a", b"x", 0o755, 5, 6), hardlink("b", "a")],
        [file("a", b"x", 0o600, 7, 8), hardlink("b", "a")],
    ),
    "extended attributes of files and directories, capabilities among them": Case(
        [[ROOT, directory("d", user_x=b"\0=\xff"), file("d/ping", b"x", 0o755, security_capability=CAPABILITY)]],
        [directory("d", user_x=b"\0=\xff"), file("d/ping", b"x", 0o755, security_capability=CAPABILITY)],
    ),
    "a replaced file loses the extended attributes of the old one": Case(
        [[ROOT, file("f", b"1", user_x=b"1")], [ROOT, file("f", b"2")]],
        [file("f", b"2")],
    ),
    "names that are long and not ASCII": Case(
        [[ROOT, *[directory(str(p)) for p in reversed(Path(LONG).parents[:-1])], file(LONG), symlink("l", LONG)]],
        [*[directory(str(p)) for p in reversed(Path(LONG).parents[:-1])], file(LONG), symlink("l", LONG)],
    ),
    "zstd layers": Case([[ROOT, file("a")], [ROOT, file("b"), whiteout("a")]], [file("b")], compression="zstd"),
    "plain layers": Case([[ROOT, file("a")], [ROOT, file("b"), whiteout("a")]], [file("b")], compression=""),
    "as many layers as docker takes": Case(
        [[ROOT, file("0")], *[[ROOT, file(f"{n}"), whiteout(f"{n - 1}")] for n in range(1, 120)]],
        [file("119")],
    ),
}


@pytest.fixture(scope="module")
def merged_by_ostree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """All cases at once: a start of the client costs more than a small image."""
    images = make_cases(tmp_path_factory.mktemp("images"))
    with ostree.merged_many([(image, None) for image in images]) as trees:
        yield dict(zip(CASES, trees, strict=True))


@pytest.fixture(scope="module")
def merged_by_overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """All cases at once: a start of the client costs more than a small image."""
    images = make_cases(tmp_path_factory.mktemp("images"))
    with overlay.merged_many([(image, None) for image in images]) as trees:
        yield dict(zip(CASES, trees, strict=True))


@pytest.mark.oracle
class TestClients:
    """What is known of the clients' merge rules."""

    @pytest.mark.parametrize("name", CASES)
    def test_ostree_merges_as_known(self, name: str, merged_by_ostree: dict[str, Path], tmp_path: Path) -> None:
        """The OSTree client makes of each case what is known."""
        want = make_tree(tmp_path / "want", CASES[name].ostree)
        assert differences(want, merged_by_ostree[name], hardlinks=False) == []

    @pytest.mark.parametrize("name", CASES)
    def test_overlay_merges_as_known(self, name: str, merged_by_overlay: dict[str, Path], tmp_path: Path) -> None:
        """The overlay client makes of each case what is known, hard links included."""
        case = CASES[name]
        want = make_tree(tmp_path / "want", case.ostree if case.overlay is None else case.overlay)
        assert differences(want, merged_by_overlay[name]) == []

    def test_ostree_gives_the_root_directory_a_mode_of_its_own(self, tmp_path: Path) -> None:
        """Whatever `./` says: this is why the root directory is left out of a comparison unless asked for."""
        image = make_image(tmp_path / "image", [[directory("./", 0o700, 7, 7), file("f")]])
        want = make_tree(tmp_path / "want", [directory("./", 0o700, 7, 7), file("f")])
        with ostree.merged(image) as tree:
            assert differences(want, tree, hardlinks=False) == []
            assert differences(want, tree, hardlinks=False, root=True) == [
                "/: mode 0700 -> 0755",
                "/: uid 7 -> 0",
                "/: gid 7 -> 0",
            ]

    def test_ostree_refuses_a_hard_link_to_a_lower_layer(self, tmp_path: Path) -> None:
        """A layer must bring the target of its hard links."""
        image = make_image(tmp_path / "image", [[ROOT, file("a")], [ROOT, hardlink("b", "a")]])
        with pytest.raises(Refused, match="Failed to find object"), ostree.merged(image):
            pass

    def test_overlay_refuses_a_hard_link_to_a_lower_layer(self, tmp_path: Path) -> None:
        """A layer must bring the target of its hard links."""
        image = make_image(tmp_path / "image", [[ROOT, file("a")], [ROOT, hardlink("b", "a")]])
        with pytest.raises(Refused, match="no such file"), overlay.merged(image):
            pass

    def test_ostree_refuses_a_fifo(self, tmp_path: Path) -> None:
        """Device nodes, FIFOs and sockets cannot be in a layer."""
        image = make_image(tmp_path / "image", [[ROOT, Entry("pipe", tarfile.FIFOTYPE)]])
        with pytest.raises(Refused, match="Unsupported file type"), ostree.merged(image):
            pass

    def test_a_refusal_names_the_layer(self, tmp_path: Path) -> None:
        """In an image of a hundred layers, the digest of the refused one is worth having."""
        image = make_image(tmp_path / "image", [[ROOT, file("a")], [ROOT, hardlink("b", "a")]])
        with pytest.raises(Refused, match=layer_digests(image)[1]), ostree.merged(image):
            pass

    def test_ostree_reads_the_first_gzip_member_only(self, tmp_path: Path) -> None:
        """What a parallel compressor may write as several members reaches an OSTree client cut short."""
        image = make_image(tmp_path / "image", [[ROOT, file("f", os.urandom(4096))]], "gzip in two members")
        with pytest.raises(Refused, match="Truncated tar archive"), ostree.merged(image):
            pass

    @pytest.mark.parametrize("client", [ostree, overlay])
    def test_damaged_layers_are_refused(self, client: ModuleType, tmp_path: Path) -> None:
        """Half a compressed stream is not an image."""
        image = make_image(tmp_path / "image", [[ROOT, file("f", os.urandom(4096))]])
        blob = image / "blobs/sha256" / layer_digests(image)[0]
        os.truncate(blob, blob.stat().st_size // 2)
        with pytest.raises(Refused), client.merged(image):
            pass

    @pytest.mark.parametrize("client", [ostree, overlay])
    def test_an_image_is_chosen_by_its_name(self, client: ModuleType, tmp_path: Path) -> None:
        """A layout that holds two images is of use only with a name."""
        image = make_image(tmp_path / "image", [[ROOT, file("one")]], ref="v1")
        make_image(image, [[ROOT, file("two")]], ref="v2")
        with client.merged(image, "v2") as tree:
            assert os.listdir(tree) == ["two"]
        with pytest.raises(Refused), client.merged(image):
            pass

    @pytest.mark.parametrize("client", [ostree, overlay])
    def test_many_images_share_their_layers_and_keep_their_order(self, client: ModuleType, tmp_path: Path) -> None:
        """A series of images, each one layer longer; the same image twice is the same tree twice."""
        layers = [[ROOT, file("a")], [ROOT, file("b")], [ROOT, whiteout("a")]]
        images = [(make_image(tmp_path / f"{n}", layers[:n]), None) for n in (1, 3, 2)]
        with client.merged_many([*images, images[0]]) as trees:
            assert [sorted(os.listdir(tree)) for tree in trees] == [["a"], ["b"], ["a", "b"], ["a"]]

    @pytest.mark.parametrize("client", [ostree, overlay])
    def test_a_wrong_image_is_told_from_the_wanted_tree(self, client: ModuleType, tmp_path: Path) -> None:
        """A forgotten whiteout, an old content and a lost mode are each reported."""
        image = make_image(tmp_path / "image", [[ROOT, directory("d"), file("d/old"), file("f", b"1"), file("s")]])
        want = make_tree(tmp_path / "want", [directory("d"), file("f", b"2"), file("s", mode=0o4755), file("n")])
        with client.merged(image) as tree:
            assert differences(want, tree, hardlinks=False) == [
                "f: content",
                "n: missing",
                "s: mode 4755 -> 0644",
                "d/old: not wanted",
            ]


@pytest.mark.oracle
class TestHouseKeeping:
    """What an oracle leaves behind, and what it says when it cannot work."""

    @pytest.mark.parametrize("client", [ostree, overlay])
    def test_nothing_is_left_behind(self, client: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether a test ends well, fails, still reads, or the client refuses the image."""
        with scratch() as place:
            monkeypatch.setenv("TMPDIR", str(place))
            good = make_image(tmp_path / "good", [[ROOT, file("f", b"text")]])
            bad = make_image(tmp_path / "bad", [[ROOT, file("a")], [ROOT, hardlink("b", "a")]])
            with client.merged(good) as tree:
                still_open = (tree / "f").open()
            with pytest.raises(ZeroDivisionError), client.merged(good):
                raise ZeroDivisionError
            with pytest.raises(Refused), client.merged_many([(good, None), (bad, None)]):
                pass
            assert os.listdir(place) == []
            assert str(place) not in Path("/proc/self/mountinfo").read_text()
            still_open.close()

    @pytest.mark.parametrize(("client", "package"), [(ostree, "docker.io"), (overlay, "podman")])
    def test_a_missing_program_is_said_with_its_package(
        self, client: ModuleType, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An oracle that cannot run fails the test, and says what to install."""
        image = make_image(tmp_path / "image", [[ROOT]])
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
        with pytest.raises(Missing, match=f"apt-get install {package}"), client.merged(image):
            pass

    def test_a_silent_daemon_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """docker is installed, but its daemon does not run."""
        image = make_image(tmp_path / "image", [[ROOT]])
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
        with pytest.raises(Missing, match="daemon"), ostree.merged(image):
            pass

    @pytest.mark.parametrize("client", [ostree, overlay])
    def test_an_ordinary_user_is_told_to_be_root(
        self, client: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Owners and extended attributes need root."""
        image = make_image(tmp_path / "image", [[ROOT]])
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(Missing, match="root"), client.merged(image):
            pass


def _rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"a", b"b"))


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o644)
    path.chmod(0o644)


def _replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy")
    subprocess.run(["cp", "--archive", path, copy], check=True)
    copy.rename(path)


def _replace_by_link(path: Path, target: Path) -> None:
    path.unlink()
    path.hardlink_to(target)


def _relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


MUTATIONS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "nothing": (lambda _: None, []),
    "mtime": (lambda t: os.utime(t / "d/file", (1, 1)), []),
    "content": (lambda t: _rewrite(t / "d/file"), ["d/file: content"]),
    "size": (lambda t: os.truncate(t / "d/file", 2), ["d/file: size 4 -> 2"]),
    "mode": (lambda t: (t / "d/file").chmod(0o600), ["d/file: mode 0644 -> 0600"]),
    "suid": (lambda t: (t / "d/file").chmod(0o4644), ["d/file: mode 0644 -> 4644"]),
    "mode of a directory": (lambda t: (t / "d").chmod(0o1755), ["d: mode 0755 -> 1755"]),
    "uid": (lambda t: os.chown(t / "d/file", 9, -1), ["d/file: uid 0 -> 9"]),
    "gid": (lambda t: os.chown(t / "d/file", -1, 9), ["d/file: gid 0 -> 9"]),
    "owner of a symbolic link": (lambda t: os.lchown(t / "link", 9, -1), ["link: uid 0 -> 9"]),
    "target": (lambda t: _relink(t / "link", "d/a"), ["link: target d/file -> d/a"]),
    "new xattr": (lambda t: os.setxattr(t / "d", "user.new", b"1"), ["d: xattr user.new None -> b'1'"]),
    "lost xattr": (lambda t: os.removexattr(t / "d/x", "user.x"), ["d/x: xattr user.x b'1' -> None"]),
    "changed xattr": (lambda t: os.setxattr(t / "d/x", "user.x", b"2"), ["d/x: xattr user.x b'1' -> b'2'"]),
    "SELinux label": (lambda t: os.setxattr(t / "d", "security.selinux", b"x"), []),
    "missing file": (lambda t: (t / "d/file").unlink(), ["d/file: missing"]),
    "missing directory": (lambda t: shutil.rmtree(t / "d"), ["d: missing"]),
    "new file": (lambda t: (t / "d/new").touch(), ["d/new: not wanted"]),
    "new directory": (lambda t: (t / "d/new/new").mkdir(parents=True), ["d/new: not wanted"]),
    "new FIFO": (lambda t: os.mkfifo(t / "d/new"), ["d/new: not wanted"]),
    "type": (lambda t: _replace_by_directory(t / "d/file"), ["d/file: type file -> directory"]),
    "type of a link": (lambda t: _relink(t / "dirlink", "d/a"), ["dirlink: target d -> d/a"]),
    "broken hard link": (lambda t: _replace_by_copy(t / "d/b"), ["d/a = d/b: no longer hard links of each other"]),
    "new hard link": (
        lambda t: _replace_by_link(t / "d/twin", t / "d/file"),
        ["d/file = d/twin: not wanted as hard links"],
    ),
    "content of /run": (lambda t: (t / "run/new").touch(), []),
    "content of a run that is not at the top": (lambda t: (t / "d/run/new").touch(), ["d/run/new: not wanted"]),
    "mode of /run": (lambda t: (t / "run").chmod(0o700), ["run: mode 0755 -> 0700"]),
    "name that is not UTF-8": (lambda t: (t / os.fsdecode(b"\xff")).touch(), ["\\xff: not wanted"]),
    "root directory": (lambda t: t.chmod(0o700), []),
}


class TestDifferences:
    """Each kind of difference is found, and only that."""

    TREE = (
        ROOT,
        directory("d"),
        directory("d/run"),
        directory("run"),
        file("d/file", b"a\0aa"),
        file("d/twin", b"a\0aa"),
        file("d/x", user_x=b"1"),
        file("d/a", b"x", 0o4755, 5, 6),
        hardlink("d/b", "d/a"),
        symlink("link", "d/file"),
        symlink("dirlink", "d"),
    )

    @pytest.mark.parametrize("name", MUTATIONS)
    def test_a_change_is_said(self, name: str, tmp_path: Path) -> None:
        """One change of a copied tree is one difference, or none where it does not count."""
        mutate, said = MUTATIONS[name]
        want, got = make_tree(tmp_path / "want", self.TREE), make_tree(tmp_path / "got", self.TREE)
        mutate(got)
        assert differences(want, got) == said

    def test_what_an_image_cannot_hold_is_not_wanted(self, tmp_path: Path) -> None:
        """Device nodes, FIFOs and sockets of the source are left out; so they must not be in the image either."""
        want, got = make_tree(tmp_path / "want", self.TREE), make_tree(tmp_path / "got", self.TREE)
        os.mkfifo(want / "d/fifo")
        os.mknod(want / "d/null", 0o20666, os.makedev(1, 3))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(want / "d/socket"))
        assert differences(want, got) == []
        (got / "d/fifo").touch()
        assert differences(want, got) == ["d/fifo: not wanted"]

    def test_what_a_client_cannot_deliver_is_left_out_on_demand(self, tmp_path: Path) -> None:
        """Hard links, xattrs, the root directory and single paths can each be left out or asked for."""
        want, got = make_tree(tmp_path / "want", self.TREE), make_tree(tmp_path / "got", self.TREE)
        _replace_by_copy(got / "d/b")
        os.setxattr(got / "d", "user.x", b"")
        got.chmod(0o700)
        (got / "d/run/new").touch()
        everything = [
            "/: mode 0755 -> 0700",
            "d: xattr user.x None -> b''",
            "d/run/new: not wanted",
            "d/a = d/b: no longer hard links of each other",
        ]
        assert differences(want, got, root=True) == everything
        assert differences(want, got) == everything[1:]
        assert differences(want, got, hardlinks=False) == everything[1:3]
        assert differences(want, got, hardlinks=False, xattrs=False) == everything[2:3]
        assert differences(want, got, hardlinks=False, ignore_xattrs=["user.x"]) == everything[2:3]
        assert differences(want, got, hardlinks=False, xattrs=False, ignore=["d/run"]) == []


def make_cases(parent: Path) -> list[Path]:
    cases = enumerate(CASES.values())
    return [make_image(parent / f"{number}", case.layers, case.compression) for number, case in cases]


def make_image(layout: Path, layers: Sequence[Sequence[Entry]], compression: str = "gzip", ref: str = "latest") -> Path:
    """Write an OCI layout directory, or add an image to one."""

    def put(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    tars = [make_layer(entries) for entries in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
        "history": [{"created_by": "a test"} for _ in tars],
    }
    algorithm = compression.partition(" ")[0]
    kind = f"layer.v1.tar+{algorithm}" if algorithm else "layer.v1.tar"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [put(COMPRESSIONS[compression](tar), kind) for tar in tars],
    }
    index = layout / "index.json"
    images = json.loads(index.read_text())["manifests"] if index.exists() else []
    images.append(put(json.dumps(manifest).encode(), "manifest.v1+json"))
    images[-1]["annotations"] = {"org.opencontainers.image.ref.name": ref}
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": images}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layout


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip in two members": lambda tar: gzip.compress(tar[:2048]) + gzip.compress(tar[2048:]),
    "zstd": zstandard.compress,
    "": bytes,
}


def make_layer(entries: Sequence[Entry]) -> bytes:
    """A tar with GNU names, and a PAX header only for extended attributes."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry in entries:
            if entry.xattrs:
                records = b"".join(pax_record(f"SCHILY.xattr.{name}", value) for name, value in entry.xattrs)
                header = tarfile.TarInfo("././@PaxHeader")
                header.type, header.size = tarfile.XHDTYPE, len(records)
                tar.addfile(header, io.BytesIO(records))
            member = tarfile.TarInfo(entry.name)
            member.type, member.mode, member.uid, member.gid = entry.kind, entry.mode, entry.uid, entry.gid
            member.linkname, member.size = entry.target, len(entry.content)
            tar.addfile(member, io.BytesIO(entry.content))
    return archive.getvalue()


def pax_record(key: str, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE` and a newline, where LENGTH counts its own digits."""
    text = b" " + key.encode() + b"=" + value + b"\n"
    length = len(text)
    while len(str(length)) + len(text) != length:
        length = len(str(length)) + len(text)
    return str(length).encode() + text


def make_tree(root: Path, entries: Sequence[Entry]) -> Path:
    """The directory tree that the entries describe."""
    root.mkdir(mode=0o755)
    for entry in entries:
        path = root / entry.name
        if entry.kind == tarfile.LNKTYPE:
            path.hardlink_to(root / entry.target)
            continue
        if entry.kind == tarfile.DIRTYPE:
            path.mkdir(exist_ok=True)
        elif entry.kind == tarfile.SYMTYPE:
            path.symlink_to(entry.target)
        else:
            path.write_bytes(entry.content)
        os.lchown(path, entry.uid, entry.gid)
        if entry.kind != tarfile.SYMTYPE:
            path.chmod(entry.mode)
        for name, value in entry.xattrs:
            os.setxattr(path, name, value, follow_symlinks=False)
    return root


def layer_digests(layout: Path) -> list[str]:
    """The hexadecimal digests of the only image's layers."""
    (image,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((layout / "blobs/sha256" / image["digest"][7:]).read_text())
    return [layer["digest"][7:] for layer in manifest["layers"]]
