"""The docker daemon, while it answers: every fault of it, or of the SDK, becomes an error that says what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import docker
from docker.errors import APIError, DockerException, StreamParseError
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from rechunk_action.errors import EnvironmentLack, RechunkError


@contextmanager
def connected(environment: Mapping[str, str], *, timeout: int = 60) -> Iterator[docker.DockerClient]:
    """A client of the daemon that the environment names, or of this machine's. `timeout` is in seconds, and for each
    silence of the daemon.

    Raises `EnvironmentLack` when the daemon cannot be reached, and for each of its errors that the caller lets pass.
    """
    host = environment.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    _check_socket(host)
    try:
        with closing(docker.from_env(timeout=timeout, environment=dict(environment))) as client:
            yield client
    except APIError as error:
        raise EnvironmentLack(f"docker failed ({error.explanation}): see what its daemon has logged") from None
    except (DockerException, RequestException, HTTPError, StreamParseError) as error:
        if isinstance(error.__cause__, RechunkError):  # the SDK takes a deadline for a fault of the daemon's
            raise error.__cause__ from None
        raise EnvironmentLack(
            f"{host} does not answer as docker should ({error}): see how it fares (systemctl status docker)"
        ) from None


def _check_socket(host: str) -> None:
    """The SDK tells little of a daemon that cannot be reached, and leaves its socket open."""
    scheme, _, path = host.partition("://")
    if scheme != "unix":
        return
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(path)
        except PermissionError:
            raise EnvironmentLack(
                f"no right to use {host}: run this as root (sudo), or as a member of group docker"
            ) from None
        except OSError as error:
            raise EnvironmentLack(
                f"docker does not run: {host} cannot be reached ({error.strerror}); "
                "start it (systemctl start docker), or name another one in DOCKER_HOST"
            ) from None
