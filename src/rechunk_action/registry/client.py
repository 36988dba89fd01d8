"""The distribution API (OCI distribution-spec, and how GHCR speaks it) of one repository.

Invariants:
- Absent is only what the registry says is absent, with 404. All else is an error.
- What is read is verified: a manifest before it is handed out, a blob at its last byte.
- Nothing here knows images: blobs and manifests are bytes with a digest.

Threads may share a repository, as they may its session.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import parse_qsl, urlencode, urlsplit

from requests.utils import parse_header_links

from rechunk_action.errors import AccessDenied, CorruptImage, RegistryError
from rechunk_action.oci.image import INDEXES, MANIFESTS, digest_of, valid_digest
from rechunk_action.progress import Advance
from rechunk_action.registry.addresses import join
from rechunk_action.registry.blobs import PIECE, Download, Upload, location_of, stated_size
from rechunk_action.registry.reference import valid_tag
from rechunk_action.registry.session import Access, Answer, Session

if TYPE_CHECKING:
    pass

MANIFEST_TYPES = (*MANIFESTS, *INDEXES)
"""What is accepted as a manifest. A registry says 404 where it has only others."""

PAGE, MAX_PAGES, MAX_TAGS = 1000, 10_000, 1_000_000
"""Tags asked for at once, how often, and how many there may be."""


@dataclass(frozen=True)
class Descriptor:
    """What a registry has under a tag or digest."""

    digest: str
    media_type: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """A manifest or index, byte for byte."""

    data: bytes
    media_type: str
    digest: str


def _ignore(_: int) -> None:
    """Progress that nobody follows."""


class Repository:
    """One repository of the registry that a session talks to."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self.session = session
        self._pull = Access(name)
        self._push = Access(name, push=True)
        self._begun: dict[str, str] = {}

    def __str__(self) -> str:
        return f"{self.session.host}/{self.name}"

    def tags(self) -> list[str]:
        """All tags, in the registry's order, which means nothing; `[]` where there is no such repository."""
        tags: dict[str, None] = {}
        query, seen = urlencode({"n": PAGE}), set[str]()
        while query not in seen and len(seen) < MAX_PAGES and len(tags) < MAX_TAGS:
            seen.add(query)
            answer = self._request("GET", f"tags/list?{query}", self._pull)
            # Anything may answer 404; that there is no such repository is for a registry to say.
            if answer.status == HTTPStatus.NOT_FOUND and answer.codes and len(seen) == 1:
                return []
            if answer.status != HTTPStatus.OK:
                raise self.session.unexpected(answer, f"the question for the tags of {self}")
            tags |= dict.fromkeys(_parse_tags(answer, str(self)))
            following = self._next_page(answer)
            if following is None:
                return list(tags)
            query = following
        raise RegistryError(f"the list of tags of {self} does not end: ask those who run the registry")

    def resolve(self, reference: str) -> Descriptor | None:
        """What a tag or digest stands for, None where the registry has no such image."""
        answer = self._request("HEAD", f"manifests/{reference}", self._pull, headers=_ACCEPT)
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        digest, size = (
            answer.headers.get("Docker-Content-Digest", ""),
            stated_size(answer.headers.get("Content-Length", "")),
        )
        if answer.status == HTTPStatus.OK and valid_digest(digest) and size is not None:
            self._compare(reference, digest)
            return Descriptor(digest, _media_type(answer), size)
        manifest = self.manifest(reference)  # not every registry answers HEAD in full
        return None if manifest is None else Descriptor(manifest.digest, manifest.media_type, len(manifest.data))

    def manifest(self, reference: str) -> Manifest | None:
        """The manifest or index of a tag or digest. Raises `CorruptImage` when it is not what was asked for."""
        answer = self._request("GET", f"manifests/{reference}", self._pull, headers=_ACCEPT)
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status != HTTPStatus.OK:
            raise self.session.unexpected(answer, f"the question for the manifest {reference} of {self}")
        digest = digest_of(answer.body)
        self._compare(answer.headers.get("Docker-Content-Digest", ""), digest)
        self._compare(reference, digest)
        return Manifest(answer.body, _media_type(answer), digest)

    def put_manifest(self, reference: str, data: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest. Returns its digest."""
        headers = {"Content-Type": media_type}
        answer = self._request("PUT", f"manifests/{reference}", self._push, headers=headers, body=data)
        if answer.status not in (HTTPStatus.CREATED, HTTPStatus.OK):
            raise self.session.unexpected(answer, f"the manifest {reference} for {self}")
        digest = digest_of(data)
        self._compare(answer.headers.get("Docker-Content-Digest", ""), digest)
        return digest

    def has_blob(self, digest: str, size: int | None = None) -> bool:
        """Raises `CorruptImage` when the registry has the blob in another size."""
        answer = self._request("HEAD", f"blobs/{digest}", self._pull)
        if answer.status == HTTPStatus.NOT_FOUND:
            return False
        if answer.status in _REDIRECTS:
            stored = self.session.patiently(lambda: self._stored_size(digest))
        elif answer.status == HTTPStatus.OK:
            stored = stated_size(answer.headers.get("Content-Length", ""))
        else:
            raise self.session.unexpected(answer, f"the question for blob {digest} of {self}")
        if size is not None and stored is not None and stored != size:
            raise CorruptImage(
                f"blob {digest} of {self} has {stored:,} bytes instead of {size:,}: "
                "one of the two is damaged; build the image anew with --fresh"
            )
        return True

    @contextlib.contextmanager
    def open_blob(self, digest: str, size: int) -> Iterator[BinaryIO]:
        """A blob as a file. Its last byte is read only if all are right, else `CorruptImage` is raised.

        Raises `NotInRegistry` on the first read when there is no such blob.
        """
        with io.BufferedReader(Download(self, digest, size, self._pull), PIECE) as file:
            yield file

    def fetch_blob(self, digest: str, size: int, limit: int) -> bytes:
        """A small blob: one of more than `limit` bytes is refused."""
        if size > limit:
            raise CorruptImage(f"blob {digest} of {self} has {size:,} bytes where at most {limit:,} are right")
        with self.open_blob(digest, size) as file:
            return file.read()

    def download(self, digest: str, size: int, path: Path, advance: Advance = _ignore) -> None:
        """A blob as a file, which has its name only once it is whole and verified."""
        part = path.with_name(path.name + ".part")
        try:
            with self.open_blob(digest, size) as blob, part.open("wb") as file:
                while piece := blob.read(PIECE):
                    file.write(piece)
                    advance(len(piece))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def mount(self, digest: str, source_repository: str) -> bool:
        """Take a blob over from another repository of the registry. False when it has to be uploaded: then the registry
        has begun an upload, and `upload` goes on with that.
        """
        access = Access(self.name, push=True, source=source_repository)
        query = urlencode({"mount": digest, "from": source_repository})
        try:
            answer = self._request("POST", f"blobs/uploads/?{query}", access)
        except AccessDenied:
            return False  # the right that is missing may be the one to the source: uploading tells
        if answer.status == HTTPStatus.ACCEPTED:
            self._begun[digest] = location_of(answer, self)
        return answer.status == HTTPStatus.CREATED

    def upload(self, digest: str, size: int, open_: Callable[[], BinaryIO], advance: Advance = _ignore) -> None:
        """Store a blob. `open_` is called for each try. Raises `CorruptImage` when it has fewer bytes than `size`."""
        Upload(self, digest, size, open_, advance).run(self._begun.pop(digest, None))

    def upload_bytes(self, data: bytes) -> str:
        """Store a small blob. Returns its digest."""
        digest = digest_of(data)
        self.upload(digest, len(data), lambda: io.BytesIO(data))
        return digest

    def path(self, end: str) -> str:
        return f"/v2/{self.name}/{end}"

    def _request(
        self, method: str, end: str, access: Access, *, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        return self.session.request(method, self.path(end), access, headers=headers, body=body)

    def _compare(self, wanted: str, digest: str) -> None:
        """`wanted` may be a tag, or nothing."""
        if valid_digest(wanted) and wanted != digest:
            raise CorruptImage(
                f"{self} answered with {digest} where {wanted} was due: try again, and build the image anew if it stays"
            )

    def _stored_size(self, digest: str) -> int | None:
        """The size of a blob in a storage that the registry refers to, by reading a byte of it."""
        headers = {"Range": "bytes=0-0"}
        with self.session.open("GET", self.path(f"blobs/{digest}"), self._pull, headers=headers) as response:
            if response.status_code == HTTPStatus.PARTIAL_CONTENT:
                return stated_size(self.session.answer(response).headers.get("Content-Range", "").rpartition("/")[2])
            if response.status_code == HTTPStatus.OK:
                return stated_size(response.headers.get("Content-Length", ""))
            raise self.session.unexpected(self.session.answer(response), f"the question for blob {digest} of {self}")

    def _next_page(self, answer: Answer) -> str | None:
        """The query of the next page. GHCR's has `n=0` in it, which would end the list: the number stays ours."""
        for link in parse_header_links(answer.headers.get("Link", "")):
            if link.get("rel") == "next":
                url = join(answer.url, link["url"])
                if not self.session.owns(url):
                    raise RegistryError(f"{self} continues its list of tags elsewhere: ask those who run the registry")
                kept = [(name, value) for name, value in parse_qsl(urlsplit(url).query) if name != "n"]
                return urlencode([("n", str(PAGE)), *kept])
        return None


_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
_REDIRECTS = (301, 302, 303, 307, 308)


def _media_type(answer: Answer) -> str:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip()


def _parse_tags(answer: Answer, name: str) -> list[str]:
    try:
        tags = json.loads(answer.body)["tags"] or []  # null where all were deleted
        if isinstance(tags, list):
            return [tag for tag in map(str, tags) if valid_tag(tag)]
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise RegistryError(f"the list of tags of {name} is malformed: see whether the reference names a registry")
