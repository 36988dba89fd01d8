"""What stands behind a name: a tree to build from, an image to read, a repository to look into.

The one place that knows all transports. Nothing is read before it is asked for, and what was opened is closed with the
`Places`, a context manager.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from rechunk_action.oci.image import Image, host_architecture
from rechunk_action.oci.layout import LayoutBlobs, read_image
from rechunk_action.oci.stage import blob_path
from rechunk_action.oci.table import Blob
from rechunk_action.progress import Advance, Progress
from rechunk_action.registry.client import Repository
from rechunk_action.registry.credentials import Credentials, find_credentials
from rechunk_action.registry.image import published_image
from rechunk_action.registry.patience import Patience
from rechunk_action.registry.reference import Reference
from rechunk_action.registry.session import Session
from rechunk_action.source import Source
from rechunk_action.source.archive import archive_image, saved_image
from rechunk_action.source.directory import DirectorySource
from rechunk_action.source.finding import IN_STORES, find_image
from rechunk_action.source.image import ImageSource
from rechunk_action.source.names import Name
from rechunk_action.workers import Workers

DOWNLOADS = 4
"""Blobs on their way at once."""


class Places:
    """Opens names. `given` are credentials for the registry of the image that is published, `environment` is that of
    the process: it tells where other credentials and the stores of images are.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        given: Credentials | None = None,
        given_for: str = "",
        tls_verify: bool = True,
        patience: Patience | None = None,
        threads: int,
        drop_bad_xattrs: bool = False,
    ) -> None:
        self.environment = environment
        self._given = given
        self._given_for = given_for
        self._tls_verify = tls_verify
        self._patience = patience
        self._threads = threads
        self._drop_bad_xattrs = drop_bad_xattrs
        self._sessions: dict[tuple[str, str], Session] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def repository(self, reference: Reference) -> Repository:
        """The repository of an image. Raises `InputError` when credentials cannot be read; sends nothing yet."""
        key = (reference.host, reference.repository)
        if key not in self._sessions:
            found = find_credentials(
                *key,
                given=self._given if reference.host == self._given_for else None,
                environment=self.environment,
            )
            session = Session(reference.host, found, tls_verify=self._tls_verify, patience=self._patience)
            self._sessions[key] = self._stack.enter_context(session)
        return Repository(reference.repository, self._sessions[key])

    def image(self, name: Name, architecture: str | None = None) -> Image:
        """An image by its name; of an index, the one for an architecture (this machine's)."""
        architecture = architecture or host_architecture()
        if name.transport == "docker":
            reference = name.reference
            return published_image(
                self.repository(reference), reference.digest or reference.tag or "latest", architecture
            )
        if name.transport == "oci-archive":
            return archive_image(name.path, name.tag, architecture)
        if name.transport == "docker-archive":
            return saved_image(name.path)
        if name.transport in IN_STORES:
            return find_image(name, self.environment).image()
        return read_image(name.path, name.tag, architecture=architecture)

    @contextmanager
    def source(self, name: Name, scratch: Path, progress: Progress) -> Iterator[Source]:
        """A tree by its name. `scratch` is a directory for what cannot be read in place."""
        threads, drop = self._threads, self._drop_bad_xattrs
        if name.transport == "dir":
            yield DirectorySource(name.place, drop_bad_xattrs=drop)
        elif name.transport in IN_STORES:
            found = find_image(name, self.environment)
            if name.place != found.image_id:
                progress.decision(f"{name} is {found.image_id[:12]} in {found.store}")
            with ExitStack() as stack:
                with progress.phase("source", f"open {name}") as meter:
                    opened = found.source(scratch, threads=threads, drop_bad_xattrs=drop, meter=meter)
                    source = stack.enter_context(opened)
                yield source
        else:
            image = self.image(name)
            if name.transport == "docker":
                layers = set(image.layers)
                with progress.phase("source", f"download {name}", sum(blob.size for blob in layers)) as advance:
                    image = self._brought(image, layers, scratch, advance)
            yield ImageSource(image, scratch, threads=threads, drop_bad_xattrs=drop)

    def _brought(self, image: Image, layers: Collection[Blob], scratch: Path, advance: Advance) -> Image:
        """An image of a registry, its blobs downloaded: they are read more than once."""
        layout = scratch / "image"

        def fetch(blob: Blob) -> None:
            image.blobs.fetch(blob, blob_path(layout, blob.digest), advance)

        blob_path(layout, image.digest).parent.mkdir(parents=True)
        with Workers(DOWNLOADS) as workers:
            for _ in workers.map(fetch, layers):
                pass
        return replace(image, blobs=LayoutBlobs(layout))
