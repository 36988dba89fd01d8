"""Images that docker keeps, read through a real daemon."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.oci.layout import read_image
from rechunk_action.source.daemon import DockerStore
from rechunk_action.source.finding import find_image
from rechunk_action.source.image import ImageSource
from rechunk_action.source.names import parse_name
from tests import stores
from tests.stores import content, tree_of
from tests.support import as_nobody, write_layout

NAME = "rechunk.test/made/image:1"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, with a layer that is there twice."""
    layers = stores.layers()
    return write_layout(tmp_path_factory.mktemp("layout"), [*layers, layers[-1]], config=stores.CONFIG)


@pytest.fixture(scope="module")
def image_id(layout: Path) -> Iterator[str]:
    """The ID of the image in docker."""
    with stores.in_docker(layout, NAME) as image_id:
        yield image_id.removeprefix("sha256:")


@pytest.fixture
def listening() -> Iterator[tuple[socket.socket, str]]:
    """A socket that everyone may reach, and its name as a daemon's host."""
    with stores.work() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/docker.sock")
        listener.listen()
        yield listener, f"unix://{directory}/docker.sock"


@contextmanager
def answering(listener: socket.socket, answers: Sequence[bytes | dict[str, object]]) -> Iterator[None]:
    """A daemon that gives these answers, each on a connection of its own, and ends."""

    def answer() -> None:
        waiting = list(answers)
        while waiting:
            with listener.accept()[0] as connection:
                if not connection.recv(1 << 16):
                    continue  # somebody only looked whether we are there
                reply = waiting.pop(0)
                if not isinstance(reply, bytes):
                    body = json.dumps(reply).encode()
                    reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                connection.sendall(reply)

    daemon = threading.Thread(target=answer)
    daemon.start()
    try:
        yield
    finally:
        daemon.join()


@pytest.mark.oracle
def test_dockers_image_is_its_tree(layout: Path, image_id: str, tmp_path: Path) -> None:
    wanted = tree_of(ImageSource(read_image(layout, None), tmp_path, threads=2))
    found = find_image(parse_name(f"docker-daemon:{NAME}"), os.environ)
    assert (found.image_id, str(found.store)) == (image_id, "docker")
    with found.source(tmp_path, threads=2) as source:
        assert tree_of(source) == wanted
        assert content(source, "usr/bin/su") == stores.SU
        assert source.config == read_image(layout, None).config


@pytest.mark.oracle
@pytest.mark.parametrize("name", [NAME, "{id}", "sha256:{id}", "{id:.12}"])
def test_an_image_is_found_by_name_and_id(image_id: str, name: str) -> None:
    assert DockerStore(os.environ).find(name.format(id=image_id)) == image_id


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["rechunk.test/made/image", "rechunk.test/made/image:2", "No Name", "--help"])
def test_a_name_that_docker_does_not_have_finds_nothing(image_id: str, name: str) -> None:
    assert DockerStore(os.environ).find(name) is None


@pytest.mark.oracle
def test_names_that_exist_are_offered(image_id: str) -> None:
    with pytest.raises(InputError, match=f"no image rechunk.test/made/imag:1 in docker: did you mean .*{NAME}"):
        find_image(parse_name("docker-daemon:rechunk.test/made/imag:1"), os.environ)


@pytest.mark.oracle
def test_an_image_that_is_gone_meanwhile_is_told(image_id: str, tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentLack, match=r"docker failed .*o such image"),
        DockerStore(os.environ).source("0" * 64, tmp_path, threads=1, drop_bad_xattrs=False),
    ):
        pass


@pytest.mark.oracle
def test_too_little_space_is_told(image_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with (
        pytest.raises(EnvironmentLack, match=r"docker takes 0\.0 GB .* 0\.0 GB free"),
        DockerStore(os.environ).source(image_id, tmp_path, threads=1, drop_bad_xattrs=False),
    ):
        pass


def test_an_image_in_docker_has_no_manifest() -> None:
    with pytest.raises(InputError, match="docker-daemon:123456789012 has no manifest before it is pushed"):
        DockerStore({}).image("123456789012345678")


def test_a_daemon_that_does_not_run_is_told(tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/docker.sock"
    with pytest.raises(EnvironmentLack, match=rf"docker does not run: {host} .*No such file .*start it"):
        find_image(parse_name("docker-daemon:x"), {"DOCKER_HOST": host})


def test_a_daemon_that_we_may_not_use_is_told(listening: tuple[socket.socket, str]) -> None:
    os.chmod(listening[1].removeprefix("unix://"), 0o600)
    with as_nobody(), pytest.raises(EnvironmentLack, match=r"no right to use unix://.*group docker"):
        DockerStore({"DOCKER_HOST": listening[1]}).find("x")


def test_an_image_that_breaks_off_is_told(listening: tuple[socket.socket, str], tmp_path: Path) -> None:
    answers: list[bytes | dict[str, object]] = [
        {"ApiVersion": "1.41"},
        {"Id": "sha256:1", "Size": 1},
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\nonly the beginning",
    ]
    with (
        answering(listening[0], answers),
        pytest.raises(EnvironmentLack, match=r"unix://.* does not answer as docker should .*roken"),
        DockerStore({"DOCKER_HOST": listening[1]}).source("1", tmp_path, threads=1, drop_bad_xattrs=False),
    ):
        pass
