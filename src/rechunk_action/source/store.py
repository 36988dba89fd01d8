"""What a store of images on this machine can do, whoever keeps it: podman for a user, or docker."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from rechunk_action.errors import EnvironmentLack
from rechunk_action.oci.image import Image
from rechunk_action.progress import UNHEARD, Meter
from rechunk_action.source import Source


class Store(Protocol):
    """As text it names itself, for people. `transport` is how its images are named.

    Everything raises `EnvironmentLack` when the store cannot be read.
    """

    transport: str

    def find(self, image: str) -> str | None:
        """The ID (64 hexadecimal digits) of the image that the store's own tool would take, None when it has none."""
        ...

    def names(self) -> list[str]:
        """The names of all its images."""
        ...

    def source(
        self, image_id: str, scratch: Path, *, threads: int, drop_bad_xattrs: bool, meter: Meter = UNHEARD
    ) -> AbstractContextManager[Source]:
        """An image as a source. `scratch` is for what cannot be read in place, and the caller's to remove. `meter` is
        told of bytes that are copied there, where that is known.
        """
        ...

    def image(self, image_id: str) -> Image:
        """An image's manifest and config. Its layers cannot be opened."""
        ...


def check_space(scratch: Path, size: int, what: str) -> None:
    """Raises `EnvironmentLack` when there is too little room for what is about to be copied."""
    free = shutil.disk_usage(scratch).free
    if free < size:
        raise EnvironmentLack(
            f"{what} takes {size / 1e9:.1f} GB of scratch space, and {scratch} has {free / 1e9:.1f} GB free: "
            "free some, or put the output on a larger disk"
        )
