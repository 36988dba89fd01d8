"""HTTP with registries: authentication, patience, redirects; the quirks are GHCR's, as its users met them."""

from __future__ import annotations

import base64
import email.utils
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import responses
from hypothesis import given
from hypothesis import strategies as st
from responses.registries import OrderedRegistry

from rechunk_action.errors import AccessDenied, InputError, RegistryError, RegistryUnavailable
from rechunk_action.registry.addresses import is_loopback
from rechunk_action.registry.challenge import Challenge, parse_challenges
from rechunk_action.registry.client import Repository
from rechunk_action.registry.credentials import ANONYMOUS, Credentials, Found
from rechunk_action.registry.patience import Patience
from rechunk_action.registry.session import MAX_ANSWER, Access, Session
from rechunk_action.workers import Workers
from tests.registries import FOUND, HASTE, PASSWORD, USER, htpasswd_registry, plain_registry, repository, token_registry

GHCR = "https://ghcr.io"
TAGS = f"{GHCR}/v2/owner/image/tags/list"
TOKEN = f"{GHCR}/token"
CHALLENGE = {
    "www-authenticate": 'Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull"'
}
DENIED = {"errors": [{"code": "DENIED", "message": "requested access\nto the \x1b[31mresource is denied"}]}
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture
def ghcr() -> Iterator[responses.RequestsMock]:
    """Answers are given in the order in which they were added, the last one for ever."""
    with responses.RequestsMock(registry=OrderedRegistry) as mock:
        yield mock


class Clock:
    """Patience that only writes down how long it would have waited."""

    def __init__(self, **options: Any) -> None:
        self.waits: list[float] = []
        self.patience = Patience(sleep=self.waits.append, **options)


def client(found: Found = FOUND, patience: Patience = HASTE) -> Repository:
    return Repository("owner/image", Session("ghcr.io", found, patience=patience))


def token(ghcr: responses.RequestsMock, value: str = "a-token", **more: Any) -> None:
    ghcr.get(TOKEN, json={"token": value, **more})


def query(call: responses.Call) -> dict[str, list[str]]:
    return parse_qs(urlsplit(str(call.request.url)).query)


def sent(ghcr: responses.RequestsMock) -> list[tuple[str, str | None]]:
    """Paths and authorization of what was asked."""
    return [(str(call.request.url).partition("?")[0], call.request.headers.get("Authorization")) for call in ghcr.calls]


class TestAuthentication:
    def test_a_token_is_exchanged_for_the_password_which_the_registry_never_sees(
        self, ghcr: responses.RequestsMock
    ) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        token(ghcr)
        ghcr.get(TAGS, json={"tags": ["a"]})
        ghcr.get(TAGS, json={"tags": ["b"]})
        repository = client()
        assert (repository.tags(), repository.tags()) == (["a"], ["b"])
        assert sent(ghcr) == [(TAGS, None), (TOKEN, BASIC), (TAGS, "Bearer a-token"), (TAGS, "Bearer a-token")]
        assert query(ghcr.calls[1]) == {"service": ["ghcr.io"], "scope": ["repository:owner/image:pull"]}

    def test_public_images_take_a_token_of_nobody(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        ghcr.get(TOKEN, json={"access_token": "nobodys"})
        ghcr.get(TAGS, json={"tags": []})
        assert client(ANONYMOUS).tags() == []
        assert sent(ghcr)[1:] == [(TOKEN, None), (TAGS, "Bearer nobodys")]

    def test_a_token_that_is_refused_is_asked_for_once_more(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        token(ghcr, "first")
        ghcr.get(TAGS, status=403, json=DENIED)
        token(ghcr, "second")
        ghcr.get(TAGS, json={"tags": ["a"]})
        assert client().tags() == ["a"]
        assert sent(ghcr)[-1] == (TAGS, "Bearer second")

    def test_what_stays_denied_is_an_error_that_names_who_and_what_and_the_remedy(
        self, ghcr: responses.RequestsMock
    ) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        for value in "first", "second":
            token(ghcr, value)
            ghcr.get(TAGS, status=403, json=DENIED)
        with pytest.raises(AccessDenied) as caught:
            client().tags()
        assert str(caught.value) == (
            "ghcr.io denies pulling from ghcr.io/owner/image with the credentials of the test (DENIED: requested "
            "access to the [31mresource is denied): in a workflow, give the job `permissions: packages: read` and, for "
            "a package of another repository, add this one under the package's 'Manage Actions access'; elsewhere, run "
            "`podman login ghcr.io`"
        )
        assert caught.value.exit_code == 4

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_token_server_that_denies_is_never_taken_for_absence(
        self, ghcr: responses.RequestsMock, status: int
    ) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        ghcr.get(TOKEN, status=status, json=DENIED)
        with pytest.raises(AccessDenied, match="with no credentials"):
            client(ANONYMOUS).tags()

    def test_pushing_asks_for_the_right_to_push(self, ghcr: responses.RequestsMock) -> None:
        ghcr.put(f"{GHCR}/v2/owner/image/manifests/a", status=401, headers=CHALLENGE)
        ghcr.get(TOKEN, status=403)
        with pytest.raises(AccessDenied, match=r"pushing to ghcr\.io/owner/image .*packages: write"):
            client().put_manifest("a", b"{}", "text/plain")
        assert query(ghcr.calls[1])["scope"] == ["repository:owner/image:pull,push"]

    def test_mounting_asks_for_both_repositories(self, ghcr: responses.RequestsMock) -> None:
        uploads = f"{GHCR}/v2/owner/image/blobs/uploads/"
        ghcr.post(uploads, status=401, headers=CHALLENGE)
        token(ghcr)
        ghcr.post(uploads, status=201)
        assert client().mount("sha256:" + "0" * 64, "other/image")
        assert query(ghcr.calls[1])["scope"] == ["repository:owner/image:pull,push", "repository:other/image:pull"]

    def test_a_mount_that_is_denied_leaves_the_blob_to_be_uploaded(self, ghcr: responses.RequestsMock) -> None:
        ghcr.post(f"{GHCR}/v2/owner/image/blobs/uploads/", status=401, headers=CHALLENGE)
        ghcr.get(TOKEN, status=403)
        assert not client().mount("sha256:" + "0" * 64, "other/image")

    def test_an_identity_token_is_exchanged_as_oauth2_has_it(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        ghcr.post(TOKEN, json={"access_token": "a-token"})
        ghcr.get(TAGS, json={"tags": []})
        client(Found(Credentials("", "", "an+identity"), "a file")).tags()
        assert ghcr.calls[1].request.body == (
            "service=ghcr.io&grant_type=refresh_token&refresh_token=an%2Bidentity&client_id=rechunk-action"
            "&scope=repository%3Aowner%2Fimage%3Apull"
        )

    def test_credentials_are_not_sent_in_clear_text(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=401, headers={"WWW-Authenticate": 'Bearer realm="http://ghcr.io/token"'})
        with pytest.raises(RegistryError, match="is not https"):
            client().tags()
        assert len(ghcr.calls) == 1

    @pytest.mark.parametrize("realm", ["", "https://[", "https://ghcr.io:port/", "file:///etc/passwd", "ghcr.io/token"])
    def test_a_realm_that_is_no_address_is_refused(self, ghcr: responses.RequestsMock, realm: str) -> None:
        ghcr.get(TAGS, status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})
        with pytest.raises(RegistryError, match="is not https"):
            client().tags()

    def test_a_redirect_of_the_token_server_gets_no_password(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        ghcr.get(TOKEN, status=307, headers={"Location": "https://elsewhere.example/"})
        with pytest.raises(RegistryError, match=r"answered 307 to the request for a token at ghcr\.io"):
            client().tags()

    @pytest.mark.parametrize(
        "document",
        [
            *("", "[]", "3", "{}", '{"token": null}', '{"token": true}', '{"token": 7}', '{"token": "a\\nb"}'),
            *('{"token": "a", "expires_in": "x"}', '{"token": "a", "expires_in": 1' + "0" * 400 + "}"),
        ],
    )
    def test_an_answer_without_a_usable_token_is_an_error(self, ghcr: responses.RequestsMock, document: str) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        ghcr.get(TOKEN, body=document)
        with pytest.raises(RegistryError, match="no token"):
            client().tags()

    @pytest.mark.parametrize("header", ["", "Negotiate abc==", "Bearer", '"'])
    def test_an_unknown_way_of_authentication_is_a_denial(self, ghcr: responses.RequestsMock, header: str) -> None:
        ghcr.get(TAGS, status=401, headers={"WWW-Authenticate": header} if header else {})
        with pytest.raises(RegistryError):
            client().tags()

    def test_a_user_in_netrc_is_nobody(
        self, ghcr: responses.RequestsMock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "netrc").write_text("machine ghcr.io login me password mine\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        ghcr.get(TAGS, json={"tags": []})
        client(ANONYMOUS).tags()
        assert sent(ghcr) == [(TAGS, None)]

    @pytest.mark.oracle
    def test_basic_authentication_of_a_real_registry(self) -> None:
        with htpasswd_registry() as registry:
            with repository(registry.host, found=FOUND) as mine:
                digest = mine.upload_bytes(b"a blob")
                assert mine.has_blob(digest)
            with repository(registry.host) as nobodys, pytest.raises(AccessDenied, match="with no credentials"):
                nobodys.tags()
            wrong = Found(Credentials(USER, "a guess"), "a file of the test")
            with repository(registry.host, found=wrong) as theirs, pytest.raises(AccessDenied, match="a file of the"):
                theirs.has_blob(digest)

    @pytest.mark.oracle
    def test_tokens_are_kept_by_right_and_renewed_when_they_are_revoked(self) -> None:
        with token_registry() as gate, repository(gate.host, found=FOUND) as mine:
            for number in range(3):
                mine.upload_bytes(b"%d" % number)
                mine.tags()
            assert len(gate.asked(path="^/token")) == 2
            gate.revoke()
            mine.upload_bytes(b"more")
            assert len(gate.asked(path="^/token")) == 3

    @pytest.mark.oracle
    def test_a_token_is_renewed_before_it_expires(self) -> None:
        with token_registry() as gate, repository(gate.host, found=FOUND) as mine:
            gate.life = 0.5
            mine.tags()
            time.sleep(0.45)
            mine.tags()
            assert [each.status for each in gate.exchanges] == [401, 200, 404, 200, 404]

    @pytest.mark.oracle
    def test_threads_share_one_exchange(self) -> None:
        with token_registry() as gate, repository(gate.host, found=FOUND) as mine, Workers(8) as workers:
            assert list(workers.map(lambda _: mine.tags(), range(40))) == [[]] * 40
            assert len(gate.asked(path="^/token")) == 1

    @pytest.mark.oracle
    def test_private_images_are_denied_to_nobody(self) -> None:
        with (
            token_registry(public=False) as gate,
            repository(gate.host) as mine,
            pytest.raises(AccessDenied, match="podman login 127"),
        ):
            mine.tags()

    @pytest.mark.oracle
    def test_a_wrong_password_is_denied_and_not_shown(self) -> None:
        wrong = Found(Credentials(USER, "wrong-password"), "a file")
        with (
            token_registry() as gate,
            repository(gate.host, found=wrong) as mine,
            pytest.raises(AccessDenied) as caught,
        ):
            mine.tags()
        assert "not Basic ***" in str(caught.value)


class TestPatience:
    def test_the_registry_says_how_long_to_wait(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=429, headers={"Retry-After": "7"})
        ghcr.get(TAGS, status=503, headers={"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)})
        ghcr.get(TAGS, json={"tags": ["a"]})
        clock = Clock()
        assert client(patience=clock.patience).tags() == ["a"]
        assert clock.waits[0] == 7
        assert 28 < clock.waits[1] <= 30

    def test_pauses_double_and_come_to_an_end(self, ghcr: responses.RequestsMock) -> None:
        for _ in range(6):
            ghcr.get(TAGS, status=502, body="<html>proxy</html>", content_type="text/html")
        clock = Clock()
        with pytest.raises(RegistryUnavailable, match=r"^ghcr\.io answered 502 \(tried 6 times\): "):
            client(patience=clock.patience).tags()
        for number, pause in enumerate(clock.waits):
            assert 2**number / 2 <= pause <= 2**number
        assert len(clock.waits) == 5

    def test_nobody_waits_for_an_hour(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=429, headers={"Retry-After": "3600"})
        clock = Clock()
        with pytest.raises(RegistryUnavailable, match=r"tried once, which asks to wait for 3600 s"):
            client(patience=clock.patience).tags()
        assert clock.waits == []

    @pytest.mark.parametrize("header", ["", "soon", "-5", "Thu, 01 Jan 1970 00:00:00 GMT", "\x1c0", "9" * 400])
    def test_any_answer_to_how_long_is_survived(self, ghcr: responses.RequestsMock, header: str) -> None:
        ghcr.get(TAGS, status=503, headers={"Retry-After": header})
        if header.startswith("9"):
            with pytest.raises(RegistryUnavailable):
                client().tags()
        else:
            ghcr.get(TAGS, json={"tags": ["a"]})
            assert client().tags() == ["a"]

    @pytest.mark.parametrize("fault", [requests.ConnectionError(), requests.Timeout(), requests.ConnectTimeout()])
    def test_broken_connections_pass(self, ghcr: responses.RequestsMock, fault: Exception) -> None:
        ghcr.get(TAGS, body=fault)
        ghcr.get(TAGS, json={"tags": ["a"]})
        assert client().tags() == ["a"]

    def test_the_token_server_is_given_time_too(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        ghcr.get(TOKEN, status=429, headers={"Retry-After": "3"})
        token(ghcr)
        ghcr.get(TAGS, json={"tags": ["a"]})
        clock = Clock()
        assert client(patience=clock.patience).tags() == ["a"]
        assert clock.waits == [3]

    @pytest.mark.parametrize("status", [400, 404, 405, 501])
    def test_what_does_not_pass_is_asked_once(self, ghcr: responses.RequestsMock, status: int) -> None:
        ghcr.put(f"{GHCR}/v2/owner/image/manifests/a", status=status, json=DENIED)
        with pytest.raises(RegistryError, match=f"answered {status} to the manifest a for ghcr.io/owner/image.*DENIED"):
            client().put_manifest("a", b"{}", "text/plain")

    def test_a_cancel_ends_the_wait(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=429, headers={"Retry-After": "100"})
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt), Workers(1) as workers:  # noqa: PT012  # leaving the pool is the point
            task = workers.submit(client(patience=Patience()).tags)
            while not ghcr.calls:
                time.sleep(0.01)
            raise KeyboardInterrupt
        with pytest.raises(CancelledError):
            task.result()
        assert time.monotonic() - started < 5

    def test_an_answer_without_end_is_not_read(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, body=bytes(MAX_ANSWER + 1))
        with pytest.raises(RegistryError, match="more than 4,194,304 bytes"):
            client().tags()


class TestConnections:
    def test_nothing_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            host = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            repository(host, patience=Patience()) as mine,
            pytest.raises(RegistryUnavailable, match="start the registry"),
        ):
            mine.tags()

    @pytest.mark.oracle
    def test_a_registry_without_tls_is_told_from_a_broken_one(self) -> None:
        with (
            plain_registry() as registry,
            Session(registry.host) as session,
            pytest.raises(RegistryError, match="does not speak TLS: add --tls-verify=false"),
        ):
            Repository("a", session).tags()

    @pytest.mark.oracle
    def test_no_proxy_leads_to_loopback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        with plain_registry() as registry, repository(registry.host) as mine:
            assert mine.tags() == []

    def test_a_certificate_that_is_not_trusted_is_an_error_at_once(self, ghcr: responses.RequestsMock) -> None:
        fault = requests.exceptions.SSLError()
        fault.__cause__ = ssl.SSLCertVerificationError()
        fault.__cause__.verify_message = "self-signed certificate"
        ghcr.get(TAGS, body=fault)
        with pytest.raises(RegistryError, match=r"certificate of ghcr\.io is not trusted \(self-signed certificate\)"):
            client().tags()

    def test_a_host_that_does_not_exist_is_an_error_at_once(self, ghcr: responses.RequestsMock) -> None:
        fault = requests.ConnectionError()
        fault.__cause__ = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        ghcr.get(TAGS, body=fault)
        with pytest.raises(RegistryUnavailable, match=r"there is no host ghcr\.io"):
            client().tags()

    def test_without_tls_only_loopback_is_talked_to(self) -> None:
        with pytest.raises(InputError, match=r"for registries on loopback, which ghcr\.io is not"):
            Session("ghcr.io", tls_verify=False)

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            ("localhost", True),
            ("localhost:5000", True),
            ("127.0.0.1:5000", True),
            ("127.1.2.3", True),
            ("[::1]:5000", True),
            ("ghcr.io", False),
            ("127.0.0.1.example.com", False),
            ("localhost.example.com", False),
            ("0.0.0.0:5000", False),
            ("10.0.0.1", False),
            ("[::1", False),
        ],
    )
    def test_what_loopback_is(self, host: str, *, loopback: bool) -> None:
        assert is_loopback(host) is loopback

    def test_docker_hub_is_served_by_another_host(self) -> None:
        with Session("docker.io") as session:
            assert session.base == "https://registry-1.docker.io"


class TestRedirects:
    def follow(self, ghcr: responses.RequestsMock, *addresses: str) -> None:
        """A manifest whose request is sent from address to address."""
        url = f"{GHCR}/v2/owner/image/manifests/a"
        ghcr.get(url, status=401, headers=CHALLENGE)
        token(ghcr)
        for address in addresses:
            ghcr.get(url, status=307, headers={"Location": address})
            url = address if ":" in address else GHCR + address

    def test_authorization_stays_at_the_registry(self, ghcr: responses.RequestsMock) -> None:
        self.follow(ghcr, "/elsewhere", "https://storage.example/a", "https://ghcr.io/a")
        ghcr.get("https://ghcr.io/a", body=b"{}")
        assert client().manifest("a")
        assert [authorization for _, authorization in sent(ghcr)[2:]] == [
            "Bearer a-token",
            "Bearer a-token",
            None,
            None,
        ]

    @pytest.mark.parametrize("address", ["https://ghcr.io:444/a", "https://ghcr.io.example/a", "http://localhost/a"])
    def test_another_port_or_scheme_is_another_place(self, ghcr: responses.RequestsMock, address: str) -> None:
        self.follow(ghcr, address)
        ghcr.get(address, body=b"{}")
        assert client().manifest("a")
        assert sent(ghcr)[-1] == (address, None)

    @pytest.mark.parametrize("address", ["http://ghcr.io/a", "ftp://ghcr.io/a", "https://[/a", "https://ghcr.io:x/a"])
    def test_what_is_not_private_is_refused(self, ghcr: responses.RequestsMock, address: str) -> None:
        self.follow(ghcr, address)
        with pytest.raises(RegistryError, match=r"without TLS|cannot be used"):
            client().manifest("a")

    def test_redirects_come_to_an_end(self, ghcr: responses.RequestsMock) -> None:
        self.follow(ghcr, *["/a"] * 6)
        with pytest.raises(RegistryError, match="more than 5 times"):
            client().manifest("a")

    def test_what_is_sent_does_not_follow(self, ghcr: responses.RequestsMock) -> None:
        ghcr.put(f"{GHCR}/v2/owner/image/manifests/a", status=307, headers={"Location": "https://elsewhere.example"})
        with pytest.raises(RegistryError, match="answered 307"):
            client().put_manifest("a", b"{}", "text/plain")


class TestSecrets:
    def test_a_server_that_echoes_them_is_not_quoted(self, ghcr: responses.RequestsMock) -> None:
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        token(ghcr, "the-token")
        echo = f"you are {PASSWORD}, {BASIC}, Bearer the-token" + " " * 99 + "-" * 195 + PASSWORD
        for _ in range(2):
            ghcr.get(TAGS, status=500, body=echo)
        with pytest.raises(RegistryUnavailable) as caught:
            client(patience=replace(HASTE, tries=2)).tags()
        assert "(you are ***, Basic ***, Bearer *** ---" in str(caught.value)
        assert PASSWORD[:8] not in str(caught.value)

    def test_they_are_in_no_log(self, ghcr: responses.RequestsMock, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        ghcr.get(TAGS, status=401, headers=CHALLENGE)
        token(ghcr, "the-token")
        ghcr.get(TAGS, json={"tags": []})
        client().tags()
        assert not {PASSWORD, BASIC, "the-token"} & set(caplog.text.split())

    @pytest.mark.oracle
    def test_they_are_in_no_log_of_a_real_connection(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        with token_registry() as gate, repository(gate.host, found=FOUND) as mine:
            mine.upload_bytes(b"a blob")
        assert "POST /v2/owner/image/blobs/uploads/" in caplog.text
        for secret in (PASSWORD, BASIC, *gate.tokens):
            assert secret not in caplog.text

    def test_they_are_in_no_representation(self) -> None:
        with Session("ghcr.io", FOUND) as session:
            assert PASSWORD not in f"{session!r} {Access('a')!r} {FOUND!r}"


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("Basic realm=simple", [Challenge("basic", {"realm": "simple"})]),
        (
            'Bearer realm="https://a/token?x=1,2",service="a, b",scope="repository:a:pull,push"',
            [
                Challenge(
                    "bearer", {"realm": "https://a/token?x=1,2", "service": "a, b", "scope": "repository:a:pull,push"}
                )
            ],
        ),
        (
            'Basic Realm = "a \\"b\\" c" , BEARER realm="d", error="invalid_token"',
            [Challenge("basic", {"realm": 'a "b" c'}), Challenge("bearer", {"realm": "d", "error": "invalid_token"})],
        ),
        ("Negotiate, Basic realm=x", [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})]),
        ('realm="of nothing"', []),
        ("", []),
    ],
)
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges


@given(st.text() | st.from_regex(r'[Ba =",\\]{0,40}', fullmatch=True))
def test_any_challenge_is_read_without_an_error(header: str) -> None:
    parse_challenges(header)
