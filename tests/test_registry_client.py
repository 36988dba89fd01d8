"""The distribution API with a real registry, over a line that breaks where it is told to."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

import pytest
import responses

from rechunk_action.errors import (
    CorruptImage,
    EnvironmentLack,
    NotInRegistry,
    RechunkError,
    RegistryError,
    RegistryUnavailable,
)
from rechunk_action.registry import client
from rechunk_action.registry.blobs import CHUNK
from rechunk_action.registry.client import MANIFEST_TYPES, Descriptor, Manifest, Repository
from rechunk_action.registry.session import Session
from rechunk_action.workers import Workers
from tests.faulty_proxy import ALWAYS, FaultyProxy, Kind
from tests.registries import FOUND, HASTE, Registry, TokenGate, plain_registry, repository, token_registry
from tests.support import digest, listing, peak_memory

SMALL = b"a small blob"
LARGE = os.urandom(2 * CHUNK + 12_345)
ABSENT = "sha256:" + "0" * 64
BLOB = "/blobs/sha256:"
UPLOAD = "/blobs/uploads/."

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with plain_registry() as running:
        yield running


@pytest.fixture(scope="module")
def line(registry: Registry) -> Iterator[FaultyProxy]:
    with FaultyProxy(registry.host) as proxy:
        yield proxy


@pytest.fixture
def proxy(line: FaultyProxy) -> FaultyProxy:
    line.forget()
    return line


@pytest.fixture
def fresh(proxy: FaultyProxy, request: pytest.FixtureRequest) -> Iterator[Repository]:
    """A repository of the test's own, behind the proxy."""
    name = "owner/" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[-100:].strip("-")
    with repository(proxy.host, name) as mine:
        yield mine


@pytest.fixture(scope="module")
def stored(registry: Registry) -> str:
    """The name of a repository that holds the two blobs."""
    with repository(registry.host, "owner/stored") as mine:
        mine.upload_bytes(SMALL)
        mine.upload_bytes(LARGE)
    return "owner/stored"


@pytest.fixture
def blobs(proxy: FaultyProxy, stored: str) -> Iterator[Repository]:
    with repository(proxy.host, stored) as mine:
        yield mine


def manifest(note: str = "") -> bytes:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(SMALL), "size": len(SMALL)}
    document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPES[0], "config": config, "layers": []}
    return json.dumps(document | {"annotations": {"note": note}}).encode()


def tag(mine: Repository, name: str, note: str = "") -> str:
    if not mine.has_blob(digest(SMALL)):
        mine.upload_bytes(SMALL)
    return mine.put_manifest(name, manifest(note), MANIFEST_TYPES[0])


class TestManifests:
    def test_what_was_stored_is_found_by_tag_and_digest(self, fresh: Repository) -> None:
        name = tag(fresh, "v1")
        assert name == digest(manifest())
        for reference in "v1", name:
            assert fresh.resolve(reference) == Descriptor(name, MANIFEST_TYPES[0], len(manifest()))
            assert fresh.manifest(reference) == Manifest(manifest(), MANIFEST_TYPES[0], name)

    def test_what_is_not_there_is_none(self, fresh: Repository) -> None:
        assert fresh.tags() == []
        for reference in "v1", ABSENT:
            assert fresh.resolve(reference) is None
            assert fresh.manifest(reference) is None
        tag(fresh, "v1")
        assert fresh.resolve("v2") is None

    @pytest.mark.parametrize("kind", ["hang up", "answer"])
    def test_a_fault_is_never_absence(self, fresh: Repository, proxy: FaultyProxy, kind: Kind) -> None:
        tag(fresh, "v1")
        proxy.fault(kind, times=ALWAYS)
        asked: list[Callable[[], object]] = [
            fresh.tags,
            lambda: fresh.resolve("v1"),
            lambda: fresh.manifest("v1"),
            lambda: fresh.has_blob(ABSENT),
            lambda: fresh.fetch_blob(ABSENT, 10, 10),
        ]
        for question in asked:
            with pytest.raises(RegistryUnavailable):
                question()

    def test_a_manifest_that_changed_on_its_way_is_refused(self, fresh: Repository, proxy: FaultyProxy) -> None:
        name = tag(fresh, "v1")
        for reference in "v1", name:
            proxy.fault("corrupt", method="GET")
            with pytest.raises(CorruptImage, match=f"where {name} was due"):
                fresh.manifest(reference)

    def test_a_manifest_is_stored_over_a_line_that_breaks(self, fresh: Repository, proxy: FaultyProxy) -> None:
        fresh.upload_bytes(SMALL)
        for kind in ("hang up", "cut the request", "lose the answer", "answer"):
            proxy.fault(kind, method="PUT", path="/manifests/")
        assert tag(fresh, "v1") == digest(manifest())
        assert len(proxy.asked("PUT", "/manifests/")) == 5

    def test_a_manifest_without_its_blobs_is_refused_in_the_registrys_words(self, fresh: Repository) -> None:
        with pytest.raises(RegistryError, match=r"400 to the manifest v1 .*MANIFEST_BLOB_UNKNOWN"):
            fresh.put_manifest("v1", manifest(), MANIFEST_TYPES[0])

    def test_a_head_without_a_digest_is_asked_again_in_full(self, fresh: Repository, proxy: FaultyProxy) -> None:
        name = tag(fresh, "v1")
        proxy.fault("answer", method="HEAD", status=200)
        proxy.fault("answer", method="HEAD", status=405)
        for _ in range(2):
            assert fresh.resolve("v1") == Descriptor(name, MANIFEST_TYPES[0], len(manifest()))


class TestTags:
    URL = "https://ghcr.io/v2/owner/image/tags/list"

    def ghcr(self, pages: dict[str, tuple[list[str] | None, str]]) -> list[str]:
        """The tags of GHCR, when it answers to `last` with tags and the link to the next page."""

        def answer(request: Any) -> tuple[int, dict[str, str], str]:
            assert request.params["n"] == "1000"
            tags, link = pages.get(request.params.get("last", ""), (None, None))
            if link is None:
                return 404, {}, "{}"
            return 200, {"link": link} if link else {}, json.dumps({"name": "owner/image", "tags": tags})

        with responses.RequestsMock() as mock, Session("ghcr.io", patience=HASTE) as session:
            mock.add_callback(responses.GET, self.URL, answer)
            return Repository("owner/image", session).tags()

    def test_a_next_page_of_no_tags_is_asked_for_in_full(self) -> None:
        path = "/v2/owner/image/tags/list"
        assert self.ghcr(
            {
                "": (["a", "b"], f'<{path}?last=b&n=0>; rel="next"'),
                "b": (["b", "c"], f'<https://ghcr.io{path}?n=0&last=c>; rel="next"'),
                "c": (["sha256-0"], '<?last=sha256-0&n=0>; rel="next"'),
                "sha256-0": (None, ""),
            }
        ) == ["a", "b", "c", "sha256-0"]

    def test_more_tags_than_any_repository_has_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "MAX_TAGS", 3)
        link = '</v2/owner/image/tags/list?last=c>; rel="next"'
        with pytest.raises(RegistryError, match="does not end"):
            self.ghcr({"": (["a", "b", "c"], link), "c": (["d"], "")})

    def test_a_list_without_end_is_an_error(self) -> None:
        with pytest.raises(RegistryError, match="does not end"):
            self.ghcr({"": (["a"], '<?last=a>; rel="next"'), "a": (["b"], '<?last=a>; rel="next"')})

    def test_a_page_that_is_missing_is_an_error(self) -> None:
        with pytest.raises(RegistryError, match="answered 404"):
            self.ghcr({"": (["a"], '<?last=a>; rel="next"')})

    def test_a_list_that_goes_on_elsewhere_is_an_error(self) -> None:
        with pytest.raises(RegistryError, match="elsewhere"):
            self.ghcr({"": (["a"], '<https://evil.example/?last=a>; rel="next"')})

    @pytest.mark.parametrize("body", ["", "[]", "{}", '{"tags": 3}', '{"tags": {"a": 1}}', "<html>"])
    def test_what_is_no_list_is_an_error(self, fresh: Repository, proxy: FaultyProxy, body: str) -> None:
        proxy.fault("answer", status=200, body=body.encode())
        with pytest.raises(RegistryError, match="malformed"):
            fresh.tags()


class TestDownloads:
    def read(self, mine: Repository, data: bytes, size: int | None = None) -> bytes:
        with mine.open_blob(digest(data), len(data) if size is None else size) as file:
            return file.read()

    @pytest.mark.parametrize("data", [SMALL, LARGE, b""], ids=["small", "large", "empty"])
    def test_a_blob_is_read_as_it_was_stored(self, fresh: Repository, data: bytes) -> None:
        fresh.upload_bytes(data)
        assert self.read(fresh, data) == data

    def test_reads_are_as_long_as_they_are_asked_to_be(self, blobs: Repository) -> None:
        with blobs.open_blob(digest(LARGE), len(LARGE)) as file:
            assert file.read(10) == LARGE[:10]
            assert file.read(1_000_000) == LARGE[10:1_000_010]
            assert file.read(-1) == LARGE[1_000_010:]
            assert file.read(1) == b""

    def test_a_broken_read_goes_on_where_it_was(self, blobs: Repository, proxy: FaultyProxy) -> None:
        for kind in ("cut the answer", "stall", "hang up", "answer", "cut the answer"):
            proxy.fault(kind, method="GET", seconds=1.5)
        assert self.read(blobs, LARGE) == LARGE
        requests = proxy.asked("GET", BLOB)
        assert len(requests) == 6
        assert [each.status for each in requests if "Range" in each.headers] == [206, 0, 503, 206, 206]
        assert sum(each.sent for each in requests) < len(LARGE) + 6 * (1 << 20)

    def test_reads_that_get_nowhere_come_to_an_end(self, blobs: Repository, proxy: FaultyProxy) -> None:
        proxy.fault("cut the answer", method="GET")
        proxy.fault("hang up", method="GET", times=ALWAYS)
        with pytest.raises(RegistryUnavailable, match="tried 6 times"):
            self.read(blobs, LARGE)

    def test_what_gets_on_may_break_as_often_again(self, proxy: FaultyProxy, stored: str) -> None:
        for kind in ("hang up", "hang up", "cut the answer", "hang up"):
            proxy.fault(kind, method="GET")
        with repository(proxy.host, stored, patience=replace(HASTE, tries=3)) as mine:
            assert self.read(mine, LARGE) == LARGE

    def test_a_server_that_knows_no_ranges_is_read_from_the_start(self, blobs: Repository, proxy: FaultyProxy) -> None:
        proxy.fault("cut the answer", method="GET")
        proxy.fault("forget the range", method="GET")
        assert self.read(blobs, LARGE) == LARGE
        assert [each.status for each in proxy.asked("GET", BLOB)] == [200, 200]

    @pytest.mark.parametrize("stretch", ["bytes 0-9/12", "bytes 6-11/13", "bytes */12", ""])
    def test_a_stretch_that_was_not_asked_for_is_refused(
        self, fresh: Repository, proxy: FaultyProxy, stretch: str
    ) -> None:
        fresh.upload_bytes(SMALL)
        proxy.fault("cut the answer", method="GET")
        proxy.fault("answer", method="GET", status=206, headers={"Content-Range": stretch}, body=SMALL[6:])
        with pytest.raises(CorruptImage, match="other bytes than were asked for"):
            self.read(fresh, SMALL)

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    def test_other_bytes_are_refused(self, blobs: Repository, proxy: FaultyProxy, data: bytes) -> None:
        proxy.fault("corrupt", method="GET")
        with pytest.raises(CorruptImage, match="other bytes under this digest"):
            self.read(blobs, data)

    def test_the_last_byte_is_read_only_if_all_are_right(self, blobs: Repository, proxy: FaultyProxy) -> None:
        proxy.fault("corrupt", method="GET")
        with blobs.open_blob(digest(LARGE), len(LARGE)) as file:
            file.read(CHUNK)
            with pytest.raises(CorruptImage):
                file.read(len(LARGE) - CHUNK)

    @pytest.mark.parametrize("wrong", [-1, 1])
    def test_another_size_than_stated_is_refused_at_once(self, blobs: Repository, wrong: int) -> None:
        with pytest.raises(CorruptImage, match=f"8,400,953 bytes of it instead of {len(LARGE) + wrong:,}"):
            self.read(blobs, LARGE, len(LARGE) + wrong)
        with pytest.raises(CorruptImage, match="8,400,953 bytes instead of"):
            blobs.has_blob(digest(LARGE), len(LARGE) + wrong)

    def test_a_length_that_is_no_number_of_bytes_tells_nothing(self) -> None:
        url = f"https://ghcr.io/v2/a/blobs/{digest(SMALL)}"
        nonsense = {"Content-Length": "9" * 5000}
        with responses.RequestsMock() as mock, Session("ghcr.io", patience=HASTE) as session:
            mock.head(url, headers=nonsense)
            mock.get(url, body=SMALL, headers=nonsense)
            mock.head("https://ghcr.io/v2/a/manifests/1", headers=nonsense | {"Docker-Content-Digest": digest(SMALL)})
            mock.get("https://ghcr.io/v2/a/manifests/1", body=SMALL, headers=nonsense)
            stored = Repository("a", session)
            assert stored.has_blob(digest(SMALL), len(SMALL))
            assert stored.fetch_blob(digest(SMALL), len(SMALL), 100) == SMALL
            found = stored.resolve("1")
            assert found
            assert (found.digest, found.size) == (digest(SMALL), len(SMALL))

    def test_more_bytes_than_stated_are_refused_where_no_length_is(self) -> None:
        with responses.RequestsMock() as mock, Session("ghcr.io", patience=HASTE) as session:
            mock.get(
                f"https://ghcr.io/v2/a/blobs/{digest(SMALL)}", body=SMALL + b"!", auto_calculate_content_length=False
            )
            with pytest.raises(CorruptImage, match="more bytes of it than 12"):
                Repository("a", session).fetch_blob(digest(SMALL), len(SMALL), 100)

    def test_what_a_server_calls_an_encoding_is_left_as_it_is(self) -> None:
        layer = gzip.compress(SMALL)
        with responses.RequestsMock() as mock, Session("ghcr.io", patience=HASTE) as session:
            mock.get(f"https://ghcr.io/v2/a/blobs/{digest(layer)}", body=layer, headers={"Content-Encoding": "gzip"})
            assert Repository("a", session).fetch_blob(digest(layer), len(layer), 100) == layer
            assert mock.calls[0].request.headers["Accept-Encoding"] == "identity"

    def test_a_missing_blob_is_named(self, blobs: Repository) -> None:
        assert not blobs.has_blob(ABSENT)
        with pytest.raises(NotInRegistry, match=f"owner/stored has no blob {ABSENT}"):
            blobs.fetch_blob(ABSENT, 10, 10)

    def test_a_blob_larger_than_its_limit_is_not_asked_for(self, blobs: Repository, proxy: FaultyProxy) -> None:
        with pytest.raises(CorruptImage, match="at most 11 are right"):
            blobs.fetch_blob(digest(SMALL), len(SMALL), 11)
        assert proxy.exchanges == []

    def test_a_file_has_its_name_once_it_is_whole(self, blobs: Repository, proxy: FaultyProxy, tmp_path: Path) -> None:
        told: list[int] = []
        proxy.fault("cut the answer", method="GET")
        blobs.download(digest(LARGE), len(LARGE), tmp_path / "blob", told.append)
        assert listing(tmp_path) == {"blob": LARGE}
        assert sum(told) == len(LARGE)
        proxy.fault("corrupt", method="GET")
        with pytest.raises(CorruptImage):
            blobs.download(digest(LARGE), len(LARGE), tmp_path / "other")
        assert listing(tmp_path) == {"blob": LARGE}

    def test_a_cancel_stops_a_read(self, blobs: Repository, proxy: FaultyProxy) -> None:
        begun = threading.Event()

        def read() -> None:
            with blobs.open_blob(digest(LARGE), len(LARGE)) as file:
                while file.read(1 << 16):
                    begun.set()
                    time.sleep(0.01)

        with pytest.raises(KeyboardInterrupt), Workers(1) as workers:  # noqa: PT012  # leaving the pool is the point
            task = workers.submit(read)
            begun.wait()
            raise KeyboardInterrupt
        with pytest.raises(CancelledError):
            task.result()
        assert proxy.exchanges

    def test_memory_does_not_grow_with_a_blob(self, blobs: Repository, tmp_path: Path) -> None:
        blobs.download(digest(SMALL), len(SMALL), tmp_path / "small")  # whatever is loaded at first
        with peak_memory() as peak:
            blobs.download(digest(LARGE), len(LARGE), tmp_path / "blob")
        assert peak.size < 3 << 20

    def test_threads_share_a_repository(self, fresh: Repository) -> None:
        datas = [os.urandom(50_000 + number) for number in range(40)]

        def round_trip(data: bytes) -> bytes:
            fresh.upload_bytes(data)
            return self.read(fresh, data)

        with Workers(8) as workers:
            assert list(workers.map(round_trip, datas)) == datas


class TestStorageElsewhere:
    """Blobs that the registry keeps at another host, to which it redirects."""

    @pytest.fixture
    def hosts(self, registry: Registry) -> Iterator[tuple[FaultyProxy, FaultyProxy]]:
        """The registry's host with its tokens, and that of its storage."""
        with TokenGate(registry.host, public=True) as gate, FaultyProxy(registry.host) as storage:
            yield gate, storage

    @pytest.fixture
    def remote(self, hosts: tuple[FaultyProxy, FaultyProxy], stored: str) -> Iterator[Repository]:
        gate, storage = hosts
        with repository(gate.host, stored, found=FOUND) as mine:
            mine.tags()  # and has its token
            gate.forget()
            gate.fault("redirect", path=BLOB, to=f"http://{storage.host}", times=ALWAYS)
            yield mine

    def test_it_is_not_told_who_we_are(self, remote: Repository, hosts: tuple[FaultyProxy, FaultyProxy]) -> None:
        gate, storage = hosts
        assert remote.fetch_blob(digest(SMALL), len(SMALL), 100) == SMALL
        assert [each.headers.get("Authorization", "")[:7] for each in gate.exchanges] == ["Bearer "]
        assert [each.headers.get("Authorization") for each in storage.exchanges] == [None]

    def test_an_address_that_expired_is_asked_for_again(
        self, remote: Repository, hosts: tuple[FaultyProxy, FaultyProxy]
    ) -> None:
        gate, storage = hosts
        storage.fault("cut the answer")
        storage.fault("answer", status=403)
        with remote.open_blob(digest(LARGE), len(LARGE)) as file:
            assert file.read() == LARGE
        assert len(gate.exchanges) == len(storage.exchanges) == 3

    def test_a_blob_is_known_by_a_byte_of_it(self, remote: Repository, hosts: tuple[FaultyProxy, FaultyProxy]) -> None:
        _, storage = hosts
        assert remote.has_blob(digest(LARGE), len(LARGE))
        assert [(each.method, each.sent) for each in storage.exchanges] == [("GET", 1)]
        storage.fault("forget the range")
        for _ in range(2):
            with pytest.raises(CorruptImage):
                remote.has_blob(digest(LARGE), len(LARGE) - 1)
        with pytest.raises(RegistryError, match="answered 404"):
            remote.has_blob(ABSENT)


def query(call: responses.Call) -> dict[str, list[str]]:
    return parse_qs(urlsplit(str(call.request.url)).query)


def source(data: bytes) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(data)


class TestUploads:
    def upload(self, mine: Repository, data: bytes) -> list[int]:
        told: list[int] = []
        mine.upload(digest(data), len(data), source(data), told.append)
        assert sum(told) == len(data)
        assert min(told, default=1) > 0
        assert mine.fetch_blob(digest(data), len(data), len(data)) == data
        return told

    @pytest.mark.parametrize("data", [b"", SMALL, LARGE[:CHUNK]], ids=["empty", "small", "chunk"])
    def test_small_blobs_take_two_requests(self, fresh: Repository, proxy: FaultyProxy, data: bytes) -> None:
        self.upload(fresh, data)
        assert [each.method for each in proxy.exchanges] == ["POST", "PUT", "GET"]
        assert sum(each.received for each in proxy.exchanges) == len(data)

    def test_large_blobs_go_as_one_stream(self, fresh: Repository, proxy: FaultyProxy) -> None:
        assert len(self.upload(fresh, LARGE)) > 8
        assert [each.method for each in proxy.exchanges] == ["POST", "PATCH", "PUT", "GET"]
        assert [each.received for each in proxy.exchanges] == [0, len(LARGE), 0, 0]
        assert "Content-Range" not in proxy.exchanges[1].headers

    @pytest.mark.parametrize(
        ("method", "kind"),
        [
            ("POST", "hang up"),
            ("POST", "lose the answer"),
            ("PATCH", "hang up"),
            ("PATCH", "cut the request"),
            ("PATCH", "lose the answer"),
            ("PATCH", "answer"),
            ("PUT", "hang up"),
            ("PUT", "lose the answer"),
            ("PUT", "answer"),
        ],
    )
    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    def test_a_blob_is_stored_over_a_line_that_breaks(
        self, fresh: Repository, proxy: FaultyProxy, method: str, kind: Kind, data: bytes
    ) -> None:
        proxy.fault(kind, method=method)
        self.upload(fresh, data)

    def test_what_was_taken_is_not_sent_again(self, fresh: Repository, proxy: FaultyProxy) -> None:
        proxy.fault("lose the answer", method="PUT")
        self.upload(fresh, LARGE)
        assert sum(each.received for each in proxy.exchanges) == len(LARGE)

    def test_a_registry_that_asks_to_wait_is_waited_for(self, fresh: Repository, proxy: FaultyProxy) -> None:
        proxy.fault("answer", method="PATCH", status=429, headers={"Retry-After": "1"})
        started = time.monotonic()
        self.upload(fresh, LARGE)
        assert time.monotonic() - started > 1

    def test_a_line_that_is_down_is_an_error(self, fresh: Repository, proxy: FaultyProxy) -> None:
        proxy.fault("cut the request", method="PATCH", times=ALWAYS)
        with pytest.raises(RegistryUnavailable, match="tried 6 times"):
            fresh.upload(digest(LARGE), len(LARGE), source(LARGE))
        assert len(proxy.asked("PATCH")) == 6

    @pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
    def test_damage_on_the_way_gets_one_more_try(self, fresh: Repository, proxy: FaultyProxy, data: bytes) -> None:
        proxy.fault("corrupt the request", path=UPLOAD)
        self.upload(fresh, data)

    def test_what_has_another_digest_is_refused(self, fresh: Repository, proxy: FaultyProxy) -> None:
        with pytest.raises(RegistryError, match="DIGEST_INVALID"):
            fresh.upload(digest(SMALL), len(LARGE), source(LARGE))
        assert len(proxy.asked("PATCH")) == 2

    def test_an_upload_that_the_registry_forgot_is_begun_anew(self, fresh: Repository, proxy: FaultyProxy) -> None:
        proxy.fault("answer", method="PATCH", status=404)
        self.upload(fresh, LARGE)

    def test_a_short_file_is_refused(self, fresh: Repository) -> None:
        with pytest.raises(CorruptImage, match="should have more"):
            fresh.upload(digest(LARGE), len(LARGE) + 1, source(LARGE))

    def test_a_file_that_cannot_be_read_is_not_the_networks_fault(self, fresh: Repository, tmp_path: Path) -> None:
        with pytest.raises(EnvironmentLack, match="No such file"):
            fresh.upload(digest(LARGE), len(LARGE), lambda: (tmp_path / "missing").open("rb"))

    def test_tokens_end_in_the_middle_of_a_publish(self) -> None:
        with token_registry() as gate, repository(gate.host, found=FOUND) as mine:
            mine.upload_bytes(SMALL)
            gate.revoke()
            self.upload(mine, LARGE)
            gate.revoke()
            tag(mine, "v1")

    def test_a_cancel_stops_an_upload(self, fresh: Repository, proxy: FaultyProxy) -> None:
        begun = threading.Event()

        def advance(_: int) -> None:
            begun.set()
            time.sleep(0.02)

        with pytest.raises(KeyboardInterrupt), Workers(1) as workers:  # noqa: PT012  # leaving the pool is the point
            task = workers.submit(fresh.upload, digest(LARGE), len(LARGE), source(LARGE), advance)
            begun.wait()
            raise KeyboardInterrupt
        with pytest.raises(CancelledError):
            task.result()
        assert proxy.asked("PATCH")[0].received < len(LARGE)
        assert not fresh.has_blob(digest(LARGE))

    def test_memory_does_not_grow_with_a_blob(self, fresh: Repository, tmp_path: Path) -> None:
        path = tmp_path / "blob"
        path.write_bytes(LARGE)
        fresh.upload_bytes(SMALL)
        with peak_memory() as peak:
            fresh.upload(digest(LARGE), len(LARGE), lambda: path.open("rb"))
        assert peak.size < 3 << 20

    def test_a_place_at_another_host_is_not_told_who_we_are(self) -> None:
        uploads = "https://ghcr.io/v2/a/blobs/uploads/"
        with responses.RequestsMock() as mock, Session("ghcr.io", FOUND, patience=HASTE) as session:
            mock.post(uploads, status=401, headers={"WWW-Authenticate": "Basic realm=a"})
            mock.post(uploads, status=202, headers={"Location": "https://storage.example/place?state=1"})
            mock.put("https://storage.example/place", status=201)
            Repository("a", session).upload_bytes(SMALL)
            assert "Authorization" in mock.calls[1].request.headers
            assert "Authorization" not in mock.calls[2].request.headers
            assert query(mock.calls[2]) == {"state": ["1"], "digest": [digest(SMALL)]}

    @pytest.mark.parametrize("headers", [{}, {"Location": "http://ghcr.io/place"}, {"Location": "https://["}])
    def test_a_place_that_cannot_be_is_an_error(self, headers: dict[str, str]) -> None:
        with responses.RequestsMock() as mock, Session("ghcr.io", patience=HASTE) as session:
            mock.post("https://ghcr.io/v2/a/blobs/uploads/", status=202, headers=headers)
            with pytest.raises(RegistryError):
                Repository("a", session).upload_bytes(SMALL)


class TestMounts:
    def test_a_blob_of_another_repository_takes_one_request(
        self, fresh: Repository, stored: str, proxy: FaultyProxy
    ) -> None:
        assert fresh.mount(digest(LARGE), stored)
        assert len(proxy.exchanges) == 1
        assert fresh.has_blob(digest(LARGE), len(LARGE))

    def test_an_upload_that_was_begun_instead_is_used(self, fresh: Repository, stored: str, proxy: FaultyProxy) -> None:
        data = os.urandom(100)
        assert not fresh.mount(digest(data), stored)
        fresh.upload_bytes(data)
        assert [each.method for each in proxy.exchanges] == ["POST", "PUT"]
        assert fresh.has_blob(digest(data))


class Ghcr(ThreadingHTTPServer):
    """Uploads as GHCR takes them: it keeps what arrived of a broken stream and says how much that is, and takes no more
    than 4 MiB where a `Content-Range` is given.
    """

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _GhcrHandler)
        self.host = f"127.0.0.1:{self.server_port}"
        self.received = bytearray()
        self.blobs: dict[str, bytes] = {}


class _GhcrHandler(BaseHTTPRequestHandler):
    server: Ghcr

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the standard library
        pass

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rpartition("/")[2] in self.server.blobs else 404)

    def do_POST(self) -> None:
        self.server.received.clear()
        self._answer(202, Location="/v2/a/blobs/uploads/1")

    def do_GET(self) -> None:
        end = max(0, len(self.server.received) - 1)
        self._answer(204, Range=f"0-{end}", Location="/v2/a/blobs/uploads/1")

    def do_PATCH(self) -> None:
        received, stretch = self.server.received, self.headers["Content-Range"]
        size = int(self.headers["Content-Length"])
        body = self.rfile.read(size)
        if stretch and (size > CHUNK or stretch != f"{len(received)}-{len(received) + size - 1}"):
            self._answer(416)
            return
        received += body
        if len(body) == size:
            self._answer(202, Location="/v2/a/blobs/uploads/1")

    def do_PUT(self) -> None:
        name = "sha256:" + hashlib.sha256(self.server.received).hexdigest()
        self.server.blobs[name] = bytes(self.server.received)
        self._answer(201 if name.rpartition(":")[2] in self.path else 400)


class TestUploadsThatGoOn:
    @pytest.fixture
    def ghcr(self) -> Iterator[Ghcr]:
        with Ghcr() as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            yield server
            server.shutdown()
            thread.join()

    @pytest.mark.parametrize(
        "kinds",
        [
            ["cut the request"],
            ["lose the answer"],
            ["cut the request", "cut the request", "cut the request"],
            ["cut the request", "lose the answer", "hang up", "answer", "cut the request"],
        ],
    )
    def test_a_broken_stream_goes_on_in_chunks(self, ghcr: Ghcr, kinds: list[Kind]) -> None:
        data = os.urandom(5 * CHUNK + 99)
        told: list[int] = []
        patience = replace(HASTE, tries=4)
        with FaultyProxy(ghcr.host) as proxy, repository(proxy.host, "a", patience=patience) as mine:
            for kind in kinds:
                proxy.fault(kind, method="PATCH")
            mine.upload(digest(data), len(data), source(data), told.append)
            first, *chunks = proxy.asked("PATCH")
            assert all(each.received <= CHUNK and "Content-Range" in each.headers for each in chunks)
            assert sum(each.received for each in (first, *chunks)) < len(data) + len(kinds) * CHUNK
        assert ghcr.blobs[digest(data)] == data
        assert sum(told) == len(data)

    @pytest.mark.parametrize("status", [500, 403, 404, 405])
    def test_a_state_that_cannot_be_had_is_begun_anew(self, ghcr: Ghcr, status: int) -> None:
        with FaultyProxy(ghcr.host) as proxy, repository(proxy.host, "a") as mine:
            proxy.fault("cut the request", method="PATCH")
            proxy.fault("answer", method="GET", status=status)
            mine.upload(digest(LARGE), len(LARGE), source(LARGE))
            assert len(proxy.asked("POST")) == 2
        assert ghcr.blobs[digest(LARGE)] == LARGE

    def test_an_end_that_never_comes_is_an_error(self, ghcr: Ghcr) -> None:
        with FaultyProxy(ghcr.host) as proxy, repository(proxy.host, "a") as mine:
            proxy.fault("answer", method="PUT", times=ALWAYS)
            with pytest.raises(RechunkError):
                mine.upload(digest(LARGE), len(LARGE), source(LARGE))
            assert len(proxy.asked("PATCH")) == 1
