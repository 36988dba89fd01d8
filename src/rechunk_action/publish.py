"""Publishing: blobs, then tables and record, then the manifest by its digest, then its signature, then the version's
tag, last the moving tags.

A tag is put only when everything under it is there, and signed where there is a key, so that wherever this ends, no tag
points at something incomplete or unsigned: what was uploaded and is not tagged yet is what the next run finds and need
not upload again. Kept layers are where they were: in the same repository nothing is done for them, in another one of
the same registry they are mounted.

Two runs at the same time both publish a version, as the later one takes the next free name. Moving tags are whose who
comes last, and who comes last says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rechunk_action.errors import Cancelled, CorruptImage, EnvironmentLack, RegistryError
from rechunk_action.oci.image import MANIFEST, Blobs, Image, Json, digest_of
from rechunk_action.oci.stage import Stage, blob_path, table_path
from rechunk_action.oci.table import Blob, Table
from rechunk_action.progress import Meter
from rechunk_action.registry.client import Repository
from rechunk_action.registry.image import RegistryBlobs
from rechunk_action.registry.tables import EMPTY, LABEL, tables_manifest, tables_tag
from rechunk_action.registry.versions import successor
from rechunk_action.scratch import PREFIX, clear
from rechunk_action.workers import Workers

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

UPLOADS = 4
"""Blobs on their way at once: enough to fill a line while another one waits for its answer."""


class RegistryWriter(Stage):
    """Adds one image to a repository. Without `commit`, nothing becomes visible."""

    def __init__(
        self,
        repository: Repository,
        moving: Collection[str],
        *,
        push: bool = True,
        sign_key: EllipticCurvePrivateKey | None = None,
        scratch: Path,
        notice: Callable[[str], None],
    ) -> None:
        """`moving` are tags to point at the image in the end, `scratch` is a directory to be in. Without `push`, all is
        done but the sending; without `sign_key`, the image stays unsigned.

        Raises `RegistryError` when the repository cannot be read, `EnvironmentLack` when there is no room to work in.
        """
        self._repository = repository
        self._push = push
        self._sign_key = sign_key
        self._notice = notice
        self._before = {tag: self._digest_at(tag) for tag in moving}
        self._elsewhere: dict[str, Blobs] = {}
        self._tables: dict[str, Json] = {}
        self._artifact: Json = {}
        if push:  # Every image here needs this blob. Who may not push had better know now than in the end.
            self._repository.upload_bytes(EMPTY)
        clear(scratch, PREFIX, notice)
        try:
            super().__init__(scratch, PREFIX)
        except OSError as error:
            raise EnvironmentLack(
                f"{scratch} cannot be used for scratch space ({error.strerror}): set TMPDIR to another directory"
            ) from None

    def keep(self, image: Image, blob: Blob, table: Table) -> None:
        """Take a layer over from another image, byte for byte."""
        blobs = image.blobs
        if isinstance(blobs, RegistryBlobs) and str(blobs) == str(self._repository):
            if blob.digest in blobs.tables:
                self._tables[blob.digest] = blobs.tables[blob.digest]
                return
        else:
            self._elsewhere[blob.digest] = blobs
        self.store_table(blob, table)

    def adopt(self, path: Path, digest: str) -> None:
        """Take a finished file as a blob. One on another file system stays there: it is only read once more."""
        if path.stat().st_dev == self._stage.stat().st_dev:
            super().adopt(path, digest)
        else:
            blob_path(self._stage, digest).symlink_to(path)

    def upload(self, layers: Sequence[Blob], record: bytes, meter: Meter) -> Mapping[str, str]:
        """Bring layers, their tables and the image's record into the repository. Returns the labels by which the image
        finds what is beside it. Layers that have no tables have none at all.

        `meter` expects the bytes of layers that have to be sent, and is told of them.
        """
        unique = {blob.digest: blob for blob in layers}
        for digest in unique:
            stored = table_path(self._stage, digest)
            if digest not in self._tables and stored.exists():
                data = stored.read_bytes()
                self._tables[digest] = {"digest": digest_of(data), "size": len(data)}
        tables = [self._tables[blob.digest] for blob in layers] if self._tables else []
        document = tables_manifest(tables, {"digest": digest_of(record), "size": len(record)})
        self._artifact = self.store_json(document, MANIFEST)
        if self._push:
            with Workers(UPLOADS) as workers:
                lacking = zip(unique.values(), workers.map(self._lacks, unique.values()), strict=True)
                missing = [blob for blob, lacks in lacking if lacks]
                meter.expect(sum(blob.size for blob in missing))
                for _ in workers.map(lambda blob: self._upload_layer(blob, meter), missing):
                    pass
                for _ in workers.map(self._upload_table, unique):
                    pass
            self._upload(record)
        return {LABEL: self._artifact["digest"]}

    def settle(self, version: str | None) -> str | None:
        """The version that the image gets: the one asked for, or the next free build of it."""
        settled, taken = version, set[str]()
        while settled is not None and self._digest_at(settled) is not None:
            taken |= {settled, *self._repository.tags()}
            settled = successor(settled, taken)
        if settled != version:
            self._notice(f"{self._repository}:{version} is published already: this image becomes {settled}")
        return settled

    def commit(self, manifest: Json, version: str | None) -> str | None:
        """Publish the image, its tags last. Returns its name; None when another run has published this version since.

        Raises `RegistryError` when the registry does not take something, `Cancelled` when the version is there already.
        """
        digest = manifest["digest"]
        name = f"{self._repository}:{version}" if version else f"{self._repository}@{digest}"
        if not self._push:
            return name
        data = self._staged(manifest)
        config = json.loads(data)["config"]
        self._upload(self._staged(config))
        self._put(digest, data)
        if version and self._digest_at(version) not in (None, digest):
            return None
        if self._sign_key:
            self._sign(digest, self._sign_key)
        self._put(tables_tag(config), self._staged(self._artifact))
        try:
            if version:
                self._put(version, data)
            for tag in self._before.keys() - {version}:
                self._move(tag, digest, data)
            # Of two runs that have seen the same version free, the last to put it keeps it, and the other sees that.
            return None if version and self._digest_at(version) != digest else name
        except KeyboardInterrupt:
            raise Cancelled(
                f"cancelled while {name} was published: see whether it is there, and whether moving tags point at it; "
                "publishing again is safe"
            ) from None

    def _lacks(self, blob: Blob) -> bool:
        """Whether a layer has to be sent: it is not there, and the registry has not taken it over from elsewhere."""
        here = blob_path(self._stage, blob.digest).exists()
        origin = self._elsewhere.get(blob.digest)
        if not (origin or here) or self._has(blob):
            return False
        return here or not (origin and self._mounted(blob.digest, origin))

    def _upload_layer(self, blob: Blob, meter: Meter) -> None:
        path = blob_path(self._stage, blob.digest)
        if not path.exists():
            meter.expect(blob.size)
            self._elsewhere[blob.digest].fetch(blob, path, meter)
        self._repository.upload(blob.digest, blob.size, lambda: path.open("rb"), meter)

    def _has(self, blob: Blob) -> bool:
        try:
            return self._repository.has_blob(blob.digest, blob.size)
        except CorruptImage:  # It is there in another size: what is uploaded now may put it right.
            return False

    def _mounted(self, digest: str, origin: Blobs) -> bool:
        return (
            isinstance(origin, RegistryBlobs)
            and origin.repository.session.host == self._repository.session.host
            and self._repository.mount(digest, origin.repository.name)
        )

    def _upload_table(self, layer: str) -> None:
        stored = table_path(self._stage, layer)
        if stored.exists():
            self._upload(stored.read_bytes())

    def _upload(self, data: bytes) -> None:
        """Bring a small blob into the repository, unless it is there already."""
        if not self._repository.has_blob(digest_of(data), len(data)):
            self._repository.upload_bytes(data)

    def _put(self, reference: str, manifest: bytes) -> None:
        self._repository.put_manifest(reference, manifest, MANIFEST)

    def _sign(self, digest: str, key: EllipticCurvePrivateKey) -> None:
        from rechunk_action.registry.signature import sign  # noqa: PLC0415  # takes 0.03 s to load

        try:
            sign(self._repository, digest, key)
        except (RegistryError, CorruptImage) as fault:
            raise RegistryError(
                f"{self._repository}@{digest} is there, but could not be signed, so no tag was put: {fault}. Publish "
                "again when that is mended; what is there is not sent again"
            ) from None

    def _move(self, tag: str, digest: str, manifest: bytes) -> None:
        """Point a moving tag at the image, and tell whether somebody else has moved it since this run began."""
        now = self._digest_at(tag)
        if now not in (self._before[tag], digest):
            self._notice(
                f"{self._repository}:{tag} was moved to {now} while this image was built: another run has "
                "published at the same time. Its version stays; the tag now points at this image"
            )
        self._put(tag, manifest)

    def _digest_at(self, tag: str) -> str | None:
        found = self._repository.resolve(tag)
        return found.digest if found else None

    def _staged(self, descriptor: Json) -> bytes:
        return blob_path(self._stage, descriptor["digest"]).read_bytes()
