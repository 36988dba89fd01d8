"""A blob on its way from a registry or to it: what breaks off goes on where it was.

Invariants:
- What arrives is verified: the last byte is handed out only if all are right. What is sent is named by its digest,
  which the registry checks.
- Neither memory nor the number of tries grows with a blob. A broken download goes on where it was; a broken upload
  goes on where the registry says it is, and from the start where it does not know.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlencode, urlsplit

import requests

from rechunk_action.errors import AccessDenied, CorruptImage, EnvironmentLack, NotInRegistry, RegistryError
from rechunk_action.progress import Advance
from rechunk_action.registry.addresses import join
from rechunk_action.registry.patience import Fault
from rechunk_action.registry.session import Access, Answer
from rechunk_action.workers import checkpoint

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from rechunk_action.registry.client import Repository

CHUNK = 4 << 20
"""Bytes of an upload that GHCR takes at once, when it is told where they belong."""

PIECE = 1 << 18
"""Bytes that are read or sent between two looks at whether to stop."""


class Download(io.RawIOBase):
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
        if response.status_code == HTTPStatus.NOT_FOUND:
            raise NotInRegistry(
                f"{self._repository} has no blob {self._digest}: it was deleted, or never pushed; "
                "build the image anew with --fresh"
            )
        if first and response.status_code == HTTPStatus.PARTIAL_CONTENT:
            stretch = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if stretch is None or int(stretch[1]) != first or stretch[2] not in ("*", str(self._size)):
                raise self._corrupt("answered with other bytes than were asked for")
            return response
        if response.status_code != HTTPStatus.OK:
            answer = self._session.answer(response)
            raise self._session.unexpected(answer, f"the question for blob {self._digest} of {self._repository}")
        length = stated_size(response.headers.get("Content-Length", ""))
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


class Upload:
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
        if answer.status != HTTPStatus.ACCEPTED:
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
        if answer.status != HTTPStatus.NO_CONTENT or stored is None:
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


def location_of(answer: Answer, repository: Repository) -> str:
    """Where an upload goes on: relative or not, at this host or another."""
    if not (location := answer.headers.get("Location")):
        raise repository.session.unexpected(answer, f"an upload to {repository}, without a place to go on at")
    return join(answer.url, location)


def stated_size(header: str) -> int | None:
    """The size that a header states, None where it states none."""
    return int(header) if _NUMBER.fullmatch(header) else None


class _Refused(Exception):
    """The registry does not take what was sent. The first time, damage on the way may be why."""

    def __init__(self, error: RegistryError) -> None:
        super().__init__(str(error))
        self.error = error


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


_TAKEN = (200, 201, 202, 204)
_REFUSALS = (400, 404, 416)
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]+|\*)")
_NUMBER = re.compile("[0-9]{1,18}")
