"""`docker-daemon:IMAGE`: images that docker keeps.

Only the daemon can read them. It writes the image as one archive, as `docker save` does, into scratch space; what is
in there is read in place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from docker.errors import APIError, ImageNotFound

from rechunk_action.docker_daemon import connected
from rechunk_action.errors import InputError
from rechunk_action.oci.image import Image
from rechunk_action.progress import UNHEARD, Meter
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
        self._environment = environment

    def __str__(self) -> str:
        return "docker"

    def find(self, image: str) -> str | None:
        with connected(self._environment) as client:
            try:
                return str(client.images.get(image).id).removeprefix("sha256:")
            except ImageNotFound:
                return None
            except APIError as error:
                if error.is_client_error():  # a name that docker has no image of, since it could have none
                    return None
                raise

    def names(self) -> list[str]:
        with connected(self._environment) as client:
            return [name for image in client.images.list() for name in image.tags]

    @contextmanager
    def source(
        self, image_id: str, scratch: Path, *, threads: int, drop_bad_xattrs: bool, meter: Meter = UNHEARD
    ) -> Iterator[Source]:
        image = saved_image(self._saved(image_id, scratch, meter))
        yield ImageSource(image, scratch, threads=threads, drop_bad_xattrs=drop_bad_xattrs)

    def image(self, image_id: str) -> Image:
        raise InputError(
            f"docker-daemon:{image_id[:12]} has no manifest before it is pushed: push the image, or copy it to a "
            "layout (skopeo copy), and name that"
        )

    def _saved(self, image_id: str, scratch: Path, meter: Meter) -> Path:
        """The archive that the daemon writes of an image."""
        with (
            connected(self._environment, timeout=_PATIENCE) as client,
            tempfile.NamedTemporaryFile(dir=scratch, suffix=".tar", delete=False) as archive,
        ):
            image = client.images.get(f"sha256:{image_id}")
            check_space(scratch, image.attrs["Size"], "a copy of the image in docker")
            meter.expect(image.attrs["Size"])
            for piece in image.save():
                archive.write(piece)
                meter(len(piece))
        return Path(archive.name)
