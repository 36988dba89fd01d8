"""The distribution API (OCI distribution-spec, and how GHCR speaks it) of one repository.

Invariants:
- Absent is only what the registry says is absent, with 404. All else is an error.
- What is read is verified: a manifest before it is handed out, a blob at its last byte. What is uploaded is named by
  its digest, which the registry checks.
- Neither memory nor the number of tries grows with a blob. A broken download goes on where it was; a broken upload
  goes on where the registry says it is, and from the start where it does not know.
- Nothing here knows images: blobs and manifests are bytes with a digest.

Threads may share a repository, as they may its session.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import parse_qsl, urlencode, urlsplit

import requests
from requests.utils import parse_header_links

from rechunk_action.errors import AccessDenied, CorruptImage, EnvironmentLack, NotInRegistry, RegistryError
from rechunk_action.oci.image import INDEXES, MANIFESTS, digest_of, valid_digest
from rechunk_action.progress import Advance
from rechunk_action.registry.reference import valid_tag
from rechunk_action.registry.session import Access, Answer, Fault, Session, join
from rechunk_action.workers import checkpoint

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MANIFEST_TYPES = (*MANIFESTS, *INDEXES)
"""What is accepted as a manifest. A registry says 404 where it has only others."""

CHUNK = 4 << 20
"""Bytes of an upload that GHCR takes at once, when it is told where they belong."""

PIECE = 1 << 18
"""Bytes that are read or sent between two looks at whether to stop."""

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
            if answer.status == _NOT_FOUND and answer.codes and len(seen) == 1:
                return []
            if answer.status != _OK:
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
        if answer.status == _NOT_FOUND:
            return None
        digest, size = answer.headers.get("Docker-Content-Digest", ""), _bytes(answer.headers.get("Content-Length", ""))
        if answer.status == _OK and valid_digest(digest) and size is not None:
            self._compare(reference, digest)
            return Descriptor(digest, _media_type(answer), size)
        manifest = self.manifest(reference)  # not every registry answers HEAD in full
        return None if manifest is None else Descriptor(manifest.digest, manifest.media_type, len(manifest.data))

    def manifest(self, reference: str) -> Manifest | None:
        """The manifest or index of a tag or digest. Raises `CorruptImage` when it is not what was asked for."""
        answer = self._request("GET", f"manifests/{reference}", self._pull, headers=_ACCEPT)
        if answer.status == _NOT_FOUND:
            return None
        if answer.status != _OK:
            raise self.session.unexpected(answer, f"the question for the manifest {reference} of {self}")
        digest = digest_of(answer.body)
        self._compare(answer.headers.get("Docker-Content-Digest", ""), digest)
        self._compare(reference, digest)
        return Manifest(answer.body, _media_type(answer), digest)

    def put_manifest(self, reference: str, data: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest. Returns its digest."""
        headers = {"Content-Type": media_type}
        answer = self._request("PUT", f"manifests/{reference}", self._push, headers=headers, body=data)
        if answer.status not in (_CREATED, _OK):
            raise self.session.unexpected(answer, f"the manifest {reference} for {self}")
        digest = digest_of(data)
        self._compare(answer.headers.get("Docker-Content-Digest", ""), digest)
        return digest

    def has_blob(self, digest: str, size: int | None = None) -> bool:
        """Raises `CorruptImage` when the registry has the blob in another size."""
        answer = self._request("HEAD", f"blobs/{digest}", self._pull)
        if answer.status == _NOT_FOUND:
            return False
        if answer.status in _REDIRECTS:
            stored = self.session.patiently(lambda: self._stored_size(digest))
        elif answer.status == _OK:
            stored = _bytes(answer.headers.get("Content-Length", ""))
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
        with io.BufferedReader(_Download(self, digest, size, self._pull), PIECE) as file:
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
        if answer.status == _ACCEPTED:
            self._begun[digest] = location_of(answer, self)
        return answer.status == _CREATED

    def upload(self, digest: str, size: int, open_: Callable[[], BinaryIO], advance: Advance = _ignore) -> None:
        """Store a blob. `open_` is called for each try. Raises `CorruptImage` when it has fewer bytes than `size`."""
        _Upload(self, digest, size, open_, advance).run(self._begun.pop(digest, None))

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
            if response.status_code == _PARTIAL:
                return _bytes(self.session.answer(response).headers.get("Content-Range", "").rpartition("/")[2])
            if response.status_code == _OK:
                return _bytes(response.headers.get("Content-Length", ""))
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


_OK, _CREATED, _ACCEPTED, _NO_CONTENT, _PARTIAL, _NOT_FOUND = 200, 201, 202, 204, 206, 404
_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]+|\*)")


def location_of(answer: Answer, repository: Repository) -> str:
    """Where an upload goes on: relative or not, at this host or another."""
    if not (location := answer.headers.get("Location")):
        raise repository.session.unexpected(answer, f"an upload to {repository}, without a place to go on at")
    return join(answer.url, location)


def _bytes(header: str) -> int | None:
    """The size that a header states, None where it states none."""
    return int(header) if _SIZE.fullmatch(header) else None


_SIZE = re.compile("[0-9]{1,18}")


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


class _Download(io.RawIOBase):
    """The bytes of a blob, asked for again from where they broke off: the address of a storage expires, so each time
    it is the registry that is asked.
    """

    def __init__(self, repository: Repository, digest: str, size: int, access: Access) -> None:
        self._repository = repository
        self._session = repository.session
        self._digest = digest
        self._size = size
        self._access = access
        self._hash = hashlib.sha256()
        self._position = 0
        self._verified = False
        self._waits = self._session.waits()
        self._opened = contextlib.ExitStack()
        self._response: requests.Response | None = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._opened.close()
        super().close()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if self._verified:
            return 0
        piece = self._next(min(len(view), self._size - self._position))
        self._hash.update(piece)
        self._position += len(piece)
        if self._position // CHUNK > (self._position - len(piece)) // CHUNK:
            self._waits.renew()
        if self._position == self._size:
            self._verify()
        view[: len(piece)] = piece
        return len(piece)

    def _next(self, size: int) -> bytes:
        while True:
            checkpoint()
            try:
                if self._response is None:
                    self._response = self._request()
                piece = self._session.read(self._response, size)
                if piece or not size:
                    return piece
                raise Fault(f"{self._session.host} hung up")  # noqa: TRY301  # as the session would
            except Fault as fault:
                self._opened.close()
                self._response = None
                self._waits.after(fault)

    def _request(self) -> requests.Response:
        first = self._position
        headers = {"Range": f"bytes={first}-{self._size - 1}"} if first else {}
        path = self._repository.path(f"blobs/{self._digest}")
        response = self._opened.enter_context(self._session.open("GET", path, self._access, headers=headers))
        if response.status_code == _NOT_FOUND:
            raise NotInRegistry(
                f"{self._repository} has no blob {self._digest}: it was deleted, or never pushed; "
                "build the image anew with --fresh"
            )
        if first and response.status_code == _PARTIAL:
            stretch = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if stretch is None or int(stretch[1]) != first or stretch[2] not in ("*", str(self._size)):
                raise self._corrupt("answered with other bytes than were asked for")
            return response
        if response.status_code != _OK:
            answer = self._session.answer(response)
            raise self._session.unexpected(answer, f"the question for blob {self._digest} of {self._repository}")
        length = _bytes(response.headers.get("Content-Length", ""))
        if length not in (None, self._size):
            raise self._corrupt(f"has {length:,} bytes of it instead of {self._size:,}")
        while first:  # it sends all of it, whatever was asked for
            checkpoint()
            skipped = self._session.read(response, min(first, PIECE))
            if not skipped:
                raise Fault(f"{self._session.host} hung up")
            first -= len(skipped)
        return response

    def _verify(self) -> None:
        with contextlib.suppress(Fault):  # a connection that breaks now has done its work
            if self._response is not None and self._session.read(self._response, 1):
                raise self._corrupt(f"has more bytes of it than {self._size:,}")
        if "sha256:" + self._hash.hexdigest() != self._digest:
            raise self._corrupt("has other bytes under this digest")
        self._verified = True

    def _corrupt(self, what: str) -> CorruptImage:
        return CorruptImage(
            f"blob {self._digest}: {self._repository} {what}: try again, and build the image anew with --fresh if it "
            "stays so"
        )


class _Refused(Exception):
    """The registry does not take what was sent. The first time, damage on the way may be why."""

    def __init__(self, error: RegistryError) -> None:
        super().__init__(str(error))
        self.error = error


class _Upload:
    """One blob on its way: as one stream, and after a fault in chunks, from where the registry says it is."""

    def __init__(
        self, repository: Repository, digest: str, size: int, open_: Callable[[], BinaryIO], advance: Advance
    ) -> None:
        self._repository = repository
        self._session = repository.session
        self._access = Access(repository.name, push=True)
        self._digest = digest
        self._size = size
        self._open = open_
        self._advance = advance
        self._reported = 0
        self._furthest = 0
        self._location = ""
        self._waits = self._session.waits()

    def run(self, begun: str | None) -> None:
        """`begun`: the location of an upload that has begun."""
        position = None if begun is None else 0
        self._location = begun or ""
        refused = False
        while True:
            checkpoint()
            try:
                if position is None:
                    self._start()
                self._send(position or 0)
            except Fault as fault:
                self._waits.after(fault)
                # The answer to the last request may be all that was lost.
                if self._repository.has_blob(self._digest, self._size):
                    break
                position = self._stored()
            except _Refused as refusal:
                if refused:
                    raise refusal.error from None
                refused, position = True, None
            else:
                break
        self._report(self._size)

    def _start(self) -> None:
        answer = self._session.request("POST", self._repository.path("blobs/uploads/"), self._access)
        if answer.status != _ACCEPTED:
            raise self._session.unexpected(answer, f"the start of an upload to {self._repository}")
        self._location = location_of(answer, self._repository)

    def _send(self, position: int) -> None:
        """All that is missing, and the end."""
        if position == 0 and self._size <= CHUNK:
            self._finish(self._size)
            return
        while position < self._size:
            # GHCR takes no more than a chunk at once, but for a stream that says nothing of its place.
            length = min(CHUNK, self._size - position) if position else self._size
            headers = {"Content-Range": f"{position}-{position + length - 1}"} if position else {}
            self._location = location_of(
                self._attempt("PATCH", self._location, position, length, headers), self._repository
            )
            position += length
            self._note(position)
        self._finish(0)

    def _finish(self, length: int) -> None:
        mark = "&" if urlsplit(self._location).query else "?"
        self._attempt("PUT", f"{self._location}{mark}{urlencode({'digest': self._digest})}", 0, length, {})

    def _attempt(self, method: str, location: str, start: int, length: int, headers: dict[str, str]) -> Answer:
        body = _Stretch(self._open, self._digest, start, length, self._report) if length else None
        headers = headers | ({"Content-Type": "application/octet-stream"} if length else {})
        answer = self._session.attempt(method, location, self._access, headers=headers, body=body)
        if answer.status in _TAKEN:
            return answer
        error = self._session.unexpected(answer, f"blob {self._digest} for {self._repository}")
        raise _Refused(error) if answer.status in _REFUSALS else error

    def _stored(self) -> int | None:
        """How many bytes of the upload the registry has, None when it does not know or does not say."""
        try:
            answer = self._session.attempt("GET", self._location, self._access)
        except (Fault, AccessDenied):
            return None
        stored = _RANGE.fullmatch(answer.headers.get("Range", ""))
        if answer.status != _NO_CONTENT or stored is None:
            return None
        self._location = location_of(answer, self._repository)
        end = int(stored[1])  # of the last byte; also 0 where there is none
        position = end + 1 if 0 < end < self._size else 0
        self._note(position)
        return position

    def _note(self, position: int) -> None:
        """The registry has that much. Each chunk that it never had before is worth as many tries as the first."""
        if position >= self._furthest + CHUNK:
            self._furthest = position
            self._waits.renew()

    def _report(self, position: int) -> None:
        """Progress goes forward only, whatever is sent again."""
        if position > self._reported:
            self._advance(position - self._reported)
            self._reported = position


_TAKEN = (200, 201, 202, 204)
_REFUSALS = (400, 404, 416)
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


class _Stretch:
    """A part of a blob as the body of a request: it has a length, and is read anew each time it is sent."""

    def __init__(
        self, open_: Callable[[], BinaryIO], digest: str, start: int, length: int, sent: Callable[[int], None]
    ) -> None:
        self._open = open_
        self._digest = digest
        self._start = start
        self._length = length
        self._sent = sent

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        position, end = self._start, self._start + self._length
        with self._readable():
            file = self._open()
        with file:
            with self._readable():
                file.seek(position)
            while position < end:
                checkpoint()
                with self._readable():
                    piece = file.read(min(PIECE, end - position))
                if not piece:
                    raise CorruptImage(f"{self._digest} has {position:,} bytes and should have more: build it again")
                yield piece
                position += len(piece)
                self._sent(position)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """An error of our disk, which urllib3 would take for one of the network."""
        try:
            yield
        except OSError as error:
            raise EnvironmentLack(
                f"{self._digest} cannot be read to upload it ({error.strerror}): check the disk and your rights"
            ) from None
