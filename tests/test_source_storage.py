"""Images in podman's storage: root's own, mounted, and another user's, copied."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.oci.layout import read_image
from rechunk_action.source.finding import find_image
from rechunk_action.source.image import ImageSource
from rechunk_action.source.names import parse_name
from tests import stores
from tests.oracles import run
from tests.stores import User, content, podman, tree_of
from tests.support import archive, pack

pytestmark = pytest.mark.oracle

NAME = "containers-storage:localhost/made/image:1"
PLAIN = "localhost/made/image:1"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with stores.work() as directory:
        stores.write_image(directory / "gzip")
        yield directory


@pytest.fixture(scope="module")
def wanted(place: Path) -> dict[str, tuple[object, ...]]:
    """The tree of the image, merged from its layers."""
    return tree_of(ImageSource(read_image(place / "gzip", None), place, threads=2))


@pytest.fixture(scope="module")
def rootful(place: Path) -> dict[str, str]:
    environment = stores.root_storage(place / "root")
    stores.store(place / "gzip", PLAIN, environment)
    return environment


@pytest.fixture(scope="module", params=["overlay", "vfs"])
def somebody(place: Path, request: pytest.FixtureRequest) -> Iterator[User]:
    """A user whose storage holds the image."""
    (place / request.param).mkdir()
    with stores.user(place / request.param, request.param) as user:
        stores.store(place / "gzip", PLAIN, user)
        yield user


@pytest.fixture
def scratch(place: Path) -> Iterator[Path]:
    """Made as for a build: nobody else may look into it."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        yield Path(directory)


def opened(name: str, environment: Mapping[str, str], scratch: Path) -> tuple[object, dict[str, tuple[object, ...]]]:
    """The config of a source, and its tree."""
    with find_image(parse_name(name), environment).source(scratch, threads=2) as source:
        tree = tree_of(source)
        assert content(source, "usr/bin/su") == stores.SU
        return source.config and {key: source.config[key] for key in stores.CONFIG}, tree


def mounts(environment: Mapping[str, str]) -> str:
    return podman(environment, "image", "mount")


def test_roots_image_is_its_tree(rootful: dict[str, str], wanted: dict[str, tuple[object, ...]], scratch: Path) -> None:
    config, tree = opened(NAME, rootful, scratch)
    assert tree[""][:2] == ("d", "0555")  # podman's, whatever the layers say
    assert tree | {"": wanted[""]} == wanted
    assert config == stores.CONFIG
    assert list(scratch.iterdir()) == []


def test_another_users_image_is_its_tree(somebody: User, wanted: dict[str, tuple[object, ...]], scratch: Path) -> None:
    config, tree = opened(NAME, somebody.environment, scratch)
    assert tree == wanted
    assert config == stores.CONFIG


def test_layers_are_copied_as_they_are_unpacked(somebody: User, scratch: Path) -> None:
    opened(NAME, somebody.environment, scratch)
    blobs = {path.name: path.stat().st_size for path in scratch.rglob("blobs/sha256/*")}
    archives = [archive(*items) for items in stores.LAYERS]
    assert {pack(data, "none").blob.digest.removeprefix("sha256:"): len(data) for data in archives}.items() <= (
        blobs.items()
    )


def test_a_users_own_image_is_its_tree(somebody: User, wanted: dict[str, tuple[object, ...]], scratch: Path) -> None:
    scratch.chmod(0o777)
    environment = somebody.login
    config, tree = somebody.call(opened, NAME, environment, scratch)
    assert tree == wanted
    assert config == stores.CONFIG


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_compressions_of_all_kinds_are_unpacked(
    somebody: User, wanted: dict[str, tuple[object, ...]], place: Path, scratch: Path, compression: str
) -> None:
    layout = stores.write_image(scratch / compression, compression, author=compression)
    scratch.chmod(0o755)
    stores.store(layout, f"localhost/{compression}", somebody)
    assert opened(f"containers-storage:localhost/{compression}", somebody.environment, scratch)[1] == wanted


@pytest.mark.parametrize("rootless", [False, True])
def test_what_only_dockers_format_knows_is_kept(
    rootful: dict[str, str], somebody: User, scratch: Path, *, rootless: bool
) -> None:
    kept = {"Healthcheck": {"Test": ["CMD", "true"]}, "OnBuild": ["RUN true"], "Shell": ["/bin/bash", "-c"]}
    layout = stores.write_image(scratch / "layout", config=kept)
    saved = scratch / "image.tar"
    run("skopeo", "copy", "--insecure-policy", f"oci:{layout}", f"docker-archive:{saved}:localhost/healthy:1")
    scratch.chmod(0o755)
    if rootless:
        somebody.run("podman", "load", "--input", saved)
    else:
        podman(rootful, "load", "--input", saved)
    found = find_image(parse_name("containers-storage:localhost/healthy:1"), somebody.environment | rootful)
    with found.source(scratch, threads=2) as source:
        assert source.config is not None
        assert source.config["config"] == kept
    podman(rootful, "image", "rm", "--ignore", "localhost/healthy:1")


def test_a_mount_of_somebody_else_stays(rootful: dict[str, str], scratch: Path) -> None:
    podman(rootful, "image", "mount", PLAIN)
    opened(NAME, rootful, scratch)
    assert PLAIN in mounts(rootful)
    podman(rootful, "image", "unmount", PLAIN)
    assert mounts(rootful) == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_stays_mounted_when_the_reader_fails(
    rootful: dict[str, str], scratch: Path, error: type[BaseException]
) -> None:
    def fail() -> None:
        with find_image(parse_name(NAME), rootful).source(scratch, threads=2):
            assert PLAIN in mounts(rootful)
            raise error

    with pytest.raises(error):
        fail()
    assert mounts(rootful) == ""


@pytest.mark.parametrize("mounted_before", [False, True])
def test_nothing_stays_mounted_when_mounting_is_interrupted(
    rootful: dict[str, str], scratch: Path, *, mounted_before: bool
) -> None:
    if mounted_before:
        podman(rootful, "image", "mount", PLAIN)
    slow = scratch / "podman"
    slow.write_text(
        '#!/bin/sh\nPATH=${PATH#*:}\npodman "$@" || exit\n[ "$2" = mount ] || exit 0\ntouch $0.mounted; sleep 0.5\n'
    )
    slow.chmod(0o755)
    found = find_image(parse_name(NAME), rootful | {"PATH": f"{scratch}:{rootful['PATH']}"})
    reached = []
    with stores.interrupted(scratch / "podman.mounted"), found.source(scratch, threads=2) as source:
        reached.append(source)
    assert not reached
    assert (PLAIN in mounts(rootful)) == mounted_before
    podman(rootful, "image", "unmount", "--all")


def test_an_image_that_cannot_be_mounted_is_told(rootful: dict[str, str], scratch: Path) -> None:
    found = find_image(parse_name(NAME), rootful)
    gone = type(found)(found.store, "0" * 64)
    with pytest.raises(EnvironmentLack, match=r"skopeo inspect .* failed"), gone.source(scratch, threads=2):
        pass


def test_the_manifest_is_that_which_was_stored(rootful: dict[str, str], place: Path) -> None:
    image = find_image(parse_name(NAME), rootful).image()
    stored = read_image(place / "gzip", None)
    assert (image.digest, image.config, image.layers) == (stored.digest, stored.config, stored.layers)
    assert image.blobs.table(image.layers[0]) is None
    with pytest.raises(InputError, match="is unpacked in podman's storage"):
        image.open(image.layers[0])
    with pytest.raises(InputError, match="is unpacked in podman's storage"):
        image.blobs.fetch(image.layers[0], place / "blob")


def test_scratch_space_that_the_user_cannot_reach_is_told(somebody: User, scratch: Path) -> None:
    hidden = scratch / "hidden" / "scratch"
    hidden.mkdir(parents=True)
    hidden.parent.chmod(0o700)
    with pytest.raises(EnvironmentLack, match=r"cannot write to .*: put the output"):
        opened(NAME, somebody.environment, hidden)


def test_too_little_space_is_told(somebody: User, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(EnvironmentLack, match=r"0\.0 GB free: free some"):
        opened(NAME, somebody.environment, scratch)


def test_storage_that_we_have_no_right_to_is_told(somebody: User) -> None:
    environment = somebody.login | {"HOME": "/root"}
    with pytest.raises(EnvironmentLack, match=r"(?s)podman images? .* failed .*: run this as root \(sudo\)"):
        somebody.call(find_image, parse_name(NAME), environment)
