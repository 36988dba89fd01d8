"""GitHub's API as far as it is used here: a pull request's comments, and releases.

    github = FakeGitHub()
    with github.mocked(): ...             requests to `github.api` come here
    with serving(github) as address: ...  the same over HTTP, on loopback

It answers as GitHub does: lists come in pages, a workflow's token may not ask who it belongs to and writes as a bot.
`faults` are told before anything else, one a request that they are for.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import requests
import responses

TOKEN = "gh-the-very-secret-one"  # noqa: S105  # of these tests
REPOSITORY = "owner/image"
BOT = {"login": "github-actions[bot]", "type": "Bot"}
MAINTAINER = {"login": "maintainer", "type": "User"}

Answer = tuple[int, dict[str, str], str]


@dataclass
class Fault:
    """What is told instead of an answer to a request whose method and path are like `request`, or, with `late`, after
    it was done. `seconds` are how long that takes.
    """

    request: str
    status: int = 502
    document: object = None
    error: Exception | None = None
    late: bool = False
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None

    def tell(self) -> Answer:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.status, self.headers, self.text if self.text is not None else json.dumps(self.document)


class FakeGitHub:
    """One repository with pull request 7. `me` is who the token belongs to."""

    def __init__(
        self, api: str = "https://api.github.com", me: dict[str, str] = BOT, repository: str = REPOSITORY
    ) -> None:
        self.api = api
        self.me = me
        self.repository = repository
        self.comments: list[dict[str, Any]] = []
        self.releases: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()

    @property
    def written(self) -> list[str]:
        """The requests that change something."""
        return [line for line in self.asked if not line.startswith("GET ")]

    def comment(self, body: str | None, user: dict[str, str] = MAINTAINER) -> dict[str, Any]:
        """Somebody comments."""
        number = len(self.comments) + 1
        made = {
            "id": number,
            "url": f"{self.api}/repos/{self.repository}/issues/comments/{number}",
            "html_url": f"https://github.com/{self.repository}/pull/7#issuecomment-{number}",
            "body": body,
            "user": dict(user),
        }
        self.comments.append(made)
        return made

    def release(self, tag: str, body: str | None, **more: object) -> dict[str, Any]:
        """Somebody publishes a release."""
        number = len(self.releases) + 1
        self.releases[tag] = {
            "id": number,
            "url": f"{self.api}/repos/{self.repository}/releases/{number}",
            "html_url": f"https://github.com/{self.repository}/releases/tag/{tag}",
            "tag_name": tag,
            "name": tag,
            "draft": False,
            "prerelease": False,
            "body": body,
            **more,
        }
        return self.releases[tag]

    def answer(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """The answer to a request."""
        parts = urlsplit(url)
        path = parts.path.removeprefix(urlsplit(self.api).path)
        with self._lock:
            self.asked.append(f"{method} {path}")
            self.headers.append(headers)
            fault = next((fault for fault in self.faults if re.match(fault.request, f"{method} {path}")), None)
            if fault:
                self.faults.remove(fault)
                if not fault.late:
                    return fault.tell()
            if headers.get("Authorization") != f"token {TOKEN}":
                answer = _told(401, "Bad credentials")
            else:
                answer = self._answered(method, path, parse_qs(parts.query), json.loads(body or b"{}"))
            return fault.tell() if fault else answer

    def _answered(self, method: str, path: str, query: dict[str, list[str]], given: dict[str, Any]) -> Answer:
        home = f"/repos/{self.repository}"
        answers: dict[str, Callable[[], Answer]] = {
            "GET /user": self._whose,
            f"GET {home}/issues/7/comments": lambda: self._page(path, query),
            f"POST {home}/issues/7/comments": lambda: _document(self.comment(given["body"], self.me), 201),
            f"POST {home}/releases": lambda: self._released(given),
        }
        if answer := answers.get(f"{method} {path}"):
            return answer()
        if path.startswith(f"{home}/releases/tags/"):
            found = self.releases.get(unquote(path.rpartition("/")[2]))
        else:
            things = [*self.comments, *self.releases.values()]
            found = next((thing for thing in things if urlsplit(thing["url"]).path.endswith(path)), None)
        if found is None:
            return _told(404, "Not Found")
        if method == "PATCH":
            found.update(given)
        return _document(found)

    def _whose(self) -> Answer:
        if self.me["type"] == "Bot":
            return _told(403, "Resource not accessible by integration")
        return _document(self.me | {"url": f"{self.api}/user"})

    def _released(self, given: dict[str, Any]) -> Answer:
        if given["tag_name"] in self.releases:
            error = {"resource": "Release", "code": "already_exists", "field": "tag_name"}
            return _document({"message": "Validation Failed", "errors": [error]}, 422)
        return _document(self.release(given.pop("tag_name"), **given), 201)

    def _page(self, path: str, query: dict[str, list[str]]) -> Answer:
        size, number = (int(query.get(name, [default])[0]) for name, default in (("per_page", "30"), ("page", "1")))
        here = self.comments[(number - 1) * size : number * size]
        more = f'<{self.api}{path}?per_page={size}&page={number + 1}>; rel="next"'
        status, headers, text = _document(here)
        return status, headers | ({"Link": more} if number * size < len(self.comments) else {}), text

    @contextmanager
    def mocked(self) -> Iterator[None]:
        """Requests to the API come here; there are no others."""

        def callback(request: requests.PreparedRequest) -> Answer:
            assert request.method
            assert request.url
            body = request.body or b""
            sent = body.encode() if isinstance(body, str) else body
            return self.answer(request.method, request.url, dict(request.headers), sent)

        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            parts = urlsplit(self.api)
            port = parts.port or {"https": 443, "http": 80}[parts.scheme]
            here = re.compile(re.escape(f"{parts.scheme}://{parts.hostname}:{port}{parts.path}/") + ".*")
            for method in ("GET", "POST", "PATCH"):
                mock.add_callback(method, here, callback)
            yield


@contextmanager
def serving(github: FakeGitHub) -> Iterator[str]:
    """The API over HTTP. Its address is `github.api` from then on."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status, headers, text = github.answer(self.command, f"{github.api}{self.path}", dict(self.headers), body)
            data = text.encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who asked may be gone
                self.wfile.write(data)

        do_GET = do_POST = do_PATCH = _serve  # noqa: N815  # names that http.server looks for

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as it is there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        github.api = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield github.api
        server.shutdown()


def _document(document: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(document)


def _told(status: int, message: str) -> Answer:
    return _document({"message": message, "documentation_url": "https://docs.github.com/rest"}, status)
