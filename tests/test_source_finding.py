"""Images looked for by name, in real stores."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.source.finding import Found, find_image
from rechunk_action.source.names import parse_name
from tests import stores
from tests.stores import User, podman, tree_of

pytestmark = pytest.mark.oracle

HERE = {"PATH": os.environ["PATH"]}
NO_DOCKER = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
NO_PODMAN = {"PATH": "/nowhere"}

EVERYWHERE = "localhost/rechunk-test/everywhere:1"
ROOTS = "localhost/rechunk-test/roots:latest"
USERS = "localhost/rechunk-test/users:latest"
DOCKERS = "rechunk-test/dockers:latest"
DIFFERENT = "localhost/rechunk-test/different:1"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with stores.work() as directory:
        for name in ("one", "two", "three"):
            stores.write_image(directory / name, author=name)
        yield directory


@pytest.fixture(scope="module")
def user(place: Path) -> Iterator[User]:
    with stores.user(place / "user", "overlay") as user:
        for layout, name in (("one", EVERYWHERE), ("one", USERS), ("two", DIFFERENT)):
            stores.store(place / layout, name, user)
        yield user


@pytest.fixture(scope="module")
def root(place: Path) -> dict[str, str]:
    environment = stores.root_storage(place / "root")
    for layout, name in (("one", EVERYWHERE), ("one", ROOTS), ("one", DIFFERENT)):
        stores.store(place / layout, name, environment)
    return environment


@pytest.fixture(scope="module")
def everything(place: Path, user: User, root: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of a program that root runs for the user, on a machine with all stores."""
    with (
        stores.in_docker(place / "one", EVERYWHERE),
        stores.in_docker(place / "one", DOCKERS),
        stores.in_docker(place / "three", DIFFERENT),
    ):
        yield user.environment | root


def where(found: Found) -> str:
    return f"{found.store.transport} of {found.store}"


@pytest.mark.parametrize(
    ("name", "store"),
    [
        (ROOTS, "containers-storage of root's podman storage"),
        ("localhost/rechunk-test/roots", "containers-storage of root's podman storage"),
        ("rechunk-test/roots", "containers-storage of root's podman storage"),
        (USERS, "containers-storage of {user}'s podman storage"),
        ("rechunk-test/users", "containers-storage of {user}'s podman storage"),
        (DOCKERS, "docker-daemon of docker"),
        ("rechunk-test/dockers", "docker-daemon of docker"),
        (EVERYWHERE, "containers-storage of root's podman storage"),
        ("rechunk-test/everywhere:1", "containers-storage of root's podman storage"),
        (f"containers-storage:{USERS}", "containers-storage of {user}'s podman storage"),
        (f"docker-daemon:{EVERYWHERE}", "docker-daemon of docker"),
    ],
)
def test_an_image_is_found_where_it_is(everything: dict[str, str], user: User, name: str, store: str) -> None:
    found = find_image(parse_name(name), everything)
    assert where(found) == store.format(user=user.account.pw_name)


def test_an_image_that_is_found_can_be_read(everything: dict[str, str], place: Path) -> None:
    trees = []
    for name in (ROOTS, USERS, DOCKERS):
        with find_image(parse_name(name), everything).source(place, threads=2) as source:
            trees.append(tree_of(source))
    assert [len(tree) for tree in trees] == [len(trees[0])] * 3


def test_images_of_one_name_are_not_chosen_between(everything: dict[str, str], user: User) -> None:
    with pytest.raises(InputError, match=f"{DIFFERENT} is not the same image everywhere: write ") as caught:
        find_image(parse_name(DIFFERENT), everything)
    choices = str(caught.value).partition(": write ")[2].split(" or ")
    assert [where(find_image(parse_name(choice.split()[0]), everything)) for choice in choices] == [
        "containers-storage of root's podman storage",
        f"containers-storage of {user.account.pw_name}'s podman storage",
        "docker-daemon of docker",
    ]


def test_a_transport_narrows_the_choice(everything: dict[str, str]) -> None:
    assert where(find_image(parse_name(f"docker-daemon:{DIFFERENT}"), everything)) == "docker-daemon of docker"
    with pytest.raises(InputError, match="not the same image everywhere"):
        find_image(parse_name(f"containers-storage:{DIFFERENT}"), everything)


@pytest.mark.parametrize("lack", [NO_DOCKER, NO_PODMAN])
def test_a_store_that_cannot_be_asked_is_passed_over(everything: dict[str, str], lack: dict[str, str]) -> None:
    assert find_image(parse_name(EVERYWHERE), everything | lack).image_id


def test_an_image_that_is_nowhere_is_told(everything: dict[str, str], user: User) -> None:
    with pytest.raises(InputError) as caught:
        find_image(parse_name("rechunk-test/qwertz:1"), everything)
    assert str(caught.value) == (
        f"there is no image rechunk-test/qwertz:1 in root's podman storage or {user.account.pw_name}'s podman storage "
        "or docker: build it first, or name it as its tool lists it"
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("rechunk-test/root", ROOTS),
        ("ghcr.io/somebody/roots:42", ROOTS),
        ("dockerd", DOCKERS),
        ("users:1", USERS),
        (f"containers-storage:{DOCKERS.replace('dockers', 'roost')}", ROOTS),
    ],
)
def test_names_that_may_have_been_meant_are_offered(everything: dict[str, str], name: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean .*{near}"):
        find_image(parse_name(name), everything)


def test_why_a_store_was_not_asked_is_told_when_nothing_is_found(root: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"in root's podman storage: .* \(not asked: docker does not run: .*systemctl"):
        find_image(parse_name(DOCKERS), root | NO_DOCKER)
    with pytest.raises(
        InputError, match=r"in docker: .* \(not asked: podman is not installed: .*apt-get install podman"
    ):
        find_image(parse_name(ROOTS), HERE | NO_PODMAN)


def test_no_store_at_all_is_told() -> None:
    with pytest.raises(
        EnvironmentLack, match=r"x cannot be looked for: podman is not installed.*; docker does not run"
    ):
        find_image(parse_name("x"), NO_PODMAN | NO_DOCKER)


def test_only_root_asks_in_roots_storage(user: User) -> None:
    environment = user.login | NO_DOCKER
    assert user.call(find_image, parse_name(USERS), environment).image_id
    with pytest.raises(InputError, match=r"not asked: .*root's podman storage is for root to read \(sudo\)"):
        user.call(find_image, parse_name(ROOTS), environment)


@pytest.mark.parametrize("caller", ["0", "4200000000", "", "somebody"])
def test_a_caller_without_storage_is_not_asked(root: dict[str, str], caller: str) -> None:
    with pytest.raises(InputError, match="there is no image x in root's podman storage: "):
        find_image(parse_name("containers-storage:x"), root | {"SUDO_UID": caller})


def test_asking_sets_up_no_storage(root: dict[str, str], user: User) -> None:
    nobody = pwd.getpwnam("nobody")
    with pytest.raises(InputError, match="there is no image x in root's podman storage: "):
        find_image(parse_name("containers-storage:x"), root | {"SUDO_UID": str(nobody.pw_uid)})


def test_names_that_no_image_can_have_find_nothing(root: dict[str, str]) -> None:
    for name in ("No Name", "localhost/Image", "--help"):
        with pytest.raises(InputError, match=f"there is no image {name} in"):
            find_image(parse_name(f"containers-storage:{name}"), root)


def test_a_name_without_images_is_no_mistake(place: Path) -> None:
    empty = stores.root_storage(place / "empty")
    assert podman(empty, "images", "--quiet") == ""
    with pytest.raises(InputError, match="build it first"):
        find_image(parse_name("containers-storage:x"), empty)
