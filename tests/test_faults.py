"""Faults while an image is written: whatever call of the system fails, and wherever a run is killed, what is there
stays there, nothing that is not whole appears, and nothing else is left, at the latest when the next run is over.

Each scene is a build that is first run undisturbed: that tells its calls, and what has to come out. Then it is run
again and again, and another call fails each time. With `--long`, every call fails in every way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Protocol

import pytest

from rechunk_action.errors import EnvironmentLack, InputError, RegistryError
from rechunk_action.oci.image import MANIFEST
from rechunk_action.oci.layout import layout_tags
from rechunk_action.tree.scan import MOUNTED_OVER
from tests.building import Meddler, build
from tests.conftest import sample
from tests.disks import mounted
from tests.injection import Call, Fault, Run, traced
from tests.oracles import run, scratch
from tests.policies import add_policy
from tests.registries import Registry, plain_registry
from tests.signing import key_text
from tests.support import NOBODY, as_nobody, listing
from tests.trees import CONTENTS

COMMAND = (sys.executable, "-m", "rechunk_action")

FULL, BROKEN, DENIED = ("ENOSPC",), ("EIO",), ("EACCES", "EROFS")
WAYS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("write", "pwrite64"), (*FULL, *BROKEN, "SHORT")),
    **dict.fromkeys(("open", "openat"), (*FULL, *BROKEN, *DENIED, "EDQUOT", "EMFILE")),
    "mkdir": (*FULL, *BROKEN, *DENIED),
    **dict.fromkeys(("fsync", "close", "ftruncate"), (*FULL, *BROKEN)),
    **dict.fromkeys(("link", "linkat", "symlink"), (*FULL, *BROKEN, *DENIED, "EMLINK", "EPERM", "EXDEV")),
    **dict.fromkeys(("rename", "renameat"), (*FULL, *BROKEN, *DENIED)),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), (*BROKEN, *DENIED)),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat"), (*BROKEN, *DENIED, "EPERM")),
    **dict.fromkeys(("sendfile", "copy_file_range"), (*FULL, *BROKEN, "EXDEV")),
    **dict.fromkeys(("sendto", "recvfrom"), ("ECONNRESET", "EPIPE", "ETIMEDOUT")),
    "connect": ("ECONNREFUSED", "ENETUNREACH", "ETIMEDOUT"),
}
"""How each call fails."""

CLEANING = ("unlink", "unlinkat", "rmdir", "close")
"""Calls that may leave something to the next run when they fail, since they are those that remove it."""

Tags = Mapping[str, str]
"""Tags, and the digests of their images."""


class World(Protocol):
    """A place where an image is built, and how it was before."""

    now: Path
    network: bool

    @property
    def command(self) -> Sequence[str]:
        """What is built, and options."""
        ...

    def reset(self) -> None:
        """Have it as before."""
        ...

    def tags(self) -> Tags:
        """Its images, each of which has to be whole."""
        ...

    def rest(self) -> object:
        """All else that can be seen of it."""
        ...


@dataclass
class LayoutWorld:
    """The image goes into a layout."""

    now: Path
    before: Path
    command: Sequence[str]
    network: bool = False

    def reset(self) -> None:
        shutil.rmtree(self.now, ignore_errors=True)
        shutil.copytree(self.before, self.now)

    def tags(self) -> Tags:
        layout = self.now / "image"
        if not layout.exists():
            return {}
        index = json.loads((layout / "index.json").read_bytes())
        for manifest in index["manifests"]:
            _check(manifest, lambda digest: (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes())
        return {each["annotations"]["org.opencontainers.image.ref.name"]: each["digest"] for each in index["manifests"]}

    def rest(self) -> object:
        return listing(self.now)


@dataclass
class RegistryWorld:
    """The image goes into a repository: a new one each time, as if it had been the one before."""

    now: Path
    registry: Registry
    build: Sequence[str]
    network: bool = True
    _name: str = ""

    @property
    def command(self) -> Sequence[str]:
        repository = f"{self.registry.host}/{self._name}"
        return ["--tls-verify=false", *(part.format(repository=repository) for part in self.build)]

    def reset(self) -> None:
        shutil.rmtree(self.now, ignore_errors=True)
        (self.now / "tmp").mkdir(parents=True)
        repositories = self.registry.storage / "docker/registry/v2/repositories"
        self._name = f"now/{secrets.token_hex(8)}"
        shutil.copytree(repositories / "before", repositories / self._name)

    def tags(self) -> Tags:
        """Those of images. Tags of tables and signatures are not, and what they hold has no size to be compared."""
        found = json.loads(self._get("tags/list"))["tags"]
        tags = {}
        for tag in found:
            data = self._get(f"manifests/{tag}")
            digest = _digest(data)
            descriptor = {"digest": digest, "size": len(data)}
            _check(descriptor, lambda wanted, top=digest: self._get(f"{_kind(wanted, top)}/{wanted}"))
            if not tag.startswith("sha256-"):
                tags[tag] = digest
        return tags

    def rest(self) -> object:
        return listing(self.now)

    def _get(self, what: str) -> bytes:
        with closing(HTTPConnection(self.registry.host)) as connection:
            connection.request("GET", f"/v2/{self._name}/{what}", headers={"Accept": MANIFEST})
            answer = connection.getresponse()
            assert answer.status == HTTPStatus.OK, what
            return answer.read()


def _kind(digest: str, top: str) -> str:
    return "manifests" if digest == top else "blobs"


def _check(manifest: Mapping[str, Any], read: Any) -> None:
    """Every blob of an image is there, and is what it is called."""
    data = read(manifest["digest"])
    parts = json.loads(data)
    for descriptor, content in [
        (manifest, data),
        *((part, read(part["digest"])) for part in (parts["config"], *parts["layers"])),
    ]:
        assert (descriptor["digest"], descriptor["size"]) == (_digest(content), len(content))


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# Scenes


@pytest.fixture(scope="module")
def trees() -> Iterator[Path]:
    """What no fault concerns: two versions of a system, and images of them."""
    with scratch() as place:
        for version in ("1", "2"):
            root = place / f"v{version}"
            for directory in ("usr/bin", "usr/lib/modules/6.1", "usr/share", "opt", *MOUNTED_OVER):
                (root / directory).mkdir(parents=True)
            (root / "usr/lib/modules/6.1/vmlinuz").write_bytes(CONTENTS[4])
            (root / "usr/lib/os-release").write_text(f'ID=small\nVERSION_ID="{version}"\n')
            (root / "usr/lib/data").write_bytes(CONTENTS[5])
            (root / f"usr/share/{version}").write_bytes(CONTENTS[3])
            (root / "usr/bin/tool").write_bytes(CONTENTS[4] + version.encode())
            (root / "usr/bin/hard").hardlink_to(root / "usr/bin/tool")
            (root / "usr/bin/link").symlink_to("tool")
            add_policy(root)
        _build(place, "dir:v1", "oci:plain:1")
        _build(place, "dir:v1", "oci:chunked:1", "--format=ostree")
        _build(place, "dir:v2", "oci:source:2")
        with tarfile.open(place / "source.tar", "w") as archive:
            archive.add(place / "source", "")
        (place / "key").write_text(key_text(""))
        yield place


def _build(place: Path, *arguments: str) -> None:
    run("env", "-C", place, *_SETTINGS, *COMMAND, "build", "--quiet", *arguments)


SCENES: Mapping[str, tuple[str, Sequence[str]]] = {
    "a new layout": ("", ["dir:{trees}/v2", "oci:image:2"]),
    "a new layout with layers of another": ("", ["dir:{trees}/v2", "oci:image:2", "--prev-ref=oci:{trees}/plain:1"]),
    "another image in a layout": ("plain", ["dir:{trees}/v2", "oci:image:2", "--prev-ref=oci:image:1"]),
    "another image of chunks": ("chunked", ["dir:{trees}/v2", "oci:image:2", "--prev-ref=oci:image:1"]),
    "an image of an archive": ("chunked", ["oci-archive:{trees}/source.tar:2", "oci:image:2"]),
}
"""What the layout holds before, and what is built."""

PUBLISHED: Mapping[str, Sequence[str]] = {
    "a signed update": ["dir:{trees}/v2", "docker://{{repository}}:2", "--tag=latest", "--sign-key={trees}/key"],
    "an update with an image of an image": ["oci:{trees}/source:2", "docker://{{repository}}:2", "--tag=latest"],
}


@dataclass(frozen=True)
class Scene:
    """A build, and how it goes when nothing is in its way."""

    world: World
    calls: Sequence[Call]
    old: Tags
    new: Tags
    rest_before: object
    rest_after: object

    def faults(self) -> list[Fault]:
        """Every way in which a call can fail."""
        return [Fault(at, kind, call.name) for at, call in enumerate(self.calls, 1) for kind in WAYS[call.name]]

    def kills(self) -> list[Fault]:
        return [Fault(at, "KILL") for at in range(1, len(self.calls) + 1)]

    def run(self, fault: Fault | None = None) -> Run:
        world = self.world
        return traced(
            [*COMMAND, "build", "--quiet", *world.command],
            below=[world.now],
            network=world.network,
            fault=fault,
            environment={
                **os.environ,
                **dict(setting.split("=") for setting in _SETTINGS),
                "TMPDIR": f"{world.now}/tmp",
            },
            directory=world.now,
        )


_SETTINGS = ("SOURCE_DATE_EPOCH=1700000000", "COSIGN_PASSWORD=")


def _scene(world: World) -> Scene:
    world.reset()
    old, before = world.tags(), world.rest()
    done = Scene(world, (), old, old, before, before).run()
    assert (done.code, _said(done)) == (0, [])
    return Scene(world, done.calls, old, world.tags(), before, world.rest())


@pytest.fixture(scope="module", params=SCENES)
def scene(request: pytest.FixtureRequest, trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    place = tmp_path_factory.mktemp("scene")
    there, arguments = SCENES[request.param]
    (place / "before/tmp").mkdir(parents=True)
    if there:
        shutil.copytree(trees / there, place / "before/image")
    command = [part.format(trees=trees) for part in arguments]
    return _scene(LayoutWorld(place / "now", place / "before", command))


@pytest.fixture(scope="module")
def registry(trees: Path) -> Iterator[Registry]:
    """One in which there is a version before."""
    with plain_registry() as registry:
        output = f"docker://{registry.host}/before:1"
        _build(trees, "dir:v1", output, "--tag=latest", "--tls-verify=false")
        yield registry


@pytest.fixture(scope="module", params=PUBLISHED)
def publishing(
    request: pytest.FixtureRequest, registry: Registry, trees: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scene:
    command = [part.format(trees=trees) for part in PUBLISHED[request.param]]
    return _scene(RegistryWorld(tmp_path_factory.mktemp("scene") / "now", registry, command))


class Faults:
    """Tries faults, and tells which of them are not survived."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def each(self, scene: Scene, faults: Sequence[Fault], survive: Callable[[Scene, Fault], None]) -> None:
        tried = sample(faults, self._request, most=8)
        self._request.node.user_properties.append(("tried", len(tried)))
        failures = []
        for fault in tried:
            scene.world.reset()
            try:
                survive(scene, fault)
            except AssertionError as failure:
                failures.append(f"{fault} in {scene.calls[fault.number - 1]}: {failure}")
        assert not failures, "\n\n".join(failures)


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    return Faults(request)


def _said(done: Run) -> list[str]:
    """The lines of standard error, but for what the tree of the test gives reason to."""
    return [line for line in done.err.splitlines() if not line.startswith("notice: ")]


class TestErrors:
    """One call of a build fails."""

    def test_leave_what_was_there_and_nothing_else(self, scene: Scene, faults: Faults) -> None:
        faults.each(scene, scene.faults(), _survives_an_error)

    def test_leave_no_tag_of_less_than_an_image(self, publishing: Scene, faults: Faults) -> None:
        faults.each(publishing, publishing.faults(), _survives_an_error)


class TestKilledRuns:
    """A build is killed just before one of its calls."""

    def test_are_made_up_for_by_the_next(self, scene: Scene, faults: Faults) -> None:
        faults.each(scene, scene.kills(), _survives_a_kill)

    def test_leave_no_tag_of_less_than_an_image(self, publishing: Scene, faults: Faults) -> None:
        faults.each(publishing, publishing.kills(), _survives_a_kill)


def _survives_an_error(scene: Scene, fault: Fault) -> None:
    done = scene.run(fault)
    assert "Traceback" not in done.err
    tags = scene.world.tags()
    _check_tags(scene, tags)
    if done.code == 0:
        assert tags == scene.new
    else:
        assert done.code in (InputError.exit_code, EnvironmentLack.exit_code, RegistryError.exit_code)
        [said] = _said(done)
        assert said.startswith("rechunk-action: ")
    wanted = scene.rest_after if tags == scene.new else scene.rest_before
    if scene.world.rest() != wanted:
        assert fault.name in CLEANING
        _check_next(scene, tags)


def _survives_a_kill(scene: Scene, fault: Fault) -> None:
    assert scene.run(fault).code == -signal.SIGKILL
    tags = scene.world.tags()
    _check_tags(scene, tags)
    _check_next(scene, tags)


def _check_tags(scene: Scene, tags: Tags) -> None:
    """Tags are where they were, or where they belong."""
    assert tags.keys() >= scene.old.keys()
    for tag, digest in tags.items():
        assert digest in (scene.old.get(tag), scene.new[tag])


def _check_next(scene: Scene, tags: Tags) -> None:
    """The next run makes the image, if it is not there, and removes what was left."""
    done = scene.run()
    if scene.world.network:
        assert done.code == 0
        newest = "2.1" if "2" in tags else "2"
        after = scene.world.tags()
        assert after["2"] == scene.new["2"]
        assert after["latest"] == after[newest]
    elif tags == scene.new:
        assert done.code == InputError.exit_code
        assert "already holds an image tagged '2'" in done.err
    else:
        assert done.code == 0
        assert scene.world.tags() == scene.new
    assert scene.world.rest() == scene.rest_after


# Disks as they are

PAGE = 4096
ROOM = range(96)
"""Blocks that are free."""


def _start(place: Path, *arguments: str, temporary: Path | None = None) -> subprocess.Popen[str]:
    environment = os.environ | dict(setting.split("=") for setting in _SETTINGS) | {"TMPDIR": str(temporary or place)}
    return subprocess.Popen(
        [*COMMAND, "build", "--quiet", *arguments], cwd=place, env=environment, text=True, stderr=subprocess.PIPE
    )


def _ended(place: Path, *arguments: str, temporary: Path | None = None) -> tuple[int, str]:
    """The exit code of a build, and what it says last."""
    with _start(place, *arguments, temporary=temporary) as process:
        _, said = process.communicate()
    return process.returncode, said.splitlines()[-1]


class TestDisks:
    def test_that_get_full_anywhere_keep_what_they_had(
        self, tmp_path: Path, trees: Path, request: pytest.FixtureRequest
    ) -> None:
        """A disk with room for one block more each time, until all fits."""
        arguments = ("oci:image:2", "--prev-ref=oci:image:1")
        (tmp_path / "whole").mkdir()
        shutil.copytree(trees / "plain", tmp_path / "whole/image")
        _build(tmp_path / "whole", f"dir:{trees}/v2", *arguments)
        whole = listing(tmp_path / "whole/image")
        failed = 0
        for blocks in sample(ROOM, request):
            with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "none") as disk:
                shutil.copytree(trees / "plain", disk / "image")
                used = shutil.disk_usage(disk).used + blocks * PAGE
                run("mount", "-o", f"remount,size={used}", disk)
                before = listing(disk)
                code, said = _ended(disk, f"dir:{trees}/v2", *arguments, temporary=tmp_path)
                if code == 0:
                    assert listing(disk / "image") == whole
                    continue
                failed += 1
                assert code == EnvironmentLack.exit_code
                assert "the disk is full for image/.rechunk-" in said
                assert listing(disk) == before
        assert 0 < failed < len(sample(ROOM, request))

    def test_that_get_full_under_a_publish_leave_the_tags(
        self, tmp_path: Path, trees: Path, registry: Registry
    ) -> None:
        world = RegistryWorld(tmp_path / "now", registry, [f"dir:{trees}/v2", "docker://{repository}:2"])
        world.reset()
        before = world.tags()
        with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=16k", "none") as disk:
            code, said = _ended(tmp_path, *world.command, temporary=disk)
            assert os.listdir(disk) == []
        assert code == EnvironmentLack.exit_code
        assert f"the disk is full for {disk}/rechunk-scratch-" in said
        assert world.tags() == before

    def test_that_lose_what_was_written_are_noticed(self, tmp_path: Path, trees: Path) -> None:
        """A file system in a file for which there is no room: it says so when data is on its way, if it is asked."""
        with mounted(tmp_path / "below", "-t", "tmpfs", "-o", "size=8m", "none") as below:
            image = below / "disk"
            with image.open("wb") as file:
                file.truncate(64 << 20)
            run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", image)
            with mounted(tmp_path / "disk", "-o", "loop", image) as disk:
                run("sync", "--file-system", disk)
                free = shutil.disk_usage(below).free // PAGE * PAGE
                (below / "ballast").write_bytes(bytes(free))
                code, said = _ended(disk, f"dir:{trees}/v2", "oci:image:2", temporary=tmp_path)
                (below / "ballast").unlink()
                left = os.listdir(disk)
        assert code == EnvironmentLack.exit_code
        assert re.search("the disk is full|Input/output error", said)  # as the kernel has it
        assert left == ["lost+found"]

    def test_that_may_not_be_written_to_are_told_at_once(self, tmp_path: Path, trees: Path) -> None:
        shutil.copytree(trees / "plain", tmp_path / "image")
        before = listing(tmp_path / "image")
        with mounted(tmp_path / "shown", "--bind", tmp_path / "image") as shown:
            run("mount", "-o", "remount,bind,ro", shown)
            code, said = _ended(tmp_path, f"dir:{trees}/v2", "oci:shown:2")
        assert code == EnvironmentLack.exit_code
        assert "'Read-only file system' for shown/.rechunk-" in said
        assert listing(tmp_path / "image") == before

    def test_with_a_layout_of_their_own_take_another_image(self, tmp_path: Path, trees: Path) -> None:
        with mounted(tmp_path / "disk", "-t", "tmpfs", "none") as disk:
            shutil.copytree(trees / "plain", disk, dirs_exist_ok=True)
            _build(tmp_path, f"dir:{trees}/v2", "oci:disk:2", "--prev-ref=oci:disk:1")
            assert layout_tags(disk) == ["1", "2"]
        assert os.listdir(tmp_path) == ["disk"]


class TestRights:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tree and a layout, for names to be relative to: nobody may come here by a longer one."""
        shutil.copytree(trees / "v2", tmp_path / "tree", symlinks=True)
        shutil.copytree(trees / "plain", tmp_path / "image")
        tmp_path.chmod(0o755)
        monkeypatch.chdir(tmp_path)

    def test_to_the_layout_alone_are_enough(self) -> None:
        run("chown", "--recursive", str(NOBODY), "image")
        with as_nobody():
            build("dir:tree", "oci:image:2")
        assert layout_tags(Path("image")) == ["1", "2"]

    def test_that_are_lacking_are_told(self) -> None:
        before = listing(Path("image"))
        with as_nobody(), pytest.raises(InputError, match=r"image cannot be written to .Permission denied"):
            build("dir:tree", "oci:image:2")
        assert listing(Path("image")) == before


class TestSeveralRuns:
    def test_at_once_add_all_their_images(self, tmp_path: Path, trees: Path) -> None:
        with ExitStack() as stack:
            runs = [
                stack.enter_context(_start(tmp_path, f"dir:{trees}/v{1 + number % 2}", f"oci:image:{number}"))
                for number in range(6)
            ]
            assert [started.wait() for started in runs] == [0] * len(runs)
        world = LayoutWorld(tmp_path, tmp_path, ())
        assert sorted(world.tags()) == [str(number) for number in range(6)]
        assert os.listdir(tmp_path) == ["image"]
        assert not [name for name in os.listdir(tmp_path / "image") if name.startswith(".")]

    def test_with_one_tag_leave_it_to_the_first(self, tmp_path: Path, trees: Path) -> None:
        layout, output, before = tmp_path / "image", f"oci:{tmp_path}/image:1", dict[str, bytes | None]()

        def be_faster() -> None:
            build(trees / "v1", output)
            before.update(listing(layout))

        with pytest.raises(InputError, match="already holds an image tagged '1': name another output or tag"):
            build(trees / "v2", output, progress=Meddler("publish", be_faster))
        assert listing(tmp_path) == {"image": None} | {f"image/{path}": data for path, data in before.items()}

    @pytest.mark.parametrize("there", [[], ["1"]], ids=["new", "existing"])
    def test_do_not_touch_what_others_are_making(self, tmp_path: Path, trees: Path, there: Sequence[str]) -> None:
        if there:
            shutil.copytree(trees / "plain", tmp_path / "image")
        other = Meddler("publish", lambda: build(trees / "v1", f"oci:{tmp_path}/image:other"))
        build(trees / "v2", f"oci:{tmp_path}/image:mine", progress=other)
        assert layout_tags(tmp_path / "image") == [*there, "other", "mine"]
        assert not other.heard("left behind")


class TestLayoutsThatGo:
    def test_while_an_image_is_made_in_them_are_told(self, tmp_path: Path, trees: Path) -> None:
        layout = shutil.copytree(trees / "plain", tmp_path / "image")
        with pytest.raises(EnvironmentLack, match="was removed while an image was made in it"):
            build(trees / "v2", f"oci:{layout}:2", progress=Meddler("publish", lambda: shutil.rmtree(layout)))
        assert os.listdir(tmp_path) == []
