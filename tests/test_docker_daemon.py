"""What becomes of the faults of docker's daemon and SDK. (More of them are in the tests of those who use it.)"""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import pytest
import responses

from rechunk_action.docker_daemon import connected
from rechunk_action.errors import EnvironmentLack, Overdue
from tests import stores

REMOTE = {"DOCKER_HOST": "tcp://docker.test:2375"}
VERSION = "http://docker.test:2375/version"


@pytest.fixture
def remote() -> Iterator[responses.RequestsMock]:
    """A daemon elsewhere, of which nothing is known yet."""
    with responses.RequestsMock() as mock:
        yield mock


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the SDK's, of the request that was cut short
def test_a_deadline_is_no_fault_of_the_daemon() -> None:
    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise Overdue("not finished within a moment")

    before = signal.signal(signal.SIGALRM, stop)
    with stores.work() as directory, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{directory}/docker.sock")
        silent.listen()
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with (
                pytest.raises(Overdue, match="not finished within a moment"),
                connected({"DOCKER_HOST": f"unix://{directory}/docker.sock"}),
            ):
                pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    gc.collect()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"body": ConnectionResetError("reset by peer")}, "reset by peer"),
        ({"status": 500, "json": {"message": "a bad day"}}, "a bad day"),
        ({"body": "<html>a proxy's page</html>"}, "fetching server API version"),
    ],
)
def test_a_daemon_that_cannot_be_talked_to_is_told(
    remote: responses.RequestsMock, answer: dict[str, object], told: str
) -> None:
    remote.get(VERSION, **answer)
    with pytest.raises(EnvironmentLack, match=f"docker.test:2375 does not answer as docker should .*{told}"):
        connected(REMOTE).__enter__()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (500, {"message": "no space left"}, r"docker failed \(no space left\): see what its daemon has logged"),
        (404, {"message": "No such container: x"}, r"docker failed \(No such container: x\)"),
        (200, None, "does not answer as docker should"),
    ],
)
def test_an_error_that_nobody_expects_is_told(
    remote: responses.RequestsMock, status: int, body: dict[str, str] | None, told: str
) -> None:
    remote.get(VERSION, json={"ApiVersion": "1.41"})
    remote.get("http://docker.test:2375/v1.41/containers/x/json", status=status, **({"json": body} if body else {}))
    with pytest.raises(EnvironmentLack, match=told), connected(REMOTE) as client:
        client.api.inspect_container("x")


def test_certificates_that_are_missing_are_told() -> None:
    with (
        pytest.raises(EnvironmentLack, match=r"does not answer as docker should.*TLS"),
        connected(REMOTE | {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/nowhere"}),
    ):
        pass
