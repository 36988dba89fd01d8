"""`docker-daemon:IMAGE`: images that docker keeps.

Only the daemon can read them. It writes the image as one archive, as `docker save` does, into scratch space; what is
in there is read in place.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from requests.exceptions import RequestException

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.oci.image import Image
from rechunk_action.source import Source
from rechunk_action.source.archive import saved_image
from rechunk_action.source.image import ImageSource
from rechunk_action.source.store import check_space

_PATIENCE = 3600
"""Seconds until the first byte: the daemon has the whole archive on its own disk before it sends any."""


class DockerStore:
    """The images of the docker daemon that the environment names, or of this machine's."""

    transport = "docker-daemon"

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)

    def __str__(self) -> str:
        return "docker"

    def find(self, image: str) -> str | None:
        with self._client() as client:
            try:
                return str(client.images.get(image).id).removeprefix("sha256:")
            except ImageNotFound:
                return None
            except APIError as error:
                if error.is_client_error():  # a name that docker has no image of, since it could have none
                    return None
                raise

    def names(self) -> list[str]:
        with self._client() as client:
            return [name for image in client.images.list() for name in image.tags]

    @contextmanager
    def source(self, image_id: str, scratch: Path, *, threads: int, drop_bad_xattrs: bool) -> Iterator[Source]:
        image = saved_image(self._saved(image_id, scratch))
        yield ImageSource(image, scratch, threads=threads, drop_bad_xattrs=drop_bad_xattrs)

    def image(self, image_id: str) -> Image:
        raise InputError(
            f"docker-daemon:{image_id[:12]} has no manifest before it is pushed: push the image, or copy it to a "
            "layout (skopeo copy), and name that"
        )

    def _saved(self, image_id: str, scratch: Path) -> Path:
        """The archive that the daemon writes of an image."""
        with (
            self._client(_PATIENCE) as client,
            tempfile.NamedTemporaryFile(dir=scratch, suffix=".tar", delete=False) as archive,
        ):
            image = client.images.get(f"sha256:{image_id}")
            check_space(scratch, image.attrs["Size"], "a copy of the image in docker")
            for piece in image.save():
                archive.write(piece)
        return Path(archive.name)

    @contextmanager
    def _client(self, timeout: int = 60) -> Iterator[docker.DockerClient]:
        """The daemon, while it answers."""
        self._check_socket()
        try:
            with closing(docker.from_env(timeout=timeout, environment=self._environment)) as client:
                yield client
        except APIError as error:
            raise EnvironmentLack(f"docker failed ({error.explanation}): see what its daemon has logged") from None
        except (DockerException, RequestException) as error:
            raise EnvironmentLack(
                f"{self._host} does not answer as docker should ({error}): see how it fares (systemctl status docker)"
            ) from None

    def _check_socket(self) -> None:
        """The SDK tells little of a daemon that cannot be reached, and leaves its socket open."""
        scheme, _, path = self._host.partition("://")
        if scheme != "unix":
            return
        with socket.socket(socket.AF_UNIX) as tried:
            try:
                tried.connect(path)
            except PermissionError:
                raise EnvironmentLack(
                    f"no right to use {self._host}: run this as root (sudo), or as a member of group docker"
                ) from None
            except OSError as error:
                raise EnvironmentLack(
                    f"docker does not run: {self._host} cannot be reached ({error.strerror}); "
                    "start it (systemctl start docker), or name another one in DOCKER_HOST"
                ) from None

    @property
    def _host(self) -> str:
        return self._environment.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
