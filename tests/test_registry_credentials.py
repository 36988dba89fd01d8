"""Credentials: which of all that lie around are taken, and that no secret is ever shown."""

from __future__ import annotations

import base64
import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rechunk_action.errors import EnvironmentLack, InputError, RechunkError, RegistryError
from rechunk_action.registry.credentials import Credentials, Found, auth_files, find_credentials

SECRET = "a-password-of-a-test"  # noqa: S105
UID = 4321


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Directories of a user who has no files yet."""
    return {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def auth(user: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def store(path: Path, config: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.fixture
def docker(environment: dict[str, str]) -> Path:
    """The path of docker's file."""
    return Path(environment["HOME"]) / ".docker/config.json"


def find(environment: dict[str, str], host: str = "ghcr.io", repository: str = "owner/image", **options: Any) -> Found:
    return find_credentials(host, repository, environment=environment, **{"given": None, "uid": UID} | options)


def user(found: Found) -> str | None:
    return found.credentials.username if found.credentials else None


def test_nobody_is_known_where_nothing_is(environment: dict[str, str]) -> None:
    assert find(environment) == Found(None, "no credentials")


def test_the_first_file_that_knows_the_registry_is_taken(environment: dict[str, str], tmp_path: Path) -> None:
    places = [
        store(tmp_path / "named", {"auths": {"ghcr.io": auth("named")}}),
        store(tmp_path / "home/.docker/config.json", {"auths": {"ghcr.io": auth("docker")}}),
        store(tmp_path / "run/containers/auth.json", {"auths": {"ghcr.io": auth("podman")}}),
        store(tmp_path / "home/.config/containers/auth.json", {"auths": {"ghcr.io": auth("config")}}),
    ]
    environment["REGISTRY_AUTH_FILE"] = str(places[0])
    given = Credentials("given", SECRET)
    assert find(environment, given=given).credentials is given
    for path, name in zip(places, ["named", "docker", "podman", "config"], strict=True):
        found = find(environment)
        assert (user(found), str(path) in found.where) == (name, True)
        store(path, {"auths": {"another.host": auth("another")}})
    assert find(environment).credentials is None


def test_directories_that_the_environment_names_are_read(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {"DOCKER_CONFIG": str(tmp_path / "docker"), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    files = list(auth_files(environment, UID))
    assert tmp_path / "docker/config.json" in files
    assert tmp_path / "xdg/containers/auth.json" in files


def test_under_sudo_the_files_of_its_caller_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.struct_passwd(("caller", "x", 1000, 1000, "", "/home/caller", ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    files = [str(path) for path in auth_files({"HOME": "/root", "SUDO_UID": "1000", "SUDO_USER": "caller"}, 0)]
    assert files == [
        "/root/.docker/config.json",
        "/run/containers/0/auth.json",
        "/root/.config/containers/auth.json",
        "/run/user/1000/containers/auth.json",
        "/home/caller/.docker/config.json",
        "/home/caller/.config/containers/auth.json",
    ]
    assert not any("caller" in str(path) for path in auth_files({"HOME": "/home/x", "SUDO_UID": "1000"}, 1001))


@pytest.mark.parametrize(
    ("key", "matches"),
    [
        ("ghcr.io", True),
        ("ghcr.io/owner", True),
        ("ghcr.io/owner/image", True),
        ("https://ghcr.io", True),
        ("https://ghcr.io/v1/", True),
        ("https://ghcr.io/v2", True),
        ("ghcr.io/own", False),
        ("ghcr.io/owner/image/more", False),
        ("https://ghcr.io/owner", False),
        ("hcr.io", False),
    ],
)
def test_keys_name_a_host_or_a_part_of_the_repository(
    environment: dict[str, str], docker: Path, key: str, *, matches: bool
) -> None:
    store(docker, {"auths": {key: auth("me")}})
    assert (user(find(environment)) == "me") is matches


def test_the_most_specific_key_wins(environment: dict[str, str], docker: Path) -> None:
    keys = ("ghcr.io", "ghcr.io/owner/image", "ghcr.io/owner")
    store(docker, {"auths": {key: auth(key) for key in keys}})
    assert user(find(environment)) == "ghcr.io/owner/image"
    assert user(find(environment, repository="owner/other")) == "ghcr.io/owner"
    assert user(find(environment, repository="other/image")) == "ghcr.io"


@pytest.mark.parametrize("key", ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"])
def test_docker_hub_has_several_names(environment: dict[str, str], docker: Path, key: str) -> None:
    store(docker, {"auths": {key: auth("me")}})
    assert user(find(environment, host="docker.io")) == "me"


@pytest.mark.parametrize(
    ("entry", "credentials"),
    [
        (auth("me", "with:colon\0\0"), Credentials("me", "with:colon")),
        ({"username": "me", "password": SECRET}, Credentials("me", SECRET)),
        ({"auth": auth("me", "")["auth"], "identitytoken": SECRET}, Credentials("me", "", SECRET)),
        ({"identitytoken": SECRET}, Credentials("", "", SECRET)),
        ({}, None),
        ({"auth": ""}, None),
    ],
)
def test_forms_of_an_entry(
    environment: dict[str, str], docker: Path, entry: dict[str, str], credentials: Credentials | None
) -> None:
    store(docker, {"auths": {"ghcr.io": entry}})
    assert find(environment).credentials == credentials


@pytest.mark.parametrize(
    "config",
    [
        "{",
        f'{{"auths": {SECRET}}}',
        "[]",
        "[" * 100_000,
        {"auths": [1]},
        {"auths": {"ghcr.io": SECRET}},
        {"auths": {"ghcr.io": {"auth": SECRET + "!"}}},
        {"auths": {"ghcr.io": {"auth": base64.b64encode(SECRET.encode()).decode()}}},
        {"auths": {"ghcr.io": {"auth": base64.b64encode(b"\xff:\xfe").decode()}}},
        {"credHelpers": {"ghcr.io": "../evil"}},
        {"credHelpers": {"ghcr.io": 3}},
        {"credsStore": ["a"]},
    ],
)
def test_a_damaged_file_is_named_and_its_secrets_are_not(
    environment: dict[str, str], docker: Path, config: object
) -> None:
    store(docker, config)
    with pytest.raises(InputError) as caught:
        find(environment)
    assert str(docker) in str(caught.value)
    assert_hidden(str(caught.value))


def test_a_file_that_was_named_has_to_be_there(environment: dict[str, str], tmp_path: Path) -> None:
    environment["REGISTRY_AUTH_FILE"] = str(tmp_path / "missing")
    with pytest.raises(InputError, match="REGISTRY_AUTH_FILE"):
        find(environment)


def test_a_file_that_cannot_be_read_is_named(environment: dict[str, str], docker: Path) -> None:
    docker.mkdir(parents=True)
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        find(environment)


Helper = Callable[[str, str], None]


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    """Puts a shell script into PATH as a credential helper. `asked` is what it was asked."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def install(name: str, script: str) -> None:
        path = programs / f"docker-credential-{name}"
        path.write_text(f'#!/bin/sh\n[ "$*" = get ] || exit 9\ncat > {tmp_path}/asked\n{script}\n')
        path.chmod(0o755)

    return install


def answer(username: str) -> str:
    return f"""echo '{json.dumps({"ServerURL": "ghcr.io", "Username": username, "Secret": SECRET})}'"""


@pytest.mark.parametrize("config", [{"credHelpers": {"ghcr.io": "fake"}}, {"credsStore": "fake"}])
def test_helpers_are_asked_for_the_host(
    environment: dict[str, str], docker: Path, tmp_path: Path, helper: Helper, config: dict[str, Any]
) -> None:
    helper("fake", answer("me"))
    store(docker, config)
    found = find(environment)
    assert found.credentials == Credentials("me", SECRET)
    assert "docker-credential-fake" in found.where
    assert (tmp_path / "asked").read_text() == "ghcr.io"


def test_the_store_is_asked_for_the_name_that_docker_gave_a_host(
    environment: dict[str, str], docker: Path, tmp_path: Path, helper: Helper
) -> None:
    helper("fake", answer("me"))
    store(docker, {"credsStore": "fake", "auths": {"https://ghcr.io/v1/": {}}})
    assert user(find(environment)) == "me"
    assert (tmp_path / "asked").read_text() == "https://ghcr.io/v1/"


def test_a_helper_of_another_host_is_not_asked(environment: dict[str, str], docker: Path) -> None:
    store(docker, {"credHelpers": {"gcr.io": "not-installed"}})
    assert find(environment).credentials is None


def test_a_helper_may_hold_an_identity_token(environment: dict[str, str], docker: Path, helper: Helper) -> None:
    helper("fake", answer("<token>"))
    store(docker, {"credsStore": "fake"})
    assert find(environment).credentials == Credentials("<token>", "", SECRET)


def test_a_helper_that_knows_nobody_leaves_the_next_file_to_be_read(
    environment: dict[str, str], docker: Path, tmp_path: Path, helper: Helper
) -> None:
    helper("fake", "echo credentials not found in native keychain; exit 1")
    store(docker, {"credsStore": "fake"})
    store(tmp_path / "run/containers/auth.json", {"auths": {"ghcr.io": auth("podman")}})
    assert user(find(environment)) == "podman"


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        (None, EnvironmentLack, "docker-credential-fake is not installed"),
        ("echo the keyring is locked; exit 1", RegistryError, "the keyring is locked"),
        ("echo on standard error >&2; exit 2", RegistryError, "on standard error"),
        (answer("me") + "; exit 1", RegistryError, "exit status 1"),
        (f"echo {SECRET}", RegistryError, "not a user and a secret"),
        (f"""echo '{{"Secret": "{SECRET}"}}'""", RegistryError, "not a user and a secret"),
    ],
)
def test_a_helper_that_fails_is_named(
    environment: dict[str, str],
    docker: Path,
    helper: Helper,
    script: str | None,
    error: type[RechunkError],
    says: str,
) -> None:
    if script is not None:
        helper("fake", script)
    store(docker, {"credsStore": "fake"})
    with pytest.raises(error) as caught:
        find(environment)
    assert says in str(caught.value)
    assert_hidden(str(caught.value))


def test_secrets_are_in_no_representation() -> None:
    credentials = Credentials("me", SECRET, SECRET)
    assert_hidden(f"{credentials!r} {credentials} {Found(credentials, 'a file')!r}")


def assert_hidden(text: str) -> None:
    assert SECRET not in text
    assert base64.b64encode(SECRET.encode()).decode() not in text
