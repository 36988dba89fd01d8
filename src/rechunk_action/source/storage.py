"""`containers-storage:IMAGE`: images that podman and buildah keep.

Root's storage is read in place: podman mounts the image. Another user's is behind a user namespace that we are not in,
so its image is copied once, uncompressed, by that user, and its layers are read as those of any image. Storage keeps
the headers of layers as they came, so that owners, attributes and hard links are those of the image either way. (Only
the mode of the root directory is podman's own where it is mounted: 0555, whatever the layers say.)

Invariants:
- Storage is only ever touched by podman and skopeo, run as the user it belongs to.
- podman counts mounts. Ours is taken back on every way out, and only if it was made.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from rechunk_action.errors import EnvironmentLack, InputError
from rechunk_action.oci.image import MANIFEST, Image, Json, digest_of, host_architecture, load_image
from rechunk_action.oci.layout import read_image
from rechunk_action.oci.table import Blob, Table
from rechunk_action.progress import UNHEARD, Advance, Meter
from rechunk_action.signals import undisturbed
from rechunk_action.source import Source
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.image import ImageSource
from rechunk_action.source.programs import Account, Program, other_account, own_account, run
from rechunk_action.source.store import check_space

_UNCOMPRESSED = "application/vnd.oci.image.layer.v1.tar"

_MALFORMED = re.compile("invalid reference format|must be lowercase")
"""What podman says of a name that no image can have."""


def storages(environment: Mapping[str, str]) -> list[PodmanStorage]:
    """The storages that may hold an image that a workflow has built: our own, and under sudo that of who called it."""
    found = [PodmanStorage(own_account(environment))]
    caller = environment.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isdecimal() and caller != "0":
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(int(caller))
            if _has_used_podman(entry):
                found.append(PodmanStorage(other_account(entry, environment)))
    return found


class PodmanStorage:
    """The storage of one user."""

    transport = "containers-storage"

    def __init__(self, account: Account) -> None:
        self._account = account

    def __str__(self) -> str:
        return f"{self._account.name}'s podman storage"

    def find(self, image: str) -> str | None:
        with Program(self._account, "podman", "image", "exists", "--", image) as asked:
            status = asked.status()
            if status == 0:
                return str(self._inspect(image)["Id"])
            if status == 1 or _MALFORMED.search(asked.complaints):
                return None
            raise asked.failure()

    def names(self) -> list[str]:
        images = json.loads(run(self._account, "podman", "images", "--format", "json"))
        return [name for image in images for name in image.get("Names") or []]

    @contextmanager
    def source(
        self, image_id: str, scratch: Path, *, threads: int, drop_bad_xattrs: bool, meter: Meter = UNHEARD
    ) -> Iterator[Source]:
        del meter  # nobody tells of a mount, nor how far skopeo is with a copy
        if self._account.uid == 0:
            config = self.image(image_id).config
            with self._mounted(image_id) as root:
                yield DirectorySource(root, config=config, drop_bad_xattrs=drop_bad_xattrs)
        else:
            image = self._copied(image_id, scratch)
            yield ImageSource(image, scratch, threads=threads, drop_bad_xattrs=drop_bad_xattrs)

    def image(self, image_id: str) -> Image:
        blobs = _Documents(self._account, f"containers-storage:{image_id}")
        manifest = blobs.manifest
        media_type = json.loads(manifest).get("mediaType", MANIFEST)
        descriptor = {"mediaType": media_type, "digest": digest_of(manifest), "size": len(manifest)}
        return load_image(blobs, descriptor, host_architecture())

    def _inspect(self, image: str) -> Json:
        inspected: list[Json] = json.loads(run(self._account, "podman", "image", "inspect", "--", image))
        return inspected[0]

    @contextmanager
    def _mounted(self, image_id: str) -> Iterator[str]:
        with (
            self._mountable(image_id) as (kind, name),
            Program(self._account, "podman", kind, "mount", name) as mounting,
        ):
            try:
                yield os.fsdecode(mounting.output()).strip()
            finally:
                # When we are cancelled while podman is at it, only its exit status tells whether it has counted us.
                with undisturbed():
                    if mounting.end() == 0:
                        run(self._account, "podman", kind, "unmount", name)

    @contextmanager
    def _mountable(self, image_id: str) -> Iterator[tuple[str, str]]:
        """What podman mounts: the image, or a container of one in an additional store, which podman only reads."""
        images = json.loads(run(self._account, "podman", "images", "--all", "--format", "json"))
        if not any(image["Id"] == image_id and image.get("ReadOnly") for image in images):
            yield "image", image_id
            return
        container = f"rechunk-{secrets.token_hex(8)}"
        create = ("podman", "create", "--name", container, "--image-volume=ignore", "--network=none", image_id, "true")
        try:
            run(self._account, *create)
            yield "container", container
        finally:
            with undisturbed():
                run(self._account, "podman", "rm", "--ignore", container)

    def _copied(self, image_id: str, scratch: Path) -> Image:
        """An image with its layers where we can read them."""
        check_space(scratch, self._inspect(image_id)["Size"], f"a copy of the image in {self}")
        directory = Path(tempfile.mkdtemp(dir=scratch)).absolute()
        if self._account.switch:
            os.chown(directory, self._account.uid, -1)
            scratch.chmod(scratch.stat().st_mode | 0o111)  # the user has to get through
            self._check_reach(directory)
        layout = directory / "image"
        copy = ("skopeo", "copy", "--quiet", "--insecure-policy", "--dest-oci-accept-uncompressed-layers")
        run(self._account, *copy, f"containers-storage:{image_id}", f"oci:{layout}")
        image = read_image(layout, None)
        # What a layout cannot say of an image in docker's format is in the config that is stored.
        return replace(image, config=self.image(image_id).config, layers=tuple(map(_as_it_is, image.layers)))

    def _check_reach(self, directory: Path) -> None:
        with Program(self._account, "test", "-w", str(directory)) as test:
            if test.status() != 0:
                raise EnvironmentLack(
                    f"{self._account.name} cannot write to {directory}, where the image of {self} is to be copied to: "
                    "put the output, or the temporary directory (TMPDIR), where this user may enter"
                )


class _Documents:
    """The manifest and config of an image. Layers in storage are unpacked: there is no blob to open."""

    def __init__(self, account: Account, name: str) -> None:
        self._account = account
        self._name = name
        self.manifest = self._ask()

    def __str__(self) -> str:
        return self._name

    def document(self, descriptor: Json) -> bytes:
        return self.manifest if descriptor["digest"] == digest_of(self.manifest) else self._ask("--config")

    def open(self, blob: Blob) -> contextlib.AbstractContextManager[BinaryIO]:
        raise self._unpacked(blob)

    def fetch(self, blob: Blob, target: Path, advance: Advance = UNHEARD) -> None:
        del target, advance
        raise self._unpacked(blob)

    def has_table(self, blob: Blob) -> bool:
        """None is kept: it would be found by a blob."""
        del blob
        return False

    def table(self, blob: Blob, format_: str = "") -> Table | None:
        del blob, format_
        return None

    def record(self, digest: str) -> bytes | None:
        """Nor any record."""
        del digest
        return None

    def _ask(self, *options: str) -> bytes:
        return run(self._account, "skopeo", "inspect", "--raw", *options, self._name)

    def _unpacked(self, blob: Blob) -> InputError:
        return InputError(
            f"layer {blob.digest} of {self._name} is unpacked in podman's storage and cannot be read as a blob: "
            "push the image, or copy it to a layout (skopeo copy), and name that"
        )


def _has_used_podman(entry: pwd.struct_passwd) -> bool:
    """Whether there can be a storage: asking a podman that was never used would set one up."""
    home = Path(entry.pw_dir)
    return any((home / place / "containers").exists() for place in (".local/share", ".config"))


def _as_it_is(blob: Blob) -> Blob:
    """A copied layer by what it is: skopeo leaves the media type of a compressed layer on an uncompressed one."""
    return Blob(blob.digest, blob.size, _UNCOMPRESSED, blob.diff_id) if blob.digest == blob.diff_id else blob
